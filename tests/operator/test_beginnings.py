"""How uploads begin, through the whole installation: what was true before a wait counts no more after it."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from tests.operator.support import Tenant, condition, content, digest
from tests.operator.test_tus_breaks import replica as replica  # noqa: PLC0414 - a fixture
from tests.operator.test_upload import begun, detail, no_more, send, uploads, waiting
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.tuses import Tus

from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import NAMESPACE, Object
from servers.shelf import Answer, Shelf, ask

A, B = content(1), content(2, 2_500_000)
GONE = (404, 410)
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@contextmanager
def without_operator(tenant: Tenant) -> Iterator[None]:
    """Nobody gives an upload a revision; the operator is there again after the block."""
    tenant.glimpse.kill("operator")
    try:
        yield
    finally:
        tenant.glimpse.launch("operator")
        tenant.glimpse.await_ready("operator")


@contextmanager
def under_way(tenant: Tenant, name: str, token: str) -> Iterator[None]:
    """An upload that has begun, and comes to a good end with the block."""
    with begun(tenant, name, token, len(B)) as connection:
        connection.send(B[:1000])
        tenant.wait(name, lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        yield
        connection.send(B[1000:])
        assert connection.getresponse().status == 201


def at_work(tenant: Tenant, number: int) -> None:
    """Wait until the gateway has so many requests in hand, that for its metrics among them."""

    def look() -> bool:
        answer = ask(f"{tenant.glimpse.installation.gateway_url}/metrics")
        found = re.findall(rb"^glimpse_gateway_active_requests\{.*\} (\d+)", answer.body, re.MULTILINE)
        return sum(map(int, found)) >= number

    wait_until(f"{number} requests", look, timeout=60)


def made(tenant: Tenant, since: str) -> int:
    """How many ImageUploads were made in the namespace since this version."""
    path = f"/apis/glimpse.dev/v1alpha1/namespaces/{tenant.namespace}/imageuploads"
    url = f"{tenant.cluster.url}{path}?watch=true&resourceVersion={since}&timeoutSeconds=1"
    answer = ask(url, token=tenant.cluster.token, ca=tenant.cluster.ca_file)
    return sum(json.loads(line)["type"] == "ADDED" for line in answer.body.splitlines())


def version(tenant: Tenant) -> str:
    """Of all ImageUploads."""
    path = f"/apis/glimpse.dev/v1alpha1/namespaces/{tenant.namespace}/imageuploads"
    return str(tenant.cluster.request("GET", path)["metadata"]["resourceVersion"])


@pytest.mark.parametrize("by_tus", [False, True], ids=["PUT", "tus"])
def test_a_checksum_that_is_set_while_an_upload_waits(tenant: Tenant, sender: str, by_tus: bool) -> None:
    """Bytes are judged by the spec that their revision is given for, and not by that of when they were offered."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender)
    with ThreadPoolExecutor(1) as pool:
        with without_operator(tenant):
            offered = pool.submit(tus.create, len(A), None, A) if by_tus else pool.submit(send, tenant, "a", A, sender)
            wait_until("the upload", lambda: len(uploads(tenant)) == 1, timeout=60)
            tenant.edit("a", checksum={"digest": digest(B)})
        answer = offered.result()
    assert (answer.status, detail(answer).partition(":")[0]) == (422, "ChecksumMismatch")
    assert "artifact" not in tenant.read("a")["status"]
    assert send(tenant, "a", B, sender).status == 201


@pytest.mark.parametrize("by_tus", [False, True], ids=["PUT", "tus"])
def test_nobody_overwrites_what_he_has_not_seen(tenant: Tenant, sender: str, by_tus: bool) -> None:
    """`If-None-Match: *` counts when the upload has its turn: another may have been first meanwhile."""
    waiting(tenant, "a")
    with ThreadPoolExecutor(1) as pool:
        with under_way(tenant, "a", sender):
            if by_tus:
                second = pool.submit(Tus(tenant, "a", sender).create, len(A), {"If_None_Match": "*"})
            else:
                second = pool.submit(send, tenant, "a", A, sender, If_None_Match="*")
            at_work(tenant, 3)
        assert second.result().status == 412
    no_more(tenant)
    assert ask(tenant.link("a"), token=sender).body == B


def test_two_replicas_take_one(tenant: Tenant, sender: str, replica: Glimpse) -> None:
    """The same where each replica knows of its own upload only, and the operator says whose turn it is."""
    waiting(tenant, "a")
    headers = {"If-None-Match": "*"}
    urls = [tenant.link("a")]
    urls.append(urls[0].replace(tenant.glimpse.installation.gateway_url, replica.installation.gateway_url))
    with ThreadPoolExecutor(2) as pool:
        with without_operator(tenant):
            both = [pool.submit(ask, url, token=sender, method="PUT", body=A, headers=headers) for url in urls]
            wait_until("both", lambda: len(uploads(tenant)) == 2, timeout=60)
        answers = sorted(each.result().status for each in both)
    assert answers in ([201, 412], [201, 409])  # who waits for too long is not told whether it would fit
    no_more(tenant)


def test_preconditions_with_lists(tenant: Tenant, sender: str) -> None:
    """`If-Match` and `If-None-Match` take several ETags; a weak one is none that an upload may rest on."""
    waiting(tenant, "a")
    assert send(tenant, "a", A, sender, If_Match="*").status == 412
    assert send(tenant, "a", A, sender, If_None_Match=f'"{digest(A)}"').status == 201
    first = f'"{digest(A)}"'
    for name, value, status in (
        ("If_Match", f'W/{first}, "x"', 412),
        ("If_Match", '"x", "y"', 412),
        ("If_None_Match", f'"x", {first}', 412),
        ("If_Match", f'"x", {first}', 201),
        ("If_None_Match", f'"x", {first}', 201),
    ):
        assert send(tenant, "a", B, sender, **{name: value}).status == status, (name, value)


def test_only_one_of_many_wishes_has_an_account(tenant: Tenant, sender: str) -> None:
    """Of those who want to begin at once one does; the others hear so, and cost the API server no object."""
    waiting(tenant, "a")
    since, senders = version(tenant), [Tus(tenant, "a", sender) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda tus: tus.create(len(B)), senders))
    assert sorted(answer.status for answer in answers) == [201, *[409] * 5]
    assert made(tenant, since) == 1
    assert send(tenant, "a", A, sender).status == 409
    assert made(tenant, since) == 1


def test_an_upload_that_was_given_up(tenant: Tenant, sender: str) -> None:
    """It gives way to a new one when no request has come for it for long enough, and not before."""
    store = tenant.store()
    for name, new in (("a", False), ("b", True)):
        waiting(tenant, name, store)
        tus = Tus(tenant, name, sender).begun(len(B))
        tus.sent(0, B[:1_500_000])
        wait_until("nobody to have it in hand", lambda tus=tus: "holder" not in tus.account(), timeout=60)  # type: ignore[misc]
        lately = tus.account()["heldUntil"]
        silent(tenant, tus)
        assert tus.ask("HEAD").status == 200  # its sender is there again
        wait_until("its rest", lambda tus=tus: "holder" not in tus.account(), timeout=60)  # type: ignore[misc]
        assert tus.account()["heldUntil"] >= lately
        assert send(tenant, name, A, sender).status == 409
        silent(tenant, tus)
        answer = Tus(tenant, name, sender).create(len(A), first=A) if new else send(tenant, name, A, sender)
        assert answer.status == 201, answer.body
        assert ask(tenant.link(name), token=sender).body == A
        wait_until("its end", lambda tus=tus: tus.ask("HEAD").status in GONE, timeout=60)  # type: ignore[misc]
        assert "another upload has taken its place" in tenant.event(name, reason="UploadFailed")
    wait_until("a clean store", lambda: tenant.leftover(store) == [], timeout=60)


def silent(tenant: Tenant, tus: Tus) -> None:
    """No request has come for it for longer than uploads may be silent; it has not expired."""
    path = f"{tenant.cluster.path(tenant.ref(tus.name, 'ImageUpload'))}/status"
    past = {"status": {"heldUntil": "2026-01-01T00:00:00Z"}}
    tenant.cluster.request("PATCH", path, past, content_type="application/merge-patch+json")


def test_deactivated(tenant: Tenant, sender: str) -> None:
    """It takes uploads of those alone who may download it still: administrators."""
    waiting(tenant, "a", deactivated=True)
    for answer in (send(tenant, "a", A, sender), Tus(tenant, "a", sender).create(len(A))):
        assert (answer.status, "deactivated" in detail(answer)) == (403, True)
    assert uploads(tenant) == []
    resources = ("images/data", "images/deactivated")
    shelf = Shelf(tenant.cluster, tenant.folder)
    admin = shelf.grant(tenant.namespace, "admin", verbs=("get", "update"), resources=resources)
    assert send(tenant, "a", A, admin).status == 201
    assert ask(tenant.link("a"), token=admin).body == A
    assert ask(tenant.link("a"), token=sender).status == 403


# -- what a sender hears of the installation's troubles


def says_nothing_of(answer: Answer, *words: str) -> None:
    """The answer has a reason and none of these words in it; the log has one of them."""
    text = answer.body.decode()
    assert [word for word in (NAMESPACE, "kubectl", "system:serviceaccount", *words) if word in text] == []


@contextmanager
def changed(tenant: Tenant, path: str, patch: list[Object], back: list[Object]) -> Iterator[None]:
    """An object of Kubernetes is another one in the block (JSON patches)."""
    tenant.cluster.request("PATCH", path, patch, content_type="application/json-patch+json")
    try:
        yield
    finally:
        tenant.cluster.request("PATCH", path, back, content_type="application/json-patch+json")


def verbs(value: list[str]) -> list[Object]:
    """A patch of the gateway's rights on uploads."""
    return [
        {"op": "test", "path": "/rules/1/resources", "value": ["imageuploads"]},
        {"op": "replace", "path": "/rules/1/verbs", "value": value},
    ]


def test_no_right_to_begin(tenant: Tenant, sender: str) -> None:
    """Where Kubernetes says no to the gateway, its words are for the administrator."""
    waiting(tenant, "a")
    rights: Any = tenant.cluster.request("GET", f"{RBAC}/clusterroles/glimpse-gateway")["rules"][1]["verbs"]
    fewer = [verb for verb in rights if verb != "create"]
    found: list[Answer] = []

    def refused() -> bool:
        found[:] = [send(tenant, "a", A, sender)]
        return found[0].status == 403

    with changed(tenant, f"{RBAC}/clusterroles/glimpse-gateway", verbs(fewer), verbs(rights)):
        wait_until("a no", refused, timeout=60)
    says_nothing_of(found[0], "imageuploads", "cannot create")
    assert "an administrator finds" in detail(found[0])
    assert "cannot create resource" in (tenant.glimpse.folder / "gateway.log").read_text()
    wait_until("the right", lambda: send(tenant, "a", A, sender).status == 201, timeout=60)


def test_a_secret_that_cannot_be_read(tenant: Tenant, sender: str) -> None:
    """The sender hears which store, and not which Secret."""
    secret = f"login-{tenant.namespace}"
    meta = {"name": secret, "namespace": NAMESPACE, "labels": {"glimpse.dev/use": "store"}}
    data = {"key": base64.b64encode(b"value").decode()}
    tenant.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    store = tenant.store(secretRef={"name": secret})
    waiting(tenant, "a", store)
    role = f"{RBAC}/namespaces/{NAMESPACE}/roles/glimpse-gateway"
    rights: Any = tenant.cluster.request("GET", role)["rules"][0]["resources"]
    patch = [{"op": "replace", "path": "/rules/0/resources", "value": ["configmaps"]}]
    found: list[Answer] = []

    def refused() -> bool:
        found[:] = [send(tenant, "a", A, sender)]
        return found[0].status == 503

    with changed(tenant, role, patch, [{**patch[0], "value": rights}]):
        wait_until("a no", refused, timeout=60)
    says_nothing_of(found[0], secret)
    assert f"{store}: SecretNotReadable" in detail(found[0])
    assert f"may not read Secret {NAMESPACE}/{secret}" in (tenant.glimpse.folder / "gateway.log").read_text()
    wait_until("the right", lambda: send(tenant, "a", A, sender).status == 201, timeout=60)


def test_a_store_that_breaks(tenant: Tenant, sender: str) -> None:
    """The sender hears what kind of trouble it is, and not where the store lies."""
    store = tenant.store()
    waiting(tenant, "a", store)
    with begun(tenant, "a", sender, len(B)) as connection:
        connection.send(B[:1000])
        tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        shutil.rmtree(tenant.folder / store)
        connection.send(B[1000:])
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), answer.body
    says_nothing_of(answer, str(tenant.folder))
    assert str(tenant.folder) in (tenant.glimpse.folder / "gateway.log").read_text()
