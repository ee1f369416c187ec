"""Uploads as a decision sees them: which one is at work or next, and how far it is.

The gateway makes an ImageUpload for each and writes how far it is; here it is only read, so whatever is said there,
bytes count when a worker has found them in a store.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from pydantic import ValidationError

from glimpse.api.image import Image, Pending, PendingUpload
from glimpse.api.upload import ImageUpload, UploadFailure
from glimpse.kube import UPLOAD, Kube

log = logging.getLogger(__name__)

BUSY: Final = timedelta(seconds=1)
"""Until one is looked at again that waits for a transfer of its namespace."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload for this image: the one that is pending, or else the one that is next."""

    uid: str
    expires: datetime
    size: int | None = None
    offset: int = 0
    stored: bool = False
    """All has come, as the gateway says."""
    failure: UploadFailure | None = None
    """Why it comes to nothing."""
    busy: str | None = None
    """A store with a quota that a transfer of the namespace is writing to: what is used there is not known yet."""
    used: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the namespace has in stores with a quota."""

    @classmethod
    def of(cls, upload: ImageUpload) -> Self:
        """As the object says."""
        status = upload.status
        return cls(
            upload.metadata.uid,
            upload.expires,
            upload.spec.size,
            status.offset or 0,
            stored=status.outcome == "Stored",
            failure=status.failure or UploadFailure(reason="UploadFailed", message="")
            if status.outcome == "Failed"
            else None,
        )

    def over(self, now: datetime) -> bool:
        """Whether nothing comes of it."""
        return self.failure is not None or (not self.stored and self.expires <= now)

    def is_of(self, pending: Pending) -> bool:
        """Whether it is the one that this revision is made of."""
        return pending.upload is not None and pending.upload.uid == self.uid

    @property
    def percent(self) -> int | None:
        """How far it is."""
        return min(100, 100 * self.offset // self.size) if self.size else None

    @property
    def pending(self) -> PendingUpload:
        """As a pending revision names it."""
        return PendingUpload(uid=self.uid, size=self.size, used=dict(self.used))


class Uploads:
    """All ImageUploads. For one event loop."""

    def __init__(self, kube: Kube, used: Callable[[Image], tuple[str | None, Mapping[str, int]]]) -> None:
        """`used`: of an image, the store with a quota that is busy, and bytes used by store, as in Upload."""
        self._kube, self._used = kube, used
        self._known: dict[str, dict[str, ImageUpload]] = {}

    def offer(self, obj: dict[str, Any], *, gone: bool = False) -> str | None:
        """One is there, has changed, or is gone; the uid of its Image. None if it cannot be understood."""
        try:
            upload = ImageUpload.model_validate(obj)
        except ValidationError as error:
            log.error("upload %s cannot be understood: %s", obj["metadata"]["name"], error)  # noqa: TRY400 - no bug
            return None
        image, uid = upload.spec.image_uid, upload.metadata.uid
        known = self._known.setdefault(image, {})
        if gone:
            known.pop(uid, None)
        else:
            known[uid] = upload
        if not known:
            del self._known[image]
        return image

    def of(self, image: str) -> tuple[ImageUpload, ...]:
        """Those for the Image with this uid."""
        return tuple(self._known.get(image, {}).values())

    def next(self, image: Image, now: datetime) -> Upload | None:
        """The one that is pending, or else the oldest that may begin, with what is used where that is limited."""
        pending = image.status.pending
        known = [upload for upload in self.of(image.metadata.uid) if upload.metadata.deletion_timestamp is None]
        if pending:
            uid = pending.upload.uid if pending.upload else None
            return next((Upload.of(upload) for upload in known if upload.metadata.uid == uid), None)
        waiting = [upload for upload in known if upload.status.outcome is None and upload.expires > now]
        if not waiting:
            return None
        busy, used = self._used(image)
        return replace(Upload.of(min(waiting, key=_age)), busy=busy, used=used)

    async def clear(self, image: str, pending: Pending | None, dropped: str | None) -> datetime | None:
        """Remove those of an Image that need no longer be kept; when there is the next one. Raises ApiError."""
        now = datetime.now(UTC)
        mine = pending.upload.uid if pending and pending.upload else None
        others = [upload for upload in self.of(image) if upload.metadata.uid != mine]
        await self._remove(u for u in others if u.expires <= now or u.metadata.uid == dropped)
        return min((upload.expires for upload in others if upload.expires > now), default=None)

    async def remove(self, image: str) -> None:
        """Remove all of an Image that is gone. Raises ApiError."""
        await self._remove(self.of(image))

    async def _remove(self, over: Iterable[ImageUpload]) -> None:
        for upload in over:
            meta = upload.metadata
            await self._kube.delete(UPLOAD, meta.name, meta.namespace, uid=meta.uid)


def _age(upload: ImageUpload) -> tuple[datetime, str]:
    return upload.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), upload.metadata.name
