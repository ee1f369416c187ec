"""Places that others write to, against a dictionary: Hypothesis makes up what they do, and what is read in between.

What was registered is given as it was, or DataLost says that it is another by now; nothing else is ever right.
"""

from collections.abc import Callable
from typing import cast

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from glimpse.problems import DataLost, NotFound
from glimpse.stores import Store
from glimpse.tasks import Record
from glimpse.testing.store_model import BODIES

PLACES = st.sampled_from([f"import/team-a/{name}" for name in ("a", "a.sig", "b/ü c")])
KEYS = st.sampled_from(["6f1c-1", "6f1c-10"])

Write = Callable[[str, bytes | None], None]
Register = Callable[[Store, str, str], Record | None]


class Machine(RuleBasedStateMachine):
    """What others do, what we do, and what a dictionary says to it."""

    def __init__(self, store: Store, write: Write, register: Register, knowing: Callable[[Record], Store]) -> None:
        super().__init__()
        self.store, self.write, self.register_at, self.knowing = store, write, register, knowing
        self.lies: dict[str, tuple[int, bytes]] = {}
        """What lies at a place, and as the how-manieth writing."""
        self.held: dict[str, tuple[str, tuple[int, bytes], Record]] = {}
        self.writings = 0

    @rule(place=PLACES, data=BODIES)
    def lay(self, place: str, data: bytes) -> None:
        """Somebody writes."""
        self.writings += 1
        self.write(place, data)
        self.lies[place] = self.writings, data

    @precondition(lambda self: self.lies)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Somebody removes."""
        place = data.draw(st.sampled_from(sorted(self.lies)))
        self.write(place, None)
        del self.lies[place]

    @rule(place=PLACES, key=KEYS)
    def register(self, place: str, key: str) -> None:
        """We register what lies there, if anything does."""
        if key in self.held:
            return
        if place not in self.lies:
            with pytest.raises(NotFound):
                self.store.locate(place)
            return
        record = self.register_at(self.store, key, place)
        assert record
        self.held[key] = place, self.lies[place], record

    @precondition(lambda self: self.held)
    @rule(data=st.data(), offset=st.integers(0, 150_000), length=st.none() | st.integers(0, 150_000))
    def get(self, data: st.DataObject, offset: int, length: int | None) -> None:
        """A range is a slice of what was registered, or it is lost."""
        key = data.draw(st.sampled_from(sorted(self.held)))
        place, what, record = self.held[key]
        store = self.knowing(record)
        expected = what[1][offset : None if length is None else offset + length]
        if self.lies.get(place) == what:
            assert read(store, key, offset, length) == expected
            assert store.stat(key).size == len(what[1])
        elif expected:  # to give nothing takes no look at what lies there
            with pytest.raises(DataLost):
                read(store, key, offset, length)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        """A registration is removed, and nothing else."""
        self.store.delete(key)
        self.held.pop(key, None)

    @invariant()
    def same(self) -> None:
        """What lies at a place is as long as what was written there, and what does not is not found."""
        for place, (_, data) in self.lies.items():
            assert self.store.locate(place).size == len(data)

    def teardown(self) -> None:
        """Leave nothing for the next sequence."""
        for key in self.held:
            self.store.delete(key)
        for place in self.lies:
            self.write(place, None)


def check_places_against_model(
    store: Store, write: Write, register: Register, knowing: Callable[[Record], Store], *, sequences: int, steps: int
) -> None:
    """Run that many made-up sequences of so many calls, the same each time."""
    run_state_machine_as_test(
        cast("type[RuleBasedStateMachine]", lambda: Machine(store, write, register, knowing)),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def read(store: Store, key: str, offset: int, length: int | None) -> bytes:
    """All of a range."""
    with store.get(key, offset, length) as reader:
        return b"".join(iter(reader.read, b""))
