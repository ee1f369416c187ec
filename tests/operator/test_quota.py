"""What a namespace may keep in a store, on a real API server."""

from tests.operator.support import REQUESTED_AT, Tenant, condition, content, holds


def test_a_namespace_keeps_within_its_share(tenant: Tenant) -> None:
    """Of many images at once as many are stored as fit, to the byte; the others say what is in the way."""
    store = tenant.store(quota={"perNamespace": 900_000})
    names = [f"i{number}" for number in range(5)]
    for number, name in enumerate(names):
        tenant.image(name, tenant.serve(name, content(number)), stores=[store])
    found = {name: tenant.wait(name, lambda o: holds(o, "Ready") or holds(o, "Stalled")) for name in names}
    kept = [name for name in names if holds(found[name], "Ready")]
    assert len(kept) == 3
    assert sorted(map(len, tenant.objects(store).values())) == [300_000] * 3
    left = next(name for name in names if name not in kept)
    message = tenant.stalled(left, "QuotaExceeded")
    assert f"namespace {tenant.namespace} may keep 879 KiB in store {store} and has used 879 KiB" in message
    # Room alone changes nothing for what was given up; to ask anew does.
    tenant.delete(kept[0])
    tenant.annotate(left, REQUESTED_AT, "now")
    tenant.ready(left)


def test_only_where_there_is_a_quota(tenant: Tenant) -> None:
    """A share is of one store: the others take the image, and the condition says which one did not."""
    small, large = tenant.store(quota={"perNamespace": "100Ki"}), tenant.store()
    tenant.image("a", tenant.serve("a", content(1)), stores=[small, large])
    found = tenant.wait("a", lambda o: holds(o, "Ready") and holds(o, "Stalled"))
    assert condition(found, "Stored")["status"] == "False"
    assert condition(found, "Stalled")["reason"] == "QuotaExceeded"
    assert len(tenant.objects(large)) == 1
    assert tenant.objects(small) == {}


def test_a_new_revision_needs_room_beside_the_old_one(tenant: Tenant) -> None:
    """Both are there until the new one is verified, and the old one stays served where it does not fit."""
    store = tenant.store(quota={"perNamespace": 500_000})
    tenant.image("a", tenant.serve("a", content(1)), stores=[store])
    tenant.ready("a")
    tenant.edit("a", source={"http": {"urls": [tenant.serve("b", content(2))]}})
    tenant.wait("a", lambda o: holds(o, "Stalled"))
    assert holds(tenant.read("a"), "Ready")
    assert list(tenant.objects(store).values()) == [content(1)]
