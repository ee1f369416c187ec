"""A Reader over the objects of a VDI."""

import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from glimpse.problems import Problem
from glimpse.stores.sheepdog.cluster import INDEX, Cluster, Inode, inode_of
from glimpse.streams import CHUNK

AHEAD: Final = 4
"""Objects that are read before they are asked for."""


class Range:
    """Reads a part of an image; some objects ahead, in threads."""

    def __init__(self, cluster: Cluster, inode: Inode, gone: Callable[[], Problem], offset: int, length: int) -> None:
        """Reads the index at once. `gone`: what to raise if an object is not there."""
        self._cluster, self._gone, self._shift = cluster, gone, inode.shift
        self.size: int | None = length
        self._position, self._end = offset, offset + length
        self._next = first = offset >> inode.shift
        count = ((self._end - 1) >> inode.shift) + 1 - first if length else 0
        index = cluster.read(inode_of(inode.vid), 4 * count, INDEX + 4 * first) if count else b""
        if index is None:
            raise gone()
        self._owners = deque(struct.unpack(f"<{count}I", index))
        self._ahead: deque[Future[bytes | bytearray]] = deque()
        self._piece = memoryview(b"")
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="sheepdog")  # no threads before there is work

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes, of one object at most."""
        if n <= 0:
            return b""
        if not self._piece:
            while self._owners and len(self._ahead) <= AHEAD:
                self._ahead.append(self._pool.submit(self._object, self._next, self._owners.popleft()))
                self._next += 1
            if not self._ahead:
                return b""
            self._piece = memoryview(self._ahead.popleft().result())
        chunk = bytes(self._piece[:n])
        self._piece = self._piece[n:]
        return chunk

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def _object(self, n: int, owner: int) -> bytes | bytearray:
        """What is asked for of one object."""
        start, stop = max(self._position, n << self._shift), min(self._end, (n + 1) << self._shift)
        if not owner:
            return bytearray(stop - start)  # a hole
        found = self._cluster.read(owner << 32 | n, stop - start, start - (n << self._shift))
        if found is None:
            raise self._gone()
        return found
