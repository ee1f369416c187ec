"""A large file, fetched ahead in parts by several connections and handed out in order.

One connection over a long line carries what its window allows and no more, so several are faster; over a short line a
second one helps nobody. So the reader starts with one and adds more only while they help. What has been received and
not handed out is bounded, whatever the size.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from glimpse.problems import SourceUnavailable, WorkerLost
from glimpse.sources.client import Answer
from glimpse.sources.line import TUNING, Line, Mirrors, OneTooMany, Tuning
from glimpse.streams import CHUNK

_PARTING: Final = 1.0
"""Seconds that a line gets to end."""
_SETTLING: Final = 2.0
"""Seconds that new connections get to bring their first bytes before speed is measured without them."""
_GAIN: Final = 1.15
"""How much faster it must have become for still more connections."""
_STEP: Final = 8
"""How many times as many connections are tried next."""


class _Part:
    """Bytes up to `stop`, of which those before `at` have come."""

    __slots__ = ("at", "chunks", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.at, self.stop = start, stop
        self.chunks: deque[bytes] = deque()


class Ranged:
    """The bytes of a file in order, from several lines. Whoever made it closes it."""

    def __init__(
        self,
        mirrors: Mirrors,
        first: Answer,
        whole: int,
        cancelled: threading.Event,
        *,
        connections: int,
        retries: int,
        tuning: Tuning = TUNING,
    ) -> None:
        """`first`: an answer that has just come, where to begin; `whole`: the length of the file."""
        self._mirrors = mirrors
        self._whole = whole
        self._cancelled = cancelled
        self._most = connections if first.range else 1
        self._retries = retries
        self._tuning = tuning
        self._part = min(tuning.part, max(tuning.least, tuning.window // self._most // tuning.least * tuning.least))
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)  # the one who reads waits
        self._room = threading.Condition(self._lock)  # the lines wait
        self._parts: deque[_Part] = deque()  # begun and not yet read, in order
        self._returned: list[_Part] = []  # of these, those that nobody works on any more
        self._position = self._next = first.at
        self._error: BaseException | None = None
        self._over = False
        self._pace = _Pace(tuning.pace)
        self._wanted = 1
        self._crowded = False  # the server has refused some of several lines
        self._lines: dict[Line, _Part | None] = {}  # with what each works on
        self._threads: list[threading.Thread] = []
        with self._lock:
            self._grow(first)

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes in order. Raises as `Line.read`."""
        with self._lock:
            while True:
                part = self._parts[0] if self._parts else None
                if part and part.chunks:
                    break
                if part and part.at == part.stop:
                    self._parts.popleft()
                elif self._position == self._whole:
                    return b""
                elif self._error:
                    raise self._error
                else:
                    self._arrived.wait()
            chunk = part.chunks.popleft()
            if len(chunk) > n:
                part.chunks.appendleft(chunk[n:])
                chunk = chunk[:n]
            self._position += len(chunk)
            self._room.notify_all()
            return chunk

    def close(self) -> None:
        """Drop all connections and wait for the threads; may be called twice."""
        with self._lock:
            self._over = True
            self._room.notify_all()
            lines = list(self._lines)
        for line in lines:
            line.abort()
        for thread in self._threads:
            thread.join(_PARTING)  # one that is just connecting ends by itself

    # -- the lines, each in a thread of its own; what begins with "with the lock" expects it to be held

    def _grow(self, first: Answer | None = None) -> None:
        """With the lock: start lines up to the number that is wanted."""
        while len(self._lines) < self._wanted:
            line = Line(
                self._mirrors,
                lambda: self._over or self._cancelled.is_set(),
                self._retries,
                tuning=self._tuning,
                number=len(self._lines),
                answer=first,
                refused=self._refused,
            )
            first = None
            self._lines[line] = None
            self._pace.expect()
            thread = threading.Thread(target=self._work, args=(line,), name="line", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self, line: Line) -> None:
        try:
            while part := self._take(line):
                self._fill(part, line)
        except OneTooMany:
            pass  # it has left already
        except BaseException as error:  # noqa: BLE001 - it comes out in the thread that reads
            with self._lock:
                self._error = self._error or self._explained(error)
                self._over = True
                self._lines.pop(line, None)
                self._arrived.notify_all()
                self._room.notify_all()
        finally:
            line.close()

    def _take(self, line: Line) -> _Part | None:
        """The next part for a line; None if there is nothing more for it to do, and it counts no more."""
        with self._lock:
            self._lines[line] = None
            while not self._over and len(self._lines) <= self._wanted:
                if self._returned:
                    self._lines[line] = part = min(self._returned, key=lambda part: part.at)
                    self._returned.remove(part)
                    return part
                if self._next == self._whole:
                    break
                if self._next < self._position + self._window():
                    self._lines[line] = part = self._cut(line)
                    return part
                self._room.wait()
            del self._lines[line]
            return None

    def _cut(self, line: Line) -> _Part:
        """With the lock: cut the next part off what is left."""
        left = self._whole - self._next
        least = self._tuning.least
        fair = max(2 * least, left // self._wanted // least * least)
        held = line.holds(self._next)
        part = _Part(self._next, self._next + min(left, held or min(self._part, fair)))
        self._next = part.stop
        self._parts.append(part)
        return part

    def _fill(self, part: _Part, line: Line) -> None:
        while part.at < part.stop:
            with self._lock:
                # With a part that nobody works on there may never be room: this one is got done with instead.
                while part.at >= self._position + self._window() and not self._returned and not self._over:
                    self._room.wait()
                if self._over:
                    raise WorkerLost("the transfer has ended")
            chunk = line.read(part.at, part.stop, CHUNK, last=part.stop == self._whole)
            with self._lock:
                part.chunks.append(chunk)
                part.at += len(chunk)
                if part is self._parts[0]:
                    self._arrived.notify()
                if line.whole:  # one line is what is left then
                    self._wanted, self._pace.settled = 1, True
                self._pace_on(line, len(chunk))

    def _window(self) -> int:
        """With the lock: how far ahead of the one who reads the lines may be."""
        return self._tuning.alone if self._wanted == 1 else self._wanted * self._part

    def _pace_on(self, line: Line, count: int) -> None:
        """With the lock: bytes have come; have more lines if they may help, and fewer if they do not."""
        wanted = min(self._most, self._pace.came(line, count, self._wanted, self._behind))
        if wanted != self._wanted:
            self._wanted = wanted
            self._grow()
            self._room.notify_all()

    def _behind(self) -> bool:
        """With the lock: whether so much waits to be read that it is the one who reads who is slow."""
        waiting = 0
        for part in self._parts:
            waiting += sum(map(len, part.chunks))
            if part.at < part.stop:
                break
        return waiting >= self._tuning.alone // 2

    def _refused(self, line: Line) -> bool:
        """A request of this line has failed: the server may find us too many, so it leaves, if it is not the last.

        What it has not done of its part is for the others.
        """
        with self._lock:
            self._pace.settled = True
            if len(self._lines) > 1 and (part := self._lines.pop(line, None)):
                self._returned.append(part)
                self._crowded = True
            self._wanted = min(self._wanted, len(self._lines))
            self._room.notify_all()
            return line not in self._lines

    def _explained(self, error: BaseException) -> BaseException:
        """With the lock: an error with what may be the reason, where one has shown itself before."""
        if not (self._crowded and isinstance(error, SourceUnavailable)):
            return error
        return SourceUnavailable(
            f"{error.message}; some of several connections were refused before: if the server allows so few, "
            "lower transfer.connections",
            retry_after=error.retry_after,
        )


class _Pace:
    """How many lines are worth having, from the speed of those that there are. Used under the reader's lock."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: that speed is measured over."""
        self._seconds = seconds
        self.settled = False
        """There will be no more."""
        self._silent = 0
        self._heard = set[Line]()
        self._until = 0.0
        self._since: float | None = None
        self._bytes = 0
        self._before = 0.0
        self._proven = 1

    def expect(self) -> None:
        """A line has been started."""
        self._silent += 1
        self._until = time.monotonic() + _SETTLING
        self._since = None

    def came(self, line: Line, count: int, lines: int, behind: Callable[[], bool]) -> int:
        """Bytes have come through a line: how many lines there should be. `behind`: is the one who reads slower?"""
        if self.settled:
            return lines
        now = time.monotonic()
        if line not in self._heard:
            self._heard.add(line)
            self._silent -= 1
        if self._silent and now < self._until:
            return lines
        if self._since is None:
            self._since, self._bytes = now, 0
            return lines
        self._bytes += count
        if now - self._since < self._seconds:
            return lines
        speed = self._bytes / (now - self._since)
        self._since = None
        if behind():
            return lines
        if speed < self._before * _GAIN:
            self.settled = True
            return self._proven
        self._before, self._proven = speed, lines
        return lines * _STEP
