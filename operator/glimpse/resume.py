"""How a fetch goes on with what an earlier one has left in a store: which bytes may be joined, and how they are read.

Bytes of two versions of a file would make an image that never was. So what is left carries a mark that says which
version it is of, and only more of that version is added to it; and it is read again, by every check, like all else.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glimpse.problems import DataLost, Problem, WorkerLost
from glimpse.sources.remote import Version
from glimpse.stores import MARK_LIMIT, Partial, Store
from glimpse.streams import CHUNK, Reader
from glimpse.trail import Trail

_MORE: Final = 128
"""Bytes of a mark for length and digest."""


class Versioned(Protocol):
    """A source that says which bytes it has."""

    @property
    def name(self) -> str:
        """Where they are, without credentials and query."""

    @property
    def version(self) -> Version:
        """Which they are."""


class Mark(BaseModel):
    """Which bytes a put is of: what was asked for, of which mirror, the version that it had, and what has come."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    spec_hash: str
    url: str
    """Without credentials and query."""
    size: Annotated[int, Field(gt=0)]
    """Bytes of the whole."""
    etag: str | None = None
    last_modified: str | None = None
    guard: str | None = None
    """The validator that tells versions apart; None if there is none, so that only a digest proves the whole."""
    length: Annotated[int, Field(ge=0)] = 0
    """Of so many bytes at the start ..."""
    digest: str = ""
    """... this is the sha256 in hex: they can be gone on with."""

    @classmethod
    def of(cls, spec_hash: str, source: Versioned, *, proven: bool) -> Self | None:
        """Of a source that has just been opened; None if more of the same could not be told from other bytes."""
        version = source.version
        if not version.size or not (version.guard or proven):
            return None
        mark = cls(
            spec_hash=spec_hash,
            url=source.name,
            size=version.size,
            etag=version.etag,
            last_modified=version.last_modified,
            guard=version.guard,
        )
        return mark if len(mark.line()) + _MORE <= MARK_LIMIT else None

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """As a store gave it back; None if it makes no sense, as after a change of this program."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None

    def line(self) -> bytes:
        """As a store keeps it."""
        return self.model_dump_json(exclude_defaults=True).encode()

    def along(self, trail: Trail) -> Callable[[int], bytes]:
        """What to say of the first bytes of these, whose digest is known by `trail`."""

        def mark(length: int) -> bytes:
            known = trail.of_first(length)
            return (self.model_copy(update={"length": known[0], "digest": known[1]}) if known else self).line()

        return mark

    def version(self, *, alone: bool) -> Version:
        """What a source must still be. Not `alone`: other mirrors may answer, whose validators are their own."""
        if alone:
            return Version(self.size, self.etag, self.last_modified, self.guard)
        return Version(self.size, None, None, None)


@dataclass(slots=True)
class Left:
    """What an earlier fetch has left in one store, in our hands until it is dropped or the block ends."""

    store: Store
    partial: Partial
    mark: Mark
    block: ExitStack
    used: bool = False
    """Its bytes are what a pass begins with."""

    @property
    def start(self) -> int:
        """From where the source is read. One byte is asked for at least: that shows whether it is the same file."""
        return min(self.mark.length, self.mark.size - 1)

    def drop(self) -> None:
        """It is of no use: have it removed now."""
        self.partial.discard()
        self.block.close()


@contextmanager
def furthest(stores: Iterable[Store], key: str, attempt: str, fits: Callable[[Mark], bool]) -> Iterator[Left | None]:
    """Of what is left in these stores with a mark that fits, that of which most can be proven.

    A store that cannot be looked at has nothing; its own put will say why. What does not fit is left where it is.
    """
    with ExitStack() as kept:
        best = None
        for store in stores:
            with ExitStack() as block:
                try:
                    partial = block.enter_context(store.partial(key, attempt))
                except Problem:
                    continue
                mark = Mark.read(partial.mark) if partial else None
                if not (partial and mark and 0 < mark.length <= min(partial.length, mark.size) and fits(mark)):
                    continue
                if best is None or best.mark.length < mark.length:
                    if best:
                        best.block.close()
                    best = Left(store, partial, mark, kept.enter_context(block.pop_all()))
        yield best


class Joined:
    """A Reader over what is left, and then over the rest of the source."""

    def __init__(self, left: Left, rest: Reader, cancelled: threading.Event) -> None:
        """`rest` begins at `left.start`."""
        self.size: int | None = left.mark.size
        self._left, self._rest, self._cancelled = left, rest, cancelled
        self._until = left.mark.length
        self._skip = left.mark.length - left.start

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises DataLost if what is left cannot be read, WorkerLost if cancelled, and as `rest`."""
        if self._until:
            if self._cancelled.is_set():
                raise WorkerLost("the transfer was cancelled")
            return self._stored(n)
        while self._skip and (chunk := self._rest.read(self._skip)):
            self._skip -= len(chunk)
        return self._rest.read(n)

    def _stored(self, n: int) -> bytes:
        try:
            chunk = self._left.partial.reader.read(min(n, self._until))
        except Problem as problem:
            raise DataLost(f"what is left of an earlier transfer cannot be read: {problem.message}") from problem
        self._until -= len(chunk)
        return chunk
