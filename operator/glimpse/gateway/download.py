"""Downloads: the links of images and of their checksum files, and what the answers say, as HTTP wants it (RFC 9110).

The headers are all decided before a store is asked; what they promise, `sending` keeps.
"""

from collections.abc import Mapping
from email.utils import format_datetime
from http import HTTPStatus
from typing import Final

from aiohttp import web

from glimpse.gateway.admission import Admission
from glimpse.gateway.catalog import Catalog, Entry, Revision
from glimpse.gateway.digests import said
from glimpse.gateway.parts import Body, body
from glimpse.gateway.paths import CHECKSUMS, REVISION, SERVED, Asked
from glimpse.gateway.ranges import Span, Unsatisfiable, parse_ranges, precondition, range_applies
from glimpse.gateway.reading import Reading
from glimpse.gateway.redirect import Redirects, wish
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal
from glimpse.gateway.sending import Sending

MAX_AGE: Final = 86_400
"""Seconds that a cache may keep a revision without asking; its bytes never change, but a caller's rights may."""


class Downloads:
    """The handlers of all download links."""

    def __init__(
        self, catalog: Catalog, admission: Admission, redirects: Redirects, sending: Sending, reading: Reading
    ) -> None:
        self._catalog, self._admission, self._redirects, self._sending = catalog, admission, redirects, sending
        self._reading = reading

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD of the served revision and of each one, with their checksum files."""
        return [web.get(SERVED, self._serve), web.get(REVISION, self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked, entry, revision = await self._admission.admit(request)
        wish(request)  # also where nobody is led on: what is mistyped would seem to work
        if asked.checksum:
            return _checksum(request, revision, asked, asked.checksum)
        return await self._image(request, asked, entry, revision)

    async def _image(self, request: web.Request, asked: Asked, entry: Entry, revision: Revision) -> web.StreamResponse:
        headers = _cached(revision, asked)
        if unchanged := _unchanged(request, headers, revision):
            return unchanged
        file = _file(revision, asked)
        if elsewhere := await self._redirects.find(request, entry, revision, file):
            return elsewhere
        content = body(_spans(request, headers["ETag"], entry, revision), revision.size)
        headers |= {"Content-Disposition": f'attachment; filename="{file}"', "Accept-Ranges": "bytes"}
        headers |= content.headers
        headers |= _digests(request, revision, content)
        response = web.StreamResponse(status=content.status, headers=headers)
        response.content_length = content.length
        with self._reading.of(entry.key(revision)):
            sent = await self._sending.send(request, response, entry, revision, content)
        if not sent:
            if not await self._catalog.find(asked.namespace, asked.name, asked.number, entry.uid):
                raise Refusal(404, NOT_FOUND)
            raise Refusal(503, "No store can give the bytes of this image at the moment.", retry_after=LATER)
        return response


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


def _unchanged(request: web.Request, headers: Mapping[str, str], revision: Revision) -> web.Response | None:
    """The answer to one who has it already; `headers` are those of what he asks for. Raises Refusal 412."""
    outcome = precondition(lambda name: _joined(request, name), headers["ETag"], revision.stored_at)
    if outcome is HTTPStatus.NOT_MODIFIED:
        return web.Response(status=outcome, headers=headers)
    if outcome:
        raise Refusal(outcome, "The image is not, or no longer, the one that your precondition names.")
    return None


def _checksum(request: web.Request, revision: Revision, asked: Asked, algorithm: str) -> web.Response:
    """One line, as sha256sum writes it, with the name under which the link is saved: its last part."""
    digest = revision.hex(algorithm)
    if digest is None:
        known = ", ".join(a for a in CHECKSUMS if revision.hex(a)) or "none of these"
        raise Refusal(404, f"The {algorithm} digest of this revision was not computed; there is: {known}.")
    headers = _cached(revision, asked) | {"ETag": f'"{algorithm}:{digest}:line"'}
    if unchanged := _unchanged(request, headers, revision):
        return unchanged
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
