"""Goes through a proxy: HTTP CONNECT (RFC 9110 9.3.6) and SOCKS5 (RFC 1928, 1929), to addresses that were checked.

Two small protocols are spoken here rather than by a library, because those that there are connect by themselves, look
names up by themselves, and wait as long as the proxy likes.
"""

import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from typing import Final

from glimpse.api.base import SECRET_HOSTS
from glimpse.problems import InvalidConfiguration, Problem, SourceRefused, SourceUnauthorized, SourceUnavailable
from glimpse.sources.addresses import Address, Policy
from glimpse.sources.credentials import basic
from glimpse.sources.patience import Patience
from glimpse.sources.places import split
from glimpse.sources.tls import Tls
from glimpse.sources.wire import Plain, Response, dial, say

NAME: Final = "the proxy of proxyRef"
"""How it is called in messages: its address stands in a Secret, and stays there."""
_SECRET: Final = "the Secret of proxyRef"  # noqa: S105 - its name
_ADDRESS: Final = re.compile(r"(http|https|socks5)://[^/?#]+/?", re.IGNORECASE | re.ASCII)
_LOGIN: Final = re.compile(r"[^\x00-\x1f\x7f]+")

_SOCKS: Final = 5
_NO_LOGIN, _LOGIN_BY_PASSWORD, _NO_WAY = 0x00, 0x02, 0xFF
_LOGIN_VERSION: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_LENGTHS: Final = {_IPV4: 4, _IPV6: 16}
_REPLIES: Final = {
    1: "has failed",
    2: "does not allow the connection",
    3: "does not reach the network",
    4: "does not reach the server",
    5: "was refused by the server",
    6: "does not reach the server in time",
    7: "does not know the command CONNECT",
    8: "does not know this kind of address",
}
"""RFC 1928, 6."""
_FOR_GOOD: Final = frozenset({2, 7})

_Connection = Plain | Tls


class Proxy:
    """The proxy of one origin. Its credentials go nowhere else."""

    def __init__(
        self, secret: Mapping[str, str], hosts: Sequence[str], policy: Policy, context: Callable[[], ssl.SSLContext]
    ) -> None:
        """`context`: for a proxy that is spoken to over TLS. Raises InvalidConfiguration."""
        self._policy, self._context = policy, context
        self._scheme, self._host, self._port = _parse(secret.get("address", ""))
        self._login = _login(secret)
        if self._login and self._scheme == "socks5" and max(len(word.encode()) for word in self._login) > 255:  # noqa: PLR2004 - RFC 1929
            raise InvalidConfiguration(f"the username or the password in {_SECRET} is longer than SOCKS5 can say")
        shown = f"[{self._host}]" if ":" in self._host else self._host.rstrip(".")
        if hosts and not {shown, f"{shown}:{self._port}"} & {host.lower() for host in hosts}:
            raise InvalidConfiguration(f"the annotation {SECRET_HOSTS} of {_SECRET} does not name its host")

    def __call__(self, addresses: Sequence[Address], until: float, patience: Patience) -> _Connection:
        """A connection to one of the addresses. Raises SourceForbidden if the proxy's own address is denied.

        Raises SourceUnauthorized, SourceRefused and SourceUnavailable, of what the proxy says and of itself, and
        WorkerLost if cancelled.
        """
        failure: Problem | None = None
        for _, address in addresses:
            connection = self._reach(until, patience)
            try:
                with _border():
                    (self._socks if self._scheme == "socks5" else self._http)(connection, str(address[0]), address[1])
            except SourceUnavailable as problem:
                connection.close()
                failure = problem
            except BaseException:
                connection.close()
                raise
            else:
                if connection.patience:
                    connection.patience.who = patience.who  # from here on it is the server who is waited for
                return connection
        raise failure or SourceUnavailable(f"{NAME} has nowhere to go")

    def _reach(self, until: float, patience: Patience) -> _Connection:
        """A connection to the proxy itself, patient until all is over."""
        addresses = self._policy.admit(self._host, self._port, NAME)
        connection: _Connection = dial(addresses, until, NAME)
        try:
            with _border():
                if self._scheme == "https":
                    connection = self._context().wrap_socket(connection, server_hostname=self._host)  # type: ignore[assignment]  # made by tls_context
                left = max(round(until - time.monotonic(), 1), 0.1)
                hurried = replace(patience, idle=left, who=NAME, pace=None, rate=0)
                hurried.hurry()
                connection.be_patient(hurried)
        except BaseException:
            connection.close()
            raise
        return connection

    def _http(self, connection: _Connection, address: str, port: int) -> None:
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self._login:
            lines.append(f"Proxy-Authorization: {basic(*self._login)}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        response = Response(connection, method="CONNECT")
        response.patience = connection.patience
        assert response.patience  # noqa: S101 - made patient in _reach
        try:
            response.begin()
            self._judge(response.status, port)
            response.patience.glance = True
            if response.fp.peek(1):
                raise SourceUnavailable(f"{NAME} sent something before it was asked")
            response.patience.glance = False
        finally:
            response.close()

    def _judge(self, status: int, port: int) -> None:
        answer = f"{NAME} answered {status}"
        match status:
            case _ if 200 <= status < 300:  # noqa: PLR2004 - RFC 9110 9.3.6
                return
            case 401 | 407:  # Tinyproxy calls a wrong login 401
                raise SourceUnauthorized(f"{answer}: {self._wanted()}")
            case 408 | 425 | 429:
                raise SourceUnavailable(answer)
            case 405 | 501:
                raise SourceRefused(f"{answer}: it does not know CONNECT")
            case _ if 400 <= status < 500:  # noqa: PLR2004 - the class of client errors, RFC 9110 15.5
                raise SourceRefused(f"{answer}: it does not allow CONNECT to this server, or to port {port}")
            case _:
                raise SourceUnavailable(f"{answer}: it may not reach the server")

    def _wanted(self) -> str:
        return f"it wants {'other ' * bool(self._login)}credentials, username and password in {_SECRET}"

    def _socks(self, connection: _Connection, address: str, port: int) -> None:
        ways = bytes([_NO_LOGIN, _LOGIN_BY_PASSWORD] if self._login else [_NO_LOGIN])
        connection.sendall(bytes([_SOCKS, len(ways)]) + ways)
        version, way = _exactly(connection, 2)
        if version != _SOCKS:
            raise SourceUnavailable(f"{NAME} does not speak SOCKS5")
        if way == _NO_WAY:
            raise SourceUnauthorized(f"{NAME} refuses us: {self._wanted()}")
        if way not in ways:
            raise SourceUnavailable(f"{NAME} wants something else than it was offered")
        if way == _LOGIN_BY_PASSWORD:
            assert self._login  # noqa: S101 - or it was not offered
            words = [word.encode() for word in self._login]
            connection.sendall(bytes([_LOGIN_VERSION]) + b"".join(bytes([len(word)]) + word for word in words))
            _, refused = _exactly(connection, 2)
            if refused:
                raise SourceUnauthorized(f"{NAME} refuses us: {self._wanted()}")
        target = ip_address(address.partition("%")[0])
        kind = _IPV6 if isinstance(target, IPv6Address) else _IPV4
        connection.sendall(bytes([_SOCKS, 1, 0, kind]) + target.packed + port.to_bytes(2, "big"))
        version, reply, _, kind = _exactly(connection, 4)
        if version != _SOCKS or (not reply and kind not in {_IPV4, _NAME, _IPV6}):
            raise SourceUnavailable(f"{NAME} does not speak SOCKS5")
        if reply:
            what = f"{NAME} {_REPLIES.get(reply, f'failed with code {reply}')}"
            raise (SourceRefused if reply in _FOR_GOOD else SourceUnavailable)(what)
        length = _LENGTHS.get(kind) or _exactly(connection, 1)[0]
        _exactly(connection, length + 2)  # where it is connected from


def _exactly(connection: _Connection, count: int) -> bytes:
    buffer = memoryview(bytearray(count))
    filled = 0
    while filled < count:
        came = connection.recv_into(buffer[filled:])
        if not came:
            raise SourceUnavailable(f"{NAME} hung up")
        filled += came
    return bytes(buffer)


def _parse(address: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises InvalidConfiguration."""
    host, port = "", None
    if _ADDRESS.fullmatch(address):
        try:
            host, port = split(address)
        except ValueError:
            port = None
    if port is None:
        hint = ": names are looked up by Glimpse, so write socks5" if address.lower().startswith("socks5h:") else ""
        raise InvalidConfiguration(
            f"the address in {_SECRET} is none like http://host:port, https://host:port or socks5://host:port{hint}; "
            "credentials have keys of their own, username and password"
        )
    return address.partition(":")[0].lower(), host, port


def _login(secret: Mapping[str, str]) -> tuple[str, str] | None:
    """Username and password, if there are any. Raises InvalidConfiguration."""
    if not secret.keys() & {"username", "password"}:
        return None
    username, password = secret.get("username", ""), secret.get("password", "")
    if not _LOGIN.fullmatch(username) or not _LOGIN.fullmatch(password):
        raise InvalidConfiguration(f"{_SECRET} needs both username and password, or none; each of one line")
    if ":" in username:
        raise InvalidConfiguration(f"the username in {_SECRET} holds a colon, which Basic cannot carry (RFC 7617)")
    return username, password


@contextmanager
def _border() -> Iterator[None]:
    """Let Problems out and nothing else; say that it was the proxy."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise SourceUnavailable(
            f"the certificate of {NAME} is not accepted ({error.verify_message}); "
            "if its authority is your own, name it in caBundleRef"
        ) from error
    except http.client.HTTPException as error:
        early = isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead)
        raise SourceUnavailable(f"{NAME} {'hung up' if early else 'does not speak HTTP'}") from error
    except OSError as error:
        raise SourceUnavailable(f"{NAME}: {say(error)}") from error
