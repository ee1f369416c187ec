"""A Reader over chunks."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from glimpse.ahead import ROOM, SMALL
from glimpse.problems import DataLost, Problem
from glimpse.stores.gridfs.bucket import Bucket, Document
from glimpse.streams import CHUNK

if TYPE_CHECKING:
    from pymongo.cursor import Cursor

MESSAGE: Final = 4 << 20
"""Bytes of chunks in one answer, if a chunk is not larger: a document may have 16 MiB at most, and so has an answer."""
AHEAD: Final = 2
"""Answers that are fetched before they are asked for, if there is room in the process for such."""


class Range:
    """A Reader over the chunks of a part of a file; some are fetched ahead, in a thread."""

    def __init__(self, bucket: Bucket, key: str, found: Document, offset: int, length: int) -> None:
        self._bucket, self._key = bucket, key
        self._id, self._chunk_size, self._length = found["_id"], int(found["chunkSize"]), int(found["length"])
        self.size: int | None = length
        self._left = length
        self._skip = offset % self._chunk_size
        self._next = self._planned = offset // self._chunk_size
        self._stop = -(-(offset + length) // self._chunk_size)  # before this chunk
        # one message is given out while others are on their way, and the next of all is in the cursor
        taken = (AHEAD + 2) * MESSAGE
        self._held = taken if ROOM.take(taken, 0) else 0
        self._at_once = AHEAD if self._held else 0
        self._per = max((MESSAGE if self._held else SMALL) // self._chunk_size, 1)
        self._cursor: Cursor[Document] | None = None
        self._over = False
        self._pieces: deque[bytes] = deque()
        self._ahead: deque[Future[list[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gridfs")  # no thread before there is work

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes, of one chunk at most."""
        if self._left <= 0 or n <= 0:
            return b""
        if not self._pieces:
            self._pieces.extend(self._ahead.popleft().result() if self._ahead else self._plan()())
            while len(self._ahead) < self._at_once and self._planned < self._stop:
                self._ahead.append(self._pool.submit(self._plan()))
        piece = self._pieces.popleft()
        chunk = piece[self._skip : self._skip + min(n, self._left)]
        self._skip += len(chunk)
        self._left -= len(chunk)
        if self._skip < len(piece):
            self._pieces.appendleft(piece)
        else:
            self._skip = 0
        return chunk

    def close(self) -> None:
        """Wait for what is under way."""
        failed, self._over = self._over, True
        self._pool.shutdown(cancel_futures=True)
        ROOM.give(self._held)
        self._held = 0
        if self._cursor and not failed:
            with suppress(Problem), self._bucket.border():
                self._cursor.close()

    def _plan(self) -> "partial[list[bytes]]":
        start, self._planned = self._planned, min(self._planned + self._per, self._stop)
        return partial(self._fetch, self._planned - start)

    def _fetch(self, count: int) -> list[bytes]:
        """So many chunks, in order. What breaks off is asked for once more: the rest, from the server that is there."""
        from pymongo.errors import AutoReconnect, CursorNotFound, ExecutionTimeout

        found: list[bytes] = []
        with self._bucket.border():
            while len(found) < count and not self._over:
                begun = self._cursor is not None
                try:
                    found.append(self._one())
                except (AutoReconnect, CursorNotFound, ExecutionTimeout):
                    self._cursor = None
                    if not begun:  # the client has tried that twice
                        self._over = True
                        raise
        return found

    def _one(self) -> bytes:
        """The next chunk. An answer has a bounded number of them: not every server bounds it by itself."""
        n = self._next
        if self._cursor is None:
            wanted = {"files_id": self._id, "n": {"$gte": n, "$lt": self._stop}}
            self._cursor = self._bucket.chunks.find(wanted, {"_id": 0, "n": 1, "data": 1}, batch_size=self._per)
            self._cursor.sort("n")
            with self._bucket.patient():
                found = next(self._cursor, None)
        else:
            found = next(self._cursor, None)
        size = min(self._chunk_size, self._length - n * self._chunk_size)
        if found is None or found["n"] != n or len(found["data"]) != size:
            if self._bucket.files.find_one({"_id": self._id, "filename": self._key}, {"_id": 1}) is None:
                raise self._bucket.absent(self._key)
            raise DataLost(f"{self._bucket.location(self._key)}: chunk {n} is gone, or has not {size} bytes")
        self._next += 1
        return bytes(found["data"])
