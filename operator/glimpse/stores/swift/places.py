"""Where the bytes of an attempt are, and how they are laid out there."""

from typing import Final, NamedTuple

from glimpse.stores.swift.client import Client

LARGEST: Final = 64 << 20
"""Bytes of a segment, at most."""


class Layout(NamedTuple):
    """How they are there."""

    size: int
    segment: int
    """Bytes of each segment but the last; 0: there are none, the object has the bytes itself."""
    tail: str | None = None
    """Of an attempt that is not complete: what is behind its name where the bytes behind the last whole segment are.

    None: in a segment like any other.
    """


class Place(NamedTuple):
    """Where the bytes of one attempt are."""

    client: Client
    container: str
    """Of the object as a whole."""
    segments: str
    """The container of its segments."""
    name: str
    """Of the object; segments are below it."""

    def part(self, layout: Layout, number: int) -> tuple[str, str]:
        """Container and name of a segment."""
        size, segment, tail = layout
        if not segment:
            tail = ""
        elif tail is None or number < size // segment:
            tail = f"/{number:08d}"
        return self.segments if tail else self.container, f"{self.name}{tail}"
