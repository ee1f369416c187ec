"""One connection at a time that goes on where it broke, with the same mirror or with another one.

Every reader of a file stands on this, one line or eight, so what is done about a break is written once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from glimpse.problems import Problem, SourceChanged, SourceUnavailable, WorkerLost, combined
from glimpse.sources.client import Answer
from glimpse.sources.remote import REST, Remote

_LONGEST: Final = 15.0
"""Seconds of a pause at most. A server that asks for more is asked again by the operator, without a slot."""
_SLICE: Final = 0.5
"""Seconds between two looks whether the transfer is cancelled."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is measured in bytes and seconds, for tests to shrink."""

    part: int = 16 << 20
    """Bytes of a part at most: on a long line much more than could pass while one waits for the next part's head."""
    least: int = 1 << 20
    """Bytes of a part at least: parts shrink towards the end, so that all lines come to it together. Also the bytes
    that must have come since the last break for the next one not to count as one more in a row."""
    window: int = 96 << 20
    """Bytes that are fetched ahead at most, over all lines ..."""
    alone: int = 8 << 20
    """... and by a single one, which needs no more to keep a disk busy."""
    pace: float = 0.1
    """Seconds over which speed is measured before more lines are tried."""
    pause: float = 0.25
    """Seconds before the same mirror is asked again; doubled each time nothing has come of it."""


TUNING: Final = Tuning()


class Mirrors:
    """The mirrors of one file that can still be asked. Shared by threads."""

    def __init__(self, remotes: Sequence[Remote]) -> None:
        """`remotes`: at least one, the first is asked first; all have the same bytes."""
        self._remotes = list(remotes)
        self._met = list[tuple[str, Problem]]()
        self._lock = threading.Lock()
        self.used = set[Remote]()
        """Those that bytes came from."""
        self.doubtful = False
        """Bytes of two answers were joined though nothing tells that they are of one file."""

    def took(self, remote: Remote, *, first: bool = False) -> None:
        """An answer of this one is read; `first`: nothing was read before."""
        with self._lock:
            self.used.add(remote)
            self.doubtful |= len(self.used) > 1 or not (first or (remote.version and remote.version.guard))

    def count(self, remote: Remote, count: int, seconds: float) -> None:
        """So many bytes came of this one, after so much waiting."""
        with self._lock:
            remote.bytes += count
            remote.seconds += seconds

    def pick(self, number: int) -> Remote:
        """One for the `number`th line."""
        with self._lock:
            return self._remotes[number % len(self._remotes)]

    def instead(self, remote: Remote) -> Remote | None:
        """Another than this one, if there is one."""
        with self._lock:
            others = [other for other in self._remotes if other is not remote]
            after = self._remotes.index(remote) if remote in self._remotes else 0
            return others[after % len(others)] if others else None

    def drop(self, remote: Remote, problem: Problem) -> None:
        """Ask this one no more. Raises the Problem, with those of the others, if there is no other."""
        with self._lock:
            if self._remotes == [remote]:
                raise combined([*self._met, (remote.name, problem)]) from problem
            if remote in self._remotes:
                self._remotes.remove(remote)
                self._met.append((remote.name, problem))


class OneTooMany(Exception):  # noqa: N818 - nothing has failed
    """The server refuses this line, and another one does its work. Never leaves the reader of the lines."""


class Line:
    """Reads a file from any place on. Used by one thread; `close` and `abort` may come from another."""

    def __init__(
        self,
        mirrors: Mirrors,
        cancelled: Callable[[], bool],
        retries: int,
        *,
        tuning: Tuning = TUNING,
        number: int = 0,
        answer: Answer | None = None,
        refused: Callable[["Line"], bool] = lambda _: False,
    ) -> None:
        """`retries`: breaks in a row that are borne. `answer`: one of the first mirror that has just been opened.

        `refused` is called when a request fails that may go well with fewer lines; whether this one is to leave.
        """
        self._mirrors = mirrors
        self._remote = mirrors.pick(number)
        self._cancelled = cancelled
        self._retries = retries
        self._tuning = tuning
        self._refused = refused
        self._answer = answer
        self._failures = 0
        self._failed = 0  # where the last break was
        if answer:
            mirrors.took(self._remote, first=True)

    @property
    def whole(self) -> bool:
        """Whether the server gives the whole file only, and no parts."""
        return self._answer is not None and self._answer.range is None

    def holds(self, at: int) -> int:
        """How many bytes from `at` on the answer at hand will give, at most."""
        answer = self._answer
        if answer is None or answer.at != at:
            return 0
        return REST if answer.stop is None else answer.stop - at

    def read(self, at: int, stop: int, n: int, *, last: bool) -> bytes:
        """At least one and at most `n` bytes from `at` on, before `stop`. `last`: nothing will be read after `stop`.

        With REST as `stop` it ends where the file does, wherever that is, with b"".

        Raises SourceUnavailable after too many breaks, SourceChanged, WorkerLost if cancelled, as `Client.get`, and
        OneTooMany.
        """
        while True:
            asked = False
            try:
                answer = self._answer
                if answer is None or answer.at != at or (answer.at == answer.stop and not answer.last):
                    self.close()
                    self._check()
                    asked = True
                    self._answer = answer = self._remote.ask(at, stop)
                    self._mirrors.took(self._remote)
                    asked = False
                answer.keep = not last
                began = time.monotonic()
                if chunk := answer.read(min(n, stop - at)):
                    if answer.stop is None and answer.at == self._remote.size and answer.read(1):
                        raise SourceChanged(f"{answer.name}: the file is longer now than it was")
                    self._mirrors.count(self._remote, len(chunk), time.monotonic() - began)
                    return chunk
                if stop == REST and answer.at == at and answer.last:
                    return chunk
                raise SourceUnavailable(f"{answer.name}: the answer ended early")
            except Problem as problem:
                self.close()
                self._check()
                if asked and isinstance(problem, SourceUnavailable) and self._refused(self):
                    raise OneTooMany from problem
                self._again(at, problem)

    def close(self) -> None:
        """Drop the connection, if there is one."""
        answer, self._answer = self._answer, None
        if answer:
            answer.close()

    def abort(self) -> None:
        """Make a read in another thread fail."""
        if answer := self._answer:
            answer.abort()

    def _again(self, at: int, problem: Problem) -> None:
        """After a break at `at`: pause, or turn to another mirror. Raises the Problem if there is nothing to try."""
        self._failures = 1 if abs(at - self._failed) >= self._tuning.least else self._failures + 1
        self._failed = at
        remote = self._remote
        if isinstance(problem, WorkerLost):
            raise problem
        remote.failed = True
        if problem.permanent or isinstance(problem, SourceChanged):
            self._mirrors.drop(remote, problem)
        elif self._failures > self._retries:
            raise problem
        if other := self._mirrors.instead(remote):
            self._remote = other
            if self._failures == 1:
                return
        pause = max(self._tuning.pause * 2 ** (self._failures - 1), problem.retry_after or 0)
        if (problem.retry_after or 0) > _LONGEST and not other:
            raise problem
        self._wait(min(pause, _LONGEST))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check()
            threading.Event().wait(min(left, _SLICE))
        self._check()

    def _check(self) -> None:
        if self._cancelled():
            raise WorkerLost("the transfer was cancelled")
