"""What the operator says to an upload: which revision it becomes, that it is still wanted, and that it is there.

All of it stands in the status of the Image, which is followed and not asked for.
"""

import logging
import math
from typing import Final

from pydantic import ValidationError

from glimpse.api.base import Condition
from glimpse.api.image import HistoryEntry, Image, Pending
from glimpse.gateway.follow import Followed
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal, said
from glimpse.kube import Object

log: Final = logging.getLogger(__name__)

TURN: Final = 10.0
"""Seconds that another upload for the same image is waited for."""
BEGIN: Final = 60.0
"""Seconds that the operator may take to give an upload a revision."""
PROMOTE: Final = 120.0
"""Seconds that it may take to make a revision of what was stored."""
LOOK: Final = 30.0
"""Seconds that it may take to look at a spec that was changed."""
RETRYING: Final = "ProgressingWithRetry"
"""The reason of `Reconciling` where the operator has failed and will try again."""
OTHER: Final = (
    "Another upload for this image is under way. If it was given up, end it: kubectl get imageuploads shows it, "
    "kubectl delete imageupload ends it, and so does a new upload when no request has come for it for some minutes."
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
        why = None
        for seconds in (TURN, BEGIN - TURN):
            if grant := await followed.until(lambda _: cls.now(followed, uid), seconds):
                return grant
            image = understood(followed.obj)
            if image.status.pending and image.status.pending.upload:
                raise Refusal(409, OTHER, retry_after=LATER)
            why = _hindrance(image)
            if why and (why.type == "Stalled" or why.reason == RETRYING):
                break  # nothing begins before that is mended
        text = "."
        if why:
            reason, message = why.reason, why.message
            if reason == RETRYING:  # of what, its message says
                reason, _, message = message.partition(": ")
            log.warning("no upload may begin: %s: %s", reason, message)
            text = f": {reason}: {said(reason, message)}"
        raise Refusal(503, f"The image cannot take an upload at the moment{text}", retry_after=LATER)

    async def image(self) -> Image:
        """The Image that the revision is for, with the spec that the operator has given it for. Raises Refusal.

        What was read before, or was changed since, may ask for other bytes than the revision will be taken for.
        """
        if found := await self._followed.until(self._agreed, LOOK):
            return found
        text = f"The image was changed, and the operator has not looked at it for {LOOK:.0f} s."
        raise Refusal(503, text, retry_after=LATER)

    def _agreed(self, obj: Object | None) -> Image | None:
        image = understood(obj)
        self._still(image)
        return image if image.status.observed_generation == image.metadata.generation else None

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


def _hindrance(image: Image) -> Condition | None:
    """What the operator says of an image to which it gives no revision."""
    status = image.status
    if status.observed_generation != image.metadata.generation:
        return None
    now = {each.type: each for each in status.conditions}
    wrong = (("Stalled", "True"), ("Reconciling", "True"), ("Ready", "False"))
    found = (now[name] for name, bad in wrong if name in now and now[name].status == bad)
    return next((each for each in found if each.reason != "WaitingForUpload"), None)


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
