"""A file that is being written: a document that is not yet complete, and chunks that hang on it."""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final

from glimpse.lease import Lease
from glimpse.problems import StoreConflict, StoreUnavailable
from glimpse.stores.gridfs.bucket import Bucket, Document, is_duplicate
from glimpse.streams import Reader

MESSAGE: Final = 8 << 20
"""Bytes of chunks in one request, if a chunk is not larger; the protocol allows 48 MB."""
IN_FLIGHT: Final = 2
"""Requests with chunks that are under way at once."""
DEAD: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The last sign of life of what is being removed."""


class Attempt:
    """What one put writes."""

    def __init__(self, bucket: Bucket, key: str, attempt: str, chunk_size: int) -> None:
        """Enter its document."""
        from bson import Int64, ObjectId

        self._bucket, self._key = bucket, key
        self._id, self._chunk_size = ObjectId(), chunk_size
        self._alive = {"_id": self._id, "metadata.renewed": {"$gt": DEAD}}
        self._count = 0
        """Chunks that are written, or about to be."""
        self._unsure = False
        """A request was not answered: it may still be carried out."""
        self._lost = False
        self._over = False
        # One at a time: not every database that speaks the protocol changes a document atomically.
        self._changing = threading.Lock()
        now = bucket.now()
        bucket.files.insert_one(
            {
                "_id": self._id,
                "filename": f"{key}.{attempt}.{self._id}",
                "length": Int64(0),
                "chunkSize": chunk_size,
                "uploadDate": now,
                "metadata": {"glimpse": f"{key}.{attempt}", "renewed": now},
            }
        )

    def renew(self) -> None:
        """Give a sign of life. Raises StoreUnavailable if it comes too late."""
        with self._bucket.border(), self._changing:
            if self._over:
                return
            change = {"$set": {"metadata.renewed": self._bucket.now()}}
            self._lost = not self._bucket.files.update_one(self._alive, change).matched_count
        if self._lost:
            raise self._taken()

    def write(self, body: Reader) -> int:
        """All of `body` as chunks, several requests under way; how many bytes it had.

        What `body` raises comes out as it is, once all requests have ended.
        """
        per, length = max(MESSAGE // self._chunk_size, 1), 0
        batch: list[Document] = []
        flying: deque[Future[None]] = deque()
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="gridfs") as pool:
            for piece in _pieces(body, self._chunk_size):
                batch.append({"files_id": self._id, "n": self._count, "data": piece})
                self._count += 1
                length += len(piece)
                if len(batch) == per:
                    if len(flying) == IN_FLIGHT:
                        flying.popleft().result()
                    flying.append(pool.submit(self._insert, batch))
                    batch = []
            if batch:
                flying.append(pool.submit(self._insert, batch))
            while flying:
                flying.popleft().result()
        return length

    def commit(self, lease: Lease, length: int, line: bytes, *, within: float) -> Document:
        """Give it the key, if it was not declared dead and nothing else has the key; the document.

        `within`: seconds that the request may take.
        """
        from bson import Int64
        from pymongo import ReturnDocument, timeout
        from pymongo.errors import ConnectionFailure, OperationFailure

        about = {"glimpse": self._key, "record": line.decode()}
        change = {
            "$set": {"filename": self._key, "length": Int64(length), "metadata": about},
            "$currentDate": {"uploadDate": True},
        }
        files = self._bucket.files
        with self._bucket.border(), self._changing:
            lease.check()
            try:
                with timeout(within):
                    found = files.find_one_and_update(self._alive, change, return_document=ReturnDocument.AFTER)
            except ConnectionFailure:
                self._unsure = True
                found = files.find_one({"_id": self._id, "filename": self._key})
                if found is None:
                    raise
            except OperationFailure as error:
                if is_duplicate(error):
                    raise StoreConflict(
                        f"{self._bucket.location(self._key)} was written by another attempt meanwhile"
                    ) from error
                raise
            if found is None:
                raise self._taken()
            self._over = True
        return found

    def give_up(self) -> None:
        """Be dead, and be removed.

        Not where a request was not answered: what is still carried out would outlive the removal. The lease runs out,
        and whoever comes next removes it.
        """
        if not self._unsure:
            with self._bucket.border():
                self._bucket.files.update_one({"_id": self._id}, {"$set": {"metadata.renewed": DEAD}})
                self._bucket.remove(self._id, self._chunk_size, self._count)

    def _insert(self, batch: list[Document]) -> None:
        from pymongo.errors import ConnectionFailure

        if self._lost:
            raise self._taken()
        with self._bucket.border():
            try:
                self._bucket.chunks.insert_many(batch)
            except ConnectionFailure:
                self._unsure = True
                raise

    def _taken(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._bucket.location(self._key)}: no sign of life of this attempt was seen for too long, "
            "so others have removed it"
        )


def _pieces(body: Reader, size: int) -> Iterator[bytes]:
    """All of `body`, in pieces of this size; the last may be shorter."""
    parts: list[bytes] = []
    held = 0
    while chunk := body.read(size - held):
        parts.append(chunk)
        held += len(chunk)
        if held == size:
            yield parts[0] if len(parts) == 1 else b"".join(parts)
            parts, held = [], 0
    if parts:
        yield b"".join(parts)
