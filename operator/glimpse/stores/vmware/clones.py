"""A file that the datastore copies itself, so that no byte of it passes through us.

That may take hours, so it is waited for as long as it goes on. It is the server's work, which goes on without us too:
who leaves before its end has it cancelled and waits for that, or it would write behind our back what was just removed.
After a worker that was killed it goes on, under the name of a dead attempt, and is removed when it has ended.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from glimpse.problems import StoreUnavailable
from glimpse.stores import Unable
from glimpse.stores.vmware.session import Exists, Server, Session

_PAUSE: Final = 0.5
"""Seconds between two looks, at most."""


def copy(server: Server, source: str, target: str, grown: Callable[[], object], going: Callable[[], None]) -> None:
    """Have the server copy a file to a name that no file has. `grown` says something else when the copy has grown.

    Raises Missing, Unable if the server does not copy this file, what `going` raises while it does, else Problem.
    """
    place = server.place
    with _once(server, target) as session:  # the answer may be lost: a second one would be in the way of the first
        task = session.content.fileManager.CopyDatastoreFile_Task(
            place.path(source), session.datacenter, place.path(target), session.datacenter, force=False
        )
    try:
        error = _wait(server, task, grown, going)
    except BaseException:
        with suppress(Exception):
            _cancel(server, task)
        raise
    if error:
        with _once(server, target):
            raise error


def _wait(server: Server, task: Any, grown: Callable[[], object], going: Callable[[], None]) -> Exception | None:
    """Wait until a task is over; what it failed with. Raises StoreUnavailable if it stands still."""
    before: object = None
    end, pause = time.monotonic() + server.patience, 0.002
    while (seen := _look(server, task))["info.state"] in {"queued", "running"}:
        going()
        if time.monotonic() > end:
            now = (seen.get("info.progress"), grown())
            if now == before:
                raise StoreUnavailable(f"{server.place.server} has not gone on with a copy for {server.patience:.0f} s")
            before, end = now, time.monotonic() + server.patience
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE)
    return seen.get("info.error")


def _cancel(server: Server, task: Any) -> None:
    """Have a task end, and wait until it has."""

    def cancel(session: Session) -> None:
        type(task)(task._GetMoId(), session.stub).CancelTask()  # noqa: SLF001 - the session may be another one by now

    server.call(cancel)
    end = time.monotonic() + server.patience
    while _look(server, task)["info.state"] in {"queued", "running"} and time.monotonic() < end:
        time.sleep(_PAUSE)


def _look(server: Server, task: Any) -> Mapping[str, Any]:
    """What has become of a task, also in another session than that in which it was started."""
    from pyVmomi import vmodl

    def look(session: Session) -> Mapping[str, Any]:
        try:
            return session.read(task, "info.state", "info.error", "info.progress")
        except vmodl.fault.ManagedObjectNotFound as error:
            raise StoreUnavailable(f"{server.place.server} has forgotten a copy: was it started again?") from error

    return server.call(look)


@contextmanager
def _once(server: Server, target: str) -> Iterator[Session]:
    """For what cannot be done twice, and for what came of it: a server that does not copy is Unable."""
    from pyVmomi import vim, vmodl

    refusals = (
        vmodl.fault.NotSupported,
        vmodl.fault.NotImplemented,
        vmodl.fault.MethodNotFound,
        vim.fault.CannotAccessFile,
    )
    try:
        with server.once() as session, server.border(session):
            try:
                yield session
            except refusals as error:
                raise Unable from error
    except Exists as error:
        raise StoreUnavailable(f"{server.place.path(target)} is there already, and is not copied over") from error
