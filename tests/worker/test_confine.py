"""What a worker may do: the operator's files, processes and memory are out of its reach."""

import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import gettempdir

import pytest
import pytest_asyncio

from glimpse.confine import MEMORY, Cage
from glimpse.runners import Inline, Runner
from glimpse.testing.runners import Heard, running
from glimpse.testing.scripted import PROGRAM, found, script

pytestmark = pytest.mark.asyncio(loop_scope="module")


def of(pid: int, name: str) -> str:
    """What the kernel says of a process."""
    return Path(f"/proc/{pid}/{name}").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[Runner]:
    """A runner whose workers follow scripts."""
    runner = Inline(program=PROGRAM, stop_grace=0.5)
    await runner.start()
    yield runner
    await runner.close()


async def test_this_kernel_can() -> None:
    """The tests below need Landlock; a kernel without it is no place to test."""
    assert Cage().abi >= 2


async def test_token_cannot_be_read(runner: Runner, tmp_path: Path) -> None:
    """The operator's token and kubeconfig are files that the worker's user may read, and the worker may not."""
    token = tmp_path / "token"
    token.write_text("secret")
    answers = found(
        await runner.run(
            script(
                ("read", str(token)),
                ("read", "/etc/shadow"),
                ("read", f"/proc/{os.getpid()}/environ"),
                ("read", f"/proc/{os.getpid()}/mem"),
                ("read", f"/proc/{os.getpid()}/fd/0"),
                ("write", str(tmp_path / "new")),
                ("write", f"{gettempdir()}/glimpse-{os.getpid()}"),
                folder=str(tmp_path / "store"),
            ),
            Heard(),
        )
    )
    assert answers == ["PermissionError"] * 7


async def test_store_can_be_written(runner: Runner, tmp_path: Path) -> None:
    """The folder of the task's store can be read and written, another store's cannot."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    steps = [(verb, str(tmp_path / store / "file")) for store in "ab" for verb in ("write", "read")]
    answers = found(await runner.run(script(*steps, folder=str(tmp_path / "a")), Heard()))
    assert answers == ["", "", "PermissionError", "FileNotFoundError"]


async def test_network_and_certificates_are_in_reach(runner: Runner) -> None:
    """What names and certificates are resolved with can be read, and Python can import."""
    paths = ["/etc/hosts", "/etc/resolv.conf", "/dev/urandom", "/etc/ssl/certs/ca-certificates.crt", os.__file__]
    answers = found(await runner.run(script(*(("read", path) for path in paths)), Heard()))
    assert [bool(answer) and not answer.endswith("Error") for answer in answers] == [True] * 5


async def test_processes_are_out_of_reach(runner: Runner) -> None:
    """A worker can signal neither the operator nor another worker."""
    async with running(runner, script("wait")) as (_, other):
        answers = found(await runner.run(script(("signal", os.getpid()), ("signal", other.pid)), Heard()))
    assert answers == ["PermissionError"] * 2


async def test_nothing_is_inherited(runner: Runner) -> None:
    """A worker has its standard files, its own socket and the pipe of its signals; nothing of other workers."""
    async with running(runner, script("wait")), running(runner, script("wait")):
        descriptors, status = found(await runner.run(script("descriptors", "status"), Heard()))
    assert descriptors[:3] == [0, 1, 2]
    assert len(descriptors) == 3 + 1 + 2
    assert status["cwd"] == "/"
    assert status["pgid"] == status["pid"]


async def test_limits(runner: Runner) -> None:
    """No new privileges, no core files, memory within its limit, first to go if the machine runs out of it."""
    async with running(runner, script("wait")) as (_, heard):
        assert "NoNewPrivs:\t1" in of(heard.pid, "status")
        assert resource.prlimit(heard.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(heard.pid, resource.RLIMIT_AS) == (MEMORY, MEMORY)
        assert of(heard.pid, "oom_score_adj") == "500\n"
    assert found(await runner.run(script(("allocate", MEMORY)), Heard())) == ["MemoryError"]


async def test_fork_is_of_one_thread(runner: Runner) -> None:
    """The warm process has one thread, so that a fork cannot copy a lock that somebody holds."""
    async with running(runner, script("wait")) as (_, heard):
        warm = int(of(heard.pid, "stat").rpartition(")")[2].split()[1])
        assert "Threads:\t1\n" in of(warm, "status")
