"""Looks at the source: when they are due, what they cost, and what comes of what they find."""

from datetime import timedelta

import pytest
from tests.control.support import NOW, World, image, ready_world

from glimpse.api.base import REQUESTED_AT
from glimpse.api.image import Looks
from glimpse.control.draft import share
from glimpse.control.seen import FetchWork, LookWork, RemoveWork, Result
from glimpse.problems import ChecksumMismatch, Problem, SourceNotFound, SourceUnavailable, StoreFull
from glimpse.tasks import Verification

HOUR = timedelta(hours=1)
EVERY = {"refresh": {"interval": "1h"}}


def looks(world: World) -> Looks:
    """The looks as status has them."""
    assert world.image.status.refresh
    return world.image.status.refresh


def served(world: World) -> int:
    """The revision that is served."""
    assert world.image.status.artifact
    return world.image.status.artifact.revision


def due(**spec: object) -> World:
    """An image whose next look is due."""
    world = ready_world(**(EVERY | spec))
    assert looks(world).next_check_time
    world.now = looks(world).next_check_time or world.now
    return world


class TestWhen:
    """One look an interval, spread over many images, and kept over restarts."""

    def test_without_refresh_nobody_looks(self) -> None:
        """Nothing is due, ever."""
        world = ready_world()
        assert world.again is None
        assert world.image.status.refresh is None

    def test_the_first_look_comes_within_an_interval(self) -> None:
        """At a time that depends on the image alone, so a restart does not move it."""
        world = ready_world(**EVERY)
        first = looks(world).next_check_time
        assert first == NOW + HOUR * (0.1 + 0.9 * share("11-22"))
        assert world.again == first
        world.later(60)
        before = world.image.status
        assert world.step().start is None
        assert world.image.status == before

    def test_many_images_are_spread_over_the_interval(self) -> None:
        """Of those that were made at once, each tenth of the interval gets its part."""
        parts = [share(str(n)) for n in range(1000)]
        for tenth in range(10):
            assert 60 < sum(tenth <= part * 10 < tenth + 1 for part in parts) < 140

    def test_then_once_an_interval(self) -> None:
        """Unchanged bytes cost one look and one write, and nothing is said."""
        world = due()
        said, moments = list(world.said), []
        for _ in range(5):
            assert isinstance(world.step().start, LookWork)
            assert world.condition("Reconciling") is None
            verdict = world.succeed()
            assert verdict.start is None
            assert looks(world).last_check_time == world.now
            assert verdict.again
            assert verdict.again == looks(world).next_check_time
            moments.append(verdict.again - world.now)
            world.now = verdict.again
        assert len(set(moments)) == 1
        assert 0.95 * HOUR <= moments[0] <= 1.05 * HOUR
        assert world.said == said
        assert served(world) == 1

    def test_a_shorter_interval_counts_at_once(self) -> None:
        """A look that is further away than the interval was meant for another one."""
        world = ready_world(refresh={"interval": "720h"})
        world.edit(refresh={"interval": "1m"})
        verdict = world.step()
        assert verdict.again
        assert verdict.again - world.now <= timedelta(minutes=1)

    def test_a_clock_that_was_wrong(self) -> None:
        """A look that is years ahead was never meant."""
        world = ready_world(**EVERY)
        world.later(-400 * 86400)
        verdict = world.step()
        assert verdict.again
        assert verdict.again - world.now <= HOUR

    def test_an_interval_of_a_year_is_kept(self) -> None:
        """A far time is not always a wrong one."""
        world = ready_world(refresh={"interval": "8760h"})
        assert world.step().start is None
        assert world.again
        assert world.again - world.now > timedelta(days=30)

    def test_force_looks_at_once(self) -> None:
        """Once for each new value."""
        world = ready_world(**EVERY)
        world.annotate(**{REQUESTED_AT: "now"})
        assert isinstance(world.step().start, LookWork)
        assert world.image.status.last_handled_reconcile_at == "now"
        world.succeed()
        assert world.step().start is None

    def test_suspended_images_are_not_looked_at(self) -> None:
        """Until they are released."""
        world = due()
        world.edit(suspend=True)
        verdict = world.step()
        assert (verdict.start, verdict.again) == (None, None)
        world.edit(suspend=False)
        assert isinstance(world.step().start, LookWork)

    def test_taken_back(self) -> None:
        """Without `refresh`, what it left in status goes; a look that runs is stopped."""
        world = due()
        world.step()
        world.edit(refresh=None)
        assert world.step().cancel
        assert world.step().start is None
        assert world.image.status.refresh is None

    def test_with_a_digest_there_is_nothing_to_look_for(self) -> None:
        """The API server refuses both; where it did not, the digest counts."""
        world = ready_world(**EVERY, checksum={"digest": "sha256:" + "a" * 64})
        assert world.again is None


class TestChanged:
    """Changed bytes are a new revision, verified before it is served."""

    @pytest.mark.parametrize("same", [True, False])
    def test_of_an_unpacked_file_the_download_is_known(self, same: bool) -> None:
        """The length and the digest of what is stored say nothing of what the server has."""
        world = World(image(EVERY))
        world.step()
        made = {"source_digest": "sha256:" + "c" * 64, "source_format": "raw.xz"}
        world.succeed(**made)
        world.now = looks(world).next_check_time or world.now
        world.content = 1
        look = world.step().start
        assert isinstance(look, LookWork)
        assert look.size is None
        start = world.succeed().start
        assert isinstance(start, FetchWork)
        assert start.unless == made["source_digest"]
        work, world.running = world.running, None
        assert isinstance(work, FetchWork)
        result = world.ended_well(work, **made)
        world.step(Result(work, record=result.record, unchanged=True) if same else result)
        assert served(world) == (1 if same else 2)

    def test_what_comes_again_is_proven_again(self) -> None:
        """With another key than before, say."""
        world = World(image(EVERY | {"checksum": {"url": "https://a.example/SUMS"}}))
        world.validators = False
        world.step()
        proof = Verification(digest="sha256:" + "a" * 64, file="https://a.example/SUMS", key="A" * 40)
        world.succeed(verification=proof)
        world.now = looks(world).next_check_time or world.now
        world.step()
        world.succeed()
        world.succeed(verification=proof.model_copy(update={"key": "B" * 40}))
        assert served(world) == 1
        artifact = world.image.status.artifact
        assert artifact
        assert artifact.verification
        assert artifact.verification.key == "B" * 40

    def test_a_new_revision(self) -> None:
        """The old one is served until it is there: Ready, Outdated, Reconciling."""
        world = due()
        world.content = 1
        assert isinstance(world.step().start, LookWork)
        start = world.succeed().start
        assert isinstance(start, FetchWork)
        assert (start.revision, start.stores, start.unless) == (2, ("fast",), "sha256:" + "a" * 64)
        assert served(world) == 1
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Outdated") == ("True", "NewRevisionFound")
        assert world.condition("Reconciling") == ("True", "Transferring")
        world.succeed()
        assert served(world) == 2
        assert world.condition("Outdated") is None
        assert world.condition("Reconciling") is None
        world.later(4000)
        world.settle()
        assert set(world.held["fast"]) == {2}

    def test_the_same_bytes_again_are_no_revision(self) -> None:
        """A server without validators is fetched each time; only its words and the time are new."""
        world = ready_world(**EVERY)
        before = world.image.status
        for turn in range(2, 6):
            world.validators = turn == 5
            world.now = looks(world).next_check_time or world.now
            world.settle()
            assert served(world) == 1
            assert world.held == {"fast": {1: before.artifact.spec_hash if before.artifact else ""}}
            assert world.image.status.pending is None
        artifact = world.image.status.artifact
        assert artifact
        assert before.artifact
        assert (artifact.etag, artifact.stored_at) == ('"0"', before.artifact.stored_at)
        assert [e[1] for e in world.said] == ["Stored"]

    def test_bytes_that_were_stored_twice_are_removed(self) -> None:
        """An attempt whose answer was lost may have committed them: they are recognised all the same."""
        world = due()
        world.validators = False
        world.step()
        start = world.succeed().start
        assert isinstance(start, FetchWork)
        unaware = FetchWork(start.revision, start.spec_hash, start.stores)
        world.ended_well(unaware)
        assert set(world.held["fast"]) == {1, 2}
        assert world.succeed().start == RemoveWork(stores=("fast",), revisions=(2,))
        world.settle()
        assert (served(world), set(world.held["fast"])) == (1, {1})

    def test_a_restart_goes_on_with_what_was_found(self) -> None:
        """The look is not repeated, and the number stays."""
        world = due()
        world.content = 1
        world.step()
        first = world.succeed().start
        world.running = None
        assert world.step().start == first

    def test_an_edit_is_more_urgent(self) -> None:
        """What was found under the old spec is dropped."""
        world = due()
        world.content = 1
        world.step()
        world.succeed()
        world.edit(source={"http": {"urls": ["https://b.example/x"]}})
        assert world.step().cancel
        world.settle()
        assert served(world) == 3
        world.later(4000)
        world.settle()
        assert set(world.held["fast"]) == {3}

    def test_an_answer_for_an_old_spec_says_nothing(self) -> None:
        """The look ended in the moment of the edit."""
        world = due()
        work = world.step().start
        assert work
        world.content = 1
        result = world.ended_well(work)
        world.edit(source={"http": {"urls": ["https://b.example/x"]}})
        world.running = None
        start = world.step(result).start
        assert isinstance(start, FetchWork)
        assert start.unless is None


class TestFailures:
    """A failed renewal breaks nothing, and is never given up."""

    @pytest.mark.parametrize("problem", [SourceNotFound("404"), SourceUnavailable("503")], ids=lambda p: p.reason)
    def test_a_look_that_fails(self, problem: Problem) -> None:
        """Ready as before, Reconciling with the reason and the time of the next look, never Stalled or Outdated."""
        world = due()
        world.step()
        verdict = world.fail(problem)
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("True", "Stored")
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert (world.condition("Stalled"), world.condition("Outdated")) == (None, None)
        assert verdict.again
        assert f"{verdict.again:%Y-%m-%dT%H:%M:%SZ}" in world.message("Reconciling")
        assert problem.reason in world.message("Reconciling")
        assert ("Warning", problem.reason, f"the source: {problem.message}") in world.said
        wait = verdict.again - world.now
        assert wait >= 0.95 * HOUR if problem.permanent else wait < timedelta(minutes=1)
        world.now = verdict.again
        assert isinstance(world.step().start, LookWork)
        world.succeed()
        assert world.condition("Reconciling") is None
        assert looks(world).failure is None

    def test_a_vendor_out_of_step(self) -> None:
        """New bytes whose checksum does not fit yet are tried again at the next look."""
        world = due()
        world.content = 1
        world.step()
        world.succeed()
        verdict = world.fail(ChecksumMismatch("SHA256SUMS has another"))
        assert served(world) == 1
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Outdated") == ("True", "NewRevisionFound")
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert "looked at again at" in world.message("Reconciling")
        assert world.condition("Stalled") is None
        assert verdict.again
        assert 0.95 * HOUR <= verdict.again - world.now <= 1.05 * HOUR
        world.now = verdict.again
        start = world.step().start
        assert isinstance(start, FetchWork)
        assert (start.revision, start.attempt) == (2, 2)
        world.succeed()
        assert served(world) == 2

    def test_a_vendor_who_takes_it_back(self) -> None:
        """The old bytes are recognised, and nothing is left of the try."""
        world = due()
        world.content = 1
        world.step()
        world.succeed()
        verdict = world.fail(ChecksumMismatch("SHA256SUMS has another"))
        world.content = 0
        world.now = verdict.again or world.now
        world.settle()
        assert served(world) == 1
        assert world.image.status.pending is None
        assert (world.condition("Outdated"), world.condition("Reconciling")) == (None, None)
        assert set(world.held["fast"]) == {1}

    def test_the_first_import_too(self) -> None:
        """With `refresh` no failure of the source is a dead end: what the vendor mends is found."""
        world = World(image(EVERY))
        world.step()
        verdict = world.fail(SourceNotFound("404"))
        assert world.condition("Ready") == ("False", "SourceNotFound")
        assert world.condition("Stalled") is None
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert verdict.again
        world.now = verdict.again
        world.settle()
        assert served(world) == 1

    def test_a_full_store_fails_the_store(self) -> None:
        """The new revision waits for room; the old one is served."""
        world = due()
        world.content = 1
        world.step()
        start = world.succeed().start
        assert start
        world.fail(StoreFull("no room"))
        assert served(world) == 1
        assert world.condition("Outdated") == ("True", "NewRevisionFound")
        world.later(1000)
        assert isinstance(world.step().start, FetchWork)
