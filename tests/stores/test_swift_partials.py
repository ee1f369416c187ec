"""What a transfer that died has left in Swift: what is believed of it, and who can harm whom."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores.swifts import Talk, changed, container_of, names, ref_to

from glimpse.problems import SourceUnavailable, StoreConflict, StoreUnavailable
from glimpse.stores import Store, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, marked, noise, record_of, writer
from glimpse.testing.resumable import BREAK, MARK, WORD, broken, contents, left_of, resumed
from glimpse.testing.stores import KEY, absent, read
from servers.require import require
from servers.swift import Cloud, Swift
from servers.tools import Missing

DATA = noise(3 * CHUNK + 70_000)
AHEAD = f"in/here/data/{KEY}"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A Swift for this module."""
    try:
        with Swift(tmp_path_factory.mktemp("swift"), memory=60) as cloud:
            yield cloud
    except Missing as error:
        require("swift", str(error))


@pytest.fixture
def ref(cloud: Cloud, outside: Path) -> StoreRef:  # noqa: ARG001 - has the driver
    """A store in a container of its own."""
    return ref_to(cloud, container_of(cloud))


@pytest.fixture
def store(ref: StoreRef) -> Store:
    """The same, claimed."""
    store = open_store(ref)
    store.claim()
    return store


def test_all_that_came_is_kept(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """Segments, what is behind the last whole one, and a checkpoint; then copies of them under the taker's name."""
    broken(store, DATA)

    def kept(attempt: str) -> list[str]:
        parts = [".checkpoint", *(f"/{n:08d}" for n in range(3)), f"/t{len(DATA):015d}"]
        return [f"{AHEAD}.{attempt}{part}" for part in parts]

    assert names(cloud, ref.config["container"]) == [*kept("a1"), "in/here/glimpse-store.json"]
    with store.partial(KEY, "b1") as left:
        assert left
        assert left.length == len(DATA)
        assert names(cloud, ref.config["container"]) == [
            f"{AHEAD}.b1.alive",
            *kept("b1"),
            "in/here/glimpse-store.json",
        ]
    resumed(store, DATA)
    assert names(cloud, ref.config["container"]) == [
        f"{AHEAD}.z1",
        *(f"{AHEAD}.z1/{n:08d}" for n in range(4)),
        *(f"{AHEAD}.z1/m0-{n:08d}" for n in range(2)),
        "in/here/glimpse-store.json",
        f"in/here/objects/{KEY}",
    ]


@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
def test_no_byte_of_it_passes_through_us_to_be_taken(cloud: Cloud, ref: StoreRef, apart: bool) -> None:
    """The server copies, also in a container of its own, and then only the rest is sent."""
    segments = container_of(cloud) if apart else ref.config["container"]
    with Talk(("127.0.0.1", cloud.port)) as wire:
        url = cloud.auth_url.replace(str(cloud.port), str(wire.port))
        store = open_store(changed(ref, authUrl=url, segmentContainer=segments))
        broken(store, DATA)
        before = wire.passed
        with store.partial(KEY, "b1") as left:
            assert left
            assert wire.passed - before < 60_000
            assert contents(left.reader) == DATA
            before = wire.passed
            store.resume(left, left.length, Body(DATA + b"x"), lambda: record_of(KEY), MARK)
            assert wire.passed - before < 4 * 70_000 + 60_000  # the end of it is read and written once more
        assert read(store, KEY) == DATA + b"x"
        store.delete(KEY)
    assert names(cloud, ref.config["container"]) == ["in/here/glimpse-store.json"]
    assert names(cloud, segments) == (["in/here/glimpse-store.json"] if not apart else [])


def test_who_wakes_up_harms_nobody(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """Who was taken for dead writes and removes under his old names, and none of that is seen in the object."""
    broken(store, DATA)
    container = ref.config["container"]
    with store.partial(KEY, "b1") as left:
        assert left
        for name in (".alive", ".checkpoint", "", "/00000000", f"/t{len(DATA):015d}"):
            cloud.call("PUT", f"/{container}/{AHEAD}.a1{name}", {}, b"from another time")
            cloud.call("DELETE", f"/{container}/{AHEAD}.a1{name}")
            cloud.call("PUT", f"/{container}/{AHEAD}.a1{name}", {}, b"from another time")
        assert contents(left.reader) == DATA
        store.resume(left, left.length, Body(DATA * 2), lambda: record_of(KEY), MARK)
    assert read(store, KEY) == DATA * 2
    assert left_of(store) == [f"{KEY}.a1"]


@pytest.mark.parametrize("part", ["/00000000", "/00000002", f"/t{len(DATA):015d}"])
@pytest.mark.parametrize("change", ["other bytes", "cut", "gone"])
def test_what_has_changed_is_not_believed(cloud: Cloud, ref: StoreRef, store: Store, part: str, change: str) -> None:
    """One segment that is not as it was, and nothing is gone on with; of the copies nothing is left."""
    broken(store, DATA)
    path = f"/{ref.config['container']}/{AHEAD}.a1{part}"
    was = cloud.call("GET", path)[1]
    if change == "gone":
        cloud.call("DELETE", path)
    else:
        cloud.call("PUT", path, {}, was[:-1] + (b"" if change == "cut" else bytes([was[-1] ^ 1])))
    with store.partial(KEY, "b1") as left:
        assert left is None
    assert left_of(store) == [f"{KEY}.a1"]
    store.put(KEY, "b1", Body(DATA), lambda: record_of(KEY), MARK)
    assert read(store, KEY) == DATA
    assert left_of(store) == []


def test_one_that_is_spoilt_hides_no_other(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """Where the one that came furthest cannot be believed, the next one is taken."""
    broken(store, DATA)
    container = ref.config["container"]
    spoilt = json.loads(cloud.call("GET", f"/{container}/{AHEAD}.a1.checkpoint")[1]) | {"length": len(DATA) + 1}
    cloud.call("PUT", f"/{container}/{AHEAD}.a2.checkpoint", {}, json.dumps(spoilt).encode())
    cloud.call("PUT", f"/{container}/{AHEAD}.a2/00000000", {}, DATA[:CHUNK])
    cloud.call("PUT", f"/{container}/{AHEAD}.a3.checkpoint", {}, b'{"length": 1}')
    with store.partial(KEY, "b1") as left:
        assert left
        assert (left.mark, contents(left.reader)) == (MARK(len(DATA)), DATA)
        assert left_of(store) == [f"{KEY}.b1"]
    resumed(store, DATA)
    assert read(store, KEY) == DATA


def test_the_same_attempt_may_look_twice(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """What it has taken itself needs no copy: it is looked at only."""
    broken(store, DATA)
    with store.partial(KEY, "b1"):
        pass
    before = cloud.listed(ref.config["container"])
    with store.partial(KEY, "b1") as left:
        assert left
        assert contents(left.reader) == DATA
        segments = [each for each in before if "/0000" in each["name"]]
        assert segments
        assert all(each in cloud.listed(ref.config["container"]) for each in segments)
        with pytest.raises(StoreConflict, match="is running already"), store.partial(KEY, "b1"):
            pass
        store.resume(left, left.length, Body(DATA), lambda: record_of(KEY), MARK)
    assert read(store, KEY) == DATA


def test_a_server_that_copies_nothing_gives_nothing(cloud: Cloud, ref: StoreRef) -> None:
    """Then it begins anew, and what was there goes with the put."""
    with Talk(("127.0.0.1", cloud.port)) as wire:
        store = open_store(changed(ref, authUrl=cloud.auth_url.replace(str(cloud.port), str(wire.port))))
        broken(store, DATA)
        before = names(cloud, ref.config["container"])
        wire.refusing = True
        with store.partial(KEY, "b1") as left:
            assert left is None
        assert names(cloud, ref.config["container"]) == before
        resumed(store, DATA)
        assert read(store, KEY) == DATA
        assert left_of(store) == []


def test_segments_keep_their_size(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """Where `segmentSize` was edited meanwhile, the object has that of its first segments."""
    broken(store, DATA)
    other = open_store(changed(ref, segmentSize="2Mi"))
    resumed(other, DATA * 2)
    assert read(store, KEY) == DATA * 2
    commit = json.loads(cloud.call("GET", f"/{ref.config['container']}/in/here/objects/{KEY}")[1])
    assert commit["segment"] == 1 << 20
    assert cloud.call("GET", f"/{ref.config['container']}/in/here/data/{KEY}.z1")[1] == DATA * 2


def test_a_store_that_fails_keeps_what_it_has(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """Where the way to it breaks, what the last checkpoint speaks of is there for the next one."""
    data = noise(12 << 20)
    with Talk(("127.0.0.1", cloud.port)) as wire:
        there = open_store(changed(ref, authUrl=cloud.auth_url.replace(str(cloud.port), str(wire.port))))

        def before(given: int) -> None:
            if given >= 10 << 20:
                wire.cut()

        with pytest.raises(StoreUnavailable):
            there.put(KEY, "a1", Body(data, before=before), lambda: record_of(KEY), MARK)
    assert absent(store, KEY)
    with store.partial(KEY, "b1") as left:
        assert left
        assert left.length >= 4 << 20
        assert left.mark == MARK(left.length)
        assert contents(left.reader) == data[: left.length]
    resumed(store, data)
    assert read(store, KEY) == data


def test_who_was_just_killed_is_waited_for(ref: StoreRef, store: Store) -> None:
    """Until its lease is over, so that the next one, which comes at once, need not begin anew."""
    data = noise(10 << 20)
    with writer(ref, KEY, "a1", len(data), mark=WORD, stop=9 << 20) as other:
        other.kill()
    with store.partial(KEY, "b1") as left:
        assert left
        assert left.length >= 4 << 20
    resumed(store, data)
    assert read(store, KEY) == data


@pytest.mark.parametrize("name", ["a2", "c1"])
def test_one_that_died_while_it_took_is_waited_for_no_longer_than_a_lease(
    cloud: Cloud, ref: StoreRef, store: Store, name: str
) -> None:
    """Whether it comes first by name or not: it blocks nobody for ever, and what it was to take is still there."""
    broken(store, DATA)
    container = ref.config["container"]
    cloud.call("PUT", f"/{container}/{AHEAD}.{name}.alive", {}, b"about to take")
    cloud.call("PUT", f"/{container}/{AHEAD}.{name}/00000000", {}, DATA[:CHUNK])
    with store.partial(KEY, "b1") as left:
        assert left
        assert left.length == len(DATA)
    assert left_of(store) == [f"{KEY}.b1"]
    resumed(store, DATA)
    assert read(store, KEY) == DATA


def test_an_object_leaves_nothing_to_take(cloud: Cloud, ref: StoreRef, store: Store) -> None:
    """A checkpoint that is left beside an object, by a death right after the commit, is of no use and goes with it."""
    store.put(KEY, "a1", Body(DATA), lambda: record_of(KEY))
    line = b'{"length":1048576,"segment":1048576,"etags":"' + b"0" * 64 + b'","mark":""}'
    cloud.call("PUT", f"/{ref.config['container']}/{AHEAD}.a1.checkpoint", {}, line)
    with store.partial(KEY, "b1") as left:
        assert left is None
    assert read(store, KEY) == DATA
    assert left_of(store) == []
    store.delete(KEY)
    assert names(cloud, ref.config["container"]) == ["in/here/glimpse-store.json"]


def test_a_taker_that_is_killed_loses_nothing(ref: StoreRef, store: Store) -> None:
    """The same with its resume, which has stored another checkpoint."""
    data = noise(20 << 20)
    with pytest.raises(SourceUnavailable):
        store.put(KEY, "a1", Body(data[: 5 << 20], lie=1, error=BREAK), lambda: record_of(KEY), marked(WORD))
    with writer(ref, KEY, "a2", len(data), mark=WORD, stop=16 << 20) as other:
        other.kill()
    with store.partial(KEY, "b1") as left:
        assert left
        assert left.length >= 9 << 20
        assert contents(left.reader) == data[: left.length]
    resumed(store, data)
    assert read(store, KEY) == data
