"""Bytes of an upload on their way to a worker.

The gateway holds tokens, so it looks at no byte of what a stranger sends: it hands them on through a pipe, as fast as
the worker takes them.
"""

import asyncio
import fcntl
import os
import select
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from glimpse.runners import Inline
from glimpse.sources.pipe import FRAME, HEAD
from glimpse.tasks import Done, Event, Failed, Fetch, Taking

_END: Final = HEAD.pack(0)
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Feed:
    """One worker that takes the bytes of one upload. Ended by `end` or `stop`, in any case."""

    def __init__(self, runner: Inline, task: Fetch) -> None:
        self._loop = asyncio.get_running_loop()
        self._taking: asyncio.Future[int] = self._loop.create_future()
        read, self._fd = os.pipe()
        with suppress(OSError):  # the kernel has a limit for all pipes of a user; a small one is slower
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, FRAME)
        os.set_blocking(self._fd, False)
        self._work = asyncio.create_task(runner.run(task, self._hear, pipe=os.fdopen(read, "rb", buffering=0)))

    def _hear(self, event: Event) -> None:
        if isinstance(event, Taking) and not self._taking.done():
            self._taking.set_result(event.start)

    async def start(self) -> int | None:
        """Wait until bytes are taken: from which one on. None: a store has all of them. Raises Problem."""
        over: set[asyncio.Future[Any]] = {self._work, self._taking}
        await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        if not self._taking.done():
            await self._answer()
            return None
        return self._taking.result()

    @property
    def over(self) -> bool:
        """Whether the worker has ended."""
        return self._work.done()

    async def write(self, data: bytes) -> None:
        """Hand on the next bytes, of which there are some. Raises Problem: what the worker has ended with."""
        for start in range(0, len(data), FRAME):
            part = data[start : start + FRAME]
            await self._put(HEAD.pack(len(part)) + part)

    async def pull(
        self, fd: int, length: int, ready: Callable[[], Awaitable[None]], count: Callable[[int], None]
    ) -> None:
        """Have the kernel hand on just the next `length` bytes of a socket, FRAME at most; `ready` waits for some.

        `count` is told of those that have gone, and may raise. Raises Problem: what the worker has ended with; and
        ConnectionError if there are fewer.
        """
        await self._put(HEAD.pack(length))
        while length:
            try:
                moved = os.splice(fd, self._fd, length, flags=_SPLICE)
            except BlockingIOError:
                await (self._room() if self._full() else ready())
            except BrokenPipeError:
                await self._answer()
            else:
                if not moved:
                    raise ConnectionResetError
                length -= moved
                count(moved)

    def _full(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return not poll.poll(0)

    async def end(self) -> Done:
        """All bytes were handed on: what became of them. Raises Problem."""
        await self._put(_END)
        return await self._answer()

    async def stop(self) -> None:
        """Nothing more comes; afterwards the worker is gone."""
        self._close()
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    async def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._room()
            except BrokenPipeError:
                await self._answer()

    async def _room(self) -> None:
        room = asyncio.Event()
        self._loop.add_writer(self._fd, room.set)
        try:
            await room.wait()
        finally:
            self._loop.remove_writer(self._fd)

    async def _answer(self) -> Done:
        try:
            answer = await asyncio.shield(self._work)
        finally:
            if self._work.done():
                self._close()
        if isinstance(answer, Failed):
            raise answer.trouble.problem()
        return answer

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
