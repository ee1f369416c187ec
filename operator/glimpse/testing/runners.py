"""The contract of a Runner, as tests: whoever writes one inherits these and gives a way to make it.

A runner is judged by what can happen to a worker: it crashes, hangs, is killed, floods, talks nonsense. The workers are
real processes that follow a script (`glimpse.testing.scripted`).
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from glimpse.problems import DataLost, WorkerLost
from glimpse.runners import LINE, Runner
from glimpse.tasks import Answer, Done, Event, Failed, Progress, Started, Task
from glimpse.testing.scripted import PROGRAM, found, script

PATIENCE: Final = 120.0
"""Seconds until a test gives up waiting for what must happen."""


class Heard:
    """What a worker has said; for `say`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        """As `say`."""
        self.events.append(event)
        self._news.set()

    async def until(self, true: Callable[[list[Event]], object]) -> None:
        """Wait until the events are so."""
        async with asyncio.timeout(PATIENCE):
            while not true(self.events):
                self._news.clear()
                await self._news.wait()

    @property
    def pid(self) -> int:
        """Of the worker."""
        started = self.events[0]
        assert isinstance(started, Started)
        return started.pid


async def eventually(true: Callable[[], object]) -> None:
    """Wait until it is so, for things that nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - nobody sets an event when a process is gone
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(runner: Runner, task: Task) -> AsyncIterator[tuple[asyncio.Task[Answer], Heard]]:
    """A task whose worker has started; cancelled at the end if it still runs."""
    heard = Heard()
    work = asyncio.create_task(runner.run(task, heard))
    hearing = asyncio.create_task(heard.until(len))
    await asyncio.wait([work, hearing], return_when=asyncio.FIRST_COMPLETED)
    hearing.cancel()
    try:
        yield work, heard
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError, WorkerLost):
            await work


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine, also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def everything_shown() -> str:
    """The command lines and environments of all processes that we may look at."""
    shown = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not dumpable: then nobody else can read it either
            shown += [(path / name).read_text(errors="replace") for name in ("cmdline", "environ")]
    return "\n".join(shown)


class RunnerContract:
    """Inherit, and override `make`; `alive` too, if the workers are not processes of this machine."""

    pytestmark = pytest.mark.asyncio(loop_scope="class")

    @classmethod
    def make(cls, program: Sequence[str], stop_grace: float) -> Runner:
        """A runner, not started, whose workers are started by these arguments to Python."""
        raise NotImplementedError

    def alive(self, pid: int) -> bool:
        """Whether a worker, known by the pid that it gave itself, is there."""
        return alive(pid)

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def runner(cls) -> AsyncIterator[Runner]:
        """A runner whose workers follow scripts; one for all tests, since nothing that a worker does may harm it."""
        runner = cls.make(PROGRAM, 0.5)
        await runner.start()
        yield runner
        await runner.close()

    async def test_answer_comes_back(self, runner: Runner) -> None:
        """The answer is returned, and is not an event."""
        heard = Heard()
        answer = await runner.run(script("environ"), heard)
        assert isinstance(answer, Done)
        assert [type(event) for event in heard.events] == [Started]

    async def test_events_come_in_order(self, runner: Runner) -> None:
        """Events are passed on as they were said, after Started, each once; thousands of them block nobody."""
        heard = Heard()
        await runner.run(script(("count", 5000)), heard)
        assert heard.events[1:] == [Progress(done=done) for done in range(5000)]

    async def test_events_come_while_the_task_runs(self, runner: Runner) -> None:
        """An event is not held back until the end."""
        async with running(runner, script(("count", 3), "wait")) as (work, heard):
            await heard.until(lambda events: len(events) == 4)
            assert not work.done()

    async def test_failure_is_an_answer(self, runner: Runner) -> None:
        """A Problem is returned as Failed, not raised."""
        answer = await runner.run(script("fail"), Heard())
        assert isinstance(answer, Failed)
        assert isinstance(answer.trouble.problem(), DataLost)

    @pytest.mark.parametrize(
        ("step", "why"),
        [
            (("kill", int(signal.SIGKILL)), "SIGKILL"),
            (("kill", int(signal.SIGSEGV)), "SIGSEGV"),
            (("leave", 3), "status 3"),
            (("leave", 0), "status 0"),
            (("crash", "surprise"), "status 70"),
        ],
    )
    async def test_worker_without_an_answer_is_lost(self, runner: Runner, step: tuple[Any, ...], why: str) -> None:
        """However a worker ends without an answer, also with status 0, WorkerLost says how; the next one is well."""
        heard = Heard()
        with pytest.raises(WorkerLost, match=why) as lost:
            await runner.run(script(step), heard)
        assert lost.value.crashed, "what it was working on may be the reason"
        assert not self.alive(heard.pid)
        assert isinstance(await runner.run(script(), Heard()), Done)

    async def test_worker_that_is_killed_is_lost(self, runner: Runner) -> None:
        """A worker that somebody kills in the middle is lost, and the others go on."""
        async with running(runner, script("wait")) as (work, heard), running(runner, script("wait")) as (other, _):
            os.kill(heard.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost, match="SIGKILL"):
                await work
            assert not other.done()

    @pytest.mark.parametrize(
        "step",
        [
            ("raw", "nonsense\n"),
            ("raw", '{"event": "unheard-of"}\n'),
            ("raw", '{"event": "progress", "done": "much"}\n'),
            ("raw", "\n"),
            ("raw", "x" * (1 << 20), LINE // (1 << 20) + 1),
        ],
        ids=["nonsense", "unknown", "wrong type", "empty", "endless"],
    )
    async def test_nonsense_is_a_lost_worker(self, runner: Runner, step: tuple[Any, ...]) -> None:
        """A worker that says what is no event is killed, and lost."""
        heard = Heard()
        with pytest.raises(WorkerLost):
            await runner.run(script(step, "hang"), heard)
        assert not self.alive(heard.pid)

    async def test_answer_is_the_last_word(self, runner: Runner) -> None:
        """A worker that goes on after its answer is lost: nobody can tell which word to believe."""
        with pytest.raises(WorkerLost):
            await runner.run(script("answer", ("count", 1), "hang"), Heard())

    async def test_output_of_libraries_harms_nobody(self, runner: Runner) -> None:
        """What is printed on standard output is no event."""
        assert isinstance(await runner.run(script(("print", "careless")), Heard()), Done)

    async def test_cancel_waits_for_death(self, runner: Runner) -> None:
        """CancelledError comes out when the worker is gone, not before; the worker had its chance to clean up."""
        async with running(runner, script("wait", ("count", 1), "wait")) as (work, heard):
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert not self.alive(heard.pid)
            assert Progress(done=0) in heard.events

    async def test_cancel_of_a_worker_that_hangs(self, runner: Runner) -> None:
        """A worker that does not heed the cancel is killed after the grace."""
        async with running(runner, script("hang")) as (work, heard):
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert not self.alive(heard.pid)

    async def test_cancel_twice(self, runner: Runner) -> None:
        """A second cancel does not shorten the wait for the worker's death."""
        async with running(runner, script("hang")) as (work, heard):
            for _ in range(5):
                work.cancel()
                await asyncio.wait([work], timeout=0.05)
            assert work.done() != self.alive(heard.pid)
            with pytest.raises(asyncio.CancelledError):
                await work
            assert not self.alive(heard.pid)

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10])
    async def test_cancel_at_once(self, runner: Runner, turns: int) -> None:
        """A cancel at any moment of the start leaves no worker behind."""
        heard = Heard()
        work = asyncio.create_task(runner.run(script("wait"), heard))
        for _ in range(turns):
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not any(self.alive(event.pid) for event in heard.events if isinstance(event, Started))

    async def test_error_of_the_listener_comes_out(self, runner: Runner) -> None:
        """What `say` raises comes out of `run`, when the worker is dead."""
        pids = []

        def say(event: Event) -> None:
            if isinstance(event, Started):
                pids.append(event.pid)
            raise LookupError("listener")

        with pytest.raises(LookupError, match="listener"):
            await runner.run(script(("count", 3), "hang"), say)
        assert not self.alive(pids[0])

    async def test_many_at_once(self, runner: Runner) -> None:
        """Tasks that come together are all done, each in a worker of its own, and do not mix."""
        hearers = [Heard() for _ in range(100)]
        work = (runner.run(script(("count", n)), heard) for n, heard in enumerate(hearers))
        assert all(isinstance(answer, Done) for answer in await asyncio.gather(*work))
        assert [len(heard.events) - 1 for heard in hearers] == list(range(100))
        assert len({heard.pid for heard in hearers}) == 100

    async def test_large_task(self, runner: Runner) -> None:
        """A task may be far larger than what a socket holds."""
        answer = await runner.run(script("environ", folder="/" + "x" * (8 << 20)), Heard())
        assert isinstance(answer, Done)

    async def test_large_event(self, runner: Runner) -> None:
        """So may an event."""
        heard = Heard()
        line = '{"event": "stored", "store": "s", "size": 1, "location": "' + "x" * (1 << 20) + '"}\n'
        assert isinstance(await runner.run(script(("raw", line)), heard), Done)
        assert len(heard.events) == 2

    async def test_secrets_stay_inside(self, runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
        """A task's secret is in no command line, no environment, no log, not even when the worker crashes."""
        task = script(("count", 1), "wait", ("crash", "hunter2 http://me:pw@host/?sig=abc"), secret="hunter2")  # noqa: S106 - made up
        async with running(runner, task) as (work, heard):
            assert "hunter2" not in everything_shown()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert not self.alive(heard.pid)
        await eventually(lambda: "ZeroDivisionError" in caplog.text)
        assert not re.search("hunter2|:pw@|sig=abc", caplog.text)

    async def test_environment_is_clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker's environment has nothing of the operator's but what starts Python and finds certificates."""
        for name in "KUBECONFIG", "GLIMPSE_KUBECONFIG", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "HOME":
            monkeypatch.setenv(name, "x")
        runner = self.make(PROGRAM, 0.5)
        try:
            (environ,) = found(await runner.run(script("environ"), Heard()))
        finally:
            await runner.close()
        known = r"PATH|LANG|LC_\w+|TZ|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)|PYTHON\w*"
        assert not [name for name in environ if not re.fullmatch(known, name)]

    async def test_close_leaves_nobody(self) -> None:
        """After `close` no worker is left, nothing that it had started, and no task is taken any more."""
        runner = self.make(PROGRAM, 0.5)
        await runner.start()
        async with running(runner, script("hang")) as (first, a), running(runner, script("hang")) as (second, b):
            await runner.close()
            assert not self.alive(a.pid)
            assert not self.alive(b.pid)
            for work in first, second:
                with pytest.raises(WorkerLost):
                    await work
        with pytest.raises(WorkerLost):
            await runner.run(script(), Heard())
        await runner.close()

    async def test_a_program_that_cannot_start(self) -> None:
        """A worker that cannot be started is WorkerLost, at `start` or at `run`, not a wait for ever."""
        runner = self.make(("-c", "raise SystemExit('no')"), 0.5)

        async def both() -> None:
            await runner.start()
            await runner.run(script(), Heard())

        with pytest.raises(WorkerLost):
            await both()
        await runner.close()
