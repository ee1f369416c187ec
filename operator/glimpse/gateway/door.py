"""The door: connections are accepted here, and no more than there is room for.

A connection counts from its first packet until its socket is closed, so also while it is in TLS's handshake or says
nothing. Who comes beyond a limit gets a place in a small reserve, where only probes are answered: a gateway that is
full must not look dead to those who would start it again.
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from glimpse.gateway.access import client_of
from glimpse.gateway.meters import Meters
from glimpse.gateway.tls import Certificate

log: Final = logging.getLogger(__name__)

BACKLOG: Final = 1024
"""Connections that wait in the kernel."""
BATCH: Final = 16
"""Connections that are accepted before others have their turn."""
PAUSE: Final = 1.0
"""Seconds until the next try, when the machine has no room for another socket."""
SILENCE: Final = 60.0
"""Seconds between two log lines about refused connections."""
RESERVE: Final = 32
"""Connections beyond a limit that are open at once. A new one takes the place of the oldest of whoever has most."""
MOMENT: Final = 5.0
"""Seconds that such a one has."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Room(NamedTuple):
    """How many connections may be open; 0: any number."""

    all: int
    client: int
    """Of one client: an address, or an IPv6 /64."""


class Place:
    """What one connection has here, until it says that it has closed."""

    def __init__(self, client: str, beyond: str | None, closed: Callable[["Place"], None]) -> None:
        """`beyond`: the limit that it exceeds, `all` or `client`."""
        self.client, self.beyond = client, beyond
        self.probed = False
        """It has asked for a probe."""
        self.task: asyncio.Task[None] | None = None
        """That makes a connection of its socket; afterwards there is ..."""
        self.transport: asyncio.WriteTransport | None = None
        self.begun = self.ended = False
        """The task has its socket in hand; and it need do nothing with it but to close it."""
        self._closed = closed

    def end(self) -> None:
        """Close it now."""
        self.ended = True
        if self.transport:
            self.transport.abort()
        elif self.task and self.begun:
            self.task.cancel()

    def close(self) -> None:
        """The connection is no more."""
        self._closed(self)


def listen(address: str, idle: float) -> socket.socket:
    """A socket whose connections the kernel cuts when the other side takes nothing for `idle` seconds, or is gone."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise OSError(f"GLIMPSE_GATEWAY_LISTEN must be host:port, not {address!r}")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(idle * 1000))  # inherited; RFC 5482
    listening.bind((host, int(port)))
    listening.setblocking(False)
    return listening


def spare(wanted: int) -> tuple[int, int]:
    """How many connections of so many there can be, and how many files may rest.

    Two in five of all descriptors are for connections, as many for what they are sent, and one in ten for files that
    rest. The process's limit (RLIMIT_NOFILE) is raised as far as that takes and it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted * 5 // 2:
        soft = min(wanted * 5 // 2, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, soft * 2 // 5), soft // 10


class Door:
    """Accepts connections at a socket. `handler` makes the protocol of one, which must tell its place of the end."""

    def __init__(
        self,
        listening: socket.socket,
        handler: Callable[[Place], asyncio.Protocol],
        room: Room,
        meters: Meters,
        *,
        idle: float,
        certificate: Certificate | None,
    ) -> None:
        self._listening = listening
        self._handler = handler
        self._room = room
        self._meters = meters
        self._idle = idle
        self._certificate = certificate
        self._open: set[Place] = set()
        self._clients: Counter[str] = Counter()
        self._reserve: dict[Place, asyncio.TimerHandle] = {}  # the oldest first
        self._beginning: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._refused, self._said = 0, float("-inf")
        meters.connections.set_function(lambda: len(self._open) + len(self._reserve))

    def open(self) -> None:
        """Let clients in."""
        self._listening.listen(BACKLOG)
        self._accepting = asyncio.create_task(self._accept(), name="door")

    async def close(self) -> None:
        """Let nobody in any more. Whoever has come so far as to ask may stay."""
        # first this: then all that it has begun have their socket in hand, and close it
        for tasks in ([self._accepting] if self._accepting else [], self._beginning):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()

    async def _accept(self) -> None:
        loop, count = asyncio.get_running_loop(), 0
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:  # else what is wrong with one connection, which has gone
                if error.errno in EXHAUSTED:
                    log.error("no connection can be accepted: %s", error.strerror)  # noqa: TRY400 - it says it all
                    await asyncio.sleep(PAUSE)
            else:
                self._admit(connection, client_of(address[0]))
            count += 1
            if not count % BATCH:
                await asyncio.sleep(0)

    def _admit(self, connection: socket.socket, client: str) -> None:
        if 0 < self._room.all <= len(self._open):
            place = Place(client, "all", self._left_reserve)
        elif 0 < self._room.client <= self._clients[client]:
            place = Place(client, "client", self._left_reserve)
        else:
            place = Place(client, None, self._left)
            self._open.add(place)
            self._clients[client] += 1
        place.task = asyncio.create_task(self._begin(connection, place))
        self._beginning.add(place.task)
        place.task.add_done_callback(self._beginning.discard)
        if place.beyond:
            self._reserve[place] = asyncio.get_running_loop().call_later(MOMENT, place.end)
            if len(self._reserve) > RESERVE:
                self._give_way()

    def _give_way(self) -> None:
        """End the oldest connection in the reserve of the client who has most there: a flood drives out itself only."""
        clients = Counter(place.client for place in self._reserve)
        most = max(clients.values())
        oldest = next(place for place in self._reserve if clients[place.client] == most)
        oldest.end()
        oldest.close()

    def _left(self, place: Place) -> None:
        if place in self._open:
            self._open.remove(place)
            self._clients[place.client] -= 1
            if not self._clients[place.client]:
                del self._clients[place.client]

    def _left_reserve(self, place: Place) -> None:
        timer = self._reserve.pop(place, None)
        if timer is None:
            return
        timer.cancel()
        if place.probed:
            return
        self._meters.refused.labels(place.beyond).inc()
        self._refused += 1
        now = time.monotonic()
        if now - self._said >= SILENCE:
            of = f"all ({self._room.all})"
            if place.beyond == "client":
                of = f"one client ({self._room.client}), {place.client}"
            log.warning("connections beyond the limit of %s are refused; %d so far", of, self._refused)
            self._said = now

    async def _begin(self, connection: socket.socket, place: Place) -> None:
        """Make a connection of a socket, after the handshake if there is one."""
        place.begun = True
        if place.ended:
            connection.close()
            place.close()
            return
        context = self._certificate.context if self._certificate else None
        patience = self._idle if context else None
        try:
            place.transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                partial(self._handler, place),
                connection,
                ssl=context,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=patience,  # in which what is left is sent
            )
        except ssl.SSLError as error:
            place.close()
            log.info("%s came to no agreement on TLS: %s", place.client, error.reason)
        except OSError as error:
            place.close()
            log.debug("%s did not come to speak: %s", place.client, error)
        except BaseException:
            place.close()
            raise
