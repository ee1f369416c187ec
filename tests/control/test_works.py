"""How an Image is fetched, how far a transfer is and how fast, as status shows it; and works that hang."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from tests.control.support import image

from glimpse.api.source import Manner
from glimpse.api.store import ImageStore
from glimpse.control import works
from glimpse.control.quota import Quotas
from glimpse.control.references import References
from glimpse.control.seen import VerifyWork
from glimpse.control.works import Meter, manner
from glimpse.kube import Kube
from glimpse.problems import StoreUnavailable
from glimpse.settings import Settings, Transfers
from glimpse.storeref import describe
from glimpse.tasks import Answer, Done, Event, Progress, StoreRef, Task


class Clock:
    """Stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def meter(*points: tuple[float, int], total: int | None = 1000) -> tuple[Meter, Clock]:
    """A meter that has heard of so many bytes at these seconds after the begin; the clock stands at the last."""
    clock = Clock()
    made = Meter(2, clock)
    made.begin()
    for seconds, done in points:
        clock.now = 1000.0 + seconds
        made.move(Progress(done=done, total=total))
    return made, clock


def test_nothing_yet() -> None:
    """Before the first bytes there is neither speed nor an end in sight."""
    shown = meter()[0].show()
    assert (shown.bytes_done, shown.bytes_total, shown.bytes_per_second, shown.attempt) == (0, None, 0, 2)
    assert (shown.percent, shown.eta_seconds) == (None, None)


def test_speed_of_the_last_seconds() -> None:
    """The speed is what passed in the last five seconds; a burst before them does not count."""
    made, _ = meter((1, 500), (2, 510), (4, 530), (7, 560))
    shown = made.show()
    assert (shown.bytes_done, shown.percent, shown.bytes_per_second, shown.eta_seconds) == (560, 56, 10, 44)


def test_the_first_chunk_is_no_speed() -> None:
    """A chunk that comes at once does not make the transfer look fast for long."""
    made, clock = meter((0.001, 100))
    clock.now += 1.999
    assert made.show().bytes_per_second == 50


def test_silence() -> None:
    """Where nothing moves, the speed is nothing."""
    made, clock = meter((1, 100), (2, 200))
    clock.now += 60
    shown = made.show()
    assert (shown.bytes_done, shown.bytes_per_second, shown.eta_seconds) == (200, 0, None)


def test_a_conversion() -> None:
    """The bytes of the disk are counted from the start, and are no part of the download's speed."""
    made, clock = meter((1, 400), (2, 1000))
    assert made.show().stage == "Transferring"
    clock.now += 1
    made.move(Progress(done=1500, total=9000, converting=True))
    shown = made.show()
    assert (shown.stage, shown.bytes_done, shown.bytes_total, shown.bytes_per_second) == ("Converting", 1500, 9000, 0)


def test_another_mirror() -> None:
    """A mirror that takes over begins at the start: what the other one sent is no part of its speed."""
    made, _ = meter((1, 400), (2, 10), (3, 30))
    shown = made.show()
    assert (shown.bytes_done, shown.bytes_per_second) == (30, 20)


def test_what_was_there_before() -> None:
    """Bytes that an earlier transfer has left are done from the first word on, and no part of the speed."""
    clock = Clock()
    made = Meter(2, clock)
    made.begin()
    for seconds, done in ((1, 400), (2, 400), (3, 420), (4, 430)):
        clock.now = 1000.0 + seconds
        made.move(Progress(done=done, total=1000, start=400))
        assert made.show().bytes_done == done
    assert made.show().bytes_per_second == 10
    made.move(Progress(done=10, total=1000))  # it was of no use: all of it is fetched
    clock.now += 2
    made.move(Progress(done=30, total=1000))
    assert (made.show().bytes_done, made.show().bytes_per_second) == (30, 10)


def test_unknown_length() -> None:
    """Without a length there is a speed, and no percent."""
    shown = meter((1, 400), total=None)[0].show()
    assert (shown.bytes_done, shown.bytes_per_second) == (400, 400)
    assert (shown.percent, shown.eta_seconds) == (None, None)


@pytest.mark.parametrize(
    ("usual", "wanted", "expected"),
    [
        ({}, {}, {}),
        ({"idle_timeout": 30}, {"idleTimeout": "90s"}, {"idle_timeout": 90}),
        ({"idle_timeout": 300}, {"idleTimeout": "1s"}, {"idle_timeout": 1}),
        ({}, {"connections": 16, "retries": 0}, {"connections": 16, "retries": 0}),
        ({"connections": 1}, {"retries": 32}, {"connections": 1, "retries": 32}),
        ({}, {"bandwidth": "50M"}, {"bandwidth": 50_000_000}),
        ({"bandwidth": 1000}, {}, {"bandwidth": 1000}),
        ({"bandwidth": 1 << 20}, {"bandwidth": "2Mi"}, {"bandwidth": 1 << 20}),
        ({"bandwidth": 1 << 20}, {"bandwidth": 1 << 19}, {"bandwidth": 1 << 19}),
    ],
)
def test_how_an_image_is_fetched(usual: dict[str, Any], wanted: dict[str, object], expected: dict[str, Any]) -> None:
    """What an Image says holds in place of the settings, but it gets no more bandwidth than they allow."""
    assert manner(Transfers(**usual), Manner.model_validate(wanted)) == Transfers(**{**usual, **expected})


class Dead:
    """A runner whose workers wait for a dead mount: they say what they read so far, and cannot be stopped."""

    def __init__(self, *said: int) -> None:
        self._said = said
        self.release = asyncio.Event()

    async def start(self) -> None:
        """Nothing to do."""

    async def run(self, _task: Task, say: Callable[[Event], None], /) -> Answer:
        """Begin, and hang."""
        for done in self._said:
            say(Progress(done=done))
        while not self.release.is_set():
            with suppress(asyncio.CancelledError):
                await self.release.wait()
        return Done()

    async def close(self) -> None:
        """Let the workers end."""
        self.release.set()


async def test_a_scrub_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold up all that are to come; nothing is said about the bytes."""
    monkeypatch.setattr(works, "_PATIENCE", 0.01)
    meta = {"name": "fast", "uid": "1"}
    store = ImageStore.model_validate({"metadata": meta, "spec": {"filesystem": {"path": "/dead"}}})
    runner = Dead(10, 20)
    kube = Kube.__new__(Kube)  # not asked: a copy has no source

    async def ref(_: str) -> StoreRef:
        return describe(store, "here")

    made = works.Works(Settings(), runner, References(kube, Settings()), ref, Quotas({}, lambda *_: ()))
    work = VerifyWork(1, "fast", "sha256:00")
    async with asyncio.timeout(120):
        result = await made.run(image(), work, Meter(1), lambda: None)
    assert isinstance(result.problem, StoreUnavailable)
    assert result.problem.message == "store fast gave no bytes for 0 s"
    await runner.close()
