"""Uploads in one request, through the whole installation: gateway, worker and operator."""

import base64
import hashlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.gateway.test_meters import count
from tests.operator.support import Tenant, condition, content, digest, done, holds

from servers import wait_until
from servers.shelf import Answer, Shelf, ask

A, B = content(1), content(2, 2_500_000)


@pytest.fixture
def sender(tenant: Tenant) -> str:
    """A token that may upload to every image of the namespace, and download them."""
    return Shelf(tenant.cluster, tenant.folder).grant(tenant.namespace, "sender", verbs=("get", "update"))


def waiting(tenant: Tenant, name: str, *stores: str, **spec: Any) -> None:
    """Apply an Image that waits for an upload."""
    tenant.specs[name] = {"source": {"upload": {}}, "stores": list(stores or (tenant.store(),)), **spec}
    tenant._apply(name)
    found = tenant.wait(name, lambda o: condition(o, "Ready") != {})
    assert condition(found, "Ready")["reason"] == "WaitingForUpload"
    assert not holds(found, "Reconciling")
    assert not holds(found, "Stalled")


def send(tenant: Tenant, name: str, data: bytes, token: str | None, **headers: str) -> Answer:
    """PUT it."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return ask(tenant.link(name), token=token, method="PUT", body=data, headers=named)


def chunked(tenant: Tenant, name: str, data: bytes, token: str) -> Answer:
    """PUT it without its length."""
    headers = {"Authorization": f"Bearer {token}"}  # Transfer-Encoding is set by the client
    parts = urlsplit(tenant.link(name))
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)) as connection:
        with suppress(OSError):  # an answer may come before the end
            connection.request("PUT", parts.path, iter([data]), headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def repr_digest(data: bytes) -> str:
    """As in the header."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def detail(answer: Answer) -> str:
    """What a refusal says."""
    return str(json.loads(answer.body)["detail"])


def uploads(tenant: Tenant) -> list[Any]:
    """The ImageUploads of the namespace."""
    found = tenant.cluster.request("GET", f"/apis/glimpse.dev/v1alpha1/namespaces/{tenant.namespace}/imageuploads")
    return list(found["items"])


def no_more(tenant: Tenant) -> None:
    """Wait until nothing of any upload is left."""
    wait_until("the end of all uploads", lambda: not uploads(tenant), timeout=60)


def test_what_is_sent_is_served(tenant: Tenant, sender: str) -> None:
    """201 comes when the image is ready; a second upload is a second revision, while the first is there until then."""
    store, other = tenant.store(), tenant.store()
    waiting(tenant, "a", store, other)
    gateway = tenant.glimpse.installation.gateway_url
    received = count(gateway, "received_bytes_total")
    assert tenant.link("a") in condition(tenant.read("a"), "Ready")["message"].replace(
        "http://glimpse-gateway.glimpse-system.svc", tenant.glimpse.installation.gateway_url
    )
    made = send(tenant, "a", A, sender, Repr_Digest=repr_digest(A))
    assert made.status == 201, made.body
    said = json.loads(made.body)
    assert (said["digest"], said["revision"], said["size"]) == (digest(A), 1, len(A))
    assert ask(tenant.link("a"), token=sender).body == A
    found = tenant.ready("a")
    assert {each["name"] for each in found["stores"]} == {store, other}
    assert condition(tenant.read("a"), "SourceVerified")["reason"] == "DigestMatched"
    again = send(tenant, "a", B, sender)
    assert (again.status, json.loads(again.body)["revision"]) == (201, 2)
    assert ask(tenant.link("a"), token=sender).body == B
    assert count(gateway, "received_bytes_total") == received + len(A) + len(B)
    no_more(tenant)
    tenant.delete("a")
    assert tenant.objects(store) == tenant.objects(other) == {}


def test_curl_sends_a_file(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """`curl -T` with a length, which waits for 100 Continue, and from a pipe, in chunks."""
    (tmp_path / "disk.img").write_bytes(B)
    for name, source in (("a", "disk.img"), ("b", "-")):
        waiting(tenant, name)
        with (tmp_path / "disk.img").open("rb") as file:
            ran = subprocess.run(
                [
                    *("curl", "-sS", "--fail-with-body", "-T", source, "-H", f"Authorization: Bearer {sender}"),
                    *("-H", "Expect: 100-continue", "--expect100-timeout", "60", tenant.link(name)),
                ],
                check=True,
                capture_output=True,
                cwd=tmp_path,
                stdin=file,
            )
        assert json.loads(ran.stdout)["digest"] == digest(B)
        assert ask(tenant.link(name), token=sender).body == B


def test_who_may(tenant: Tenant, sender: str) -> None:
    """Without a token 401, with a right to read only 403, from another namespace 404 as if there were none."""
    waiting(tenant, "a")
    assert send(tenant, "a", A, None).status == 401
    assert send(tenant, "a", A, tenant.token).status == 403
    stranger = Shelf(tenant.cluster, tenant.folder).grant(tenant.cluster.namespace(), "sender", verbs=("update",))
    assert send(tenant, "a", A, stranger).status == send(tenant, "none", A, stranger).status == 404
    assert send(tenant, "none", A, sender).status == 404
    assert uploads(tenant) == []


def test_what_is_refused_before_a_byte(tenant: Tenant, sender: str) -> None:
    """Each with its reason, and nothing of it is left."""
    tenant.image("web", tenant.serve("web", A), stores=[tenant.store()])
    tenant.ready("web")
    assert "takes no uploads" in detail(send(tenant, "web", B, sender))
    waiting(tenant, "a", checksum={"digest": digest(A)})
    for headers, status, words in (
        ({"Content_Range": "bytes 0-9/100"}, 400, "without Content-Range"),
        ({"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
        ({"Repr_Digest": "sha-256=:AAAA:"}, 400, "32 bytes"),
        ({"Repr_Digest": "nonsense"}, 400, "BASE64"),
        ({"Repr_Digest": repr_digest(B)}, 422, "spec.checksum.digest"),
        ({"If_Match": f'"{digest(B)}"'}, 412, "precondition"),
    ):
        answer = send(tenant, "a", A, sender, **headers)
        assert (answer.status, words in detail(answer)) == (status, True), answer.body
    assert send(tenant, "a", b"", sender).status == 400
    large = ask(tenant.link("a"), token=sender, method="PUT", headers={"Content-Length": str(1 << 40)}, body=b"")
    assert large.status == 413
    assert uploads(tenant) == []
    assert send(tenant, "a", A, sender, If_None_Match="*").status == 201
    assert send(tenant, "a", A, sender, If_None_Match="*").status == 412


def test_what_is_no_image_is_refused(tenant: Tenant, sender: str) -> None:
    """The sender hears why, the image says it too and waits on, and no byte stays."""
    store = tenant.store()
    waiting(tenant, "a", store, checksum={"digest": digest(A)})
    answer = send(tenant, "a", B, sender)
    assert (answer.status, detail(answer).partition(":")[0]) == (422, "ChecksumMismatch")
    found = tenant.wait("a", lambda o: "ChecksumMismatch" in condition(o, "Ready").get("message", ""))
    assert condition(found, "Ready")["reason"] == "WaitingForUpload"
    assert "came to nothing" in condition(found, "Ready")["message"]
    assert tenant.event("a", reason="ChecksumMismatch")
    no_more(tenant)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    assert tenant.objects(store) == {}
    assert send(tenant, "a", A, sender).status == 201
    waiting(tenant, "b", store, format={"disk": "qcow2"})
    assert detail(send(tenant, "b", A, sender)).startswith("FormatMismatch")
    waiting(tenant, "c", store)
    assert chunked(tenant, "c", content(4, 33 << 20), sender).status == 413


@contextmanager
def begun(tenant: Tenant, name: str, token: str, length: int) -> Iterator[http.client.HTTPConnection]:
    """A request of which the head is sent."""
    parts = urlsplit(tenant.link(name))
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)) as connection:
        connection.putrequest("PUT", parts.path)
        connection.putheader("Authorization", f"Bearer {token}")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        yield connection


@pytest.mark.parametrize("percent", [0, 1, 50, 99])
def test_a_sender_that_goes_away(tenant: Tenant, sender: str, percent: int) -> None:
    """What was sent is gone, and the next upload finds its way."""
    store = tenant.store()
    waiting(tenant, "a", store)
    with begun(tenant, "a", sender, len(B)) as connection:
        connection.send(B[: len(B) * percent // 100])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
    found = tenant.wait("a", lambda o: "came to nothing" in condition(o, "Ready").get("message", ""))
    assert not holds(found, "Reconciling")
    no_more(tenant)
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    assert send(tenant, "a", B, sender).status == 201
    assert list(tenant.objects(store).values()) == [B]


def test_one_after_the_other(tenant: Tenant, sender: str) -> None:
    """While one upload is under way another one is told so; it disturbs nothing."""
    waiting(tenant, "a")
    with begun(tenant, "a", sender, len(B)) as connection:
        connection.send(B[:1000])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        other = send(tenant, "a", A, sender)
        assert (other.status, "Another upload for this image is under way." in detail(other)) == (409, True)
        connection.send(B[1000:])
        assert connection.getresponse().status == 201
    assert ask(tenant.link("a"), token=sender).body == B


def test_an_image_that_changes_meanwhile(tenant: Tenant, sender: str) -> None:
    """Bytes for an older spec are no revision, and the sender is told."""
    waiting(tenant, "a")
    with begun(tenant, "a", sender, len(B)) as connection:
        connection.send(B[:1000])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        tenant.edit("a", checksum={"digest": digest(A)})
        tenant.wait("a", lambda o: condition(o, "Ready").get("reason") == "WaitingForUpload")
        connection.send(B[1000:])
        answer = connection.getresponse()
        assert (answer.status, b"was changed" in answer.read()) == (409, True)
    made = send(tenant, "a", A, sender)
    assert (made.status, json.loads(made.body)["revision"]) == (201, 2)


def test_a_namespace_keeps_within_its_share(tenant: Tenant, sender: str) -> None:
    """An upload that has told its length counts from its beginning; without a length there is none."""
    store = tenant.store(quota={"perNamespace": 500_000})
    waiting(tenant, "a", store)
    waiting(tenant, "b", store)
    assert chunked(tenant, "a", A, sender).status == 411
    no_more(tenant)
    tenant.wait("a", lambda o: not holds(o, "Reconciling"))
    with begun(tenant, "a", sender, len(A)) as connection:
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        answer = send(tenant, "b", content(3), sender)
        assert (answer.status, detail(answer).partition(":")[0]) == (413, "QuotaExceeded")
        connection.send(A)
        assert connection.getresponse().status == 201
    tenant.delete("a")
    assert send(tenant, "b", content(3), sender).status == 201


def test_eight_at_once(tenant: Tenant, sender: str) -> None:
    """Each gets its own bytes."""
    store = tenant.store()
    names = [f"i{number}" for number in range(8)]
    for name in names:
        waiting(tenant, name, store)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: send(tenant, name, content(int(name[1:]), 3_000_000), sender), names))
    assert [answer.status for answer in answers] == [201] * 8
    for name in names:
        assert ask(tenant.link(name), token=sender).body == content(int(name[1:]), 3_000_000)


def test_operator_restarts_meanwhile(tenant: Tenant, sender: str) -> None:
    """An upload that has begun goes on without it, and becomes a revision when it is there again."""
    waiting(tenant, "a")
    with begun(tenant, "a", sender, len(B)) as connection:
        connection.send(B[:1000])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        tenant.glimpse.kill("operator")
        connection.send(B[1000:])
        tenant.glimpse.launch("operator")
        tenant.glimpse.await_ready("operator")
        assert connection.getresponse().status == 201
    assert done(tenant.wait("a", done))


def test_suspended_and_deleted(tenant: Tenant, sender: str) -> None:
    """Neither takes an upload; what is deleted under one leaves nothing."""
    store = tenant.store()
    waiting(tenant, "a", store, suspend=False)
    tenant.edit("a", suspend=True)
    wait_until("409", lambda: send(tenant, "a", A, sender).status == 409, timeout=30)
    tenant.edit("a", suspend=False)
    with begun(tenant, "a", sender, len(B)) as connection:
        connection.send(B[:1000])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        tenant.delete("a")
        connection.send(B[1000:])
        assert connection.getresponse().status in (404, 409)
    no_more(tenant)
