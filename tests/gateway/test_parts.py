"""Several ranges in one answer (multipart/byteranges), over HTTP and as pure functions."""

import email
import os
import subprocess
from email.message import Message
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.test_copies import begun, rest

from glimpse.gateway.parts import Rest, body
from glimpse.gateway.ranges import GAP, MANY, Span
from glimpse.testing.bodies import noise
from servers.glimpse import Glimpse
from servers.shelf import Answer, Content, Shelf, ask

DATA = noise((4 << 20) + 11)
SIZE = len(DATA)
FAR = f"0-9,{1 << 20}-{(2 << 20) + 4},-5"
"""Three ranges that are worth an answer in parts."""


def parts(content_type: str, content: bytes) -> list[tuple[str, bytes]]:
    """Content-Range and bytes of each part, as the mail library of Python understands them."""
    message = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + content)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    found = []
    for part in message.get_payload():
        assert isinstance(part, Message)
        assert part.get_content_type() == "application/octet-stream"
        assert not part.defects
        found.append((part["Content-Range"], part.get_payload(decode=True)))
    return found  # type: ignore[return-value]  # no part is a multipart itself


def test_parts(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Each range has a part with its place, in the order that was asked; the length is exact, and says no more."""
    data = DATA.replace(b"\r", b"-").replace(b"\n", b"-")  # the mail library reads lines
    image = shelf.image(namespace, data, store=shelf.store())
    got = ask(gateway + image.path, token=token, headers={"Range": f"bytes={FAR}"})
    assert got.status == 206
    assert got.headers["Content-Length"] == str(len(got.body))
    assert parts(got.headers["Content-Type"], got.body) == [
        (f"bytes 0-9/{SIZE}", data[:10]),
        (f"bytes {1 << 20}-{(2 << 20) + 4}/{SIZE}", data[1 << 20 : (2 << 20) + 5]),
        (f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}", data[-5:]),
    ]
    whole = ask(gateway + image.path, token=token, method="HEAD")
    for name in ("ETag", "Last-Modified", "Cache-Control", "Repr-Digest", "Accept-Ranges"):
        assert got.headers[name] == whole.headers[name]
    assert got.headers["Content-Range"] is None
    back = ask(gateway + image.path, token=token, headers={"Range": "bytes=-5,0-9"})
    assert [at for at, _ in parts(back.headers["Content-Type"], back.body)] == [
        f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}",
        f"bytes 0-9/{SIZE}",
    ]


def test_joined(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Ranges that overlap or nearly touch are one, and one is no multipart; all is 200, and nothing 416."""
    image = shelf.image(namespace, DATA, store=shelf.store())

    def get(asked: str) -> Answer:
        return ask(gateway + image.path, token=token, headers={"Range": f"bytes={asked}"})

    for asked in ("0-99,50-149", "0-49,50-149", f"0-9,{10 + GAP // 2}-149", f"0-149,{SIZE}-"):
        got = get(asked)
        assert (got.status, got.headers["Content-Range"]) == (206, f"bytes 0-149/{SIZE}")
        assert (got.headers["Content-Type"], got.body) == ("application/octet-stream", DATA[:150])
    for asked in ("0-,5-6", f"0-{SIZE},{SIZE // 2}-", ",".join(f"{n * 1000}-{n * 1000}" for n in range(MANY + 1))):
        got = get(asked)
        assert (got.status, got.headers["Content-Type"]) == (200, "application/octet-stream")
        assert got.body == DATA
    assert get(f"{SIZE}-,{SIZE + 9}-").status == 416


def test_conditions(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """If-Range decides about several ranges as about one, and HEAD takes none."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    etag = ask(gateway + image.path, token=token, method="HEAD").headers["ETag"]
    for condition, status in ((etag, 206), (f"W/{etag}", 200), ('"other"', 200)):
        headers = {"Range": f"bytes={FAR}", "If-Range": condition}
        got = ask(gateway + image.path, token=token, headers=headers)
        assert got.status == status
        assert got.body == DATA or status == 206
        head = ask(gateway + image.path, token=token, headers=headers, method="HEAD")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(SIZE), b"")
    for headers, status in (({"If-Match": '"other"'}, 412), ({"If-None-Match": etag}, 304)):
        assert ask(gateway + image.path, token=token, headers={"Range": f"bytes={FAR}"} | headers).status == status


def test_with_curl(gateway: str, shelf: Shelf, namespace: str, token: str, tmp_path: Path) -> None:
    """A client of others' making gets on, and the connection can be used for the next request."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    out = tmp_path / "out"
    curl = ["curl", "-sSf", "--oauth2-bearer", token, "-w", "%{num_connects} %{http_code}\n", "-r", FAR]
    url = gateway + image.path
    done = subprocess.run(
        [*curl, "-o", out, url, "-o", tmp_path / "again", url], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "206", "0", "206"]
    for part in (DATA[:10], DATA[1 << 20 : (2 << 20) + 5], DATA[-5:]):
        assert part in out.read_bytes()


@pytest.mark.parametrize("breaks", ["cut", "gone"])
def test_goes_on_with_another_copy(gateway: str, shelf: Shelf, namespace: str, token: str, breaks: str) -> None:
    """A copy that breaks in any part is replaced at the byte where it broke, and its parts stay those that they were.

    One that is removed when it was opened is read to its end, so in all of its parts.
    """
    first, second, data = shelf.store(weight=500), shelf.store(weight=1), noise(64 << 20)
    image = shelf.image(namespace, Content(data, [first, second]))
    spans = [(5, 999), (1 << 20, 60 << 20), (61 << 20, 64 << 20)]
    asked = ",".join(f"{start}-{end - 1}" for start, end in spans)
    with begun(gateway, image.path, token, f"Range: bytes={asked}\r\n") as connection:
        if breaks == "cut":
            os.truncate(shelf.data(first, image.key()), (40 << 20) + 5)
        else:
            shelf.remove(first, image.key())
            shelf.remove(second, image.key())
        got = rest(connection)
    boundary = got[2 : got.index(b"\r\n", 2)]
    pieces = got.split(b"\r\n" + boundary)
    assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
    assert [piece.split(b"\r\n\r\n", 1)[1] == data[a:b] for piece, (a, b) in zip(pieces[1:-1], spans, strict=True)] == [
        True,
        True,
        True,
    ]


def test_hostile_sets(gateway: str, glimpse: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """Thousands of ranges, overlaps and huge numbers cost no more bytes than the image, and no memory."""
    image = shelf.image(namespace, noise(32 << 20), store=shelf.store())
    size = 32 << 20
    sets = [
        ",".join(["0-"] * 1900),
        ",".join(f"{n}-" for n in range(1200)),
        ",".join(f"-{n}" for n in range(1, 1200)),
        ",".join(f"{n * 20000}-{n * 20000}" for n in range(500)),
        ",".join(f"{n}-{n}" for n in range(0, 1400, 2)),
        ",".join([f"0-{'9' * 1900}", f"{'9' * 1900}-", f"-{'9' * 1900}", "5-5"]),
        "," * 5000 + "0-0",
        ",".join(["1-0"] * 1500),
    ]
    before = glimpse.rss()["gateway"]
    for asked in sets:
        got = ask(gateway + image.path, token=token, headers={"Range": f"bytes={asked}"})
        assert got.status in (200, 206)
        assert len(got.body) <= size
    assert glimpse.rss()["gateway"] - before < 32 << 20


@given(cuts=st.sets(st.integers(0, 100), min_size=2, max_size=12), steps=st.lists(st.integers(1, 9), min_size=60))
def test_rest(cuts: set[int], steps: list[int]) -> None:
    """However the bytes go, in whatever steps, what is left is what has not gone, and each head stands once."""
    edges = sorted(cuts)
    spans = [Span(a, b - a) for a, b in pairwise(edges)][::2]
    content = body(spans, 101)
    left, sent, steady = Rest(content.pieces), 0, iter(steps * 3)
    out = bytearray()
    data = bytes(range(101))
    while left:
        out += left.head()
        while left.span.length:
            start, length = left.span
            more = min(length, next(steady))
            out += data[start : start + more]
            left.count(more)
            sent += more
            assert left.head() == b""
        left.next()
    assert len(out) == content.length
    assert left.sent == sent == sum(span.length for span in spans)
    if len(spans) == 1:
        assert bytes(out) == data[spans[0].start :][: spans[0].length]
    else:
        boundary = content.headers["Content-Type"].partition("boundary=")[2].encode()
        assert out.count(boundary) == len(spans) + 1
