"""Mirrors of which one lies: what it says of its own file never keeps the bytes of another one away."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glimpse.streams import CHUNK
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import KEY, PATIENT, Told, Workbench

DATA = noise(3 * CHUNK + 17)
LARGE = noise(17 * CHUNK + 5)
"""More than one part."""
FEW = PATIENT.model_copy(update={"retries": 1})


def other(data: bytes, more: int) -> bytes:
    """Other bytes, so many more or fewer."""
    return noise(len(data) + more, seed=2)


BAD: dict[str, Callable[[bytes], Reply]] = {
    "announces too much": lambda data: Reply(data, length=len(data) + 1000),
    "announces too much, with an ETag": lambda data: Reply(data, length=len(data) + 1000, headers={"ETag": '"bad"'}),
    "announces too little": lambda data: Reply(data, length=len(data) - 1000),
    "announces a TiB": lambda data: Reply(data, length=1 << 40, cut=CHUNK),
    "announces nothing, and sends it": lambda data: Reply(data, length=0),
    "in chunks, cut": lambda data: Reply(data, chunked=1 << 16, cut=2 * CHUNK),
    "in chunks of other bytes, cut": lambda data: Reply(other(data, 0), chunked=1 << 16, cut=2 * CHUNK),
    "an older file, shorter": lambda data: Reply(other(data, -CHUNK), ranges=True),
    "an older file, longer": lambda data: Reply(other(data, 4), ranges=True, headers={"ETag": '"bad"'}),
    "an older file, cut": lambda data: Reply(other(data, -CHUNK), cut=CHUNK),
    "a page that says so": lambda _: Reply(b"<html>moved</html>".ljust(2 * CHUNK)),
    "another image": lambda _: Reply(b"KDMV".ljust(2 * CHUNK, b"\1")),
    "empty": lambda _: Reply(),
}


def fetch(bench: Workbench, *urls: str, data: bytes = DATA, **more: Any) -> Told:
    """Fetch what must be `data`."""
    options = {"transfers": FEW, "limit": 1 << 30, **more}
    return bench.fetch(urls, (bench.store("a"),), checksum=f"sha256:{hashlib.sha256(data).hexdigest()}", **options)


@pytest.mark.parametrize("good", ["whole", "in parts"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_mirror_keeps_no_good_one_away(bench: Workbench, web: Server, bad: str, good: str) -> None:
    """Where a checksum is given each mirror has its chance, in one fetch, whatever another one said of its file.

    The one that failed is told as such, also if it gave no length, and the good one is not.
    """
    web.serve("/bad", BAD[bad](DATA))
    web.serve("/good", Reply(DATA, ranges=good == "in parts"))
    told = fetch(bench, web.url("/bad"), web.url("/good"), disk_format="raw")
    assert told.record.digest == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert bench.data("a", KEY) == DATA
    assert bench.left() == [f"a/objects/{KEY}"]
    assert {event.number: event.failed for event in told.of("mirror")} == {0: True, 1: False}


@pytest.mark.parametrize("bad", ["announces too much", "announces too little", "in chunks, cut"])
def test_so_it_is_with_a_large_file(bench: Workbench, web: Server, bad: str) -> None:
    """One that comes in parts, where the server gives any."""
    web.serve("/bad", BAD[bad](LARGE))
    web.serve("/good", Reply(LARGE, ranges=True, headers={"ETag": '"good"'}))
    assert fetch(bench, web.url("/bad"), web.url("/good"), data=LARGE).record.size == len(LARGE)
    assert bench.data("a", KEY) == LARGE


def test_a_bad_mirror_that_comes_second(bench: Workbench, web: Server) -> None:
    """The good one breaks off and is away for a while: what has come of it is not given up for what another says."""
    data = noise(10 * CHUNK)
    web.serve("/good", Reply(data, ranges=True, cut=8 * CHUNK), Reply(status=503))
    web.serve("/bad", Reply(other(data, 4)))
    urls = web.url("/good"), web.url("/bad")
    assert fetch(bench, *urls, data=data).reason == "SourceUnavailable"
    web.serve("/good", Reply(data, ranges=True))
    assert fetch(bench, *urls, data=data).record.size == len(data)
    assert bench.data("a", KEY) == data
    assert web.asked("/good")[-1].headers["range"] > "bytes=1"
    assert len(web.asked("/bad")) == 1


@pytest.mark.parametrize("order", [("/bad", "/good"), ("/good", "/bad")])
@pytest.mark.parametrize("away", [False, True])
def test_what_a_bad_mirror_has_left_is_not_gone_on_with_for_ever(
    bench: Workbench, web: Server, order: tuple[str, str], away: bool
) -> None:
    """A transfer of a wrong length that ended early is begun anew by the mirror that has another one."""
    urls = [web.url(path) for path in order]
    web.serve("/good", Reply(status=503))
    web.serve("/bad", Reply(DATA, length=len(DATA) + 1000, headers={"ETag": '"bad"'}))
    assert fetch(bench, *urls).reason == "SourceUnavailable"
    assert list(Path(bench.store("a").config["path"]).glob(f"attempts/{KEY}.*"))
    web.serve("/good", Reply(DATA, ranges=True))
    if away:
        web.serve("/bad", Reply(status=503))
    assert fetch(bench, *urls).record.size == len(DATA)
    assert bench.data("a", KEY) == DATA
    assert bench.left() == [f"a/objects/{KEY}"]


def test_two_addresses_that_look_alike(bench: Workbench, web: Server) -> None:
    """Mirrors that differ in their query alone are two, of which one may be wrong."""
    other_bytes = Reply(other(DATA, 0), headers={"ETag": '"1"'})
    web.serve("/a", other_bytes, Reply(DATA, headers={"ETag": '"1"'}))
    assert fetch(bench, web.url("/a?x=1"), web.url("/a?x=2")).record.size == len(DATA)
    assert bench.data("a", KEY) == DATA


def test_what_counts_is_what_each_said_last(bench: Workbench, web: Server) -> None:
    """Together they failed by a length; alone each has other bytes, and that is permanent."""
    web.serve("/1", Reply(other(DATA, 0), cut=CHUNK), Reply(other(DATA, 0)))
    web.serve("/2", Reply(other(DATA, 5)))
    told = fetch(bench, web.url("/1"), web.url("/2"))
    assert told.reason == "ChecksumMismatch"
    assert bench.left() == []


# Servers whose answers do not go together

ONE, TWO = ({"ETag": f'"{number}"'} for number in (1, 2))
PARTS = Reply(LARGE, ranges=True, headers=ONE)
FICKLE: dict[str, list[Reply]] = {
    "another ETag each time": [PARTS, Reply(LARGE, ranges=True, headers=TWO)] * 20,
    "the same, ignoring If-Range": [PARTS, Reply(LARGE, ranges=True, headers=TWO, ignore_if_range=True)] * 20,
    "no second part": [replace(PARTS, beyond=Reply(status=416))],
    "no second part, in other words": [replace(PARTS, beyond=Reply(status=403))],
    "another total": [replace(PARTS, beyond=Reply(LARGE + b"x", ranges=True, headers=ONE))],
    "no parts to speak of": [
        *[replace(PARTS, headers={**ONE, "Content-Range": f"bytes 0-99/{len(LARGE)}"})] * 2,
        Reply(LARGE, headers=ONE),
    ],
    "parts of nobody knows how much": [
        *[replace(PARTS, headers={**ONE, "Content-Range": f"bytes 0-{(16 << 20) - 1}/*"})] * 2,
        Reply(LARGE, headers=ONE),
    ],
    "a first part that is none": [
        *[Reply(LARGE[9:], 206, {**ONE, "Content-Range": f"bytes 9-{len(LARGE) - 1}/{len(LARGE)}"})] * 2,
        Reply(LARGE, headers=ONE),
    ],
    "another part": [replace(PARTS, beyond=Reply(LARGE[:9], 206, {**ONE, "Content-Range": f"bytes 0-8/{len(LARGE)}"}))],
}


@pytest.mark.parametrize("checksum", [None, f"sha256:{hashlib.sha256(LARGE).hexdigest()}"])
@pytest.mark.parametrize("name", FICKLE)
def test_a_server_whose_answers_do_not_go_together(
    bench: Workbench, web: Server, name: str, checksum: str | None
) -> None:
    """A farm whose nodes have validators of their own, say: the file is read in one go then, within the same fetch."""
    web.serve("/a", *FICKLE[name])
    told = bench.fetch(web.url("/a"), (bench.store("a"),), checksum=checksum, transfers=FEW)
    assert told.record.size == len(LARGE)
    assert bench.data("a", KEY) == LARGE
    assert bench.left() == [f"a/objects/{KEY}"]
    assert "range" not in web.asked("/a")[-1].headers


def test_its_answers_are_not_joined(bench: Workbench, web: Server) -> None:
    """Neither with what came in parts, nor where the one answer breaks off; it is an image of one node, or none."""
    one, two = (Reply(noise(len(LARGE), seed=seed), ranges=True, headers={"ETag": f'"{seed}"'}) for seed in (1, 2))
    web.serve("/a", *[one, two] * 20)
    told = bench.fetch(web.url("/a"), (bench.store("a"),), transfers=FEW)
    assert told.record.size == len(LARGE)
    assert bench.data("a", KEY) in {one.body, two.body}
    web.serve("/b", *[replace(one, cut=15 * CHUNK), replace(two, cut=15 * CHUNK)] * 20)
    record = bench.record(revision=2)
    assert bench.fetch(web.url("/b"), (bench.store("a"),), record=record, transfers=FEW).reason == "SourceUnavailable"
    web.serve("/b", two)
    bench.fetch(web.url("/b"), (bench.store("a"),), record=record, transfers=FEW)
    assert bench.data("a", record.key) == two.body


def test_what_one_answer_says_is_final(bench: Workbench, web: Server) -> None:
    """That its parts did not go together was not all that is wrong with it."""
    web.serve("/a", *[PARTS, Reply(LARGE, ranges=True, headers=TWO)] * 20)
    told = bench.fetch(web.url("/a"), (bench.store("a"),), checksum=f"sha256:{'0' * 64}", transfers=FEW)
    assert told.reason == "ChecksumMismatch"
