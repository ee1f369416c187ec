"""The rbd store: the contract on a real cluster, and its images looked at around it."""

import gc
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from glimpse.ceph import open_image
from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreConflict,
    StoreRefused,
    StoreUnavailable,
)
from glimpse.stores import Capacity, Cloneable, Entry, Store, encode, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.cloneable import DIGEST, CloneableContract, clone, original
from glimpse.testing.registering import PLACE, Lay, RegisteringContract, register
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.resumable import ResumableContract, contents
from glimpse.testing.sparse import SparseContract
from glimpse.testing.stores import KEY, OTHER, UID, Raw, StoreContract, StoreFixtures, read
from servers import run, wait_until
from servers.ceph import Ceph, Cluster
from servers.require import require
from servers.tools import Missing

try:
    import rados
    import rbd
except ImportError as error:
    rados = rbd = None
    absent: ImportError | None = error
else:
    absent = None

WATCH = {"osd client watch timeout": 2}
"""Seconds after which the cluster takes a client for dead that it does not hear of."""


class Place:
    """A cluster with a pool, for the administrator of which nothing is hidden."""

    def __init__(self, cluster: Cluster, pool: str) -> None:
        self.cluster, self.pool = cluster, cluster.pool(pool)
        self.key = cluster.client("glimpse", mon="profile rbd", osd=f"profile rbd pool={pool}")
        # a cluster that hangs fails a test, and not all of them
        patience = {"rados_osd_op_timeout": "60", "rados_mon_op_timeout": "60"}
        self.client = rados.Rados(name="client.admin", conffile=str(cluster.conf), conf=patience)
        self.client.connect()

    def ref(self, namespace: str | None = None, **config: Any) -> StoreRef:
        """A store in that namespace, which is made if it is missing."""
        with self.client.open_ioctx(self.pool) as io:
            if namespace and not rbd.RBD().namespace_exists(io, namespace):
                rbd.RBD().namespace_create(io, namespace)
        place = {"namespace": namespace} if namespace else {}
        return StoreRef(
            name="fast",
            driver="quick-rbd",
            config={"pool": self.pool, "user": "glimpse", "monitors": list(self.cluster.monitors), **place, **config},
            secret={"userKey": SecretStr(self.key)},
            installation="here",
        )

    def io(self, namespace: str = "") -> Any:
        """The pool for the administrator."""
        io = self.client.open_ioctx(self.pool)
        io.set_namespace(namespace)
        return io

    def raw(self, namespace: str = "") -> set[str]:
        """The names of all images, of all objects that belong to none, and of clones in the making.

        Without those in the trash that have clones.
        """
        with self.io(namespace) as io:
            images = {each["id"]: each["name"] for each in rbd.RBD().list2(io)}
            waiting = {each["id"]: each["name"] for each in rbd.RBD().trash_list(io) if not has_clones(io, each["id"])}
            found = (
                {name for name in images.values() if not name.startswith("import/")}
                | {f"trash {name}" for name in waiting.values()}
                | noted(io)
            )
            images |= {each["id"]: each["name"] for each in rbd.RBD().trash_list(io) if each["id"] not in waiting}
            own = {"glimpse-store", "rbd_directory", "rbd_trash", "rbd_info", "rbd_namespace", "rbd_children"}
            for each in io.list_objects():
                kind, _, rest = each.key.partition(".")
                owner = rest.partition(".")[0]
                if kind == "rbd_id":
                    found |= set() if rest.startswith("import/") else {rest}
                elif each.key not in own and (
                    kind not in {"rbd_header", "rbd_data", "rbd_object_map"} or owner not in images
                ):
                    found.add(each.key)
        return found


def has_clones(io: Any, image: str) -> bool:
    """Whether anything was cloned from the image of that id and is there."""
    with suppress(rbd.ImageNotFound), open_image(io, image_id=image, read_only=True) as opened:
        return any(opened.list_children2())
    return False


def noted(io: Any) -> set[str]:
    """What the marker says of clones that have no sign."""
    with rados.ReadOpCtx() as op:
        found, _ = io.get_omap_vals(op, "", "", 100)
        try:
            io.operate_read_op(op, "glimpse-store")
        except rados.ObjectNotFound:
            return set()
        return {f"note of {name}" for name, _ in found}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster in memory."""
    yield from started(Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore", options=WATCH))


def started(server: Ceph) -> Iterator[Place]:
    """The server, running."""
    if absent:
        require("ceph", f"Debian's python3-rbd and python3-rados do not load into this Python: {absent}")
    try:
        with server as cluster:
            place = Place(cluster, "images")
            yield place
            place.client.shutdown()
    except Missing as error:
        require("ceph", str(error))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster that is full at 24 MiB, and slow, so that its OSD notices that in time."""
    options = WATCH | {"osd heartbeat interval": 1}
    server = Ceph(tmp_path_factory.mktemp("tiny"), objectstore="memstore", size=1 << 30, options=options)
    for place in started(server):
        for level, ratio in (("nearfull", 0.02), ("backfillfull", 0.022), ("full", 0.024)):
            place.cluster.ceph("osd", f"set-{level}-ratio", str(ratio))
        run("rbd", "--conf", place.cluster.conf, "config", "pool", "set", "images", "rbd_qos_write_bps_limit", "12M")
        yield place


@pytest.fixture
def namespace() -> str:
    """One that nobody has used."""
    return uuid.uuid4().hex[:8]


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in."""

    @pytest.fixture(autouse=True)
    def installed(self, outside: Path) -> None:
        """The less patient driver."""

    @pytest.fixture
    def ref(self, place: Place, namespace: str) -> StoreRef:
        """A store in an empty namespace."""
        return place.ref(namespace)

    @pytest.fixture
    def raw(self, place: Place, namespace: str) -> Raw:
        """Images and objects in that namespace."""
        return lambda: place.raw(namespace)

    @pytest.fixture
    def small(self, tiny: Place) -> StoreRef:
        """A namespace of the cluster that is soon full."""
        return tiny.ref(uuid.uuid4().hex[:8])

    @pytest.fixture
    def buried(self, place: Place, namespace: str) -> Callable[[], None]:
        """Waits until nobody watches an image any more."""
        return lambda: bury(place, namespace)


def bury(place: Place, namespace: str) -> None:
    """Wait until nobody watches an image any more."""

    def watched() -> bool:
        with place.io(namespace) as io:
            for each in rbd.RBD().list2(io):
                with suppress(rbd.ImageNotFound), open_image(io, image_id=each["id"], read_only=True) as image:
                    if any(image.watchers_list()):
                        return True
        return False

    wait_until("the death of a client", lambda: not watched(), timeout=60)


class TestContract(Fixtures, StoreContract):
    """What every store promises."""

    sequences: ClassVar[int] = 8
    part: ClassVar[int] = 4 * CHUNK
    exempt: ClassVar[Mapping[str, str]] = {
        "test_keeps_its_reserve": "without a manager Ceph tells no room; with one the reserve has tests of its own",
    }

    @pytest.fixture
    def ref(self, place: Place, namespace: str) -> StoreRef:
        """Images are cut, written and read in just such parts."""
        return place.ref(namespace, objectSize="4Mi")


class TestSparse(Fixtures, SparseContract):
    """What a store promises in which zeros take no room."""

    @pytest.fixture
    def taken(self, place: Place, namespace: str) -> Callable[[str], int]:
        """Extents of the image."""

        def look(key: str) -> int:
            found: list[int] = []
            with place.io(namespace) as io, open_image(io, key, read_only=True) as image:
                image.diff_iterate(0, image.size(), None, lambda _at, length, exists: found.append(length * exists))
            return sum(found)

        return look


class TestResumable(Fixtures, ResumableContract):
    """What a store promises that goes on with a put that died."""


def laying(io: Any, *, snapshot: bool) -> Lay:
    """The hands of others: what lies there is written over, if it can be, else made anew."""

    def lay(location: str, data: bytes | None) -> None:
        with suppress(rbd.ImageNotFound):
            with rbd.Image(io, location) as image:
                for each in list(image.list_snaps()):
                    if image.is_protected_snap(each["name"]):
                        image.unprotect_snap(each["name"])
                    image.remove_snap(each["name"])
                if data and not snapshot:
                    image.resize(len(data))
                    image.write(data, 0)
                    return
            rbd.RBD().remove(io, location)
        if data is None:
            return
        features = rbd.RBD_FEATURE_LAYERING | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
        rbd.RBD().create(io, location, len(data), old_format=False, features=features)
        with rbd.Image(io, location) as image:
            if data:
                image.write(data, 0)
            if snapshot:
                image.create_snap("snap")
                image.protect_snap("snap")

    return lay


class TestRegistering(Fixtures, RegisteringContract):
    """What a store promises that holds what others have put into it: images."""

    @pytest.fixture
    def lay(self, place: Place, namespace: str) -> Iterator[Lay]:
        """Images without a snapshot."""
        with place.io(namespace) as io:
            yield laying(io, snapshot=False)


class TestRegisteringSnapshots(Fixtures, RegisteringContract):
    """The same with images as OpenStack has them."""

    @pytest.fixture
    def lay(self, place: Place, namespace: str) -> Iterator[Lay]:
        """Images with the protected snapshot `snap`."""
        with place.io(namespace) as io:
            yield laying(io, snapshot=True)


class TestCloneable(Fixtures, CloneableContract):
    """What a store promises that makes one object of another: here a clone."""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ceph, Place]]:
    """A cluster whose data outlive it."""
    server = Ceph(tmp_path_factory.mktemp("disks"), options=WATCH)
    for place in started(server):
        yield server, place


class Outage:
    """Does to all processes of a cluster what can be done to processes."""

    def __init__(self, server: Ceph, store: Store) -> None:
        self._server, self._store = server, store

    def cut(self) -> None:
        """Kill them: connections break, new ones are refused."""
        for process in self._server.processes.values():
            process.kill()

    def stall(self) -> None:
        """Stop them: nothing is answered, and nobody hangs up."""
        self._server.freeze()

    def heal(self) -> None:
        """Have them go on, or start them again with the same data; a connection from before finds them in some time."""
        self._server.thaw()
        wait_until("a connection from before", self._reached, timeout=60)

    def _reached(self) -> bool:
        """Whether the marker can be read and written."""
        try:
            self._store.probe()
        except StoreUnavailable:
            return False
        return True


class TestRemote(Fixtures, RemoteContract):
    """What a store on a server promises besides: a cluster with disks, which may be killed."""

    @pytest.fixture
    def place(self, disks: tuple[Ceph, Place]) -> Place:
        """Its pool."""
        return disks[1]

    @pytest.fixture
    def far(self, ref: StoreRef, store: Store, disks: tuple[Ceph, Place]) -> Iterator[Far]:
        """The same place: it is the cluster that fails, as its clients go to each of its processes by themselves."""
        outage = Outage(disks[0], store)
        yield Far(ref, outage)
        outage.heal()

    @pytest.fixture
    def restart(self, store: Store, disks: tuple[Ceph, Place]) -> Restart:
        """Monitor and OSD, killed as by a loss of power."""
        outage = Outage(disks[0], store)

        def again() -> None:
            outage.cut()
            outage.heal()

        return again

    @pytest.fixture
    def locked_out(self, ref: StoreRef, place: Place) -> StoreRef:
        """The key of somebody else."""
        other = place.cluster.client("other", mon="profile rbd")
        return ref.model_copy(update={"secret": {"userKey": SecretStr(other)}})

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """A pool that does not exist."""
        return ref.model_copy(update={"config": {**ref.config, "pool": "missing"}})


# Around the store: its images


@pytest.fixture
def io(place: Place, namespace: str) -> Iterator[Any]:
    """The namespace, for the administrator."""
    with place.io(namespace) as opened:
        yield opened


@pytest.fixture
def store(outside: Path, place: Place, namespace: str) -> Store:  # noqa: ARG001 - the driver comes from there
    """A store in the namespace, claimed."""
    store = open_store(place.ref(namespace))
    store.claim()
    return store


def put(store: Store, data: bytes = b"x" * 1000, *, attempt: str = "a1", key: str = KEY) -> Entry:
    """Store something."""
    return store.put(key, attempt, Body(data), lambda: record_of(key))


@pytest.mark.parametrize("snapshot", [True, False])
def test_images_are_where_the_docs_say(place: Place, outside: Path, snapshot: bool) -> None:  # noqa: ARG001
    """One image with its name, metadata and true size, in the pool itself too, and a snapshot to clone from."""
    store = open_store(place.ref(snapshot=snapshot, objectSize="4Mi"))
    store.claim()
    entry = put(store, noise(5_000_001))
    suffix = "/snap" if snapshot else ""
    assert entry.location == f"rbd://{place.cluster.fsid}/images/{KEY}{suffix}"
    with place.io() as io:
        assert json.loads(io.read("glimpse-store")) == {"owner": "here/fast"}
        assert rbd.RBD().list(io) == [KEY]
        with open_image(io, KEY, read_only=True) as image:
            assert image.size() == 5_000_001
            assert image.stat()["obj_size"] == 4 << 20
            assert image.read(0, image.size()) == noise(5_000_001)
            meta = dict(image.metadata_list())
            assert (meta["glimpse.size"], json.loads(meta["glimpse.record"])["uid"]) == ("5000001", UID)
            assert "glimpse.checkpoint" not in meta
            assert [each["name"] for each in image.list_snaps()] == ["snap"] * snapshot
            assert not snapshot or image.is_protected_snap("snap")
    assert place.raw() == {KEY}
    store.delete(KEY)
    assert place.raw() == set()


def test_zeros_take_no_room(store: Store, io: Any) -> None:
    """Whole blocks of zeros are not written, at the end too; the length counts them."""
    data = noise(100_000) + bytes(20 << 20) + noise(100_000) + bytes(20 << 20)
    assert put(store, data).size == len(data)
    with open_image(io, KEY, read_only=True) as image:
        found: list[int] = []
        image.diff_iterate(0, len(data), None, lambda _offset, length, exists: found.append(length * exists))
        assert sum(found) < 8 << 20  # of an object that has some, memory holds all before it
    store.delete(KEY)


def test_images_of_others_are_left_alone(store: Store, io: Any, place: Place, namespace: str) -> None:
    """What has no sign of ours is neither listed nor given nor removed, whatever its name, in the trash too."""
    for name in (KEY, f"{KEY}.a9", "vm-1", "7-1.old"):
        rbd.RBD().create(io, name, 1 << 20, old_format=False)
    rbd.RBD().create(io, "7-2", 1 << 20, old_format=False)
    rbd.RBD().trash_move(io, "7-2", 0)
    before = place.raw(namespace) - {f"{KEY}.a9"}
    assert list(store.list()) == []
    with pytest.raises(NotFound):
        store.stat(KEY)
    for key in (KEY, "7-1", "7-2"):
        store.delete(key)
    assert place.raw(namespace) - {f"{KEY}.a9"} == before
    with pytest.raises(StoreConflict):
        put(store)


def test_an_image_with_clones_waits_in_the_trash(store: Store, io: Any, place: Place, namespace: str) -> None:
    """A delete takes the object at once; what clones need stays until they are gone, and the clone is whole."""
    put(store, noise(100_000))
    rbd.RBD().clone(io, KEY, "snap", io, "vm-1")
    store.delete(KEY)
    store.delete(KEY)
    left, *others = store.list()
    assert not others, [left, *others]
    assert left.partial
    assert left.key.startswith(f"{KEY}.")
    with open_image(io, "vm-1", read_only=True) as image:
        assert image.read(0, image.size()) == noise(100_000)
    put(store, b"again", attempt="a2")
    store.delete(left.key)
    assert [entry.partial for entry in store.list()].count(True) == 1
    rbd.RBD().remove(io, "vm-1")
    store.delete(left.key)
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    assert place.raw(namespace) == set()


THIRD = f"{UID}-3"


def test_a_clone_is_one_of_rbd(store: Store, io: Any, place: Place, namespace: str) -> None:
    """It has no block of its own, metadata and a protected snapshot of its own, and the original knows it."""
    data = noise(20 << 20)
    original(store, data)
    assert clone(store) == store.stat(OTHER)
    with open_image(io, KEY, read_only=True) as first, open_image(io, OTHER, read_only=True) as second:
        assert second.parent_id() == first.id()
        assert [each["image"] for each in first.list_children2()] == [OTHER]
        assert second.stat()["obj_size"] == first.stat()["obj_size"]
        assert second.is_protected_snap("snap")
        prefix = second.stat()["block_name_prefix"]
        assert [each.key for each in io.list_objects() if each.key.startswith(prefix)] == []
        meta = dict(second.metadata_list())
        assert (meta["glimpse.image"], meta["glimpse.layers"]) == (second.id(), "1")
        assert json.loads(meta["glimpse.record"])["revision"] == 2
    rbd.RBD().clone(io, OTHER, "snap", io, "vm-1")
    with open_image(io, "vm-1", read_only=True) as image:
        assert image.read(0, image.size()) == data
    rbd.RBD().remove(io, "vm-1")
    assert place.raw(namespace) == {KEY, OTHER}
    for key in (KEY, OTHER):
        store.delete(key)


@pytest.mark.parametrize(
    "order", list(permutations((KEY, OTHER, THIRD))), ids=lambda order: "".join(o[-1] for o in order)
)
def test_a_chain_goes_with_its_last(
    store: Store, io: Any, place: Place, namespace: str, order: tuple[str, ...]
) -> None:
    """Whichever goes first, those left are whole; what waits in the trash goes with the last that needs it."""
    original(store, noise(100_000))
    assert clone(store)
    assert clone(store, THIRD, source=OTHER)
    for n, key in enumerate(order):
        store.delete(key)
        for left in order[n + 1 :]:
            with store.get(left) as reader:
                assert contents(reader) == noise(100_000)
        needed = {KEY, OTHER, THIRD}.difference(order[: n + 1])
        assert {each["name"] for each in rbd.RBD().list2(io)} == needed
        waiting = {each["name"] for each in rbd.RBD().trash_list(io)}
        assert waiting == {gone for gone in order[: n + 1] if any(gone < left for left in needed)}
    assert place.raw(namespace) == set()


def test_a_flattened_clone_needs_nothing(store: Store, io: Any, place: Place, namespace: str) -> None:
    """A person may flatten an object; then what it was cloned from goes with the next look at it."""
    original(store, noise(100_000))
    clone(store)
    store.delete(KEY)
    (waiting,) = (entry.key for entry in store.list() if entry.partial)
    with rbd.Image(io, OTHER) as image:
        image.flatten()
    store.delete(waiting)
    assert place.raw(namespace) == {OTHER}
    with store.get(OTHER) as reader:
        assert contents(reader) == noise(100_000)
    store.delete(OTHER)


def test_clones_of_others_are_left_alone(store: Store, io: Any, place: Place, namespace: str) -> None:
    """They have the metadata of what they were cloned from, and may have any name, in the trash as well."""
    original(store, noise(1000))
    clone(store)
    theirs = {"vm-1", "web.disk1", f"{KEY}.disk1", f"{UID}-9", f"{UID}-7.b1"}
    for name in theirs:
        rbd.RBD().clone(io, OTHER, "snap", io, name)
    assert {entry.key for entry in store.list()} == {KEY, OTHER}
    for name in (f"{KEY}.disk1", f"{UID}-7.b1", f"{UID}-7", f"{UID}-9", "web.disk1", "vm-1", KEY, OTHER):
        store.delete(name)
    assert place.raw(namespace) == theirs
    assert {entry.partial for entry in store.list()} == {True}
    rbd.RBD().trash_move(io, f"{UID}-7.b1", 0)
    store.delete(f"{UID}-7")
    assert [each["name"] for each in rbd.RBD().trash_list(io) if each["name"] not in {KEY, OTHER}] == [f"{UID}-7.b1"]
    for each in list(rbd.RBD().trash_list(io)):
        if each["name"] == f"{UID}-7.b1":
            rbd.RBD().trash_remove(io, each["id"])
    for name in theirs - {f"{UID}-7.b1"}:
        rbd.RBD().remove(io, name)
    store.delete(OTHER)
    assert place.raw(namespace) == set()


@pytest.mark.parametrize("action", ["clone", "put", "delete", "sweep"])
@pytest.mark.parametrize("step", ["noted", "made", "trashed", "signed"])
def test_a_clone_that_died_half_way(  # noqa: PLR0917 - fixtures
    store: Store, io: Any, place: Place, namespace: str, step: str, action: str
) -> None:
    """Before it has a sign of ours it looks like that of anybody: the note that was made before tells whose it is."""
    original(store, noise(1000))
    name = f"{OTHER}.b1"
    if step != "signed":
        with rados.WriteOpCtx() as op:
            io.set_omap(op, (name,), (b"",))
            io.operate_write_op(op, "glimpse-store")
    if step != "noted":
        rbd.RBD().clone(io, KEY, "snap", io, name)
    if step == "trashed":
        rbd.RBD().trash_move(io, name, 0)
    if step == "signed":
        with rbd.Image(io, name) as image:
            image.metadata_set("glimpse.image", image.id())
            image.create_snap("snap")
            image.protect_snap("snap")
    assert [entry.key for entry in store.list() if entry.partial] == [name] * (step != "noted")
    with pytest.raises(NotFound):
        store.stat(OTHER)
    if action == "clone":
        assert clone(store, attempt="b2")
    elif action == "put":
        put(store, key=OTHER, attempt="b2")
    elif action == "delete":
        store.delete(OTHER)
    else:
        store.delete(name)
    assert place.raw(namespace) == ({KEY, OTHER} if action in {"clone", "put"} else {KEY})
    for key in (KEY, OTHER):
        store.delete(key)
    assert place.raw(namespace) == set()


CLONE = """
import sys
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.cloneable import clone

store = open_store(StoreRef.model_validate_json(sys.stdin.buffer.readline()))
store.claim()
print("ready", flush=True)
sys.stdin.readline()
clone(store)
"""


@pytest.mark.parametrize("_turn", range(4))
def test_a_clone_may_be_killed(store: Store, io: Any, place: Place, namespace: str, _turn: int) -> None:
    """As soon as there is anything of it: whatever is left is found, and goes."""
    original(store, noise(1000))
    with subprocess.Popen([sys.executable, "-c", CLONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(place.ref(namespace).line())
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
            process.stdin.write(b"go\n")
            process.stdin.flush()
            while process.poll() is None and not any(each.startswith(OTHER) for each in rbd.RBD().list(io)):
                pass
        finally:
            process.kill()
    bury(place, namespace)
    left = place.raw(namespace) - {KEY, f"note of {OTHER}.b1"}
    assert {entry.key for entry in store.list()} == left | {KEY}
    store.delete(OTHER)
    assert place.raw(namespace) == {KEY}
    store.delete(KEY)


def test_what_cannot_be_cloned_is_copied(store: Store, io: Any, place: Place, namespace: str) -> None:
    """Without a snapshot, where none is wanted, on too many layers, or where RBD says no: then nothing has happened."""
    plain = open_store(place.ref(namespace, snapshot=False))
    original(plain, noise(1000))
    assert clone(store) is None
    store.delete(KEY)
    original(store, noise(1000))
    assert clone(plain) is None
    store.delete(KEY)
    rbd.RBD().create(io, KEY, 1000, old_format=False, features=0)
    with rbd.Image(io, KEY) as image:
        line = encode(record_of(KEY, size=1000, digest=DIGEST)).decode()
        for name, value in {"image": image.id(), "record": line, "size": "1000"}.items():
            image.metadata_set(f"glimpse.{name}", value)
        image.create_snap("snap")
    assert clone(store) is None
    store.delete(KEY)
    original(store, noise(1000))
    source, depth = KEY, 0
    while clone(store, f"{UID}-{depth + 2}", source=source):
        depth += 1
        source = f"{UID}-{depth + 1}"
    assert depth == 8
    assert place.raw(namespace) == {f"{UID}-{n}" for n in range(1, 10)}
    for n in range(1, 10):
        store.delete(f"{UID}-{n}")
    assert place.raw(namespace) == set()


def test_an_original_may_go_meanwhile(store: Store, place: Place, namespace: str) -> None:
    """Then a clone is made, and whole, or none."""
    data = noise(1000)
    together = threading.Barrier(2)

    def replace() -> None:
        together.wait(60)
        for _ in range(10):
            store.delete(KEY)
            original(store, data)

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(replace)
        together.wait(60)
        turn = 0
        while not busy.done():
            turn += 1
            if clone(store, attempt=f"b{turn}"):
                with store.get(OTHER) as reader:
                    assert contents(reader) == data
                store.delete(OTHER)
        busy.result()
    store.delete(KEY)
    assert place.raw(namespace) == set()


def test_an_image_that_is_open_waits_in_the_trash(store: Store, io: Any, place: Place, namespace: str) -> None:
    """The same while somebody has it open; who has it locked as well keeps it where it is, and the message says so."""
    put(store, noise(1000))
    with rbd.Image(io, KEY) as image:
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        with pytest.raises(StoreUnavailable, match=f"rbd status images/{namespace}/{KEY}"):
            store.delete(KEY)
        assert store.stat(KEY).size == 1000
        image.lock_release()
        store.delete(KEY)
        assert [entry.partial for entry in store.list()] == [True]
        assert image.read(0, 1000) == noise(1000)
    store.delete(KEY)
    assert place.raw(namespace) == set()


def test_the_snapshot_is_what_is_given(store: Store, io: Any) -> None:
    """Who writes to an image that was stored harms his own copy only."""
    put(store, noise(1000))
    with rbd.Image(io, KEY) as image:
        image.write(b"harm", 0)
        image.resize(2000)
    with store.get(KEY) as reader:
        assert reader.read() == noise(1000)
    assert store.stat(KEY).size == 1000
    store.delete(KEY)


def test_who_was_taken_for_dead_can_write_no_more(store: Store, place: Place, namespace: str) -> None:
    """A writer that is stopped, taken over and wakes up harms nothing: the cluster refuses him."""
    data = noise(88 << 20)
    command = [sys.executable, "-m", "glimpse.testing.bodies", KEY, "a1", str(len(data)), str(80 << 20), b"m".hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(place.ref(namespace).line())
            process.stdin.flush()
            assert process.stdout.readline() == b"half\n"
            process.send_signal(signal.SIGSTOP)
            wait_until("the death of a client", lambda: _taken_over(store, data), timeout=60)
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(b"go on\n", timeout=60)
        finally:
            process.kill()
    assert out.decode().strip() in {"StoreUnavailable", "StoreConflict"}
    with store.get(KEY) as reader:
        assert b"".join(iter(reader.read, b"")) == data
    store.delete(KEY)
    assert place.raw(namespace) == set()


def _taken_over(store: Store, data: bytes) -> bool:
    """Whether there was something to take over; then it was gone on with."""
    with store.partial(KEY, "b1") as left:
        if left is None:
            return False
        assert left.length >= 16 << 20
        store.resume(left, left.length, Body(data), lambda: record_of(KEY), lambda _: b"m")
        return True


@pytest.mark.parametrize("action", ["put", "delete"])
def test_a_commit_that_died_half_way(store: Store, io: Any, place: Place, namespace: str, action: str) -> None:
    """Where the name leads to an image whose name it is not yet, the attempt is dead as any, and in nobody's way."""
    rbd.RBD().create(io, f"{KEY}.a1", 1000, old_format=False)
    with rbd.Image(io, f"{KEY}.a1") as image:
        image.metadata_set("glimpse.image", image.id())
    io.write_full(f"rbd_id.{KEY}", io.read(f"rbd_id.{KEY}.a1"))
    with pytest.raises(NotFound):
        store.stat(KEY)
    if action == "put":
        put(store, noise(1000), attempt="a2")
        assert place.raw(namespace) == {KEY}
    store.delete(KEY)
    assert place.raw(namespace) == set()


def test_a_registered_object_is_noted_where_the_docs_say(store: Store, io: Any, place: Place) -> None:
    """An empty image says where the bytes lie and which they are; nothing can be cloned from it."""
    laying(io, snapshot=True)(PLACE, b"theirs")
    entry = register(store, KEY, PLACE)
    with rbd.Image(io, KEY, read_only=True) as image:
        assert (image.size(), list(image.list_snaps())) == (0, [])
        assert json.loads(image.metadata_get("glimpse.at"))["location"] == PLACE
    assert entry.location == f"rbd://{place.cluster.fsid}/images/{io.get_namespace()}/{quote(PLACE, safe='')}"
    assert store.clone(KEY, "", OTHER, "b1", lambda record: record) is None


def test_any_snapshot_can_be_registered(store: Store, io: Any) -> None:
    """Named behind an @, of a disk that goes on to be written too; it alone is erased, and ours are refused."""
    laying(io, snapshot=False)("vm-1", b"monday")
    with rbd.Image(io, "vm-1") as disk:
        disk.create_snap("monday")
        disk.write(b"sunday", 0)
        register(store, KEY, "vm-1@monday")
        assert read(store, KEY) == b"monday"
        with pytest.raises(StoreRefused, match="make a snapshot"):
            store.locate("vm-1")
    for location in ("vm-1@tuesday", "vm-2@monday"):
        with pytest.raises(NotFound):
            store.locate(location)
    for location in (f"{KEY}@snap", "vm-1@", "@monday"):
        with pytest.raises(StoreRefused):
            store.locate(location)
    with pytest.raises(StoreUnavailable, match="in use"):
        store.erase("vm-1")
    store.erase("vm-1@monday")
    store.erase("vm-1@monday")
    with pytest.raises(DataLost):
        read(store, KEY)
    with rbd.Image(io, "vm-1", read_only=True) as disk:
        assert disk.read(0, 6) == b"sunday"


def test_what_may_change_unseen_is_refused(store: Store, io: Any) -> None:
    """Whoever writes to an image without an exclusive lock leaves no trace in its header."""
    rbd.RBD().create(io, "import", 10, old_format=False, features=rbd.RBD_FEATURE_LAYERING)
    with pytest.raises(StoreRefused, match="exclusive lock"):
        store.locate("import")


def test_bytes_that_are_written_while_they_are_read_are_not_given(store: Store, io: Any) -> None:
    """Neither of an image that is written to, nor of a snapshot that is removed, of which zeros would be read."""
    data = noise(48 * CHUNK)
    for snapshot in (False, True):
        laying(io, snapshot=snapshot)(PLACE, data)
        register(store, KEY, PLACE)
        got = []
        with store.get(KEY) as reader:
            got.append(reader.read(CHUNK))
            laying(io, snapshot=snapshot)(PLACE, None if snapshot else noise(len(data), 1))
            with pytest.raises(DataLost):
                got.extend(iter(partial(reader.read, CHUNK), b""))
        assert data.startswith(b"".join(got))
        store.delete(KEY)


@pytest.mark.parametrize("step", ["noted", "unnamed"])
def test_a_delete_that_died_half_way(store: Store, io: Any, place: Place, namespace: str, step: str) -> None:
    """While the directory has it the object is whole; a second delete removes it and what the first has left."""
    put(store, noise(1000))
    name = io.read(f"rbd_id.{KEY}")
    rbd.RBD().trash_move(io, KEY, 0)
    (entry,) = rbd.RBD().trash_list(io)
    with rados.WriteOpCtx() as op:
        pair = {f"name_{KEY}": name, f"id_{entry['id']}": struct.pack("<I", len(KEY)) + KEY.encode()}
        io.set_omap(op, tuple(pair), tuple(pair.values()))
        io.operate_write_op(op, "rbd_directory")
    if step == "noted":
        io.write_full(f"rbd_id.{KEY}", name)
    with store.get(KEY) as reader:
        assert reader.read() == noise(1000)
    assert isinstance(store.driver, Cloneable)
    assert store.driver.clone(KEY, OTHER, "b1", b"{}", lambda: None).key == OTHER
    store.delete(OTHER)
    store.delete(KEY)
    assert list(store.list()) == []
    assert place.raw(namespace) == set()


@pytest.mark.parametrize(
    ("secret", "problem", "word"),
    [
        ({}, SecretNotReadable, "userKey"),
        ({"userKey": SecretStr("no key")}, SecretNotReadable, "userKey"),
        ({"userKey": SecretStr("AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA")}, SecretNotReadable, "userKey"),  # cut off
        ({"userKey": SecretStr("AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA0O")}, SecretNotReadable, "userKey"),
        ({"userKey": SecretStr("AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA0ODw==")}, None, ""),
    ],
)
def test_secrets_are_looked_at(secret: dict[str, SecretStr], problem: type[Problem] | None, word: str) -> None:
    """A key that is missing or none is named; without a user anywhere, both places are."""
    config = {"pool": "images", "monitors": ["10.0.0.1"]}
    ref = StoreRef(name="fast", driver="rbd", config={**config, "user": "glimpse"}, secret=secret, installation="here")
    if problem:
        with pytest.raises(problem, match=word):
            open_store(ref)
    else:
        assert open_store(ref).driver.endpoint == "rbd://10.0.0.1/images"
        with pytest.raises(InvalidConfiguration, match="userID"):
            open_store(ref.model_copy(update={"config": config}))


def test_a_missing_namespace_is_named(place: Place, outside: Path) -> None:  # noqa: ARG001
    """It is not created by itself."""
    ref = place.ref()
    store = open_store(ref.model_copy(update={"config": {**ref.config, "namespace": "nowhere"}}))
    with pytest.raises(StoreUnavailable, match="rbd namespace create images/nowhere"):
        store.claim()


LOOK = """
import os
import sys
from glimpse.ceph import Pool, open_image

monitors, key, namespace, name = sys.argv[1:]
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
pool = Pool.open(
    "images", monitors, user="glimpse", key=key, patience=30, enter=lambda io: io.set_namespace(namespace)
)
for _ in range(300):
    open_image(pool.io, name, snapshot="snap", read_only=True).close()
os._exit(0)  # as a worker ends: at Python's own end a thread of librados that is just leaving us would abort
"""


def test_an_image_may_be_closed_as_soon_as_it_is_open(store: Store, place: Place, namespace: str) -> None:
    """Who has seen enough of it does not meet librbd's last steps of opening it, which then would abort him.

    On one processor they come late, and what was freed is overwritten: without our waiting few turns are enough.
    """
    put(store)
    env = {**os.environ, "MALLOC_PERTURB_": "165"}
    where = [place.cluster.monitors[0], place.key, namespace]
    subprocess.run([sys.executable, "-c", LOOK, *where, KEY], env=env, check=True)
    store.delete(KEY)


def connections() -> set[str]:
    """Connections to clusters that this process has: each has one thread of that name, here by its number."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the latter if it ends between open and read
            if (task / "comm").read_text().strip() == "ms_dispatch":
                found.add(task.name)
    return found


@pytest.mark.usefixtures("outside")
def test_a_connection_ends_with_its_store(place: Place, namespace: str) -> None:
    """A store that is used no more leaves no connection behind; one that is still being read from keeps it."""
    before = connections()  # of other tests; they may end meanwhile
    stores = [open_store(place.ref(namespace)) for _ in range(3)]
    for store in stores:
        assert [*store.list()] == []
    put(stores[0], noise(20 << 20))
    ours = connections() - before
    assert len(ours) == 3
    with stores[0].get(KEY) as body:
        del store
        stores.clear()
        gc.collect()
        wait_until("two connections to end", lambda: len(connections() & ours) == 1, timeout=30)
        assert contents(body) == noise(20 << 20)
    del body
    gc.collect()
    wait_until("the last connection to end", lambda: not connections() & ours, timeout=30)


def test_without_a_manager_nothing_is_told(store: Store) -> None:
    """A cluster that nobody counts has no room that could be named: that is not nought, which would be full."""
    put(store, noise(1 << 20))
    assert store.probe() == Capacity(None, None, None)
    store.delete(KEY)
