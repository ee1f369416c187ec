"""A fetch that goes on where an earlier one has ended: what is asked for again, and what never comes together."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from glimpse.problems import DataLost, StoreUnavailable, WorkerLost
from glimpse.resume import Joined, Left, Mark
from glimpse.settings import Transfers
from glimpse.sources.remote import Version
from glimpse.stores import Partial
from glimpse.stores.filesystem.attempts import NOTE
from glimpse.streams import AHEAD, CHUNK
from glimpse.tasks import EVENT, Done, Fetch, HttpOrigin, StoreRef
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import KEY, LOOPBACK, PATIENT, Told, Workbench
from servers import wait_until

DATA = noise(10 * CHUNK + 17)
OTHER = noise(len(DATA), seed=5)
SHA256 = hashlib.sha256(DATA).hexdigest()
ONCE = PATIENT.model_copy(update={"retries": 0})
"""A transfer that bears no break ends as it would after many."""
ETAG = {"ETag": '"v1"'}
AT = 8 * CHUNK
"""Where the first transfer breaks."""
QUEUED = 2 * (AHEAD + 2) * CHUNK
"""What has come and is in no digest and in no store then, at most."""


def serve(
    web: Server, headers: Mapping[str, str], path: str = "/a", *, data: bytes = DATA, cut: int | None = None
) -> str:
    """Serve it from now on, with parts; `cut`: break off there."""
    web.serve(path, Reply(data, ranges=True, cut=cut, headers=headers))
    return web.url(path)


def breaks(bench: Workbench, url: str, *stores: StoreRef, **more: Any) -> Told:
    """A transfer that ends as one that time may mend."""
    told = bench.fetch(url, stores, transfers=ONCE, **more)
    assert told.reason == "SourceUnavailable"
    return told


def left(bench: Workbench, name: str = "a") -> int:
    """From where what an earlier transfer has left in a store can be gone on with, in bytes."""
    (folder,) = Path(bench.store(name).config["path"]).glob(f"attempts/{KEY}.*")
    lines = [json.loads(file.read_text().partition("\n")[0]) for file in folder.glob("*.json")]
    furthest = max(lines, key=lambda line: int(line["length"]))
    return int(json.loads(furthest["mark"])["length"])


def safe(bench: Workbench, *names: str) -> int:
    """The most that is safe in one of these stores, also while a transfer is on its way."""
    found = [0]
    for name in names:
        with suppress(FileNotFoundError, KeyError, ValueError):
            found.append(left(bench, name))
    return max(found)


def sent(web: Server, path: str = "/a") -> int:
    """Bytes that the server has sent of it so far."""
    return sum(request.sent for request in web.asked(path))


def begun(web: Server, path: str = "/a", since: int = 0) -> list[int]:
    """Where each request began, those after the first `since`."""
    return [int(r.headers.get("range", "bytes=0-")[6:].partition("-")[0]) for r in web.asked(path)[since:]]


# What is not asked for again


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_fetch_goes_on_where_another_has_ended(bench: Workbench, web: Server, names: tuple[str, ...]) -> None:
    """The rest is asked for under the validators of then; all stores get the whole, from one of them and the source."""
    stores = tuple(bench.store(name) for name in names)
    breaks(bench, serve(web, ETAG, cut=AT), *stores)
    start = safe(bench, *names)
    assert 0 < start <= AT == sent(web)
    told = bench.fetch(serve(web, ETAG), stores)
    assert told.record.digest == f"sha256:{SHA256}"
    assert (told.record.size, told.record.etag, told.record.source_url) == (len(DATA), '"v1"', web.url("/a"))
    assert told.stored == set(names)
    for name in names:
        assert bench.data(name, KEY) == DATA
        assert bench.opened(name).stat(KEY).record == told.record
    _, asked = web.asked("/a")
    assert asked.headers["if-range"] == '"v1"'
    assert begun(web) == [0, start]
    assert sent(web) == len(DATA) + AT - start
    assert bench.left() == [f"{name}/objects/{KEY}" for name in names]


def test_only_one_store_keeps_what_it_has(bench: Workbench, web: Server) -> None:
    """The longest feeds the others; a shorter one is written anew, since nobody has read what was there."""
    breaks(bench, serve(web, ETAG, cut=3 * CHUNK), bench.store("b"))
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    folders = {name: Path(bench.store(name).config["path"]) for name in ("a", "b", "c")}
    inodes = {name: (folders[name] / f"attempts/{KEY}.a1/data").stat().st_ino for name in ("a", "b")}
    start = left(bench)
    told = bench.fetch(serve(web, ETAG), tuple(bench.store(name) for name in ("c", "b", "a")))
    assert told.stored == {"a", "b", "c"}
    assert begun(web, since=2) == [start]
    assert all(bench.data(name, KEY) == DATA for name in ("a", "b", "c"))
    found = {name: (folders[name] / f"objects/{KEY}/data").stat().st_ino for name in ("a", "b")}
    assert found["a"] == inodes["a"]
    assert bench.left() == [f"{name}/objects/{KEY}" for name in ("a", "b", "c")]


def test_a_fetch_breaks_again_and_again(bench: Workbench, web: Server) -> None:
    """Each goes on from the one before; in the end hardly more was sent than there is."""
    data, starts = noise(4 * AT), [0]
    url = serve(web, ETAG, data=data, cut=AT)
    for _ in range(3):
        breaks(bench, url, bench.store("a"))
        starts.append(left(bench))
    told = bench.fetch(serve(web, ETAG, data=data), (bench.store("a"),))
    assert told.record.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert begun(web)[: len(starts)] == starts
    assert all(later > sooner for sooner, later in pairwise(starts))
    assert bench.data("a", KEY) == data


def test_what_was_fetched_to_its_end_is_not_fetched_again(bench: Workbench, web: Server) -> None:
    """Where all of it is there, one byte is asked for, which tells that it is still the same."""
    store = bench.opened("a")
    mark = Mark(spec_hash="5bec", url=web.url("/a"), size=len(DATA), etag='"v1"', guard='"v1"')

    def along(length: int) -> bytes:
        digest = hashlib.sha256(DATA[:length]).hexdigest()
        return mark.model_copy(update={"length": length, "digest": digest}).line()

    with pytest.raises(WorkerLost):
        store.put(KEY, "a0", Breaking(DATA), bench.record, along)
    told = bench.fetch(serve(web, ETAG), (bench.store("a"),))
    assert told.record.digest == f"sha256:{SHA256}"
    assert (begun(web), sent(web)) == ([len(DATA) - 1], 1)
    assert bench.data("a", KEY) == DATA


class Breaking:
    """All of the bytes, and then no end."""

    def __init__(self, data: bytes) -> None:
        self.size: int | None = len(data)
        self.data = data

    def read(self, _n: int = 0, /) -> bytes:
        """All at once."""
        chunk, self.data = self.data, b""
        if not chunk:
            raise WorkerLost("killed")
        return chunk


def test_a_cancelled_fetch_is_gone_on_with(bench: Workbench, web: Server) -> None:
    """Who cancels may want it later: a suspended Image, an operator that is stopped. Who does not, removes it."""
    web.serve("/a", Reply(DATA, headers=ETAG, stall=AT))

    data = Path(bench.store("a").config["path"]) / f"attempts/{KEY}.a1/data"

    def cancel() -> None:
        wait_until("some bytes", lambda: data.exists() and data.stat().st_size >= 4 * CHUNK, timeout=30)
        bench.cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    patient = PATIENT.model_copy(update={"idle_timeout": 3600.0})
    assert bench.fetch(web.url("/a"), (bench.store("a"),), transfers=patient).reason == "WorkerLost"
    thread.join()
    bench.cancelled.clear()
    start = left(bench)
    told = bench.fetch(serve(web, ETAG), (bench.store("a"),))
    assert told.record.digest == f"sha256:{SHA256}"
    assert begun(web, since=1) == [start]


def test_progress_begins_where_it_goes_on(bench: Workbench, web: Server) -> None:
    """What was there is counted from the first word on, and told apart from what is fetched now."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    start = left(bench)
    progress = bench.fetch(serve(web, ETAG), (bench.store("a"),)).of("progress")
    assert (progress[0].done, progress[0].total) == (start, len(DATA))
    assert {event.start for event in progress} == {start}
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert progress[-1].done == len(DATA)


def test_the_mirror_is_asked_whose_bytes_are_there(bench: Workbench, web: Server) -> None:
    """Without a digest no other can go on with them: it would begin anew and remove them."""
    serve(web, {}, "/1", cut=CHUNK)
    urls = (web.url("/1"), serve(web, ETAG, "/2", cut=AT))
    breaks(bench, urls, bench.store("a"))  # type: ignore[arg-type]
    start = left(bench)
    serve(web, ETAG, "/2")
    told = bench.fetch(urls, (bench.store("a"),))
    assert told.record.source_url == web.url("/2")
    assert begun(web, "/2", since=1) == [start]
    assert len(web.asked("/1")) == 1


# What never comes together

OLD = formatdate(time.time() - 3600, usegmt=True)
OLDER = formatdate(time.time() - 7200, usegmt=True)
YOUNG = formatdate(time.time() + 86_400, usegmt=True)

CHANGED: dict[str, tuple[dict[str, str], dict[str, str], bytes]] = {
    "another ETag": ({"ETag": '"1"'}, {"ETag": '"2"'}, OTHER),
    "another date": ({"Last-Modified": OLDER}, {"Last-Modified": OLD}, OTHER),
    "another length": ({"Last-Modified": OLDER}, {"Last-Modified": OLDER}, OTHER[:-1]),
    "shorter than what is there": ({"ETag": '"1"'}, {"ETag": '"2"'}, OTHER[:CHUNK]),
    "weak": ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}, OTHER),
    "too young": ({"Last-Modified": YOUNG}, {"Last-Modified": YOUNG}, OTHER),
    "no validators": ({}, {}, OTHER),
    "none any more": ({"ETag": '"1"'}, {}, OTHER[:-1]),
}


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("name", CHANGED)
def test_bytes_of_two_versions_never_come_together(
    bench: Workbench, web: Server, name: str, names: tuple[str, ...]
) -> None:
    """A source that has changed, or may have, is fetched from its start, in the same fetch."""
    before, after, data = CHANGED[name]
    stores = tuple(bench.store(name) for name in names)
    breaks(bench, serve(web, before, cut=AT), *stores)
    told = bench.fetch(serve(web, after, data=data), stores)
    assert told.record.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert all(bench.data(name, KEY) == data for name in names)
    assert bench.left() == [f"{name}/objects/{KEY}" for name in names]


def test_what_cannot_be_gone_on_with_is_not_kept(bench: Workbench, web: Server) -> None:
    """Without anything that tells versions apart, a transfer that breaks leaves nothing."""
    breaks(bench, serve(web, {}, cut=AT), bench.store("a"))
    assert bench.left() == []


def test_another_spec_begins_anew(bench: Workbench, web: Server) -> None:
    """What another spec has left under the same key is not touched, but replaced."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    told = bench.fetch(serve(web, ETAG), (bench.store("a"),), record=bench.record(spec_hash="0ther"))
    assert told.record.digest == f"sha256:{SHA256}"
    assert begun(web, since=1) == [0]


def test_another_mirror_begins_anew(bench: Workbench, web: Server) -> None:
    """Its ETag says nothing about the bytes of the first."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    told = bench.fetch(serve(web, ETAG, "/b", data=OTHER), (bench.store("a"),))
    assert bench.data("a", KEY) == OTHER
    assert begun(web, "/b") == [0]
    assert told.record.source_url == web.url("/b")


# Where a digest is given


def checked(url: str | tuple[str, ...], bench: Workbench, **more: Any) -> Told:
    """A fetch of bytes that must have the digest of DATA."""
    return bench.fetch(url, (bench.store("a"),), checksum=f"sha256:{SHA256}", **more)


def test_a_digest_proves_the_joined(bench: Workbench, web: Server) -> None:
    """With it no validator is needed, and another mirror may give the rest."""
    assert checked(serve(web, {}, cut=AT), bench, transfers=ONCE).reason == "SourceUnavailable"
    start = left(bench)
    assert checked(serve(web, {"ETag": '"b"'}, "/b"), bench).record.etag == '"b"'
    assert begun(web, "/b") == [start]
    assert bench.data("a", KEY) == DATA


def test_a_mismatch_after_a_resume_counts_only_if_a_clean_fetch_says_so(bench: Workbench, web: Server) -> None:
    """What was left may be wrong: then the source is not blamed for it."""
    assert checked(serve(web, {}, data=OTHER, cut=AT), bench, transfers=ONCE).reason == "SourceUnavailable"
    start = left(bench)
    told = checked(serve(web, {}), bench)
    assert told.record.digest == f"sha256:{SHA256}"
    assert begun(web, since=1) == [start, 0]
    assert bench.data("a", KEY) == DATA
    assert bench.left() == [f"a/objects/{KEY}"]


def test_a_mismatch_that_stays_is_one(bench: Workbench, web: Server) -> None:
    """It is tried once more from the start, not more often, and nothing is left."""
    assert checked(serve(web, {}, data=OTHER, cut=AT), bench, transfers=ONCE).reason == "SourceUnavailable"
    start = left(bench)
    told = checked(serve(web, {}, data=OTHER), bench)
    assert told.reason == "ChecksumMismatch"
    assert begun(web, since=1) == [start, 0]
    assert bench.left() == []


@pytest.mark.parametrize("checksum", [f"sha256:{SHA256}", f"md5:{hashlib.md5(DATA).hexdigest()}", None])  # noqa: S324 - users have such sums
@pytest.mark.parametrize("at", [0, CHUNK, -1])
def test_what_is_left_has_rotted(bench: Workbench, web: Server, checksum: str | None, at: int) -> None:
    """A disk that gives other bytes than it was given is found out, also where nobody has said what they must be."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"), checksum=checksum)
    start = left(bench)
    data = Path(bench.store("a").config["path"]) / f"attempts/{KEY}.a1/data"
    with data.open("r+b") as file:
        file.seek(at if at >= 0 else start - 3)
        file.write(b"rot")
    told = bench.fetch(serve(web, ETAG), (bench.store("a"),), checksum=checksum)
    assert told.record.digest == f"sha256:{SHA256}"
    assert begun(web, since=1) == [start, 0]
    assert bench.data("a", KEY) == DATA
    assert bench.left() == [f"a/objects/{KEY}"]


def test_what_nobody_could_prove_is_not_gone_on_with(bench: Workbench, web: Server) -> None:
    """Less than a MiB has no digest of its own, and is fetched again."""
    mark = Mark(spec_hash="5bec", url=web.url("/a"), size=len(DATA), etag='"v1"', guard='"v1"')
    with pytest.raises(WorkerLost):
        bench.opened("a").put(KEY, "a0", Breaking(OTHER[: 2 * CHUNK]), bench.record, lambda _: mark.line())
    assert bench.fetch(serve(web, ETAG), (bench.store("a"),)).record.digest == f"sha256:{SHA256}"
    assert begun(web) == [0]


# What goes wrong while it goes on


def test_a_source_that_is_gone_takes_nothing_away(bench: Workbench, web: Server) -> None:
    """A server that fails at the first request, for good or not, says nothing about what is there."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    start = left(bench)
    for status, reason in ((503, "SourceUnavailable"), (404, "SourceNotFound"), (401, "SourceUnauthorized")):
        web.serve("/a", Reply(status=status))
        before = len(web.asked("/a"))
        assert bench.fetch(web.url("/a"), (bench.store("a"),), transfers=ONCE).reason == reason
        assert set(begun(web, since=before)) == {start}
    before = len(web.asked("/a"))
    assert bench.fetch(serve(web, ETAG), (bench.store("a"),)).record.digest == f"sha256:{SHA256}"
    assert begun(web, since=before) == [start]


def test_a_server_that_has_no_parts_any_more(bench: Workbench, web: Server) -> None:
    """The whole comes again, of the same version: what is there is passed over."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    web.serve("/a", Reply(DATA, headers=ETAG))
    assert bench.fetch(web.url("/a"), (bench.store("a"),)).record.digest == f"sha256:{SHA256}"
    assert bench.data("a", KEY) == DATA


def test_a_store_that_cannot_be_looked_at_fails_alone(bench: Workbench, web: Server) -> None:
    """What it may have left is not waited for."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"), bench.store("b"))
    start = left(bench, "b")
    stores = (bench.store("a", installation="elsewhere"), bench.store("b"))
    told = bench.fetch(serve(web, ETAG), stores)
    assert (told.stored, told.failed) == ({"b"}, {"a": "StoreOwnedByAnother"})
    assert begun(web, since=1) == [start]


def test_the_store_that_feeds_the_others_fails(bench: Workbench, web: Server) -> None:
    """Its bytes are read to their end all the same; the others are filled."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    start = left(bench)
    stores = (bench.store("a", max_image_size=len(DATA) - 1), bench.store("b"), bench.store("c"))
    told = bench.fetch(serve(web, ETAG), stores)
    assert (told.stored, told.failed) == ({"b", "c"}, {"a": "TooLarge"})
    assert begun(web, since=1) == [start]
    assert bench.data("b", KEY) == DATA
    assert bench.left() == [f"{name}/objects/{KEY}" for name in ("b", "c")]


def test_a_format_that_is_wrong_is_so_from_the_start(bench: Workbench, web: Server) -> None:
    """Whatever is found to be wrong is looked for once more in the source's own bytes."""
    breaks(bench, serve(web, ETAG, cut=AT), bench.store("a"))
    start = left(bench)
    told = bench.fetch(serve(web, ETAG), (bench.store("a"),), disk_format="vmdk")
    assert told.reason == "FormatMismatch"
    assert begun(web, since=1) == [start, 0]
    assert bench.left() == []


class Failing:
    """Cannot be read."""

    size: int | None = 5

    def read(self, _n: int = 0, /) -> bytes:
        """Fail."""
        raise StoreUnavailable("Input/output error")


def test_what_is_left_cannot_be_read(bench: Workbench) -> None:
    """That is no fault of the source, and time does not mend it: it is fetched from the start instead."""
    mark = Mark(spec_hash="", url="", size=10, length=5)
    with ExitStack() as block:
        partial = Partial(KEY, "a1", 5, b"", Failing(), None)  # type: ignore[arg-type]  # nobody resumes it
        joined = Joined(Left(bench.opened("a"), partial, mark, block), Failing(), bench.cancelled)
        with pytest.raises(DataLost, match="earlier transfer cannot be read: Input/output error"):
            joined.read()
        bench.cancelled.set()
        with pytest.raises(WorkerLost):
            joined.read()


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"{}", b"\xff", b'{"spec_hash":"","url":"","size":0}', b"[" * 4000])
def test_a_mark_that_makes_no_sense_is_none(line: bytes) -> None:
    """Another version of this program may have written it."""
    assert Mark.read(line) is None


def test_marks_come_back() -> None:
    """What is written is read."""
    mark = Mark(spec_hash="5bec", url="https://a/", size=5, etag='"1"', last_modified=OLD, guard='"1"')
    assert Mark.read(mark.line()) == mark
    assert mark.version(alone=True) == Version(5, '"1"', OLD, '"1"')
    assert mark.version(alone=False) == Version(5, None, None, None)


def test_a_mark_that_is_too_long_is_none(bench: Workbench, web: Server) -> None:
    """Where a server gives more than a store can keep, nothing is gone on with, and nothing left."""
    breaks(bench, serve(web, {"ETag": f'"{"e" * 1000}"'}, f"/{'a' * 2000}", cut=AT), bench.store("a"))
    assert bench.left() == []


# A worker that is killed


@contextmanager
def worker(bench: Workbench, url: str, attempt: str, names: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of its own process, at work on a fetch over one connection; killed when the block ends."""
    task = Fetch(
        attempt=attempt,
        record=bench.record(),
        origin=HttpOrigin(urls=(url,)),
        limit=1 << 40,
        stores=tuple(bench.store(name) for name in names),
        addresses=LOOPBACK,
        transfers=Transfers(connections=1),
    )
    command = [sys.executable, "-m", "glimpse", "worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(task.line())
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_worker_has_lost_little(bench: Workbench, web: Server) -> None:
    """However often it is killed: what the server sent is the file, and for each kill what had not become safe."""
    names, data = ("a", "b"), noise(40 * CHUNK)
    lost = NOTE + QUEUED
    url, start = serve(web, ETAG, data=data), 0
    for number, stop in enumerate((18 * CHUNK, 32 * CHUNK)):
        web.interrupt("/a", stop, "stall")
        before = sent(web)
        with worker(bench, url, f"a{number}", names):
            web.wait_for("/a", sent=before + stop - start)
            wait_until("what is due", lambda stop=stop: safe(bench, *names) >= stop - lost, timeout=60)  # type: ignore[misc]
        assert stop - lost <= safe(bench, *names) <= stop
        start = safe(bench, *names)
    with worker(bench, url, "a9", names) as process:
        assert process.stdout
        *_, answer = (EVENT.validate_json(line) for line in process.stdout)
    assert isinstance(answer, Done)
    assert answer.record
    assert answer.record.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert all(bench.data(name, KEY) == data for name in names)
    assert bench.left() == [f"{name}/objects/{KEY}" for name in names]
    assert sent(web) <= len(data) + 2 * lost
