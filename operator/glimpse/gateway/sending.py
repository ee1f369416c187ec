"""Sending: the bytes of a download out of the best copy, and on from the next one where that breaks.

What was promised in the headers is sent, or the connection is cut: a client can always tell a broken download from a
whole one.
"""

import logging
from collections.abc import Hashable
from contextlib import aclosing
from typing import Final

from aiohttp import web
from prometheus_client import Counter

from glimpse.gateway.access import Access, client_of
from glimpse.gateway.bandwidth import Bandwidth, Pace
from glimpse.gateway.catalog import Catalog, Entry, Revision
from glimpse.gateway.copies import Copy, Threads, Wanted
from glimpse.gateway.links import is_link
from glimpse.gateway.meters import Meters
from glimpse.gateway.parts import Body, Rest
from glimpse.problems import DataLost, NotFound, Problem
from glimpse.storeref import told
from glimpse.stores import Store

log: Final = logging.getLogger(__name__)


BODY: Final = web.RequestKey("body", Rest)
"""Under which a request holds what is still to be sent, for who wants to know what has become of it."""


class Sending:
    """Sends bodies."""

    def __init__(
        self, catalog: Catalog, access: Access, threads: Threads, meters: Meters, bandwidth: Bandwidth
    ) -> None:
        self._catalog, self._access, self._threads, self._meters = catalog, access, threads, meters
        self._bandwidth = bandwidth

    async def send(
        self, request: web.Request, response: web.StreamResponse, entry: Entry, revision: Revision, content: Body
    ) -> bool:
        """Send from the first copy that gives bytes; if it breaks, the rest from the next, at the same byte.

        False if there is none. If none can go on, the connection is cut: the client must see that something is missing.
        Raises Refusal 429 and 503, before anything is sent.
        """
        wanted = Wanted(entry.key(revision), revision.size, revision.digest)
        rest, pace = Rest(content.pieces), await self._pace(request)
        request[BODY] = rest
        async with aclosing(self._catalog.places.copies(revision.stores)) as copies:
            async for found in copies:
                if not rest:
                    break
                store = _told(found, entry, revision)
                try:
                    first = None if request.method == "HEAD" else rest.span
                    async with self._threads.open(store, wanted, first) as copy:
                        if not response.prepared:
                            await response.prepare(request)
                        if request.method == "HEAD":
                            return True
                        self._catalog.places.gave(store.name)
                        await _forward(
                            request, response, copy, _Meter(rest, self._meters.bytes.labels(store.name), pace)
                        )
                        return True
                except NotFound:
                    log.info("store %s does not hold %s", store.name, wanted.key)
                except Problem as problem:
                    self._catalog.places.failed(store.name, problem)
                    log.warning("%s cannot be read: %s: %s", wanted.key, problem.reason, problem.message)
                    if rest.sent and store is not found and isinstance(problem, DataLost):
                        break  # others write there, and may have done so before what was sent already
                except OSError as error:
                    log.info("the download of %s broke off: %r", wanted.key, error)
                    break
        if rest and response.prepared:
            _cut(request, response)
        return response.prepared

    async def _pace(self, request: web.Request) -> Pace | None:
        """None where there is no limit: then nothing stands on the road of the bytes."""
        if not self._bandwidth.limited:
            return None
        return Pace(self._bandwidth, await self._client(request), lambda: request.transport is None)

    async def _client(self, request: web.Request) -> Hashable:
        """Who is let in by a token is its user, wherever he comes from; anybody else is an address."""
        authorization = request.headers.get("Authorization")
        if authorization is None or is_link(request):
            return client_of(request.remote)
        caller = await self._access.caller(authorization, request.remote)  # who was let in: the answer is kept
        return "user", caller.who.user


class _Meter:
    """Counts what has gone, for all who want to know."""

    def __init__(self, rest: Rest, sent: Counter, pace: Pace | None) -> None:
        self.rest, self.pace = rest, pace
        self._sent = sent

    def count(self, sent: int, /) -> None:
        self.rest.count(sent)
        self._sent.inc(sent)
        if self.pace:
            self.pace.count(sent)


async def _forward(request: web.Request, response: web.StreamResponse, copy: Copy, meter: _Meter) -> None:
    """Send what is left from one copy, as far as it goes. Raises what `Copy.send` does."""
    rest = meter.rest
    while rest:
        if head := rest.head():
            await response.write(head)
        await copy.send(request, response, rest.span, meter)
        rest.next()


def _cut(request: web.Request, response: web.StreamResponse) -> None:
    """End the connection: one that is kept alive would hide that something is missing."""
    if request.transport:
        request.transport.abort()
    response.force_close()


def _told(store: Store, entry: Entry, revision: Revision) -> Store:
    """The store; another one if the revision lies in it where others have put it, which is told then."""
    known = told(store.name, entry.uid, revision.registered) if revision.registered else ()
    return store.knowing(*known) if known else store
