"""The door: connections are accepted here, and no more than there is room for.

A connection counts from its first packet until its socket is closed, so also while it is in TLS's handshake or says
nothing. Who comes beyond a limit is closed at once, before he has cost more than that.
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
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Closed = Callable[[], None]
"""Told that a connection is no more."""


class Room(NamedTuple):
    """How many connections may be open; 0: any number."""

    all: int
    client: int
    """Of one client: an address, or an IPv6 /64."""


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


def spare(wanted: int) -> int:
    """How many connections of so many there can be: half of all descriptors, the others are for what is sent.

    The process's limit (RLIMIT_NOFILE) is raised as far as that takes and it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * wanted:
        soft = min(2 * wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, soft // 2)


class Door:
    """Accepts connections at a socket. `handler` makes the protocol of one, which must tell when it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        handler: Callable[[Closed], asyncio.Protocol],
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
        self._open: dict[object, str] = {}
        self._clients: Counter[str] = Counter()
        self._beginning: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._refused, self._said = 0, float("-inf")
        meters.connections.set_function(lambda: len(self._open))

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
            self._refuse(connection, client, "all")
        elif 0 < self._room.client <= self._clients[client]:
            self._refuse(connection, client, "client")
        else:
            slot = object()
            self._open[slot] = client
            self._clients[client] += 1
            task = asyncio.create_task(self._begin(connection, client, partial(self._release, slot)))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    def _refuse(self, connection: socket.socket, client: str, limit: str) -> None:
        connection.close()
        self._meters.refused.labels(limit).inc()
        self._refused += 1
        now = time.monotonic()
        if now - self._said >= SILENCE:
            of = f"one client ({self._room.client}), {client}" if limit == "client" else f"all ({self._room.all})"
            log.warning("connections beyond the limit of %s are closed; %d so far", of, self._refused)
            self._said = now

    def _release(self, slot: object) -> None:
        client = self._open.pop(slot, None)
        if client is not None:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def _begin(self, connection: socket.socket, client: str, release: Closed) -> None:
        """Make a connection of a socket, after the handshake if there is one."""
        context = self._certificate.context if self._certificate else None
        patience = self._idle if context else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(self._handler, release),
                connection,
                ssl=context,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=patience,  # in which what is left is sent
            )
        except ssl.SSLError as error:
            release()
            log.info("%s came to no agreement on TLS: %s", client, error.reason)
        except OSError as error:
            release()
            log.debug("%s did not come to speak: %s", client, error)
        except BaseException:
            release()
            raise
