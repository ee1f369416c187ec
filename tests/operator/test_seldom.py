"""What happens seldom, and must go well all the same."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from tests.operator.support import REQUESTED_AT, Tenant, condition, content, digest, done, holds, said, slow

from glimpse.testing.faults import Server

ONE, TWO = content(1), content(2)


def test_one_store_of_two_is_away(tenant: Tenant) -> None:
    """One store is enough to be served; the other is filled from it when it is back, not from the source."""
    here, away = tenant.store(), tenant.store(probeInterval="1s")
    folder = tenant.folder / away
    folder.rename(tenant.folder / "elsewhere")
    tenant.wait(away, lambda o: condition(o, "Ready").get("status") == "False", "ImageStore")
    key = tenant.image("a", tenant.serve("a", ONE), stores=[away, here])["metadata"]["uid"] + "-1"
    found = tenant.wait("a", lambda o: holds(o, "Ready") and condition(o, "Stored").get("status") == "False")
    assert condition(found, "Stored")["reason"] == "StoreUnavailable"
    assert condition(found, "Reconciling")["reason"] == "ProgressingWithRetry"
    assert found["status"]["summary"]["stores"] == "1/2"
    tenant.download(tenant.link("a"), body=ONE)
    (tenant.folder / "elsewhere").rename(folder)
    tenant.ready("a")
    assert tenant.objects(here) == tenant.objects(away) == {key: ONE}
    assert len(tenant.web.requests) == 1


def test_a_deleted_store_is_left_by_an_edit(tenant: Tenant) -> None:
    """Images that name another store let a deleted one go, and lose nothing."""
    old, new = tenant.store(), tenant.store()
    tenant.image("a", tenant.serve("a", ONE), stores=[old])
    tenant.ready("a")
    tenant.delete(old, "ImageStore", wait=False)
    tenant.wait(old, lambda o: holds(o, "InUse"), "ImageStore")
    tenant.edit("a", stores=[new])
    tenant.gone(old, "ImageStore")
    tenant.ready("a")
    assert (tenant.objects(old), list(tenant.objects(new).values())) == ({}, [ONE])
    assert len(tenant.web.requests) == 1


def test_stores_changed_in_the_middle(tenant: Tenant) -> None:
    """A store that is named during the transfer gets its copy, one that is no longer named keeps nothing."""
    one, two = tenant.store(), tenant.store()
    tenant.image("a", tenant.serve("a", slow(ONE)), stores=[one])
    tenant.transferring("a")
    tenant.edit("a", stores=[one, two])
    tenant.web.release()
    tenant.ready("a")
    assert tenant.objects(one) == tenant.objects(two)
    tenant.edit("a", source={"http": {"urls": [tenant.serve("b", TWO)]}}, stores=[two], revisions={"grace": "0s"})
    tenant.ready("a", revision=2)
    tenant.wait("a", lambda o: done(o) and "removals" not in said(o))
    assert tenant.objects(one) == {}
    assert list(tenant.objects(two).values()) == [TWO]


def test_an_empty_file(tenant: Tenant) -> None:
    """Nothing is no image, and nothing is stored of it."""
    store = tenant.store()
    tenant.image("a", tenant.serve("a", b""), stores=[store])
    tenant.stalled("a", "FormatMismatch")
    assert tenant.objects(store) == {}


def test_there_and_back(tenant: Tenant) -> None:
    """An edit that is taken back is a new revision with a number of its own."""
    store = tenant.store()
    first = {"http": {"urls": [tenant.serve("1", ONE)]}}
    tenant.image("a", tenant.web.url("/1"), stores=[store], revisions={"grace": "0s"})
    tenant.ready("a", revision=1)
    tenant.edit("a", source={"http": {"urls": [tenant.serve("2", TWO)]}})
    tenant.ready("a", revision=2)
    tenant.edit("a", source=first)
    assert tenant.ready("a", revision=3)["artifact"]["digest"] == digest(ONE)
    tenant.download(tenant.link("a"), body=ONE)


def test_a_failing_source_mends_with_the_spec(tenant: Tenant) -> None:
    """An edit is another try, whatever went wrong before."""
    store = tenant.store()
    tenant.image("a", tenant.web.url("/none"), stores=[store])
    tenant.stalled("a", "SourceNotFound")
    tenant.edit("a", source={"http": {"urls": [tenant.serve("1", ONE)]}})
    tenant.ready("a")
    assert list(tenant.objects(store).values()) == [ONE]


def test_capital_digits(tenant: Tenant) -> None:
    """A digest is the same in capital digits; to write it so moves nothing."""
    store = tenant.store()
    algorithm, _, value = digest(ONE).partition(":")
    tenant.image("a", tenant.serve("1", ONE), stores=[store], checksum={"digest": f"{algorithm}:{value.upper()}"})
    tenant.ready("a")
    tenant.edit("a", checksum={"digest": digest(ONE)})
    assert tenant.ready("a")["artifact"]["revision"] == 1
    assert len(tenant.web.requests) == 1


def test_force_without_need(tenant: Tenant) -> None:
    """A forced look at an Image that is complete moves nothing, and is confirmed."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", ONE), stores=[store])
    tenant.ready("a")
    tenant.annotate("a", REQUESTED_AT, "1")
    tenant.wait("a", lambda o: done(o) and said(o).get("lastHandledReconcileAt") == "1")
    assert len(tenant.web.requests) == 1


def test_deleted_while_suspended(tenant: Tenant) -> None:
    """A suspended Image is removed like any other."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", ONE), stores=[store])
    tenant.ready("a")
    tenant.edit("a", suspend=True)
    tenant.delete("a")
    assert tenant.objects(store) == {}


def test_finalizers_of_others(tenant: Tenant) -> None:
    """Finalizers of others stay, and the bytes are gone before they are."""
    store = tenant.store()
    made = tenant.image("a", tenant.serve("1", ONE), stores=[store])
    tenant.ready("a")
    path = tenant.cluster.path(made)
    ours = tenant.read("a")["metadata"]["finalizers"]

    def finalizers(names: list[str]) -> None:
        body = {"metadata": {"finalizers": names}}
        tenant.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")

    finalizers([*ours, "example.com/audit"])
    tenant.delete("a", wait=False)
    tenant.wait("a", lambda o: o["metadata"]["finalizers"] == ["example.com/audit"])
    assert tenant.objects(store) == {}
    finalizers([])
    tenant.gone("a")


def test_a_lost_status(tenant: Tenant) -> None:
    """A status that somebody wiped is made again from the store: no byte is moved."""
    store = tenant.store()
    made = tenant.image("a", tenant.serve("1", ONE), stores=[store])
    before = tenant.ready("a")["artifact"]
    path = f"{tenant.cluster.path(made)}/status"
    wiped = tenant.cluster.request("PATCH", path, {"status": None}, content_type="application/merge-patch+json")
    assert "artifact" not in wiped.get("status", {})
    assert tenant.ready("a")["artifact"] == before
    assert len(tenant.web.requests) == 1
    tenant.delete("a")
    assert tenant.objects(store) == {}


@pytest.fixture
def authority() -> trustme.CA:
    """An authority that no machine knows."""
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> Iterator[Server]:
    """A web server with a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Server(context) as server:
        yield server


def test_an_authority_of_ones_own(tenant: Tenant, tls: Server, authority: trustme.CA, tmp_path: Path) -> None:
    """A server with an unknown certificate is not believed, until its authority is named, or the spec says so."""
    secure = Tenant(tenant.cluster, tenant.glimpse, tmp_path, tls, tenant.namespace)
    store = secure.store()
    url = secure.serve("1", ONE)
    secure.image("a", url, stores=[store])
    assert "caBundleRef" in secure.retried("a", "SourceUnavailable")
    assert secure.objects(store) == {}
    http = {"urls": [url], "caBundleRef": {"configMap": "corp"}}
    secure.edit("a", source={"http": http})
    assert "kubectl create rolebinding" in secure.retried("a", "SecretNotReadable")
    secure.cluster.kubectl(
        *("create", "rolebinding", "glimpse-secrets", "--clusterrole=glimpse-secrets"),
        *("--serviceaccount=glimpse-system:glimpse-operator", "-n", secure.namespace),
    )
    meta = {"name": "corp", "namespace": secure.namespace}
    pem = authority.cert_pem.bytes().decode()
    secure.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"ca.pem": pem}})
    secure.ready("a")
    secure.image("b", url, stores=[store])
    secure.edit("b", source={"http": {"urls": [url], "insecureSkipTLSVerify": True}})
    secure.ready("b")
    assert list(secure.objects(store).values()) == [ONE, ONE]
