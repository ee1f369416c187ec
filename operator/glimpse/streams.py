"""Bytes on their way: the Reader that every stage offers and takes, the taps that look, and the check at the end.

Pull, so back-pressure is free; immutable chunks, so nobody can keep a view of a buffer that is used again.
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Queue
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from glimpse.api.base import format_quantity
from glimpse.problems import ChecksumMismatch, Problem, SourceUnavailable, StoreUnavailable, TooLarge, WorkerLost

CHUNK: Final = 1 << 20
"""Bytes of a chunk: large enough that a chunk's cost in Python vanishes."""

AHEAD: Final = 4
"""Chunks that wait for a digest or a store at most: enough to even out, little enough for eight stores."""

HOLE: Final = 64 << 10
"""Bytes of zeros, at a multiple of as many, that need not be written: small enough to find most, and cheap to find."""

WRITE: Final = 256 << 10
"""Bytes of one write to a file. For more at once ext4 takes larger pages of memory, which are seldom warm: in a virtual
machine its host has to find them first, and the write took four times as long."""

_ZEROS: Final = bytes(HOLE)


class Reader(Protocol):
    """A stream of bytes that the caller pulls."""

    @property
    def size(self) -> int | None:
        """The whole length in bytes, if it is known beforehand."""

    def read(self, n: int = CHUNK, /) -> bytes:
        """At least one and at most `n` bytes, b"" at the end. The caller may keep them. Raises Problem."""


class Tap(Protocol):
    """Looks at bytes that pass."""

    def feed(self, chunk: bytes, /) -> None:
        """Look at the next bytes. Raises the Problem that they show."""

    def finish(self) -> None:
        """Called once, when the source has truly ended. Raises the Problem if what passed must not be kept."""

    def close(self) -> None:
        """Release threads and buffers, whatever happened; may be called twice."""


class Checked:
    """A Reader that keeps back the end until the source has truly ended and every tap is content.

    Whoever reads it to the end has verified bytes; whoever stops before, at the declared length say, lacks the last
    chunk. So no store can commit an image that failed a check. Closing it closes the taps, not the source.
    """

    def __init__(self, source: Reader, taps: Sequence[Tap], *, lie: type[Problem] = SourceUnavailable) -> None:
        """`lie` is raised where the source gives more or fewer bytes than it has declared."""
        self._source = source
        self._taps = taps
        self._lie = lie
        self._passed = 0
        self._held = b""
        self._rest = b""  # of a chunk that was larger than what the caller asked for
        self._started = False
        self._ended = False
        self.error: BaseException | None = None
        """What went wrong at the source or a tap; the same comes out of every further read."""

    def __enter__(self) -> Self:
        """Nothing to open: the taps run since they were made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tap in self._taps:
            tap.close()

    @property
    def size(self) -> int | None:
        """The declared length in bytes."""
        return self._source.size

    def start(self) -> None:
        """Take the first chunk, so that an empty or unreachable source fails before a store is touched."""
        if not self._started:
            self._started = True
            self._held = self._next()

    def read(self, n: int = CHUNK, /) -> bytes:
        """Verified bytes at the end, unverified ones before. Raises what the source or a tap raised."""
        if self.error:
            raise self.error
        self.start()
        if not self._rest:
            self._rest, self._held = self._held, b"" if self._ended else self._next()
        out, self._rest = (self._rest, b"") if n >= len(self._rest) else (self._rest[:n], self._rest[n:])
        return out

    def _next(self) -> bytes:
        try:
            chunk = self._source.read(CHUNK)
            self._passed += len(chunk)
            self._compare(ended=not chunk)
            if chunk:
                for tap in self._taps:
                    tap.feed(chunk)
            else:
                for tap in self._taps:
                    tap.finish()
                self._ended = True
        except BaseException as error:
            self.error = error
            self._held = self._rest = b""
            raise
        return chunk

    def _compare(self, *, ended: bool) -> None:
        size = self._source.size
        if size is not None and (self._passed > size or (ended and self._passed < size)):
            sent = "more" if self._passed > size else f"{self._passed}"
            raise self._lie(f"the source announced {size} bytes, and sent {sent}")


class Digest:
    """A Tap that computes a digest in a thread of its own; hashlib lets other threads run meanwhile."""

    def __init__(
        self,
        algorithm: str,
        expected: str | None = None,
        *,
        by: str | None = None,
        mismatch: type[Problem] = ChecksumMismatch,
    ) -> None:
        """`algorithm` as in hashlib; `expected`: in hex, `by` whom; `mismatch` is raised at the end if it differs."""
        self.algorithm = algorithm
        self.agreed = False
        """What has passed has the digest that was expected."""
        self._expected = expected
        self._by = f" by {by}" if by else ""
        self._mismatch = mismatch
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._queue: Queue[bytes | None] = Queue(AHEAD)
        self._given_up = False
        self._first = b""
        self._thread: threading.Thread | None = None

    @property
    def hex(self) -> str:
        """The digest of what has passed; after `finish`."""
        return self._hash.hexdigest()

    def feed(self, chunk: bytes, /) -> None:
        """Queue the chunk; waits where the thread is behind."""
        if self._thread is None:
            if not self._first:  # it may be the only one, and not worth a thread
                self._first = chunk
                return
            self._thread = threading.Thread(target=self._work, name=self.algorithm, daemon=True)
            self._thread.start()
            self._queue.put(self._first)
            self._first = b""
        self._queue.put(chunk)

    def finish(self) -> None:
        """Wait for the last chunk. Raises `mismatch` if another digest was expected."""
        self._end()
        if self._first:
            self.update(self._first)
        self._first = b""
        if self._expected is not None and self.hex != self._expected:
            raise self._mismatch(
                f"the bytes have {self.algorithm}:{self.hex}, expected{self._by} was {self.algorithm}:{self._expected}"
            )
        self.agreed = self._expected is not None

    def close(self) -> None:
        """End the thread without regard to what is queued."""
        self._given_up = True
        self._first = b""
        self._end()

    def update(self, chunk: bytes) -> None:
        """Compute; called in order, by whichever thread does it."""
        self._hash.update(chunk)

    def _end(self) -> None:
        thread, self._thread = self._thread, None
        if thread:
            self._queue.put(None)
            thread.join()

    def _work(self) -> None:
        while (chunk := self._queue.get()) is not None:
            if not self._given_up:
                self.update(chunk)


class Limit:
    """A Tap that lets no more than so many bytes pass."""

    def __init__(self, most: int, size: int | None = None) -> None:
        """`size`: the declared length. Raises TooLarge at once if that is over the limit."""
        self._most = most
        self.passed = 0
        """Bytes so far."""
        self._check(size or 0)

    def feed(self, chunk: bytes, /) -> None:
        """Count. Raises TooLarge."""
        self.passed += len(chunk)
        self._check(self.passed)

    def finish(self) -> None:
        """Nothing is left to check."""

    def close(self) -> None:
        """Nothing is held."""

    def _check(self, size: int) -> None:
        if size > self._most:
            raise TooLarge(
                f"the image is larger than {format_quantity(self._most)}, the largest that this installation takes; "
                "an administrator can raise GLIMPSE_LIMITS__IMAGE_SIZE"
            )


class Meter:
    """A Tap that reports how many bytes have passed: at the first chunk, some times a second at most, at the end."""

    def __init__(self, report: Callable[[int], None], interval: float = 0.25) -> None:
        """`interval`: seconds between two reports at least."""
        self._report = report
        self._interval = interval
        self.passed = 0
        """Bytes so far."""
        self._due = 0.0

    def feed(self, chunk: bytes, /) -> None:
        """Count, and report if it is time."""
        self.passed += len(chunk)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._interval
            self._report(self.passed)

    def finish(self) -> None:
        """Report the whole."""
        self._report(self.passed)

    def close(self) -> None:
        """Nothing is held."""


class Cancel:
    """A Tap that ends a transfer that nobody wants any more."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def feed(self, _chunk: bytes, /) -> None:
        """Raises WorkerLost."""
        self.finish()

    def finish(self) -> None:
        """Raises WorkerLost."""
        if self._cancelled.is_set():
            raise WorkerLost("the task was cancelled")

    def close(self) -> None:
        """Nothing is held."""


T = TypeVar("T")


def tee(source: Reader, sinks: Mapping[str, Callable[[Reader], T]], stall_timeout: float) -> dict[str, T | Problem]:
    """Feed every sink from one reading of `source`; what each returned, or the Problem it raised or met.

    Each sink runs in a thread of its own behind a bounded queue. One that fails, or holds up the others for more than
    `stall_timeout` seconds, is dropped: its reader raises, so that it can clean up, and the others go on. With all
    dropped the source is read no further. What `source` raises comes out of every reader and then of `tee`, after
    the sinks have ended. With one sink there is neither thread nor queue.
    """
    if len(sinks) == 1:
        [(name, sink)] = sinks.items()
        return {name: _alone(source, sink)}
    branches = {name: _Branch(name, source.size, sink) for name, sink in sinks.items()}
    try:
        chunk = b"more"
        while chunk and any(not branch.over for branch in branches.values()):
            chunk = source.read(CHUNK)
            for branch in branches.values():
                branch.give(chunk, stall_timeout)
        for branch in branches.values():
            branch.wait(None)
    except BaseException as error:
        for branch in branches.values():
            branch.stop(error)
        for branch in branches.values():
            branch.wait(stall_timeout)
        raise
    return {name: branch.outcome() for name, branch in branches.items()}


class _Watched:
    """Remembers what the source raised, to tell it from what the sink raised."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.error: BaseException | None = None

    @property
    def size(self) -> int | None:
        return self._source.size

    def read(self, n: int = CHUNK, /) -> bytes:
        try:
            return self._source.read(n)
        except BaseException as error:
            self.error = error
            raise


def _alone(source: Reader, sink: Callable[[Reader], T]) -> T | Problem:
    watched = _Watched(source)
    try:
        return sink(watched)
    except Problem as problem:
        if watched.error:
            raise watched.error from None
        return problem


class _Branch(Generic[T]):
    """The queue, the thread and the reader of one sink."""

    def __init__(self, name: str, size: int | None, sink: Callable[[Reader], T]) -> None:
        self.size = size
        self._name = name
        self._sink = sink
        self._queue: deque[bytes] = deque()
        self._change = threading.Condition()
        self._error: BaseException | None = None  # what the sink shall see
        self._ended = False  # the sink has read the end
        self._done = False  # the sink has returned
        self._result: T | Problem | None = None
        self._crash: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """It takes no more chunks."""
        return self._done or self._error is not None

    def give(self, chunk: bytes, patience: float) -> None:
        """Queue a chunk, b"" being the end; drop the branch if it takes none for `patience` seconds."""
        with self._change:
            if not self._change.wait_for(lambda: self.over or len(self._queue) < AHEAD, patience):
                self._error = StoreUnavailable(
                    f"store {self._name} took no bytes for {patience:g} s and held up the others"
                )
                self._result = self._error
                self._queue.clear()
            if not self.over:
                self._queue.append(chunk)
            self._change.notify_all()

    def stop(self, error: BaseException) -> None:
        """Let the sink see `error` at its next read."""
        with self._change:
            self._error = self._error or error
            self._queue.clear()
            self._change.notify_all()

    def wait(self, patience: float | None) -> None:
        """Wait until the sink has returned, unless it was dropped as hanging: that one may hang for ever."""
        with self._change:
            if not isinstance(self._result, Problem):
                self._change.wait_for(lambda: self._done, patience)
        if self._crash:
            raise self._crash

    def outcome(self) -> T | Problem:
        """What the sink returned, or its Problem; after `wait`."""
        assert self._result is not None  # noqa: S101 - wait() returns only with a result
        return self._result

    def read(self, n: int = CHUNK, /) -> bytes:
        """As a Reader; called by the sink."""
        with self._change:
            self._change.wait_for(lambda: self._queue or self._error or self._ended)
            if self._error:
                raise self._error
            if self._ended:
                return b""
            chunk = self._queue.popleft()
            self._ended = not chunk
            if len(chunk) > n:
                self._queue.appendleft(chunk[n:])
                chunk = chunk[:n]
            self._change.notify_all()
            return chunk

    def _work(self) -> None:
        result: T | Problem | None = None
        crash: BaseException | None = None
        try:
            result = self._sink(self)
        except Problem as problem:
            result = problem
        except BaseException as error:  # noqa: BLE001 - it comes out in the thread that called tee
            crash = error
        with self._change:
            self._done = True
            self._queue.clear()
            self._result = self._result or result
            self._crash = None if crash is self._error else crash
            self._change.notify_all()


def solid(chunk: bytes, position: int) -> Iterator[tuple[int, int]]:
    """What of `chunk`, which belongs at `position`, has to be written where what is not reads as zeros."""
    start, hole = 0, -position % HOLE
    while hole + HOLE <= len(chunk):
        if chunk.startswith(_ZEROS, hole):  # memcmp without a copy
            if start < hole:
                yield start, hole
            start = hole + HOLE
        hole += HOLE
    if start < len(chunk):
        yield start, len(chunk)


def write_at(fd: int, view: memoryview, position: int) -> None:
    """Write all of `view` to a file. Raises OSError."""
    while view:
        written = os.pwrite(fd, view[:WRITE], position)
        view, position = view[written:], position + written
