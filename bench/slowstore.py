"""A worker with one driver more: `slow`, a folder that takes only so many bytes a second.

It stands for a far or busy store, to measure what one of several does to the others. Run in place of `glimpse worker`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from glimpse import stores, worker
from glimpse.sources import client
from glimpse.stores import Driver, Mark, Stat
from glimpse.stores.filesystem import Filesystem
from glimpse.streams import CHUNK, Reader
from glimpse.transfer import do

RATE: Final = 64 << 20
"""Bytes per second that the slow store takes."""


class _Throttled:
    """A Reader that gives no more than RATE."""

    def __init__(self, body: Reader) -> None:
        self._body, self._due = body, time.monotonic()

    @property
    def size(self) -> int | None:
        return self._body.size

    def read(self, n: int = CHUNK, /) -> bytes:
        chunk = self._body.read(n)
        self._due += len(chunk) / RATE
        time.sleep(max(0.0, self._due - time.monotonic()))
        return chunk


class Slow(Filesystem):
    """As the filesystem store, and slow."""

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Slowly."""
        return super().put(key, attempt, _Throttled(body), record)

    def put_marked(self, key: str, attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Slowly."""
        return super().put_marked(key, attempt, mark, _Throttled(body), record)


def main() -> int:
    """As `glimpse worker --warm FD`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warm", type=int, required=True)
    fd = parser.parse_args().warm
    usual: Any = stores.load

    def load(name: str) -> type[Driver]:
        found: type[Driver] = Slow if name == "slow" else usual(name)
        return found

    stores.load = load
    client.warm()
    return worker.warm(fd, do)


if __name__ == "__main__":
    sys.exit(main())
