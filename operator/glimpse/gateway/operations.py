"""Operations: what can be asked of the gateway, in words, for its OpenAPI document.

One table beside the handlers and not in them, so that it can be read as a whole. Filters and limits are taken from what
reads them.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from glimpse.gateway.index import SORTS
from glimpse.gateway.item import FIELDS
from glimpse.gateway.query import CONTROLS, FILTERS, LIMIT, MOST, NAMESPACES

Json = dict[str, Any]

PATH: Final = "/openapi.json"
_LIST: Final = "/v1/images"
_SERVED: Final = "/v1/namespaces/{namespace}/images/{file}"
_REVISION: Final = "/v1/namespaces/{namespace}/images/{name}/revisions/{file}"
_LINKS: Final = "/v1/namespaces/{namespace}/images/{name}/links"
_UPLOADS: Final = "/v1/namespaces/{namespace}/images/{name}/uploads"
_UPLOAD: Final = _UPLOADS + "/{upload}"
_ALL_UPLOADS: Final = "/v1/uploads"
_TOKEN: Final[tuple[Json, ...]] = ({"bearer": []}, {"basic": []})
_LINK: Final[tuple[Json, ...]] = ({"link": []},)


class Said(NamedTuple):
    """One operation."""

    summary: str
    answers: Mapping[int, Json]
    """Good answers, by status."""
    refused: tuple[int, ...] = ()
    parameters: tuple[Json, ...] = ()
    security: tuple[Json, ...] = _TOKEN
    body: Json | None = None
    words: Mapping[str, str] = {}
    """About the parts of the path."""
    public: bool = False
    """Public images need no token, where the gateway is set so."""


def _header(name: str, words: str, *, required: bool = False, **schema: Any) -> Json:
    found = {"name": name, "in": "header", "description": words, "schema": {"type": "string", **schema}}
    return found | ({"required": True} if required else {})


def _query(name: str, words: str, schema: Mapping[str, Any], **more: Any) -> Json:
    return {"name": name, "in": "query", "description": words, "schema": dict(schema), **more}


def _several(name: str, words: str, each: Mapping[str, Any], most: int) -> Json:
    return _query(name, words, {"type": "array", "items": dict(each), "minItems": 1, "maxItems": most})


def answer(
    words: str, kind: str = "", schema: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> Json:
    """An answer with a body of this type, and these headers."""
    content = {kind: {"schema": dict(schema or {"type": "string"})}} if kind else {}
    named = {name: {"description": text, "schema": {"type": "string"}} for name, text in (headers or {}).items()}
    return {"description": words} | ({"content": content} if content else {}) | ({"headers": named} if named else {})


def ref(name: str) -> Json:
    """A model."""
    return {"$ref": f"#/components/schemas/{name}"}


_CONDITIONS: Final = (
    _header("If-Match", "Only if the ETag is one of these."),
    _header("If-None-Match", "Only if the ETag is none of these."),
)
_WISHES: Final = (
    _header("If-Modified-Since", "Only if it was stored later."),
    _header("If-Unmodified-Since", "Only if it was not stored later."),
    _header("Want-Repr-Digest", "Digests of the whole that are wanted (RFC 9530)."),
    _header("Want-Content-Digest", "Digests of what is sent that are wanted."),
)
_RANGES: Final = (
    _header("Range", "Ranges of bytes.", examples=["bytes=0-499", "bytes=-500"]),
    _header("If-Range", "The range counts only if this is the ETag or the date; else the whole is sent."),
)
_UID: Final = _query("uid", "The Image's uid, as in `status.artifact.url`.", {"type": "string"})
_REDIRECT: Final = _query(
    "redirect",
    "Whether the answer may lead to the store's own server.",
    {"type": "string", "enum": ["true", "false"]},
)
_BYTES: Final = {
    "ETag": "The digest of the bytes.",
    "Last-Modified": "When they were stored.",
    "Cache-Control": "How long they may be kept.",
}
_FILE: Final = {
    200: answer("The bytes, or the checksum file.", "application/octet-stream", headers=_BYTES),
    206: answer(
        "A part of them.", "application/octet-stream", headers=_BYTES | {"Content-Range": "Which, of how many."}
    ),
    304: answer("They are what the client has.", headers=_BYTES),
    307: answer("The store's own server has them.", headers={"Location": "Where, for a moment."}),
}
_FILE[200]["content"]["text/plain"] = {"schema": {"type": "string"}}
_FILE[206]["content"]["multipart/byteranges"] = {"schema": {"type": "string"}}
_FRESH: Final = {"Cache-Control": "no-store"}
_DENIED: Final = (401, 403, 404, 429, 503)
_FILTERED: Final = (
    *(_several(name, "A filter: docs/catalogue.md.", each.value, 32) for name, each in FILTERS.items()),
    *(
        _several(name, "A namespace that the caller speaks for.", {"type": "string"}, NAMESPACES)
        for name in CONTROLS - {"fields"}
    ),
    _several("fields", "Show these members alone.", {"type": "string", "enum": list(FIELDS)}, len(FIELDS)),
)
_SORT: Final = [sign + name for name in SORTS for sign in ("", "-")]
_PAGES: Final = (
    _query("sort", "The order; with `-` the other way round.", {"type": "string", "enum": _SORT, "default": "name"}),
    _query("limit", "Images of a page at most.", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}),
    _query("cursor", "From `next` of the page before.", {"type": "string"}),
)
_NAMES: Final = {
    "namespace": "The Image's namespace.",
    "name": "The Image's name.",
    "file": "The Image's name; for its checksum file with `.sha256`, `.sha512` or `.md5` after it.",
}
_NUMBER: Final = {**_NAMES, "file": "The revision's number; for its checksum file with `.sha256` and so on after it."}

_PARTS: Final = {**_NAMES, "upload": "The last part of the `Location` that began it."}
_STATE: Final = {
    "Tus-Resumable": "The version that is spoken.",
    "Upload-Offset": "Bytes that are there.",
    "Upload-Expires": "When it is given up, if nothing more comes.",
}
_SPOKEN: Final = _header("Tus-Resumable", "The version that is spoken.", enum=["1.0.0"], required=True)
_MORE: Final = (
    _SPOKEN,
    _header("Upload-Offset", "Bytes that are there.", pattern="^[0-9]{1,18}$"),
    _header("Upload-Checksum", "An algorithm, a space, and base64: of this part."),
)
_PATCHED: Final = (400, 401, 403, 404, 408, 409, 410, 412, 413, 415, 422, 429, 460, 503, 507)
_PART: Final[Json] = {
    "required": True,
    "content": {"application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_TUS: Final = Said(
    "What of tus is spoken",
    {204: answer("This.", headers={"Tus-Version": "The version.", "Tus-Extension": "Its extensions."})},
    security=(),
    words=_PARTS,
)

_BEGUN: Final = Said(
    "Begin an upload in parts (tus 1.0), also with a first part",
    {201: answer("It has begun.", headers=_STATE | {"Location": "Where its parts go."})},
    (400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 429, 460, 503, 507),
    (
        _SPOKEN,
        _header("Upload-Length", "Bytes of the whole.", pattern="^[0-9]{1,18}$", required=True),
        _header("Upload-Metadata", "What the sender says of its file."),
        _header("Upload-Checksum", "An algorithm, a space, and base64: of the first part."),
        _header("Repr-Digest", "What the bytes of the whole must be (RFC 9530)."),
    ),
    body=_PART | {"required": False},
    words=_NAMES,
)
_SAID_WHERE: Final = _header("Upload-Metadata", "`namespace` and `image` in base64, and more.", required=True)

SAID: Final[Mapping[tuple[str, str], Said]] = {
    ("GET", _SERVED): Said(
        "The revision that is served",
        _FILE,
        (400, *_DENIED, 412, 416),
        (_REDIRECT, *_CONDITIONS, *_WISHES, *_RANGES),
        words=_NAMES,
        public=True,
    ),
    ("GET", _REVISION): Said(
        "One revision, for as long as it is kept",
        _FILE,
        (400, *_DENIED, 412, 416),
        (
            _UID,
            *(_query(name, "Of a signed link.", {"type": "string"}) for name in ("expires", "key")),
            _REDIRECT,
            *_CONDITIONS,
            *_WISHES,
            *_RANGES,
        ),
        (*_TOKEN, *_LINK),
        words=_NUMBER,
        public=True,
    ),
    ("PUT", _SERVED): Said(
        "Upload the bytes of a new revision; answered when it is served",
        {
            201: answer(
                "It is served.", "application/json", ref("Uploaded"), {"Location": "Its link.", "ETag": "Its digest."}
            )
        },
        (400, 401, 403, 404, 408, 409, 411, 412, 413, 415, 422, 429, 503, 507),
        (
            *_CONDITIONS,
            _header("Content-Digest", "What the bytes must be (RFC 9530)."),
            _header("Repr-Digest", "The same."),
        ),
        body={"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}},
        words=_NAMES | {"file": "The Image's name."},
    ),
    ("OPTIONS", _UPLOADS): _TUS,
    ("OPTIONS", _UPLOAD): _TUS,
    ("POST", _UPLOADS): _BEGUN,
    ("OPTIONS", _ALL_UPLOADS): _TUS,
    ("POST", _ALL_UPLOADS): _BEGUN._replace(
        summary="The same for clients that know one address for all images",
        parameters=tuple(_SAID_WHERE if each["name"] == _SAID_WHERE["name"] else each for each in _BEGUN.parameters),
    ),
    ("HEAD", _UPLOAD): Said(
        "How far it is",
        {200: answer("So far.", headers=_STATE | {"Upload-Length": "Bytes of the whole."})},
        (401, 403, 404, 409, 410, 412, 429, 503),
        (_SPOKEN,),
        words=_PARTS,
    ),
    ("PATCH", _UPLOAD): Said(
        "The next part; with the last one the image is served",
        {204: answer("It is there.", headers=_STATE)},
        _PATCHED,
        _MORE,
        body=_PART,
        words=_PARTS,
    ),
    ("DELETE", _UPLOAD): Said(
        "End it; nothing of it stays",
        {204: answer("It has ended.")},
        (401, 403, 404, 409, 410, 412, 429, 503),
        (_SPOKEN,),
        words=_PARTS,
    ),
    ("POST", _UPLOAD): Said(
        "PATCH, DELETE or HEAD, for clients that can only POST",
        {200: answer("As HEAD.", headers=_STATE), 204: answer("As the others.", headers=_STATE)},
        (*_PATCHED, 405),
        (_header("X-HTTP-Method-Override", "Which of them.", enum=["PATCH", "DELETE", "HEAD"]), *_MORE),
        body=_PART | {"required": False},
        words=_PARTS,
    ),
    ("POST", _LINKS): Said(
        "A signed link, for clients that cannot send a token",
        {201: answer("The link; as good as a password.", "application/json", ref("Link"), headers=_FRESH)},
        (400, 401, 403, 404, 408, 413, 429, 503),
        body={"required": False, "content": {"application/json": {"schema": ref("Wish")}}},
        words=_NAMES,
    ),
    ("GET", _LIST): Said(
        "A page of the images that the caller may see",
        {200: answer("The page.", "application/json", ref("Page"), headers=_FRESH)},
        (400, 401, 403, 429, 503),
        (*_FILTERED, *_PAGES),
        public=True,
    ),
    ("GET", f"{_LIST}/events"): Said(
        "What changes among them, as server-sent events, without an end",
        {200: answer("Events.", "text/event-stream", headers=_FRESH)},
        (400, 401, 403, 429, 503),
        (*_FILTERED, _header("Last-Event-ID", "Go on after this event.")),
        public=True,
    ),
    ("GET", "/healthz"): Said("Whether it lives", {200: answer("It does.", "text/plain")}, security=()),
    ("GET", "/readyz"): Said("Whether it can serve", {200: answer("It can.", "text/plain")}, (503,), security=()),
    ("GET", "/metrics"): Said("Meters, for Prometheus", {200: answer("All of them.", "text/plain")}, security=()),
    ("GET", PATH): Said("This document", {200: answer("It.", "application/json", {"type": "object"})}, security=()),
}
ANYWHERE: Final = (417, 500, 503)
"""Refusals that any request may get: an expectation that cannot be met, a fault of ours, too many connections."""
HEADERS: Final = {
    401: {"WWW-Authenticate": "How to say who one is."},
    416: {"Content-Range": "How many bytes there are."},
}
