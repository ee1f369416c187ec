"""A long line in user space: each connection through it has a round-trip time and a bandwidth of its own.

What a kernel's netem does for all, this does for one connection, as a far mirror or a CDN that shapes each flow does;
so what several connections gain can be measured on one machine. Run as `python bench/longline.py PORT`; it prints the
address that leads to 127.0.0.1:PORT, and ends with its standard input.
"""

import argparse
import queue
import socket
import sys
import threading
import time
from typing import Final

_PIECE: Final = 1 << 18
_Flying = queue.Queue[tuple[float, bytes]]
"""When bytes arrive, and which."""


class LongLine:
    """Forwards connections to a port of this machine."""

    def __init__(self, port: int, round_trip: float, rate: float) -> None:
        """`round_trip`: seconds; `rate`: bytes per second towards the client, for each connection."""
        self._port, self._delay, self._rate = port, round_trip / 2, rate
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """For ever."""
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel has shaken hands already: the first bytes of the client wait for that round trip too.
        self._pump(client, server, first=2 * self._delay, rate=float("inf"))
        self._pump(server, client, first=0, rate=self._rate)

    def _pump(self, source: socket.socket, sink: socket.socket, *, first: float, rate: float) -> None:
        flying: _Flying = queue.Queue(16)
        threading.Thread(target=self._receive, args=(source, flying, first, rate), daemon=True).start()
        threading.Thread(target=_send, args=(source, sink, flying), daemon=True).start()

    def _receive(self, source: socket.socket, flying: _Flying, first: float, rate: float) -> None:
        due, delay = 0.0, self._delay + first
        while True:
            try:
                data = source.recv(_PIECE)
            except OSError:
                data = b""
            # The line is free when the bytes before are through; only then do these begin to fly.
            due = max(due, time.monotonic()) + len(data) / rate
            flying.put((due + delay, data))
            delay = self._delay
            if not data:
                return
            if (early := due - time.monotonic() - 0.005) > 0:
                time.sleep(early)


def _send(source: socket.socket, sink: socket.socket, flying: _Flying) -> None:
    while True:
        due, data = flying.get()
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:
            source.close()
            return


def main() -> int:
    """Serve until the end of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="of the web server on this machine")
    parser.add_argument("--round-trip", type=float, default=0.040, help="seconds")
    parser.add_argument("--rate", type=float, default=25e6, help="bytes per second of one connection")
    arguments = parser.parse_args()
    line = LongLine(arguments.port, arguments.round_trip, arguments.rate)
    print(f"127.0.0.1:{line.port}", flush=True)
    threading.Thread(target=line.serve, daemon=True).start()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
