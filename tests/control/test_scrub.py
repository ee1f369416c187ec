"""Damage to stored bytes: how it is found, and how it is mended."""

from datetime import timedelta

import pytest
from tests.control.support import NOW, SETTINGS, World, ready_world

from glimpse.api.base import FORGET_STORE, REQUESTED_AT
from glimpse.control.seen import FetchWork, LookWork, RemoveWork, StoreView, VerifyWork
from glimpse.problems import SourceNotFound, SourceUnavailable, StoreUnavailable, WorkerLost

LATER = SETTINGS.scrub.interval + 1


def old_world(**spec: object) -> World:
    """An image whose copies were not looked at for long, and whose turn it is."""
    world = ready_world(**spec)
    world.later(LATER)
    world.scrub = True
    return world


def find_damage(world: World, store: str, revision: int = 1) -> None:
    """Let the scrub find that a copy has changed; afterwards it is nobody's turn."""
    world.damaged.add((store, revision))
    for _ in range(9):
        work = world.step().start
        assert isinstance(work, VerifyWork)
        world.running = None
        if (work.store, work.revision) == (store, revision):
            world.scrub = False
            world.step(world.ended_well(work))
            return
        world.step(world.ended_well(work))
        world.running = None
    raise AssertionError("it is never looked at")


class TestWhen:
    """Whose turn it is says the scrubber; what is read says the image."""

    def test_the_oldest_first(self) -> None:
        """Every copy of every revision, once an interval; time and place are kept in status."""
        world = ready_world(stores=["a", "b"], revisions={"keep": 2})
        world.later(LATER)
        world.edit(source={"http": {"urls": ["https://a.example/2"]}})
        world.settle()
        world.scrub = True
        found = []
        while isinstance(world.running or world.step().start, VerifyWork):
            work = world.running
            assert isinstance(work, VerifyWork)
            assert work.digest == world.digests[work.revision]
            found.append((work.store, work.revision))
            world.succeed()
            world.later(1)
        assert found == [("a", 1), ("b", 1)]
        entry = next(h for h in world.image.status.history if h.revision == 1)
        assert set(entry.verified) == {"a", "b"}
        assert entry.verified["a"] < entry.verified["b"]
        world.later(LATER)
        assert world.step().start == VerifyWork(2, "a", world.digests[2])

    def test_nothing_is_said_of_good_copies(self) -> None:
        """One write for each, and nothing else to see."""
        world = old_world()
        before = world.image.status.conditions
        assert isinstance(world.step().start, VerifyWork)
        assert world.image.status.conditions == before
        world.succeed()
        assert world.image.status.conditions == before

    def test_only_at_its_turn(self) -> None:
        """An image does nothing by itself."""
        world = ready_world()
        world.later(LATER)
        assert world.step().start is None
        assert world.again is None

    def test_not_before_an_interval_has_passed(self) -> None:
        """Though somebody thinks that it is its turn."""
        world = ready_world()
        world.scrub = True
        assert world.step().start is None

    def test_what_cannot_be_read_now(self) -> None:
        """A store that is away is left out."""
        world = old_world(stores=["a", "b"])
        world.stores["a"] = StoreView("a", "2", unreachable=StoreUnavailable("away"))
        assert world.step().start == VerifyWork(1, "b", world.digests[1])

    def test_everything_else_is_more_urgent(self) -> None:
        """It is stopped for an edit, for a delete, and for a suspension."""
        for change in ({"source": {"http": {"urls": ["https://a.example/2"]}}}, {"suspend": True}, None):
            world = old_world()
            assert isinstance(world.step().start, VerifyWork)
            if change:
                world.edit(**change)
            else:
                world.delete()
            assert world.step().cancel
            assert not isinstance(world.step().start, VerifyWork)

    def test_a_failure_says_nothing_about_the_bytes(self) -> None:
        """They were not seen: they are looked at another time."""
        world = old_world()
        world.step()
        before = world.image.status
        world.scrub = False
        world.fail(WorkerLost("killed"))
        assert world.image.status == before


class TestMend:
    """From another store, or from the source as long as it has these very bytes."""

    def test_from_another_store(self) -> None:
        """The image stays ready, the damaged copy goes, a good one takes its place."""
        world = old_world(stores=["a", "b"])
        find_damage(world, "a")
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("False", "DataLost")
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        (a, b) = world.image.status.stores
        assert [(c.status, c.reason) for s in (a, b) for c in s.conditions] == [
            ("False", "DataLost"),
            ("True", "Stored"),
        ]
        assert ("Warning", "DataLost", "a: the bytes differ") in world.said
        assert world.running == RemoveWork(stores=("a",), revisions=(1,))
        world.later(60)
        world.settle()
        assert world.condition("Stored") == ("True", "Stored")
        assert world.condition("Reconciling") is None
        assert not world.damaged
        entry = world.image.status.history[0]
        assert (set(entry.stores), entry.damaged) == ({"a", "b"}, ())
        assert entry.verified["a"] > NOW + timedelta(seconds=LATER)

    def test_from_the_source(self) -> None:
        """Asked first whether it has them; then the damaged copy makes room, and the revision keeps its number."""
        world = old_world()
        find_damage(world, "fast")
        assert world.condition("Ready") == ("False", "DataLost")
        assert "no store holds revision 1 whole" in world.message("Ready")
        assert isinstance(world.running, LookWork)
        assert world.held["fast"], "the damaged copy stays until the source has said that it has a good one"
        assert world.succeed().start == RemoveWork(stores=("fast",), revisions=(1,))
        start = world.succeed().start
        assert isinstance(start, FetchWork)
        assert (start.revision, start.expects) == (1, world.digests[1])
        assert world.condition("Ready") == ("False", "DataLost")
        assert world.condition("Reconciling") == ("True", "Transferring")
        world.succeed()
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Reconciling") is None
        assert world.image.status.artifact
        assert world.image.status.artifact.revision == 1
        assert not world.damaged

    def test_the_source_has_other_bytes(self) -> None:
        """A person must act, the damaged copy stays, and force asks again."""
        world = old_world()
        find_damage(world, "fast")
        world.content = 5
        start = world.succeed().start
        assert isinstance(start, FetchWork)
        assert (start.revision, start.expects) == (2, world.digests[1])
        verdict = world.succeed()
        assert (verdict.start, verdict.again) == (None, None)
        assert world.condition("Ready") == ("False", "DataLost")
        assert "the source has other bytes" in world.message("Ready")
        assert (world.condition("Stalled") or ("", ""))[0] == "True"
        assert world.condition("Reconciling") is None
        assert set(world.held["fast"]) == {1}
        world.content = 0
        world.annotate(**{REQUESTED_AT: "now"})
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")

    def test_a_source_that_only_seems_to_have_them(self) -> None:
        """The digest decides: other bytes are never served as this revision."""
        world = old_world()
        find_damage(world, "fast")
        world.succeed()
        world.content = 5
        world.settle()
        assert world.condition("Ready") == ("False", "DataLost")
        assert world.condition("Stalled")
        assert world.condition("Reconciling") is None

    def test_a_source_with_another_date(self) -> None:
        """The same bytes that only look like others are taken, under a number of their own; the damage goes."""
        world = old_world()
        find_damage(world, "fast")
        world.content = 5
        world.succeed()
        world.content = 0
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")
        assert world.image.status.artifact
        assert (world.image.status.artifact.revision, world.image.status.artifact.digest) == (2, world.digests[1])
        assert set(world.held["fast"]) == {2}

    def test_with_refresh_the_new_bytes_are_welcome(self) -> None:
        """Who follows the source gets what it has, as a new revision."""
        world = old_world(refresh={"interval": "8760h"})
        find_damage(world, "fast")
        world.content = 5
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")
        assert world.image.status.artifact
        assert world.image.status.artifact.revision == 2

    @pytest.mark.parametrize("problem", [SourceNotFound("404"), SourceUnavailable("503")], ids=lambda p: p.reason)
    def test_a_source_that_fails(self, problem: SourceNotFound | SourceUnavailable) -> None:
        """Tried again where time can mend it; Ready says what was lost, and what is in the way."""
        world = old_world()
        find_damage(world, "fast")
        verdict = world.fail(problem)
        assert world.condition("Ready") == ("False", "DataLost")
        assert problem.message in world.message("Ready")
        assert bool(world.condition("Stalled")) is problem.permanent
        assert bool(verdict.again) is not problem.permanent
        if verdict.again:
            world.now = verdict.again
            world.settle()
            assert world.condition("Ready") == ("True", "Stored")

    def test_an_edit_leaves_what_was_lost(self) -> None:
        """Other bytes are asked for: the damaged ones go with their revision."""
        world = old_world(revisions={"grace": "0s"})
        find_damage(world, "fast")
        world.content = 5
        world.edit(source={"http": {"urls": ["https://a.example/2"]}})
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")
        assert world.held == {"fast": {2: world.image.status.history[0].spec_hash}}

    def test_forgetting_the_store_that_lost_them(self) -> None:
        """Then nothing is left to mend, and the source gives what it has."""
        world = old_world()
        find_damage(world, "fast")
        world.running = None
        world.stores["fast"] = StoreView("fast", "2", unreachable=StoreUnavailable("gone"))
        world.stores["new"] = StoreView("new", "1")
        world.edit(stores=["new"])
        world.annotate(**{FORGET_STORE: "fast"})
        world.content = 5
        world.settle()
        assert world.image.status.artifact
        assert (world.image.status.artifact.revision, set(world.held["new"])) == (2, {2})

    def test_deleted_with_its_damage(self) -> None:
        """Damaged bytes are bytes of the image."""
        world = old_world()
        find_damage(world, "fast")
        world.content = 5
        world.succeed()
        world.delete()
        world.settle()
        assert world.gone
        assert not world.held["fast"]

    def test_an_older_revision(self) -> None:
        """It cannot be pinned any more, and Ready has no part in it."""
        world = ready_world(revisions={"keep": 2})
        world.edit(source={"http": {"urls": ["https://a.example/2"]}})
        world.settle()
        world.later(LATER)
        world.scrub = True
        find_damage(world, "fast")
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("True", "Stored")
        assert ("Warning", "DataLost", "fast: revision 1: the bytes differ") in world.said
        world.edit(revisions={"keep": 2, "pin": 1})
        world.step()
        assert world.condition("Stalled") == ("True", "InvalidConfiguration")
        assert "kept are: 2." in world.message("Stalled")

    def test_the_pinned_revision(self) -> None:
        """The source has newer bytes: a person chooses another."""
        world = ready_world(revisions={"keep": 2})
        world.edit(source={"http": {"urls": ["https://a.example/2"]}})
        world.settle()
        world.edit(revisions={"keep": 2, "pin": 1})
        world.step()
        world.later(LATER)
        world.scrub = True
        find_damage(world, "fast")
        assert world.condition("Ready") == ("False", "DataLost")
        assert world.condition("Stalled") == ("True", "DataLost")
        assert "unset spec.revisions.pin" in world.message("Ready")
        assert "can be pinned: 2" in world.message("Ready")
        world.edit(revisions={"keep": 2})
        world.step()
        assert world.condition("Ready") == ("True", "Stored")

    def test_the_last_good_copy_is_not_removed(self) -> None:
        """Though its store is no longer named, and its removal was due while it was away."""
        world = old_world(stores=["a", "b"])
        world.stores["a"] = StoreView("a", "2", unreachable=StoreUnavailable("away"))
        world.scrub = False
        world.edit(stores=["b"])
        world.step()
        assert [r.stores for r in world.image.status.removals] == [("a",)]
        world.scrub = True
        find_damage(world, "b")
        world.running = None
        world.stores["a"] = StoreView("a", "3")
        world.later(60)
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")
        assert {n: set(held) for n, held in world.held.items()} == {"a": set(), "b": {1}}
