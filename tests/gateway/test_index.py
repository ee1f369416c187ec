"""The index of the list: its pages against a model, whatever changes meanwhile, and what it remembers of changes."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimpse.gateway import index as module
from glimpse.gateway.index import SORTS, Index
from glimpse.gateway.item import FIELDS, Item, item
from glimpse.gateway.query import CONTROLS, PAGING, Query
from glimpse.gateway.sight import Sight

ALL = Sight(everywhere=True, namespaces=frozenset())
MINE = Sight(everywhere=False, namespaces=frozenset({"a"}))


def image(uid: str, name: str = "image", namespace: str = "a", **more: Any) -> dict[str, Any]:
    """An Image as the API server gives it."""
    size = more.pop("size", None)
    artifact = {"revision": 1, "digest": "sha256:0", "size": size, "virtualSize": 1, "storedAt": "2026-01-02T03:04:05Z"}
    return {
        "metadata": {"uid": uid, "name": name, "namespace": namespace, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"source": {}, **more},
        "status": {"observedGeneration": 1} | ({"artifact": artifact} if size is not None else {}),
    }


def meant(query: Query, sight: Sight, shown: Item) -> bool:
    """Whether an item is asked for, and may be seen."""
    return all(test(shown) for test in query.sieve(sight))


class Model:
    """The images in a dict, and the index that is told of the same."""

    def __init__(self) -> None:
        self.index = Index()
        self.index.synced = True
        self.items: dict[tuple[str, str], Item] = {}

    def set(self, obj: dict[str, Any]) -> None:
        """There is this object now."""
        self.index.take("MODIFIED", obj)
        shown = item(obj)
        assert shown
        self.items[shown.namespace, shown.name] = shown

    def delete(self, where: tuple[str, str]) -> None:
        """There is no such object now."""
        if gone := self.items.pop(where, None):
            meta = {"namespace": where[0], "name": where[1], "uid": gone.uid}
            self.index.take("DELETED", {"metadata": meta})


objects = st.builds(
    image,
    uid=st.sampled_from("0123456789"),
    name=st.sampled_from([f"image-{n}" for n in range(8)]),
    namespace=st.sampled_from("abc"),
    title=st.sampled_from(["", "A", "Ä", "a"]),
    visibility=st.sampled_from(["private", "public", "community"]),
    hidden=st.sampled_from([False, False, True]),
    tags=st.lists(st.sampled_from(["x", "y"]), unique=True),
    size=st.sampled_from([None, 0, 1, 2]),
)
changes = st.lists(st.one_of(objects, st.tuples(st.sampled_from("abc"), st.sampled_from(["image-0", "image-1"]))))
questions = st.fixed_dictionaries(
    {
        "sort": st.sampled_from([sign + name for sign in ("", "-") for name in SORTS]),
        "limit": st.integers(1, 4).map(str),
    },
    optional={
        "hidden": st.sampled_from(["true", "false"]),
        "tag": st.just("x"),
        "namespace": st.sampled_from("ab"),
        "visibility": st.sampled_from(["public", "community"]),
    },
)
sights = st.sampled_from([ALL, MINE, Sight(everywhere=False, namespaces=frozenset({"b", "c"}))])


def change(model: Model, each: Any) -> None:
    """Apply one of `changes`. A uid is one object's for ever, so it holds where the object is."""
    if isinstance(each, tuple):
        model.delete(each)
    else:
        meta = each["metadata"]
        model.set(each | {"metadata": meta | {"uid": f"{meta['namespace']}{meta['name']}{meta['uid']}"}})


async def pages(model: Model, asked: dict[str, str], sight: Sight, between: list[Any], *, inside: bool) -> None:
    """Ask page after page, with changes between them or inside, and compare."""
    query = Query.read(asked.items(), CONTROLS | PAGING)
    sort, descending = query.sort.removeprefix("-"), query.sort.startswith("-")

    def place(shown: Item) -> tuple[Any, str]:
        return getattr(shown, SORTS[sort]), shown.uid

    def left() -> dict[str, Item]:
        return {each.uid: each for each in model.items.values() if meant(query, sight, each)}

    known = {uid: place(each) for uid, each in left().items()}
    steady, moved = dict(known), set[str]()

    async def disturb(part: list[Any]) -> None:
        nonlocal steady
        for each in part:
            change(model, each)
            now = left()
            steady = {uid: where for uid, where in steady.items() if uid in now and place(now[uid]) == where}
            moved.update(uid for uid, each in now.items() if known.setdefault(uid, place(each)) != place(each))
            await asyncio.sleep(0)

    seen: Counter[str] = Counter()
    more = True
    while more:
        part, between = between[:3], between[3:]
        read = model.index.page(
            query.sieve(sight), sort, query.after, query.limit, descending=descending, pool=query.pool(sight)
        )
        if inside:
            (found, more), _ = await asyncio.gather(read, disturb(part))
        else:
            found, more = await read
            rest = sorted(left().values(), key=place, reverse=descending)
            if query.after is not None:
                after = query.after
                rest = [each for each in rest if (place(each) < after if descending else place(each) > after)]
            assert found == rest[: query.limit]
            assert more == (len(rest) > query.limit)
            await disturb(part)
        seen.update(each.uid for each in found)
        if more:
            asked = asked | {"cursor": query.cursor(place(found[-1]))}
            query = Query.read(asked.items(), CONTROLS | PAGING)
    assert {uid: seen[uid] for uid in steady} == dict.fromkeys(steady, 1)
    assert {uid for uid, times in seen.items() if times > 1} <= moved


@settings(max_examples=200, deadline=None)
@given(st.lists(objects, max_size=30), changes, questions, sights, st.booleans())
def test_pages_under_change(
    there: list[Any], between: list[Any], asked: dict[str, str], sight: Sight, inside: bool
) -> None:
    """Whatever comes, goes or changes between pages or inside one: what stays in its place is seen once.

    Nothing is seen twice but what has moved in the order, and each page is what a sorted list of all would give.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEP", 2)
        model = Model()
        for each in there:
            change(model, each)
        asyncio.run(pages(model, asked, sight, between, inside=inside))


@settings(max_examples=100, deadline=None)
@given(st.lists(objects, max_size=10), st.lists(changes, max_size=4), sights)
def test_orders_are_kept_up(there: list[Any], steps: list[list[Any]], sight: Sight) -> None:
    """Orders that were made before the changes are as those made after them; and nothing is kept of what is gone."""

    async def run() -> None:
        model, query = Model(), Query.read([("hidden", "true"), ("hidden", "false")], CONTROLS)
        for each in there:
            change(model, each)
        for step in steps:
            for sort in SORTS:
                found, _ = await model.index.page(query.sieve(sight), sort, None, 100)
                places = [(getattr(each, SORTS[sort]), each.uid) for each in found]
                assert places == sorted(
                    (getattr(each, SORTS[sort]), each.uid) for each in model.items.values() if meant(query, sight, each)
                )
            for each in step:
                change(model, each)
        for where in list(model.items):
            model.delete(where)
        assert len(model.index) == 0
        assert not model.index._spaces
        assert not model.index._open
        assert not any(order.some(None, 1, descending=False) for order in model.index._orders.values())

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(changes, st.integers(0, 30), sights)
def test_changes_tell_the_state(steps: list[Any], start: int, sight: Sight) -> None:
    """Who knows the state after any change and hears what follows knows the state at the end."""
    model = Model()
    query = Query.read([], CONTROLS)
    for each in steps[:start]:
        change(model, each)
    known = {each.uid: each for each in model.items.values() if meant(query, sight, each)}
    number = model.index.number
    for each in steps[start:]:
        change(model, each)
    while told := model.index.since(number, 2):
        for what in told:
            if what.old:
                known.pop(what.old.uid, None)
            if what.new and meant(query, sight, what.new):
                known[what.new.uid] = what.new
            number = what.number
    assert known == {each.uid: each for each in model.items.values() if meant(query, sight, each)}


def test_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are remembered up to a number and a weight; who has heard of an older one last is told so."""
    monkeypatch.setattr(module, "CHANGES", 10)
    model = Model()
    for number in range(25):
        model.set(image("1", title=str(number)))
    assert model.index.since(14, 100) is None
    assert [change.number for change in model.index.since(15, 100) or ()] == list(range(16, 26))
    assert [change.number for change in model.index.since(15, 3) or ()] == [16, 17, 18]
    assert model.index.since(25, 100) == []
    assert model.index.since(26, 100) is None
    monkeypatch.setattr(module, "REMEMBERED", 1000)
    model.set(image("1", title="x"))
    assert len(model.index._changes) < 5
    assert model.index._weight == sum(change.weight for change in model.index._changes) <= 1000


def test_what_does_not_change() -> None:
    """An event that changes nothing that is shown is no change."""
    model = Model()
    model.set(image("1"))
    obj = image("1")
    obj["status"]["transfer"] = {"percent": 5}
    obj["metadata"]["resourceVersion"] = "7"
    model.index.take("ADDED", obj)
    assert model.index.number == 1


def test_what_is_being_removed() -> None:
    """An image that is being removed is not shown, unless it is protected: that one stays whole."""
    obj = image("1")
    obj["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    assert item(obj) is None
    obj["spec"]["protected"] = True
    assert item(obj)
    model = Model()
    model.set(obj)
    obj["spec"]["protected"] = False
    model.index.take("MODIFIED", obj)
    assert len(model.index) == 0


def test_made_anew_while_nobody_looked() -> None:
    """An object of another uid is another one; the end of the first, told late, does not touch it."""
    model = Model()
    model.set(image("1"))
    model.set(image("2"))
    model.index.take("DELETED", {"metadata": {"namespace": "a", "name": "image", "uid": "1"}})
    assert [(c.old and c.old.uid, c.new and c.new.uid) for c in model.index.since(0, 9) or ()] == [
        (None, "1"),
        ("1", None),
        (None, "2"),
    ]
    assert len(model.index) == 1


async def test_a_page_has_a_weight() -> None:
    """Large images make a page short, but never empty."""
    model = Model()
    for number in range(5):
        model.set(image(str(number), name=f"image-{number}", title="x" * 1000))
    found, more = await model.index.page((), "name", None, 100, weight=3000)
    assert (len(found), more) == (2, True)
    found, more = await model.index.page((), "name", None, 100, weight=1)
    assert (len(found), more) == (1, True)
    found, more = await model.index.page((), "name", ("image-3", "3"), 100, weight=1)
    assert (len(found), more) == (1, False)


def test_fields() -> None:
    """An item has the members that are promised, and those alone that are asked for."""
    whole = image(
        "1",
        title="T",
        size=5,
        minimum={"diskGiB": 1},
        members=["b"],
        visibility="shared",
    )
    whole["status"]["artifact"] |= {"digests": {}, "diskFormat": "raw", "containerFormat": "bare", "url": "http://x"}
    whole["status"]["conditions"] = [{"type": "Ready", "status": "True", "reason": "Stored", "message": "secret"}]
    shown = item(whole)
    assert shown
    assert {*json.loads(shown.json)} == {*FIELDS}
    assert shown.encoded(frozenset({"name", "size"})) == b'{"name":"image","size":5}'
