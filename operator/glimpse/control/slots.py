"""Slots for transfers: limits for all, for a namespace and for a source's host, first come first served within them.

A semaphore per namespace inside a global one would let a busy namespace hold the global slots while it waits for
its own; one queue that skips those who may not run yet does not.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from glimpse.settings import Limits


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue."""

    number: int
    """From 1."""
    total: int
    """Of so many."""
    reason: str
    """What it waits for."""


class Claim(NamedTuple):
    """What a transfer takes a place of."""

    namespace: str
    host: str | None = None
    """Of the source; None: bytes come from no source."""
    alone: tuple[str, ...] = ()
    """Stores into which only one transfer of this namespace may write at a time."""


class _Waiting(NamedTuple):
    who: object
    claim: Claim
    turn: asyncio.Future[None]


class Slots:
    """Bounded places, shared fairly. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._namespaces: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()
        self._alone = set[tuple[str, str]]()
        self._waiting: list[_Waiting] = []

    @property
    def used(self) -> int:
        """Places taken."""
        return self._namespaces.total()

    @property
    def waiting(self) -> int:
        """Those who wait."""
        return len(self._waiting)

    def alone(self, namespace: str, store: str) -> bool:
        """Whether a transfer of this namespace writes to the store with no other beside it."""
        return (namespace, store) in self._alone

    def free(self, claim: Claim) -> bool:
        """Whether one more could begin at once: it fits, and nobody who came before it does."""
        return self._full(claim) is None and not any(
            self._full(other.claim) is None for other in self._waiting if not other.turn.done()
        )

    def behind(self, claim: Claim) -> Place | None:
        """The place of one that would come now; None if it could begin at once."""
        if self.free(claim):
            return None
        return Place(len(self._waiting) + 1, len(self._waiting) + 1, self._reason(claim))

    def place(self, who: object) -> Place | None:
        """The place of one that waits; None if it does not."""
        for number, each in enumerate(self._waiting, 1):
            if each.who is who:
                return Place(number, len(self._waiting), self._reason(each.claim))
        return None

    @asynccontextmanager
    async def take(self, who: object, claim: Claim) -> AsyncIterator[None]:
        """Wait for a place and hold it. Cancelled while waiting, it leaves the queue at once."""
        if self.free(claim):
            self._enter(claim)
        else:
            entry = _Waiting(who, claim, asyncio.get_running_loop().create_future())
            self._waiting.append(entry)
            try:
                await entry.turn
            except asyncio.CancelledError:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                elif not entry.turn.cancelled():  # the place came in the same moment
                    self._leave(claim)
                raise
        try:
            yield
        finally:
            self._leave(claim)

    def _full(self, claim: Claim) -> str | None:
        """What one more would have to wait for."""
        limits, (namespace, host, alone) = self._limits, claim
        if self.used >= limits.transfers:
            return f"one of {limits.transfers} transfers to end"
        if self._namespaces[namespace] >= limits.namespace_transfers:
            return f"one of {limits.namespace_transfers} transfers of this namespace to end"
        if host is not None and self._hosts[host] >= limits.host_transfers:
            return f"one of {limits.host_transfers} transfers from {host} to end"
        for store in alone:
            if (namespace, store) in self._alone:
                return f"the transfer of this namespace into store {store}, which has a quota, to end"
        return None

    def _reason(self, claim: Claim) -> str:
        return self._full(claim) or "those before it"

    def _enter(self, claim: Claim) -> None:
        self._namespaces[claim.namespace] += 1
        if claim.host is not None:
            self._hosts[claim.host] += 1
        self._alone |= {(claim.namespace, store) for store in claim.alone}

    def _leave(self, claim: Claim) -> None:
        self._alone -= {(claim.namespace, store) for store in claim.alone}
        for counter, key in ((self._namespaces, claim.namespace), (self._hosts, claim.host)):
            if key is not None:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
        for entry in list(self._waiting):
            if entry.turn.done():  # cancelled in this very moment
                self._waiting.remove(entry)
            elif self._full(entry.claim) is None:
                self._waiting.remove(entry)
                self._enter(entry.claim)
                entry.turn.set_result(None)
