"""One Image as the queue knows it: the newest object, what runs, and what is due.

Small, since there are tens of thousands, most of which have nothing to do.
"""

import asyncio
from typing import Any

from glimpse.api.image import Transfer
from glimpse.control.seen import Result, Work
from glimpse.control.slots import Place
from glimpse.control.works import Meter


class Entry:
    """One Image, as far as the queue needs it."""

    __slots__ = (
        "gone",
        "held",
        "look",
        "meter",
        "min_version",
        "name",
        "namespace",
        "place",
        "progress",
        "raw",
        "ready",
        "refers",
        "result",
        "settled",
        "stores",
        "task",
        "timer",
        "turn",
        "uid",
        "wake",
        "work",
        "work_task",
    )

    def __init__(self, uid: str, namespace: str, name: str) -> None:
        self.uid, self.namespace, self.name = uid, namespace, name
        self.raw: dict[str, Any] | None = None
        """The newest object; dropped while nothing is to do, or ten thousand settled images would fill the memory."""
        self.min_version = 0
        """Our own last write: older events say nothing."""
        self.task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self.work: Work | None = None
        self.work_task: asyncio.Task[Result] | None = None
        self.meter: Meter | None = None
        self.progress: Transfer | None = None
        self.place: Place | None = None
        """In the queue, as status says it."""
        self.result: Result | None = None
        self.turn: asyncio.Future[bool] | None = None
        """It is this image's turn to have a copy verified, until this is done."""
        self.look = False
        """The Secrets and ConfigMaps are to be looked at."""
        self.refers: tuple[str, str] | None = None
        """Namespace and name of the Image that it refers to."""
        self.settled = False
        self.gone = False
        self.ready: str | None = None
        self.stores: tuple[str, ...] = ()
        self.held: dict[str, int] = {}
        """Bytes by store."""
