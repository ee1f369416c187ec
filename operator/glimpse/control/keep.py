"""What is kept of an Image, and what goes: revisions, copies, and what was begun and is no longer wanted.

Apart from what is started, since this is where bytes can be lost: it only writes removals down, with their times.
"""

from datetime import timedelta
from typing import Final

from glimpse.api.image import Pending, Removal
from glimpse.api.upload import UploadFailure
from glimpse.control.draft import Draft
from glimpse.control.seen import FetchWork, RemoveWork
from glimpse.problems import InvalidConfiguration

CROWD: Final = 36
"""Beyond so many, a revision that is no longer kept goes without grace."""

LOOK: Final = timedelta(seconds=15)
"""Until it is looked again whether somebody still reads what is to go."""


def choose_revision(d: Draft) -> None:
    """A pin serves what is kept, and nothing else."""
    pin = d.spec.revisions.pin
    if pin is None or (d.served and d.served.revision == pin):
        return
    kept = ", ".join(str(n) for n in d.pinnable()) or "none yet"
    d.wrong_pin = InvalidConfiguration(
        f"spec.revisions.pin names revision {pin}, which is not kept; kept are: {kept}. Name one of them, or unset it"
    )


def abandon_pending(d: Draft) -> None:
    """A revision in the making that nobody wants any more goes to the removals."""
    pending = d.pending
    if not pending:
        return
    conflicts = [name for name in d.targets if d.conflict(name, attempts=2)]
    wanted = pending_wanted(d, pending)
    if wanted and not conflicts:
        return
    running = d.seen.running
    if isinstance(running, FetchWork) and running.revision == pending.revision:
        d.cancel = True
        return
    if pending.upload:
        upload_over(d)
    # Other bytes under our key may be a revision that a lost status once named: they are left to the sweep.
    ours = tuple(name for name in pending.stores if name not in conflicts)
    if ours:
        d.removals.append(Removal(revision=pending.revision, stores=ours, after=d.now))
    d.pending = d.anew(pending) if wanted and (pending.renews or pending.expects) else None
    for name in conflicts:
        d.stores[name] = d.stores[name].but(failure=None)


def upload_over(d: Draft, why: UploadFailure | None = None) -> None:
    """Say why nothing came of an upload, and have its account removed."""
    upload = d.seen.upload
    d.dropped = upload.uid if upload else None
    if upload and upload.over(d.now):
        why = upload.failure or UploadFailure(reason="UploadExpired", message="nothing more of it has come")
    if why:
        d.upload_failed = f"{why.reason}: {why.message}"
        d.said.append(("Warning", why.reason, f"the upload: {why.message}"))


def drop_upload(d: Draft, why: UploadFailure) -> None:
    """Nothing may come any more of an upload that has begun: its gateway sees that, and what is there of it goes."""
    pending = d.pending
    if not (pending and pending.upload):
        return
    upload_over(d, why)
    if pending.stores:
        d.removals.append(Removal(revision=pending.revision, stores=pending.stores, after=d.now))
    d.pending = None


def pending_wanted(d: Draft, pending: Pending) -> bool:
    """Whether what is being made is what is missing: the first bytes of this spec, newer ones, or lost ones."""
    newest = d.newest
    if pending.spec_hash != d.want:
        return False
    if d.spec.source.upload:
        return d.seen.upload is not None and d.seen.upload.is_of(pending) and not d.seen.upload.over(d.now)
    if pending.upload:
        return False
    if newest is None or not d.current():
        return not pending.renews and not pending.expects
    if pending.expects:
        return not newest.stores and pending.expects == newest.digest
    return d.interval is not None and pending.renews == newest.revision


def keep_revisions(d: Draft) -> None:
    """Schedule what is beyond `revisions.keep` and what lies in stores that are no longer named."""
    wanted_ones = {h.revision for h in (d.served, d.newest) if h and not d.withdrawn}
    abandon_copies(d, wanted_ones)
    kept = {h.revision for h in d.history[: d.spec.revisions.keep] if not d.withdrawn} | wanted_ones
    wanted = {
        (h.revision, s)
        for h in d.history
        if h.revision in kept
        for s in h.stores
        if s in d.targets and not d.begun(h.revision, s)
    }
    latest = d.now + timedelta(seconds=d.spec.revisions.grace)
    d.removals = [
        r.but(stores=stores, after=r.after if r.attempt else min(r.after, latest))
        for r in d.removals
        if (stores := tuple(s for s in r.stores if (r.revision, s) not in wanted))
    ]
    remove_damaged(d, kept)
    keep_last_copies(d)
    scheduled = {(r.revision, s) for r in d.removals for s in r.stores}
    secure = secured(d)
    for position, entry in enumerate(d.history):
        grace = d.now + timedelta(seconds=d.spec.revisions.grace if position < CROWD else 0)
        foreign = tuple(s for s in entry.stores if s not in d.targets) if secure else ()
        old = tuple(s for s in entry.stores if s not in foreign) if entry.revision not in kept else ()
        for stores, after in ((foreign, d.now), (old, grace)):
            new = tuple(s for s in stores if (entry.revision, s) not in scheduled)
            if new:
                d.removals.append(Removal(revision=entry.revision, stores=new, after=after))
    crowded = {entry.revision for entry in d.history[CROWD:]} - kept
    d.removals = [
        r.but(after=min(r.after, d.now)) if r.revision in crowded and not r.attempt else r for r in d.removals
    ]
    d.stores = {
        n: s for n, s in d.stores.items() if n in d.targets or s.pending_revision or (s.revision and not secure)
    }


def still_read(d: Draft, removal: Removal) -> bool:
    """Whether a gateway reads what is due to go, which is waited for, though not for ever; notes when to look again.

    Nobody waits where a removal was begun, where what goes is damaged, and where too many revisions wait already.
    """
    entry = d.entry(removal.revision)
    until = removal.after + timedelta(seconds=d.settings.reader_grace)
    if removal.attempt or not entry or until <= d.now or set(entry.stores).isdisjoint(removal.stores):
        return False
    if entry in d.history[CROWD:]:
        return False
    if d.seen.reading is None:
        d.times.append(d.now)
        d.cancel = d.seen.running is not None  # it is a look at stored bytes, and can wait
        return True
    if removal.revision not in d.seen.reading:
        return False
    d.times.append(min(until, d.now + LOOK))
    return True


def secured(d: Draft) -> bool:
    """Whether what is served, and the newest, are in a store that is named and answers, to stay there."""
    going = {(r.revision, s) for r in d.removals for s in r.stores}
    reachable = [n for n in d.targets if d.view(n).unreachable is None]
    return all(
        h and any(n in h.stores and (h.revision, n) not in going for n in reachable) for h in (d.served, d.newest)
    )


def keep_last_copies(d: Draft) -> None:
    """A copy that was to go stays where no other is left: the others were damaged, or are to go as well."""
    for entry in (d.served, d.newest):
        if not entry or not entry.stores or d.withdrawn:
            continue
        going = [(r, s) for r in d.removals if r.revision == entry.revision for s in r.stores if s in entry.stores]
        if not {s for _, s in going}.issuperset(entry.stores):
            continue
        if isinstance(d.seen.running, RemoveWork) and not set(entry.stores).isdisjoint(d.seen.running.stores):
            continue
        # One that nobody has begun to remove is whole.
        saved = {s for r, s in going if not r.attempt} or {s for _, s in going}
        d.removals = [
            r.but(stores=tuple(s for s in r.stores if s not in saved)) if r.revision == entry.revision else r
            for r in d.removals
        ]
    d.tidy()


def remove_damaged(d: Draft, kept: set[int]) -> None:
    """Damaged bytes go once there are good ones, or the source has said that it still has them."""
    for entry in d.history:
        mending = d.pending and d.pending.revision == entry.revision
        if entry.damaged and (entry.stores or mending or entry.revision not in kept):
            d.removals.append(Removal(revision=entry.revision, stores=entry.damaged, after=d.now))
            d.put(entry.but(damaged=()))
    d.tidy()


def abandon_copies(d: Draft, wanted: set[int]) -> None:
    """A copy that was begun and is no longer wanted may have left its bytes."""
    running = d.seen.running.stores if isinstance(d.seen.running, FetchWork) else ()
    for name, store in d.stores.items():
        revision = store.pending_revision
        if revision is None or name in running or (revision in wanted and name in d.targets):
            continue
        d.removals.append(Removal(revision=revision, stores=(name,), after=d.now))
        d.stores[name] = store.but(pending_revision=None)
