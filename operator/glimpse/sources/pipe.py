"""Bytes that another process gives through a pipe, as the gateway does with an upload.

The end of a pipe looks the same whether all was written or the writer has died, so it is said: a pipe holds frames,
each with its length before it (four bytes, the highest first), and an empty one is the end.
"""

import os
import struct
from typing import Final

from glimpse.problems import SourceUnavailable
from glimpse.sources.remote import Version
from glimpse.streams import CHUNK

HEAD: Final = struct.Struct(">I")
"""Before each frame: its length."""
FRAME: Final = 1 << 20
"""Bytes of the longest frame that is written; a pipe of this size takes one without a wait."""
UPLOADED: Final = "upload"
"""Where such bytes come from, as a mark says it."""
_BROKEN: Final = "the upload broke off before its end"


class PipeSource:
    """A Reader over a pipe. It does not close it: its end is that of the worker."""

    def __init__(self, fd: int, uid: str, size: int | None, *, start: int = 0) -> None:
        """`size`: of the whole, of which bytes before `start` do not come."""
        self.size = size
        self.name = UPLOADED
        self.version = Version(size, uid, None, uid)
        self._fd = fd
        self._frame = 0  # bytes of this frame that have not been read
        self._ended = False
        self._left = None if size is None else size - start

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes, as many as `n` unless the end comes before. Raises SourceUnavailable."""
        parts, length = list[bytes](), 0
        while length < n and not self._ended:
            if not self._frame:
                self._begin()
                continue
            part = os.read(self._fd, min(n - length, self._frame))
            if not part:
                raise SourceUnavailable(_BROKEN)
            self._frame -= len(part)
            length += len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin(self) -> None:
        head = b""
        while len(head) < HEAD.size:
            part = os.read(self._fd, HEAD.size - len(head))
            if not part:
                raise SourceUnavailable(_BROKEN)
            head += part
        (self._frame,) = HEAD.unpack(head)
        self._ended = self._frame == 0
        if self._left is not None:
            self._left -= self._frame
            if self._left < 0 or (self._ended and self._left):
                raise SourceUnavailable("the upload has not the length that was said")
