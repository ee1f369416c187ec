"""`glimpse worker` by itself: one task from standard input, one line for each event, the answer last."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from glimpse.tasks import EVENT, Done, Failed, Progress, Started
from glimpse.testing.scripted import PROGRAM, script
from glimpse.worker import CANCELLED, CRASHED, NOT_UNDERSTOOD

Start = Callable[[bytes], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a worker and give it a line; its standard input stays open."""
    with ExitStack() as stack:

        def start(line: bytes) -> subprocess.Popen[bytes]:
            command, pipe = [sys.executable, *PROGRAM], subprocess.PIPE
            process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
            stack.callback(process.kill)
            assert process.stdin
            process.stdin.write(line)
            process.stdin.flush()
            return process

        yield start


def said(process: subprocess.Popen[bytes]) -> list[Any]:
    """All that it says to its end."""
    assert process.stdout
    return [EVENT.validate_json(line) for line in process.stdout]


@pytest.mark.parametrize(("step", "answer"), [(("print", "careless"), Done), ("fail", Failed)])
def test_answer_is_the_last_line(start: Start, step: Any, answer: type) -> None:
    """Good or bad, an answer is the last line, and the status is 0."""
    process = start(script(("count", 2), step).line())
    started, *progress, last = said(process)
    assert started == Started(pid=process.pid)
    assert progress == [Progress(done=0), Progress(done=1)]
    assert isinstance(last, answer)
    assert process.wait() == 0


@pytest.mark.parametrize("how", ["end of file", "SIGTERM"])
@pytest.mark.parametrize(("step", "status"), [("wait", 0), ("hang", CANCELLED)])
def test_cancel(start: Start, how: str, step: str, status: int) -> None:
    """End of file and SIGTERM cancel; a worker that does not heed it ends after the grace."""
    process = start(script(("count", 1), step).line())
    assert process.stdin
    assert process.stdout
    assert [b"started" in process.stdout.readline(), b"progress" in process.stdout.readline()] == [True, True]
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        process.stdin.close()
    assert process.wait() == status


def test_crash_gives_no_answer(start: Start) -> None:
    """An exception that nobody expects is a traceback on standard error, without the task's secrets."""
    task = script(("crash", "hunter2 https://me:pw@host/path?sig=abc"), secret="hunter2")
    process = start(task.line())
    assert process.stderr
    errors = process.stderr.read()
    assert process.wait() == CRASHED
    assert b"ZeroDivisionError: " in errors
    assert b"https://host/path?" in errors
    assert not [secret for secret in (b"hunter2", b"me:pw", b"abc") if secret in errors]


@pytest.mark.parametrize("line", [b"", b"half a line", b"nonsense\n", b'{"do": "dance", "token": "hunter2"}\n'])
def test_what_is_no_task(start: Start, line: bytes) -> None:
    """What is no task gives no answer, and is not quoted."""
    process = start(line)
    out, errors = process.communicate()
    assert process.returncode == (NOT_UNDERSTOOD if line.endswith(b"\n") else CANCELLED)
    assert out == b""
    assert b"hunter2" not in errors


def test_listener_that_went_away_cancels(start: Start) -> None:
    """When nobody reads the events any more, nobody wants the rest: the task is cancelled, and there is no answer."""
    process = start(script(("count", 1), "wait", ("count", 1)).line())
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == CANCELLED


def test_secrets_are_masked_unless_they_are_sent() -> None:
    """A task can be printed; only its line has the secrets."""
    task = script(secret="hunter2")
    assert b"hunter2" in task.line()
    assert "hunter2" not in repr(task) + str(task) + task.model_dump_json()
    assert json.loads(task.line())["store"]["secret"] == {"password": "hunter2"}
