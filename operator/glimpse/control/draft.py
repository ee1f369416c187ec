"""A decision in the making: the parts of an Image's status as they change, and what is to be done.

Shared by the steps of `decide`, so that each step is a function that reads like the sentence it stands for.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from glimpse.api.base import FORGET_STORE
from glimpse.api.image import (
    COMPRESSIONS,
    Artifact,
    Failure,
    Format,
    HistoryEntry,
    Image,
    ImageSpec,
    ImageStatus,
    Pending,
    Revision,
    StoreStatus,
    Verification,
    stored_format,
)
from glimpse.api.locations import Location, fault
from glimpse.control.conditions import SOURCE_VERIFIED, Conditions, shorten
from glimpse.control.seen import Original, RemoveWork, Result, Seen, StoreView, Work
from glimpse.problems import (
    Problem,
    SecretNotReadable,
    SourceUnavailable,
    StoreConflict,
    StoreNotFound,
    StoreRefused,
    WorkerCrashed,
    WorkerLost,
)
from glimpse.settings import Retries, Settings

FAR: Final = timedelta(days=2)
"""Longer than any wait between two attempts."""
CRASHES: Final = 3
"""Crashes of the worker on the same bytes before a person is asked."""


def spec_hash(spec: ImageSpec) -> str:
    """Of what decides about the bytes.

    With a digest, that is the digest: another mirror of the same bytes is no new revision. A checksum file says what
    the bytes are at one moment only, so it counts together with the mirrors; and so does who must have signed it, since
    what was stored without that proof cannot be given it later: by then the file may speak of other bytes. A location
    always counts: to register the same bytes elsewhere, or to copy them, is to let go of where they were.
    """
    checksum, location = spec.checksum, spec.source.location
    if checksum and checksum.digest:
        identity: dict[str, object] = {"digest": checksum.digest}
    else:
        identity = {"urls": list(spec.source.http.urls)} if spec.source.http else {}
        if checksum:
            identity["checksum"] = checksum.dump()
    if location:
        identity["location"] = location.dump()
    if spec.source.image:
        identity["image"] = spec.source.image.dump()
    identity["disk"] = spec.format.disk
    if spec.format.decompress != "auto":
        identity["decompress"] = spec.format.decompress
    if spec.format.convert_to:
        identity["convertTo"] = spec.format.convert_to
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def wanted_hash(seen: Seen) -> str:
    """Of the bytes that are wanted now. Where another Image is referred to, that is what it serves.

    While nothing of it is to be had, what was taken of it before is what is wanted.
    """
    mine = spec_hash(seen.image.spec)
    if seen.original is None:
        return mine
    if entry := seen.original.entry:
        return mine + hashlib.sha256(entry.digest.encode()).hexdigest()[:16]
    newest = max(seen.image.status.history, key=lambda h: h.revision, default=None)
    return newest.spec_hash if newest and newest.spec_hash.startswith(mine) else mine


def backoff(retries: Retries, attempt: int, seed: str) -> float:
    """Seconds until the next attempt: exponential, with a jitter of a fifth that depends on `seed` alone."""
    jitter = int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:2], "big") / 0xFFFF
    return float(min(retries.cap, retries.base * 2 ** min(attempt - 1, 20)) * (0.8 + 0.4 * jitter))


def share(seed: str) -> float:
    """A number from 0 to 1 that depends on `seed` alone."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") / 0xFFFFFFFF


def touched(status: ImageStatus) -> tuple[str, ...]:
    """Stores that may hold bytes of this image."""
    names = [s.name for s in status.stores if s.revision is not None or s.pending_revision is not None]
    for kept in status.history:
        names += [*kept.stores, *kept.damaged]
    for removal in status.removals:
        names += removal.stores
    names += status.pending.stores if status.pending else ()
    return tuple(dict.fromkeys(names))


def wanted_stores(image: Image, defaults: tuple[str, ...]) -> tuple[str, ...]:
    """The stores that shall hold the image: as written, where its bytes are, as chosen before, or the default."""
    if image.spec.source.location and not image.spec.stores:
        return (image.spec.source.location.store,)
    return image.spec.stores or tuple(s.name for s in image.status.stores) or defaults


class Downloaded(NamedTuple):
    """What the bytes of a revision were as downloaded."""

    disk_format: str
    """What a machine would have seen of them; compressed bytes that were not unpacked are raw."""
    compression: str
    """`gz` and so on, or nothing."""
    unpacked: bool
    stored: str
    """The disk format of the revision."""

    @classmethod
    def of(cls, revision: Revision) -> "Downloaded":
        """As the revision tells it."""
        disk_format, _, compression = (revision.source_format or revision.disk_format).partition(".")
        if disk_format in COMPRESSIONS:
            return cls("raw", disk_format, unpacked=False, stored=revision.disk_format)
        return cls(disk_format, compression, unpacked=bool(compression), stored=revision.disk_format)

    def fits(self, wanted: Format) -> bool:
        """Whether this format makes of these bytes what the revision is."""
        unpack = bool(self.compression) and wanted.decompress == "auto"
        becomes = stored_format(self.disk_format, wanted.convert_to)
        # what was converted to raw may have been a disc inside
        alike = becomes == self.stored or (wanted.convert_to, self.stored) == ("raw", "iso")
        return wanted.disk in ("auto", self.disk_format) and unpack == self.unpacked and alike

    def alike(self, spec: ImageSpec) -> set[str]:
        """Hashes of specs that differ from this one in nothing but the format."""
        formats = (
            spec.format.but(disk=disk, decompress=decompress, convert_to=convert_to)
            for disk in ("auto", self.disk_format)
            for decompress in ("auto", "never")
            for convert_to in (None, "raw", "qcow2")
        )
        return {spec_hash(spec.but(format=each)) for each in formats}


def without(entry: HistoryEntry, stores: Collection[str]) -> HistoryEntry:
    """A revision that is no longer in these stores."""
    return entry.but(
        stores=tuple(s for s in entry.stores if s not in stores),
        damaged=tuple(s for s in entry.damaged if s not in stores),
        verified={s: at for s, at in entry.verified.items() if s not in stores},
    )


def completed(entry: HistoryEntry, artifact: Artifact | None) -> HistoryEntry:
    """An entry as an earlier version of Glimpse wrote it knew less than the artifact."""
    if entry.spec_hash or artifact is None or artifact.revision != entry.revision:
        return entry
    return entry.but(**{name: getattr(artifact, name) for name in Revision.model_fields})


def has_digest(revision: Revision, digest: str) -> bool:
    """Whether stored bytes have this digest, as far as we computed it."""
    algorithm, _, value = digest.partition(":")
    return revision.digest == digest or revision.digests.get(algorithm) == value


class Draft:
    """One decision: what is seen, the status as it changes, and what is to be done."""

    def __init__(self, seen: Seen, settings: Settings) -> None:
        status = seen.image.status
        self.seen, self.settings = seen, settings
        self.meta, self.spec, self.now = seen.image.metadata, seen.image.spec, seen.now
        self.want = wanted_hash(seen)
        self.before = status.artifact.revision if status.artifact else None
        """The revision that was served until now."""
        self.pending = status.pending
        self.stores = {s.name: s for s in status.stores}
        self.history = sorted((completed(h, status.artifact) for h in status.history), key=lambda h: -h.revision)
        """Newest first, always. What is served is one of them."""
        self.removals = list(status.removals)
        self.looks = status.refresh
        self.last_revision = status.last_revision
        self.handled = status.last_handled_reconcile_at
        self.conditions = Conditions(status.conditions, self.meta.generation, self.now)
        self.withdrawn = seen.original.problem if seen.original and seen.original.withdrawn else None
        """Why nothing is served any more: the Image that is referred to may not be used."""
        self.targets: tuple[str, ...] = ()
        self.invalid: Problem | None = None
        self.wrong_pin: Problem | None = None
        self.start: Work | None = None
        self.cancel = False
        self.look = False
        self.times: list[datetime] = []
        self.finalizer: bool | None = None
        self.dropped: str | None = None
        """The uid of an upload that is not wanted any more."""
        self.upload_failed = ""
        """Why an upload came to nothing, just now."""
        self.said: list[tuple[str, str, str]] = []
        """Events beside those that the two statuses tell."""

    def forget_stores(self) -> None:
        """An administrator says that a store is gone for good, or it is."""
        named = self.meta.annotations.get(FORGET_STORE, "")
        forgotten = {name.strip() for name in named.split(",") if name.strip()}
        # One that is there holds what it holds: forgotten again and again, it would be filled again and again.
        forgotten = {n for n in forgotten if n not in self.seen.stores or self.seen.stores[n].unreachable}
        if not forgotten:
            return
        for name in forgotten:
            if name in self.stores:
                self.stores[name] = StoreStatus(name=name, conditions=self.stores[name].conditions)
        self.history = [
            left
            for h in self.history
            if (left := without(h, forgotten)) == h or left.stores or left.damaged  # else there is nothing to mend
        ]
        self.removals = [r.but(stores=tuple(s for s in r.stores if s not in forgotten)) for r in self.removals]
        if self.pending:
            self.pending = self.pending.but(stores=tuple(s for s in self.pending.stores if s not in forgotten))
        self.tidy()

    def tidy(self) -> None:
        """Drop what no store holds any more."""
        served = self.served
        self.removals = [r for r in self.removals if r.stores]
        self.history = [h for h in self.history if h.stores or h.damaged or h is served]

    @property
    def newest(self) -> HistoryEntry | None:
        """The revision that was fetched last."""
        return self.history[0] if self.history else None

    def entry(self, revision: int | None) -> HistoryEntry | None:
        """A revision that is kept."""
        return next((h for h in self.history if h.revision == revision), None)

    @property
    def served(self) -> HistoryEntry | None:
        """The revision that is served: the pinned one, if there is one to serve, or the newest."""
        pin, before = self.spec.revisions.pin, self.entry(self.before)
        if self.withdrawn:
            return None
        if self.spec.suspend and before:
            return before
        if pin is None:
            return self.newest
        return self.entry(pin) if pin == self.before or pin in self.pinnable() else before

    def pinnable(self) -> tuple[int, ...]:
        """Revisions that can be served from now on: some store holds them, and does not remove them already."""
        return tuple(h.revision for h in self.history if any(not self.begun(h.revision, s) for s in h.stores))

    def begun(self, revision: int, store: str) -> bool:
        """Whether the removal of a revision from a store may have begun."""
        running = self.seen.running
        if (
            isinstance(running, RemoveWork)
            and store in running.stores
            and revision in (running.revisions or (revision,))
        ):
            return True
        return any(
            r.revision == revision and store in r.stores and (r.attempt or r.after <= self.now) for r in self.removals
        )

    def put(self, entry: HistoryEntry) -> None:
        """Put a revision in the place of what was known of it."""
        self.history = [entry if h.revision == entry.revision else h for h in self.history]

    def current(self) -> bool:
        """Whether the newest revision is what the spec asks for."""
        newest = self.newest
        if not newest or newest.location != self.spec.source.location:
            return False
        if newest.spec_hash == self.want:
            return True
        source = Downloaded.of(newest)
        if not source.fits(self.spec.format):
            return False
        return newest.spec_hash in source.alike(self.spec) or self.proven(newest)

    def proven(self, revision: Revision) -> bool:
        """Whether the bytes as downloaded had the digest that the spec names, as far as we know."""
        digest = self.spec.checksum.digest if self.spec.checksum else None
        if not digest or revision.source_digest:
            return bool(digest) and revision.source_digest == digest
        return has_digest(revision, digest)

    def lost(self) -> bool:
        """Whether no store holds the served revision any more."""
        return self.served is not None and not self.served.stores

    def holders(self) -> tuple[str, ...]:
        """Stores that hold the served revision, wanted or not."""
        return self.served.stores if self.served else ()

    @property
    def interval(self) -> timedelta | None:
        """How often the source is looked at; None: never."""
        if not self.spec.refresh or (self.spec.checksum and self.spec.checksum.digest):
            return None
        return timedelta(seconds=self.spec.refresh.interval)

    def next_check(self, *, first: bool = False) -> datetime | None:
        """When to look at the source after now. The first times of many images are spread over the whole interval."""
        if not self.interval:
            return None
        part = share(self.meta.uid)
        return self.now + self.interval * (0.1 + 0.9 * part if first else 0.95 + 0.1 * part)

    def due(self, at: datetime) -> bool:
        """Whether a time has come; one that is far ahead was written by a clock that was wrong."""
        return at <= self.now or at - self.now > max(FAR, 2 * (self.interval or FAR))

    def holds(self, name: str) -> bool:
        """Whether a store has the served revision."""
        return name in self.holders()

    def origin_trouble(self, name: str) -> Problem | None:
        """Why nothing can be copied from this store now."""
        view = self.view(name)
        return view.unreachable if name in self.seen.stores else view.refused

    def conflict(self, name: str, attempts: int = 1) -> bool:
        """Whether a store holds other bytes under the key that was to be written, at so many attempts or more."""
        failure = self.stores[name].failure
        return bool(failure and failure.reason == StoreConflict.reason and failure.attempt >= attempts)

    def view(self, name: str) -> StoreView:
        """A store as it is, or its absence."""
        missing = StoreNotFound(f"there is no ImageStore {name!r}: create it, or name another in spec.stores")
        return self.seen.stores.get(name) or StoreView(name, refused=missing)

    def referral(self) -> Original | Problem:
        """The Image that is referred to, with those of its stores that can be read from; or why there is none."""
        original = self.seen.original
        if original is None or original.entry is None:
            problem = original.problem if original else None
            return problem or SourceUnavailable("spec.source.image was not looked at yet")
        troubles = {name: self.origin_trouble(name) for name in original.entry.stores}
        readable = tuple(name for name, trouble in troubles.items() if trouble is None)
        if not readable:
            return next(trouble for trouble in troubles.values() if trouble)
        return replace(original, entry=original.entry.but(stores=readable))

    def refusal(self, location: Location) -> Problem | None:
        """Why this image may not register these bytes."""
        view, namespace = self.view(location.store), self.meta.namespace
        if view.refused:
            return view.refused
        if why := fault(location.key):
            return StoreRefused(f"nothing can be registered as {location.key!r}: {why}")
        if any(location.key.startswith(allowed.prefix) for allowed in view.locations):
            return None
        prefixes = ", ".join(allowed.prefix for allowed in view.locations)
        return StoreRefused(
            f"the ImageStore {location.store!r} lets the namespace {namespace!r} register "
            + (f"only what begins with {prefixes}" if prefixes else "nothing that it holds")
            + " (spec.locations)"
        )

    def failure(
        self,
        old: Failure | None,
        problem: Problem,
        result: Result,
        references: str | None,
        *,
        again: bool = False,
        at: datetime | None = None,
    ) -> Failure:
        """The next failure in a row; `again`: tried again whatever it is; `at`: then, if for good."""
        crashes = (old.crashes if old else 0) + 1 if isinstance(problem, WorkerLost) and result.crashed else 0
        if crashes >= CRASHES:
            problem = WorkerCrashed(f"the worker crashed {crashes} times on these bytes, last: {problem.message}")
        attempt = (old.attempt if old else 0) + 1
        if again or not problem.permanent:
            wait = backoff(self.settings.retries, attempt, self.meta.uid)
            if isinstance(problem, SecretNotReadable):
                wait = min(wait, self.settings.secret_interval)
            at = self.now + timedelta(seconds=max(wait, problem.retry_after or 0))
        return Failure(
            reason=problem.reason,
            message=shorten(problem.message),
            attempt=attempt,
            crashes=crashes,
            generation=self.meta.generation,
            references=references,
            next_attempt_at=at,
        )

    def store_failed(self, name: str, problem: Problem, result: Result, *, again: bool = False) -> None:
        """Note why a store does not hold the image."""
        store = self.stores.get(name) or StoreStatus(name=name)
        view = self.seen.stores.get(name)
        failure = self.failure(store.failure, problem, result, view.version if view else None, again=again)
        self.stores[name] = store.but(failure=failure)

    def next_revision(self) -> int:
        """A number that was never used; from now on it is."""
        self.last_revision = (self.last_revision or 0) + 1
        return self.last_revision

    def anew(self, pending: Pending) -> Pending:
        """The same under a number that was never used."""
        return pending.but(revision=self.next_revision(), stores=(), failure=None)

    def given(self) -> Verification | None:
        """What the spec itself says of the bytes, and what is proven where they are current."""
        checksum = self.spec.checksum
        return Verification(digest=checksum.digest) if checksum and checksum.digest else None

    def proof(self, revision: Revision) -> Verification | None:
        """What was proven of a revision that is kept. Of an older one the spec of today says nothing by itself."""
        if revision is self.newest and self.current():
            return self.given() or revision.verification
        return revision.verification or (self.given() if self.proven(revision) else None)

    def verified(self, proof: Verification) -> None:
        """State what was proven about the downloaded bytes."""
        reason, text = "DigestMatched", f"the downloaded bytes have the digest {proof.digest}"
        if proof.file:
            reason, text = "ChecksumFileMatched", f"{text}, as {proof.file} says; no signature was asked for"
        if proof.file and proof.key:
            reason = "SignatureMatched"
            text = f"{text.partition(';')[0]}, which is signed by the OpenPGP key {proof.key}"
        self.conditions.set(SOURCE_VERIFIED, True, reason, text)
