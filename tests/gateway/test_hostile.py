"""Clients that misbehave: refused or contained, and nothing of what they send comes back out or into the log."""

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glimpse.testing.bodies import noise
from servers import wait_until
from servers.glimpse import Glimpse
from servers.shelf import Shelf, ask


@contextlib.contextmanager
def connected(gateway: str, buffer: int = 0) -> Iterator[socket.socket]:
    """A connection to the gateway, with a receive buffer of this size."""
    host, _, port = gateway.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(30)
        connection.connect((host, int(port)))
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes or resets."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(1 << 16):
            got += chunk
    return got


def descriptors(glimpse: Glimpse) -> int:
    """How many files and sockets the gateway has open."""
    return sum(1 for _ in Path(f"/proc/{glimpse.processes['gateway'].pid}/fd").iterdir())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer SECRET" + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"SECRET" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: SECRET\r\n" % n for n in range(500)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer SECRET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer SECRET\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: SECRET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nSECRET",
        b"SECRET\r\n\r\n",
        b"\x16\x03\x01SECRET\r\n\r\n",
    ],
    ids=["long header", "long path", "many headers", "space", "nul", "length", "two lengths", "words", "tls"],
)
def test_no_request(gateway: str, glimpse: Glimpse, sent: bytes) -> None:
    """What is no request gets a problem and an end; no byte of it is repeated, and none is logged."""
    with connected(gateway) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
        got = everything(connection)
    assert b"SECRET" not in got
    if got:  # the answer may be lost when the rest of a long head is refused
        assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ", b"HTTP/1.1 404", b"HTTP/1.1 431"))
        assert b"application/problem+json" in got
    assert "SECRET" not in glimpse.processes["gateway"].log.read_text()
    assert ask(gateway + "/healthz").status == 200


def test_expectations(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """100-continue is met; any other expectation gets a problem that does not repeat it, at every address."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    assert ask(gateway + image.path, token=token, headers={"Expect": "100-Continue"}).body == b"bytes"
    for path in (image.path, "/nowhere", "/healthz"):
        got = ask(gateway + path, token=token, headers={"Expect": "200-SECRET"})
        assert got.status == 417
        assert got.problem()["title"] == "Expectation Failed"
        assert b"SECRET" not in got.body
        assert got.headers["Server"] == "glimpse"


def test_tokens_are_not_logged(gateway: str, glimpse: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """The log names requests, never tokens or queries."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    ask(gateway + image.revision(), token=token)
    ask(gateway + image.path + "?token=SECRET%0aforged", token="SECRET.SECRET.SECRET")
    log = glimpse.processes["gateway"].log.read_text()
    assert f"GET {image.path}/revisions/1 200" in log
    assert token not in log
    assert "SECRET" not in log
    assert image.uid not in log.replace(image.key(), "")


def test_a_long_path_is_cut_in_the_log(gateway: str, glimpse: Glimpse) -> None:
    """Who has no token writes no more than a line of bounded length into the log."""
    assert ask(gateway + "/" + "long-path/" * 700).status == 404
    log = glimpse.processes["gateway"].log.read_text()
    (line,) = (line for line in log.splitlines() if "long-path/" in line)
    assert len(line) < 1200


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["nothing", "half a head"])
def test_slow_head(gateway: str, begun: bytes) -> None:
    """A request that does not come to its end within the limit (5 s here) is cut off, however it drips."""
    with connected(gateway) as connection:
        began = time.monotonic()
        connection.settimeout(0.5)
        while True:
            with contextlib.suppress(TimeoutError):
                if begun:
                    connection.sendall(begun)
                    begun = b"x"
                if not connection.recv(1):
                    break
        assert 4 < time.monotonic() - began < 12


def test_client_that_takes_nothing(gateway: str, glimpse: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """A client that stops reading is cut off after the limit (5 s here), and nothing stays open for it."""
    image = shelf.image(namespace, noise(64 << 20), store=shelf.store())
    wait_until("idle connections to end", lambda: not _open_objects(glimpse), timeout=30)
    request = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connected(gateway, 1 << 16)) for _ in range(10)]
        for connection in stalled:
            connection.sendall(request)
            assert connection.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 200"
        wait_until("the files to be open", lambda: _open_objects(glimpse) == len(stalled), timeout=10)
        # others are served meanwhile
        assert ask(gateway + image.path, token=token, headers={"Range": "bytes=0-9"}).status == 206
        wait_until("the files to be closed", lambda: not _open_objects(glimpse), timeout=30)


def test_client_that_hangs_up(gateway: str, glimpse: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """Downloads that are broken off, at any moment, leave no descriptor behind."""
    image = shelf.image(namespace, noise(32 << 20), store=shelf.store())
    request = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    ask(gateway + image.path, token=token)
    for taken in range(0, 4_000_000, 200_000):
        with connected(gateway) as connection:
            connection.sendall(request)
            left = taken
            while left > 0:
                left -= len(connection.recv(min(left, 1 << 16)))
    wait_until("the files to be closed", lambda: not _open_objects(glimpse), timeout=10)
    log = glimpse.processes["gateway"].log.read_text()
    assert "Traceback" not in log
    assert ask(gateway + image.path, token=token).status == 200


def test_many_idle_connections(gateway: str, glimpse: Glimpse) -> None:
    """Connections that say nothing hold up nobody, and end."""
    before = descriptors(glimpse)
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connected(gateway))
        assert ask(gateway + "/healthz", timeout=5).status == 200
        wait_until("the connections to end", lambda: descriptors(glimpse) <= before + 5, timeout=30)


def test_body_that_nobody_wants(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A body with a GET is not read as the next request, and one without an end does not hold the connection."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    head = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    smuggled = f"GET {image.path}.sha256 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(gateway) as connection:
        connection.sendall(f"{head}Content-Length: {len(smuggled)}\r\nConnection: close\r\n\r\n{smuggled}".encode())
        assert everything(connection).count(b"HTTP/1.1 ") == 1
    with connected(gateway) as connection:
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\nx".encode())
        got = everything(connection)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.endswith(b"bytes")


def test_requests_in_a_row(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A connection is used again after whole, partial, refused and bodiless answers, pipelined too."""
    image = shelf.image(namespace, b"0123456789", store=shelf.store())
    login = f"Host: x\r\nAuthorization: Bearer {token}\r\n"
    requests = [
        f"GET {image.path} HTTP/1.1\r\n{login}\r\n",
        f"HEAD {image.path} HTTP/1.1\r\n{login}\r\n",
        f"GET {image.path} HTTP/1.1\r\n{login}Range: bytes=2-3\r\n\r\n",
        f"GET {image.path} HTTP/1.1\r\n{login}Range: bytes=99-\r\n\r\n",
        f"GET {image.path} HTTP/1.1\r\n{login}If-None-Match: *\r\n\r\n",
        f"GET {image.path}.sha256 HTTP/1.1\r\n{login}Connection: close\r\n\r\n",
    ]
    with connected(gateway) as connection:
        connection.sendall("".join(requests).encode())
        got = everything(connection)
    assert re.findall(rb"HTTP/1\.1 ([0-9]+) ", got) == [b"200", b"200", b"206", b"416", b"304", b"200"]


def _open_objects(glimpse: Glimpse) -> int:
    """How many objects of stores the gateway has open."""
    count = 0
    for link in Path(f"/proc/{glimpse.processes['gateway'].pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += "objects" in link.readlink().parts
    return count
