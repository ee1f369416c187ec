"""Compressed files on their way: gz, xz, bz2 and zst, told by their first bytes, unpacked as they pass.

The files of tenants are hostile, and a compressed one can ask for a million times its size. So what comes out is
bounded by what went in, a decoder's memory by its window, and a stream that is broken or goes on where it should end
is an error.

The formats: gz RFC 1952, xz https://tukaani.org/xz/xz-file-format.txt, zst RFC 8878; bz2 has no specification but its
program. All of them allow several streams one after the other.
"""

import bz2
import lzma
import re
import sys
from collections.abc import Callable, Iterator
from typing import Final, Protocol, cast

from zlib_ng import zlib_ng

from glimpse.api.base import format_quantity
from glimpse.problems import DecompressionFailed
from glimpse.streams import CHUNK, Reader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEAD: Final = 10
"""Bytes that tell a compressed file: for bz2 the head of its first block too, since `BZh` alone could be a word."""

WINDOW: Final = 128 << 20
"""Bytes that a decoder may look back: what `zstd -d` takes by itself, and twice what `xz -9` needs."""

FREE: Final = 64 << 20
"""Bytes that may come out of whatever went in: the ratio says nothing about so little."""

_SKIPPED: Final = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""The head of a zst frame that is to be skipped; `pzstd` begins with one."""
_PADDING: Final = re.compile(rb"\0*")
_ZEROS: Final = bytes(64 << 10)
_SMALLEST, _LARGEST = 4 << 10, 256 << 10
"""Bytes that a decoder is given at once. Few at first: what lies behind the end of a stream is copied back, so that
many short streams would cost the square of their number."""


class _Decoder(Protocol):
    """One stream, as bz2, lzma and zstd have it in Python."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview | bytes, max_length: int) -> bytes: ...


class _Gz:
    """The same for gz: zlib speaks in another way."""

    def __init__(self) -> None:
        self._zlib = zlib_ng.decompressobj(wbits=31)  # with gzip's head and its checksum

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: memoryview | bytes, max_length: int) -> bytes:
        return self._zlib.decompress(data or self._zlib.unconsumed_tail, max_length)


_DECODERS: Final[dict[str, Callable[[], _Decoder]]] = {
    "gz": _Gz,
    # the window, and what the decoder needs besides
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW + (1 << 20)),
    "bz2": bz2.BZ2Decompressor,
    "zst": lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW.bit_length() - 1}),
}

_ERRORS: Final = (
    cast("type[Exception]", zlib_ng.error),  # its type says that it is an instance
    lzma.LZMAError,
    zstd.ZstdError,
    OSError,  # of bz2
    ValueError,  # of bz2
    EOFError,
    MemoryError,
)


def recognise(head: bytes) -> str | None:
    """How a file that begins with `head`, of HEAD bytes or more if there are so many, is compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gz"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:HEAD] in {b"1AY&SY", b"\x17rE8P\x90"}:
        return "bz2"
    if head.startswith(b"\x28\xb5\x2f\xfd") or _SKIPPED.match(head):
        return "zst"
    return None


class Peeked:
    """A Reader that lets one look at the beginning before it is read."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._head = b""

    @property
    def size(self) -> int | None:
        """The declared length in bytes."""
        return self._source.size

    def peek(self, n: int) -> bytes:
        """The first `n` bytes or a few more, fewer only if there are no more. Raises what the source raises."""
        if not self._head:
            self._head = self._source.read(CHUNK)  # most often enough, and then never copied
        if len(self._head) < n:
            head = bytearray(self._head)
            while len(head) < n and (chunk := self._source.read(CHUNK)):
                head += chunk
            self._head = bytes(head)
        return self._head

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes; what was looked at comes again."""
        if not self._head:
            return self._source.read(n)
        out, self._head = self._head[:n], self._head[n:]
        return out


class Decompressed:
    """A Reader over what a compressed Reader holds, in chunks of CHUNK bytes; the last one is shorter.

    `read` raises what the source raises, and DecompressionFailed: at a stream that is broken, that does not end, or
    that asks for too much memory, at bytes after the end, and where more comes out than `ratio` allows.
    """

    size = None

    def __init__(self, source: Reader, kind: str, ratio: int) -> None:
        """`kind` as `recognise` says; `ratio`: bytes that may come out for each that goes in, zeros not counted."""
        self._source, self._kind, self._ratio = source, kind, ratio
        self._chunks = self._all()
        self._rest = b""  # of a chunk that was larger than what the caller asked for
        self._error: BaseException | None = None
        self._decoder: _Decoder | None = None
        self._streams = 0
        self._piece = _SMALLEST
        self._padding = 0  # bytes between two streams of xz
        self._taken = self._solid = 0  # bytes in; bytes out that are no blocks of zeros
        self._parts: list[bytes] = []
        self._have = 0

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes of what was compressed."""
        if self._error:
            raise self._error
        if not self._rest:
            self._rest = next(self._chunks, b"")
        out, self._rest = (self._rest, b"") if n >= len(self._rest) else (self._rest[:n], self._rest[n:])
        return out

    def _all(self) -> Iterator[bytes]:
        try:
            while chunk := self._source.read(CHUNK):
                yield from self._feed(chunk)
            yield from self._finish()
        except BaseException as error:
            self._error = error
            raise

    def _feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the next bytes give."""
        view, at = memoryview(chunk), 0
        while True:
            if self._decoder is None:
                at = self._between(chunk, at)
                if at == len(view):
                    return
                self._decoder, self._piece = _DECODERS[self._kind](), _SMALLEST
                self._streams += 1
            piece: memoryview | bytes = b""
            if self._decoder.needs_input:
                if at == len(view):
                    return
                piece = view[at : at + self._piece]
                at += len(piece)
                self._piece = min(2 * self._piece, _LARGEST)
            self._taken += len(piece)
            yield from self._decode(self._decoder, piece)
            if self._decoder.eof:
                unused = len(self._decoder.unused_data)
                at -= unused
                self._taken -= unused
                self._decoder = None

    def _finish(self) -> Iterator[bytes]:
        """What is left. Raises DecompressionFailed if the last stream has no end."""
        if self._padding % 4:
            raise self._failed("has padding of a wrong length after its end")
        while self._decoder and not self._decoder.eof:
            before = self._have
            chunks = list(self._decode(self._decoder, b""))
            if not chunks and self._have == before and not self._decoder.eof:
                raise self._failed("ends in the middle of its stream")
            yield from chunks
        if self._have:
            yield self._flush()

    def _between(self, chunk: bytes, at: int) -> int:
        """Where the next stream begins: only xz has padding, zeros in fours."""
        if self._kind == "xz" and (zeros := _PADDING.match(chunk, at)):
            self._padding += zeros.end() - at
            at = zeros.end()
            if at < len(chunk):
                if self._padding % 4:
                    raise self._failed("has padding of a wrong length between two streams")
                self._padding = 0
        return at

    def _decode(self, decoder: _Decoder, piece: memoryview | bytes) -> Iterator[bytes]:
        """Have the decoder give what it can, once."""
        try:
            out = decoder.decompress(piece, CHUNK - self._have)
        except _ERRORS as error:
            raise self._failed(self._why(error)) from error
        if out:
            self._parts.append(out)
            self._have += len(out)
            if self._have == CHUNK:
                yield self._flush()

    def _flush(self) -> bytes:
        chunk = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._have = [], 0
        self._solid += len(chunk) - len(_ZEROS) * sum(
            chunk.startswith(_ZEROS, at) for at in range(0, len(chunk), len(_ZEROS))
        )
        if self._solid > FREE + self._ratio * self._taken:
            raise self._failed(
                f"grows more than {self._ratio} times, zeros not counted; "
                "an administrator can raise GLIMPSE_LIMITS__COMPRESSION_RATIO"
            )
        return chunk

    def _why(self, error: Exception) -> str:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():  # of lzma and zstd
            window = format_quantity(WINDOW)
            return f"looks back further than {window}: compress it with `zstd --long=27` or `xz -9` at most"
        if self._streams > 1:
            return "is broken, or has other bytes after its end"
        return "is broken"

    def _failed(self, what: str) -> DecompressionFailed:
        return DecompressionFailed(f"the {self._kind} file {what}")
