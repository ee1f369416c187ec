"""The Store over a driver: finding drivers, the error border, the checks after a put, records."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glimpse.problems import (
    ChecksumMismatch,
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    SourceUnavailable,
    StoreUnavailable,
)
from glimpse.stores import RECORD_LIMIT, Capacity, Stat, Store, decode, encode, installed, open_store
from glimpse.streams import Reader
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.memory import PLACES, Memory, MemoryConfig

KEY = "6f1c-1"


@pytest.fixture
def ref(tmp_path: Path) -> StoreRef:
    """A store in memory, named after the test's folder."""
    return StoreRef(name="fast", driver="memory", config={"place": str(tmp_path)}, installation="here")


def over(ref: StoreRef, driver: type[Memory]) -> Store:
    """A store over that driver, which need not be installed."""
    return Store(ref, driver(MemoryConfig.model_validate(ref.config), {}, None))


def put(store: Store, body: Body) -> None:
    """Store it."""
    store.put(KEY, "a1", body, lambda: record_of(KEY))


# Drivers


def test_drivers_are_found_by_entry_point(outside: Path) -> None:
    """A driver is there once a distribution that has it is: ours and others alike."""
    assert {"filesystem", "memory", "careless"} <= installed().keys()
    ref = StoreRef(name="fast", driver="memory", config={"place": str(outside)}, installation="here")
    assert isinstance(open_store(ref).driver, Memory)


@pytest.mark.usefixtures("outside")
def test_an_unknown_driver_is_named(ref: StoreRef) -> None:
    """A driver that is not installed is InvalidConfiguration, and so is one whose client library is not."""
    with pytest.raises(InvalidConfiguration, match=r"'tape'.*there are: .*filesystem"):
        open_store(ref.model_copy(update={"driver": "tape"}))
    with pytest.raises(InvalidConfiguration, match=r"'lost' needs the Python package 'absent'"):
        open_store(ref.model_copy(update={"driver": "lost"}))
    with pytest.raises(InvalidConfiguration, match=r"'absent'.*: pip install 'outside\[extra\]',"):
        open_store(ref.model_copy(update={"driver": "extra"}))


def test_a_wrong_field_is_named() -> None:
    """A config that the driver's model refuses is InvalidConfiguration with store, driver and field, not the value."""
    ref = StoreRef(name="fast", driver="filesystem", config={"path": "s3cret"}, installation="here")
    with pytest.raises(InvalidConfiguration, match=r"^store fast: filesystem\.path: ") as raised:
        open_store(ref)
    assert "s3cret" not in str(raised.value)
    with pytest.raises(InvalidConfiguration, match=r"filesystem\.path: must be given"):
        open_store(ref.model_copy(update={"config": {}}))


@pytest.mark.parametrize("key", ["", "..", "../6f1c-1", "a/b", "A-1", "6f1c_1", "6f1c-1.a1", "6f1c-1\n", "x" * 81])
def test_no_other_keys(ref: StoreRef, key: str) -> None:
    """Nothing but a key of our own making reaches a driver."""
    store = over(ref, Memory)
    for action in (store.stat, store.open, lambda key: store.put(key, "a1", Body(b""), lambda: record_of(KEY))):
        with pytest.raises(ValueError, match="no key of ours"):
            action(key)
    with pytest.raises(ValueError, match="no key of ours"):
        store.delete(key if key != "6f1c-1.a1" else "6f1c-1.a1.b1")


# The error border


class Surprised(Memory):
    """Its client library raises what it likes."""

    def list(self, _prefix: str = "", /) -> Iterator[Stat]:
        """Half a list."""
        yield Stat("6f1c-2", 0, "", 0)
        raise RuntimeError("https://user:s3cret@store/ says no")

    def stat(self, _key: str, /) -> Stat:
        """No answer."""
        raise ConnectionResetError(104, "Connection reset by peer")

    @contextmanager
    def get(self, _key: str, /, *_range: Any) -> Iterator[Reader]:
        """An answer that breaks off."""
        yield Broken()


class Broken:
    """Breaks off."""

    size: int | None = 10

    def read(self, _n: int = 0, /) -> bytes:
        """Break."""
        raise TimeoutError


class Short(Broken):
    """Ends early."""

    def read(self, _n: int = 0, /) -> bytes:
        """End."""
        return b""


def test_surprises_become_store_unavailable(ref: StoreRef) -> None:
    """What a driver did not foresee is StoreUnavailable with the store's name; the cause is kept, its words are not."""
    store = over(ref, Surprised)
    with pytest.raises(StoreUnavailable, match=r"^store fast: RuntimeError$") as raised:
        list(store.list())
    assert isinstance(raised.value.__cause__, RuntimeError)
    with pytest.raises(StoreUnavailable, match=r"^store fast: Connection reset by peer$"):
        store.stat(KEY)
    with store.get(KEY) as reader, pytest.raises(StoreUnavailable, match=r"^store fast: TimeoutError$"):
        reader.read()


def test_errors_of_the_caller_are_his(ref: StoreRef) -> None:
    """What a caller raises while he reads comes out as it is."""
    store = over(ref, Memory)
    put(store, Body(b"x"))
    with pytest.raises(RuntimeError, match="mine"), store.get(KEY):
        raise RuntimeError("mine")


def test_an_object_that_ends_early_is_lost(ref: StoreRef) -> None:
    """Fewer bytes than the store has announced are DataLost, never a short download that looks complete."""

    class Truncated(Memory):
        @contextmanager
        def get(self, _key: str, /, *_range: Any) -> Iterator[Reader]:
            yield Short()

    with over(ref, Truncated).get(KEY) as reader, pytest.raises(DataLost, match="6f1c-1 in store fast ends 10"):
        reader.read()


# The checks after a put


class Swallowing(Memory):
    """Makes an error of its own of what the body raises."""

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Hide the cause."""
        try:
            return super().put(key, attempt, body, record)
        except Problem:
            raise StoreUnavailable("something with the upload") from None


class Hurried(Memory):
    """Commits what it has when the body fails, and no more than the body has announced."""

    def put(self, key: str, attempt: str, body: Reader, _record: Callable[[], bytes], /) -> Stat:
        """Never fail."""
        try:
            data = body.read(body.size or 1)
        except Problem:
            data = b"half"
        return super().put(key, attempt, Body(data), lambda: b"{}")


def test_the_error_of_the_body_wins(ref: StoreRef) -> None:
    """Whatever a driver makes of it: what the body raised is the answer."""
    error = SourceUnavailable("reset")
    with pytest.raises(SourceUnavailable) as raised:
        put(over(ref, Swallowing), Body(b"x", error=error))
    assert raised.value is error


@pytest.mark.parametrize(
    "body", [Body(b"", lie=1, error=SourceUnavailable("reset")), Body(b"abc", lie=-1)], ids=["failed", "longer"]
)
def test_a_careless_commit_is_taken_back(ref: StoreRef, body: Body) -> None:
    """A driver that commits what it must not does not get away with it: the object is removed, and the put fails."""
    store = over(ref, Hurried)
    with pytest.raises((SourceUnavailable, StoreUnavailable)):
        put(store, body)
    assert list(store.list()) == []


# A put with a mark


class Plain:
    """A driver that is not Resumable."""

    Config = MemoryConfig

    def __init__(self, config: MemoryConfig, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        memory = Memory(config, secret, ca_bundle)
        for name in ("put", "get", "stat", "update", "delete", "list", "probe", "claim"):
            setattr(self, name, getattr(memory, name))


def test_a_mark_is_for_who_can_use_it(ref: StoreRef) -> None:
    """With another driver a put with a mark is a put, and nothing is ever left of it."""
    store = Store(ref, Plain(MemoryConfig.model_validate(ref.config), {}, None))  # type: ignore[arg-type]  # made by hand
    with pytest.raises(SourceUnavailable):
        store.put(KEY, "a1", Body(b"x", error=SourceUnavailable("reset")), lambda: record_of(KEY), lambda _: b"mark")
    assert list(store.list()) == []
    with store.partial(KEY, "a2") as left:
        assert left is None
    store.put(KEY, "a2", Body(b"x"), lambda: record_of(KEY), lambda _: b"mark")


def test_what_cannot_be_discarded_is_left_to_the_sweep(ref: StoreRef) -> None:
    """Why it was to go is the answer, not why it could not."""

    class Stuck(Memory):
        def delete(self, _key: str, /) -> None:
            raise StoreUnavailable("read-only")

    store = over(ref, Stuck)
    error = ChecksumMismatch("other bytes")
    with pytest.raises(ChecksumMismatch) as raised:
        store.put(KEY, "a1", Body(b"x", error=error), lambda: record_of(KEY), lambda _: b"mark")
    assert raised.value is error
    assert [(entry.key, entry.partial) for entry in store.list()] == [(f"{KEY}.a1", True)]
    with store.partial(KEY, "a2") as left:
        assert left
        left.discard()


def test_chunks_are_kept_as_they_came(ref: StoreRef, tmp_path: Path) -> None:
    """The very chunks of a body reach the driver: no stage copies them or uses their buffers again."""
    chunks = [noise(1000, n) for n in range(5)]
    rest = [*chunks, b""]

    class Handing(Body):
        def read(self, _n: int = 0, /) -> bytes:
            return rest.pop(0) if rest else b""

    put(over(ref, Memory), Handing(b"", known=False))
    kept = PLACES[str(tmp_path)].objects[KEY][1]
    assert [id(chunk) for chunk in kept] == [id(chunk) for chunk in chunks]


def test_room_is_looked_at_as_bytes_pass(ref: StoreRef) -> None:
    """The store's room is looked at before the first byte and then each 64 MiB, not with each chunk."""
    looks = []

    class Counting(Memory):
        def probe(self) -> Capacity:
            looks.append(1)
            return Capacity(1 << 40, 0, 1 << 40)

        def put(self, key: str, _attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
            size = 0
            while chunk := body.read():
                size += len(chunk)
            return Stat(key, size, "", 0, record())

    zeros = bytes(1 << 20)

    class Long(Body):
        def read(self, _n: int = 0, /) -> bytes:
            self.given += len(zeros)
            return zeros if self.given <= 200 << 20 else b""

    put(over(ref, Counting), Long(b"", known=False))
    assert len(looks) == 4


def test_what_is_absent_is_asked_twice(ref: StoreRef, tmp_path: Path) -> None:
    """NotFound is believed only while the marker is there."""
    store = over(ref.model_copy(update={"claimed": True}), Memory)
    with pytest.raises(StoreUnavailable, match="mounted"):
        store.stat(KEY)
    PLACES[str(tmp_path)].owner = "here/fast"
    with pytest.raises(NotFound):
        store.stat(KEY)


# Records


def test_records_come_back() -> None:
    """What is written is read, and fields of a newer version are passed over."""
    record = record_of(KEY, size=5, digest="sha256:00")
    assert decode(encode(record)) == record
    assert decode(encode(record)[:-1] + b',"newer":[1]}') == record


@pytest.mark.parametrize("stored", [None, b"", b"\xff\x00", b"[]", b"{}", b"{" * 100_000])
def test_broken_records_are_none(stored: bytes | None) -> None:
    """A record that cannot be read is none, and no error: the bytes may well be right."""
    assert decode(stored) is None


def test_records_stay_small() -> None:
    """What a server made too long is left out; a record that is too long all the same is refused."""
    long: Mapping[str, Any] = {"etag": "e" * 5000, "source_url": "https://a.example/", "last_modified": "x"}
    record = record_of(KEY)
    assert decode(encode(record.model_copy(update=long))) == record
    assert len(encode(record.model_copy(update={"source_url": "h" * 2048}))) < RECORD_LIMIT
    with pytest.raises(InvalidConfiguration, match="4096"):
        encode(record.model_copy(update={"name": "n" * 5000}))
