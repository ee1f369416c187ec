"""Headers and client certificates of a source: they follow the rule of credentials, and work through everything."""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr
from tests.sources.conftest import Ask, drain

from glimpse.problems import InvalidConfiguration, SourceUnauthorized, SourceUnavailable
from glimpse.testing import faults
from glimpse.testing.faults import Reply, Server
from glimpse.testing.proxies import Http, Socks5

# Headers


def secret(**values: str) -> dict[str, SecretStr]:
    """A Secret with these keys; `_` stands for `-`."""
    return {key.replace("_", "-"): SecretStr(value) for key, value in values.items()}


def test_headers_are_sent(plain: Server, ask: Ask) -> None:
    """Each key as a header, beside those of every request; what we would say ourselves can be said otherwise."""
    plain.serve("/a", Reply(b"x"))
    drain(ask(plain.url("/a"), headers=secret(X_Token="t0k3n", Cookie="a=b; c", USER_AGENT="curl/8", X_Old="caf\xe9")))
    [request] = plain.requests
    assert request.headers["x-token"] == "t0k3n"
    assert request.headers["cookie"] == "a=b; c"
    assert request.headers["user-agent"] == "curl/8"
    assert request.headers["x-old"] == "caf\xe9"
    assert request.headers["accept-encoding"] == "identity"


def test_a_header_for_authorization(plain: Server, ask: Ask) -> None:
    """For schemes that are neither Basic nor Bearer; not beside a secretRef, which says it already."""
    plain.serve("/a", Reply(b"x"))
    drain(ask(plain.url("/a"), headers=secret(authorization="ApiKey 42")))
    assert plain.requests[0].headers["authorization"] == "ApiKey 42"
    with pytest.raises(InvalidConfiguration, match="'authorization', which secretRef gives already"):
        ask(plain.url("/a"), headers=secret(authorization="ApiKey 42"), secret=secret(token="t"))
    assert len(plain.requests) == 1


def test_headers_stay_with_the_servers_of_the_spec(plain: Server, ask: Ask) -> None:
    """A redirect to another origin goes without; one back, or to another mirror, goes with."""
    with faults.Server() as other, faults.Server() as mirror:
        plain.serve("/a", Reply.redirect(other.url("/a")))
        other.serve("/a", Reply.redirect(mirror.url("/a")))
        mirror.serve("/a", Reply.redirect(plain.url("/b")))
        plain.serve("/b", Reply(b"x"))
        drain(ask(plain.url("/a"), mirror.url("/z"), headers=secret(X_Token="t0k3n")))
        requests = [plain.requests[0], other.requests[0], mirror.requests[0], plain.requests[1]]
    assert [request.headers.get("x-token") for request in requests] == ["t0k3n", None, "t0k3n", "t0k3n"]
    assert "t0k3n" not in str(requests[1])


HOSTS: dict[tuple[str, ...], bool] = {
    (): True,
    ("127.0.0.1",): True,
    ("mirror.example", "127.0.0.1:{port}"): True,
    ("127.0.0.1:1",): False,
    ("mirror.example",): False,
    ("127.0.0.1.mirror.example",): False,
}


@pytest.mark.parametrize("hosts", HOSTS)
def test_each_secret_has_its_own_hosts(plain: Server, ask: Ask, hosts: tuple[str, ...]) -> None:
    """The owner of one Secret says nothing about another."""
    plain.serve("/a", Reply(b"x"))
    named = tuple(host.format(port=plain.port) for host in hosts)
    both: dict[str, Any] = {"headers": secret(X_Token="t0k3n"), "secret": secret(token="t")}
    drain(ask(plain.url("/a"), headers_hosts=named, **both))
    drain(ask(plain.url("/a"), secret_hosts=named, **both))
    sent = [(r.headers.get("x-token"), r.headers.get("authorization")) for r in plain.requests]
    may = HOSTS[hosts]
    assert sent == [("t0k3n" if may else None, "Bearer t"), ("t0k3n", "Bearer t" if may else None)]


REFUSED = [
    *("Connection", "keep-alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings", "Expect"),
    *(
        "Proxy-Authorization",
        "Proxy-Connection",
        "proxy-anything",
        "Host",
        "HOST",
        "Content-Length",
        "Content-Encoding",
    ),
    *("Range", "range", "If-Range", "If-None-Match", "if-modified-since", "If-Anything", "Accept-Encoding"),
]


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_are_ours(plain: Server, ask: Ask, name: str) -> None:
    """What belongs to the connection, or says which bytes are asked for, is not a tenant's to say."""
    with pytest.raises(InvalidConfiguration, match=f"key '{name}', a header that Glimpse sets itself"):
        ask(plain.url("/a"), headers={name: SecretStr("t0k3n")})
    assert plain.requests == []


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"X Y": "t0k3n"}, "no name of a header"),
        ({"X:Y": "t0k3n"}, "no name of a header"),
        ({"X\r\nHost": "t0k3n"}, "no name of a header"),
        ({"": "t0k3n"}, "no name of a header"),
        ({"X\xe9": "t0k3n"}, "no name of a header"),
        ({"x" * 257: "t0k3n"}, "no name of a header"),
        ({"X": "t0k3n\r\nHost: evil"}, "'X' .*line break"),
        ({"X": "t0k3n\n"}, "'X' .*line break"),
        ({"X": "t0k3n\r"}, "'X' .*line break"),
        ({"X": "t0k3n\n folded"}, "'X' .*line break"),
        ({"X": "t0k3n\0"}, "'X' .*line break"),
        ({"X": "t0k3n\x7f"}, "'X' .*control character"),
        ({"X": "t0k3n\x1b[0m"}, "'X' .*control character"),
        ({"X": ""}, "'X' .*empty"),
        ({"X": "t0k3n\u20ac"}, "beyond Latin-1"),
        ({"X": "t0k3n", "x": "t0k3n"}, "twice"),
        ({f"X{number}": "t0k3n" for number in range(65)}, "more than 64"),
        ({"X": "t0k3n" * 4000}, "16384 characters"),
    ],
)
def test_headers_that_cannot_be_sent(plain: Server, ask: Ask, headers: dict[str, str], message: str) -> None:
    """It is said which key is wrong, not what is in it, and nothing is sent."""
    with pytest.raises(InvalidConfiguration, match=message) as caught:
        ask(plain.url("/a"), headers={name: SecretStr(value) for name, value in headers.items()})
    assert "t0k3n" not in caught.value.message
    assert plain.requests == []


def test_a_refusal_names_the_secrets(plain: Server, ask: Ask) -> None:
    """Those that were sent may be wrong; those that were not are not called so."""
    plain.serve("/a", Reply(status=403))
    headers = secret(X_Token="t0k3n")
    with pytest.raises(SourceUnauthorized, match=r"other credentials, in the Secret of headersSecretRef$"):
        ask(plain.url("/a"), headers=headers)
    with pytest.raises(SourceUnauthorized, match=r"in the Secret of secretRef or headersSecretRef$"):
        ask(plain.url("/a"), headers=headers, secret=secret(token="t"))
    with pytest.raises(SourceUnauthorized, match=r"glimpse\.dev/hosts of the Secret of headersSecretRef does not name"):
        ask(plain.url("/a"), headers=headers, headers_hosts=("mirror.example",))
    with faults.Server() as other:
        other.serve("/a", Reply.redirect(plain.url("/a")))
        with pytest.raises(SourceUnauthorized, match="none of them"):
            ask(other.url("/a"), headers=headers)


# Client certificates


@pytest.fixture(scope="module")
def robots() -> trustme.CA:
    """Signs certificates of clients."""
    return trustme.CA()


def pair(authority: trustme.CA) -> dict[str, SecretStr]:
    """A client's certificate, as a Secret of type kubernetes.io/tls has it."""
    made = authority.issue_cert("robot@mirror.example")
    certificate = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    return {"tls.crt": SecretStr(certificate.decode()), "tls.key": SecretStr(made.private_key_pem.bytes().decode())}


class Doors:
    """Makes contexts of servers that ask for a certificate, and notes who has shown which."""

    def __init__(self, authority: trustme.CA, robots: trustme.CA) -> None:
        self._authority, self._robots = authority, robots
        self.shown: list[bool] = []
        """Of each handshake: whether a certificate was shown."""

    def context(self, *, must: bool = False, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """Of one server; `must`: who has none is not let in."""
        shown = self.shown

        class Door(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                super().do_handshake(block)
                shown.append(bool(self.getpeercert()))

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = Door
        context.maximum_version = newest
        self._authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        self._robots.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED if must else ssl.CERT_OPTIONAL
        return context


@pytest.fixture
def doors(authority: trustme.CA, robots: trustme.CA) -> Doors:
    """Servers that ask for a certificate."""
    return Doors(authority, robots)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_opens_the_door(doors: Doors, robots: trustme.CA, ask: Ask, newest: ssl.TLSVersion) -> None:
    """A server that lets nobody in without one lets us in."""
    with faults.Server(doors.context(must=True, newest=newest)) as server:
        server.serve("/a", Reply(b"x"))
        assert drain(ask(server.url("/a"), certificate=pair(robots))) == b"x"
    assert doors.shown == [True]


@pytest.mark.parametrize("way", ["http", "https", "socks5"])
def test_it_does_so_through_a_proxy(doors: Doors, robots: trustme.CA, tls: ssl.SSLContext, ask: Ask, way: str) -> None:
    """Of whatever kind: the handshake is the server's and ours."""
    kinds: dict[str, Callable[[], Http | Socks5]] = {"http": Http, "https": lambda: Http(tls=tls), "socks5": Socks5}
    with faults.Server(doors.context(must=True)) as server, kinds[way]() as proxy:
        server.serve("/a", Reply(b"x" * 100_000))
        found = ask(server.url("/a"), certificate=pair(robots), proxy=secret(address=proxy.url))
        assert len(drain(found)) == 100_000
    assert doors.shown == [True]


def test_a_certificate_is_shown_to_the_servers_of_the_spec_only(doors: Doors, robots: trustme.CA, ask: Ask) -> None:
    """Who it is that asks is nobody else's matter: not another origin's, and not the proxy's."""
    with (
        faults.Server(doors.context()) as first,
        faults.Server(doors.context()) as other,
        Http(tls=doors.context()) as proxy,
    ):
        first.serve("/a", Reply.redirect(other.url("/a")))
        other.serve("/a", Reply.redirect(first.url("/b")))
        first.serve("/b", Reply(b"x"))
        assert drain(ask(first.url("/a"), certificate=pair(robots))) == b"x"
        assert doors.shown == [True, False, True]
        doors.shown.clear()
        assert drain(ask(first.url("/b"), certificate=pair(robots), proxy=secret(address=proxy.url))) == b"x"
        assert doors.shown == [False, True]


@pytest.mark.parametrize("hosts", HOSTS)
def test_a_certificate_has_its_hosts(doors: Doors, robots: trustme.CA, ask: Ask, hosts: tuple[str, ...]) -> None:
    """The owner of the Secret may name them."""
    with faults.Server(doors.context()) as server:
        server.serve("/a", Reply(b"x"))
        named = tuple(host.format(port=server.port) for host in hosts)
        drain(ask(server.url("/a"), certificate=pair(robots), certificate_hosts=named))
    assert doors.shown == [HOSTS[hosts]]


def test_a_server_that_wants_another_one(doors: Doors, ask: Ask) -> None:
    """Its alert is about us, so a person is told which Secret to look into."""
    with faults.Server(doors.context(must=True)) as server:
        server.serve("/a", Reply(b"x"))
        for certificate in ({}, pair(trustme.CA())):
            with pytest.raises(SourceUnauthorized, match=r"another client certificate, .* clientCertificateRef"):
                drain(ask(server.url("/a"), certificate=certificate))
        assert server.requests == []
    with faults.Server(doors.context(must=True, newest=ssl.TLSVersion.TLSv1_2)) as server:
        with pytest.raises(SourceUnauthorized, match="another client certificate"):
            ask(server.url("/a"), certificate=pair(trustme.CA()))
        with pytest.raises(SourceUnavailable, match="TLS failed"):  # before TLS 1.3 this alert tells no reason
            ask(server.url("/a"))


def test_the_server_is_still_checked(doors: Doors, robots: trustme.CA, ask: Ask) -> None:
    """A certificate of ours says nothing about the server's."""
    with faults.Server(doors.context()) as server:
        server.serve("/a", Reply(b"x"))
        with pytest.raises(SourceUnavailable, match="certificate is not accepted"):
            ask(server.url("/a"), certificate=pair(robots), ca_bundle=None)
        assert doors.shown == []
        options: dict[str, Any] = {"ca_bundle": None, "insecure_skip_tls_verify": True}
        assert drain(ask(server.url("/a"), certificate=pair(robots), **options)) == b"x"


def changed(**parts: str) -> Callable[[dict[str, SecretStr]], dict[str, SecretStr]]:
    """The pair with these parts instead."""
    return lambda good: good | {f"tls.{name}": SecretStr(value) for name, value in parts.items()}


def locked(form: PrivateFormat) -> Callable[[dict[str, SecretStr]], dict[str, SecretStr]]:
    """The pair with the key under a passphrase."""

    def lock(good: dict[str, SecretStr]) -> dict[str, SecretStr]:
        key = load_pem_private_key(good["tls.key"].get_secret_value().encode(), None)
        pem = key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"passphrase"))
        return good | {"tls.key": SecretStr(pem.decode())}

    return lock


BAD: dict[str, tuple[Callable[[dict[str, SecretStr]], dict[str, SecretStr]], str]] = {
    "a key under a passphrase": (locked(PrivateFormat.PKCS8), "is encrypted; keep it there without"),
    "the same in the old form": (locked(PrivateFormat.TraditionalOpenSSL), "is encrypted; keep it there without"),
    "another's key": (
        lambda good: good | {"tls.key": pair(trustme.CA())["tls.key"]},
        "the key is not the certificate's",
    ),
    "swapped": (lambda good: {"tls.crt": good["tls.key"], "tls.key": SecretStr("")}, "cannot be used"),
    "no certificate": (changed(crt="s3cret nonsense"), "cannot be used"),
    "no key": (changed(key="s3cret nonsense"), "cannot be used"),
    "a key that is none": (
        changed(key="-----BEGIN PRIVATE KEY-----\nczNjcmV0\n-----END PRIVATE KEY-----\n"),
        "cannot be used",
    ),
    "nothing": (changed(crt="", key=""), "cannot be used"),
    "not ASCII": (changed(key="s3cr\u00e9t"), "cannot be used"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_certificate_that_cannot_be_shown(
    doors: Doors, robots: trustme.CA, ask: Ask, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said what is wrong, nobody is asked for a passphrase at a terminal, and no word of a key comes out."""
    change, message = BAD[name]
    words = f"in the Secret of clientCertificateRef.*{message}"
    with faults.Server(doors.context()) as server, pytest.raises(InvalidConfiguration, match=words) as caught:
        ask(server.url("/a"), certificate=change(pair(robots)))
    told: Sequence[object] = (caught.value.message, repr(caught.value.__cause__), *capfd.readouterr())
    assert not any(word in str(text) for text in told for word in ("s3cr", "PRIVATE", "BEGIN"))
    assert doors.shown == []


def test_no_trace_of_a_key_is_left(doors: Doors, robots: trustme.CA, ask: Ask) -> None:
    """No open file has it once it has been read, or once it could not be."""
    with faults.Server(doors.context(must=True)) as server:
        server.serve("/a", Reply(b"x"))
        drain(ask(server.url("/a"), certificate=pair(robots)))
        with pytest.raises(InvalidConfiguration):
            ask(server.url("/a"), certificate=changed(key="nonsense")(pair(robots)))
        links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert links
    assert not [link for link in links if "certificate" in link]
