"""A bucket, as far as a store needs one: small objects, listings, and requests that end as Problems."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from glimpse.problems import NotFound, StoreConflict
from glimpse.stores.s3.client import TRIES, Authorities, Keys, Place, able, ask, border, connect

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import (
        CopySourceTypeDef,
        HeadObjectOutputTypeDef,
        ListMultipartUploadsOutputTypeDef,
        ListObjectsV2OutputTypeDef,
    )

T = TypeVar("T")

BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Listed:
    """An object, as a listing shows it."""

    name: str
    size: int
    modified: datetime
    age: float
    """Seconds, by the server's clock."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One that is under way, or was left."""

    name: str
    id: str
    begun: datetime


class Where(TypedDict):
    """Which upload a request is about."""

    Bucket: str
    Key: str
    UploadId: str


class Bucket:
    """Names here lack the store's prefix. Every method raises Problem; shared by threads."""

    def __init__(self, place: Place, prefix: str, keys: Keys | None, ca_bundle: str | None, page: int) -> None:
        """Nothing is reached yet. `page`: names in one answer to a listing."""
        self.place, self.name = place, place.bucket
        self._prefix, self._keys, self._ca_bundle, self._page = prefix, keys, ca_bundle, page
        self._connecting = threading.Lock()
        self._connection: tuple[S3Client, Authorities] | None = None

    def at(self, name: str) -> str:
        """The name that the server knows."""
        return self._prefix + name

    def url(self, name: str = "") -> str:
        """For people."""
        return f"s3://{self.name}/{self.at(name)}"

    def ask(self, call: Callable[["S3Client"], T], tries: int = TRIES) -> T:
        """One request, tried again where that helps. Raises Problem, and nothing of the library's."""
        with border(self.place):
            client = self._client()
            return ask(lambda: call(client), tries)

    def _client(self) -> "S3Client":
        with self._connecting:
            if self._connection is None:
                authorities = Authorities(self._ca_bundle)
                self._connection = connect(self.place, self._keys, authorities.path), authorities
            return self._connection[0]

    def load(self, name: str, limit: int) -> tuple[bytes, float]:
        """What a small object holds, and when it was written. Raises NotFound."""

        def load(s3: "S3Client") -> tuple[bytes, float]:
            answer = s3.get_object(Bucket=self.name, Key=self.at(name))
            with closing(answer["Body"]) as stream:
                return stream.read(limit + 1), answer["LastModified"].timestamp()

        return self.ask(load)

    def write(self, name: str, content: bytes, *, once: bool = False) -> None:
        """`once`: not over another one, as far as the server can tell; sent once only. Raises StoreConflict."""
        only: dict[str, Any] = {"IfNoneMatch": "*"} if once else {}
        at = self.at(name)
        self.ask(
            lambda s3: s3.put_object(Bucket=self.name, Key=at, Body=content, ContentType="application/json", **only),
            1 if once else TRIES,
        )

    def head(self, name: str) -> "HeadObjectOutputTypeDef":
        """What the server says of an object. Raises NotFound."""
        return self.ask(lambda s3: s3.head_object(Bucket=self.name, Key=self.at(name)))

    def copy(self, source: str, name: str) -> None:
        """Have the server copy an object. Raises NotFound, and Unable where it cannot."""

        def copy(s3: "S3Client") -> None:
            with able():
                s3.copy_object(Bucket=self.name, Key=self.at(name), CopySource=self._source(source))

        self.ask(copy)

    def copy_part(self, upload: Upload, number: int, source: str, start: int, stop: int) -> str:
        """The same with a range of it, as a part of an upload; its tag."""

        def copy(s3: "S3Client") -> str:
            which = f"bytes={start}-{stop - 1}"
            with able():
                answer = s3.upload_part_copy(
                    **self.where(upload), PartNumber=number, CopySource=self._source(source), CopySourceRange=which
                )
            return answer["CopyPartResult"]["ETag"]

        return self.ask(copy)

    def _source(self, name: str) -> "CopySourceTypeDef":
        return {"Bucket": self.name, "Key": self.at(name)}

    def erase(self, *names: str) -> None:
        """Remove objects. Absent is fine."""
        for at in map(self.at, names):

            def delete(s3: "S3Client", at: str = at) -> None:
                s3.delete_object(Bucket=self.name, Key=at)

            with suppress(NotFound):
                self.ask(delete)

    def listed(self, prefix: str) -> Iterator[Listed]:
        """Objects whose name begins so."""
        more: dict[str, Any] = {"Bucket": self.name, "Prefix": self.at(prefix), "MaxKeys": self._page}
        while True:
            answer = self.ask(partial(_list, more))
            for found in answer.get("Contents", ()):
                name, modified = found["Key"].removeprefix(self._prefix), found["LastModified"]
                yield Listed(name, found["Size"], modified, age(answer, modified))
            if not answer["IsTruncated"]:
                return
            more["ContinuationToken"] = answer["NextContinuationToken"]

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """Uploads in parts that were begun under such a name, and neither completed nor aborted."""
        more: dict[str, Any] = {"Bucket": self.name, "Prefix": self.at(prefix), "MaxUploads": self._page}
        while True:
            answer = self.ask(partial(_list_uploads, more))
            for found in answer.get("Uploads", ()):
                yield Upload(found["Key"].removeprefix(self._prefix), found["UploadId"], found["Initiated"])
            if not answer["IsTruncated"]:
                return
            more |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def begin(self, name: str) -> Upload:
        """Begin an upload in parts."""
        at = self.at(name)
        begun = self.ask(lambda s3: s3.create_multipart_upload(Bucket=self.name, Key=at, ContentType=BYTES))
        return Upload(name, begun["UploadId"], datetime.now(UTC))

    def abort(self, upload: Upload) -> None:
        """Remove the parts of an upload. Absent is fine."""
        with suppress(NotFound):
            self.ask(lambda s3: s3.abort_multipart_upload(**self.where(upload)))

    def where(self, upload: Upload) -> Where:
        """Arguments of each request about it."""
        return {"Bucket": self.name, "Key": self.at(upload.name), "UploadId": upload.id}

    def make(self) -> None:
        """Amazon wants to be told the region again, others their own name for it, or nothing."""
        try:
            self.ask(lambda s3: s3.head_bucket(Bucket=self.name))
        except NotFound:
            where: dict[str, Any] = {}
            if not self.place.endpoint and self.place.region != "us-east-1":
                where["CreateBucketConfiguration"] = {"LocationConstraint": self.place.region}
            with suppress(StoreConflict):  # another was quicker
                self.ask(lambda s3: s3.create_bucket(Bucket=self.name, **where))


def _list(where: Mapping[str, Any], s3: "S3Client") -> "ListObjectsV2OutputTypeDef":
    return s3.list_objects_v2(**where)


def _list_uploads(where: Mapping[str, Any], s3: "S3Client") -> "ListMultipartUploadsOutputTypeDef":
    return s3.list_multipart_uploads(**where)


def age(answer: Any, modified: datetime) -> float:
    """Seconds since then, by the clock of the server that gave the answer."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return (now - modified).total_seconds()
