"""A VDI that is being written: objects, several under way, and the index that names them."""

import struct
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from glimpse.problems import Problem, StoreUnavailable, TooLarge
from glimpse.stores import RECORD_LIMIT
from glimpse.stores.sheepdog.cluster import (
    ENTRIES,
    INDEX,
    NAME,
    REMOVED_AT,
    RENEWED_AT,
    SIZE_AT,
    SNAPSHOT_AT,
    TAG_AT,
    Cluster,
    Inode,
    inode_of,
    unanswered,
)
from glimpse.streams import Reader

IN_FLIGHT: Final = 4
"""Objects that are written at once."""
STEP: Final = 1024
"""Entries of the index that are written with one request."""
TAG: Final = "image"
"""Of an image, which is a snapshot: machines may clone it, and none writes to it."""


_CHECK: Final = struct.Struct("<I")
"""CRC-32 of what follows."""
_RECORD: Final = struct.Struct("<QI")
"""The number of a record, and its length."""


class Attempt:
    """What one put writes into a VDI that is nobody else's."""

    def __init__(self, cluster: Cluster, inode: Inode) -> None:
        """`inode` was just created."""
        self._cluster, self.inode, self.vid = cluster, inode, inode.vid
        self._created, self._since = inode.created, time.monotonic()
        self._zeros = bytes(1 << inode.shift)
        self.unsure = False
        """A request got no answer: what it asked for may still be done."""

    def now(self) -> float:
        """The time by the cluster's clock, which is told when a VDI is created."""
        return self._created + time.monotonic() - self._since

    def renew(self) -> None:
        """Give a sign of life. Raises StoreUnavailable if it comes too late."""
        found = self._cluster.inode(self.vid)
        if found is None or found.removed:
            raise _taken()
        now = self.now()
        mark = int(now) << 32 | int(now % 1 * 1e9)
        self._cluster.write(inode_of(self.vid), mark.to_bytes(8, "little"), RENEWED_AT)

    def write(self, body: Reader) -> int:
        """All of `body`, zeros as holes; how many bytes it had.

        What `body` raises comes out as it is, once all requests have ended.
        """
        length = count = 0
        flying: deque[Future[None]] = deque()
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="sheepdog") as pool:
            for piece in _pieces(body, len(self._zeros)):
                if count == ENTRIES - 1:
                    raise TooLarge(
                        f"more than {length} bytes are too many for a VDI with objects of {len(piece)} bytes"
                    )
                if piece != self._zeros:
                    if len(flying) == IN_FLIGHT:
                        flying.popleft().result()
                    flying.append(pool.submit(self._create, count, piece))
                length, count = length + len(piece), count + 1
            while flying:
                flying.popleft().result()
        return length

    def finish(self, length: int, line: bytes) -> Inode:
        """Say how long it is, write the record behind it, make it a snapshot; what it is then."""
        with self.watched():
            inode = inode_of(self.vid)
            self._cluster.write(inode, length.to_bytes(8, "little"), SIZE_AT)
            self._create(-(-length // len(self._zeros)), packed(1, line))
            make_snapshot(self._cluster, self.vid, TAG)
            found = self._cluster.inode(self.vid)
        if found is None or found.removed:
            raise _taken()
        return found

    def _create(self, n: int, data: bytes) -> None:
        """The index names an object before it is there: else whoever removes this attempt would not find it."""
        with self.watched():
            self._cluster.write(inode_of(self.vid), self.vid.to_bytes(4, "little"), INDEX + 4 * n)
            self._cluster.create_object(self.vid << 32 | n, data)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes that a request got no answer."""
        try:
            yield
        except Problem as problem:
            if unanswered(problem):
                self.unsure = True
            raise


def packed(number: int, line: bytes) -> bytes:
    """A record as it is stored; of several, the one with the highest number counts."""
    data = _RECORD.pack(number, len(line)) + line
    return _CHECK.pack(zlib.crc32(data)) + data


def unpacked(cluster: Cluster, oid: int) -> tuple[int, bytes] | None:
    """The number and the line of a record; None if there is none, or half of one."""
    found = cluster.read(oid, _CHECK.size + _RECORD.size + RECORD_LIMIT)
    if found is None:
        return None
    number, length = _RECORD.unpack_from(found, _CHECK.size)
    data = bytes(found[_CHECK.size : _CHECK.size + _RECORD.size + length])
    whole = number and (zlib.crc32(data),) == _CHECK.unpack_from(found)
    return (number, data[_RECORD.size :]) if whole else None


def make_snapshot(cluster: Cluster, vid: int, tag: str) -> None:
    """Give a VDI, by its number, a tag, by which it is found from then on; its name is free."""
    cluster.write(inode_of(vid), tag.encode().ljust(NAME, b"\0"), TAG_AT)
    cluster.write(inode_of(vid), (1 << 32).to_bytes(8, "little"), SNAPSHOT_AT)


def remove(cluster: Cluster, inode: Inode) -> None:
    """Free its objects, then the VDI. From the first moment it is no image. After a failure a second call goes on."""
    cluster.write(inode_of(inode.vid), (1).to_bytes(8, "little"), REMOVED_AT)
    empty(cluster, inode.vid, ENTRIES)
    if inode.name:
        cluster.delete(inode.name)
        cluster.delete(inode.name, TAG)


def empty(cluster: Cluster, vid: int, entries: int) -> None:
    """Free the objects that the first entries of the index name."""
    index = cluster.read(inode_of(vid), 4 * entries, INDEX) or b""
    for start in range(0, len(index), 4 * STEP):
        if any(index[start : start + 4 * STEP]):
            cluster.write(inode_of(vid), bytes(min(4 * STEP, len(index) - start)), INDEX + start)


def _pieces(body: Reader, size: int) -> Iterator[bytes]:
    """All of `body`, in pieces of this size; the last may be shorter."""
    parts: list[bytes] = []
    held = 0
    while chunk := body.read(size - held):
        parts.append(chunk)
        held += len(chunk)
        if held == size:
            yield b"".join(parts)
            parts, held = [], 0
    if parts:
        yield b"".join(parts)


def _taken() -> StoreUnavailable:
    return StoreUnavailable("no sign of life of this attempt was seen for too long, so others have removed it")
