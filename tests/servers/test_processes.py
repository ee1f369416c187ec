"""How server processes live and end."""

import subprocess
import sys
from pathlib import Path

import pytest

from servers import Process, ServerError, wait_until
from servers.require import require

_PARENT = """
import sys
from pathlib import Path
from servers import Process
print(Process.spawn("sleep", ["sleep", "600"], log=Path(sys.argv[1])).state(), flush=True)
sys.stdin.read()
"""


def test_a_process_dies_with_the_one_that_started_it(tmp_path: Path) -> None:
    """SIGKILL to a test run leaves no server behind."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, tmp_path / "log"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "e2e"), "PATH": "/usr/bin:/bin"},
    ) as parent:
        assert parent.stdout is not None
        child = Process.found("sleep", eval(parent.stdout.readline()))  # noqa: S307 - a dict that we printed
        # Before it has become `sleep`, nobody has told the kernel with whom it dies.
        comm = Path(f"/proc/{child.pid}/comm")
        wait_until("sleep", lambda: comm.read_text() == "sleep\n", timeout=30)
        assert child.alive()
        parent.kill()
    assert child.wait(60)
    assert not child.alive()


def test_a_pid_that_is_used_again_is_not_touched(tmp_path: Path) -> None:
    """A process is its pid and its birth: a stranger with the same pid is not stopped."""
    mine = Process.spawn("sleep", ["sleep", "600"], log=tmp_path / "log")
    try:
        stranger = Process.found("sleep", {**mine.state(), "born": mine.born + 1})
        assert not stranger.alive()
        stranger.stop()
        assert mine.alive()
    finally:
        mine.kill()
    assert not mine.alive()


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    """Waiting for a program that has ended fails at once, with the end of its log."""
    failing = Process.spawn("sh", ["sh", "-c", "echo no such disk; exit 3"], log=tmp_path / "log")
    with pytest.raises(ServerError, match="no such disk"):
        wait_until("it", lambda: False, timeout=20, alive=[failing])


@pytest.mark.parametrize(
    ("promised", "outcome"), [("", "skip"), ("ceph", "skip"), ("all", "fail"), ("ceph, kube", "fail")]
)
def test_a_missing_server_fails_where_it_was_promised(
    promised: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLIMPSE_REQUIRE turns a skip into a failure, for all servers or for those it names."""
    monkeypatch.setenv("GLIMPSE_REQUIRE", promised)
    expected = {"skip": pytest.skip.Exception, "fail": pytest.fail.Exception}[outcome]
    with pytest.raises(expected, match="no room"):
        require("kube", "no room")
