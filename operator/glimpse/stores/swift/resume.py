"""What a dead attempt has left, taken over by another.

Who was taken for dead may wake up, and Swift can shut nobody out. So the server copies what is left to names of the
taker's own: whoever wrote it writes, and removes, under the old ones only. The copies are looked at, whether they are
what the checkpoint says, so that nothing is believed that somebody has removed or changed meanwhile.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final, Protocol, Self

from glimpse.problems import DataLost, NotFound, StoreConflict, StoreFull
from glimpse.stores import Mark, Stat, Unable
from glimpse.stores.swift.attempts import Attempt
from glimpse.stores.swift.checkpoints import Checkpoint, Notes, digest, tail
from glimpse.stores.swift.names import Found, Names
from glimpse.stores.swift.places import Layout, Place
from glimpse.stores.swift.segments import Entry, Range, gather, store
from glimpse.streams import CHUNK, Reader

_LOOKS: Final = 12
"""Looks at who may have died, in the time of a lease: two for each sign of life."""


class Write(Protocol):
    """Writes segments, with the settings of the store."""

    def __call__(  # noqa: D102 - as `segments.write`
        self, place: Place, body: Reader, segment: int, *, notes: Notes | None, begun: Sequence[Entry]
    ) -> Layout: ...


class Left:
    """What a dead attempt has left, in our hands."""

    def __init__(  # noqa: PLR0917 - one place makes it
        self, names: Names, attempt: Attempt, checkpoint: Checkpoint, entries: list[Entry], write: Write, every: int
    ) -> None:
        self.attempt = attempt
        self.length, self.mark = checkpoint.length, checkpoint.said
        self._names, self._layout, self._entries = names, checkpoint.layout, entries
        self._write, self._every = write, every
        self._readers = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.close()

    def open(self) -> Reader:
        """As of Taken."""
        return self._readers.enter_context(Range(self.attempt.place, self._layout, 0, self.length))

    def resume(self, length: int, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """As of Taken."""
        self.attempt.share()
        try:
            note = partial(self._names.note, self.attempt.name)
            notes = Notes(note, mark, self._layout.segment, self._every)
            return self.attempt.make(lambda: self._fill(length, body, notes), record, notes)
        finally:
            self.attempt.release()

    def _fill(self, length: int, body: Reader, notes: Notes) -> Layout:
        self._names.refuse(self.attempt.key)
        place, segment = self.attempt.place, self._layout.segment
        whole, rest = divmod(length, segment)
        begun = self._entries[:whole]
        notes.go_on(begun, self.length)
        head = self._head(whole, rest) if rest else b""
        if length < self.length:
            self._shorten(length, head, notes)
        try:
            return self._write(place, _Joined(head, body), segment, notes=notes, begun=begun)
        except NotFound as problem:
            raise self._names.missing(place.segments) from problem

    def _head(self, number: int, length: int) -> bytes:
        """The first bytes of a segment. All of it is read, so that its etag can be seen."""
        place, entry = self.attempt.place, self._entries[number]
        try:
            chunks = place.client.fetch(*place.part(self._layout, number), 0, entry["size_bytes"], threading.Event())
        except NotFound as problem:
            raise DataLost(f"bytes of {self._names.location(self.attempt.name)} are gone") from problem
        found = hashlib.md5(usedforsecurity=False)
        for chunk in chunks:
            found.update(chunk)
        if found.hexdigest() != entry["etag"]:
            raise DataLost(f"bytes of {self._names.location(self.attempt.name)} have changed")
        return b"".join(chunks)[:length]

    def _shorten(self, length: int, head: bytes, notes: Notes) -> None:
        """Whatever happens from now on, no byte behind these is believed."""
        place, layout, etag = self.attempt.place, Layout(length, self._layout.segment), ""
        if not length:
            self._names.drop(f"data/{self.attempt.name}.checkpoint")
            notes.saved = 0
            return
        if head:
            layout = layout._replace(tail=tail(length))
            etag = store(place.client, *place.part(layout, length // layout.segment), [head])["etag"]
        notes.save(layout, self.mark, etag)


def take(names: Names, key: str, attempt: str, lease: float) -> tuple[Attempt, Checkpoint, list[Entry]] | None:
    """Of the dead attempts on `key` the one that came furthest, as `attempt`, alive: its checkpoint and its segments.

    The other dead ones are removed. None if there is none that can be believed, or copied. Raises StoreConflict.
    """
    name = f"{key}.{attempt}"
    seen = _wait_for_the_dying(names, key, lease)
    if name in seen and seen[name].alive:
        raise StoreConflict(f"the attempt {name} is running already")
    if not _something(seen) or names.find(key):
        if seen:
            names.reap(key)
        return None
    ours = Attempt(names, key, attempt, lease)
    ours.doomed = name not in seen  # what is there was ours before: nobody else writes there
    try:
        ours.begin()
        before = {name: left for name, left in seen.items() if name == ours.name}
        found = None
        if ours.take_turn(lambda now: _something({**now, **before})) and not names.find(key):
            found = _choose(names, ours, names.dead(key) | before)
        if found:
            names.note(name, found[0])
            ours.doomed = False
            names.reap(key)  # from now on it is ours that has the bytes
            ours.end_turn()
            return ours, *found
    except BaseException:
        ours.release()
        raise
    ours.release()
    return None


def _something(found: Mapping[str, Found]) -> bool:
    """Whether there is something to take."""
    return any(left.noted and not left.alive for left in found.values())


def _wait_for_the_dying(names: Names, key: str, lease: float) -> dict[str, Found]:
    """The attempts on a key, once it can be told of each with a checkpoint whether it lives.

    One whose process was killed a moment ago looks alive until its lease is over; one that lives gives another sign
    soon.
    """
    found = names.attempts(f"{key}.")
    first = {name: left.signed for name, left in found.items()}
    while any(left.noted and left.alive and left.signed == first.get(name) for name, left in found.items()):
        time.sleep(min(1.0, lease / _LOOKS))
        found = names.attempts(f"{key}.")
    return found


def _choose(names: Names, ours: Attempt, dead: dict[str, Found]) -> tuple[Checkpoint, list[Entry]] | None:
    """Copy what came furthest. Raises StoreUnavailable."""
    noted = [(each.length, name, each) for name, left in dead.items() if left.noted and (each := names.noted(name))]
    for length, name, checkpoint in sorted(noted, key=lambda each: each[:2], reverse=True):
        there = checkpoint.layout
        here = Layout(length, there.segment, tail(length) if length % there.segment else None)
        if name != ours.name:
            names.clear(ours.name)  # what was copied of one that could not be believed
            ours.doomed = True
        try:
            entries = gather(names.place(name), ours.place, there, here)
        except (NotFound, DataLost):
            continue  # its bytes are gone
        except (Unable, StoreFull):
            return None  # the server cannot, or has no room for them twice
        if digest(entry["etag"] for entry in entries) == checkpoint.etags:
            return Checkpoint.of(here, checkpoint.etags, checkpoint.said), entries
    return None


class _Joined:
    """A Reader over the first bytes of a segment, and then over the rest of a body."""

    def __init__(self, head: bytes, body: Reader) -> None:
        self._head, self._body = memoryview(head), body
        self.size = None if body.size is None else len(head) + body.size

    def read(self, n: int = CHUNK, /) -> bytes:
        if not self._head:
            return self._body.read(n)
        chunk, self._head = bytes(self._head[:n]), self._head[n:]
        return chunk
