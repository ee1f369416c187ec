"""The bytes of an attempt: segments and the manifests that make one object of them, written and read several at once.

Segments are read from one stream, so what is on its way at once must be in memory: they are small, each is kept until
it is stored, and so each can be sent again, to a server that failed or with a new token.
"""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any, Final, NoReturn, Self

from glimpse.ahead import Ahead, Cut
from glimpse.problems import DataLost, Problem, StoreUnavailable
from glimpse.stores import lasting
from glimpse.stores.swift.checkpoints import Notes
from glimpse.stores.swift.client import Client, Stopped
from glimpse.stores.swift.places import Layout, Place
from glimpse.streams import CHUNK, Reader

FLIGHTS: Final = 4
"""Requests with bytes that are on their way at once, at most."""
WINDOW: Final = 96 << 20
"""Bytes of them while writing, at most. One segment besides is being filled."""
PART: Final = 16 << 20
"""Bytes that one request reads, at most."""
Pieces = list[bytes | memoryview]
Entry = dict[str, Any]
"""Of a manifest."""


class Aloft:
    """How many bytes were taken and are not stored yet, of all writes at once: who asks for room must know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0

    def add(self, count: int) -> None:
        """More of them, or fewer."""
        with self._lock:
            self.bytes += count


def write(  # noqa: PLR0917 - two places call it
    place: Place,
    body: Reader,
    segment: int,
    entries: int,
    aloft: Aloft,
    notes: Notes | None = None,
    begun: Sequence[Entry] = (),
) -> Layout:
    """All of `body`, in segments of this size, unless it is no longer than one; with `entries` in a manifest, at most.

    `begun`: segments before it, which are stored already. With `notes`, all that the body has given is stored before a
    lasting Problem of it comes out. What `body` raises comes out as it is. Raises NotFound without a container,
    StoreFull, StoreUnavailable.
    """
    taken = _Taken(body, aloft, keeping=notes is not None)
    size = len(begun) * segment
    try:
        with _Flights(place, segment, taken, notes, begun) as flights:
            for number, (pieces, last) in enumerate(_cut(taken, segment), len(begun)):
                size += sum(map(len, pieces))
                if taken.broken:
                    flights.give_up(taken.broken, number, pieces, size)
                if not number and last:
                    flights.alone(pieces)
                    return Layout(size, 0)
                if pieces:
                    flights.send(number, pieces, size)
                del pieces
            flights.settle()
    finally:
        aloft.add(-taken.bytes)
    _join(place, flights.stored, entries)
    return Layout(size, segment)


class _Flights:
    """Segments on their way to one place, several at once."""

    def __init__(
        self, place: Place, segment: int, taken: "_Taken", notes: Notes | None, begun: Sequence[Entry]
    ) -> None:
        self.stored = list(begun)
        """In order."""
        self._place, self._segment, self._taken, self._notes = place, segment, taken, notes
        self._count = max(1, min(FLIGHTS, WINDOW // segment))
        self._flying: deque[Future[Entry]] = deque()
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What is on its way is waited for; after an error it stops."""
        if kind:
            self._over.set()
        self._pool.shutdown()

    def send(self, number: int, pieces: Pieces, size: int) -> None:
        """One more; with it the body has given `size` bytes. While it is hashed, those before it are on their way."""
        etag = md5(pieces)
        while len(self._flying) >= self._count or (self._flying and self._flying[0].done()):
            self._land()
        self._flying.append(self._pool.submit(self._store, self._place.segments, f"/{number:08d}", pieces, etag))
        if self._notes and size % self._segment == 0:
            self._notes.cut(size)

    def settle(self) -> None:
        """Wait for all."""
        while self._flying:
            self._land()

    def alone(self, pieces: Pieces) -> None:
        """All of the body, as the object itself."""
        entry = self._taken.landed(self._store(self._place.container, "", pieces))
        if self._notes:
            self._notes.alone(entry)

    def give_up(self, problem: Problem, number: int, pieces: Pieces, size: int) -> NoReturn:
        """Store what the body has given, these last pieces too, and raise what broke it."""
        if self._notes:
            with suppress(Exception):  # what broke it is what counts
                if pieces and size % self._segment == 0:
                    self.send(number, pieces, size)
                self.settle()
                self._notes.broken(size, lambda tail: self._store(self._place.segments, tail, pieces)["etag"])
        raise problem

    def _land(self) -> None:
        self.stored.append(self._taken.landed(self._flying.popleft().result()))
        if self._notes:
            self._notes.landed(self.stored[-1])

    def _store(self, container: str, name: str, pieces: Pieces, etag: str | None = None) -> Entry:
        whole = f"{self._place.name}{name}"
        return store(self._place.client, container, whole, pieces, etag, self._going)

    def _going(self) -> None:
        if self._over.is_set():
            raise Stopped


def copy(source: Place, place: Place, layout: Layout, entries: int, going: Callable[[], None]) -> Layout:
    """The same bytes at another place, copied by the server.

    Raises NotFound if they are gone, DataLost if they are others, StoreFull, StoreUnavailable, Unable, and what `going`
    raises before a segment.
    """
    if layout.segment:
        _join(place, gather(source, place, layout, layout, going), entries)
    else:
        _copy(place.client, source.part(layout, 0), place.part(layout, 0), layout.size)
    return layout


def gather(
    source: Place, place: Place, there: Layout, here: Layout, going: Callable[[], None] = lambda: None
) -> list[Entry]:
    """Segments copied by the server, a segment a request, so that each answers in time; their entries in a manifest.

    What is at its place already is looked at. Raises as `copy`.
    """
    size, segment, _ = there

    def one(number: int) -> Entry:
        going()
        wanted = min(segment, size - number * segment)
        return _copy(place.client, source.part(there, number), place.part(here, number), wanted)

    with ThreadPoolExecutor(FLIGHTS) as pool:
        return list(pool.map(one, range(-(-size // segment))))


def _join(place: Place, stored: list[Entry], entries: int) -> None:
    """The manifest of all segments, or manifests of manifests."""
    for level in count():
        if len(stored) <= entries:
            break
        groups = [stored[start : start + entries] for start in range(0, len(stored), entries)]
        stored = [
            _manifest(place.client, place.segments, f"{place.name}/m{level}-{number:08d}", group)
            for number, group in enumerate(groups)
        ]
    _manifest(place.client, place.container, place.name, stored)


class _Taken:
    """A body that counts what of it is aloft."""

    def __init__(self, body: Reader, aloft: Aloft, *, keeping: bool) -> None:
        """`keeping`: where the body raises a lasting Problem it ends, and `broken` is that."""
        self._body, self._aloft, self._keeping = body, aloft, keeping
        self.size = body.size
        self.bytes = 0
        self.broken: Problem | None = None

    def read(self, n: int = CHUNK, /) -> bytes:
        try:
            chunk = self._body.read(n)
        except Problem as problem:
            if not (self._keeping and lasting(problem)):
                raise
            self.broken = problem
            return b""
        self._count(len(chunk))
        return chunk

    def landed(self, entry: Entry) -> Entry:
        """The same; that many bytes are stored."""
        self._count(-entry["size_bytes"])
        return entry

    def _count(self, count: int) -> None:
        self.bytes += count
        self._aloft.add(count)


class Range(Ahead[tuple[str, str, int, int]]):
    """A Reader over part of the bytes; reads ahead, in parts of a segment, as much as may be on its way at once."""

    def __init__(self, place: Place, layout: Layout, offset: int, length: int) -> None:
        """Its `read` raises NotFound if the bytes are gone, StoreUnavailable."""
        super().__init__(
            length,
            _plan(place, layout, offset, offset + length),
            lambda part, over: place.client.fetch(*part, over),
            part=PART,
            at_once=FLIGHTS,
        )


def _plan(place: Place, layout: Layout, position: int, end: int) -> Cut[tuple[str, str, int, int]]:
    segment = layout.segment

    def cut(most: int) -> tuple[tuple[str, str, int, int], int] | None:
        nonlocal position
        if position >= end:
            return None
        number, start = divmod(position, segment) if segment else (0, position)
        count = min(most, end - position, segment - start if segment else end)
        position += count
        return (*place.part(layout, number), start, start + count), count

    return cut


def _cut(body: Reader, size: int) -> Iterator[tuple[Pieces, bool]]:
    """Pieces of a segment each, and whether it is the last; nothing is copied."""
    rest = memoryview(body.read(CHUNK))
    while True:
        pieces: Pieces = []
        room = size
        while rest and room:
            pieces.append(rest[:room])
            room, rest = room - len(pieces[-1]), rest[room:]
            if not rest:
                rest = memoryview(body.read(CHUNK))
        yield pieces, not rest
        if not rest:
            return


def md5(pieces: Pieces) -> str:
    """Of a segment, as Swift has it in its ETag."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def store(  # noqa: PLR0917 - two places call it
    client: Client,
    container: str,
    name: str,
    pieces: Pieces,
    etag: str | None = None,
    going: Callable[[], None] = lambda: None,
) -> Entry:
    """One segment; its entry in a manifest. Swift refuses it if its MD5 differs, and so do we; `etag` is that."""
    etag = etag or md5(pieces)
    if client.put(container, name, pieces, {"ETag": etag}, before=going) != etag:
        raise StoreUnavailable(f"container {container} has other bytes in {name} than were sent")
    return {"path": f"/{container}/{name}", "etag": etag, "size_bytes": sum(map(len, pieces))}


def _copy(client: Client, source: tuple[str, str], target: tuple[str, str], size: int) -> Entry:
    """The same by the server; we look at what is there, as we did not see the bytes."""
    container, name = target
    if source != target:
        client.copy(source, container, name)
    found = client.head(container, name)
    if int(found["content-length"]) != size:
        raise DataLost(f"{source[1]} in container {source[0]} is not as long as it was")
    return {"path": f"/{container}/{name}", "etag": found["etag"].strip('"'), "size_bytes": size}


def _manifest(client: Client, container: str, name: str, entries: list[Entry]) -> Entry:
    """One static large object; its entry in another one. Swift looks at each segment, whether it is as it was."""
    headers = {"Content-Type": "application/octet-stream"}
    client.put(container, name, [json.dumps(entries).encode()], headers, query="multipart-manifest=put")
    return {"path": f"/{container}/{name}"}
