"""A driver that holds its objects in the memory of this process, chunk by chunk as they came.

It shows how little a driver has to do, and it finds stages that use a buffer again: what it was given must still be
the same when it is read. It is Resumable as far as memory can be: each chunk is a checkpoint, and a put that has
failed is a dead attempt.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from glimpse.api.base import Model
from glimpse.problems import DataLost, NotFound, StoreConflict, StoreFull, StoreUnavailable
from glimpse.stores import Capacity, Mark, Stat, Version
from glimpse.streams import CHUNK, Reader


@dataclass
class Begun:
    """What an attempt has collected."""

    mark: bytes | None = None
    """What was said of them; None: nothing is kept if it fails."""
    chunks: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.chunks))


@dataclass
class Place:
    """What the stores of one name share."""

    objects: dict[str, tuple[Stat, tuple[bytes, ...]]] = field(default_factory=dict)
    attempts: dict[str, Begun] = field(default_factory=dict)
    """Those that are alive."""
    dead: dict[str, Begun] = field(default_factory=dict)
    """Those that failed and can be gone on with."""
    others: dict[str, tuple[Version, bytes]] = field(default_factory=dict)
    """What others have put there, by location."""
    registered: dict[str, tuple[str, Version]] = field(default_factory=dict)
    """Objects without bytes of their own, by key: where they lie, and which they are."""
    owner: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


PLACES: dict[str, Place] = {}
"""Every place by its name; a test makes up a name of its own."""


class MemoryConfig(Model):
    """A place by its name."""

    place: Annotated[str, Field(max_length=253)]
    """Which one."""
    total: int = 1 << 30
    """Its room in bytes."""


class Memory:
    """A store in memory."""

    Config: ClassVar[type[BaseModel]] = MemoryConfig

    def __init__(self, config: MemoryConfig, _secret: Mapping[str, str], _ca_bundle: str | None, /) -> None:
        self._config = config
        self._place = PLACES.setdefault(config.place, Place())

    @property
    def endpoint(self) -> str:
        """The place."""
        return f"memory:{self._config.place}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Collect the chunks, then enter them."""
        self._must_not_exist(key)
        self._reap(key)
        return self.fill(f"{key}.{attempt}", Begun(), None, body, record)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Join the chunks."""
        chunks = self._find(key)[1]
        data = self._theirs(*self._place.registered[key]) if key in self._place.registered else b"".join(chunks)
        yield _Range(data[offset : None if length is None else offset + length])

    def stat(self, key: str, /) -> Stat:
        """Look it up."""
        return self._find(key)[0]

    def update(self, key: str, record: bytes, /) -> None:
        """Enter it anew."""
        with self._place.lock:
            stat, chunks = self._find(key)
            self._place.objects[key] = replace(stat, record=record), chunks

    def delete(self, key: str, /) -> None:
        """Forget it, and the dead."""
        with self._place.lock:
            self._place.objects.pop(key, None)
            self._place.registered.pop(key, None)
        self._reap(key)

    def clone(self, source: str, key: str, attempt: str, record: bytes, _going: Callable[[], None], /) -> Stat | None:
        """The same chunks."""
        del attempt
        with self._place.lock:
            stat, chunks = self._find(source)
            self._must_not_exist(key)
            made = replace(stat, key=key, location=f"memory:{self._config.place}/{key}", record=record)
            self._place.objects[key] = made, chunks
        self._reap(key)
        return made

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """All that there is at this moment."""
        with self._place.lock:
            attempts = [
                Stat(name, begun.size, "memory:", time.time(), None, partial=True)
                for name, begun in (self._place.dead | self._place.attempts).items()
            ]
        objects = [stat for stat, _ in dict(self._place.objects).values()]
        return (stat for stat in (*attempts, *objects) if stat.key.startswith(prefix))

    def put_marked(self, key: str, attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """The same, and remember the chunks if it fails."""
        self._must_not_exist(key)
        self._reap(key)
        return self.fill(f"{key}.{attempt}", Begun(), mark, body, record)

    @contextmanager
    def take(self, key: str, attempt: str, /) -> "Iterator[_Left | None]":
        """Move the longest from the dead to the living, for as long as the block or the resume lasts."""
        with self._place.lock:
            dead = [self._place.dead.pop(name) for name in list(self._place.dead) if name.partition(".")[0] == key]
            found = max(dead, key=lambda begun: begun.size, default=None)
            if found:
                self._place.attempts[f"{key}.{attempt}"] = found
        if found is None:
            yield None
            return
        left = _Left(self, f"{key}.{attempt}", found)
        try:
            yield left
        finally:
            if not left.resumed:
                self._end(f"{key}.{attempt}")

    def fill(self, name: str, begun: Begun, mark: Mark | None, body: Reader, record: Callable[[], bytes]) -> Stat:
        """Add the chunks of `body` to those that are there, and enter them all."""
        key, begun.mark = name.partition(".")[0], None
        with self._place.lock:
            self._place.attempts[name] = begun
        try:
            self._collect(begun, body)
            stat = Stat(key, begun.size, f"memory:{self._config.place}/{key}", time.time(), record())
            with self._place.lock:
                self._must_not_exist(key)
                self._place.objects[key] = stat, tuple(begun.chunks)
        except BaseException:
            begun.mark = mark(begun.size) if mark else None
            raise
        finally:
            self._end(name)
        return stat

    def where(self, location: str, /) -> str:
        """The place."""
        return f"memory:{self._config.place}/{location}"

    def locate(self, location: str, /) -> Version:
        """Look it up."""
        try:
            return self._place.others[location][0]
        except KeyError:
            raise NotFound(f"nothing lies at {location}") from None

    @contextmanager
    def read(self, location: str, version: Version, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Cut it out."""
        self.locate(location)
        yield _Range(self._theirs(location, version)[offset : None if length is None else offset + length])

    def register(self, key: str, _attempt: str, location: str, version: Version, record: bytes, /) -> Stat:
        """Enter where it is."""
        self.locate(location)
        self._theirs(location, version)
        self._reap(key)
        with self._place.lock:
            self._must_not_exist(key)
            stat = Stat(key, version.size, self.where(location), time.time(), record)
            self._place.objects[key] = stat, ()
            self._place.registered[key] = location, version
        return stat

    def erase(self, location: str, /) -> None:
        """Forget it."""
        self._place.others.pop(location, None)

    def _theirs(self, location: str, version: Version) -> bytes:
        found = self._place.others.get(location)
        if found is None or not found[0].same(version):
            raise DataLost(f"other bytes lie at {location} by now")
        return found[1]

    def probe(self) -> Capacity:
        """Count."""
        used = sum(stat.size for stat in self.list() if stat.key not in self._place.registered)
        return Capacity(self._config.total, used, max(0, self._config.total - used))

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """The first one has it."""
        with self._place.lock:
            if self._place.owner is None:
                if not fresh:
                    raise StoreUnavailable(f"{self._config.place} has no owner any more: is it mounted?")
                self._place.owner = owner
            return self._place.owner

    def _collect(self, begun: Begun, body: Reader) -> None:
        while chunk := body.read(CHUNK):
            if type(chunk) is not bytes:
                raise TypeError(f"a body gave {type(chunk).__name__}, which may change")
            begun.chunks.append(chunk)
            if self.probe().free == 0:
                raise StoreFull(f"{self._config.place} is full")

    def _end(self, name: str) -> None:
        """An attempt is dead; with a mark and a chunk it is kept."""
        with self._place.lock:
            begun = self._place.attempts.pop(name)
            if begun.mark is not None and begun.chunks:
                self._place.dead[name] = begun

    def _reap(self, key: str) -> None:
        with self._place.lock:
            for name in [name for name in self._place.dead if key in {name, name.partition(".")[0]}]:
                del self._place.dead[name]

    def _find(self, key: str) -> tuple[Stat, tuple[bytes, ...]]:
        try:
            return self._place.objects[key]
        except KeyError:
            raise NotFound(f"memory:{self._config.place}/{key} does not exist") from None

    def _must_not_exist(self, key: str) -> None:
        if key in self._place.objects:
            raise StoreConflict(f"memory:{self._config.place}/{key} exists")


class _Left:
    """What a put that failed has left."""

    def __init__(self, store: Memory, name: str, begun: Begun) -> None:
        self._store, self._name, self._begun = store, name, begun
        self.mark, self.length = begun.mark or b"", begun.size
        self.resumed = False

    def open(self) -> Reader:
        return _Range(b"".join(self._begun.chunks))

    def resume(self, length: int, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        self.resumed = True
        self._begun.chunks[:] = [b"".join(self._begun.chunks)[:length]]
        return self._store.fill(self._name, self._begun, mark, body, record)


class _Range:
    """A Reader over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0
        self.size: int | None = len(data)

    def read(self, n: int = CHUNK, /) -> bytes:
        chunk = self._data[self._position : self._position + n]
        self._position += len(chunk)
        return chunk
