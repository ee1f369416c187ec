"""What attempts have left in stores: kept as long as the revision in the making may need it, and removed after that."""

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests.control.support import World, image

from glimpse.control.seen import FetchWork, RemoveWork, Result, StoreView, Verdict, Work
from glimpse.problems import Problem, SourceUnavailable, StoreFull, StoreUnavailable, WorkerLost


@dataclass
class Broken(World):
    """A world in which each transfer has left something in each of its stores from its first moment on."""

    left: set[tuple[str, int]] = field(default_factory=set)
    """Stores and revisions."""

    def step(self, result: Result | None = None) -> Verdict:
        """See, decide, begin to write."""
        verdict = super().step(result)
        if isinstance(self.running, FetchWork):
            self.left |= {(name, self.running.revision) for name in self.running.stores}
        return verdict

    def ended_well(self, work: Work, **record: Any) -> Result:
        """What is stored or removed is not left."""
        assert isinstance(work, FetchWork | RemoveWork)
        for name in work.stores:
            of = {work.revision} if isinstance(work, FetchWork) else set(work.revisions)
            self.left -= {one for one in self.left if one[0] == name and (not of or one[1] in of)}
        return super().ended_well(work, **record)


@pytest.mark.parametrize(
    "problem", [WorkerLost("killed"), SourceUnavailable("reset"), StoreUnavailable("away")], ids=lambda p: p.reason
)
def test_the_next_attempt_has_the_same_key(problem: Problem) -> None:
    """After whatever time may mend, the same revision is tried again, so what is left under its key is found."""
    world = Broken()
    for attempt in (1, 2, 3):
        start = world.step().start
        assert isinstance(start, FetchWork)
        assert (start.revision, start.attempt) == (1, attempt)
        world.fail(problem)
        world.later(1e5)
    assert world.left == {("fast", 1)}


@pytest.mark.parametrize("how", ["restart", "suspend"])
def test_who_only_stops_wants_it_later(how: str) -> None:
    """Neither an operator that ends nor a suspended Image says that the bytes are not wanted any more."""
    world = Broken()
    world.step()
    if how == "restart":
        world.running = None
    else:
        world.edit(suspend=True)
        assert world.step().cancel
        assert world.step().start is None
        world.edit(suspend=False)
    start = world.step().start
    assert isinstance(start, FetchWork)
    assert start.revision == 1
    assert world.left == {("fast", 1)}


def test_who_wants_other_bytes_has_it_removed() -> None:
    """A change of the source, and a deletion, remove what is left before anything else is done."""
    world = Broken()
    world.step()
    world.edit(source={"http": {"urls": ["https://b.example/other.img"]}})
    assert world.step().cancel
    assert world.step().start == RemoveWork(stores=("fast",), revisions=(1,))
    world.succeed()
    assert world.left == {("fast", 2)}
    world.delete()
    assert world.step().cancel
    assert world.step().start == RemoveWork(stores=("fast",))
    world.succeed()
    assert world.left == set()


ACTIONS = st.one_of(
    st.tuples(st.just("edit"), st.integers(0, 2)),
    st.tuples(st.just("stores"), st.sets(st.sampled_from(["a", "b", "c"]), min_size=1)),
    st.tuples(st.just("succeed"), st.none()),
    st.tuples(st.just("fail"), st.sampled_from([SourceUnavailable, WorkerLost, StoreFull])),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("later"), st.sampled_from([1, 10_000])),
    st.tuples(st.just("suspend"), st.booleans()),
)


@settings(max_examples=100, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=25), deleted=st.booleans())
def test_whatever_happens_all_is_removed_in_the_end(  # noqa: C901 - one long history
    actions: list[tuple[str, Any]], *, deleted: bool
) -> None:
    """Under any history nothing that a transfer has left stays when all is done."""
    world = Broken(image({"stores": ["a"], "revisions": {"grace": "1s"}}))
    world.stores = {name: StoreView(name, "0") for name in "abc"}
    for action, value in actions:
        match action:
            case "edit":
                world.edit(source={"http": {"urls": [f"https://a.example/{value}"]}})
            case "stores":
                world.edit(stores=sorted(value))
            case "suspend":
                world.edit(suspend=value)
            case "later":
                world.later(value)
            case "restart":
                world.running = None
            case "succeed" if world.running:
                world.succeed()
            case "fail" if world.running:
                world.fail(value("so it is"))
        world.step()
    world.edit(suspend=False)
    if deleted:
        world.delete()
    for _ in range(6):
        if not world.gone:
            world.settle()
            world.later(10_000)
    assert world.gone == deleted
    assert world.left == set()
