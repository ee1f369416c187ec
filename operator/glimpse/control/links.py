"""The keys of signed links: made, renewed and removed here, so that the gateway needs no right to write a Secret.

Level-based: each look makes what is missing. So to revoke all links somebody deletes the Secret, and to revoke those of
one key he removes the key; nothing is put back.
"""

import asyncio
import base64
import contextlib
import logging
import secrets
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from glimpse import linkkeys
from glimpse.api.base import SECRET_USE
from glimpse.kube import SECRET, ApiError, Conflict, Gone, Kube, Object
from glimpse.linkkeys import LEAST, SECRET_NAME, Key
from glimpse.settings import Settings

log = logging.getLogger(__name__)

_LOOK: Final = 60.0
"""Seconds between two looks."""
_AGAIN: Final = 1.0
"""The same after somebody else has changed the Secret in between."""
_SLACK: Final = timedelta(minutes=10)
"""That a key outlives its last link: clocks differ, and a gateway may learn of the next key late."""
_LABELS: Final = {
    "app.kubernetes.io/name": "glimpse",
    "app.kubernetes.io/instance": "glimpse",
    "app.kubernetes.io/component": "links",
    "app.kubernetes.io/part-of": "glimpse",
    "app.kubernetes.io/managed-by": "glimpse",
    SECRET_USE: linkkeys.USE,
}


class LinkKeys:
    """Keeps the Secret as it should be. With `links.maximum` 0 it does nothing."""

    def __init__(self, kube: Kube, settings: Settings) -> None:
        self._kube = kube
        self._namespace = settings.namespace
        self._maximum = timedelta(seconds=settings.links.maximum)
        self._rotation = timedelta(seconds=settings.links.rotation)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        if self._maximum:
            self._task = asyncio.create_task(self._run(), name="link keys")

    async def close(self) -> None:
        """Stop; the keys stay."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            wait = _LOOK
            try:
                await self.look(datetime.now(UTC))
            except Conflict:
                wait = _AGAIN
            except ApiError as error:
                log.warning("the keys of links were not looked after: %s", error.message)
            await asyncio.sleep(wait)

    async def look(self, now: datetime) -> None:
        """Make the Secret, or a newer key, and remove old ones, as it is time. Raises ApiError, Conflict: nothing done.

        Keys with names of somebody's own are his.
        """
        try:
            secret = await self._kube.get(SECRET, SECRET_NAME, self._namespace)
        except Gone:
            fresh = {linkkeys.name(now): _fresh()}
            body: Object = {"metadata": {"name": SECRET_NAME, "labels": _LABELS}, "type": "Opaque", "data": fresh}
            await self._kube.apply(SECRET, body, self._namespace)
            log.info("made the first key of links")
            return
        changes = self._due([*linkkeys.read(secret).values()], now)
        if changes:
            await self._kube.set_data(SECRET, secret, changes)
            log.info("keys of links that were made or removed: %s", ", ".join(sorted(changes)))

    def _due(self, keys: list[Key], now: datetime) -> dict[str, str | None]:
        """Keys to be made, and those to be removed (None), of these, the newest last."""
        changes: dict[str, str | None] = {
            old.name: None
            for old, newer in pairwise(keys)
            if old.made and newer.made and newer.made + self._maximum + _SLACK <= now
        }
        newest = keys[-1] if keys else None
        if newest is None or (newest.made and newest.made + self._rotation <= now):
            changes[linkkeys.name(now)] = _fresh()
        return changes


def _fresh() -> str:
    return base64.b64encode(secrets.token_bytes(LEAST)).decode()
