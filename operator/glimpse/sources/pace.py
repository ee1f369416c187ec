"""How fast bytes may be received: for one transfer, and for all transfers of this machine together.

A limit is a line of reservations: whoever wants bytes books a moment behind the last booking, and waits for it. So a
limit is never exceeded however many connections share it, and time spent here is nobody's slowness.
"""

import math
import mmap
import threading
import time
from collections.abc import Callable
from typing import Final

from glimpse.problems import WorkerLost

_SHARE: Final = 1 / 16
"""Seconds of bandwidth that are booked at once, so that those who share a limit take turns ..."""
_LEAST: Final = 4096
"""... but not fewer bytes than these, nor more than were asked for."""
_CREDIT: Final = 0.25
"""Seconds of bandwidth that may be made up for, when nobody could use them just now."""
_FARTHEST: Final = 60.0
"""Seconds; no line is so long, so a moment farther away is none."""


class _Together:
    """The line of all workers of this machine: memory that they inherit from the process which forked them.

    No lock: a worker can be killed at any moment, and one that held a lock would stop all others. Two that book in
    the same microsecond may book the same moment, an error of one share.
    """

    def __init__(self) -> None:
        self._moment = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        self.rate = 0
        """Bytes per second; 0: any number. Of the task of this process."""

    @property
    def free(self) -> float:
        """The first moment that is not booked."""
        return self._moment[0]

    @free.setter
    def free(self, moment: float) -> None:
        self._moment[0] = moment


TOGETHER: Final = _Together()
"""Made when this module is imported, which is before workers are forked."""


class Pace:
    """The limits of one transfer. Shared by the threads of its connections."""

    def __init__(self, rate: int, cancelled: threading.Event, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`rate`: bytes per second, 0: any number. The limit for all of `TOGETHER` holds besides."""
        self.rate = rate
        self.free = -math.inf
        self._cancelled = cancelled
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def take(self, wanted: int) -> int:
        """Wait for our turn; how many bytes may be received then. Raises WorkerLost if cancelled."""
        lines = self._lines()
        if not lines:
            return wanted
        share = min(wanted, *(max(int(line.rate * _SHARE), _LEAST) for line in lines))
        # One booking of a transfer at a time, or one with many connections would get many shares.
        with self._turn:
            now = self._clock()
            with self._lock:
                at = max(_book(line, share, now) for line in lines)
            if self._cancelled.wait(max(at - now, 0)):
                raise WorkerLost("the transfer was cancelled")
        return share

    def leave(self, unused: int) -> None:
        """So many of the bytes that might be received did not come."""
        with self._lock:
            for line in self._lines():
                line.free -= unused / line.rate

    def _lines(self) -> list["Pace | _Together"]:
        return [line for line in (self, TOGETHER) if line.rate]


def _book(line: Pace | _Together, share: int, now: float) -> float:
    """The moment from which the share may be received."""
    at = max(line.free, now - _CREDIT)
    if not at <= now + _FARTHEST:
        at = now
    line.free = at + share / line.rate
    return at
