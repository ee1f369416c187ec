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
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal, said, sentence
from glimpse.kube import IMAGE, ApiError, Gone, Kube, Object

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
CHANGED: Final = "The image was changed while its bytes were uploaded: they were for what it said before; upload again."
ENDED: Final = (
    "The upload was ended: its ImageUpload was removed, has expired, or gave way to a new one, or what it stored could "
    "not be used. The image says more; upload again."
)


class Unwanted(Refusal):
    """What is uploaded can become nothing any more."""


class Grant:
    """The revision of one upload."""

    def __init__(self, followed: Followed, uid: str, pending: Pending, image: Image) -> None:
        """`uid`: of the upload; `pending`: its revision in the making; `image`: that has it."""
        self._followed, self._uid = followed, uid
        self.pending = pending
        self._image, self._generation = image.metadata, image.status.observed_generation
        self._looked: Object | None = None

    @classmethod
    def now(cls, followed: Followed, uid: str) -> "Grant | None":
        """If there is one already. Raises Refusal."""
        image = understood(followed.obj)
        pending = image.status.pending
        return cls(followed, uid, pending, image) if pending and pending.upload and pending.upload.uid == uid else None

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
        text = "The image cannot take an upload at the moment"
        if why:
            reason, message = why.reason, why.message
            if reason == RETRYING:  # of what, its message says
                reason, _, message = message.partition(": ")
            log.warning("no upload may begin: %s: %s", reason, message)
            text += f": {reason}: {said(reason, message)}"
        raise Refusal(503, sentence(text), retry_after=LATER)

    async def image(self) -> Image:
        """The Image that the revision is for, with the spec that the operator has given it for. Raises Refusal.

        What was read before, or was changed since, may ask for other bytes than the revision will be taken for.
        """
        if found := await self._followed.until(self._agreed, LOOK):
            return found
        text = f"The image was changed, and the operator has not looked at it for {LOOK:.0f} s."
        raise Refusal(503, text, retry_after=LATER)

    def _agreed(self, obj: Object | None) -> Image | None:
        image = self._still(obj)
        return image if image.status.observed_generation == image.metadata.generation else None

    def check(self) -> None:
        """Raises Refusal if the operator has changed its mind. Looks only at what is new."""
        if self._followed.obj is not self._looked:
            self._looked = self._followed.obj
            self._still(self._looked)

    async def look(self, kube: Kube) -> None:
        """The same, with the image as it is now: when the account of an upload is gone, it says why if anything does.

        Raises Refusal.
        """
        try:
            self._followed.learn(await kube.get(IMAGE, self._image.name, self._image.namespace))
        except Gone:
            self._followed.learn(None)
        except ApiError as error:
            log.warning("why an upload has ended cannot be asked: %s", error.message)
        self._looked = None
        self._still(self._followed.obj)

    async def promoted(self) -> HistoryEntry:
        """Wait until what was stored is a revision. Raises Refusal."""
        if entry := await self._followed.until(self._there, PROMOTE):
            return entry
        text = f"All was stored, but is no revision after {PROMOTE:.0f} s; look at the image later."
        raise Refusal(503, text, retry_after=math.ceil(PROMOTE))

    def _there(self, obj: Object | None) -> HistoryEntry | None:
        same = obj is not None and obj["metadata"]["uid"] == self._image.uid
        if same and (entry := revision(understood(obj), self.pending.revision)):
            return entry
        self._still(obj)
        return None

    def _still(self, obj: Object | None) -> Image:
        """The Image, if its revision is still this upload's. Raises Refusal that says why not, and the way out."""
        where = f"The image {self._image.namespace}/{self._image.name}"
        if obj is None or obj["metadata"]["uid"] != self._image.uid:
            raise Unwanted(404, f"{where} was deleted while its bytes were uploaded; create it again, then upload.")
        image = understood(obj)
        now, generation = image.status.pending, image.status.observed_generation
        if now and now.upload and (now.upload.uid, now.revision) == (self._uid, self.pending.revision):
            self._generation = generation
            return image
        if image.metadata.deletion_timestamp:
            text = f"{where} is being deleted; create it again, then upload."
        elif image.spec.suspend:
            text = f"{where} was suspended while its bytes were uploaded; unset spec.suspend, then upload again."
        elif not image.spec.source.upload:
            text = f"{where} takes no uploads any more: its bytes come from elsewhere; set spec.source to upload."
        elif now and now.upload and now.upload.uid != self._uid:
            text = "Another upload for this image has taken the place of yours. Wait for its end, then upload again."
        else:
            text = ENDED if generation == self._generation else CHANGED
        raise Unwanted(409, text)


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
