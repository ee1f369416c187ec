"""Admission: which revision of which image a request gets: by the caller's right, the image's visibility, or a link.

What one may not see is as what is not there: the same words, after the same questions to the API server.
"""

import time
from typing import Final, NamedTuple

from aiohttp import web

from glimpse.gateway.access import Access, Caller
from glimpse.gateway.catalog import Catalog, Entry, Revision
from glimpse.gateway.links import LOST, Links, is_link
from glimpse.gateway.paths import Asked
from glimpse.gateway.refusals import NOT_FOUND, Refusal, incomplete

DEACTIVATED: Final = "This image is deactivated: its owner or an administrator has stopped all downloads of it."


class Admitted(NamedTuple):
    """What a request gets."""

    asked: Asked
    entry: Entry
    revision: Revision


class Admission:
    """The decision about each download."""

    def __init__(self, catalog: Catalog, access: Access, links: Links) -> None:
        self._catalog, self._access, self._links = catalog, access, links

    async def admit(self, request: web.Request) -> Admitted:
        """What this request gets. Raises Refusal: 400 to 404, 429, 503."""
        if is_link(request):
            return await self._linked(request)
        caller = await self._access.visitor(request.headers.get("Authorization"), request.remote)
        asked = Asked.of(request)
        known, right = await self.sight(caller, asked.namespace, asked.name)
        if asked.number is not None and not asked.uid:
            raise Refusal(400, "The link of a revision names the Image's uid, as in revisions/3?uid=...")
        revision = known.pick(asked.number, asked.uid) if known else None
        found = (known, revision) if known and revision else None
        if not found and caller and (right or await self._access.allowed(caller, "get", asked.namespace, asked.name)):
            found = await self._catalog.find(asked.namespace, asked.name, asked.number, asked.uid)
        if not found:
            raise Refusal(404, NOT_FOUND)
        entry = found[0]
        if entry.deactivated and not (caller and await self._access.administers(caller, asked.namespace, asked.name)):
            raise Refusal(403, DEACTIVATED)
        return Admitted(asked, *found)

    async def sight(self, caller: Caller | None, namespace: str, name: str) -> tuple[Entry | None, bool]:
        """What the watch knows of an image that the caller may see, and whether by a right in its namespace.

        Who has the right may see that there is none. Raises Refusal: 401, 404, 429, 503.
        """
        known = self._catalog.known(namespace, name)
        if known and (known.visibility == "public" or (caller and known.visibility == "community")):
            return known, False
        if not caller:
            raise self._access.unknown() if self._catalog.complete else incomplete()
        if await self._access.allowed(caller, "get", namespace, name):
            return self._catalog.known(namespace, name), True
        known = self._catalog.known(namespace, name)
        members, sharing = known.members if known else (), self._catalog.sharing
        if await self._access.belongs(caller, (namespace, name), members, sharing.others(members), sharing.version):
            return known, False
        raise Refusal(404, NOT_FOUND) if self._catalog.complete else incomplete()

    async def right(self, request: web.Request, namespace: str, name: str) -> None:
        """Return if the caller may download the image by a right in its namespace: who only sees it may not pass it on.

        Raises Refusal: 401, 403, 404, 429, 503.
        """
        caller = await self._access.caller(request.headers.get("Authorization"), request.remote)
        if not await self._access.allowed(caller, "get", namespace, name):
            await self.sight(caller, namespace, name)
            raise Refusal(403, f"This takes the permission to get images/data in the namespace {namespace}.")

    async def active(
        self, namespace: str, name: str, number: int | None, uid: str | None, *, lost: Refusal | None = None
    ) -> tuple[Entry, Revision]:
        """A revision for those who may see it, unless the image is deactivated. Raises Refusal: `lost`, 403, 503."""
        found = await self._catalog.find(namespace, name, number, uid)
        if not found:
            raise lost or Refusal(404, NOT_FOUND)
        if found[0].deactivated:
            raise Refusal(403, DEACTIVATED)
        return found

    async def _linked(self, request: web.Request) -> Admitted:
        asked = Asked.of(request)
        await self._links.check(request, asked, time.time())
        lost = Refusal(403, LOST)
        return Admitted(asked, *await self.active(asked.namespace, asked.name, asked.number, asked.uid, lost=lost))
