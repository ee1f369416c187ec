"""Records as they are stored, and objects with their records read.

A record is written and read in one place, so that all stores hold the same.
"""

from dataclasses import dataclass
from typing import Self

from pydantic import ValidationError

from glimpse.problems import InvalidConfiguration
from glimpse.stores.driver import RECORD_LIMIT, Stat, Version
from glimpse.tasks import Record


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store holds under one key, its record read."""

    key: str
    size: int
    location: str
    """A URL that tells a person where it is; no secret."""
    modified: float
    """Seconds since the epoch."""
    record: Record | None
    """None if there is none, or if it cannot be read."""
    partial: bool
    """Left by an attempt, dead or alive; `key` is then `{key}.{attempt}`, which `delete` takes too."""

    @classmethod
    def of(cls, stat: Stat) -> Self:
        """Read the record of a driver's answer."""
        return cls(stat.key, stat.size, stat.location, stat.modified, decode(stat.record), stat.partial)


def version_of(record: Record) -> Version:
    """Which bytes a registered object has."""
    return Version(record.size, record.etag, record.last_modified)


def encode(record: Record) -> bytes:
    """A record as it is stored, without what a server made too long (URL, validators). Raises InvalidConfiguration."""
    line = record.model_dump_json(exclude_defaults=True).encode()
    if len(line) > RECORD_LIMIT:
        short = record.model_copy(update={"source_url": None, "etag": None, "last_modified": None})
        line = short.model_dump_json(exclude_defaults=True).encode()
    if len(line) > RECORD_LIMIT:
        raise InvalidConfiguration(f"the record of {record.key} has {len(line)} bytes, {RECORD_LIMIT} at most")
    return line


def decode(stored: bytes | None) -> Record | None:
    """Read a stored record; None if there is none, or none that we can read. Fields of a newer version are ignored."""
    if stored is None or len(stored) > RECORD_LIMIT:
        return None
    try:
        return Record.model_validate_json(stored, extra="ignore")
    except ValidationError:
        return None
