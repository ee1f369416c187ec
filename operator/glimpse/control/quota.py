"""What each namespace may still put into a store with a quota.

A share is told to the worker when its transfer begins and kept to while bytes pass; so only one transfer of a namespace
writes into such a store at a time, and what it has stored counts before the next one begins.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from glimpse.api.image import Image, ImageStatus
from glimpse.api.store import ImageStore
from glimpse.tasks import Share, Stored


def held(status: ImageStatus) -> Iterator[tuple[str, int]]:
    """Bytes of an image by store, once for each revision and store; those that others have put there are not ours."""
    for revision in status.history:
        places = {*revision.stores, *revision.damaged}
        places |= {store.name for store in status.stores if store.revision == revision.revision}
        if revision.location:
            places.discard(revision.location.store)
        yield from ((place, revision.size) for place in places)
    if (pending := status.pending) and pending.upload and pending.upload.size:
        yield from ((place, pending.upload.size) for place in pending.stores)


class _Fresh(NamedTuple):
    """What a transfer has just stored, as long as `users` does not count it."""

    namespace: str
    sizes: Mapping[str, int]


class Quotas:
    """The shares of all namespaces. For one event loop."""

    def __init__(
        self, stores: Mapping[str, ImageStore], users: Callable[[str, str], Iterable[tuple[str, int]]]
    ) -> None:
        """`users`: uid and bytes of each image of a namespace in a store."""
        self._stores = stores
        self._users = users
        self._fresh: dict[str, _Fresh] = {}

    def limited(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of these stores that have a quota."""
        return tuple(name for name in names if self._limit(name) is not None)

    def share(self, name: str, image: Image, revision: int) -> Share | None:
        """What a revision of this image may take in a store; None if there is no limit."""
        limit = self._limit(name)
        if limit is None:
            return None
        namespace, uid = image.metadata.namespace, image.metadata.uid
        used = sum(size for other, size in self._users(namespace, name) if other != uid)
        fresh = (each for other, each in self._fresh.items() if other != uid and each.namespace == namespace)
        used += sum(each.sizes.get(name, 0) for each in fresh)
        # What is to be written of this revision may be counted already: a lost copy, or one more.
        own = image.status.but(history=tuple(h for h in image.status.history if h.revision != revision), pending=None)
        used += sum(size for place, size in held(own) if place == name)
        return Share(namespace=namespace, limit=limit, used=used)

    def stored(self, image: Image, stored: Mapping[str, Stored]) -> None:
        """A transfer has ended, and no status was decided from it."""
        if names := self.limited(stored):
            sizes = {name: stored[name].size for name in names}
            self._fresh[image.metadata.uid] = _Fresh(image.metadata.namespace, sizes)

    def counted(self, uid: str) -> None:
        """From now on `users` counts what the image's last transfer has stored; or the image is gone."""
        self._fresh.pop(uid, None)

    def _limit(self, name: str) -> int | None:
        store = self._stores.get(name)
        return store.spec.quota.per_namespace if store and store.spec.quota else None
