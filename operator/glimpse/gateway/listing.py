"""The list of images, `GET /v1/images`: a page of what the caller may see, out of the index.

Nothing is asked of the API server for it but the caller's rights, which are kept for a minute; the JSON lies ready.
"""

from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from glimpse.gateway.access import Access, Caller
from glimpse.gateway.index import SORTS, Index
from glimpse.gateway.item import encode
from glimpse.gateway.query import CONTROLS, PAGING, Query
from glimpse.gateway.refusals import LATER, Refusal
from glimpse.gateway.sight import Sight, look

PATH: Final = "/v1/images"
WEIGHT: Final = 4 << 20
"""Bytes of a page; one image may have 150 KiB."""
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


async def sight(access: Access, caller: Caller, query: Query) -> Sight:
    """What this caller sees. Raises Refusal 403 if he speaks for a namespace that he does not belong to; 429, 503."""
    seen = await look(access, caller, query.named)
    for name in sorted(query.acting):
        if not seen.owns(name):
            raise Refusal(
                403, f"You may not speak for namespace {name}: that takes the right to get images/data there."
            )
    return seen


def complete(index: Index) -> None:
    """Raise Refusal 503 while the index does not know all images."""
    if not index.synced:
        raise Refusal(503, "The list of images is not complete yet.", retry_after=LATER)


class Listing:
    """The handler of the list."""

    def __init__(self, index: Index, access: Access) -> None:
        self._index, self._access = index, access

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD of the list."""
        return [web.get(PATH, self._serve)]

    async def _serve(self, request: web.Request) -> web.Response:
        caller = await self._access.caller(request.headers.get("Authorization"), request.remote)
        query = Query.read(request.query.items(), CONTROLS | PAGING)
        seen = await sight(self._access, caller, query)
        complete(self._index)
        sort = query.sort.removeprefix("-")
        items, more = await self._index.page(
            query.sieve(seen),
            sort,
            query.after,
            query.limit,
            descending=query.sort != sort,
            pool=query.pool(seen),
            weight=WEIGHT,
        )
        body, headers = [b'{"images":[', b",".join([each.encoded(query.fields) for each in items]), b"]"], {**HEADERS}
        if more:
            cursor = query.cursor((getattr(items[-1], SORTS[sort]), items[-1].uid))
            link = f"{PATH}?{urlencode((*query.pairs, ('cursor', cursor)), errors='replace')}"
            body += [b',"next":', encode(link)]
            headers["Link"] = f'<{link}>; rel="next"'
        return web.Response(body=b"".join((*body, b"}\n")), content_type="application/json", headers=headers)
