"""The least of an NBD server: what a program writes to its disk, from the first byte to the last, is a Reader.

So qemu-img can write a raw image into a stream, which it cannot do otherwise, and holes cost nothing on the way. The
program has read hostile bytes, so nothing that it sends is believed. The protocol:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import select
import socket
import struct
import threading
import time
from typing import Final

from glimpse.problems import ConversionFailed, WorkerLost
from glimpse.streams import CHUNK

_SLICE: Final = 0.5
"""Seconds of one wait, between two looks at whether anybody still wants it."""
_OPTION: Final = 64 << 10
"""Bytes of the longest option that is read."""
_OPTIONS: Final = 64
"""Options of one handshake."""

_MAGIC: Final = b"NBDMAGIC"
_OPT_MAGIC: Final = b"IHAVEOPT"
_OPT_GO: Final = 7
_REPLY_MAGIC: Final = 0x3E889045565A9
_ACK, _INFO, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _SEND_FLUSH, _SEND_WRITE_ZEROES = 1 << 0, 1 << 2, 1 << 6

_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_ANSWER: Final = struct.Struct(">IIQ")
_ANSWER_MAGIC: Final = 0x67446698
_WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 1, 2, 3, 6

_ZEROS: Final = bytes(CHUNK)


class Written:
    """A Reader over what the other end of a socket writes, in order; what it leaves out are zeros.

    Ends when the other end has said goodbye and all `size` bytes have been given. Raises ConversionFailed if it does
    anything else than write in order within `size`, if it ends without goodbye, or if it is silent for `patience`
    seconds while we wait; WorkerLost if cancelled.
    """

    def __init__(self, connection: socket.socket, size: int, patience: float, cancelled: threading.Event) -> None:
        self.size: int | None = size
        self._end = size
        self._socket = connection
        self._patience, self._cancelled = patience, cancelled
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._given = 0
        self._at = 0  # where the next request may begin
        self._left = 0  # bytes of the write that is being received, which ends at `at`
        self._handle = 0
        self._gone = False
        self._rest = b""  # of a chunk that was larger than what the caller asked for

    def greet(self) -> None:
        """Agree on what there is to write."""
        self._socket.sendall(_MAGIC + _OPT_MAGIC + struct.pack(">H", 3))  # fixed newstyle, without zeros
        self._receive(4)
        for _ in range(_OPTIONS):
            magic, option, length = struct.unpack(">8sII", self._receive(16))
            if magic != _OPT_MAGIC or length > _OPTION:
                raise _strange()
            self._receive(length)
            if option != _OPT_GO:
                self._reply(option, _UNSUPPORTED)
                continue
            flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_WRITE_ZEROES
            self._reply(option, _INFO, struct.pack(">HQH", _INFO_EXPORT, self._end, flags))
            self._reply(option, _INFO, struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, CHUNK, CHUNK))
            self._reply(option, _ACK)
            return
        raise _strange()

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes."""
        if not self._rest:
            self._rest = self._next()
        out, self._rest = (self._rest, b"") if n >= len(self._rest) else (self._rest[:n], self._rest[n:])
        return out

    def _next(self) -> bytes:
        """The next chunk, or the end when the other side has come to its own."""
        stop = min(self._given + CHUNK, self._end)
        buffer: bytearray | None = None
        while (self._at - self._left < stop or self._given == self._end) and not self._gone:
            if self._left:
                start = self._at - self._left
                buffer = buffer or bytearray(stop - self._given)
                part = min(self._left, stop - start)
                with memoryview(buffer) as view:
                    self._fill(view[start - self._given : start - self._given + part])
                self._left -= part
            else:
                self._take()
            if not self._left:
                self._answer()
        start, self._given = self._given, stop
        return bytes(buffer) if buffer else _ZEROS[: stop - start]

    def _take(self) -> None:
        """The next request."""
        magic, _, kind, self._handle, offset, length = _REQUEST.unpack(self._receive(_REQUEST.size))
        if magic != _REQUEST_MAGIC:
            raise _strange()
        if kind in {_WRITE, _WRITE_ZEROES}:
            if not self._at <= offset <= offset + length <= self._end or (kind == _WRITE and length > CHUNK):
                raise _strange()
            self._at = offset + length
            self._left = length if kind == _WRITE else 0
        elif kind == _DISCONNECT:
            self._gone = True
        elif kind != _FLUSH:
            raise _strange()

    def _answer(self) -> None:
        if not self._gone:
            self._send(_ANSWER.pack(_ANSWER_MAGIC, 0, self._handle))

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._send(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

    def _send(self, data: bytes) -> None:
        """So little that it never blocks, unless the other end reads nothing at all."""
        try:
            if self._socket.send(data, socket.MSG_DONTWAIT) == len(data):
                return
        except OSError:
            pass
        raise _strange()

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            self._fill(view)
        return bytes(buffer)

    def _fill(self, view: memoryview) -> None:
        until = time.monotonic() + self._patience
        while view:
            if self._cancelled.is_set():
                raise WorkerLost("the conversion was cancelled")
            if not self._poll.poll(_SLICE * 1000):
                if time.monotonic() > until:
                    raise ConversionFailed(f"qemu-img has done nothing for {self._patience:g} s")
                continue
            try:
                count = self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)
            except ConnectionError:
                count = 0
            if not count:
                raise _strange()
            view = view[count:]


def _strange() -> ConversionFailed:
    return ConversionFailed("qemu-img has not written a whole image")
