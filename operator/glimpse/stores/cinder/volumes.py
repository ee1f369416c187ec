"""Volumes and snapshots, and what their metadata say: which object one is of, how far it is, and its record.

Cinder keeps nothing else that could say it, so names and forms of these values are what a store is made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

MARKER: Final = "marker"
STORE: Final = "glimpse-store"
KEY: Final = "glimpse-key"
ATTEMPT: Final = "glimpse-attempt"
STATE: Final = "glimpse-state"
SIZE: Final = "glimpse-size"
WRITTEN: Final = "glimpse-written"
RECORD: Final = "glimpse-record"
OWNER: Final = "glimpse-owner"
PROBED: Final = "glimpse-probed"
"""Of the marker: when it was last seen that the store can be written."""

GIB: Final = 1 << 30
VALUE: Final = 255
"""Characters of a value, at most."""

GONE: Final = frozenset({"deleting", "error_deleting", "unmanaging"})
ATTACHED: Final = frozenset({"reserved", "attaching", "in-use", "detaching"})

_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class Volume:
    """What Cinder says of a volume."""

    id: str
    status: str
    gigabytes: int
    description: str
    created: float
    """Seconds since the epoch."""
    metadata: Mapping[str, str]
    now: float
    """When Cinder said so, by its own clock, in whole seconds."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What Cinder says of a snapshot of a volume."""

    id: str
    status: str
    created: float
    """Seconds since the epoch."""
    metadata: Mapping[str, str]


def is_stored(volume: Volume) -> bool:
    """Whether it is an object."""
    return volume.metadata.get(STATE) == "stored" and volume.status not in GONE


def is_ready(volume: Volume) -> bool:
    """Whether it is about to become one."""
    return volume.metadata.get(STATE) == "ready" and volume.status not in GONE


def stored(volumes: Sequence[Volume]) -> Volume | None:
    """The object among the volumes of a key."""
    return next(filter(is_stored, volumes), None)


def name(made: Volume | Snapshot) -> str:
    """As the attempt is called that has made it."""
    return f"{made.metadata.get(KEY)}.{made.metadata.get(ATTEMPT)}"


def size(volume: Volume) -> int:
    """Bytes of an object."""
    return int(volume.metadata.get(SIZE, "0"))


def gigabytes(length: int) -> int:
    """As large as a volume must be for so many bytes; 1 GiB at least."""
    return max(1, -(-length // GIB))


def parts(key: str, text: bytes) -> dict[str, str]:
    """A text as metadata: as it is where it is plain, escaped as in a URL where it is not."""
    escaped = quote(text, safe=_PLAIN)
    values = [escaped[start : start + VALUE] for start in range(0, len(escaped), VALUE)]
    return {key: str(len(values)), **{f"{key}-{number:02}": value for number, value in enumerate(values)}}


def joined(key: str, metadata: Mapping[str, str]) -> bytes | None:
    """The text that `parts` has cut; None if it is not whole."""
    try:
        count = int(metadata[key])
        return unquote_to_bytes("".join(metadata[f"{key}-{number:02}"] for number in range(count)))
    except (KeyError, ValueError):
        return None
