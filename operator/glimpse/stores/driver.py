"""What a driver is, what it may be able to do besides, and what it and its caller say to each other.

It is narrow: whatever every driver would repeat is done by `glimpse.stores.store` for all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Protocol, Self, runtime_checkable

from pydantic import BaseModel, Field

from glimpse.problems import DataLost, SourceChanged, StoreConflict, StoreFull, Transient
from glimpse.streams import Reader

RECORD_LIMIT: Final = 4096
"""Bytes of the largest record."""

MARK_LIMIT: Final = 4096
"""Bytes of the largest mark."""

Mark = Callable[[int], bytes]
"""Says of the first so many bytes of a body what they are of, for who goes on with them: MARK_LIMIT bytes at most."""


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

    def clone(self, source: str, key: str, attempt: str, record: bytes, going: Callable[[], None], /) -> Stat:
        """Make `key` with the bytes of the object `source`, atomically and durably as `put` does.

        Each of the two may be removed then, and the other stays whole. `going` is called now and then by who waits for
        a server, from any thread, and raises once nobody wants the object any more. Raises that, Unable if of this one
        none can be made, NotFound if there is no `source`, StoreConflict, StoreFull, StoreUnavailable.
        """


def lasting(error: BaseException) -> bool:
    """Whether a put that ended so may be gone on with: time can mend it, its bytes are wanted, right and no burden."""
    ended = SourceChanged | StoreConflict | DataLost | StoreFull
    return isinstance(error, Transient) and not isinstance(error, ended)
