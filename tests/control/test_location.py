"""A location in decisions: one more kind of source, which a store must allow, and whose bytes nobody copies there."""

from typing import Any

import pytest
from tests.control.support import World, image

from glimpse.api.locations import Location
from glimpse.api.store import ImageStore
from glimpse.control.quota import held
from glimpse.control.seen import Allowed, FetchWork, LookWork, RemoveWork, StoreView, VerifyWork
from glimpse.control.store import view
from glimpse.problems import SourceChanged, SourceNotFound, StoreUnavailable

PLACE = {"store": "archive", "key": "import/team-a/debian.qcow2"}
LOCATION = Location.model_validate(PLACE)
OTHER = {"store": "archive", "key": "import/team-a/other.qcow2"}
MAY = (Allowed("import/team-a/"),)


def world(*, may: tuple[Allowed, ...] = MAY, **spec: Any) -> World:
    """An image that is to be registered; `archive` is no default store."""
    made = World(image({"source": {"location": PLACE}, **spec}))
    made.stores["archive"] = StoreView("archive", "1", locations=may)
    return made


def stored(**spec: Any) -> World:
    """The same, done."""
    made = world(**spec)
    made.settle()
    assert made.condition("Stored") == ("True", "Stored")
    return made


def test_it_goes_where_its_bytes_are() -> None:
    """Without `stores` an image is in the store of its location, and in no default one; the revision says where."""
    made = world()
    work = made.step().start
    assert work == FetchWork(1, made.image.status.pending.spec_hash, ("archive",), location=LOCATION)  # type: ignore[union-attr]
    made.settle()
    (entry,) = made.image.status.history
    assert (entry.stores, entry.location) == (("archive",), LOCATION)
    assert made.image.status.artifact
    assert made.image.status.artifact.location == LOCATION


def test_others_get_copies() -> None:
    """One reading fills the others too; one that comes later is filled from a store that has it."""
    made = world(stores=["archive", "fast"])
    work = made.step().start
    assert isinstance(work, FetchWork)
    assert (work.stores, work.location) == (("archive", "fast"), LOCATION)
    made.settle()
    made.stores["third"] = StoreView("third", "1")
    made.edit(stores=["archive", "fast", "third"])
    work = made.step().start
    assert isinstance(work, FetchWork)
    assert (work.stores, work.copy_from, work.location) == (("third",), "archive", None)


def test_no_room_is_taken_where_they_are() -> None:
    """Bytes of others count for no quota and are none of the store's; copies of them do."""
    made = stored(stores=["archive", "fast"])
    assert list(held(made.image.status)) == [("fast", 10)]


@pytest.mark.parametrize(
    "may", [(), (Allowed("import/team-b/"), Allowed("public/"))], ids=["nothing", "something else"]
)
def test_what_is_not_allowed_is_refused(may: tuple[Allowed, ...]) -> None:
    """Nothing is looked at; the message says what is allowed; and it goes on when the store allows it."""
    made = world(may=may)
    assert made.step().start is None
    assert made.condition("Ready") == ("False", "StoreRefused")
    assert made.condition("Stalled") == ("True", "StoreRefused")
    assert ("team-b" in made.message("Stalled")) == bool(may)
    made.stores["archive"] = StoreView("archive", "2", locations=MAY)
    made.settle()
    assert made.condition("Ready") == ("True", "Stored")


def test_a_reading_ends_when_it_is_no_longer_allowed() -> None:
    """What runs is cancelled, and nothing of it is kept."""
    made = world()
    made.step()
    made.stores["archive"] = StoreView("archive", "2")
    assert made.step().cancel
    assert made.step().start is None
    assert made.condition("Stalled") == ("True", "StoreRefused")


def test_a_strange_key_is_refused_whatever_is_allowed() -> None:
    """The API server refuses it; where it could not, the decision does."""
    made = world(may=(Allowed("import/"),))
    made.edit(source={"location": {"store": "archive", "key": "import/../objects/x"}})
    assert made.step().start is None
    assert made.condition("Stalled") == ("True", "StoreRefused")


def test_a_missing_store_is_named() -> None:
    """As of any store."""
    made = world()
    del made.stores["archive"]
    assert made.step().start is None
    assert made.condition("Stalled") == ("True", "StoreNotFound")


def test_what_is_stored_stays_when_it_is_no_longer_allowed() -> None:
    """It is served on; but nobody looks for newer bytes any more."""
    made = stored(refresh={"interval": "1h"})
    made.stores["archive"] = StoreView("archive", "2")
    made.later(7200)
    assert made.step().start is None
    assert made.condition("Ready") == ("True", "Stored")
    assert made.condition("Stalled") == ("True", "StoreRefused")


def test_a_store_that_is_away_is_waited_for() -> None:
    """Nothing can be read for the others either."""
    made = world(stores=["archive", "fast"])
    away = SourceNotFound("away")
    made.stores["archive"] = StoreView("archive", "2", unreachable=away, locations=MAY)
    assert made.step().start is None


@pytest.mark.parametrize("checksum", [None, {"digest": "sha256:" + "a" * 64}], ids=["plain", "digest"])
def test_another_place_is_another_revision(checksum: Any) -> None:
    """Also with the same digest: the old place is let go, and so it is from and to the web."""
    made = stored(**({"checksum": checksum} if checksum else {}))
    made.edit(source={"location": OTHER})
    made.settle()
    assert [h.revision for h in made.image.status.history] == [2, 1]
    assert made.image.status.history[0].location == Location.model_validate(OTHER)
    made.edit(source={"http": {"urls": ["https://a.example/x"]}}, stores=["fast"])
    made.settle()
    assert made.image.status.history[0].location is None
    assert made.image.status.history[0].revision == 3


def test_changed_bytes_are_a_new_revision() -> None:
    """With `refresh`, as for the web; the same bytes in another version are registered anew, too."""
    made = stored(refresh={"interval": "1h"}, revisions={"keep": 3})
    for revision in (2, 3):
        made.content = 7
        made.touched = revision
        made.later(7200)
        work = made.step().start
        assert isinstance(work, LookWork)
        verdict = made.succeed()
        assert isinstance(verdict.start, FetchWork)
        assert (verdict.start.revision, verdict.start.unless) == (revision, None)
        made.settle()
        assert made.image.status.history[0].revision == revision
        assert made.image.status.history[0].location == LOCATION
    made.later(7200)
    assert isinstance(made.step().start, LookWork)
    assert made.succeed().start is None


def test_a_lost_registration_is_made_again_and_never_copied() -> None:
    """Where another store has the bytes, the place is read once more; what lies there must be the same."""
    made = stored(stores=["archive", "fast"])
    made.damaged.add(("archive", 1))
    made.scrub = True
    made.later(40 * 86400)
    work = made.step().start
    while work != VerifyWork(1, "archive", made.digest):
        work = made.succeed().start
    made.scrub = False
    work = made.succeed().start
    assert work == RemoveWork(("archive",), (1,))
    work = made.succeed().start
    assert isinstance(work, FetchWork)
    assert (work.stores, work.copy_from, work.location) == (("archive",), "archive", LOCATION)
    assert work.expects == made.digest
    made.fail(SourceChanged("other bytes"))
    assert made.condition("Ready") == ("True", "Stored")
    assert made.condition("Reconciling") == ("True", "ProgressingWithRetry")
    made.later(3600)
    made.content = 7
    assert isinstance(made.step().start, FetchWork)
    made.succeed()
    assert made.condition("Stored") == ("False", "DataLost")
    made.content = 0
    made.later(7200)
    made.settle()
    assert made.condition("Stored") == ("True", "Stored")


def test_the_only_registration_is_looked_for() -> None:
    """With no other copy the place is asked, and registered again under the same number."""
    made = stored()
    made.damaged.add(("archive", 1))
    made.scrub = True
    made.later(40 * 86400)
    assert made.step().start == VerifyWork(1, "archive", made.digest)
    made.scrub = False
    work = made.succeed().start
    assert isinstance(work, LookWork)
    made.settle()
    (entry,) = made.image.status.history
    assert (entry.revision, entry.location, entry.stores) == (1, LOCATION, ("archive",))


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_bytes_of_others_go_where_it_is_allowed(policy: str) -> None:
    """The removal says below which prefixes; a removal of an old revision never does."""
    may = (Allowed("import/team-a/", delete=True), Allowed("public/"))
    made = stored(may=may, stores=["archive", "fast"], deletionPolicy=policy, revisions={"grace": "0s"})
    made.edit(source={"location": OTHER})
    works = []
    verdict = made.step()
    while made.running or (verdict.again and verdict.again <= made.now):
        works.append(made.running)
        verdict = made.succeed() if made.running else made.step()
    removals = [work for work in works if isinstance(work, RemoveWork)]
    assert [(r.revisions, r.erase) for r in removals] == [((1,), ())]
    made.delete()
    work = made.step().start
    assert isinstance(work, RemoveWork)
    assert (work.retain, work.erase) == (
        (True, ()) if policy == "Retain" else (False, (("archive", "import/team-a/"),))
    )


RULES = [
    {"namespaceSelector": {"matchLabels": {"tier": "gold"}}, "prefix": "import/{namespace}/", "allowDelete": True},
    {"prefix": "public/"},
]


@pytest.mark.parametrize(
    ("labels", "allowed"),
    [
        ({}, (Allowed("public/"),)),
        ({"tier": "gold"}, (Allowed("import/team-a/", delete=True), Allowed("public/"))),
    ],
)
def test_a_store_says_what_a_namespace_may(labels: dict[str, str], allowed: tuple[Allowed, ...]) -> None:
    """By its labels, and with its name in the prefix."""
    spec = {"filesystem": {"path": "/a"}, "locations": RULES}
    store = ImageStore.model_validate({"metadata": {"name": "archive"}, "spec": spec})
    assert view(store, "team-a", labels).locations == allowed
    assert not view(store, "team-a", labels).read_only


def test_a_web_server_that_is_gone_holds_no_image() -> None:
    """Nothing of ours is there, so there is nothing to wait for."""
    made = stored(stores=["archive", "fast"])
    away = StoreUnavailable("away")
    made.stores["archive"] = StoreView("archive", "2", unreachable=away, read_only=True)
    made.delete()
    assert made.step().start == RemoveWork(("fast",))
    made.succeed()
    assert made.gone
