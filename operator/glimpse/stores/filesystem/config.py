"""What an ImageStore says of a folder: where it is."""

from typing import Annotated

from pydantic import AfterValidator, Field

from glimpse.api.base import Model, Rule, immutable


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("must be absolute")
    return path


class FilesystemConfig(Model):
    """A folder of a mounted file system."""

    path: Annotated[
        str,
        Field(min_length=1, max_length=1024),
        AfterValidator(_absolute),
        Rule(
            "self.matches('^(/[^/[:cntrl:]]+)+$') && !self.matches('/[.][.]?(/|$)')",
            "must be the plain path of a folder, such as /var/lib/glimpse/images: absolute, "
            "without . and .., no / at its end",
        ),
        immutable("path", "mount the disk with the bytes at the same path, or create another ImageStore"),
    ]
    """The folder, absolute; it must exist. Files of others in it are left alone."""
    claim_name: Annotated[str | None, Field(max_length=253)] = None
    """The PersistentVolumeClaim that is mounted there, for the reader; nothing is mounted by it."""
