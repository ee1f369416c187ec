"""Uploads in decisions: one at a time, each a revision of its own, and nothing is left of what comes to nothing."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.control.support import NOW, World, image

from glimpse.api.image import Image, Pending, PendingUpload
from glimpse.api.upload import FRESH, ImageUpload, UploadFailure
from glimpse.control.quota import held
from glimpse.control.seen import FetchWork, RemoveWork, StoreView
from glimpse.control.uploads import BUSY, Upload
from glimpse.problems import SourceNotFound, StoreUnavailable

SPEC: dict[str, Any] = {"source": {"upload": {}}}
FIRST = Upload("aa-1", NOW + timedelta(seconds=60), size=100)
NEXT = Upload("aa-2", NOW + timedelta(seconds=60))
WAITING = ("False", "WaitingForUpload")


def waiting(**spec: Any) -> World:
    """An image that waits for bytes."""
    world = World(image(SPEC | spec))
    verdict = world.step()
    assert (verdict.start, world.condition("Ready"), world.condition("Reconciling")) == (None, WAITING, None)
    return world


def begun(**spec: Any) -> World:
    """An upload has its revision, and may write."""
    world = waiting(**spec)
    world.upload = FIRST
    assert world.step().start is None
    assert world.condition("Reconciling") == ("True", "Uploading")
    return world


def pending(world: World) -> Pending | None:
    """The revision in the making."""
    return world.image.status.pending


def removed(world: World) -> list[tuple[int, tuple[str, ...]]]:
    """What is to be removed."""
    return [(each.revision, each.stores) for each in world.image.status.removals]


def test_an_upload_gets_a_revision_and_its_stores() -> None:
    """Written down before a byte goes to a store; it is looked at again when it expires, and counts in a quota."""
    world = waiting()
    world.upload = replace(FIRST, used={"fast": 7})
    verdict = world.step()
    made = pending(world)
    assert made
    assert (made.revision, made.stores) == (1, ("fast",))
    assert made.upload == PendingUpload(uid="aa-1", size=100, used={"fast": 7})
    assert verdict.again == FIRST.expires
    assert list(held(world.image.status)) == [("fast", 100)]


def test_what_has_come_becomes_the_revision() -> None:
    """A worker looks what the stores have of it; the one before is served until then."""
    world = begun()
    world.upload = replace(FIRST, stored=True)
    work = world.step().start
    assert isinstance(work, FetchWork)
    assert (work.revision, work.stores, work.upload) == (1, ("fast",), "aa-1")
    world.succeed()
    assert (world.condition("Ready"), pending(world)) == (("True", "Stored"), None)
    world.upload = NEXT
    world.step()
    made = pending(world)
    assert made
    assert made.revision == 2
    assert world.condition("Ready") == ("True", "Stored")
    world.upload = replace(NEXT, stored=True)
    world.content = 1
    world.settle()
    assert world.image.status.artifact
    assert (world.image.status.artifact.revision, world.image.status.artifact.digest) == (2, world.digest)


@pytest.mark.parametrize(
    ("upload", "said"),
    [
        (replace(FIRST, failure=UploadFailure(reason="ChecksumMismatch", message="other bytes")), "ChecksumMismatch"),
        (replace(FIRST, expires=NOW), "UploadExpired"),
        (None, None),
        (NEXT, None),
    ],
    ids=["it failed", "nothing more comes", "its account is gone", "another has its place"],
)
def test_what_comes_to_nothing_goes(upload: Upload | None, said: str | None) -> None:
    """Bytes go from the stores, its number is never used again, and people hear why."""
    world = begun()
    world.upload = upload
    work = world.step().start
    assert work == RemoveWork(stores=("fast",), revisions=(1,))
    made = pending(world)
    assert made is None or (made.upload and made.upload.uid == "aa-2" and made.revision == 2)
    assert next((reason for kind, reason, _ in world.said if kind == "Warning"), None) == said
    if said:
        assert world.condition("Ready") == WAITING
        assert f"came to nothing: {said}" in world.message("Ready")
    world.upload = None
    world.settle()
    assert (removed(world), pending(world)) == ([], None)


def test_a_changed_spec_ends_it() -> None:
    """Bytes for an older spec are no revision; another upload may begin for the new one."""
    world = begun()
    world.edit(checksum={"digest": f"sha256:{'b' * 64}"})
    verdict = world.step()
    assert (verdict.dropped, verdict.start) == ("aa-1", RemoveWork(stores=("fast",), revisions=(1,)))
    world.settle()
    world.upload = NEXT
    world.step()
    made = pending(world)
    assert made
    assert made.revision == 2


def test_another_source_ends_it() -> None:
    """So does an image that takes its bytes from elsewhere from now on."""
    world = begun()
    world.edit(source={"http": {"urls": ["https://a.example/x"]}})
    verdict = world.step()
    assert verdict.dropped == "aa-1"
    made = pending(world)
    assert made is None or made.upload is None
    world.settle()
    assert world.condition("Ready") == ("True", "Stored")


def test_suspended() -> None:
    """No upload begins; one that has begun is dropped, and its bytes go once the image is not suspended any more."""
    world = begun()
    world.edit(suspend=True)
    verdict = world.step()
    assert (verdict.dropped, verdict.start, pending(world)) == ("aa-1", None, None)
    assert removed(world) == [(1, ("fast",))]
    assert [reason for _, reason, _ in world.said] == ["Suspended"]
    world.upload = NEXT
    assert (world.step().start, pending(world)) == (None, None)
    world.upload = None
    world.edit(suspend=False)
    assert world.step().start == RemoveWork(stores=("fast",), revisions=(1,))


def test_suspended_when_all_had_come() -> None:
    """What was stored and verified is not thrown away: it is a revision as soon as that may be."""
    world = begun()
    world.upload = replace(FIRST, stored=True)
    world.edit(suspend=True)
    assert (world.step().start, pending(world) is not None) == (None, True)
    world.edit(suspend=False)
    world.settle()
    assert world.condition("Ready") == ("True", "Stored")


@pytest.mark.parametrize("protected", [False, True])
def test_deleted(protected: bool) -> None:
    """An upload is dropped before the bytes are removed; also where the image stays, since it is protected."""
    world = begun(protected=protected)
    world.delete()
    verdict = world.step()
    assert (verdict.dropped, pending(world)) == ("aa-1", None)
    assert verdict.start == (None if protected else RemoveWork(stores=("fast",)))
    if not protected:
        world.settle()
        assert world.gone


def test_it_waits_for_its_share() -> None:
    """While a transfer of the namespace writes to a store with a quota nobody knows what is used there."""
    world = waiting()
    world.upload = replace(FIRST, busy="fast")
    verdict = world.step()
    assert (pending(world), verdict.again) == (None, NOW + BUSY)


def test_a_store_that_is_away() -> None:
    """There is nothing to write to: the upload gets no revision, and it is said why."""
    world = waiting()
    world.stores["fast"] = StoreView("fast", "1", unreachable=StoreUnavailable("it is away"))
    world.upload = FIRST
    world.step()
    assert pending(world) is None
    assert "it is away" in world.message("Reconciling")


def test_what_no_store_has_is_not_waited_for() -> None:
    """A gateway that says so wrongly: the sender must send it again."""
    world = begun()
    world.upload = replace(FIRST, stored=True)
    world.step()
    world.fail(SourceNotFound("no store holds what was uploaded"))
    world.upload = None
    world.settle()
    assert (world.condition("Ready"), pending(world), removed(world)) == (WAITING, None, [])


def upload(name: str, image_of: Image, seconds: float = 0, **status: Any) -> ImageUpload:
    """As the gateway has written it so many seconds after the first."""
    made = (NOW + timedelta(seconds=seconds)).isoformat()
    meta = {"name": name, "namespace": "team-a", "uid": name, "creationTimestamp": made}
    spec = {"image": image_of.metadata.name, "imageUID": image_of.metadata.uid}
    return ImageUpload.model_validate({"metadata": meta, "spec": spec, "status": status})


def test_when_an_upload_is_over() -> None:
    """When its gateway has said nothing for a while, or as long as that has said; never once all was stored."""
    of = image(SPEC)
    silent = upload("a", of)
    assert silent.expires == NOW + FRESH
    assert not Upload.of(silent).over(NOW)
    assert Upload.of(silent).over(NOW + FRESH)
    kept = upload("a", of, expiresAt="2030-01-02T00:00:00Z")
    assert not Upload.of(kept).over(NOW + timedelta(hours=23))
    stored = upload("a", of, outcome="Stored", expiresAt="2030-01-01T00:00:00Z")
    assert not Upload.of(stored).over(NOW + timedelta(days=9))
    failed = upload("a", of, outcome="Failed", failure={"reason": "TooLarge", "message": "too large"})
    assert Upload.of(failed).over(NOW)
