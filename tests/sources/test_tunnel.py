"""Sources behind proxies: the bytes come as without one, secrets stay where they belong, and it is told who failed."""

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trustme
from pydantic import SecretStr
from tests.sources.conftest import IMPATIENT, LOOPBACK, PATIENT, Ask, drain

from glimpse.problems import (
    InvalidConfiguration,
    Problem,
    SourceForbidden,
    SourceRefused,
    SourceUnauthorized,
    SourceUnavailable,
    WorkerLost,
)
from glimpse.settings import Addresses, Transfers
from glimpse.sources.http import open_http
from glimpse.sources.line import Tuning
from glimpse.streams import CHUNK
from glimpse.tasks import HttpOrigin
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.proxies import Http, Manner, Socks5

DATA = noise(3 * CHUNK + 17)
LOGIN = ("proxy-ada", "proxy-s3cret")
WORDS = (*LOGIN, base64.b64encode(":".join(LOGIN).encode()).decode())
"""What nobody but the proxy may see."""

AnyProxy = Http | Socks5
Make = Callable[..., AnyProxy]


@pytest.fixture(params=["http", "https", "socks5"])
def make(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> Iterator[Make]:
    """Starts proxies of each kind."""
    with ExitStack() as stack:

        def start(**how: Any) -> AnyProxy:
            if request.param == "socks5":
                return stack.enter_context(Socks5(**how))
            return stack.enter_context(Http(tls=tls if request.param == "https" else None, **how))

        yield start


def secret(proxy: AnyProxy | str, login: tuple[str, str] | None = None) -> dict[str, SecretStr]:
    """The Secret of proxyRef."""
    values = {"address": proxy if isinstance(proxy, str) else proxy.url}
    if login:
        values |= {"username": login[0], "password": login[1]}
    return {key: SecretStr(value) for key, value in values.items()}


# What works


@pytest.mark.parametrize("login", [None, LOGIN], ids=["open", "with a login"])
@pytest.mark.parametrize("how", [{}, {"chunked": 100_000}, {"length": None}])
def test_bytes_arrive_as_without_it(
    web: Server, make: Make, ask: Ask, login: tuple[str, str] | None, how: dict[str, Any]
) -> None:
    """In clear and over TLS, through each kind of proxy; it is asked for an address and never for a name."""
    web.serve("/a", Reply(DATA, **how))
    proxy = make(login=login)
    assert drain(ask(web.url("/a", host="localhost"), proxy=secret(proxy, login))) == DATA
    assert proxy.asked[-1] == ("127.0.0.1", web.port)
    assert not any(b"localhost" in words for words in proxy.heard)
    assert web.requests[0].headers["host"] == f"localhost:{web.port}"
    assert web.requests[0].path == "/a"


def test_secrets_stay_where_they_belong(web: Server, make: Make, ask: Ask) -> None:
    """The proxy gets its own and, of a server over TLS, nothing else; the server gets nothing of the proxy's."""
    web.serve("/a", Reply(b"x"))
    proxy = make(login=LOGIN)
    url = web.url("/a?signature=42")
    drain(ask(url, proxy=secret(proxy, LOGIN), secret={"token": SecretStr("server-token")}))
    [request] = web.requests
    assert request.headers["authorization"] == "Bearer server-token"
    assert not any(word in str(request) for word in WORDS)
    assert not any(word.encode() in proxy.passed for word in WORDS)
    heard = b"".join(proxy.heard) + (proxy.passed if url.startswith("https") else b"")
    assert not any(word in heard for word in (b"server-token", b"signature", b"42 "))


def test_each_hop_goes_through_it(make: Make, ask: Ask, tls: ssl.SSLContext) -> None:
    """A redirect is one more connection of the proxy's, and its address is looked at by us before."""
    proxy = make()
    with faults.Server() as first, faults.Server(tls) as second:
        first.serve("/a", Reply.redirect(second.url("/b")), Reply.redirect("http://10.0.0.1/"))
        second.serve("/b", Reply(b"x"))
        assert drain(ask(first.url("/a"), proxy=secret(proxy))) == b"x"
        with pytest.raises(SourceForbidden, match=r"10\.0\.0\.1 leads to a private network"):
            ask(first.url("/a"), proxy=secret(proxy))
    assert proxy.asked == [("127.0.0.1", first.port), ("127.0.0.1", second.port), ("127.0.0.1", first.port)]


def resolver(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """A resolver that knows these names besides what it knows."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        found = [real(address, port, *args, **options) for address in names.get(host, [host])]
        return [entry for entries in found for entry in entries]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_another_address_is_tried(plain: Server, make: Make, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the proxy does not reach one address of a name, it is asked for the next."""
    resolver(monkeypatch, {"mirror.example": ["127.0.0.3", "127.0.0.1"]})
    plain.serve("/a", Reply(b"x"))
    proxy = make(manner=Manner(unreachable=frozenset({"127.0.0.3"})))
    assert drain(ask(plain.url("/a", host="mirror.example"), proxy=secret(proxy))) == b"x"
    assert proxy.asked == [("127.0.0.3", plain.port), ("127.0.0.1", plain.port)]


def test_a_large_file_in_parts(web: Server, make: Make, authority: trustme.CA) -> None:
    """Several connections at once, each kept for further parts, come through it as they come without it."""
    data = DATA[: CHUNK + 17]
    web.serve("/a", Reply(data, ranges=True, headers={"ETag": '"v1"'}, trickle=(64 << 10, 0.005)))
    proxy = make()
    origin = HttpOrigin(urls=(web.url("/a"),), ca_bundle=authority.cert_pem.bytes().decode(), proxy=secret(proxy))
    tuning = Tuning(part=128 << 10, least=32 << 10, window=2 << 20, alone=512 << 10, pace=0.02)
    source = open_http(origin, [web.url("/a")], LOOPBACK, PATIENT, threading.Event(), tuning=tuning)
    assert b"".join(iter(source.read, b"")) == data
    source.close()
    assert 0 < len(proxy.asked) < len(web.asked("/a"))


def test_ipv6(make: Make, ask: Ask) -> None:
    """An address of IPv6 is asked for as such."""
    proxy = make()
    with pytest.raises(SourceUnavailable, match="the proxy of proxyRef"):
        ask("http://[::1]:1024/", proxy=secret(proxy))
    assert proxy.asked == [("::1", 1024)]


# What does not: who it was, and no word of a secret

STATUSES: dict[int, tuple[type[Problem], str]] = {
    407: (SourceUnauthorized, "wants other credentials, username and password in the Secret of proxyRef"),
    401: (SourceUnauthorized, "wants other credentials, username and password in the Secret of proxyRef"),
    403: (SourceRefused, "does not allow CONNECT"),
    404: (SourceRefused, "does not allow CONNECT"),
    405: (SourceRefused, "does not know CONNECT"),
    501: (SourceRefused, "does not know CONNECT"),
    **dict.fromkeys((408, 429, 500, 502, 503, 504, 302, 599), (SourceUnavailable, "the proxy of proxyRef")),
}


@pytest.mark.parametrize("status", STATUSES)
def test_answers_of_an_http_proxy(plain: Server, ask: Ask, status: int) -> None:
    """They are told apart from the server's own, and what the proxy wrote is not repeated."""
    problem, message = STATUSES[status]
    answer = f"HTTP/1.1 {status} overheard\r\nRetry-After: 7\r\nX: overheard\r\n\r\noverheard".encode()
    with Http(manner=Manner(says=answer)) as proxy, pytest.raises(problem, match=message) as caught:
        ask(plain.url("/a?key=hidden"), proxy=secret(proxy, LOGIN))
    assert caught.value.message.startswith(plain.url(f"/a: the proxy of proxyRef answered {status}"))
    assert not any(word in caught.value.message for word in (*WORDS, "overheard", "hidden", str(proxy.port)))
    assert plain.requests == []


SOCKS: dict[str, tuple[bytes, type[Problem], str]] = {
    "failure": (b"\x05\x01\x00\x01", SourceUnavailable, "has failed"),
    "rules": (b"\x05\x02\x00\x01", SourceRefused, "does not allow the connection"),
    "network": (b"\x05\x03\x00\x01", SourceUnavailable, "does not reach the network"),
    "host": (b"\x05\x04\x00\x01", SourceUnavailable, "does not reach the server"),
    "refused": (b"\x05\x05\x00\x01", SourceUnavailable, "was refused by the server"),
    "time": (b"\x05\x06\x00\x01", SourceUnavailable, "in time"),
    "command": (b"\x05\x07\x00\x01", SourceRefused, "does not know the command"),
    "kind": (b"\x05\x08\x00\x01", SourceUnavailable, "this kind of address"),
    "unknown": (b"\x05\xee\x00\x01", SourceUnavailable, "failed with code 238"),
    "version": (b"\x04\x00\x00\x01", SourceUnavailable, "does not speak SOCKS5"),
    "address": (b"\x05\x00\x00\x09", SourceUnavailable, "does not speak SOCKS5"),
    "short": (b"\x05\x00\x00\x01\x7f", SourceUnavailable, "hung up"),
    "nothing": (b"", SourceUnavailable, "hung up"),
}


@pytest.mark.parametrize("name", SOCKS)
def test_answers_of_a_socks_proxy(plain: Server, ask: Ask, name: str) -> None:
    """RFC 1928 has a word for each failure; what is none ends as one that time may mend."""
    answer, problem, message = SOCKS[name]
    with Socks5(manner=Manner(says=answer)) as proxy, pytest.raises(problem, match=f"the proxy of proxyRef.*{message}"):
        ask(plain.url("/a"), proxy=secret(proxy))
    assert plain.requests == []


@pytest.mark.parametrize("begins", [b"\x05\x01", b"\x05\x02", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x05", b""])
def test_what_is_no_socks_proxy(plain: Server, ask: Ask, begins: bytes) -> None:
    """A way to log in that was not offered, and another protocol."""
    with Socks5(manner=Manner(begins=begins)) as proxy, pytest.raises(SourceUnavailable, match="the proxy of proxyRef"):
        ask(plain.url("/a"), proxy=secret(proxy))


@pytest.mark.parametrize(
    "says",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
        b"HTTP/1.1 200 OK\r\n",
        b"",
    ],
)
def test_what_is_no_http_proxy(plain: Server, ask: Ask, says: bytes) -> None:
    """Whatever comes, it ends, and the message does not quote it."""
    with (
        Http(manner=Manner(says=says)) as proxy,
        pytest.raises(SourceUnavailable, match="the proxy of proxyRef") as caught,
    ):
        ask(plain.url("/a"), proxy=secret(proxy))
    assert not any(word in caught.value.message for word in ("SSH", "banana"))


@pytest.mark.parametrize("login", [None, ("proxy-ada", "wrong-s3cret")], ids=["without", "wrong"])
def test_credentials_that_it_refuses(plain: Server, make: Make, ask: Ask, login: tuple[str, str] | None) -> None:
    """A person is told which Secret to look into."""
    proxy = make(login=LOGIN)
    words = "wants other credentials" if login else "wants credentials"
    with pytest.raises(
        SourceUnauthorized, match=f"the proxy of proxyRef .*{words}, .*in the Secret of proxyRef"
    ) as caught:
        ask(plain.url("/a"), proxy=secret(proxy, login))
    assert not any(word in caught.value.message for word in (*LOGIN, "wrong-s3cret"))
    assert proxy.asked == []


def test_more_than_its_answer(plain: Server, ask: Ask) -> None:
    """Before we have said a word to the server, nothing can come from it: somebody else is talking."""
    manner = Manner(adds=b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    with Http(manner=manner) as proxy, pytest.raises(SourceUnavailable, match="before it was asked"):
        ask(plain.url("/a"), proxy=secret(proxy))


def test_a_server_that_cannot_be_reached(make: Make, ask: Ask) -> None:
    """It is the proxy who says so, and time may mend it."""
    proxy = make()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceUnavailable, match=r"the proxy of proxyRef .*reach the server"):
        ask(f"http://127.0.0.1:{port}/a", proxy=secret(proxy))


def test_a_proxy_that_is_away(plain: Server, ask: Ask) -> None:
    """Its address is not told: it stands in a Secret."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceUnavailable, match="no connection to the proxy of proxyRef: Connection refused") as caught:
        ask(plain.url("/a"), proxy=secret(f"http://127.0.0.1:{port}"))
    assert str(port) not in caught.value.message
    with pytest.raises(SourceUnavailable, match="the name of the proxy of proxyRef cannot be resolved") as caught:
        ask(plain.url("/a"), proxy=secret("socks5://hidden.invalid:1080"))
    assert "hidden" not in caught.value.message


def test_a_silent_proxy_is_given_up(plain: Server, make: Make, ask: Ask) -> None:
    """The connect timeout holds for all of it together."""
    proxy = make(manner=Manner(silent=True))
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"the proxy of proxyRef (sent nothing|took more than)"):
        ask(plain.url("/a"), proxy=secret(proxy), transfers=Transfers(connect_timeout=0.6))
    assert time.monotonic() - started < 20


def test_cancelling_ends_the_wait_for_it(plain: Server, make: Make, ask: Ask) -> None:
    """Within a second or so, though the proxy may be silent for an hour."""
    proxy, cancelled = make(manner=Manner(silent=True)), threading.Event()
    timer = threading.Timer(0.3, cancelled.set)
    timer.start()
    with pytest.raises(WorkerLost, match="cancelled"):
        ask(plain.url("/a"), proxy=secret(proxy), transfers=Transfers(connect_timeout=3600), cancelled=cancelled)
    timer.join()


@pytest.mark.parametrize("fault", [{"cut": CHUNK}, {"stall": CHUNK}, {"stall_head": True}, {"status": 407}])
def test_faults_of_the_server_are_the_servers(web: Server, make: Make, ask: Ask, fault: dict[str, Any]) -> None:
    """What happens beyond the proxy is told as without one."""
    web.serve("/a", Reply(DATA, **fault))
    with pytest.raises((SourceUnavailable, SourceUnauthorized)) as caught:
        drain(ask(web.url("/a"), proxy=secret(make()), transfers=IMPATIENT))
    assert "proxy" not in caught.value.message


def test_a_server_that_does_not_shake_hands(make: Make, ask: Ask) -> None:
    """Nor is its silence the proxy's, before the first word has been said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a"
        with pytest.raises(SourceUnavailable) as caught:
            ask(url, proxy=secret(make()), transfers=Transfers(connect_timeout=0.6))
    assert "proxy" not in caught.value.message


def test_its_certificate_is_always_checked(plain: Server, ask: Ask, tls: ssl.SSLContext) -> None:
    """It gets a password, so it has to prove itself, also where the servers need not."""
    plain.serve("/a", Reply(b"x"))
    with Http(tls=tls, login=LOGIN) as proxy:
        with pytest.raises(
            SourceUnavailable, match=r"the certificate of the proxy of proxyRef is not accepted .*caBundleRef"
        ):
            ask(plain.url("/a"), proxy=secret(proxy, LOGIN), ca_bundle=None, insecure_skip_tls_verify=True)
        assert proxy.heard == []
        assert drain(ask(plain.url("/a"), proxy=secret(proxy, LOGIN))) == b"x"


def test_a_server_is_checked_beyond_it(make: Make, ask: Ask, authority: trustme.CA) -> None:
    """A proxy in the middle cannot be the server: the certificate must be for the server's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with faults.Server(context) as server:
        server.serve("/a", Reply(b"x"))
        assert drain(ask(server.url("/a", host="localhost"), proxy=secret(make()))) == b"x"
        with pytest.raises(SourceUnavailable, match="the server's certificate is not accepted"):
            ask(server.url("/a"), proxy=secret(make()))


# Addresses


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "2130706433", "[::1]", "localhost", "api.prod.svc"])
def test_the_proxy_must_pass_too(ask: Ask, scheme: str, host: str) -> None:
    """A tenant's proxy is a place that a tenant sends us to; the message does not tell which."""
    addresses = Addresses.model_validate({"allow": ["127.0.0.2/32"]})
    with pytest.raises(SourceForbidden, match=r"the proxy of proxyRef leads to .*GLIMPSE_ADDRESSES__ALLOW") as caught:
        ask("http://127.0.0.2/a", proxy=secret(f"{scheme}://{host}:3128", LOGIN), addresses=addresses)
    assert not any(word in caught.value.message for word in (*LOGIN, host, "3128"))


def test_its_port_must_pass_too(ask: Ask) -> None:
    """Nor a proxy on the port of a mail server."""
    with pytest.raises(SourceForbidden, match="the proxy of proxyRef: port 25 "):
        ask("http://127.0.0.1/a", proxy=secret("http://127.0.0.1:25"))


def test_the_target_must_pass_before_the_proxy_is_asked(make: Make, ask: Ask) -> None:
    """A proxy inside the network cannot be used to reach what may not be reached."""
    proxy = make()
    for url in ("http://10.0.0.1/", "http://169.254.169.254/latest", "https://[fd00::1]/", "http://db.prod.svc/"):
        with pytest.raises(SourceForbidden):
            ask(url, proxy=secret(proxy))
    assert proxy.asked == []
    assert proxy.heard == []


# Its Secret


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "http://proxy:99999",
            "ftp://proxy:21",
            "socks4://p:1080",
        ),
        *(
            "http://u:p@proxy:3128",
            "http://proxy:3128/path",
            "http://proxy:3128?x",
            "http://proxy:3128#x",
            "http://:80",
        ),
        *("socks5h://proxy:1080", "http://pr%6fxy:1", "http://proxy\\:1", "http://[fe80::1%25lo]:1", "http://a..b:1"),
        *("sock\u017f5://proxy:1", "http://proxy:\u0661"),
        *(" http://proxy:1", "http://proxy:1\r\nX: y", "http://prö:1"),
    ],
)
def test_an_address_that_is_none(ask: Ask, address: str) -> None:
    """It says which forms there are, and does not repeat it."""
    with pytest.raises(
        InvalidConfiguration, match=r"the address in the Secret of proxyRef is none like http://host:port"
    ) as caught:
        ask("http://127.0.0.1/a", proxy=secret(address))
    assert "proxy:" not in caught.value.message
    assert ("write socks5" in caught.value.message) == address.startswith("socks5h")


@pytest.mark.parametrize(
    ("scheme", "login", "message"),
    [
        ("http", ("ada", ""), "needs both"),
        ("http", ("", "s3cret"), "needs both"),
        ("socks5", ("ada\n", "s3cret"), "one line"),
        ("https", ("a:b", "s3cret"), "colon"),
        ("http", ("ada", "s3cret\r\nX: y"), "one line"),
        ("socks5", ("ada", "s3cret" * 50), "longer than SOCKS5"),
    ],
)
def test_a_login_that_cannot_be_sent(ask: Ask, scheme: str, login: tuple[str, str], message: str) -> None:
    """It says what is wrong with the Secret, and not what is in it."""
    with pytest.raises(InvalidConfiguration, match=f"the Secret of proxyRef .*{message}|{message}.*") as caught:
        ask("http://127.0.0.1/a", proxy=secret(f"{scheme}://127.0.0.1:1080", login))
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("hosts", "right"),
    [
        ((), True),
        (("127.0.0.1",), True),
        (("mirror.example", "127.0.0.1:{port}"), True),
        (("127.0.0.1:1",), False),
        (("mirror.example",), False),
    ],
)
def test_the_hosts_that_its_owner_allows(plain: Server, ask: Ask, hosts: tuple[str, ...], right: bool) -> None:
    """A Secret that names its hosts is for no proxy elsewhere."""
    plain.serve("/a", Reply(b"x"))
    with Http() as proxy:
        named = tuple(host.format(port=proxy.port) for host in hosts)
        if right:
            assert drain(ask(plain.url("/a"), proxy=secret(proxy), proxy_hosts=named)) == b"x"
            return
        with pytest.raises(InvalidConfiguration, match=r"glimpse\.dev/hosts of the Secret of proxyRef"):
            ask(plain.url("/a"), proxy=secret(proxy), proxy_hosts=named)
        assert proxy.heard == []
