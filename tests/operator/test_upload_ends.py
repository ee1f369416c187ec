"""How uploads in one request end: with their gateway, with their sender's silence, and where there is no room."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import trustme
from tests.operator.support import Tenant, condition, content, digest, holds
from tests.operator.test_beginnings import without_operator
from tests.operator.test_upload import begun, detail, no_more, send, uploads, waiting
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.tuses import Tus, another_gateway
from tests.stores.disks import make_ext4, mounted

from servers import wait_until
from servers.shelf import Answer, ask

DATA = content(11, 20_000_003)
HALF = 12_000_000


@contextmanager
def half(tenant: Tenant, token: str) -> Iterator[HTTPConnection]:
    """A PUT of which half has come."""
    with begun(tenant, "a", token, len(DATA)) as connection:
        connection.send(DATA[:HALF])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        yield connection


def answered(connection: HTTPConnection) -> Answer:
    """What it hears."""
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def clean(tenant: Tenant, store: str) -> None:
    """Wait until nothing of an upload is left, and see that the image takes the next one."""
    no_more(tenant)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    assert tenant.objects(store) == {}
    assert send(tenant, "a", DATA, token_of(tenant)).status == 201


def token_of(tenant: Tenant) -> str:
    """Of the sender."""
    return tenant.cluster.token_for(tenant.namespace, "sender", audience="glimpse")


def test_a_gateway_that_is_stopped(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """It takes nothing new, and lets the upload that has begun come to its end."""
    waiting(tenant, "a")
    with another_gateway(tenant, tmp_path / "other") as other:
        process = other.glimpse.processes["gateway"]
        with half(other, sender) as connection:
            process.signal(signal.SIGTERM)
            wait_until("the door to be closed", lambda: not other.glimpse.program_ready("gateway"), timeout=30)
            connection.send(DATA[HALF:])
            assert answered(connection).status == 201
        assert process.wait(30)
    assert ask(tenant.link("a"), token=sender).body == DATA


def test_a_gateway_that_cannot_wait(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """What has not come when its time is over is cut off; nothing of it is left."""
    store = tenant.store()
    waiting(tenant, "a", store)
    with another_gateway(tenant, tmp_path / "other", GATEWAY_DRAIN="1") as other:
        process = other.glimpse.processes["gateway"]
        with half(other, sender) as connection:
            process.signal(signal.SIGTERM)
            with pytest.raises((RemoteDisconnected, ConnectionError)):
                connection.getresponse()
        assert process.wait(30)
    clean(tenant, store)


def test_a_gateway_that_is_killed(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """Its upload ends by itself after a minute, and what was begun of it goes from the store."""
    store = tenant.store()
    waiting(tenant, "a", store)
    with another_gateway(tenant, tmp_path / "other") as other:
        with half(other, sender) as connection:
            wait_until("what a store keeps", lambda: tenant.leftover(store) != [], timeout=60)
            other.glimpse.kill("gateway")
            with pytest.raises((RemoteDisconnected, ConnectionError)):
                connection.getresponse()
        assert tenant.leftover(store)
        answer = send(tenant, "a", DATA, sender)
        assert (answer.status, "Another upload" in detail(answer)) == (409, True)
        found = tenant.wait("a", lambda o: "came to nothing" in condition(o, "Ready").get("message", ""))
        assert "UploadExpired" in condition(found, "Ready")["message"]
    clean(tenant, store)


def expire(tenant: Tenant, name: str) -> None:
    """An upload has had no word of its gateway for too long."""
    path = f"{tenant.cluster.path(tenant.ref(name, 'ImageUpload'))}/status"
    past = {"status": {"expiresAt": "2026-01-01T00:00:00Z"}}
    tenant.cluster.request("PATCH", path, past, content_type="application/merge-patch+json")


TAKEN_AWAY: Final[dict[str, tuple[Callable[[Tenant, str], object], str]]] = {
    "deleted": (lambda tenant, _: tenant.delete("a"), "create it again, then upload"),
    "suspended": (lambda tenant, _: tenant.edit("a", suspend=True), "unset spec.suspend, then upload again"),
    "edited": (lambda tenant, _: tenant.edit("a", checksum={"digest": digest(b"x")}), "The image was changed"),
    "elsewhere": (
        lambda tenant, _: tenant.edit("a", source={"http": {"urls": [tenant.web.url("/x")]}}),
        "from elsewhere",
    ),
    "removed": (lambda tenant, name: tenant.delete(name, "ImageUpload"), "its ImageUpload was removed"),
    "expired": (expire, "has expired"),
}
"""What is done to an image or an upload, and what its sender must hear."""


@pytest.mark.parametrize("by_tus", [False, True], ids=["PUT", "tus"])
@pytest.mark.parametrize("how", TAKEN_AWAY)
def test_an_upload_that_is_taken_away(tenant: Tenant, sender: str, by_tus: bool, how: str) -> None:
    """Its sender hears what has happened to it, and what he can do; nothing of it is left."""
    store = tenant.store()
    waiting(tenant, "a", store)
    take_away, words = TAKEN_AWAY[how]
    tus = Tus(tenant, "a", sender)
    with tus.begun(len(DATA)).sending(0, len(DATA)) if by_tus else half(tenant, sender) as connection:
        if by_tus:
            connection.send(DATA[:HALF])
            wait_until("the bytes", lambda: tus.offset() == HALF, timeout=60)
        (upload,) = uploads(tenant)
        take_away(tenant, upload["metadata"]["name"])
        if not by_tus:  # who sends more hears it then
            tenant.wait("a", lambda o: not o or "upload" not in o["status"].get("pending", {}))
            with suppress(OSError):
                connection.send(DATA[HALF:])
        answer = answered(connection)
    assert answer.status in (404, 409)
    assert words in detail(answer)
    no_more(tenant)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)


def test_an_image_that_is_deactivated_meanwhile(tenant: Tenant, sender: str) -> None:
    """An upload that has begun goes on: only downloads are shut off."""
    waiting(tenant, "a")
    with half(tenant, sender) as connection:
        tenant.edit("a", deactivated=True)
        tenant.wait("a", lambda o: o["status"]["observedGeneration"] == o["metadata"]["generation"])
        connection.send(DATA[HALF:])
        assert answered(connection).status == 201


def test_a_sender_that_is_gone_before_his_turn(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """Nobody is left to be told to send: that is an upload that broke off, and no fault of the gateway's."""
    waiting(tenant, "a")
    head = f"Host: x\r\nAuthorization: Bearer {sender}\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    with another_gateway(tenant, tmp_path / "other") as other:
        parts = urlsplit(other.link("a"))
        with without_operator(tenant), socket.create_connection((str(parts.hostname), parts.port)) as connection:
            connection.sendall(f"PUT {parts.path} HTTP/1.1\r\n{head}".encode())
            wait_until("the upload", lambda: uploads(tenant) != [], timeout=60)
        tenant.wait("a", lambda o: "broke off" in condition(o, "Ready").get("message", ""))


@pytest.mark.parametrize("by_tus", [False, True], ids=["PUT", "tus"])
def test_a_sender_that_falls_silent(tenant: Tenant, sender: str, tmp_path: Path, by_tus: bool) -> None:
    """He hears 408 when he was waited for long enough; a PUT is over then, and of a part is kept what has come."""
    store = tenant.store()
    waiting(tenant, "a", store)
    with another_gateway(tenant, tmp_path / "other", GATEWAY_IDLE="2") as other:
        if by_tus:
            tus = Tus(other, "a", sender).begun(len(DATA))
            with tus.sending(0, len(DATA)) as connection:
                connection.send(DATA[:HALF])
                answer = answered(connection)
        else:
            with half(other, sender) as connection:
                answer = answered(connection)
            said = "UploadFailed: Nothing came for 2 s; send the bytes again"
            tenant.wait("a", lambda o: said in condition(o, "Ready").get("message", ""))
        assert (answer.status, "Nothing came for 2 s" in detail(answer)) == (408, True)
        if by_tus:
            at = tus.offset()
            assert 0 < at <= HALF
            tus.sent(at, DATA[at:])
            assert ask(tenant.link("a"), token=sender).body == DATA
        else:
            clean(tenant, store)


def test_as_many_as_may_be(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """Who comes beyond the limit of a replica hears when to come back, and his upload has not begun."""
    waiting(tenant, "a")
    waiting(tenant, "b")
    with another_gateway(tenant, tmp_path / "other", UPLOADS__AT_ONCE="1") as other:
        with half(other, sender) as connection:
            refused = send(other, "b", DATA, sender)
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
            connection.send(DATA[HALF:])
            assert answered(connection).status == 201
        assert send(other, "b", DATA, sender).status == 201


def test_who_waits_for_his_turn_holds_no_place(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """An image that can take no upload keeps nobody else out, and its sender hears why as soon as he has waited."""
    waiting(tenant, "b")
    tenant.specs["c"] = {"source": {"upload": {}}, "stores": ["no-such-store"]}
    tenant._apply("c")
    tenant.wait("c", lambda o: holds(o, "Stalled"))
    with another_gateway(tenant, tmp_path / "other", UPLOADS__AT_ONCE="1") as other, ThreadPoolExecutor(1) as pool:
        vain = pool.submit(send, other, "c", DATA, sender)
        wait_until("it has begun", lambda: bool(uploads(tenant)), timeout=30)
        assert send(other, "b", DATA, sender).status == 201
        assert not vain.done()
        refused = vain.result(40)
    assert refused.status == 503
    assert "StoreNotFound" in detail(refused)
    no_more(tenant)


def test_a_store_without_room(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """507 when it is full, with the time after which it may not be; nothing stays of what did not fit."""
    folder = tmp_path / "disk"
    folder.mkdir()
    make_ext4(tmp_path / "disk.img", 28 << 20)
    with mounted(folder, "-o", "loop", str(tmp_path / "disk.img")):
        store = tenant.store(folder)
        waiting(tenant, "a", store)
        answer = send(tenant, "a", content(12, 30 << 20), sender)
        assert (answer.status, answer.headers["Retry-After"]) == (507, "5"), answer.body
        assert detail(answer).partition(":")[0] == "StoreFull"
        assert detail(answer).endswith("log.")
        assert str(folder) not in detail(answer)
        no_more(tenant)
        tenant.wait(store, lambda o: condition(o, "Ready").get("status") == "True", kind="ImageStore")
        assert send(tenant, "a", DATA, sender).status == 201
        tenant.delete("a")
        tenant.delete(store, "ImageStore")


def test_by_tls(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """By curl with 100-continue, in chunks, and in parts: the same bytes by another way through the gateway."""
    authority = trustme.CA()
    ca, pair, disk = tmp_path / "ca.crt", tmp_path / "pair.pem", tmp_path / "disk.img"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pair))
    disk.write_bytes(DATA)
    files = {"GATEWAY_TLS_CERTIFICATE": str(pair), "GATEWAY_TLS_KEY": str(pair)}
    with another_gateway(tenant, tmp_path / "secure", ca, **files) as secure:
        for name, source in (("a", "disk.img"), ("b", "-")):
            waiting(tenant, name)
            with disk.open("rb") as file:
                subprocess.run(
                    [
                        *("curl", "-sS", "--fail-with-body", "--cacert", ca, "-T", source),
                        *("-H", "Expect: 100-continue", "--oauth2-bearer", sender, secure.link(name)),
                    ],
                    check=True,
                    capture_output=True,
                    cwd=tmp_path,
                    stdin=file,
                )
        waiting(tenant, "c")
        tus = Tus(secure, "c", sender, ca=ca).begun(len(DATA))
        tus.sent(0, DATA[:HALF], 1_500_000)
        assert tus.offset() == HALF
        tus.sent(HALF, DATA[HALF:])
        for name in "abc":
            assert tenant.ready(name)["artifact"]["digest"] == digest(DATA)
            assert ask(secure.link(name), token=sender, ca=ca).body == DATA
        with begun_by_tls(secure, sender, ca) as process:
            process.kill()
        tenant.wait("a", lambda o: "pending" not in o["status"])
        assert ask(secure.link("a"), token=sender, ca=ca).body == DATA


@contextmanager
def begun_by_tls(secure: Tenant, token: str, ca: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A PUT whose sender has more to send."""
    reading, writing = os.pipe()
    url = urlsplit(secure.link("a")).geturl()
    command = ["curl", "-sS", "--cacert", str(ca), "-T", "-", "--oauth2-bearer", token, url]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        os.close(reading)
        try:
            os.write(writing, DATA[:1000])
            secure.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
            yield process
        finally:
            os.close(writing)
