"""A Sheepdog cluster of one node in memory, as its clients see it: no distribution has the real one any more.

It does what was seen of sheep 1.0, also where that is strange: a VDI whose index still names an object is not deleted,
though the answer says so; only to overwrite an entry of the index frees what it named; zeros at both ends of what was
read are left out. Real sockets, real frames:

    with Sheep() as sheep:
        store = open_store(ref_to("127.0.0.1", sheep.port))
        store.claim()
        assert "glimpse.store" in sheep.names()
"""

import signal
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

# sheepdog_proto.h: the start of requests and answers, the rest of requests about an object and about a VDI
_FRAME: Final = struct.Struct("<BBHIII")
_OBJECT: Final = struct.Struct("<QQBBBBIII")
_VDI: Final = struct.Struct("<QIBBBBII8x")

_NAME: Final = 256
_VDIS: Final = 1 << 24
_SHIFT: Final = 22
_INDEX: Final = 4664
_TAG_AT, _CREATED_AT, _SNAPSHOT_AT, _SIZE_AT, _COPIES_AT, _VID_AT = 256, 512, 520, 536, 554, 560
_BLOCK: Final = 4096
"""Zeros are left out in blocks of so many bytes."""

_WITH_DATA, _COPY_ON_WRITE = 0x01, 0x02
_NO_OBJECT, _VDI_EXISTS, _INVALID, _NO_VDI, _NO_BASE, _NO_TAG = 0x02, 0x04, 0x05, 0x08, 0x09, 0x0E
_IO_ERROR, _NO_SPACE, _UNFORMATTED = 0x03, 0x15, 0x16


class _Refused(Exception):  # noqa: N818 - an answer
    """A result that is not 0."""

    def __init__(self, result: int) -> None:
        super().__init__(result)
        self.result = result


class Sheep:
    """The node. A context manager; leaving it closes all and waits for the threads."""

    def __init__(self, *, room: int | None = None, formatted: bool = True, port: int = 0) -> None:
        """`room`: bytes that all objects may have together, each counted as far as it was written.

        `port`: where it listens; 0: where it likes.
        """
        self.spoiled = False
        """Whether its disk takes no writes, as after an error; what is there can be read."""
        self.flowing = threading.Event()
        """Whether objects with bytes are taken; until then who sends some waits."""
        self.flowing.set()
        self.waiting = 0
        """Those who do."""
        self._room, self._formatted = room, formatted
        self._lock = threading.Lock()
        self._headers: dict[int, bytearray] = {}
        """Of inodes, by the number of the VDI. One of a VDI that was deleted stays, without a name."""
        self._indexes: dict[int, dict[int, int]] = {}
        """Whose an object is, of those that are no holes."""
        self._objects: dict[tuple[int, int], bytes] = {}
        """Up to what was written last, by the number of the VDI and their own."""
        self._over = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        """Serve."""
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all."""
        self._close()

    def restart(self) -> None:
        """Close all, and serve again on the same port with the same data."""
        self._close()
        self._threads.clear()
        self._over = False
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._spawn(self._accept)

    def _close(self) -> None:
        self._over = True
        self.flowing.set()
        with self._lock:
            for one in (self._listener, *self._open):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def names(self) -> set[str]:
        """Of all VDIs and snapshots."""
        with self._lock:
            return {_word(header[:_NAME]) for header in self._headers.values()} - {""}

    def objects(self, name: str) -> list[int]:
        """The numbers of the objects that a VDI has."""
        with self._lock:
            [vid] = [vid for vid, header in self._headers.items() if _word(header[:_NAME]) == name]
            return sorted(self._indexes[vid])

    def lose(self, name: str, n: int) -> None:
        """Let an object of a VDI be gone, as after a fault of its disks."""
        with self._lock:
            [vid] = [vid for vid, header in self._headers.items() if _word(header[:_NAME]) == name]
            del self._objects[self._indexes[vid][n], n]

    def lost(self) -> set[tuple[int, int]]:
        """Objects that no index names: nothing would ever free them."""
        with self._lock:
            return set(self._objects) - {(owner, n) for index in self._indexes.values() for n, owner in index.items()}

    # What it answers: what stands behind the result, and data

    def _answer(self, opcode: int, flags: int, rest: bytes, data: bytes, want: int) -> tuple[bytes, bytes]:
        if opcode == 0x84:  # MAKE_FS
            self._formatted, self._headers, self._indexes, self._objects = True, {}, {}, {}
            return b"", b""
        if not self._formatted:
            raise _Refused(_UNFORMATTED)
        if opcode < 0x10:
            return self._of_object(opcode, flags, rest, data, want)
        return self._of_vdi(opcode, rest, data, want)

    def _of_object(self, opcode: int, flags: int, rest: bytes, data: bytes, want: int) -> tuple[bytes, bytes]:
        oid, source, _, _, _, _, _, offset, _ = _OBJECT.unpack(rest)
        if self.spoiled and opcode != 0x02:
            raise _Refused(_IO_ERROR)
        match opcode:
            case 0x01 | 0x03 if oid >> 63:  # CREATE_AND_WRITE_OBJ, WRITE_OBJ
                self._write_inode(_place(oid)[0], data, offset)
            case 0x01 | 0x03:
                old = _place(source) if flags & _COPY_ON_WRITE else None
                self._write_object(_place(oid), data, offset, create=opcode == 0x01, old=old)
            case 0x02:  # READ_OBJ
                start, found = _trimmed(self._read(oid, offset, want))
                return struct.pack("<IQ", 0, start), found
            case 0x04:  # REMOVE_OBJ
                if self._objects.pop(_place(oid), None) is None:
                    raise _Refused(_NO_OBJECT)
            case _:
                raise _Refused(_INVALID)
        return b"", b""

    def _of_vdi(self, opcode: int, rest: bytes, data: bytes, want: int) -> tuple[bytes, bytes]:
        match opcode:
            case 0x11:  # NEW_VDI
                return struct.pack("<IIIBB", 0, self._new_vdi(rest, data), 0, 1, _SHIFT), b""
            case 0x14:  # GET_VDI_INFO
                return struct.pack("<IIIBB", 0, self._find(data), 0, 1, _SHIFT), b""
            case 0x17:  # DEL_VDI
                self._delete(self._find(data))
                return b"", b""
            case 0x15 | 0xC9:  # READ_VDIS, READ_DEL_VDIS
                bits = bytearray(want)
                for vid, header in self._headers.items():
                    if opcode == 0x15 or not header[0]:
                        bits[vid // 8] |= 1 << vid % 8
                return b"", bytes(bits)
        raise _Refused(_INVALID)

    def _write_object(
        self, place: tuple[int, int], data: bytes, offset: int, *, create: bool, old: tuple[int, int] | None
    ) -> None:
        if not create and place not in self._objects:
            raise _Refused(_NO_OBJECT)
        before = self._objects.get(place, b"")
        base = self._objects.get(old, b"") if old else b"" if create else before
        after = base[:offset].ljust(offset, b"\0") + data + base[offset + len(data) :]
        used = sum(map(len, self._objects.values())) - len(before)
        if self._room is not None and used + len(after) > self._room:
            raise _Refused(_NO_SPACE)
        self._objects[place] = after

    def _write_inode(self, vid: int, data: bytes, offset: int) -> None:
        if vid not in self._headers:
            raise _Refused(_NO_OBJECT)
        if offset < _INDEX:
            self._headers[vid][offset : offset + len(data)] = data
            return
        index = self._indexes[vid]
        for n, (owner,) in enumerate(struct.iter_unpack("<I", data), (offset - _INDEX) // 4):
            old = index.pop(n, 0)
            if owner:
                index[n] = owner
            if old and all(other.get(n) != old for other in self._indexes.values()):
                self._objects.pop((old, n), None)

    def _read(self, oid: int, offset: int, want: int) -> bytes:
        vid, _ = _place(oid)
        if not oid >> 63:
            found = self._objects.get(_place(oid))
            if found is None:
                raise _Refused(_NO_OBJECT)
            return found[offset : offset + want].ljust(want, b"\0")
        if vid not in self._headers:
            raise _Refused(_NO_OBJECT)
        if offset < _INDEX:
            return bytes(self._headers[vid][offset : offset + want])
        first = (offset - _INDEX) // 4
        entries = bytearray(want)
        for n, owner in self._indexes[vid].items():
            if first <= n < first + want // 4:
                struct.pack_into("<I", entries, (n - first) * 4, owner)
        return bytes(entries)

    def _new_vdi(self, rest: bytes, data: bytes) -> int:
        size, base, copies, _, _, _, snapshot, _ = _VDI.unpack(rest)
        if len(data) != _NAME:
            raise _Refused(_INVALID)
        if base and base not in self._headers:
            raise _Refused(_NO_BASE)
        if snapshot:
            self._headers[base][_SNAPSHOT_AT : _SNAPSHOT_AT + 8] = _now()
        elif self._named(data, bytes(_NAME)) is not None:
            raise _Refused(_VDI_EXISTS)
        vid = zlib.crc32(data) % _VDIS or 1
        while vid in self._headers:  # the number of a VDI that was deleted is not given again
            vid = (vid + 1) % _VDIS or 1
        header = bytearray(_INDEX)
        header[:_NAME] = data
        header[_CREATED_AT : _CREATED_AT + 8] = _now()
        header[_SIZE_AT : _SIZE_AT + 8] = size.to_bytes(8, "little")
        header[_COPIES_AT : _COPIES_AT + 2] = bytes([copies or 1, _SHIFT])
        header[_VID_AT : _VID_AT + 8] = struct.pack("<II", vid, base)
        self._headers[vid] = header
        self._indexes[vid] = dict(self._indexes.get(base, {}))
        return vid

    def _named(self, name: bytes, tag: bytes) -> int | None:
        """The VDI that has this name, or the snapshot that has it and the tag."""
        for vid, header in self._headers.items():
            if header[:_NAME] == name:
                snapshot = any(header[_SNAPSHOT_AT : _SNAPSHOT_AT + 8])
                if snapshot == any(tag) and (not snapshot or header[_TAG_AT : _TAG_AT + _NAME] == tag):
                    return vid
        return None

    def _find(self, data: bytes) -> int:
        name, tag = data[:_NAME], data[_NAME:].ljust(_NAME, b"\0")
        vid = self._named(name, tag)
        if vid is None:
            raise _Refused(_NO_TAG if any(tag) and self._named(name, bytes(_NAME)) is not None else _NO_VDI)
        return vid

    def _delete(self, vid: int) -> None:
        """Nothing happens while an object is left, which is no error."""
        header = self._headers[vid]
        count = -(-int.from_bytes(header[_SIZE_AT : _SIZE_AT + 8], "little") >> _SHIFT)
        if not any(n < count for n in self._indexes[vid]):
            header[:_NAME] = bytes(_NAME)
            header[_SIZE_AT : _SIZE_AT + 8] = bytes(8)
            self._indexes[vid] = {}

    # Connections

    def _accept(self) -> None:
        while not self._over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._over:
                    client.close()
                    return
                self._open.add(client)
            self._spawn(self._talk, client)

    def _talk(self, client: socket.socket) -> None:
        with client, suppress(OSError), client.makefile("rb") as stream:
            while frame := stream.read(48):
                _, opcode, flags, epoch, number, length = _FRAME.unpack_from(frame)
                data = stream.read(length) if flags & _WITH_DATA else b""
                result, rest, found = 0, b"", b""
                if opcode == 0x01 and not frame[23] >> 7:
                    self._hold()
                with self._lock:
                    try:
                        rest, found = self._answer(opcode, flags, frame[16:], data, length)
                    except _Refused as refused:
                        result = refused.result
                head = _FRAME.pack(0x02, opcode, flags, epoch, number, len(found)) + result.to_bytes(4, "little")
                client.sendall(head + rest.ljust(28, b"\0") + found)
        with self._lock:
            self._open.discard(client)

    def _hold(self) -> None:
        with self._lock:
            self.waiting += 1
        self.flowing.wait()
        with self._lock:
            self.waiting -= 1

    def _spawn(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name="sheep", daemon=True)
        self._threads.append(thread)
        thread.start()


def _place(oid: int) -> tuple[int, int]:
    return oid >> 32 & (_VDIS - 1), oid & 0xFFFFFFFF


def _trimmed(data: bytes) -> tuple[int, bytes]:
    """Without blocks of zeros at both ends, and how many bytes were left out before it."""
    start, stop = 0, len(data)
    while stop - start >= _BLOCK and not any(data[start : start + _BLOCK]):
        start += _BLOCK
    while stop - start >= _BLOCK and not any(data[stop - _BLOCK : stop]):
        stop -= _BLOCK
    return start, data[start:stop]


def _word(data: bytearray) -> str:
    return bytes(data).partition(b"\0")[0].decode()


def _now() -> bytes:
    """The time as an inode has it: seconds and nanoseconds."""
    now = time.time_ns()
    return (now // 10**9 << 32 | now % 10**9).to_bytes(8, "little")


if __name__ == "__main__":
    with Sheep(port=int(sys.argv[1])):
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
