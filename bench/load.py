"""A crowd of HTTP clients, as a process of its own: so many connections that each ask again when they have an answer.

It must cost less than what it measures: one thread with epoll, and bodies are dropped by the kernel (tcp(7), MSG_TRUNC)
and never copied, but with TLS. Reads what to do as JSON from its input (`Load`), and writes what came of it (`Result`).
"""

import json
import select
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Final
from urllib.parse import urlsplit

BITE: Final = 4 << 20
"""Bytes that are dropped at once."""
TICK: Final = 0.1
"""Seconds between two bites of a slow client."""


@dataclass(frozen=True)
class Load:
    """What the crowd does."""

    urls: Sequence[str]
    """Asked for in turn; all of one server."""
    clients: int
    seconds: float
    """How long; with what was begun before, and is not over at its end, counted by its bytes alone."""
    authorization: str = ""
    slow: int = 0
    """So many of the clients take no more than `rate` bytes a second."""
    rate: int = 64 << 10


@dataclass(frozen=True)
class Result:
    """What came of it."""

    requests: int
    """Whole answers."""
    bytes: int
    seconds: float
    failures: int
    """Answers other than 200, and connections that broke."""
    p50: float
    """Seconds of an answer; 0 if there was none."""
    p99: float


class Client:
    """One connection."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        self._crowd, self.slow = crowd, number < crowd.load.slow
        self._left = 0
        self._began = 0.0
        self._head = b""
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.socket()
        if self.slow:  # what the kernel takes for him is not taken by him
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        self.socket.connect(self._crowd.address)
        if self._crowd.context:
            self.socket = self._crowd.context.wrap_socket(self.socket)
        self.socket.setblocking(False)
        if not self.slow:
            self._crowd.poll.register(self.socket, select.EPOLLIN)
            self._crowd.clients[self.socket.fileno()] = self
        self._ask()

    def _ask(self) -> None:
        self._began, self._head = time.perf_counter(), b""
        self.socket.send(next(self._crowd.requests))

    def take(self, most: int) -> None:
        """Take what is there."""
        try:
            if not self._left:
                self._begin(self.socket.recv(4096))
                return
            flags = 0 if self._crowd.context else socket.MSG_TRUNC
            got = self.socket.recv_into(self._crowd.nowhere, min(most, self._left), flags)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            got = 0
        self._count(got)
        if not got:
            self._again()

    def _begin(self, data: bytes) -> None:
        head, found, body = (self._head + data).partition(b"\r\n\r\n")
        if not found and data:
            self._head += data
            return
        status, *lines = head.split(b"\r\n")
        length = next((int(each[15:]) for each in lines if each[:15].lower() == b"content-length:"), 0)
        if b" 200 " not in status or not length:
            self._again(failed=bool(data) or self._head != b"")
            return
        self._left = length
        self._count(len(body))

    def _count(self, got: int) -> None:
        self._crowd.bytes += got
        self._left -= got
        if got and not self._left:
            self._crowd.times.append(time.perf_counter() - self._began)
            self._ask()

    def _again(self, *, failed: bool = True) -> None:
        """On a new connection. A server may close one between two answers."""
        self._crowd.failures += failed
        if not self.slow:
            del self._crowd.clients[self.socket.fileno()]
        self.socket.close()
        self._left = 0
        self._connect()


class Crowd:
    """All clients."""

    def __init__(self, load: Load) -> None:
        parts = urlsplit(load.urls[0])
        self.load = load
        self.address = (str(parts.hostname), parts.port or 80)
        self.context = None
        if parts.scheme == "https":
            self.context = ssl.create_default_context()
            self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE  # it is our own, on loopback
        self.requests = cycle([self._request(url) for url in load.urls])
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.nowhere = bytearray(BITE)
        self.bytes, self.failures = 0, 0
        self.times: list[float] = []

    def _request(self, url: str) -> bytes:
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        login = f"Authorization: {self.load.authorization}\r\n" if self.load.authorization else ""
        return f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{login}\r\n".encode()

    def run(self) -> Result:
        """For as long as it shall last."""
        began = time.perf_counter()
        everybody = [Client(self, number) for number in range(self.load.clients)]
        slow = [client for client in everybody if client.slow]
        bitten = began
        while (now := time.perf_counter()) < began + self.load.seconds:
            for descriptor, _ in self.poll.poll(TICK):
                self.clients[descriptor].take(BITE)
            if slow and now - bitten >= TICK:
                bitten = now
                for client in slow:
                    client.take(int(self.load.rate * TICK))
        seconds, times = time.perf_counter() - began, sorted(self.times)
        p50, p99 = (times[int(len(times) * part)] if times else 0.0 for part in (0.5, 0.99))
        return Result(len(times), self.bytes, seconds, self.failures, p50, p99)


if __name__ == "__main__":
    print(json.dumps(asdict(Crowd(Load(**json.load(sys.stdin))).run())))
