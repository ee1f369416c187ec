"""The keys of signed links, as a gateway knows them: by a watch of their one Secret.

So a key that is removed counts nowhere a moment later, and a link that one replica has signed is good at all of them
and after each restart.
"""

import asyncio
import logging
import time
from typing import Final

from glimpse import linkkeys
from glimpse.gateway.refusals import LATER, Refusal
from glimpse.kube import SECRET, ApiError, Gone, Kube
from glimpse.linkkeys import SECRET_NAME, Key

log: Final = logging.getLogger(__name__)

PATIENCE: Final = 5.0
"""Seconds to wait for the API server."""
AGAIN: Final = 1.0
"""Seconds between two looks at the Secret for keys that the watch does not know."""


class Keys:
    """The keys that count now. Used by the event loop only."""

    def __init__(self, kube: Kube, namespace: str, *, silence: float) -> None:
        """`namespace`: the operator's own; `silence`: seconds after which a watch without a sign of life is dead."""
        self._kube, self._namespace, self._silence = kube, namespace, silence
        self._keys: dict[str, Key] = {}
        self._complete = asyncio.Event()
        self._heard = 0.0
        self._looked: dict[str, Key] | None = None
        self._looked_at = -AGAIN
        self._look = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name="watch keys")

    async def close(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def newest(self) -> Key:
        """The key to sign with. Raises Refusal 503."""
        await self._current()
        if not self._keys:
            raise Refusal(503, "There is no key to sign links with: the operator makes one.", retry_after=LATER)
        return self._keys[next(reversed(self._keys))]

    async def named(self, name: str) -> Key | None:
        """The key of this name, if there is one. Raises Refusal 503."""
        await self._current()
        if found := self._keys.get(name):
            return found
        # Another replica may have signed with a key of which the watch has not told yet.
        async with self._look:
            if time.monotonic() - self._looked_at >= AGAIN:
                self._looked = await self._read()
                self._looked_at = time.monotonic()
            if self._looked is None:
                raise _unknown()
            return self._looked.get(name)

    async def _current(self) -> None:
        """Return if what is known can be believed: a key that was removed must not count. Raises Refusal 503."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._complete.wait()
        except TimeoutError:
            raise _unknown() from None
        if time.monotonic() - self._heard > self._silence:
            raise _unknown()

    async def _read(self) -> dict[str, Key] | None:
        """The keys in the Secret; None if it cannot be read."""
        try:
            async with asyncio.timeout(PATIENCE):
                return linkkeys.read(await self._kube.get(SECRET, SECRET_NAME, self._namespace))
        except Gone:
            return {}
        except (ApiError, TimeoutError) as error:
            log.warning("the keys of links cannot be read: %r", error)
            return None

    async def _watch(self) -> None:
        async for change, obj in self._kube.watch(SECRET, self._namespace, name=SECRET_NAME):
            self._heard = time.monotonic()
            if change == "SYNCED":
                self._complete.set()
            elif change != "BOOKMARK":
                secret = None if change == "DELETED" else obj
                self._keys = linkkeys.read(secret)
                if short := ((secret or {}).get("data") or {}).keys() - self._keys.keys():
                    log.warning(
                        "keys of links with fewer than %d bytes do not count: %s", linkkeys.LEAST, sorted(short)
                    )


def _unknown() -> Refusal:
    return Refusal(503, "Which keys sign links cannot be asked at the moment.", retry_after=LATER)
