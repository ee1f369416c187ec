"""Images as files in a VMware datastore, through a vCenter or an ESXi host.

A datastore has one thing that is atomic: a file gets another name, if no file has that name ("transactional
guarantees only for a file", MoveDatastoreFile_Task; a folder moves without any). So the commit is the move of a small
file, the ticket, which says whose bytes the object is. It is written before the first byte and only ever moved, which
makes it the fence too: who takes an attempt for dead removes its ticket first, and no clock is needed to be sure that
it cannot commit any more.

    glimpse-store.json              the marker: whose store this is
    objects/{key}.json              the ticket of an object, moved here: {"attempt": ...}
    data/{key}.{attempt}.img        its bytes
    records/{key}.{attempt}.json    its record
    attempts/{key}.{attempt}.json   the ticket of an attempt, or of an object that is being removed
    attempts/{key}.{attempt}.alive  a sign of life, renewed while it writes: the server's time
"""

import json
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from secrets import token_hex
from typing import Any, ClassVar, Final

from pydantic import BaseModel

from glimpse.lease import Lease
from glimpse.problems import NotFound, Problem, SecretNotReadable, StoreUnavailable
from glimpse.stores import Capacity, Stat
from glimpse.stores.vmware.attempts import (
    ATTEMPTS,
    DATA,
    OBJECTS,
    RECORDS,
    Attempts,
    data_of,
    object_of,
    record_of,
    sign_of,
    ticket_of,
)
from glimpse.stores.vmware.clones import copy
from glimpse.stores.vmware.config import VMwareConfig
from glimpse.stores.vmware.files import Files
from glimpse.stores.vmware.session import Exists, Missing, Place, Server, Session, trust
from glimpse.streams import Reader

MARKER: Final = "glimpse-store.json"

_NO_ROOM: Final = 8 << 20
"""Bytes of room at which a write that failed has failed for want of it."""

_READERS: Final = 8
"""Small files that are read at once for a list."""


class VMware:
    """A store in a folder of a datastore."""

    Config: ClassVar[type[BaseModel]] = VMwareConfig

    patience: ClassVar[float] = 50.0
    """Seconds that a silent server is waited for, and a task, or a copy that stands still; less than half a lease."""
    lease: ClassVar[float] = 120.0
    """Seconds after which an attempt without a sign of life is taken for dead."""
    page: ClassVar[int] = 1000
    """Objects whose records are read before the first of them is listed."""
    fresh: ClassVar[float] = 2.0
    """Seconds for which what a datastore has told of its room is believed: to look at it costs the server something."""

    def __init__(self, config: VMwareConfig, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """Keys of the Secret: `username` and `password`."""
        for name in ("username", "password"):
            if not secret.get(name):
                raise SecretNotReadable(f"the store's Secret has no key {name!r}; it needs username and password")
        self._place = Place(config.server, config.datacenter, config.datastore, config.folder)
        context = trust(ca_bundle, config.thumbprint)
        self._server = Server(self._place, secret["username"], secret["password"], context, self.patience)
        self._files = Files(self._server)
        self._attempts = Attempts(self._files, self._place, self.lease)
        self._made = False
        self._room: tuple[float, Capacity] | None = None
        weakref.finalize(self, self._server.end)  # a session that nobody ends counts for half an hour

    @property
    def endpoint(self) -> str:
        """The folder, as a browser can show it."""
        return f"https://{self._place.server}{self._place.url()}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write ticket, bytes and record of this attempt, then move the ticket."""
        return self._make(key, attempt, lambda name: self._files.send(data_of(name), body), record)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the bytes that the ticket names."""
        with ExitStack() as stack:
            with self._border(key):
                reader = stack.enter_context(
                    self._files.open(data_of(f"{key}.{self._attempts.sure(key)}"), offset, length)
                )
            yield reader

    def clone(self, source: str, key: str, attempt: str, record: bytes, going: Callable[[], None], /) -> Stat:
        """Have the datastore copy the bytes; all else is done as for a put."""
        with self._border(source):
            original = f"{source}.{self._attempts.sure(source)}"
            size = self._attempts.look(original).size

        def fill(name: str) -> int:
            with self._border(source):
                copy(self._server, data_of(original), data_of(name), lambda: self._attempts.size(name), going)
            return size

        return self._make(key, attempt, fill, lambda: record)

    def stat(self, key: str, /) -> Stat:
        """Look at the bytes that the ticket names. The record is read before: a removal takes the bytes first."""
        with self._border(key):
            name = f"{key}.{self._attempts.sure(key)}"
            line = self._files.peek(record_of(name))
            file = self._attempts.look(name)
            return Stat(key, file.size, self._attempts.location(name), file.modified, line)

    def update(self, key: str, record: bytes, /) -> None:
        """Write the new record aside and move it over the old one."""
        with self._border(key):
            attempt = self._attempts.sure(key)
            self._attempts.look(f"{key}.{attempt}")
            target, aside = record_of(f"{key}.{attempt}"), ticket_of(f"{key}.{token_hex(8)}")
            try:
                self._files.write(aside, record)
                self._files.move(aside, target, force=True)
            except BaseException as error:
                with suppress(Problem, Missing):
                    self._files.remove(aside)
                if not isinstance(error, Missing) or self._files.peek(target) != record:  # its answer alone may be lost
                    raise
            if self._attempts.winner(key) != attempt:  # it was deleted meanwhile, maybe before its new record came
                self._files.remove(target)
                raise Missing

    def delete(self, key: str, /) -> None:
        """Move the ticket away, so that the object is gone at once, then remove what it named."""
        base, _, attempt = key.partition(".")
        with self._border():
            if not attempt:
                self._attempts.discard(base)
            self._attempts.reap(base, attempt or "*")

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Tickets first, then the bytes, which are whole if a ticket named them before."""
        with self._border():
            objects = self._attempts.objects(prefix)
            attempts = self._attempts.find(f"{prefix}*")
        for start in range(0, len(objects), self.page):
            keys = objects[start : start + self.page]
            with ThreadPoolExecutor(_READERS, "records") as pool, self._border():
                named = list(pool.map(self._named, keys))
            for key, (name, line) in zip(keys, named, strict=True):
                file = attempts.pop(name, {}).get(DATA)
                if file is not None and line is not None:
                    yield Stat(key, file.size, self._attempts.location(name), file.modified, line)
                    continue
                try:
                    yield self.stat(key)  # its record is lost, or it was deleted meanwhile, or written anew
                except NotFound:
                    if (
                        self._files.peek(object_of(key)) is not None
                    ):  # somebody has removed its bytes, or spoiled its ticket
                        yield Stat(key, 0, self._attempts.location(name or key), 0.0, None, partial=True)
        for name, files in attempts.items():
            size = files[DATA].size if DATA in files else 0
            modified = max(file.modified for file in files.values())
            yield Stat(name, size, self._attempts.location(name), modified, None, partial=True)

    def probe(self) -> Capacity:
        """Ask for the datastore's summary. `claim` tries whether we may write."""
        if self._room and time.monotonic() - self._room[0] < self.fresh:
            return self._room[1]
        summary = self._server.call(_summary)
        where = f"datastore {self._place.datastore!r} of {self._place.server}"
        if not summary.accessible:
            raise StoreUnavailable(f"{where} is accessible to none of its hosts; look at it in the vSphere Client")
        if summary.maintenanceMode not in {None, "normal"}:
            raise StoreUnavailable(f"{where} is in maintenance ({summary.maintenanceMode}); end that to use it")
        capacity = Capacity(summary.capacity, summary.capacity - summary.freeSpace, summary.freeSpace)
        self._room = time.monotonic(), capacity
        return capacity

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker; a new one is written aside and moved, which fails if another was there first."""
        with self._border():
            if (found := self._owner()) is None:
                self._files.find(MARKER)  # the folder
                if not fresh:
                    raise StoreUnavailable(
                        f"{self._place.path()} has no {MARKER}, which was there before: is it the same datastore, "
                        "and is its volume mounted?"
                    )
                self._mark(owner)
                found = self._owner()
            if found == owner:
                self._make_folders()  # also where they are: whoever may only read is told so here
        if found is None:
            raise StoreUnavailable(f"{self._place.path()} has lost its {MARKER} again: somebody removes files there")
        return found

    def _make(self, key: str, attempt: str, fill: Callable[[str], int], record: Callable[[], bytes]) -> Stat:
        """Have an attempt filled, and commit it. `fill` makes the file with its bytes, and says how many they are."""
        with self._border():
            self._attempts.make_room(key)
            if not self._made:
                self._make_folders()
            self._attempts.reap(key, strict=False)
        name = f"{key}.{attempt}"
        try:
            with self._border(), Lease(lambda: self._attempts.renew(name), self.lease) as lease:
                self._attempts.begin(key, attempt)
                stat = self._write(key, name, fill, record)
                lease.check()
                self._attempts.commit(key, attempt)
        except BaseException:
            with suppress(Problem, Missing):
                self._attempts.bury(key, attempt)
            raise
        with suppress(Problem, Missing):  # it is stored; a sign of life that stays runs out by itself
            self._files.remove(sign_of(name))
        return stat

    def _write(self, key: str, name: str, fill: Callable[[str], int], record: Callable[[], bytes]) -> Stat:
        """Bytes and record of an attempt; see that all of them are there."""
        try:
            size = fill(name)
        except StoreUnavailable as error:
            raise self._full() or error from error
        line = record()
        self._files.write(record_of(name), line)
        file = self._attempts.look(name)
        if file.size != size:
            raise self._full() or StoreUnavailable(
                f"{self._attempts.location(name)} has {file.size} of the {size} bytes that it was given"
            )
        return Stat(key, size, self._attempts.location(name), file.modified, line)

    def _make_folders(self) -> None:
        for folder in (ATTEMPTS,) if self._made else (ATTEMPTS, OBJECTS, DATA, RECORDS):
            self._files.make_folder(folder)
        self._made = True

    def _named(self, key: str) -> tuple[str, bytes | None]:
        """What the ticket of an object names, and its record; no name if it says nothing, or is gone."""
        attempt = self._attempts.winner(key)
        if not attempt:
            return "", None
        return f"{key}.{attempt}", self._files.peek(record_of(f"{key}.{attempt}"))

    def _owner(self) -> str | None:
        marker = self._files.peek(MARKER)
        try:
            return None if marker is None else str(json.loads(marker)["owner"])
        except (ValueError, TypeError, KeyError):
            raise StoreUnavailable(
                f"{self._place.path(MARKER)} cannot be read; it is a JSON object with the member `owner`: restore it"
            ) from None

    def _mark(self, owner: str) -> None:
        aside = f"{MARKER}.{token_hex(8)}"
        try:
            self._files.write(aside, json.dumps({"owner": owner}).encode() + b"\n")
            with suppress(Missing):  # its answer alone may be lost
                self._files.move(aside, MARKER)
        except Exists:
            self._files.remove(aside)
        except BaseException:
            with suppress(Problem, Missing):
                self._files.remove(aside)
            raise

    def _full(self) -> Problem | None:
        """What went wrong, if it is that there is no room: what a server says then is not written down anywhere."""
        self._room = None
        with suppress(Problem):
            free = self.probe().free
            if free is not None and free < _NO_ROOM:
                return self._server.full()
        return None

    @contextmanager
    def _border(self, key: str | None = None) -> Iterator[None]:
        """With `key`, a missing file means that the object is not there; else that our place is not."""
        try:
            yield
        except Missing as error:
            if key is not None:
                raise NotFound(f"{self._place.path(object_of(key))} does not exist") from error
            self._made = False
            raise StoreUnavailable(
                f"there is no folder {self._place.path()}, or something in it is lost: make it, or mount the volume "
                "on which it is"
            ) from error


def _summary(session: Session) -> Any:
    """Its room "is updated periodically by the server" and when it is asked for (DatastoreSummary)."""
    session.datastore.RefreshDatastore()
    return session.read(session.datastore, "summary")["summary"]
