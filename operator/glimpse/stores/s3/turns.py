"""Who may commit: one at a time, by signs of life that say so, on a server that keeps no condition of a write."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from glimpse.problems import StoreConflict, StoreUnavailable
from glimpse.stores.s3.bucket import Bucket, Listed

ALIVE: Final = ".alive"


class Mark:
    """The sign of life of an attempt, which also says whether it is about to commit."""

    def __init__(self, bucket: Bucket, name: str, lease: float) -> None:
        """`lease`: seconds for which others believe it."""
        self.name = name
        self.unsure = False
        """It may have committed, so its bytes must not be removed."""
        self._committing = False
        self._bucket, self._lease = bucket, lease
        self._lock = threading.Lock()

    def write(self) -> None:
        """Renew it."""
        with self._lock:
            self._bucket.write(self.name, b"committing" if self._committing else b"")

    def take_turn(self, below: str, taken: Callable[[], bool]) -> None:
        """Come back once nobody else below commits, with the word said that we do. Raises StoreConflict if it is taken.

        Who says so and then sees no other who does is alone, as the other would see him: it needs nothing but a
        listing that shows what has been written. Of several the first by name stays, and the others stand back.
        """
        deadline = time.monotonic() + 2 * self._lease  # a dead one is out of the way after one
        self._say(committing=True)
        while True:
            rivals = [each.name for each in self._bucket.listed(below) if self._rival(each)]
            if rivals and self._committing and min(rivals) < self.name:
                self._say(committing=False)
            if taken():
                raise StoreConflict(f"{self._bucket.url(below.strip('.'))} was written by another attempt meanwhile")
            if not rivals and self._committing:
                return
            if not rivals:
                self._say(committing=True)
            elif time.monotonic() > deadline:
                raise StoreUnavailable(f"{self._bucket.url()}: another attempt has been about to commit for too long")
            else:
                time.sleep(random.uniform(0.02, 0.1))  # noqa: S311 - spreads load, guards nothing

    def _rival(self, listed: Listed) -> bool:
        committing = listed.size and listed.name.endswith(ALIVE) and listed.age < self._lease
        return bool(committing) and listed.name != self.name

    def _say(self, *, committing: bool) -> None:
        """Let others know; a renewal that is under way does not take it back."""
        self._committing = committing
        self.write()
