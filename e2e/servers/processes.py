"""A program that runs: started here, or found again by a later command.

A pid alone names nothing for long, so a process is known by its pid and the moment it started; what is stopped is
then always what was started.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from servers.tools import tool


def _born(pid: int) -> int | None:
    """When the process began, in clock ticks since boot (proc(5), field 22); None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(rest[18])


def children(pid: int) -> list[int]:
    """The processes that any thread of a process has started, and that still run; none if it has ended."""
    found, ended = list[int](), contextlib.suppress(FileNotFoundError, ProcessLookupError)
    with ended:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with ended:  # a thread may, between two looks
                found += map(int, (task / "children").read_text().split())
    return found


@dataclass
class Process:
    """One process, its own child or a stranger's."""

    name: str
    pid: int
    log: Path
    born: int
    child: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    """Set if this very program started it: it must then be reaped."""

    @classmethod
    def spawn(
        cls,
        name: str,
        args: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        detached: bool = False,
    ) -> Self:
        """Start `args` with its output appended to `log`.

        Unless `detached`, it is killed when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).
        """
        command = [str(a) for a in args]
        if not detached:
            command = [tool("setpriv", "util-linux"), "--pdeathsig", "KILL", "--", *command]
        with log.open("ab") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,  # a Ctrl-C at the terminal is for us: we stop the servers in order
            )
        return cls(name, child.pid, log, _born(child.pid) or 0, child)

    @classmethod
    def found(cls, name: str, state: Mapping[str, Any]) -> Self:
        """The process that `state()` described, alive or not."""
        return cls(name, state["pid"], Path(state["log"]), state["born"])

    def state(self) -> dict[str, Any]:
        """What `found` needs; JSON values."""
        return {"pid": self.pid, "born": self.born, "log": str(self.log)}

    def alive(self) -> bool:
        """Whether it still runs."""
        if self.child is not None:
            return self.child.poll() is None
        return _born(self.pid) == self.born

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stopped(self) -> bool:
        """Whether each of its threads stands still, as a moment after SIGSTOP; also if it has ended."""
        try:
            states = [
                path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{self.pid}/task").glob("*/stat")
            ]
        except OSError:
            return not self.alive()
        return all(state in "TtZX" for state in states)

    def wait(self, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds."""
        if self.child is not None:
            try:
                self.child.wait(timeout)
            except subprocess.TimeoutExpired:
                return False
            return True
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if _born(self.pid) != self.born:
                return True
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            return bool(ended.poll(timeout * 1000))
        finally:
            os.close(descriptor)

    def stop(self, grace: float = 5.0) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds. Returns when it is gone."""
        self.signal(signal.SIGTERM)
        if not self.wait(grace):
            self.kill()

    def kill(self) -> None:
        """SIGKILL. Returns when it is gone."""
        self.signal(signal.SIGKILL)
        self.wait(30)

    def rss(self) -> int:
        """Its resident memory in bytes (proc(5), VmRSS); 0 if it is gone."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"
