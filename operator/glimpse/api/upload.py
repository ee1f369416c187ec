"""The kind `ImageUpload`: one upload, as the gateway keeps account of it.

An object of its own, since only the operator writes an Image's status, and every replica of the gateway must see how
far an upload is. People only look at it.
"""

from typing import Annotated, Literal

from pydantic import Field

from glimpse.api.base import Int64, Metadata, Model, Name, Time


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
    """When it ends if nothing more comes."""


class ImageUpload(Model):
    """One upload of bytes for an Image, made and kept by the gateway."""

    metadata: Metadata
    spec: ImageUploadSpec
    """What is uploaded."""
    status: ImageUploadStatus = ImageUploadStatus()
    """How far it is."""
