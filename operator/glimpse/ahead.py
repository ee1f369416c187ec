"""A part of an object as a Reader, for stores that give it in ranges: some are fetched ahead, in threads.

Who copies one image wants all the speed that this gives, and has the memory. Who serves hundreds of slow clients has
not: so all readers of a process share a room, and who finds none in it reads little ahead.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, Self, TypeVar

from glimpse.streams import CHUNK

P = TypeVar("P")
Cut = Callable[[int], tuple[P, int] | None]
"""Gives the next part, of so many bytes at most, and how many it has; None: there are no more."""

SMALL: Final = 256 << 10
"""Bytes of a part for which there is no room: each reader may hold two of them, so that none ever waits for others."""
_PARTS: Final = 4
"""Parts that the share of a reader is made of, and shares that the room is made of: nobody takes all of either."""


class Room:
    """Bytes that all readers of a process may hold together, if there is a limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: int | None = None
        self._taken = 0

    def limit(self, total: int | None) -> None:
        """Set it, for what is fetched from now on; None: each reader holds as much as its store finds best."""
        with self._lock:
            self._total = total

    def part(self, best: int) -> int:
        """How large a part should be where `best` bytes are best."""
        return best if self._total is None else min(best, max(self._total // _PARTS // _PARTS, SMALL))

    def take(self, count: int, held: int) -> bool:
        """Take so much for a reader that holds `held`; whether it was there."""
        with self._lock:
            if self._total is not None and max(held * _PARTS, self._taken) + count > self._total:
                return False
            self._taken += count
            return True

    def give(self, count: int) -> None:
        """Give it back."""
        with self._lock:
            self._taken -= count


ROOM: Final = Room()
"""Of this process."""


class Ahead(Generic[P]):
    """Fetches parts, some at a time, and gives them in order. Memory is bounded by what `at_once` parts take."""

    def __init__(
        self,
        size: int,
        cut: Cut[P],
        fetch: Callable[[P, threading.Event], Iterable[bytes]],
        *,
        part: int,
        at_once: int,
        room: Room = ROOM,
    ) -> None:
        """`fetch` gives all bytes of a part in chunks; once the event is set nobody wants them any more.

        `part`: bytes of a part, at most; they are smaller where there is no room for such.
        """
        self.size: int | None = size
        self._cut, self._fetch, self._part, self._at_once, self._room = cut, fetch, part, at_once, room
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="ahead")  # no thread before there is work
        self._flying: deque[tuple[Future[Iterable[bytes]], int]] = deque()
        self._chunks: deque[bytes] = deque()
        self._start = 0  # in the first of them
        self._held = self._given = 0  # of the room: in all, and for what is given out now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever is still under way ends by itself, and soon."""
        self._over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._room.give(self._held)
        self._held = 0

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes, of one chunk. Raises what `fetch` raises."""
        while not self._chunks:
            self._let_go(self._given)
            self._given = 0
            self._send()
            if not self._flying:
                return b""
            # One that failed stays where it is: to ask again gives the same answer, and never the bytes behind it.
            self._chunks.extend(self._flying[0][0].result())
            self._given = self._flying.popleft()[1]
            self._send()
        start, chunk = self._start, self._chunks[0]
        if len(chunk) - start > n:
            self._start += n
            return chunk[start : start + n]
        self._start = 0
        self._chunks.popleft()
        return chunk[start:]  # no copy, if it is all of it

    def _send(self) -> None:
        """Have fetched what there is room for, and a small part if there is none at all."""
        while len(self._flying) + bool(self._chunks) < self._at_once:
            taken = most = self._room.part(self._part)
            if not self._room.take(taken, self._held):
                if self._flying:
                    return
                taken, most = 0, SMALL
            self._held += taken
            found = self._cut(most)
            if found is None:
                self._let_go(taken)
                return
            self._let_go(max(0, taken - found[1]))
            self._flying.append((self._pool.submit(self._fetch, found[0], self._over), min(taken, found[1])))

    def _let_go(self, count: int) -> None:
        self._held -= count
        self._room.give(count)


def ranges(start: int, stop: int) -> Cut[tuple[int, int]]:
    """Cuts it into parts, each its start and its length; where there is nothing, into one that is empty."""
    at, first = start, True

    def cut(most: int) -> tuple[tuple[int, int], int] | None:
        nonlocal at, first
        if at >= stop and not first:
            return None
        part = at, max(0, min(most, stop - at))
        at, first = at + part[1], False
        return part, part[1]

    return cut
