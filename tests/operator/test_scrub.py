"""Damage to stored bytes, found and mended on a real API server."""

from tests.operator.support import REQUESTED_AT, Tenant, condition, content, done, holds, said

ONE, TWO = content(1), content(2)


def spoil(tenant: Tenant, store: str, key: str) -> None:
    """Flip one bit of an object, as a disk does."""
    path = tenant.folder / store / "objects" / key / "data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def age(tenant: Tenant, name: str) -> None:
    """Let the copies of an image be as if nobody had looked at them for years."""
    path = f"{tenant.cluster.path(tenant.ref(name))}/status"
    status = tenant.read(name)["status"]
    history = [h | {"storedAt": "2020-01-01T00:00:00Z", "verified": {}} for h in status["history"]]
    body = {"status": {"history": history}}
    tenant.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")


def test_good_copies(tenant: Tenant) -> None:
    """Each is read once, and when is written down; nothing else changes."""
    one, two = tenant.store(), tenant.store()
    tenant.image("a", tenant.serve("a", ONE), stores=[one, two])
    before = tenant.ready("a")
    assert before["history"][0]["verified"] == {}
    age(tenant, "a")
    found = tenant.wait("a", lambda o: len(said(o)["history"][0].get("verified", {})) == 2)["status"]
    assert set(found["history"][0]["verified"]) == {one, two}
    assert found["conditions"] == before["conditions"]
    assert len(tenant.web.requests) == 1


def test_mended_from_the_other_store(tenant: Tenant) -> None:
    """Ready all the time, and never by the damaged copy once it was found."""
    one, two = tenant.store(), tenant.store()
    key = tenant.image("a", tenant.serve("a", ONE), stores=[one, two])["metadata"]["uid"] + "-1"
    tenant.ready("a")
    spoil(tenant, one, key)
    age(tenant, "a")
    assert "sha256" in tenant.event("a", reason="DataLost")
    status = tenant.wait("a", lambda o: done(o) and one in said(o)["history"][0]["verified"])["status"]
    assert tenant.objects(one) == tenant.objects(two) == {key: ONE}
    assert set(status["history"][0]["stores"]) == {one, two}
    assert status["history"][0]["damaged"] == []
    assert len(tenant.web.requests) == 1, "not from the internet"
    tenant.download(tenant.link("a"), body=ONE)


def test_mended_from_the_source(tenant: Tenant) -> None:
    """Where it still has these bytes: under the same number and link."""
    store = tenant.store()
    key = tenant.image("a", tenant.serve("a", ONE), stores=[store])["metadata"]["uid"] + "-1"
    before = tenant.ready("a")["artifact"]
    spoil(tenant, store, key)
    tenant.web.serve("/a")
    age(tenant, "a")
    found = tenant.wait("a", lambda o: holds(o, "Stalled"))
    assert condition(found, "Ready")["reason"] == "DataLost"
    assert "SourceNotFound" in condition(found, "Ready")["message"]
    assert found["status"]["history"][0]["damaged"] == [store]
    assert list(tenant.objects(store)) == [key], "the damaged copy is kept until there is a good one"
    tenant.download(tenant.link("a"), status=503)

    tenant.serve("a", TWO)
    tenant.annotate("a", REQUESTED_AT, "1")
    found = tenant.wait("a", lambda o: "other bytes" in condition(o, "Ready").get("message", ""))
    assert condition(found, "Ready")["reason"] == "DataLost"

    tenant.serve("a", ONE)
    spare = tenant.store()
    tenant.edit("a", stores=[store, spare], refresh={"interval": "24h"})
    tenant.annotate("a", REQUESTED_AT, "2")
    status = tenant.wait("a", done)["status"]
    assert (status["artifact"]["revision"], status["artifact"]["digest"]) == (1, before["digest"])
    tenant.download(tenant.link("a"), body=ONE)
