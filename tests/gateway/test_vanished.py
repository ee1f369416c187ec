"""Clients that vanish or stop: by a reset, an end or silence, at any moment, nothing stays open or busy for them."""

import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import trustme
from tests.gateway.test_redirect import Far, radosgw

from glimpse.gateway.copies import THREADS
from glimpse.stores.s3.client import _CONNECTIONS
from glimpse.testing.bodies import noise
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Shelf, Shown, ask

__all__ = ["radosgw"]

DATA = noise(12 << 20)
"""More than the sockets' buffers hold."""
HALF = THREADS // 2 + 1
"""If so many kept a thread of a store, and as many again, none would be left."""

How = Literal["reset", "end", "silence"]
When = Literal["head", "answer", "body"]
MOMENTS: tuple[When, ...] = ("head", "answer", "body") * HALF


class Road(NamedTuple):
    """A gateway whose bytes take one of the roads that there are."""

    gateway: Glimpse
    ca: Path | None
    pulled: bool
    """From a server."""
    idle: int
    """Descriptors that are open when nobody has come yet."""

    def descriptors(self) -> int:
        """Files and sockets that are open."""
        return sum(1 for _ in Path(f"/proc/{self.gateway.processes['gateway'].pid}/fd").iterdir())

    def released(self) -> bool:
        """Whether nothing is open but for later: what the client library of a store keeps, and a few."""
        return self.descriptors() <= self.idle + 5 + (_CONNECTIONS if self.pulled else 0)


class Scene(NamedTuple):
    """A gateway, and an image on it."""

    road: Road
    image: Shown
    token: str

    def get(self, headers: dict[str, str] | None = None, path: str | None = None) -> bytes:
        """What an honest client gets."""
        url = self.road.gateway.installation.gateway_url + (path or self.image.path)
        return ask(url, token=self.token, headers=headers, ca=self.road.ca).body

    def meter(self, name: str) -> int:
        """A number of the gateway's own."""
        form = rf"^glimpse_gateway_{name}(?:{{.*}})? ([0-9.]+)$"
        found = re.findall(form, self.get(path="/metrics").decode(), re.MULTILINE)
        assert found
        return int(sum(map(float, found)))

    def quiet(self) -> bool:
        """Whether no request and no connection is left but the one that asks."""
        return (self.meter("active_requests"), self.meter("connections")) == (1, 1)


def gone(scene: Scene, how: How, when: When) -> socket.socket:
    """A client that vanishes in this way at that moment; its socket, still open if that was by silence."""
    port = int(scene.road.gateway.installation.gateway_url.rpartition(":")[2])
    head = f"GET {scene.image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {scene.token}\r\n\r\n".encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    if scene.road.ca:
        context = ssl.create_default_context(cafile=scene.road.ca)
        connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
    connection.sendall(head if when != "head" else head[: len(head) // 2])
    left = 100_000 if when == "body" else 0
    while left > 0:
        left -= len(connection.recv(left))
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how != "silence":
        connection.close()
    return connection


@pytest.fixture(scope="module", params=["sendfile", "pulled", "limited", "tls"])
def road(request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """A gateway for each road of the bytes: from a file by the kernel, or encrypted; from a server; in turns."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {"GLIMPSE_GATEWAY_IDLE": "5", "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0"}
    ca = None
    if request.param == "limited":
        settings["GLIMPSE_GATEWAY_BANDWIDTH"] = str(1 << 20)
    if request.param == "tls":
        authority, ca = trustme.CA(), folder / "ca.pem"
        pair = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(ca))
        pair.private_key_pem.write_to_path(str(folder / "key.pem"))
        pair.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        settings |= {
            "GLIMPSE_GATEWAY_TLS_CERTIFICATE": str(folder / "cert.pem"),
            "GLIMPSE_GATEWAY_TLS_KEY": str(folder / "key.pem"),
        }
    server = Glimpse(folder, cluster=cluster, settings=settings, ca=ca)
    server.launch("gateway")
    try:
        server.await_ready("gateway")
        road = Road(server, ca, request.param == "pulled", 0)
        yield road._replace(idle=road.descriptors())
    finally:
        server.stop()


@pytest.fixture
def scene(road: Road, shelf: Shelf, namespace: str, token: str, request: pytest.FixtureRequest) -> Scene:
    """With an image of the test's own."""
    if road.pulled:
        far: Far = request.getfixturevalue("radosgw")
        store = far.store(shelf, namespace)
    else:
        store = shelf.store()
    return Scene(road, shelf.image(namespace, DATA, store=store), token)


@pytest.mark.parametrize("how", ["reset", "end", "silence"])
def test_vanished(scene: Scene, how: How) -> None:
    """Whoever vanishes, however and whenever, leaves no request, connection, descriptor or thread behind."""
    assert scene.get({"Range": "bytes=5-9"}) == DATA[5:10]
    with contextlib.ExitStack() as stack:
        for when in MOMENTS:
            stack.enter_context(gone(scene, how, when))
        # others are served meanwhile
        assert scene.get({"Range": "bytes=7-8"}) == DATA[7:9]
        wait_until("nothing to be left of them", scene.quiet, timeout=60)
        wait_until("all to be closed", scene.road.released, timeout=60)
    assert scene.get({"Range": f"bytes=0-{(1 << 20) - 1}"}) == DATA[: 1 << 20]
    assert "Traceback" not in scene.road.gateway.processes["gateway"].log.read_text()
