"""The kind `ImageUpload`: one upload, as the gateway keeps account of it.

An object of its own, since only the operator writes an Image's status, and every replica of the gateway must see how
far an upload is. People only look at it.
"""

from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import Field

from glimpse.api.base import Digest, Int64, Metadata, Model, Name, Time

FRESH: Final = timedelta(seconds=60)
"""How long an upload may be without a word of its gateway."""
METADATA_LENGTH: Final = 2048
"""Characters of what a sender may say of its file."""


class UploadFailure(Model):
    """Why an upload came to nothing."""

    reason: Annotated[str, Field(max_length=63)]
    """What to do about it, as one word."""
    message: Annotated[str, Field(max_length=2048)]
    """The same for a person."""


class ImageUploadSpec(Model):
    """What is uploaded."""

    image: Name
    """The Image that the bytes are for, in the same namespace."""
    image_uid: Annotated[str, Field(alias="imageUID", max_length=64)]
    """Exactly this Image, and none of the same name that comes after it."""
    size: Int64 | None = None
    """Bytes of the whole; absent where it is not known."""
    resumable: bool | None = None
    """It may come in parts, and go on where it broke off (tus). Absent: all comes in one request."""
    digests: Annotated[tuple[Digest, ...], Field(max_length=8)] = ()
    """What the bytes must be, as the sender says, besides the checksum of the Image."""
    metadata: Annotated[str | None, Field(max_length=METADATA_LENGTH)] = None
    """What the sender says of its file, as the header Upload-Metadata of tus: it means nothing here."""


class ImageUploadStatus(Model):
    """How far it is. Written by the gateway alone."""

    observed_generation: int = -1
    """The generation of the spec that this status speaks of."""
    outcome: Literal["Stored", "Failed"] | None = None
    """`Stored`: all has come and was verified, and the operator makes it a revision. `Failed`: it comes to nothing.
    Absent: it is under way."""
    failure: UploadFailure | None = None
    """Why it came to nothing."""
    revision: Int64 | None = None
    """The revision that it becomes."""
    offset: Int64 | None = None
    """Bytes that have come, some seconds ago."""
    progress: Annotated[str | None, Field(max_length=16)] = None
    """The same for the column."""
    expires_at: Time | None = None
    """When it ends if nothing more comes; once there is an outcome, when it need no longer be kept."""
    holder: Annotated[str | None, Field(max_length=128)] = None
    """The replica of the gateway whose worker takes the bytes; absent while nobody sends any."""
    held_until: Time | None = None
    """When another replica may take it over without being asked to wait; once nobody has it, since when that is so."""
    asked_by: Annotated[str | None, Field(max_length=128)] = None
    """A replica that wants to have it: it gets it between two requests."""


class ImageUpload(Model):
    """One upload of bytes for an Image, made and kept by the gateway."""

    metadata: Metadata
    spec: ImageUploadSpec
    """What is uploaded."""
    status: ImageUploadStatus = ImageUploadStatus()
    """How far it is."""

    @property
    def expires(self) -> datetime:
        """When it ends if nothing more comes, or when it need no longer be kept."""
        made = self.metadata.creation_timestamp
        assert made  # noqa: S101 - every object has one
        return self.status.expires_at or made + FRESH
