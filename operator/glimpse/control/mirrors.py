"""Remembers how fast and how sound mirrors were, so that the best one is asked first.

In memory only: after a restart the order of the spec holds until something better is known.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from glimpse.tasks import Mirror

_MANY: Final = 1000
"""Servers that are remembered."""
_SICK: Final = 600.0
"""Seconds that a server which failed is asked after all others."""
_FRESH: Final = 0.5
"""How much the last transfer counts in a server's speed, against all before."""
_ENOUGH: Final = 1 << 20
"""Bytes of a transfer that tell a speed: a small one is all latency."""


@dataclass(slots=True)
class _Server:
    speed: float | None = None
    """Bytes per second of one connection."""
    sick_until: float = 0.0


class Mirrors:
    """All servers that images with several URLs were fetched from."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._servers: OrderedDict[str, _Server] = OrderedDict()

    def order(self, urls: Sequence[str]) -> tuple[str, ...]:
        """The sound ones first, the fastest of them first; one that nobody knows is given its chance."""
        if len(urls) == 1:
            return tuple(urls)
        now = self._clock()

        def rank(url: str) -> tuple[bool, float]:
            server = self._servers.get(_host(url), _Server())
            return server.sick_until > now, -server.speed if server.speed is not None else float("-inf")

        return tuple(sorted(urls, key=rank))

    def note(self, url: str, seen: Mirror) -> None:
        """How a transfer from it went."""
        host = _host(url)
        server = self._servers.setdefault(host, _Server())
        self._servers.move_to_end(host)
        if seen.bytes >= _ENOUGH and seen.seconds > 0:
            speed = seen.bytes / seen.seconds
            server.speed = speed if server.speed is None else server.speed + _FRESH * (speed - server.speed)
        server.sick_until = self._clock() + _SICK if seen.failed else 0.0
        while len(self._servers) > _MANY:
            self._servers.popitem(last=False)


def _host(url: str) -> str:
    """Host and port, which tell a server."""
    try:
        return parse_url(url).netloc or url
    except LocationParseError:
        return url
