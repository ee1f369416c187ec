"""Turns: places that all share, of which one tenant has half at most.

So whatever one tenant does with his, and for how long, he does not shut out another.
"""

import asyncio
from collections import Counter


class Turns:
    """So many places. For one event loop."""

    def __init__(self, places: int) -> None:
        self.each = -(-places // 2)
        """That one tenant has, at most."""
        self._all = places
        self._taken: Counter[str] = Counter()
        self._left = asyncio.Event()

    def __len__(self) -> int:
        """Places that are taken."""
        return self._taken.total()

    @property
    def full(self) -> bool:
        """Whether all are taken."""
        return len(self) >= self._all

    def free(self, tenant: str) -> bool:
        """Whether there is one for this tenant."""
        return not self.full and self._taken[tenant] < self.each

    def take(self, tenant: str) -> bool:
        """Take one, if there is one; it is to be given back by `leave`."""
        if not self.free(tenant):
            return False
        self._taken[tenant] += 1
        return True

    async def wait(self, tenant: str, seconds: float) -> bool:
        """The same, if there is one within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not self.take(tenant):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True

    def leave(self, tenant: str) -> None:
        """Give one back."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
        self._left.set()
