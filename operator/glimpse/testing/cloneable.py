"""The contract of a store that makes one object of another, in addition to the contract of every store.

Two objects that share their bytes must be two in all that anybody can see, above all when one of them goes.
"""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from glimpse.problems import QuotaExceeded, StoreConflict, StoreOwnedByAnother, TooLarge, WorkerLost
from glimpse.stores import Cloneable, Entry, Store, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import Record, Share, StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, OTHER, UID, Raw, Stalled, StoreFixtures, absent, put, read

DIGEST = "sha256:" + 64 * "a"


def original(store: Store, data: bytes, key: str = KEY) -> None:
    """An object with a digest in its record."""
    store.put(key, "a1", Body(data), lambda: record_of(key, size=len(data), digest=DIGEST))


def clone(
    store: Store,
    key: str = OTHER,
    *,
    source: str = KEY,
    attempt: str = "b1",
    digest: str = DIGEST,
    going: Callable[[], None] = lambda: None,
) -> Entry | None:
    """Clone the original."""

    def ours(record: Record) -> Record:
        return record_of(key, size=record.size, digest=record.digest)

    return store.clone(source, digest, key, attempt, ours, going=going)


class CloneableContract(StoreFixtures):
    """What a store promises that is Cloneable. A subclass gives the fixtures `ref`, `raw` and `small`."""

    turns: ClassVar[int] = 15
    """Of each in a crowd; fewer where an object takes most of a second to make."""
    asks: ClassVar[bool] = False
    """Whether 3 MiB take the server several requests or a while, so that it is asked meanwhile whether to go on."""

    @pytest.mark.parametrize("length", [0, 1, CHUNK, 3 * CHUNK + 17])
    def test_is_the_same_and_its_own(self, store: Store, length: int) -> None:
        """The bytes are the same, the record is its own, and so is every range."""
        assert isinstance(store.driver, Cloneable)
        data = noise(length)
        original(store, data)
        assert clone(store) == (entry := store.stat(OTHER))
        assert (entry.key, entry.size, entry.partial) == (OTHER, length, False)
        assert entry.record == record_of(OTHER, size=length, digest=DIGEST)
        assert store.stat(KEY).record == record_of(KEY, size=length, digest=DIGEST)
        assert read(store, OTHER) == data
        assert read(store, OTHER, 1, CHUNK) == data[1 : CHUNK + 1]
        assert {each.key for each in store.list()} == {KEY, OTHER}

    @pytest.mark.parametrize("first", [KEY, OTHER])
    def test_outlives_the_other(self, store: Store, first: str) -> None:
        """Whichever is removed, the other stays whole; then its record can be changed, and it can be cloned again."""
        data = noise(2 * CHUNK)
        original(store, data)
        clone(store)
        store.delete(first)
        left = OTHER if first == KEY else KEY
        assert absent(store, first)
        assert read(store, left) == data
        store.update(left, record_of(left, size=len(data), digest=DIGEST))
        again = f"{UID}-3"
        assert clone(store, again, source=left)
        store.delete(left)
        assert read(store, again) == data

    def test_keeps_records_apart(self, store: Store) -> None:
        """To change the record of one changes nothing of the other."""
        original(store, noise(1000))
        clone(store)
        store.update(KEY, record_of(KEY, digest="sha512:" + 128 * "b"))
        assert store.stat(OTHER).record == record_of(OTHER, size=1000, digest=DIGEST)

    def test_writes_an_object_once(self, store: Store) -> None:
        """A key that exists is refused, and stays as it is."""
        original(store, noise(1000))
        put(store, OTHER, b"first")
        with pytest.raises(StoreConflict):
            clone(store)
        assert read(store, OTHER) == b"first"

    def test_takes_only_what_it_was_asked_for(self, store: Store) -> None:
        """No object, or one with other bytes, is none to clone: nothing happens."""
        assert clone(store) is None
        original(store, noise(1000))
        assert clone(store, digest="sha256:" + 64 * "b") is None
        assert absent(store, OTHER)

    def test_survives_a_stalled_attempt(self, store: Store) -> None:
        """An attempt on the key that is alive is left alone, and cannot harm what was cloned meanwhile."""
        data = noise(3 * CHUNK, 1)
        original(store, data)
        with Stalled(store, OTHER, "a1", noise(2 * CHUNK, 2)) as stalled:
            assert clone(store)
            assert isinstance(stalled.go_on(), StoreConflict)
        assert read(store, OTHER) == data

    def test_lets_one_of_many_win(self, store: Store) -> None:
        """Of several at once one makes the object, and what others leave is nothing."""
        data = noise(CHUNK)
        original(store, data)
        together = threading.Barrier(6)

        def run(n: int) -> bool:
            together.wait(60)
            try:
                return clone(store, attempt=f"b{n}") is not None
            except StoreConflict:
                return False

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(run, range(6))) == 1
        assert read(store, OTHER) == data

    @pytest.mark.parametrize("times", [0, 1])
    def test_ends_when_it_is_not_wanted(self, store: Store, raw: Raw, times: int) -> None:
        """Where a server is waited for, whoever does not want the object any more ends that, and nothing is left."""
        original(store, noise(3 * CHUNK))
        before, asked = raw(), itertools.count()

        def going() -> None:
            if next(asked) >= times:
                raise WorkerLost("the task was cancelled")

        try:
            clone(store, going=going)
        except WorkerLost:
            assert absent(store, OTHER)
            assert raw() == before
            assert {entry.key for entry in store.list()} == {KEY}
        else:
            assert next(asked) <= times, "it was told"
            assert times or not self.asks, "it has asked nobody"
            assert read(store, OTHER) == noise(3 * CHUNK)

    def test_survives_a_crowd(self, store: Store) -> None:
        """Many that clone, update and delete as fast as they can meet nothing but StoreConflict."""
        original(store, noise(1000))
        together = threading.Barrier(4)

        def run(n: int) -> None:
            together.wait(60)
            for turn in range(self.turns):
                try:
                    clone(store, attempt=f"b{n}x{turn}")
                except StoreConflict:
                    store.delete(OTHER)
                store.update(KEY, record_of(KEY, size=1000, digest=DIGEST))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
        store.delete(OTHER)
        assert read(store, KEY) == noise(1000)

    def test_keeps_to_limits(self, store: Store, ref: StoreRef) -> None:
        """What is cloned counts as what is put: it may be too large, or more than a share."""
        original(store, noise(2 * CHUNK))
        share = Share(namespace="team-a", limit=3 * CHUNK, used=2 * CHUNK)
        limits: list[tuple[dict[str, object], Callable[..., object]]] = [
            ({"max_image_size": CHUNK}, lambda: pytest.raises(TooLarge)),
            ({"share": share}, lambda: pytest.raises(QuotaExceeded)),
        ]
        for limit, refused in limits:
            with refused():  # type: ignore[attr-defined]  # a context
                clone(open_store(ref.model_copy(update=limit)))
            assert absent(store, OTHER)

    def test_belongs_to_one(self, store: Store, ref: StoreRef) -> None:
        """Nobody else clones here."""
        original(store, b"mine")
        with pytest.raises(StoreOwnedByAnother):
            clone(open_store(ref.model_copy(update={"installation": "there"})))
