"""How much a client may say before it is answered, in memory of the gateway; and that nobody else is held up by it."""

import asyncio
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import BinaryIO

import pytest
from aiohttp.base_protocol import BaseProtocol
from tests.gateway.conftest import OPEN, peak
from tests.gateway.test_hostile import connected, everything

from glimpse.gateway.heads import HEAD, LINE, WAITING, Parser
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import ask

STATUS = re.compile(rb"^HTTP/1\.[01] ([0-9]{3}) ", re.MULTILINE)
CLIENTS = 200
EACH = 640 << 10
"""Bytes of memory that one of them may take; 530 KiB were measured, in a head or in trailers of wide characters."""
WIDE = "\U0001f600".encode()
"""A character that makes four bytes of each other one in its line."""
LINES = b"".join(b"X-%02d: %b%b\r\n" % (n, WIDE, b"x" * (LINE - 20)) for n in range(98))
ASKED = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
FITS = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + LINES[: LINES.index(b"X-03")] + b"\r\n"
BEGUN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def own(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """A gateway for those tests that do not measure memory."""
    server = Glimpse(tmp_path_factory.mktemp("gateway"), cluster=cluster, settings=OPEN)
    with server.running("gateway"):
        yield server


def pour(connections: list[socket.socket], data: bytes) -> None:
    """Send this on all of them, as far as it is taken: until nothing moves for two seconds."""
    left = {connection.fileno(): (connection, memoryview(data)) for connection in connections}
    waiting = select.poll()  # of any number of descriptors, and any number
    for descriptor, (connection, _) in left.items():
        connection.setblocking(False)
        waiting.register(descriptor, select.POLLOUT)
    moved = time.monotonic()
    while left and time.monotonic() - moved < 2:
        for descriptor, _ in waiting.poll(200):
            connection, rest = left[descriptor]
            try:
                rest = rest[connection.send(rest[: 256 << 10]) :]
            except OSError:  # it was refused
                rest = memoryview(b"")
            else:
                moved = time.monotonic()
            left[descriptor] = connection, rest
            if not rest:
                del left[descriptor]
                waiting.unregister(descriptor)


@pytest.mark.parametrize(
    "sent",
    [
        BEGUN + LINES,
        ASKED * 40 + (BEGUN + LINES + b"\r\n") * 32,
        ASKED * 40 + FITS * 32,
        ASKED * 40 + b"GET / HTTP/1.1\r\nHost:x\r\n\r\n" * 20_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + LINES,
    ],
    ids=["a head", "heads behind answers", "heads that fit", "many small ones", "trailers"],
)
def test_memory(fresh: Glimpse, sent: bytes) -> None:
    """A crowd that says as much as it can, and takes no answer, costs a bounded piece of memory each; probes go on."""
    url = fresh.installation.gateway_url
    ask(url + "/openapi.json")
    peak(fresh)
    before = fresh.rss()["gateway"]
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(url, 1 << 12)) for _ in range(CLIENTS)]
        pour(clients, sent)
        assert ask(url + "/healthz", timeout=30).status == 200
        assert peak(fresh) - before < CLIENTS * EACH


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_a_head_that_is_too_long(own: Glimpse, piece: int) -> None:
    """It gets 431 as soon as it is longer than may be, though no line is, and however it comes; then the end."""
    head = BEGUN + LINES[: HEAD - len(BEGUN) + 1]
    with connected(own.installation.gateway_url) as connection:
        for start in range(0, len(head), piece):
            connection.sendall(head[start : start + piece])
        got = everything(connection)
    assert STATUS.findall(got) == [b"431"]
    assert b"application/problem+json" in got
    assert b"xxx" not in got


def test_the_longest_head(own: Glimpse) -> None:
    """One that is as long as may be is answered, on one connection again and again."""
    with connected(own.installation.gateway_url) as connection:
        connection.sendall(FITS * 5 + BEGUN + b"Connection: close\r\n\r\n")
        got = everything(connection)
    assert STATUS.findall(got) == [b"200"] * 6


def test_pipelined_requests(own: Glimpse) -> None:
    """A thousand that are sent without a wait for answers are all answered, in their order."""
    paths = [(b"/healthz", b"200"), (b"/nowhere", b"404"), (b"/v1/images", b"401")]
    order = [paths[number * number % 7 % 3] for number in range(1000)]
    sent = b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path, _ in order)
    with connected(own.installation.gateway_url) as connection:
        connection.sendall(sent + BEGUN + b"Connection: close\r\n\r\n")
        got = everything(connection)
    assert STATUS.findall(got) == [*(status for _, status in order), b"200"]


def test_requests_behind_late_bodies(own: Glimpse) -> None:
    """A body that comes after its head takes no place among those that wait: what is sent with its end is answered."""
    with connected(own.installation.gateway_url) as connection:
        answers = connection.makefile("rb")
        for _ in range(5):
            connection.sendall(b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
            assert answer(answers) == b"405"
            connection.sendall(b"bytes" + (BEGUN + b"\r\n") * 4)
            assert [answer(answers) for _ in range(4)] == [b"200"] * 4


async def test_a_late_body_takes_no_place() -> None:
    """Behind a body that comes when its request is at work as many are read as may wait: nobody asks for them again."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    parser = Parser(protocol, loop)
    assert len(parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")[0]) == 1
    parser.message_consumed()
    assert len(parser.feed_data(b"bytes" + (BEGUN + b"\r\n") * (WAITING + 1))[0]) == WAITING
    parser.message_consumed()
    assert len(parser.feed_data(b"")[0]) == 1


def answer(answers: BinaryIO) -> bytes:
    """The status of the next answer, which is read to its end."""
    status, length = answers.readline().split()[1], 0
    while (line := answers.readline()) != b"\r\n":
        with suppress(ValueError):
            name, value = line.split(b": ")
            length = int(value) if name.lower() == b"content-length" else length
    answers.read(length)
    return status
