"""A worker that does what a test tells it: wait, crash, talk nonsense.

Everything around the work is the real worker, its process and its confinement too, so that a Runner is tested with
all that can happen to it. Run as `python -m glimpse.testing.scripted`, in place of `glimpse worker`.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

from glimpse import worker
from glimpse.problems import DataLost, Problem
from glimpse.tasks import Answer, Done, Event, Failed, Progress, StoreRef, Task, Trouble, Verify

PROGRAM = ("-m", "glimpse.testing.scripted")
"""Arguments to Python that start this worker."""


def script(*steps: str | tuple[Any, ...], folder: str = "/nonexistent", secret: str = "") -> Task:
    """A task of these steps, each `(verb, *arguments)` or a verb alone; they are the names of functions below.

    `folder`: of the filesystem store that the task is for. `secret`: of that store.
    """
    store = StoreRef(name="s", driver="filesystem", config={"path": folder}, installation="test")
    store = StoreRef.model_validate({**store.model_dump(), "secret": {"password": secret}})
    key = json.dumps([step if isinstance(step, tuple) else (step,) for step in steps])
    return Verify(key=key, digest="", store=store)


def found(answer: Answer) -> list[Any]:
    """What the steps of a script have returned."""
    assert isinstance(answer, Done), answer
    return cast(list[Any], json.loads(answer.endpoint or ""))


class _Raw:
    """Stands where an event should be."""

    def __init__(self, line: bytes) -> None:
        self._line = line

    def line(self) -> bytes:
        return self._line


def do(task: Task, say: Callable[[Event], None], cancelled: threading.Event) -> Answer:
    """Do the steps of a script; the answer holds what they return."""
    assert isinstance(task, Verify)
    steps = Steps(say, cancelled)
    try:
        return Done(
            endpoint=json.dumps([getattr(steps, verb)(*arguments) for verb, *arguments in json.loads(task.key)])
        )
    except Problem as problem:
        return Failed(trouble=Trouble.of(problem))


class Steps:
    """The verbs of a script."""

    def __init__(self, say: Callable[[Event], None], cancelled: threading.Event) -> None:
        self._say = say
        self._cancelled = cancelled

    def count(self, number: int) -> None:
        """Say so many events."""
        for done in range(number):
            self._say(Progress(done=done))

    def wait(self) -> None:
        """Until the task is cancelled."""
        self._cancelled.wait()

    def hang(self) -> None:
        """For ever, cancelled or not."""
        threading.Event().wait()

    def fail(self) -> None:
        """Answer with a Problem."""
        raise DataLost("as told")

    def crash(self, message: str) -> None:
        """Raise what nobody expects."""
        raise ZeroDivisionError(message)

    def leave(self, status: int) -> None:
        """End without an answer."""
        os._exit(status)

    def kill(self, number: int) -> None:
        """End by a signal."""
        os.kill(os.getpid(), number)

    def raw(self, text: str, times: int = 1) -> None:
        """Say something that is no event."""
        for _ in range(times):
            self._say(cast(Event, _Raw(text.encode())))

    def answer(self) -> None:
        """Give an answer before the answer."""
        self._say(Done())

    def print(self, text: str) -> None:
        """As a careless library does."""
        print(text)  # noqa: T201 - that is the point
        sys.stdout.flush()

    def environ(self) -> dict[str, str]:
        """The environment."""
        return dict(os.environ)

    def descriptors(self) -> list[int]:
        """The files that are open."""
        return [fd for fd in range(256) if _is_open(fd)]

    def read(self, path: str) -> str:
        """The beginning of a file, or the name of the error."""
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - nothing but the call to the system
                return file.read(100).decode(errors="replace")
        except OSError as error:
            return type(error).__name__

    def write(self, path: str) -> str:
        """Make a file; the name of the error, if there is one."""
        try:
            with open(path, "xb"):  # noqa: PTH123 - the same
                return ""
        except OSError as error:
            return type(error).__name__

    def signal(self, pid: int) -> str:
        """Ask whether a process can be signalled; the name of the error, if there is one."""
        try:
            os.kill(pid, 0)
        except OSError as error:
            return type(error).__name__
        return ""

    def allocate(self, size: int) -> str:
        """Take memory; the name of the error, if there is one."""
        try:
            bytearray(size)
        except MemoryError as error:
            return type(error).__name__
        return ""

    def spawn(self) -> int:
        """Start a process that does not end by itself; its pid."""
        return subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL).pid

    def status(self) -> dict[str, str]:
        """What the kernel says of this process, where it may be read: else of its limits and flags."""
        return {"pgid": str(os.getpgid(0)), "pid": str(os.getpid()), "cwd": os.getcwd()}  # noqa: PTH109 - a str for JSON

    def threads(self) -> int:
        """Threads of this process: the main one, and the one that waits for a cancel."""
        return threading.active_count()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def main() -> int:
    """As `glimpse worker`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--warm", type=int)
    fd = parser.parse_args().warm
    return worker.plain(do) if fd is None else worker.warm(fd, do)


if __name__ == "__main__":
    sys.exit(main())
