"""The contract of a store that can read, and register, what others have put into it.

What others put there they can also change, remove or replace by something hostile, at any moment: the bytes that were
registered are given, or a Problem.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from glimpse.problems import DataLost, NotFound, SourceUnavailable, StoreConflict, StoreRefused, TooLarge
from glimpse.stores import Entry, Placed, Registering, Sendable, Store, Version, open_store, version_of
from glimpse.streams import CHUNK
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, OTHER, UID, StoreFixtures, absent, put, read

AREA = "import/team-a/"
PLACE = f"{AREA}debian 12 ünï%41?#+.qcow2"
"""A name with all that could be taken for something else on the way."""
LENGTHS = [0, 1, CHUNK, 2 * CHUNK + 17]

STRANGE = [
    *("", "/etc/passwd", "../x", "import/../objects/x", "import/./x", "import//x", "import/x/..", "a/", ".", ".."),
    *("import/x\n", "import/\0", "import/\ud800", "import\\..\\x", "file:///etc/passwd", "http://a.example/x"),
    *("objects/x", "objects", "attempts/x", "data/x", "glimpse-store.json", KEY, f"{KEY}.a1", f"import/{KEY}"),
]
"""Locations that no store may ever open."""


class Lay(Protocol):
    """Puts bytes where others put theirs, around the store; None removes what is there."""

    def __call__(self, location: str, data: bytes | None, /) -> None:
        """When it returns, a reader sees it."""


def record_at(key: str, location: str, version: Version) -> Record:
    """The record of a registered object."""
    seen = {"etag": version.etag, "last_modified": version.last_modified, "location": location}
    return record_of(key, size=version.size).model_copy(update=seen)


def register(store: Store, key: str, location: str, *, attempt: str = "a1") -> Entry:
    """Register what lies there, read whole before."""
    version = store.locate(location)
    with store.read(location, version) as reader:
        record = record_at(key, location, version)
        return store.register(key, attempt, location, version, body=reader, record=lambda: record)


class PlacedContract(StoreFixtures):
    """What a store promises that can read what others have put into it. A subclass gives `lay` as well.

    `raw` leaves out what lies below `import/`.
    """

    @pytest.fixture
    def lay(self, ref: StoreRef) -> Lay:
        """The hands of others; what they put there is below `import/`."""
        raise NotImplementedError

    @pytest.fixture
    def knowing(self, store: Store) -> Callable[[Record], Store]:
        """The store with an object that was registered in it, told if it cannot note that."""

        def tell(record: Record) -> Store:
            return store if isinstance(store.driver, Registering) else store.knowing(record)

        return tell

    @pytest.mark.parametrize("length", LENGTHS)
    def test_reads_what_lies_there(self, store: Store, lay: Lay, length: int) -> None:
        """Whole, with its length, and it is the same each time it is looked at."""
        assert isinstance(store.driver, Placed)
        lay(PLACE, noise(length))
        version = store.locate(PLACE)
        assert version.size == length
        assert version.same(store.locate(PLACE))
        with store.read(PLACE, version) as reader:
            assert reader.size == length
            assert b"".join(iter(reader.read, b"")) == noise(length)

    def test_gives_ranges_of_what_lies_there(self, store: Store, lay: Lay, knowing: Callable[[Record], Store]) -> None:
        """A registered object gives each range as any other."""
        data = noise(CHUNK + 3)
        lay(PLACE, data)
        entry = register(store, KEY, PLACE)
        assert entry.record
        told = knowing(entry.record)
        for offset in (0, 1, CHUNK, len(data) - 1, len(data), len(data) + 5):
            for length in (None, 0, 1, CHUNK + 1, len(data) + 5):
                expected = data[offset : None if length is None else offset + length]
                with told.get(KEY, offset, length) as reader:
                    assert reader.size == len(expected)
                assert read(told, KEY, offset, length) == expected

    def test_says_where_nothing_lies(self, store: Store, lay: Lay) -> None:
        """A place without bytes is NotFound; so is what lies below a file."""
        lay(PLACE, b"x")
        for location in (f"{AREA}none", "import/team-b/none", f"{AREA}{'x' * 300}"):
            with pytest.raises(NotFound):
                store.locate(location)
        with pytest.raises((NotFound, StoreRefused)):
            store.locate(f"{PLACE}/x")

    @pytest.mark.parametrize("location", STRANGE)
    def test_opens_no_strange_place(self, store: Store, location: str) -> None:
        """What is no plain key, or is named as what belongs to Glimpse, is refused before anything is opened."""
        version = Version(1, '"x"')
        for action in (
            lambda: store.locate(location),
            lambda: store.read(location, version).__enter__(),
            lambda: store.register(KEY, "a1", location, version, body=Body(b"x"), record=lambda: record_of(KEY)),
        ):
            with pytest.raises(StoreRefused):
                action()
        assert absent(store, KEY)

    @pytest.mark.parametrize("change", ["same length", "longer", "shorter", "gone"])
    def test_notices_a_change(self, store: Store, lay: Lay, knowing: Callable[[Record], Store], change: str) -> None:
        """Other bytes than those that were registered are never given, in any way, and neither is their absence."""
        data = noise(CHUNK + 5)
        lay(PLACE, data)
        version = store.locate(PLACE)
        entry = register(store, KEY, PLACE)
        assert entry.record
        told = knowing(entry.record)
        others = {"same length": noise(len(data), 1), "longer": data + b"x", "shorter": data[:-1], "gone": None}
        lay(PLACE, others[change])
        for offset, length in ((0, None), (0, 1), (CHUNK, 1)):
            with pytest.raises(DataLost):
                read(told, KEY, offset, length)
        if isinstance(store.driver, Sendable):
            with pytest.raises(DataLost):
                told.open(KEY)
        with pytest.raises((DataLost, NotFound)), store.read(PLACE, version) as reader:
            reader.read()
        with pytest.raises((DataLost, NotFound)):
            register_again(store, OTHER, version)
        assert absent(store, OTHER)

    def test_notices_a_change_while_it_reads(self, store: Store, lay: Lay) -> None:
        """Who reads the whole, to register it, is told at the end if it was changed meanwhile."""
        lay(PLACE, noise(3 * CHUNK))
        version = store.locate(PLACE)
        with store.read(PLACE, version) as reader:
            reader.read(CHUNK)
            lay(PLACE, noise(3 * CHUNK, 1))
            with pytest.raises(DataLost):
                b"".join(iter(reader.read, b""))

    def test_registers_what_was_read_to_its_end(self, store: Store, lay: Lay) -> None:
        """An error of the body comes out as it is, and nothing is registered; then the same attempt may try again."""
        lay(PLACE, noise(1000))
        version = store.locate(PLACE)
        error = SourceUnavailable("the digest is wrong")
        body = Body(noise(1000), error=error)
        with pytest.raises(SourceUnavailable) as raised:
            store.register(KEY, "a1", PLACE, version, body=body, record=lambda: record_of(KEY))
        assert raised.value is error
        assert absent(store, KEY)
        register(store, KEY, PLACE)

    def test_keeps_to_the_largest_size_of_what_lies_there(self, ref: StoreRef, lay: Lay) -> None:
        """The store's maxImageSize holds for what is registered in it, before it is read."""
        store = open_store(ref.model_copy(update={"max_image_size": CHUNK}))
        store.claim()
        lay(PLACE, noise(CHUNK + 1))
        body = Body(noise(CHUNK + 1))
        with pytest.raises(TooLarge, match="maxImageSize"):
            store.register(KEY, "a1", PLACE, store.locate(PLACE), body=body, record=lambda: record_of(KEY))
        assert body.given == 0


class RegisteringContract(PlacedContract):
    """What a store promises that notes what is registered in it."""

    def test_holds_what_was_registered(self, store: Store, lay: Lay) -> None:
        """It is an object like any other: stat'ed and listed with record and size, read, opened, replaced by nobody."""
        data = noise(CHUNK + 5)
        lay(PLACE, data)
        entry = register(store, KEY, PLACE)
        assert isinstance(store.driver, Registering)
        assert entry.record == record_at(KEY, PLACE, store.locate(PLACE))
        assert (entry.key, entry.size, entry.partial) == (KEY, len(data), False)
        assert entry.location == store.where(PLACE)
        found = store.stat(KEY)
        assert (found.size, found.location, found.record) == (entry.size, entry.location, entry.record)
        put(store, OTHER, b"bytes")
        assert {e.key: e for e in store.list()} == {KEY: found, OTHER: store.stat(OTHER)}
        assert store.stat(OTHER).record == record_of(OTHER)
        assert read(store, KEY) == data
        if (fd := store.open(KEY)) is not None:
            with os.fdopen(fd, "rb") as file:
                assert file.read() == data

    def test_copies_nothing(self, store: Store, lay: Lay) -> None:
        """What was registered takes no room to speak of."""
        lay(PLACE, noise(24 * CHUNK))
        before = store.probe().used
        register(store, KEY, PLACE)
        after = store.probe().used
        if before is not None and after is not None:
            assert after - before < 12 * CHUNK, "others may write to the same disk meanwhile, but not as much"

    def test_registers_once(self, store: Store, lay: Lay) -> None:
        """A key that exists is refused, whether it was registered or put, and so is a put over what is registered."""
        lay(PLACE, b"theirs")
        register(store, KEY, PLACE)
        put(store, OTHER, b"ours")
        for key in (KEY, OTHER):
            with pytest.raises(StoreConflict):
                register(store, key, PLACE, attempt="a2")
        with pytest.raises(StoreConflict):
            put(store, KEY, b"x", attempt="a3")
        assert (read(store, KEY), read(store, OTHER)) == (b"theirs", b"ours")

    def test_lets_one_of_many_register(self, store: Store, lay: Lay) -> None:
        """Of many at once, one is told that it has; the others that it was somebody else."""
        places = [f"{AREA}{n}" for n in range(6)]
        for n, place in enumerate(places):
            lay(place, noise(100 + n, n))

        def run(n: int) -> bool:
            try:
                register(store, KEY, places[n], attempt=f"a{n}")
            except StoreConflict:
                return False
            return True

        with ThreadPoolExecutor(len(places)) as pool:
            won = list(pool.map(run, range(len(places))))
        assert sum(won) == 1
        assert read(store, KEY) == noise(100 + won.index(True), won.index(True))

    def test_deletes_the_registration_only(self, store: Store, lay: Lay) -> None:
        """The bytes stay where they are, and can be registered anew."""
        lay(PLACE, b"theirs")
        register(store, KEY, PLACE)
        store.delete(KEY)
        store.delete(KEY)
        assert absent(store, KEY)
        assert list(store.list()) == []
        register(store, KEY, PLACE)
        assert read(store, KEY) == b"theirs"

    def test_deletes_what_has_lost_its_bytes(self, store: Store, lay: Lay) -> None:
        """A registration whose bytes are gone is still listed, and can be removed."""
        lay(PLACE, b"theirs")
        register(store, KEY, PLACE)
        lay(PLACE, None)
        assert [entry.key for entry in store.list(UID)] == [KEY]
        store.delete(KEY)
        assert absent(store, KEY)

    def test_erases_when_it_is_told_to(self, store: Store, lay: Lay) -> None:
        """Only the one place; absent is fine."""
        neighbour = f"{PLACE}.sig"
        lay(PLACE, b"theirs")
        lay(neighbour, b"beside")
        register(store, KEY, neighbour)
        store.erase(PLACE)
        store.erase(PLACE)
        store.erase("import/team-b/none")
        with pytest.raises(NotFound):
            store.locate(PLACE)
        assert read(store, KEY) == b"beside"
        for location in STRANGE:
            with pytest.raises(StoreRefused):
                store.erase(location)

    def test_updates_the_record_of_what_is_registered(self, store: Store, lay: Lay) -> None:
        """A record is replaced, and the bytes are still found."""
        lay(PLACE, b"theirs")
        record = register(store, KEY, PLACE).record
        assert record
        kept = record.model_copy(update={"retained": True})
        store.update(KEY, kept)
        assert store.stat(KEY).record == kept
        assert read(store, KEY) == b"theirs"
        assert version_of(kept).same(store.locate(PLACE))


def register_again(store: Store, key: str, version: Version) -> None:
    """Register a version that was there before."""
    store.register(key, "a1", PLACE, version, body=Body(b""), record=lambda: record_at(key, PLACE, version))
