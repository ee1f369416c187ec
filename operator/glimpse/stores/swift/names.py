"""The names in the containers: what each of them says, who is alive, and which of several who write at once stands.

Swift has neither a rename nor a lock, so all that is decided is decided by these names, and by listings of them.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote

from glimpse.problems import DataLost, NotFound, StoreConflict, StoreUnavailable
from glimpse.stores import Note, Stat
from glimpse.stores.swift.checkpoints import Checkpoint
from glimpse.stores.swift.client import Client, Headers, Listed, host
from glimpse.stores.swift.config import SwiftConfig
from glimpse.stores.swift.others import Others
from glimpse.stores.swift.places import Layout, Place
from glimpse.stores.swift.segments import FLIGHTS

MARKER: Final = "glimpse-store.json"
_UPDATED: Final = "x-object-meta-record"
_NAME: Final = re.compile(r"([0-9a-z-]+\.[0-9a-z]+)(/|\.alive|\.record|\.checkpoint)?")


@dataclass(frozen=True, slots=True)
class Commit:
    """What the small object says."""

    attempt: str
    layout: Layout
    record: bytes
    modified: float
    note: Note | None = None
    """Of what is registered: the attempt has no bytes then."""


@dataclass(slots=True)
class Found:
    """What is there of an attempt."""

    parts: set[str] = field(default_factory=set)
    """Of `_NAME`, what is behind the name; empty for the large object itself."""
    size: int = 0
    modified: float = 0.0
    alive: bool = False
    signed: float = 0.0
    """When its sign of life was written, in seconds since the epoch ..."""
    word: int = 0
    """... and how long the word is that is in it."""

    @property
    def noted(self) -> bool:
        """Whether it has a checkpoint."""
        return ".checkpoint" in self.parts


class Names:
    """The names of one store."""

    def __init__(self, client: Client, config: SwiftConfig, where: str, *, lease: float, page: int) -> None:
        """`where` is the store, for messages; `lease` and `page` are the driver's."""
        self._client, self._where, self._lease, self._page = client, where, lease, page
        self._container, self._segments = config.container, config.segment_container or config.container
        self.prefix = f"{config.prefix}/" if config.prefix else ""
        self.others = Others(client, config.container, self.prefix)
        place = f"{config.container}/{self.prefix}".rstrip("/")
        self.endpoint = f"swift://{host(config.auth_url)}/{quote(place)}"

    # Objects

    def refuse(self, key: str) -> None:
        """Raise StoreConflict if there is such an object."""
        with suppress(NotFound):
            self.load(key)
            raise StoreConflict(f"{self.location(key)} exists, and objects are written once")

    def load(self, key: str) -> Commit:
        """The small object. Raises NotFound; DataLost if somebody has damaged it."""
        try:
            headers, content = self._client.read(self._container, f"{self.prefix}objects/{key}")
        except NotFound as problem:
            raise NotFound(f"{self.location(key)} does not exist") from problem
        try:
            said = json.loads(content)
            name, line = f"{key}.{said['attempt']}", str(said["record"]).encode()
            if _UPDATED in headers:
                with suppress(NotFound):  # being deleted
                    _, line = self._client.read(self._container, f"{self.prefix}data/{name}.record")
            layout = Layout(int(said["size"]), int(said["segment"]))
            note = Note.model_validate(said["at"]) if "at" in said else None
            return Commit(said["attempt"], layout, line, _modified(headers), note)
        except (ValueError, TypeError, KeyError) as error:
            raise DataLost(f"{self.prefix}objects/{key} in {self._where} cannot be read; delete the image") from error

    def find(self, key: str) -> Commit | None:
        """The same, if it is there."""
        with suppress(NotFound):
            return self.load(key)
        return None

    def look(self, key: str) -> tuple[str, Stat | None, str]:
        """The key, what is to be said of it, and whose bytes it has; of a damaged one hardly anything."""
        try:
            commit = self.find(key)
        except DataLost:
            return key, Stat(key, 0, self.location(key), 0.0), ""
        return (key, self.stat(key, commit), commit.attempt) if commit else (key, None, "")

    def stat(self, key: str, commit: Commit) -> Stat:
        """What is to be said of an object."""
        place = self.others.where(commit.note.location) if commit.note else self.location(f"{key}.{commit.attempt}")
        return Stat(key, commit.layout.size, place, commit.modified, commit.record)

    def renewed(self, key: str) -> None:
        """Say in the metadata of the small object that a newer record lies beside the bytes. Raises NotFound."""
        self._client.post(self._container, f"{self.prefix}objects/{key}", {_UPDATED: "replaced"})

    def once(self, name: str, content: bytes, check: Callable[[], None]) -> StoreUnavailable | None:
        """Write an object that must not be there. Who stands is to be seen afterwards, when all have settled.

        Swift looks whether it is there before it takes the bytes, so of two at the same moment both may be told that
        they were first, and the later one wins. So each says beforehand that it is about to write, looks itself, takes
        that back afterwards, and waits for all who said so: whoever says it later will find the object.
        Returns what left it open whether ours has arrived.
        """
        try:
            self.put(name, content, {"If-None-Match": "*", "Content-Type": "application/json"}, before=check)
        except StoreConflict:
            pass  # somebody's, or our own whose answer was lost
        except StoreUnavailable as problem:
            return problem
        return None

    def settle(self, prefix: str, busy: Callable[[Listed], bool]) -> None:
        """Wait for those who are about to write; for a dead one no longer than a lease."""
        deadline, pause = time.monotonic() + self._lease, 0.02
        while time.monotonic() < deadline:
            if not any(busy(each) and each.age <= self._lease for each in self.listed(prefix, folders=True)):
                return
            time.sleep(pause)
            pause = min(1.0, pause * 2)

    # Attempts

    def attempts(self, prefix: str) -> dict[str, Found]:
        """What is there of each attempt.

        Segments are looked for first: whose are found is then known to be alive, or to have ended.
        """
        found: dict[str, Found] = {}
        start = len(f"{self.prefix}data/")
        for container in {self._segments: 0, self._container: 0}:
            for each in self._client.list(container, f"{self.prefix}data/{prefix}", self._page, folders=True):
                if match := _NAME.fullmatch(each.name[start:]):
                    left = found.setdefault(match[1], Found())
                    left.parts.add(match[2] or "")
                    left.size += 0 if match[2] else each.size
                    left.modified = max(left.modified, each.modified)
                    if match[2] == ".alive":
                        left.alive, left.signed, left.word = each.age <= self._lease, each.modified, each.size
        return found

    def dead(self, key: str) -> dict[str, Found]:
        """Attempts on a key that are not alive and not committed.

        A listing comes in pages, and who began meanwhile may have given a sign in one that had passed: so it is looked
        twice. The commit is read last: one that was not alive a moment ago may be committed.
        """
        found = {name: left for name, left in self.attempts(f"{key}.").items() if not left.alive}
        if found:
            for name, left in self.attempts(f"{key}.").items():
                if left.alive:
                    found.pop(name, None)
        if found and (commit := self.find(key)):
            found.pop(f"{key}.{commit.attempt}", None)
        return found

    def reap(self, key: str, only: str | None = None) -> None:
        """Remove dead attempts, or that one if it is dead."""
        for name, left in self.dead(key).items():
            if only in {None, name}:
                self.remove(name, left)

    def remove(self, name: str, left: Found | None = None) -> None:
        """All of an attempt. What says that its bytes are there goes first; what tells of it at all goes last."""
        left = left or self.attempts(name).get(name, Found())
        self.clear(name, left)
        for part in (".record", ".alive"):
            if part in left.parts:
                self.drop(f"data/{name}{part}")

    def clear(self, name: str, left: Found | None = None) -> None:
        """Its bytes only, and its checkpoint."""
        left = left or self.attempts(name).get(name, Found())
        if left.noted:
            self.drop(f"data/{name}.checkpoint")
        if "/" in left.parts:
            self._delete(self.segments(name))
        if "" in left.parts:
            self.drop(f"data/{name}")

    def tidy(self, name: str, layout: Layout) -> None:
        """Remove what has led to a complete object and is no part of it."""
        self.drop(f"data/{name}.checkpoint")
        count = -(-layout.size // layout.segment) if layout.segment else 0
        part = re.compile(re.escape(f"{self.prefix}data/{name}/") + r"(t\d+|\d{8})")
        found = ((each, part.fullmatch(each.name)) for each in self.segments(name))
        self._delete(each for each, match in found if match and (match[1].startswith("t") or int(match[1]) >= count))

    def _delete(self, segments: Iterable[Listed]) -> None:
        with ThreadPoolExecutor(FLIGHTS) as pool:
            list(pool.map(lambda each: self._client.delete(self._segments, each.name), segments))

    def note(self, name: str, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of an attempt."""
        self.put(f"data/{name}.checkpoint", checkpoint.line())

    def noted(self, name: str) -> Checkpoint | None:
        """Read it; None if there is none, or none that makes sense."""
        with suppress(NotFound):
            return Checkpoint.read(self._client.read(self._container, f"{self.prefix}data/{name}.checkpoint")[1])
        return None

    # The marker

    def owner(self) -> str:
        """Who the marker names. Raises NotFound."""
        _, content = self._client.read(self._container, f"{self.prefix}{MARKER}")
        try:
            return str(json.loads(content)["owner"])
        except (ValueError, TypeError, KeyError):
            raise StoreUnavailable(
                f"{self.prefix}{MARKER} in {self._where} cannot be read; it is a JSON object with the member "
                "`owner`: restore it"
            ) from None

    def owned(self) -> bool:
        """Whether there is a marker."""
        with suppress(NotFound):
            return bool(self.owner())
        return False

    # Words to the server

    def place(self, name: str) -> Place:
        """Where the bytes of an attempt are."""
        return Place(self._client, self._container, self._segments, f"{self.prefix}data/{name}")

    def put(
        self, name: str, content: bytes, headers: Headers | None = None, before: Callable[[], None] = lambda: None
    ) -> None:
        """Write a small object. Raises StoreUnavailable without the container, StoreConflict, StoreFull."""
        try:
            pieces = [content] if content else []
            self._client.put(self._container, f"{self.prefix}{name}", pieces, headers, before=before)
        except NotFound as problem:
            raise self.missing(self._container) from problem

    def drop(self, name: str) -> None:
        """Remove an object; absent is fine."""
        self._client.delete(self._container, f"{self.prefix}{name}")

    def keys(self, prefix: str) -> Iterator[str]:
        """Of all objects that begin so."""
        start = len(f"{self.prefix}objects/")
        return (each.name[start:] for each in self.listed(f"objects/{prefix}"))

    def segments(self, name: str) -> Iterator[Listed]:
        """What is below the name of an attempt."""
        return self._client.list(self._segments, f"{self.prefix}data/{name}/", self._page)

    def listed(self, prefix: str, *, folders: bool = False) -> Iterator[Listed]:
        """Names that begin so; with `folders`, none below the next slash."""
        return self._client.list(self._container, f"{self.prefix}{prefix}", self._page, folders=folders)

    def missing(self, container: str) -> StoreUnavailable:
        """What to say where there is no such container."""
        return StoreUnavailable(
            f"container {container} does not exist at {self.endpoint}; create it, or set `createContainer`"
        )

    def location(self, name: str) -> str:
        """A URL of an object or of an attempt, for people."""
        part = "data" if "." in name else "objects"
        return f"swift://{quote(f'{self._container}/{self.prefix}{part}/{name}')}"


def _modified(headers: Headers) -> float:
    return parsedate_to_datetime(headers["last-modified"]).timestamp()
