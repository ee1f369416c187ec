"""The stores that downloads read from: known by a watch, opened when they are needed.

A store with a Secret is opened with what the Secret holds at that moment, and looked at again after a while, so a
rotated key counts without a restart; one without costs no request.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from typing import Final

from pydantic import ValidationError

from glimpse.api.store import ImageStore
from glimpse.kube import Kube, Object
from glimpse.problems import DataLost, NotFound, Problem, StoreNotFound, StoreUnavailable
from glimpse.storeref import describe, resolve
from glimpse.stores import Store, open_store
from glimpse.tasks import StoreRef

log: Final = logging.getLogger(__name__)

RENEW: Final = 30.0
"""Seconds after which the Secret of a store is read again."""
AVOID: Final = 30.0
"""Seconds in which a store that has failed is tried after the others: one that is silent costs each download 10 s."""


class _Place:
    """One ImageStore."""

    __slots__ = ("failed", "kind", "lock", "opened", "ref", "store", "uid")

    def __init__(self, kind: ImageStore, uid: str) -> None:
        self.kind, self.uid = kind, uid
        self.ref: StoreRef | None = None
        self.store: Store | None = None
        self.opened = 0.0
        self.failed: float | None = None
        """When a read from it has; None: not that we know of."""
        self.lock = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.kind.status.conditions)

    @property
    def avoided(self) -> bool:
        return self.failed is not None and time.monotonic() - self.failed < AVOID


class Places:
    """All ImageStores. Used by the event loop only."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        """`namespace`: the operator's own, where the Secrets of stores are."""
        self._kube = kube
        self._namespace = namespace
        self._places: dict[str, _Place] = {}

    def learn(self, change: str, obj: Object) -> None:
        """What a watch says."""
        name, uid = obj["metadata"]["name"], obj["metadata"]["uid"]
        known = self._places.get(name)
        if change == "DELETED":
            if known and known.uid == uid:
                del self._places[name]
            return
        try:
            kind = ImageStore.model_validate(obj)
        except ValidationError as error:
            what = error.errors(include_input=False, include_url=False)[0]
            log.warning("store %s cannot be understood: %s", name, what)
            self._places.pop(name, None)
            return
        if known and known.uid == uid:
            if known.kind.spec != kind.spec or known.kind.status.installation != kind.status.installation:
                known.opened = 0.0
            probed = known.kind.status.last_probe_time != kind.status.last_probe_time
            known.kind = kind
            if probed and known.ready:
                known.failed = None
        else:
            self._places[name] = _Place(kind, uid)

    async def copies(self, names: Iterable[str]) -> AsyncGenerator[Store, None]:
        """Of these stores those that can be opened: ready ones first, the heaviest first.

        One that is not ready comes last and not never: it may be full, and still be read. So does one that has failed
        a moment ago, even after those: it may be all that there is.
        """
        places = [(name, self._places[name]) for name in names if name in self._places]
        places.sort(key=lambda pair: (pair[1].avoided, not pair[1].ready, -pair[1].kind.spec.weight, pair[0]))
        for name, place in places:
            try:
                yield await self._open(place)
            except Problem as problem:
                log.warning("store %s cannot be read from: %s: %s", name, problem.reason, problem.message)

    async def ref(self, name: str) -> tuple[StoreRef, int | None]:
        """A store to write to, with its secrets as they are now, and what a namespace may keep in it.

        Raises StoreNotFound, StoreUnavailable, InvalidConfiguration, SecretNotReadable.
        """
        place = self._places.get(name)
        if place is None:
            raise StoreNotFound(f"there is no ImageStore {name!r}")
        owner = place.kind.status.installation
        if not owner:
            raise StoreUnavailable(f"the ImageStore {name!r} was not ready yet")
        quota = place.kind.spec.quota
        ref = await resolve(self._kube, self._namespace, place.kind, owner)
        return ref, quota.per_namespace if quota else None

    def failed(self, name: str, problem: Problem) -> None:
        """A read from the store has failed: its credentials are read again, and others are tried before it for a while.

        What is wrong with one object says nothing of the store.
        """
        if place := self._places.get(name):
            place.opened = 0.0  # its credentials may have been changed
            if not isinstance(problem, NotFound | DataLost):
                place.failed = time.monotonic()

    def gave(self, name: str) -> None:
        """A read from the store has succeeded."""
        if place := self._places.get(name):
            place.failed = None

    def avoided(self, name: str) -> bool:
        """Whether the store has failed a moment ago."""
        return name in self._places and self._places[name].avoided

    async def _open(self, place: _Place) -> Store:
        async with place.lock:
            spec, owner = place.kind.spec, place.kind.status.installation or ""
            plain = spec.secret_ref is None and spec.ca_bundle_ref is None
            if place.store and place.opened and (plain or time.monotonic() - place.opened < RENEW):
                return place.store
            if plain:
                ref = describe(place.kind, owner)
            else:
                ref = await resolve(self._kube, self._namespace, place.kind, owner)
            if place.store is None or place.ref != ref:
                place.store, place.ref = open_store(ref), ref
            place.opened = time.monotonic()
            return place.store
