"""Senders who bring little, for long: they lose their places, and meanwhile have no more of them than half."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import pytest
from tests.operator.conftest import SETTINGS
from tests.operator.support import Tenant, content
from tests.operator.test_hostile_upload import begun
from tests.operator.test_upload import detail, no_more, send, waiting
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.tuses import PART, VERSION, Tus, checksum, workers

from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Shelf

DATA = content(5, 1 << 20)
PLACES = 8


@pytest.fixture(scope="module")
def replica(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """A replica of the gateway that bears little."""
    more = {
        "GLIMPSE_UPLOADS__AT_ONCE": str(PLACES),
        "GLIMPSE_UPLOADS__MINIMUM_RATE": "1000",
        "GLIMPSE_UPLOADS__RATE_WINDOW": "3",
        "GLIMPSE_UPLOADS__LINGER": "60",
    }
    server = Glimpse(tmp_path_factory.mktemp("replica"), cluster=cluster, settings=SETTINGS | more)
    with server.running("gateway"):
        yield server


@pytest.fixture(scope="module")
def patient(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """One that bears every sender."""
    more = {
        "GLIMPSE_UPLOADS__AT_ONCE": str(PLACES),
        "GLIMPSE_GATEWAY_IDLE": "600",
        "GLIMPSE_UPLOADS__MINIMUM_RATE": "0",
    }
    server = Glimpse(tmp_path_factory.mktemp("patient"), cluster=cluster, settings=SETTINGS | more)
    with server.running("gateway"):
        yield server


@pytest.fixture
def other(tenant: Tenant) -> tuple[Tenant, str]:
    """Another tenant, with a token that may upload."""
    folder = tenant.folder / "other"
    folder.mkdir()
    found = replace(tenant, namespace=tenant.cluster.namespace(), folder=folder, specs={})
    return found, Shelf(found.cluster, folder).grant(found.namespace, "sender", verbs=("get", "update"))


def head(method: str, path: str, token: str, **headers: str) -> bytes:
    """Of a request."""
    lines = {"Host": "x", "Authorization": f"Bearer {token}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""]).encode()


def connected(glimpse: Glimpse) -> socket.socket:
    """A connection to its gateway."""
    host, _, port = glimpse.installation.gateway_url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def drip(connection: socket.socket, drop: bytes) -> bytes:
    """Send this again and again, with a third of a second between; the answer that comes at last."""
    got, timeout = b"", connection.gettimeout()
    connection.settimeout(0.3)
    for _ in range(200):
        with suppress(TimeoutError, ConnectionError):
            if chunk := connection.recv(1 << 16):
                got += chunk
            else:
                break
        with suppress(OSError):
            connection.sendall(drop)
    connection.settimeout(timeout)
    return got


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_an_upload_that_drips(tenant: Tenant, sender: str, replica: Glimpse, framing: str) -> None:
    """A body of which too little comes is ended with 408, though it is never silent, and all that it held is free."""
    tenant.glimpse = replica
    store = tenant.store()
    waiting(tenant, "a", store)
    with closing(begun(tenant, "a", sender, framing)) as connection:
        got = drip(connection, b"x" if "Length" in framing else b"1\r\nx\r\n")
    assert got.startswith(b"HTTP/1.1 408 "), got
    assert b"Fewer than 1000 bytes a second came over 3 s." in got
    no_more(tenant)
    wait_until("no worker", lambda: workers(tenant) == [], timeout=60)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)


@pytest.mark.parametrize("checked", [False, True])
def test_a_part_that_drips(tenant: Tenant, sender: str, replica: Glimpse, checked: bool) -> None:
    """The same of a part; what has come of it is kept, unless it has a checksum, and the next request has its turn."""
    tenant.glimpse = replica
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    more = {"Upload_Checksum": checksum(DATA)} if checked else {}
    with closing(connected(replica)) as connection:
        lines = VERSION | PART | {"Upload-Offset": "0", "Content-Length": str(len(DATA))} | more
        connection.sendall(head("PATCH", tus.path, sender, **lines))
        got = drip(connection, DATA[:1])
    assert got.startswith(b"HTTP/1.1 408 "), got
    at = tus.offset()
    assert (at == 0) == checked
    assert tus.patch(at, DATA[at:]).status == 204


def test_a_sender_that_is_slow_enough(tenant: Tenant, sender: str, replica: Glimpse) -> None:
    """Who brings what is asked of him is waited for, over many windows, also where it does not come evenly."""
    tenant.glimpse = replica
    waiting(tenant, "a")
    size = 15 * 2000
    with closing(begun(tenant, "a", sender, f"Content-Length: {size}")) as connection:
        connection.settimeout(1)
        for start in range(0, size, 2000):
            connection.sendall(DATA[start : start + 2000])
            with pytest.raises(TimeoutError):
                connection.recv(1)
            if start + 2000 >= size - 2000:
                break
        connection.settimeout(60)
        connection.sendall(DATA[size - 2000 : size])
        assert connection.recv(100).startswith(b"HTTP/1.1 201 ")


def test_one_tenant_has_half_of_the_places(
    tenant: Tenant, sender: str, patient: Glimpse, other: tuple[Tenant, str]
) -> None:
    """However many uploads he begins, and never ends, another one finds a place; and so does he when one has ended."""
    for each in (tenant, other[0]):
        each.glimpse = patient
    for number in range(PLACES // 2 + 1):
        waiting(tenant, f"i{number}")
    waiting(other[0], "a")
    with ExitStack() as stack:
        held = [
            stack.enter_context(closing(begun(tenant, f"i{number}", sender, f"Content-Length: {len(DATA)}")))
            for number in range(PLACES // 2)
        ]
        wait_until("all to be at work", lambda: len(workers(tenant)) == PLACES // 2, timeout=60)
        refused = send(tenant, f"i{PLACES // 2}", DATA, sender)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert f"into namespace {tenant.namespace}" in detail(refused)
        assert send(other[0], "a", DATA, other[1]).status == 201
        held[0].close()
        wait_until(
            "a place",
            lambda: send(tenant, f"i{PLACES // 2}", DATA, sender, If_None_Match="*").status == 201,
            timeout=60,
        )


def test_parts_that_are_kept_back(tenant: Tenant, sender: str, patient: Glimpse, other: tuple[Tenant, str]) -> None:
    """One tenant's parts with a checksum that never come to an end do not hold up another's; he hears that they do."""
    for each in (tenant, other[0]):
        each.glimpse = patient
    lines = VERSION | PART | {"Upload-Offset": "0", "Content-Length": str(len(DATA)), "Expect": "100-continue"}
    lines |= {"Upload-Checksum": checksum(DATA)}
    for name in ("a", "b", "c"):
        waiting(tenant, name)
    waiting(other[0], "a")
    with ExitStack() as stack:
        for name in ("a", "b"):
            tus = Tus(tenant, name, sender).begun(len(DATA))
            connection = stack.enter_context(closing(connected(patient)))
            connection.sendall(head("PATCH", tus.path, sender, **lines))
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        third = Tus(tenant, "c", sender).begun(len(DATA))
        refused = third.patch(0, DATA, Upload_Checksum=checksum(DATA))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        theirs = Tus(other[0], "a", other[1]).begun(len(DATA))
        assert theirs.patch(0, DATA, Upload_Checksum=checksum(DATA)).status == 204
    wait_until("a turn", lambda: third.patch(0, DATA, Upload_Checksum=checksum(DATA)).status == 204, timeout=60)
