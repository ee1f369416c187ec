"""Files that others put into the store's folder, and the notes on those that are registered.

Their owners can do with them what they like, at any moment: so they are opened step by step below the store's folder,
through no link of any kind, and what is read is compared with what was noted.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import ValidationError

from glimpse.problems import DataLost, NotFound, StoreRefused, StoreUnavailable
from glimpse.stores import Note, Version
from glimpse.stores.filesystem.files import FILE, FOLDER, read_small

LOCATION: Final = "location.json"
"""Beside `data`, which is empty then: the object's bytes lie elsewhere."""
TICK: Final = 0.02
"""Seconds that a file system's clock may stand still: what was written in this moment could change unseen."""

_LONGEST: Final = 8192
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENAMETOOLONG, errno.ESTALE})


def read_note(folder: int) -> Note | None:
    """The note in an object's folder; None: its bytes lie in it. Raises StoreUnavailable if it cannot be read."""
    try:
        return Note.model_validate_json(read_small(folder, LOCATION, _LONGEST))
    except FileNotFoundError:
        return None
    except (ValidationError, IsADirectoryError):
        raise StoreUnavailable(f"a {LOCATION} of the store cannot be read; restore it, or delete its folder") from None


@contextmanager
def open_parent(root: int, location: str) -> Iterator[tuple[int, str]]:
    """The folder that a file of others lies in, and the file's name. Raises as `open_place`."""
    *folders, name = location.split("/")
    here = os.dup(root)
    try:
        for folder in folders:
            try:
                below = os.open(folder, FOLDER | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:
                raise _refusal(error, location) or error from None
            os.close(here)
            here = below
        yield here, name
    finally:
        os.close(here)


def open_place(root: int, location: str, version: Version | None = None) -> int:
    """A file of others, to read; with `version` just that one.

    Raises NotFound, StoreRefused (a link or no file), DataLost (another version), OSError.
    """
    with open_parent(root, location) as (folder, name):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | FILE, dir_fd=folder)
        except OSError as error:
            raise _refusal(error, location) or error from None
    try:
        _judge(os.fstat(fd), location)
        if version:
            compare(fd, location, version)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_noted(root: int, note: Note) -> int:
    """The file of a registered object, if it is still the same. Raises DataLost, OSError."""
    try:
        return open_place(root, note.location, note.version)
    except (NotFound, StoreRefused) as problem:
        raise DataLost(f"the bytes were registered at {note.location}: {problem.message}") from problem


def compare(fd: int, location: str, version: Version) -> None:
    """Raise DataLost unless this is what the file holds."""
    if not version_of(fd).same(version):
        raise DataLost(f"{location} has been changed")


def version_of(fd: int) -> Version:
    """Which bytes a file holds: by the times of its last write and of its last change, which nobody can set."""
    state = os.fstat(fd)
    return Version(state.st_size, f'"{state.st_mtime_ns:x}-{state.st_ctime_ns:x}"')


def settle(fd: int) -> None:
    """Wait a moment if the file was written in this one."""
    age = time.time() - os.fstat(fd).st_ctime
    if 0 <= age < TICK:
        time.sleep(TICK - age)


def _judge(state: os.stat_result, location: str) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise StoreRefused(f"{location} is no file")
    if state.st_nlink > 1:
        # Who may write here could give a name of his own to a file that he may not read.
        raise StoreRefused(f"{location} has other names (hard links); copy it, so that it has one")


def _refusal(error: OSError, location: str) -> NotFound | StoreRefused | None:
    """What an error says of the place; None: nothing, it is the disk's."""
    if error.errno in _ABSENT:
        return NotFound(f"nothing lies at {location}")
    if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}:
        return StoreRefused(f"{location} is no file, or leads through a link, which is never followed")
    if error.errno == errno.EACCES:
        return StoreRefused(f"{location} cannot be read: user {os.geteuid()} may not")
    return None
