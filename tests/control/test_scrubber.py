"""Whose turn it is to be verified: one at a time, the oldest first, and nobody holds up the others."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from glimpse.api.image import HistoryEntry, ImageStatus
from glimpse.control.scrub import Scrubber, oldest

INTERVAL = 1000.0


def status(**verified: float) -> ImageStatus:
    """An image with a revision of time 5000, in stores that were verified at these times; 0: never."""
    times = {store: datetime.fromtimestamp(at, UTC) for store, at in verified.items() if at}
    entry = HistoryEntry(
        revision=1,
        digest="",
        size=1,
        stored_at=datetime.fromtimestamp(5000, UTC),
        stores=tuple(verified),
        verified=times,
    )
    return ImageStatus(history=(entry,))


class Bench:
    """A scrubber with a clock that stands still, and images that are verified when they are asked."""

    def __init__(
        self, now: float, turn: Callable[["Bench", str], Awaitable[bool]] | None = None, interval: float = INTERVAL
    ) -> None:
        self.now = now
        self.turns: list[str] = []
        self._act = turn
        self.scrubber = Scrubber(interval, self._turn, self._clock)

    def _clock(self) -> float:
        return self.now

    async def _turn(self, uid: str) -> bool:
        self.turns.append(uid)
        if self._act:
            return await self._act(self, uid)
        self.scrubber.note(uid, status(a=self.now))
        return True

    async def settle(self) -> None:
        """Let it go as far as it can."""
        for _ in range(50):
            await asyncio.sleep(0)


def test_how_old_an_image_is() -> None:
    """As its copy that was not looked at for the longest time; one that never was is as old as its revision."""
    assert oldest(status(a=7000.0, b=6000.0)) == 6000
    assert oldest(status(a=7000.0, b=0)) == 5000
    assert oldest(status()) is None
    assert oldest(ImageStatus()) is None


async def test_the_oldest_first() -> None:
    """Each once an interval."""
    bench = Bench(10_000)
    for uid, at in (("new", 9500.0), ("old", 6000.0), ("older", 5500.0)):
        bench.scrubber.note(uid, status(a=at))
    bench.scrubber.start()
    await bench.settle()
    assert bench.turns == ["older", "old"]
    bench.now = 11_000
    bench.scrubber.note("other", status(a=9000.0))
    await bench.settle()
    assert bench.turns == ["older", "old", "other", "new", "old", "older"]
    await bench.scrubber.close()


async def test_one_at_a_time() -> None:
    """However many there are: disks have other things to do."""
    running, most = 0, 0

    async def turn(bench: Bench, uid: str) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        bench.scrubber.note(uid, status(a=bench.now))
        return True

    bench = Bench(10_000, turn)
    for number in range(5):
        bench.scrubber.note(str(number), status(a=6000.0))
    bench.scrubber.start()
    await bench.settle()
    assert (len(bench.turns), most) == (5, 1)
    await bench.scrubber.close()


async def test_all_copies_of_an_image() -> None:
    """One after the other, though the image stays as old as its oldest copy until the last one."""
    left = {"a": 6000.0, "b": 6000.0, "c": 6000.0}

    async def turn(bench: Bench, uid: str) -> bool:
        left[next(store for store, at in left.items() if at == 6000)] = bench.now
        bench.scrubber.note(uid, status(**left))
        return True

    bench = Bench(10_000, turn)
    bench.scrubber.note("image", status(**left))
    bench.scrubber.start()
    await bench.settle()
    assert bench.turns == ["image"] * 3
    await bench.scrubber.close()


async def test_who_cannot_use_its_turn_lets_the_others_pass() -> None:
    """A store that is away is asked again after a while, and not all the time."""

    async def turn(bench: Bench, uid: str) -> bool:
        if uid == "crash":
            raise RuntimeError("a bug")
        if uid != "away":
            bench.scrubber.note(uid, status(a=bench.now))
        return uid != "away"

    bench = Bench(10_000, turn)
    for uid, at in (("away", 5001.0), ("crash", 5002.0), ("good", 5003.0)):
        bench.scrubber.note(uid, status(a=at))
    bench.scrubber.start()
    await bench.settle()
    assert bench.turns == ["away", "crash", "good"]
    bench.now += INTERVAL
    bench.scrubber.note("wakes", status(a=9000.0))
    await bench.settle()
    assert set(bench.turns[3:]) == {"away", "crash", "good", "wakes"}
    await bench.scrubber.close()


async def test_what_is_gone_has_no_turn() -> None:
    """Neither has an image without bytes."""
    bench = Bench(10_000)
    bench.scrubber.note("a", status(a=6000.0))
    bench.scrubber.note("b", status(a=6000.0))
    bench.scrubber.note("a", None)
    bench.scrubber.note("b", ImageStatus())
    bench.scrubber.start()
    await bench.settle()
    assert bench.turns == []
    await bench.scrubber.close()


async def test_off() -> None:
    """With an interval of 0 nothing is verified."""
    bench = Bench(10_000, interval=0)
    bench.scrubber.note("a", status(a=1.0))
    bench.scrubber.start()
    await bench.settle()
    assert bench.turns == []
    await bench.scrubber.close()
