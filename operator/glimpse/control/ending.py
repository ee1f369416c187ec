"""An Image that is suspended or deleted: what stays, and what goes before it is let go.

Apart from the rest of `decide`, since nothing else happens then.
"""

from collections.abc import Sequence
from typing import Final

from glimpse.api.base import FORGET_STORE, requested_at
from glimpse.api.upload import UploadFailure
from glimpse.control.conditions import RECONCILING, STALLED
from glimpse.control.describe import describe_suspended, status
from glimpse.control.draft import Draft, touched, wanted_stores
from glimpse.control.keep import drop_upload
from glimpse.control.seen import RemoveWork

SUSPENDED: Final = UploadFailure(reason="Suspended", message="the image was suspended")
DELETED: Final = UploadFailure(reason="Deleted", message="the image is being deleted")


def suspend(d: Draft) -> None:
    """Everything stays as it is, but an upload that is under way: its sender would wait for nothing."""
    if not (d.seen.upload and d.seen.upload.stored):
        drop_upload(d, SUSPENDED)
    d.handled = requested_at(d.meta) or d.handled
    d.cancel = d.seen.running is not None
    d.targets = wanted_stores(d.seen.image, ())
    describe_suspended(d)


def delete(d: Draft) -> None:
    """Remove the bytes from every store, then let go."""
    drop_upload(d, DELETED)
    running = d.seen.running
    if d.spec.protected:
        d.targets = wanted_stores(d.seen.image, ())
        d.conditions.drop(STALLED)
        d.conditions.set(RECONCILING, True, "Protected", "deleted, but protected: unset spec.protected to finish")
        d.cancel = running is not None
        return
    if running:
        d.cancel = not isinstance(running, RemoveWork) or bool(running.revisions)
        return
    left = [name for name in touched(status(d)) if not (name in d.seen.stores and d.seen.stores[name].read_only)]
    if not left:
        d.finalizer = False
        return
    requested = requested_at(d.meta)
    forced = requested is not None and requested != d.handled
    due, reasons = [], []
    for name in left:
        view, store = d.seen.stores.get(name), d.stores.get(name)
        failure = store.failure if store else None
        if not view:
            reasons.append(f"there is no ImageStore {name!r}")
        elif view.unreachable:
            reasons.append(view.unreachable.message)
        elif not failure or forced or failure.references != view.version or d.due(failure.next_attempt_at or d.now):
            due.append(name)
        else:
            reasons.append(f"{name}: {failure.message}")
            d.times.append(failure.next_attempt_at or d.now)
    d.handled = requested or d.handled
    d.conditions.drop(STALLED)
    if due:
        retain = d.spec.deletion_policy == "Retain"
        d.start = RemoveWork(stores=tuple(due), retain=retain, erase=() if retain else erasable(d, due))
        return
    d.conditions.set(
        RECONCILING,
        True,
        "RemovingWithRetry",
        f"the bytes cannot be removed yet: {'; '.join(reasons)}; "
        f"if a store is gone for good, annotate with {FORGET_STORE}=<store>",
    )


def erasable(d: Draft, stores: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Where the bytes of others may be removed with the image."""
    return tuple((name, each.prefix) for name in stores for each in d.seen.stores[name].locations if each.delete)
