"""A copy that breaks in the middle of a download, and one of another kind that goes on at the byte where it broke."""

import os
from urllib.parse import urlsplit

import pytest
from tests.gateway.line import line
from tests.gateway.test_copies import begun, rest
from tests.gateway.test_meters import count
from tests.gateway.test_redirect import CONTAINER, Far, cloud, radosgw, servers, swift

from glimpse.testing.bodies import noise
from servers import wait_until
from servers.shelf import Content, Shelf, ask
from servers.swift import Cloud

__all__ = ["cloud", "radosgw", "servers", "swift"]  # fixtures

DATA = noise(48 << 20)
PARTS = [(10, (20 << 20) + 4), (30 << 20, (44 << 20) + 9)]
"""First and last byte of two ranges."""
SEVERAL = f"Range: bytes={','.join(f'{first}-{last}' for first, last in PARTS)}\r\n"


def wanted(headers: str) -> list[bytes]:
    """What is asked for."""
    return [DATA[first : last + 1] for first, last in PARTS] if headers else [DATA]


def whole(body: bytes, headers: str) -> None:
    """Assert that all that was asked for is in it."""
    parts = wanted(headers)
    assert body == DATA if parts == [DATA] else all(part in body for part in parts)


def shares(gateway: str, *stores: str) -> list[float]:
    """How many bytes each store has given."""
    return [count(gateway, "sent_bytes_total", store=store) for store in stores]


@pytest.mark.parametrize("headers", ["", SEVERAL], ids=["whole", "ranges"])
@pytest.mark.parametrize("kind", ["radosgw", "swift"])
def test_from_a_server_to_a_file(
    *, gateway: str, shelf: Shelf, namespace: str, token: str, servers: dict[str, Far], kind: str, headers: str
) -> None:
    """When the line to a store's server breaks, the rest comes from a file: nothing twice, nothing missing."""
    far, setting = servers[kind], "endpoint" if kind == "radosgw" else "authUrl"
    direct = str(far.config[setting])
    with line(direct) as way:
        there = direct.replace(urlsplit(direct).netloc, urlsplit(way.url).netloc)
        server, file = far.store(shelf, namespace, publicEndpoint=None, **{setting: there}), shelf.store(weight=1)
        image = shelf.image(namespace, Content(DATA, [file, server]))
        with begun(gateway, image.path, token, headers) as connection:
            wait_until("the first bytes", lambda: min(shares(gateway, server)) > 0, timeout=30)
            way.down()
            whole(rest(connection), headers)
    given = shares(gateway, server, file)
    assert min(given) > 0
    assert sum(given) == sum(len(part) for part in wanted(headers))


@pytest.mark.parametrize("kind", ["radosgw", "swift"])
def test_from_a_file_to_a_server(
    *, gateway: str, shelf: Shelf, namespace: str, token: str, servers: dict[str, Far], kind: str
) -> None:
    """When a file becomes shorter under the reader, the rest comes from a server."""
    server, file = servers[kind].store(shelf, namespace, publicEndpoint=None), shelf.store(weight=500)
    image = shelf.image(namespace, Content(DATA, [file, server]))
    with begun(gateway, image.path, token) as connection:
        os.truncate(shelf.data(file, image.key()), (40 << 20) + 5)
        assert rest(connection) == DATA
    given = shares(gateway, file, server)
    assert min(given) > 0
    assert sum(given) == len(DATA)


@pytest.mark.parametrize("kind", ["radosgw", "swift"])
def test_removed_between_two_ranges(
    *, gateway: str, shelf: Shelf, namespace: str, token: str, servers: dict[str, Far], kind: str
) -> None:
    """Each range is opened by itself: where the object is gone by then, it comes from another copy."""
    server, file = servers[kind].store(shelf, namespace, publicEndpoint=None), shelf.store(weight=1)
    image = shelf.image(namespace, Content(DATA, [file, server]))
    with begun(gateway, image.path, token, SEVERAL) as connection:
        shelf.remove(server, image.key())
        whole(rest(connection), SEVERAL)
    given = shares(gateway, server, file)
    assert min(given) > 0
    assert sum(given) == sum(len(part) for part in wanted(SEVERAL))


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a file"])
def test_registered_bytes_that_were_changed(
    *, gateway: str, shelf: Shelf, namespace: str, token: str, cloud: Cloud, swift: Far, beside: bool
) -> None:
    """A server says only at the first read that other bytes lie there: nothing was promised until then."""
    server, data = swift.store(shelf, namespace, publicEndpoint=None), DATA[: 2 << 20]
    image = shelf.image(namespace, Content(data, [shelf.store(weight=1)] if beside else [], absent=[server]))
    lies = f"/{CONTAINER}/{namespace}/theirs"
    cloud.call("PUT", lies, {}, data)
    shelf.register(server, image, 1, data, "theirs")
    assert ask(gateway + image.path, token=token).body == data
    assert shares(gateway, server) == [len(data)]
    cloud.call("PUT", lies, {}, data[::-1])
    for headers, status, body in ({}, 200, data), ({"Range": "bytes=5-9"}, 206, data[5:10]):
        got = ask(gateway + image.path, token=token, headers=headers)
        if beside:
            assert (got.status, got.body) == (status, body)
        else:
            assert (got.status, got.headers["Retry-After"], got.headers["ETag"]) == (503, "5", None)
            assert got.problem()["detail"] == "No store can give the bytes of this image at the moment."
    assert shares(gateway, server) == [len(data)]
