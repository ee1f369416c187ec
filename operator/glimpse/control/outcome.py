"""What a work that has ended means for the status.

A result is folded in once and never looked at again: the next decision is made from the status and the world.
"""

from datetime import datetime, timedelta

from glimpse.api.image import ETAG, HistoryEntry, Looks, Pending, Removal, StoreStatus, Verification
from glimpse.control.draft import Draft, backoff, wanted_stores, without
from glimpse.control.seen import FetchWork, LookWork, RemoveWork, Result, VerifyWork
from glimpse.problems import ChecksumMismatch, DataLost, Problem
from glimpse.tasks import Record


def fold(d: Draft, result: Result) -> None:
    """Write what a work has done into the status."""
    match result.work:
        case RemoveWork() as work:
            fold_removal(d, result, work)
        case FetchWork() as work:
            fold_fetch(d, result, work)
        case LookWork() as work:
            fold_look(d, result, work)
        case VerifyWork() as work:
            fold_verify(d, result, work)


def fold_fetch(d: Draft, result: Result, work: FetchWork) -> None:
    """What failed is noted with the time of the next attempt, what was stored is noted too."""
    for name, problem in result.failed.items():
        d.store_failed(name, problem, result)
    if result.problem and not set(work.stores) <= set(result.failed):
        if work.copy_from:
            for name in set(work.stores) - set(result.failed):
                d.store_failed(name, result.problem, result)
        elif d.pending and d.pending.revision == work.revision:
            fold_failure(d, d.pending, result.problem, result)
    lost = [p for p in (result.problem, *result.failed.values()) if isinstance(p, DataLost)]
    if work.copy_from and lost:
        data_lost(d, work.copy_from, work.revision, lost[0], result)
    if result.record and (result.stored or result.unchanged):
        fold_stored(d, result, result.record, work)


def fold_failure(d: Draft, pending: Pending, problem: Problem, result: Result) -> None:
    """The source failed. With `refresh` it is looked at again, so it is never given up."""
    if pending.upload and problem.permanent:  # what was uploaded is not there, or not what it must be
        d.said.append(("Warning", problem.reason, problem.message))
        d.removals.append(Removal(revision=pending.revision, stores=pending.stores, after=d.now))
        d.pending = None
        return
    if pending.expects and isinstance(problem, DataLost):
        if d.interval:  # it has other bytes by now, and those are wanted
            d.pending = d.anew(pending).but(renews=pending.revision, expects=None)
            return
        at = None
        failure = d.failure(pending.failure, ChecksumMismatch(problem.message), result, result.references)
    else:
        at = d.next_check()
        failure = d.failure(pending.failure, problem, result, result.references, at=at)
    d.pending = pending.but(failure=failure)


def data_lost(d: Draft, name: str, revision: int, problem: Problem, result: Result) -> None:
    """A store does not hold what it should: it is filled again like any that lacks the bytes."""
    entry = d.entry(revision)
    if not entry or name not in entry.stores:
        return
    served = entry is d.served
    d.put(without(entry, {name}).but(damaged=(*entry.damaged, name)))
    if served and name in d.stores:
        d.stores[name] = d.stores[name].but(revision=None, location=None, size=None)
    if served and name in wanted_stores(d.seen.image, ()):
        d.store_failed(name, DataLost(problem.message), result)
        failure = d.stores[name].failure
        d.stores[name] = d.stores[name].but(failure=failure.but(next_attempt_at=d.now) if failure else None)
    else:
        d.said.append(("Warning", DataLost.reason, f"{name}: revision {revision}: {problem.message}"))


def fold_stored(d: Draft, result: Result, record: Record, work: FetchWork) -> None:
    """What was stored is noted, and served if it is a revision that is wanted."""
    if not work.copy_from:
        pending = d.pending
        if work.spec_hash != d.want or not pending or pending.revision != work.revision:
            return  # the spec has changed meanwhile; what was stored goes with the pending revision
        newest = d.newest
        if (
            newest
            and newest.stores
            and pending.renews == newest.revision
            and not work.location  # other validators are another registration, whatever the bytes are
            and (result.unchanged or record.digest == newest.digest)
        ):
            renew(d, newest, record)
            d.removals.append(Removal(revision=work.revision, stores=pending.stores, after=d.now))
            d.pending = None
            return
        commit(d, result, record, work)
    for name, stored in result.stored.items():
        other = d.stores[name].pending_revision if name in d.stores else None
        if other not in (None, work.revision):
            d.removals.append(Removal(revision=other, stores=(name,), after=d.now))
        d.stores[name] = StoreStatus(name=name, location=stored.location, revision=work.revision, size=stored.size)
    if work.copy_from and work.location and (entry := d.entry(work.revision)):
        renew(d, entry, record)
    if entry := d.entry(work.revision):
        stores = tuple(dict.fromkeys((*entry.stores, *result.stored)))
        fresh = dict.fromkeys(result.stored, d.now) if entry.stored_at < d.now and work.copy_from else {}
        d.put(entry.but(stores=stores, verified=entry.verified | fresh))


def _short(text: str | None, limit: int) -> str | None:
    """What a server says may be longer than a status can hold; half of it would mislead."""
    return text if text is None or len(text) <= limit else None


def renew(d: Draft, entry: HistoryEntry, record: Record) -> None:
    """The source gives the same bytes under another name: what it says of them is noted, and what was proven anew."""
    proof = Verification(**record.verification.model_dump()) if record.verification else entry.verification
    d.put(
        entry.but(
            source_url=_short(record.source_url, 2048),
            etag=_short(record.etag, ETAG),
            last_modified=_short(record.last_modified, 64),
            verification=proof,
        )
    )


def commit(d: Draft, result: Result, record: Record, work: FetchWork) -> None:
    """A revision is complete; one that was lost is there again."""
    entry = HistoryEntry(
        revision=work.revision,
        digest=record.digest,
        digests=record.digests,
        source_digest=record.source_digest or None,
        source_format=record.source_format or None,
        size=record.size,
        virtual_size=record.virtual_size,
        disk_format=record.disk_format,
        location=work.location,
        stored_at=datetime.fromisoformat(record.stored_at) if record.stored_at else d.now,
        spec_hash=work.spec_hash,
    )
    d.history = sorted([entry, *(h for h in d.history if h.revision != work.revision)], key=lambda h: -h.revision)
    renew(d, entry, record)
    for name in d.pending.stores if d.pending else ():
        if name not in result.stored:  # an earlier attempt may have stored it there
            d.stores[name] = d.stores.get(name, StoreStatus(name=name)).but(pending_revision=work.revision)
    d.pending = None


def fold_look(d: Draft, result: Result, work: LookWork) -> None:
    """The source has what is known, or has something else, or cannot be asked."""
    newest = d.newest
    if not newest or newest.revision != work.revision or d.pending or not d.current():
        return  # it is not the question any more
    looks = d.looks or Looks()
    if result.problem:
        at = d.next_check()
        failure = d.failure(looks.failure, result.problem, result, result.references, at=at)
        d.looks = looks.but(failure=failure, next_check_time=at)
        return
    d.looks = Looks(last_check_time=d.now, next_check_time=d.next_check())
    if result.unchanged:
        if d.lost():
            d.pending = Pending(revision=newest.revision, spec_hash=d.want, expects=newest.digest)
    elif d.interval:
        d.pending = Pending(revision=d.next_revision(), spec_hash=d.want, renews=newest.revision)
    else:
        # A file with another date may still be the same: its digest decides. What is damaged stays until it has.
        d.pending = Pending(revision=d.next_revision(), spec_hash=d.want, expects=newest.digest)


def fold_verify(d: Draft, result: Result, work: VerifyWork) -> None:
    """A copy is good, or it is not; or nobody knows, and it is read another time."""
    entry = d.entry(work.revision)
    if isinstance(result.problem, DataLost):
        data_lost(d, work.store, work.revision, result.problem, result)
    elif entry and work.store in entry.stores and not result.problem:
        d.put(entry.but(verified=entry.verified | {work.store: d.now}))


def removed_later(d: Draft, removal: Removal) -> Removal:
    """The same removal after a failure, whatever it was: bytes that are to go are never given up."""
    attempt = removal.attempt + 1
    wait = backoff(d.settings.retries, attempt, d.meta.uid)
    return removal.but(attempt=attempt, after=d.now + timedelta(seconds=wait))


def fold_removal(d: Draft, result: Result, work: RemoveWork) -> None:
    """What is gone is forgotten, what could not be removed is tried again later."""
    everything = not work.revisions
    gone = result.removed
    d.removals = [
        r.but(stores=tuple(s for s in r.stores if s not in gone)) if everything or r.revision in work.revisions else r
        for r in d.removals
    ]
    d.history = [without(h, gone) if everything or h.revision in work.revisions else h for h in d.history]
    if everything:
        for name in gone:
            d.stores.pop(name, None)
        if d.pending:
            d.pending = d.pending.but(stores=tuple(s for s in d.pending.stores if s not in gone))
    failed = dict(result.failed)
    if result.problem and not failed:
        failed = {name: result.problem for name in work.stores if name not in gone}
    for name, problem in failed.items():
        if everything:
            d.store_failed(name, problem, result, again=True)
        else:
            d.removals = [
                removed_later(d, r) if name in r.stores and r.revision in work.revisions else r for r in d.removals
            ]
    d.tidy()
