"""What the sweep may take: leftovers, never anything that somebody owns or may come to own."""

from typing import Any

import pytest

from glimpse.control.sweep import TooMuch, leftovers
from glimpse.tasks import ListedEntry, Record


def entry(key: str, age: float = 1e6, *, partial: bool = False, **record: Any) -> ListedEntry:
    """Something in a store, as a driver lists it."""
    uid, _, revision = key.partition(".")[0].rpartition("-")
    values = {"installation": "ours", "namespace": "n", "name": "a", "uid": uid, "revision": int(revision)}
    written = None if partial else Record(**(values | {"spec_hash": "h"} | record))
    return ListedEntry(key=key, size=1, age=age, partial=partial, record=written)


OWNED = {"u-1": frozenset({1, 2})}
PENDING = {"u-1": 2}


def test_what_nobody_owns_goes() -> None:
    """Objects of vanished Images, revisions that no status names, leftovers of attempts."""
    entries = [entry(f"u-1-{n}") for n in range(1, 10)]
    entries += [entry("u-1-10"), entry("u-9-1"), entry("u-1-2.aa", partial=True)]
    owned = {"u-1": frozenset(range(1, 10))}
    assert leftovers(entries, owned, {}, "ours", 3600) == ("u-1-10", "u-9-1", "u-1-2.aa")


@pytest.mark.parametrize(
    "kept",
    [
        entry("u-9-1", age=10),
        entry("u-9-1.aa", age=10, partial=True),
        entry("u-9-1", retained=True),
        entry("u-9-1", installation="theirs"),
        ListedEntry(key="u-9-1", size=1, age=1e6, partial=False),
        ListedEntry(key="README.txt", size=1, age=1e6, partial=True),
        entry("u-1-2.aa", partial=True),
    ],
    ids=["young", "young attempt", "retained", "another's", "without a record", "a stranger's file", "in the making"],
)
def test_what_may_be_somebodys_stays(kept: ListedEntry) -> None:
    """Young, retained, of another installation, or not ours by its own word."""
    assert leftovers([kept], OWNED, PENDING, "ours", 3600) == ()


@pytest.mark.parametrize("key", ["u-1-1.aa", "u-1-3.aa", "u-2-2.aa"])
def test_what_nobody_goes_on_with_goes(key: str) -> None:
    """An old attempt on any other revision than the one in the making, also if an object of it is owned."""
    assert leftovers([entry(key, partial=True)], OWNED, PENDING, "ours", 3600) == (key,)


def test_too_much_is_refused() -> None:
    """More than a fifth of a store at once is more likely a mistake."""
    many = [entry(f"u-{n}-1") for n in range(100)]
    owned = {f"u-{n}": frozenset({1}) for n in range(79)}
    with pytest.raises(TooMuch, match="21 of 100"):
        leftovers(many, owned, {}, "ours", 3600)
    owned["u-79"] = frozenset({1})
    assert len(leftovers(many, owned, {}, "ours", 3600)) == 20
    attempts = [entry(f"u-{n}-1.aa", partial=True) for n in range(100)]
    assert len(leftovers(attempts, {}, {}, "ours", 3600)) == 100
