"""The contract of a store as a test suite, for drivers inside and outside this project.

What the contract promises is only worth what a test can show, and a driver's author should not have to write those
tests. Subclass StoreContract in a test module and give it the three fixtures; `tests/stores` has an example. One
contract, one class: that is why this module is longer than others.
"""

import gc
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ClassVar, Self

import pytest

from glimpse.problems import (
    NotFound,
    Problem,
    QuotaExceeded,
    SourceUnavailable,
    StoreConflict,
    StoreFull,
    StoreOwnedByAnother,
    StoreUnavailable,
    TooLarge,
)
from glimpse.stores import Mark, Partial, Sendable, Store, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import Share, StoreRef
from glimpse.testing.bodies import Body, noise, record_of, writer
from glimpse.testing.store_model import check_against_model, check_deaths_against_model

UID = "6f1c2a90-0000-4000-8000-00000000000a"
KEY = f"{UID}-1"
OTHER = f"{UID}-2"

LENGTHS = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17]

Raw = Callable[[], set[str]]


class Cancelled(BaseException):
    """What a caller may raise to stop a put: not even an Exception."""


class StoreFixtures:
    """The place that a contract is tested in. A subclass gives `ref`, `raw` and `small`."""

    against: ClassVar[str] = ""
    """The server that this is tested with, where a store is tested with several."""

    exempt: ClassVar[Mapping[str, str]] = {}
    """Tests that this store cannot pass, each with the reason; the table in docs/stores shows them all."""

    @pytest.fixture(autouse=True)
    def exempted(self, request: pytest.FixtureRequest) -> None:
        """Leave out what the store is exempt from."""
        if reason := self.exempt.get(request.node.originalname):
            pytest.skip(f"exempt: {reason}")

    @pytest.fixture
    def buried(self) -> Callable[[], None]:
        """Waits until the store can tell that a writer which was just killed is dead; most can at once."""
        return lambda: None

    @pytest.fixture
    def ref(self) -> StoreRef:
        """A store in an empty place, for each test anew; its installation is `here`, its driver installed."""
        raise NotImplementedError

    @pytest.fixture
    def raw(self, ref: StoreRef) -> Raw:
        """Looks at that place around the store: the keys of all objects, and any name for whatever else is there.

        The marker, and what the store needs when it is empty, are left out.
        """
        raise NotImplementedError

    @pytest.fixture
    def small(self) -> StoreRef:
        """Another store, with room for 8 MiB at least and for less than `plenty`, 64 MiB as a rule."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, ref: StoreRef) -> Store:
        """The store that `ref` means, claimed."""
        store = open_store(ref)
        store.claim()
        return store

    @pytest.fixture(autouse=True)
    def tidy(self, ref: StoreRef, raw: Raw) -> Iterator[None]:
        """After each test there is nothing but objects, and after their removal nothing at all."""
        yield
        driver = open_store(ref).driver
        objects = {stat.key for stat in driver.list() if not stat.partial}
        assert raw() == objects
        for key in objects:
            driver.delete(key)
        assert raw() == set()
        del driver
        gc.collect()  # errors that tests have caught hold stores, and those their connections


class StoreContract(StoreFixtures):
    """What every store promises. A subclass gives the fixtures `ref`, `raw` and `small`.

    Where an object takes most of a second to make, the numbers below may be smaller.
    """

    sequences: ClassVar[int] = 25
    """Made-up sequences of calls."""
    steps: ClassVar[int] = 20
    """Calls in one of them."""
    rounds: ClassVar[int] = 20
    """Times that an object comes and goes while others look."""
    turns: ClassVar[int] = 15
    """Puts of each in a crowd."""
    deaths: ClassVar[int] = 2
    """Made-up sequences in which writers are killed."""
    part: ClassVar[int] = CHUNK
    """Bytes that the store keeps, or sends, as one: a part, a segment, a block."""

    def plenty(self) -> bytes:
        """More than there is room for in the store of `small`, and not all zeros unless zeros take room."""
        return noise(64 * CHUNK)

    # Bytes in, bytes out

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    @pytest.mark.parametrize("length", LENGTHS)
    def test_gives_back_what_it_was_given(self, store: Store, length: int, known: bool) -> None:
        """Each length comes back whole, with its record, whether it is known beforehand or not."""
        data = noise(length)
        entry = store.put(KEY, "a1", Body(data, known=known), lambda: record_of(KEY, size=length))
        assert entry == store.stat(KEY)
        assert (entry.key, entry.size, entry.partial) == (KEY, length, False)
        assert entry.record == record_of(KEY, size=length)
        assert read(store, KEY) == data

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    @pytest.mark.parametrize(("parts", "more"), [(1, -1), (1, 0), (1, 1), (2, 0), (2, 1)])
    def test_cuts_where_a_part_ends(self, store: Store, parts: int, more: int, known: bool) -> None:
        """Just one part or two, and a byte more or less, come back whole, also by ranges across the border."""
        data = noise(parts * self.part + more)
        store.put(KEY, "a1", Body(data, known=known), lambda: record_of(KEY))
        assert store.stat(KEY).size == len(data)
        assert read(store, KEY) == data
        for offset, length in ((self.part - 1, 2), (self.part, 1), (self.part - 1, 1), (0, self.part)):
            assert read(store, KEY, offset, length) == data[offset : offset + length]

    def test_takes_any_key(self, store: Store) -> None:
        """Keys are 1 to 80 of 38 characters in any order, and attempts 1 to 64 of 36; none stands for another."""
        keys = ["0", "-", "--", "-0", "0-", "abcdefghijklmnopqrstuvwxyz-0123456789", 80 * "z", f"{79 * '9'}-"]
        for n, key in enumerate(keys):
            attempt = "0" if n % 2 else "0123456789abcdefghijklmnopqrstuvwxyz".ljust(64, "0")
            store.put(key, attempt, Body(key.encode()), lambda: record_of(KEY))
        assert sorted(entry.key for entry in store.list()) == sorted(keys)
        assert sorted(entry.key for entry in store.list("-")) == ["-", "--", "-0"]
        for key in keys:
            assert read(store, key) == key.encode()
        store.delete("-")
        assert sorted(entry.key for entry in store.list()) == sorted(set(keys) - {"-"})

    @pytest.mark.parametrize("piece", [1000, 65536, 100_001])
    def test_takes_pieces_of_any_size(self, store: Store, piece: int) -> None:
        """A body may come in pieces that fit no block."""
        data = noise(CHUNK + 5)
        put(store, KEY, data, piece=piece)
        assert read(store, KEY) == data

    @pytest.mark.parametrize("piece", [CHUNK, 100_001])
    @pytest.mark.parametrize("end", [300_000, 2 * CHUNK - 300_010])
    def test_keeps_zeros(self, store: Store, piece: int, end: int) -> None:
        """Zeros at the start, in the middle and at the end, aligned or not, are bytes as all others."""
        data = bytes(200_000) + noise(100_000) + bytes(2 * CHUNK) + noise(10) + bytes(end)
        put(store, KEY, data, piece=piece)
        assert store.stat(KEY).size == len(data)
        assert read(store, KEY) == data

    def test_gives_ranges(self, store: Store) -> None:
        """A range gives the part of it that exists, and says beforehand how much that is."""
        data = noise(2 * CHUNK + 3)
        put(store, KEY, data)
        for offset in (0, 1, CHUNK, len(data) - 1, len(data), len(data) + 5):
            for length in (None, 0, 1, CHUNK + 1, len(data) + 5):
                expected = data[offset : None if length is None else offset + length]
                with store.get(KEY, offset, length) as reader:
                    assert reader.size == len(expected)
                assert read(store, KEY, offset, length) == expected

    def test_opens_files(self, store: Store) -> None:
        """Where the store has files, a descriptor stands at the start of the same bytes."""
        put(store, KEY, noise(1000))
        fd = store.open(KEY)
        assert (fd is not None) == isinstance(store.driver, Sendable)
        if fd is not None:
            with os.fdopen(fd, "rb") as file:
                assert file.read() == noise(1000)

    # What is not there

    def test_says_what_is_not_there(self, store: Store) -> None:
        """A key without an object is NotFound, for every way to look at it."""
        put(store, OTHER, b"other")
        with pytest.raises(NotFound):
            store.stat(KEY)
        with pytest.raises(NotFound):
            read(store, KEY)
        with pytest.raises(NotFound):
            store.update(KEY, record_of(KEY))
        if isinstance(store.driver, Sendable):
            with pytest.raises(NotFound):
                store.open(KEY)

    def test_deletes(self, store: Store) -> None:
        """A deleted object is gone, its neighbour is not, and a second delete is fine; so is the same key anew."""
        put(store, KEY, b"one")
        put(store, OTHER, b"two")
        store.delete(KEY)
        store.delete(KEY)
        store.delete(f"{KEY}.a1")
        assert [entry.key for entry in store.list()] == [OTHER]
        put(store, KEY, b"three")
        assert read(store, KEY) == b"three"

    def test_lists(self, store: Store) -> None:
        """A list has every object with its record, or those whose key begins as asked."""
        keys = {f"{UID}-{n}" for n in (1, 2, 10)} | {"7-1"}
        for key in keys:
            put(store, key, key.encode())
        assert {entry.key: entry for entry in store.list()} == {key: store.stat(key) for key in keys}
        assert all(entry.record for entry in store.list())
        assert {entry.key for entry in store.list(f"{UID}-1")} == {f"{UID}-1", f"{UID}-10"}
        assert list(store.list("8")) == []

    def test_updates_records(self, store: Store) -> None:
        """A record is replaced, longer or shorter, and the bytes stay."""
        put(store, KEY, noise(1000))
        for digest in ("sha512:" + 128 * "a", ""):
            store.update(KEY, record_of(KEY, digest=digest))
            assert store.stat(KEY).record == record_of(KEY, digest=digest)
        assert read(store, KEY) == noise(1000)

    # Atomic, whatever happens

    @pytest.mark.parametrize("lie", [-1, 1, -CHUNK, CHUNK])
    @pytest.mark.parametrize("length", [CHUNK, 2 * CHUNK + 1])
    def test_believes_the_body_and_not_its_length(self, store: Store, length: int, lie: int) -> None:
        """Where the told length is wrong, the object is the whole body, or there is none and a Problem says so."""
        data = noise(length)
        try:
            store.driver.put(KEY, "a1", Body(data, lie=lie), lambda: b"{}")
        except Problem:
            assert absent(store, KEY)
        else:
            assert read(store, KEY) == data

    @pytest.mark.parametrize("error", [SourceUnavailable("reset"), OSError("reset"), Cancelled()], ids=repr)
    @pytest.mark.parametrize("length", LENGTHS)
    def test_lets_the_error_of_a_body_out(self, store: Store, length: int, error: BaseException) -> None:
        """An error of the body comes out as it is and nothing is kept, also when it comes in place of the end."""
        for known in (True, False):
            body = Body(noise(length), lie=1, known=known, error=error)
            with pytest.raises(type(error)) as raised:
                store.put(KEY, "a1", body, lambda: record_of(KEY))
            assert raised.value is error
            assert absent(store, KEY)
            assert list(store.list()) == []

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_reads_to_the_end_before_it_commits(self, store: Store, known: bool) -> None:
        """Nothing is visible until the body has said that it ends: what comes last may prove it wrong."""

        def look(_given: int) -> None:
            assert absent(store, KEY)

        body = Body(noise(CHUNK + 1), known=known, before=look)

        def record() -> bytes:
            assert body.ended
            look(body.given)
            return b"{}"

        store.driver.put(KEY, "a1", body, record)
        assert read(store, KEY) == noise(CHUNK + 1)

    def test_lets_the_error_of_a_record_out(self, store: Store) -> None:
        """An error of the record comes out as it is and nothing is kept; the same attempt may try again."""
        error = SourceUnavailable("the digest is wrong")

        def record() -> bytes:
            raise error

        with pytest.raises(SourceUnavailable) as raised:
            store.driver.put(KEY, "a1", Body(noise(1000)), record)
        assert raised.value is error
        assert absent(store, KEY)
        put(store, KEY, noise(1000))

    def test_writes_an_object_once(self, store: Store) -> None:
        """A key that exists is refused before a byte is read, and stays as it is."""
        put(store, KEY, b"first")
        body = Body(b"second")
        with pytest.raises(StoreConflict):
            store.put(KEY, "a2", body, lambda: record_of(KEY))
        assert body.given == 0
        assert read(store, KEY) == b"first"

    # Several at once, and deaths

    def test_survives_a_stalled_attempt(self, store: Store) -> None:
        """An attempt that goes on after another has committed cannot harm: the object is one of both, whole."""
        slow, quick = noise(3 * CHUNK, 1), noise(2 * CHUNK + 1, 2)
        with Stalled(store, KEY, "a1", slow) as stalled:
            assert absent(store, KEY)
            put(store, KEY, quick, attempt="a2")
            problem = stalled.go_on()
        assert isinstance(problem, StoreConflict | None)
        assert read(store, KEY) == (quick if problem else slow)
        assert store.stat(KEY).record

    def test_lets_one_of_many_win(self, store: Store) -> None:
        """Of several attempts on one key at once, one is told that it has stored, and its bytes are there."""
        bodies = [noise(CHUNK + n, n) for n in range(6)]
        together = threading.Barrier(len(bodies))

        def run(n: int) -> bool:
            together.wait(60)
            try:
                put(store, KEY, bodies[n], attempt=f"a{n}")
            except StoreConflict:
                return False
            return True

        with ThreadPoolExecutor(len(bodies)) as pool:
            won = list(pool.map(run, range(len(bodies))))
        assert sum(won) == 1
        assert read(store, KEY) == bodies[won.index(True)]

    def test_leaves_a_living_attempt_alone(self, store: Store) -> None:
        """A delete, and another attempt that fails, do not touch an attempt that is alive: it ends well."""
        data = noise(3 * CHUNK, 1)
        with Stalled(store, KEY, "a1", data) as stalled:
            for entry in store.list():
                assert (entry.key, entry.partial) == (f"{KEY}.a1", True)
            store.delete(KEY)
            store.delete(f"{KEY}.a1")
            with pytest.raises(SourceUnavailable):
                put(store, KEY, b"x", attempt="a2", error=SourceUnavailable("reset"))
            assert stalled.go_on() is None
        assert read(store, KEY) == data

    def test_leaves_an_attempt_of_another_process_alone(self, store: Store, ref: StoreRef) -> None:
        """The same where the attempt is in another process, and nothing but the store tells of its life."""
        with writer(ref, KEY, "a1", 3 * CHUNK) as other:
            store.delete(KEY)
            store.delete(f"{KEY}.a1")
            with pytest.raises(SourceUnavailable):
                put(store, KEY, b"x", attempt="a2", error=SourceUnavailable("reset"))
            assert other.go_on() == "stored"
        assert read(store, KEY) == noise(3 * CHUNK)

    def test_survives_a_kill(self, store: Store, ref: StoreRef, buried: Callable[[], None]) -> None:
        """A process that is killed in a put leaves no object; its leftover is listed as partial and can be removed."""
        with writer(ref, KEY, "a1", 3 * CHUNK) as other:
            other.kill()
        buried()
        assert absent(store, KEY)
        left = list(store.list())
        assert all(entry.partial and entry.key == f"{KEY}.a1" for entry in left)
        for entry in left:
            store.delete(entry.key)
        assert list(store.list()) == []

    @pytest.mark.parametrize("action", ["put", "delete"])
    def test_removes_the_dead(self, store: Store, ref: StoreRef, buried: Callable[[], None], action: str) -> None:
        """The next put and the next delete of a key remove what dead attempts on it have left, and of no other key."""
        neighbour = f"{KEY}0"
        with writer(ref, KEY, "a1", 3 * CHUNK) as mine, writer(ref, neighbour, "a1", 3 * CHUNK) as theirs:
            mine.kill()
            theirs.kill()
        buried()
        left = list(store.list(neighbour))
        if action == "put":
            put(store, KEY, b"x", attempt="a2")
        else:
            store.delete(KEY)
        assert [entry for entry in store.list(KEY) if entry.partial] == left
        store.delete(neighbour)
        assert list(store.list(neighbour)) == []

    def test_reads_right_bytes_while_it_deletes(self, store: Store) -> None:
        """A get during a delete gives the right bytes or NotFound, also when it began before."""
        data = noise(4 * CHUNK)
        put(store, KEY, data)
        with store.get(KEY) as reader:
            got = reader.read(CHUNK)
            store.delete(KEY)
            try:
                while chunk := reader.read(CHUNK):
                    got += chunk
            except NotFound:
                got = data
        assert got == data

    def test_is_whole_or_absent_to_others(self, store: Store) -> None:
        """Whoever looks while an object comes and goes sees all of it, with its record, or nothing."""
        data = noise(300_000)
        over = threading.Event()
        seen = threading.Condition()
        looks = 0

        def look() -> None:
            nonlocal looks
            try:
                while not over.is_set():
                    with suppress(NotFound):
                        assert read(store, KEY) == data
                        entry = store.stat(KEY)
                        assert (entry.size, entry.record) == (len(data), record_of(KEY))
                        assert all(entry.record for entry in store.list() if not entry.partial)
                    with seen:
                        looks += 1
                        seen.notify_all()
            finally:
                with seen:
                    over.set()
                    seen.notify_all()

        def looked() -> None:
            with seen:
                enough = looks + 3  # two of them may have begun before
                assert seen.wait_for(lambda: looks >= enough or over.is_set(), 60)

        def before(given: int) -> None:
            if given == 200_000:
                looked()

        with ThreadPoolExecutor(2) as pool:
            watchers = [pool.submit(look) for _ in range(2)]
            try:
                for n in range(self.rounds):
                    store.put(KEY, f"a{n}", Body(data, piece=200_000, before=before), partial(record_of, KEY))
                    looked()
                    store.delete(KEY)
            finally:
                over.set()
            for watcher in watchers:
                watcher.result(60)

    def test_survives_a_crowd(self, store: Store) -> None:
        """Many that put and delete one key as fast as they can meet nothing but StoreConflict."""
        together = threading.Barrier(6)

        def run(n: int) -> None:
            together.wait(60)
            for turn in range(self.turns):
                try:
                    put(store, KEY, noise(100, n), attempt=f"a{n}x{turn}")
                except StoreConflict:
                    store.delete(KEY)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(run, range(6)))

    # Whose it is, and how much it takes

    def test_belongs_to_one(self, store: Store, ref: StoreRef) -> None:
        """A place that one store has claimed is refused to all others, for all that writes or lists.

        Others are those of another installation, and another ImageStore of the same.
        """
        put(store, KEY, b"mine")
        store.claim()
        open_store(ref.model_copy(update={"claimed": True})).claim()
        body = Body(b"theirs")
        for other in ({"installation": "there"}, {"name": "twin"}):
            foreign = open_store(ref.model_copy(update=other))
            for action in (
                foreign.claim,
                foreign.probe,
                partial(foreign.put, OTHER, "a1", body, partial(record_of, OTHER)),
                partial(foreign.update, KEY, record_of(KEY)),
                partial(foreign.delete, KEY),
                lambda store=foreign: list(store.list()),
            ):
                with pytest.raises(StoreOwnedByAnother, match=rf"'here/{ref.name}'.*'(there/|here/twin)"):
                    action()
        assert body.given == 0
        assert read(store, KEY) == b"mine"

    def test_gives_one_answer_to_all_claims(self, ref: StoreRef) -> None:
        """Of many that claim at once, all are told the same owner."""
        together = threading.Barrier(8)

        def run(n: int) -> str:
            driver = open_store(ref).driver
            together.wait(60)
            return driver.claim(f"installation-{n}", fresh=True)

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(run, range(8)))) == 1

    def test_misses_its_marker(self, ref: StoreRef) -> None:
        """A place that was ours and has no marker is not taken anew, and nothing is said to be absent in it."""
        store = open_store(ref.model_copy(update={"claimed": True}))
        for action in (
            store.claim,
            store.probe,
            lambda: put(store, KEY, b"x"),
            lambda: store.delete(KEY),
            lambda: store.stat(KEY),
            lambda: read(store, KEY),
            lambda: list(store.list()),
        ):
            with pytest.raises(StoreUnavailable, match="mounted"):
                action()

    def test_keeps_to_the_largest_size(self, ref: StoreRef) -> None:
        """A body over maxImageSize is refused before a byte is read if its length is known, else on the way."""
        store = open_store(ref.model_copy(update={"max_image_size": CHUNK}))
        put(store, KEY, noise(CHUNK))
        for known, most in ((True, 0), (False, CHUNK + 1)):
            body = Body(noise(3 * CHUNK), known=known, piece=CHUNK // 2 + 1)
            with pytest.raises(TooLarge, match="maxImageSize"):
                store.put(OTHER, "a1", body, lambda: record_of(OTHER))
            assert body.given <= most + CHUNK
            assert absent(store, OTHER)

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_keeps_to_a_share(self, ref: StoreRef, known: bool) -> None:
        """A body over what its namespace may still keep is refused, to the byte; one that just fits is stored."""
        share = Share(namespace="team-a", limit=5 * CHUNK, used=3 * CHUNK)
        store = open_store(ref.model_copy(update={"share": share}))
        with pytest.raises(QuotaExceeded, match=r"namespace team-a may keep 5 MiB .* has used 3 MiB"):
            store.put(KEY, "a1", Body(noise(2 * CHUNK + 1), known=known), lambda: record_of(KEY))
        with pytest.raises(QuotaExceeded, match=r"6 MiB, more than the 5 MiB" if known else r"larger than the 5 MiB"):
            open_store(ref.model_copy(update={"share": share.model_copy(update={"used": 0})})).put(
                KEY, "a1", Body(noise(6 * CHUNK), known=known), lambda: record_of(KEY)
            )
        assert list(store.list()) == []
        store.put(KEY, "a1", Body(noise(2 * CHUNK), known=known), lambda: record_of(KEY))
        assert read(store, KEY) == noise(2 * CHUNK)

    def test_tells_its_room(self, store: Store) -> None:
        """What a store tells of its room fits together."""
        room = store.probe()
        if room.total is not None:
            assert 0 <= (room.free or 0) <= room.total
            assert 0 <= (room.used or 0) <= room.total

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_survives_a_full_store(self, small: StoreRef, known: bool) -> None:
        """A body for which there is no room is StoreFull, leaves nothing, and the next one that fits is stored."""
        store = open_store(small)
        store.claim()
        data = self.plenty()
        with pytest.raises(StoreFull):
            store.put(KEY, "a1", Body(data, known=known), lambda: record_of(KEY))
        assert list(store.list()) == []
        with pytest.raises(StoreFull):  # the driver alone, as if others had filled the store meanwhile
            store.driver.put(KEY, "a1", Body(data, known=known), lambda: b"{}")
        assert list(store.list()) == []
        put(store, KEY, noise(6 * CHUNK))
        assert read(store, KEY) == noise(6 * CHUNK)

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_keeps_its_reserve(self, small: StoreRef, known: bool) -> None:
        """With a reserve, a store is full before it is full; while it writes, too."""
        free = open_store(small).probe().free
        assert free is not None, "what a store that cannot tell is exempt from"
        store = open_store(small.model_copy(update={"reserve": free - 4 * CHUNK}))
        body = Body(noise(6 * CHUNK), known=known)
        with pytest.raises(StoreFull, match="reserve"):
            store.put(KEY, "a1", body, lambda: record_of(KEY))
        assert body.given <= (0 if known else 5 * CHUNK)
        assert list(store.list()) == []
        put(store, KEY, noise(2 * CHUNK))

    def test_behaves_like_a_dictionary(self, store: Store) -> None:
        """Any sequence of calls gives what a dictionary of bytes and records would."""
        check_against_model(store, self.sequences, self.steps)

    def test_behaves_like_a_dictionary_though_writers_die(
        self, store: Store, ref: StoreRef, buried: Callable[[], None]
    ) -> None:
        """The same while there are attempts of killed processes on these keys."""

        def kill(key: str, attempt: str) -> None:
            with writer(ref, key, attempt, 3 * CHUNK) as other:
                other.kill()

        check_deaths_against_model(store, kill, buried, self.deaths, self.steps // 2)


class Stalled:
    """A put in a thread that has given half of its body and waits."""

    def __init__(
        self,
        store: Store,
        key: str,
        attempt: str,
        data: bytes,
        *,
        mark: Mark | None = None,
        left: Partial | None = None,
        error: Problem | None = None,
    ) -> None:
        """`left`: go on with that instead, with a mark; `error` comes in place of the end."""
        self._half, self._go = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)
        body = Body(data, error=error, before=lambda given: self._wait() if given >= len(data) // 2 else None)
        if left and mark:
            self._put = self._pool.submit(store.resume, left, left.length, body, lambda: record_of(key), mark)
        else:
            self._put = self._pool.submit(store.put, key, attempt, body, lambda: record_of(key), mark)

    def _wait(self) -> None:
        self._half.set()
        if not self._go.wait(60):
            raise TimeoutError

    def __enter__(self) -> Self:
        if not self._half.wait(60):
            raise TimeoutError
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._pool.shutdown()

    def go_on(self) -> Problem | None:
        """Let it write the rest; the Problem that it met."""
        self._go.set()
        try:
            self._put.result(60)
        except Problem as problem:
            return problem
        return None


def put(
    store: Store, key: str, data: bytes, *, attempt: str = "a1", piece: int = CHUNK, error: Problem | None = None
) -> None:
    """Store `data`."""
    store.put(key, attempt, Body(data, piece=piece, error=error), lambda: record_of(key))


def read(store: Store, key: str, offset: int = 0, length: int | None = None) -> bytes:
    """All of an object, or of a range."""
    with store.get(key, offset, length) as reader:
        return b"".join(iter(reader.read, b""))


def absent(store: Store, key: str) -> bool:
    """Whether there is no object, in every way one can ask."""
    try:
        store.stat(key)
    except NotFound:
        return not [entry for entry in store.list(key) if entry.key == key and not entry.partial]
    return False
