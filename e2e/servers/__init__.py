"""Real servers on loopback, one class each, for `make up`, `make demo`, `make bench` and the tests alike.

One way to start a server means that what the tests prove is what a person sees. Whoever started a server stops
it: one that belongs to a test dies with its process, one of `make up` lives on and is found again in `.run/`.
"""

import contextlib
import fcntl
import json
import random
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from servers.processes import Process
from servers.tools import Missing, tool

__all__ = [
    "ROOT",
    "RUN",
    "Missing",
    "Process",
    "Server",
    "ServerError",
    "free_port",
    "locked",
    "run",
    "tool",
    "wait_until",
]

ROOT: Final = Path(__file__).resolve().parents[2]
"""The project's folder."""
RUN: Final = ROOT / ".run"
"""State, data and logs of the servers of `make up`."""

BUSY: Final = 4
"""Times as long as on a machine with nothing else to do anything may take, before it counts as failed."""

E = TypeVar("E")


class ServerError(Exception):
    """A server did not start or ended by itself; the message has the end of its log."""


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now.

    Below the ephemeral range, since a poll of a port in it can connect to itself. Another program may take the
    port before the server binds it: the server then ends at once, and its class starts it again on another.
    """
    for _ in range(1000):
        port = random.randrange(15000, 32000)  # noqa: S311 - picks a port, guards nothing
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port between 15000 and 32000 on 127.0.0.1")


def wait_until(
    what: str, ready: Callable[[], bool], *, timeout: float, alive: Sequence[Process] = (), poll: float = 0.05
) -> None:
    """Poll `ready` until it is true. Raises ServerError once one of `alive` has ended, or after some time.

    `timeout`: seconds, where nothing else runs.
    """
    timeout *= BUSY
    deadline = time.monotonic() + timeout
    while not ready():
        for process in alive:
            if not process.alive():
                raise ServerError(f"{process.name} ended; the end of {process.log}:\n{process.tail()}")
        if time.monotonic() > deadline:
            logs = "".join(f"\n{p.log}:\n{p.tail()}" for p in alive)
            raise ServerError(f"{what} was not ready after {timeout:.0f} s{logs}")
        time.sleep(poll)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; wait for it. A killed holder lets it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Server(ABC, Generic[E]):
    """One real server: its processes, its folder and its endpoint.

    As a context manager it is started on entry and stopped on exit. The processes die with the thread that
    started them, unless the server is `detached`; then `save` and `load` carry it from one command to the next.
    """

    name: ClassVar[str]
    """What `up`, `down` and `status` call it."""

    def __init__(self, folder: Path, *, detached: bool = False) -> None:
        """`folder`: for data and logs, made if it is missing; a second start in it finds the data of the first."""
        self.folder = folder
        self.detached = detached
        self.processes: dict[str, Process] = {}

    @abstractmethod
    def start(self) -> E:
        """Start, wait until ready. Raises Missing or ServerError; after either, nothing is left running."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers as it should, now."""

    def stop(self) -> None:
        """Stop what runs, last started first. The data stay. May be called twice."""
        for name in reversed(list(self.processes)):
            self.processes.pop(name).stop()

    def ports(self, count: int, *, fresh: bool = False) -> list[int]:
        """Ports of this server: the same at each start in this folder, so that its addresses stay; or fresh ones."""
        path = self.folder / "ports.json"
        if fresh or not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([free_port() for _ in range(count)]))
        ports: list[int] = json.loads(path.read_text())
        return ports

    def describe(self) -> dict[str, str]:
        """What a person wants to know of it: addresses, files."""
        return {}

    def state(self) -> dict[str, Any]:
        """What `restore` needs; JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state that an earlier command saved."""

    def spawn(self, name: str, args: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Process:
        """Start one program, its output in `name.log` in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        process = Process.spawn(
            name, args, log=self.folder / f"{name}.log", env=env, detached=self.detached, cwd=self.folder
        )
        self.processes[name] = process
        return process

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        document = {
            "server": self.name,
            "folder": str(self.folder),
            "processes": {name: process.state() for name, process in self.processes.items()},
            "state": self.state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(document, indent=2) + "\n")
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The server that `save` wrote to `path`, with those of its processes that still run; None without one."""
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        server = cls(Path(document["folder"]), detached=True)
        found = ((name, Process.found(name, state)) for name, state in document["processes"].items())
        server.processes = {name: process for name, process in found if process.alive()}
        server.restore(document["state"])
        return server

    def __enter__(self) -> E:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened."""
        self.stop()


def run(*args: str | Path, stdin: str | None = None, timeout: float = 60) -> str:
    """Run a program to its end; what it printed. Raises ServerError with its words if it fails.

    `timeout`: seconds, where nothing else runs.
    """
    done = subprocess.run(
        [str(a) for a in args], check=False, capture_output=True, text=True, timeout=timeout * BUSY, input=stdin
    )
    if done.returncode:
        raise ServerError(f"{Path(args[0]).name} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
