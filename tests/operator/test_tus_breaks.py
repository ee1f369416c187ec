"""Uploads in parts go on after all that breaks: connections, workers, gateways, and from one replica to another."""

import io
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.operator.conftest import SETTINGS
from tests.operator.support import Tenant, condition, content
from tests.operator.test_tus import served
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.test_upload import waiting
from tests.operator.tuses import Tus, workers
from tusclient.client import TusClient

from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import ask

DATA = content(7, 20_000_003)
HALF = 12_000_000
BEHIND = 8 << 20
"""Bytes that a kill may cost: what was noted last, and what the worker held in its hands."""


@pytest.fixture
def replica(cluster: Cluster, tmp_path: Path) -> Iterator[Glimpse]:
    """A second replica of the gateway, with a place for one worker, which waits for longer than any test."""
    more = {"GLIMPSE_UPLOADS__AT_ONCE": "1", "GLIMPSE_UPLOADS__LINGER": "900"}
    second = Glimpse(tmp_path / "replica", cluster=cluster, settings=SETTINGS | more)
    with second.running("gateway"):
        yield second


def half(tenant: Tenant, token: str, name: str = "a") -> Tus:
    """An upload that has come so far."""
    waiting(tenant, name)
    tus = Tus(tenant, name, token).begun(len(DATA))
    tus.sent(0, DATA[:HALF], 3_000_000)
    return tus


def go_on(tus: Tus, least: int = HALF - BEHIND) -> None:
    """From where HEAD says, to a good end."""
    at = tus.offset()
    assert least <= at <= HALF
    tus.sent(at, DATA[at:], 4 << 20)
    served(tus.tenant, tus.image, tus.token, DATA)


def killed(tenant: Tenant) -> None:
    """The gateway is killed, and its workers with it."""
    tenant.glimpse.kill("gateway")
    tenant.glimpse.launch("gateway")
    tenant.glimpse.await_ready("gateway")


def restarted(tenant: Tenant) -> None:
    """The gateway is stopped in order and started again."""
    tenant.glimpse.restart("gateway")


def worker_killed(tenant: Tenant) -> None:
    """The worker alone is killed."""
    [worker] = workers(tenant)
    os.kill(worker, signal.SIGKILL)
    wait_until("its end", lambda: worker not in workers(tenant), timeout=30)


def rested(tenant: Tenant) -> None:
    """Nothing comes for a while, so the worker goes."""
    wait_until("the end of the worker", lambda: workers(tenant) == [], timeout=60)


def operator_killed(tenant: Tenant) -> None:
    """The operator is killed and started again."""
    tenant.glimpse.kill("operator")
    tenant.glimpse.launch("operator")
    tenant.glimpse.await_ready("operator")


@pytest.mark.parametrize("broken", [killed, restarted, worker_killed, rested, operator_killed])
def test_between_two_parts(tenant: Tenant, sender: str, broken: Callable[[Tenant], None]) -> None:
    """What the store has kept is not sent again, and the image is right."""
    tus = half(tenant, sender)
    broken(tenant)
    go_on(tus)


@pytest.mark.parametrize("broken", [killed, restarted, worker_killed])
def test_amid_a_part(tenant: Tenant, sender: str, broken: Callable[[Tenant], None]) -> None:
    """The same while bytes come."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    with tus.sending(0, len(DATA)) as connection:
        connection.send(DATA[:HALF])
        wait_until("the bytes", lambda: tus.offset() == HALF, timeout=90)
        broken(tenant)
    go_on(tus)


def test_a_connection_that_hangs(tenant: Tenant, sender: str) -> None:
    """A sender that says nothing for some seconds gives way to the next request: its end may never be told."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    with tus.sending(0, len(DATA)) as connection:
        connection.send(DATA[:HALF])
        wait_until("the bytes", lambda: tus.offset() == HALF, timeout=90)
        wait_until("a turn", lambda: tus.patch(HALF, DATA[HALF : HALF + 1000]).status == 204, timeout=45)
        assert connection.getresponse().status == 409
    tus.sent(HALF + 1000, DATA[HALF + 1000 :], 8 << 20)
    served(tenant, "a", sender, DATA)


def test_before_the_first_checkpoint(tenant: Tenant, sender: str) -> None:
    """What is too little to be kept is sent again from the start."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:1000])
    killed(tenant)
    assert tus.offset() == 0
    tus.sent(0, DATA, 8 << 20)
    served(tenant, "a", sender, DATA)


@pytest.mark.parametrize("broken", [killed, restarted])
def test_the_answer_is_lost(tenant: Tenant, sender: str, broken: Callable[[Tenant], None]) -> None:
    """All was sent, and the gateway goes before it can say so: the sender hears it when it asks again."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:HALF], 6_000_000)
    tenant.glimpse.kill("operator")  # nobody can make a revision of it
    try:
        with tus.sending(HALF, len(DATA) - HALF) as connection:
            connection.send(DATA[HALF:])
            folder = tenant.folder / tenant.specs["a"]["stores"][0] / "objects"
            wait_until("the bytes in the store", lambda: list(folder.glob("*/data")) != [], timeout=60)
            broken(tenant)
    finally:
        tenant.glimpse.launch("operator")
        tenant.glimpse.await_ready("operator")
    assert tus.offset() == len(DATA)
    served(tenant, "a", sender, DATA)


def test_what_was_kept_is_damaged(tenant: Tenant, sender: str) -> None:
    """It is told from what was sent, and the sender begins again; no byte of it is in the image."""
    tus = half(tenant, sender)
    rested(tenant)
    [kept] = (tenant.folder / tenant.specs["a"]["stores"][0] / "attempts").glob("*/data")
    with kept.open("r+b") as file:
        file.write(b"damaged")
    at = tus.offset()
    assert at > 0
    answer = tus.patch(at, DATA[at:])
    assert answer.status == 503, answer.body
    assert tus.offset() == 0
    tus.sent(0, DATA, 8 << 20)
    served(tenant, "a", sender, DATA)


def test_another_replica_takes_it_over(tenant: Tenant, sender: str, replica: Glimpse) -> None:
    """Between two parts at once, though the worker waits for more; amid one it waits for its turn."""
    waiting(tenant, "a")
    first = Tus(tenant, "a", sender, gateway=replica.installation.gateway_url).begun(len(DATA))
    first.sent(0, DATA[:HALF], 6_000_000)
    other = Tus(tenant, "a", sender, first.path)
    at = other.offset()
    assert HALF - BEHIND <= at <= HALF
    other.sent(at, DATA[at : at + 1_000_000])
    with other.sending(at + 1_000_000, len(DATA) - at - 1_000_000) as connection:
        connection.send(DATA[at + 1_000_000 : at + 1_500_000])
        wait_until("the bytes", lambda: other.offset() == at + 1_500_000, timeout=60)
        assert first.patch(at + 1_500_000, b"x").status == 423
        connection.send(DATA[at + 1_500_000 :])
        assert connection.getresponse().status == 204
    served(tenant, "a", sender, DATA)
    assert first.offset() == len(DATA)


def test_another_replica_dies(tenant: Tenant, sender: str, replica: Glimpse) -> None:
    """Its lease ends by itself, and what it had taken is gone on with here."""
    waiting(tenant, "a")
    other = Tus(tenant, "a", sender, gateway=replica.installation.gateway_url).begun(len(DATA))
    other.sent(0, DATA[:HALF], 6_000_000)
    replica.kill("gateway")
    tus = Tus(tenant, "a", sender, other.path)
    assert tus.ask("HEAD").status == 423
    go_on(tus)


def test_another_replica_is_stopped(tenant: Tenant, sender: str, replica: Glimpse) -> None:
    """It lets go of what it has in hand, so nobody waits for its lease; a part that comes then is to come again."""
    waiting(tenant, "a")
    other = Tus(tenant, "a", sender, gateway=replica.installation.gateway_url).begun(len(DATA))
    with other.sending(0, len(DATA)) as connection:
        connection.send(DATA[:HALF])
        wait_until("the bytes", lambda: other.offset() == HALF, timeout=90)
        replica.processes.pop("gateway").stop(grace=15)
        assert connection.getresponse().status == 503
    tus = Tus(tenant, "a", sender, other.path)
    assert "holder" not in tus.account()
    assert tus.ask("HEAD").status == 200
    go_on(tus)


def test_places_for_workers(tenant: Tenant, sender: str, replica: Glimpse) -> None:
    """A worker that only waits for the next part gives its place to others; one that is at work does not."""
    for name in ("a", "b"):
        waiting(tenant, name)
    first, second = (Tus(tenant, name, sender, gateway=replica.installation.gateway_url) for name in ("a", "b"))
    first.begun(len(DATA)).sent(0, DATA[:HALF], 6_000_000)
    second.begun(len(DATA)).sent(0, DATA[:1_000_000])
    with second.sending(1_000_000, len(DATA) - 1_000_000) as connection:
        connection.send(DATA[1_000_000:HALF])
        wait_until("the bytes", lambda: second.offset() == HALF, timeout=90)
        refused = first.ask("HEAD")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        connection.send(DATA[HALF:])
        assert connection.getresponse().status == 204
    at = first.offset()
    assert HALF - BEHIND <= at <= HALF
    first.sent(at, DATA[at:], 8 << 20)
    served(tenant, "a", sender, DATA)
    served(tenant, "b", sender, DATA)


def test_a_dead_gateway_leaves_nothing(tenant: Tenant, sender: str) -> None:
    """An image that is deleted takes what was uploaded of it along, though nobody goes on with it."""
    half(tenant, sender)
    tenant.glimpse.kill("gateway")
    store = tenant.specs["a"]["stores"][0]
    assert tenant.leftover(store)
    try:
        tenant.delete("a")
        assert tenant.objects(store) == {}
    finally:
        tenant.glimpse.launch("gateway")
        tenant.glimpse.await_ready("gateway")


def test_an_upload_that_is_ended_without_an_operator(tenant: Tenant, sender: str) -> None:
    """A gateway removes what its own worker has left of an upload that nobody wants any more."""
    tus = half(tenant, sender)
    store = tenant.specs["a"]["stores"][0]
    tenant.glimpse.kill("operator")
    try:
        assert tenant.leftover(store)
        tenant.delete(tus.name, "ImageUpload")
        wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    finally:
        tenant.glimpse.launch("operator")
        tenant.glimpse.await_ready("operator")


@contextmanager
def breaking(target: str, every: int) -> Iterator[tuple[str, list[int]]]:
    """A way to a server that cuts each connection after so many bytes to it; where it begins, and how many it cut."""
    parts, cuts = urlsplit(target), list[int]()
    with socket.create_server(("127.0.0.1", 0)) as door:

        def back(client: socket.socket, server: socket.socket) -> None:
            with suppress(OSError):
                while data := server.recv(1 << 16):
                    client.sendall(data)
                client.shutdown(socket.SHUT_WR)

        def forth(client: socket.socket) -> None:
            passed = 0
            with client, socket.create_connection((str(parts.hostname), parts.port)) as server, suppress(OSError):
                threading.Thread(target=back, args=(client, server), daemon=True).start()
                while data := client.recv(1 << 16):
                    passed += len(data)
                    if passed > every:
                        cuts.append(passed)
                        break
                    server.sendall(data)
                server.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=forth, args=(door.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}", cuts
        with suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("checked", [False, True])
def test_tuspy_over_a_line_that_breaks(tenant: Tenant, sender: str, checked: bool) -> None:
    """A client that others have written: it asks how far the upload is and goes on, until the image is there."""
    waiting(tenant, "a")
    with breaking(tenant.glimpse.installation.gateway_url, 6_000_000) as (line, cuts):
        client: Any = TusClient(
            line + urlsplit(tenant.link("a")).path + "/uploads", headers={"Authorization": f"Bearer {sender}"}
        )
        client.uploader(
            file_stream=io.BytesIO(DATA),
            retries=20,
            retry_delay=0.1,
            metadata={"filename": "disk.img", "filetype": "application/octet-stream"},
            upload_checksum=checked,
            **({"chunk_size": 5_000_000} if checked else {}),
        ).upload()
    assert bool(cuts) != checked
    assert condition(tenant.read("a"), "Ready")["status"] == "True"
    assert ask(tenant.link("a"), token=sender).body == DATA
