"""Places that all share: how many one tenant has of them, and how they come back."""

import asyncio

import pytest

from glimpse.gateway.turns import Turns


@pytest.mark.parametrize(("places", "each"), [(1, 1), (2, 1), (3, 2), (16, 8)])
def test_one_tenant_has_half(places: int, each: int) -> None:
    """Half of the places, rounded up, are one tenant's at most; all together have no more than there are."""
    turns = Turns(places)
    assert [turns.take("a") for _ in range(places + 1)].count(True) == each
    assert [turns.take("b") for _ in range(places + 1)].count(True) == places - each
    assert (len(turns), turns.full) == (places, True)
    turns.leave("a")
    assert not turns.full
    assert turns.take("c")


async def test_who_waits_has_the_next_one() -> None:
    """A place that is given back goes to one who waits, if it may be his; who waits for too long hears so."""
    turns = Turns(2)
    assert turns.take("a")
    assert not await turns.wait("a", 0.01)
    waiting = [asyncio.create_task(turns.wait(tenant, 60)) for tenant in ("a", "b", "b")]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert done <= set(waiting[1:])
    turns.leave("b")
    await asyncio.wait(waiting[1:])
    turns.leave("a")
    assert await asyncio.gather(*waiting) == [True] * 3
    for tenant in ("a", "b"):
        turns.leave(tenant)
    assert len(turns) == 0
