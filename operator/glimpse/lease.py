"""A sign of life for an attempt, in stores that cannot tell a live writer from a dead one.

A file has a lock that ends with its process; an object on a server has not. So a writer renews a mark beside what it
writes, others take what was not renewed in time for dead, and the writer commits nothing once it may be taken for dead
itself. This is the lease of Gray and Cheriton (SOSP 1989).
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from glimpse.problems import Problem, StoreUnavailable

_log: Final = logging.getLogger(__name__)

_SHARE: Final = 6
"""Renewals in the time of a lease."""


class Lease:
    """Renews a mark until the block ends, in a thread of its own: a body may stall for as long as it likes."""

    def __init__(self, renew: Callable[[], None], seconds: float) -> None:
        """`renew` writes the mark and raises if it could not.

        Others take it for dead `seconds` after it was written, by the store's clock.
        """
        self._renew = renew
        self._seconds = seconds
        self._since = 0.0
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Write the mark for the first time. Raises what `renew` raises."""
        self._once()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Renew no more; waits for one that is under way, so the mark can be removed after it."""
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Before a commit: raises StoreUnavailable unless at least half of the lease is left for it.

        Once it has run out it stays so: others may have begun to remove what was written, and a mark that is renewed
        later does not stop them.
        """
        age = _now() - self._since
        if self._lost or age > self._seconds / 2:
            what = f"for more than {self._seconds:.0f} s once" if self._lost else f"for {age:.0f} s"
            raise StoreUnavailable(f"no sign of life reached the store {what}; others may have taken over")

    def _once(self) -> None:
        began = _now()  # the store counts from a moment after this one
        self._renew()
        if self._since and _now() - self._since > self._seconds:
            self._lost = True
        self._since = began

    def _work(self) -> None:
        while not self._over.wait(self._seconds / _SHARE):
            try:
                self._once()
            except Problem as problem:
                _log.info("a lease was not renewed: %s", problem.message)
            except Exception as error:  # noqa: BLE001 - whatever a client library raises: `check` says what follows
                _log.info("a lease was not renewed: %s", type(error).__name__)


def _now() -> float:
    """Counts while the machine sleeps, as the store's clock does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
