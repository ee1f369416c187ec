"""Whatever happens to an image, in any order: its promises hold at each moment, and in the end all is well."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.control.support import SETTINGS, World, digest_of, image

from glimpse.api.base import REQUESTED_AT
from glimpse.control.seen import Allowed, FetchWork, StoreView
from glimpse.problems import (
    ChecksumMismatch,
    SourceNotFound,
    SourceUnavailable,
    StoreConflict,
    StoreUnavailable,
    WorkerLost,
)

PROBLEMS = [SourceUnavailable, SourceNotFound, StoreConflict, WorkerLost, ChecksumMismatch]
MAY = (Allowed("import/"),)
STORES = st.sampled_from(["a", "b", "c"])
ACTIONS = st.one_of(
    st.tuples(st.just("edit"), st.integers(0, 3)),
    st.tuples(st.just("stores"), st.sets(STORES, min_size=1)),
    st.tuples(st.just("location"), STORES),
    st.tuples(st.just("succeed"), st.none()),
    st.tuples(st.just("fail"), st.sampled_from(PROBLEMS)),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.just("later"), st.sampled_from([1, 100, 10_000])),
    st.tuples(st.just("reach"), STORES),
    st.tuples(st.just("force"), st.integers()),
    st.tuples(st.just("suspend"), st.booleans()),
    st.tuples(st.just("source"), st.integers(0, 3)),
    st.tuples(st.just("validators"), st.booleans()),
    st.tuples(st.just("touch"), st.none()),
    st.tuples(st.just("refresh"), st.sampled_from([None, {"interval": "1m"}, {"interval": "24h"}])),
    st.tuples(st.just("revisions"), st.tuples(st.integers(1, 3), st.none() | st.integers(1, 4))),
    st.tuples(st.just("damage"), STORES),
    st.tuples(st.just("scrub"), st.booleans()),
    st.tuples(st.just("read"), st.frozensets(st.integers(1, 4))),
)


def act(world: World, action: str, value: Any, number: int) -> None:  # noqa: C901, PLR0912 - one long list
    """Let one thing happen."""
    match action:
        case "edit":
            world.edit(source={"http": {"urls": [f"https://a.example/{value}"]}})
        case "stores":
            location = world.image.spec.source.location
            world.edit(stores=sorted(value | ({location.store} if location else set())))
        case "location":
            stores = sorted({value, *(world.image.spec.stores or ())})
            world.edit(source={"location": {"store": value, "key": "import/x"}}, stores=stores)
        case "suspend":
            world.edit(suspend=value)
        case "refresh":
            world.edit(refresh=value)
        case "revisions":
            world.edit(revisions={"grace": "1s", "keep": value[0], "pin": value[1]})
        case "validators":
            world.validators = value
        case "source":
            world.content = value
        case "touch":
            world.touched += 1
        case "force":
            world.annotate(**{REQUESTED_AT: str(value)})
        case "later":
            world.later(value)
        case "reach":
            away = world.stores[value].unreachable
            broken = None if away else StoreUnavailable("away")
            world.stores[value] = StoreView(value, str(number + 1), unreachable=broken, locations=MAY)
        case "damage":
            world.damaged.update((value, revision) for revision in world.held.get(value, {}))
        case "read":
            world.reading = value
        case "scrub":
            world.scrub = value
            world.later(SETTINGS.scrub.interval + 1 if value else 1)
        case "restart":
            work, world.running = world.running, None
            if work and value:  # it was done, and nobody heard of it
                world.ended_well(work)
        case "succeed" if world.running:
            world.succeed()
        case "fail" if world.running:
            world.fail(value("so it is"))
        case _:
            pass


def check(world: World) -> None:
    """What holds at every moment."""
    status, spec = world.image.status, world.image.spec
    going = {(r.revision, s) for r in status.removals for s in r.stores}
    for entry in status.history:
        for store in entry.stores:
            content = world.contents[store, entry.revision]
            assert (entry.revision, store) in going or digest_of(content) == entry.digest, "a revision has one meaning"
        for store in {*entry.stores, *entry.damaged}:
            known = entry.revision in world.held.get(store, {}) or (entry.revision, store) in going
            assert known, "what is said to be in a store is there, or is on its way out"
    if world.condition("Ready") == ("True", "Stored"):
        assert status.artifact
        entry = next(h for h in status.history if h.revision == status.artifact.revision)
        assert any(entry.revision in world.held.get(n, {}) for n in entry.stores), "what is served is held"
        assert status.artifact.digest == entry.digest
        pin = spec.revisions.pin
        whole = {h.revision for h in status.history for s in h.stores if (h.revision, s) not in going}
        if not spec.suspend and (pin is None or pin in whole):
            assert entry.revision == (pin or status.history[0].revision), "served is what is wanted"
    assert not (world.condition("Stalled") and world.condition("Reconciling"))
    assert len({s.name for s in status.stores}) == len(status.stores)


@settings(max_examples=100, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_whatever_happens_the_served_bytes_are_there_and_all_ends_well(actions: list[tuple[str, Any]]) -> None:
    """Under any history: what is served is held; at rest, the stores hold what is wanted and nothing else."""
    world = World(image({"stores": ["a"], "revisions": {"grace": "1s"}}))
    world.stores = {n: StoreView(n, "0", locations=MAY) for n in "abc"}
    used: dict[int, str] = {}
    for number, (action, value) in enumerate(actions):
        act(world, action, value, number)
        world.step()
        if isinstance(world.running, FetchWork):
            work = world.running
            assert used.setdefault(work.revision, work.spec_hash) == work.spec_hash, "a revision has one meaning"
        check(world)
    world.edit(suspend=False, refresh={"interval": "1h"}, revisions={"grace": "1s"})
    world.stores = {n: StoreView(n, "end", locations=MAY) for n in "abc"}
    world.annotate(**{REQUESTED_AT: "end"})
    for turn in range(9):
        world.scrub = turn % 2 == 1
        world.settle(80)
        world.later(SETTINGS.scrub.interval + 1)
    world.scrub = False
    world.settle()
    assert world.condition("Ready") == ("True", "Stored")
    assert world.condition("Stored") == ("True", "Stored")
    assert (world.condition("Reconciling"), world.condition("Stalled")) == (None, None)
    assert world.image.status.artifact
    assert world.image.status.artifact.digest == world.digest, "the source was looked at"
    revision = world.image.status.artifact.revision
    wanted = set(world.image.spec.stores or ())
    location = world.image.spec.source.location
    assert world.image.status.artifact.location == location
    held = {n: set(revisions) for n, revisions in world.held.items() if revisions}
    assert held == {n: {revision} for n in wanted}
    assert not world.damaged
    world.delete()
    world.settle()
    assert world.gone
    assert not any(world.held.values())
