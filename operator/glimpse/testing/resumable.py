"""The contract of a store that goes on with a put that died, as a test suite.

Besides StoreContract, for drivers that are Resumable. What is at stake is not speed but the bytes: those of two
attempts, or what a crash has left behind a checkpoint, must never come together in one object.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from glimpse.problems import (
    ChecksumMismatch,
    DataLost,
    SourceChanged,
    SourceUnavailable,
    StoreConflict,
    StoreFull,
    StoreOwnedByAnother,
    StoreUnavailable,
    TooLarge,
    UnsafeImage,
    WorkerLost,
)
from glimpse.stores import MARK_LIMIT, Mark, Partial, Resumable, Store, open_store
from glimpse.streams import CHUNK, Reader
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import Body, marked, noise, record_of, writer
from glimpse.testing.stores import KEY, Cancelled, Stalled, StoreFixtures, absent, put, read

WORD = b'{"etag":"\\"one\\""}'
MARK = marked(WORD)
BREAK = SourceUnavailable("reset")
ENOUGH = 2 * CHUNK
"""Bytes for which any store makes a checkpoint when the body fails."""

HOLED = bytes(3 * CHUNK + 5) + noise(CHUNK) + bytes(2 * CHUNK + 70_000) + noise(CHUNK + 11, 1) + bytes(2 * CHUNK)
"""Zeros at the start, in the middle and at the end, of which stores may make holes."""


class ResumableContract(StoreFixtures):
    """What a store promises that is Resumable. A subclass gives the fixtures `ref`, `raw` and `small`.

    Where an object takes most of a second to make, `examples` and `turns` may be smaller.
    """

    lag: ClassVar[int] = 64 << 20
    """Bytes that a kill may cost at most; a driver may set it lower."""
    examples: ClassVar[int] = 25
    """Made-up bodies that break off."""
    turns: ClassVar[int] = 12
    """Puts of each in a crowd."""

    def test_is_resumable(self, store: Store) -> None:
        """The driver says so."""
        assert isinstance(store.driver, Resumable)

    # Bytes in, bytes out

    @pytest.mark.parametrize("piece", [CHUNK, 100_001])
    @pytest.mark.parametrize("stop", [ENOUGH, ENOUGH + 1, 6 * CHUNK, 8 * CHUNK + 70_000])
    def test_goes_on_with_what_was_written(self, store: Store, stop: int, piece: int) -> None:
        """What a put that broke off has written is given back with its mark, as far as it is safe, and gone on with."""
        broken(store, HOLED[:stop], piece=piece)
        with store.partial(KEY, "b1") as left:
            assert left
            assert 0 < left.length <= stop
            assert (left.mark, left.reader.size) == (MARK(left.length), left.length)
            assert contents(left.reader) == HOLED[: left.length]
            body = Body(HOLED, piece=piece)
            entry = store.resume(left, left.length, body, lambda: record_of(KEY, size=len(HOLED)), MARK)
        assert body.ended
        assert entry == store.stat(KEY)
        assert (entry.size, entry.record) == (len(HOLED), record_of(KEY, size=len(HOLED)))
        assert read(store, KEY) == HOLED
        assert left_of(store) == []

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_goes_on_with_all_of_it(self, store: Store, known: bool) -> None:
        """Where only the commit was missing, nothing is written any more, and the object is the same."""
        for data in (HOLED, noise(ENOUGH)):
            broken(store, data)
            with store.partial(KEY, "b1") as left:
                assert left
                go_on(store, left, "b1", Body(data, known=known))
            assert read(store, KEY) == data
            store.delete(KEY)

    def test_breaks_off_again_and_again(self, store: Store) -> None:
        """Each attempt goes on where the one before it has ended; what one has won the next does not lose."""
        reached = 0
        for stop in range(ENOUGH, len(HOLED), ENOUGH // 2):
            with store.partial(KEY, f"b{stop}") as left:
                assert (left.length if left else 0) >= reached
                reached = left.length if left else 0
                with pytest.raises(SourceUnavailable):
                    go_on(store, left, f"b{stop}", Body(HOLED[:stop], error=BREAK))
        assert reached
        resumed(store, HOLED, attempt="c1")
        assert read(store, KEY) == HOLED

    @pytest.mark.parametrize("stop", [0, 1, CHUNK, ENOUGH - 1, ENOUGH])
    def test_loses_nothing_by_breaking_off_early(self, store: Store, stop: int) -> None:
        """An attempt that breaks off within what was there already leaves it as it was."""
        data = noise(2 * ENOUGH)
        broken(store, data[:ENOUGH])
        with store.partial(KEY, "b1") as left:
            assert left
            before = left.length
            with pytest.raises(SourceUnavailable):
                go_on(store, left, "b1", Body(data[:stop], error=BREAK))
        with store.partial(KEY, "b2") as left:
            assert left
            assert left.length == before
            assert contents(left.reader) == data[:before]
        store.delete(KEY)

    def test_is_the_same_however_it_came(self, store: Store) -> None:
        """Any bytes, broken off anywhere, any number of times, make the same object as one put."""
        runs = st.lists(
            st.one_of(st.integers(0, 3 * CHUNK).map(bytes), st.builds(noise, st.integers(0, 3 * CHUNK), st.just(1))),
            max_size=4,
        ).map(b"".join)

        @settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(data=runs, stops=st.lists(st.floats(0, 1), max_size=3), piece=st.sampled_from([65536, 1_000_000, CHUNK]))
        def check(data: bytes, stops: list[float], piece: int) -> None:
            for number, share in enumerate(stops):
                stop = int(share * len(data))
                with store.partial(KEY, f"a{number}") as left:
                    assert left is None or contents(left.reader) == data[: left.length]
                    with pytest.raises(SourceUnavailable):
                        go_on(store, left, f"a{number}", Body(data[:stop], piece=piece, error=BREAK))
            resumed(store, data, attempt="z1")
            assert read(store, KEY) == data
            store.delete(KEY)

        check()

    @pytest.mark.parametrize("length", [1, CHUNK + 5, ENOUGH - 1])
    def test_can_use_less_than_is_there(self, store: Store, length: int) -> None:
        """Of what is there the caller may want the first part only: the rest is nothing, also where zeros follow."""
        was = noise(ENOUGH)
        data = was[:length] + bytes(2 * ENOUGH) + b"x"
        broken(store, was)
        with store.partial(KEY, "b1") as left:
            assert left
            with pytest.raises(SourceUnavailable):
                store.resume(left, length, Body(data[:ENOUGH], error=BREAK), lambda: record_of(KEY), MARK)
        with store.partial(KEY, "b2") as left:
            assert left is None or contents(left.reader) == data[: left.length]
            go_on(store, left, "b2", Body(data))
        assert read(store, KEY) == data

    @pytest.mark.parametrize("mark", [b"", b"\0", bytes(range(256)) * (MARK_LIMIT // 256)], ids=["none", "one", "all"])
    def test_keeps_marks(self, store: Store, mark: bytes) -> None:
        """A mark is any bytes, up to the limit."""
        broken(store, noise(ENOUGH), mark=lambda _: mark)
        with store.partial(KEY, "b1") as left:
            assert left
            assert left.mark == mark
        store.delete(KEY)

    def test_refuses_long_marks(self, store: Store) -> None:
        """One byte more is a bug of the caller: nothing is read if it begins so, nothing kept if it comes to that."""
        body = Body(noise(ENOUGH), error=BREAK)
        with pytest.raises(ValueError, match="mark"):
            store.put(KEY, "a1", body, lambda: record_of(KEY), lambda _: bytes(MARK_LIMIT + 1))
        assert body.given == 0
        with pytest.raises((SourceUnavailable, StoreUnavailable)):
            store.put(KEY, "a1", body, lambda: record_of(KEY), lambda length: bytes(MARK_LIMIT + bool(length)))
        assert left_of(store) == []

    # What is kept, and what is not

    @pytest.mark.parametrize(
        ("error", "kept"),
        [
            (SourceUnavailable("reset"), True),
            (WorkerLost("cancelled"), True),
            (StoreUnavailable("stalled"), True),
            (SourceChanged("other bytes"), False),
            (ChecksumMismatch("other bytes"), False),
            (UnsafeImage("a backing file"), False),
            (StoreFull("by our own count"), False),
            (StoreConflict("another was first"), False),
            (DataLost("what was there cannot be read"), False),
            (RuntimeError("a bug"), False),
            (Cancelled(), False),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    @pytest.mark.parametrize("stage", ["body", "end", "record", "resumed"])
    def test_keeps_what_time_may_mend(self, store: Store, error: BaseException, kept: bool, stage: str) -> None:
        """After a Problem that time may mend what was written is kept; otherwise nothing is. The error comes out."""
        data = noise(2 * ENOUGH)
        length = ENOUGH if stage == "body" else len(data)
        ended = stage == "record"
        body = Body(data[:length], lie=len(data) - length, error=None if ended else error)
        if stage == "resumed":
            broken(store, data[:ENOUGH])

        def record() -> Record:
            raise error

        with store.partial(KEY, "b1") as left:
            assert bool(left) == (stage == "resumed")
            with pytest.raises(type(error)) as raised:
                go_on(store, left, "b1", body, record)
        assert raised.value is error
        assert absent(store, KEY)
        assert left_of(store) == ([f"{KEY}.b1"] if kept else [])
        if kept:
            resumed(store, data)
            assert read(store, KEY) == data

    def test_keeps_nothing_of_nothing(self, store: Store) -> None:
        """An attempt without a byte leaves nothing, and there is nothing to go on with."""
        broken(store, b"")
        assert left_of(store) == []
        with store.partial(KEY, "b1") as left:
            assert left is None

    def test_keeps_nothing_without_a_mark(self, store: Store) -> None:
        """A put without a mark is as it always was."""
        with pytest.raises(SourceUnavailable):
            put(store, KEY, noise(ENOUGH), error=BREAK)
        assert left_of(store) == []

    def test_shows_it_as_partial(self, store: Store) -> None:
        """It is listed as an attempt, also while somebody has it, and it is no object."""
        broken(store, noise(ENOUGH))
        with store.partial(KEY, "b1") as left:
            assert left
            for entry in store.list():
                assert (entry.key, entry.partial) == (f"{KEY}.b1", True)
                assert entry.size >= left.length
        assert left_of(store) == [f"{KEY}.b1"]
        assert absent(store, KEY)
        store.delete(KEY)

    @pytest.mark.parametrize(
        "action",
        [
            lambda store: store.delete(KEY),
            lambda store: store.delete(f"{KEY}.a1"),
            lambda store: put(store, KEY, b"x", attempt="b1"),
            lambda store: store.put(KEY, "b1", Body(b"x"), lambda: record_of(KEY), MARK),
        ],
        ids=["delete", "delete the attempt", "put", "put with a mark"],
    )
    def test_is_removed_as_any_dead_attempt(self, store: Store, action: Callable[[Store], None]) -> None:
        """By a delete of its key or of itself, and by a put that does not go on with it; the neighbour's stays."""
        broken(store, noise(ENOUGH))
        broken(store, noise(ENOUGH), key=f"{KEY}0")
        action(store)
        assert left_of(store) == [f"{KEY}0.a1"]
        store.delete(f"{KEY}0")

    def test_can_be_discarded(self, store: Store) -> None:
        """Whoever has it and cannot use it has it removed."""
        broken(store, noise(ENOUGH))
        with store.partial(KEY, "b1") as left:
            assert left
            left.discard()
        assert left_of(store) == []

    def test_is_left_alone_by_who_only_looks(self, store: Store) -> None:
        """Taken over and not gone on with, it stays for the next one."""
        broken(store, noise(ENOUGH))
        for attempt in ("b1", "b2", "b1"):
            with store.partial(KEY, attempt) as left:
                assert left
                assert contents(left.reader) == noise(ENOUGH)[: left.length]
        resumed(store, noise(2 * ENOUGH))
        assert read(store, KEY) == noise(2 * ENOUGH)

    def test_refuses_a_body_that_is_shorter(self, store: Store) -> None:
        """A source that ends before what is stored of it is another one: nothing is committed, nothing kept."""
        broken(store, noise(ENOUGH))
        with store.partial(KEY, "b1") as left:
            assert left
            with pytest.raises(SourceChanged):
                go_on(store, left, "b1", Body(noise(ENOUGH)[: left.length - 1]))
        assert absent(store, KEY)
        assert left_of(store) == []

    # Several at once, and deaths

    def test_offers_the_one_that_came_furthest(self, store: Store) -> None:
        """Of several dead attempts the longest is offered, and the others are removed."""
        data = noise(3 * ENOUGH)
        with broken_later(store, data[: 2 * ENOUGH], "a1", MARK):
            broken(store, data[:ENOUGH], attempt="a2", mark=marked(b"shorter"))
            with broken_later(store, data[:ENOUGH], "a3", marked(b"shorter")):
                pass
        with store.partial(KEY, "b1") as left:
            assert left
            assert left.mark == MARK(left.length)
            assert left.length > ENOUGH
            assert left_of(store) == [f"{KEY}.b1"]
        resumed(store, data, attempt="a1")
        assert read(store, KEY) == data

    def test_never_offers_what_is_alive(self, store: Store) -> None:
        """An attempt that stalls is not taken over; when it goes on after another has committed, it cannot harm."""
        slow, quick = noise(3 * ENOUGH, 1), noise(2 * ENOUGH, 2)
        with Stalled(store, KEY, "a1", slow, mark=MARK) as stalled:
            with store.partial(KEY, "b1") as left:
                assert left is None
            store.put(KEY, "b1", Body(quick), lambda: record_of(KEY), MARK)
            assert read(store, KEY) == quick
            assert isinstance(stalled.go_on(), StoreConflict)
        assert read(store, KEY) == quick
        assert left_of(store) == []

    def test_never_offers_what_is_gone_on_with(self, store: Store) -> None:
        """The same for an attempt that has taken over another, also when the block has ended that gave it."""
        data, quick = noise(3 * ENOUGH, 1), noise(2 * ENOUGH, 2)
        for other in (False, True):
            broken(store, data[:ENOUGH])
            with ExitStack() as block:
                left = block.enter_context(store.partial(KEY, "b1"))
                assert left
                with Stalled(store, KEY, "b1", data, mark=MARK, left=left) as stalled:
                    block.close()
                    with store.partial(KEY, "c1") as none:
                        assert none is None
                    if other:
                        store.put(KEY, "c1", Body(quick), lambda: record_of(KEY), MARK)
                    problem = stalled.go_on()
            assert isinstance(problem, StoreConflict) if other else problem is None
            assert read(store, KEY) == (quick if other else data)
            assert left_of(store) == []
            store.delete(KEY)

    def test_never_offers_what_is_alive_elsewhere(self, store: Store, ref: StoreRef) -> None:
        """The same where the attempt is in another process: it ends well, whatever was tried meanwhile."""
        with writer(ref, KEY, "a1", 2 * ENOUGH, mark=WORD) as other:
            with store.partial(KEY, "b1") as left:
                assert left is None
            assert other.go_on() == "stored"
        assert read(store, KEY) == noise(2 * ENOUGH)

    def test_gives_it_to_one_of_many(self, store: Store) -> None:
        """Of many that ask at once, one gets it as long as it has it, and then the next."""
        data = noise(2 * ENOUGH)
        broken(store, data[:ENOUGH])
        together, asked = threading.Barrier(6), threading.Barrier(6)

        def run(n: int) -> bool:
            together.wait(60)
            with store.partial(KEY, f"b{n}") as left:
                asked.wait(60)
                return left is not None

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(run, range(6))) == 1
        resumed(store, data)
        assert read(store, KEY) == data

    def test_survives_a_crowd(self, store: Store) -> None:
        """Many that put, break off, go on and delete at once: an object is never anything but whole."""
        data = noise(2 * ENOUGH)
        together = threading.Barrier(4)

        def run(n: int) -> None:
            together.wait(60)
            for turn in range(self.turns):
                attempt = f"a{n}x{turn}"
                error = BREAK if (n + turn) % 3 else None
                try:
                    with store.partial(KEY, attempt) as left:
                        assert left is None or contents(left.reader) == data[: left.length]
                        go_on(store, left, attempt, Body(data if error is None else data[:-1], error=error))
                except (StoreConflict, SourceUnavailable):
                    pass
                else:
                    assert read(store, KEY) == data
                    store.delete(KEY)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
        store.delete(KEY)

    def test_survives_kills(self, store: Store, ref: StoreRef, buried: Callable[[], None]) -> None:
        """A killed put, and then a killed resume, have lost no more than they may; each next one goes on from there."""
        length = 2 * self.lag + ENOUGH
        data, reached = noise(length), 0
        for turn, stop in enumerate((self.lag + ENOUGH, self.lag + self.lag // 2)):
            with writer(ref, KEY, f"a{turn}", length, mark=WORD, stop=stop) as other:
                other.kill()
            buried()
            assert absent(store, KEY)
            with store.partial(KEY, f"b{turn}") as left:
                assert left
                assert max(reached, stop - self.lag) <= left.length <= stop + CHUNK
                assert left.mark == MARK(left.length)
                reached = left.length
                assert contents(left.reader) == data[:reached]
        resumed(store, data)
        assert read(store, KEY) == data

    # Whose it is, and how much it takes

    def test_belongs_to_one(self, store: Store, ref: StoreRef) -> None:
        """A store gives what attempts have left to its owner only."""
        broken(store, noise(ENOUGH))
        foreign = open_store(ref.model_copy(update={"installation": "there"}))
        with pytest.raises(StoreOwnedByAnother), foreign.partial(KEY, "b1"):
            pass
        store.delete(KEY)

    def test_misses_its_marker(self, ref: StoreRef) -> None:
        """Of a place that is not there nothing is said."""
        store = open_store(ref.model_copy(update={"claimed": True}))
        with pytest.raises(StoreUnavailable, match="mounted"), store.partial(KEY, "b1"):
            pass

    def test_keeps_to_the_largest_size(self, store: Store, ref: StoreRef) -> None:
        """The limit is on the whole image, not on what is written now."""
        data = noise(2 * ENOUGH)
        narrow = open_store(ref.model_copy(update={"max_image_size": len(data) - 1}))
        for known in (True, False):
            broken(store, data[:ENOUGH])
            with narrow.partial(KEY, "b1") as left:
                assert left
                with pytest.raises(TooLarge, match="maxImageSize"):
                    go_on(narrow, left, "b1", Body(data, known=known))
            assert absent(store, KEY)
            assert left_of(store) == []

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_needs_room_for_the_rest_only(self, small: StoreRef, known: bool) -> None:
        """What is there already takes its room, and is not asked for twice; the reserve is kept all the same."""
        store = open_store(small)
        store.claim()
        data = noise(6 * CHUNK)
        for spare in (CHUNK, 5 * CHUNK):
            broken(store, data[:ENOUGH])
            free = store.probe().free
            if free is None:
                break  # it cannot tell, and so has no reserve to keep
            tight = open_store(small.model_copy(update={"reserve": free - spare}))
            with tight.partial(KEY, "b1") as left:
                assert left
                if spare + left.length < len(data):
                    with pytest.raises(StoreFull, match="reserve"):
                        go_on(tight, left, "b1", Body(data, known=known))
                else:
                    go_on(tight, left, "b1", Body(data, known=known))
                    assert read(store, KEY) == data
        store.delete(KEY)

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_survives_a_full_store(self, small: StoreRef, known: bool) -> None:
        """Where there is no room for the rest, what was there goes too: others may need less."""
        store = open_store(small)
        store.claim()
        data = noise(64 * CHUNK)
        for driver in (False, True):
            broken(store, data[:ENOUGH])
            with store.partial(KEY, "b1") as left:
                assert left
                if driver:  # the driver alone, as if others had filled the store meanwhile
                    with pytest.raises(StoreFull):
                        left.taken.resume(left.length, MARK, Body(data[left.length :], known=known), lambda: b"{}")
                    left.discard()
                else:
                    with pytest.raises(StoreFull):
                        go_on(store, left, "b1", Body(data, known=known))
            assert left_of(store) == []
        put(store, KEY, noise(6 * CHUNK))
        assert read(store, KEY) == noise(6 * CHUNK)
        store.delete(KEY)


def broken(
    store: Store, data: bytes, *, key: str = KEY, attempt: str = "a1", mark: Mark = MARK, piece: int = CHUNK
) -> None:
    """A put that breaks off after `data`."""
    body = Body(data, lie=1, piece=piece, error=BREAK)
    with pytest.raises(SourceUnavailable):
        store.put(key, attempt, body, lambda: record_of(key), mark)


@contextmanager
def broken_later(store: Store, data: bytes, attempt: str, mark: Mark) -> Iterator[None]:
    """The same, which breaks off when the block ends."""
    with Stalled(store, KEY, attempt, data, mark=mark, error=BREAK) as stalled:
        yield
        assert stalled.go_on() is BREAK


def go_on(
    store: Store,
    left: Partial | None,
    attempt: str,
    body: Reader,
    record: Callable[[], Record] = lambda: record_of(KEY),
) -> None:
    """Go on with what is left, or begin."""
    if left:
        store.resume(left, left.length, body, record, MARK)
    else:
        store.put(KEY, attempt, body, record, MARK)


def resumed(store: Store, data: bytes, *, attempt: str = "z1") -> None:
    """Go on with what is left, if anything, to the end."""
    with store.partial(KEY, attempt) as left:
        go_on(store, left, attempt, Body(data))


def contents(reader: Reader) -> bytes:
    """All that it gives."""
    return b"".join(iter(reader.read, b""))


def left_of(store: Store) -> list[str]:
    """What attempts have left."""
    return [entry.key for entry in store.list() if entry.partial]
