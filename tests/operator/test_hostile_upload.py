"""Uploads that break off or are garbage: nothing of them stays, and the next one finds its way."""

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.gateway.test_hostile import everything
from tests.gateway.test_hostile_requests import LENGTHS
from tests.operator.support import Tenant, condition, content
from tests.operator.test_upload import no_more, send, sender, uploads, waiting
from tests.operator.tuses import PART, VERSION, Tus, workers

from servers import wait_until
from servers.shelf import ask

__all__ = ["sender"]
SIZE = 1 << 20
AT_ONCE = 4
"""Images that are uploaded to at once."""


def begun(tenant: Tenant, name: str, token: str, framing: str, asked: str = "") -> socket.socket:
    """A connection on which the head of an upload was sent, or of what else is `asked`."""
    parts = urlsplit(tenant.link(name))
    connection = socket.create_connection((str(parts.hostname), parts.port or 80), timeout=60)
    head = f"{asked or f'PUT {parts.path}'} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{framing}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def files(tenant: Tenant) -> int:
    """How many files, pipes and sockets the gateway has open."""
    return sum(1 for _ in Path(f"/proc/{tenant.glimpse.processes['gateway'].pid}/fd").iterdir())


def test_broken_off_at_each_percent(tenant: Tenant, sender: str) -> None:
    """A hundred uploads, each in the hands of a worker when it ends, leave no byte, no descriptor, and no worker.

    They end at each percent, in order or torn.
    """
    store, data = tenant.store(), content(9, SIZE)
    names = [f"i{number}" for number in range(AT_ONCE)]
    for name in names:
        waiting(tenant, name, store)
        assert send(tenant, name, data, sender).status == 201
    no_more(tenant)
    before = files(tenant)

    def break_off(percent: int) -> None:
        name = names[percent % AT_ONCE]
        with entered(tenant, name, sender) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", percent // AT_ONCE % 2, 0))
            sent = SIZE * percent // 100
            connection.sendall(data[:sent])
            # the socket is read by a worker's feed alone, and what was taken out of it is in the worker's pipe
            wait_until("the bytes to be taken", lambda: not unread(connection), timeout=60)
            assert len(workers(tenant)) >= 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(0, 100, AT_ONCE):  # of one image one at a time
            list(pool.map(break_off, range(number, number + AT_ONCE)))
    no_more(tenant)
    wait_until("the end of all workers", lambda: workers(tenant) == [], timeout=60)
    wait_until("the descriptors", lambda: files(tenant) <= before + 2, timeout=60)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    for name in names:
        assert ask(tenant.link(name), token=sender).body == data
        assert send(tenant, name, data[::-1], sender).status == 201
        assert ask(tenant.link(name), token=sender).body == data[::-1]


@contextmanager
def entered(tenant: Tenant, name: str, token: str) -> Iterator[socket.socket]:
    """An upload whose worker is there: the gateway has told to send."""
    framing, found = f"Content-Length: {SIZE}\r\nExpect: 100-continue", list[socket.socket]()

    def told() -> bool:
        found[:] = [begun(tenant, name, token, framing)]
        answer = found[0].recv(1 << 16)
        if answer.startswith(b"HTTP/1.1 100 "):
            return True
        found[0].close()
        assert answer.startswith(b"HTTP/1.1 409 "), answer  # the one before is being ended
        return False

    wait_until("a worker", told, timeout=120)
    with found[0] as connection:
        yield connection


def test_a_part_broken_off_at_many_points(tenant: Tenant, sender: str) -> None:
    """One upload whose parts all end too early, in order or torn, goes on each time from a byte that has come."""
    store, data = tenant.store(), content(11, SIZE)
    waiting(tenant, "a", store)
    tus, at = Tus(tenant, "a", sender).begun(SIZE), 0
    for number, percent in enumerate((0, 1, 10, 25, 40, 50, 66, 75, 90, 99)):
        end = max(at, SIZE * percent // 100)
        with tus.sending(at, SIZE - at) as connection:
            assert connection.sock
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", number % 2, 0))
            connection.send(data[at:end])
            wait_until("the bytes", lambda least=end: tus.offset() == least, timeout=60)  # type: ignore[misc]  # a default binds it
        at = tus.offset()
        assert at == end  # the worker, which is still there, has it all
    assert tus.patch(at, data[at:]).status == 204
    assert ask(tenant.link("a"), token=sender).body == data
    tenant.delete("a")
    assert tenant.objects(store) == {}


@pytest.mark.parametrize("lines", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("in_parts", [False, True])
def test_smuggled_lengths(tenant: Tenant, sender: str, lines: str, in_parts: bool) -> None:
    """Of one who may upload, to an image that waits for it, a body with two lengths is not taken, nor what follows."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender)
    if in_parts:
        tus.begun(SIZE)
    with closing(began(tenant, tus, lines)) as connection:
        connection.sendall(b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        got = everything(connection)
    assert got.count(b"HTTP/1.") == 1, got
    assert got.split()[1] == b"400", got
    if in_parts:
        assert tus.offset() == 0
    else:
        assert uploads(tenant) == []


def began(tenant: Tenant, tus: Tus, framing: str) -> socket.socket:
    """A connection on which the head of an upload was sent, or of a part of one that is there."""
    if not tus.path:
        return begun(tenant, tus.image, tus.token, framing)
    lines = "".join(f"{name}: {value}\r\n" for name, value in (VERSION | PART | {"Upload-Offset": "0"}).items())
    return begun(tenant, tus.image, tus.token, lines + framing, f"PATCH {tus.path}")


@pytest.mark.parametrize(
    "chunks",
    [b"x\r\n", b"-1\r\nxx", b"2\r\nxxXX0\r\n\r\n", b"f" * 400 + b"\r\n", b"2\r\nxx\r\nnonsense\r\n\r\n"],
    ids=["no number", "negative", "no end of a line", "beyond all numbers", "no chunk"],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_chunked_garbage(tenant: Tenant, sender: str, chunks: bytes, in_parts: bool) -> None:
    """A body that is no body is no image: it is refused, nothing of it stays, and no request is read out of it.

    Of an upload in parts what came before stays, and it goes on.
    """
    store, data = tenant.store(), content(1)
    waiting(tenant, "a", store)
    tus = Tus(tenant, "a", sender)
    if in_parts:
        tus.begun(len(data))
    with closing(began(tenant, tus, "Transfer-Encoding: chunked")) as connection:
        connection.sendall(b"5\r\n" + data[:5] + b"\r\n")
        if in_parts:
            wait_until("the first bytes", lambda: tus.offset() == 5, timeout=60)
        else:
            tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        connection.sendall(chunks + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        got = everything(connection)
    assert got.count(b"HTTP/1.1 ") == 1, got
    assert got.startswith(b"HTTP/1.1 400 "), got
    if in_parts:
        at = tus.offset()
        assert 5 <= at <= 7
        tus.sent(at, data[at:])
    else:
        no_more(tenant)
        wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
        assert tenant.objects(store) == {}
        assert send(tenant, "a", data, sender).status == 201


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
