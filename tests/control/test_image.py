"""Decisions about images: the table of conditions, and what is started, cancelled and removed."""

from datetime import timedelta
from typing import Any

import pytest
from tests.control.support import DIGEST, NOW, SETTINGS, URL, World, image, make_record, ready_world

from glimpse.api.base import FORGET_STORE, REQUESTED_AT
from glimpse.api.image import Transfer
from glimpse.control.draft import backoff, spec_hash
from glimpse.control.image import decide
from glimpse.control.keep import CROWD
from glimpse.control.seen import FetchWork, RemoveWork, Result, Seen, StoreView
from glimpse.control.slots import Place
from glimpse.problems import (
    REASONS,
    ChecksumMismatch,
    DataLost,
    Problem,
    SecretNotReadable,
    SourceNotFound,
    SourceUnauthorized,
    SourceUnavailable,
    StoreConflict,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    TooLarge,
    WorkerLost,
)
from glimpse.settings import Retries

OTHER = {"http": {"urls": ["https://a.example/other.qcow2"]}}


class TestFirstRevision:
    """From nothing to Ready."""

    def test_the_finalizer_comes_first(self) -> None:
        """No byte is stored for an object that could vanish unseen."""
        world = World(image(finalizer=False))
        verdict = world.step()
        assert verdict.finalizer is True
        assert verdict.start is None

    def test_pending_is_written_before_the_first_put(self) -> None:
        """The status that goes with the start names the revision and the stores."""
        world = World()
        verdict = world.step()
        assert verdict.start == FetchWork(1, spec_hash(world.image.spec), ("fast",))
        assert verdict.status.pending
        assert (verdict.status.pending.revision, verdict.status.pending.stores) == (1, ("fast",))
        assert world.condition("Ready") == ("False", "Progressing")
        assert world.condition("Reconciling") == ("True", "Transferring")
        assert world.condition("Stalled") is None

    def test_a_conversion_says_so(self) -> None:
        """The bytes have come, and are made into others."""
        world = World(image({"format": {"convertTo": "raw"}}))
        world.step()
        assert world.condition("Reconciling") == ("True", "Transferring")
        world.progress = Transfer(stage="Converting", started_at=NOW, bytes_done=5, bytes_total=10, percent=50)
        world.step()
        assert world.condition("Reconciling") == ("True", "Converting")
        assert world.image.status.transfer == world.progress

    def test_waiting_for_a_slot_is_queued(self) -> None:
        """An image that waits for its turn says so, and where it is."""
        world = World(queued=Place(3, 12, "one of 8 transfers to end"))
        world.step()
        assert world.condition("Reconciling") == ("True", "Queued")
        assert world.message("Reconciling") == "place 3 of 12: waiting for one of 8 transfers to end"

    def test_done(self) -> None:
        """Done: Ready and Stored, nothing else, and two status writes in all."""
        world = World()
        world.step()
        world.succeed()
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("True", "Stored")
        assert world.condition("Reconciling") is None
        assert world.condition("Stalled") is None
        before = world.image.status
        world.step()
        assert world.image.status == before
        artifact = world.image.status.artifact
        assert artifact
        assert artifact.url == "https://gate/v1/namespaces/team-a/images/debian/revisions/1?uid=11-22"
        assert world.image.status.observed_generation == 1
        assert world.image.status.summary
        assert world.image.status.summary.stores == "1/1"
        assert [e[:2] for e in world.said] == [("Normal", "Stored")]

    def test_running_work_goes_on(self) -> None:
        """Nothing is started twice."""
        world = World()
        world.step()
        verdict = world.step()
        assert verdict.start is None
        assert not verdict.cancel

    def test_restart_starts_the_same_revision_again(self) -> None:
        """After a lost operator the same key is tried: what was committed under it is adopted."""
        world = World()
        world.step()
        world.running = None
        verdict = world.step()
        assert isinstance(verdict.start, FetchWork)
        assert verdict.start.revision == 1

    def test_a_checksum_is_proven(self) -> None:
        """SourceVerified says what was proven."""
        world = ready_world(checksum={"digest": DIGEST})
        assert world.condition("SourceVerified") == ("True", "DigestMatched")
        assert ready_world().condition("SourceVerified") is None


PERMANENT = [r for r in REASONS.values() if r.permanent]
PASSING = [r for r in REASONS.values() if not r.permanent and r is not REASONS["NotFound"]]


class TestFailures:
    """Every reason of the API, by what to do about it."""

    @pytest.mark.parametrize("problem", PERMANENT, ids=lambda p: p.reason)
    def test_a_person_must_act(self, problem: type[Problem]) -> None:
        """Stalled, and nothing is tried again by itself."""
        world = World()
        world.step()
        verdict = world.fail(problem("it is so"))
        assert world.condition("Ready") == ("False", problem.reason)
        assert world.condition("Stalled") == ("True", problem.reason)
        assert world.condition("Reconciling") is None
        assert verdict.start is None
        assert verdict.again is None
        assert world.message("Ready") == "it is so"
        assert world.said == [("Warning", problem.reason, "it is so")]
        world.later(1e6)
        assert world.step().start is None

    @pytest.mark.parametrize("problem", PASSING, ids=lambda p: p.reason)
    def test_time_can_mend(self, problem: type[Problem]) -> None:
        """Reconciling with the time of the next attempt, which then comes."""
        world = World()
        world.step()
        verdict = world.fail(problem("it is so"))
        assert world.condition("Ready") == ("False", problem.reason)
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert world.condition("Stalled") is None
        assert verdict.again
        assert "it is so; attempt 2 at 2030-01-01T" in world.message("Reconciling")
        assert world.step().start is None
        world.now = verdict.again
        start = world.step().start
        assert isinstance(start, FetchWork)
        assert start.attempt == 2

    def test_retry_after_is_honoured(self) -> None:
        """The server's wish counts when it is longer."""
        world = World()
        world.step()
        verdict = world.fail(SourceUnavailable("busy", retry_after=300))
        assert verdict.again == NOW + timedelta(seconds=300)

    def test_backoff_grows_to_its_cap_with_jitter(self) -> None:
        """Doubled each time, within a fifth, never over the cap by more than that."""
        retries = Retries(base=5, cap=600)
        waits = [backoff(retries, n, "seed") for n in range(1, 30)]
        for n, wait in enumerate(waits):
            assert 0.8 * min(600, 5 * 2**n) <= wait <= 1.2 * min(600, 5 * 2**n)
        assert backoff(retries, 3, "one") != backoff(retries, 3, "two")

    @pytest.mark.parametrize("cause", ["spec", "force", "references"])
    def test_stalled_ends_when_its_cause_may_have_changed(self, cause: str) -> None:
        """The spec, the force annotation or a referenced object; nothing else."""
        source = {"http": {"urls": [URL], "secretRef": {"name": "login"}}}
        world = World(image({"source": source}))
        world.step()
        verdict = world.fail(SourceUnauthorized("401"), references="one")
        assert verdict.look
        assert verdict.again == NOW + timedelta(seconds=SETTINGS.secret_interval)
        world.references = "one"
        assert world.step().start is None
        if cause == "spec":
            world.edit(title="new")
        elif cause == "force":
            world.annotate(**{REQUESTED_AT: "now"})
        else:
            world.references = "two"
        assert isinstance(world.step().start, FetchWork)
        assert world.image.status.last_handled_reconcile_at == ("now" if cause == "force" else None)

    def test_a_secret_is_looked_at_once_a_minute(self) -> None:
        """A Secret that is not there yet is not watched: its version is compared."""
        world = World(image({"source": {"http": {"urls": [URL], "secretRef": {"name": "login"}}}}))
        world.step()
        for _ in range(12):
            verdict = world.fail(SecretNotReadable("missing"), references="missing")
            assert verdict.again
            assert verdict.again - world.now <= timedelta(seconds=SETTINGS.secret_interval)
            assert verdict.look
            world.later(61)
            assert world.step().start

    def test_three_crashes_need_a_person(self) -> None:
        """A worker that dies on the same bytes three times will die again."""
        world = World()
        for _ in range(3):
            world.step()
            world.fail(WorkerLost("killed by signal 9"), crashed=True)
            world.later(1000)
        assert world.condition("Stalled") == ("True", "WorkerCrashed")
        assert world.step().start is None

    def test_a_lost_runner_is_no_crash(self) -> None:
        """Workers that died with their parent say nothing about the bytes."""
        world = World()
        for _ in range(5):
            world.step()
            world.fail(WorkerLost("the runner was lost"))
            world.later(1000)
        assert world.step().start

    def test_a_conflict_that_stays_takes_the_next_number(self) -> None:
        """Other bytes were committed under this key: the number is used up."""
        world = World()
        for _ in range(2):
            start = world.step().start
            assert start
            world.running = None
            conflict = StoreConflict("other bytes")
            world.step(Result(start, problem=conflict, failed={"fast": conflict}))
            world.later(1000)
        world.step()
        assert isinstance(world.running, FetchWork)
        assert world.running.revision == 2


class TestStores:
    """Which stores, and what becomes of the others."""

    def test_no_default(self) -> None:
        """Without a store there is nothing to do, and the message says the way out."""
        world = World(defaults=())
        assert world.step().start is None
        assert world.condition("Stalled") == ("True", "InvalidConfiguration")
        assert "spec.stores" in world.message("Stalled")
        world.defaults = ("fast",)
        assert world.step().start

    def test_two_defaults_are_no_choice(self) -> None:
        """Never a guess."""
        world = World(defaults=("fast", "other"))
        assert world.step().start is None
        assert world.condition("Ready") == ("False", "InvalidConfiguration")
        assert "fast, other" in world.message("Ready")

    def test_a_default_that_changes_moves_nothing(self) -> None:
        """The choice is kept in status."""
        world = ready_world()
        world.stores["other"] = StoreView("other", "1")
        for defaults in (("other",), (), ("fast", "other")):
            world.defaults = defaults
            before = world.image.status
            assert world.step().start is None
            assert world.image.status == before

    def test_unknown_store(self) -> None:
        """Stalled until it is created."""
        world = World(image({"stores": ["nowhere"]}))
        assert world.step().start is None
        assert world.condition("Stalled") == ("True", "StoreNotFound")
        assert "nowhere" in world.message("Stalled")
        world.stores["nowhere"] = StoreView("nowhere", "1")
        assert world.step().start

    def test_refused_store(self) -> None:
        """A store that the namespace may not use is a person's matter."""
        world = World(stores={"fast": StoreView("fast", "1", refused=StoreRefused("not for you"))})
        assert world.step().start is None
        assert world.condition("Stalled") == ("True", "StoreRefused")

    def test_unreachable_store_is_waited_for(self) -> None:
        """Its return starts the transfer, without a clock."""
        world = World(stores={"fast": StoreView("fast", "1", unreachable=StoreUnavailable("away"))})
        assert world.step().start is None
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert world.condition("Ready") == ("False", "StoreUnavailable")
        world.stores["fast"] = StoreView("fast", "2")
        assert world.step().start

    def test_one_store_of_two_fails_for_a_time(self) -> None:
        """Ready by the one, the other is filled later from it, not from the internet."""
        world = World(image({"stores": ["fast", "slow"]}))
        world.stores["slow"] = StoreView("slow", "1")
        start = world.step().start
        assert isinstance(start, FetchWork)
        assert start.stores == ("fast", "slow")
        stored = {"fast": world.ended_well(FetchWork(1, start.spec_hash, ("fast",))).stored["fast"]}
        world.running = None
        verdict = world.step(
            Result(start, record=make_record(start), stored=stored, failed={"slow": StoreFull("no room")})
        )
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("False", "StoreFull")
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert verdict.again
        world.now = verdict.again
        copy = world.step().start
        assert copy == FetchWork(1, start.spec_hash, ("slow",), copy_from="fast", expects=DIGEST)
        world.succeed()
        assert world.condition("Stored") == ("True", "Stored")
        assert world.image.status.summary
        assert world.image.status.summary.stores == "2/2"
        assert world.image.status.history[0].stores == ("fast", "slow")

    def test_one_store_of_two_fails_for_good(self) -> None:
        """Ready by the one, Stalled by the other, until that store changes."""
        world = World(image({"stores": ["fast", "slow"]}))
        world.stores["slow"] = StoreView("slow", "1")
        start = world.step().start
        assert isinstance(start, FetchWork)
        stored = world.ended_well(FetchWork(1, start.spec_hash, ("fast",))).stored
        world.running = None
        world.step(Result(start, record=make_record(start), stored=stored, failed={"slow": TooLarge("over 1 GiB")}))
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("False", "TooLarge")
        assert world.condition("Stalled") == ("True", "TooLarge")
        world.later(1e6)
        assert world.step().start is None
        world.stores["slow"] = StoreView("slow", "2")
        assert world.step().start == FetchWork(1, start.spec_hash, ("slow",), copy_from="fast", expects=DIGEST)

    def test_all_stores_fail(self) -> None:
        """Then their failures are the image's."""
        world = World()
        start = world.step().start
        assert start
        world.running = None
        full = StoreFull("no room")
        verdict = world.step(Result(start, problem=full, failed={"fast": full}))
        assert world.condition("Ready") == ("False", "StoreFull")
        assert verdict.again
        assert verdict.status.pending
        assert verdict.status.pending.failure is None

    def test_changed_stores_copy_then_remove(self) -> None:
        """The only copy is never removed before another is complete."""
        world = ready_world()
        world.stores["slow"] = StoreView("slow", "1")
        world.edit(stores=["slow"])
        assert world.step().start == FetchWork(
            1, spec_hash(world.image.spec), ("slow",), copy_from="fast", expects=DIGEST
        )
        assert world.condition("Ready") == ("True", "Stored")
        assert world.succeed().again == world.now  # to look whether somebody reads it there
        assert world.step().start == RemoveWork(stores=("fast",), revisions=(1,))
        world.settle()
        assert world.held == {"fast": {}, "slow": {1: spec_hash(world.image.spec)}}
        assert [s.name for s in world.image.status.stores] == ["slow"]

    def test_a_copy_waits_for_its_origin(self) -> None:
        """While no store that holds the bytes can be reached, nothing is fetched from the internet."""
        world = ready_world()
        world.stores["slow"] = StoreView("slow", "1")
        world.stores["fast"] = StoreView("fast", "2", unreachable=StoreUnavailable("away"))
        world.edit(stores=["fast", "slow"])
        assert world.step().start is None

    def test_a_failed_copy_is_the_stores_failure(self) -> None:
        """The image stays ready."""
        world = ready_world()
        world.stores["slow"] = StoreView("slow", "1")
        world.edit(stores=["fast", "slow"])
        world.step()
        world.fail(StoreUnavailable("the origin is away"))
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("False", "StoreUnavailable")


class TestRevisions:
    """Changed bytes are a new revision; the old one is served until that is verified."""

    def test_a_changed_source_is_a_new_revision(self) -> None:
        """Ready and Outdated and Reconciling, until the new one is there."""
        world = ready_world()
        world.edit(source=OTHER)
        start = world.step().start
        assert start == FetchWork(2, spec_hash(world.image.spec), ("fast",))
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Outdated") == ("True", "NewRevisionWanted")
        assert world.condition("Reconciling") == ("True", "Transferring")
        assert world.image.status.artifact
        assert world.image.status.artifact.revision == 1
        world.succeed()
        assert world.image.status.artifact.revision == 2
        assert world.condition("Outdated") is None
        assert world.condition("Reconciling") is None

    def test_a_bad_edit_breaks_nobody(self) -> None:
        """The old revision stays served when the new one fails for good; the edit taken back ends it."""
        world = ready_world()
        source = world.image.spec.source.dump()
        world.edit(source=OTHER)
        world.step()
        world.fail(SourceNotFound("404"))
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Outdated") == ("True", "NewRevisionWanted")
        assert world.condition("Stalled") == ("True", "SourceNotFound")
        world.edit(source=source)
        world.settle()
        assert world.condition("Stalled") is None
        assert world.condition("Outdated") is None
        assert world.held == {"fast": {1: spec_hash(world.image.spec)}}

    def test_changed_words_move_no_byte(self) -> None:
        """Title, tags, properties, visibility: only the status is looked over."""
        world = ready_world()
        for change in ({"title": "x"}, {"tags": ["a"]}, {"properties": {"a": "b"}}, {"visibility": "shared"}):
            world.edit(**change)
            assert world.step().start is None
            assert world.condition("Ready") == ("True", "Stored")
            assert world.image.status.observed_generation == world.image.metadata.generation

    def test_another_mirror_of_pinned_bytes_moves_no_byte(self) -> None:
        """With a digest, the digest is what decides about the bytes."""
        world = ready_world(checksum={"digest": DIGEST})
        world.edit(source=OTHER)
        assert world.step().start is None
        assert world.condition("Outdated") is None

    def test_a_digest_that_the_stored_bytes_have_moves_no_byte(self) -> None:
        """What we computed ourselves need not be fetched again to be compared."""
        world = ready_world()
        world.edit(checksum={"digest": DIGEST})
        assert world.step().start is None
        assert world.condition("SourceVerified") == ("True", "DigestMatched")
        world.edit(checksum={"digest": "sha256:" + "b" * 64})
        assert isinstance(world.step().start, FetchWork)

    def test_an_edit_cancels_what_nobody_wants_any_more(self) -> None:
        """Then its leftovers go, then the new bytes come under a new number."""
        world = World()
        world.step()
        world.edit(source=OTHER)
        verdict = world.step()
        assert verdict.cancel
        assert verdict.start is None
        verdict = world.step()
        assert verdict.start == RemoveWork(stores=("fast",), revisions=(1,))
        assert isinstance(world.succeed().start, FetchWork)
        assert isinstance(world.running, FetchWork)
        assert world.running.revision == 2

    def test_an_answer_for_an_old_spec_is_not_served(self) -> None:
        """It ended in the moment of the edit: what it stored goes."""
        world = World()
        work = world.step().start
        assert work
        world.edit(source=OTHER)
        world.running = None
        verdict = world.step(world.ended_well(work))
        assert verdict.status.artifact is None
        assert verdict.start == RemoveWork(stores=("fast",), revisions=(1,))
        world.settle()
        assert world.held == {"fast": {2: spec_hash(world.image.spec)}}

    def test_an_old_revision_goes_after_its_grace(self) -> None:
        """It stays in history and in the store until then."""
        world = ready_world(revisions={"keep": 1, "grace": "1h"})
        world.edit(source=OTHER)
        verdict = world.settle()
        assert [h.revision for h in verdict.status.history] == [2, 1]
        assert verdict.again == NOW + timedelta(hours=1)
        assert set(world.held["fast"]) == {1, 2}
        world.later(3601)
        world.settle()
        assert set(world.held["fast"]) == {2}
        assert [h.revision for h in world.image.status.history] == [2]
        assert world.image.status.removals == ()

    @pytest.mark.parametrize("grace", ["0s", "1h"])
    def test_what_is_read_stays(self, grace: str) -> None:
        """A revision that a gateway reads goes when that is over, and once a day has passed in any case."""
        for seconds, reading in ((60, frozenset[int]()), (SETTINGS.reader_grace, frozenset({1}))):
            world = ready_world(revisions={"keep": 1, "grace": grace})
            world.reading = frozenset({1})
            world.edit(source=OTHER)
            world.settle()
            world.later(3600 if grace == "1h" else 0)
            verdict = world.settle()
            assert set(world.held["fast"]) == {1, 2}
            assert verdict.again == world.now + timedelta(seconds=15)
            assert world.condition("Ready") == ("True", "Stored")
            assert world.condition("Reconciling") is None
            world.later(seconds)
            world.reading = reading
            world.settle()
            assert set(world.held["fast"]) == {2}

    def test_what_is_read_is_not_waited_for(self) -> None:
        """With its image it goes at once, and so does what is damaged, and what is too much to be kept."""
        world = ready_world()
        world.reading = frozenset({1})
        world.delete()
        world.settle()
        assert (world.gone, world.held["fast"]) == (True, {})
        world = ready_world(revisions={"grace": "0s"})
        world.reading = frozenset(range(1, 50))
        for n in range(45):
            world.edit(source={"http": {"urls": [f"https://a.example/{n}"]}})
            world.settle()
        assert len(world.held["fast"]) == CROWD

    def test_keep_keeps(self) -> None:
        """Kept revisions stay; a raised number within the grace saves one."""
        world = ready_world(revisions={"keep": 2, "grace": "1h"})
        for n in range(3):
            world.edit(source={"http": {"urls": [f"https://a.example/{n}"]}})
            world.settle()
        world.edit(revisions={"keep": 3, "grace": "1h"})
        world.settle()
        world.later(3601)
        world.settle()
        assert set(world.held["fast"]) == {2, 3, 4}

    def test_a_copy_that_meets_other_bytes_replaces_them(self) -> None:
        """What is served was verified; what lies under its key elsewhere was not."""
        world = ready_world()
        world.stores["slow"] = StoreView("slow", "1")
        world.edit(stores=["fast", "slow"])
        start = world.step().start
        assert start
        world.running = None
        verdict = world.step(Result(start, failed={"slow": StoreConflict("other bytes")}))
        assert verdict.again == world.now
        world.step()
        assert world.running == RemoveWork(stores=("slow",), revisions=(1,))
        assert world.succeed().start == start

    def test_many_edits_stay_within_the_bounds_of_a_status(self) -> None:
        """A history that grows too long loses its grace, and one that cannot shrink holds up what is new."""
        world = ready_world(revisions={"grace": "700h"})
        for n in range(60):
            world.edit(source={"http": {"urls": [f"https://a.example/{n}"]}})
            world.settle()
            assert len(world.image.status.history) <= 40
        assert world.condition("Ready") == ("True", "Stored")
        fast = world.stores["fast"]
        for n in range(20):
            world.edit(stores=["fast"], source={"http": {"urls": [f"https://b.example/{n}"]}})
            world.stores["fast"] = fast
            world.step()
            world.stores["fast"] = StoreView("fast", "1", unreachable=StoreUnavailable("away"))
            if world.running:
                world.succeed()
            assert len(world.image.status.history) <= 40
            assert len(world.image.status.removals) <= 128

    def test_many_wrong_stores_leave_no_trace(self) -> None:
        """Names that came to nothing are forgotten."""
        world = World(image({"stores": [f"a{n}" for n in range(8)]}))
        world.step()
        for word in "bcd":
            world.edit(stores=[f"{word}{n}" for n in range(8)])
            world.step()
        assert len(world.image.status.stores) == 8

    def test_what_a_server_says_is_cut(self) -> None:
        """A status that the API server refuses would never be written."""
        world = World()
        world.step()
        world.succeed(etag="x" * 5000, last_modified="y" * 100)
        assert world.image.status.artifact
        assert (world.image.status.artifact.etag, world.image.status.artifact.last_modified) == (None, None)


class TestOtherRoads:
    """Suspend, delete, protected, forget."""

    def test_suspend_stops_and_keeps(self) -> None:
        """What runs is cancelled, what is served stays served."""
        world = ready_world()
        world.edit(source=OTHER)
        world.step()
        world.edit(suspend=True)
        assert world.step().cancel
        assert world.step().start is None
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Reconciling") is None
        assert world.image.status.observed_generation == 3
        world.edit(suspend=False)
        assert isinstance(world.step().start, FetchWork)

    def test_delete_removes_from_every_store_then_lets_go(self) -> None:
        """The finalizer goes last."""
        world = ready_world()
        world.delete()
        verdict = world.step()
        assert verdict.start == RemoveWork(stores=("fast",))
        assert verdict.finalizer is None
        verdict = world.succeed()
        assert verdict.finalizer is False
        assert world.held == {"fast": {}}

    def test_delete_of_what_never_began(self) -> None:
        """Nothing was put anywhere."""
        world = World(defaults=())
        world.step()
        world.delete()
        assert world.step().finalizer is False

    def test_delete_cancels_a_transfer(self) -> None:
        """Clean-up begins when the worker is dead."""
        world = World()
        world.step()
        world.delete()
        verdict = world.step()
        assert verdict.cancel
        assert verdict.start is None
        assert world.step().start == RemoveWork(stores=("fast",))

    def test_retain(self) -> None:
        """The bytes stay and are marked."""
        world = ready_world(deletionPolicy="Retain")
        world.delete()
        assert world.step().start == RemoveWork(stores=("fast",), retain=True)

    def test_delete_waits_for_a_store_that_is_away(self) -> None:
        """Tried again, with a message that says how to let go."""
        world = ready_world()
        world.delete()
        world.step()
        verdict = world.fail(StoreUnavailable("away"))
        assert verdict.finalizer is None
        assert verdict.again
        assert FORGET_STORE in world.message("Reconciling")
        world.now = verdict.again
        assert world.step().start == RemoveWork(stores=("fast",))

    def test_delete_with_a_store_that_is_gone_waits_for_a_word(self) -> None:
        """Bytes are let go only if somebody says so."""
        world = ready_world()
        world.stores.clear()
        world.delete()
        assert world.step().finalizer is None
        assert "no ImageStore 'fast'" in world.message("Reconciling")
        world.annotate(**{FORGET_STORE: "fast"})
        assert world.step().finalizer is False

    def test_protected_is_not_removed(self) -> None:
        """Where the admission policy is missing, the finalizer keeps the bytes."""
        world = ready_world(protected=True)
        world.delete()
        assert world.step().start is None
        assert world.condition("Reconciling") == ("True", "Protected")
        assert world.condition("Ready") == ("True", "Stored")
        world.edit(protected=False)
        assert world.step().start == RemoveWork(stores=("fast",))


class TestNothingIsStuckAndNothingSpins:
    """What waits says so and goes on by itself; what fails comes back later, not at once."""

    def away(self, world: World, *names: str) -> None:
        """These stores cannot be reached."""
        for name in names:
            world.stores[name] = StoreView(name, "away", unreachable=StoreUnavailable(f"{name} is away"))

    def test_a_copy_that_waits_for_its_origin_says_so(self) -> None:
        """Reconciling, so that the origin's return is noticed."""
        world = ready_world()
        world.stores["slow"] = StoreView("slow", "1")
        self.away(world, "fast")
        world.edit(stores=["fast", "slow"])
        world.step()
        assert world.condition("Reconciling") == ("True", "ProgressingWithRetry")
        assert world.condition("Stored") == ("False", "StoreUnavailable")
        world.stores["fast"] = StoreView("fast", "2")
        assert isinstance(world.step().start, FetchWork)

    def test_a_copy_whose_only_origin_has_no_store_needs_a_person(self) -> None:
        """Somebody must bring the ImageStore back, or say that it is gone."""
        world = ready_world()
        world.stores = {"slow": StoreView("slow", "1")}
        world.edit(stores=["slow"])
        assert world.step().start is None
        assert world.condition("Stalled") == ("True", "StoreNotFound")
        world.annotate(**{FORGET_STORE: "fast"})
        start = world.step().start
        assert start == FetchWork(2, spec_hash(world.image.spec), ("slow",))

    def test_forgetting_the_only_holder_fetches_anew(self) -> None:
        """Once: a store that is back is not forgotten again."""
        world = ready_world()
        self.away(world, "fast")
        world.annotate(**{FORGET_STORE: "fast"})
        world.step()
        assert world.condition("Ready") != ("True", "Stored")
        world.stores["fast"] = StoreView("fast", "2")
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")
        assert world.image.status.artifact
        assert world.image.status.artifact.revision == 2
        before = world.image.status
        assert world.step().start is None
        assert world.image.status == before

    def test_a_removal_goes_on_where_it_can(self) -> None:
        """One dead store holds up no other, and is remembered."""
        world = World(image({"stores": ["a", "b"], "revisions": {"grace": "0s"}}))
        world.stores = {n: StoreView(n, "1") for n in "ab"}
        world.settle()
        world.edit(source=OTHER)
        world.step()
        world.succeed()
        self.away(world, "b")
        world.running = None
        world.later(1)
        assert world.step().start == RemoveWork(stores=("a",), revisions=(1,))
        world.settle()
        assert [r.stores for r in world.image.status.removals] == [("b",)]
        world.stores["b"] = StoreView("b", "2")
        assert world.step().start == RemoveWork(stores=("b",), revisions=(1,))

    @pytest.mark.parametrize("problem", [StoreUnavailable("away"), StoreRefused("not yours")])
    def test_a_failing_removal_comes_back_later_each_time(self, problem: Problem) -> None:
        """Also after what is no matter of time: bytes that are to go are never given up."""
        world = ready_world(revisions={"grace": "0s"})
        world.edit(source=OTHER)
        world.step()
        world.succeed()
        world.step()
        waits = []
        for _ in range(5):
            assert isinstance(world.running, RemoveWork)
            verdict = world.fail(problem)
            assert verdict.start is None
            assert verdict.again
            waits.append((verdict.again - world.now).total_seconds())
            world.now = verdict.again
            world.step()
        assert waits == sorted(waits)
        assert waits[-1] > 4 * waits[0]

    @pytest.mark.parametrize("annotated", [False, True])
    def test_a_failing_delete_comes_back_later(self, annotated: bool) -> None:
        """Whatever the failure, and though an annotation was once handled and taken away."""
        world = ready_world()
        if annotated:
            world.annotate(**{REQUESTED_AT: "once"})
            world.step()
            world.annotate()
        world.delete()
        assert world.step().start
        verdict = world.fail(StoreRefused("theirs"))
        assert verdict.start is None
        assert verdict.again
        assert verdict.again > world.now
        assert world.condition("Stalled") is None
        world.now = verdict.again
        assert world.step().start

    def test_a_delete_waits_for_a_store_that_cannot_be_reached(self) -> None:
        """No worker is sent to a store that hangs; its return is enough."""
        world = ready_world()
        self.away(world, "fast")
        world.delete()
        assert world.step().start is None
        assert "fast is away" in world.message("Reconciling")
        world.stores["fast"] = StoreView("fast", "2")
        assert world.step().start == RemoveWork(stores=("fast",))

    def test_the_last_reachable_copy_stays(self) -> None:
        """A copy in a store that is away is no reason to remove the other."""
        world = World(image({"stores": ["a", "b"]}))
        world.stores = {n: StoreView(n, "1") for n in "ab"}
        world.settle()
        self.away(world, "b")
        world.edit(stores=["b"])
        assert world.step().start is None
        world.stores["b"] = StoreView("b", "2")
        assert world.step().again == world.now
        assert world.step().start == RemoveWork(stores=("a",), revisions=(1,))

    def test_a_copy_never_comes_from_the_store_that_lacks_it(self) -> None:
        """Of two that should have it, the one that has it is the origin."""
        world = World(image({"stores": ["b", "a"]}))
        world.stores = {n: StoreView(n, "1") for n in "ab"}
        world.settle()
        history = tuple(h.but(stores=("a",)) for h in world.image.status.history)
        world.image = world.image.but(status=world.image.status.but(history=history))
        start = world.step().start
        assert isinstance(start, FetchWork)
        assert (start.stores, start.copy_from) == (("b",), "a")

    def test_an_origin_that_lost_its_bytes_is_filled_again(self) -> None:
        """From another store that has them, or from the source under a new number."""
        world = World(image({"stores": ["a", "b"]}))
        world.stores = {n: StoreView(n, "1") for n in "abc"}
        world.settle()
        world.edit(stores=["a", "b", "c"])
        start = world.step().start
        assert isinstance(start, FetchWork)
        assert start.copy_from == "a"
        world.fail(DataLost("a has it no more"))
        assert world.running == RemoveWork(stores=("a",), revisions=(1,))
        world.settle()
        world.later(1000)
        world.settle()
        assert world.condition("Stored") == ("True", "Stored")
        assert {n: set(held) for n, held in world.held.items()} == {"a": {1}, "b": {1}, "c": {1}}

    def test_a_lost_status_finds_the_newest_bytes_again(self) -> None:
        """What lies under an earlier number is neither taken nor removed on the way."""
        world = World()
        start = world.step().start
        assert start
        for _ in range(2):
            conflict = StoreConflict("other bytes")
            world.running = None
            world.step(Result(start, problem=conflict, failed={"fast": conflict}))
            world.later(1000)
            world.step()
        assert isinstance(world.running, FetchWork)
        assert world.running.revision == 2
        assert world.image.status.removals == ()

    def test_the_link_follows_the_gateway(self) -> None:
        """A gateway that has moved is where the link leads."""
        world = ready_world()
        moved = SETTINGS.model_copy(update={"gateway_url": "https://moved"})
        verdict = decide(Seen(image=world.image, stores=world.stores, now=world.now, defaults=("fast",)), moved)
        assert verdict.status.artifact
        assert verdict.status.artifact.url == "https://moved/v1/namespaces/team-a/images/debian/revisions/1?uid=11-22"

    def test_a_long_wish_is_heard(self) -> None:
        """The annotation may be longer than what status can echo."""
        world = ready_world()
        world.annotate(**{REQUESTED_AT: "x" * 5000})
        world.step()
        assert world.image.status.last_handled_reconcile_at == "x" * 128

    def test_many_edits_of_stores_while_the_source_fails(self) -> None:
        """What may hold bytes stays within what a status can list."""
        world = World(image({"stores": [f"s{n}" for n in range(8)]}))
        world.stores = {f"s{n}": StoreView(f"s{n}", "1") for n in range(32)}
        world.step()
        for turn in range(1, 4):
            world.fail(SourceUnavailable("away"))
            world.edit(stores=[f"s{n}" for n in range(turn * 8, turn * 8 + 8)])
            while not isinstance(world.running, FetchWork):
                world.succeed() if world.running else world.step()
            assert world.image.status.pending
            assert len(world.image.status.pending.stores) <= 16
        world.settle()
        assert world.condition("Ready") == ("True", "Stored")
        assert {n for n, held in world.held.items() if held} == {f"s{n}" for n in range(24, 32)}

    def test_a_time_that_is_years_ahead_was_never_meant(self) -> None:
        """The clock was wrong when it was written."""
        world = World()
        world.step()
        world.fail(SourceUnavailable("away"))
        world.later(-400 * 86400)
        assert world.step().start

    def test_suspended_in_the_moment_of_its_end(self) -> None:
        """What was stored is served."""
        world = World()
        work = world.step().start
        assert work
        world.edit(suspend=True)
        world.running = None
        world.step(world.ended_well(work))
        assert world.condition("Ready") == ("True", "Stored")

    def test_deleted_images_are_never_stalled(self) -> None:
        """They are on their way, one way or the other."""
        world = World()
        world.step()
        world.fail(SourceNotFound("404"))
        world.delete()
        world.step()
        assert world.condition("Stalled") is None

    def test_naming_the_format_that_it_has_moves_no_byte(self) -> None:
        """What is known need not be fetched to be compared."""
        world = ready_world()
        world.edit(format={"disk": "qcow2"})
        assert world.step().start is None
        world.edit(format={"disk": "auto"})
        assert world.step().start is None
        world.edit(format={"disk": "raw"})
        assert isinstance(world.step().start, FetchWork)

    def test_a_shorter_grace_counts_at_once(self) -> None:
        """Also for what is scheduled already."""
        world = ready_world(revisions={"grace": "700h"})
        world.edit(source=OTHER)
        world.settle()
        world.edit(revisions={"grace": "1m"})
        verdict = world.step()
        assert verdict.again == world.now + timedelta(minutes=1)


DOWNLOADED, WRITTEN = "sha256:" + "c" * 64, "sha256:" + "d" * 64
UNPACKED = {"source_digest": DOWNLOADED, "source_format": "qcow2.xz"}
PACKED = {"disk_format": "raw", "source_format": "xz"}
CONVERTED = {"disk_format": "raw", "source_digest": DOWNLOADED, "source_format": "vmdk"}
BOTH = CONVERTED | {"source_format": "vmdk.xz"}


class TestShape:
    """What is stored may be other bytes than what was downloaded; the digest of the spec speaks of the latter."""

    @pytest.mark.parametrize(
        ("record", "before", "after", "moves"),
        [
            # uncompressed: there was nothing to unpack, and nothing changes by not doing so
            ({}, {}, {"decompress": "never"}, False),
            ({}, {"decompress": "never"}, {}, False),
            ({}, {"decompress": "never"}, {"disk": "qcow2"}, False),
            ({}, {"decompress": "never"}, {"disk": "raw"}, True),
            # unpacked
            (UNPACKED, {}, {"disk": "qcow2"}, False),
            (UNPACKED, {"disk": "qcow2"}, {}, False),
            (UNPACKED, {}, {"disk": "raw"}, True),
            (UNPACKED, {}, {"decompress": "never"}, True),
            # stored compressed
            (PACKED, {"decompress": "never"}, {}, True),
            (PACKED, {"decompress": "never"}, {"decompress": "never", "disk": "raw"}, False),
            (PACKED, {"decompress": "never"}, {"decompress": "never", "disk": "qcow2"}, True),
            (PACKED, {"decompress": "never"}, {"decompress": "never", "convertTo": "raw"}, False),
            # what is asked for is what it is already
            ({}, {}, {"convertTo": "qcow2"}, False),
            ({}, {"convertTo": "qcow2"}, {}, False),
            ({}, {}, {"convertTo": "raw"}, True),
            ({"disk_format": "iso"}, {}, {"convertTo": "raw"}, False),
            ({"disk_format": "iso"}, {}, {"convertTo": "qcow2"}, True),
            # converted
            (CONVERTED, {"convertTo": "raw"}, {"convertTo": "raw", "disk": "vmdk"}, False),
            (CONVERTED, {"convertTo": "raw"}, {"convertTo": "raw", "disk": "raw"}, True),
            (CONVERTED, {"convertTo": "raw"}, {"convertTo": "qcow2"}, True),
            (CONVERTED, {"convertTo": "raw"}, {}, True),
            (CONVERTED | {"disk_format": "iso"}, {"convertTo": "raw"}, {"convertTo": "raw", "disk": "vmdk"}, False),
            (BOTH, {"convertTo": "raw"}, {"convertTo": "raw", "decompress": "never"}, True),
            (BOTH, {"convertTo": "raw"}, {"convertTo": "raw", "disk": "vmdk"}, False),
        ],
    )
    @pytest.mark.parametrize("checksum", [None, {"digest": DOWNLOADED}], ids=["without digest", "with digest"])
    def test_another_format_moves_bytes_only_if_they_would_differ(
        self,
        record: dict[str, Any],
        before: dict[str, Any],
        after: dict[str, Any],
        moves: bool,
        checksum: dict[str, Any] | None,
    ) -> None:
        """What is known of the download decides, not the words of the spec."""
        world = World(image({"format": before, "checksum": checksum}))
        world.step()
        world.succeed(digest=DOWNLOADED if "source_digest" not in record else WRITTEN, **record)
        world.edit(format=after)
        assert isinstance(world.step().start, FetchWork) == moves

    def test_a_digest_that_the_download_had_moves_no_byte(self) -> None:
        """It is remembered with the stored bytes."""
        world = World()
        world.step()
        world.succeed(**UNPACKED)
        artifact = world.image.status.artifact
        assert artifact
        assert (artifact.source_digest, artifact.source_format) == (DOWNLOADED, "qcow2.xz")
        world.edit(checksum={"digest": DOWNLOADED})
        assert world.step().start is None
        assert world.condition("SourceVerified") == ("True", "DigestMatched")

    def test_a_digest_that_only_the_stored_bytes_have_proves_nothing(self) -> None:
        """The spec speaks of the bytes as downloaded."""
        world = World()
        world.step()
        world.succeed(**UNPACKED)
        world.edit(checksum={"digest": DIGEST})
        assert isinstance(world.step().start, FetchWork)

    def test_a_format_alone_makes_another_revision(self) -> None:
        """With the digest of the same download: what is stored of it differs."""
        world = World(image({"checksum": {"digest": DOWNLOADED}}))
        world.step()
        world.succeed(**UNPACKED)
        world.edit(format={"decompress": "never"})
        verdict = world.step()
        assert verdict.start
        assert verdict.start != FetchWork(2, spec_hash(image({"checksum": {"digest": DOWNLOADED}}).spec), ("fast",))


def test_the_same_is_said_once() -> None:
    """An Event tells what is new, not what is."""
    world = World()
    world.step()
    for _ in range(3):
        world.fail(SourceUnavailable("away"))
        world.later(1e4)
        world.step()
    assert world.said == [("Warning", "SourceUnavailable", "away")]


def test_an_image_that_failed_its_checksum_leaves_no_trace_of_ready() -> None:
    """Nothing is served that was not proven."""
    world = World(image({"checksum": {"digest": DIGEST}}))
    world.step()
    world.fail(ChecksumMismatch("expected a, got b"))
    assert world.image.status.artifact is None
    assert world.condition("SourceVerified") == ("False", "ChecksumMismatch")
