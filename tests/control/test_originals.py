"""References to other Images in decisions: what may be used, and what a reference does about it."""

from typing import Any

import pytest
from tests.control.support import World, image

from glimpse.api.image import HistoryEntry, Image
from glimpse.control.entry import Entry
from glimpse.control.originals import STEPS, Referers, seen
from glimpse.control.seen import FetchWork, Original, RemoveWork, StoreView
from glimpse.problems import InvalidConfiguration, SourceNotFound, SourceUnavailable, StoreUnavailable

REF = {"image": {"name": "golden", "namespace": "owner"}}
DIGESTS = ["sha256:" + letter * 64 for letter in "abc"]


def entry(number: int = 0, stores: tuple[str, ...] = ("fast",)) -> HistoryEntry:
    """A revision of the original."""
    return HistoryEntry.model_validate(
        {"revision": number + 1, "digest": DIGESTS[number], "size": 3, "storedAt": "2029-01-01T00:00:00Z"}
        | {"stores": stores}
    )


def golden(status: bool = True, **spec: Any) -> Image:
    """The owner's Image, serving its first revision."""
    found = entry().dump()
    served = {"artifact": {k: v for k, v in found.items() if k != "stores"}, "history": [found]} if status else {}
    return image(spec, served, namespace="owner", name="golden")


def world(original: Original | None, **spec: Any) -> World:
    """A reference, and what it sees."""
    made = World(image({"source": REF, **spec}))
    made.original = original
    return made


HERE = Original("1-1", entry())
GONE = Original(problem=SourceNotFound("there is no Image"))
WITHDRAWN = Original(problem=SourceNotFound("there is no Image"), withdrawn=True)


@pytest.mark.parametrize(
    ("spec", "may"),
    [
        ({}, False),
        ({"visibility": "private", "members": ["team-a"]}, False),
        ({"visibility": "shared", "members": ["team-b"]}, False),
        ({"visibility": "shared", "members": ["team-b", "team-a"]}, True),
        ({"visibility": "community"}, True),
        ({"visibility": "public"}, True),
    ],
    ids=str,
)
def test_the_owner_decides(spec: dict[str, Any], may: bool) -> None:
    """By visibility and members; what may not be used is told as what is not there."""
    mine = image({"source": REF})
    found = seen(mine, golden(**spec))
    assert found
    assert (found.entry is not None) == may
    if not may:
        absent = seen(mine, None)
        assert absent
        assert isinstance(found.problem, SourceNotFound)
        assert str(found.problem) == str(absent.problem)
        assert (found.withdrawn, absent.withdrawn) == (True, False)


def test_a_deactivated_original_is_waited_for() -> None:
    """Nothing is taken from it that could be downloaded here instead; who may not use it learns nothing of it."""
    mine = image({"source": REF})
    found = seen(mine, golden(visibility="public", deactivated=True))
    assert found
    assert isinstance(found.problem, SourceUnavailable)
    assert "deactivated" in found.problem.message
    assert not found.withdrawn
    private, missing = seen(mine, golden(deactivated=True)), seen(mine, None)
    assert private
    assert missing
    assert str(private.problem) == str(missing.problem)


def test_what_else_is_seen() -> None:
    """In one's own namespace all may be used; not oneself, nor what has no bytes or is being deleted."""
    mine = image({"source": {"image": {"name": "golden"}}}, namespace="owner")
    assert seen(mine, golden()) == Original("11-22", entry())
    itself = seen(image({"source": {"image": {"name": "debian"}}}), None)
    assert itself
    assert isinstance(itself.problem, InvalidConfiguration)
    empty = seen(mine, golden(status=False))
    assert empty
    assert isinstance(empty.problem, SourceUnavailable)
    assert seen(image(), None) is None


def referers(**refers: str | None) -> Referers:
    """Images of one namespace, by what each refers to."""
    made = Referers()
    for name, other in refers.items():
        source = {"image": {"name": other}} if other else {"http": {}}
        made.note(Entry(name, "team-a", name), {"spec": {"source": source}})
    return made


def circle(made: Referers, name: str) -> str:
    """As one of them sees it."""
    return "".join(other for _, other in made.circle("team-a", name))


def test_what_leads_back_is_seen() -> None:
    """By any way, up to a length; not what only leads to a circle, nor what leads to an end."""
    made = referers(a="b", b="c", c="a", d="a", e="f", f=None)
    assert [circle(made, name) for name in "abcdef"] == ["abca", "bcab", "cabc", "", "", ""]
    again = Entry("new", "team-a", "c")
    made.note(again, {"spec": {"source": {"image": {"name": "b"}}}})
    assert [circle(made, name) for name in "abc"] == ["", "bcb", "cbc"]
    made.note(again, None)
    assert [circle(made, name) for name in "abc"] == ["", "", ""]
    for length, most in ((STEPS, STEPS + 1), (STEPS + 1, 0)):
        ring = referers(**{f"i{number}": f"i{(number + 1) % length}" for number in range(length)})
        assert len(ring.circle("team-a", "i0")) == most


def test_a_circle_is_told() -> None:
    """As a reference to oneself is, whatever bytes are there; nothing of what others refer to elsewhere."""
    mine = image({"source": REF})
    way = [("team-a", "debian"), ("owner", "golden"), ("secret", "x"), ("team-a", "y"), ("team-a", "debian")]
    found = seen(mine, golden(visibility="public"), way)
    assert found
    assert isinstance(found.problem, InvalidConfiguration)
    assert "team-a/debian -> owner/golden -> … -> team-a/y -> team-a/debian" in found.problem.message
    private, missing = seen(mine, golden(), way), seen(mine, None)
    assert private
    assert missing
    assert str(private.problem) == str(missing.problem)


def test_it_takes_what_the_original_serves() -> None:
    """As a revision of its own; another one there is the next one here."""
    made = world(HERE)
    work = made.step().start
    assert isinstance(work, FetchWork)
    assert (work.revision, work.original) == (1, HERE)
    made.settle()
    assert made.condition("Ready") == ("True", "Stored")
    assert made.step().start is None
    made.original = Original("1-1", entry(1))
    work = made.step().start
    assert isinstance(work, FetchWork)
    assert (work.revision, work.original) == (2, made.original)
    assert made.condition("Outdated")


@pytest.mark.parametrize("original", [GONE, Original(problem=SourceUnavailable("no bytes"))], ids=["gone", "empty"])
def test_what_was_taken_stays(original: Original) -> None:
    """An original that is gone, or has nothing to serve any more, changes nothing here."""
    made = world(HERE)
    made.settle()
    made.original = original
    made.settle()
    assert made.condition("Ready") == ("True", "Stored")
    assert made.condition("Stalled") is None
    assert made.condition("Outdated") is None
    assert made.held["fast"]


def test_a_withdrawn_share_ends_it() -> None:
    """Nothing is served, the bytes go after their grace, and come back if it is shared again."""
    made = world(HERE, revisions={"grace": "1h"})
    made.settle()
    made.original = WITHDRAWN
    made.settle()
    assert made.condition("Ready") == ("False", "SourceNotFound")
    assert made.condition("Stalled") == ("True", "SourceNotFound")
    assert made.image.status.artifact is None
    assert made.held["fast"], "its grace is not over"
    made.original = HERE
    made.settle()
    assert made.condition("Ready") == ("True", "Stored")
    assert made.image.status.artifact
    assert made.image.status.artifact.revision == 1
    made.original = WITHDRAWN
    made.settle()
    made.later(3601)
    assert isinstance(made.step().start, RemoveWork)
    made.settle()
    assert not made.held["fast"]
    made.original = HERE
    made.settle()
    assert made.image.status.artifact
    assert made.image.status.artifact.revision == 2


@pytest.mark.parametrize("original", [GONE, WITHDRAWN])
def test_nothing_is_done_without_one(original: Original) -> None:
    """A reference to what may not be had is given up until something changes."""
    made = world(original)
    assert made.step().start is None
    assert made.condition("Stalled") == ("True", "SourceNotFound")
    made.original = HERE
    made.settle()
    assert made.condition("Ready") == ("True", "Stored")


def test_stores_that_cannot_be_read_from_are_left_out() -> None:
    """One that answers is enough; without any it is waited for."""
    made = world(Original("1-1", entry(stores=("away", "other"))))
    made.stores["away"] = StoreView("away", "1", unreachable=StoreUnavailable("away"))
    made.stores["other"] = StoreView("other", "1")
    work = made.step().start
    assert isinstance(work, FetchWork)
    assert work.original
    assert work.original.entry
    assert work.original.entry.stores == ("other",)
    alone = world(Original("1-1", entry(stores=("away",))))
    alone.stores["away"] = made.stores["away"]
    assert alone.step().start is None
    assert alone.condition("Reconciling") == ("True", "ProgressingWithRetry")
