"""A wire between a client and a server: plain TCP on loopback, which can be cut, go silent, and heal.

What a store's client does when the network fails is half of what can go wrong with it, and no server offers it.

    with Wire(("127.0.0.1", server.port)) as wire:
        store = open_store(ref_to(f"http://127.0.0.1:{wire.port}"))
        wire.after(1 << 20, wire.cut)  # once the client has sent a MiB
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from glimpse.testing.threaded import Threaded

_PIECE: Final = 1 << 16


class Fault(Protocol):
    """What can be made to fail, and to heal."""

    def cut(self) -> None:
        """From now on connections break and new ones are refused."""

    def stall(self) -> None:
        """From now on nothing is answered, and nobody hangs up."""

    def heal(self) -> None:
        """All is well again, for new connections at least."""


class Wire(Threaded):
    """Forwards connections to `target`. A context manager; leaving it breaks all and waits for the threads."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__()
        self._target = target
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._sent = 0
        self._due: tuple[int, Callable[[], None]] | None = None

    def ends(self) -> None:
        """With the lock: nothing waits any more."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset all connections, and each new one."""
        with self._lock:
            self._refusing = True
            self._due = None
            for one in self._open:
                reset(one)
        self._flowing.set()

    def stall(self) -> None:
        """Pass nothing on, in either direction, but keep connections open and accept new ones."""
        with self._lock:
            self._due = None
        self._flowing.clear()

    def heal(self) -> None:
        """Pass on what waits, and accept new connections."""
        with self._lock:
            self._refusing = False
        self._flowing.set()

    def after(self, count: int, fault: Callable[[], None]) -> None:
        """Let a fault happen once clients have sent so many bytes from now on, or servers have."""
        with self._lock:
            self._sent, self._due = 0, (count, fault)

    def talk(self, connection: socket.socket) -> None:
        """Pass all on, both ways, until both have ended."""
        try:
            server = socket.create_connection(self._target)
        except OSError:
            reset(connection)
            return
        with self._lock:
            self._open.add(server)
            if self._refusing or self._over.is_set():
                reset(connection)
                reset(server)
        back = threading.Thread(target=self._pass_on, args=(server, connection), name="back", daemon=True)
        back.start()
        self._pass_on(connection, server)
        back.join()
        with self._lock:
            self._open.discard(server)
            server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                self._count(len(piece))
                self._flowing.wait()
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _count(self, count: int) -> None:
        with self._lock:
            self._sent += count
            due = self._due
            if due is None or self._sent < due[0]:
                return
            self._due = None
        due[1]()


def reset(one: socket.socket) -> None:
    """Break the connection: whoever reads it is woken, and the other side is told at once."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        one.shutdown(socket.SHUT_RDWR)
