"""The gateway as a process: how it ends, comes back, and how much memory it needs."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glimpse.gateway.app import READ_AHEAD
from glimpse.testing.bodies import noise
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.require import require
from servers.shelf import Content, Shelf, ask
from servers.stores import SERVERS, new, place
from servers.tools import Missing

DATA = noise(32 << 20)
ETAG = f'"sha256:{hashlib.sha256(DATA).hexdigest()}"'


@pytest.fixture
def own(cluster: Cluster, tmp_path: Path) -> Iterator[Glimpse]:
    """A gateway that a test may stop."""
    # A client that stands still is borne with for as long as a slow machine needs to start all others.
    settings = {"GLIMPSE_GATEWAY_DRAIN": "3", "GLIMPSE_GATEWAY_IDLE": "900"}
    server = Glimpse(tmp_path / "gateway", cluster=cluster, settings=settings)
    with server.running("gateway"):
        yield server


@pytest.fixture
def access(namespace: str, token: str) -> tuple[str, str]:
    """A namespace, and a token that may read its images."""
    return namespace, token


class Slow:
    """A client that takes one byte, and the others when it is told to."""

    def __init__(self, url: str, token: str) -> None:
        reading, writing = os.pipe()
        # curl writes into a full pipe: it takes no more than that and its socket hold
        args = ["curl", "-sSf", "--no-buffer", "--oauth2-bearer", token, url]
        self.child = subprocess.Popen(args, stdout=writing, stderr=subprocess.DEVNULL)
        os.close(writing)
        self._pipe = os.fdopen(reading, "rb")
        self._first = self._pipe.read(1)

    def rest(self) -> tuple[bytes, int]:
        """All bytes that came, and curl's exit status."""
        with self._pipe:
            data = self._first + self._pipe.read()
        return data, self.child.wait(120)


def test_drain(own: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """SIGTERM ends the listening at once, lets a running download finish, and then the process, with status 0."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    url = own.installation.gateway_url + image.path
    client = Slow(url, token)
    process = own.processes["gateway"]
    process.signal(signal.SIGTERM)
    wait_until("the door to close", lambda: not own.program_ready("gateway"), timeout=10)
    assert process.alive()
    assert client.rest() == (DATA, 0)
    assert process.wait(60)
    assert process.child
    assert process.child.returncode == 0


def test_drain_has_a_limit(own: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """A download that is not over by then (3 s here) is cut, and the client knows."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    client = Slow(own.installation.gateway_url + image.path, token)
    own.processes["gateway"].signal(signal.SIGTERM)
    assert own.processes["gateway"].wait(60)
    data, status = client.rest()
    assert (len(data) < len(DATA), status) == (True, 18)  # CURLE_PARTIAL_FILE


def test_killed_and_started_again(own: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """A client that resumes across a kill -9 and a new start gets the image whole, and never other bytes."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    url, got = own.installation.gateway_url + image.revision(), b""
    for _ in range(3):
        client = Slow(url, token)
        own.kill("gateway")
        part, status = client.rest()
        assert status != 0
        assert DATA.startswith(part)
        own.launch("gateway")
        own.await_ready("gateway")
        asked = {"Range": f"bytes={len(got)}-{len(got) + (5 << 20)}", "If-Range": ETAG}
        resumed = ask(url, token=token, headers=asked)
        assert resumed.status == 206
        got += resumed.body
        assert DATA.startswith(got)
    assert ask(url, token=token, headers={"Range": f"bytes={len(got)}-"}).body == DATA[len(got) :]


def test_a_thousand_images(own: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """A thousand images cost little memory, whether watched or listed, and each can be downloaded."""
    url, store, before = own.installation.gateway_url, shelf.store(), own.rss()["gateway"]
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(
            # only some have bytes: the disk is not the matter
            lambda n: shelf.image(namespace, Content(b"%d" % n, *(([store],) if n % 50 == 49 else ([], [store])))),
            range(1000),
        )
        images = list(made)
    for number in range(49, 1000, 50):
        assert ask(url + images[number].path, token=token).body == b"%d" % number
    grown = own.rss()["gateway"] - before
    assert grown < 32 << 20, grown
    own.restart("gateway")
    assert b"glimpse_gateway_images 1" in ask(url + "/metrics").body  # a thousand or more
    assert ask(url + images[-1].path, token=token).body == b"999"
    assert own.rss()["gateway"] < 128 << 20


CROWDS = {"gridfs": (16, 128 << 20), "rbd": (40, 320 << 20), "sheepdog": (40, 128 << 20), "swift": (40, 128 << 20)}
"""By kind of store: slow clients, and bytes that its libraries may take for all of them.

FerretDB takes seconds to find the first chunks for each; librados holds several times what it is asked for.
"""


@pytest.mark.parametrize("kind", CROWDS)
def test_slow_clients_of_a_store_on_a_network(
    own: Glimpse, shelf: Shelf, access: tuple[str, str], tmp_path: Path, kind: str
) -> None:
    """What is read ahead for all of them has a limit: many that stand still cost little more than one."""
    (namespace, token), (crowd, besides) = access, CROWDS[kind]
    try:
        with (server := new(SERVERS[kind][-1], tmp_path / kind, {})):
            there = place(kind, "images", server)
            image = shelf.image(namespace, DATA * 3, store=shelf.remote(there.kind, there.config, there.secret))
            url, before = own.installation.gateway_url + image.path, own.rss()["gateway"]
            clients = [Slow(url, token) for _ in range(crowd)]
            assert clients[0].rest() == (DATA * 3, 0), "which takes the time in which the others read ahead"
            grown = own.rss()["gateway"] - before
            for client in clients[1:]:
                client.child.kill()
                client.rest()
    except Missing as error:
        require(kind, str(error))
    assert grown < READ_AHEAD + besides, f"{grown >> 20} MiB more"


def test_nobody_looks_into_it(glimpse: Glimpse) -> None:
    """It holds tokens: no core is written, and its memory belongs to root, whoever it runs as."""
    process = Path(f"/proc/{glimpse.processes['gateway'].pid}")
    (limit,) = (line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core"))
    assert limit.split()[4:6] == ["0", "0"]
    code = "import ctypes; from glimpse import confine; confine.seal(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "0\n"  # PR_GET_DUMPABLE


def test_cannot_start(tmp_path: Path) -> None:
    """Without a way to the API server it says what is missing, in one line, and ends with status 1."""
    env = {"PATH": os.environ["PATH"], "GLIMPSE_KUBECONFIG": str(tmp_path / "missing")}
    args = [sys.executable, "-P", "-m", "glimpse", "gateway"]
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert str(tmp_path / "missing") in done.stderr
    assert "Traceback" not in done.stderr
