"""The index: the images of the cluster as the list shows them, in every order that was asked for, with what changed.

It is fed by the catalogue's watch and read by the event loop only. An order is made when it is asked for first, and
kept up from then on. A page is told by its last entry and not by a number: what changes meanwhile moves no entry that
stays, so none is missed and none comes twice.
"""

import asyncio
import heapq
import secrets
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from glimpse.gateway.item import Item, item
from glimpse.kube import Object

Place = tuple[str | int, str]
"""Where an item is in an order: what it is sorted by, and its uid."""
Test = Callable[[Item], bool]

SORTS: Final = {
    "name": "name",
    "namespace": "namespace",
    "title": "title",
    "creationTimestamp": "created",
    "storedAt": "stored",
    "size": "size",
    "virtualSize": "virtual_size",
}
"""What can be sorted by, with the attribute of an item."""
STEP: Final = 500
"""Items that are looked at before others have their turn."""
FEW: Final = 4
"""Where no more than one in so many can be meant, these are looked at and not all."""
CHANGES: Final = 4096
"""Changes that are remembered."""
REMEMBERED: Final = 8 << 20
"""Bytes of JSON in them, roughly."""


class Change(NamedTuple):
    """What became of one image."""

    number: int
    old: Item | None
    new: Item | None

    @property
    def weight(self) -> int:
        """Bytes, roughly."""
        return sum(len(each.json) for each in (self.old, self.new) if each)


class _Order:
    """All items in one order, both ways."""

    def __init__(self, attribute: str, items: Iterable[Item]) -> None:
        self.place: Callable[[Item], Place] = attrgetter(attribute, "uid")
        self._items = sorted(items, key=self.place)

    def swap(self, old: Item | None, new: Item | None) -> None:
        """Put one in the place of another."""
        if old:
            at = bisect_left(self._items, self.place(old), key=self.place)
            if new and self.place(new) == self.place(old):
                self._items[at] = new
                return
            del self._items[at]
        if new:
            insort(self._items, new, key=self.place)

    def some(self, after: Place | None, count: int, *, descending: bool) -> list[Item]:
        """The next items after this place."""
        if descending:
            end = len(self._items) if after is None else bisect_left(self._items, after, key=self.place)
            return self._items[max(0, end - count) : end][::-1]
        start = 0 if after is None else bisect_right(self._items, after, key=self.place)
        return self._items[start : start + count]


class Index:
    """The images."""

    def __init__(self, fresh: Callable[[], bool] = lambda: True) -> None:
        """`fresh`: whether what was heard of the images is not too old to be told."""
        self._fresh = fresh
        self.epoch = secrets.token_hex(4)
        """Tells the numbers of this index from those of one before or beside it."""
        self.number = 0
        """Of the last change."""
        self.synced = False
        """Whether all images are known. Set by who feeds it."""
        self._items: dict[tuple[str, str], Item] = {}
        self._spaces: dict[str, dict[str, Item]] = {}
        self._open: dict[str, Item] = {}
        self._orders: dict[str, _Order] = {}
        self._changes: deque[Change] = deque()
        self._weight = 0
        self._bell = asyncio.Event()

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._items)

    @property
    def complete(self) -> bool:
        """Whether all images are known as they are."""
        return self.synced and self._fresh()

    # --- what the watch says

    def take(self, change: str, obj: Object) -> None:
        """Learn of one event of the watch."""
        meta = obj["metadata"]
        where = (meta["namespace"], meta["name"])
        known = self._items.get(where)
        if change == "DELETED":
            if known and known.uid == meta["uid"]:
                self._swap(known, None)
            return
        new = item(obj)
        if known and new and known.uid != new.uid:  # made anew while nobody looked
            self._swap(known, None)
            known = None
        if known != new:
            self._swap(known, new)

    def _swap(self, old: Item | None, new: Item | None) -> None:
        for order in self._orders.values():
            order.swap(old, new)
        if old:
            del self._items[old.namespace, old.name]
            space = self._spaces[old.namespace]
            del space[old.uid]
            if not space:
                del self._spaces[old.namespace]
            self._open.pop(old.uid, None)
        if new:
            self._items[new.namespace, new.name] = new
            self._spaces.setdefault(new.namespace, {})[new.uid] = new
            if new.visibility != "private":
                self._open[new.uid] = new
        self.number += 1
        if self.synced:  # nobody has seen what was before
            self._remember(Change(self.number, old, new))

    def _remember(self, change: Change) -> None:
        self._changes.append(change)
        self._weight += change.weight
        while len(self._changes) > CHANGES or self._weight > REMEMBERED:
            self._weight -= self._changes.popleft().weight
        self.ring()

    # --- what changed

    def since(self, number: int, count: int) -> list[Change] | None:
        """The next changes after this one; None if they are not remembered any more, or never were."""
        first = self._changes[0].number if self._changes else self.number + 1
        if not first - 1 <= number <= self.number:
            return None
        start = number + 1 - first
        return [self._changes[at] for at in range(start, min(start + count, len(self._changes)))]

    async def news(self, number: int, seconds: float) -> None:
        """Wait until there is a change after this one, or somebody rings, or the time is over."""
        if self.number == number:
            bell = self._bell
            try:
                async with asyncio.timeout(seconds):
                    await bell.wait()
            except TimeoutError:
                return

    def ring(self) -> None:
        """Wake all who wait."""
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    # --- what is

    async def page(
        self,
        sieve: Sequence[Test],
        sort: str,
        after: Place | None,
        count: int,
        *,
        descending: bool = False,
        pool: tuple[frozenset[str], bool] | None = None,
        weight: int = 1 << 62,
    ) -> tuple[list[Item], bool]:
        """The next items after this place that pass all tests, and whether there are more.

        So many at most, and no more than this weight of JSON, but one at least. `pool`: only these namespaces can be
        meant, and with True what others have made visible.
        """
        order = self._orders.get(sort)
        if order is None:
            order = self._orders[sort] = _Order(SORTS[sort], self._items.values())
        few = self._few(pool)
        found: list[Item] = []
        if few is not None:
            found = await self._sift(few, sieve, order.place, after, count + 1, descending=descending)
        else:
            step = min(count + 1, STEP)  # mostly enough, where little is filtered
            while len(found) <= count and (some := order.some(after, step, descending=descending)):
                found += _passed(sieve, some)
                after, step = order.place(some[-1]), STEP
                await asyncio.sleep(0)
        return _cut(found, count, weight)

    def _few(self, pool: tuple[frozenset[str], bool] | None) -> list[Item] | None:
        """All that can be meant; None if that is no small part of all."""
        if pool is None:
            return None
        names, others = pool
        groups = [self._spaces[name] for name in names if name in self._spaces]
        if others:
            groups.append(self._open)
        if sum(map(len, groups)) * FEW > len(self._items):
            return None
        return list({uid: each for group in groups for uid, each in group.items()}.values())

    async def _sift(
        self,
        items: list[Item],
        sieve: Sequence[Test],
        place: Callable[[Item], Place],
        after: Place | None,
        count: int,
        *,
        descending: bool,
    ) -> list[Item]:
        found: list[Item] = []
        for start in range(0, len(items), STEP):
            some = items[start : start + STEP]
            if after is not None:
                some = [each for each in some if (place(each) < after if descending else place(each) > after)]
            found += _passed(sieve, some)
            await asyncio.sleep(0)
        return (heapq.nlargest if descending else heapq.nsmallest)(count, found, key=place)


def _passed(sieve: Sequence[Test], items: Iterable[Item]) -> Iterable[Item]:
    """One test after the other, for all: the loops are C's."""
    for test in sieve:
        items = filter(test, items)
    return items


def _cut(found: list[Item], count: int, weight: int) -> tuple[list[Item], bool]:
    """No more than so many, of no more than this weight, but one."""
    for at, each in enumerate(found[:count]):
        weight -= len(each.json)
        if weight < 0 and at:
            return found[:at], True
    return found[:count], len(found) > count
