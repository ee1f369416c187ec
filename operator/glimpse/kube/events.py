"""Events about objects: written soon and as far as possible, and never many of one.

They are for people who look; nothing waits for them, and nothing is lost with them.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from glimpse.kube.answers import ApiError
from glimpse.kube.kinds import EVENT, Kind, Object

log = logging.getLogger(__name__)

_QUEUE: Final = 1000
_REPEAT: Final = 600.0
"""Seconds in which the same Event of an object is written once only."""
_BURST: Final = 25
"""Events of one object within `_REPEAT`, as client-go's spam filter allows."""


class Events:
    """Events that wait to be written; for many tasks of one event loop."""

    def __init__(self, create: Callable[[Kind, Object, str | None], Awaitable[Object]]) -> None:
        """`create` writes one; it may raise ApiError."""
        self._create = create
        self._waiting: asyncio.Queue[Object] = asyncio.Queue(_QUEUE)
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._spoken: Counter[str] = Counter()
        self._poster: asyncio.Task[None] | None = None

    async def written(self) -> None:
        """Wait until all that were said are written, or lost."""
        await self._waiting.join()

    async def close(self) -> None:
        """What still waits is lost."""
        if self._poster:
            self._poster.cancel()
            await asyncio.gather(self._poster, return_exceptions=True)

    def say(self, obj: Object, *, type: str, reason: str, message: str) -> None:  # noqa: A002 - the API's own word
        """Post an Event about the object, soon and as far as possible; never raises, never waits.

        The same Event is written once in ten minutes, and no more than 25 about one object. `type` is `Normal` or
        `Warning`.
        """
        if self._waiting.full():
            return
        meta, now = obj["metadata"], time.monotonic()
        uid = meta["uid"]
        while self._said and next(iter(self._said.values())) < now - _REPEAT:
            (old, _), _ = self._said.popitem(last=False)
            self._spoken[old] -= 1
            if not self._spoken[old]:
                del self._spoken[old]
        same = sha256(f"{uid}\0{type}\0{reason}\0{message}".encode()).hexdigest()
        if (uid, same) in self._said or self._spoken[uid] >= _BURST:
            return
        self._said[uid, same] = now
        self._spoken[uid] += 1
        stamp = datetime.now(UTC)
        at = stamp.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._waiting.put_nowait(
            {
                "metadata": {
                    "name": f"{meta['name']}.{int(stamp.timestamp() * 1e6):x}{same[:4]}",
                    "namespace": meta.get("namespace", "default"),
                },
                "involvedObject": {
                    "apiVersion": obj["apiVersion"],
                    "kind": obj["kind"],
                    "name": meta["name"],
                    "uid": uid,
                    "resourceVersion": meta.get("resourceVersion", ""),
                }
                | ({"namespace": meta["namespace"]} if "namespace" in meta else {}),
                "type": type,
                "reason": reason,
                "message": message[:1024],
                "firstTimestamp": at,
                "lastTimestamp": at,
                "count": 1,
                "source": {"component": "glimpse-operator"},
                "reportingComponent": "glimpse.dev/operator",
            }
        )
        if self._poster is None:
            self._poster = asyncio.create_task(self._post(), name="events")

    async def _post(self) -> None:
        while True:
            body = await self._waiting.get()
            try:
                await self._create(EVENT, body, body["metadata"]["namespace"])
            except ApiError as error:
                log.debug("an Event was lost: %s", error.message)
            finally:
                self._waiting.task_done()
