"""A spooled image becomes another one, or a Problem; and the spool is empty afterwards, whatever happened."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.convert.support import MADE, disk, image, qemu_img, seen, small_volume

from glimpse.convert import Spooled, convertible
from glimpse.problems import ConversionFailed, InvalidConfiguration, Problem, StoreFull, TooLarge, WorkerLost
from glimpse.streams import CHUNK, Reader
from glimpse.testing.bodies import Body, noise

MIB = 1 << 20


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    """The spool; empty at the end."""
    folder = tmp_path / "spool"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def spooled(
    spool: Path, size: int = 1 << 30, patience: float = 60, cancelled: threading.Event | None = None
) -> Spooled:
    """A file in it."""
    return Spooled(str(spool), size, patience, cancelled or threading.Event())


def drain(reader: Reader, n: int = CHUNK) -> bytes:
    """All that the reader gives."""
    return b"".join(iter(lambda: reader.read(n), b""))


def to_raw(spool: Path, kind: str, data: bytes) -> bytes:
    """The disk in an image."""
    with spooled(spool) as file:
        file.fill(Body(data))
        sizes = list[int]()
        with file.as_raw(kind, sizes.append) as reader:
            found = drain(reader)
        assert [len(found)] == sizes == [reader.size]
    return found


@pytest.mark.parametrize("name", MADE)
def test_to_raw(spool: Path, tmp_path: Path, name: str) -> None:
    """The disk comes as a machine sees it, its holes as zeros."""
    kind, options = MADE[name]
    assert to_raw(spool, name.split(maxsplit=1)[0], image(tmp_path, kind, *options)) == disk()


@pytest.mark.parametrize("name", ["raw", *MADE])
def test_to_qcow2(spool: Path, tmp_path: Path, name: str) -> None:
    """The same disk in a qcow2 that is whole, with progress up to all of it."""
    kind, options = MADE.get(name, ("raw", ()))
    done = list[float]()
    with spooled(spool) as file:
        file.fill(Body(image(tmp_path, kind, *options)))
        with file.as_qcow2(name.split(maxsplit=1)[0], done.append) as reader:
            made = drain(reader, 100_000)
            assert reader.size == len(made)
    assert seen(tmp_path, "qcow2", made) == disk()
    qemu_img("check", "-f", "qcow2", "stored", cwd=tmp_path)
    assert done == sorted(done)
    assert done[-1] == 1


@pytest.mark.parametrize("size", [0, 512, MIB, 2 * MIB + 512])
def test_disks_of_any_size(spool: Path, tmp_path: Path, size: int) -> None:
    """Around the borders of chunks, with nothing in them and with something."""
    for data in (bytes(size), noise(size)):
        assert to_raw(spool, "qcow2", image(tmp_path, "qcow2", data=data)) == data


def test_a_hole_takes_no_room(spool: Path) -> None:
    """In the spool a disk that is mostly empty is a file that is; and blocks of zeros do not count."""
    with spooled(spool, size=MIB) as file:
        file.fill(Body(bytes(90 * MIB) + noise(70_000) + bytes(90 * MIB)))
        state = os.fstat(file._file)
    assert state.st_size == 180 * MIB + 70_000
    assert state.st_blocks * 512 < MIB


def test_nothing_has_a_name(spool: Path, tmp_path: Path) -> None:
    """So nothing is left in the spool by a worker that is killed, at any moment."""
    with spooled(spool) as file:
        file.fill(Body(image(tmp_path, "qcow2")))
        with file.as_raw("qcow2", lambda _: None) as reader:
            assert reader.read(1)
            assert list(spool.iterdir()) == []
        with file.as_qcow2("qcow2", lambda _: None) as reader:
            assert reader.read(1)
            assert list(spool.iterdir()) == []


def children() -> set[int]:
    """The processes that this one has started and that are still there."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.parametrize("after", [0, 1])
def test_leaving_ends_the_program(spool: Path, tmp_path: Path, after: int) -> None:
    """A store that has failed in the middle takes no more, and nothing goes on in its stead."""
    before = children()
    with spooled(spool) as file:
        file.fill(Body(image(tmp_path, "qcow2", data=noise(8 * MIB))))
        with file.as_raw("qcow2", lambda _: None) as reader:
            for _ in range(after):
                assert reader.read()
            assert children() - before
        assert children() == before


def test_a_conversion_is_cancelled(spool: Path, tmp_path: Path) -> None:
    """In the middle of a stream that the program would go on with."""
    cancelled = threading.Event()
    with spooled(spool, cancelled=cancelled) as file:
        file.fill(Body(image(tmp_path, "qcow2", data=noise(8 * MIB))))
        with file.as_raw("qcow2", lambda _: None) as reader:
            assert reader.read()
            cancelled.set()
            with pytest.raises(WorkerLost):
                drain(reader)
        with pytest.raises(WorkerLost), file.as_qcow2("qcow2", lambda _: None):
            pass


def test_a_program_that_hangs_is_given_up(spool: Path, tmp_path: Path) -> None:
    """After the patience of the setting."""
    before = children()
    with spooled(spool, patience=3) as file:
        file.fill(Body(image(tmp_path, "qcow2", data=noise(8 * MIB))))
        with file.as_raw("qcow2", lambda _: None) as reader:
            assert reader.read()
            for pid in children() - before:
                os.kill(pid, signal.SIGSTOP)
            with pytest.raises(ConversionFailed, match="nothing for 3 s"):
                drain(reader)


@pytest.mark.parametrize(
    ("number", "problem", "message"),
    [
        (signal.SIGKILL, WorkerLost, "SIGKILL"),
        (signal.SIGTERM, WorkerLost, "SIGTERM"),
        (signal.SIGXCPU, ConversionFailed, "too much CPU time"),
        (signal.SIGSEGV, ConversionFailed, "SIGSEGV"),
    ],
)
def test_a_program_that_dies_says_how(
    spool: Path, tmp_path: Path, number: int, problem: type[Problem], message: str
) -> None:
    """The stream never ends as if all were well. What was killed from outside is tried again, as a worker is."""
    before = children()
    with spooled(spool) as file:
        file.fill(Body(image(tmp_path, "qcow2", data=noise(8 * MIB))))
        with file.as_raw("qcow2", lambda _: None) as reader:
            assert reader.read()
            for pid in children() - before:
                os.kill(pid, number)
            with pytest.raises(problem, match=message):
                drain(reader)


def test_a_size_that_is_refused(spool: Path, tmp_path: Path) -> None:
    """What the caller raises comes out, and nothing is converted."""
    refusal = TooLarge("too large")

    def refuse(size: int) -> None:
        assert size == len(disk())
        raise refusal

    with spooled(spool) as file:
        file.fill(Body(image(tmp_path, "qcow2")))
        with pytest.raises(TooLarge) as raised, file.as_raw("qcow2", refuse):
            pass
    assert raised.value is refusal


def broken(tmp_path: Path) -> bytes:
    """A qcow2 whose head is well and whose clusters cannot be unpacked."""
    data = bytearray(image(tmp_path, "qcow2", "-c", data=b"text " * MIB))
    for at in range(5 << 16, len(data) - 64, 64):
        data[at : at + 64] = b"\xff" * 64
    return bytes(data)


def test_a_broken_image(spool: Path, tmp_path: Path) -> None:
    """What qemu-img cannot read is never taken for read."""
    data = broken(tmp_path)
    with spooled(spool) as file:
        file.fill(Body(data))
        with pytest.raises(ConversionFailed, match="qemu-img check"), file.as_raw("qcow2", lambda _: None) as reader:
            drain(reader)
        with pytest.raises(ConversionFailed, match="qemu-img check"), file.as_qcow2("qcow2", lambda _: None):
            pass


DYNAMIC = [name for name in MADE if name != "vhd fixed"]
WHOLE = noise(5 * MIB)


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("short", [3 * MIB, 4 << 10])
def test_an_image_that_is_cut_off(spool: Path, tmp_path: Path, name: str, short: int) -> None:
    """What is not there any more is not taken for zeros, be it half of the image or a part of its last cluster."""
    kind, options = MADE[name]
    data = image(tmp_path, kind, *options, data=WHOLE).rstrip(b"\0")[:-short]
    with spooled(spool) as file:
        file.fill(Body(data))
        for convert in (file.as_raw, file.as_qcow2):
            with (
                pytest.raises(ConversionFailed, match=r"cut off|qemu-img check"),
                convert(name.split(maxsplit=1)[0], lambda _: None) as reader,
            ):
                drain(reader)


def test_tables_that_are_cut_off(spool: Path, tmp_path: Path) -> None:
    """A qcow2 whose second table of clusters is gone with all that follows: nothing of the rest is missing."""
    (tmp_path / "disk.raw").write_bytes(b"")
    os.truncate(tmp_path / "disk.raw", 600 * MIB)
    with (tmp_path / "disk.raw").open("r+b") as raw:
        for at in (0, 550 * MIB):
            raw.seek(at)
            raw.write(noise(MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "disk.raw", "image", cwd=tmp_path)
    data = (tmp_path / "image").read_bytes()
    first_table = int.from_bytes(data[40:48], "big")
    second = int.from_bytes(data[first_table + 8 : first_table + 16], "big") & 0x00FF_FFFF_FFFF_FE00
    assert second > MIB
    with spooled(spool) as file:
        file.fill(Body(data[:second]))
        with pytest.raises(ConversionFailed, match="cut off"), file.as_raw("qcow2", lambda _: None):
            pass


def test_an_image_with_room_to_spare(spool: Path, tmp_path: Path) -> None:
    """Clusters that nobody refers to are no damage, nor is an end that is no multiple of a cluster."""
    image(tmp_path, "qcow2", data=WHOLE)
    qemu_img("snapshot", "-c", "x", "image", cwd=tmp_path)
    data = bytearray((tmp_path / "image").read_bytes())
    data[60:64] = bytes(4)  # the snapshots are forgotten, and what they hold is lost room
    assert to_raw(spool, "qcow2", bytes(data)) == WHOLE
    odd = noise(MIB + 512)
    assert to_raw(spool, "qcow2", image(tmp_path, "qcow2", data=odd)) == odd


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhd", "vhdx"])
def test_an_image_that_is_none(spool: Path, kind: str) -> None:
    """It is opened as what it was found to be, and as nothing else."""
    with spooled(spool) as file:
        file.fill(Body(noise(2 * MIB)))
        with pytest.raises(ConversionFailed), file.as_raw(kind, lambda _: None):
            pass


def test_an_image_that_is_taken_for_what_it_is_not(spool: Path, tmp_path: Path) -> None:
    """A qcow2 that is called raw is so many bytes: nothing is told from them."""
    data = image(tmp_path, "qcow2")
    assert to_raw(spool, "raw", data) == data


def test_a_source_that_fails(spool: Path) -> None:
    """Its Problem comes out as it is."""
    error = WorkerLost("gone")
    with spooled(spool) as file, pytest.raises(WorkerLost) as raised:
        file.fill(Body(noise(100), error=error))
    assert raised.value is error


# Room


def test_a_spool_that_is_too_small(spool: Path) -> None:
    """Enforced while bytes come; the setting is named."""
    body = Body(noise(3 * MIB))
    with spooled(spool, size=MIB) as file, pytest.raises(TooLarge, match="GLIMPSE_SPOOL__SIZE"):
        file.fill(body)
    assert body.given <= 2 * MIB


def test_a_result_counts_too(spool: Path, tmp_path: Path) -> None:
    """Both files of a conversion lie in the spool at once."""
    data = image(tmp_path, "raw", data=noise(MIB))
    with spooled(spool, size=3 * MIB // 2) as file:
        file.fill(Body(data))
        with pytest.raises(TooLarge, match="GLIMPSE_SPOOL__SIZE"), file.as_qcow2("raw", lambda _: None):
            pass


def test_a_full_disk(tmp_path: Path) -> None:
    """Time can mend it; the message names the spool, since no store is full."""
    folder = tmp_path / "small"
    folder.mkdir()
    with small_volume(folder, "3m"):
        with spooled(folder) as file, pytest.raises(StoreFull, match=r"the spool .* is full"):
            file.fill(Body(noise(5 * MIB)))
        with spooled(folder) as file:
            file.fill(Body(noise(2 * MIB)))
            with pytest.raises(StoreFull, match=r"the spool .* is full"), file.as_qcow2("raw", lambda _: None):
                pass


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_a_spool_that_is_none(tmp_path: Path, place: str) -> None:
    """An administrator must act, and is told by which setting."""
    (tmp_path / "file").touch()
    with pytest.raises(Problem) as raised:
        spooled(tmp_path / place)
    assert isinstance(raised.value, InvalidConfiguration)
    assert "GLIMPSE_SPOOL__PATH" in raised.value.message


def test_what_can_be_converted() -> None:
    """Formats that qemu-img is let at, and no word of a user's besides."""
    assert all(convertible(name.split(maxsplit=1)[0]) for name in ["raw", "iso", *MADE])
    assert not any(convertible(name) for name in ("ploop", "ami", "ari", "aki", "auto", "nbd", ""))
