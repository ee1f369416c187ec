"""What the operator says to an upload: which revision it becomes, that it is still wanted, and that it is there.

All of it stands in the status of the Image, which is followed and not asked for.
"""

import math
from typing import Final

from pydantic import ValidationError

from glimpse.api.image import HistoryEntry, Image, Pending
from glimpse.gateway.follow import Followed
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal
from glimpse.kube import Object

TURN: Final = 10.0
"""Seconds that another upload for the same image is waited for."""
BEGIN: Final = 60.0
"""Seconds that the operator may take to give an upload a revision."""
PROMOTE: Final = 120.0
"""Seconds that it may take to make a revision of what was stored."""
OTHER: Final = (
    "Another upload for this image is under way. If it was given up, end it: kubectl get imageuploads shows it, "
    "kubectl delete imageupload ends it, and it ends by itself when it expires."
)
CHANGED: Final = "The image was changed while its bytes were uploaded; upload them again."


class Unwanted(Refusal):
    """What is uploaded can become nothing any more."""


class Grant:
    """The revision of one upload."""

    def __init__(self, followed: Followed, uid: str, pending: Pending) -> None:
        """`uid`: of the upload; `pending`: its revision in the making."""
        self._followed, self._uid = followed, uid
        self.pending = pending
        self._looked: Object | None = None

    @classmethod
    def now(cls, followed: Followed, uid: str) -> "Grant | None":
        """If there is one already. Raises Refusal."""
        pending = understood(followed.obj).status.pending
        return cls(followed, uid, pending) if pending and pending.upload and pending.upload.uid == uid else None

    @classmethod
    async def wait(cls, followed: Followed, uid: str) -> "Grant":
        """Wait until the operator has given this upload a revision. Raises Refusal."""
        for seconds in (TURN, BEGIN - TURN):
            if grant := await followed.until(lambda _: cls.now(followed, uid), seconds):
                return grant
            status = understood(followed.obj).status
            if status.pending and status.pending.upload:
                raise Refusal(409, OTHER, retry_after=LATER)
        said = {each.type: each for each in status.conditions}
        why = next((said[name] for name in ("Stalled", "Reconciling", "Ready") if name in said), None)
        text = f": {why.reason}: {why.message}" if why and why.reason != "WaitingForUpload" else "."
        raise Refusal(503, f"The image cannot take an upload at the moment{text}", retry_after=LATER)

    def check(self) -> None:
        """Raises Refusal if the operator has changed its mind. Looks only at what is new."""
        if self._followed.obj is not self._looked:
            self._looked = self._followed.obj
            if self._looked is None:
                raise Unwanted(404, NOT_FOUND)
            self._still(understood(self._looked))

    async def promoted(self) -> HistoryEntry:
        """Wait until what was stored is a revision. Raises Refusal."""
        if entry := await self._followed.until(self._there, PROMOTE):
            return entry
        text = f"All was stored, but is no revision after {PROMOTE:.0f} s; look at the image later."
        raise Refusal(503, text, retry_after=math.ceil(PROMOTE))

    def _there(self, obj: Object | None) -> HistoryEntry | None:
        image = understood(obj)
        if entry := revision(image, self.pending.revision):
            return entry
        self._still(image)
        return None

    def _still(self, image: Image) -> None:
        now = image.status.pending
        if not (now and now.upload and (now.upload.uid, now.revision) == (self._uid, self.pending.revision)):
            raise Unwanted(409, CHANGED)


def revision(image: Image, number: int | None) -> HistoryEntry | None:
    """The revision with this number, if the image has it."""
    return next((entry for entry in image.status.history if entry.revision == number), None)


def understood(obj: Object | None) -> Image:
    """What is known of the image. Raises Refusal if it is gone."""
    if obj is None:
        raise Refusal(404, NOT_FOUND)
    try:
        return Image.model_validate(obj)
    except ValidationError as error:
        raise Refusal(409, "This image cannot be understood: it may be of another version.") from error
