"""A server of tests: a thread for each connection, all of which end with it.

What speaks and what fails is in those that build on it; here is only that nothing outlives a test.
"""

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_HANDSHAKE = 30.0
"""Seconds that a client has for it."""


class Threaded:
    """Listens on loopback; a context manager. Leaving it breaks every connection and waits for the threads."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._tls = tls
        self._lock = threading.Condition()
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, 0), backlog=128)
        self.host = host
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over.set()
            self.ends()
            for connection in (self._listener, *self._open):
                shut(connection)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def ends(self) -> None:
        """With the lock: let go whoever waits for something else than a connection."""

    def talk(self, connection: socket.socket) -> None:
        """Do what is to be done for a client. May raise OSError; the connection is closed afterwards."""
        raise NotImplementedError

    def _spawn(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name=type(self).__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._over.is_set():
                    connection.close()
                    return
                self._open.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            if self._tls:
                plain.settimeout(_HANDSHAKE)
                connection = self._tls.wrap_socket(plain, server_side=True)
                connection.settimeout(None)
                with self._lock:
                    self._open = self._open - {plain} | {connection}
            self.talk(connection)
        except OSError:
            return  # the client has gone, or the server ends
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def shut(connection: socket.socket) -> None:
    """Wake whoever blocks on it, without the goodbye of TLS."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
