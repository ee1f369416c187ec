"""Bytes on their way to and from an S3 server: cut into parts, and read ahead in ranges.

Nothing is copied on the way in: a part is the chunks that came, and what goes out is views of them.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from glimpse.ahead import Ahead, ranges
from glimpse.problems import TooLarge
from glimpse.streams import CHUNK, Reader

MOST: Final = 10_000
"""Parts of one object."""
SMALL: Final = 4_000
"""Parts of the configured size, where the length is not known; then they grow."""
STEP: Final = 150
"""Parts of one size while they grow; each size is twice the one before."""
_END: Final = 1 << 30
"""They grow no further: less than the 5 GiB of one request, and two of them fit into a worker."""

AT_ONCE: Final = 4
"""Parts that are under way together."""
WINDOW: Final = 64 << 20
"""Bytes that are under way together, unless one part has more."""
RANGE: Final = 8 << 20
"""Bytes of one range that is read ahead."""
RANGES: Final = 10
"""That are under way together."""


def sizes(length: int | None, least: int) -> Iterator[int]:
    """The sizes of the parts of a body, the last one at most: equal where its length is known, else growing.

    Small parts need little memory, and are all that most images need; but with MOST of them the largest object must
    still be stored. Where a body is longer than it said, there are no more parts.
    """
    if length is not None:
        mebibytes = -(-length // (MOST << 20))
        yield from [max(least, mebibytes << 20)] * MOST
        return
    for number in range(MOST):
        yield least if number < SMALL else max(least, min(_END, least << ((number - SMALL) // STEP + 1)))


def cut(body: Reader, length: int | None, least: int) -> Iterator[tuple["Part", bool]]:
    """The parts of a body, and whether each is the last; of an empty body one empty part. Raises TooLarge."""
    held = body.read(CHUNK)
    for size in sizes(length, least):
        part, left = Part(), size
        while held:
            part.add(held)
            left -= len(held)
            if not left:
                break
            held = body.read(min(CHUNK, left))
        if held:
            held = body.read(CHUNK)
        yield part, not held
        if not held:
            return
    raise TooLarge(f"the image has more than {MOST} parts, as many as one object in S3 may have; set a larger partSize")


class Part:
    """Chunks as one file, for a client library. Nobody writes to it any more when it is sent."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._position = self._chunk = self._start = 0  # of what is read next: in all, its chunk, and where in that

    def add(self, chunk: bytes) -> None:
        """Put a chunk at the end."""
        self._chunks.append(chunk)
        self._size += len(chunk)

    def __len__(self) -> int:
        return self._size

    def read(self, n: int = -1, /) -> bytes | memoryview:
        """At most `n` bytes, of one chunk; none at the end."""
        if self._chunk == len(self._chunks):
            return b""
        chunk = self._chunks[self._chunk]
        view = memoryview(chunk)[self._start : None if n < 0 else self._start + n]
        self._start += len(view)
        self._position += len(view)
        if self._start == len(chunk):
            self._chunk, self._start = self._chunk + 1, 0
        return view

    def tell(self) -> int:
        """How much was read."""
        return self._position

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to the start or the end, which is all that is asked for."""
        if offset:
            raise ValueError(offset)
        self._chunk, self._start, self._position = (0, 0, 0) if whence == 0 else (len(self._chunks), 0, self._size)
        return self._position

    def again(self) -> Any:
        """The same from the start, and whatever type the library wants."""
        self.seek(0)
        return self


def ahead(
    fetch: Callable[[tuple[int, int], threading.Event], Iterable[bytes]], size: int, offset: int, length: int | None
) -> Ahead[tuple[int, int]]:
    """A Reader over part of an object with so many bytes. `fetch` gives those of a range, its start and its length.

    Where nothing is asked for that is one range, an empty one.
    """
    left = max(size - offset, 0)
    left = left if length is None else min(left, length)
    stop = offset + left
    return Ahead(left, ranges(offset, stop), fetch, part=RANGE, at_once=RANGES)
