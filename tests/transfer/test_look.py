"""A look at the source: when it proves that the bytes are the same, and what comes of bytes that are known."""

import gzip
import hashlib
from typing import Any

import pytest
from pydantic import SecretStr

from glimpse.tasks import ChecksumFile, HttpOrigin, Look, StoreOrigin
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import KEY, LOOPBACK, PATIENT, Told, Workbench

DATA = noise(3000)
SAME, OTHER = '"one"', '"two"'
DATE, LATER = "Thu, 01 Jan 2026 00:00:00 GMT", "Fri, 02 Jan 2026 00:00:00 GMT"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


def look(bench: Workbench, *urls: str, **known: Any) -> Told:
    """Look with what is known of the bytes."""
    return bench.do(Look(origin=HttpOrigin(urls=urls), addresses=LOOPBACK, transfers=PATIENT, **known))


def unchanged(told: Told) -> bool:
    """What the look found out."""
    assert told.answer.event == "done", told.answer
    return told.answer.unchanged


@pytest.mark.parametrize(
    ("known", "reply", "same"),
    [
        ({"etag": SAME}, {"status": 304}, True),
        ({"etag": 'W/"one"'}, {"status": 304}, True),
        ({"last_modified": DATE}, {"status": 304}, True),
        ({"etag": SAME, "size": 3000}, {"etag": SAME}, True),
        ({"etag": SAME}, {"etag": SAME}, True),
        ({"etag": SAME, "size": 3001}, {"etag": SAME}, False),
        ({"etag": SAME, "size": 3000}, {"etag": OTHER}, False),
        ({"etag": 'W/"one"', "size": 3000}, {"etag": 'W/"one"'}, False),
        ({"etag": SAME, "last_modified": DATE, "size": 3000}, {"etag": OTHER, "date": DATE}, False),
        ({"etag": SAME, "last_modified": DATE, "size": 3000}, {"date": DATE}, False),
        ({"last_modified": DATE, "size": 3000}, {"etag": SAME, "date": DATE}, False),
        ({"last_modified": DATE, "size": 3000}, {"date": DATE}, True),
        ({"last_modified": DATE, "size": 3000}, {"date": LATER}, False),
        ({"last_modified": DATE, "size": 2999}, {"date": DATE}, False),
        ({"last_modified": DATE}, {"date": DATE}, False),
        ({"size": 3000}, {}, False),
        ({"size": 3000, "likely": True}, {}, True),
        ({"size": 2999, "likely": True}, {}, False),
        ({"size": 3000, "likely": True, "etag": SAME}, {}, False),
        ({"size": 3000, "likely": True}, {"etag": SAME}, False),
        ({"size": 3000, "likely": True, "last_modified": DATE}, {}, False),
        # what is stored was unpacked, and tells no length
        ({"likely": True}, {}, True),
        ({"likely": True}, {"etag": SAME}, False),
        ({"likely": True, "last_modified": DATE}, {"date": DATE}, True),
        ({"likely": True, "last_modified": DATE}, {"date": LATER}, False),
        ({"likely": True, "last_modified": DATE}, {}, False),
    ],
)
def test_what_proves_the_same_bytes(
    bench: Workbench, web: Server, known: dict[str, Any], reply: dict[str, Any], same: bool
) -> None:
    """A 304, an equal strong ETag, or without ETags an equal date and length; all else is a change until fetched."""
    headers = {"ETag": reply.get("etag"), "Last-Modified": reply.get("date")}
    status = reply.get("status", 200)
    body = DATA if status == 200 else b""
    web.serve("/a", Reply(body, status=status, headers={k: v for k, v in headers.items() if v}))
    assert unchanged(look(bench, web.url("/a"), **known)) is same
    sent = web.requests[0].headers
    assert sent.get("if-none-match") == known.get("etag")
    assert sent.get("if-modified-since") == (None if "etag" in known else known.get("last_modified"))


def test_a_look_has_all_that_a_fetch_has(bench: Workbench, web: Server) -> None:
    """Credentials and headers: without them many a server would not tell what it has."""
    web.serve("/a", Reply(status=304))
    origin = HttpOrigin(
        urls=(web.url("/a"),),
        secret={"token": SecretStr("word")},
        headers={"X-Team": SecretStr("a"), "User-Agent": SecretStr("robot")},
    )
    assert unchanged(bench.do(Look(origin=origin, addresses=LOOPBACK, transfers=PATIENT, etag=SAME)))
    (request,) = web.requests
    names = ("authorization", "x-team", "user-agent", "if-none-match")
    assert [request.headers[name] for name in names] == ["Bearer word", "a", "robot", SAME]


def test_a_304_may_tell_the_length_of_the_file(bench: Workbench, web: Server) -> None:
    """RFC 9110 8.6: no body follows, whatever Content-Length says."""
    web.serve("/a", Reply(raw=b'HTTP/1.1 304 Not Modified\r\nETag: "one"\r\nContent-Length: 3000\r\n\r\n'))
    assert unchanged(look(bench, web.url("/a"), etag=SAME, size=3000))


def test_a_304_that_nobody_asked_for(bench: Workbench, web: Server) -> None:
    """Without a condition it answers nothing."""
    web.serve("/a", Reply(status=304))
    assert look(bench, web.url("/a"), size=3000).reason == "SourceUnavailable"


def test_the_first_mirror_that_answers_decides(bench: Workbench, web: Server) -> None:
    """One that is away, or has no such file, says nothing about the bytes."""
    web.serve("/busy", Reply(status=503))
    web.serve("/b", Reply(DATA, headers={"ETag": SAME}))
    urls = [web.url("/none"), web.url("/busy"), web.url("/b")]
    assert unchanged(look(bench, *urls, etag=SAME))
    assert look(bench, *urls[:2], etag=SAME).reason == "SourceNotFound"
    assert look(bench, urls[1], etag=SAME).reason == "SourceUnavailable"


def test_the_mirror_that_gave_the_bytes_is_asked_first(bench: Workbench, web: Server) -> None:
    """Another one may have the same bytes under another ETag."""
    web.serve("/a", Reply(DATA, headers={"ETag": OTHER}))
    web.serve("/b", Reply(DATA, headers={"ETag": SAME}))
    urls = [web.url("/a?secret=1"), web.url("/b?secret=2")]
    assert unchanged(look(bench, *urls, url=web.url("/b"), etag=SAME))
    assert unchanged(look(bench, *urls, url=web.url("/a"), etag=OTHER))
    assert not unchanged(look(bench, *urls, url=web.url("/elsewhere"), etag=SAME))


def test_the_body_is_not_read(bench: Workbench, web: Server) -> None:
    """A server without validators costs a request, not a download."""
    web.serve("/a", Reply(noise(30_000_000)))
    assert not unchanged(look(bench, web.url("/a"), size=30_000_000))
    assert web.requests[0].sent < 30_000_000


@pytest.mark.parametrize("stores", [("a",), ("a", "b")])
def test_known_bytes_are_not_stored_again(bench: Workbench, web: Server, stores: tuple[str, ...]) -> None:
    """They are told by their digest before any store commits them; what the server says of them now is answered."""
    web.serve("/a", Reply(DATA, headers={"ETag": OTHER}))
    refs = tuple(bench.store(name) for name in stores)
    told = bench.fetch(web.url("/a"), refs, unless=DIGEST)
    assert told.answer.event == "done"
    assert told.answer.unchanged
    assert (told.record.digest, told.record.etag) == (DIGEST, OTHER)
    assert (told.stored, bench.left()) == (set(), [])
    told = bench.fetch(web.url("/a"), refs, unless="sha256:" + "0" * 64)
    assert told.stored == set(stores)
    assert bench.data("a", KEY) == DATA


def test_an_unpacked_file_is_known_by_what_came(bench: Workbench, web: Server) -> None:
    """What is made of it may differ from time to time, the download tells."""
    packed = gzip.compress(DATA)
    known = "sha256:" + hashlib.sha256(packed).hexdigest()
    web.serve("/a.gz", Reply(packed))
    told = bench.fetch(web.url("/a.gz"), (bench.store("a"),), unless=known)
    assert told.answer.event == "done"
    assert told.answer.unchanged
    assert (told.record.digest, told.record.source_digest) == (DIGEST, known)
    assert (told.stored, bench.left()) == (set(), [])
    assert bench.fetch(web.url("/a.gz"), (bench.store("a"),), expects=DIGEST).stored == {"a"}


def test_known_bytes_must_be_proven_too(bench: Workbench, web: Server) -> None:
    """A checksum file that says something else is out of step, whatever is known."""
    web.serve("/a", Reply(DATA))
    for said, reason in (("0" * 64, "ChecksumMismatch"), (DIGEST.partition(":")[2], None)):
        web.serve("/SUMS", Reply(f"{said}  a\n".encode()))
        file = ChecksumFile(url=web.url("/SUMS"))
        told = bench.fetch(web.url("/a"), (bench.store("a"),), unless=DIGEST, checksum_file=file)
        assert (told.reason, bench.left()) == (reason, [])
    assert told.record.verification
    assert told.record.verification.file == web.url("/SUMS")


def test_lost_bytes_come_back_or_nothing_does(bench: Workbench, web: Server) -> None:
    """A revision keeps its meaning: other bytes are not stored under its number."""
    web.serve("/a", Reply(DATA))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), expects="sha256:" + "0" * 64)
    assert told.reason == "DataLost"
    assert bench.left() == []
    assert bench.fetch(web.url("/a"), (bench.store("a"),), expects=DIGEST).stored == {"a"}


def test_a_copy_is_of_the_revision_that_is_served(bench: Workbench, web: Server) -> None:
    """What another attempt left under its key is not taken for it, though its record fits."""
    a, b = bench.store("a"), bench.store("b")
    web.serve("/a", Reply(DATA), Reply(noise(3000, seed=7)))
    bench.fetch(web.url("/a"), (a,))
    bench.fetch(web.url("/a"), (b,))
    origin = StoreOrigin(store=a)
    assert bench.fetch("", (b,), origin=origin, expects=DIGEST).failed == {"b": "StoreConflict"}
    assert bench.fetch("", (bench.store("c"),), origin=origin, expects=DIGEST).stored == {"c"}
    assert bench.fetch("", (bench.store("d"),), origin=StoreOrigin(store=b), expects=DIGEST).reason == "DataLost"
