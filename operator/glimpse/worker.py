"""The process around `transfer.do`: a task comes in, events go out, the last one is the answer.

Work on hostile bytes has a process of its own, so that it can be limited, cancelled and lost without harm. Python
takes half a second to start and to import all this, so the operator starts one warm process which forks a worker for
each task; `glimpse worker` alone does one task from standard input.

Between the operator and the warm process is a SEQPACKET socket with words of ASCII:

    run ID  (and a stream socket)      start a worker: task and events go through the socket;
                                       a second descriptor is the pipe that an upload comes through
    kill ID                            kill that worker and what it has started
    ready                              the other way: all is imported
    ended ID STATUS                    the worker is dead and buried; a negative status is a signal

End of file means that the operator is gone: all workers are killed.
"""

import gc
import importlib
import logging
import os
import re
import select
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from pydantic import ValidationError

from glimpse import stores
from glimpse.confine import Cage, die_with, harden
from glimpse.problems import Problem
from glimpse.settings import Transfers
from glimpse.sources.credentials import basic
from glimpse.tasks import (
    TASK,
    Answer,
    Event,
    Fetch,
    HttpOrigin,
    ImageOrigin,
    List,
    LocationOrigin,
    Look,
    Probe,
    Started,
    StoreOrigin,
    StoreRef,
    Task,
    UploadOrigin,
    Verify,
)

Do = Callable[[Task, Callable[[Event], None], threading.Event], Answer]
"""Does a task: `(task, say, cancelled)`. Returns the answer, good or bad; anything raised is a crash."""

CRASHED: Final = 70
"""Exit status, EX_SOFTWARE of sysexits.h: the code of the worker is wrong."""
NOT_UNDERSTOOD: Final = 65
"""Exit status, EX_DATAERR: no task, or one of another version."""
CANCELLED: Final = 75
"""Exit status, EX_TEMPFAIL: cancelled, without an answer."""
NOT_FORKED: Final = 71
"""Exit status, EX_OSERR: there is no room for another process."""

_log = logging.getLogger(__name__)


def plain(do: Do) -> int:
    """Do one task from standard input, with events on standard output; the exit status, 0 if there is an answer.

    End of file on standard input, or SIGTERM, cancels.
    """
    _logs()
    harden()
    inlet, outlet = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not get between the events
    return _work(do, Cage(), inlet, outlet)


def warm(fd: int, do: Do) -> int:
    """Fork a worker for each task that comes through the socket `fd`, until its end of file."""
    die_with(os.getppid())
    _logs()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the operator, which stops us in good order
    harden()
    os.dup2(2, 1)
    cage = Cage()
    os.chdir("/")
    _preload()
    gc.collect()
    gc.freeze()  # children share these pages as long as nobody writes to them
    with socket.socket(fileno=fd) as control, selectors.DefaultSelector() as selector:
        control.setblocking(True)
        nest = _Nest(do, cage, control, selector)
        with suppress(BrokenPipeError, ConnectionResetError):
            nest.serve()
        nest.kill_all()
    return 0


class _Nest:
    """The warm process: single-threaded, so that a fork copies nothing that is half done."""

    def __init__(self, do: Do, cage: Cage, control: socket.socket, selector: selectors.BaseSelector) -> None:
        self._do = do
        self._cage = cage
        self._control = control
        self._selector = selector
        self._children: dict[int, int] = {}  # pid by id

    def serve(self) -> None:
        """Until end of file, or BrokenPipeError."""
        self._selector.register(self._control, selectors.EVENT_READ)
        self._control.send(b"ready")
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._bury(key.fd, key.data)
                    continue
                message, fds, _, _ = socket.recv_fds(self._control, 64, 2)
                if not message:
                    return
                verb, number = message.split()
                if verb == b"run":
                    self._fork(int(number), *fds)
                elif child := self._children.get(int(number)):
                    os.killpg(child, signal.SIGKILL)

    def kill_all(self) -> None:
        for child in self._children.values():
            os.killpg(child, signal.SIGKILL)
        for child in self._children.values():
            os.waitpid(child, 0)

    def _fork(self, number: int, channel: int, pipe: int | None = None) -> None:
        warm = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _log.error("cannot start a worker: %s", error.strerror)
            self._close(channel, pipe)
            self._control.send(b"ended %d %d" % (number, NOT_FORKED))
            return
        if pid == 0:
            status = CRASHED
            try:
                os.setpgid(0, 0)
                die_with(warm)
                status = _work(self._do, self._cage, channel, channel, pipe)
            except BaseException:  # noqa: BLE001 - a child must never return into the loop of its parent
                traceback.print_exc()
            finally:
                os._exit(status)
        self._close(channel, pipe)
        with suppress(PermissionError, ProcessLookupError):  # the child does it as well; here it is done before a kill
            os.setpgid(pid, pid)
        self._children[number] = pid
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (number, pid))

    @staticmethod
    def _close(*fds: int | None) -> None:
        for fd in fds:
            if fd is not None:
                os.close(fd)

    def _bury(self, pidfd: int, child: tuple[int, int]) -> None:
        number, pid = child
        self._selector.unregister(pidfd)
        os.close(pidfd)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it has started; its pid is ours until we have waited
        _, status = os.waitpid(pid, 0)
        del self._children[number]
        self._control.send(b"ended %d %d" % (number, os.waitstatus_to_exitcode(status)))


def _work(do: Do, cage: Cage, inlet: int, outlet: int, pipe: int | None = None) -> int:
    """One task from its line to its answer; the exit status. `pipe`: where an upload comes from."""
    line = _line(inlet)
    if not line:
        return CANCELLED
    try:
        task = TASK.validate_json(line)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        _log.error("not a task of this version: %s", faults)
        return NOT_UNDERSTOOD
    if isinstance(task, Fetch) and isinstance(task.origin, UploadOrigin):
        task = task.model_copy(update={"origin": task.origin.model_copy(update={"pipe": pipe})})
    cage.enter(_folders(task))
    _close_all_but(inlet, outlet, *([] if pipe is None else [pipe]))

    cancelled = threading.Event()
    sending = threading.Lock()

    def say(event: Event) -> None:
        with sending:
            try:
                _write(outlet, event.line())
            except OSError:  # nobody listens: nobody wants the rest
                cancelled.set()

    grace = task.transfers.stop_grace if isinstance(task, Fetch | Look) else Transfers().stop_grace
    _watch(inlet, cancelled, grace)
    say(Started(pid=os.getpid()))
    try:
        answer = do(task, say, cancelled)
    except Exception:  # noqa: BLE001 - the border of the process
        _log.error("crashed\n%s", _scrubbed(traceback.format_exc(), task))
        return CANCELLED if cancelled.is_set() else CRASHED
    with sending:
        try:
            _write(outlet, answer.line())
        except OSError:
            return CANCELLED
    # An exception and its frames hold each other, and a store with them: it may have a session that it must end.
    gc.collect()
    return 0


def _watch(inlet: int, cancelled: threading.Event, grace: float) -> None:
    """Cancel at end of file or SIGTERM; and end the process if it has not ended within `grace` seconds."""
    # A Python handler that sets the event could meet the main thread inside the event's lock; a wakeup fd cannot.
    waking, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(inlet, select.POLLIN)
    poll.register(waking, select.POLLIN)

    def watch() -> None:
        while all(fd == inlet and _more(inlet) for fd, _ in poll.poll()):
            pass
        cancelled.set()
        time.sleep(grace)
        os._exit(CANCELLED)

    threading.Thread(target=watch, name="cancel", daemon=True).start()


def _more(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1 << 16))
    except OSError:
        return False


def _line(fd: int) -> bytes:
    """The first line; empty if there is no whole one."""
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
        if b"\n" in part:
            return b"".join(parts)
    return b""


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _close_all_but(*keep: int) -> None:
    """Close what belongs to the parent: its sockets, the places of its other children."""
    low = 3
    for fd in sorted(set(keep)):
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _stores(task: Task) -> Iterator[StoreRef]:
    match task:
        case Look(origin=LocationOrigin() as origin):
            yield origin.store
        case Look():
            pass
        case Probe() | List() | Verify():
            yield task.store
        case Fetch(origin=ImageOrigin() as origin):
            yield from (*origin.stores, *task.stores)
        case Fetch(origin=StoreOrigin() | LocationOrigin() as origin):
            yield origin.store
            yield from task.stores
        case _:
            yield from task.stores


def _folders(task: Task) -> Iterator[str]:
    """What the task needs to reach. A store that cannot be opened says so again, to the user, in `do`."""
    for ref in _stores(task):
        with suppress(Problem):
            driver = stores.open_store(ref).driver
            if isinstance(driver, stores.Local):
                yield from driver.folders()
    if isinstance(task, Fetch) and task.convert_to and task.spool.path:
        yield str(task.spool.path)


def _scrubbed(text: str, task: Task) -> str:
    """`text` without the task's secrets, and without the query and the credentials of URLs."""
    groups = [list(ref.secret.values()) for ref in _stores(task)]
    logins = [ref.secret for ref in _stores(task)]
    if isinstance(task, Fetch | Look) and isinstance(task.origin, HttpOrigin):
        groups.append(list(task.origin.secrets()))
        logins += [task.origin.secret, task.origin.proxy]
    forms = {form for group in groups for secret in group for form in _forms(secret.get_secret_value())}
    for login in logins:
        words = [login[key].get_secret_value() for key in ("username", "password") if key in login]
        forms.add(basic(*words).partition(" ")[2] if len(words) == 2 else "")  # noqa: PLR2004 - both of them
    for form in sorted(forms - {""}, key=len, reverse=True):
        text = text.replace(form, "…")
    return re.sub(r"//[^/@\s]*@", "//", re.sub(r"\?[^\s'\"]+", "?…", text))


def _forms(secret: str) -> Iterator[str]:
    """What a traceback may have of a secret: the whole, as it is or as Python writes it, or a line of it."""
    yield secret
    yield repr(secret)[1:-1]
    yield from secret.splitlines()


def _preload() -> None:
    """Do once what each worker would do again: load drivers, and what the standard library loads at its first use."""
    for name in stores.installed():
        try:
            driver = stores.load(name)
            if issubclass(driver, stores.Preloaded):
                driver.preload()
        except Exception:  # noqa: BLE001 - a driver that is broken must not stop the others
            _log.exception("the driver %s cannot be loaded", name)
    for module in ("encodings.idna", "stringprep"):
        importlib.import_module(module)


def _logs() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="worker %(process)d %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings quote whole URLs


def main(fd: int | None) -> int:
    """`glimpse worker`: plain, or with the control socket `fd` the warm process."""
    from glimpse import transfer
    from glimpse.sources import client

    if fd is None:
        return plain(transfer.do)
    client.warm()
    return warm(fd, transfer.do)
