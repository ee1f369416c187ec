"""Part of a file as a Reader: of an object, of an attempt, or of a file of others.

Those may change it while it is read, so it is compared before its last bytes are given.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from glimpse.stores import Note
from glimpse.stores.filesystem.folder import Folder
from glimpse.stores.filesystem.places import compare
from glimpse.streams import CHUNK, Reader


@contextmanager
def reading(
    folder: Folder, fd: int, offset: int, length: int | None, *, note: Note | None, key: str | None = None
) -> Iterator[Reader]:
    """Read an open file, and close it."""
    try:
        with folder.border():
            left = max((note.size if note else os.fstat(fd).st_size) - offset, 0)
        yield Range(folder, key, fd, offset, left if length is None else min(left, length), note=note)
    finally:
        os.close(fd)


class Range:
    """A Reader over part of a file."""

    def __init__(
        self, folder: Folder, key: str | None, fd: int, offset: int, length: int, *, note: Note | None = None
    ) -> None:
        """`note`: of a file of others, of which the last bytes are given only if it is still the same then."""
        self._folder, self._key, self._fd, self._note = folder, key, fd, note
        self._position, self._end = offset, offset + length
        self.size: int | None = length

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises DataLost if another version of a file of others lies there by now."""
        with self._folder.border(self._key):
            chunk = os.pread(self._fd, min(n, self._end - self._position), self._position)
            self._position += len(chunk)
            if self._note and (self._position >= self._end or not chunk):
                compare(self._fd, self._note.location, self._note.version)
        return chunk
