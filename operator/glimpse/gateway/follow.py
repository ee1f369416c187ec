"""Images and uploads that somebody waits for: each change of them, as the watch tells it.

An upload waits for the operator twice, and must not ask the API server again and again.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from glimpse.kube import Object

T = TypeVar("T")


class Followed:
    """One object as it is now; None: it is gone."""

    def __init__(self, hear: Callable[[], None] | None = None) -> None:
        """`hear`: is called at each change."""
        self.obj: Object | None = None
        self._hear = hear
        self._changed = asyncio.Event()

    def learn(self, obj: Object | None) -> None:
        """It has changed. An older word than what is known says nothing."""
        if self.obj and obj and _version(obj) < _version(self.obj):
            return
        self.obj = obj
        self._changed.set()
        if self._hear:
            self._hear()

    async def until(self, found: Callable[[Object | None], T | None], seconds: float) -> T | None:
        """Wait until `found` finds something; None after so many seconds. What it raises comes out."""
        with_end = asyncio.timeout(seconds)
        try:
            async with with_end:
                while True:
                    self._changed.clear()
                    if (result := found(self.obj)) is not None:
                        return result
                    await self._changed.wait()
        except TimeoutError:
            if not with_end.expired():
                raise
            return None


class Followers:
    """All who wait. For one event loop."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], set[Followed]] = {}

    @contextmanager
    def follow(self, namespace: str, name: str, hear: Callable[[], None] | None = None) -> Iterator[Followed]:
        """Hear of this object until the end of the block; `hear` as in Followed."""
        where, followed = (namespace, name), Followed(hear)
        self._of.setdefault(where, set()).add(followed)
        try:
            yield followed
        finally:
            self._of[where].discard(followed)
            if not self._of[where]:
                del self._of[where]

    def learn(self, change: str, obj: Object) -> None:
        """What a watch says."""
        meta = obj["metadata"]
        for followed in self._of.get((meta["namespace"], meta["name"]), ()):
            followed.learn(None if change == "DELETED" else obj)


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])
