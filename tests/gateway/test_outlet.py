"""Outlets: a file's bytes into a socket past its transport, over real sockets of which one end takes what it likes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from glimpse.gateway.outlet import Outlet
from glimpse.testing.bodies import noise
from servers.shelf import Shelf

DATA = noise(8 << 20)


class Line(NamedTuple):
    """A connection."""

    transport: asyncio.Transport
    client: socket.socket


@pytest_asyncio.fixture
async def line() -> AsyncIterator[Line]:
    """One whose client reads when a test says so."""
    loop = asyncio.get_running_loop()
    ours, client = socket.socketpair()
    client.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with client:
        yield Line(transport, client)
        transport.abort()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file's descriptor."""
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as opened:
        yield opened.fileno()


def descriptors() -> int:
    """How many this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def take(client: socket.socket, size: int) -> bytes:
    """What comes."""
    got = bytearray()
    while len(got) < size and (more := await asyncio.get_running_loop().sock_recv(client, 1 << 20)):
        got += more
    return bytes(got)


async def test_one_part_after_another(line: Line, file: int) -> None:
    """Parts arrive whole and in order, and what the transport sends afterwards comes behind them."""
    reading = asyncio.create_task(take(line.client, (5 << 20) + 4))
    with Outlet(line.transport) as outlet:
        assert not line.transport.is_reading()
        assert await outlet.send(file, 1 << 20, 4 << 20)
        assert await outlet.send(file, 0, 1 << 20)
        assert outlet.sent == 5 << 20
    assert line.transport.is_reading()
    line.transport.write(b"next")
    assert await reading == DATA[1 << 20 : 5 << 20] + DATA[: 1 << 20] + b"next"


async def test_as_much_as_there_is(line: Line, file: int) -> None:
    """A file that is shorter than it should be ends the part: what has gone is known."""
    reading = asyncio.create_task(take(line.client, 100))
    with Outlet(line.transport) as outlet:
        assert await outlet.send(file, len(DATA) - 100, 4 << 20)
        assert outlet.sent == 100
    assert await reading == DATA[-100:]


@pytest.fixture
def made_up() -> Iterator[int]:
    """The descriptor of a file that lies in no page cache."""
    with Path("/proc/self/maps").open("rb") as opened:
        yield opened.fileno()


async def test_what_sendfile_cannot_send(line: Line, made_up: int) -> None:
    """Nothing has gone then, so that another way can be taken."""
    with Outlet(line.transport) as outlet:
        assert not await outlet.send(made_up, 0, 100)
        assert outlet.sent == 0


async def test_a_client_who_goes(line: Line, file: int) -> None:
    """Who takes nothing more and goes ends the part with an error."""
    with Outlet(line.transport) as outlet:
        sending = asyncio.create_task(outlet.send(file, 0, len(DATA)))
        await take(line.client, 10)
        line.client.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            await sending


async def test_a_connection_that_is_closed_here(line: Line, file: int) -> None:
    """It ends also where its client takes nothing: the kernel says nothing of that to a descriptor of our own."""
    with Outlet(line.transport) as outlet:
        sending = asyncio.create_task(outlet.send(file, 0, len(DATA)))
        await take(line.client, 10)
        line.transport.abort()
        with pytest.raises(ConnectionResetError):
            await sending


async def test_cancelled(line: Line, file: int) -> None:
    """Nothing is sent any more after the block, and no descriptor stays."""
    before = descriptors()
    with Outlet(line.transport) as outlet:
        sending = asyncio.create_task(outlet.send(file, 0, len(DATA)))
        got = len(await take(line.client, 10))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    line.transport.write_eof()
    assert got + len(await take(line.client, len(DATA))) == outlet.sent < len(DATA)
    assert descriptors() == before


def test_a_client_who_will_say_no_more(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Who ends his side of the connection in the middle gets the rest."""
    image = shelf.image(namespace, DATA * 4, store=shelf.store())
    host, _, port = gateway.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        client.sendall(head.encode())
        got = client.recv(1 << 16)
        client.shutdown(socket.SHUT_WR)
        while more := client.recv(1 << 20):
            got += more
    assert got.partition(b"\r\n\r\n")[2] == DATA * 4
