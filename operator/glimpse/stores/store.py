"""The Store that callers use in a driver's place.

What every driver would repeat is written once, here: the marker, limits, the border of errors, the look at the size
after a put, records as words, what becomes of a put that failed.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from glimpse.api.locations import fault
from glimpse.problems import (
    DataLost,
    NotFound,
    Problem,
    StoreOwnedByAnother,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
)
from glimpse.stores.bodies import Bounded, Rest, Sized, Still, Stored, limited, too_large
from glimpse.stores.driver import (
    Bootable,
    Capacity,
    Cloneable,
    Driver,
    Linkable,
    Mark,
    Packaged,
    Placed,
    Registering,
    Resumable,
    Sendable,
    Stat,
    Taken,
    Unable,
    Version,
    lasting,
)
from glimpse.stores.entries import Entry, encode, version_of
from glimpse.stores.plugins import lacking
from glimpse.streams import CHUNK, Reader
from glimpse.tasks import Record, StoreRef

_KEY: Final = re.compile(r"[0-9a-z-]{1,80}")
_ATTEMPT: Final = re.compile(r"[0-9a-z]{1,64}")


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
        caller = Bounded(self, self._ref, body, record)
        driver = self.driver
        if mark is None or not isinstance(driver, Resumable):
            return self._put(key, caller, partial(driver.put, key, attempt), discard=lambda: None)
        mark = limited(mark)
        discard = partial(self._discard, f"{key}.{attempt}")
        return self._put(key, caller, partial(driver.put_marked, key, attempt, mark), discard=discard)

    def clone(
        self,
        source: str,
        digest: str,
        key: str,
        attempt: str,
        record: Callable[[Record], Record],
        *,
        going: Callable[[], None] = lambda: None,
    ) -> Entry | None:
        """Make an object of another one with this digest, without its bytes passing through us.

        `record` makes the new record of the old one; `going` is called now and then from any thread, and raises the
        Problem with which this is to end. None if the store cannot, or does not hold such an object: then the bytes
        must be copied. Limits count as for a `put`, and it raises the same.
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
            Bounded(self, self._ref, Sized(found.size), lambda: made)  # sees that it fits
            stat = driver.clone(source, key, attempt, encode(made), going)
            if stat.size == found.size:
                return Entry.of(stat)
            driver.delete(key)
        return None

    @contextmanager
    def partial(self, key: str, attempt: str) -> Iterator[Partial | None]:
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
                    reader = Stored(self.name, self._border, f"{key}.{attempt}", taken.open())
                    found = Partial(key, attempt, taken.length, taken.mark, reader, taken)
                yield found
        finally:
            if found and found.discarded:
                self._discard(f"{key}.{attempt}")

    def resume(self, partial: Partial, length: int, body: Reader, record: Callable[[], Record], mark: Mark) -> Entry:
        """Store all of `body`, of which the first `length` bytes are there: they are passed over, and not written.

        The caller sees to it that they are the same; what is there besides them is dropped. For the rest as `put`.
        Called once at most.
        """

        def write(body: Reader, record: Callable[[], bytes]) -> Stat:
            return partial.taken.resume(length, limited(mark), Rest(body, length), record)

        def discard() -> None:
            partial.discard()  # it is ours until the block ends
            self._discard(f"{partial.key}.{partial.attempt}")  # which may have been before

        try:
            caller = Bounded(self, self._ref, body, record, held=length)
        except Problem as problem:
            if not lasting(problem):
                discard()
            raise
        return self._put(partial.key, caller, write, discard)

    def _put(
        self,
        key: str,
        caller: Bounded,
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
            yield Stored(self.name, self._border, key, reader)

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
            yield Still(Stored(self.name, self._border, location, reader), partial(self._still, location, version))

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
            raise lacking(f"store {self.name}", self._ref.driver, error, libraries) from error
        except Exception as error:
            # only the system's own words: a client library may quote a URL or a header with a secret in it
            what = error.strerror if isinstance(error, OSError) else None
            raise StoreUnavailable(f"store {self.name}: {what or type(error).__name__}") from error


def _check(word: str, pattern: re.Pattern[str]) -> None:
    """Nothing of a user's naming reaches a path: our own code makes keys, so a wrong one is a bug."""
    if not pattern.fullmatch(word):
        raise ValueError(f"{word!r} is no key of ours")
