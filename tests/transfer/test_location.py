"""Bytes that lie in a store already: registered where they are, verified as any download, copied elsewhere."""

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from tests.transfer.test_fetch import qcow2

from glimpse.problems import DataLost
from glimpse.streams import CHUNK
from glimpse.tasks import ChecksumFile, Fetch, LocationOrigin, Look, Remove, StoreOrigin, Verify
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import KEY, LOOPBACK, PATIENT, UID, Told, Workbench

DATA = noise(3 * CHUNK + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()
PLACE = "import/team-a/debian.img"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the store `archive`, where others have put something."""
    file = tmp_path / "archive" / PLACE
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA)
    return tmp_path / "archive"


def register(bench: Workbench, *copies: str, key: str = PLACE, **more: Any) -> Told:
    """Register it in `archive`, and copy it into these stores."""
    stores = tuple(bench.store(name) for name in ("archive", *copies))
    origin = LocationOrigin(store=bench.store("archive"), key=key)
    options = {"record": bench.record(), "limit": 1 << 40, "addresses": LOOPBACK, "transfers": PATIENT, **more}
    return bench.do(Fetch(attempt="a1", stores=stores, origin=origin, **options))


@pytest.mark.parametrize("copies", [(), ("b",), ("b", "c")])
def test_it_is_registered_and_copied(bench: Workbench, home: Path, copies: tuple[str, ...]) -> None:
    """One reading fills the other stores; in its own nothing is copied, and only there a record tells where it lies."""
    told = register(bench, *copies)
    stat = (home / PLACE).stat()
    assert told.stored == {"archive", *copies}
    assert (told.record.digest, told.record.size) == (f"sha256:{SHA256}", len(DATA))
    assert told.record.source_url == f"file://{home}/{PLACE}"
    assert told.record.etag == f'"{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}"'
    archive = bench.opened("archive")
    with archive.get(KEY) as reader:
        assert b"".join(iter(reader.read, b"")) == DATA
    found = archive.stat(KEY).record
    assert found
    assert found.location == PLACE
    assert bench.data("archive", KEY) == b""
    for name in copies:
        assert bench.data(name, KEY) == DATA
        assert bench.opened(name).stat(KEY).record == found.model_copy(update={"location": ""})


BAD = {
    "nothing there": ({"key": "import/team-a/none"}, "SourceNotFound", "nothing lies at"),
    "ours": ({"key": f"objects/{KEY}/data"}, "StoreRefused", "belongs to Glimpse"),
    "outside": ({"key": "../secret"}, "StoreRefused", "segments"),
    "wrong digest": ({"checksum": f"sha256:{'0' * 64}"}, "ChecksumMismatch", SHA256),
    "wrong format": ({"disk_format": "qcow2"}, "FormatMismatch", "bytes are raw"),
    "too large": ({"limit": CHUNK}, "TooLarge", "larger than"),
}


@pytest.mark.parametrize(("options", "reason", "words"), BAD.values(), ids=list(BAD))
def test_it_is_checked_as_any_download(
    bench: Workbench, home: Path, options: dict[str, Any], reason: str, words: str
) -> None:
    """What fails a check is in no store, and the bytes of others are as they were."""
    told = register(bench, "b", **options)
    assert told.reason == reason
    assert words in told.message
    assert bench.left() == []
    assert (home / PLACE).read_bytes() == DATA


def test_an_unsafe_image_is_refused(bench: Workbench, home: Path) -> None:
    """A file that others can write to is what a backing file is for."""
    (home / PLACE).write_bytes(qcow2(backing=512))
    assert register(bench).reason == "UnsafeImage"
    assert bench.left() == []


def test_a_checksum_file_speaks_of_it(bench: Workbench, home: Path, web: Server) -> None:
    """Its line is found by the last part of the key."""
    web.serve("/SUMS", Reply(f"{SHA256}  debian.img\n{'0' * 64}  other.img\n".encode()))
    told = register(bench, checksum_file=ChecksumFile(url=web.url("/SUMS")))
    assert told.record.verification
    assert told.record.verification.file == web.url("/SUMS")
    (home / "import/team-a/other.img").write_bytes(DATA)
    again = register(
        bench,
        key="import/team-a/other.img",
        record=bench.record(2),
        checksum_file=ChecksumFile(url=web.url("/SUMS")),
    )
    assert again.reason == "ChecksumMismatch"


def test_what_is_compressed_stays_so(bench: Workbench, home: Path) -> None:
    """It cannot be unpacked where it lies: so one says that he wants it as it is."""
    (home / PLACE).write_bytes(gzip.compress(DATA))
    told = register(bench)
    assert told.reason == "InvalidConfiguration"
    assert "decompress to never" in told.message
    record = register(bench, decompress="never").record
    assert (record.source_format, record.digest) == (
        "gz",
        "sha256:" + hashlib.sha256((home / PLACE).read_bytes()).hexdigest(),
    )


def test_a_change_in_the_middle(bench: Workbench, home: Path) -> None:
    """Bytes of two versions are nobody's image: it is tried again."""

    def change(event: Any) -> None:
        if event.event == "progress":
            (home / PLACE).write_bytes(noise(len(DATA), 1))

    bench.hear = change
    told = register(bench, "b")
    assert told.reason == "SourceChanged"
    assert bench.left() == []


def test_a_copy_that_failed_comes_later(bench: Workbench, home: Path) -> None:
    """Another attempt adopts what is registered; and what is registered late must be what the copies are."""
    register(bench)
    told = register(bench, "b")
    assert told.stored == {"archive", "b"}
    assert bench.data("b", KEY) == DATA
    bench.opened("archive").delete(KEY)
    (home / PLACE).write_bytes(noise(len(DATA), 1))
    told = register(bench, "b")
    assert told.stored == {"b"}
    assert told.failed == {"archive": "DataLost"}


def test_a_copy_of_what_is_registered(bench: Workbench, home: Path) -> None:
    """Another store is filled from the registered object, verified; from other bytes never."""
    digest = register(bench).record.digest
    origin = StoreOrigin(store=bench.store("archive"))
    options = {"record": bench.record(), "origin": origin, "limit": 1 << 40, "expects": digest}
    copied = bench.do(Fetch(attempt="a2", stores=(bench.store("b"),), **options))
    assert copied.record.location == ""
    found = bench.opened("b").stat(KEY).record
    assert found
    assert found.location == ""
    (home / PLACE).write_bytes(noise(len(DATA), 1))
    lost = bench.do(Fetch(attempt="a3", stores=(bench.store("c"),), **options))
    assert lost.reason == "DataLost"
    assert bench.left() == [f"archive/objects/{KEY}", f"b/objects/{KEY}"]


def test_a_verification_notices(bench: Workbench, home: Path) -> None:
    """What is registered is verified as any object."""
    digest = register(bench).record.digest
    task = Verify(key=KEY, digest=digest, store=bench.store("archive"))
    assert bench.do(task).record.location == PLACE
    (home / PLACE).write_bytes(DATA[:-1] + b"x")
    assert bench.do(task).reason == DataLost.reason


def test_a_look(bench: Workbench, home: Path) -> None:
    """The same version is unchanged; another is not, unless the same length will do for a try; nothing is said."""
    record = register(bench).record

    def look(**more: Any) -> Told:
        origin = LocationOrigin(store=bench.store("archive"), key=PLACE)
        return bench.do(Look(origin=origin, etag=record.etag, size=record.size, **more))

    def unchanged(told: Told) -> bool:
        assert told.answer.event == "done"
        return told.answer.unchanged

    assert unchanged(look())
    os.utime(home / PLACE)
    assert not unchanged(look())
    assert unchanged(look(likely=True))
    (home / PLACE).write_bytes(DATA + b"x")
    assert not unchanged(look(likely=True))
    (home / PLACE).unlink()
    assert look().reason == "SourceNotFound"


@pytest.mark.parametrize("allowed", [(), ("import/team-b/",), ("import/team-a/",)], ids=["none", "other", "this"])
def test_a_removal(bench: Workbench, home: Path, allowed: tuple[str, ...]) -> None:
    """The registration goes; the bytes only if the store allows it below that prefix."""
    register(bench, "b")
    stores = (bench.store("archive"), bench.store("b"))
    bench.do(Remove(uid=UID, stores=stores, erase={"archive": allowed} if allowed else {}))
    assert bench.left() == []
    assert (home / PLACE).exists() == (allowed != ("import/team-a/",))


def test_a_removal_leaves_what_is_not_ours_alone(bench: Workbench, home: Path) -> None:
    """Bytes that another Image has registered too, that have changed, or that are a link by now, stay."""
    other = UID.replace("1", "2")
    erase = {"archive": ("import/",)}
    register(bench)
    register(bench, record=bench.record(uid=other))
    bench.do(Remove(uid=UID, stores=(bench.store("archive"),), erase=erase))
    assert (home / PLACE).read_bytes() == DATA
    (home / PLACE).write_bytes(b"new")
    bench.do(Remove(uid=other, stores=(bench.store("archive"),), erase=erase))
    assert (home / PLACE).read_bytes() == b"new"
    register(bench)
    aside = home / "aside"
    (home / PLACE).rename(aside)
    (home / PLACE).symlink_to(aside)
    assert bench.do(Remove(uid=UID, stores=(bench.store("archive"),), erase=erase)).of("removed")
    assert aside.read_bytes() == b"new"
    assert bench.left() == []


def test_what_is_retained_keeps_its_registration(bench: Workbench, home: Path) -> None:
    """A record says so, and the object is still read."""
    register(bench)
    bench.do(Remove(uid=UID, stores=(bench.store("archive"),), retain=True, erase={"archive": ("import/",)}))
    entry = bench.opened("archive").stat(KEY)
    assert entry.record
    assert (entry.record.retained, entry.record.location) == (True, PLACE)
    assert (home / PLACE).read_bytes() == DATA
