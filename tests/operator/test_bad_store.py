"""Stores that are full, gone, foreign, unknown or ambiguous: nothing is lost, nothing is guessed.

Named after the lines of bad input that the project promises to withstand.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.operator.support import DEFAULT, WAIT, Tenant, condition, content, holds, said, slow

from glimpse.testing.faults import Reply
from servers import wait_until
from servers.kube import ApiError, Cluster
from servers.require import require, require_tool

ONE = content(1)


def test_an_unknown_store(tenant: Tenant) -> None:
    """An Image for a store that is not there is given up; the store's arrival mends it."""
    key = tenant.image("a", tenant.serve("a", ONE), stores=["nowhere-yet"])["metadata"]["uid"] + "-1"
    assert "no ImageStore 'nowhere-yet'" in tenant.stalled("a", "StoreNotFound")
    assert tenant.web.requests == []
    (tenant.folder / "nowhere-yet").mkdir()
    spec = {"spec": {"filesystem": {"path": str(tenant.folder / "nowhere-yet")}}}
    tenant.cluster.apply(tenant.ref("nowhere-yet", "ImageStore") | spec)
    tenant.ready("a")
    assert tenant.objects("nowhere-yet") == {key: ONE}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = [require_tool("mount", "mount"), "-t", "tmpfs", "-o", "size=4m", "glimpse-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False, timeout=30)
    if mounted.returncode:
        require("mount", mounted.stderr.decode())
    try:
        yield folder
    finally:
        subprocess.run([require_tool("umount", "mount"), "-l", folder], check=True, timeout=30)


@pytest.mark.parametrize("chunked", [0, 100_000], ids=["with Content-Length", "without"])
def test_a_full_disk(tenant: Tenant, small: Path, chunked: int) -> None:
    """What does not fit leaves nothing, lets smaller images through, and is stored once there is room."""
    store = tenant.store(small)
    large = content(3, 6 << 20)
    tenant.image("large", tenant.serve("large", Reply(large, chunked=chunked)), stores=[store])
    assert store in tenant.retried("large", "StoreFull")
    tenant.event("large", reason="StoreFull")
    tenant.edit("large", suspend=True)
    tenant.wait("large", lambda o: bool(said(o)) and not holds(o, "Reconciling"))
    assert tenant.objects("small") == {}
    tenant.image("little", tenant.serve("little", ONE), stores=[store])
    tenant.ready("little")
    tenant.edit("large", suspend=None)
    tenant.retried("large", "StoreFull")
    remount = [require_tool("mount", "mount"), "-o", "remount,size=32m", str(small)]
    subprocess.run(remount, check=True, timeout=30)
    tenant.ready("large")
    assert sorted(len(b) for b in tenant.objects("small").values()) == [len(ONE), len(large)]


def test_a_reserve(tenant: Tenant, small: Path) -> None:
    """Room that a store keeps in reserve is as good as taken; a smaller reserve is another try."""
    store = tenant.store(small, reserve="3900Ki")
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    assert "reserve" in tenant.retried("a", "StoreFull")
    body = {"spec": {"reserve": "100Ki"}}
    path = tenant.cluster.path(tenant.ref(store, "ImageStore"))
    tenant.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")
    tenant.ready("a")
    assert list(tenant.objects("small").values()) == [ONE]


def test_a_store_folder_that_disappears(tenant: Tenant) -> None:
    """A folder that is gone is an outage, not a loss: nothing is moved, and all goes on when it is back."""
    store, other = tenant.store(probeInterval="1s"), tenant.store()
    folder, away = tenant.folder / store, tenant.folder / "away"
    tenant.image("old", tenant.serve("old", ONE), stores=[store])
    before = tenant.ready("old")
    folder.rename(away)
    found = tenant.wait(store, lambda o: condition(o, "Ready").get("status") == "False", "ImageStore")
    assert condition(found, "Ready")["reason"] == "StoreUnavailable"
    assert str(folder) in condition(found, "Ready")["message"]
    tenant.image("new", tenant.serve("new", ONE), stores=[store])
    assert store in tenant.retried("new", "StoreUnavailable")
    assert tenant.read("old")["status"]["artifact"] == before["artifact"]
    tenant.works(other)
    folder.mkdir()  # a mount point without its volume
    tenant.wait(store, lambda o: "no glimpse-store.json" in condition(o, "Ready").get("message", ""), "ImageStore")
    assert list(folder.iterdir()) == [], "an empty folder in the place of a store is not taken for it"
    folder.rmdir()
    away.rename(folder)
    tenant.ready("new")
    assert tenant.ready("old")["artifact"] == before["artifact"]
    assert len(tenant.web.asked("/old")) == 1
    assert len(tenant.objects(store)) == 2


def test_a_store_folder_that_disappears_in_the_middle(tenant: Tenant) -> None:
    """A folder that goes during a transfer fails the attempt; the next one finds its way."""
    store = tenant.store(probeInterval="1s")
    folder, away = tenant.folder / store, tenant.folder / "away"
    key = tenant.image("a", tenant.serve("a", slow(ONE), Reply(ONE)), stores=[store])["metadata"]["uid"] + "-1"
    tenant.transferring("a")
    away.mkdir()
    folder.rename(away / store)
    tenant.wait(store, lambda o: condition(o, "Ready").get("status") == "False", "ImageStore")
    (away / store).rename(folder)
    tenant.web.release()
    tenant.ready("a")
    assert tenant.objects(store) == {key: ONE}


def test_an_image_deleted_mid_transfer(tenant: Tenant) -> None:
    """A delete ends the transfer, and leaves nothing."""
    store = tenant.store()
    tenant.image("a", tenant.serve("a", slow(ONE)), stores=[store])
    tenant.transferring("a")
    assert tenant.leftover(store) != []
    tenant.delete("a")
    assert tenant.objects(store) == {}
    assert tenant.web.asked("/a")[0].sent < len(ONE)
    tenant.works(store)


def test_a_protected_image_deleted(tenant: Tenant) -> None:
    """A protected Image is refused its delete by the policy, with 422 and the way out."""
    store = tenant.store()
    key = tenant.image("a", tenant.serve("a", ONE), stores=[store], protected=True)["metadata"]["uid"] + "-1"
    tenant.ready("a")
    with pytest.raises(ApiError) as refused:
        tenant.delete("a")
    assert refused.value.status == 422
    assert "unset spec.protected" in refused.value.message
    assert tenant.objects(store) == {key: ONE}
    tenant.edit("a", protected=False)
    wait_until("the policy", lambda: _may_delete(tenant, "a"), timeout=WAIT)
    tenant.delete("a")
    assert tenant.objects(store) == {}


def test_a_protected_image_deleted_without_the_policy(tenant: Tenant, cluster: Cluster) -> None:
    """Where the policy is missing, the finalizer keeps the bytes, and a condition says how to finish."""
    store = tenant.store()
    key = tenant.image("a", tenant.serve("a", ONE), stores=[store], protected=True)["metadata"]["uid"] + "-1"
    tenant.ready("a")
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "protected-images.glimpse.dev"},
    }
    path = f"/apis/{binding['apiVersion']}/validatingadmissionpolicybindings/protected-images.glimpse.dev"
    kept = cluster.request("GET", path)
    cluster.request("DELETE", path)
    try:
        wait_until("the policy's end", lambda: _may_delete(tenant, "a"), timeout=WAIT)
        tenant.delete("a", wait=False)
        found = tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Protected")
        assert "unset spec.protected" in condition(found, "Reconciling")["message"]
        assert holds(found, "Ready"), "it is served all the while"
        assert tenant.objects(store) == {key: ONE}
        tenant.download(tenant.link("a"), body=ONE)
        tenant.works(store)
        tenant.edit("a", protected=False)
        tenant.gone("a")
        assert tenant.objects(store) == {}
    finally:
        cluster.apply(binding | {"spec": kept["spec"]})
        tenant.image("b", tenant.web.url("/b"), stores=[store], protected=True)
        wait_until("the policy", lambda: not _may_delete(tenant, "b"), timeout=WAIT)


def _may_delete(tenant: Tenant, name: str) -> bool:
    """Whether the API server would let a person delete the Image now."""
    try:
        tenant.cluster.request("DELETE", f"{tenant.cluster.path(tenant.ref(name))}?dryRun=All")
    except ApiError as error:
        if error.status != 422:
            raise
        return False
    return True


def test_a_store_deleted_in_use(tenant: Tenant) -> None:
    """A store with bytes in it stays until they are gone, names who holds it, and takes no new ones."""
    store = tenant.store()
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    tenant.ready("a")
    tenant.delete(store, "ImageStore", wait=False)
    found = tenant.wait(store, lambda o: holds(o, "InUse"), "ImageStore")
    assert f"{tenant.namespace}/a" in condition(found, "InUse")["message"]
    tenant.image("late", tenant.serve("late", ONE), stores=[store])
    assert "is being deleted" in tenant.stalled("late", "StoreRefused")
    tenant.download(tenant.link("a"), body=ONE)
    tenant.works(tenant.store())
    tenant.delete("late")
    tenant.delete("a")
    tenant.gone(store, "ImageStore")
    assert tenant.objects(store) == {}


def test_an_empty_store_deleted(tenant: Tenant) -> None:
    """A store that nobody uses goes at once, its folder stays."""
    store = tenant.store()
    tenant.delete(store, "ImageStore")
    assert os.listdir(tenant.folder / store)  # noqa: PTH208 - whatever is there


def test_two_default_stores(tenant: Tenant) -> None:
    """Between two defaults nothing is guessed: both are named, and one default less mends it."""
    one, two = tenant.store(default=True), tenant.store(default=True)
    try:
        tenant.image("a", tenant.serve("a", ONE))
        message = tenant.stalled("a", "InvalidConfiguration")
        assert one in message
        assert two in message
        assert tenant.web.requests == []
        tenant.annotate(two, DEFAULT, None, "ImageStore")
        assert [s["name"] for s in tenant.ready("a")["stores"]] == [one]
        assert tenant.objects(two) == {}
    finally:
        for name in (one, two):
            tenant.annotate(name, DEFAULT, None, "ImageStore")


def test_no_default_store(tenant: Tenant) -> None:
    """Without a default an Image must name its stores, and says so; a default mends it."""
    tenant.image("a", tenant.serve("a", ONE))
    assert "spec.stores" in tenant.stalled("a", "InvalidConfiguration")
    store = tenant.store(default=True)
    try:
        assert [s["name"] for s in tenant.ready("a")["stores"]] == [store]
    finally:
        tenant.annotate(store, DEFAULT, None, "ImageStore")


def test_a_default_store_that_changes_later(tenant: Tenant) -> None:
    """What was chosen stays chosen: another default moves nothing, also not for a new revision."""
    one, two = tenant.store(default=True), tenant.store()
    try:
        tenant.image("old", tenant.serve("old", ONE))
        before = tenant.ready("old")
        tenant.annotate(one, DEFAULT, None, "ImageStore")
        tenant.annotate(two, DEFAULT, "true", "ImageStore")
        tenant.image("new", tenant.serve("new", ONE))
        assert [s["name"] for s in tenant.ready("new")["stores"]] == [two]
        assert tenant.ready("old") == before
        tenant.edit("old", source={"http": {"urls": [tenant.serve("other", content(2))]}})
        assert [s["name"] for s in tenant.ready("old", revision=2)["stores"]] == [one]
        assert len(tenant.objects(two)) == 1
    finally:
        for name in (one, two):
            tenant.annotate(name, DEFAULT, None, "ImageStore")


def test_a_store_folder_of_another_installation(tenant: Tenant) -> None:
    """A folder with a foreign marker is not touched, and the Image that names it is given up."""
    folder = tenant.folder / "foreign"
    key = "0fc1a3ce-0000-4000-8000-000000000000-1"
    (folder / "objects" / key).mkdir(parents=True)
    (folder / "objects" / key / "data").write_bytes(ONE)
    (folder / "glimpse-store.json").write_text(json.dumps({"owner": "somebody-else"}))
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    store = tenant.store(folder, ready=False)
    found = tenant.wait(store, lambda o: bool(condition(o, "Ready")), "ImageStore")
    assert condition(found, "Ready")["reason"] == "StoreOwnedByAnother"
    assert condition(found, "Stalled")["reason"] == "StoreOwnedByAnother"
    assert "somebody-else" in condition(found, "Ready")["message"]
    tenant.event(store, "ImageStore", reason="StoreOwnedByAnother")
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    assert store in tenant.stalled("a", "StoreOwnedByAnother")
    tenant.works(tenant.store())
    tenant.delete("a")
    tenant.delete(store, "ImageStore")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert tenant.web.asked("/a") == []


def test_two_stores_on_one_folder(tenant: Tenant) -> None:
    """The second is refused: each would take the other's objects for its own, and remove them as such."""
    folder = tenant.folder / "shared"
    folder.mkdir()
    first = tenant.store(folder)
    second = tenant.store(folder, ready=False)
    found = tenant.wait(second, lambda o: bool(condition(o, "Ready")), "ImageStore")
    assert condition(found, "Ready")["reason"] == "StoreOwnedByAnother"
    assert first in condition(found, "Ready")["message"]
    tenant.image("a", tenant.serve("a", ONE), stores=[first])
    link = tenant.ready("a")["artifact"]["url"]
    tenant.edit("a", stores=[second])
    tenant.wait("a", lambda o: holds(o, "Stalled"))
    tenant.download(link, body=ONE)


def test_a_namespace_that_the_store_does_not_serve(tenant: Tenant, cluster: Cluster) -> None:
    """`allowedNamespaces` is asked of the namespace's labels as they are: a label mends it."""
    store = tenant.store(allowedNamespaces={"matchLabels": {"team": "a"}})
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    assert "allowedNamespaces" in tenant.stalled("a", "StoreRefused")
    assert tenant.objects(store) == {}
    body = {"metadata": {"labels": {"team": "a"}}}
    path = f"/api/v1/namespaces/{tenant.namespace}"
    cluster.request("PATCH", path, body, content_type="application/merge-patch+json")
    tenant.ready("a")


def test_a_lost_store_is_forgotten_by_force(tenant: Tenant) -> None:
    """An Image whose store is gone for good is deleted once an administrator says so."""
    store = tenant.store(probeInterval="1s")
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    tenant.ready("a")
    (tenant.folder / store).rename(tenant.folder / "lost")
    tenant.delete("a", wait=False)
    found = tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "RemovingWithRetry")
    assert "glimpse.dev/forget-store" in condition(found, "Reconciling")["message"]
    tenant.annotate("a", "glimpse.dev/forget-store", store)
    tenant.gone("a")


def test_a_deleted_image_waits_for_its_store(tenant: Tenant) -> None:
    """A delete that cannot reach the bytes is finished by itself when the store is back."""
    store = tenant.store(probeInterval="1s")
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    tenant.ready("a")
    folder, away = tenant.folder / store, tenant.folder / "away"
    folder.rename(away)
    tenant.delete("a", wait=False)
    tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "RemovingWithRetry")
    away.rename(folder)
    tenant.gone("a")
    assert tenant.objects(store) == {}
