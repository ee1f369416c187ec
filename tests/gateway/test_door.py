"""How many connections are let in: of one client, and in all; and that probes are answered beyond that."""

import contextlib
import re
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from glimpse.gateway.app import PROBES
from glimpse.gateway.door import RESERVE
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import ask

CLIENT = 4
ALL = 10


@pytest.fixture(scope="module")
def tight(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway that lets in few."""
    settings = {
        "GLIMPSE_GATEWAY_IDLE": "60",
        "GLIMPSE_GATEWAY_CONNECTIONS": str(ALL),
        "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": str(CLIENT),
    }
    server = Glimpse(tmp_path_factory.mktemp("gateway"), cluster=cluster, settings=settings)
    server.launch("gateway")
    try:
        server.await_ready("gateway")
        yield server.installation.gateway_url
    finally:
        server.stop()


def enter(url: str, client: str) -> socket.socket:
    """A connection from this address of the machine."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), parts.port or 0), timeout=30, source_address=(client, 0))


def status(url: str, client: str, path: str) -> int:
    """What somebody at this address is answered; 0: nothing."""
    with enter(url, client) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return int(connection.recv(12)[9:] or 0)
    return 0


def served(url: str, client: str) -> bool:
    """Whether somebody at this address is let in: then he hears that he must send a token."""
    found = status(url, client, "/v1/images")
    assert found in (401, 503)
    return found == 401


def count(url: str, meter: str) -> int:
    """What a counter says; without it none."""
    found = re.search(
        rf"^glimpse_gateway_{re.escape(meter)} ([0-9]+)", ask(url + "/metrics").body.decode(), re.MULTILINE
    )
    return int(found[1]) if found else 0


def alone(url: str) -> bool:
    """Whether nobody is connected but who asks."""
    return count(url, "connections") == 1


def test_limit_of_a_client(tight: str) -> None:
    """Who has as many connections as one may is served no more, told so and counted; others are, and he is again."""
    wait_until("others to be gone", lambda: alone(tight), timeout=10)
    before = count(tight, 'refused_connections_total{limit="client"}')
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(enter(tight, "127.0.0.2")) for _ in range(CLIENT)]
        wait_until("all to be in", lambda: count(tight, "connections") == CLIENT + 1, timeout=10)
        with enter(tight, "127.0.0.2") as more:
            assert more.recv(1) == b""  # far sooner than an idle client who is let in
        assert not served(tight, "127.0.0.2")
        assert served(tight, "127.0.0.3")
        assert count(tight, 'refused_connections_total{limit="client"}') == before + 2
        held[0].close()
        wait_until("a place to be free", lambda: served(tight, "127.0.0.2"), timeout=10)


def test_limit_of_all(tight: str) -> None:
    """When all places are taken nobody is served, from wherever he comes; those who are in go on."""
    with full(tight) as held:
        held[0].sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'refused_connections_total{limit="all"}' in b"".join(iter(lambda: held[0].recv(1 << 16), b""))
        wait_until("a place to be free", lambda: served(tight, "127.0.0.9"), timeout=10)


@contextlib.contextmanager
def full(url: str) -> Iterator[list[socket.socket]]:
    """All places are taken, by these."""
    wait_until("others to be gone", lambda: alone(url), timeout=10)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(enter(url, f"127.0.0.{2 + n // CLIENT}")) for n in range(ALL)]
        wait_until("all to be in", lambda: not served(url, "127.0.0.9"), timeout=10)
        yield held


def test_probes_have_room(tight: str) -> None:
    """Who takes all places, and the reserve besides, does not make the gateway look dead: probes are answered."""
    with full(tight), contextlib.ExitStack() as stack:
        refused = count(tight, 'refused_connections_total{limit="all"}')
        for path in PROBES:
            assert [status(tight, client, path) for client in ("127.0.0.2", "127.0.0.9")] == [200, 200]
        assert count(tight, 'refused_connections_total{limit="all"}') == refused
        crowd = [stack.enter_context(enter(tight, "127.0.0.9")) for _ in range(RESERVE + 5)]
        assert crowd[0].recv(1) == b""  # he gave way
        for path in PROBES:
            assert status(tight, "127.0.0.8", path) == 200
        assert count(tight, 'refused_connections_total{limit="all"}') >= refused + 5
        answer = ask(tight + "/v1/images")
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "5", "close")
        assert "Too many connections" in answer.problem()["detail"]


def test_a_flood_drives_out_itself(tight: str) -> None:
    """While one client connects again and again, faster than any can ask, each probe of others is answered."""
    with full(tight), flood(tight, "127.0.0.9") as flooded:
        for number in range(100):
            path = PROBES[number % len(PROBES)]
            with enter(tight, "127.0.0.8") as connection:
                before = flooded()
                wait_until("a flood", lambda least=before + 2 * RESERVE: flooded() > least, timeout=30)  # type: ignore[misc]  # a default binds it
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                assert connection.recv(12) == b"HTTP/1.1 200", number


@contextlib.contextmanager
def flood(url: str, client: str) -> Iterator[Callable[[], int]]:
    """Connections without end from this address, that say nothing; how many there were."""
    made, over = 0, threading.Event()

    def run() -> None:
        nonlocal made
        kept = deque[socket.socket](maxlen=200)
        while not over.is_set():
            if len(kept) == kept.maxlen:
                kept.popleft().close()
            with contextlib.suppress(OSError):
                kept.append(enter(url, client))
                made += 1
        for connection in kept:
            connection.close()

    thread = threading.Thread(target=run, name="flood")
    thread.start()
    try:
        yield lambda: made
    finally:
        over.set()
        thread.join()


def test_every_end_gives_the_place_back(tight: str) -> None:
    """However a connection ends, its place is free again."""
    for sent in (b"", b"GET /hea", b"nonsense\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") * ALL:
        for reset in (0, 1):
            with contextlib.suppress(ConnectionError), enter(tight, "127.0.0.2") as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
                connection.sendall(sent)
    wait_until("all places to be free", lambda: alone(tight), timeout=10)
    assert served(tight, "127.0.0.2")


@pytest.mark.parametrize(
    ("limits", "left"),
    [((256, 512), (204, 51, 512)), ((256, 4096), (1000, 250, 2500)), ((4096, 4096), (1000, 409, 4096))],
    ids=["too low", "raised", "enough"],
)
def test_descriptors_are_shared_out(limits: tuple[int, int], left: tuple[int, int, int]) -> None:
    """Connections get two in five at most, files that rest one in ten; the soft limit is raised as far as they need."""
    code = (
        "import resource; from glimpse.gateway.door import spare;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limits});"
        "print(*spare(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    args = [sys.executable, "-P", "-c", code]
    done = subprocess.run(args, capture_output=True, text=True, timeout=30, check=True, cwd=Path("/"))
    assert tuple(map(int, done.stdout.split())) == left
