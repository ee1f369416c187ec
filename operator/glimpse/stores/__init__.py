"""Drivers, and the Store that callers use in their place.

A driver is narrow; what every driver would repeat (marker, limits, the error border, the size check after a put,
records as words, what becomes of a put that failed) is written once, in Store. Both sides of this contract are read
together: that is why the module is longer than others.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Protocol, Self, runtime_checkable

from pydantic import BaseModel, Field, ValidationError

from glimpse.api.base import format_quantity
from glimpse.api.locations import fault
from glimpse.given import wrong
from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    QuotaExceeded,
    SourceChanged,
    StoreConflict,
    StoreFull,
    StoreOwnedByAnother,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
    TooLarge,
    Transient,
)
from glimpse.streams import CHUNK, Reader
from glimpse.tasks import Record, StoreRef

RECORD_LIMIT: Final = 4096
"""Bytes of the largest record."""

MARK_LIMIT: Final = 4096
"""Bytes of the largest mark."""

Mark = Callable[[int], bytes]
"""Says of the first so many bytes of a body what they are of, for who goes on with them: MARK_LIMIT bytes at most."""

_LOOK: Final = 64 << 20
"""Bytes that may pass between two looks at the room in a store."""

_KEY: Final = re.compile(r"[0-9a-z-]{1,80}")
_ATTEMPT: Final = re.compile(r"[0-9a-z]{1,64}")


@dataclass(frozen=True, slots=True)
class Stat:
    """What a driver says about one key."""

    key: str
    size: int
    location: str
    """A URL that tells a person where it is; no secret."""
    modified: float
    """Seconds since the epoch."""
    record: bytes | None = None
    """As written by `put` or `update`; None if there is none."""
    partial: bool = False
    """Left by an attempt; `key` is then `{key}.{attempt}`, which `delete` takes too."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room in a store, in bytes; None where it cannot tell."""

    total: int | None
    used: int | None
    free: int | None


class Driver(Protocol):
    """What the author of a store writes. Blocking; one instance is shared by threads.

    A driver need not check keys: they are `[0-9a-z-]+`, attempts `[0-9a-z]+`, an attempt's own key is
    `{key}.{attempt}`. It knows nothing of limits, reserves or what a record says. Methods raise Problem; anything
    else that comes out is a surprise and becomes StoreUnavailable in Store.
    """

    Config: ClassVar[type[BaseModel]]
    """The model of the driver's member in an ImageStore; readable where the client library is absent."""

    def __init__(self, config: Any, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """`config` is a valid Config; `secret` what the store's Secret holds; `ca_bundle` PEM, None: the machine's.

        Where `config` has a `configRef` (`glimpse.api.store.ConfigRef`), `secret` has what that holds too: `CONFIG_REF`
        there.

        Touches nothing outside the process. Raises InvalidConfiguration, SecretNotReadable.
        """

    @property
    def endpoint(self) -> str:
        """A URL that tells a person where the store is; no secret."""

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Store all of `body` under `key`, atomically and for ever: a crash right after the return loses nothing.

        `body` ends where it says b"", and `body.size` is only a hint. Bytes are written under a name of this
        attempt. `record()` is called once, when the body has ended, and what it returns is written before or with
        the commit. If `body` or `record` raises, or anything fails, nothing is visible under `key` that was not
        before, nothing of this attempt is left, and the same error comes out. A key that exists is not replaced:
        StoreConflict. Leftovers of dead attempts on the same key are removed; one that is still alive is left alone.
        Raises StoreConflict, StoreFull, StoreUnavailable.
        """

    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> AbstractContextManager[Reader]:
        """Read an object, or the part of the range that exists; `size` of the reader is what it will give.

        Deleted meanwhile, it gives the right bytes or NotFound. Raises NotFound.
        """

    def stat(self, key: str, /) -> Stat:
        """Look at an object. Raises NotFound."""

    def update(self, key: str, record: bytes, /) -> None:
        """Replace the record of an object, atomically: after a failure it is the old or the new. Raises NotFound."""

    def delete(self, key: str, /) -> None:
        """Remove an object with its record and dead attempts on it, or one dead attempt (`{key}.{attempt}`).

        Absent is fine, and so is a live attempt, which stays. After a failure the object is whole or gone, and a
        second call removes what is left.
        """

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Everything whose key begins so, attempts included, in any order."""

    def probe(self) -> Capacity:
        """Look at the room. Raises the Problem that a put would meet, but a full store is no Problem here."""

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """The owner in the store's marker; written as `owner` first, if there is none and `fresh`.

        Atomic: of two that claim at once, both get the same answer. Raises StoreUnavailable if there is no marker
        and not `fresh`: the store that was there is missing.
        """


@runtime_checkable
class Sendable(Protocol):
    """The store has the object as a file: for sendfile."""

    def open(self, key: str, /) -> int:
        """A file descriptor for reading, at its start, which the caller closes. Raises NotFound."""


@runtime_checkable
class Local(Protocol):
    """The store, or what proves to it who we are, lies on this machine: a worker may reach these files, no others."""

    def folders(self) -> Sequence[str]:
        """Absolute paths of what must be read and written, with all that is below; need not exist."""


@runtime_checkable
class Linkable(Protocol):
    """The store's own server gives an object to whoever has a link: no byte passes through us."""

    def link(self, key: str, seconds: float, name: str, /) -> str | None:
        """A URL that anybody can GET, with ranges, for so long or less; it is a secret. Raises NotFound.

        `name`: under which a client shall save the bytes, if the server can be made to say so; plain ASCII.
        None: the store does not say where clients reach it, or others may write to these bytes.
        """


@runtime_checkable
class Bootable(Protocol):
    """Machines start from what lies in the store, just as it is; so who stores another format in it is warned."""

    boot_format: ClassVar[str]
    """The disk format that they must find there, as `status.artifact.diskFormat` has it: `raw`."""


@runtime_checkable
class Sparse(Protocol):
    """The store leaves zeros out: they take no room in it, and no time on the way to it."""

    hole: ClassVar[int]
    """Bytes of a block, at a multiple of as many, that is not written if it is all zeros."""


@runtime_checkable
class Preloaded(Protocol):
    """The driver's client library takes long to import."""

    @classmethod
    def preload(cls) -> None:
        """Import it, once before workers are forked: no thread, no connection, and no error where it is absent."""


@runtime_checkable
class Packaged(Protocol):
    """The driver has libraries that its extra does not bring, which PyPI has not, or of somebody else."""

    libraries: ClassVar[Mapping[str, str]]
    """For the first name of each as it is imported, the command that installs it."""


class Taken(Protocol):
    """What a dead attempt has written, taken over by another: alive again, and nobody else's."""

    @property
    def length(self) -> int:
        """Bytes up to the last checkpoint, one at least. What is beyond means nothing."""

    @property
    def mark(self) -> bytes:
        """What was said of just these bytes."""

    def open(self) -> Reader:
        """Read those bytes, from the start; `size` is `length`."""

    def resume(self, length: int, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Store the first `length` bytes that are there, and all of `body` behind them; for the rest as `put_marked`.

        `mark` counts from the start of the object. Called once at most. In another thread it may still run when the
        block has ended that gave the attempt.
        """


@runtime_checkable
class Resumable(Protocol):
    """The store can go on with a put in which the process, or the machine, has died."""

    def put_marked(self, key: str, attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """As `put`, but what was written outlives a death, for `take`.

        From time to time, and where `body` or `record` raises, a checkpoint is made: how much is there, and `mark` of
        as much, which means nothing to the driver. All bytes up to a checkpoint that `take` believes must be there.
        After a kill that is one that lies not far back; after a loss of power it may be an earlier one, made when the
        bytes were durable. A put that is killed, or in which `body` or `record` raises, leaves a dead attempt if there
        is a checkpoint; one in which the store itself fails need not, nor one whose error is not `lasting`.
        """

    def take(self, key: str, attempt: str, /) -> AbstractContextManager[Taken | None]:
        """Take over, as `attempt`, the dead attempt on `key` that has come furthest; None if none has a checkpoint.

        This is the fence: what is alive is never taken, of two that take at once one gets it, and whoever wrote
        before can write no more. The other dead attempts on `key` are removed. After the block it is dead again,
        up to its last checkpoint, unless `resume` has committed it, or still runs.
        """


@dataclass(frozen=True, slots=True)
class Version:
    """Which bytes lie at a place that others write to, as far as the store can tell."""

    size: int
    etag: str | None = None
    """The store's own word for them, which changes when they do; 256 characters at most."""
    last_modified: str | None = None
    """When they were written, as the store puts it; 64 characters at most."""

    def same(self, other: "Version") -> bool:
        """Whether nothing says that these are different bytes, and something that they are not."""
        said = [
            (mine, theirs)
            for mine, theirs in ((self.etag, other.etag), (self.last_modified, other.last_modified))
            if mine is not None and theirs is not None
        ]
        return self.size == other.size and bool(said) and all(mine == theirs for mine, theirs in said)


class Note(BaseModel):
    """Where the bytes of a registered object lie, and which they are: what a driver keeps in their place."""

    location: Annotated[str, Field(min_length=1)]
    size: Annotated[int, Field(strict=True, ge=0)]
    etag: str | None = None
    last_modified: str | None = None

    @classmethod
    def of(cls, location: str, version: Version) -> Self:
        """Of this version there."""
        return cls(location=location, size=version.size, etag=version.etag, last_modified=version.last_modified)

    @property
    def version(self) -> Version:
        """Which they are."""
        return Version(self.size, self.etag, self.last_modified)

    def line(self) -> str:
        """As it is kept; `model_validate_json` reads it."""
        return self.model_dump_json(exclude_none=True)


@runtime_checkable
class Placed(Protocol):
    """The store can read what others have put into it, where it lies.

    A driver need not check locations: they are relative, with `/` between segments that are neither empty nor `.` nor
    `..`, without control characters, and lead into no area of Glimpse's own. It sees to it that they lead out of the
    store's place in no other way: a link, a redirect, an encoding.
    """

    def where(self, location: str, /) -> str:
        """A URL that tells a person where that is; no secret."""

    def locate(self, location: str, /) -> Version:
        """Look at what lies there. It has an `etag` or a `last_modified`.

        Raises NotFound, and StoreRefused for what is no plain file or whose changes could not be seen.
        """

    def read(
        self, location: str, version: Version, /, offset: int = 0, length: int | None = None
    ) -> AbstractContextManager[Reader]:
        """Read just this version, as `get` does. Raises NotFound, and DataLost if another lies there by now."""


@runtime_checkable
class Registering(Placed, Protocol):
    """The store can hold an object whose bytes lie at such a place: nothing is copied.

    It is an object like any other: listed, with its record and the size it was registered with, and read by its key.
    `get`, and `open` of a Sendable store, give just the version that was registered, and raise DataLost if it is gone
    or another one lies there. `delete` removes the registration and leaves the bytes.
    """

    def register(self, key: str, attempt: str, location: str, version: Version, record: bytes, /) -> Stat:
        """Make the object, atomically and written once, as `put` does.

        Raises StoreConflict, NotFound, and DataLost if another version lies there by now.
        """

    def erase(self, location: str, /) -> None:
        """Remove what lies there. Absent is fine."""


class Unable(Exception):  # noqa: N818 - nothing went wrong
    """The store or its server cannot do this, or not with this object; nothing has happened."""


@runtime_checkable
class Cloneable(Protocol):
    """The store can make one object of another, and the bytes do not pass through us."""

    def clone(self, source: str, key: str, attempt: str, record: bytes, /) -> Stat:
        """Make `key` with the bytes of the object `source`, atomically and durably as `put` does.

        Each of the two may be removed then, and the other stays whole. Raises Unable if of this one none can be made,
        NotFound if there is no `source`, StoreConflict, StoreFull, StoreUnavailable.
        """


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store holds under one key, its record read."""

    key: str
    size: int
    location: str
    """A URL that tells a person where it is; no secret."""
    modified: float
    """Seconds since the epoch."""
    record: Record | None
    """None if there is none, or if it cannot be read."""
    partial: bool
    """Left by an attempt, dead or alive; `key` is then `{key}.{attempt}`, which `delete` takes too."""

    @classmethod
    def of(cls, stat: Stat) -> Self:
        """Read the record of a driver's answer."""
        return cls(stat.key, stat.size, stat.location, stat.modified, decode(stat.record), stat.partial)


@dataclass(slots=True)
class Partial:
    """What a put that died has left in a store, taken over by another attempt. Nobody has verified these bytes."""

    key: str
    attempt: str
    """Whose it is now."""
    length: int
    """Bytes, one at least."""
    mark: bytes
    """What was said of just so many bytes to `Store.put`."""
    reader: Reader
    """Reads them, once. Raises DataLost if they end early, StoreUnavailable."""
    taken: Taken
    """The driver's side."""
    discarded: bool = False

    def discard(self) -> None:
        """Have it removed when the block ends."""
        self.discarded = True


class Store:
    """One store, as callers use it; shared by threads.

    Every method raises Problem and nothing else, besides what a `body` or a `record` of the caller raises, which
    comes out as it is. An answer that something is not there is given only while the marker is: a volume that is
    not mounted is StoreUnavailable.
    """

    def __init__(self, ref: StoreRef, driver: Driver) -> None:
        self.name = ref.name
        self.driver = driver
        self._ref = ref
        # Two ImageStores over one place would each take the other's objects for their own, and for leftovers.
        self._owner = f"{ref.installation}/{ref.name}"
        self._known = {record.key: record for record in ref.told}

    def claim(self) -> None:
        """See that the store is ours; the first time, make it so. Raises StoreOwnedByAnother, StoreUnavailable."""
        with self._border():
            owner = self.driver.claim(self._owner, fresh=not self._ref.claimed)
        if owner != self._owner:
            raise StoreOwnedByAnother(
                f"the place of store {self.name} belongs to {owner!r}, this one is {self._owner!r}; "
                "give each ImageStore of each installation a place of its own"
            )

    def put(
        self, key: str, attempt: str, body: Reader, record: Callable[[], Record], mark: Mark | None = None
    ) -> Entry:
        """Store all of `body` under `key`, with what `record()` says when the body has ended.

        Atomic and durable: after a failure nothing is visible under `key` that was not before. Raises StoreConflict
        if the key exists, TooLarge, QuotaExceeded, StoreFull (also if less than the store's reserve would stay free),
        StoreOwnedByAnother, StoreUnavailable, and whatever `body` and `record` raise.

        With a `mark` a store that can keeps what was written where time may mend the failure, and `partial` gives it
        back. It is kept after a kill, and after a Transient Problem of `body` or `record`; but not where these bytes
        are no longer wanted (SourceChanged, StoreConflict), may be wrong (DataLost), or take the room that is lacking
        (StoreFull). `mark` is called in the thread of the put, and must be quick.
        """
        _check(key, _KEY)
        _check(attempt, _ATTEMPT)
        self.claim()
        caller = _Body(self, self._ref, body, record)
        driver = self.driver
        if mark is None or not isinstance(driver, Resumable):
            return self._put(key, caller, partial(driver.put, key, attempt), discard=lambda: None)
        mark = _limited(mark)
        discard = partial(self._discard, f"{key}.{attempt}")
        return self._put(key, caller, partial(driver.put_marked, key, attempt, mark), discard=discard)

    def clone(
        self, source: str, digest: str, key: str, attempt: str, record: Callable[[Record], Record]
    ) -> Entry | None:
        """Make an object of another one with this digest, without its bytes passing through us.

        `record` makes the new record of the old one. None if the store cannot, or does not hold such an object: then
        the bytes must be copied. Limits count as for a `put`, and it raises the same.
        """
        _check(source, _KEY)
        _check(key, _KEY)
        _check(attempt, _ATTEMPT)
        driver = self.driver
        if not isinstance(driver, Cloneable):
            return None
        self.claim()
        with self._border(), suppress(NotFound, Unable):
            found = Entry.of(driver.stat(source))
            if found.record is None or found.record.digest != digest or found.size != found.record.size:
                return None
            made = record(found.record)
            _Body(self, self._ref, _Sized(found.size), lambda: made)  # sees that it fits
            stat = driver.clone(source, key, attempt, encode(made))
            if stat.size == found.size:
                return Entry.of(stat)
            driver.delete(key)
        return None

    @contextmanager
    def partial(self, key: str, attempt: str) -> Iterator["Partial | None"]:
        """Take over, as `attempt`, what the dead attempt on `key` that came furthest has left of a put with a mark.

        None if there is nothing, or the store cannot. Nobody else gets it while the block lasts; what is not resumed
        is left as it was. Raises StoreOwnedByAnother, StoreUnavailable.
        """
        _check(key, _KEY)
        _check(attempt, _ATTEMPT)
        if not isinstance(self.driver, Resumable):
            yield None
            return
        self.claim()
        found = None
        try:
            with ExitStack() as stack:
                with self._border():
                    taken = stack.enter_context(self.driver.take(key, attempt))
                if taken:
                    reader = _Stored(self.name, self._border, f"{key}.{attempt}", taken.open())
                    found = Partial(key, attempt, taken.length, taken.mark, reader, taken)
                yield found
        finally:
            if found and found.discarded:
                self._discard(f"{key}.{attempt}")

    def resume(self, partial: "Partial", length: int, body: Reader, record: Callable[[], Record], mark: Mark) -> Entry:
        """Store all of `body`, of which the first `length` bytes are there: they are passed over, and not written.

        The caller sees to it that they are the same; what is there besides them is dropped. For the rest as `put`.
        Called once at most.
        """

        def write(body: Reader, record: Callable[[], bytes]) -> Stat:
            return partial.taken.resume(length, _limited(mark), _Rest(body, length), record)

        def discard() -> None:
            partial.discard()  # it is ours until the block ends
            self._discard(f"{partial.key}.{partial.attempt}")  # which may have been before

        try:
            caller = _Body(self, self._ref, body, record, held=length)
        except Problem as problem:
            if not lasting(problem):
                discard()
            raise
        return self._put(partial.key, caller, write, discard)

    def _put(
        self,
        key: str,
        caller: "_Body",
        write: Callable[[Reader, Callable[[], bytes]], Stat],
        discard: Callable[[], None],
    ) -> Entry:
        """Have the driver store a body, and see that it has. `discard` removes what is left of one that failed."""
        try:
            with self._border():
                stat = write(caller, caller.record)
        except BaseException as error:
            first = caller.error or error
            if not lasting(first):
                discard()
            if first is not error and isinstance(error, Exception):
                raise first  # noqa: B904 - it came first; what the driver made of it is its context
            raise
        try:
            caller.settle(stat.size)
        except BaseException:
            # only a driver that breaks its contract comes here; what it committed in this call must not stay
            with self._border():
                self.driver.delete(key)
            raise
        return Entry.of(stat)

    def _discard(self, name: str) -> None:
        """Remove an attempt, if it is dead. What cannot be removed now is left to the sweep."""
        with suppress(Problem), self._border():
            self.driver.delete(name)

    @contextmanager
    def get(self, key: str, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read an object, or the part of the range that exists. Raises NotFound; DataLost if it ends early."""
        _check(key, _KEY)
        told = self._told(key)
        with ExitStack() as stack:
            with self._border(present=True):
                if told:
                    reader = self._enter(stack, told, offset, length)
                else:
                    reader = stack.enter_context(self.driver.get(key, offset, length))
            yield _Stored(self.name, self._border, key, reader)

    def _enter(self, stack: ExitStack, told: Record, offset: int, length: int | None) -> Reader:
        """Read an object of which the store was told."""
        try:
            place = self._placed(told.location).read(told.location, version_of(told), offset, length)
            return stack.enter_context(place)
        except NotFound as problem:
            raise DataLost(f"{self.where(told.location)} is gone") from problem

    def open(self, key: str) -> int | None:
        """A file descriptor for sendfile, which the caller closes; None if the store has no files. Raises NotFound."""
        _check(key, _KEY)
        if not isinstance(self.driver, Sendable):
            return None
        with self._border(present=True):
            return self.driver.open(key)

    def link(self, key: str, seconds: float, name: str) -> str | None:
        """A URL that anybody can GET for so long or less, and save as `name`; None if the store has none.

        Raises NotFound.
        """
        _check(key, _KEY)
        if not isinstance(self.driver, Linkable):
            return None
        with self._border(present=True):
            return self.driver.link(key, seconds, name)

    def stat(self, key: str) -> Entry:
        """Look at an object. Raises NotFound; DataLost if it was told of, and other bytes lie there."""
        _check(key, _KEY)
        if told := self._told(key):
            self._still(told.location, version_of(told))
            return Entry(key, told.size, self.where(told.location), time.time(), told, partial=False)
        with self._border(present=True):
            return Entry.of(self.driver.stat(key))

    def update(self, key: str, record: Record) -> None:
        """Replace the record of an object, atomically. Raises NotFound."""
        _check(key, _KEY)
        line = encode(record)
        self.claim()
        with self._border(present=True):
            self.driver.update(key, line)

    def delete(self, key: str) -> None:
        """Remove an object and dead attempts on it, or one dead attempt (`{key}.{attempt}`). Absent is fine."""
        base, dot, attempt = key.partition(".")
        _check(base, _KEY)
        if dot:
            _check(attempt, _ATTEMPT)
        self.claim()
        with self._border():
            self.driver.delete(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Everything whose key begins so, attempts included, in any order."""
        self.claim()
        with self._border():
            yield from map(Entry.of, self.driver.list(prefix))

    # What others have put there

    def locate(self, location: str) -> Version:
        """Which bytes lie there. Raises NotFound; StoreRefused if they cannot be registered in this store."""
        placed = self._placed(location)
        with self._border(present=True):
            return placed.locate(location)

    @contextmanager
    def read(self, location: str, version: Version) -> Iterator[Reader]:
        """Read this version, all of it. Raises NotFound; DataLost if another lies there, at the end as well."""
        placed = self._placed(location)
        with ExitStack() as stack:
            with self._border(present=True):
                reader = stack.enter_context(placed.read(location, version))
            yield _Still(_Stored(self.name, self._border, location, reader), partial(self._still, location, version))

    def where(self, location: str) -> str:
        """A URL that tells a person where that is."""
        return self._placed(location).where(location)

    def register(
        self, key: str, attempt: str, location: str, version: Version, *, body: Reader, record: Callable[[], Record]
    ) -> Entry:
        """Make an object of what lies there, when `body`, which reads it, has been read to its end.

        Where the store cannot note it, nothing is written: who keeps the record tells it by `knowing`. For the rest as
        `put`; also DataLost if another version lies there by now.
        """
        _check(key, _KEY)
        _check(attempt, _ATTEMPT)
        placed = self._placed(location)
        self.claim()
        limit = self._ref.max_image_size
        if limit is not None and version.size > limit:
            raise too_large(self.name, limit)
        while body.read(CHUNK):
            pass
        found = record().model_copy(update={"location": location})
        line = encode(found)
        with self._border():
            if isinstance(placed, Registering):
                return Entry.of(placed.register(key, attempt, location, version, line))
        self._still(location, version)
        return Entry(key, version.size, self.where(location), time.time(), found, partial=False)

    def erase(self, location: str) -> None:
        """Remove what lies there. Absent is fine."""
        placed = self._placed(location)
        if not isinstance(placed, Registering):
            raise StoreReadOnly(f"store {self.name} is only read from")
        self.claim()
        with self._border():
            placed.erase(location)

    def knowing(self, *records: Record) -> "Store":
        """The same store, told of objects which are registered in it and which it cannot note itself."""
        return Store(self._ref.model_copy(update={"told": records}), self.driver)

    def _placed(self, location: str) -> Placed:
        if not isinstance(self.driver, Placed):
            raise StoreRefused(f"in store {self.name} nothing can be registered: its driver cannot do that")
        if why := fault(location):
            raise StoreRefused(f"{location[:200]!r} in store {self.name}: {why}")
        return self.driver

    def _still(self, location: str, version: Version) -> None:
        """Raise DataLost unless this version lies there."""
        placed = self._placed(location)
        try:
            with self._border(present=True):
                same = placed.locate(location).same(version)
        except NotFound as problem:
            raise DataLost(f"{placed.where(location)} is gone") from problem
        if not same:
            raise DataLost(f"{placed.where(location)} has been changed")

    def _told(self, key: str) -> Record | None:
        """What this store was told of an object that it cannot note."""
        return None if isinstance(self.driver, Registering) else self._known.get(key)

    def probe(self) -> Capacity:
        """See that the store is ours and can be written, and its room. Raises the Problem that a put would meet."""
        self.claim()
        return self.capacity()

    @property
    def boot_format(self) -> str | None:
        """The disk format of what machines start from there; None: they start from none of it."""
        return self.driver.boot_format if isinstance(self.driver, Bootable) else None

    def capacity(self) -> Capacity:
        """The same without a look at the marker: cheap enough for each 64 MiB of a put."""
        with self._border():
            return self.driver.probe()

    @contextmanager
    def _border(self, *, present: bool = False) -> Iterator[None]:
        """Let Problems out, and nothing else. With `present`, NotFound is believed only while the marker is there."""
        try:
            yield
        except NotFound:
            if present and self._ref.claimed:
                self.claim()
            raise
        except Problem:
            raise
        except ImportError as error:
            libraries = self.driver.libraries if isinstance(self.driver, Packaged) else {}
            raise _lacking(f"store {self.name}", self._ref.driver, error, libraries) from error
        except Exception as error:
            # only the system's own words: a client library may quote a URL or a header with a secret in it
            what = error.strerror if isinstance(error, OSError) else None
            raise StoreUnavailable(f"store {self.name}: {what or type(error).__name__}") from error


class _Body:
    """A body that stays within what its store allows: room is looked at before the first byte and as bytes pass.

    It remembers what the caller's own reader or record raised, which is the answer whatever a driver makes of it.
    """

    def __init__(self, store: Store, ref: StoreRef, body: Reader, record: Callable[[], Record], held: int = 0) -> None:
        """`held`: bytes at the start that the store holds already, and so need no room."""
        self._store, self._ref, self._body, self._record = store, ref, body, record
        self._passed = 0
        self._seen = held  # how much had passed at the last look
        self.error: BaseException | None = None
        self._room = self._look()
        self._check(body.size or 0)

    @property
    def size(self) -> int | None:
        return self._body.size

    def read(self, n: int = CHUNK, /) -> bytes:
        try:
            chunk = self._body.read(n)
            self._check(len(chunk))
        except BaseException as error:
            self.error = error
            raise
        self._passed += len(chunk)
        return chunk

    def record(self) -> bytes:
        try:
            return encode(self._record())
        except BaseException as error:
            self.error = error
            raise

    def settle(self, size: int) -> None:
        """Raise unless the driver has taken all of the body and kept just that."""
        if self.error:
            raise self.error
        if self.read(1) or size != self._passed:
            raise StoreUnavailable(
                f"store {self._store.name} kept {size} of {self._passed} bytes; the object is removed"
            )

    def _look(self) -> int | None:
        free = self._store.capacity().free
        return None if free is None else free - self._ref.reserve

    def _check(self, more: int) -> None:
        limit = self._ref.max_image_size
        if limit is not None and self._passed + more > limit:
            raise too_large(self._store.name, limit)
        share = self._ref.share
        if share and self._passed + more > share.limit:
            size = f"has {format_quantity(self.size)}, more" if self.size else "is larger"
            raise QuotaExceeded(
                f"the image {size} than the {format_quantity(share.limit)} that namespace {share.namespace} may keep "
                f"in store {self._store.name} in all: have quota.perNamespace of the ImageStore raised, then ask anew "
                "by the annotation glimpse.dev/reconcile-requested-at"
            )
        if share and share.used + self._passed + more > share.limit:
            raise QuotaExceeded(
                f"namespace {share.namespace} may keep {format_quantity(share.limit)} in store {self._store.name} and "
                f"has used {format_quantity(share.used)}: remove images, then ask anew by the annotation "
                "glimpse.dev/reconcile-requested-at, or have quota.perNamespace of the ImageStore raised"
            )
        since = self._passed - self._seen
        if self._room is not None and since > 0 and since + more > min(self._room, _LOOK):
            self._room, self._seen, since = self._look(), self._passed, 0
        if self._room is not None and since + more > self._room:
            raise StoreFull(
                f"store {self._store.name} has no room for {format_quantity(more)} more above its reserve of "
                f"{format_quantity(self._ref.reserve)}; remove images or enlarge it"
            )


class _Sized:
    """Stands for bytes that are not read, and takes their room."""

    def __init__(self, size: int) -> None:
        self.size: int | None = size

    def read(self, _n: int = CHUNK, /) -> bytes:
        return b""


class _Rest:
    """A body without its first bytes, which are stored already."""

    def __init__(self, body: Reader, skip: int) -> None:
        self._body, self._skip = body, skip

    @property
    def size(self) -> int | None:
        return None if self._body.size is None else max(0, self._body.size - self._skip)

    def read(self, n: int = CHUNK, /) -> bytes:
        while self._skip:
            chunk = self._body.read(n)
            if not chunk:
                raise SourceChanged(f"the source has ended {self._skip} bytes before what is stored of it already")
            passed = min(self._skip, len(chunk))
            self._skip -= passed
            if passed < len(chunk):
                return chunk[passed:]
        return self._body.read(n)


class _Stored:
    """A reader over an object that must not end early."""

    def __init__(
        self, store: str, border: Callable[[], AbstractContextManager[None]], key: str, reader: Reader
    ) -> None:
        self._border, self._store, self._key, self._reader = border, store, key, reader
        self._left = reader.size

    @property
    def size(self) -> int | None:
        return self._reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        with self._border():
            chunk = self._reader.read(n)
        if self._left is not None:
            self._left -= len(chunk)
            if not chunk and self._left:
                raise DataLost(f"object {self._key} in store {self._store} ends {self._left} bytes early")
        return chunk


class _Still:
    """A reader that looks at its end whether what it read is still what lies there."""

    def __init__(self, reader: Reader, check: Callable[[], None]) -> None:
        self._reader, self._check = reader, check

    @property
    def size(self) -> int | None:
        return self._reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        chunk = self._reader.read(n)
        if not chunk:
            self._check()
        return chunk


def version_of(record: Record) -> Version:
    """Which bytes a registered object has."""
    return Version(record.size, record.etag, record.last_modified)


def too_large(store: str, limit: int) -> TooLarge:
    """What a store says of an image that is larger than it takes."""
    return TooLarge(f"the image is larger than {format_quantity(limit)}, maxImageSize of store {store}")


def _limited(mark: Mark) -> Mark:
    """The same, which raises ValueError where it is too long; now, if it begins so."""

    def limited(length: int) -> bytes:
        line = mark(length)
        if len(line) > MARK_LIMIT:
            raise ValueError(f"a mark of {len(line)} bytes, {MARK_LIMIT} at most")
        return line

    limited(0)
    return limited


def lasting(error: BaseException) -> bool:
    """Whether a put that ended so may be gone on with: time can mend it, its bytes are wanted, right and no burden."""
    ended = SourceChanged | StoreConflict | DataLost | StoreFull
    return isinstance(error, Transient) and not isinstance(error, ended)


def encode(record: Record) -> bytes:
    """A record as it is stored, without what a server made too long (URL, validators). Raises InvalidConfiguration."""
    line = record.model_dump_json(exclude_defaults=True).encode()
    if len(line) > RECORD_LIMIT:
        short = record.model_copy(update={"source_url": None, "etag": None, "last_modified": None})
        line = short.model_dump_json(exclude_defaults=True).encode()
    if len(line) > RECORD_LIMIT:
        raise InvalidConfiguration(f"the record of {record.key} has {len(line)} bytes, {RECORD_LIMIT} at most")
    return line


def decode(stored: bytes | None) -> Record | None:
    """Read a stored record; None if there is none, or none that we can read. Fields of a newer version are ignored."""
    if stored is None or len(stored) > RECORD_LIMIT:
        return None
    try:
        return Record.model_validate_json(stored, extra="ignore")
    except ValidationError:
        return None


@cache
def installed() -> Mapping[str, EntryPoint]:
    """The drivers of this installation by name, not loaded: the entry points of the group `glimpse.stores`."""
    return MappingProxyType({point.name: point for point in entry_points(group="glimpse.stores")})


def load(name: str) -> type[Driver]:
    """Load one driver; its client library stays untouched. Raises InvalidConfiguration."""
    point = installed().get(name)
    if point is None:
        known = ", ".join(sorted(installed()))
        raise InvalidConfiguration(f"no driver {name!r} is installed for stores; there are: {known or 'none'}")
    _extra(name)  # a worker that is confined later cannot read it any more
    try:
        driver: type[Driver] = point.load()
    except ImportError as error:
        raise _lacking(f"the driver {name!r}", name, error, {}) from error
    return driver


def open_store(ref: StoreRef) -> Store:
    """The store that `ref` describes; nothing is reached yet. Raises InvalidConfiguration with driver and field."""
    driver = load(ref.driver)
    try:
        config = driver.Config.model_validate(ref.config)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in (ref.driver, *fault['loc']))}: {wrong({**fault, 'input': None})}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise InvalidConfiguration(f"store {ref.name}: {faults}") from None
    secret = {name: value.get_secret_value() for name, value in ref.secret.items()}
    return Store(ref, driver(config, secret, ref.ca_bundle))


@cache
def _extra(driver: str) -> str:
    """How the client library of a driver is installed: by the extra with its name, if its package has one.

    The name that is imported is never taken for a package of PyPI: there it may be somebody else's.
    """
    dist = installed()[driver].dist
    if dist is None:
        return "install it"
    extras = dist.metadata.get_all("Provides-Extra") or ()
    if driver in extras:
        return f"pip install '{dist.name}[{driver}]'"
    return f"install what {dist.name} needs, the package that brings this driver"


def _lacking(what: str, driver: str, error: ImportError, libraries: Mapping[str, str]) -> InvalidConfiguration:
    """Names the package and the command; `libraries` as in Packaged."""
    first = (error.name or "").partition(".")[0]
    return InvalidConfiguration(
        f"{what} needs the Python package {error.name!r}, which is not installed where Glimpse runs: "
        f"{libraries.get(first) or _extra(driver)}, and restart it"
    )


def _check(word: str, pattern: re.Pattern[str]) -> None:
    """Nothing of a user's naming reaches a path: our own code makes keys, so a wrong one is a bug."""
    if not pattern.fullmatch(word):
        raise ValueError(f"{word!r} is no key of ours")
