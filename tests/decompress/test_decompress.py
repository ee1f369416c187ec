"""Compressed files: the bytes that went in come out, or a Problem; never other bytes, and never without bound."""

import bz2
import gzip
import lzma
import random
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.decompress.support import PACK

from glimpse.api.image import COMPRESSIONS
from glimpse.decompress import FREE, HEAD, WINDOW, Decompressed, Peeked, recognise
from glimpse.problems import DecompressionFailed, SourceUnavailable
from glimpse.streams import CHUNK, Reader
from glimpse.testing.bodies import Body, noise
from servers.require import require_tool

MIXED: Final = noise(300_005) + bytes(2 * CHUNK) + b"text " * 10_000 + noise(17)
"""What compresses, what does not, and zeros; its length is no round number."""
SMALL: Final = b"a small image, " * 3 + bytes(40) + noise(30)
SKIPPED: Final = struct.pack("<II", 0x184D2A5C, 5) + b"\xff" * 5
"""A frame of zst that says nothing."""


every_kind = pytest.mark.parametrize("kind", PACK)


def drain(reader: Reader, n: int = CHUNK) -> bytes:
    """All that the reader gives."""
    return b"".join(iter(lambda: reader.read(n), b""))


def unpacked(packed: bytes, kind: str, *, piece: int = CHUNK, n: int = CHUNK, ratio: int = 1000) -> bytes:
    """All that comes out, where the source gives `piece` bytes at a time and `n` are asked for."""
    return drain(Decompressed(Body(packed, piece=piece), kind, ratio), n)


# What works


@every_kind
@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(MIXED)])
@pytest.mark.parametrize("piece", [1000, CHUNK])
def test_what_went_in_comes_out(kind: str, length: int, piece: int) -> None:
    """Around the borders of chunks, in chunks, whatever the source gives at a time; and the end is the end."""
    data = MIXED[:length]
    body = Decompressed(Body(PACK[kind](data), piece=piece), kind, 1000)
    chunks = list(iter(body.read, b""))
    assert b"".join(chunks) == data
    assert all(len(chunk) == CHUNK for chunk in chunks[:-1])
    assert body.read() == b""
    assert body.size is None


@every_kind
@pytest.mark.parametrize("n", [1, 7, CHUNK + 1])
def test_reads_of_any_size(kind: str, n: int) -> None:
    """The caller gets no more than he asked for, and the source may give a byte at a time."""
    body = Decompressed(Body(PACK[kind](SMALL), piece=1), kind, 1000)
    chunks = list(iter(lambda: body.read(n), b""))
    assert b"".join(chunks) == SMALL
    assert all(len(chunk) <= n for chunk in chunks)


@every_kind
@pytest.mark.parametrize("piece", [1, 3, 4096, CHUNK])
def test_several_streams_are_one_file(kind: str, piece: int) -> None:
    """Members, streams and frames follow one another, empty ones too, wherever the source cuts."""
    parts = [SMALL, b"", b"x", noise(5000), b"", bytes(5000), b""]
    assert unpacked(b"".join(map(PACK[kind], parts)), kind, piece=piece) == b"".join(parts)


@pytest.mark.parametrize("zeros", [4, 8, 4096, CHUNK])
@pytest.mark.parametrize("piece", [1 << 10, 4097, CHUNK])
def test_padding_of_xz(zeros: int, piece: int) -> None:
    """Zeros in fours may stand between streams and after the last one."""
    one, two = lzma.compress(SMALL), lzma.compress(b"two")
    padding = bytes(zeros)
    assert unpacked(one + padding + two + padding, "xz", piece=piece) == SMALL + b"two"


@pytest.mark.parametrize("piece", [1, 6, CHUNK])
def test_frames_that_are_skipped(piece: int) -> None:
    """They may stand anywhere, also first and last, and give nothing."""
    packed = SKIPPED + PACK["zst"](SMALL) + SKIPPED + SKIPPED + PACK["zst"](b"two") + SKIPPED
    assert recognise(packed[:HEAD]) == "zst"
    assert unpacked(packed, "zst", piece=piece) == SMALL + b"two"
    assert unpacked(SKIPPED, "zst", piece=piece) == b""


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(PACK)),
    parts=st.lists(st.binary(max_size=300) | st.integers(0, 3 * CHUNK).map(bytes), max_size=5),
    seed=st.integers(0, 1 << 32),
)
def test_any_split_gives_the_same(kind: str, parts: list[bytes], seed: int) -> None:
    """How the source cuts its bytes changes nothing."""
    packed = b"".join(map(PACK[kind], parts))
    chance = random.Random(seed)  # noqa: S311 - test data

    class Cuts(Body):
        def read(self, _n: int = CHUNK, /) -> bytes:
            return super().read(chance.choice([1, 2, 10, 100, 5000, CHUNK]))

    assert drain(Decompressed(Cuts(packed), kind, 1000)) == b"".join(parts)


GZ: Final = ("gzip", "gzip")
XZ: Final = ("xz", "xz-utils")
BZIP2: Final = ("bzip2", "bzip2")
ZSTD: Final = ("zstd", "zstd")
TOOLS: Final = {
    "gzip": ("gz", GZ, ()),
    "gzip -9": ("gz", GZ, ("-9",)),
    "gzip with a name": ("gz", GZ, ("-N",)),
    "xz": ("xz", XZ, ()),
    "xz -9e": ("xz", XZ, ("-9e",)),
    "xz in blocks": ("xz", XZ, ("-T2", "--block-size=100KiB")),
    "xz without a check": ("xz", XZ, ("--check=none",)),
    "xz for programs": ("xz", XZ, ("--x86", "--lzma2")),
    "bzip2": ("bz2", BZIP2, ()),
    "bzip2 -1": ("bz2", BZIP2, ("-1",)),
    "zstd": ("zst", ZSTD, ("-q",)),
    "zstd of several threads": ("zst", ZSTD, ("-q", "-T2", "-B1MiB")),
    "zstd that looks back far": ("zst", ZSTD, ("-q", "--long=27")),
    "zstd without a check": ("zst", ZSTD, ("-q", "--no-check")),
}


@pytest.mark.parametrize("name", TOOLS)
def test_files_of_real_programs(name: str, tmp_path: Path) -> None:
    """What people publish was made by these, from a file or from a pipe, and two such files may be one."""
    kind, tool, options = TOOLS[name]
    program = require_tool(*tool)
    (tmp_path / "disk").write_bytes(MIXED)
    command = [program, "-c", *options]
    of_file = subprocess.run([*command, "disk"], cwd=tmp_path, check=True, capture_output=True, timeout=60).stdout
    of_pipe = subprocess.run(command, input=SMALL, check=True, capture_output=True, timeout=60).stdout
    assert recognise(of_file[:HEAD]) == recognise(of_pipe[:HEAD]) == kind
    assert unpacked(of_file + of_pipe, kind) == MIXED + SMALL


def test_every_field_of_a_gzip_head() -> None:
    """Extra field, name, comment and a checksum of the head itself are passed over (RFC 1952, 2.3)."""
    head = b"\x1f\x8b\x08\x1f" + bytes(6) + b"\4\0AAAA" + b"name\0" + b"comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    assert unpacked(head + gzip.compress(SMALL)[10:], "gz", piece=1) == SMALL


# What does not


@every_kind
def test_a_cut_anywhere_is_an_error(kind: str) -> None:
    """Wherever the file ends too early, in the first stream or in the second."""
    one, two = PACK[kind](SMALL), PACK[kind](b"two")
    for end in range(1, len(one) + len(two)):
        if end == len(one):
            continue
        with pytest.raises(DecompressionFailed, match=f"the {kind} file"):
            unpacked((one + two)[:end], kind)


@every_kind
def test_a_cut_of_a_large_file_is_an_error(kind: str) -> None:
    """Also where chunks have come out before."""
    packed = PACK[kind](MIXED)
    for end in (len(packed) - 1, len(packed) - 8, len(packed) // 2):
        with pytest.raises(DecompressionFailed, match="in the middle"):
            unpacked(packed[:end], kind)


@every_kind
def test_a_flipped_bit_never_gives_other_bytes(kind: str) -> None:
    """It is noticed, or is in a part of the head that says nothing about the bytes."""
    packed = PACK[kind](SMALL)
    noticed = 0
    for at in range(len(packed) * 8):
        flipped = bytearray(packed)
        flipped[at // 8] ^= 1 << at % 8
        try:
            assert unpacked(bytes(flipped), kind) == SMALL
        except DecompressionFailed:
            noticed += 1
    assert noticed > len(packed) * 6


@every_kind
@pytest.mark.parametrize("garbage", [b"x", b"\0\n", b"<html>" * 20, noise(5000), noise(2 * CHUNK)])
def test_bytes_after_the_end_are_an_error(kind: str, garbage: bytes) -> None:
    """Whatever they are: who padded the file may have cut it as well."""
    with pytest.raises(DecompressionFailed):
        unpacked(PACK[kind](SMALL) + garbage, kind)


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("zeros", [4, 512])
def test_only_xz_may_be_padded(kind: str, zeros: int) -> None:
    """Zeros are bytes like others."""
    with pytest.raises(DecompressionFailed):
        unpacked(PACK[kind](SMALL) + bytes(zeros), kind)


@every_kind
@pytest.mark.parametrize("other", PACK)
def test_a_file_of_another_kind_after_the_end(kind: str, other: str) -> None:
    """Two files of two kinds are no file."""
    if kind != other:
        with pytest.raises(DecompressionFailed):
            unpacked(PACK[kind](SMALL) + PACK[other](SMALL), kind)


@pytest.mark.parametrize("zeros", [1, 2, 3, 5, 4098])
@pytest.mark.parametrize("after", [b"", lzma.compress(b"two")], ids=["at the end", "between"])
def test_padding_of_a_wrong_length(zeros: int, after: bytes) -> None:
    """Of xz: not in fours."""
    for piece in (1, CHUNK):
        with pytest.raises(DecompressionFailed, match="padding of a wrong length"):
            unpacked(lzma.compress(SMALL) + bytes(zeros) + after, "xz", piece=piece)


@every_kind
def test_what_the_source_raises_comes_out(kind: str) -> None:
    """An end that is the network's fault is tried again: nobody calls it a broken file."""
    error = SourceUnavailable("the server ended early")
    body = Decompressed(Body(PACK[kind](MIXED)[:-9], error=error), kind, 1000)
    for _ in range(2):
        with pytest.raises(SourceUnavailable) as raised:
            drain(body)
        assert raised.value is error


@every_kind
def test_an_error_is_no_end(kind: str) -> None:
    """Whoever reads on after a failure meets it again."""
    body = Decompressed(Body(PACK[kind](SMALL)[:-1]), kind, 1000)
    for _ in range(2):
        with pytest.raises(DecompressionFailed):
            body.read()


# Bounds


def bomb(kind: str) -> bytes:
    """A hundred MiB that are no zeros, out of next to nothing."""
    if kind == "xz":  # of many streams, since to make one takes seconds
        return lzma.compress(b"A" * (4 << 20)) * 25
    if kind == "bz2":
        return bz2.compress(b"A" * (4 << 20)) * 25
    return PACK[kind](b"A" * (100 << 20))


@every_kind
def test_a_bomb_is_refused(kind: str) -> None:
    """More than the ratio allows is given up long before the end, and the way out is named."""
    packed = bomb(kind)
    given = list[int]()
    body = Decompressed(Body(packed), kind, 100)
    with pytest.raises(DecompressionFailed, match="GLIMPSE_LIMITS__COMPRESSION_RATIO"):
        given.extend(map(len, iter(body.read, b"")))
    assert FREE <= sum(given) <= FREE + 100 * len(packed)
    assert len(unpacked(packed, kind, ratio=1 << 20)) == 100 << 20


@every_kind
def test_an_empty_disk_is_no_bomb(kind: str) -> None:
    """A raw image is mostly zeros, which cost a store nothing: a ratio that counted them would refuse every such."""
    parts = [PACK[kind](bytes(4 << 20))] * 30
    parts.insert(11, PACK[kind](b"a little data"))
    data = bytes(44 << 20) + b"a little data" + bytes(76 << 20)
    assert unpacked(b"".join(parts), kind, ratio=1) == data


@every_kind
def test_one_layer_is_taken_off(kind: str) -> None:
    """What is compressed inside stays so: the bomb in a bomb never goes off."""
    inner = bomb("gz")
    assert unpacked(PACK[kind](inner), kind) == inner


def xz_with_dictionary(code: int) -> bytes:
    """A stream whose block asks for a dictionary of this size, coded as the format has it (5.3.1)."""
    packed = bytearray(lzma.compress(SMALL, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    assert packed[14:16] == b"\x21\x01", "the filter LZMA2 with one byte of properties"
    packed[16] = code
    size = (packed[12] + 1) * 4
    packed[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(packed[12 : 12 + size - 4]))
    return bytes(packed)


def zst_with_window(log: int) -> bytes:
    """A frame that says how far it looks back, and holds one plain block (RFC 8878, 3.1.1)."""
    block = (len(SMALL) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\0" + bytes([log - 10 << 3]) + block + SMALL


def test_a_window_within_bounds() -> None:
    """128 MiB are what the programs' strongest usual settings ask for."""
    assert WINDOW == 1 << 27
    assert unpacked(xz_with_dictionary(30), "xz") == SMALL
    assert unpacked(zst_with_window(27), "zst") == SMALL


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("xz", xz_with_dictionary(31)), ("xz", xz_with_dictionary(40)), ("zst", zst_with_window(28))],
    ids=["192 MiB", "4 GiB", "256 MiB"],
)
def test_a_window_beyond_bounds(kind: str, packed: bytes) -> None:
    """No file makes a worker take all memory; the message says how to compress it."""
    with pytest.raises(DecompressionFailed, match="further than 128 MiB: compress it with"):
        unpacked(packed, kind)


@pytest.mark.timeout(100)
@every_kind
def test_many_streams_cost_no_more_than_their_bytes(kind: str) -> None:
    """Two MiB of empty streams: were the rest copied at the end of each, these would be minutes."""
    empty = PACK[kind](b"")
    assert unpacked(empty * ((2 << 20) // len(empty)), kind) == b""


@pytest.mark.timeout(100)
def test_much_padding_costs_no_more_than_its_bytes() -> None:
    """The same for what lies between the streams."""
    assert unpacked((lzma.compress(b"") + bytes(4)) * 60_000, "xz") == b""


# Which file is compressed at all


def test_each_kind_is_known_by_its_beginning() -> None:
    """The words of the API are those of the code."""
    assert tuple(PACK) == COMPRESSIONS
    for kind, pack in PACK.items():
        assert recognise(pack(SMALL)) == recognise(pack(SMALL)[:HEAD]) == recognise(pack(b"")[:HEAD]) == kind


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\0",
        b"\x1f\x8b",
        b"\x1f\x8b\x07\0\0\0\0\0\0\0",
        b"\xfd7zXZ",
        b"BZh",
        b"BZh9",
        b"BZh9 is a word",
        b"BZh01AY&SY",
        b"\x28\xb5\x2f",
        b"\x60\x2a\x4d\x18\0\0\0\0",
        b"QFI\xfb\0\0\0\3\0\0",
        b"PK\3\4\0\0\0\0\0\0",
    ],
)
def test_what_is_not_compressed(head: bytes) -> None:
    """Half a mark is none, nor is a word that begins like one."""
    assert recognise(head[:HEAD]) is None


@pytest.mark.parametrize("piece", [1, 9, 10, 11, CHUNK])
@pytest.mark.parametrize("length", [0, 1, 10, 3 * CHUNK + 1])
def test_a_look_takes_nothing_away(piece: int, length: int) -> None:
    """What was looked at comes again, whatever the source gives at a time."""
    data = noise(min(length, 100 * piece))
    source = Peeked(Body(data, piece=piece))
    head = source.peek(HEAD)
    assert data.startswith(head)
    assert len(head) >= min(HEAD, len(data))
    assert source.peek(HEAD) == head
    assert source.size == len(data)
    assert drain(source, 7 if piece < CHUNK else CHUNK) == data


def test_a_look_copies_nothing() -> None:
    """A file that is not compressed passes as it is, chunk by chunk."""
    chunks = [noise(CHUNK, seed) for seed in range(3)]
    pending = iter(chunks)

    class Source:
        size = 3 * CHUNK

        def read(self, _n: int = CHUNK, /) -> bytes:
            return next(pending, b"")

    source = Peeked(Source())
    assert source.peek(HEAD) is chunks[0]
    assert all(source.read() is chunk for chunk in chunks)
    assert source.read() == b""
