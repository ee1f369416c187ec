"""What `decide` is given and what it answers: values only, so that its tests are a table.

Apart from the rules, since the engine makes the one and acts on the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from glimpse.api.image import HistoryEntry, Image, ImageStatus, Transfer
from glimpse.api.locations import Location
from glimpse.control.slots import Place
from glimpse.control.uploads import Upload
from glimpse.problems import Problem
from glimpse.tasks import Record, Stored


class Allowed(NamedTuple):
    """What may be registered in a store."""

    prefix: str
    """How the keys begin."""
    delete: bool = False
    """Such bytes may be removed with the image."""


@dataclass(frozen=True, slots=True)
class StoreView:
    """An ImageStore as one image may use it."""

    name: str
    version: str = ""
    """Changes with its spec and with its readiness: a failed use is tried again then."""
    refused: Problem | None = None
    """Why this image may not put bytes here."""
    unreachable: Problem | None = None
    """Why nobody can, at the moment."""
    locations: tuple[Allowed, ...] = ()
    """What this image may register of what lies there."""
    read_only: bool = False
    """Nothing of ours is ever in it."""
    boot_format: str | None = None
    """The disk format of what machines start from there, if they do."""

    @property
    def trouble(self) -> Problem | None:
        """Why this image cannot put bytes here now."""
        return self.refused or self.unreachable


@dataclass(frozen=True, slots=True)
class Original:
    """The Image that another one refers to, as that one may see it."""

    uid: str = ""
    entry: HistoryEntry | None = None
    """The revision that it serves, with the stores that hold it."""
    problem: Problem | None = None
    """Why there is none to be had."""
    withdrawn: bool = False
    """It is there, and may not be used."""


@dataclass(frozen=True, slots=True)
class FetchWork:
    """Bring a revision into stores."""

    revision: int
    spec_hash: str
    stores: tuple[str, ...]
    copy_from: str | None = None
    """The store that has it already; None: the source."""
    attempt: int = 1
    unless: str | None = None
    """The digest of what is known already, as downloaded: bytes that have it are not stored again."""
    expects: str | None = None
    """The digest that the stored bytes must have: they were lost."""
    location: Location | None = None
    """Where a store has the bytes already: they are registered there. With `copy_from`: again, since it was lost."""
    upload: str | None = None
    """The uid of the upload that has brought them to a store."""
    original: Original | None = None
    """Whose bytes they are, with the stores in the order in which they are to be read."""


@dataclass(frozen=True, slots=True)
class LookWork:
    """Ask the source whether it still has these bytes."""

    revision: int
    url: str | None
    etag: str | None
    last_modified: str | None
    size: int | None
    """Their length as downloaded; None: it is not known, since what is stored of them is something else."""
    likely: bool = False
    """The bytes were lost: where nothing but their length is known, an equal one is enough to fetch them."""


@dataclass(frozen=True, slots=True)
class VerifyWork:
    """Read a revision in a store and compare it with its digest."""

    revision: int
    store: str
    digest: str


@dataclass(frozen=True, slots=True)
class RemoveWork:
    """Remove revisions from stores."""

    stores: tuple[str, ...]
    revisions: tuple[int, ...] = ()
    """Empty: all of this image."""
    retain: bool = False
    """Keep the bytes and mark them as kept."""
    erase: tuple[tuple[str, str], ...] = ()
    """Store and prefix: the bytes of others that were registered there go too."""


Work = FetchWork | LookWork | VerifyWork | RemoveWork


@dataclass(frozen=True, slots=True)
class Result:
    """How a work ended."""

    work: Work
    record: Record | None = None
    """Of a fetch that ended well."""
    problem: Problem | None = None
    """Of a work that ended badly."""
    stored: Mapping[str, Stored] = field(default_factory=dict)
    failed: Mapping[str, Problem] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    unchanged: bool = False
    """Of a look: the source has the bytes that are known. Of a fetch: so it was, and nothing was stored."""
    crashed: bool = False
    """The worker died by itself: the bytes may be the reason."""
    references: str | None = None
    """Of the versions of the Secrets and ConfigMaps that were used."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a decision is made from."""

    image: Image
    stores: Mapping[str, StoreView]
    now: datetime
    defaults: tuple[str, ...] = ()
    """Names of the stores that are marked as default."""
    running: Work | None = None
    queued: Place | None = None
    """Where what runs, or is about to, waits for its turn."""
    progress: Transfer | None = None
    """Of what runs."""
    result: Result | None = None
    """Of what has ended since the last decision."""
    original: Original | None = None
    """Of an image that refers to another one."""
    upload: Upload | None = None
    """Of an image whose bytes are uploaded: the one that is pending, or next."""
    scrub: bool = False
    """It is this image's turn: a stored copy is to be verified."""
    references: str | None = None
    """Versions of the Secrets and ConfigMaps now, if they were looked at."""
    reading: frozenset[int] | None = frozenset()
    """Revisions that a gateway is reading; None: nobody has looked."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: first the finalizer, then the cancellation, then the status, then the start."""

    status: ImageStatus
    start: Work | None = None
    cancel: bool = False
    again: datetime | None = None
    """Look again then, if nothing happens before."""
    look: bool = False
    """... and look at the Secrets and ConfigMaps then."""
    finalizer: bool | None = None
    """Set it, remove it, or leave it."""
    dropped: str | None = None
    """The uid of an upload that is not wanted any more."""
    events: tuple[tuple[str, str, str], ...] = ()
    """(type, reason, message) for people."""
