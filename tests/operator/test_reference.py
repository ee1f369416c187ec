"""Images that are another Image's, on a real API server."""

import os
from typing import Any

import pytest
from tests.operator.support import Tenant, condition, content, digest, holds, said


@pytest.fixture
def owner(tenant: Tenant) -> Tenant:
    """Another tenant of the same installation."""
    return Tenant(tenant.cluster, tenant.glimpse, tenant.folder, tenant.web, tenant.cluster.namespace("owner"))


def refer(tenant: Tenant, owner: Tenant, name: str = "mine", **spec: Any) -> None:
    """Apply an Image that refers to the owner's `golden`."""
    source = {"image": {"name": "golden", "namespace": owner.namespace}}
    tenant.specs[name] = {"source": source, **spec}
    tenant.edit(name)


def golden(owner: Tenant, store: str, seed: int = 1, **spec: Any) -> None:
    """The owner's image."""
    owner.image("golden", owner.serve(f"golden-{seed}", content(seed)), stores=[store], **spec)


def test_no_bytes_are_copied_in_one_store(tenant: Tenant, owner: Tenant) -> None:
    """The same bytes under a key of its own: a second name of the file; another store gets a verified copy."""
    store, other = tenant.store(), tenant.store()
    golden(owner, store, visibility="public")
    owner.ready("golden")
    refer(tenant, owner, stores=[store, other])
    status = tenant.ready("mine")
    assert status["artifact"]["digest"] == digest(content(1))
    assert len(tenant.web.requests) == 1, "nothing is fetched again"
    assert list(tenant.objects(store).values()) == [content(1)] * 2
    assert list(tenant.objects(other).values()) == [content(1)]
    files = [tenant.folder / store / "objects" / key / "data" for key in tenant.objects(store)]
    assert os.path.samestat(files[0].stat(), files[1].stat())
    tenant.download(tenant.link("mine"), body=content(1))


def test_it_follows_the_original(tenant: Tenant, owner: Tenant) -> None:
    """What the original serves next becomes the next revision; where it goes, what was taken stays."""
    store = tenant.store()
    golden(owner, store, visibility="shared", members=[tenant.namespace])
    refer(tenant, owner, stores=[store])
    tenant.ready("mine", revision=1)
    golden(owner, store, 2, visibility="shared", members=[tenant.namespace])
    assert tenant.ready("mine", revision=2)["artifact"]["digest"] == digest(content(2))
    owner.delete("golden")
    assert content(2) in tenant.objects(store).values()
    tenant.download(tenant.link("mine"), body=content(2))
    # One of the same name by the same owner is the original again.
    golden(owner, store, 3, visibility="shared", members=[tenant.namespace])
    assert tenant.ready("mine", revision=3)["artifact"]["digest"] == digest(content(3))


@pytest.mark.parametrize("spec", [{}, {"visibility": "shared", "members": ["somebody"]}], ids=["private", "others"])
def test_what_is_not_shared_cannot_be_told_from_what_is_not_there(
    tenant: Tenant, owner: Tenant, spec: dict[str, Any]
) -> None:
    """Both are given up in the same words, until the owner shares it."""
    store = tenant.store()
    refer(tenant, owner, stores=[store])
    before = tenant.stalled("mine", "SourceNotFound")
    golden(owner, store, **spec)
    owner.ready("golden")
    tenant.annotate("mine", "glimpse.dev/reconcile-requested-at", "now")
    tenant.wait("mine", lambda o: said(o).get("lastHandledReconcileAt") == "now")
    assert tenant.stalled("mine", "SourceNotFound") == before
    golden(owner, store, visibility="community")
    tenant.ready("mine")


def test_a_withdrawn_share_ends_the_reference(tenant: Tenant, owner: Tenant) -> None:
    """Nothing is served any more, the bytes go after their grace; given again in time, all is as before."""
    store = tenant.store()
    golden(owner, store, visibility="shared", members=[tenant.namespace])
    refer(tenant, owner, stores=[store], revisions={"grace": "1h"})
    tenant.ready("mine")
    golden(owner, store, visibility="shared", members=["somebody"])
    found = tenant.wait("mine", lambda o: holds(o, "Stalled"))
    assert condition(found, "Ready")["reason"] == "SourceNotFound"
    assert "artifact" not in found["status"]
    tenant.download(tenant.link("mine"), status=404)
    golden(owner, store, visibility="shared", members=[tenant.namespace])
    assert tenant.ready("mine", revision=1)["artifact"]["digest"] == digest(content(1))
    tenant.edit("mine", revisions={"grace": "0s"})
    golden(owner, store)
    tenant.wait("mine", lambda o: holds(o, "Stalled") and not said(o).get("history"))
    assert list(tenant.objects(store).values()) == [content(1)], "the owner's"


def test_an_original_without_bytes_is_waited_for(tenant: Tenant, owner: Tenant) -> None:
    """It is no failure: the reference is complete as soon as the original is."""
    store = tenant.store()
    golden(owner, store, visibility="public", suspend=True)
    refer(tenant, owner, stores=[store])
    found = tenant.wait("mine", lambda o: condition(o, "Ready").get("reason") == "SourceUnavailable")
    assert f"the Image {owner.namespace}/golden has no verified bytes" in condition(found, "Ready")["message"]
    assert not holds(found, "Stalled")
    golden(owner, store, visibility="public")
    tenant.ready("mine")


def test_what_is_lost_is_taken_again(tenant: Tenant, owner: Tenant) -> None:
    """The copy of a reference that is lost comes from the original, not from the internet."""
    first, second = tenant.store(), tenant.store()
    golden(owner, first, visibility="public")
    owner.ready("golden")
    refer(tenant, owner, stores=[second])
    tenant.ready("mine")
    (key,) = tenant.objects(second)
    for file in (tenant.folder / second / "objects" / key).iterdir():
        file.unlink()
    refer(tenant, owner, stores=[second, first])  # a copy is tried, and finds it
    status = tenant.ready("mine")
    assert status["artifact"]["digest"] == digest(content(1))
    assert list(tenant.objects(second).values()) == [content(1)]
    assert len(tenant.web.requests) == 1


def test_an_original_that_goes_before_its_bytes_were_taken(tenant: Tenant, owner: Tenant) -> None:
    """A delete waits for nobody: a reference that has nothing yet says so for good, until the original is back."""
    first, second = tenant.store(), tenant.store()
    golden(owner, first, visibility="public")
    owner.ready("golden")
    refer(tenant, owner, stores=[second], suspend=True)
    tenant.wait("mine", lambda o: o["status"].get("observedGeneration") == o["metadata"]["generation"])
    owner.delete("golden")
    assert tenant.objects(first) == {}
    refer(tenant, owner, stores=[second])
    message = tenant.stalled("mine", "SourceNotFound")
    assert f"{owner.namespace}/golden" in message
    assert "artifact" not in tenant.read("mine")["status"]
    tenant.download(tenant.link("mine"), status=404)
    assert tenant.objects(second) == {}
    golden(owner, first, visibility="public")
    assert tenant.ready("mine")["artifact"]["digest"] == digest(content(1))


def test_a_reference_whose_store_is_away_when_the_original_goes(tenant: Tenant, owner: Tenant) -> None:
    """What it has taken into one store is enough for the others, however late they come."""
    first, late = tenant.store(), f"late-{tenant.namespace}"
    golden(owner, first, visibility="public")
    owner.ready("golden")
    refer(tenant, owner, stores=[first, late])
    tenant.wait("mine", lambda o: holds(o, "Ready") and not holds(o, "Stored"))
    owner.delete("golden")
    (key,) = tenant.objects(first)
    assert key.startswith(tenant.read("mine")["metadata"]["uid"])
    folder = tenant.folder / late
    folder.mkdir()
    tenant.cluster.apply(tenant.ref(late, "ImageStore") | {"spec": {"filesystem": {"path": str(folder)}}})
    tenant.wait("mine", lambda o: holds(o, "Stored"))
    assert list(tenant.objects(late).values()) == [content(1)]


def test_images_that_refer_to_each_other(tenant: Tenant) -> None:
    """None can ever have bytes, so all are given up, and name the circle; with one of them mended all get theirs."""
    store = tenant.store()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        tenant.specs[name] = {"source": {"image": {"name": other}}, "stores": [store]}
        tenant.edit(name)
    for name, way in (("a", "abca"), ("b", "bcab"), ("c", "cabc")):
        circle = " -> ".join(f"{tenant.namespace}/{each}" for each in way)
        assert f"leads back to the Image itself: {circle};" in tenant.stalled(name, "InvalidConfiguration")
    tenant.edit("c", source={"http": {"urls": [tenant.serve("c", content(1))]}})
    for name in "abc":
        assert tenant.ready(name)["artifact"]["digest"] == digest(content(1))
    assert condition(tenant.read("a"), "Stored")["message"] == "the store holds the image"
