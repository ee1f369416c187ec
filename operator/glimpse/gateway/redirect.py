"""Redirects: a download that the store's own server gives, by an address that is signed for a moment (307).

The bytes then go past the gateway, which is why it is off by default: rights, digests, meters and limits are no longer
its own. So it is done only where the administrator says that clients reach the store, for bytes that are ours alone,
and for requests that the store answers as the gateway would.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Final, Literal

from aiohttp import web

from glimpse.gateway.catalog import Entry, Revision
from glimpse.gateway.copies import OPENING, Threads, Wanted, look
from glimpse.gateway.links import is_link
from glimpse.gateway.meters import Meters
from glimpse.gateway.places import Places
from glimpse.gateway.refusals import Refusal
from glimpse.problems import Problem, StoreUnavailable
from glimpse.storeref import told
from glimpse.stores import Linkable, Store

log: Final = logging.getLogger(__name__)

LIFE: Final = 60.0
"""Seconds that an address is good; as long as a right that was withdrawn may count."""
CONDITIONS: Final = ("If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range")
"""Clients send them on, and the store knows none of our validators."""
_ASKED: Final[Mapping[str, bool]] = {"true": True, "false": False}

Mode = Literal["off", "asked", "always"]


def wish(request: web.Request) -> bool | None:
    """What the client says of redirects; None if he says nothing. Raises Refusal 400 for what is neither yes nor no."""
    given = request.query.getall("redirect", [])
    if not {*given} <= _ASKED.keys() or len(given) > 1:
        raise Refusal(400, "redirect must be true or false, and may be given once.")
    return _ASKED[given[0]] if given else None


class Redirects:
    """Decides about each download, and finds where to."""

    def __init__(self, places: Places, threads: Threads, meters: Meters, mode: Mode, *, base: str) -> None:
        """`asked`: those who say `?redirect=true`; `always`: all but who says `false`.

        `base`: the gateway's address as consumers see it; from https nobody is led to http.
        """
        self._places, self._threads, self._meters, self._mode = places, threads, meters, mode
        self._secure = base.startswith("https:")

    async def find(
        self, request: web.Request, entry: Entry, revision: Revision, file: str
    ) -> web.StreamResponse | None:
        """The answer that leads to a store; None if the bytes are to be sent. `file`: the name to save them under.

        The request was let in, and its preconditions hold.
        """
        if not self._wanted(request) or entry.deactivated:
            return None
        life = LIFE if not is_link(request) else min(LIFE, int(request.query["expires"]) - time.time())
        if life < 1:
            return None
        wanted = Wanted(entry.key(revision), revision.size, revision.digest)
        async for store in self._places.copies(revision.stores):
            registered = revision.registered and told(store.name, entry.uid, revision.registered)
            if registered or not isinstance(store.driver, Linkable):
                continue  # what others may write to is looked at on its way, and so must pass here
            if self._places.avoided(store.name):
                continue  # to be asked for an address may take as long again, and the bytes may come from elsewhere
            try:
                url = await self._link(store, wanted, life, file)
            except Problem as problem:
                self._places.failed(store.name, problem)
                log.warning("%s has no address in %s: %s: %s", wanted.key, store.name, problem.reason, problem.message)
                continue
            if url and (url.startswith("https://") or not self._secure):
                self._meters.redirects.labels(store.name).inc()
                return web.Response(status=307, headers=_headers(url))
        return None

    def _wanted(self, request: web.Request) -> bool:
        """Whether a redirect is allowed, is asked for, and gives what the gateway would.

        Who sends a token is never led on: KubeVirt's CDI, and every client that was told to send a header, sends it
        again wherever it is led to, and that server must not have it.
        """
        if "Authorization" in request.headers:
            return False
        if self._mode == "off" or request.method != "GET" or any(name in request.headers for name in CONDITIONS):
            return False
        said = wish(request)
        return self._mode == "always" if said is None else said

    async def _link(self, store: Store, wanted: Wanted, life: float, file: str) -> str | None:
        """Where the store has just what is wanted. Raises NotFound, DataLost, StoreUnavailable, also after 10 s."""

        def link() -> str | None:
            look(store, wanted)
            return store.link(wanted.key, life, file)

        try:
            async with asyncio.timeout(OPENING):
                return await asyncio.wrap_future(self._threads.submit(store.name, link))
        except TimeoutError as error:
            raise StoreUnavailable(f"store {store.name} gave no address within {OPENING:.0f} s") from error


def _headers(url: str) -> dict[str, str]:
    """Nobody else may learn the address: no cache, and no server that comes next."""
    return {
        "Location": url,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
