"""Runners start workers and pass their events on.

The operator knows workers only through this protocol, so that one machine, a test and a cluster differ in nothing
else.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Final, Protocol

from pydantic import ValidationError

from glimpse.problems import WorkerLost
from glimpse.tasks import EVENT, Answer, Done, Event, Failed, Task

LINE: Final = 4 << 20
"""Bytes of the longest event; a worker that says more in one breath is broken."""

STARTUP: Final = 60.0
"""Seconds that the warm process may take to import all it needs."""
STARTS: Final = 3
"""Starts of it before the operator gives up."""

_IDENTITY: Final = {
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
}

_log = logging.getLogger(__name__)
_worker_log = logging.getLogger("glimpse.worker")


class Runner(Protocol):
    """Runs tasks, each in a worker of its own."""

    async def start(self) -> None:
        """Make ready to run tasks. Raises WorkerLost if no worker can be started."""

    async def run(self, task: Task, say: Callable[[Event], None], /) -> Answer:
        """Run one task to its answer; events go to `say` as they come, the answer is returned only.

        Cancelled, it stops the worker, waits until it is truly dead, and only then raises CancelledError; so it does
        with what `say` raises. Raises WorkerLost if the worker ended without an answer.
        """

    async def close(self) -> None:
        """Stop all workers; afterwards none is left."""


class Inline:
    """Workers beside the operator: children of one warm process, which is started again if it dies.

    It contains faults, not the execution of foreign code. Everything happens in the loop that called `start`; the
    workers die with the thread of that loop.
    """

    def __init__(
        self, *, stop_grace: float = 3.0, at_once: int = 64, program: Sequence[str] = ("-m", "glimpse", "worker")
    ) -> None:
        """`stop_grace`: seconds that a cancelled worker has to clean up. `at_once`: workers at most, others wait.

        `program`: arguments to Python that start a worker; `--warm FD` is added.
        """
        self._grace = stop_grace
        self._program = program
        self._places = asyncio.Semaphore(at_once)
        self._starting = asyncio.Lock()
        self._warm: _Warm | None = None
        self._closed = False

    async def start(self) -> None:
        """Start the warm process and wait until it is ready; one that is killed meanwhile is started again."""
        for left in reversed(range(STARTS)):
            try:
                await self._ready()
            except WorkerLost as lost:
                if not left or self._closed:
                    raise
                _log.warning("%s; starting it again", lost.message)
            else:
                return

    async def run(self, task: Task, say: Callable[[Event], None], /, *, pipe: IO[bytes] | None = None) -> Answer:
        """Run one task in a child of the warm process.

        `pipe`: what an upload comes through. It is closed here, in any case.
        """
        try:
            async with self._places:
                warm = await self._ready()
                return await warm.run(task, say, self._grace, pipe)
        finally:
            if pipe:
                pipe.close()

    async def close(self) -> None:
        """End the warm process, and its children with it. Tasks that run are lost."""
        self._closed = True
        async with self._starting:
            if self._warm:
                await self._warm.close()

    async def _ready(self) -> "_Warm":
        if (warm := self._warm) and warm.alive and not self._closed:
            return warm
        async with self._starting:
            if self._closed:
                raise WorkerLost("no worker is started any more: the operator is stopping")
            if not (self._warm and self._warm.alive):
                if self._warm:
                    _log.error("the process that starts workers has ended (%s); starting it again", self._warm.end)
                    await self._warm.close()
                self._warm = await _Warm.start(self._program)
            return self._warm


class _Warm(asyncio.SubprocessProtocol):
    """One warm process and the workers in it. The words of the control socket are those of `glimpse.worker`."""

    def __init__(self, control: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._control = control
        self._children: dict[int, _Child] = {}
        self._number = 0
        self._outbox: deque[tuple[bytes, Sequence[socket.socket | IO[bytes]]]] = deque()
        self._log = _Log()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self.silent: asyncio.Future[None] = self._loop.create_future()
        self.alive = True
        self.end = ""

    @classmethod
    async def start(cls, program: Sequence[str]) -> "_Warm":
        """Start the process. Raises WorkerLost if it does not come up; then nothing is left of it."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        fd = theirs.fileno()
        warm = cls(ours)
        with theirs:
            transport, _ = await loop.subprocess_exec(
                lambda: warm,
                *(sys.executable, "-P", *program, "--warm", str(fd)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=environment(os.environ),
                pass_fds=(fd,),
                start_new_session=True,
            )
        warm._transport = transport
        loop.add_reader(ours.fileno(), warm._receive)
        try:
            async with asyncio.timeout(STARTUP):
                await warm.ready
        except BaseException as error:
            await warm.close()
            if isinstance(error, TimeoutError):
                raise WorkerLost(f"the process that starts workers was not ready within {STARTUP:.0f} s") from error
            raise
        return warm

    async def run(
        self, task: Task, say: Callable[[Event], None], grace: float, pipe: IO[bytes] | None = None
    ) -> Answer:
        """As Runner.run. `pipe` goes to the worker, and is closed as soon as it is there."""
        ours, theirs = socket.socketpair()
        try:
            transport, child = await self._loop.create_unix_connection(lambda: _Child(say), sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        # From here to the wait nothing can be cancelled: a worker that was started is waited for.
        self._number += 1
        number = self._number
        self._children[number] = child
        child.kill = lambda: self._post(b"kill %d" % number)
        self._post(b"run %d" % number, theirs, *([pipe] if pipe else []))
        if not self.alive:  # it has ended since it was asked for
            self._orphan(child)
        transport.write(task.line())
        try:
            await asyncio.shield(child.over)
        except asyncio.CancelledError:
            if transport.can_write_eof() and not transport.is_closing():
                transport.write_eof()
            killing = self._loop.call_later(grace, child.kill)
            while not child.over.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([child.over])
            killing.cancel()
            raise
        finally:
            self._children.pop(number, None)
            transport.abort()
        return child.result()

    async def close(self) -> None:
        """End of file makes the process kill its children and end; a process that cannot any more is killed."""
        self._lost("the operator has stopped it")
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.exited), 5)
        if not self.exited.done():
            self._transport.kill()
        await self.exited
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.silent), 1)
        self._transport.close()
        if waiting := [child.over for child in self._children.values()]:
            await asyncio.wait(waiting)

    def pipe_data_received(self, _fd: int, data: bytes) -> None:
        """What workers print."""
        self._log.feed(data)

    def process_exited(self) -> None:
        """The process is gone; its children are killed by the kernel."""
        status = self._transport.get_returncode()
        self._lost(_manner(status) if status is not None else "")
        self.exited.set_result(None)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The process is gone, and nobody is left who could print."""
        self.silent.set_result(None)

    _transport: asyncio.SubprocessTransport

    def _receive(self) -> None:
        try:
            message = self._control.recv(64)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        match message.split():
            case [b"ready"]:
                if not self.ready.done():
                    self.ready.set_result(None)
            case [b"ended", number, status]:
                if child := self._children.get(int(number)):
                    child.ended(_manner(int(status)), alone=True)
            case _:
                self._deaf()

    def _post(self, message: bytes, *channels: socket.socket | IO[bytes]) -> None:
        """Send a message now, or as soon as there is room; `channels` go with it and are closed."""
        self._outbox.append((message, channels))
        if len(self._outbox) == 1 or not self.alive:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            message, channels = self._outbox[0]
            if self.alive:
                try:
                    if channels:
                        socket.send_fds(self._control, [message], [channel.fileno() for channel in channels])
                    else:
                        self._control.send(message)
                except BlockingIOError:
                    self._loop.add_writer(self._control.fileno(), self._flush)
                    return
                except OSError:
                    self._deaf()
                    return
            for channel in channels:
                channel.close()
            self._outbox.popleft()
        if self.alive:
            self._loop.remove_writer(self._control.fileno())

    def _deaf(self) -> None:
        """Its socket is closed, so it is about to end; how it ends is worth waiting for."""
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._loop.call_later(5, self._lost, "it closed its socket")

    def _lost(self, manner: str) -> None:
        """Nothing can be asked of the process any more."""
        if not self.alive:
            return
        self.alive = False
        self.end = manner
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._control.close()
        self._flush()
        if not self.ready.done():
            self.ready.set_exception(WorkerLost(f"the process that starts workers ended: {manner}; see the log"))
            self.ready.exception()  # it may be that nobody waits any more
        for child in self._children.values():
            self._orphan(child)

    def _orphan(self, child: "_Child") -> None:
        child.ended(f"the process that started it ended: {self.end}")


class _Child(asyncio.Protocol):
    """The stream of one worker. It is over when the worker is dead and all that it said has been read."""

    def __init__(self, say: Callable[[Event], None]) -> None:
        self._say = say
        self._rest = b""
        self._answer: Answer | None = None
        self._trouble: Exception | None = None
        self._manner: str | None = None
        self._alone = False
        self._started = False
        self._eof = False
        self.kill: Callable[[], None] = lambda: None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def result(self) -> Answer:
        """After the end: the answer. Raises what `say` raised, or WorkerLost."""
        if self._trouble:
            raise self._trouble
        if self._answer is None:
            lost = WorkerLost(f"the worker ended without an answer: {self._manner}")
            lost.crashed = self._started and self._alone
            raise lost
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Events, in any pieces."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._trouble:
                return
            self._event(line)
        if len(self._rest) > LINE:
            self._fail(WorkerLost(f"the worker ended without an answer: an event of more than {LINE} bytes"))

    def connection_lost(self, _exc: Exception | None) -> None:
        """The worker has closed its end."""
        self._eof = True
        self._settle()

    def ended(self, manner: str, *, alone: bool = False) -> None:
        """The worker is dead; `alone`: and the process that started it is not."""
        if self._manner is None:
            self._manner, self._alone = manner, alone
        self._settle()

    def _event(self, line: bytes) -> None:
        try:
            event = EVENT.validate_json(line)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            _log.error("not an event of this version: %s", faults)
            self._fail(WorkerLost("the worker ended without an answer: what it said is no event"))
            return
        if self._answer:
            self._fail(WorkerLost("the worker ended without an answer: it went on after its answer"))
        elif isinstance(event, Done | Failed):
            self._answer = event
        else:
            self._started = True
            try:
                self._say(event)
            except Exception as error:  # noqa: BLE001 - it goes on where `run` was called
                self._fail(error)

    def _fail(self, trouble: Exception) -> None:
        self._trouble = self._trouble or trouble
        self._rest = b""
        self.kill()

    def _settle(self) -> None:
        if self._eof and self._manner and not self.over.done():
            self.over.set_result(None)


class _Log:
    """What workers print, line by line into our log; no more than some lines a second, so no worker can drown it."""

    LINES: Final = 200
    WINDOW: Final = 10.0
    WIDTH: Final = 2000

    def __init__(self) -> None:
        self._rest = b""
        self._since = 0.0
        self._seen = 0

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: self.WIDTH]
        now = time.monotonic()
        if now - self._since > self.WINDOW:
            if self._seen > self.LINES:
                _worker_log.warning("%d more lines of workers were left out", self._seen - self.LINES)
            self._since, self._seen = now, 0
        for line in lines:
            self._seen += 1
            if self._seen <= self.LINES:
                _worker_log.warning("%s", line[: self.WIDTH].decode(errors="backslashreplace"))


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Of the operator's environment what a worker may know: how to start Python, and where certificates are.

    Also which identity the pod has in Amazon's cloud: names, addresses and paths, and no secret. The file with the
    token is open to workers only whose store goes by that identity.
    """
    names = {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"} | _IDENTITY
    return {name: value for name, value in given.items() if name in names or name.startswith("PYTHON")}


def _manner(status: int) -> str:
    """How a process ended, for a person."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
    return f"killed by signal {-status}"
