"""Ways to bytes: what a fetch reads from, and who looks at what has come in the end.

Apart from the fetch itself, which decides which way is taken into which stores.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from glimpse.problems import DataLost, NotFound, Permanent, SourceChanged, SourceNotFound
from glimpse.resume import Left, Mark
from glimpse.stores import Store, Version
from glimpse.streams import CHUNK, Cancel, Checked, Digest, Reader, Tap
from glimpse.tasks import ALGORITHMS, LocationOrigin, Record


@dataclass(frozen=True, slots=True)
class Opened:
    """A body that is about to come."""

    body: Checked
    record: Callable[[], Record]
    """What is known of it once it has been read."""
    mark: Callable[[int], bytes] | None = None
    """Which bytes the first so many are, if more of them can be had later."""
    left: Left | None = None
    """Where its first bytes come from, if not from the source."""
    version: Version | None = None
    """Which bytes they are, if they lie in a store where others have put them."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the bytes."""

    name: str
    """In messages."""
    places: Sequence[str]
    """What is asked; what is found out about one of them last is what counts."""
    open: Callable[[Left | None], AbstractContextManager[Opened]]
    fits: Callable[[Mark], bool] = lambda _: False
    """Whether it may go on with what is left with this mark."""


class Known(Permanent):
    """The bytes are the ones that are known already: no store shall keep them once more. Never leaves a fetch."""

    def __init__(self, record: Record) -> None:
        super().__init__("the bytes are known")
        self.record = record


class Familiar:
    """The last Tap: compares the digests of what has come with those of bytes that were stored before."""

    def __init__(self, record: Callable[[], Record], expects: str | None, unless: str | None) -> None:
        """`record`: of what has passed; the others as in Fetch."""
        self._record, self._expects, self._unless = record, expects, unless

    def feed(self, _chunk: bytes, /) -> None:
        """Nothing to see before the end."""

    def finish(self) -> None:
        """Raises DataLost, or Known if nothing is to be stored."""
        if self._expects or self._unless:
            record = self._record()
            if self._expects not in {None, record.digest}:
                raise DataLost(
                    f"the source has other bytes by now: {record.digest} and not {self._expects}; "
                    "change spec.source or spec.checksum to take them, or bring the old ones back"
                )
            if self._unless in {record.digest, record.source_digest}:
                raise Known(record)

    def close(self) -> None:
        """Nothing is held."""


class Others:
    """A reader over what others have put into a store: to a fetch that is a source."""

    def __init__(self, origin: LocationOrigin, reader: Reader) -> None:
        self._origin, self._reader = origin, reader

    @property
    def size(self) -> int | None:
        """In bytes."""
        return self._reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises SourceNotFound, SourceChanged."""
        with place(self._origin):
            return self._reader.read(n)


@contextmanager
def place(origin: LocationOrigin) -> Iterator[None]:
    """What happens to the bytes of others happens to a source."""
    try:
        yield
    except NotFound as problem:
        raise SourceNotFound(f"nothing lies at {origin.key} in store {origin.store.name}") from problem
    except DataLost as problem:
        raise SourceChanged(f"{origin.key} in store {origin.store.name} was changed while it was read") from problem


class Once:
    """Asks for the record once and gives the same to every store."""

    def __init__(self, make: Callable[[], Record]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: Record | None = None

    def __call__(self) -> Record:
        """The record."""
        with self._lock:
            self._made = self._made or self._make()
            return self._made


@contextmanager
def stored(
    store: Store, key: str, cancelled: threading.Event, digest: str | None = None
) -> Iterator[tuple[Reader, list[Tap], Record]]:
    """An object, the taps that prove it, and its record. Raises DataLost if it is not what was stored."""
    try:
        found = store.stat(key).record
        if found is None or not found.digest:
            raise DataLost(f"object {key} in store {store.name} has no record that can be read")
        algorithm, _, expected = (digest or found.digest).partition(":")
        if algorithm not in ALGORITHMS:
            raise DataLost(f"object {key} in store {store.name} has a digest of an unknown kind")
        with store.get(key) as reader:
            yield reader, [Cancel(cancelled), Digest(algorithm, expected, mismatch=DataLost)], found
    except NotFound:
        raise DataLost(f"object {key} is no longer in store {store.name}") from None
