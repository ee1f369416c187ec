"""Those who wait for a transfer know where they are, on a real API server."""

from tests.operator.support import Tenant, condition, content, holds, slow


def place(tenant: Tenant, name: str, said: str) -> None:
    """Wait until the Image says this of its place in the queue."""
    text = f"{said}: waiting for one of 2 transfers of this namespace to end"
    tenant.wait(name, lambda o: condition(o, "Reconciling").get("message") == text)
    assert condition(tenant.read(name), "Reconciling")["reason"] == "Queued"


def test_places_in_the_queue(tenant: Tenant) -> None:
    """Who waits says his place; who leaves, in the queue or in a slot, makes room at once."""
    store = tenant.store()
    for number in range(5):
        name = f"i{number}"
        tenant.image(name, tenant.serve(name, slow(content(number))), stores=[store])
        if number < 2:
            tenant.transferring(name)
        else:
            place(tenant, name, f"place {number - 1} of {number - 1}")
    assert len(tenant.web.requests) == 2
    tenant.delete("i2")
    tenant.delete("i3")
    place(tenant, "i4", "place 1 of 1")
    tenant.delete("i0")
    tenant.transferring("i4")
    assert not holds(tenant.read("i4"), "Ready")
    tenant.web.release()
    for name, number in (("i1", 1), ("i4", 4)):
        tenant.ready(name)
        assert content(number) in tenant.objects(store).values()
