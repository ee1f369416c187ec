"""The list of images, `GET /v1/images`: a page of what the caller may see, out of the index.

Nothing is asked of the API server for it but the caller's rights, which are kept for a minute; the JSON lies ready.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from glimpse.gateway.access import Access, Caller
from glimpse.gateway.index import SORTS, Index
from glimpse.gateway.item import Item, encode
from glimpse.gateway.query import CONTROLS, PAGING, Query
from glimpse.gateway.refusals import Refusal, incomplete
from glimpse.gateway.sight import STRANGER, Sight, look

log: Final = logging.getLogger(__name__)

PATH: Final = "/v1/images"
WEIGHT: Final = 4 << 20
"""Bytes of a page; one image may have 150 KiB."""
SMALL: Final = 128 << 10
"""Bytes of images in a page that is made at once; a larger one is made in pieces ..."""
PIECE: Final = 64 << 10
"""... of so many bytes."""
HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


async def sight(access: Access, caller: Caller | None, query: Query) -> Sight:
    """What this caller sees; None: one without a token, where that is allowed.

    Raises Refusal 403 if he speaks for a namespace that he does not belong to; 401, 429, 503.
    """
    if caller is None:
        if query.acting:
            raise access.unknown()
        return STRANGER
    seen = await look(access, caller, query.named)
    for name in sorted(query.acting):
        if not seen.owns(name):
            raise Refusal(
                403, f"You may not speak for namespace {name}: that takes the right to get images/data there."
            )
    return seen


def complete(index: Index) -> None:
    """Raise Refusal 503 while the index does not know all images as they are."""
    if not index.complete:
        raise incomplete()


class Listing:
    """The handler of the list."""

    def __init__(self, index: Index, access: Access) -> None:
        self._index, self._access = index, access

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD of the list."""
        return [web.get(PATH, self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        caller = await self._access.visitor(request.headers.get("Authorization"), request.remote)
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
        end, headers = b"]}\n", {**HEADERS, "Content-Type": "application/json"}
        if more:
            cursor = query.cursor((getattr(items[-1], SORTS[sort]), items[-1].uid))
            link = f"{PATH}?{urlencode((*query.pairs, ('cursor', cursor)), errors='replace')}"
            end = b'],"next":' + encode(link) + b"}\n"
            headers["Link"] = f'<{link}>; rel="next"'
        if sum(len(each.json) for each in items) <= SMALL:
            return web.Response(body=b"".join(_body(items, query, end)), headers=headers)
        return await _send(request, lambda: _body(items, query, end), headers)


def _body(items: Sequence[Item], query: Query, end: bytes) -> Iterator[bytes]:
    yield b'{"images":['
    for number, each in enumerate(items):
        yield (b"," if number else b"") + each.encoded(query.fields)
    yield end


async def _send(
    request: web.Request, body: Callable[[], Iterator[bytes]], headers: dict[str, str]
) -> web.StreamResponse:
    """Answer in pieces, each made when the one before is taken: a slow client holds no page, whose images we have."""
    response = web.StreamResponse(headers=headers)
    response.content_length = sum(map(len, body()))
    try:
        await response.prepare(request)
        for piece in _pieces(body()) if request.method == "GET" else ():
            await response.write(piece)
    except OSError as error:
        log.info("%s has not taken a page of the list: %r", request.remote, error)
        response.force_close()
    return response


def _pieces(parts: Iterable[bytes]) -> Iterator[bytearray]:
    piece = bytearray()
    for part in parts:
        rest = memoryview(part)
        while rest:
            room = PIECE - len(piece)
            piece += rest[:room]
            rest = rest[room:]
            if len(piece) == PIECE:
                yield piece
                piece = bytearray()
    yield piece
