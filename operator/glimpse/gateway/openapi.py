"""The OpenAPI document, `GET /openapi.json`: what the gateway can be asked, for programs (OpenAPI 3.1).

Paths, their parameters and filters are taken from the routes and from what reads them, and models from those that are
served, so that the document cannot say anything else; a route that nobody has described is an error when it is made.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Final

from aiohttp import web
from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from glimpse.api.base import Digest, Int64, Model, Time
from glimpse.api.image import Artifact, ImageSpec
from glimpse.gateway.item import FIELDS, encode
from glimpse.gateway.linking import Wish
from glimpse.gateway.operations import ANYWHERE, HEADERS, PATH, SAID, Json, Said, answer, ref
from glimpse.gateway.refusals import PROBLEM, title_of

_GROUP: Final = re.compile(r"\(\?P<(\w+)>([^()]*)\)")

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


# --- the document


def routes(app: web.Application, url: str, *, anonymous: bool) -> list[web.RouteDef]:
    """GET of the document over all routes of this application; `url` is its address for consumers.

    `anonymous`: public images need no token.
    """

    @cache
    def made() -> bytes:
        return encode(document(app.router, url, anonymous=anonymous))

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(body=made(), content_type="application/json", headers={"X-Content-Type-Options": "nosniff"})

    return [web.get(PATH, serve)]


def document(router: web.UrlDispatcher, url: str, *, anonymous: bool = False) -> Json:
    """The document; `anonymous` as in `routes`. Raises KeyError for a route that is not described here."""
    paths: dict[str, Json] = {}
    for method, path, parts in _operations(router):
        said = SAID.get((method, path)) or SAID["GET" if method == "HEAD" else method, path]
        paths.setdefault(path, {})[method.lower()] = _operation(method, said, parts)
        if anonymous and said.public:
            paths[path][method.lower()]["security"].append({})  # which is none
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
    refused = {*said.refused, *ANYWHERE} | ({404} if parts else set())
    answers = dict(said.answers)
    answers |= {status: answer(title_of(status), PROBLEM, ref("Problem"), HEADERS.get(status)) for status in refused}
    if method == "HEAD":  # has no body, and asks for no part
        answers = {
            status: {name: value for name, value in each.items() if name != "content"}
            for status, each in answers.items()
            if status not in (206, 416)
        }
    operation: Json = {
        "summary": said.summary,
        "parameters": [*_path(parts, said.words), *said.parameters],
        "responses": {str(status): answers[status] for status in sorted(answers)},
        "security": list(said.security),
    }
    return operation | ({"requestBody": said.body} if said.body else {})


def _path(parts: Mapping[str, str], words: Mapping[str, str]) -> Iterable[Json]:
    for name, pattern in parts.items():
        schema = {"type": "string", "pattern": f"^{pattern}$"}
        yield {"name": name, "in": "path", "required": True, "description": words[name], "schema": schema}
