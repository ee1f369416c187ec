"""Inline keeps the contract of runners, and what it promises besides."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from glimpse.problems import WorkerLost
from glimpse.runners import STARTS, Inline, Runner, _Log, environment
from glimpse.tasks import Done
from glimpse.testing.runners import PATIENCE, Heard, RunnerContract, eventually, running
from glimpse.testing.scripted import PROGRAM, found, script


def parent(pid: int) -> int:
    """The parent of a process: of a worker, the warm process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(*pids: int) -> bool:
    """Whether none of these is there any more, but as a zombie that waits for its new parent."""

    def there(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return not any(map(there, pids))


class TestInline(RunnerContract):
    """The contract."""

    @classmethod
    def make(cls, program: Sequence[str], stop_grace: float) -> Runner:
        """As the operator makes it."""
        return Inline(program=program, stop_grace=stop_grace)


@pytest.fixture
async def inline() -> AsyncIterator[Inline]:
    """A runner whose workers follow scripts."""
    runner = Inline(program=PROGRAM, stop_grace=0.5)
    await runner.start()
    yield runner
    await runner.close()


@pytest.mark.parametrize(("kills", "works"), [(STARTS - 1, True), (STARTS, False)])
async def test_a_start_that_is_killed_is_made_again(tmp_path: Path, kills: int, works: bool) -> None:
    """Whoever kills the warm process while the operator starts does not end the operator; who always does, does."""
    doomed = f"""
import os, runpy, signal, sys
marks = [os.path.join({str(tmp_path)!r}, str(n)) for n in range({kills})]
for mark in marks:
    if not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
runpy.run_module({PROGRAM[1]!r}, run_name="__main__")
"""
    runner = Inline(program=("-c", doomed))
    try:
        if works:
            await runner.start()
            assert isinstance(await runner.run(script(), Heard()), Done)
        else:
            with pytest.raises(WorkerLost, match="SIGKILL"):
                await runner.start()
    finally:
        await runner.close()
    assert len(os.listdir(tmp_path)) == kills  # noqa: PTH208 - in an async test


async def test_warm_process_is_started_again(inline: Inline) -> None:
    """If the warm process dies, its workers die and are lost, and the next task starts another one."""
    async with running(inline, script("hang")) as (work, heard):
        os.kill(parent(heard.pid), signal.SIGKILL)
        with pytest.raises(WorkerLost, match="SIGKILL") as lost:
            await work
        assert not lost.value.crashed, "what it was working on is not the reason"
        await eventually(lambda: gone(heard.pid))
    assert isinstance(await inline.run(script(), Heard()), Done)


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 30])
async def test_warm_process_dies_at_any_moment(inline: Inline, turns: int) -> None:
    """Tasks that are just starting when the warm process dies end, with an answer or lost; none waits for ever."""
    async with running(inline, script("wait")) as (_, heard):
        tasks = [asyncio.create_task(inline.run(script(), Heard())) for _ in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        os.kill(parent(heard.pid), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [outcome for outcome in outcomes if not isinstance(outcome, Done | WorkerLost)]


async def test_workers_at_once_are_bounded() -> None:
    """No more workers than allowed; others wait, and can be cancelled while they do."""
    runner = Inline(program=PROGRAM, stop_grace=0.5, at_once=1)
    async with running(runner, script("wait")):
        waiting = asyncio.create_task(runner.run(script(), Heard()))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert isinstance(await runner.run(script(), Heard()), Done)
    await runner.close()


async def test_what_a_worker_has_started_dies_with_it(inline: Inline) -> None:
    """A worker's own children are killed when it ends, well or not."""
    (child,) = found(await inline.run(script("spawn"), Heard()))
    await eventually(lambda: gone(child))


OPERATOR = """
import asyncio, sys
from glimpse.runners import Inline
from glimpse.testing.scripted import PROGRAM, script

async def main():
    runner = Inline(program=PROGRAM)
    say = lambda event: print(event.pid, flush=True)
    await asyncio.gather(*(runner.run(script("hang"), say) for _ in range(3)))

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_workers_die_with_the_operator(number: int) -> None:
    """However the operator ends, the warm process and all workers end with it."""
    operator = await asyncio.create_subprocess_exec(sys.executable, "-c", OPERATOR, stdout=subprocess.PIPE)
    assert operator.stdout
    pids = [int(await operator.stdout.readline()) for _ in range(3)]
    warm = parent(pids[0])
    assert not gone(warm)
    operator.send_signal(number)
    await operator.wait()
    await eventually(lambda: gone(warm, *pids))


async def test_interrupt_of_the_terminal_is_for_the_operator(inline: Inline) -> None:
    """Ctrl-C reaches the group of the terminal; workers are in other groups, so that they end in good order."""
    async with running(inline, script("wait")) as (_, heard):
        assert os.getpgid(heard.pid) == heard.pid
        assert os.getsid(heard.pid) == parent(heard.pid) != os.getsid(0)


def test_environment_is_chosen_by_name() -> None:
    """Only names that are known to be harmless pass."""
    given = {"PATH": "/bin", "PYTHONPATH": "x", "KUBECONFIG": "k", "GLIMPSE_KUBECONFIG": "k", "TOKEN": "t"}
    assert environment(given) == {"PATH": "/bin", "PYTHONPATH": "x"}
    identity = {"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token"}
    assert environment(identity | {"AWS_SECRET_ACCESS_KEY": "s", "AWS_PROFILE": "p"}) == identity


def test_log_of_workers_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that prints without end fills neither the log nor the memory."""
    log = _Log()
    log.feed(b"first\nsec")
    log.feed(b"ond\n" + b"x" * 1_000_000)
    for _ in range(1000):
        log.feed(b"y" * 1000 + b"\n")
    assert [record.getMessage() for record in caplog.records[:2]] == ["first", "second"]
    assert len(caplog.records) == _Log.LINES
    assert max(len(record.getMessage()) for record in caplog.records) == _Log.WIDTH
