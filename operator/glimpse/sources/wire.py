"""Connections for fetching: to checked addresses only, patient while bytes come, and quick to give up when told.

urllib3 speaks HTTP; below it these sockets wait in short slices, so that a cancelled transfer ends at once and the
idle timeout counts only time in which nothing arrived. A large read is filled by one call into the kernel.
"""

import http.client
import io
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection

from glimpse.problems import SourceUnavailable
from glimpse.sources.addresses import Address, Policy
from glimpse.sources.patience import Patience
from glimpse.sources.places import Place
from glimpse.sources.tls import FILL, SLICE, Nested, Tls

_INTERIM: Final = 16
"""Answers of class 1xx before the one that counts."""


class Plain(socket.socket):
    """A TCP socket with patience."""

    patience: Patience | None = None

    def be_patient(self, patience: Patience) -> None:
        """From now on; before, the socket's own timeout holds."""
        self.patience = patience
        self.settimeout(None)
        self.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(SLICE), int(SLICE % 1 * 1_000_000))
        )

    def be_quick(self, until: float) -> None:
        """From now on, everything has to be done by this time."""
        self.patience = None
        self.settimeout(max(until - time.monotonic(), 0.001))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """At least one byte, or 0 at the end."""
        patience = self.patience
        if patience is None:
            return super().recv_into(buffer, nbytes, flags)
        if patience.glance:
            return super().recv_into(buffer, nbytes, flags | socket.MSG_DONTWAIT)
        admitted, count = patience.admit(nbytes or len(buffer)), 0
        if admitted >= FILL:
            flags |= socket.MSG_WAITALL  # after a slice of silence the kernel gives what has come
        waited, began = 0.0, patience.begin()
        try:
            while True:
                try:
                    count = super().recv_into(buffer, admitted, flags)
                except BlockingIOError:
                    waited += SLICE
                    if not patience.wait(waited):
                        return 0
                else:
                    patience.came(count, began)
                    return count
        finally:
            patience.leave(admitted - count)


class _Lines(io.BufferedReader):
    """Knows the line that was read last."""

    last = b""

    def readline(self, size: int | None = -1, /) -> bytes:
        """The next one."""
        self.last = super().readline(size)
        return self.last


class Response(http.client.HTTPResponse):
    """A response that counts, and notices what the standard one lets pass."""

    excess = False
    """More came than Content-Length said."""
    patience: Patience | None = None
    keep = False
    """The connection is wanted again."""
    hang_up: Callable[[], None] | None = None
    """Tells the server that nothing more will be asked of it."""
    _parted = False

    def begin(self) -> None:
        """Read the head. One that just ends is half a head, and would be that of an empty body."""
        self.fp = lines = _Lines(self.fp.detach())
        super().begin()
        if not lines.last:
            raise http.client.IncompleteRead(b"")

    def read1(self, n: int = -1) -> bytes:
        """At most one call into the kernel, and never beyond the end of the body."""
        if self.closed or self.chunked or self.length is None:
            return super().read1(n)
        wanted = self.length if n < 0 else min(n, self.length)
        data = self.fp.read1(wanted) if wanted else b""
        self.length -= len(data)
        if wanted and not data:
            raise http.client.IncompleteRead(b"", self.length)
        if not self.length and not self._parted:
            self._parted = True
            self._part()
        return data

    def _read_status(self) -> tuple[str, int, str]:
        """As inherited, without the answers before the answer (RFC 9110 15.2); 101 would be another protocol."""
        for _ in range(_INTERIM):
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]  # typeshed does not know it
            if found[1] not in {100, *range(102, 200)}:
                return found
            http.client.parse_headers(self.fp)
        raise SourceUnavailable(
            f"{self.patience.who if self.patience else 'somebody'} sent {_INTERIM} answers that are none"
        )

    def _read_and_discard_trailer(self) -> None:
        """As inherited, in a bounded time."""
        if self.patience:
            self.patience.hurry()
        super()._read_and_discard_trailer()  # type: ignore[misc]  # typeshed does not know this method

    def _part(self) -> None:
        """Look whether the server has more to say; one that is told that it was the last request just closes."""
        if self.patience:
            self.patience.parting, self.patience.glance = True, self.keep
        try:
            if self.hang_up and not self.keep:
                self.hang_up()
            self.excess = bool(self.fp.peek(1))
        except OSError:
            self.excess = False
        if self.keep:
            self._close_conn()  # type: ignore[attr-defined]  # typeshed does not know this method

    def _safe_read(self, amt: int) -> bytes:
        """As inherited; a negative size of a chunk would mean to read all there is into memory."""
        if amt < 0:
            raise http.client.IncompleteRead(b"")
        data: bytes = super()._safe_read(amt)  # type: ignore[misc]  # typeshed does not know this method
        return data


Wire = Plain | Tls | Nested
Tunnel = Callable[[Sequence[Address], float, Patience], Plain | Tls]
"""Connects to one of these checked addresses by a time, through somebody else. Raises Problem."""


class Careful(HTTPConnection):
    """What both kinds of connection share: addresses are checked, responses are our own."""

    policy: Policy
    patience: Patience
    connect_timeout: float
    """Seconds for the connection, TLS included."""
    tunnel: Tunnel | None
    wire: Wire
    """The socket, also after urllib3 has let go of it."""
    last: Response | None = None
    """The response that came last."""

    def response_class(self, *args: Any, **options: Any) -> Response:  # type: ignore[override]  # it is only called
        """What http.client makes of an answer."""
        self.last = Response(*args, **options)
        self.last.patience, self.last.hang_up = self.patience, self._hang_up
        return self.last

    def be_patient(self, patience: Patience) -> None:
        """With the next request."""
        self.patience = patience
        self.wire.be_patient(patience)

    def reusable(self) -> bool:
        """Whether another request can be sent: the answer has been read, and neither side has closed."""
        last = self.last
        return bool(last and self.sock and last.isclosed() and not last.will_close and not last.excess)

    def _hang_up(self) -> None:
        socket.socket.shutdown(self.wire, socket.SHUT_WR)  # TLS's own would also stop the reading

    def _new_conn(self) -> socket.socket:
        """Resolve, check every address, and connect to one that was checked."""
        addresses = self.policy.admit(self._dns_host, self.port)
        until = time.monotonic() + self.connect_timeout
        connection = self.tunnel(addresses, until, self.patience) if self.tunnel else dial(addresses, until, self.host)
        if isinstance(connection, Plain):
            connection.be_quick(until)  # what is left is for TLS
        return connection

    def drop(self) -> None:
        """Close it with whatever answer is on the way; `close` alone lets the answer live."""
        if self.last:
            self.last.close()
        self.close()

    def abort(self) -> None:
        """Wake whoever waits for bytes in another thread."""
        with suppress(OSError):
            socket.socket.shutdown(self.wire, socket.SHUT_RDWR)

    def demand_clean_end(self) -> None:
        """Take the end of the connection as the end of the body only if the server has said so; in clear none can."""


class CarefulTls(Careful, HTTPSConnection):
    """The same over TLS; the certificate is checked against the name."""

    context: ssl.SSLContext

    def connect(self) -> None:
        """Open it; urllib3's own way knows no connection that goes through one of these sockets over TLS."""
        below = self._new_conn()
        if isinstance(below, Tls):
            self.sock = Nested(below, self.context, self.host)
        else:
            self.sock = self.context.wrap_socket(below, server_hostname=self.host)

    def demand_clean_end(self) -> None:
        """RFC 9112 9.8."""
        self.wire.suppress_ragged_eofs = False  # type: ignore[union-attr]  # typeshed has it in wrap_socket only


def connect(
    place: Place,
    policy: Policy,
    patience: Patience,
    timeout: float,
    *,
    context: ssl.SSLContext | None = None,
    tunnel: Tunnel | None = None,
) -> Careful:
    """An open connection, over TLS with a `context`. `timeout`: seconds, TLS included.

    Raises SourceForbidden, SourceUnavailable, what `tunnel` raises, and OSError.
    """
    _, host, port = place
    connection = Careful(host, port)
    if context:
        connection = CarefulTls(host, port)
        connection.context = context
    connection.policy, connection.patience, connection.connect_timeout = policy, patience, timeout
    connection.tunnel = tunnel
    try:
        connection.connect()
        assert isinstance(connection.sock, Wire)  # noqa: S101 - made above and by tls_context
        connection.wire = connection.sock
        connection.be_patient(patience)
        connection.timeout = connection.wire.gettimeout()  # urllib3 sets it anew before each answer
    except BaseException:
        connection.close()
        raise
    return connection


def dial(addresses: Sequence[Address], until: float, name: str) -> Plain:
    """Connect to one of these by a time. `name`: in messages. Raises SourceUnavailable."""
    failure: OSError | None = None
    for family, address in addresses:
        connection = Plain(family, socket.SOCK_STREAM)
        try:
            connection.be_quick(until)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise SourceUnavailable(f"no connection to {name}: {say(failure)}") from failure


def say(error: BaseException | None) -> str:
    """An error of the system in its own words; nothing that a server wrote."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'the connection was cut'})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
