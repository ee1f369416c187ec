"""What others put into the bucket: which version lies there, told by its ETag and the time it was written.

An ETag is often an MD5, and two files with the same one can be made. So the time counts as well; servers tell it in
seconds, and what was written in this one could still change unseen: that is waited for.
"""

import time
from typing import TYPE_CHECKING, Any, Final

from glimpse.problems import DataLost, NotFound, StoreRefused
from glimpse.stores import Version
from glimpse.stores.s3.bucket import Bucket, age

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef

_LONGEST: Final = 1024
"""Bytes of a name, at most; of a longer one servers say other things than that it is not there."""
_ETAG: Final = 256
_TICK: Final = 1.0
_LOOKS: Final = 15
"""At what was written just now; with a clock that is ahead the last one must do."""


def locate(bucket: Bucket, location: str) -> Version:
    """Which version lies there. Raises NotFound, StoreRefused."""
    head = _head(bucket, location)
    for _ in range(_LOOKS):
        if age(head, head["LastModified"]) >= _TICK:
            break
        time.sleep(_TICK / 5)
        head = _head(bucket, location)
    found = version_of(head, head["ContentLength"])
    if not found.etag or len(found.etag) > _ETAG:
        raise StoreRefused(f"{bucket.url(location)} has no ETag, so a change could not be seen")
    return found


def check(bucket: Bucket, location: str, version: Version) -> None:
    """Raise DataLost unless this version lies there, NotFound if nothing does."""
    head = _head(bucket, location)
    compare(bucket, location, version_of(head, head["ContentLength"]), version)


def compare(bucket: Bucket, location: str, found: Version, version: Version) -> None:
    """Raise DataLost unless this is what was found."""
    if not found.same(version):
        raise DataLost(f"{bucket.url(location)} has been changed")


def version_of(answer: Any, size: int) -> Version:
    """Of which one this is an answer."""
    return Version(size, answer.get("ETag"), f"{answer['LastModified']:%Y-%m-%dT%H:%M:%SZ}")


def named(bucket: Bucket, location: str) -> str:
    """The same. Raises NotFound for what is longer than any name."""
    if len(bucket.at(location).encode()) > _LONGEST:
        raise NotFound(f"{bucket.url(location)} is longer than a name can be")
    return location


def _head(bucket: Bucket, location: str) -> "HeadObjectOutputTypeDef":
    try:
        return bucket.head(named(bucket, location))
    except NotFound as problem:
        raise NotFound(f"nothing lies at {bucket.url(location)}") from problem
