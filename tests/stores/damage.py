"""A wire that damages what passes: no server offers that, and a store must see it."""

import socket
from contextlib import suppress

from glimpse.testing.wire import Wire


class Damage(Wire):
    """A wire that changes one byte of what passes in one direction, once so many have passed there."""

    upwards = True
    at = 1 << 60
    changed = 0

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self._port = target[1]
        self._seen = 0

    def arm(self, at: int, *, upwards: bool) -> None:
        """From now on."""
        self.upwards, self.at, self._seen, self.changed = upwards, at, 0, 0

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            up = target.getpeername()[1] == self._port
            while piece := source.recv(1 << 16):
                if up == self.upwards and not self.changed:
                    self._seen += len(piece)
                    if self._seen > self.at and len(piece) > 1000:
                        self.changed += 1
                        piece = piece[:-1] + bytes([piece[-1] ^ 1])
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
