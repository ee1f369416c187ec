"""Requests that are made to be read in two ways, or to reach what they must not: refused, and nothing of it comes true.

Each is sent as it stands here, byte by byte, on a connection of its own, with a second request behind it wherever a
server that reads lengths in another way than the first one would take it for one. What was read as a request is looked
up in the gateway's log: an answer may be lost where a connection is reset.
"""

import contextlib
import json
import re
from urllib.parse import quote

import pytest
from tests.gateway.test_hostile import connected, everything

from servers.glimpse import Glimpse
from servers.shelf import Shelf, Shown, ask

STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
TUS = {
    "Tus-Resumable": "1.0.0",
    "Upload-Length": "2",
    "Upload-Offset": "0",
    "Content-Type": "application/offset+octet-stream",
    "X-HTTP-Method-Override": "HEAD",
}
SECOND = b"GET /the-second-one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def image(shelf: Shelf, namespace: str) -> Shown:
    """Its bytes are told from all else."""
    return shelf.image(namespace, b"SECRET bytes", store=shelf.store())


@pytest.fixture(params=["PUT", "PATCH", "POST"])
def aim(request: pytest.FixtureRequest, image: Shown) -> str:
    """A request with a body, up to its version: an upload, a part of one, a wish for a link."""
    more = {"PUT": "", "PATCH": f"/uploads/{image.name}-0123456789", "POST": "/links"}
    return f"{request.param} {image.path}{more[request.param]}"


@pytest.fixture(params=["get", "get,update"])
def may(request: pytest.FixtureRequest, shelf: Shelf, namespace: str) -> str:
    """The headers of one who may download, and of one who may upload too."""
    verbs = request.param.split(",")
    tus = "".join(f"{name}: {value}\r\n" for name, value in TUS.items() if name != "X-HTTP-Method-Override")
    return f"Host: x\r\nAuthorization: Bearer {shelf.grant(namespace, 'tenant', verbs=verbs)}\r\n{tus}"


def said(gateway: str, sent: bytes) -> tuple[list[int], bytes]:
    """The statuses that come back, and all of it; less where the connection was reset."""
    with connected(gateway) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
        got = everything(connection)
    return [int(status) for status in STATUS.findall(got)], got


class Log:
    """What the gateway has written since."""

    def __init__(self, glimpse: Glimpse) -> None:
        self._file = glimpse.processes["gateway"].log
        self._before = len(self._file.read_text())

    def requests(self, path: str) -> list[str]:
        """The lines of the requests for this path."""
        return [line for line in self._new() if f" {path}" in line]

    @property
    def no_requests(self) -> int:
        """How often something came that is none."""
        return sum("sent what is no request" in line for line in self._new())

    def _new(self) -> list[str]:
        text = self._file.read_text()[self._before :]
        assert "Traceback" not in text
        return text.splitlines()


@pytest.mark.parametrize("lines", ["Content-Length: 5", "content-length:5\t", "Transfer-Encoding: chunked"])
def test_what_is_read_in_one_way(gateway: str, glimpse: Glimpse, *, aim: str, may: str, lines: str) -> None:
    """The second request is answered where the first one has an end that all see: else nothing would be proven here."""
    log = Log(glimpse)
    statuses, got = said(gateway, f"{aim} HTTP/1.1\r\n{may}{lines}\r\n\r\n0\r\n\r\n".encode() + SECOND)
    assert statuses[0] in (201, 400, 403, 404, 409, 411, 503), got
    assert statuses[1:] == [404], got
    assert len(log.requests("/the-second-one")) == 1


LENGTHS = {
    "two": "Content-Length: 2\r\nContent-Length: 100",
    "the same twice": "Content-Length: 2\r\nContent-Length: 2",
    "a list": "Content-Length: 2, 2",
    "plus": "Content-Length: +2",
    "minus": "Content-Length: -2",
    "hex": "Content-Length: 0x2",
    "underscore": "Content-Length: 1_0",
    "other digits": "Content-Length: \u0662",
    "empty": "Content-Length: ",
    "beyond all numbers": "Content-Length: " + "9" * 400,
    "space before the colon": "Content-Length : 2",
    "folded": "Content-Length:\r\n 2",
    "and chunked": "Content-Length: 2\r\nTransfer-Encoding: chunked",
    "chunked and": "Transfer-Encoding: chunked\r\nContent-Length: 2",
    "chunked twice": "Transfer-Encoding: chunked, chunked",
    "chunked last": "Transfer-Encoding: gzip, chunked",
    "an unknown one": "Transfer-Encoding: foo, chunked",
    "chunked not last": "Transfer-Encoding: chunked, gzip",
    "not chunked": "Transfer-Encoding: xchunked",
    "quoted": 'Transfer-Encoding: "chunked"',
    "tab": "Transfer-Encoding:\x0bchunked",
    "bare line feed": "X: y\nTransfer-Encoding: chunked",
    "bare return": "X: y\rTransfer-Encoding: chunked",
}


@pytest.mark.parametrize("lines", LENGTHS.values(), ids=LENGTHS)
def test_smuggled_lengths(gateway: str, glimpse: Glimpse, *, aim: str, may: str, lines: str) -> None:
    """What says its length in two ways, or in none that counts, gets one refusal, and the connection ends."""
    log = Log(glimpse)
    statuses, got = said(gateway, f"{aim} HTTP/1.1\r\n{may}{lines}\r\n\r\n0\r\n\r\n".encode() + SECOND)
    assert statuses == [400], got
    assert b"application/problem+json" in got
    assert log.no_requests == 1
    assert log.requests("/") == []


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n", "Content-Length: 5\r\n"])
def test_chunks_of_an_old_protocol(gateway: str, glimpse: Glimpse, *, aim: str, may: str, more: str) -> None:
    """HTTP/1.0 knows no chunks: who sends some means another end of the request than another server sees (RFC 9112)."""
    log = Log(glimpse)
    head = f"{aim} HTTP/1.0\r\n{may}{more}Transfer-Encoding: chunked\r\n\r\n".encode()
    statuses, got = said(gateway, head + b"0\r\n\r\n" + SECOND)
    assert statuses == [400], got
    assert log.requests("/") == []


CHUNKS = {
    "no number": b"x\r\n{}\r\n0\r\n\r\n",
    "negative": b"-1\r\n{}\r\n0\r\n\r\n",
    "prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n{}\r\n0\r\n\r\n",
    "space": b" 2\r\n{}\r\n0\r\n\r\n",
    "beyond all numbers": b"f" * 400 + b"\r\n{}\r\n0\r\n\r\n",
    "longer than it says": b"1\r\n{}\r\n0\r\n\r\n",
    "no end of a line": b"2\r\n{}XX0\r\n\r\n",
    "an extension without an end": b"2;" + b"a" * 100_000,
    "a trailer without an end": b"2\r\n{}\r\n0\r\nX: " + b"a" * 100_000,
    "a trailer that is none": b"2\r\n{}\r\n0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_chunked_garbage(gateway: str, glimpse: Glimpse, *, aim: str, may: str, chunks: bytes) -> None:
    """Chunks that are none end the connection, with one refusal; what stands behind them is no request."""
    log, path = Log(glimpse), aim.split()[1]
    statuses, got = said(
        gateway, f"{aim} HTTP/1.1\r\n{may}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + SECOND
    )
    # the body is looked at before the request is, or behind the answer of one who hears that he may not send it
    assert log.no_requests + len(log.requests(path)) >= 1
    assert len(log.requests(path)) <= 1
    assert log.requests("/the-second-one") == []
    assert len(statuses) <= 1, got
    assert all(status in (400, 403, 404, 409, 413, 431) for status in statuses), got


def test_garbage_after_a_good_beginning(gateway: str, image: Shown, token: str) -> None:
    """Who reads a body is told at once when what comes is none, and does not wait for the rest; nothing follows."""
    login = f"Host: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    with connected(gateway) as connection:
        connection.sendall(f"POST {image.path}/links HTTP/1.1\r\n{login}".encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"nonsense\r\n" + SECOND)
        got = everything(connection)
    assert STATUS.findall(got) == [b"400"], got
    assert b"The body of this request is malformed." in got


@pytest.mark.parametrize(
    "trick",
    [
        "/v1/namespaces/{namespace}/images/../images/{name}",
        "/v1/namespaces/{namespace}/images/%2e%2e/images/{name}",
        "/v1/namespaces/{namespace}/images/..%2fimages%2f{name}",
        "/v1/namespaces/{namespace}/images//{name}",
        "//v1/namespaces/{namespace}/images/{name}",
        "/v1/namespaces/{namespace}/images/{name}/",
        "/v1/namespaces/{namespace}/images/{name}/.",
        "/v1/namespaces/{namespace}/images/{name}%00",
        "/v1/namespaces/{namespace}/images/{name};x=y",
        "/v1/namespaces/{namespace}/images/{name}%0a",
        "/v1/namespaces/{namespace}/images/{name}%2f",
        "/v1/namespaces/{namespace}/images\\{name}",
        "/V1/namespaces/{namespace}/images/{name}",
        "/v1/namespaces/{namespace}/images/{upper}",
        "/v1/namespaces/{namespace}/images/%c0%ae%c0%ae/{name}",
        "/v1/namespaces/{namespace}/images/{name}/revisions/%2e%2e",
        "/v1/namespaces/{namespace}/images/{name}/revisions/1/../../../../../etc/passwd",
        "/v1/namespaces/{namespace}/images/{name}/revisions/\u0661",
        "/v1/namespaces/{namespace}/images/{name}/revisions/+1",
        "/v1/namespaces/{namespace}/images/{name}/revisions/-1",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "*",
    ],
)
def test_path_tricks(gateway: str, image: Shown, token: str, trick: str) -> None:
    """There is one address for each thing: what only looks like it is not there, or no request, with any token."""
    path = trick.format(namespace=image.namespace, name=image.name, upper=image.name.upper())
    path = quote(path, safe="/%;:+\\*")
    login = f"Host: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    statuses, got = said(gateway, f"GET {path} HTTP/1.1\r\n{login}".encode())
    assert statuses in ([400], [404]), got
    assert b"SECRET" not in got
    assert b"root:" not in got


@pytest.mark.parametrize("where", ["path", "query", "name", "revision"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\u010d\u010a", "\u2028"])
def test_line_breaks(gateway: str, glimpse: Glimpse, *, image: Shown, token: str, where: str, end: str) -> None:
    """No line break of a caller, encoded in whatever way, begins a line of an answer or of the log."""
    evil = quote(f"x{end}Injected: yes{end}{end}<script>")
    path = {
        "path": f"/{evil}",
        "query": f"{image.path}?uid={evil}&{evil}={evil}",
        "name": f"{image.path}{evil}",
        "revision": f"{image.path}/revisions/{evil}?uid={image.uid}",
    }[where]
    answer = ask(gateway + path, token=token)
    assert answer.status in (200, 404)
    assert "Injected" not in answer.headers
    assert b"Injected" not in answer.body
    assert not re.search("^Injected", glimpse.processes["gateway"].log.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "header", ["Authorization", "Range", "If-Range", "If-None-Match", "If-Match", "If-Modified-Since", "Cookie", "Host"]
)
def test_header_bombs(gateway: str, image: Shown, token: str, header: str) -> None:
    """A header as long as may be, full of what is costly to read, is read at once, and means nothing."""
    for value in ('"' * 8000, "," * 8000, "W/" * 4000, "bytes=" + "0-," * 2600, "a=b; " * 1600, "(" * 8000):
        answer = ask(gateway + image.path, token=token, headers={header: value}, timeout=30)
        assert answer.status in (200, 206, 304, 400, 401, 412, 416), answer.body
        assert answer.status == 206 or len(answer.body) < 1000


def test_another_tenant_s_token(gateway: str, shelf: Shelf, image: Shown) -> None:
    """At every address, by every method, another tenant hears of an image that is there what he hears of none."""
    stranger = shelf.grant(shelf.cluster.namespace(), "stranger", verbs=("get", "update"))
    document = json.loads(ask(gateway + "/openapi.json").body)
    asked = 0
    for path, operations in document["paths"].items():
        if "{namespace}" not in path:
            continue
        for method in {each.upper() for each in operations} - {"OPTIONS"}:  # which speaks of the protocol alone
            answers = []
            for name in (image.name, "no-such-image"):
                file = "1" if "revisions" in path else name
                where = path.format(namespace=image.namespace, name=name, file=file, upload=f"{name}-0123456789")
                body = b"{}" if method in ("PUT", "POST", "PATCH") else None
                url = f"{gateway}{where}?uid={image.uid}"
                got = ask(url, token=stranger, method=method, body=body, headers=TUS)
                answers.append((got.status, got.body, sorted(set(got.headers) - {"Date"})))
            assert answers[0] == answers[1], (method, path)
            assert answers[0][0] == 404
            asked += 1
    assert asked >= 6
    assert image.name.encode() not in ask(f"{gateway}/v1/images", token=stranger).body


@pytest.mark.parametrize(
    "odd", ["-", ".", "..", "-.", "a-", "a.", ".a", "a..b", "a.-b", "0", "a" * 70, "a" * 200, "%2e"]
)
def test_odd_names(gateway: str, glimpse: Glimpse, *, shelf: Shelf, image: Shown, odd: str) -> None:
    """No part of an address, at no address and by no method, is a name that makes the gateway stumble."""
    token, log = shelf.grant(image.namespace, "owner", verbs=("get", "update")), Log(glimpse)
    document = json.loads(ask(gateway + "/openapi.json").body)
    asked = 0
    for path, operations in document["paths"].items():
        parts = re.findall("{([a-z]+)}", path)
        named = {"namespace": image.namespace, "name": image.name, "file": image.name, "upload": "a-0123456789"}
        for part in parts:
            where = path.format(**named | {part: odd})
            for method in {each.upper() for each in operations} - {"OPTIONS"}:
                body = b"{}" if method in ("PUT", "POST", "PATCH") else None
                got = ask(f"{gateway}{where}?uid={odd}", token=token, method=method, body=body, headers=TUS)
                assert got.status == 404, (method, where, got.status)
                asked += 1
    assert asked >= 15
    assert len(log.requests("/v1/")) == asked
