"""Folders and files by descriptor: opened without following links, written durably, zeros left out.

Apart from what they are used for, so that what the kernel promises is read in one place.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from glimpse.stores import RECORD_LIMIT
from glimpse.streams import write_at

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC

_NAME: Final = re.compile(r"([0-9a-z-]+)(\.[0-9a-z]+)?")


@contextmanager
def open_folder(parent: int, name: str) -> Iterator[int]:
    """A folder of ours; a link in its place is refused (ENOTDIR)."""
    fd = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def make_folder(root: int, name: str) -> Iterator[int]:
    """The same, created if it is missing."""
    try:
        os.mkdir(name, 0o750, dir_fd=root)
        os.fsync(root)
    except FileExistsError:
        pass
    with open_folder(root, name) as fd:
        yield fd


def names(folder: int, prefix: str) -> list[str]:
    """What in a folder has a name of ours that begins so."""
    return [name for name in os.listdir(folder) if name.startswith(prefix) and _NAME.fullmatch(name)]


WRITE_BACK: Final = 16 << 20
"""Bytes after which the kernel is asked to start writing, so that little is left to wait for at the end."""


def start_writing(fd: int, start: int = 0, length: int = 0) -> None:
    """Have the kernel begin with dirty pages, and not wait; length 0 is to the end. It forgets those that are clean.

    Linux does so for this advice.
    """
    os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def write_small(folder: int, name: str, line: bytes, data: int | None = None) -> None:
    """Write a small file durably, and `data` before it; both are begun before either is waited for: one commit."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | FILE, 0o640, dir_fd=folder)
    try:
        write_at(fd, memoryview(line), 0)
        if data is not None:
            # no more: of what is on the disk already this would empty the memory that the first readers find it in
            start_writing(data, max(os.fstat(data).st_size - WRITE_BACK, 0))
            start_writing(fd)
            os.fdatasync(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(folder: int, name: str) -> int:
    """A file of ours, to read. What is none would hold up whoever reads it, or give him what is no image."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | FILE, dir_fd=folder)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EISDIR, f"{name} is no file")


def read_small(folder: int, name: str, limit: int = RECORD_LIMIT) -> bytes:
    """A small file; what is larger than `limit` is cut, and so cannot be read as what it should be."""
    fd = open_file(folder, name)
    try:
        return os.pread(fd, limit + 1, 0)
    finally:
        os.close(fd)
