"""Sheepdog's protocol, as far as a store needs it: nothing that is still maintained speaks it.

One request and one reply at a time on a connection, each a header of 48 bytes and data, as `sheepdog_proto.h` and
`internal_proto.h` of Sheepdog 1.0 have them. Requests of several threads go over several connections.

A VDI is an inode and objects. The inode has a header (name, size, …) and an index, which says for each object whose it
is; 0 is a hole. To overwrite an entry of the index frees the object that it named.
"""

import errno
import os
import queue
import re
import socket
import struct
import weakref
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from glimpse.problems import Problem, StoreFull, StoreUnavailable

ENTRIES: Final = 1 << 20
"""Objects that a VDI has at most."""
HEADER: Final = 568
"""Bytes of an inode's header, without its reserved part."""
INDEX: Final = 4664
"""Where the index begins in an inode."""
NAME: Final = 256
"""Bytes of the longest name, and of the longest tag, with a zero at its end."""
BITMAP: Final = (1 << 24) // 8
"""Bytes of the bitmap of VDIs."""

FRAME: Final = struct.Struct("<BBHIII")
"""The start of a request and of a reply: version, opcode, flags, epoch, id, bytes of data. 32 bytes follow."""
OBJECT: Final = struct.Struct("<QQBBBBIII")
"""The rest of a request about an object: oid, oid to copy from, copies, policy, part, 0, epoch, offset, 0."""
VDI: Final = struct.Struct("<QIBBBBII8x")
"""The rest of a request about a VDI: size, base, copies, policies (2), shift of the object size, snapshot, type."""
INODE: Final = struct.Struct("<256s256sQQQQQBBBBIII")
"""name, tag, created, snapshot taken, clock of the machine, size, size of the machine's state, policies (2), copies,
shift, number of the snapshot, number of the VDI, its parent's."""
TAG_AT: Final = 256
"""Where the tag of a snapshot is in an inode."""
SNAPSHOT_AT: Final = 520
"""Where the time of a snapshot is: if it is not 0, the VDI is one."""
RENEWED_AT: Final = 528
"""Where the clock of the machine is: the last sign of life, for us."""
SIZE_AT: Final = 536
REMOVED_AT: Final = 544
"""Where the size of the machine's state is: not 0 once the removal has begun, for us."""

CREATE_AND_WRITE, READ, WRITE = 0x01, 0x02, 0x03
NEW_VDI, FIND_VDI, READ_VDIS, DELETE_VDI, READ_DELETED = 0x11, 0x14, 0x15, 0x17, 0xC9
WITH_DATA: Final = 0x01
"""The flag of a request that carries data; without it, it says how much it wants."""

OK, NO_OBJECT, VDI_EXISTS, INVALID, NO_VDI, NO_TAG = 0x00, 0x02, 0x04, 0x05, 0x08, 0x0E
FULL_VDI, NO_SPACE, UNFORMATTED = 0x13, 0x15, 0x16
_BLOCK: Final = 4096
_NOTHING: Final = bytes(_BLOCK)
_SOME: Final = re.compile(rb"[^\0]")
_VERSION, _INTERNAL, _INTERNAL_OPCODE = 0x02, 0x0A, 0x80
_HALTED: Final = {0x0F, 0x11, 0x17, 0x19}  # STARTUP, SHUTDOWN, WAIT_FOR_JOIN, HALT


def inode_of(vid: int) -> int:
    """The number of the object that is a VDI's inode."""
    return 1 << 63 | vid << 32


@dataclass(frozen=True, slots=True)
class Inode:
    """The header of a VDI's inode."""

    vid: int
    """The number of the VDI."""
    name: str
    """Empty once it was deleted."""
    snapshot: bool
    """Another VDI may have its name."""
    created: float
    """Seconds since the epoch, by the cluster's clock."""
    renewed: float
    """The last sign of life of who writes it, by the same clock; 0 if there is none yet."""
    size: int
    """In bytes."""
    removed: bool
    """Its removal has begun; that is never taken back."""
    shift: int
    """An object has 1 << shift bytes."""

    @property
    def count(self) -> int:
        """Objects that its bytes take."""
        return (self.size + (1 << self.shift) - 1) >> self.shift


@dataclass(frozen=True, slots=True)
class _Reply:
    result: int
    rest: bytes
    """The 28 bytes after the result."""
    data: bytearray


class Cluster:
    """A cluster, by one of its nodes; shared by threads."""

    def __init__(self, address: str, port: int, *, copies: int, patience: float) -> None:
        """`copies` of each object, 0: as the cluster was formatted; `patience`: seconds that an answer may take."""
        self._where, self._copies, self._patience = (address, port), copies, patience
        self.url = f"sheepdog://{f'[{address}]' if ':' in address else address}:{port}"
        """Tells a person where it is."""
        self._idle: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        weakref.finalize(self, _close_all, self._idle)

    def create(self, name: str, size: int = 0) -> int | None:
        """A new VDI without objects: its number, or None if the name is taken."""
        request = VDI.pack(size, 0, self._copies, 0, 0, 0, 0, 0)
        reply = self._call(NEW_VDI, request, [_padded(name)], allowed={VDI_EXISTS})
        return None if reply.result else int.from_bytes(reply.rest[4:8], "little")

    def find(self, name: str) -> Inode | None:
        """The VDI that has this name now."""
        reply = self._call(FIND_VDI, bytes(32), [_padded(name), bytes(NAME)], allowed={NO_VDI, NO_TAG})
        return None if reply.result else self.inode(int.from_bytes(reply.rest[4:8], "little"))

    def delete(self, name: str, tag: str = "") -> None:
        """Delete a VDI, or a snapshot by its tag too, of which no object is left. Absent is fine."""
        self._call(DELETE_VDI, bytes(32), [_padded(name), _padded(tag)], allowed={NO_VDI, NO_TAG})

    def numbers(self) -> Iterator[int]:
        """Of all VDIs that were not deleted; of older clusters, of those too."""
        used = self._call(READ_VDIS, bytes(32), want=BITMAP).data
        deleted = self._call(READ_DELETED, bytes(32), want=BITMAP, allowed=None).data  # not known before sheep 1.0
        for start in range(0, BITMAP, _BLOCK):
            if used.startswith(_NOTHING, start):
                continue  # nearly all of it
            for match in _SOME.finditer(used, start, start + _BLOCK):
                at = match.start()
                bits = used[at] & ~(deleted[at] if deleted else 0)
                yield from (at * 8 + n for n in range(8) if bits >> n & 1)

    def inode(self, vid: int) -> Inode | None:
        """The header of an inode."""
        found = self.read(inode_of(vid), HEADER)
        if found is None:
            return None
        name, _, created, snapshot, renewed, size, state, _, _, _, shift, *_ = INODE.unpack_from(found)
        word = name.partition(b"\0")[0].decode(errors="replace")
        return Inode(vid, word, snapshot != 0, _seconds(created), _seconds(renewed), size, state != 0, shift)

    def read(self, oid: int, length: int, offset: int = 0) -> bytes | bytearray | None:
        """A part of an object; None if there is no such object."""
        request = OBJECT.pack(oid, 0, 0, 0, 0, 0, 0, offset, 0)
        reply = self._call(READ, request, want=length, allowed={NO_OBJECT})
        if reply.result:
            return None
        if len(reply.data) == length:
            return reply.data
        found = bytearray(length)  # zeros at both ends may be left out
        start = int.from_bytes(reply.rest[4:12], "little")
        found[start : start + len(reply.data)] = reply.data
        return found

    def write(self, oid: int, data: bytes | memoryview, offset: int = 0) -> None:
        """Overwrite a part of an object that exists. Inside one sector that is atomic."""
        self._call(WRITE, OBJECT.pack(oid, 0, self._copies, 0, 0, 0, 0, offset, 0), [data])

    def create_object(self, oid: int, data: bytes | memoryview) -> None:
        """Create an object, or replace one; it begins so, and the rest are zeros."""
        self._call(CREATE_AND_WRITE, OBJECT.pack(oid, 0, self._copies, 0, 0, 0, 0, 0, 0), [data])

    def _call(
        self,
        opcode: int,
        rest: bytes,
        send: Sequence[bytes | memoryview] = (),
        *,
        want: int = 0,
        allowed: AbstractSet[int] | None = frozenset(),
    ) -> _Reply:
        """One request and its reply. A result that is not `allowed` is a Problem; None: all are.

        Once more over a new connection where an old one was closed meanwhile: each request may be carried out twice.
        """
        length = sum(map(len, send)) if send else want
        version = _INTERNAL if opcode & _INTERNAL_OPCODE else _VERSION
        head = FRAME.pack(version, opcode, WITH_DATA if send else 0, 0, 0, length) + rest
        try:
            try:
                kept = self._idle.get_nowait()
                reply = self._talk(kept, head, send)
            except (queue.Empty, ConnectionError):
                reply = self._talk(self._connect(), head, send)
        except OSError as error:
            what = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
            raise StoreUnavailable(f"{self.url} cannot be reached: {what}") from error
        if reply.result and allowed is not None and reply.result not in allowed:
            raise self._problem(reply.result)
        return reply

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._where, timeout=self._patience)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _talk(self, connection: socket.socket, head: bytes, send: Sequence[bytes | memoryview]) -> _Reply:
        """The connection is kept for the next one, unless anything fails."""
        try:
            connection.sendall(head)
            for part in send:
                connection.sendall(part)
            frame = _receive(connection, FRAME.size + 32)
            data = _receive(connection, 0 if send else FRAME.unpack_from(frame)[5])
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        result = int.from_bytes(frame[16:20], "little")
        return _Reply(result, bytes(frame[20:]), data)

    def _problem(self, result: int) -> Problem:
        if result in {FULL_VDI, NO_SPACE}:
            return StoreFull(f"{self.url} is full; remove images or add disks")
        if result == UNFORMATTED:
            return StoreUnavailable(f"{self.url} is not formatted; format it: dog cluster format")
        if result in _HALTED:
            return StoreUnavailable(f"{self.url} does no work at the moment: too few of its nodes are there")
        return StoreUnavailable(f"{self.url} answers with the error {result:#04x}")


def unanswered(problem: Problem) -> bool:
    """Whether a request got no answer: it may have been carried out, or may be yet."""
    return isinstance(problem.__cause__, OSError)


def _receive(connection: socket.socket, length: int) -> bytearray:
    found = bytearray(length)
    view = memoryview(found)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        view = view[count:]
    return found


def _padded(name: str) -> bytes:
    return name.encode().ljust(NAME, b"\0")


def _seconds(time: int) -> float:
    """Of seconds and nanoseconds in one word, as the cluster has it."""
    return (time >> 32) + (time & 0xFFFFFFFF) / 1e9


def _close_all(idle: "queue.SimpleQueue[socket.socket]") -> None:
    while not idle.empty():
        idle.get_nowait().close()
