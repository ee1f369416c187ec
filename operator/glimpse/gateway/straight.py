"""The body of a request on its way to a worker, by the kernel alone where that can be (splice(2)).

What passes through this process costs it five copies and most of an upload's time. Where nothing has to be taken out of
the stream (plain HTTP, a length, no chunks) the kernel moves pages from the socket into the pipe.
"""

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from aiohttp import web

from glimpse.gateway.feed import Feed
from glimpse.gateway.intake import Patience
from glimpse.sources.pipe import FRAME

ENOUGH: Final = 256 << 10
"""Bytes for which it is worth it to look at a socket ..."""
TICK: Final = 0.05
"""... or so many seconds: slow senders are waited for no longer."""


async def hand_on(request: web.Request, feed: Feed, patience: Patience, count: Callable[[int], None]) -> None:
    """All of a body, from its first byte on. `count` is told of its bytes as they are handed on, and may raise.

    Raises Problem: what the worker has ended with. Raises as Patience. Whatever happens, what is left of the body is
    read by nobody else but to be thrown away, and the connection ends with the answer.
    """

    def counted(sent: int) -> None:
        patience.count(sent)
        count(sent)

    length, transport = request.content_length, request.transport
    if length is None or transport is None or not _plain(request, transport):
        while chunk := await patience.chunk(request):
            count(len(chunk))
            await feed.write(chunk)
        return
    # no byte comes between these lines: what is behind those that the parser has seen is in the socket
    seen = []
    while chunk := request.content.read_nowait():
        seen.append(chunk)
    transport.pause_reading()
    left = length - request.content.total_bytes
    request.protocol.close()  # after the answer: its parser knows nothing of what has come past it
    try:
        for chunk in seen:
            count(len(chunk))
            await feed.write(chunk)
        with _tap(transport) as tap:
            while left:
                size = min(left, FRAME)
                tap.expect(size)
                await feed.pull(tap.fd, size, lambda: patience.wait(tap.ready()), counted)
                left -= size
    finally:
        if left:
            with suppress(RuntimeError):
                transport.resume_reading()
        elif not request.content.is_eof():
            request.content.feed_eof()


def _plain(request: web.Request, transport: asyncio.Transport) -> bool:
    """Whether the bytes of the socket are those of the body."""
    return "Transfer-Encoding" not in request.headers and not transport.get_extra_info("sslcontext")


class _Tap:
    """A socket that nobody else reads."""

    def __init__(self, sock: socket.socket, fd: int) -> None:
        self.fd = fd
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    def expect(self, size: int) -> None:
        """So many bytes come at least."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(size, ENOUGH))

    async def ready(self) -> None:
        """Wait until there are bytes, if need be a tick for more of them, or the end."""
        while True:
            event = asyncio.Event()
            self._loop.add_reader(self.fd, event.set)
            try:
                async with asyncio.timeout(TICK):
                    await event.wait()
            except TimeoutError:
                (waiting,) = struct.unpack("i", fcntl.ioctl(self.fd, termios.FIONREAD, b"\0" * 4))
                if waiting:
                    return
            else:
                return
            finally:
                self._loop.remove_reader(self.fd)


@contextmanager
def _tap(transport: asyncio.Transport) -> Iterator[_Tap]:
    """The socket behind a transport that is paused, by a descriptor of its own: the loop guards the transport's."""
    sock = transport.get_extra_info("socket")
    fd = os.dup(sock.fileno())
    try:
        yield _Tap(sock, fd)
    finally:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        os.close(fd)
