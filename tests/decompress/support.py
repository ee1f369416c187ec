"""Compressed bytes, as programs make them."""

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def _zst(data: bytes) -> bytes:
    """One frame with a checksum, as the program makes it."""
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: True})


_remembered = lru_cache(maxsize=16)  # to compress costs more than what is tested

PACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gz": _remembered(lambda data: gzip.compress(data, mtime=1)),
    "xz": _remembered(lzma.compress),
    "bz2": _remembered(bz2.compress),
    "zst": _remembered(_zst),
}
"""Makes one stream, by kind."""
