"""The OpenAPI document, `GET /openapi.json`: what the gateway can be asked, for programs (OpenAPI 3.1).

Paths, their parameters and filters are taken from the routes and from what reads them, and models from those that are
served, so that the document cannot say anything else; a route that nobody has described is an error when it is made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Final, NamedTuple

from aiohttp import web
from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from glimpse.api.base import Digest, Int64, Model, Time
from glimpse.api.image import Artifact, ImageSpec
from glimpse.gateway.index import SORTS
from glimpse.gateway.item import FIELDS, encode
from glimpse.gateway.linking import Wish
from glimpse.gateway.query import CONTROLS, FILTERS, LIMIT, MOST, NAMESPACES
from glimpse.gateway.refusals import PROBLEM, title_of

Json = dict[str, Any]

PATH: Final = "/openapi.json"
_LIST: Final = "/v1/images"
_SERVED: Final = "/v1/namespaces/{namespace}/images/{file}"
_REVISION: Final = "/v1/namespaces/{namespace}/images/{name}/revisions/{file}"
_LINKS: Final = "/v1/namespaces/{namespace}/images/{name}/links"
_UPLOADS: Final = "/v1/namespaces/{namespace}/images/{name}/uploads"
_UPLOAD: Final = _UPLOADS + "/{upload}"
_GROUP: Final = re.compile(r"\(\?P<(\w+)>([^()]*)\)")
_TOKEN: Final[tuple[Json, ...]] = ({"bearer": []}, {"basic": []})
_LINK: Final[tuple[Json, ...]] = ({"link": []},)
# --- what is served


class Problem(Model):
    """Why a request got nothing (RFC 9457)."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    """For a person: the reason, and where there is one the way out."""


class Link(Model):
    """A signed link."""

    expires_at: Time
    url: str


class Uploaded(Model):
    """The revision that an upload has made."""

    digest: Digest
    """Of the stored bytes."""
    revision: Int64
    size: Int64
    disk_format: str
    url: str
    """Its link."""


class _Shown(Model):
    """An image in the list. What an image does not have is left out, and so is what `fields` does not name."""

    namespace: str | None = None
    name: str | None = None
    uid: str | None = None
    creation_timestamp: Time | None = None
    ready: bool | None = None
    """Whether the condition `Ready` holds."""
    status: str | None = None
    """Its reason."""


class _Page(Model):
    next: str | None = None
    """The link of the next page; absent on the last one."""


def _models() -> Json:
    """All schemas by name."""
    known = {field.alias: field for kind in (ImageSpec, Artifact) for field in kind.model_fields.values()}
    own = {field.alias for field in _Shown.model_fields.values()}
    taken: Any = {name: (known[name].annotation, known[name]) for name in FIELDS if name not in own}
    image = create_model("ListedImage", __base__=_Shown, __doc__=_Shown.__doc__, **taken)
    page = create_model("Page", __base__=_Page, __doc__="Images of the list.", images=(list[image], ...))
    models: list[tuple[type[BaseModel], Any]] = [(Wish, "validation")]
    models += [(each, "serialization") for each in (Problem, Link, Uploaded, page)]
    found: Json = models_json_schema(models, ref_template="#/components/schemas/{model}")[1]["$defs"]
    found = {name: _plain(schema) for name, schema in found.items()}
    found["ListedImage"].pop("required", None)
    return found


def _plain(schema: Json) -> Json:
    """The schema without what only Kubernetes understands, and without null: what is not there is left out."""
    left = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    out = {key: each for key, each in schema.items() if key not in ("anyOf", "title") and not key.startswith("x-")}
    if out.get("default", ...) is None:
        del out["default"]
    out |= left[0] if len(left) == 1 else {"anyOf": left} if left else {}
    out |= {key: _plain(out[key]) for key in ("items", "additionalProperties") if isinstance(out.get(key), dict)}
    if "properties" in out:
        out["properties"] = {name: _plain(each) for name, each in out["properties"].items()}
    return out


# --- words


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


def _header(name: str, words: str, *, required: bool = False, **schema: Any) -> Json:
    found = {"name": name, "in": "header", "description": words, "schema": {"type": "string", **schema}}
    return found | ({"required": True} if required else {})


def _query(name: str, words: str, schema: Mapping[str, Any], **more: Any) -> Json:
    return {"name": name, "in": "query", "description": words, "schema": dict(schema), **more}


def _several(name: str, words: str, each: Mapping[str, Any], most: int) -> Json:
    return _query(name, words, {"type": "array", "items": dict(each), "minItems": 1, "maxItems": most})


def _answer(
    words: str, kind: str = "", schema: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> Json:
    content = {kind: {"schema": dict(schema or {"type": "string"})}} if kind else {}
    named = {name: {"description": text, "schema": {"type": "string"}} for name, text in (headers or {}).items()}
    return {"description": words} | ({"content": content} if content else {}) | ({"headers": named} if named else {})


def _ref(name: str) -> Json:
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
_BYTES: Final = {
    "ETag": "The digest of the bytes.",
    "Last-Modified": "When they were stored.",
    "Cache-Control": "How long they may be kept.",
}
_FILE: Final = {
    200: _answer("The bytes, or the checksum file.", "application/octet-stream", headers=_BYTES),
    206: _answer(
        "A part of them.", "application/octet-stream", headers=_BYTES | {"Content-Range": "Which, of how many."}
    ),
    304: _answer("They are what the client has.", headers=_BYTES),
    307: _answer("The store's own server has them.", headers={"Location": "Where, for a moment."}),
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
_PATCHED: Final = (400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 429, 460, 503, 507)
_PART: Final[Json] = {
    "required": True,
    "content": {"application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_TUS: Final = Said(
    "What of tus is spoken",
    {204: _answer("This.", headers={"Tus-Version": "The version.", "Tus-Extension": "Its extensions."})},
    security=(),
    words=_PARTS,
)

_SAID: Final[Mapping[tuple[str, str], Said]] = {
    ("GET", _SERVED): Said(
        "The revision that is served",
        _FILE,
        (*_DENIED, 412, 416),
        (*_CONDITIONS, *_WISHES, *_RANGES),
        words=_NAMES,
    ),
    ("GET", _REVISION): Said(
        "One revision, for as long as it is kept",
        _FILE,
        (400, *_DENIED, 412, 416),
        (
            _UID,
            *(_query(name, "Of a signed link.", {"type": "string"}) for name in ("expires", "key")),
            *_CONDITIONS,
            *_WISHES,
            *_RANGES,
        ),
        (*_TOKEN, *_LINK),
        words=_NUMBER,
    ),
    ("PUT", _SERVED): Said(
        "Upload the bytes of a new revision; answered when it is served",
        {
            201: _answer(
                "It is served.", "application/json", _ref("Uploaded"), {"Location": "Its link.", "ETag": "Its digest."}
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
    ("POST", _UPLOADS): Said(
        "Begin an upload in parts (tus 1.0), also with a first part",
        {201: _answer("It has begun.", headers=_STATE | {"Location": "Where its parts go."})},
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
    ),
    ("HEAD", _UPLOAD): Said(
        "How far it is",
        {200: _answer("So far.", headers=_STATE | {"Upload-Length": "Bytes of the whole."})},
        (401, 403, 404, 409, 412, 429, 503),
        (_SPOKEN,),
        words=_PARTS,
    ),
    ("PATCH", _UPLOAD): Said(
        "The next part; with the last one the image is served",
        {204: _answer("It is there.", headers=_STATE)},
        _PATCHED,
        _MORE,
        body=_PART,
        words=_PARTS,
    ),
    ("DELETE", _UPLOAD): Said(
        "End it; nothing of it stays",
        {204: _answer("It has ended.")},
        (401, 403, 404, 409, 412, 429, 503),
        (_SPOKEN,),
        words=_PARTS,
    ),
    ("POST", _UPLOAD): Said(
        "PATCH, DELETE or HEAD, for clients that can only POST",
        {200: _answer("As HEAD.", headers=_STATE), 204: _answer("As the others.", headers=_STATE)},
        (*_PATCHED, 405),
        (_header("X-HTTP-Method-Override", "Which of them.", enum=["PATCH", "DELETE", "HEAD"]), *_MORE),
        body=_PART | {"required": False},
        words=_PARTS,
    ),
    ("POST", _LINKS): Said(
        "A signed link, for clients that cannot send a token",
        {201: _answer("The link; as good as a password.", "application/json", _ref("Link"), headers=_FRESH)},
        (400, 401, 403, 404, 408, 413, 429, 503),
        body={"required": False, "content": {"application/json": {"schema": _ref("Wish")}}},
        words=_NAMES,
    ),
    ("GET", _LIST): Said(
        "A page of the images that the caller may see",
        {200: _answer("The page.", "application/json", _ref("Page"), headers=_FRESH)},
        (400, 401, 403, 429, 503),
        (*_FILTERED, *_PAGES),
    ),
    ("GET", f"{_LIST}/events"): Said(
        "What changes among them, as server-sent events, without an end",
        {200: _answer("Events.", "text/event-stream", headers=_FRESH)},
        (400, 401, 403, 429, 503),
        (*_FILTERED, _header("Last-Event-ID", "Go on after this event.")),
    ),
    ("GET", "/healthz"): Said("Whether it lives", {200: _answer("It does.", "text/plain")}, security=()),
    ("GET", "/readyz"): Said("Whether it can serve", {200: _answer("It can.", "text/plain")}, (503,), security=()),
    ("GET", "/metrics"): Said("Meters, for Prometheus", {200: _answer("All of them.", "text/plain")}, security=()),
    ("GET", PATH): Said("This document", {200: _answer("It.", "application/json", {"type": "object"})}, security=()),
}
_ANYWHERE: Final = (417, 500, 503)
"""Refusals that any request may get: an expectation that cannot be met, a fault of ours, too many connections."""
_HEADERS: Final = {
    401: {"WWW-Authenticate": "How to say who one is."},
    416: {"Content-Range": "How many bytes there are."},
}


# --- the document


def routes(app: web.Application, url: str) -> list[web.RouteDef]:
    """GET of the document over all routes of this application; `url` is its address for consumers."""

    @cache
    def made() -> bytes:
        return encode(document(app.router, url))

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(body=made(), content_type="application/json", headers={"X-Content-Type-Options": "nosniff"})

    return [web.get(PATH, serve)]


def document(router: web.UrlDispatcher, url: str) -> Json:
    """The document. Raises KeyError for a route that is not described here."""
    paths: dict[str, Json] = {}
    for method, path, parts in _operations(router):
        said = _SAID.get((method, path)) or _SAID["GET" if method == "HEAD" else method, path]
        paths.setdefault(path, {})[method.lower()] = _operation(method, said, parts)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The gateway of Glimpse",
            "version": version("glimpse"),
            "summary": "Bytes of virtual-machine images",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": _models(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A Kubernetes token for our audience."},
                "basic": {"type": "http", "scheme": "basic", "description": "The same as password, with any name."},
                "link": {"type": "apiKey", "in": "query", "name": "signature", "description": "Of a signed link."},
            },
        },
    }


def _operations(router: web.UrlDispatcher) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Method, path, and the patterns of its parts."""
    for resource in router.resources():
        pattern = resource.get_info().get("pattern")
        parts = dict(_GROUP.findall(pattern.pattern)) if pattern else {}
        for route in resource:
            yield route.method, resource.canonical, parts


def _operation(method: str, said: Said, parts: Mapping[str, str]) -> Json:
    answers: dict[str, Json] = {str(status): answer for status, answer in said.answers.items()}
    if method == "HEAD":
        answers = {
            status: {name: each for name, each in answer.items() if name != "content"}
            for status, answer in answers.items()
            if status != "206"
        }
    for status in sorted(
        {*said.refused, *_ANYWHERE, *((404,) if parts else ())} - ({416} if method == "HEAD" else set())
    ):
        kind, schema = ("", None) if method == "HEAD" else (PROBLEM, _ref("Problem"))
        answers[str(status)] = _answer(title_of(status), kind, schema, _HEADERS.get(status))
    operation: Json = {
        "summary": said.summary,
        "parameters": [*_path(parts, said.words), *said.parameters],
        "responses": answers,
        "security": list(said.security),
    }
    return operation | ({"requestBody": said.body} if said.body else {})


def _path(parts: Mapping[str, str], words: Mapping[str, str]) -> Iterable[Json]:
    for name, pattern in parts.items():
        schema = {"type": "string", "pattern": f"^{pattern}$"}
        yield {"name": name, "in": "path", "required": True, "description": words[name], "schema": schema}
