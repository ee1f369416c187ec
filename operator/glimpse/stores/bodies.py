"""Bytes on their way into a store and out of it, held to what the store allows and was told of them.

What every driver would have to look at is looked at here, whatever the driver.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from glimpse.api.base import format_quantity
from glimpse.problems import DataLost, QuotaExceeded, SourceChanged, StoreFull, StoreUnavailable, TooLarge
from glimpse.stores.driver import MARK_LIMIT, Capacity, Mark
from glimpse.stores.entries import encode
from glimpse.streams import CHUNK, Reader
from glimpse.tasks import Record, StoreRef

_LOOK: Final = 64 << 20
"""Bytes that may pass between two looks at the room in a store."""


class Room(Protocol):
    """A store that tells its room."""

    name: str

    def capacity(self) -> Capacity:
        """Its room now. Raises Problem."""


class Bounded:
    """A body that stays within what its store allows: room is looked at before the first byte and as bytes pass.

    It remembers what the caller's own reader or record raised, which is the answer whatever a driver makes of it.
    """

    def __init__(self, store: Room, ref: StoreRef, body: Reader, record: Callable[[], Record], held: int = 0) -> None:
        """`held`: bytes at the start that the store holds already, and so need no room."""
        self._store, self._ref, self._body, self._record = store, ref, body, record
        self._passed = 0
        self._seen = held  # how much had passed at the last look
        self.error: BaseException | None = None
        self._room = self._look()
        self._check(body.size or 0)

    @property
    def size(self) -> int | None:
        """As the body says."""
        return self._body.size

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises what the body raises, TooLarge, QuotaExceeded, StoreFull."""
        try:
            chunk = self._body.read(n)
            self._check(len(chunk))
        except BaseException as error:
            self.error = error
            raise
        self._passed += len(chunk)
        return chunk

    def record(self) -> bytes:
        """What is stored with them. Raises what the caller's own raises, InvalidConfiguration."""
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


class Sized:
    """Stands for bytes that are not read, and takes their room."""

    def __init__(self, size: int) -> None:
        self.size: int | None = size

    def read(self, _n: int = CHUNK, /) -> bytes:
        """The end."""
        return b""


class Rest:
    """A body without its first bytes, which are stored already."""

    def __init__(self, body: Reader, skip: int) -> None:
        self._body, self._skip = body, skip

    @property
    def size(self) -> int | None:
        """Of what is left."""
        return None if self._body.size is None else max(0, self._body.size - self._skip)

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises SourceChanged if the body ends in what is passed over."""
        while self._skip:
            chunk = self._body.read(n)
            if not chunk:
                raise SourceChanged(f"the source has ended {self._skip} bytes before what is stored of it already")
            passed = min(self._skip, len(chunk))
            self._skip -= passed
            if passed < len(chunk):
                return chunk[passed:]
        return self._body.read(n)


class Stored:
    """A reader over an object that must not end early."""

    def __init__(
        self, store: str, border: Callable[[], AbstractContextManager[None]], key: str, reader: Reader
    ) -> None:
        self._border, self._store, self._key, self._reader = border, store, key, reader
        self._left = reader.size

    @property
    def size(self) -> int | None:
        """As the driver says."""
        return self._reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises DataLost if they end early."""
        with self._border():
            chunk = self._reader.read(n)
        if self._left is not None:
            self._left -= len(chunk)
            if not chunk and self._left:
                raise DataLost(f"object {self._key} in store {self._store} ends {self._left} bytes early")
        return chunk


class Still:
    """A reader that looks at its end whether what it read is still what lies there."""

    def __init__(self, reader: Reader, check: Callable[[], None]) -> None:
        self._reader, self._check = reader, check

    @property
    def size(self) -> int | None:
        """As the reader says."""
        return self._reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes; at the end it looks."""
        chunk = self._reader.read(n)
        if not chunk:
            self._check()
        return chunk


def too_large(store: str, limit: int) -> TooLarge:
    """What a store says of an image that is larger than it takes."""
    return TooLarge(f"the image is larger than {format_quantity(limit)}, maxImageSize of store {store}")


def limited(mark: Mark) -> Mark:
    """The same, which raises ValueError where it is too long; now, if it begins so."""

    def checked(length: int) -> bytes:
        line = mark(length)
        if len(line) > MARK_LIMIT:
            raise ValueError(f"a mark of {len(line)} bytes, {MARK_LIMIT} at most")
        return line

    checked(0)
    return checked
