"""Proxies for the tests of what goes through them: HTTP CONNECT and SOCKS5, with the faults of `Manner`.

Real sockets and nothing random. They note what was said to them, so that a test can look for what was not:

    with proxies.Http(login=("ada", "secret")) as proxy:
        fetch(web.url("/ok.img"), proxy={"address": proxy.url, ...})
        assert proxy.asked == [("127.0.0.1", web.port)]
"""

import base64
import selectors
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar, Final

from glimpse.testing.threaded import Threaded

_LONGEST: Final = 1 << 16
Target = tuple[str, int]


@dataclass(frozen=True)
class Manner:
    """What the proxy does with every client."""

    says: bytes | None = None
    """Exactly this in place of its own answer to the wish to connect, and then it hangs up."""
    begins: bytes | None = None
    """Exactly this before anything else, and then it hangs up."""
    adds: bytes = b""
    """After its answer, before anything of the target's."""
    silent: bool = False
    """It answers nothing, until it is closed."""
    unreachable: frozenset[str] = frozenset()
    """Addresses that it says it cannot reach."""


class _Proxy(Threaded):
    """What both kinds share; a context manager. Leaving it closes every connection and waits for the threads."""

    scheme: ClassVar[str]

    def __init__(
        self,
        *,
        login: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        manner: Manner = Manner(),
    ) -> None:
        super().__init__(tls)
        self._login = login
        self._manner = manner
        self.asked: list[Target] = []
        """Where clients wanted to go, in the order of their wishes."""
        self.heard: list[bytes] = []
        """What each client said before its tunnel was there ..."""
        self.passed = b""
        """... and all that went through tunnels, from clients to targets."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def talk(self, connection: socket.socket) -> None:
        """Meet the client, and join him with his target."""
        if self._manner.silent:
            self._over.wait()
        elif self._manner.begins is not None:
            connection.recv(_LONGEST)
            connection.sendall(self._manner.begins)
        elif target := self.meet(connection):
            self._join(connection, target)

    def meet(self, connection: socket.socket) -> socket.socket | None:
        """Speak the protocol; a connection to the target if there shall be one."""
        raise NotImplementedError

    def reach(self, target: Target) -> socket.socket | None:
        """A connection to a target, which is an address: names are not looked up here."""
        with self._lock:
            self.asked.append(target)
        ip_address(target[0])
        if target[0] in self._manner.unreachable:
            return None
        try:
            found = socket.create_connection(target, timeout=30)
        except OSError:
            return None
        found.settimeout(None)
        with self._lock:
            self._open.add(found)
        return found

    def _join(self, client: socket.socket, target: socket.socket) -> None:
        """Pass bytes both ways until one side ends and all of it has been passed on."""
        ways = {client: target, target: client}
        with target, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, client)
            selector.register(target, selectors.EVENT_READ, target)
            while ways:
                for source in [key.data for key, _ in selector.select()]:
                    sink = ways[source]
                    data = source.recv(_LONGEST)
                    while isinstance(source, ssl.SSLSocket) and source.pending():
                        data += source.recv(_LONGEST)
                    if source is client:
                        with self._lock:
                            self.passed += data
                    if data:
                        sink.sendall(data)
                        continue
                    del ways[source]
                    selector.unregister(source)
                    with suppress(OSError):
                        if source is target and isinstance(client, ssl.SSLSocket):
                            client.unwrap()
                        socket.socket.shutdown(sink, socket.SHUT_WR)
        with self._lock:
            self._open.discard(target)


class Http(_Proxy):
    """Knows CONNECT, over TLS if it is given a context."""

    scheme = "http"

    @property
    def url(self) -> str:
        """Its address."""
        return super().url.replace("http", "https" if self._tls else "http")

    def meet(self, connection: socket.socket) -> socket.socket | None:
        """RFC 9110 9.3.6."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(1)
            if not more:
                return None
            head += more
        with self._lock:
            self.heard.append(head)
        first, *rest = head.decode().split("\r\n")
        method, place, _ = first.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if self._manner.says is not None:
            connection.sendall(self._manner.says)
            return None
        if method != "CONNECT":
            connection.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return None
        if self._login:
            wanted = "Basic " + base64.b64encode(":".join(self._login).encode()).decode()
            if fields.get("proxy-authorization") != wanted:
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 5\r\n\r\nwho? ")
                return None
        host, _, port = place.rpartition(":")
        target = self.reach((host.strip("[]"), int(port)))
        answer = b"200 Connection established" if target else b"503 Service Unavailable"
        connection.sendall(b"HTTP/1.1 " + answer + b"\r\n\r\n" + self._manner.adds)
        return target


class Socks5(_Proxy):
    """RFC 1928, with the login of RFC 1929."""

    scheme = "socks5"

    def meet(self, connection: socket.socket) -> socket.socket | None:
        """The three rounds of the protocol; each message of the client's is read to its end and no further."""
        with connection.makefile("rb", buffering=0) as stream:

            def read(count: int) -> bytes:
                data = b""
                while len(data) < count:
                    more = stream.read(count - len(data))
                    if not more:
                        raise ConnectionError
                    data += more
                with self._lock:
                    self.heard.append(data)
                return data

            _, count = read(2)
            ways = read(count)
            way = 2 if self._login else 0
            if way not in ways:
                connection.sendall(b"\x05\xff")
                return None
            connection.sendall(bytes([5, way]))
            if self._login:
                username = read(read(2)[1])
                password = read(read(1)[0])
                right = (username.decode(), password.decode()) == self._login
                connection.sendall(b"\x01\x00" if right else b"\x01\x01")
                if not right:
                    return None
            kind = read(4)[3]
            host = str(ip_address(read({1: 4, 4: 16}[kind])))
            port = int.from_bytes(read(2), "big")
        if self._manner.says is not None:
            connection.sendall(self._manner.says)
            return None
        target = self.reach((host, port))
        reply = 0 if target else 4
        connection.sendall(bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]) + self._manner.adds)
        return target
