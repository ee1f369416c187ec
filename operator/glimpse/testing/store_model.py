"""A store against a dictionary: Hypothesis makes up sequences of calls, and both must agree after each.

It finds what nobody thought of writing a test for, and shrinks it to the shortest sequence that shows it.
"""

from collections.abc import Callable
from typing import cast

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from glimpse.problems import NotFound, SourceUnavailable, StoreConflict
from glimpse.stores import Store
from glimpse.tasks import Record
from glimpse.testing.bodies import Body, noise, record_of

KEYS = st.sampled_from(["6f1c-1", "6f1c-2", "6f1c-10", "7a-1"])
BODIES = st.lists(
    st.one_of(st.integers(0, 70_000).map(bytes), st.builds(noise, st.integers(0, 70_000), st.integers(0, 3))),
    max_size=3,
).map(b"".join)
PIECES = st.sampled_from([1000, 65536, 1 << 20])


Kill = Callable[[str, str], None]
"""Begins a put of this key by this attempt in another process, and kills it on the way."""


class Machine(RuleBasedStateMachine):
    """The calls, and what a dictionary says to them."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.model: dict[str, tuple[bytes, Record]] = {}
        self.attempts = 0
        self.dead: set[str] = set()
        """What killed writers may have left."""

    @rule(key=KEYS, data=BODIES, piece=PIECES, known=st.booleans())
    def put(self, key: str, data: bytes, piece: int, known: bool) -> None:
        """An object is written once."""
        self.attempts += 1
        record = record_of(key, size=len(data))
        body = Body(data, piece=piece, known=known)
        if key in self.model:
            with pytest.raises(StoreConflict):
                self.store.put(key, f"a{self.attempts}", body, lambda: record)
        else:
            self.store.put(key, f"a{self.attempts}", body, lambda: record)
            self.model[key] = data, record

    @rule(key=KEYS, data=BODIES)
    def put_broken(self, key: str, data: bytes) -> None:
        """A body that breaks off leaves all as it was."""
        with pytest.raises((SourceUnavailable, StoreConflict)):
            self.store.put(key, "broken", Body(data, lie=1, error=SourceUnavailable("reset")), lambda: record_of(key))

    @rule(key=KEYS, digest=st.sampled_from(["", "md5:00"]))
    def update(self, key: str, digest: str) -> None:
        """A record changes, the bytes do not."""
        record = record_of(key, digest=digest)
        if key in self.model:
            self.store.update(key, record)
            self.model[key] = self.model[key][0], record
        else:
            with pytest.raises(NotFound):
                self.store.update(key, record)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        """Absent is fine."""
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(key=KEYS, offset=st.integers(0, 150_000), length=st.none() | st.integers(0, 150_000))
    def get(self, key: str, offset: int, length: int | None) -> None:
        """A range is a slice."""
        if key not in self.model:
            with pytest.raises(NotFound), self.store.get(key, offset, length):
                pass
            return
        expected = self.model[key][0][offset : None if length is None else offset + length]
        with self.store.get(key, offset, length) as reader:
            assert b"".join(iter(reader.read, b"")) == expected

    @invariant()
    def same(self) -> None:
        """Both hold the same, besides what the dead have left."""
        held = {entry.key: (entry.size, entry.record, entry.partial) for entry in self.store.list()}
        held = {key: found for key, found in held.items() if not (found[2] and key in self.dead)}
        assert held == {key: (len(data), record, False) for key, (data, record) in self.model.items()}

    def teardown(self) -> None:
        """Leave the store empty for the next sequence."""
        for key in self.model:
            self.store.delete(key)


class Deadly(Machine):
    """The same with a writer that is killed at the start, and perhaps another one later."""

    def __init__(self, store: Store, kill: Kill, buried: Callable[[], None]) -> None:
        super().__init__(store)
        self.slay, self.buried = kill, buried

    @initialize(key=KEYS)
    def begin(self, key: str) -> None:
        """There is a dead attempt from the first call on."""
        self.kill(key)

    @precondition(lambda self: len(self.dead) == 1)
    @rule(key=KEYS)
    def kill(self, key: str) -> None:
        """Whoever is killed changes nothing that can be seen; a key that exists is refused before anybody writes."""
        if key not in self.model:
            self.attempts += 1
            self.slay(key, f"k{self.attempts}")
            self.dead.add(f"{key}.k{self.attempts}")

    def teardown(self) -> None:
        """The dead are removed as well, once the store can tell that they are dead."""
        super().teardown()
        self.buried()
        for name in self.dead:
            self.store.delete(name)
        assert list(self.store.list()) == []


def check_against_model(store: Store, sequences: int = 25, steps: int = 20) -> None:
    """Run that many made-up sequences of so many calls, the same each time, on an empty store."""
    _check(lambda: Machine(store), sequences, steps)


def check_deaths_against_model(
    store: Store, kill: Kill, buried: Callable[[], None], sequences: int = 3, steps: int = 10
) -> None:
    """The same with writers that are killed. `buried` waits until the store can tell that they are dead."""
    _check(lambda: Deadly(store, kill, buried), sequences, steps)


def _check(machine: Callable[[], Machine], sequences: int, steps: int) -> None:
    run_state_machine_as_test(
        cast("type[RuleBasedStateMachine]", machine),  # hypothesis calls it, and no more
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
