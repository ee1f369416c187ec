"""Bandwidth: who may send how much and when, if the gateway, or each of its clients, may send only so much a second.

A client is a user or an address and not a connection: else whoever opens the most gets the most. Clients take turns,
and what one does not need is shared by the others, so nobody waits while there is something left.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Final

LEAST: Final = 16 << 10
"""Bytes of one turn, at least: fewer would cost more than they are."""
MOST: Final = 4 << 20
"""At most, so that the others' turns come soon."""
LATE: Final = 0.02
"""Seconds by which a turn may be late without a loss, or the time of a turn if that is longer: timers are. Not more:
who takes one turn after the other, and not several at once, would lose them to the others."""
LOOK: Final = 1.0
"""Seconds between two looks whether who waits is still there."""


@dataclass(eq=False, slots=True)
class Ask:
    """One download that wants to send."""

    client: "_Client"
    wanted: int
    """Bytes."""
    granted: int = 0
    """Bytes that it may send now; 0 while it waits."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False, slots=True)
class _Client:
    """Who pays."""

    name: Hashable
    asks: deque[Ask] = field(default_factory=deque)
    free: float | None = None
    """When what he was granted is used up by his own limit; None before the first time."""


class Shares:
    """Turns, by a clock that the caller has: nothing here waits.

    As in FQ-CoDel (RFC 8290, 4.2) who comes anew is served before those who always want more, so a slow client gets
    all that it takes; after its turn it is one of the others, and stays one until theirs have all been. Here the two
    sorts alternate, so that no number of new ones can keep the others from their turns.
    """

    def __init__(self, total: int, each: int) -> None:
        """Bytes per second of all together and of each client; 0: any number."""
        self._total, self._each = total, each
        wanted = [rate for rate in (total // 50, each // 4) if rate]
        self._turn = max(LEAST, min([MOST, *wanted]))
        self._free = float("-inf")
        self._clients: dict[Hashable, _Client] = {}
        # those who may have a turn, the next one first, and whose it is: new ones, and others
        self._rings: tuple[dict[_Client, None], dict[_Client, None]] = ({}, {})
        self._others = False
        self._resting: list[tuple[float, int, _Client]] = []  # those who may not yet, a heap
        self._order = count()

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._clients)

    def ask(self, client: Hashable, wanted: int) -> Ask:
        """Queue for a turn in which up to `wanted` bytes may be sent."""
        found = self._clients.get(client)
        if found is None:
            found = self._clients[client] = _Client(client)
            self._rings[0][found] = None
        ask = Ask(found, wanted)
        found.asks.append(ask)
        return ask

    def withdraw(self, ask: Ask) -> None:
        """Leave the queue."""
        with suppress(ValueError):
            ask.client.asks.remove(ask)

    def grant(self, now: float) -> tuple[list[Ask], float | None]:
        """Those whose turn it is, and when to come again; None if there is no need. `now` is in seconds."""
        while self._resting and self._resting[0][0] <= now:
            self._rings[1][heappop(self._resting)[2]] = None
        granted = []
        while self._free <= now and (client := self._next()):
            granted.append(self._give(client, now))
        times = [self._free] if any(self._rings) else []
        times += [self._resting[0][0]] if self._resting else []
        return granted, min(times, default=None)

    def _next(self) -> _Client | None:
        """Whose turn it is, taken out of its ring. Who wants nothing when it is his is forgotten."""
        for _ in self._rings:
            ring = self._rings[self._others]
            self._others = not self._others
            while ring:
                client = next(iter(ring))
                del ring[client]
                if client.asks:
                    return client
                del self._clients[client.name]
        return None

    def _give(self, client: _Client, now: float) -> Ask:
        ask = client.asks.popleft()
        ask.granted = min(ask.wanted, self._turn)
        if self._total:
            self._free = max(self._free, now - late(self._turn, self._total)) + ask.granted / self._total
        if self._each:
            before = now if client.free is None else client.free  # who was forgotten has nothing to make up for
            client.free = max(before, now - late(self._turn, self._each)) + ask.granted / self._each
        if client.free is not None and client.free > now:
            heappush(self._resting, (client.free, next(self._order), client))
        else:
            self._rings[1][client] = None
        return ask


def late(turn: int, rate: int) -> float:
    """Seconds by which turns of so many bytes may be late, at so many a second."""
    return max(LATE, turn / rate)


class Bandwidth:
    """The limits of one gateway. Used by the event loop only."""

    def __init__(self, total: int, each: int) -> None:
        """As in Shares."""
        self.limited = bool(total or each)
        self._shares = Shares(total, each)
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, client: Hashable, wanted: int, gone: Callable[[], bool]) -> int:
        """How many of `wanted` bytes may be sent now, one at least. Raises ConnectionResetError if the client is gone.

        Whoever is gone, or cancelled, has no place in the queue any more.
        """
        ask = self._shares.ask(client, wanted)
        self._turn()
        try:
            while not ask.granted:
                if gone():
                    raise ConnectionResetError
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await ask.ready.wait()
        finally:
            if not ask.granted:
                self._shares.withdraw(ask)
        return ask.granted

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        granted, when = self._shares.grant(loop.time())
        for ask in granted:
            ask.ready.set()
        if when is not None:
            self._timer = loop.call_at(when, self._turn)


class Pace:
    """One download's way through the limits."""

    def __init__(self, bandwidth: Bandwidth, client: Hashable, gone: Callable[[], bool]) -> None:
        self._bandwidth, self._client, self._gone = bandwidth, client, gone
        self._left = 0

    async def allow(self, wanted: int) -> int:
        """How many of so many bytes may be sent now, one at least. Raises ConnectionResetError."""
        if not self._left:
            self._left = await self._bandwidth.take(self._client, wanted, self._gone)
        return min(wanted, self._left)

    def count(self, sent: int) -> None:
        """So many were; never more than were allowed."""
        self._left -= sent
