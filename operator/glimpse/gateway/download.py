"""Downloads: the bytes of an image and their checksum files, as HTTP wants them (RFC 9110), from the best copy.

What was promised in the headers is sent, or the connection is cut: a client can always tell a broken download from a
whole one.
"""

import logging
from contextlib import aclosing
from email.utils import format_datetime
from http import HTTPStatus
from typing import Final

from aiohttp import web

from glimpse.gateway.admission import Admission
from glimpse.gateway.catalog import Catalog, Entry, Revision
from glimpse.gateway.copies import Copy, Threads, Wanted
from glimpse.gateway.digests import said
from glimpse.gateway.meters import Meters
from glimpse.gateway.parts import Body, Rest, body
from glimpse.gateway.paths import CHECKSUMS, REVISION, SERVED, Asked
from glimpse.gateway.ranges import Span, Unsatisfiable, parse_ranges, precondition, range_applies
from glimpse.gateway.redirect import Redirects
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal
from glimpse.problems import DataLost, NotFound, Problem
from glimpse.storeref import told
from glimpse.stores import Store

log: Final = logging.getLogger(__name__)

MAX_AGE: Final = 86_400
"""Seconds that a cache may keep a revision without asking; its bytes never change, but a caller's rights may."""


class Downloads:
    """The handlers of all download links."""

    def __init__(
        self, catalog: Catalog, admission: Admission, threads: Threads, meters: Meters, redirects: Redirects
    ) -> None:
        self._catalog, self._admission, self._threads, self._meters = catalog, admission, threads, meters
        self._redirects = redirects

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD of the served revision and of each one, with their checksum files."""
        return [web.get(SERVED, self._serve), web.get(REVISION, self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked, entry, revision = await self._admission.admit(request)
        if asked.checksum:
            return _checksum(revision, asked, asked.checksum)
        return await self._image(request, asked, entry, revision)

    async def _image(self, request: web.Request, asked: Asked, entry: Entry, revision: Revision) -> web.StreamResponse:
        headers = _cached(revision, asked)
        outcome = precondition(lambda name: _joined(request, name), headers["ETag"], revision.stored_at)
        if outcome is HTTPStatus.NOT_MODIFIED:
            return web.Response(status=outcome, headers=headers)
        if outcome:
            raise Refusal(outcome, "The image is not, or no longer, the one that your precondition names.")
        file = _file(revision, asked)
        if elsewhere := await self._redirects.find(request, entry, revision, file):
            return elsewhere
        content = body(_spans(request, headers["ETag"], entry, revision), revision.size)
        headers |= {"Content-Disposition": f'attachment; filename="{file}"', "Accept-Ranges": "bytes"}
        headers |= content.headers
        headers |= _digests(request, revision, content)
        response = web.StreamResponse(status=content.status, headers=headers)
        response.content_length = content.length
        if not await self._send(request, response, entry, revision, content):
            if not await self._catalog.find(asked.namespace, asked.name, asked.number, entry.uid):
                raise Refusal(404, NOT_FOUND)
            raise Refusal(503, "No store can give the bytes of this image at the moment.", retry_after=LATER)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, entry: Entry, revision: Revision, content: Body
    ) -> bool:
        """Send from the first copy that can be opened; if it breaks, the rest from the next, at the same byte.

        False if there is none. If none can go on, the connection is cut: the client must see that something is missing.
        """
        wanted = Wanted(entry.key(revision), revision.size, revision.digest)
        rest = Rest(content.pieces)
        async with aclosing(self._catalog.places.copies(revision.stores)) as copies:
            async for found in copies:
                if not rest:
                    break
                store = _told(found, entry, revision)
                try:
                    async with self._threads.open(store, wanted, rest.span) as copy:
                        if not response.prepared:
                            await response.prepare(request)
                        if request.method == "HEAD":
                            return True
                        await self._forward(request, response, copy, rest, store.name)
                        return True
                except NotFound:
                    log.info("store %s does not hold %s", store.name, wanted.key)
                except Problem as problem:
                    self._catalog.places.renew(store.name)  # its credentials may have been changed
                    log.warning("%s cannot be read: %s: %s", wanted.key, problem.reason, problem.message)
                    if rest.sent and store is not found and isinstance(problem, DataLost):
                        break  # others write there, and may have done so before what was sent already
                except OSError as error:
                    log.info("the download of %s broke off: %r", wanted.key, error)
                    break
        if rest and response.prepared:
            _cut(request, response)
        return response.prepared

    async def _forward(
        self, request: web.Request, response: web.StreamResponse, copy: Copy, rest: Rest, store: str
    ) -> None:
        """Send what is left from one copy, as far as it goes. Raises what `Copy.send` does."""
        meter = self._meters.bytes.labels(store)

        def count(more: int) -> None:
            rest.count(more)
            meter.inc(more)

        while rest:
            if head := rest.head():
                await response.write(head)
            await copy.send(request, response, rest.span, count)
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


def _file(revision: Revision, asked: Asked) -> str:
    """The name to save an image under."""
    suffix = f".{revision.disk_format}"
    return asked.name.removesuffix(suffix) + suffix


def _digests(request: web.Request, revision: Revision, content: Body) -> dict[str, str]:
    """Content-Digest speaks of what this very answer carries, so HEAD has none (RFC 9530, appendix B.2)."""
    found = {"Repr-Digest": said(revision.hex, _joined(request, "Want-Repr-Digest"))}
    if content.whole and request.method == "GET":
        found["Content-Digest"] = said(revision.hex, _joined(request, "Want-Content-Digest"))
    return {name: value for name, value in found.items() if value}


def _cached(revision: Revision, asked: Asked) -> dict[str, str]:
    """What a cache wants to know. Behind the link of a revision are the same bytes for ever."""
    fixed = asked.number is not None
    return {
        "ETag": f'"{revision.digest}"',
        "Last-Modified": format_datetime(revision.stored_at, usegmt=True),
        "Cache-Control": f"private, max-age={MAX_AGE}, immutable" if fixed else "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }


def _checksum(revision: Revision, asked: Asked, algorithm: str) -> web.Response:
    """One line, as sha256sum writes it, with the name under which the link is saved: its last part."""
    digest = revision.hex(algorithm)
    if digest is None:
        known = ", ".join(a for a in CHECKSUMS if revision.hex(a)) or "none of these"
        raise Refusal(404, f"The {algorithm} digest of this revision was not computed; there is: {known}.")
    headers = _cached(revision, asked) | {"ETag": f'"{algorithm}:{digest}:line"'}
    return web.Response(text=f"{digest}  {asked.file}\n", headers=headers)


def _spans(request: web.Request, etag: str, entry: Entry, revision: Revision) -> tuple[Span, ...]:
    """The parts that are asked for; none for the whole. Raises Refusal 416."""
    value = _joined(request, "Range")
    dated = revision.stored_at if entry.dated(revision) else None
    if request.method != "GET" or value is None or not range_applies(request.headers.get("If-Range"), etag, dated):
        return ()
    try:
        return parse_ranges(value, revision.size)
    except Unsatisfiable:
        size = {"Content-Range": f"bytes */{revision.size}"}
        raise Refusal(416, f"The image has {revision.size} bytes, and none in this range.", size) from None


def _joined(request: web.Request, name: str) -> str | None:
    lines = request.headers.getall(name, [])
    return ", ".join(lines) if lines else None
