"""Slots: both limits hold, nobody is overtaken without need, and a place is never lost."""

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from glimpse.control.slots import Claim, Place, Slots
from glimpse.settings import Limits


async def settle() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that hold a place until they are told to go."""

    def __init__(self, total: int, per_namespace: int, per_host: int = 99) -> None:
        limits = Limits(transfers=total, namespace_transfers=per_namespace, host_transfers=per_host)
        self.slots = Slots(limits)
        self.inside: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.leave: dict[int, asyncio.Event] = {}

    def come(self, who: int, namespace: str, host: str | None = None, alone: tuple[str, ...] = ()) -> None:
        """One more wants a place."""

        async def visit() -> None:
            async with self.slots.take(who, Claim(namespace, host, alone)):
                self.inside.append(who)
                try:
                    await self.leave[who].wait()
                finally:
                    self.inside.remove(who)

        self.leave[who] = asyncio.Event()
        self.tasks[who] = asyncio.create_task(visit())


async def test_a_busy_namespace_does_not_hold_the_others() -> None:
    """Whoever may run, runs, though others came first."""
    crowd = Crowd(3, 2)
    for who, namespace in enumerate("aaaab"):
        crowd.come(who, namespace)
    await settle()
    assert crowd.inside == [0, 1, 4]
    assert crowd.slots.waiting == 2
    assert not crowd.slots.free(Claim("c"))
    crowd.leave[4].set()
    await settle()
    assert crowd.inside == [0, 1]
    assert crowd.slots.free(Claim("c"))
    assert not crowd.slots.free(Claim("a"))
    crowd.leave[0].set()
    await settle()
    assert crowd.inside == [1, 2], "first come, first served"


async def test_a_host_is_not_asked_for_more_than_it_bears() -> None:
    """Those who want another, or none, go first."""
    crowd = Crowd(9, 9, 2)
    for who, host in enumerate(["x", "x", "x", "y", None]):
        crowd.come(who, f"n{who}", host)
    await settle()
    assert crowd.inside == [0, 1, 3, 4]
    assert crowd.slots.place(2) == Place(1, 1, "one of 2 transfers from x to end")
    crowd.leave[3].set()
    await settle()
    assert crowd.slots.place(2)
    crowd.leave[0].set()
    await settle()
    assert 2 in crowd.inside


async def test_one_at_a_time_into_a_store_with_a_quota() -> None:
    """Of each namespace; other stores and other namespaces are not held up."""
    crowd = Crowd(9, 9)
    for who, (namespace, alone) in enumerate(
        [("a", ("s",)), ("a", ("s", "t")), ("a", ("t",)), ("b", ("s",)), ("a", ())]
    ):
        crowd.come(who, namespace, None, alone)
    await settle()
    assert crowd.inside == [0, 2, 3, 4]
    reason = "the transfer of this namespace into store s, which has a quota, to end"
    assert crowd.slots.place(1) == Place(1, 1, reason)
    crowd.leave[0].set()
    await settle()
    assert crowd.slots.place(1) == Place(1, 1, reason.replace("store s", "store t"))
    crowd.leave[2].set()
    await settle()
    assert 1 in crowd.inside


async def test_a_place_tells_what_it_waits_for() -> None:
    """The first limit that is in the way; or those who came before."""
    crowd = Crowd(2, 1)
    assert crowd.slots.behind(Claim("a")) is None
    for who, namespace in enumerate("aab"):
        crowd.come(who, namespace)
    await settle()
    assert crowd.slots.place(1) == Place(1, 1, "one of 2 transfers to end")
    assert crowd.slots.behind(Claim("c")) == Place(2, 2, "one of 2 transfers to end")
    assert crowd.slots.place(0) is None
    crowd.leave[2].set()
    await settle()
    assert crowd.slots.place(1) == Place(1, 1, "one of 1 transfers of this namespace to end")


async def test_the_place_of_a_cancelled_one_is_free_at_once() -> None:
    """Whether it waited, or had a slot."""
    crowd = Crowd(1, 1)
    for who in range(4):
        crowd.come(who, "a")
    await settle()
    crowd.tasks[1].cancel()
    await settle()
    assert crowd.slots.place(2) == Place(1, 2, "one of 1 transfers to end")
    crowd.tasks[0].cancel()
    await settle()
    assert crowd.inside == [2]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "leave", "cancel"]),
            st.integers(0, 30),
            st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", None])),
        )
    )
)
def test_limits_hold_and_places_return(steps: list[tuple[str, int, tuple[str, str | None]]]) -> None:
    """Whatever comes, leaves and is cancelled: never too many, none idle while one may run, all free at the end."""

    async def run() -> None:
        crowd = Crowd(4, 2, 3)
        where: dict[int, tuple[str, str | None]] = {}
        for number, (action, pick, wish) in enumerate(steps):
            if action == "come":
                where[number] = wish
                crowd.come(number, *wish)
            elif crowd.tasks:
                who = sorted(crowd.tasks)[pick % len(crowd.tasks)]
                crowd.leave[who].set() if action == "leave" else crowd.tasks[who].cancel()
            await settle()
            assert len(crowd.inside) == crowd.slots.used <= 4
            namespaces = Counter(where[who][0] for who in crowd.inside)
            hosts = Counter(where[who][1] for who in crowd.inside if where[who][1])
            assert max([*namespaces.values(), 0]) <= 2
            assert max([*hosts.values(), 0]) <= 3
            for who, task in crowd.tasks.items():
                if not task.done() and who not in crowd.inside:
                    namespace, host = where[who]
                    full = namespaces[namespace] == 2 or (host and hosts[host] == 3)
                    assert full or crowd.slots.used == 4
                    assert crowd.slots.place(who)
        for task in crowd.tasks.values():
            task.cancel()
        await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)
        assert (crowd.slots.used, crowd.slots.waiting) == (0, 0)

    asyncio.run(run())
