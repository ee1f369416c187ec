"""Decides what happens to an ImageStore next: a pure function, as for images.

A store is looked at again and again; what a look finds is its status, and what images may rely on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from glimpse.api.base import DEFAULT_STORE, FINALIZER, format_quantity, requested_at
from glimpse.api.labels import LabelSelector
from glimpse.api.store import READ_ONLY, Capacity, ImageStore, StoreSummary
from glimpse.control.conditions import IN_USE, READY, RECONCILING, STALLED, Conditions, find, is_true
from glimpse.control.seen import Allowed, StoreView
from glimpse.problems import REASONS, InvalidConfiguration, Problem, StoreRefused, StoreUnavailable
from glimpse.tasks import Done

RETRY: Final = 10.0
"""Seconds until a store that failed is looked at again, at most."""
NAMED: Final = 5
"""Images that a message names."""


@dataclass(frozen=True, slots=True)
class Users:
    """Who has bytes in a store."""

    images: int = 0
    bytes: int = 0
    names: tuple[str, ...] = ()
    """`namespace/name` of some of them."""


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """All that a decision about a store is made from."""

    store: ImageStore
    now: datetime
    installation: str = ""
    users: Users = field(default_factory=Users)
    probing: bool = False
    result: Done | Problem | None = None
    """Of a probe that has ended since the last decision."""


@dataclass(frozen=True, slots=True)
class StoreVerdict:
    """What to do: first the finalizer, then the status, then the probe."""

    status: Mapping[str, object]
    probe: bool = False
    again: datetime | None = None
    finalizer: bool | None = None


def decide(seen: StoreSeen) -> StoreVerdict:
    """What to do about this ImageStore now."""
    store, meta, now = seen.store, seen.store.metadata, seen.now
    deleting = meta.deletion_timestamp is not None
    if FINALIZER not in meta.finalizers:
        return StoreVerdict(status=store.status.dump(), finalizer=None if deleting else True)
    if deleting and not seen.users.images:
        return StoreVerdict(status=store.status.dump(), finalizer=False)
    conditions = Conditions(store.status.conditions, meta.generation, now)
    status = store.status.but(is_default=is_default(store) or None, images=seen.users.images, bytes=seen.users.bytes)
    usable = True
    try:
        driver, _ = store.spec.driver()
        status = status.but(driver=driver)
        problem = seen.result
    except ValueError as error:
        usable = False
        problem = InvalidConfiguration(str(error))
    if problem is not None:
        status = status.but(
            observed_generation=meta.generation,
            last_handled_reconcile_at=requested_at(meta),
            last_probe_time=now if seen.result else status.last_probe_time,
        )
        conditions.drop(RECONCILING, STALLED)
        if isinstance(problem, Done):
            conditions.set(READY, True, "Available", "the store can be used")
            capacity = Capacity(total=problem.total, used=problem.used, free=problem.free)
            summary = StoreSummary(used=_size(problem.used), free=_size(problem.free))
            status = status.but(capacity=capacity, summary=summary, endpoint=problem.endpoint)
            status = status.but(installation=seen.installation, boot_format=problem.boot_format)
        else:
            conditions.set(READY, False, problem.reason, problem.message)
            if problem.permanent:
                conditions.set(STALLED, True, problem.reason, problem.message)
            else:
                conditions.set(RECONCILING, True, "ProgressingWithRetry", f"{problem.reason}: {problem.message}")
    if deleting:
        others = seen.users.images - len(seen.users.names)
        text = f"still holds bytes, or what is left of attempts, of {', '.join(seen.users.names)}" + (
            f" and {others} more" if others > 0 else ""
        )
        conditions.set(IN_USE, True, "InUse", f"{text}; delete them or name other stores in them")
    else:
        conditions.drop(IN_USE)
    status = status.but(conditions=conditions.result())
    hurry = is_true(status.conditions, RECONCILING)
    again = _next_probe(store, status.last_probe_time, hurry=hurry)
    if not usable:
        return StoreVerdict(status=status.dump())  # until the spec changes there is nothing to look at
    changed = status.observed_generation != meta.generation or requested_at(meta) != status.last_handled_reconcile_at
    return StoreVerdict(status=status.dump(), probe=(changed or again <= now) and not seen.probing, again=again)


def _size(size: int | None) -> str | None:
    return None if size is None else format_quantity(size)


def _next_probe(store: ImageStore, last: datetime | None, *, hurry: bool) -> datetime:
    """When to look again. What a person must mend is looked at too, since few do it by an edit of the spec.

    A marker, a key in the Secret, a library that is installed: nothing else would tell of those.
    """
    if last is None:
        return datetime.min.replace(tzinfo=UTC)
    interval = store.spec.probe_interval
    return last + timedelta(seconds=min(interval, RETRY) if hurry else interval)


def is_default(store: ImageStore) -> bool:
    """Whether Images without `spec.stores` go here."""
    marked = store.metadata.annotations.get(DEFAULT_STORE) == "true"
    return marked and store.metadata.deletion_timestamp is None


def view(store: ImageStore, namespace: str, labels: Mapping[str, str]) -> StoreView:
    """The store as images of one namespace may use it."""
    name = store.metadata.name
    refused: Problem | None = None
    unreachable: Problem | None = None
    if store.metadata.deletion_timestamp:
        refused = StoreRefused(f"the ImageStore {name!r} is being deleted; name another one in spec.stores")
    elif store.spec.allowed_namespaces is not None and not matches(store.spec.allowed_namespaces, labels):
        refused = StoreRefused(
            f"the ImageStore {name!r} does not take images of the namespace {namespace!r} (spec.allowedNamespaces)"
        )
    ready = find(store.status.conditions, READY)
    if ready is None:
        unreachable = StoreUnavailable(f"the ImageStore {name!r} has not been looked at yet")
    elif ready.status != "True":
        problem = REASONS.get(ready.reason, StoreUnavailable)
        unreachable = problem(f"the ImageStore {name!r} is not ready: {ready.message}")
    since = f"{ready.reason}@{ready.last_transition_time.isoformat()}" if ready else ""
    locations = tuple(
        Allowed(rule.of(namespace), rule.allow_delete)
        for rule in store.spec.locations
        if rule.namespace_selector is None or matches(rule.namespace_selector, labels)
    )
    read_only = READ_ONLY in (store.spec.model_extra or {})
    version = f"{store.metadata.generation}/{since}"
    return StoreView(name, version, refused, unreachable, locations, read_only, store.status.boot_format)


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy a selector, by the rules of `metav1.LabelSelector`; an empty one takes all."""
    if any(labels.get(k) != v for k, v in selector.match_labels.items()):
        return False
    for need in selector.match_expressions:
        value = labels.get(need.key)
        holds = {
            "In": value is not None and value in need.values,
            "NotIn": value is None or value not in need.values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[need.operator]:
            return False
    return True
