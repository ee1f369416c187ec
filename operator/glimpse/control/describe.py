"""How an Image looks: its conditions, columns and Events, from what is.

Apart from the decisions, so that the table of conditions in the docs has one place in the code.
"""

from typing import Final

from glimpse.api.base import format_quantity
from glimpse.api.image import Artifact, Failure, HistoryEntry, ImageStatus, Revision, StoreStatus, Summary
from glimpse.control.conditions import (
    BOOTABLE,
    OUTDATED,
    READY,
    RECONCILING,
    SOURCE_VERIFIED,
    STALLED,
    STORED,
    Conditions,
    find,
)
from glimpse.control.draft import Downloaded, Draft
from glimpse.control.seen import FetchWork
from glimpse.problems import REASONS, ChecksumMismatch, ChecksumUnavailable, DataLost, SignatureInvalid, Transient

NOT_BOOTABLE: Final = "NotBootable"
_AS_RAW: Final = ("iso", "ami", "ari", "aki")
"""Formats that a machine reads as it reads raw: what they are called tells what is in them."""
_UNPROVEN: Final = (ChecksumMismatch, ChecksumUnavailable, SignatureInvalid)
"""What is in the way of a proof, and no mere failure to fetch."""


def describe(d: Draft) -> None:
    """Set the conditions from what is."""
    current = d.current()
    waits, stalls = troubles(d, current)
    running = d.start or (None if d.cancel else d.seen.running)
    fetching = isinstance(running, FetchWork)
    worst = next(iter(stalls or waits), None)
    if not describe_served(d, worst):
        if d.served:
            d.conditions.set(READY, False, DataLost.reason, _lost(d, worst))
        elif worst and not fetching:
            d.conditions.set(READY, False, worst.reason, worst.message)
        elif d.spec.source.upload and not d.pending:
            d.conditions.set(READY, False, "WaitingForUpload", _waiting(d))
        else:
            d.conditions.set(READY, False, "Progressing", "the image is being fetched")
    describe_activity(d, fetching, waits, stalls)
    describe_stores(d, fetching)


def _waiting(d: Draft) -> str:
    """What an image that has no bytes yet waits for; why the last upload came to nothing is said until the next one."""
    before = d.conditions.get(READY)
    if d.upload_failed:
        return f"the last upload came to nothing: {d.upload_failed}; send the bytes again"
    if before and before.reason == "WaitingForUpload":
        return before.message
    where = f"{d.settings.gateway_url}/v1/namespaces/{d.meta.namespace}/images/{d.meta.name}"
    return f"send the bytes with PUT to {where}"


def _lost(d: Draft, worst: Failure | None) -> str:
    """No store holds what should be served: how, and what is in the way of a mend."""
    assert d.served  # noqa: S101 - describe() has looked
    text = f"no store holds revision {d.served.revision} whole any more"
    others = ", ".join(str(n) for n in d.pinnable())
    if d.served is not d.newest:
        text += "; only the newest can be fetched again: unset spec.revisions.pin"
    elif worst:
        text += f"; {worst.reason}: {worst.message}"
    elif d.spec.source.upload:
        text += "; upload it again"
    return text + (f"; revisions that are whole and can be pinned: {others}" if others else "")


def describe_suspended(d: Draft) -> None:
    """What is served is described, all else stays as it was."""
    if not describe_served(d, None):
        d.conditions.keep(READY)
        before = d.conditions.get(READY)
        if before is None or before.reason in ("Progressing", "Stored"):
            d.conditions.set(READY, False, "Suspended", "nothing is done while spec.suspend is true")
    d.conditions.drop(RECONCILING, STALLED)


def describe_served(d: Draft, worst: Failure | None) -> bool:
    """Describe the revision that is served; whether there is one. `worst`: what keeps it from being everywhere."""
    pinned = d.served is not None and d.served is not d.newest
    current = pinned or d.current()
    holders = [n for n in d.targets if d.holds(n)]
    if d.served and d.served.stores:
        text = f"revision {d.served.revision}, {d.served.digest[:19]}…, is in {', '.join(d.holders())}"
        if pinned and d.newest:
            text += f"; spec.revisions.pin serves it although revision {d.newest.revision} is the newest"
        d.conditions.set(READY, True, "Stored", text)
    describe_verified(d)
    describe_stored(d, current, holders, worst)
    if not d.served or not d.served.stores:
        d.conditions.drop(OUTDATED)
        return False
    if not current:
        text = "the spec asks for other bytes than the ones that are served"
        d.conditions.set(OUTDATED, True, "NewRevisionWanted", text)
    elif not pinned and d.pending and d.pending.renews:
        text = "the source has other bytes than the ones that are served"
        d.conditions.set(OUTDATED, True, "NewRevisionFound", text)
    else:
        d.conditions.drop(OUTDATED)
    return True


def describe_verified(d: Draft) -> None:
    """SourceVerified: what was proven of the bytes that are served; while there are none, what could not be proven."""
    failure = d.pending.failure if d.pending else None
    if not d.served or not d.served.stores:
        if failure and REASONS.get(failure.reason, Transient) in _UNPROVEN:
            d.conditions.set(SOURCE_VERIFIED, False, failure.reason, failure.message)
        else:
            d.conditions.drop(SOURCE_VERIFIED)
    elif proof := d.proof(d.served):
        d.verified(proof)
    else:
        d.conditions.drop(SOURCE_VERIFIED)


def troubles(d: Draft, current: bool) -> tuple[list[Failure], list[Failure]]:
    """What keeps the image from being everywhere it should: (time mends it, a person must act)."""
    found: list[Failure] = []
    found += [Failure(reason=p.reason, message=p.message, attempt=0) for p in (d.invalid, d.wrong_pin) if p is not None]
    if d.pending and d.pending.failure:
        found.append(d.pending.failure)
    if d.looks and d.looks.failure:
        found.append(d.looks.failure)
    for name in d.targets:
        if current and d.holds(name):
            continue
        failure, trouble = d.stores[name].failure, d.view(name).trouble
        if failure:
            found.append(failure.but(message=f"{name}: {failure.message}"))
        elif trouble:
            found.append(Failure(reason=trouble.reason, message=trouble.message, attempt=0))
    if d.lost():  # a store that lost them waits for nothing but them
        found = [f for f in found if f.reason != DataLost.reason]
        if d.served is not d.newest:
            found.insert(0, Failure(reason=DataLost.reason, message=_lost(d, None)))

    def stalls(f: Failure) -> bool:
        return f.next_attempt_at is None if f.attempt else REASONS.get(f.reason, Transient).permanent

    return [f for f in found if not stalls(f)], [f for f in found if stalls(f)]


def describe_stored(d: Draft, complete: bool, holders: list[str], worst: Failure | None) -> None:
    """Stored: whether every wanted store holds the wanted bytes."""
    if not d.served:
        d.conditions.drop(STORED)
    elif complete and len(holders) == len(d.targets):
        alone = len(holders) == 1
        text = "the store holds the image" if alone else f"all {len(holders)} stores hold the image"
        d.conditions.set(STORED, True, "Stored", text)
    else:
        reason = worst.reason if worst else "Progressing"
        count = f"{len(holders) if complete else 0} of {len(d.targets)} stores hold the image"
        d.conditions.set(STORED, False, reason, f"{count}; {worst.message}" if worst else count)


def describe_activity(d: Draft, fetching: bool, waits: list[Failure], stalls: list[Failure]) -> None:
    """Reconciling and Stalled exist only while True, and never together."""
    d.conditions.drop(RECONCILING, STALLED)
    if fetching and d.seen.queued:
        place = d.seen.queued
        text = f"place {place.number} of {place.total}: waiting for {place.reason}"
        d.conditions.set(RECONCILING, True, "Queued", text)
    elif fetching and d.seen.progress and d.seen.progress.stage == "Converting":
        d.conditions.set(RECONCILING, True, "Converting", f"the image becomes {d.spec.format.convert_to}")
    elif fetching:
        whose = "of the other Image are taken over" if d.spec.source.image else "are on their way"
        d.conditions.set(RECONCILING, True, "Transferring", f"bytes {whose}")
    elif d.pending and d.pending.upload and not d.pending.failure:
        d.conditions.set(RECONCILING, True, "Uploading", "bytes are being uploaded")
    elif waits:
        worst = waits[0]
        when = ""
        if worst.next_attempt_at and REASONS.get(worst.reason, Transient).permanent:
            when = f"; the source is looked at again at {worst.next_attempt_at:%Y-%m-%dT%H:%M:%SZ}"
        elif worst.next_attempt_at:
            when = f"; attempt {worst.attempt + 1} at {worst.next_attempt_at:%Y-%m-%dT%H:%M:%SZ}"
        d.conditions.set(RECONCILING, True, "ProgressingWithRetry", f"{worst.reason}: {worst.message}{when}")
    elif stalls:
        d.conditions.set(STALLED, True, stalls[0].reason, stalls[0].message)
    elif d.cancel:
        d.conditions.set(RECONCILING, True, "Progressing", "a transfer that is no longer wanted is stopped")


def describe_stores(d: Draft, fetching: bool) -> None:
    """Ready, for each store, and Bootable where it is not."""
    for name, before in d.stores.items():
        store = at_served(d, before)
        conditions = Conditions(store.conditions, d.meta.generation, d.now)
        trouble = d.view(name).trouble
        if d.served and d.holds(name):
            conditions.set(READY, True, "Stored", f"holds revision {d.served.revision}")
        elif store.failure:
            conditions.set(READY, False, store.failure.reason, store.failure.message)
        elif trouble:
            conditions.set(READY, False, trouble.reason, trouble.message)
        else:
            text = "bytes are on their way" if fetching else "holds nothing yet"
            conditions.set(READY, False, "Progressing", text)
        if d.served and d.holds(name) and (why := unbootable(d, d.served, name)):
            conditions.set(BOOTABLE, False, NOT_BOOTABLE, why)
        else:
            conditions.drop(BOOTABLE)
        d.stores[name] = store.but(conditions=conditions.result())


def unbootable(d: Draft, entry: HistoryEntry, store: str) -> str:
    """Why no machine can start from this revision where it lies, and the way out; empty if one can, or none does."""
    wanted = d.view(store).boot_format
    source = Downloaded.of(entry)
    packed = source.compression if not source.unpacked else ""
    if wanted is None or (not packed and entry.disk_format in {wanted, *(_AS_RAW if wanted == "raw" else ())}):
        return ""
    text = f"machines start from {store} as it lies there, and find {packed or entry.disk_format} in place of {wanted}"
    if entry.location and entry.location.store == store:
        return f"{text}; register an image in that format"
    if d.spec.source.image:
        return f"{text}; it is for the Image in spec.source.image to have that format: name another, or ask its owner"
    return f"{text}; set spec.format.{'decompress to auto' if packed else f'convertTo to {wanted}'}"


def at_served(d: Draft, store: StoreStatus) -> StoreStatus:
    """What a store holds of what is served: a pin moves no byte, but tells another of them."""
    entry = d.served if d.holds(store.name) else d.entry(store.revision)
    if entry is None or store.name not in entry.stores:
        return store.but(revision=None, location=None, size=None)
    if entry.revision == store.revision:
        return store
    if entry.location and entry.location.store == store.name:
        return store.but(revision=entry.revision, location=entry.source_url, size=entry.size)
    # The name of an object is its key in every store; where a location does not show it, it is not made up.
    before, found, after = (store.location or "").rpartition(f"{d.meta.uid}-{store.revision}")
    location = f"{before}{d.meta.uid}-{entry.revision}{after}" if found and not after[:1].isdigit() else None
    return store.but(revision=entry.revision, location=location, size=entry.size)


def summary(d: Draft, percent: int | None) -> Summary | None:
    """What the columns show."""
    served = d.served
    wanted = d.targets or tuple(d.stores)
    holders = sum(d.holds(n) for n in wanted)
    if not wanted and not served:
        return None
    return Summary(
        stores=f"{holders}/{len(wanted)}" if wanted else None,
        digest=f"{served.digest[:19]}…" if served else None,
        size=format_quantity(served.size) if served else None,
        virtual_size=format_quantity(served.virtual_size) if served else None,
        progress=f"{percent}%" if percent is not None else None,
    )


def artifact(d: Draft) -> Artifact | None:
    """What is served, as consumers see it; the link follows the setting."""
    if not d.served:
        return None
    base = f"{d.settings.gateway_url}/v1/namespaces/{d.meta.namespace}/images/{d.meta.name}"
    return Artifact(
        **{name: getattr(d.served, name) for name in Revision.model_fields},
        container_format=d.spec.format.container,
        url=f"{base}/revisions/{d.served.revision}?uid={d.meta.uid}",
    )


def status(d: Draft) -> ImageStatus:
    """The status as it stands."""
    progress = d.seen.progress if isinstance(d.seen.running, FetchWork) and not d.cancel else None
    return ImageStatus(
        observed_generation=d.meta.generation,
        last_handled_reconcile_at=d.handled,
        conditions=d.conditions.result(),
        artifact=artifact(d),
        stores=tuple(d.stores.values()),
        summary=summary(d, progress.percent if progress else _uploaded(d)),
        last_revision=d.last_revision,
        pending=d.pending,
        transfer=progress,
        refresh=d.looks,
        history=tuple(d.history),
        removals=tuple(d.removals),
    )


def _uploaded(d: Draft) -> int | None:
    """How far the upload is, in percent."""
    return d.seen.upload.percent if d.seen.upload and d.pending and d.pending.upload else None


def _failures(status: ImageStatus) -> dict[str, Failure]:
    found = {s.name: s.failure for s in status.stores if s.failure}
    if status.pending and status.pending.failure:
        found[""] = status.pending.failure
    if status.refresh and status.refresh.failure:
        found["the source"] = status.refresh.failure
    return found


def _unbootable(status: ImageStatus) -> dict[tuple[str, int | None], str]:
    """Of which copies it was said that no machine can start from them: store and revision."""
    found = ((s, find(s.conditions, BOOTABLE)) for s in status.stores)
    return {(s.name, s.revision): condition.message for s, condition in found if condition}


def events(before: ImageStatus, after: ImageStatus) -> tuple[tuple[str, str, str], ...]:
    """What a person should read of in `kubectl describe`: what is new between two statuses."""
    found = []
    old, new = before.artifact, after.artifact
    known = {h.revision for h in before.history}
    for entry in reversed(after.history):
        if entry.revision not in known:
            text = f"revision {entry.revision}, {entry.digest}, {format_quantity(entry.size)}, {entry.disk_format}"
            found.append(("Normal", "Stored", text))
    if old and new and old.revision != new.revision and new.revision in known:
        found.append(("Normal", "Served", f"revision {new.revision} is served instead of revision {old.revision}"))
    warned = _unbootable(before)
    found += [("Warning", NOT_BOOTABLE, text) for store, text in _unbootable(after).items() if store not in warned]
    was, now = _failures(before), _failures(after)
    for name, failure in now.items():
        last = was.get(name)
        if not last or (last.reason, last.message) != (failure.reason, failure.message):
            found.append(("Warning", failure.reason, f"{name}: {failure.message}" if name else failure.message))
    return tuple(found)
