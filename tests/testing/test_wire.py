"""The wire between a client and a server: what it passes on, and how it fails."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from glimpse.testing.wire import Wire


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that says what it hears."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with client, suppress(OSError):
            while piece := client.recv(1 << 16):
                client.sendall(piece)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def connect(wire: Wire) -> socket.socket:
    """A client."""
    return socket.create_connection(("127.0.0.1", wire.port), timeout=30)


def test_it_passes_all_on(echo: tuple[str, int]) -> None:
    """In both directions, until both have ended."""
    data = bytes(range(256)) * 10_000
    with Wire(echo) as wire, connect(wire) as client:
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(client.sendall, data)
            got = b""
            while len(got) < len(data):
                got += client.recv(1 << 16)
            sending.result()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert got == data


def test_it_cuts(echo: tuple[str, int]) -> None:
    """Open connections break, new ones are refused, until it heals."""
    with Wire(echo) as wire:
        with connect(wire) as client:
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            wire.cut()
            with suppress(ConnectionError):
                assert client.recv(1) == b""
        with connect(wire) as client, suppress(ConnectionError):
            client.sendall(b"a")
            assert client.recv(1) == b""
        wire.heal()
        with connect(wire) as client:
            client.sendall(b"b")
            assert client.recv(1) == b"b"


def test_it_goes_silent(echo: tuple[str, int]) -> None:
    """What is sent meanwhile comes when it heals."""
    with Wire(echo) as wire, connect(wire) as client:
        wire.stall()
        client.sendall(b"a")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(30)
        wire.heal()
        assert client.recv(1) == b"a"


def test_it_fails_at_a_byte(echo: tuple[str, int]) -> None:
    """A fault can be bound to how much was sent."""
    with Wire(echo) as wire, connect(wire) as client:
        wire.after(1000, wire.cut)
        with suppress(ConnectionError):
            for _ in range(100_000):
                client.sendall(bytes(100))
                if not client.recv(1 << 16):
                    break
            else:
                pytest.fail("it was not cut")
