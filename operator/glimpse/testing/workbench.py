"""Folders as stores, and tasks done in this process: what a test of the data path needs besides a web server.

The words cross the border to the operator as JSON, as they would from a worker.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from glimpse.settings import Addresses, Transfers
from glimpse.stores import Store, open_store
from glimpse.tasks import EVENT, Answer, Event, Fetch, HttpOrigin, Record, StoreRef, Task
from glimpse.transfer import do

LOOPBACK: Final = Addresses.model_validate({"allow": ["127.0.0.0/8"]})
PATIENT: Final = Transfers(connect_timeout=5, idle_timeout=20)
IMPATIENT: Final = PATIENT.model_copy(update={"idle_timeout": 0.5})
"""For servers that fall silent."""
UID: Final = "6f1c0000-0000-4000-8000-000000000001"
KEY: Final = f"{UID}-1"
"""Of the record that is made where none is given."""


@dataclass
class Told:
    """What became of a task."""

    answer: Answer
    events: list[Event] = field(default_factory=list)

    def of(self, kind: str) -> list[Any]:
        """The events of a kind, in order."""
        return [event for event in self.events if event.event == kind]

    @property
    def reason(self) -> str | None:
        """Why it failed, if it did."""
        return self.answer.trouble.reason if self.answer.event == "failed" else None

    @property
    def message(self) -> str:
        """The words of the failure."""
        assert self.answer.event == "failed"
        return self.answer.trouble.message

    @property
    def record(self) -> Record:
        """What was done, if it was."""
        assert self.answer.event == "done", self.answer
        assert self.answer.record
        return self.answer.record

    @property
    def stored(self) -> set[str]:
        """The stores that said they hold it."""
        return {event.store for event in self.of("stored")}

    @property
    def failed(self) -> dict[str, str]:
        """The stores that failed, and why."""
        return {event.store: event.trouble.reason for event in self.of("store-failed")}


class Workbench:
    """Makes stores and tasks, and does them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cancelled = threading.Event()
        self.hear: Callable[[Event], None] = lambda _: None
        """Gets each event as it comes, for a test that acts in the middle."""

    def store(self, name: str, **more: Any) -> StoreRef:
        """A store in a folder of its own."""
        path = self._folder / name
        path.mkdir(exist_ok=True)
        options = {"installation": "here", **more}
        return StoreRef(name=name, driver="filesystem", config={"path": str(path)}, **options)

    def opened(self, name: str) -> Store:
        """The store, to look at."""
        return open_store(self.store(name))

    def data(self, name: str, key: str) -> bytes:
        """What is stored there, read around all code of ours."""
        return (self._folder / name / "objects" / key / "data").read_bytes()

    def spoil(self, name: str, key: str, data: bytes) -> None:
        """Write other bytes over those of an object, as a failing disk would."""
        (self._folder / name / "objects" / key / "data").write_bytes(data)

    def left(self) -> list[str]:
        """Everything that lies in any store: objects, and what attempts have left."""
        return sorted(
            str(path.relative_to(self._folder))
            for part in ("objects", "attempts")
            for path in self._folder.glob(f"*/{part}/*")
        )

    def record(self, revision: int = 1, uid: str = UID, spec_hash: str = "5bec") -> Record:
        """The identity of an object."""
        return Record(
            installation="here", namespace="team-a", name="debian", uid=uid, revision=revision, spec_hash=spec_hash
        )

    def fetch(self, urls: str | tuple[str, ...], stores: tuple[StoreRef, ...], **more: Any) -> Told:
        """Fetch from these mirrors into these stores."""
        origin = HttpOrigin(urls=(urls,) if isinstance(urls, str) else urls)
        options = {"record": self.record(), "origin": origin, "limit": 1 << 40, "transfers": PATIENT, **more}
        return self.do(Fetch(attempt="a1", stores=stores, addresses=LOOPBACK, **options))

    def do(self, task: Task) -> Told:
        """Do a task; its events have crossed the border to the operator as JSON."""
        events: list[Event] = []

        def say(event: Event) -> None:
            events.append(EVENT.validate_json(event.line()))
            self.hear(event)

        answer = do(task, say, self.cancelled)
        crossed = EVENT.validate_json(answer.line())
        assert crossed.event in {"done", "failed"}
        return Told(answer, events)
