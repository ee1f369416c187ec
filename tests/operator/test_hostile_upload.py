"""Uploads that break off or are garbage: nothing of them stays, and the next one finds its way."""

import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.gateway.test_hostile import everything
from tests.operator.support import Tenant, condition, content
from tests.operator.test_upload import no_more, send, sender, waiting

from servers import wait_until
from servers.shelf import ask

__all__ = ["sender"]
SIZE = 1 << 20
AT_ONCE = 4
"""Images that are uploaded to at once."""


def begun(tenant: Tenant, name: str, token: str, framing: str) -> socket.socket:
    """A connection on which the head of an upload was sent."""
    parts = urlsplit(tenant.link(name))
    connection = socket.create_connection((str(parts.hostname), parts.port or 80), timeout=60)
    head = f"PUT {parts.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{framing}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def files(tenant: Tenant) -> int:
    """How many files, pipes and sockets the gateway has open."""
    return sum(1 for _ in Path(f"/proc/{tenant.glimpse.processes['gateway'].pid}/fd").iterdir())


def test_broken_off_at_each_percent(tenant: Tenant, sender: str) -> None:
    """A hundred uploads that end at each percent, in order or torn, leave no byte, no descriptor and no worker."""
    store, data = tenant.store(), content(9, SIZE)
    names = [f"i{number}" for number in range(AT_ONCE)]
    for name in names:
        waiting(tenant, name, store)
        assert send(tenant, name, data, sender).status == 201
    no_more(tenant)
    before = files(tenant)

    def break_off(percent: int) -> None:
        name, framing = names[percent % AT_ONCE], f"Content-Length: {SIZE}"
        with begun(tenant, name, sender, framing) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", percent // AT_ONCE % 2, 0))
            with suppress(ConnectionError):  # it may be refused at once, while the one before is still being ended
                connection.sendall(data[: SIZE * percent // 100])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(break_off, range(100)))
    no_more(tenant)
    wait_until("the descriptors", lambda: files(tenant) <= before + 2, timeout=60)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    for name in names:
        assert ask(tenant.link(name), token=sender).body == data
        assert send(tenant, name, data[::-1], sender).status == 201
        assert ask(tenant.link(name), token=sender).body == data[::-1]


@pytest.mark.parametrize(
    "chunks",
    [b"x\r\n", b"-1\r\nxx", b"2\r\nxxXX0\r\n\r\n", b"f" * 400 + b"\r\n", b"2\r\nxx\r\nnonsense\r\n\r\n"],
    ids=["no number", "negative", "no end of a line", "beyond all numbers", "no chunk"],
)
def test_chunked_garbage(tenant: Tenant, sender: str, chunks: bytes) -> None:
    """A body that is no body is no image: it is refused, nothing of it stays, and no request is read out of it."""
    store = tenant.store()
    waiting(tenant, "a", store)
    with closing(begun(tenant, "a", sender, "Transfer-Encoding: chunked")) as connection:
        connection.sendall(b"5\r\nbytes\r\n")
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        connection.sendall(chunks + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        got = everything(connection)
    assert got.count(b"HTTP/1.1 ") == 1, got
    assert got.startswith(b"HTTP/1.1 400 "), got
    no_more(tenant)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    assert tenant.objects(store) == {}
    assert send(tenant, "a", content(1), sender).status == 201


def test_what_follows_a_body(tenant: Tenant, sender: str) -> None:
    """Bytes beyond the length are no part of the image, and no request either: the connection ends with the answer."""
    store, data = tenant.store(), content(3, SIZE)
    waiting(tenant, "a", store)
    with closing(begun(tenant, "a", sender, f"Content-Length: {SIZE}")) as connection:
        connection.sendall(data + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        got = everything(connection)
    assert got.count(b"HTTP/1.1 ") == 1, got
    assert got.startswith(b"HTTP/1.1 201 "), got
    assert ask(tenant.link("a"), token=sender).body == data


def unread(connection: socket.socket) -> int:
    """Bytes that the gateway has not taken out of its socket yet (proc(5), /proc/net/tcp)."""
    ends = [f"{port:04X}" for _, port in (connection.getpeername(), connection.getsockname())]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if [fields[1].partition(":")[2], fields[2].partition(":")[2]] == ends:
            return int(fields[4].partition(":")[2], 16)
    raise AssertionError("the connection is gone")


def test_few_bytes_at_a_time(tenant: Tenant, sender: str) -> None:
    """A slow sender's bytes are taken as they come, and not only when they are many: he is no silent one."""
    store, data = tenant.store(), content(4, SIZE)
    waiting(tenant, "a", store)
    with closing(begun(tenant, "a", sender, f"Content-Length: {SIZE}\r\nExpect: 100-continue")) as connection:
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for start in range(0, 1000, 100):
            connection.sendall(data[start : start + 100])
            wait_until("the bytes to be taken", lambda: not unread(connection), timeout=60)
        connection.sendall(data[1000:])
        got = everything(connection)
    assert got.startswith(b"HTTP/1.1 201 "), got
    assert ask(tenant.link("a"), token=sender).body == data
