"""Checkpoints: how much of an attempt is stored, in one small object beside its bytes, for who goes on with it.

Segments are never written again while a checkpoint speaks of them, and it has a digest of their etags: whoever comes
later can tell whether all of them are there as they were, and needs to believe nothing.
"""

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glimpse.stores import MARK_LIMIT, Mark, lasting
from glimpse.stores.swift.places import LARGEST, Layout

WORTH: Final = 1 << 20
"""Bytes for which it is worth it to be gone on with."""


class Checkpoint(BaseModel):
    """What is stored of an attempt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    length: Annotated[int, Field(strict=True, gt=0, lt=1 << 63)]
    """Bytes: whole segments, and what is stored of the next one."""
    segment: Annotated[int, Field(strict=True, gt=0, le=LARGEST)]
    """Bytes of a segment."""
    tail: Annotated[str, Field(pattern=r"^(/t\d{15})?$")] | None = None
    """As of a Layout."""
    etags: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the etags of all of these, in their order."""
    mark: Annotated[str, Field(max_length=MARK_LIMIT * 4 // 3 + 4, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
    """In base64."""

    @classmethod
    def of(cls, layout: Layout, etags: str, mark: bytes) -> Self:
        """Of bytes that are there so."""
        said = base64.b64encode(mark).decode()
        return cls(length=layout.size, segment=layout.segment, tail=layout.tail, etags=etags, mark=said)

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """As it was written; None if it makes no sense."""
        try:
            found = cls.model_validate_json(line)
            base64.b64decode(found.mark, validate=True)
        except (ValidationError, ValueError):
            return None
        return found

    def line(self) -> bytes:
        """As it is written."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"

    @property
    def layout(self) -> Layout:
        """Where the bytes are."""
        return Layout(self.length, self.segment, self.tail)

    @property
    def said(self) -> bytes:
        """The mark."""
        return base64.b64decode(self.mark)


def digest(etags: Iterable[str]) -> str:
    """What a checkpoint has of them."""
    return hashlib.sha256("".join(etags).encode()).hexdigest()


class Notes:
    """Writes checkpoints of an attempt, as its segments are stored."""

    def __init__(self, save: Callable[[Checkpoint], None], mark: Mark, segment: int, every: int) -> None:
        """`every`: bytes between two of them."""
        self.saved = 0
        """Bytes of the last checkpoint; 0: there is none."""
        self._save, self._mark, self._segment, self._every = save, mark, segment, every
        self._etags = hashlib.sha256()
        self._whole = 0  # segments, of which `_etags` is
        self._short = ""  # etag of the last one, if it is shorter
        self._marks: deque[bytes] = deque()  # of segments that are cut and not stored

    def go_on(self, entries: Iterable[Mapping[str, Any]], saved: int) -> None:
        """Begin behind these segments, of which a checkpoint of so many bytes speaks."""
        for each in entries:
            self._count(each["etag"])
        self.saved = saved

    def cut(self, length: int) -> None:
        """The body has given a whole segment more, now `length` bytes. This is when it can tell its mark."""
        self._marks.append(self._mark(length))

    def landed(self, entry: Mapping[str, Any]) -> None:
        """The next segment in order is stored."""
        if entry["size_bytes"] < self._segment:
            self._short = entry["etag"]
            return
        self._count(entry["etag"])
        mark, length = self._marks.popleft(), self._whole * self._segment
        if length - self.saved >= self._every:
            self.save(Layout(length, self._segment), mark)

    def alone(self, entry: Mapping[str, Any]) -> None:
        """All of the body is stored, and no longer than a segment."""
        self._short = entry["etag"]

    def broken(self, size: int, store: Callable[[str], str]) -> None:
        """The body has broken off after `size` bytes, of which all whole segments are stored.

        `store` stores what is behind them under the name of a tail, and gives its etag.
        """
        if size <= self.saved or not (size >= WORTH or self.saved):
            return
        layout = Layout(size, self._segment)
        if size % self._segment:
            layout = Layout(size, self._segment, tail(size))
            self._short = store(tail(size))
        self.save(layout, self._mark(size))

    def ended(self, layout: Layout, error: BaseException) -> None:
        """All is stored, and then something else has failed."""
        # one that is alone, and as long as a segment, lies where none is looked for
        if lasting(error) and layout.size >= WORTH and (layout.segment or layout.size < self._segment):
            whole = Layout(layout.size, self._segment, None if layout.segment else "")
            with suppress(Exception):  # what was raised is what counts
                self.save(whole, self._mark(layout.size))

    def save(self, layout: Layout, mark: bytes, short: str | None = None) -> None:
        """Write one. `short`: the etag of what is behind the whole segments, if it was not told."""
        etags = self._etags.copy()
        if layout.size % layout.segment:
            etags.update((self._short if short is None else short).encode())
        self._save(Checkpoint.of(layout, etags.hexdigest(), mark))
        self.saved = layout.size

    def _count(self, etag: str) -> None:
        self._etags.update(etag.encode())
        self._whole += 1


def tail(length: int) -> str:
    """What is behind the name of an attempt where the end of its first bytes is that make no whole segment."""
    return f"/t{length:015d}"
