"""The room of a pool of Ceph, as its manager counts it: what is told, what is refused, and the quota of the pool."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.stores.test_rbd import WATCH, Place, put, started

from glimpse.problems import StoreFull
from glimpse.stores import Capacity, Store, open_store
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, OTHER
from servers import wait_until
from servers.ceph import Ceph

SIZE = 1 << 30
MIB = 1 << 20
TOTAL = int(0.95 * SIZE)
"""What may be written before Ceph calls its OSD full."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster in memory with a manager."""
    folder = tmp_path_factory.mktemp("counted")
    yield from started(Ceph(folder, objectstore="memstore", size=SIZE, manager=True, options=WATCH))


@pytest.fixture
def store(place: Place, outside: Path) -> Iterator[Store]:  # noqa: ARG001 - has the driver
    """A store in the pool, empty and counted."""
    store = open_store(place.ref())
    store.claim()
    counted(store, 0)
    yield store
    place.cluster.ceph("osd", "pool", "set-quota", place.pool, "max_bytes", "0")
    for key in (KEY, OTHER):
        store.delete(key)


def counted(store: Store, used: int, total: int | None = None) -> Capacity:
    """Wait until the manager has counted so much, by pools and by OSDs, a MiB more or less; what is told then."""
    found = Capacity(None, None, None)

    def look() -> bool:
        nonlocal found
        found = store.capacity()
        near = found.used is not None and abs(found.used - used) <= MIB
        return near and found.total is not None and abs(found.total - (total or TOTAL)) <= 2 * MIB

    wait_until(f"{used} bytes that are counted", look, timeout=60)
    return found


def test_the_room_is_told(store: Store) -> None:
    """Used is what is stored, free what may be written before Ceph calls its OSDs full: 95 % of them."""
    put(store, noise(64 * MIB))
    found = counted(store, 64 * MIB)
    assert found.used == pytest.approx(64 * MIB, rel=0.02)
    assert found.free == pytest.approx(TOTAL - 64 * MIB, rel=0.02)
    assert store.probe().total == found.total
    store.delete(KEY)
    counted(store, 0)


@pytest.mark.parametrize("told", [True, False], ids=["with its length", "without"])
def test_the_reserve_is_kept(store: Store, place: Place, told: bool) -> None:
    """What would leave less than it is refused, before the first byte where the length is known, and leaves nothing."""
    free = store.capacity().free
    assert free
    ref = place.ref().model_copy(update={"reserve": free - 16 * MIB})
    kept, body = open_store(ref), Body(noise(40 * MIB), known=told)
    with pytest.raises(StoreFull, match="above its reserve"):
        kept.put(KEY, "a1", body, lambda: record_of(KEY))
    assert list(kept.list()) == []
    counted(store, 0)  # what was begun may have been counted, and its end not yet
    assert kept.put(OTHER, "a1", Body(noise(8 * MIB)), lambda: record_of(OTHER)).size == 8 * MIB


def test_a_quota_is_the_room(store: Store, place: Place) -> None:
    """Of a pool with a quota that is what is told; over it a put is StoreFull, and a delete makes room again."""
    put(store, noise(8 * MIB))
    counted(store, 8 * MIB)
    place.cluster.ceph("osd", "pool", "set-quota", place.pool, "max_bytes", str(32 * MIB))
    assert counted(store, 8 * MIB, 32 * MIB).total == 32 * MIB
    with pytest.raises(StoreFull, match="no room for 40 MiB more"):
        put(store, noise(40 * MIB), key=OTHER)
    assert [entry.key for entry in store.list()] == [KEY]
    with place.io() as io:
        io.set_osdmap_full_try()  # else who removes something waits for room
        io.write_full("others", noise(40 * MIB))
        try:
            wait_until("the end of the quota", lambda: "full_quota" in flags(place), timeout=60)
            # A look that came too early for the count would let it begin: then Ceph itself says no.
            blind = Blind(store)
            with pytest.raises(StoreFull, match="the pool images is full"):
                put(blind, noise(8 * MIB), key=OTHER)
            assert store.probe().free == 0
            store.delete(KEY)
        finally:
            io.remove_object("others")
    counted(store, 0, 32 * MIB)
    wait_until("room below the quota", lambda: "full_quota" not in flags(place), timeout=60)
    put(store, noise(8 * MIB), attempt="a2")


def flags(place: Place) -> str:
    """What the monitors have to say of the pool."""
    (pool,) = place.cluster.ceph("osd", "dump")["pools"]
    return str(pool["flags_names"])


class Blind(Store):
    """A store that does not see its room."""

    def __init__(self, store: Store) -> None:
        super().__init__(store._ref, store.driver)

    def capacity(self) -> Capacity:
        """Nothing is known."""
        return replace(super().capacity(), total=None, free=None)
