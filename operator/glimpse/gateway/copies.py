"""Copies: one opened object of a store, on its way to a socket.

Files go from the page cache to the socket by sendfile; all else is pulled in chunks by threads, so that a blocking
store never holds up the event loop. What the headers have promised is sent, or an error is raised.
"""

import asyncio
import errno
import io
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Final, NamedTuple, ParamSpec, Protocol, TypeVar

from aiohttp import web

from glimpse.gateway.bandwidth import Pace
from glimpse.gateway.outlet import Outlet
from glimpse.gateway.ranges import Span
from glimpse.problems import DataLost, StoreUnavailable
from glimpse.stores import Store
from glimpse.streams import CHUNK

OPENING: Final = 10.0
"""Seconds that a store may take to open an object, and to give its first bytes, before it counts as unavailable."""
WINDOW: Final = 4 << 20
"""Bytes of one sendfile, which are in memory before: a slow disk must not hold up the event loop."""
PIECE: Final = 32 << 10
"""Bytes of a file that go through our memory at once for one client: hundreds of slow ones hold as many each."""
PULLED: Final = 256 << 10
"""The same of what a thread reads: a turn of its own for each costs as much as to read so many."""
SAMPLE: Final = 256 << 10
"""Bytes between two samples that tell whether a window is in memory; the kernel reads ahead in about such steps."""
DISK: Final = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.EBADMSG, errno.ENODATA})
"""What a file says, and no socket."""
REST: Final = 2.0
"""Seconds that a file stays open after it was read."""
SEEN: Final = 10_000
"""Files that are remembered."""
THREADS: Final = 16
"""Reads from one store at once."""

P = ParamSpec("P")
T = TypeVar("T")


class Meter(Protocol):
    """Stands beside the road of the bytes."""

    @property
    def pace(self) -> Pace | None:
        """Says how many may be sent at a time; None: any number."""

    def count(self, sent: int, /) -> None:
        """So many were sent; told to `pace` too."""


class Wanted(NamedTuple):
    """The object that is to be read."""

    key: str
    """The object."""
    size: int
    """The bytes that it must have in all."""
    digest: str
    """The digest that its record must name, if it has one."""


class Copy(Protocol):
    """One opened object."""

    async def send(self, request: web.Request, response: web.StreamResponse, span: Span, meter: Meter) -> None:
        """Send a part of it, all of that; `meter` is told of each byte that has gone.

        Raises Problem if the store fails: what is left may come from another copy. Raises OSError if the client does.
        """

    def close(self) -> None:
        """Release it; blocking."""


class Threads:
    """Where blocking calls run: some threads for each store, so that one that hangs holds up no other."""

    def __init__(self, resting: int = 0) -> None:
        """`resting`: files that may stay open for a moment, for who asks for the next range of them."""
        self._resting = _Resting(resting)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self.seen: dict[object, None] = {}
        """Files that were found to be what is wanted, as they were then."""

    def close(self) -> None:
        """Take no more calls; those that hang end with the process."""
        self._resting.close()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, store: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call it in a thread of this store."""
        if store not in self._pools:
            self._pools[store] = ThreadPoolExecutor(THREADS, f"store {store}")
        return self._pools[store].submit(call, *args, **kwargs)

    async def run(self, store: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Wait for a call in a thread, also when cancelled: what it works on must not be closed under it."""
        waiting = asyncio.wrap_future(self.submit(store, call, *args, **kwargs))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            with suppress(Exception):
                await waiting
            raise

    @asynccontextmanager
    async def open(self, store: Store, wanted: Wanted, first: Span | None) -> AsyncIterator[Copy]:
        """Open an object, as a file where the store has files; the part `first` of it will be sent first.

        None: nothing will be, so that a store is only asked whether it has the object. Else the first bytes have come
        when this returns, unless it is a file: nothing may be promised to a client before.

        Raises NotFound, DataLost (it is another than the catalogue says), StoreUnavailable, also after 10 s.
        """
        if known := self._resting.take(store.name, wanted):
            with self._resting.kept(known, store.name, wanted):
                yield known
            return
        future = self.submit(store.name, _open, self, store, wanted, first)
        waiting = asyncio.wrap_future(future)
        try:
            async with asyncio.timeout(OPENING):
                copy = await asyncio.shield(waiting)
        except (TimeoutError, asyncio.CancelledError) as error:
            future.add_done_callback(_close_late)
            waiting.add_done_callback(lambda late: late.cancelled() or late.exception())  # else asyncio complains
            if isinstance(error, TimeoutError):
                late = f"store {store.name} did not open {wanted.key} within {OPENING:.0f} s"
                raise StoreUnavailable(late) from error
            raise
        if isinstance(copy, _File):
            with self._resting.kept(copy, store.name, wanted):
                yield copy
            return
        try:
            yield copy
        finally:
            await self.run(store.name, copy.close)


def _open(threads: Threads, store: Store, wanted: Wanted, first: Span | None) -> "_File | _Stream":
    fd = store.open(wanted.key)
    copy = _Stream(threads, store, wanted, first) if fd is None else _File(threads, store, wanted, fd)
    try:
        if fd is None:
            look(store, wanted)
        else:
            _look_once(threads.seen, store, wanted, os.fstat(fd))
        if isinstance(copy, _Stream):
            copy.begin()
    except BaseException:
        copy.close()
        raise
    return copy


def _look_once(seen: dict[object, None], store: Store, wanted: Wanted, state: os.stat_result) -> None:
    """As `look`, but a file that has not changed since is what it was."""
    file = (store.name, wanted, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if file not in seen:
        look(store, wanted, state.st_size)
        if len(seen) >= SEEN:
            seen.clear()
        seen[file] = None


def look(store: Store, wanted: Wanted, size: int | None = None) -> None:
    """See that a store has what is wanted, `size` bytes of it if that is known; blocking. Raises NotFound, DataLost."""
    found = store.stat(wanted.key)
    digest = found.record.digest if found.record else ""
    if (found.size if size is None else size) != wanted.size or (digest and digest != wanted.digest):
        raise DataLost(f"store {store.name} holds another object as {wanted.key} than status says")


def _close_late(opened: "Future[_File | _Stream]") -> None:
    """Close what nobody waits for any more."""
    if not opened.cancelled() and not opened.exception():
        opened.result().close()


class _File:
    """An object that is a file."""

    def __init__(self, threads: Threads, store: Store, wanted: Wanted, fd: int) -> None:
        self._threads, self._store, self._wanted = threads, store, wanted
        self._file = io.FileIO(fd, "rb")
        self._state = _written(fd)

    async def send(self, request: web.Request, response: web.StreamResponse, span: Span, meter: Meter) -> None:
        position, length = span
        end = position + length
        with ExitStack() as stack:
            outlet = await _outlet(request)
            if outlet:
                stack.enter_context(outlet)
            while position < end:
                size = min(WINDOW, end - position)
                if meter.pace:
                    size = await meter.pace.allow(size)
                await self._load(position, size, last=position + size == end)
                if request.transport is None:
                    raise ConnectionResetError
                sent = await self._pour(outlet, position, size, meter) if outlet else None
                if sent is None:
                    outlet = None  # what is written now may wait in the transport: nothing may pass it
                    sent = await self._pass(response, position, size, meter)
                if sent < size:
                    raise DataLost(
                        f"object {self._wanted.key} in store {self._store.name} became shorter while it was read"
                    )
                position += size

    async def _load(self, position: int, size: int, *, last: bool) -> None:
        """Have a part in the kernel's memory. Raises DataLost if it is the last one of a file that was changed."""
        fd = self._file.fileno()
        if not cached(fd, position, size):
            await self._threads.run(self._store.name, fetch, fd, position, size)
        if last and _written(fd) != self._state:
            # what is registered can be written to by others: the end is not given to what began as something else
            raise DataLost(f"object {self._wanted.key} in store {self._store.name} was changed while it was read")

    async def _pour(self, outlet: Outlet, position: int, size: int, meter: Meter) -> int | None:
        """Send a part by the kernel alone; how much there was of it. None if it cannot be sent so."""
        before = outlet.sent
        try:
            able = await outlet.send(self._file.fileno(), position, size)
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise StoreUnavailable(f"store {self._store.name}: {error.strerror}") from error
        finally:
            meter.count(outlet.sent - before)
        return outlet.sent - before if able else None

    async def _pass(self, response: web.StreamResponse, position: int, size: int, meter: Meter) -> int:
        """Send a part that is in the kernel's memory through ours; how much there was of it."""
        sent = 0
        while sent < size:
            try:
                piece = os.pread(self._file.fileno(), min(PIECE, size - sent), position + sent)
            except OSError as error:
                raise StoreUnavailable(f"store {self._store.name}: {error.strerror}") from error
            if not piece:
                break
            await response.write(piece)
            meter.count(len(piece))
            sent += len(piece)
            await asyncio.sleep(0)  # a client who takes all at once must leave others their turn
        return sent

    def unchanged(self) -> bool:
        """Whether it is there as it was when it was opened."""
        fd = self._file.fileno()
        return os.fstat(fd).st_nlink > 0 and _written(fd) == self._state

    def close(self) -> None:
        """Of a file that was only read: nothing to wait for."""
        self._file.close()


class _Resting:
    """Files that nobody reads at the moment, open for a while: who reads by small ranges asks for the next one soon."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._files: dict[tuple[str, Wanted], tuple[float, _File]] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def take(self, store: str, wanted: Wanted) -> _File | None:
        """One that is still what it was, for the caller alone."""
        _, file = self._files.pop((store, wanted), (0, None))
        if file and not file.unchanged():
            file.close()
            return None
        return file

    @contextmanager
    def kept(self, file: _File, store: str, wanted: Wanted) -> Iterator[None]:
        """Let it rest after the block, or close it if that fails."""
        try:
            yield
        except BaseException:
            file.close()
            raise
        if (store, wanted) in self._files or not self._most:
            file.close()
            return
        if len(self._files) >= self._most:
            self._files.pop(next(iter(self._files)))[1].close()
        loop = asyncio.get_running_loop()
        self._files[store, wanted] = (loop.time(), file)
        self._timer = self._timer or loop.call_later(REST, self._tidy)

    def _tidy(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        while self._files:
            key, (since, file) = next(iter(self._files.items()))
            if since + REST > loop.time():
                self._timer = loop.call_at(since + REST, self._tidy)
                return
            del self._files[key]
            file.close()

    def close(self) -> None:
        """All of them."""
        if self._timer:
            self._timer.cancel()
        while self._files:
            self._files.popitem()[1][1].close()


async def _outlet(request: web.Request) -> Outlet | None:
    """For what goes past TLS, there is none."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    if transport.get_extra_info("sslcontext"):
        return None
    if transport.get_write_buffer_size():
        low, high = transport.get_write_buffer_limits()
        transport.set_write_buffer_limits(high=0)
        try:
            await request.writer.drain()  # until nothing waits in the transport
        finally:
            transport.set_write_buffer_limits(high=high, low=low)
    return Outlet(transport)


def _written(fd: int) -> tuple[int, int]:
    """What changes when a file is written to."""
    state = os.fstat(fd)
    return state.st_size, state.st_mtime_ns


def cached(fd: int, start: int, length: int) -> bool:
    """Whether a part of a file can probably be sent without waiting for a disk: samples of it are in memory.

    False also where the file system cannot tell (preadv2(2), RWF_NOWAIT). The last page is always looked at.
    """
    sample = [bytearray(1)]
    for position in (*range(start, start + length, SAMPLE), start + length - 1):
        try:
            os.preadv(fd, sample, position, os.RWF_NOWAIT)
        except OSError:
            return False
    return True


def fetch(fd: int, start: int, length: int) -> None:
    """Bring a part of a file into memory, and ask for what follows; blocking. What fails, sendfile will say."""
    os.posix_fadvise(fd, start, length * 2, os.POSIX_FADV_WILLNEED)
    page, end = [bytearray(CHUNK)], start + length
    with suppress(OSError):
        while start < end and (got := os.preadv(fd, page, start)):
            start += got


class _Stream:
    """An object that is pulled out of its store, one part after the other."""

    def __init__(self, threads: Threads, store: Store, wanted: Wanted, first: Span | None) -> None:
        self._threads, self._store, self._wanted = threads, store, wanted
        self._context: AbstractContextManager[object] = nullcontext()
        self._opened: Span | None = None
        self._ahead = b""  # of what was opened, read and not sent yet
        if first:
            self._turn(first)

    def begin(self) -> None:
        """Have the first bytes of what was opened, as many stores ask their server only when they are read; blocking.

        Raises as `send`.
        """
        if self._opened and self._opened.length:
            self._ahead = self._read(min(self._opened.length, PULLED), self._opened.length)

    async def send(self, request: web.Request, response: web.StreamResponse, span: Span, meter: Meter) -> None:
        if span.length and span != self._opened:
            await self._threads.run(self._store.name, self._turn, span)
        left = span.length
        while left:
            if request.transport is None:
                raise ConnectionResetError
            size = min(left, PULLED)
            if meter.pace:
                size = await meter.pace.allow(size)
            if self._ahead:
                chunk, self._ahead = self._ahead[:size], self._ahead[size:]
            else:
                chunk = await self._threads.run(self._store.name, self._read, size, left)
            await response.write(chunk)
            meter.count(len(chunk))
            left -= len(chunk)

    def _read(self, size: int, left: int) -> bytes:
        """The next bytes, at most `size` of the `left` that there must be."""
        chunk = self._reader.read(size)
        if not chunk:
            raise DataLost(f"object {self._wanted.key} in store {self._store.name} ends {left} bytes early")
        return chunk

    def _turn(self, span: Span) -> None:
        """To another part."""
        self._context.__exit__(None, None, None)
        self._context, self._opened = nullcontext(), span  # if there is none, there is nothing to close
        self._ahead = b""
        context = self._store.get(self._wanted.key, span.start, span.length)
        self._reader = context.__enter__()
        self._context = context

    def close(self) -> None:
        self._context.__exit__(None, None, None)
