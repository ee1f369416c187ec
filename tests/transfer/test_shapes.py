"""What is stored may be other bytes than what was downloaded: each has its checks, and the record tells both."""

import hashlib
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.convert.support import MADE, disk, image, qemu_img, seen
from tests.decompress.support import PACK

from glimpse.settings import Spool
from glimpse.streams import CHUNK
from glimpse.tasks import Event, Progress
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import KEY, Workbench

DATA = noise(CHUNK + 17) + bytes(2 * CHUNK)
SHA256 = hashlib.sha256(DATA).hexdigest()
every_kind = pytest.mark.parametrize("kind", PACK)


def digest(data: bytes, algorithm: str = "sha256") -> str:
    """As a spec has it."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


# Compressed sources


@every_kind
@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("chunked", [0, 1000])
def test_a_compressed_source_is_stored_plain(
    bench: Workbench, web: Server, kind: str, names: tuple[str, ...], chunked: int
) -> None:
    """Digest and size are of what is stored, `source_digest` is of what came; progress counts what came."""
    packed = PACK[kind](DATA)
    web.serve("/a", Reply(packed, chunked=chunked))
    told = bench.fetch(web.url("/a"), tuple(bench.store(name) for name in names))
    record = told.record
    assert (record.digest, record.digests, record.size) == (f"sha256:{SHA256}", {"sha256": SHA256}, len(DATA))
    assert (record.disk_format, record.virtual_size) == ("raw", len(DATA))
    assert (record.source_digest, record.source_format) == (digest(packed), f"raw.{kind}")
    assert told.of("progress")[-1].done == len(packed)
    assert told.of("progress")[-1].total == (None if chunked else len(packed))
    for name in names:
        assert bench.data(name, KEY) == DATA
        assert bench.opened(name).stat(KEY).record == record
    assert len(web.requests) == 1


@every_kind
@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
def test_the_checksum_speaks_of_what_came(bench: Workbench, web: Server, kind: str, algorithm: str) -> None:
    """One of the compressed bytes agrees, whatever its algorithm, and is what is remembered of them."""
    packed = PACK[kind](DATA)
    web.serve("/a", Reply(packed))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), checksum=digest(packed, algorithm)).record
    assert record.source_digest == digest(packed, algorithm)
    assert record.digests == {"sha256": SHA256}


@every_kind
def test_a_checksum_of_what_is_inside_does_not_agree(bench: Workbench, web: Server, kind: str) -> None:
    """The message names the digest of the bytes as downloaded."""
    packed = PACK[kind](DATA)
    web.serve("/a", Reply(packed))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), checksum=f"sha256:{SHA256}")
    assert told.reason == "ChecksumMismatch"
    assert digest(packed) in told.message
    assert bench.left() == []


@every_kind
def test_nothing_is_unpacked_if_told_so(bench: Workbench, web: Server, kind: str) -> None:
    """The bytes are stored as they came, and the record says what they are."""
    packed = PACK[kind](DATA)
    web.serve("/a", Reply(packed))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), decompress="never", checksum=digest(packed)).record
    assert bench.data("a", KEY) == packed
    assert (record.digest, record.source_digest, record.source_format) == (digest(packed), "", kind)


def test_a_compressed_source_is_filled_from_a_store(bench: Workbench, web: Server) -> None:
    """A copy is of the stored bytes, which are not unpacked again though they may look compressed."""
    inside = PACK["gz"](DATA)
    web.serve("/a", Reply(PACK["xz"](inside)))
    first = bench.fetch(web.url("/a"), (bench.store("a"),))
    assert first.record.source_format == "raw.xz"
    assert bench.fetch(web.url("/a"), (bench.store("a"), bench.store("b"))).record == first.record
    assert bench.data("b", KEY) == inside
    assert len(web.requests) == 1


BAD: dict[str, tuple[bytes, dict[str, Any], str, str]] = {
    "cut off": (PACK["gz"](DATA)[:-1], {}, "DecompressionFailed", "in the middle"),
    "broken": (PACK["xz"](DATA)[:5000] + b"x" + PACK["xz"](DATA)[5001:], {}, "DecompressionFailed", "broken"),
    "goes on": (PACK["zst"](DATA) + b"<html>", {}, "DecompressionFailed", "after its end"),
    "grows": (PACK["gz"](b"A" * (80 << 20)), {"ratio": 10}, "DecompressionFailed", "COMPRESSION_RATIO"),
    "too large inside": (PACK["gz"](bytes(4 << 20)), {"limit": (4 << 20) - 1}, "TooLarge", "larger than 4 MiB"),
    "not what was declared": (PACK["bz2"](DATA), {"disk_format": "qcow2"}, "FormatMismatch", "bytes are raw"),
}


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_compressed_source_leaves_nothing(
    bench: Workbench, web: Server, name: str, names: tuple[str, ...]
) -> None:
    """Each ends with its reason, and no store has an object or a leftover."""
    packed, options, reason, message = BAD[name]
    web.serve("/a", Reply(packed))
    told = bench.fetch(web.url("/a"), tuple(bench.store(store) for store in names), **options)
    assert told.reason == reason
    assert message in told.message
    assert bench.left() == []


def test_a_network_that_breaks_is_no_broken_file(bench: Workbench, web: Server) -> None:
    """Time can mend it, and another mirror at once."""
    packed = PACK["gz"](DATA)
    web.serve("/1", Reply(packed, cut=len(packed) - 1))
    web.serve("/2", Reply(packed))
    assert bench.fetch(web.url("/1"), (bench.store("a"),)).reason == "SourceUnavailable"
    assert bench.fetch((web.url("/1"), web.url("/2")), (bench.store("a"),)).record.digest == f"sha256:{SHA256}"


@every_kind
@pytest.mark.parametrize("checked", [True, False], ids=["with digest", "without"])
def test_a_mirror_with_a_broken_file_is_passed_over(bench: Workbench, web: Server, *, kind: str, checked: bool) -> None:
    """Wherever it shows, in the stream or in its digest."""
    packed = PACK[kind](DATA)
    middle = len(packed) // 2
    web.serve("/1", Reply(packed[:middle] + bytes(200) + packed[middle + 200 :]))
    web.serve("/2", Reply(packed))
    options = {"checksum": digest(packed)} if checked else {}
    record = bench.fetch((web.url("/1"), web.url("/2")), (bench.store("a"),), **options).record
    assert record.source_url == web.url("/2")
    assert bench.data("a", KEY) == DATA


def test_a_long_unpacking_can_be_cancelled(bench: Workbench, web: Server) -> None:
    """Also where a few bytes of the source give so many that it is not read for long."""
    web.serve("/a", Reply(PACK["bz2"](bytes(8 << 20)) * 1000))
    told = threading.Thread(target=lambda: results.append(bench.fetch(web.url("/a"), (bench.store("a"),)).reason))
    results = list[str | None]()
    told.start()
    web.wait_for("/a", sent=1)
    bench.cancelled.set()
    told.join()
    assert results == ["WorkerLost"]
    assert bench.left() == []


# Conversion


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool; empty at the end."""
    folder = tmp_path / "spool"
    folder.mkdir()
    yield Spool(path=folder)
    assert list(folder.iterdir()) == []


_started: list[list[str]] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _started is not None:
        _started.append(arguments[1])


sys.addaudithook(_note)


@pytest.fixture
def started() -> Iterator[list[list[str]]]:
    """Every program that this process starts from now on, as Python itself notes it."""
    global _started  # noqa: PLW0603 - a hook stays for the life of the process
    _started = []
    yield _started
    _started = None


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("name", MADE)
def test_an_image_is_converted_to_raw(
    bench: Workbench, web: Server, *, spool: Spool, tmp_path: Path, name: str, names: tuple[str, ...]
) -> None:
    """Into every store in one pass, with the digests of both; the checksum speaks of what came."""
    kind, options = MADE[name]
    data, disk_format = image(tmp_path, kind, *options), name.split(maxsplit=1)[0]
    web.serve("/a", Reply(data))
    told = bench.fetch(
        web.url("/a"),
        tuple(bench.store(store) for store in names),
        convert_to="raw",
        disk_format=disk_format,
        checksum=digest(data, "sha512"),
        spool=spool,
    )
    record = told.record
    assert (record.disk_format, record.size, record.virtual_size) == ("raw", len(disk()), len(disk()))
    assert (record.digest, list(record.digests)) == (digest(disk()), ["sha256"])
    assert (record.source_digest, record.source_format) == (digest(data, "sha512"), disk_format)
    for store in names:
        assert bench.data(store, KEY) == disk()
        assert bench.opened(store).stat(KEY).record == record
    assert len(web.requests) == 1


@pytest.mark.parametrize("kind", ["raw", "vmdk"])
def test_an_image_is_converted_to_qcow2(bench: Workbench, web: Server, spool: Spool, tmp_path: Path, kind: str) -> None:
    """The stored file is a whole qcow2 with the same disk."""
    data = image(tmp_path, kind)
    web.serve("/a", Reply(data))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="qcow2", spool=spool).record
    stored = bench.data("a", KEY)
    assert seen(tmp_path, "qcow2", stored) == disk()
    assert (record.disk_format, record.size, record.virtual_size) == ("qcow2", len(stored), len(disk()))
    assert (record.digest, record.source_digest, record.source_format) == (digest(stored), digest(data), kind)


def test_an_image_is_unpacked_and_converted(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """Both, in this order; the digest is of what came."""
    packed = PACK["xz"](image(tmp_path, "vmdk"))
    web.serve("/a", Reply(packed))
    record = bench.fetch(
        web.url("/a"), (bench.store("a"),), convert_to="raw", checksum=digest(packed), spool=spool
    ).record
    assert bench.data("a", KEY) == disk()
    assert (record.source_digest, record.source_format) == (digest(packed), "vmdk.xz")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("pack", [bytes, PACK["gz"]], ids=["plain", "gz"])
def test_what_is_right_already_is_not_spooled(
    bench: Workbench,
    web: Server,
    *,
    tmp_path: Path,
    started: list[list[str]],
    kind: str,
    pack: Callable[[bytes], bytes],
) -> None:
    """It needs neither spool nor qemu-img, and is stored as it comes."""
    data = image(tmp_path, kind)
    started.clear()
    web.serve("/a", Reply(pack(data)))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to=kind).record
    assert bench.data("a", KEY) == data
    assert record.disk_format == kind
    assert record.source_format == ("" if pack is bytes else f"{kind}.gz")
    assert started == []


def test_a_disc_is_raw_already(bench: Workbench, web: Server) -> None:
    """An iso has no other raw form, and stays an iso."""
    web.serve("/a", Reply(iso()))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw").record
    assert (record.disk_format, record.source_format) == ("iso", "")
    assert bench.data("a", KEY) == iso()


def iso() -> bytes:
    """The least that is a disc: a primary volume descriptor."""
    descriptor = b"\x01CD001\x01".ljust(80, b"\0") + struct.pack("<I", 20) + bytes(44) + struct.pack("<H", 2048)
    return bytes(32 * 1024) + descriptor.ljust(2048, b"\0") + bytes(4096) + bytes(1024)


def test_a_disc_in_an_image(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """What comes out is told for what it is."""
    web.serve("/a", Reply(image(tmp_path, "qcow2", data=iso())))
    record = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool).record
    assert (record.disk_format, record.source_format) == ("iso", "qcow2")
    assert bench.data("a", KEY) == iso()


def test_holes_stay_holes(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """An empty disk of some size takes no room in a store that knows holes."""
    data = image(tmp_path, "qcow2", data=bytes(30 << 20) + b"x" * 512 + bytes(30 << 20))
    web.serve("/a", Reply(data))
    assert bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool).record.size == 60 << 20 | 512
    state = (tmp_path / "a" / "objects" / KEY / "data").stat()
    assert state.st_size == 60 << 20 | 512
    assert state.st_blocks * 512 <= 128 << 10


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_progress_of_a_conversion(bench: Workbench, web: Server, spool: Spool, tmp_path: Path, target: str) -> None:
    """First the bytes of the source are counted, then those of the disk."""
    data = image(tmp_path, "vmdk")
    web.serve("/a", Reply(data))
    progress = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to=target, spool=spool).of("progress")
    stages = [event.converting for event in progress]
    assert stages == sorted(stages)
    came = [event for event in progress if not event.converting]
    made = [event for event in progress if event.converting]
    assert (came[-1].done, came[-1].total) == (len(data), len(data))
    assert (made[-1].done, made[-1].total) == (len(disk()), len(disk()))
    assert [event.done for event in made] == sorted(event.done for event in made)


UNSAFE: dict[str, tuple[str, ...]] = {
    "backing file": ("-b", "disk.raw", "-F", "raw"),
    "data file": ("-o", "data_file=other.raw"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_qemu_img_never_sees_an_unsafe_image(
    bench: Workbench, web: Server, *, spool: Spool, tmp_path: Path, started: list[list[str]], name: str
) -> None:
    """It is refused before any program is started."""
    (tmp_path / "disk.raw").write_bytes(b"secret".ljust(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", *UNSAFE[name], "image", "1M", cwd=tmp_path)
    started.clear()
    web.serve("/a", Reply((tmp_path / "image").read_bytes()))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool)
    assert told.reason == "UnsafeImage"
    assert started == []
    assert bench.left() == []


REFUSED: dict[str, tuple[Callable[[bytes], bytes], dict[str, Any], str]] = {
    "an end that makes it two": (lambda data: data + fixed_footer(), {}, "UnsafeImage"),
    "another digest": (lambda data: data, {"checksum": "sha256:" + "0" * 64}, "ChecksumMismatch"),
    "another format": (lambda data: data, {"disk_format": "vmdk"}, "FormatMismatch"),
    "broken inside": (lambda data: PACK["gz"](data)[:-1], {}, "DecompressionFailed"),
}


def fixed_footer() -> bytes:
    """What makes a fixed VHD of any bytes before it."""
    return b"conectix".ljust(60, b"\0") + struct.pack(">I", 2) + bytes(448)


@pytest.mark.parametrize("name", REFUSED)
def test_qemu_img_sees_nothing_before_the_end_was_good(
    bench: Workbench, web: Server, *, spool: Spool, tmp_path: Path, started: list[list[str]], name: str
) -> None:
    """The whole file is looked through first, its last byte and its digest included."""
    spoil, options, reason = REFUSED[name]
    data = image(tmp_path, "qcow2")
    started.clear()
    web.serve("/a", Reply(spoil(data)))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool, **options)
    assert told.reason == reason
    assert started == []
    assert bench.left() == []


def test_only_our_words_reach_qemu_img(
    bench: Workbench, web: Server, spool: Spool, tmp_path: Path, started: list[list[str]]
) -> None:
    """The format is named, the file is a descriptor, and no protocol is left to be guessed."""
    data = image(tmp_path, "vmdk")
    started.clear()
    web.serve("/a", Reply(data))
    assert not bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool).reason
    told = [words[words.index("--image-opts") :] for words in started]
    source = "driver=vmdk,file.driver=file,file.locking=off,file.filename=/proc/self/fd/N"
    target = "driver=raw,file.driver=nbd,file.server.type=fd,file.server.str=N"
    assert [re.sub(r"\d+", "N", " ".join(words)) for words in told] == [
        f"--image-opts -O raw {source}",
        f"--image-opts {source}",
        f"--image-opts {source}",
        f"--image-opts --target-image-opts -n --target-is-zero {source} {target}",
    ]


@pytest.mark.parametrize("inside", ["qcow2", "vmdk"])
def test_an_image_in_an_image(bench: Workbench, web: Server, spool: Spool, tmp_path: Path, inside: str) -> None:
    """A raw disk that begins like another format would be taken for that by whoever opens it."""
    web.serve("/a", Reply(image(tmp_path, "qcow2", data=image(tmp_path, inside))))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool)
    assert told.reason == "UnsafeImage"
    assert inside in told.message
    assert bench.left() == []


def test_a_disk_that_is_too_large(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """A small file may hold a large disk, which the limits know before it is made."""
    qemu_img("create", "-q", "-f", "qcow2", "image", "1T", cwd=tmp_path)
    web.serve("/a", Reply((tmp_path / "image").read_bytes()))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool, limit=1 << 30)
    assert told.reason == "TooLarge"
    assert bench.left() == []


def test_a_store_that_is_too_small_for_the_disk(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """It fails alone, and before it is written to."""
    web.serve("/a", Reply(image(tmp_path, "qcow2", "-c", data=bytes(20 << 20))))
    small = bench.store("small", max_image_size=10 << 20)
    told = bench.fetch(web.url("/a"), (small, bench.store("a")), convert_to="raw", spool=spool)
    assert (told.stored, told.failed) == ({"a"}, {"small": "TooLarge"})


def test_without_a_spool(bench: Workbench, web: Server, tmp_path: Path) -> None:
    """The way out is named, and known before all is downloaded."""
    web.serve("/a", Reply(image(tmp_path, "qcow2", data=noise(4 << 20)), stall=2 << 20))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw")
    assert told.reason == "InvalidConfiguration"
    assert "GLIMPSE_SPOOL__PATH" in told.message


def test_a_spool_that_is_too_small(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """Nothing is stored."""
    web.serve("/a", Reply(image(tmp_path, "qcow2")))
    told = bench.fetch(
        web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool.model_copy(update={"size": 1 << 16})
    )
    assert told.reason == "TooLarge"
    assert "GLIMPSE_SPOOL__SIZE" in told.message
    assert bench.left() == []


def test_a_fixed_vhd_that_nobody_named(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """Its mark is in the last sector, when all has passed as raw: the user is asked to name it, and then it works."""
    web.serve("/a", Reply(image(tmp_path, "vpc", "-o", "subformat=fixed,force_size=on")))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool)
    assert told.reason == "ConversionFailed"
    assert "spec.format.disk" in told.message
    assert bench.left() == []


@pytest.mark.parametrize("target", ["raw", "qcow2"])
@pytest.mark.parametrize("declared", ["ploop", "ami"])
def test_a_format_on_trust_is_not_converted(
    bench: Workbench, web: Server, spool: Spool, declared: str, target: str
) -> None:
    """Nobody can tell what is in it."""
    web.serve("/a", Reply(DATA))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to=target, disk_format=declared, spool=spool)
    assert told.reason == "ConversionFailed"
    assert declared in told.message


def test_a_conversion_is_cancelled(bench: Workbench, web: Server, spool: Spool, tmp_path: Path) -> None:
    """While qemu-img runs: it is ended, and no store has anything."""
    web.serve("/a", Reply(image(tmp_path, "qcow2", data=noise(20 << 20))))

    def hear(event: Event) -> None:
        if isinstance(event, Progress) and event.converting:
            bench.cancelled.set()

    bench.hear = hear
    told = bench.fetch(web.url("/a"), (bench.store("a"),), convert_to="raw", spool=spool)
    assert told.reason == "WorkerLost"
    assert bench.left() == []
