"""The OpenAPI document: it is what the routes are. What they answer is compared with it in tests/operator."""

import json
from typing import Any

import pytest
import schemathesis

from glimpse.gateway import openapi
from glimpse.gateway.item import FIELDS
from glimpse.gateway.operations import SAID
from servers.shelf import Shelf, ask

PARTS = {"namespace": "team-a", "name": "debian", "file": "1", "upload": "a"}


@pytest.fixture
def document(gateway: str) -> dict[str, Any]:
    """As it is served, to a caller without a token."""
    answer = ask(gateway + "/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_it_is_valid(document: dict[str, Any], gateway: str) -> None:
    """It is OpenAPI 3.1, by the specification's own schema, and says where it is served."""
    assert document["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(document).validate()
    assert document["servers"] == [{"url": gateway}]


def test_each_route_is_in_it_and_each_path_is_a_route(document: dict[str, Any], gateway: str) -> None:
    """The gateway itself says which methods each of the paths has: those of the document. No description is left."""
    for path, operations in document["paths"].items():
        answer = ask(gateway + path.format(**PARTS), method="TRACE")
        assert answer.status == 405, path
        allowed = {method.strip().lower() for method in answer.headers["Allow"].split(",")}
        assert allowed == set(operations), path
    named = {
        (method.upper(), path)
        for path, each in document["paths"].items()
        for method in each
        if method != "head" or "get" not in each  # which brings it
    }
    assert named == set(SAID)


def test_parts_of_a_path_are_as_the_router_has_them(document: dict[str, Any]) -> None:
    """Each part is a parameter, with the pattern outside of which there is nothing."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            parts = [each for each in operation["parameters"] if each["in"] == "path"]
            assert [f"{{{each['name']}}}" for each in parts] == [part for part in path.split("/") if "{" in part]
            assert all(each["schema"]["pattern"][0] == "^" for each in parts)


def test_the_members_of_an_image_are_those_of_the_list(
    document: dict[str, Any], gateway: str, shelf: Shelf, namespace: str, token: str
) -> None:
    """All that the list can show is described, and nothing else; what it shows of an image is of that form."""
    image = document["components"]["schemas"]["ListedImage"]
    assert set(image["properties"]) == set(FIELDS)
    shelf.image(namespace, b"bytes", store=shelf.store(), spec={"minimum": {"diskGiB": 1}, "tags": ["lts"]})
    page = ask(f"{gateway}/v1/images?namespace={namespace}", token=token)
    (shown,) = json.loads(page.body)["images"]
    assert set(shown) <= set(image["properties"])


def test_a_route_without_a_description_is_an_error() -> None:
    """Nobody can add a route and forget the document."""
    from aiohttp import web

    app = web.Application()

    async def serve(_request: web.Request) -> web.Response:
        raise NotImplementedError

    app.add_routes([web.get("/v1/forgotten", serve)])
    with pytest.raises(KeyError, match="forgotten"):
        openapi.document(app.router, "http://gateway")
