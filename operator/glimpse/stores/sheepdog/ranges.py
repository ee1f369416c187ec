"""A Reader over the objects of a VDI.

Of its own since only the index says where the bytes of an image lie, and it may be gone when they are asked for.
"""

import struct
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from glimpse.ahead import Ahead
from glimpse.problems import Problem
from glimpse.stores.sheepdog.cluster import INDEX, Cluster, Inode, inode_of
from glimpse.streams import CHUNK

PART: Final = 4 << 20
"""Bytes that are read at once, of one object."""
AT_ONCE: Final = 5
"""Such parts in memory, at most: those that are on their way, and the one that is given out."""


class Part(NamedTuple):
    """A part of an object."""

    owner: int
    """The VDI that it lies in; 0: a hole."""
    number: int
    """Of the object."""
    start: int
    stop: int


def ahead(cluster: Cluster, inode: Inode, gone: Callable[[], Problem], offset: int, length: int) -> Ahead[Part]:
    """Reads the index at once, and then some parts ahead. `gone`: what to raise if an object is not there."""
    shift, end = inode.shift, offset + length
    position, first = offset, offset >> inode.shift
    count = ((end - 1) >> shift) + 1 - first if length else 0
    index = cluster.read(inode_of(inode.vid), 4 * count, INDEX + 4 * first) if count else b""
    if index is None:
        raise gone()
    owners = struct.unpack(f"<{count}I", index)

    def cut(most: int) -> tuple[Part, int] | None:
        nonlocal position
        if position >= end:
            return None
        number = position >> shift
        stop = min(end, (number + 1) << shift, position + most)
        part, position = Part(owners[number - first], number, position, stop), stop
        return part, part.stop - part.start

    def fetch(part: Part, _over: threading.Event) -> list[bytes]:
        size = part.stop - part.start
        found: bytes | bytearray | None = bytes(size)
        if part.owner:
            found = cluster.read(part.owner << 32 | part.number, size, part.start - (part.number << shift))
        if found is None:
            raise gone()
        whole = memoryview(found)
        return [bytes(whole[at : at + CHUNK]) for at in range(0, size, CHUNK)]

    return Ahead(length, cut, fetch, part=PART, at_once=AT_ONCE)
