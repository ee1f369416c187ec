"""Bytes on their way into an image that is made as large as they need, as nobody may know how many there are."""

from collections.abc import Callable
from typing import Any

from glimpse.ceph import Pipe
from glimpse.problems import Problem


class Growing(Pipe):
    """A Pipe that enlarges its image; what it raises is the same."""

    def __init__(
        self,
        image: Any,
        start: int,
        block: int,
        problem: Callable[[int], Problem],
        *,
        patience: float,
        hint: int | None,
    ) -> None:
        """`hint`: how large the image will probably be."""
        super().__init__(image, start, block, problem, patience=patience)
        self._size = start
        self._hint = min(max(hint or 0, block), 1 << 40)  # nobody knows whether it is true

    def reach(self, end: int) -> None:
        """Enlarge the image; twice as large is seldom enough."""
        if end > self._size:
            self._size = max(end, 2 * self._size, self._hint)
            self._image.resize(self._size)

    def finish(self) -> None:
        """Write all that was taken, wait until it is there, and make the image just as large."""
        self.flush()
        if self._size != self.passed:
            self._image.resize(self.passed)
            self._size = self.passed
