"""Many clients at once who mean no good: they are contained, others are served, and all that they held comes back."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.gateway.conftest import peak
from tests.gateway.test_door import count
from tests.gateway.test_events import bare
from tests.gateway.test_hostile import connected, descriptors

from glimpse.gateway.app import PROBES
from glimpse.gateway.door import RESERVE
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Shelf, ask

LIMIT = 2000
"""Connections that the gateway lets in."""


@pytest.fixture(scope="module")
def crowded(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """A gateway for these tests; all clients come from one address."""
    settings = {
        "GLIMPSE_GATEWAY_IDLE": "10",
        "GLIMPSE_GATEWAY_CONNECTIONS": str(LIMIT),
        "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0",
    }
    server = Glimpse(tmp_path_factory.mktemp("gateway"), cluster=cluster, settings=settings)
    with server.running("gateway"):
        yield server


class Crowd:
    """Clients in a process of their own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdout
        self.opened = int(process.stdout.readline())

    def end(self) -> int:
        """Go; how many of them the gateway had closed before."""
        return int(self._process.communicate(timeout=120)[0])


@contextmanager
def crowd(url: str, clients: int, line: str = "") -> Iterator[Crowd]:
    """So many, who say nothing, or begin so and never come to an end."""
    parts = urlsplit(url)
    args = [str(Path(__file__).with_name("crowd.py")), str(parts.hostname), str(parts.port), str(clients)]
    with subprocess.Popen(
        [sys.executable, "-P", *args, *([line] if line else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Crowd(process)
        finally:
            process.kill()


def one(connection: socket.socket, request: bytes) -> bytes:
    """The answer whose body is `bytes`."""
    connection.sendall(request)
    got = b""
    while not got.endswith(b"bytes"):
        got += connection.recv(1 << 16) or b"closed bytes"
    return got


def test_ten_thousand_idle_connections(crowded: Glimpse, shelf: Shelf, namespace: str) -> None:
    """Some are let in and cost little, the others are turned away; who was there before is served, and probes are."""
    url, token = crowded.installation.gateway_url, shelf.grant(namespace, "reader")
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    wait_until("the image", lambda: ask(url + image.path, token=token).status == 200, timeout=30)
    before, memory = descriptors(crowded), crowded.rss()["gateway"]
    request = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    with connected(url) as early:
        assert one(early, request).startswith(b"HTTP/1.1 200")
        with crowd(url, 10_000) as idle:
            assert idle.opened == 10_000
            for path in PROBES:
                assert ask(url + path, timeout=30).status == 200
            assert one(early, request).startswith(b"HTTP/1.1 200")
            assert crowded.rss()["gateway"] - memory < LIMIT * (64 << 10)
            assert idle.end() >= 10_000 - LIMIT - RESERVE
    wait_until("their descriptors", lambda: descriptors(crowded) <= before + 5, timeout=60)
    assert ask(url + image.path, token=token).body == b"bytes"
    assert count(url, 'refused_connections_total{limit="all"}') > 1000


@pytest.mark.parametrize(
    "line",
    [
        "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "PUT /v1/namespaces/a/images/b HTTP/1.1\r\nContent-Length: 9\r\nX: ",
    ],
    ids=["get", "put"],
)
def test_slowloris(crowded: Glimpse, shelf: Shelf, namespace: str, line: str) -> None:
    """Five hundred requests that never come to an end are cut off, though each moves on; others are served."""
    url, token = crowded.installation.gateway_url, shelf.grant(namespace, "reader")
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    wait_until("the image", lambda: ask(url + image.path, token=token).status == 200, timeout=30)
    wait_until("nobody else", lambda: count(url, "connections") == 1, timeout=60)
    with crowd(url, 500, line) as slow:
        assert slow.opened == 500
        assert ask(url + image.path, token=token).body == b"bytes"
        wait_until("their end", lambda: count(url, "connections") == 1, timeout=60)
        assert slow.end() == 500
    assert "Traceback" not in crowded.processes["gateway"].log.read_text()


@pytest.mark.parametrize("more", ["", "&fields=name,properties"], ids=["whole", "some members"])
def test_pages_that_nobody_takes(fresh: Glimpse, shelf: Shelf, namespace: str, more: str) -> None:
    """A crowd that asks for the largest pages and takes nothing costs a bounded piece each; one who takes has all."""
    url, token = fresh.installation.gateway_url, shelf.grant(namespace, "reader")
    for number in range(30):
        bare(shelf, namespace, f"i{number:02}", properties={f"p{n}": "x" * 1000 for n in range(120)})
    path = f"/v1/images?namespace={namespace}&limit=1000{more}"
    wait_until("the list", lambda: len(images(url + path, token)) == 30, timeout=30)
    wait_until("nobody else", lambda: count(url, "connections") == 1, timeout=60)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    peak(fresh)
    before = fresh.rss()["gateway"]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(url, 1 << 12)) for _ in range(100)]
        for connection in slow:
            connection.sendall(request)
        for connection in slow:
            assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert peak(fresh) - before < len(slow) * (512 << 10)
        whole = ask(url + path, token=token)
        assert int(str(whole.headers["Content-Length"])) == len(whole.body) > 3_600_000
        assert ask(url + path, token=token, method="HEAD").headers["Content-Length"] == str(len(whole.body))
    assert "Traceback" not in fresh.processes["gateway"].log.read_text()


def images(url: str, token: str) -> list[object]:
    """Of a page of the list."""
    found: list[object] = json.loads(ask(url, token=token).body)["images"]
    return found
