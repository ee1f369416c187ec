"""The Cinder store: the contracts against a real Cinder over a real Ceph, and its volumes looked at around it."""

import base64
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar

import pytest
import trustme
from pydantic import SecretStr

from glimpse.ceph import Pool, open_image
from glimpse.problems import (
    InvalidConfiguration,
    NotFound,
    SecretNotReadable,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import RECORD_LIMIT, open_store
from glimpse.stores.cinder.image import Way, way
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.cloneable import CloneableContract, clone, original
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.sparse import SparseContract
from glimpse.testing.stores import KEY, OTHER, Raw, StoreContract, StoreFixtures, put, read
from glimpse.testing.wire import Wire
from servers import wait_until
from servers.ceph import Ceph
from servers.cinder import ELSEWHERE, POOL, USER, Cinder, Cloud
from servers.keystone import Identity, Keystone
from servers.require import require
from servers.tools import Missing

GIB = 1 << 30

NOTICING = {"osd heartbeat interval": 1}
"""So an OSD looks more often whether it is full."""

CROWDED = {"test_lets_one_of_many_win", "test_survives_a_crowd", "test_gives_one_answer_to_all_claims"}
"""Tests in which many want something at once of a Cinder that is one process."""
UNCLAIMED = {"test_gives_one_answer_to_all_claims", "test_misses_its_marker"}
"""Tests that must find no marker."""


@pytest.fixture(scope="module")
def used() -> list[str]:
    """The project of the test before."""
    return []


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A Ceph for this module, in memory."""
    server = Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore", size=4 * GIB, options=NOTICING)
    try:
        with server:
            yield server
    except Missing as error:
        require("ceph", str(error))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    """A Keystone for this module."""
    try:
        with Keystone(tmp_path_factory.mktemp("keystone")) as identity:
            yield identity
    except Missing as error:
        require("keystone", str(error))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ceph: Ceph, identity: Identity) -> Iterator[Cinder]:
    """A Cinder for this module, with and without that Keystone."""
    server = Cinder(tmp_path_factory.mktemp("cinder"), ceph.cluster, login=login_of(identity))
    try:
        with server as cloud:
            identity.register("block-storage", cloud.guarded)
            yield server
    except Missing as error:
        require("cinder", str(error))


@pytest.fixture(scope="module")
def cloud(server: Cinder) -> Cloud:
    """Where it is."""
    return server.cloud


def login_of(identity: Identity) -> str:
    """With which Cinder asks that Keystone about tokens."""
    return f"""
[keystone_authtoken]
www_authenticate_uri = {identity.url}
auth_url = {identity.url}
auth_type = password
interface = public
username = admin
password = {identity.password}
project_name = admin
user_domain_id = default
project_domain_id = default
service_token_roles_required = true
"""


def ref_to(cloud: Cloud, project: str, *, driver: str = "quick-cinder", **config: object) -> StoreRef:
    """A store in that project."""
    return StoreRef(
        name="volumes",
        driver=driver,
        config={"endpoint": cloud.url, "project": project, **config},
        secret={"cephKey": SecretStr(cloud.key)},
        installation="here",
    )


def settled(cloud: Cloud, project: str) -> list[dict[str, Any]]:
    """The volumes of a project, when none is being removed any more."""
    found: list[dict[str, Any]] = []

    def quiet() -> bool:
        nonlocal found
        found = cloud.volumes(project)
        return all(each["status"] != "deleting" for each in found)

    wait_until("the removal of volumes", quiet, timeout=30, poll=0.1)
    return found


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in."""

    @pytest.fixture
    def buried(self, ref: StoreRef) -> Callable[[], None]:
        """Waits until no sign of life is younger than a lease."""

        def wait() -> None:
            driver = open_store(ref).driver

            def dead() -> bool:
                service = driver._service  # type: ignore[attr-defined]
                return not any(
                    driver._attempts.alive(each)  # type: ignore[attr-defined]
                    for each in service.find({"glimpse-store": "default"}, 100)
                    if each.metadata["glimpse-state"] != "stored"
                )

            wait_until("the end of all leases", dead, timeout=30, poll=0.3)

        return wait

    @pytest.fixture
    def project(self, request: pytest.FixtureRequest, cloud: Cloud, used: list[str]) -> str:
        """A project of its own, or one that the test before has left empty but for its marker: that costs a second."""
        if request.node.originalname in UNCLAIMED:
            return token_hex(16)
        if not used or len(settled(cloud, used[0])) > 1:
            used[:] = [token_hex(16)]
        return used[0]

    @pytest.fixture
    def ref(self, request: pytest.FixtureRequest, cloud: Cloud, project: str, outside: Path) -> StoreRef:  # noqa: ARG002 - has the drivers
        """A store in an empty project; with more patience where many want something at once."""
        crowded = request.node.originalname in CROWDED
        return ref_to(cloud, project, driver="quick-cinder-crowd" if crowded else "quick-cinder")

    @pytest.fixture
    def raw(self, cloud: Cloud, project: str) -> Raw:
        """Keys of stored volumes, the names of all others."""

        def look() -> set[str]:
            found = set()
            for each in settled(cloud, project):
                meta = each["metadata"]
                if meta["glimpse-state"] != "stored" or each["status"] != "available":
                    found.add(f"{each['name']} {each['status']} {meta['glimpse-state']}")
                elif meta["glimpse-key"] != "marker":
                    found.add(meta["glimpse-key"])
            return found

        return look

    @pytest.fixture
    def small(self, cloud: Cloud, outside: Path) -> StoreRef:  # noqa: ARG002 - has the driver
        """A project that may have 2 GiB, of which the marker takes one."""
        project = token_hex(16)
        cloud.quota(project, 2)
        ref = ref_to(cloud, project)
        open_store(ref).claim()
        return ref


class TestContract(Fixtures, StoreContract):
    """What every store promises."""

    part: ClassVar[int] = 1 << 20
    """As the driver of the tests writes and reads."""
    sequences: ClassVar[int] = 4
    steps: ClassVar[int] = 10
    rounds: ClassVar[int] = 2
    turns: ClassVar[int] = 2
    deaths: ClassVar[int] = 1

    def plenty(self) -> bytes:
        """Cinder counts in GiB, whatever is in them."""
        return bytes(GIB + 1)


class TestSparse(Fixtures, SparseContract):
    """What a store promises in which zeros take no room."""

    @pytest.fixture
    def taken(self, cloud: Cloud, project: str) -> Callable[[str], int]:
        """Extents of the volume."""

        def look(key: str) -> int:
            name = f"{POOL}/volume-{stored(cloud, project, key)['id']}"
            return sum(each["length"] for each in json.loads(rbd(cloud, "diff", name, "--format", "json")))

        return look


class TestCloneable(Fixtures, CloneableContract):
    """What a store promises that makes one object of another."""

    turns: ClassVar[int] = 1
    asks: ClassVar[bool] = True


class Frozen:
    """Ceph's side of the way: its processes stopped, as if their machines hung."""

    def __init__(self, server: Ceph) -> None:
        self._server = server

    def stall(self) -> None:
        """From now on nothing is answered."""
        self._server.freeze()

    def heal(self) -> None:
        """All is well again."""
        self._server.thaw()


class TestRemote(Fixtures, RemoteContract):
    """What a store on a server promises."""

    @pytest.fixture
    def far(self, cloud: Cloud, ref: StoreRef) -> Iterator[Far]:
        """The same place, with a wire before Cinder."""
        with Wire(("127.0.0.1", cloud.port)) as wire:
            config = {**ref.config, "endpoint": f"http://127.0.0.1:{wire.port}/v3"}
            yield Far(ref.model_copy(update={"config": config}), wire)

    @pytest.fixture
    def restart(self, server: Cinder) -> Restart:
        """All of Cinder; Ceph goes on."""

        def again() -> None:
            server.stop()
            server.start()

        return again

    @pytest.fixture
    def locked_out(self, identity: Identity, ref: StoreRef) -> StoreRef:
        """A login that Keystone refuses."""
        secret = {"username": "admin", "password": "not this one", "projectName": "admin"}
        config = {"authUrl": identity.url}
        secrets = {name: SecretStr(value) for name, value in secret.items()}
        return ref.model_copy(update={"config": config, "secret": secrets})

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """A type of volumes that nobody has made."""
        return ref.model_copy(update={"config": {**ref.config, "volumeType": "missing"}})


# Around the store: its volumes


@pytest.fixture
def project() -> str:
    """A project of its own."""
    return token_hex(16)


@pytest.fixture
def ref(cloud: Cloud, project: str, outside: Path) -> StoreRef:  # noqa: ARG001 - has the driver
    """A store in it."""
    return ref_to(cloud, project)


def changed(ref: StoreRef, secret: dict[str, str] | None = None, **config: object) -> StoreRef:
    """The same with another configuration; None leaves a field out."""
    values = {name: value for name, value in {**ref.config, **config}.items() if value is not None}
    secrets = ref.secret if secret is None else {name: SecretStr(value) for name, value in secret.items()}
    return ref.model_copy(update={"config": values, "secret": secrets})


def stored(cloud: Cloud, project: str, key: str = KEY) -> dict[str, Any]:
    """The volume of an object."""
    [found] = [each for each in settled(cloud, project) if each["metadata"]["glimpse-key"] == key]
    return found


def rbd(cloud: Cloud, *words: str) -> bytes:
    """What Ceph's own program says, as Cinder's user."""
    command = ["rbd", "--conf", str(cloud.cluster.conf), "--id", USER, *words]
    return subprocess.run(command, check=True, capture_output=True).stdout


def start(cloud: Cloud, image: str, size: int) -> bytes:
    """The first bytes of an image in Ceph, as Cinder's user reads them."""
    pool = Pool.open(POOL, ",".join(cloud.cluster.monitors), user=USER, key=cloud.key, patience=60)
    with open_image(pool.io, image, read_only=True) as opened:
        return bytes(opened.read(0, size))


def test_volumes_are_as_the_docs_say(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """An object is an available volume of whole GiB, the image at its start; metadata say the rest."""
    store, data = open_store(ref), bytes(CHUNK) + noise(100_000) + bytes(80 * CHUNK)
    entry = store.put(KEY, "a1", Body(data), lambda: record_of(KEY, size=len(data)))
    volume = stored(cloud, project)
    metadata = volume["metadata"]
    assert (volume["status"], volume["size"], volume["attachments"]) == ("available", 1, [])
    assert entry.location == f"cinder://127.0.0.1:{cloud.port}/{project}/volumes/{volume['id']}"
    told = {name: metadata[name] for name in sorted(metadata) if not name.startswith("glimpse-record")}
    assert told == {
        "glimpse-attempt": "a1",
        "glimpse-key": KEY,
        "glimpse-size": str(len(data)),
        "glimpse-state": "stored",
        "glimpse-store": "default",
        "glimpse-written": f"{entry.modified:.0f}",
    }
    parts = [metadata[f"glimpse-record-{n:02}"] for n in range(int(metadata["glimpse-record"]))]
    assert json.loads("".join(parts))["name"] == "debian"
    image = f"{POOL}/volume-{volume['id']}"
    whole = rbd(cloud, "export", image, "-", "--no-progress")
    assert len(whole) == GIB
    assert whole.rstrip(b"\0") == data.rstrip(b"\0")
    extents = json.loads(rbd(cloud, "diff", image, "--format", "json"))
    assert sum(each["length"] for each in extents) < 8 * CHUNK, "zeros take no room"
    marker = stored(cloud, project, "marker")
    assert (marker["size"], marker["metadata"]["glimpse-owner-00"]) == (1, "here/volumes")


def test_a_probe_writes(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """Each probe changes what the marker says to Cinder, and writes to its image in Ceph."""
    store = open_store(ref)
    store.claim()
    before = stored(cloud, project, "marker")
    image = f"{POOL}/volume-{before['id']}"
    rbd(cloud, "resize", image, "--size", "1", "--allow-shrink", "--no-progress")
    rbd(cloud, "resize", image, "--size", "1024", "--no-progress")
    assert rbd(cloud, "diff", image, "--format", "json").strip() == b"[]"
    store.probe()
    assert len(json.loads(rbd(cloud, "diff", image, "--format", "json"))) == 1
    after = stored(cloud, project, "marker")
    assert float(after["metadata"].pop("glimpse-probed")) > 0
    before["metadata"].pop("glimpse-probed", None)
    assert after["metadata"] == before["metadata"]


class Long:
    """A Reader over so many zeros and then some bytes, of unknown length."""

    size = None

    def __init__(self, zeros: int, tail: bytes) -> None:
        self._zeros, self._tail = zeros, tail

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next piece."""
        if self._zeros:
            chunk = bytes(min(n, self._zeros))
            self._zeros -= len(chunk)
            return chunk
        chunk, self._tail = self._tail[:n], self._tail[n:]
        return chunk


def test_volumes_grow(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """Where nobody knows how much will come, the volume is made larger on the way, within the quota."""
    store, tail = open_store(ref), noise(2 * CHUNK)
    length = 3 * GIB + len(tail)
    store.put(KEY, "a1", Long(3 * GIB, tail), lambda: record_of(KEY))
    assert stored(cloud, project)["size"] == 4
    assert store.stat(KEY).size == length
    assert read(store, KEY, length - len(tail) - 10) == bytes(10) + tail
    cloud.quota(project, 5 + 3)
    try:
        with pytest.raises(StoreFull, match=r"quota"):
            store.put(OTHER, "a1", Long(3 * GIB, tail), lambda: record_of(OTHER))
    finally:
        cloud.quota(project, -1)
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)


def test_the_longest_record_fits(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """4 KiB of any bytes come back, in values that Cinder takes, and a shorter one after it does too."""
    store = open_store(ref)
    put(store, KEY, b"x")
    for record in ("é%".encode() * (RECORD_LIMIT // 3), bytes(range(256)) * 16, b"{}", b""):
        store.driver.update(KEY, record)
        assert store.driver.stat(KEY).record == record
    assert max(len(value) for value in stored(cloud, project)["metadata"].values()) <= 255


def test_volumes_of_others_are_left_alone(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """A project may have other volumes, and another store with volumes of another type."""
    body = {"size": 1, "name": f"glimpse-{KEY}", "metadata": {"glimpse-store": "elsewhere", "glimpse-key": KEY}}
    other = cloud.call(project, "POST", "/volumes", {"volume": body})["volume"]["id"]
    cloud.reaches(project, other, "available")
    store = open_store(ref)
    put(store, KEY, b"mine")
    store.delete(KEY)
    assert list(store.list()) == []
    assert cloud.volume(project, other)
    cloud.call(project, "DELETE", f"/volumes/{other}")
    cloud.reaches(project, other)


def test_a_volume_with_snapshots_stays(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """Cinder refuses to remove it; the message names the snapshot, and the object stays until that has gone."""
    store = open_store(ref)
    put(store, KEY, b"image")
    body = {"volume_id": stored(cloud, project)["id"]}
    snapshot = cloud.call(project, "POST", "/snapshots", {"snapshot": body})["snapshot"]["id"]

    def made(status: str | None) -> bool:
        snapshots = cloud.call(project, "GET", "/snapshots")["snapshots"]
        return [each["status"] for each in snapshots] == ([status] if status else [])

    wait_until("the snapshot", lambda: made("available"), timeout=30)
    with pytest.raises(StoreUnavailable, match=f"cannot be removed while it has the snapshot {snapshot}"):
        store.delete(KEY)
    assert read(store, KEY) == b"image"
    cloud.call(project, "DELETE", f"/snapshots/{snapshot}")
    wait_until("its end", lambda: made(None), timeout=30)
    store.delete(KEY)
    assert list(store.list()) == []


def test_a_volume_is_made_from_an_image(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """As `openstack volume create --source` does: a clone in Ceph with the right bytes, which is no object of ours.

    It is whole as well when the image has gone. When both have gone, Cinder has left the bytes of the image in Ceph: as
    long as it does, the store itself makes clones by way of a snapshot.
    """
    store, data = open_store(ref), noise(3 * CHUNK)
    put(store, KEY, data)
    source = stored(cloud, project)
    body = {"size": source["size"] + 1, "name": "disk", "source_volid": source["id"]}
    disk = cloud.call(project, "POST", "/volumes", {"volume": body})["volume"]["id"]
    cloud.reaches(project, disk, "available")
    image = f"volume-{disk}"
    assert (
        json.loads(rbd(cloud, "info", f"{POOL}/{image}", "--format", "json"))["parent"]["image"]
        == f"volume-{source['id']}"
    )
    assert start(cloud, image, len(data) + CHUNK) == data + bytes(CHUNK)
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    assert list(store.list()) == []
    assert start(cloud, image, len(data) + CHUNK) == data + bytes(CHUNK)
    cloud.call(project, "DELETE", f"/volumes/{disk}")
    cloud.reaches(project, disk)
    assert f"volume-{source['id']}.deleted" in rbd(cloud, "ls", POOL).decode().split()


def snapshots(cloud: Cloud, project: str) -> list[dict[str, Any]]:
    """All of a project."""
    found: list[dict[str, Any]] = cloud.call(project, "GET", "/snapshots")["snapshots"]
    return found


@pytest.mark.parametrize("clones", ["copied", "shared"])
def test_clones_leave_nothing(cloud: Cloud, project: str, ref: StoreRef, ceph: Ceph, clones: str) -> None:
    """Where Ceph makes clones of format 2 they share bytes; else Cinder has copied them. Either way nothing is left.

    Nor does a snapshot stand in the way of the original's removal.
    """
    images = set(rbd(cloud, "ls", POOL).split())
    store, data = open_store(ref), noise(3 * CHUNK)
    if clones == "shared":
        ceph.cluster.ceph("osd", "set-require-min-compat-client", "mimic")
    try:
        original(store, data)
        assert clone(store)
        image = f"{POOL}/volume-{stored(cloud, project, OTHER)['id']}"
        assert ("parent" in json.loads(rbd(cloud, "info", image, "--format", "json"))) == (clones == "shared")
        assert snapshots(cloud, project) == []
        store.delete(KEY)
        assert {each["metadata"]["glimpse-key"] for each in settled(cloud, project)} == {"marker", OTHER}
        assert read(store, OTHER) == data
        store.delete(OTHER)
        marker = stored(cloud, project, "marker")["id"]
        cloud.call(project, "DELETE", f"/volumes/{marker}")
        cloud.reaches(project, marker)
        assert set(rbd(cloud, "ls", POOL).split()) == images
        trash = json.loads(rbd(cloud, "trash", "ls", POOL, "--format", "json"))
        assert trash == []
    finally:
        ceph.cluster.ceph("osd", "set-require-min-compat-client", "luminous")


def freeze(cloud: Cloud, project: str) -> str:
    """Leave what an attempt leaves that dies in a clone of the object: its snapshot."""
    notes = {"glimpse-store": "default", "glimpse-key": OTHER, "glimpse-attempt": "b1"}
    body = {"volume_id": stored(cloud, project)["id"], "metadata": notes}
    made: str = cloud.call(project, "POST", "/snapshots", {"snapshot": body})["snapshot"]["id"]
    wait_until(
        "the snapshot", lambda: {each["status"] for each in snapshots(cloud, project)} == {"available"}, timeout=30
    )
    return made


def test_a_clone_holds_no_original(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """An original is removed whatever attempts at clones of it there are: each has its bytes by then, or gets none."""
    store = open_store(ref)
    original(store, b"image")
    freeze(cloud, project)
    store.delete(KEY)
    assert list(store.list()) == []
    assert snapshots(cloud, project) == []


@pytest.mark.parametrize("further", [False, True])
def test_a_dead_clone_is_removed(cloud: Cloud, project: str, ref: StoreRef, further: bool) -> None:
    """What is left of an attempt at a clone is listed as any dead attempt, and can be removed once it is one."""
    store, name = open_store(ref), f"{OTHER}.b1"
    original(store, b"image")
    snapshot = freeze(cloud, project)
    made = datetime.fromisoformat(snapshots(cloud, project)[0]["created_at"]).replace(tzinfo=UTC)
    if further:
        notes = {"glimpse-store": "default", "glimpse-key": OTHER, "glimpse-attempt": "b1", "glimpse-state": "writing"}
        volume = {"size": 1, "snapshot_id": snapshot, "metadata": notes}
        begun = cloud.call(project, "POST", "/volumes", {"volume": volume})["volume"]["id"]
        cloud.reaches(project, begun, "available")
    assert [entry.key for entry in store.list() if entry.partial] == [name]
    store.delete(name)
    assert [each["id"] for each in snapshots(cloud, project)] == [snapshot], "it may be alive"
    service = store.driver._service  # type: ignore[attr-defined]
    lease = store.driver.lease + 1  # type: ignore[attr-defined]
    wait_until("the end of its lease", partial(past, service, made.timestamp() + lease), timeout=60)
    store.delete(name)
    wait_until("its end", lambda: snapshots(cloud, project) == [], timeout=30)
    assert [entry.key for entry in store.list()] == [KEY]


def past(service: Any, time: float) -> bool:
    """Whether Cinder's clock is past that."""
    service.limits()
    return bool(service.now > time)


def test_a_clone_keeps_to_the_quota(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """A project that may have no snapshot has no clone made, and nothing is left; who wants one copies the bytes."""
    store = open_store(ref)
    original(store, b"image")
    cloud.call(project, "PUT", f"/os-quota-sets/{project}", {"quota_set": {"snapshots": 0}})
    with pytest.raises(StoreFull, match=r"[Ss]napshot.*quota"):
        clone(store)
    assert [entry.key for entry in store.list()] == [KEY]


def test_the_zone_of_a_volume(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """Volumes are made in the zone that the store names; one that Cinder does not know is named, and its field."""
    store = open_store(changed(ref, availabilityZone="nova"))
    put(store, KEY, b"image")
    assert stored(cloud, project)["availability_zone"] == "nova"
    store.delete(KEY)
    with pytest.raises(StoreUnavailable, match=r"[Aa]vailability zone.*mars.*mend availabilityZone"):
        put(open_store(changed(ref, availabilityZone="mars")), KEY, b"image")
    assert list(store.list()) == []


def test_a_full_cluster(cloud: Cloud, project: str, ref: StoreRef, ceph: Ceph) -> None:
    """An OSD that is full in the middle of a put ends it as StoreFull; once there is room all goes well again."""
    store, data = open_store(ref), noise(40 * CHUNK)
    store.claim()

    def fill(given: int) -> None:
        if given == 8 * CHUNK:
            ratios(ceph, 0.0004)
            wait_until("a full OSD", lambda: full(ceph), timeout=60)

    try:
        with pytest.raises(StoreFull, match="the pool volumes is full"):
            store.put(KEY, "a1", Body(data, before=fill), lambda: record_of(KEY))
    finally:
        ratios(ceph, 0.95)
        wait_until("room", lambda: not full(ceph), timeout=60)
    for volume in settled(cloud, project):
        if volume["status"] == "error_deleting":  # Cinder has met the full cluster as well, and does not try again
            reset = {"os-reset_status": {"status": "available"}}
            cloud.call(project, "POST", f"/volumes/{volume['id']}/action", reset)
    store.delete(KEY)
    put(store, KEY, data, attempt="a2")
    assert read(store, KEY) == data


def ratios(ceph: Ceph, full: float) -> None:
    """How much of an OSD may be filled; they must be in order at each moment."""
    levels = [("nearfull", full * 0.9), ("backfillfull", full * 0.95), ("full", full)]
    for level, ratio in levels:
        ceph.cluster.ceph("osd", f"set-{level}-ratio", f"{ratio:.6f}")


def full(ceph: Ceph) -> bool:
    """Whether the monitors have said that an OSD is full."""
    return any("full" in pool["flags_names"].split(",") for pool in ceph.cluster.ceph("osd", "dump")["pools"])


def test_who_has_a_volume_attached(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """What a reader that died has left attached holds nobody up; what a machine has attached stays, and can be read."""
    store = open_store(ref)
    put(store, KEY, b"image")
    volume = stored(cloud, project)["id"]
    attach = {"volume_uuid": volume, "connector": {"host": "dead"}, "mode": "ro"}
    machine = {**attach, "instance_uuid": "6f1c2a90-0000-4000-8000-00000000000b"}
    cloud.call(project, "POST", "/attachments", {"attachment": machine})
    with pytest.raises(StoreUnavailable, match="attached to the machine 6f1c2a90"):
        store.delete(KEY)
    assert read(open_store(ref), KEY) == b"image"
    # An administrator may always: Cinder itself would ask the machine's own service, which is not here.
    cloud.call(project, "POST", f"/volumes/{volume}/action", {"os-reset_status": {"attach_status": "detached"}})
    cloud.call(project, "POST", f"/volumes/{volume}/action", {"os-reset_status": {"status": "available"}})
    cloud.call(project, "POST", "/attachments", {"attachment": attach})
    store.delete(KEY)
    assert list(store.list()) == []


def test_a_removed_volume_that_is_read(cloud: Cloud, project: str, ref: StoreRef) -> None:
    """Ceph does not remove what somebody reads: it is gone for others, right for him, and removed afterwards."""
    store, data = open_store(ref), noise(20 * CHUNK)
    put(store, KEY, data)
    with store.get(KEY) as reader:
        start = reader.read(1)
        store.delete(KEY)
        with pytest.raises(NotFound):
            store.stat(KEY)
        assert start + b"".join(iter(reader.read, b"")) == data
        wait_until(
            "the end of Cinder's tries",
            lambda: [entry.partial for entry in store.list()] == [True],
            timeout=60,
        )
        assert stored(cloud, project)["metadata"]["glimpse-state"] == "removed"
    assert list(store.list()) == []
    assert len(settled(cloud, project)) == 1


def test_ceph_hangs(cloud: Cloud, project: str, ref: StoreRef, ceph: Ceph) -> None:
    """A cluster that does not answer ends a put and a get in time, and both go well again afterwards."""
    store, data = open_store(ref), noise(40 * CHUNK)
    put(store, KEY, data)
    frozen = Frozen(ceph)

    def hang(given: int) -> None:
        if given == 20 * CHUNK:
            frozen.stall()

    try:
        with pytest.raises(StoreUnavailable, match=r"Ceph|write"):
            store.put(OTHER, "a1", Body(data, before=hang), lambda: record_of(OTHER))
    finally:
        frozen.heal()
    with store.get(KEY) as reader:
        got = reader.read(1000)
        frozen.stall()
        try:
            with suppress(StoreUnavailable):
                while chunk := reader.read():
                    got += chunk
        finally:
            frozen.heal()
    assert data.startswith(got)
    for volume in settled(cloud, project):
        if volume["status"] == "error_deleting":  # Cinder does not try again by itself: an administrator must say so
            with pytest.raises(StoreUnavailable, match="volume set --state available"):
                store.delete(OTHER)
            reset = {"os-reset_status": {"status": "available"}}
            cloud.call(project, "POST", f"/volumes/{volume['id']}/action", reset)
    store.delete(OTHER)
    assert [entry.key for entry in store.list() if not entry.partial] == [KEY]
    put(store, OTHER, data, attempt="a2")
    assert read(store, OTHER) == data
    assert read(store, KEY) == data


def test_keys_of_ceph(cloud: Cloud, ref: StoreRef) -> None:
    """The first use finds that a key of Ceph is missing or wrong, and leaves nothing."""
    project = token_hex(16)
    ref = changed(ref, project=project)
    wrong = base64.b64encode(b"\1\0" + bytes(8) + b"\x10\0" + os.urandom(16)).decode()
    for secret, problem in (({}, SecretNotReadable), ({"cephKey": wrong}, StoreUnauthorized)):
        with pytest.raises(problem, match="cephKey") as raised:
            open_store(changed(ref, secret)).claim()
        assert wrong not in raised.value.message
        assert settled(cloud, project) == []


@pytest.mark.parametrize("key", ["x", "AQDjgg1rYaXRDBAA++DaK+PcU5bnMSyHlcMa4"])
def test_what_is_no_key_of_ceph_stays_here(ref: StoreRef, key: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It is never handed to Ceph's library, which would print it."""
    with pytest.raises(SecretNotReadable, match="cephKey") as raised:
        open_store(changed(ref, {"cephKey": key})).claim()
    assert key not in raised.value.message + capfd.readouterr().err


@pytest.mark.parametrize("path", ["", "/v2"])
def test_a_wrong_endpoint_is_told(ref: StoreRef, path: str) -> None:
    """Where Cinder's API is not, the fields are named, and no page of the server is quoted."""
    wrong = changed(ref, endpoint=ref.config["endpoint"].removesuffix("/v3") + path)
    with pytest.raises(StoreUnavailable, match=r"is endpoint, .* project right") as raised:
        open_store(wrong).claim()
    assert "<" not in raised.value.message


def test_a_type_without_a_backend(cloud: Cloud, ref: StoreRef) -> None:
    """What Cinder tells its users of a volume that failed is in the message; the volume is removed."""
    project = token_hex(16)
    with pytest.raises(StoreUnavailable, match=r"status error: .*backend"):
        open_store(changed(ref, project=project, volumeType=ELSEWHERE)).claim()
    assert settled(cloud, project) == []


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"driver_volume_type": "iscsi"}, "reached by iscsi, which needs a device on the host"),
        ({"driver_volume_type": "nfs"}, "reached by nfs"),
        ({"driver_volume_type": "rbd", "encrypted": True}, "encrypted by the host"),
    ],
)
def test_what_needs_root_is_refused(connection: dict[str, object], message: str) -> None:
    """Only volumes in Ceph are reached without privileges; all others are named."""
    with pytest.raises(InvalidConfiguration, match=message):
        way(connection, "key")


def test_cinder_may_tell_the_key() -> None:
    """As it does with `rbd_keyring_conf`; the key of the Secret comes first, and IPv6 has its brackets."""
    connection = {
        "driver_volume_type": "rbd",
        "name": "volumes/volume-1",
        "hosts": ["10.0.0.1", "fd00::1"],
        "ports": ["6789", "3300"],
        "auth_username": "cinder",
        "keyring": "[client.cinder]\n\tkey = AQD0\n",
    }
    assert way(connection, None) == Way(("10.0.0.1:6789", "[fd00::1]:3300"), "cinder", "AQD0", "volumes", "volume-1")
    assert way(connection, "mine").key == "mine"
    assert "AQD0" not in repr(way(connection, None))


@pytest.mark.parametrize("how", ["password", "application credential"])
def test_keystone(cloud: Cloud, identity: Identity, ref: StoreRef, how: str) -> None:
    """A member of a project uses it with a password, or with an application credential, found by the catalog."""
    user = identity.user(token_hex(4), "secret of mine", token_hex(4))
    if how == "password":
        secret = {"username": user.name, "password": user.password, "projectName": user.project}
    else:
        name, word = identity.credential(user)
        secret = {"applicationCredentialID": name, "applicationCredentialSecret": word}
    config = {"authUrl": identity.url, "region": identity.region}
    store = open_store(keystoned(ref, config, secret, cloud))
    store.claim()
    put(store, KEY, noise(1000))
    assert read(store, KEY) == noise(1000)
    store.delete(KEY)
    assert list(store.list()) == []
    with pytest.raises(InvalidConfiguration, match="in the region nowhere"):
        open_store(keystoned(ref, {**config, "region": "nowhere"}, secret, cloud)).claim()


def keystoned(ref: StoreRef, config: dict[str, str], secret: dict[str, str], cloud: Cloud) -> StoreRef:
    """The same store by way of Keystone."""
    secrets = {name: SecretStr(value) for name, value in {**secret, "cephKey": cloud.key}.items()}
    return ref.model_copy(update={"config": config, "secret": secrets})


@pytest.mark.parametrize(
    ("config", "secret", "message"),
    [
        ({"authUrl": "http://k/v3"}, {}, "username"),
        ({"authUrl": "http://k/v3"}, {"username": "u"}, "password"),
        ({"authUrl": "http://k/v3"}, {"username": "u", "password": "p"}, "projectName"),
        ({"authUrl": "http://k/v3"}, {"applicationCredentialID": "i"}, "applicationCredentialSecret"),
        ({"endpoint": "http://c/v3"}, {}, "cinder.project"),
        ({}, {}, "exactly one"),
        ({"authUrl": "http://k/v3", "endpoint": "http://c/v3", "project": "p"}, {}, "exactly one"),
    ],
)
def test_what_is_missing_is_named(config: dict[str, str], secret: dict[str, str], message: str) -> None:
    """Before anything is reached."""
    secrets = {name: SecretStr(value) for name, value in secret.items()}
    ref = StoreRef(name="volumes", driver="cinder", config=config, secret=secrets, installation="here")
    with pytest.raises((SecretNotReadable, InvalidConfiguration), match=message):
        open_store(ref)


class Sealed(Wire):
    """A way that is TLS up to here."""

    def __init__(self, target: tuple[str, int], tls: ssl.SSLContext) -> None:
        super().__init__(target)
        self._tls = tls


def test_over_tls_in_a_cage(cloud: Cloud, ref: StoreRef) -> None:
    """A worker, which can read no file but the system's and Python's, trusts the given authority and no other."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    script = """
import sys
from glimpse.confine import Cage, harden
from glimpse.problems import Problem
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
harden()
Cage().enter([])
for line in sys.stdin.buffer.read().splitlines():
    try:
        store = open_store(StoreRef.model_validate_json(line))
        store.put("a-1", "a1", Body(noise(3 << 20)), lambda: record_of("a-1"))
        with store.get("a-1") as reader:
            print(b"".join(iter(reader.read, b"")) == noise(3 << 20))
    except Problem as problem:
        print(problem.reason, problem.message)
"""
    with Sealed(("127.0.0.1", cloud.port), tls) as wire:
        ref = changed(ref, endpoint=f"https://127.0.0.1:{wire.port}/v3", project=token_hex(16))
        ref = ref.model_copy(update={"driver": "cinder"})
        trusting = ref.model_copy(update={"ca_bundle": authority.cert_pem.bytes().decode()})
        other = ref.model_copy(update={"ca_bundle": trustme.CA().cert_pem.bytes().decode()})
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=b"\n".join(each.line().strip() for each in (trusting, other, ref)),
            capture_output=True,
            check=False,
            timeout=120,
            env={"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"},
        )
    assert done.returncode == 0, done.stderr.decode()
    first, *others = done.stdout.decode().splitlines()
    assert first == "True"
    assert len(others) == 2
    assert all(re.fullmatch("StoreUnavailable .* certificate that is not trusted.*", line) for line in others)
