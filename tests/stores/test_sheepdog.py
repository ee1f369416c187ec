"""The Sheepdog store: the contracts, and the cluster looked at around it.

Against an emulator of the protocol, and against a real cluster too where `GLIMPSE_SHEEPDOG` names one.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.stores.quick_sheepdog import Quick

from glimpse.problems import DataLost, NotFound, StoreUnavailable
from glimpse.stores import open_store
from glimpse.stores.sheepdog import UNIT
from glimpse.stores.sheepdog.attempts import IN_FLIGHT, remove
from glimpse.stores.sheepdog.cluster import INDEX, NAME, NEW_VDI, TAG_AT, VDI, Cluster, Inode, inode_of
from glimpse.stores.sheepdog.ranges import ahead
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.sheep import Sheep
from glimpse.testing.sparse import SparseContract
from glimpse.testing.stores import KEY, OTHER, Raw, Stalled, StoreContract, StoreFixtures, absent, put, read
from glimpse.testing.wire import Wire
from servers import wait_until
from servers.require import require
from servers.sheepdog import Node, Sheepdog
from servers.tools import Missing

MIB = 1 << 20
OBJECT = 4 * MIB
REAL = bool(os.environ.get("GLIMPSE_SHEEPDOG"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheepdog]:
    """A real cluster."""
    server = Sheepdog(tmp_path_factory.mktemp("sheepdog"))
    try:
        with server:
            yield server
    except Missing as error:
        require("sheepdog", str(error))


@pytest.fixture
def sheep() -> Iterator[Sheep]:
    """An emulator."""
    with Sheep() as sheep:
        yield sheep
        assert sheep.lost() == set()


@pytest.fixture(params=["emulator", *(["sheep"] if REAL else [])])
def node(request: pytest.FixtureRequest) -> Node:
    """A cluster: an emulator for each test, or the real one for all."""
    if request.param == "sheep":
        server: Sheepdog = request.getfixturevalue("real")
        return server.node
    return Node("127.0.0.1", request.getfixturevalue("sheep").port)


def ref_to(node: Node, prefix: str, **more: Any) -> StoreRef:
    """A store in that cluster."""
    config = {"address": node.address, "port": node.port, "prefix": prefix, **more}
    return StoreRef(name="flock", driver="quick-sheepdog", config=config, installation="here")


@pytest.fixture
def ref(node: Node, outside: Path) -> StoreRef:
    """A store with a prefix of its own."""
    return ref_to(node, f"{outside.parent.name}-{outside.name}")


@pytest.fixture
def cluster(node: Node) -> Cluster:
    """The same cluster, by its protocol."""
    return Cluster(node.address, node.port, copies=0, patience=10)


def look(cluster: Cluster, ref: StoreRef) -> dict[str, Inode]:
    """All VDIs of the store, but for the marker's, by what their names have after the prefix."""
    prefix = ref.config["prefix"]
    found = {}
    for number in cluster.numbers():
        inode = cluster.inode(number)
        if inode and inode.name.startswith((f"{prefix}/", f"{prefix}.")):
            found[inode.name.removeprefix(prefix)] = inode
    return {name: inode for name, inode in found.items() if name != ".store" and not name.startswith("/data/owner.")}


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in."""

    @pytest.fixture
    def ref(self, node: Node, outside: Path) -> StoreRef:
        """A store with a prefix of its own."""
        return ref_to(node, f"{outside.parent.name}-{outside.name}")

    @pytest.fixture
    def raw(self, cluster: Cluster, ref: StoreRef) -> Raw:
        """Keys that have an image, and all VDIs that are neither key nor image."""

        def names() -> set[str]:
            found = look(cluster, ref)
            keys = {name: inode for name, inode in found.items() if not name.startswith("/data/")}
            images = {inode.size // UNIT for inode in keys.values()}
            return {name.removeprefix("/") for name, inode in found.items() if name in keys or inode.vid not in images}

        return names

    @pytest.fixture
    def small(self, outside: Path) -> Iterator[StoreRef]:
        """A cluster with little room; a real one would need a disk of its own."""
        with Sheep(room=24 * MIB) as sheep:
            yield ref_to(Node("127.0.0.1", sheep.port), outside.name)
            assert sheep.lost() == set()

    @pytest.fixture
    def buried(self, cluster: Cluster, ref: StoreRef) -> Callable[[], None]:
        """Waits until no attempt has given a sign of life for longer than a lease."""

        def over() -> bool:
            name = f"{ref.config['prefix']}-clock"
            number = cluster.create(name)
            made = cluster.inode(number) if number else None
            assert made
            cluster.delete(name)
            found = [inode for name, inode in look(cluster, ref).items() if name.startswith("/data/")]
            images = {inode.size // UNIT for name, inode in look(cluster, ref).items() if name[:6] != "/data/"}
            return all(
                made.created - max(inode.created, inode.renewed) > Quick.lease
                for inode in found
                if inode.vid not in images and not inode.removed
            )

        return lambda: wait_until("the end of the lease", over, timeout=30, poll=0.2)


class TestContract(Fixtures, StoreContract):
    """What every store promises."""

    part: ClassVar[int] = OBJECT
    exempt: ClassVar[Mapping[str, str]] = {
        "test_keeps_its_reserve": "the driver asks no node how much is free, so there is no reserve",
    }


class TestSparse(Fixtures, SparseContract):
    """What a store promises in which zeros take no room."""

    @pytest.fixture
    def taken(self, cluster: Cluster, ref: StoreRef) -> Callable[[str], int]:
        """Objects that the index of the image names."""

        def look(_key: str) -> int:
            index = cluster.read(inode_of(image(cluster, ref).vid), 64 * 4, INDEX)
            assert index
            return OBJECT * sum(any(index[at : at + 4]) for at in range(0, len(index), 4))

        return look


class TestRemote(Fixtures, RemoteContract):
    """What a store on a server promises besides."""

    exempt: ClassVar[Mapping[str, str]] = {
        "test_says_that_it_is_locked_out": "Sheepdog has no authentication",
        "test_says_that_the_place_is_missing": "a cluster has no places in it; one that is not formatted is told below",
    }

    @pytest.fixture
    def far(self, node: Node, ref: StoreRef) -> Iterator[Far]:
        """The same place over a wire."""
        with Wire((node.address, node.port)) as wire:
            config = ref.config | {"address": "127.0.0.1", "port": wire.port}
            yield Far(ref.model_copy(update={"config": config}), wire)

    @pytest.fixture
    def restart(self, request: pytest.FixtureRequest, node: Node) -> Restart:  # noqa: ARG002 - the one that is meant
        """The emulator, or a real node that was started here."""
        if request.node.callspec.params["node"] == "emulator":
            sheep: Sheep = request.getfixturevalue("sheep")
            return sheep.restart
        server: Sheepdog = request.getfixturevalue("real")
        if not server.processes:
            pytest.skip("the cluster was not started here")

        def again() -> None:
            server.stop()
            server.start()

        return again

    @pytest.fixture
    def locked_out(self, ref: StoreRef) -> StoreRef:
        """There is no such thing."""
        return ref

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """There is no such thing."""
        return ref


# Around the store: its VDIs


def image(cluster: Cluster, ref: StoreRef) -> Inode:
    """The VDI of the one image there is."""
    [found] = [inode for name, inode in look(cluster, ref).items() if name.startswith("/data/")]
    return found


def test_vdis_are_as_the_docs_say(ref: StoreRef, cluster: Cluster) -> None:
    """An image is a snapshot of just its length, which machines can clone; the commit names it; zeros are holes."""
    data = noise(5 * CHUNK) + bytes(11 * CHUNK) + noise(7)
    store = open_store(ref)
    put(store, KEY, data)
    found = image(cluster, ref)
    assert found.name.startswith(f"{ref.config['prefix']}/data/{KEY}.a1.")
    assert (found.snapshot, found.size, found.removed) == (True, len(data), False)
    assert cluster.read(inode_of(found.vid), NAME, TAG_AT) == b"image".ljust(NAME, b"\0")
    index = cluster.read(inode_of(found.vid), 4 * 8, INDEX)
    assert index
    owners = [int.from_bytes(index[at : at + 4], "little") for at in range(0, 32, 4)]
    vid = found.vid
    assert owners == [vid, vid, 0, 0, vid, vid, 0, 0]  # the sixth has the record
    assert cluster.read(vid << 32 | 1, CHUNK) == data[4 * CHUNK : 5 * CHUNK]
    commit = cluster.find(f"{ref.config['prefix']}/{KEY}")
    assert commit
    assert (commit.size, commit.snapshot) == (vid * UNIT, False)
    assert store.driver.endpoint == f"sheepdog://{ref.config['address']}:{ref.config['port']}/{ref.config['prefix']}"


def test_machines_clone_an_image(ref: StoreRef, cluster: Cluster) -> None:
    """As `dog vdi clone -s image` does: what the clone overwrites is its own, and it is whole without the image."""
    data = noise(5 * CHUNK) + bytes(7 * CHUNK) + noise(CHUNK, 1)
    store = open_store(ref)
    put(store, KEY, data)
    source, name = image(cluster, ref), f"{ref.config['prefix']}-disk"
    request = VDI.pack(len(data), source.vid, 0, 0, 0, 0, 0, 0)
    reply = cluster._call(NEW_VDI, request, [name.encode().ljust(NAME, b"\0")], allowed=frozenset())
    vid = int.from_bytes(reply.rest[4:8], "little")

    def cloned() -> bytes:
        disk = cluster.inode(vid)
        assert disk
        assert (disk.name, disk.snapshot) == (name, False)
        with ahead(cluster, disk, lambda: DataLost("an object is gone"), 0, disk.size) as reader:
            return b"".join(iter(reader.read, b""))

    assert cloned() == data
    own = noise(OBJECT, 2)
    cluster.write(inode_of(vid), vid.to_bytes(4, "little"), INDEX)  # what a machine writes first
    cluster.create_object(vid << 32, own)
    assert read(store, KEY) == data
    store.delete(KEY)
    assert absent(store, KEY)
    assert cloned() == own + data[OBJECT:]
    cluster.write(inode_of(vid), bytes(5 * 4), INDEX)  # those of the bytes, and of the record
    cluster.delete(name)


def test_a_few_objects_are_in_flight(sheep: Sheep, outside: Path) -> None:
    """Four, while nothing is answered; of the body there is one more in memory, and no other."""
    store = open_store(ref_to(Node("127.0.0.1", sheep.port), outside.name))
    store.claim()
    body = Body(noise(10 * OBJECT))
    sheep.flowing.clear()
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(store.put, KEY, "a1", body, lambda: record_of(KEY))
        wait_until("four objects and a fifth", lambda: (sheep.waiting, body.given) >= (4, 5 * OBJECT), timeout=30)
        assert sheep.waiting == IN_FLIGHT == 4
        assert body.given <= 5 * OBJECT + CHUNK
        assert not stored.done()
        sheep.flowing.set()
        stored.result(60)
    assert read(store, KEY) == noise(10 * OBJECT)


@pytest.mark.parametrize("action", ["put", "delete"])
def test_a_removal_that_was_interrupted_is_ended(ref: StoreRef, cluster: Cluster, action: str) -> None:
    """From its first moment there is no image; the key is free; and the next call on it removes what is left."""
    store = open_store(ref)
    put(store, KEY, noise(1000))
    cluster.write(inode_of(image(cluster, ref).vid), (1).to_bytes(8, "little"), 544)
    assert absent(store, KEY)
    with pytest.raises(NotFound):
        read(store, KEY)
    [left] = list(store.list())
    assert (left.key, left.partial) == (f"{KEY}.a1", True)
    if action == "put":
        put(store, KEY, b"again", attempt="a2")
        assert read(store, KEY) == b"again"
        assert len(look(cluster, ref)) == 2
    store.delete(KEY)
    assert look(cluster, ref) == {}


def test_a_commit_is_removed_by_its_number(ref: StoreRef, cluster: Cluster) -> None:
    """A commit without image frees its name for the next one; a removal that comes late takes the old one only."""
    store = open_store(ref)
    put(store, KEY, b"old")
    name = f"{ref.config['prefix']}/{KEY}"
    old = cluster.find(name)
    assert old
    remove(cluster, image(cluster, ref))
    put(store, KEY, b"new", attempt="a2")
    store.driver._retire(old)  # type: ignore[attr-defined]
    assert read(store, KEY) == b"new"
    store.delete(KEY)
    assert look(cluster, ref) == {}


def test_what_others_removed_commits_nothing(ref: StoreRef, cluster: Cluster) -> None:
    """An attempt that others took for dead is stopped, and leaves nothing."""
    store = open_store(ref)
    with Stalled(store, KEY, "a1", noise(3 * CHUNK)) as stalled:
        cluster.write(inode_of(image(cluster, ref).vid), (1).to_bytes(8, "little"), 544)
        problem = stalled.go_on()
    assert isinstance(problem, StoreUnavailable)
    assert absent(store, KEY)
    assert look(cluster, ref) == {}


def test_a_lost_object_is_told(ref: StoreRef, cluster: Cluster) -> None:
    """An object that the index names and that is not there is DataLost, not zeros."""
    store = open_store(ref)
    put(store, KEY, noise(5 * CHUNK))
    vid = image(cluster, ref).vid
    cluster._call(0x04, (vid << 32 | 1).to_bytes(8, "little").ljust(32, b"\0"))  # REMOVE_OBJ
    with pytest.raises(DataLost, match="is gone"):
        read(store, KEY)
    assert read(store, KEY, 0, 4 * CHUNK) == noise(5 * CHUNK)[: 4 * CHUNK]


def test_vdis_of_others_are_left_alone(ref: StoreRef, cluster: Cluster) -> None:
    """What has another prefix is neither listed nor removed, also if it begins alike."""
    names = [f"{ref.config['prefix']}x/{KEY}", f"{ref.config['prefix']}-disk"]
    for name in names:
        assert cluster.create(name, 1 << 20)
    store = open_store(ref)
    put(store, KEY, b"x")
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    store.delete(OTHER)
    assert all(cluster.find(name) for name in names)
    for name in names:
        cluster.delete(name)


def test_a_cluster_that_is_not_formatted(outside: Path) -> None:
    """It is told so, with the way out, and nothing is formatted."""
    with Sheep(formatted=False) as sheep:
        store = open_store(ref_to(Node("127.0.0.1", sheep.port), outside.name))
        for action in (store.claim, store.probe, lambda: put(store, KEY, b"x")):
            with pytest.raises(StoreUnavailable, match="dog cluster format"):
                action()


def test_a_probe_writes(outside: Path) -> None:
    """A cluster that can be read but not written is found by the probe, before an image needs it."""
    with Sheep() as sheep:
        store = open_store(ref_to(Node("127.0.0.1", sheep.port), outside.name))
        put(store, KEY, b"x")
        store.probe()
        sheep.spoiled = True
        with pytest.raises(StoreUnavailable, match="error 0x03"):
            store.probe()
        assert read(store, KEY) == b"x"
        sheep.spoiled = False
        store.probe()


def test_a_connection_that_was_closed_is_replaced(outside: Path) -> None:
    """A server may hang up between two requests; nobody notices."""
    with Sheep() as sheep, Wire(("127.0.0.1", sheep.port)) as wire:
        store = open_store(ref_to(Node("127.0.0.1", wire.port), outside.name))
        put(store, KEY, b"here")
        wire.cut()
        wire.heal()
        assert read(store, KEY) == b"here"


# The emulator: what it does, where that is strange


def test_a_vdi_with_objects_is_not_deleted() -> None:
    """As the real one: the answer says that it is, the name stays taken, and nothing is freed."""
    with Sheep() as sheep:
        cluster = Cluster("127.0.0.1", sheep.port, copies=0, patience=5)
        vid = cluster.create("disk", 1 << 20)
        assert vid
        assert cluster.create("disk", 1 << 20) is None
        cluster.write(inode_of(vid), vid.to_bytes(4, "little"), INDEX)
        cluster.create_object(vid << 32, b"bytes")
        cluster.delete("disk")
        assert (sheep.names(), sheep.objects("disk")) == ({"disk"}, [0])
        cluster.write(inode_of(vid), bytes(4), INDEX)
        assert cluster.read(vid << 32, 5) is None
        cluster.delete("disk")
        cluster.delete("disk")
        assert sheep.names() == set()


def test_zeros_at_both_ends_are_left_out() -> None:
    """As the real one may, for blocks of 4096 bytes; a reader puts them back."""
    with Sheep() as sheep:
        cluster = Cluster("127.0.0.1", sheep.port, copies=0, patience=5)
        vid = cluster.create("disk", 1 << 20)
        assert vid
        data = bytes(10_000) + b"x" + bytes(20_000)
        cluster.create_object(vid << 32, data)
        assert cluster.read(vid << 32, len(data)) == data
        assert cluster.read(vid << 32, 9000) == bytes(9000)
        assert cluster.read(vid << 32, 5000, 9000) == data[9000:14000]
