"""Events, `GET /v1/images/events`: what changes in the list, as server-sent events.

https://html.spec.whatwg.org/multipage/server-sent-events.html. A watcher is a place in the index's list of changes,
which all watchers share, so one costs the same however slow it is. Who falls behind further than what is remembered
is cut off; he comes back with the id of the last event that he had, and goes on from there or begins anew.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Final

from aiohttp import web

from glimpse.gateway.access import Access, Caller, client_of, home
from glimpse.gateway.index import SORTS, Change, Index
from glimpse.gateway.item import Item, encode
from glimpse.gateway.listing import HEADERS, PATH, complete, sight
from glimpse.gateway.meters import Meters
from glimpse.gateway.query import CONTROLS, Query
from glimpse.gateway.refusals import LATER, Refusal
from glimpse.gateway.sight import Sight
from glimpse.gateway.turns import Turns

log: Final = logging.getLogger(__name__)

WATCHERS: Final = 500
"""Watchers at once, half of them of one namespace at most."""
OWN: Final = 16
"""The same of one user."""
HEARTBEAT: Final = 15.0
"""Seconds after which something is sent though nothing has changed: proxies close what is silent."""
RECHECK: Final = 30.0
"""Seconds after which a watcher's rights are looked at again."""
LOOK: Final = 2.0
"""Seconds after which it is noticed that a watcher has left, though there is nothing to send."""
CHUNK: Final = 64 << 10
"""Bytes that are sent at once, if one event is not larger."""
BATCH: Final = 256
"""Changes that are looked at before others have their turn."""
STEP: Final = 100
"""Images of what is there that are told at once."""
_SORT: Final = "name"
"""In which what is there is told: neither a name nor a uid ever changes."""


class Events:
    """The handler of the stream. `idle`: seconds that a watcher may take to accept what is sent."""

    def __init__(self, index: Index, access: Access, meters: Meters, idle: float) -> None:
        self._index, self._access, self._idle = index, access, idle
        self._users: Counter[Hashable] = Counter()
        self._turns = Turns(WATCHERS)
        self._closing = False
        meters.watchers.set_function(self._users.total)

    def routes(self) -> list[web.RouteDef]:
        """GET of the stream."""
        return [web.get(f"{PATH}/events", self._serve, allow_head=False)]

    async def close(self, _app: web.Application) -> None:
        """End all streams."""
        self._closing = True
        self._index.ring()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        caller = await self._access.visitor(request.headers.get("Authorization"), request.remote)
        query = Query.read(request.query.items(), CONTROLS)
        seen = await sight(self._access, caller, query)
        complete(self._index)
        with self._turn(*_watcher(caller, request.remote)):
            headers = {**HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
            response = web.StreamResponse(headers=headers)
            stream = _Stream(self._index, query, seen, response, self._idle)
            try:
                await response.prepare(request)
                await self._run(request, stream)
            except TimeoutError:
                log.info("%s takes events too slowly, and is cut off", request.remote)
                stream.cut(request)
            except OSError as error:
                log.debug("%s has left: %r", request.remote, error)
            return response

    @contextlib.contextmanager
    def _turn(self, user: Hashable, tenant: str) -> Iterator[None]:
        if self._users[user] >= OWN:
            raise Refusal(429, f"You watch {OWN} times already.", retry_after=LATER)
        if self._closing or not self._turns.take(tenant):
            raise Refusal(503, "There are too many watchers, here or of your namespace.", retry_after=LATER)
        self._users[user] += 1
        try:
            yield
        finally:
            self._turns.leave(tenant)
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]

    async def _run(self, request: web.Request, stream: "_Stream") -> None:
        """Until the watcher leaves, loses his rights, or the gateway stops. Raises TimeoutError if he is too slow."""
        if not stream.resume(request.headers.get("Last-Event-ID", "")):
            await stream.begin()
        checked = time.monotonic()
        while not self._closing and request.transport and not request.transport.is_closing():
            if time.monotonic() - checked >= RECHECK:
                if not await self._still(request, stream):
                    return
                checked = time.monotonic()
            if not await stream.go_on():
                await self._index.news(stream.number, min(stream.due, LOOK))
            if stream.due <= 0:
                await stream.beat()

    async def _still(self, request: web.Request, stream: "_Stream") -> bool:
        """Whether the watcher sees what he saw; else he comes again and is told what there is for him."""
        try:
            caller = await self._access.visitor(request.headers.get("Authorization"), request.remote)
            complete(self._index)
            return await sight(self._access, caller, stream.query) == stream.seen
        except Refusal as refusal:
            log.info("the events for %s end: %s", request.remote, refusal.detail)
            return False


def _watcher(caller: Caller | None, remote: str | None) -> tuple[Hashable, str]:
    """Whose place it is, and whose tenant's: all who send no token are one."""
    if caller is None:
        return client_of(remote), ""
    user = caller.who.user
    return ("user", user), home(user) or user


class _Stream:
    """What one watcher is sent."""

    def __init__(self, index: Index, query: Query, seen: Sight, response: web.StreamResponse, idle: float) -> None:
        self.query, self.seen = query, seen
        self.number = 0
        """Of the last change that was told."""
        self._index, self._response, self._idle = index, response, idle
        self._sent = time.monotonic()
        self._sieve = query.sieve(seen)
        about = repr((query.pairs, seen.everywhere, seen.stranger, sorted(seen.namespaces)))
        # an id is good for the same question of one who sees the same: else he would miss what he did not see
        self._suffix = hashlib.sha256(about.encode(errors="replace")).hexdigest()[:8]

    @property
    def due(self) -> float:
        """Seconds until something must be sent."""
        return self._sent + HEARTBEAT - time.monotonic()

    def resume(self, last: str) -> bool:
        """Go on after the event of this id, if that is possible."""
        epoch, _, rest = last.partition("-")
        number, _, suffix = rest.partition("-")
        if epoch != self._index.epoch or suffix != self._suffix or not number.isdecimal() or len(number) > 18:  # noqa: PLR2004
            return False
        self.number = int(number)
        return self._index.since(self.number, 1) is not None

    async def begin(self) -> None:
        """Tell all that there is. Raises TimeoutError, OSError."""
        self.number = self._index.number
        await self._send(b"event: RESET\ndata: {}\n\n")
        after, more = None, True
        while more:
            items, more = await self._index.page(
                self._sieve, _SORT, after, STEP, pool=self.query.pool(self.seen), weight=CHUNK
            )
            if items:
                after = (getattr(items[-1], SORTS[_SORT]), items[-1].uid)
                await self._send(b"".join(self._event("ADDED", each) for each in items))
        # only now: who is cut off before has nothing to go on from
        await self._send(b"event: SYNCED\ndata: {}\n" + self._id(self.number) + b"\n\n")

    async def go_on(self) -> bool:
        """Tell the next changes; False if there are none. Raises TimeoutError if they are not remembered any more."""
        changes = self._index.since(self.number, BATCH)
        if changes is None:
            raise TimeoutError
        for change in changes:
            if told := self._told(change):
                await self._send(told)
            self.number = change.number
        return bool(changes)

    async def beat(self) -> None:
        """A sign of life, with the id to go on from: what is not told moves it too."""
        await self._send(self._id(self.number) + b"\n\n")

    def cut(self, request: web.Request) -> None:
        """End the connection without a word: its buffers are full."""
        if request.transport:
            request.transport.abort()
        self._response.force_close()

    def _told(self, change: Change) -> bytes:
        """What a change means for this watcher."""
        old, new = (each if each and self._meant(each) else None for each in (change.old, change.new))
        if new:
            return self._event("MODIFIED" if old else "ADDED", new, change.number)
        return self._event("DELETED", old, change.number) if old else b""

    def _meant(self, item: Item) -> bool:
        return all(test(item) for test in self._sieve)

    def _event(self, kind: str, item: Item, number: int | None = None) -> bytes:
        if kind == "DELETED":
            data = encode({"namespace": item.namespace, "name": item.name, "uid": item.uid})
        else:
            data = item.encoded(self.query.fields)
        lines = [b"event: " + kind.encode(), b"data: " + data]
        if number is not None:
            lines.append(self._id(number))
        return b"\n".join((*lines, b"", b""))

    def _id(self, number: int) -> bytes:
        return f"id: {self._index.epoch}-{number}-{self._suffix}".encode()

    async def _send(self, data: bytes) -> None:
        """Raises TimeoutError if the watcher does not take it."""
        async with asyncio.timeout(self._idle):
            await self._response.write(data)
        self._sent = time.monotonic()
