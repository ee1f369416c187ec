"""Gives stored copies their turn to be verified: one at a time in the whole installation, the oldest first.

What was verified when stands in the status of each Image, so a restart changes nothing; here is only the order.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from glimpse.api.image import ImageStatus
from glimpse.control import metrics

log = logging.getLogger(__name__)

_LATER: Final = 3600.0
"""Seconds until an image that could not use its turn gets another, at most."""
_AT_MOST: Final = 3600.0
"""The longest sleep, in seconds: clocks are set."""


def oldest(status: ImageStatus) -> float | None:
    """When the copy was verified that was not for the longest time; in seconds since 1970. None: there is none."""
    times = [h.verified.get(store, h.stored_at) for h in status.history for store in h.stores]
    return min(times).timestamp() if times else None


class Scrubber:
    """All copies of all Images. For one event loop."""

    def __init__(
        self, interval: float, turn: Callable[[str], Awaitable[bool]], clock: Callable[[], float] = time.time
    ) -> None:
        """`interval`: seconds between two verifications of a copy.

        `turn` is given a uid, and returns when its turn is over: whether a copy was read, of which `note` has heard.
        """
        self._interval = interval
        self._turn = turn
        self._clock = clock
        self._oldest: dict[str, float] = {}
        self._postponed: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._until = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to give turns, unless the interval is 0."""
        if self._interval:
            self._task = asyncio.create_task(self._run(), name="scrub")

    async def close(self) -> None:
        """Stop."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def note(self, uid: str, status: ImageStatus | None) -> None:
        """An Image is as its status says; None: it is gone."""
        at = oldest(status) if status else None
        if at is None:
            self._oldest.pop(uid, None)
            self._postponed.pop(uid, None)
            return
        self._oldest[uid] = at
        if self._due(uid) < self._until:
            self._wake.set()

    def _due(self, uid: str) -> float:
        return max(self._oldest[uid] + self._interval, self._postponed.get(uid, 0.0))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock()
            metrics.SCRUB_OLDEST.set(max(0.0, now - min(self._oldest.values(), default=now)))
            uid = min(self._oldest, key=self._due, default=None)
            due = self._due(uid) if uid else now + _AT_MOST
            if uid is None or due > now:
                self._until = due
                try:
                    async with asyncio.timeout(min(due - now, _AT_MOST)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._until = 0.0
                continue
            read = False
            try:
                read = await self._turn(uid)
            except Exception:  # the next one may go well
                log.exception("the scrub of %s failed", uid)
            self._postponed.pop(uid, None)
            if not read and uid in self._oldest:  # a store that is away, say, or a transfer that runs
                self._postponed[uid] = self._clock() + min(_LATER, self._interval)
