"""What an image is, on real files that qemu-img made, and on files that mean harm."""

import contextlib
import json
import random
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glimpse.formats import Inspect, Inspection, foretell
from glimpse.problems import FormatMismatch, UnsafeImage
from glimpse.streams import CHUNK
from glimpse.testing.bodies import noise
from servers.require import require, require_tool

MIB = 1 << 20
ISO = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
Qemu = Callable[..., str]


def inspect(data: bytes, declared: str = "auto", piece: int = CHUNK) -> Inspection:
    """Feed it all, in pieces."""
    look = Inspect(declared)
    for at in range(0, len(data), piece):
        look.feed(data[at : at + piece])
    look.finish()
    assert look.result
    return look.result


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Qemu:
    """Runs qemu-img in a folder of its own; the output."""
    program = require_tool("qemu-img", "qemu-utils")
    folder = tmp_path_factory.mktemp("qemu")

    def run(*words: str) -> str:
        done = subprocess.run(
            [program, *words], cwd=folder, timeout=60, check=True, capture_output=True, text=True, encoding="utf-8"
        )
        return done.stdout

    (folder / "disk.raw").write_bytes(partitioned(noise(3 * MIB)))
    (folder / "empty.raw").write_bytes(bytes(3 * MIB))
    run.folder = folder  # type: ignore[attr-defined]
    return run


def made(qemu: Qemu, *words: str) -> bytes:
    """The bytes of the file that this command makes; it is called `image`."""
    qemu(*words)
    data: bytes = (qemu.folder / "image").read_bytes()  # type: ignore[attr-defined]
    return data


def partitioned(disk: bytes, *, kind: int = 0x83) -> bytes:
    """The disk with a partition table in its first sector; kind 0xEE protects a GPT."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", kind, b"\xff\xff\xff", 1, 2047)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + disk[512:]


def iso(volume: bytes = b"") -> bytes:
    """The least that is a disc: a primary volume descriptor."""
    head = volume.ljust(32 * 1024, b"\0")
    descriptor = b"\x01CD001\x01".ljust(80, b"\0") + struct.pack("<I", 20) + bytes(44) + struct.pack("<H", 2048)
    return head + descriptor.ljust(2048, b"\0") + bytes(4096)


MADE = {
    "qcow2": ("qcow2", ()),
    "qcow2 of version 2": ("qcow2", ("-o", "compat=0.10")),
    "qcow2 compressed": ("qcow2", ("-c",)),
    "vmdk": ("vmdk", ()),
    "vmdk for streams": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vdi": ("vdi", ()),
    "vdi static": ("vdi", ("-o", "static=on")),
    "vhd": ("vpc", ("-o", "force_size=on")),
    "vhd fixed": ("vpc", ("-o", "subformat=fixed,force_size=on")),
    "vhdx": ("vhdx", ()),
    "vhdx fixed": ("vhdx", ("-o", "subformat=fixed")),
}


@pytest.mark.parametrize("source", ["disk.raw", "empty.raw"])
@pytest.mark.parametrize("name", MADE)
def test_real_images_are_recognised(qemu: Qemu, name: str, source: str) -> None:
    """Each format that qemu-img writes is told with the disk's size, named or not, in chunks of any size."""
    kind, options = MADE[name]
    data = made(qemu, "convert", "-f", "raw", "-O", kind, *options, source, "image")
    expected = Inspection(name.split(maxsplit=1)[0], 3 * MIB)
    assert inspect(data) == expected
    for piece in (CHUNK // 3 + 1, 511):
        assert inspect(data, name.split(maxsplit=1)[0], piece) == expected


@pytest.mark.parametrize("source", ["disk.raw", "empty.raw"])
@pytest.mark.parametrize("name", MADE)
def test_the_beginning_foretells_the_format(qemu: Qemu, name: str, source: str) -> None:
    """Named or not, also of a file that is shorter; only a fixed VHD that nobody names looks raw until its end."""
    kind, options = MADE[name]
    data = made(qemu, "convert", "-f", "raw", "-O", kind, *options, source, "image")
    expected = name.split(maxsplit=1)[0]
    for head in (data[:CHUNK], data[: min(len(data), CHUNK) - 512]):
        assert foretell(head, expected) == expected
        assert foretell(head) == ("raw" if name == "vhd fixed" else expected)


def test_what_the_beginning_cannot_foretell() -> None:
    """What is taken on trust is what was named, and what contradicts the name is refused at once."""
    assert [foretell(b"", word) for word in ("auto", "raw", "vhd", "ploop", "ami")] == [
        "raw",
        "raw",
        "vhd",
        "ploop",
        "ami",
    ]
    with pytest.raises(FormatMismatch):
        foretell(noise(MIB), "qcow2")


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx"])
@pytest.mark.parametrize("size", [MIB, 5 * MIB, 10 << 30])
def test_the_virtual_size_is_that_of_qemu(qemu: Qemu, kind: str, size: int) -> None:
    """The disk's size as qemu-img sees it, however small the file."""
    data = made(qemu, "create", "-q", "-f", kind, "image", str(size))
    info = json.loads(qemu("info", "--output=json", "image"))
    assert inspect(data).virtual_size == info["virtual-size"] == size


@pytest.mark.parametrize("declared", ["auto", "raw", "qcow2", "vhd", "ploop"])
def test_nothing_is_no_image(declared: str) -> None:
    """Whatever was declared: the message says that there are no bytes, and not that they are of another format."""
    with pytest.raises(FormatMismatch, match="the image is empty"):
        inspect(b"", declared)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"x", Inspection("raw", 1)),
        (noise(2 * MIB + 1), Inspection("raw", 2 * MIB + 1)),
        (partitioned(noise(MIB)), Inspection("raw", MIB)),
        (partitioned(noise(MIB), kind=0xEE), Inspection("raw", MIB)),
        (b"LUKS\xba\xbe\x00\x01" + noise(MIB), Inspection("raw", MIB + 8)),
        (b"#!/bin/sh\necho a script\n" * 40 + noise(MIB), Inspection("raw", 24 * 40 + MIB)),
        (b"version is not=\n" * 60, Inspection("raw", 16 * 60)),
        (iso(), Inspection("iso", len(iso()))),
        (iso(partitioned(bytes(512))), Inspection("iso", len(iso()))),
        (iso(partitioned(bytes(512), kind=0xEE)), Inspection("iso", len(iso()))),
    ],
)
def test_the_map(data: bytes, expected: Inspection) -> None:
    """A disk with a partition table is raw, and so is an encrypted one; a hybrid disc is iso; sizes are counted."""
    assert inspect(data) == expected
    assert inspect(data, expected.disk_format) == expected


def test_a_bootable_disc_is_iso() -> None:
    """A real hybrid disc, with both a partition table and a volume descriptor."""
    if not ISO.exists():
        require("grub-rescue-pc", f"{ISO} is not there; Debian has it in the package grub-rescue-pc")
    data = ISO.read_bytes()
    assert inspect(data) == inspect(data, "iso", 1000) == Inspection("iso", len(data))


@pytest.mark.parametrize("declared", ["ploop", "ami", "ari", "aki"])
def test_formats_that_look_like_raw_are_taken_on_trust(qemu: Qemu, declared: str) -> None:
    """What cannot be told from raw is believed; what is something else is not."""
    assert inspect(noise(MIB), declared) == Inspection(declared, MIB)
    with pytest.raises(FormatMismatch):
        inspect(made(qemu, "create", "-q", "-f", "qcow2", "image", "1M"), declared)


DECLARED = [("qcow2", "raw"), ("vmdk", "qcow2"), ("raw", "qcow2"), ("raw", "iso"), ("vhdx", "vhd"), ("iso", "raw")]


@pytest.mark.parametrize(("declared", "real"), DECLARED)
def test_a_contradiction_names_both(qemu: Qemu, declared: str, real: str) -> None:
    """FormatMismatch says what the spec says and what the bytes are, long before the last of them."""
    if real == "raw":
        data = noise(2 * MIB)
    elif real == "iso":
        data = iso() + noise(2 * MIB)
    else:
        data = made(qemu, "create", "-q", "-f", {"vhd": "vpc"}.get(real, real), "image", "1M") + bytes(2 * MIB)
    look = Inspect(declared)
    with pytest.raises(FormatMismatch, match=rf"says {declared}, and the bytes are {real}"):
        look.feed(data[: 2 * MIB])


def test_a_fixed_vhd_that_is_none_is_known_at_the_end() -> None:
    """Its footer is its last sector, so a declared vhd that looks raw is judged at the end only."""
    look = Inspect("vhd")
    look.feed(noise(2 * MIB))
    with pytest.raises(FormatMismatch, match="says vhd, and the bytes are raw"):
        look.finish()


# Images that mean harm


HARM = {
    "a qcow2 with a backing file": ("qcow2", "-b", "disk.raw", "-F", "raw"),
    "a vmdk with a parent": ("vmdk", "-b", "parent.vmdk", "-F", "vmdk"),
    "a qcow2 with a data file": ("qcow2", "-o", "data_file=data.raw"),
    "a qcow2 with unknown features": ("qcow2", "-o", "extended_l2=on"),
    "an old qcow": ("qcow",),
    "a qed": ("qed",),
    "a vmdk that is only a description": ("vmdk", "-o", "subformat=monolithicFlat"),
    "a vmdk in pieces": ("vmdk", "-o", "subformat=twoGbMaxExtentSparse"),
}


@pytest.mark.parametrize("name", HARM)
@pytest.mark.parametrize("declared", ["auto", "raw", "qcow2"])
def test_images_that_lead_out_of_themselves_are_refused(qemu: Qemu, name: str, declared: str) -> None:
    """A file that refers to others is UnsafeImage, whatever it was declared as, and trickled as it may be."""
    qemu("create", "-q", "-f", "vmdk", "parent.vmdk", "1M")
    kind, *options = HARM[name]
    data = made(qemu, "create", "-q", "-f", kind, *options, "image", *([] if "-b" in options else ["1M"]))
    for piece in (CHUNK, 7):
        with pytest.raises(UnsafeImage, match="image is refused: "):
            inspect(data[: 64 * 1024] if piece == 7 else data, declared, piece)


def test_a_refusal_comes_early(qemu: Qemu) -> None:
    """An unsafe image is refused at its first chunk, not after the last of many."""
    data = made(qemu, "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "image")
    with pytest.raises(UnsafeImage, match="backing file"):
        Inspect().feed(data.ljust(CHUNK, b"\0"))


def patched(data: bytes, at: int, value: bytes) -> bytes:
    """The data with other bytes at one place."""
    return data[:at] + value + data[at + len(value) :]


def test_differencing_disks_are_refused(qemu: Qemu) -> None:
    """A VHD, VDI or VHDX of the differencing kind is a backing file by another name."""
    vhd = made(qemu, "create", "-q", "-f", "vpc", "image", "3M")
    vdi = made(qemu, "create", "-q", "-f", "vdi", "image", "3M")
    vhdx = made(qemu, "create", "-q", "-f", "vhdx", "image", "3M")
    physical_sector_size = bytes.fromhex("c748a3cd5d4471449cc9e9885251c556")
    parent_locator = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")
    assert physical_sector_size in vhdx
    for data in (
        patched(vhd, 60, struct.pack(">I", 4)),
        patched(vdi, 0x4C, struct.pack("<I", 4)),
        patched(vdi, 0x4C, struct.pack("<I", 3)),
        vhdx.replace(physical_sector_size, parent_locator),
    ):
        with pytest.raises(UnsafeImage, match="differences to another image"):
            inspect(data)


@pytest.mark.parametrize("length", [0, 2 * MIB, 3 * MIB + 100])
@pytest.mark.parametrize("piece", [CHUNK, 100_000])
def test_a_footer_must_repeat_the_header(qemu: Qemu, length: int, piece: int) -> None:
    """A VMDK for streams may have its true header at its end, wherever that is; one that says otherwise is refused."""
    image = made(qemu, "create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", "image", "3M")
    header = image[:512]
    start = patched(image, 56, b"\xff" * 8) + noise(length)
    marker, end = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0"), bytes(512)
    assert inspect(start + marker + header + end, piece=piece) == Inspection("vmdk", 3 * MIB)
    elsewhere = patched(header, 28, struct.pack("<Q", 7))
    for tail in (marker + elsewhere + end, marker + patched(header, 56, b"\xff" * 8) + end, noise(1536), b""):
        with pytest.raises(UnsafeImage, match="footer"):
            inspect(start + tail, piece=piece)


def test_two_things_at_once_are_refused(qemu: Qemu) -> None:
    """What one program sees as this and another as that is UnsafeImage, and names both."""
    qcow2 = made(qemu, "create", "-q", "-f", "qcow2", "image", "1M")
    footer = made(qemu, "create", "-q", "-f", "vpc", "-o", "subformat=fixed", "image", "3M")[-512:]
    descriptor = iso()[32 * 1024 : 34 * 1024]
    for data, names in (
        (patched(qcow2, 32 * 1024, descriptor), "iso and qcow2"),
        (patched(qcow2, 510, b"\x55\xaa"), "gpt and qcow2"),
        (qcow2 + footer, r"qcow2 and vhd \(fixed\)"),
        (iso() + footer, r"iso and vhd \(fixed\)"),
        (patched(iso(), 0, b"version=1\n"), "iso and vmdk"),
    ):
        with pytest.raises(UnsafeImage, match=f"is {names} at once"):
            inspect(data)


@pytest.mark.parametrize("length", [72, 104, 511])
def test_a_header_that_is_cut_off_is_still_seen(qemu: Qemu, length: int) -> None:
    """Zeros are what qemu reads beyond the end of a file: less than a sector may be an image with a backing file."""
    data = made(qemu, "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "image")[:length]
    with pytest.raises(UnsafeImage):
        inspect(data)


def test_a_description_that_hides_behind_other_bytes_is_seen() -> None:
    """Text is a VMDK if qemu takes it for one, even if the rest is no text and cannot be parsed."""
    for start in (b"version=1\n", b"# Disk DescriptorFile\n   \nversion=3\r\n"):
        data = start + b'createType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n' + b"#" * 500 + noise(1000)
        with pytest.raises(UnsafeImage, match="only a description"):
            inspect(data)


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
def test_cut_and_broken_headers_are_problems_not_crashes(qemu: Qemu, kind: str) -> None:
    """Whatever is cut off or overwritten: an Inspection or a Problem, and never a size that no status can hold."""
    data = made(qemu, "create", "-q", "-f", kind, "image", "3M")
    broken = [data[:length] for length in (4, 8, 32, 64, 600, 70_000, 200_000, 300_000)]
    broken += [patched(data, at, noise(64, seed=at)) for at in range(8, 600, 24)]
    broken += [patched(data, at, b"\xff" * 8) for at in range(8, 600, 8)]
    for image in broken:
        try:
            found = inspect(image)
        except UnsafeImage:
            continue
        assert 0 <= found.virtual_size < 1 << 63


def test_recognising_costs_next_to_nothing() -> None:
    """A GiB costs less than 0.03 s of processor time (measured: 0.004), so no stage has to go without."""
    chunk = noise(CHUNK)
    look = Inspect()
    start = time.thread_time()
    for _ in range(1024):
        look.feed(chunk)
    look.finish()
    assert time.thread_time() - start < 0.03


def test_damaged_images_are_refused_and_nothing_worse(qemu: Qemu) -> None:
    """Whatever hostile bytes make a parser do, the answer is an Inspection or a Problem. Always the same damage."""
    chance = random.Random(7)  # noqa: S311 - test data
    for kind in ("qcow2", "vmdk", "vdi", "vpc", "vhdx"):
        data = made(qemu, "create", "-q", "-f", kind, "image", "4M")
        heads = [0, 512, *range(64 << 10, min(len(data), 4 * MIB), 64 << 10)]
        for _ in range(150):
            spoiled = bytearray(data)
            for _ in range(chance.choice((1, 2, 8, 64))):
                at = chance.choice(heads) + chance.randrange(128)
                if at < len(spoiled):
                    spoiled[at] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
            del spoiled[chance.choice((len(spoiled), chance.randrange(len(spoiled)))) :]
            with contextlib.suppress(UnsafeImage, FormatMismatch):
                inspect(bytes(spoiled))


@pytest.mark.parametrize("size", [64 << 10, 192 << 10, 256 << 10, 2 * MIB])
def test_a_disk_without_its_tables_is_refused(qemu: Qemu, size: int) -> None:
    """Of VHDX there is a signature and nothing that it points to."""
    data = made(qemu, "create", "-q", "-f", "vhdx", "image", "4M")[: 64 << 10].ljust(size, b"\0")
    with pytest.raises(UnsafeImage, match="vhdx"):
        inspect(data)
