"""The room in a pool: what the managers of the cluster have counted, less what was written since.

They count some seconds late, in which a fast transfer writes gigabytes: without this the reserve would be passed.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from glimpse.ceph import Pipe
from glimpse.stores import Capacity


@dataclass(slots=True)
class _Put:
    """One put of this process."""

    pipe: Pipe
    free: int
    """What was free before it."""
    ended: float | None = None

    def uncounted(self, free: int) -> int:
        """Bytes of it by which what is free has not shrunk yet."""
        return max(self.pipe.written - max(self.free - free, 0), 0)


class Room:
    """What this process has written to a pool, for as long as it may not be counted; shared by threads."""

    def __init__(self, settling: float) -> None:
        """`settling`: seconds after which all that was written is counted."""
        self._settling = settling
        self._lock = threading.Lock()
        self._puts: list[_Put] = []
        self._free: int | None = None

    @contextmanager
    def writing(self, pipe: Pipe) -> Iterator[None]:
        """Around a put. One that fails is removed as a rule, and takes no room then."""
        with self._lock:
            put = _Put(pipe, self._free or 0)
            self._puts.append(put)
        try:
            yield
        except BaseException:
            with self._lock:
                self._puts = [each for each in self._puts if each is not put]
            raise
        put.ended = time.monotonic()

    def left(self, counted: Capacity) -> Capacity:
        """The room, of what the managers say."""
        free, used = counted.free, counted.used
        if free is None or used is None:
            return counted
        with self._lock:
            self._free, now = free, time.monotonic()
            self._puts = [put for put in self._puts if put.ended is None or now - put.ended < self._settling]
            lately = min(sum(put.uncounted(free) for put in self._puts), free)
        return Capacity(counted.total, used + lately, free - lately)
