"""A fetch, from web server to folders: verified bytes in every store, or a reason and nothing at all."""

import gzip
import hashlib
import re
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from glimpse.problems import (
    ChecksumMismatch,
    Problem,
    SourceNotFound,
    SourceRefused,
    SourceUnavailable,
    StoreFull,
    combined,
)
from glimpse.streams import CHUNK
from glimpse.tasks import Fetch, StoreOrigin
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import IMPATIENT, KEY, PATIENT, Workbench

DATA = noise(3 * CHUNK + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()  # noqa: S324 - users have such sums
NOTHING = hashlib.md5(b"").hexdigest()  # noqa: S324 - as above


def qcow2(backing: int = 0, size: int = 1 << 30) -> bytes:
    """A header that says so, and no more than a header."""
    return struct.pack(">4sIQIIQ", b"QFI\xfb", 3, backing, 0, 16, size).ljust(CHUNK, b"\0")


# What works


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("length", [1, CHUNK, len(DATA)])
def test_bytes_reach_every_store(bench: Workbench, web: Server, names: tuple[str, ...], length: int) -> None:
    """One reading of the source fills every store, and the record tells what they hold."""
    data = DATA[:length]
    web.serve("/a.img", Reply(data, headers={"ETag": '"v1"', "Last-Modified": "today"}))
    told = bench.fetch(web.url("/a.img?token=secret"), tuple(bench.store(name) for name in names))
    digest = hashlib.sha256(data).hexdigest()
    assert told.record.model_dump(exclude={"stored_at"}) == bench.record().model_dump(exclude={"stored_at"}) | {
        "digest": f"sha256:{digest}",
        "digests": {"sha256": digest},
        "size": length,
        "virtual_size": length,
        "disk_format": "raw",
        "source_url": web.url("/a.img"),
        "etag": '"v1"',
        "last_modified": "today",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told.record.stored_at)
    assert told.stored == set(names)
    assert all(event.size == length and event.location.startswith("file:") for event in told.of("stored"))
    for name in names:
        assert bench.data(name, KEY) == data
        assert bench.opened(name).stat(KEY).record == told.record
    assert len(web.requests) == 1


def test_progress_is_told_seldom_and_ends_with_all(bench: Workbench, web: Server) -> None:
    """The announced length comes with it; the last word is all of it."""
    web.serve("/a", Reply(DATA))
    progress = bench.fetch(web.url("/a"), (bench.store("a"),)).of("progress")
    assert all(event.total == len(DATA) for event in progress)
    assert progress[-1].done == len(DATA)
    assert [event.done for event in progress] == sorted(event.done for event in progress)


@pytest.mark.parametrize("checksum", [f"sha256:{SHA256}", f"md5:{MD5}"])
def test_a_checksum_that_agrees(bench: Workbench, web: Server, checksum: str) -> None:
    """Of whatever algorithm; a sha256 is computed besides."""
    web.serve("/a", Reply(DATA))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), checksum=checksum)
    algorithm, _, value = checksum.partition(":")
    assert told.record.digests == {"sha256": SHA256, algorithm: value}


def test_the_format_is_told(bench: Workbench, web: Server) -> None:
    """The record has the format of the bytes and the size that a machine sees."""
    web.serve("/a", Reply(qcow2()))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), disk_format="qcow2").record
    assert (record.disk_format, record.virtual_size, record.size) == ("qcow2", 1 << 30, CHUNK)


# What does not: a reason, and nothing is left

BAD: dict[str, tuple[Reply, dict[str, Any], str, str]] = {
    "absent": (Reply(status=404), {}, "SourceNotFound", "answered 404"),
    "unauthorized": (Reply(status=401), {}, "SourceUnauthorized", "answered 401"),
    "busy": (Reply(status=503), {}, "SourceUnavailable", "answered 503"),
    "closes early": (Reply(DATA, cut=2 * CHUNK), {}, "SourceUnavailable", "ended early"),
    "closes one byte early": (Reply(DATA, cut=len(DATA) - 1), {}, "SourceUnavailable", "ended early"),
    "resets": (Reply(DATA, cut=2 * CHUNK, reset=True), {}, "SourceUnavailable", "reset|ended early"),
    "sends more than it said": (Reply(DATA, length=len(DATA) - 1), {}, "SourceUnavailable", "sent more"),
    "stalls": (Reply(DATA, stall=2 * CHUNK), {"transfers": IMPATIENT}, "SourceUnavailable", "sent nothing for 0.5 s"),
    "loops": (Reply.redirect("/x"), {}, "SourceRefused", "circle"),
    "redirects inside": (Reply.redirect("http://10.0.0.1/"), {}, "SourceForbidden", "GLIMPSE_ADDRESSES__ALLOW"),
    "wrong sha256": (Reply(DATA), {"checksum": f"sha256:{'0' * 64}"}, "ChecksumMismatch", f"sha256:{SHA256}"),
    "wrong md5": (Reply(DATA), {"checksum": f"md5:{'0' * 32}"}, "ChecksumMismatch", f"md5:{MD5}"),
    "empty": (Reply(), {}, "FormatMismatch", "the image is empty"),
    "empty, in chunks": (Reply(chunked=9), {}, "FormatMismatch", "the image is empty"),
    "empty, not what was declared": (Reply(), {"disk_format": "qcow2"}, "FormatMismatch", "the image is empty"),
    "empty, as its digest says": (Reply(), {"checksum": f"md5:{NOTHING}"}, "FormatMismatch", "the image is empty"),
    "empty, packed": (Reply(gzip.compress(b"")), {}, "FormatMismatch", "the image is empty"),
    "empty, to be converted": (Reply(), {"convert_to": "qcow2"}, "FormatMismatch", "the image is empty"),
    "wrong digest of nothing": (Reply(), {"checksum": f"sha256:{SHA256}"}, "ChecksumMismatch", "e3b0c442"),
    "not what was declared": (Reply(DATA), {"disk_format": "qcow2"}, "FormatMismatch", "bytes are raw"),
    "backing file": (Reply(qcow2(backing=512)), {}, "UnsafeImage", "backing file"),
    "too large, announced": (Reply(DATA), {"limit": len(DATA) - 1}, "TooLarge", "larger than"),
    "too large, in chunks": (Reply(DATA, chunked=CHUNK), {"limit": len(DATA) - 1}, "TooLarge", "larger than"),
    "compressed on the way": (Reply(DATA, headers={"Content-Encoding": "gzip"}), {}, "SourceRefused", "compresses"),
}


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_nothing(bench: Workbench, web: Server, name: str, names: tuple[str, ...]) -> None:
    """Each ends with its reason and message, and no store has an object or a leftover."""
    reply, options, reason, message = BAD[name]
    web.serve("/x", reply)
    told = bench.fetch(web.url("/x?token=hidden"), tuple(bench.store(store) for store in names), **options)
    assert told.reason == reason
    assert re.search(message, told.message)
    assert "hidden" not in told.message
    assert bench.left() == []
    assert not told.of("stored")


def test_an_announced_length_over_the_limit_is_not_fetched(bench: Workbench, web: Server) -> None:
    """Nobody downloads a TiB to find that it is too large: the connection is dropped after the head."""
    web.serve("/a", Reply(DATA, stall=1000))
    assert bench.fetch(web.url("/a"), (bench.store("a"),), limit=len(DATA) - 1).reason == "TooLarge"
    assert web.requests[0].sent <= 1000


def test_a_wrong_format_is_not_fetched_to_its_end(bench: Workbench, web: Server) -> None:
    """What the first MiB shows is not left for the last to say."""
    web.serve("/a", Reply(DATA, stall=2 * CHUNK))
    assert bench.fetch(web.url("/a"), (bench.store("a"),), disk_format="vmdk").reason == "FormatMismatch"


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_a_cancelled_fetch_leaves_nothing(bench: Workbench, web: Server, names: tuple[str, ...]) -> None:
    """It ends although the server is silent, and its attempt is cleaned away."""
    web.serve("/a", Reply(DATA, stall=2 * CHUNK))

    def cancel() -> None:
        web.wait_for("/a", sent=2 * CHUNK)
        bench.cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    stores = tuple(bench.store(name) for name in names)
    told = bench.fetch(
        (web.url("/a"), web.url("/b")), stores, transfers=PATIENT.model_copy(update={"idle_timeout": 3600.0})
    )
    thread.join()
    assert told.reason == "WorkerLost"
    assert bench.left() == []
    assert not web.asked("/b")


# Mirrors


@pytest.mark.parametrize("first", [name for name in BAD if not BAD[name][1]])
@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_another_mirror_takes_over(bench: Workbench, web: Server, first: str, names: tuple[str, ...]) -> None:
    """However the first one fails, before or within the bytes, the next one begins at byte 0."""
    web.serve("/1", BAD[first][0])
    web.serve("/2", Reply(DATA, headers={"ETag": '"two"'}))
    told = bench.fetch((web.url("/1"), web.url("/2")), tuple(map(bench.store, names)), transfers=IMPATIENT)
    assert (told.record.source_url, told.record.etag) == (web.url("/2"), '"two"')
    assert all(bench.data(name, KEY) == DATA for name in names)
    assert len(bench.left()) == len(names)


def test_a_mirror_with_other_bytes_is_passed_over(bench: Workbench, web: Server) -> None:
    """A wrong digest is one mirror's fault, and another one is asked."""
    web.serve("/1", Reply(noise(len(DATA), seed=1)))
    web.serve("/2", Reply(DATA, cut=2 * CHUNK), Reply(DATA))
    web.serve("/3", Reply(DATA))
    urls = (web.url("/1"), web.url("/2"), web.url("/3"))
    told = bench.fetch(urls, (bench.store("a"),), checksum=f"sha256:{SHA256}")
    assert told.record.source_url == web.url("/3")
    assert bench.data("a", KEY) == DATA


def test_mirrors_help_each_other_out(bench: Workbench, web: Server) -> None:
    """Where a digest proves the whole, one mirror goes on where another broke off."""
    web.serve("/1", Reply(DATA, ranges=True, cut=2 * CHUNK), Reply(status=404))
    web.serve("/2", Reply(DATA, ranges=True))
    told = bench.fetch((web.url("/1"), web.url("/2")), (bench.store("a"),), checksum=f"sha256:{SHA256}")
    assert told.record.source_url == web.url("/1")
    assert bench.data("a", KEY) == DATA
    assert sum(request.sent for request in web.requests) == len(DATA)
    first, second = told.of("mirror")
    assert (first.number, first.bytes, first.failed) == (0, 2 * CHUNK, True)
    assert (second.number, second.bytes, second.failed) == (1, len(DATA) - 2 * CHUNK, False)


def test_mirrors_that_do_not_belong_together(bench: Workbench, web: Server) -> None:
    """What was joined of a good and a bad mirror does not match; then each is asked alone, and the good one serves."""
    web.serve("/1", Reply(DATA, ranges=True, cut=2 * CHUNK), Reply(DATA, ranges=True))
    web.serve("/2", Reply(noise(len(DATA), seed=1), ranges=True))
    told = bench.fetch((web.url("/1"), web.url("/2")), (bench.store("a"),), checksum=f"sha256:{SHA256}")
    assert told.record.source_url == web.url("/1")
    assert bench.data("a", KEY) == DATA


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ((Reply(status=404), Reply(status=503)), "SourceUnavailable"),
        ((Reply(status=503), Reply(status=404)), "SourceUnavailable"),
        ((Reply(status=404), Reply(status=410)), "SourceNotFound"),
        ((Reply(status=404), Reply(noise(10))), "ChecksumMismatch"),
        ((Reply(noise(10)), Reply(status=401)), "ChecksumMismatch"),
        ((Reply(noise(10)), Reply(status=500)), "SourceUnavailable"),
    ],
)
def test_it_is_permanent_only_if_every_mirror_says_so(
    bench: Workbench, web: Server, replies: tuple[Reply, ...], reason: str
) -> None:
    """The message names each mirror with its own failure."""
    urls = tuple(web.url(f"/{number}") for number in range(len(replies)))
    for number, reply in enumerate(replies):
        web.serve(f"/{number}", reply)
    told = bench.fetch(urls, (bench.store("a"),), checksum=f"sha256:{SHA256}")
    assert told.reason == reason
    assert all(url in told.message for url in urls)
    assert bench.left() == []


def test_problems_are_combined() -> None:
    """The soonest wish to wait is kept; one alone stays as it is."""
    alone = StoreFull("full")
    assert combined([("a", alone)]) is alone
    both: list[tuple[str, Problem]] = [
        ("http://a", SourceUnavailable("http://a: busy", retry_after=9)),
        ("http://b", SourceUnavailable("http://b: busy", retry_after=5)),
        ("http://c", ChecksumMismatch("other bytes")),
    ]
    problem = combined(both)
    assert isinstance(problem, SourceUnavailable)
    assert problem.retry_after == 5
    assert problem.message == "http://a: busy; http://b: busy; http://c: other bytes"
    assert isinstance(combined([("a", SourceRefused("x")), ("b", SourceNotFound("y"))]), SourceRefused)


# Stores that fail


@pytest.mark.parametrize("others", [("b",), ("b", "c")])
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"installation": "elsewhere"}, "StoreOwnedByAnother"),
        ({"claimed": True}, "StoreUnavailable"),
        ({"max_image_size": len(DATA) - 1}, "TooLarge"),
        ({"reserve": 1 << 60}, "StoreFull"),
    ],
)
def test_a_failing_store_fails_alone(
    bench: Workbench, web: Server, trouble: dict[str, Any], reason: str, others: tuple[str, ...]
) -> None:
    """The others are filled in the same pass; the fetch is done as far as its events do not say otherwise."""
    if "installation" in trouble:
        bench.opened("a").claim()
    web.serve("/a", Reply(DATA, chunked=CHUNK))
    told = bench.fetch(web.url("/a"), (bench.store("a", **trouble), *(bench.store(name) for name in others)))
    assert told.record.size == len(DATA)
    assert told.stored == set(others)
    assert told.failed == {"a": reason}
    assert len(web.requests) == 1
    assert bench.left() == [f"{name}/objects/{KEY}" for name in others]


def test_with_all_stores_failed_the_fetch_has_failed(bench: Workbench, web: Server) -> None:
    """Time can mend it as long as it can mend one of them; the message names each store."""
    web.serve("/a", Reply(DATA))
    small, full = bench.store("a", max_image_size=1), bench.store("b", reserve=1 << 60)
    told = bench.fetch(web.url("/a"), (small, full))
    assert told.reason == "StoreFull"
    assert "store a" in told.message
    assert "store b" in told.message
    assert told.failed == {"a": "TooLarge", "b": "StoreFull"}
    assert bench.fetch(web.url("/a"), (small,)).reason == "TooLarge"
    assert bench.left() == []


def test_a_store_that_cannot_be_opened_is_named(bench: Workbench, web: Server) -> None:
    """A driver that is not installed, a folder that is gone."""
    web.serve("/a", Reply(DATA))
    lost = bench.store("lost")
    Path(lost.config["path"]).rmdir()
    tape = bench.store("tape").model_copy(update={"driver": "tape"})
    told = bench.fetch(web.url("/a"), (lost, tape, bench.store("a")))
    assert told.failed == {"lost": "StoreUnavailable", "tape": "InvalidConfiguration"}
    assert told.stored == {"a"}


# What is there already


def test_what_is_stored_is_not_fetched_again(bench: Workbench, web: Server) -> None:
    """An answer that was lost is found again: the same record, and no request."""
    web.serve("/a", Reply(DATA))
    first = bench.fetch(web.url("/a"), (bench.store("a"), bench.store("b")))
    again = bench.fetch(web.url("/a"), (bench.store("a"), bench.store("b")))
    assert again.record == first.record
    assert again.stored == {"a", "b"}
    assert len(web.requests) == 1


@pytest.mark.parametrize("lacking", [("b",), ("b", "c")])
def test_a_store_that_lacks_it_is_filled_from_one_that_does_not(
    bench: Workbench, web: Server, lacking: tuple[str, ...]
) -> None:
    """Not from the internet: the copy is verified and has the same record."""
    web.serve("/a", Reply(DATA), Reply(noise(100)))
    first = bench.fetch(web.url("/a"), (bench.store("a"),))
    told = bench.fetch(web.url("/a"), (bench.store("a"), *(bench.store(name) for name in lacking)))
    assert told.record == first.record
    assert told.stored == {"a", *lacking}
    assert len(web.requests) == 1
    for name in lacking:
        assert bench.data(name, KEY) == DATA
        assert bench.opened(name).stat(KEY).record == first.record


def test_a_copy_takes_another_store_if_one_has_lost_its_bytes(bench: Workbench, web: Server) -> None:
    """Spoiled bytes are never copied; a second holder is asked, and with none left the store fails as DataLost."""
    web.serve("/a", Reply(DATA))
    bench.fetch(web.url("/a"), (bench.store("a"), bench.store("b")))
    bench.spoil("a", KEY, noise(len(DATA), seed=9))
    told = bench.fetch(web.url("/a"), tuple(bench.store(name) for name in ("a", "b", "c")))
    assert told.stored == {"a", "b", "c"}
    assert bench.data("c", KEY) == DATA
    bench.spoil("b", KEY, noise(len(DATA), seed=9))
    bench.spoil("c", KEY, noise(len(DATA), seed=9))
    told = bench.fetch(web.url("/a"), tuple(bench.store(name) for name in ("a", "b", "c", "d")))
    assert told.failed == {"d": "DataLost"}
    assert not [path for path in bench.left() if path.startswith("d/")]


@pytest.mark.parametrize("others", [(), ("b",)])
def test_another_spec_under_the_same_key_is_a_conflict(bench: Workbench, web: Server, others: tuple[str, ...]) -> None:
    """A revision's number is never used for other bytes: such a store is left as it is."""
    web.serve("/a", Reply(DATA))
    bench.fetch(web.url("/a"), (bench.store("a"),))
    stores = (bench.store("a"), *(bench.store(name) for name in others))
    told = bench.fetch(web.url("/a"), stores, record=bench.record(spec_hash="0ther"))
    assert told.failed == {"a": "StoreConflict"}
    assert told.reason == (None if others else "StoreConflict")
    assert bench.opened("a").stat(KEY).record != bench.record(spec_hash="0ther")


def test_stores_that_hold_different_bytes_of_one_spec(bench: Workbench, web: Server) -> None:
    """The source changed between two attempts: the first store's bytes are the revision, the other conflicts."""
    web.serve("/a", Reply(DATA), Reply(noise(50)))
    first = bench.fetch(web.url("/a"), (bench.store("a"),))
    bench.fetch(web.url("/a"), (bench.store("b"),))
    told = bench.fetch(web.url("/a"), (bench.store("a"), bench.store("b")))
    assert told.record == first.record
    assert told.failed == {"b": "StoreConflict"}


# From a store


def copy(bench: Workbench, origin: str, *names: str) -> Any:
    """Bring the object from one store into others."""
    return bench.do(
        Fetch(
            attempt="a2",
            record=bench.record(),
            origin=StoreOrigin(store=bench.store(origin)),
            limit=1,
            stores=tuple(bench.store(name) for name in names),
        )
    )


def test_a_copy_keeps_the_record(bench: Workbench, web: Server) -> None:
    """It has been checked once, so the record and its time stay, and no limit of today is asked."""
    web.serve("/a", Reply(DATA))
    first = bench.fetch(web.url("/a"), (bench.store("a"),), checksum=f"md5:{MD5}")
    told = copy(bench, "a", "b", "c")
    assert told.record == first.record
    assert bench.data("b", KEY) == bench.data("c", KEY) == DATA


@pytest.mark.parametrize("spoiled", [noise(len(DATA), seed=3), DATA[:-1], DATA + b"x", b""])
def test_a_copy_of_spoiled_bytes_fails(bench: Workbench, web: Server, spoiled: bytes) -> None:
    """DataLost, and nothing in the other store."""
    web.serve("/a", Reply(DATA))
    bench.fetch(web.url("/a"), (bench.store("a"),))
    bench.spoil("a", KEY, spoiled)
    assert copy(bench, "a", "b").reason == "DataLost"
    assert bench.left() == [f"a/objects/{KEY}"]


def test_a_copy_of_what_is_gone_fails(bench: Workbench) -> None:
    """DataLost names the store."""
    told = copy(bench, "a", "b")
    assert told.reason == "DataLost"
    assert "store a" in told.message


def test_two_servers_stop_in_turn(bench: Workbench) -> None:
    """Mirrors on different machines: one is down, the other works."""
    with faults.Server() as gone:
        url = gone.url("/a")
    with faults.Server() as there:
        there.serve("/a", Reply(DATA))
        assert bench.fetch((url, there.url("/a")), (bench.store("a"),)).record.source_url == there.url("/a")
