"""The HTTP source against a real server that does everything wrong."""

import base64
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self

import pytest
import trustme
from pydantic import SecretStr

from glimpse.problems import (
    InvalidConfiguration,
    Problem,
    SourceForbidden,
    SourceNotFound,
    SourceRefused,
    SourceUnauthorized,
    SourceUnavailable,
    WorkerLost,
)
from glimpse.settings import Addresses, Transfers
from glimpse.sources import OpenSource, shown
from glimpse.sources.http import open_http
from glimpse.streams import CHUNK
from glimpse.tasks import HttpOrigin
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server

LOOPBACK = Addresses.model_validate({"allow": ["127.0.0.0/8", "::1/128"]})
PATIENT = Transfers(connect_timeout=5, idle_timeout=20, redirects=3)
DATA = noise(3 * CHUNK + 17)


@pytest.fixture
def secure(tls: ssl.SSLContext) -> Iterator[Server]:
    """The server over TLS."""
    with faults.Server(tls) as server:
        yield server


Open = Callable[..., OpenSource]


@pytest.fixture
def opened(authority: trustme.CA) -> Iterator[Open]:
    """Opens URLs of this machine, trusting the authority; the first is opened, all are the origin's."""
    sources: list[OpenSource] = []

    def start(*urls: str, transfers: Transfers = PATIENT, cancelled: threading.Event | None = None, **more: Any) -> Any:
        options = {"ca_bundle": authority.cert_pem.bytes().decode(), **more}
        origin = HttpOrigin(urls=urls, **options)
        source = open_http(origin, urls[:1], LOOPBACK, transfers, cancelled or threading.Event())
        sources.append(source)
        return source

    yield start
    for source in sources:
        source.close()


def drain(source: OpenSource) -> bytes:
    """All of it."""
    return b"".join(iter(source.read, b""))


# What works


@pytest.mark.parametrize("length", [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, len(DATA)])
@pytest.mark.parametrize("how", [{}, {"chunked": 1000}, {"chunked": 3 * CHUNK}, {"length": None}])
def test_bytes_arrive_as_they_are(web: Server, opened: Open, length: int, how: dict[str, Any]) -> None:
    """With a length, in chunks, or up to the end of the connection: the bytes are exact, the length known if told."""
    web.serve("/a.img", Reply(DATA[:length], **how))
    source = opened(web.url("/a.img"))
    assert source.size == (None if how else length)
    assert drain(source) == DATA[:length]
    assert source.read() == b""


def test_the_request_is_plain(plain: Server, opened: Open) -> None:
    """We say who we are, want the bytes as they are, and send what we were given as path and query."""
    plain.serve("/a b/ü.img", Reply(b"x"))
    plain.serve("/a%20b/%C3%BC.img", Reply(b"x"))
    drain(opened(plain.url("/a%20b/%C3%BC.img?token=1&x=%2F#part")))
    [request] = plain.requests
    assert request.path == "/a%20b/%C3%BC.img?token=1&x=%2F"
    assert request.headers["user-agent"].startswith("glimpse/")
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["host"] == f"127.0.0.1:{plain.port}"
    assert "authorization" not in request.headers


def test_what_the_server_says_of_its_file(plain: Server, opened: Open) -> None:
    """Validators are kept as sent, so that they can be sent again; what could not be is left out."""
    date = "Tue, 01 Sep 2026 00:00:00 GMT"
    plain.serve("/a", Reply(b"x", headers={"ETag": '"v1"', "Last-Modified": date}))
    plain.serve("/b", Reply(b"x", headers={"ETag": '"' + "v" * 2000 + '"', "Last-Modified": "d\u00e9cembre"}))
    source = opened(plain.url("/a?secret=1"))
    assert (source.etag, source.last_modified, source.url) == ('"v1"', date, plain.url("/a"))
    source = opened(plain.url("/b"))
    assert (source.etag, source.last_modified) == (None, None)


def test_no_proxy_of_the_environment_is_used(plain: Server, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to addresses that nobody checked."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    plain.serve("/a", Reply(b"x"))
    assert drain(opened(plain.url("/a"))) == b"x"


def test_a_trickle_is_no_silence(web: Server, opened: Open) -> None:
    """Bytes that come slowly but do come are waited for, and are handed on before a chunk is full."""
    web.serve("/a", Reply(DATA[:50_000], trickle=(5_000, 0.2)))
    source = opened(web.url("/a"))
    first = source.read()
    assert 0 < len(first) < 50_000
    assert first + drain(source) == DATA[:50_000]


# What the server answers

ANSWERS: dict[int, type[Problem]] = {
    **dict.fromkeys((404, 410), SourceNotFound),
    **dict.fromkeys((401, 403, 407), SourceUnauthorized),
    **dict.fromkeys((400, 402, 405, 406, 409, 412, 416, 418, 451, 499), SourceRefused),
    **dict.fromkeys((201, 203, 204, 205, 300, 301, 302, 303, 305, 307, 308), SourceRefused),
    **dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 599), SourceUnavailable),
    # a promise, or nonsense: nothing to keep, and nothing that a person could mend
    **dict.fromkeys((202, 206, 304, 999), SourceUnavailable),
}


@pytest.mark.parametrize("status", ANSWERS)
def test_answers_have_their_problem(plain: Server, opened: Open, status: int) -> None:
    """Each status is the Problem that says what to do; the message has the status, and no word of the body."""
    plain.serve("/a", Reply(b"overheard words", status=status))
    with pytest.raises(ANSWERS[status], match=f"answered {status}") as caught:
        opened(plain.url("/a?password=1"))
    assert "overheard" not in caught.value.message
    assert "password" not in caught.value.message
    assert caught.value.message.startswith(plain.url("/a: "))


def test_an_answer_without_a_file_says_so(plain: Server, opened: Open) -> None:
    """Who has a wrong URL is told what is wrong with it."""
    for status, words in ((204, "comes no file"), (300, "comes no file"), (302, "did not say where to")):
        plain.serve("/a", Reply(status=status))
        with pytest.raises(SourceRefused, match=words):
            opened(plain.url("/a"))


def test_a_long_url_leaves_room_for_the_reason(plain: Server, opened: Open) -> None:
    """Of a place of thousands of characters a message has both ends."""
    plain.serve("/a", Reply.redirect(f"/{'x' * 8000}/end.img"))
    with pytest.raises(SourceNotFound, match=r"x…x+/end\.img: the server answered 404") as caught:
        opened(plain.url("/a"))
    assert len(caught.value.message) < 300
    place = f"/{'x' * 4000}"
    plain.serve("/b", Reply.redirect(place))
    plain.serve(place, Reply(b"x", length=9))
    with pytest.raises(SourceUnavailable) as early:
        drain(opened(plain.url("/b")))
    assert len(early.value.message) < 300


def test_retry_after_is_heard(plain: Server, opened: Open) -> None:
    """In seconds or as a date, an hour at most; nonsense is no wish."""
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    for value, least, most in (("7", 7, 7), ("99999999", 3600, 3600), (in_a_minute, 50, 61), ("0", 0, 0)):
        plain.serve("/a", Reply(status=503, headers={"Retry-After": value}))
        with pytest.raises(SourceUnavailable) as caught:
            opened(plain.url("/a"))
        assert caught.value.retry_after is not None
        assert least <= caught.value.retry_after <= most
    for value in ("soon", "-1", "Thu, 01 Jan 1970 00:00:00 GMT", "9" * 400, "²"):
        plain.serve("/a", Reply(status=429, headers={"Retry-After": value.encode().decode("latin-1")}))
        with pytest.raises(SourceUnavailable) as caught:
            opened(plain.url("/a"))
        assert caught.value.retry_after in {None, 0.0, 3600.0}


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip"])
def test_a_coding_on_the_way_is_refused(plain: Server, opened: Open, coding: str) -> None:
    """Compressed on the way these are not the file's bytes, and their length is not its length."""
    plain.serve("/a", Reply(b"x", headers={"Content-Encoding": coding}))
    with pytest.raises(SourceRefused, match="compresses"):
        opened(plain.url("/a"))


# Breaks


@pytest.mark.parametrize("how", [{}, {"chunked": 1000}, {"length": len(DATA) + 1, "body": DATA}])
@pytest.mark.parametrize("cut", [0, 1, 1000, CHUNK, len(DATA) - 1])
def test_an_early_end_is_seen(web: Server, opened: Open, how: dict[str, Any], cut: int) -> None:
    """A connection that ends before the body does is SourceUnavailable, wherever it ends."""
    web.serve("/a", Reply(**{"body": DATA, "cut": cut, **how}))
    source = opened(web.url("/a"))
    with pytest.raises(SourceUnavailable, match="ended early"):
        drain(source)


def test_a_reset_is_seen(plain: Server, opened: Open) -> None:
    """A machine that crashes sends RST."""
    plain.serve("/a", Reply(DATA, cut=1000, reset=True))
    source = opened(plain.url("/a"))
    with pytest.raises(SourceUnavailable, match=r"reset|ended early"):
        drain(source)


@pytest.mark.parametrize("length", [0, 1, CHUNK, len(DATA) - 1])
def test_more_than_was_announced_is_seen(web: Server, opened: Open, length: int) -> None:
    """A server that goes on after the announced length did not mean what it said: its end is not handed out."""
    web.serve("/a", Reply(DATA, length=length))
    source = opened(web.url("/a"))
    with pytest.raises(SourceUnavailable, match=f"announced {length} bytes, and sent more"):
        drain(source)


def test_an_end_of_tls_without_goodbye_is_no_end(secure: Server, opened: Open) -> None:
    """Where the end of the connection is the end of the body, anybody could cut it; TLS tells (RFC 9112 9.8)."""
    secure.serve("/a", Reply(DATA, length=None, cut=CHUNK))
    source = opened(secure.url("/a"))
    with pytest.raises(SourceUnavailable):
        drain(source)


@pytest.mark.parametrize("stall", [{"stall_head": True}, {"stall": 0}, {"stall": 1000}, {"stall": 2 * CHUNK}])
def test_silence_ends_the_wait(web: Server, opened: Open, stall: dict[str, Any]) -> None:
    """A server that says nothing for the idle timeout is given up, before the answer as within it."""
    web.serve("/a", Reply(DATA, **stall))
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match=r"sent nothing for 0\.5 s"):
        drain(opened(web.url("/a"), transfers=PATIENT.model_copy(update={"idle_timeout": 0.5})))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("stall", [{"stall_head": True}, {"stall": 2 * CHUNK}])
def test_cancelling_ends_the_wait(web: Server, opened: Open, stall: dict[str, Any]) -> None:
    """A transfer that nobody wants any more ends within a second or so, though the server may be silent for an hour."""
    web.serve("/a", Reply(DATA, **stall))
    cancelled = threading.Event()

    def cancel() -> None:
        web.wait_for("/a", sent=stall.get("stall", 0))
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(WorkerLost, match="cancelled"):
        drain(opened(web.url("/a"), transfers=Transfers(idle_timeout=3600), cancelled=cancelled))
    thread.join()


class Drip:
    """A server that sends `head`, and then `drop` again and again, for as long as somebody listens."""

    def __init__(self, head: bytes, drop: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/a"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, args=(head, drop))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _talk(self, head: bytes, drop: bytes) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # the client has gone
                connection.recv(1 << 16)
                connection.sendall(head)
                while not self._over.wait(0.05):
                    connection.sendall(drop)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "drop", "message"),
    [
        (b"", b"H", "more than 0.5 s for the head"),
        (OK, b"X: y\r\n", "more than 0.5 s for the head"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", "more than 0.5 s for the head"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, "answers that are none"),
        (CHUNKED + b"0\r\n", b"X: y\r\n", "more than 0.5 s for the head or the end"),
        (OK + b"Content-Length: 1000000\r\n\r\n", b"x", "less than 1024 bytes/s over 1 s"),
        (CHUNKED, b"1\r\nx\r\n", "less than 1024 bytes/s over 1 s"),
    ],
)
def test_a_drip_does_not_hold_a_slot(opened: Open, head: bytes, drop: bytes, message: str) -> None:
    """A server that always sends a little more is given up: by time in head and trailers, by rate in the body."""
    with Drip(head, drop) as server, pytest.raises(SourceUnavailable, match=message):
        drain(opened(server.url, transfers=Transfers(idle_timeout=0.5, rate_window=1)))


@pytest.mark.parametrize(("head", "drop"), [(b"", b"H"), (CHUNKED + b"0\r\n", b"X: y\r\n"), (CHUNKED, b"1\r\nx\r\n")])
def test_cancelling_ends_a_drip(opened: Open, head: bytes, drop: bytes) -> None:
    """Somebody who cancels is heard also while bytes come."""
    cancelled = threading.Event()
    timer = threading.Timer(0.3, cancelled.set)
    timer.start()
    with Drip(head, drop) as server, pytest.raises(WorkerLost, match="cancelled"):
        drain(opened(server.url, transfers=Transfers(idle_timeout=3600), cancelled=cancelled))
    timer.join()


def test_a_slow_reader_is_not_a_slow_server(plain: Server, opened: Open) -> None:
    """Time that we spend between two reads, as a slow store makes us, does not count."""
    plain.serve("/a", Reply(DATA))
    source = opened(plain.url("/a"), transfers=Transfers(minimum_rate=1 << 40, rate_window=1))
    first = source.read()
    threading.Event().wait(1.1)
    assert first + drain(source) == DATA


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
def test_answers_before_the_answer_are_skipped(plain: Server, opened: Open, interim: bytes) -> None:
    """RFC 9110 15.2: the final answer comes after them."""
    hint = b"HTTP/1.1 " + interim + b"\r\nLink: </x>\r\n\r\n"
    plain.serve("/a", Reply(raw=hint * 2 + OK + b"Content-Length: 1\r\n\r\nx"))
    assert drain(opened(plain.url("/a"))) == b"x"


def test_a_closed_port_is_unavailable(opened: Open) -> None:
    """Nobody listens: time may mend it, and the message has the system's word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceUnavailable, match=r"no connection to 127\.0\.0\.1: Connection refused"):
        opened(f"http://127.0.0.1:{port}/a")


def test_a_server_that_does_not_accept_is_given_up(opened: Open) -> None:
    """The connect timeout holds for the handshake of TLS too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a"
        with pytest.raises(SourceUnavailable, match="took too long"):
            opened(url, transfers=Transfers(connect_timeout=0.2))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x10\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nsecret\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nsecret",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nX: secret\r\n",
        b"HTTP/1.1 200 OK\r\nX: secret",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nsecret",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\nsecret",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\nsecret",
    ],
)
def test_answers_that_are_no_http(plain: Server, opened: Open, raw: bytes) -> None:
    """Whatever comes, it ends as SourceUnavailable, and the message does not quote it."""
    plain.serve("/a", Reply(raw=raw))
    with pytest.raises(SourceUnavailable) as caught:
        drain(opened(plain.url("/a")))
    for word in ("secret", "SSH", "banana"):
        assert word not in caught.value.message


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b", "b", "//{host}/b", "http://{host}/b", "?x=1"])
def test_redirects_are_followed(plain: Server, opened: Open, status: int, location: str) -> None:
    """Relative or absolute; the place that is kept is where the bytes came from."""
    to = Reply.redirect(location.format(host=f"127.0.0.1:{plain.port}"), status)
    plain.serve("/a", to, Reply(b"x"))
    plain.serve("/b", Reply(b"x"))
    source = opened(plain.url("/a"))
    assert drain(source) == b"x"
    assert source.url == plain.url("/a" if location.startswith("?") else "/b")


@pytest.mark.parametrize(
    ("location", "problem", "message"),
    [
        ("/a", SourceRefused, "redirects in a circle"),
        ("/a#again", SourceRefused, "redirects in a circle"),
        ("ftp://127.0.0.1/a", SourceRefused, "no plain http or https URL"),
        ("file:///etc/passwd", SourceRefused, "no plain http or https URL"),
        ("http://user:secret@127.0.0.1/a", SourceRefused, "no plain http or https URL"),
        ("http://[::1", SourceRefused, "no plain http or https URL"),
        ("http://169.254.169.254/latest/meta-data", SourceForbidden, "GLIMPSE_ADDRESSES__ALLOW"),
        ("http://[::ffff:10.0.0.1]/", SourceForbidden, "GLIMPSE_ADDRESSES__ALLOW"),
        ("http://167772161/", SourceForbidden, "GLIMPSE_ADDRESSES__ALLOW"),
    ],
)
def test_redirects_that_are_not_followed(
    plain: Server, opened: Open, location: str, problem: type[Problem], message: str
) -> None:
    """Circles, other schemes, credentials and forbidden addresses end the fetch for good."""
    plain.serve("/a", Reply.redirect(location))
    with pytest.raises(problem, match=message) as caught:
        opened(plain.url("/a"))
    assert "secret" not in caught.value.message


def test_redirects_have_a_limit(plain: Server, opened: Open) -> None:
    """As many as the setting says, and no more."""
    for hop in range(10):
        plain.serve(f"/{hop}", Reply.redirect(f"/{hop + 1}"))
    plain.serve("/3", Reply(b"x"))
    assert drain(opened(plain.url("/0"))) == b"x"
    plain.serve("/3", Reply.redirect("/4"))
    with pytest.raises(SourceRefused, match="more than 3 times"):
        opened(plain.url("/0"))
    assert not plain.asked("/4")


def test_https_does_not_become_http(plain: Server, secure: Server, opened: Open) -> None:
    """The other way round is fine."""
    plain.serve("/a", Reply.redirect(secure.url("/b")))
    secure.serve("/b", Reply(b"x"))
    assert drain(opened(plain.url("/a"))) == b"x"
    secure.serve("/b", Reply.redirect(plain.url("/c")))
    with pytest.raises(SourceRefused, match="from https to http"):
        opened(secure.url("/b"))
    assert not plain.asked("/c")


def test_a_name_is_looked_up_once(plain: Server, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere at the second look-up gains nothing: the checked address is the one connected to."""
    answers = ["127.0.0.1", "169.254.169.254"]

    def getaddrinfo(_host: str, port: int, **_options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    plain.serve("/a", Reply(b"x"))
    assert drain(opened(plain.url("/a", host="mirror.example"))) == b"x"
    assert answers == ["169.254.169.254"]
    assert plain.requests[0].headers["host"] == f"mirror.example:{plain.port}"
    with pytest.raises(SourceForbidden):
        opened(plain.url("/a", host="mirror.example"))


# Credentials

BASIC = {"username": SecretStr("ada"), "password": SecretStr("lovelace:1")}
SENT = "Basic " + base64.b64encode(b"ada:lovelace:1").decode()


def test_credentials_are_sent(web: Server, opened: Open) -> None:
    """Username and password as Basic, a token as Bearer."""
    web.serve("/a", Reply(b"x"))
    drain(opened(web.url("/a"), secret=BASIC))
    drain(opened(web.url("/a"), secret={"token": SecretStr("t0k3n")}))
    assert [request.headers["authorization"] for request in web.requests] == [SENT, "Bearer t0k3n"]


def test_credentials_stay_with_the_servers_of_the_spec(plain: Server, opened: Open) -> None:
    """A redirect to another origin, be it another port, goes without; one back, or to another mirror, goes with."""
    with faults.Server() as other, faults.Server() as mirror:
        plain.serve("/a", Reply.redirect(other.url("/a")))
        other.serve("/a", Reply.redirect(mirror.url("/a")))
        mirror.serve("/a", Reply.redirect(plain.url("/b")))
        plain.serve("/b", Reply(b"x"))
        drain(opened(plain.url("/a"), mirror.url("/z"), secret=BASIC))
        sent = [
            server.requests[index].headers.get("authorization")
            for server, index in ((plain, 0), (other, 0), (mirror, 0), (plain, 1))
        ]
    assert sent == [SENT, None, SENT, SENT]


def test_credentials_go_to_the_hosts_of_the_secret_only(plain: Server, opened: Open) -> None:
    """The owner of a Secret may name its hosts; others get nothing, also if the spec names them."""
    plain.serve("/a", Reply(b"x"))
    for hosts, sent in ((("127.0.0.1",), SENT), (("mirror.example",), None)):
        drain(opened(plain.url("/a"), secret=BASIC, secret_hosts=hosts))
        assert plain.requests[-1].headers.get("authorization") == sent


def test_a_refusal_without_any_secret_names_what_to_give(plain: Server, opened: Open) -> None:
    """There is no Secret whose contents could be wrong; and to a server that is not in urls none would go."""
    plain.serve("/a", Reply(status=401))
    with pytest.raises(SourceUnauthorized, match=r"it wants credentials: name a Secret with them in secretRef$"):
        opened(plain.url("/a"))
    with faults.Server() as other:
        other.serve("/b", Reply(status=403))
        plain.serve("/a", Reply.redirect(other.url("/b")))
        words = rf"it wants credentials, which go to the servers named in urls, and 127\.0\.0\.1:{other.port} is none"
        with pytest.raises(SourceUnauthorized, match=words):
            opened(plain.url("/a"))


def test_a_refusal_names_what_was_withheld(plain: Server, opened: Open) -> None:
    """Credentials that were not sent are not called wrong."""
    plain.serve("/a", Reply(status=401))
    for hosts, words in ((("127.0.0.1",), "other credentials"), (("mirror.example",), "glimpse.dev/hosts")):
        with pytest.raises(SourceUnauthorized, match=words):
            opened(plain.url("/a"), secret=BASIC, secret_hosts=hosts)


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ({"username": "ada"}, "username and password, or the key token"),
        ({"key": "x"}, "username and password, or the key token"),
        ({"token": "x\r\nX-Evil: y"}, "line break"),
        ({"token": "x\n"}, "line break"),
        ({"username": "a\nb", "password": "c"}, "line break"),
        ({"token": "tök"}, "no token may have"),
    ],
)
def test_a_secret_that_cannot_be_sent(plain: Server, opened: Open, secret: dict[str, str], message: str) -> None:
    """It says what is wrong with the Secret, not what is in it, and nothing is sent."""
    with pytest.raises(InvalidConfiguration, match=message) as caught:
        opened(plain.url("/a"), secret={key: SecretStr(value) for key, value in secret.items()})
    assert not any(value in caught.value.message for value in secret.values() if len(value) > 1)
    assert not plain.requests


# TLS


def test_an_authority_of_ones_own(secure: Server, opened: Open) -> None:
    """Without it the server is not believed, and the message names the way out; with it, or if told so, it is."""
    secure.serve("/a", Reply(b"x"))
    with pytest.raises(SourceUnavailable, match=r"certificate is not accepted .*caBundleRef"):
        opened(secure.url("/a"), ca_bundle=None)
    assert not secure.requests
    assert drain(opened(secure.url("/a"))) == b"x"
    assert drain(opened(secure.url("/a"), ca_bundle=None, insecure_skip_tls_verify=True)) == b"x"


def test_the_certificate_must_be_for_the_name(authority: trustme.CA, opened: Open) -> None:
    """A connection to an address is still checked against the name in the URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with faults.Server(context) as server:
        server.serve("/a", Reply(b"x"))
        assert drain(opened(server.url("/a", host="localhost"))) == b"x"
        with pytest.raises(SourceUnavailable, match="certificate is not accepted"):
            opened(server.url("/a"))


def test_tls_to_a_plain_server(plain: Server, opened: Open) -> None:
    """A mistake in the URL is a failure of TLS, in words that help."""
    with pytest.raises(SourceUnavailable, match=r"TLS failed|took too long"):
        opened(plain.url("/a").replace("http:", "https:"), transfers=Transfers(connect_timeout=0.5))


def test_a_bundle_that_is_none(secure: Server, opened: Open) -> None:
    """What holds no certificate is a mistake in the spec, not a failure of the server."""
    for bundle in ("no certificate", "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"):
        with pytest.raises(InvalidConfiguration, match="caBundleRef"):
            opened(secure.url("/a"), ca_bundle=bundle)


# URLs


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://mirror.example/a", "file:///etc/passwd", "/a", "http://", "http:///a", "http://[::1/a", "http://a:b/"),
        *("http://u:p@mirror.example/", "http://a/\r\nX: y", "http://a/\x00", "http://a:99999/"),
    ],
)
def test_what_is_no_plain_url(opened: Open, url: str) -> None:
    """It is refused before anything is looked up."""
    with pytest.raises(InvalidConfiguration, match="not a plain http or https URL"):
        opened(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://u:p@a.example:8443/x/y.img?token=1#z", "https://a.example:8443/x/y.img"),
        ("http://A.example", "http://a.example"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://[::1", "a URL that cannot be read"),
    ],
)
def test_shown(url: str, expected: str) -> None:
    """What people see has neither credentials nor query."""
    assert shown(url) == expected
