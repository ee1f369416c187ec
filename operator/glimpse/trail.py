"""A digest that also knows what it was of the first bytes, so that they can be told when they come again.

What a transfer that died has left lies on a disk for a while, and nobody has verified it. Once more is added to it, a
digest of the whole would prove whatever is there, unless somebody else has said what it must be.
"""

from collections import deque
from typing import Final

from glimpse.problems import DataLost
from glimpse.streams import Digest

_STEP: Final = 1 << 20
"""Bytes between two digests that are remembered, at least ..."""
_MANY: Final = 64
"""... and how many of them are: far more than stores are behind."""


class Trail(Digest):
    """A Digest that remembers what it was some bytes ago."""

    def __init__(self, algorithm: str, expected: str | None = None, *, by: str | None = None) -> None:
        """As a Digest."""
        super().__init__(algorithm, expected, by=by)
        self._passed = 0
        self._steps: deque[tuple[int, str]] = deque(maxlen=_MANY)
        self._demanded: tuple[int, str] | None = None
        self._differs = False

    def demand(self, length: int, value: str) -> None:
        """The first `length` bytes have to have this digest in hex; else DataLost, soon."""
        self._demanded = length, value

    def of_first(self, length: int) -> tuple[int, str] | None:
        """Of as many of the first `length` bytes as it can tell, but not of much fewer: how many, and their digest."""
        known = [step for step in tuple(self._steps) if step[0] <= length]
        return known[-1] if known else None

    def feed(self, chunk: bytes, /) -> None:
        """Queue the chunk. Raises DataLost."""
        self._check()
        super().feed(chunk)

    def finish(self) -> None:
        """Wait for the last chunk. Raises `mismatch`, DataLost."""
        super().finish()
        self._check()

    def update(self, chunk: bytes) -> None:
        """Compute."""
        if self._demanded and self._passed + len(chunk) >= self._demanded[0]:
            (length, value), self._demanded = self._demanded, None
            first, chunk = chunk[: length - self._passed], chunk[length - self._passed :]
            self.update(first)
            self._differs = self.hex != value
        super().update(chunk)
        self._passed += len(chunk)
        if self._passed - (self._steps[-1][0] if self._steps else 0) >= _STEP:
            self._steps.append((self._passed, self.hex))

    def _check(self) -> None:
        if self._differs:
            raise DataLost("what an earlier transfer has left is not what it has written")
