"""Pins: which revision is served, and what is kept, copied and removed meanwhile."""

from datetime import timedelta

import pytest
from tests.control.support import World, image, ready_world

from glimpse.control.seen import FetchWork, LookWork, RemoveWork, Result, StoreView
from glimpse.problems import StoreUnavailable
from glimpse.tasks import Verification

KEYS = {"a" * 64: "A" * 40, "b" * 64: "B" * 40}
"""Fingerprints by digests."""


def three(keep: int = 3, **spec: object) -> World:
    """An image with three revisions, of which so many are kept."""
    world = ready_world(revisions={"keep": keep, "grace": "0s"}, **spec)
    for n in (1, 2):
        world.content = n
        world.edit(source={"http": {"urls": [f"https://a.example/{n}"]}})
        world.settle()
    return world


def pin(world: World, revision: int | None, keep: int = 3) -> None:
    """A person pins a revision, or takes the pin away."""
    world.edit(revisions={"keep": keep, "grace": "0s", "pin": revision})


def served(world: World) -> int | None:
    """The revision that is served."""
    artifact = world.image.status.artifact
    return artifact.revision if artifact else None


def test_back_and_forward() -> None:
    """A pin moves no byte: all that an Artifact says was kept."""
    world = three()
    newest = world.image.status.artifact
    for revision in (1, 2, 1):
        pin(world, revision)
        assert world.step().start is None
        artifact = world.image.status.artifact
        assert artifact
        assert (artifact.revision, artifact.digest) == (revision, world.digests[revision])
        assert (artifact.virtual_size, artifact.etag) == (100, f'"{revision - 1}"')
        assert artifact.url
        assert f"/revisions/{revision}?" in artifact.url
        (store,) = world.image.status.stores
        assert (store.revision, store.location) == (revision, f"file:///fast/11-22-{revision}")
        assert world.condition("Ready") == ("True", "Stored")
        assert world.condition("Stored") == ("True", "Stored")
        assert world.condition("Outdated") is None
        assert "revision 3 is the newest" in world.message("Ready")
    pin(world, None)
    assert world.step().start is None
    assert world.image.status.artifact == newest
    assert world.said[-1] == ("Normal", "Served", "revision 3 is served instead of revision 1")


def test_what_is_not_kept_cannot_be_pinned() -> None:
    """A person must act; what was served stays served, and the message says what is there."""
    world = three(keep=2)
    pin(world, 1, keep=2)
    assert world.step().start is None
    assert served(world) == 3
    assert world.condition("Ready") == ("True", "Stored")
    assert world.condition("Stalled") == ("True", "InvalidConfiguration")
    assert "revision 1, which is not kept; kept are: 3, 2." in world.message("Stalled")
    pin(world, 2, keep=2)
    world.step()
    assert world.condition("Stalled") is None
    pin(world, 7, keep=2)
    world.step()
    assert served(world) == 2


def test_nothing_to_pin_yet() -> None:
    """A number cannot be asked for beforehand."""
    world = World(image({"revisions": {"pin": 3}}))
    assert world.step().start is None
    assert world.condition("Ready") == ("False", "InvalidConfiguration")
    assert "none yet" in world.message("Stalled")


def test_the_pinned_one_is_never_removed() -> None:
    """It is kept besides the newest; unpinned, it goes as any other."""
    world = three()
    pin(world, 1, keep=1)
    world.settle()
    world.later(1)
    world.settle()
    assert set(world.held["fast"]) == {1, 3}
    pin(world, None, keep=1)
    world.settle()
    assert set(world.held["fast"]) == {3}


def test_newer_ones_are_fetched_and_not_served() -> None:
    """By an edit and by a look; the pin decides what is served, also while they come."""
    world = three(refresh={"interval": "1h"})
    pin(world, 1)
    world.step()
    world.content = 7
    world.later(4000)
    assert isinstance(world.step().start, LookWork)
    assert isinstance(world.succeed().start, FetchWork)
    assert world.condition("Outdated") is None
    world.succeed()
    assert served(world) == 1
    assert [h.revision for h in world.image.status.history][:2] == [4, 3]
    assert any("revision 4" in text for _, reason, text in world.said if reason == "Stored")
    world.edit(source={"http": {"urls": ["https://b.example/x"]}})
    world.settle()
    assert served(world) == 1
    pin(world, None)
    world.step()
    assert served(world) == 5


def test_a_removal_that_may_have_begun_is_not_pinned() -> None:
    """What a worker removes now will not be there."""
    world = three(keep=1)
    world.edit(source={"http": {"urls": ["https://a.example/9"]}})
    world.step()
    world.succeed()
    world.step()
    assert world.running == RemoveWork(stores=("fast",), revisions=(3,))
    pin(world, 3, keep=1)
    world.step()
    assert served(world) == 4
    assert "kept are: 4." in world.message("Stalled")
    world.succeed()
    assert served(world) == 4


def test_a_removal_that_is_to_come_is_called_off() -> None:
    """During its grace an old revision can be pinned."""
    world = ready_world(revisions={"grace": "1h"})
    world.edit(source={"http": {"urls": ["https://a.example/9"]}})
    world.settle()
    world.edit(revisions={"grace": "1h", "pin": 1})
    world.step()
    assert served(world) == 1
    assert world.image.status.removals == ()
    world.later(8000)
    world.settle()
    assert set(world.held["fast"]) == {1, 2}


def test_a_new_store_gets_the_pinned_and_the_newest() -> None:
    """From stores that have them: unpinning moves no byte either."""
    world = three()
    pin(world, 1)
    world.step()
    world.stores["slow"] = StoreView("slow", "1")
    world.edit(stores=["slow"])
    start = world.step().start
    assert isinstance(start, FetchWork)
    assert (start.revision, start.stores, start.copy_from) == (1, ("slow",), "fast")
    start = world.succeed().start
    assert isinstance(start, FetchWork)
    assert (start.revision, start.copy_from) == (3, "fast")
    assert world.condition("Stored") == ("True", "Stored")
    world.succeed()
    world.settle()
    assert {n: set(held) for n, held in world.held.items()} == {"fast": set(), "slow": {1, 3}}
    pin(world, None)
    assert world.step().start is None
    assert served(world) == 3


def test_pinned_while_a_store_is_away() -> None:
    """What cannot be reached now is not forgotten."""
    world = three()
    world.stores["fast"] = StoreView("fast", "2", unreachable=StoreUnavailable("away"))
    pin(world, 2)
    world.step()
    assert served(world) == 2
    assert world.condition("Ready") == ("True", "Stored")


def test_suspended_images_stay_as_they_are() -> None:
    """A pin waits until they are released."""
    world = three()
    world.edit(suspend=True, revisions={"keep": 3, "grace": "0s", "pin": 1})
    world.step()
    assert served(world) == 3
    world.edit(suspend=False)
    world.step()
    assert served(world) == 1


@pytest.mark.parametrize("named", [True, False])
def test_the_digest_that_is_named_speaks_of_other_bytes(named: bool) -> None:
    """SourceVerified is said of what is served."""
    world = three()
    digest = world.digests[1 if named else 3]
    world.edit(checksum={"digest": digest})
    world.step()
    if named:  # revision 3 has another digest: it would be fetched anew, and fail
        world.fail(StoreUnavailable("away"))
    pin(world, 1)
    world.step()
    assert world.condition("SourceVerified") == (("True", "DigestMatched") if named else None)


def test_what_was_proven_is_kept_with_each_revision() -> None:
    """A pinned one shows its own proof, and what it was as downloaded."""
    world = World(image({"checksum": {"url": "https://a.example/SUMS"}, "revisions": {"keep": 2}}))
    world.step()
    proofs = [Verification(digest=f"sha256:{n}", file="https://a.example/SUMS", key=key) for n, key in KEYS.items()]
    for n, proof in enumerate(proofs):
        if n:
            world.content = n
            world.edit(source={"http": {"urls": [f"https://a.example/{n}"]}})
            world.step()
        world.succeed(verification=proof, source_digest=proof.digest, source_format="raw.xz")
    for revision, proof in enumerate(proofs, 1):
        world.edit(revisions={"keep": 2, "pin": revision})
        assert world.step().start is None
        artifact = world.image.status.artifact
        assert artifact
        assert artifact.verification
        assert artifact.verification.key == proof.key
        assert (artifact.source_digest, artifact.source_format) == (proof.digest, "raw.xz")
        assert world.condition("SourceVerified") == ("True", "SignatureMatched")
        assert str(proof.key) in world.message("SourceVerified")


def test_forty_revisions_fit_into_a_status() -> None:
    """Each with all that a server said, as long as it may be: well under the 256 KiB that kubectl can keep."""
    world = ready_world(revisions={"keep": 32, "grace": "700h"})
    for n in range(60):
        world.content = n
        world.edit(source={"http": {"urls": [f"https://a.example/{n}"]}})
        world.step()
        while world.running:
            work, world.running = world.running, None
            result = world.ended_well(work)
            if isinstance(work, FetchWork) and result.record:
                digests = {"sha512": "0" * 128, "sha384": "0" * 96, "sha1": "0" * 40, "md5": "0" * 32}
                words = {"source_url": "https://" + "x" * 2040, "etag": '"' + "e" * 254 + '"'}
                words |= {"source_digest": "sha512:" + "0" * 128, "source_format": "f" * 16}
                proof = Verification(digest="sha512:" + "0" * 128, file="f" * 512, key="0" * 64)
                record = result.record.model_copy(update={**words, "digests": digests, "verification": proof})
                result = Result(work, record=record, stored=result.stored)
            world.step(result)
        world.now += timedelta(hours=1)
    status = world.image.status
    assert len(status.history) >= 32
    assert len(status.model_dump_json(by_alias=True, exclude_none=True)) < 160_000


def test_a_history_of_an_earlier_version() -> None:
    """What it does not say yet is taken from the artifact: nothing is fetched again."""
    world = ready_world()
    before = world.image.status
    short = {"revision", "digest", "size", "stored_at", "disk_format", "stores"}
    history = tuple(type(h)(**{name: getattr(h, name) for name in short}) for h in before.history)
    world.image = world.image.but(status=before.but(history=history))
    assert world.step().start is None
    assert world.image.status == before
