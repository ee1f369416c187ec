"""The way out for files: from the page cache into a client's socket by the kernel alone (sendfile(2)).

What asyncio has for it takes two more calls of the kernel at each turn of the loop, at thousands of turns a second, and
reads from the client between two parts, so that who says that he will send no more is cut off.
"""

import asyncio
import errno
import os
from functools import partial
from types import TracebackType
from typing import Final, Self

WATCH: Final = 1.0
"""Seconds in which it is seen that a connection was closed from here while its client takes nothing."""
UNABLE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What sendfile says of a file that it cannot send."""


class Outlet:
    """A client's socket in which nobody else writes, nor reads, until the end; by a descriptor of its own.

    The loop guards the one of the transport.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        """Of plain TCP, with nothing left to write."""
        self._transport = transport
        self._fd = os.dup(transport.get_extra_info("socket").fileno())
        self._reading = transport.is_reading()
        transport.pause_reading()
        self.sent = 0
        """Bytes that have gone, also where `send` has raised."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._reading:
            self._transport.resume_reading()

    async def send(self, file: int, position: int, size: int) -> bool:
        """A part of a file, or as much of it as there is. False if this file cannot be sent so, and nothing of it was.

        Raises OSError: what the file or the client says; ConnectionResetError also if the connection was closed here.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        begin = self.sent
        more = partial(self._more, done, file, position - begin, begin + size)
        if not begin:  # a small image goes into an empty socket at once; only once, as others want their turn
            more()
        try:
            if not done.done():
                loop.add_writer(self._fd, more)
            while not done.done():
                await asyncio.wait([done], timeout=WATCH)
                more()
            done.result()
        except OSError as error:
            if error.errno in UNABLE and self.sent == begin:
                return False
            raise
        finally:
            loop.remove_writer(self._fd)
        return True

    def _more(self, done: asyncio.Future[None], file: int, shift: int, end: int) -> None:
        """As much as the socket takes; the byte `n` of what is sent lies at `n + shift`."""
        if done.done():
            return
        try:
            if self._transport.is_closing():
                raise ConnectionResetError
            sent = os.sendfile(self._fd, file, shift + self.sent, end - self.sent)
        except BlockingIOError:
            return
        except OSError as error:
            done.set_exception(error)
            return
        self.sent += sent
        if not sent or self.sent == end:
            done.set_result(None)
