"""A web server that misbehaves to order, for the tests of everything that fetches.

Real sockets and nothing random: what the server does to each request is written down beforehand, so a test of a
fault is as repeatable as one without. It listens on a port of its own on loopback:

    with faults.Server() as web:
        web.serve("/ok.img", Reply(body))
        web.serve("/cut.img", Reply(body, cut=1000))                 # closes after 1000 bytes
        web.serve("/busy.img", Reply(status=503, headers={"Retry-After": "7"}), Reply(body))  # first this, then that
        web.serve("/loop.img", Reply.redirect("/loop.img"))
        web.serve("/part.img", Reply(body, ranges=True, headers={"ETag": '"1"'}))
        web.interrupt("/part.img", 5000, "reset")                    # once, where byte 5000 of the file is due
        fetch(web.url("/ok.img"))
        assert web.requests[0].headers["user-agent"].startswith("glimpse/")

The last reply of a path is given to all further requests; a path without replies is answered with 404. For TLS give
it an `ssl.SSLContext`, made with trustme for example.
"""

import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Literal, Self

from glimpse.testing.threaded import Threaded

_PIECE: Final = 1 << 18
_LONGEST_HEAD: Final = 1 << 16
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-")


@dataclass(frozen=True)
class Reply:
    """What the server does with one request."""

    body: bytes = field(default=b"", repr=False)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Besides, or in place of, Content-Length, Date and Connection."""
    length: int | None = -1
    """What Content-Length says: -1 the truth, None nothing at all. After anything but the truth the connection ends."""
    chunked: int = 0
    """The size of the chunks if the body is sent so; then there is no Content-Length."""
    cut: int | None = None
    """Close the connection after so many bytes of the body, and leave out the last chunk's mark."""
    reset: bool = False
    """Close with RST, as a machine that crashed."""
    stall: int | None = None
    """Say nothing more after so many bytes of the body, until `Server.release` or the end of the server."""
    stall_head: bool = False
    """The same before the first byte of the answer."""
    trickle: tuple[int, float] | None = None
    """So many bytes at a time, and so many seconds between."""
    ranges: bool = False
    """Answer Range with 206 and If-Range with the whole if the validator has changed."""
    ignore_if_range: bool = False
    """Give the part whatever the validator says, which no server should."""
    cap: int | None = None
    """Give no more than so many bytes of a part that was asked for, as a server may."""
    most: int | None = None
    """Answer 503 while so many others are being answered on this path."""
    beyond: "Reply | None" = None
    """Answer so in its place where a part is asked for that does not begin with the first byte."""
    raw: bytes | None = None
    """Send exactly this in place of an answer, and close."""

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Self:
        """A redirect; `location` as it shall stand in the header."""
        return cls(status=status, headers={"Location": location})


Kind = Literal["cut", "reset", "stall", "busy", "length"]
"""How an answer is interrupted: the connection is closed, reset, or goes silent; closed, and the next request answered
503; or the head announces more than comes."""


@dataclass
class Request:
    """What a client sent, and how much it was given."""

    method: str
    path: str
    """With the query."""
    headers: dict[str, str]
    """Names in lower case."""
    port: int = 0
    """Of the client: tells its connections apart."""
    sent: int = 0
    """Bytes of the body that the kernel took for it."""
    whole: bool = False
    """The answer was sent to its end."""


class Server(Threaded):
    """The server; a context manager. Leaving it closes every connection and waits for the threads."""

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        super().__init__(tls, host)
        self._replies: dict[str, list[Reply]] = {}
        self._interruptions: dict[str, list[tuple[int, Kind]]] = {}
        self._busy: Counter[str] = Counter()
        self._released = threading.Event()
        self.requests: list[Request] = []
        """In the order of their arrival."""

    def ends(self) -> None:
        """With the lock: release what is stalled."""
        self._released.set()

    def url(self, path: str, *, host: str | None = None) -> str:
        """Where the path is served; `host`: another name for the same machine."""
        return f"{'https' if self._tls else 'http'}://{host or self.host}:{self.port}{path}"

    def serve(self, path: str, *replies: Reply) -> None:
        """Answer requests for `path` (no query) so, one after the other, from now on."""
        with self._lock:
            self._replies[path] = list(replies)

    def interrupt(self, path: str, at: int, kind: Kind) -> None:
        """Interrupt one answer, whichever would next send the byte `at` of the file, there and in this way."""
        with self._lock:
            self._interruptions.setdefault(path, []).append((at, kind))

    def asked(self, path: str) -> list[Request]:
        """The requests for this path so far."""
        with self._lock:
            return [request for request in self.requests if request.path.partition("?")[0] == path]

    def wait_for(self, path: str, requests: int = 1, sent: int = 0, timeout: float = 120) -> None:
        """Wait until so many requests have come and so many bytes have gone out on them. Raises TimeoutError."""
        with self._lock:
            if not self._lock.wait_for(
                lambda: (
                    len(found := [r for r in self.requests if r.path.partition("?")[0] == path]) >= requests
                    and sum(r.sent for r in found) >= sent
                ),
                timeout,
            ):
                raise TimeoutError(f"{path}: not {requests} requests and {sent} bytes within {timeout} s")

    def release(self) -> None:
        """Let every stalled answer go on, and stall none from now on."""
        self._released.set()

    def talk(self, connection: socket.socket) -> None:
        """Answer one request after the other."""
        port = connection.getpeername()[1]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are two calls
        pending = b""
        while True:
            while b"\r\n\r\n" not in pending:
                more = connection.recv(_LONGEST_HEAD)
                if not more or len(pending) > _LONGEST_HEAD:
                    return
                pending += more
            head, _, pending = pending.partition(b"\r\n\r\n")
            request = _parse(head)
            request.port = port
            if not self._answer(connection, request):
                if isinstance(connection, ssl.SSLSocket) and request.whole:
                    connection.unwrap()  # without this goodbye, the end of the connection is no end of a body
                return

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Do what is written for this request; whether the connection may be used again."""
        path = request.path.partition("?")[0]
        with self._lock:
            self.requests.append(request)
            replies = self._replies.get(path, [])
            reply = replies.pop(0) if len(replies) > 1 else replies[0] if replies else Reply(b"none here\n", 404)
            if reply.most is not None and self._busy[path] >= reply.most:
                reply = Reply(status=503)
            self._busy[path] += 1
            self._lock.notify_all()
        try:
            return self._give(connection, request, path, reply)
        finally:
            with self._lock:
                self._busy[path] -= 1

    def _give(self, connection: socket.socket, request: Request, path: str, reply: Reply) -> bool:
        if reply.beyond and request.headers.get("range", "bytes=0-")[6:8] != "0-":
            reply = reply.beyond
        if reply.stall_head:
            self._released.wait()
        if reply.raw is not None:
            connection.sendall(reply.raw)
            return False
        status, body, headers = _choose(reply, request)
        reply = self._interrupted(path, reply, len(body), headers)
        close = request.headers.get("connection", "").lower() == "close" or reply.length != -1
        headers.setdefault("Connection", "close" if close else "keep-alive")
        lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        if request.method != "HEAD" and not self._send(connection, request, reply, body):
            if reply.reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        request.whole = True
        return headers["Connection"] == "keep-alive"

    def _interrupted(self, path: str, reply: Reply, length: int, headers: dict[str, str]) -> Reply:
        """The reply as it is after an interruption that is due, if there is one."""
        match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        start = int(match[1]) if match else 0
        with self._lock:
            ordered = self._interruptions.get(path, [])
            due = next((one for one in ordered if start <= one[0] < start + length), None)
            if due is None:
                return reply
            ordered.remove(due)
            at, kind = due[0] - start, due[1]
            if kind == "busy":
                later = self._replies[path]
                later.insert(0, Reply(status=503))
                if len(later) == 1:
                    later.append(reply)
        if kind == "length":
            headers["Content-Length"] = str(length + 100)
            return replace(reply, cut=at)
        if kind == "stall":
            return replace(reply, stall=at, cut=at)
        return replace(reply, cut=at, reset=kind == "reset")

    def _send(self, connection: socket.socket, request: Request, reply: Reply, body: bytes) -> bool:
        """Send the body as ordered; False if it was cut."""
        view = memoryview(body)
        stops = sorted({stop for stop in (reply.cut, reply.stall) if stop is not None})
        piece, pause = reply.trickle or (reply.chunked or _PIECE, 0)
        at = 0
        while True:
            if at == reply.stall:
                self._released.wait()
            if at == reply.cut:
                return False
            if at >= len(view):
                break
            end = min([at + piece, len(view), *(stop for stop in stops if stop > at)])
            if reply.chunked:
                connection.sendall(b"%x\r\n%b\r\n" % (end - at, body[at:end]))
            else:
                connection.sendall(view[at:end])
            with self._lock:
                request.sent += end - at
                self._lock.notify_all()
            at = end
            if pause and self._released.wait(pause):
                pause = 0
        if reply.chunked:
            connection.sendall(b"0\r\n\r\n")
        return True


def _parse(head: bytes) -> Request:
    first, *rest = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    fields = (line.partition(":") for line in rest)
    return Request(method, path, {name.strip().lower(): value.strip() for name, _, value in fields})


def _choose(reply: Reply, request: Request) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers for this request; that is the whole, or a part of it."""
    status, body = reply.status, reply.body
    headers = {"Date": formatdate(usegmt=True)}
    if reply.ranges:
        headers["Accept-Ranges"] = "bytes"
        wanted = request.headers.get("range", "")
        validators = (None, reply.headers.get("ETag"), reply.headers.get("Last-Modified"))
        if wanted.startswith("bytes=") and (reply.ignore_if_range or request.headers.get("if-range") in validators):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(body)) + 1, len(body))
            end = min(end, start + reply.cap) if reply.cap else end
            if start >= len(body):
                return 416, b"", {**headers, "Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            status, body = 206, body[start:end]
    if reply.chunked:
        headers["Transfer-Encoding"] = "chunked"
    elif reply.length is not None:
        headers["Content-Length"] = str(len(body) if reply.length < 0 else reply.length)
    return status, body, {**headers, **reply.headers}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unheard Of"
