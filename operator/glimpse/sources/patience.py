"""How long a server is waited for, and how fast it may be read.

Apart from the sockets, since one in clear and one over TLS wait in different ways by the same rules.
"""

import math
import threading
import time
from dataclasses import dataclass

from glimpse.problems import SourceUnavailable, WorkerLost
from glimpse.sources.pace import Pace


@dataclass
class Patience:
    """How long to wait for a server."""

    idle: float
    """Seconds in which nothing arrives."""
    cancelled: threading.Event
    rate: int = 0
    """Bytes per second, the least on average ..."""
    window: float = math.inf
    """... over so many seconds of waiting; time in which we do not ask for more is not the server's."""
    pace: Pace | None = None
    """What limits the bytes of bodies."""
    who: str = "the server"
    """In messages."""
    parting: bool = False
    """Everything has been read: only look whether there is more, and take silence as the end."""
    glance: bool = False
    """The same without a wait: what has not come yet is not there."""
    _until: float = math.inf
    _waited: float = 0.0
    _came: int = 0

    def check(self) -> None:
        """Raises WorkerLost if cancelled."""
        if self.cancelled.is_set():
            raise WorkerLost("the transfer was cancelled")

    def hurry(self) -> None:
        """All that comes before the body, or after it, has `idle` seconds in all, however often some of it comes."""
        self._until = time.monotonic() + self.idle

    def relax(self) -> None:
        """The body is next, which may take as long as it comes."""
        self._until = math.inf

    def admit(self, wanted: int) -> int:
        """How many bytes may be received now. Where the pace is limited it waits, which is not the server's time.

        What has not come of them is given back with `leave`. Raises WorkerLost if cancelled.
        """
        return self.pace.take(wanted) if self.pace and self._until == math.inf else wanted

    def leave(self, unused: int) -> None:
        """So many of the bytes that were admitted have not come."""
        if unused and self.pace and self._until == math.inf:
            self.pace.leave(unused)

    def begin(self) -> float:
        """Before each wait; the time. Raises SourceUnavailable if it is over, and WorkerLost if cancelled."""
        self.check()
        now = time.monotonic()
        if now >= self._until:
            raise SourceUnavailable(f"{self.who} took more than {self.idle:g} s for the head or the end of its answer")
        return now

    def came(self, count: int, began: float) -> None:
        """After each wait that was not for nothing. Raises SourceUnavailable if the server is too slow."""
        self._waited += time.monotonic() - began
        self._came += count
        if self._waited >= self.window:
            if self._came < self.rate * self._waited:
                raise SourceUnavailable(f"{self.who} sent less than {self.rate} bytes/s over {self.window:g} s")
            self._waited, self._came = 0.0, 0

    def wait(self, waited: float) -> bool:
        """Whether to go on after so many seconds of silence. Raises SourceUnavailable, and WorkerLost if cancelled."""
        self.check()
        if waited >= self.idle and not self.parting:
            raise SourceUnavailable(f"{self.who} sent nothing for {self.idle:g} s")
        return not self.parting
