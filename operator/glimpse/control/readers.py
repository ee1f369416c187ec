"""Readers: the revisions that gateways are reading, asked for when one is to be removed.

They are not watched: a removal is rare, and to list some Leases costs less than to hear of each of their renewals.
"""

from datetime import UTC, datetime
from typing import Final

from glimpse.api.image import ImageStatus
from glimpse.kube import LEASE, Kube
from glimpse.readers import LIFE, SELECTOR, age, read

_DEAD: Final = 10 * LIFE
"""Seconds without a word after which a Lease is removed: its gateway has died."""


class Readers:
    """What all gateways read."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        """`namespace`: the operator's own."""
        self._kube, self._namespace = kube, namespace

    async def of(self, uid: str, status: ImageStatus) -> frozenset[int] | None:
        """Revisions of this image that are read; None if nobody has looked, since nothing is to be removed yet.

        Raises ApiError.
        """
        now = datetime.now(UTC)
        if all(removal.after > now for removal in status.removals):
            return None
        found: set[int] = set()
        async for lease in self._kube.list(LEASE, self._namespace, label_selector=SELECTOR):
            if age(lease, now) <= LIFE:
                found |= read(lease, uid)
            elif age(lease, now) > _DEAD:
                meta = lease["metadata"]
                await self._kube.delete(LEASE, meta["name"], self._namespace, uid=meta["uid"])
        return frozenset(found)
