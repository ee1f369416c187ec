"""All bytes of an attempt: sent from a body, or copied from another object by the server itself; and read again."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from glimpse.problems import DataLost, NotFound, Problem, StoreConflict, StoreUnavailable
from glimpse.stores import Version
from glimpse.stores.s3.bucket import BYTES, Bucket, Upload
from glimpse.stores.s3.parts import AT_ONCE, WINDOW, Part, cut, sizes
from glimpse.stores.s3.places import check, compare, version_of
from glimpse.streams import CHUNK, Reader

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef


def send(bucket: Bucket, name: str, body: Reader, least: int) -> int:
    """All of the body, in parts of `least` bytes or more, in one request if that is enough; how much it was."""
    parts = cut(body, body.size, least)
    part, last = next(parts)
    if last:
        bucket.ask(partial(_send_whole, bucket, name, part))
        return len(part)
    upload = bucket.begin(name)
    size, sent = 0, list[Future[str]]()
    running: dict[Future[str], int] = {}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="part") as pool:
        while True:
            size += len(part)
            while running and (len(running) == AT_ONCE or sum(running.values()) + len(part) > WINDOW):
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[done]
                    done.result()
            sent.append(pool.submit(bucket.ask, partial(_send_part, bucket, upload, len(sent) + 1, part)))
            running[sent[-1]] = len(part)
            del part  # or it would stay in memory until the next one is whole
            if last:
                break
            part, last = next(parts)
        tags = [future.result() for future in sent]
    _complete(bucket, upload, tags, size)
    return size


def copy(
    bucket: Bucket, source: str, name: str, size: int, *, whole: int, piece: int, going: Callable[[], None]
) -> None:
    """All `size` bytes of `source`, in one request up to `whole`; else, or if that takes too long, in parts of `piece`.

    One request may be nothing to a server that lets two objects share their bytes; where it copies them, several are
    faster, and each answers in time. Raises NotFound, Unable where the server copies nothing, and what `going` raises
    before a part.
    """
    if size <= whole:
        try:
            bucket.copy(source, name)
        except StoreUnavailable:
            if size <= piece:
                raise
        else:
            if bucket.head(name)["ContentLength"] != size:
                raise DataLost(f"{bucket.url(source)} is not as long as it was")
            return
    upload, step = bucket.begin(name), next(sizes(size, piece))

    def part(start: int) -> str:
        going()
        return bucket.copy_part(upload, start // step + 1, source, start, min(start + step, size))

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="copy") as pool:
        tags = list(pool.map(part, range(0, size, step)))
    _complete(bucket, upload, tags, size)


def fetch(
    bucket: Bucket, name: str, version: Version | None, part: tuple[int, int], over: threading.Event
) -> Sequence[bytes]:
    """The bytes of a range; where the way breaks, the rest of it is asked for. Fewer, if there are no more.

    With a `version`, just of this one; of an empty range too. Raises NotFound, DataLost.
    """
    chunks, got = list[bytes](), 0
    start, count = part
    only: dict[str, Any] = {"IfMatch": version.etag} if version and version.etag else {}

    def go_on(s3: "S3Client") -> None:
        nonlocal got
        where = f"bytes={start + got}-{start + count - 1}"
        answer = s3.get_object(Bucket=bucket.name, Key=bucket.at(name), Range=where, **only)
        with closing(answer["Body"]) as stream:
            found = answer.get("ContentRange", "")
            if not found.startswith(f"bytes {start + got}-"):
                raise StoreUnavailable(f"{bucket.place}: the server does not give ranges")
            if version:
                compare(bucket, name, version_of(answer, int(found.rpartition("/")[2])), version)
            while got < count and not over.is_set() and (chunk := stream.read(min(CHUNK, count - got))):
                chunks.append(chunk)
                got += len(chunk)

    if not count:
        if version:
            check(bucket, name, version)
        return chunks
    try:
        bucket.ask(go_on)
    except StoreConflict as problem:  # what a server says where it is not the one that was asked for
        raise DataLost(f"{bucket.url(name)} has been changed") from problem
    return chunks


def _send_whole(bucket: Bucket, name: str, part: Part, s3: "S3Client") -> None:
    s3.put_object(Bucket=bucket.name, Key=bucket.at(name), Body=part.again(), ContentType=BYTES)


def _send_part(bucket: Bucket, upload: Upload, number: int, part: Part, s3: "S3Client") -> str:
    return s3.upload_part(**bucket.where(upload), PartNumber=number, Body=part.again())["ETag"]


def _complete(bucket: Bucket, upload: Upload, tags: Sequence[str], size: int) -> None:
    """Join the parts. An answer that was lost does not lose them: then it is the size that tells."""
    parts: list[CompletedPartTypeDef] = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]
    where = bucket.where(upload)
    try:
        bucket.ask(lambda s3: s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts}))
    except (StoreUnavailable, NotFound):
        with suppress(Problem):
            if bucket.head(upload.name)["ContentLength"] == size:
                return
        raise
