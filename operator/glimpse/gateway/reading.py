"""Reading: tells the operator which revisions this replica sends, so that none is removed in the middle of a download.

Most downloads are over before anybody could remove anything, so only those that take longer are named, and a Lease is
written while there are some: when one comes to be named, and now and then.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from glimpse.kube import LEASE, ApiError, Kube
from glimpse.readers import LIFE, MOST, lease

log: Final = logging.getLogger(__name__)

LONG: Final = 3.0
"""Seconds after which a download is named."""
LOOK: Final = 2.0
"""Seconds between two looks at what is to be named, and so between two writes."""
RENEW: Final = LIFE / 4
"""Seconds after which the Lease is written again."""
PATIENCE: Final = 2.0
"""Seconds that the API server has to remove it at the end."""


class Reading:
    """What this replica reads. For one event loop."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        """`namespace`: the operator's own."""
        self._kube, self._namespace = kube, namespace
        self._name = f"glimpse-reading-{secrets.token_hex(5)}"
        self._reads: dict[object, tuple[float, str]] = {}  # the oldest first
        self._said: frozenset[str] = frozenset()
        self._written = 0.0
        self._uid = ""

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """A revision is read until the end of the block: its name in the stores."""
        mark = object()
        self._reads[mark] = (time.monotonic(), key)
        try:
            yield
        finally:
            del self._reads[mark]

    async def follow(self) -> None:
        """Keep the Lease in step until cancelled, then remove it."""
        try:
            while True:
                await asyncio.sleep(LOOK)
                try:
                    await self._say()
                except ApiError as error:
                    log.warning("the operator cannot be told what is read: %s", error.message)
        finally:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._end()
            except (ApiError, TimeoutError) as error:
                log.info("the lease %s stays until it has expired: %r", self._name, error)

    async def _say(self) -> None:
        now = time.monotonic()
        long = [key for since, key in self._reads.values() if now - since >= LONG]
        keys = frozenset([*dict.fromkeys(long)][:MOST])
        if keys <= self._said and now - self._written < RENEW:
            return
        if not keys:
            await self._end()
            return
        made = await self._kube.apply(LEASE, lease(self._name, sorted(keys), datetime.now(UTC)), self._namespace)
        self._said, self._written, self._uid = keys, now, made["metadata"]["uid"]

    async def _end(self) -> None:
        if self._said:
            await self._kube.delete(LEASE, self._name, self._namespace, uid=self._uid)
            self._said = frozenset()
