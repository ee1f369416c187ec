"""Decides what happens to an Image next: a pure function from what is seen to a verdict.

Level-based: it never asks what happened, only what is, so a restart at any moment changes nothing. Status is its
only memory, and each thing there can be checked against the stores.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from glimpse.api.base import FINALIZER, requested_at
from glimpse.api.image import HistoryEntry, Looks, Pending, Removal, StoreStatus
from glimpse.control.describe import describe, events, status
from glimpse.control.draft import Draft, wanted_stores
from glimpse.control.ending import delete, suspend
from glimpse.control.keep import abandon_pending, choose_revision, keep_revisions, still_read
from glimpse.control.outcome import fold
from glimpse.control.seen import FetchWork, LookWork, Original, RemoveWork, Seen, Verdict, VerifyWork, Work
from glimpse.control.uploads import BUSY
from glimpse.problems import REASONS, InvalidConfiguration, Problem, SecretNotReadable, StoreUnavailable
from glimpse.settings import Settings

HISTORY: Final = 40
"""Revisions that a status can list."""
STORES: Final = 16
"""Stores that a status can list."""


def decide(seen: Seen, settings: Settings) -> Verdict:
    """What to do about this Image now."""
    meta = seen.image.metadata
    if FINALIZER not in meta.finalizers:
        return Verdict(status=seen.image.status, finalizer=None if meta.deletion_timestamp else True)
    d = Draft(seen, settings)
    d.forget_stores()
    if seen.result:
        fold(d, seen.result)
    if meta.deletion_timestamp:
        delete(d)
    elif d.spec.suspend:
        suspend(d)
    else:
        retry_what_changed(d)
        choose_stores(d)
        choose_revision(d)
        abandon_pending(d)
        keep_revisions(d)
        work(d)
        describe(d)
    after = status(d)
    return Verdict(
        status=after,
        start=d.start,
        cancel=d.cancel,
        again=min(d.times, default=None),
        look=d.look,
        finalizer=d.finalizer,
        dropped=d.dropped,
        events=(*events(seen.image.status, after), *d.said),
    )


def retry_what_changed(d: Draft) -> None:
    """A failure is tried again when its cause may have changed: the spec, a referenced object, or by force."""
    requested = requested_at(d.meta)
    forced = requested is not None and requested != d.handled
    if forced:
        d.handled = requested
    pending = d.pending
    if pending and (f := pending.failure):
        looked = d.seen.references is not None and d.seen.references != f.references
        if forced or f.generation != d.meta.generation or looked:
            d.pending = pending.but(failure=None)
    if d.looks and (f := d.looks.failure) and (forced or f.generation != d.meta.generation):
        d.looks = d.looks.but(failure=None)
    if d.looks and forced and d.interval:
        d.looks = d.looks.but(next_check_time=d.now)
    for name, store in d.stores.items():
        if not (f := store.failure):
            continue
        view = d.seen.stores.get(name)
        changed = view is not None and view.version != f.references
        if forced or f.generation != d.meta.generation or changed:
            d.stores[name] = store.but(failure=None)


def choose_stores(d: Draft) -> None:
    """The default is chosen once and kept in status; an ambiguity is never guessed away."""
    d.targets = wanted_stores(d.seen.image, d.seen.defaults if len(d.seen.defaults) == 1 else ())
    if d.targets:
        for name in d.targets:
            d.stores.setdefault(name, StoreStatus(name=name))
    elif d.seen.defaults:
        names = ", ".join(sorted(d.seen.defaults))
        d.invalid = InvalidConfiguration(
            f"several ImageStores are marked as default: {names}; name one in spec.stores, or unmark all but one"
        )
    else:
        d.invalid = InvalidConfiguration(
            "no ImageStore is marked as default; name one in spec.stores, or annotate one with "
            "glimpse.dev/is-default-store=true"
        )


def ready_for_bytes(d: Draft, name: str) -> bool:
    """Whether a store can be written to now; otherwise when to look again is noted."""
    failure = d.stores[name].failure
    if failure and not (failure.next_attempt_at and d.due(failure.next_attempt_at)):
        if failure.next_attempt_at:
            d.times.append(failure.next_attempt_at)
        return False
    return d.view(name).trouble is None


def work(d: Draft) -> None:
    """What to start, or to go on with."""
    running = d.seen.running
    if d.cancel or (running and unwanted(d, running)):
        d.cancel = True
        return
    if running and not isinstance(running, VerifyWork):
        return
    plan(d)
    if running and d.start:
        d.start, d.cancel = None, True  # to look at stored bytes can wait
    elif d.seen.scrub and not running and not d.start:
        scrub(d)


def plan(d: Draft) -> None:
    """What is to be done, the most urgent first."""
    if removing(d):
        return
    if d.withdrawn:
        d.invalid = d.withdrawn
        return
    if not d.current():
        if not d.invalid and not (d.wrong_pin and not d.served):
            bring(d)
        return
    newest = d.newest
    assert newest  # noqa: S101 - current() says so
    d.put(newest.but(spec_hash=d.want, verification=newest.verification or d.given()))
    for entry in dict.fromkeys(h.revision for h in (d.served, d.newest) if h and h.stores):
        copy(d, entry)
    if not d.start and d.spec.source.upload:
        receive(d)
    elif not d.start and not d.spec.source.image:
        renew(d)
    elif not d.start and (d.pending or (d.lost() and d.newest is d.served)):
        d.pending = d.pending or Pending(revision=newest.revision, spec_hash=d.want, expects=newest.digest)
        fetch(d)


def bring(d: Draft) -> None:
    """Have the bytes come, in the way of their source."""
    if d.spec.source.upload:
        receive(d)
    else:
        fetch(d)


def receive(d: Draft) -> None:
    """Let an upload begin, or make a revision of one that has come to its end."""
    upload = d.seen.upload
    if upload is None or upload.over(d.now) or upload.uid == d.dropped:
        return
    if d.pending is None and upload.stored:
        return
    if d.pending is None and upload.busy:
        d.times.append(d.now + BUSY)
    elif d.pending is None or upload.stored:
        fetch(d)
    if not upload.stored:
        d.times.append(upload.expires)


def unwanted(d: Draft, running: Work) -> bool:
    """Whether what runs serves nobody any more."""
    match running:
        case RemoveWork():
            return False
        case VerifyWork():
            entry = d.entry(running.revision)
            return entry is None or running.store not in entry.stores
        case LookWork():
            fresh = d.newest is not None and running.revision == d.newest.revision
            return not (fresh and d.current() and (d.interval or d.lost()))
        case FetchWork():
            if set(running.stores).isdisjoint(d.targets) or (running.location and d.refusal(running.location)):
                return True
            if running.copy_from:
                return not d.current() or running.revision not in {h.revision for h in (d.served, d.newest) if h}
            return not d.pending or running.revision != d.pending.revision


def removing(d: Draft) -> bool:
    """Start the removals that are due, in stores that can be reached."""
    due: dict[str, list[int]] = {}
    for removal in d.removals:
        if removal.after > d.now:
            d.times.append(removal.after)
            continue
        if still_read(d, removal):
            continue
        for name in removal.stores:
            if name in d.seen.stores and d.seen.stores[name].unreachable is None:
                due.setdefault(name, []).append(removal.revision)
    if not due:
        return False
    name, revisions = next(iter(due.items()))
    alike = tuple(other for other, theirs in due.items() if theirs == revisions)
    d.start = RemoveWork(stores=alike, revisions=tuple(revisions))
    return True


def origin(d: Draft) -> Original | Problem | None:
    """Whether this image may have what its source names: why not, or the Image that it refers to, if it does."""
    source = d.spec.source
    if source.location:
        return d.refusal(source.location)
    return d.referral() if source.image else None


def fetch(d: Draft) -> None:
    """Start to fetch what the spec asks for."""
    location, original = d.spec.source.location, origin(d)
    if isinstance(original, Problem):
        d.invalid = original
        return
    failure = d.pending.failure if d.pending else None
    if failure and not failure.next_attempt_at:
        watch_references(d)
        return
    if failure and failure.next_attempt_at and not d.due(failure.next_attempt_at):
        d.times.append(failure.next_attempt_at)
        if REASONS.get(failure.reason) is SecretNotReadable:
            watch_references(d)
        return
    doomed = {s for r in d.removals if d.pending and r.revision == d.pending.revision for s in r.stores}
    usable = tuple(name for name in d.targets if name not in doomed and ready_for_bytes(d, name))
    if location and location.store not in usable:
        usable = ()
    if not usable:
        if doomed.intersection(d.targets):
            d.invalid = StoreUnavailable(f"damaged bytes must first be removed from {', '.join(sorted(doomed))}")
        return
    if len(d.history) >= HISTORY or len(d.removals) >= HISTORY:
        d.invalid = StoreUnavailable("too many earlier revisions wait to be removed from their stores")
        return
    upload = d.seen.upload if d.spec.source.upload else None
    pending = d.pending = begun(d, usable)
    if upload and not upload.stored:
        return  # the gateway begins when it sees this
    attempt = failure.attempt + 1 if failure else 1
    renewed = d.newest if pending.renews and d.newest and d.newest.stores else None
    # A conversion may write the same disk in another way.
    known = (renewed.source_digest or renewed.digest) if renewed and not location else None
    d.start = FetchWork(
        pending.revision,
        d.want,
        usable,
        attempt=attempt,
        unless=known,
        expects=pending.expects,
        location=location,
        original=original,
        upload=upload.uid if upload else None,
    )


def begun(d: Draft, usable: Sequence[str]) -> Pending:
    """The revision in the making, in these stores too."""
    upload = d.seen.upload if d.spec.source.upload else None
    pending = d.pending or Pending(
        revision=d.next_revision(), spec_hash=d.want, upload=upload.pending if upload else None
    )
    if len({*pending.stores, *usable}) > STORES:
        d.removals.append(Removal(revision=pending.revision, stores=pending.stores, after=d.now))
        pending = d.anew(pending)
    return pending.but(stores=tuple(dict.fromkeys((*pending.stores, *usable))))


def renew(d: Draft) -> None:
    """Go on with newer or lost bytes, or look whether there are any."""
    if d.pending:
        fetch(d)
        return
    newest = d.newest
    assert newest  # noqa: S101 - plan() has looked
    looks = d.looks or Looks()
    when = looks.next_check_time
    if d.lost() and newest is d.served:
        when = d.now
    elif not d.interval:
        d.looks = None
        return
    elif when is None or when - d.now > 1.1 * d.interval:
        when = d.next_check(first=True)
    if f := looks.failure:
        when = f.next_attempt_at
    d.looks = looks if d.lost() else looks.but(next_check_time=when)
    location = d.spec.source.location
    if when and location and (trouble := d.refusal(location)):
        d.invalid = trouble
    elif when and d.due(when):
        size = None if newest.source_digest else newest.size
        d.start = LookWork(newest.revision, newest.source_url, newest.etag, newest.last_modified, size, likely=d.lost())
    elif when:
        d.times.append(when)


def scrub(d: Draft) -> None:
    """Verify the copy that was not looked at for the longest time."""
    last = d.now - timedelta(seconds=d.settings.scrub.interval)
    going = {(r.revision, s) for r in d.removals for s in r.stores}
    due = [
        (at, entry, store)
        for entry in d.history
        for store in entry.stores
        if (entry.revision, store) not in going
        and store in d.seen.stores
        and d.seen.stores[store].unreachable is None
        and (at := entry.verified.get(store, entry.stored_at)) <= last
    ]
    if due:
        _, entry, store = min(due, key=lambda each: each[0])
        d.start = VerifyWork(entry.revision, store, entry.digest)


def watch_references(d: Draft) -> None:
    """Look at the Secrets and ConfigMaps from time to time: they are not watched."""
    http, checksum = d.spec.source.http, d.spec.checksum
    if (http and (http.secrets or http.config_maps)) or (checksum and checksum.signature):
        d.times.append(d.now + timedelta(seconds=d.settings.secret_interval))
        d.look = True


def copy(d: Draft, revision: int) -> None:
    """Start to copy a revision into stores that do not hold it, unless something else is to start."""
    entry = d.entry(revision)
    if d.start or not entry:
        return
    lacking = [name for name in d.targets if name not in entry.stores]
    for name in lacking:
        if d.conflict(name):  # other bytes lie under the key of the good ones
            d.removals.append(Removal(revision=revision, stores=(name,), after=d.now))
            d.stores[name] = d.stores[name].but(failure=None)
            d.times.append(d.now)
    doomed = {s for r in d.removals if r.revision == revision for s in r.stores}
    missing = tuple(name for name in lacking if name not in doomed and ready_for_bytes(d, name))
    if not missing:
        if names := ", ".join(sorted(doomed.intersection(lacking))):
            d.invalid = StoreUnavailable(f"earlier bytes must first be removed from {names}")
        return
    missing = register_again(d, entry, missing)
    if not missing:
        return
    if len({*entry.stores, *missing}) > STORES:
        d.invalid = StoreUnavailable("too many earlier stores still hold the image: are they reachable?")
        return
    troubles = {name: d.origin_trouble(name) for name in sorted(entry.stores, key=lambda s: d.begun(revision, s))}
    origin = next((name for name, trouble in troubles.items() if trouble is None), None)
    if origin is None:
        d.invalid = next(t for t in troubles.values() if t)
        return
    for name in missing:
        d.stores[name] = d.stores[name].but(pending_revision=revision)
    d.start = FetchWork(revision, entry.spec_hash, missing, copy_from=origin, expects=entry.digest)


def register_again(d: Draft, entry: HistoryEntry, missing: tuple[str, ...]) -> tuple[str, ...]:
    """Where the bytes of others lie nothing is copied to: they are registered once more. Which stores else lack them.

    Nothing else is started beside it.
    """
    location = entry.location
    if not location or location.store not in missing:
        return missing
    if trouble := d.refusal(location):
        d.invalid = trouble
        return tuple(name for name in missing if name != location.store)
    home = location.store
    d.stores[home] = d.stores[home].but(pending_revision=entry.revision)
    d.start = FetchWork(
        entry.revision, entry.spec_hash, (home,), copy_from=home, expects=entry.digest, location=location
    )
    return ()
