"""A part of an object as a Reader, for stores that give it in ranges: some are fetched ahead, in threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

from glimpse.streams import CHUNK

P = TypeVar("P")


class Ahead(Generic[P]):
    """Fetches parts, some at a time, and gives them in order. Memory is bounded by what `at_once` parts take."""

    def __init__(
        self, size: int, parts: Iterator[P], fetch: Callable[[P, threading.Event], Iterable[bytes]], at_once: int
    ) -> None:
        """`fetch` gives all bytes of a part in chunks; once the event is set nobody wants them any more."""
        self.size: int | None = size
        self._parts, self._fetch, self._at_once = parts, fetch, at_once
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="ahead")  # no thread before there is work
        self._flying: deque[Future[Iterable[bytes]]] = deque()
        self._chunks: deque[bytes] = deque()
        self._start = 0  # in the first of them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever is still under way ends by itself, and soon."""
        self._over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes, of one chunk. Raises what `fetch` raises."""
        while not self._chunks:
            while len(self._flying) < self._at_once and (part := next(self._parts, None)) is not None:
                self._flying.append(self._pool.submit(self._fetch, part, self._over))
            if not self._flying:
                return b""
            # One that failed stays where it is: to ask again gives the same answer, and never the bytes behind it.
            self._chunks.extend(self._flying[0].result())
            self._flying.popleft()
        start, chunk = self._start, self._chunks[0]
        if len(chunk) - start > n:
            self._start += n
            return chunk[start : start + n]
        self._start = 0
        self._chunks.popleft()
        return chunk[start:]  # no copy, if it is all of it
