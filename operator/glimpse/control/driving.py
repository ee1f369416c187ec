"""How one Image is driven: step after step until nothing is left to do, pauses after errors, and looks at what runs.

Apart from the queue, which knows what a step is: here it is only known when the next one is due.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from glimpse.control.entry import Entry
from glimpse.control.seen import FetchWork
from glimpse.control.works import Works
from glimpse.kube import ApiError, Conflict, Gone, Invalid

log = logging.getLogger(__name__)

_PAUSE: Final = 30.0
"""The longest pause after an unexpected error, in seconds."""
_FIRST_LOOK: Final = 1.0
"""Seconds until a running transfer is first shown: a small image is done before, and saves a write."""
_QUEUE_LOOKS: Final = 6
"""Intervals of progress between two looks at the place in the queue, of which there may be a thousand at once."""


async def drive(entry: Entry, step: Callable[[Entry], Awaitable[None]]) -> None:
    """Take steps as long as the entry is awake or something runs; never raises but Gone: the Image is no more."""
    failures = 0
    while (entry.wake.is_set() or entry.work_task) and not entry.gone:
        entry.wake.clear()
        try:
            await step(entry)
            failures = 0
        except Gone:
            raise
        except Conflict:
            failures += 1
            entry.raw = None
            entry.wake.set()
            if failures > 1:
                await asyncio.sleep(min(_PAUSE, 0.05 * 2 ** min(failures, 10)))
        except Invalid as error:
            # Tried again at once it would be refused again.
            log.error("%s/%s: %s", entry.namespace, entry.name, error.message)  # noqa: TRY400 - no bug
            entry.raw = None
            entry.wake.set()
            await asyncio.sleep(_PAUSE)
        except Exception as error:
            failures += 1
            bug = not isinstance(error, ApiError)
            level = logging.ERROR if bug else logging.WARNING
            log.log(level, "%s/%s: %s", entry.namespace, entry.name, error, exc_info=bug)
            entry.wake.set()
            await asyncio.sleep(min(_PAUSE, 0.5 * 2 ** min(failures, 10)))


class Looks:
    """When the progress of what runs, or the place of what waits, is worth a write. For one event loop."""

    def __init__(self, works: Works, interval: float) -> None:
        """`interval`: seconds between two writes of a progress."""
        self._works, self._interval = works, interval

    def began(self, entry: Entry) -> None:
        """What waited in the queue has its slot."""
        if entry.timer:
            entry.timer.cancel()
            entry.timer = None
        self.later(entry)

    def later(self, entry: Entry) -> None:
        """Look at the progress of what runs after a while, or at the place of what waits."""
        if entry.meter and entry.timer is None and isinstance(entry.work, FetchWork):
            wait = self._interval
            if not (entry.progress if entry.meter.running else entry.place):
                wait = _FIRST_LOOK
            elif not entry.meter.running:
                wait *= _QUEUE_LOOKS
            entry.timer = asyncio.get_running_loop().call_later(wait, self._look, entry)

    def _look(self, entry: Entry) -> None:
        """Let the progress be written, if it is worth a write."""
        entry.timer = None
        if not entry.meter:
            return
        if entry.meter.running:
            now, old = entry.meter.show(), entry.progress
            further = old is None or (now.bytes_done - old.bytes_done) * 100 >= (now.bytes_total or 1)
            worth = further or (old is not None and now.stage != old.stage)
            entry.progress = now if worth else old
        else:
            # A queue that moves is no reason to write a thousand statuses: half of the way is.
            place, known = self._works.place_of(entry.meter), entry.place
            worth = place is not None and (known is None or place.number * 2 <= known.number)
            entry.place = place if worth else known
        if worth:
            entry.wake.set()
        else:
            self.later(entry)
