"""A store's folder: opened, marked, and the objects in it, which one rename puts there and one takes away.

Apart from what is done with them, so that what keeps an object whole, and what an OSError means here, is read in one
place.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.parse import quote

from glimpse.problems import InvalidConfiguration, NotFound, Problem, StoreConflict, StoreFull, StoreUnavailable
from glimpse.stores.filesystem.attempts import DATA, remove
from glimpse.stores.filesystem.files import FOLDER, make_folder, open_folder, read_small, write_small

MARKER: Final = "glimpse-store.json"
OBJECTS: Final = "objects"
ATTEMPTS: Final = "attempts"


class Folder:
    """The folder of a store. Shared by threads."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"

    def where(self, path: str) -> str:
        """A URL that tells a person where something in it is."""
        return f"file://{quote(self.path.rstrip('/'))}/{quote(path)}"

    def location(self, name: str) -> str:
        """The same of the data of an object, or of an attempt."""
        part = ATTEMPTS if "." in name else OBJECTS
        return f"file://{quote(self.path.rstrip('/'))}/{part}/{name}/{DATA}"

    @contextmanager
    def root(self) -> Iterator[int]:
        """The store's folder. It is never created: where it is missing, a volume is."""
        try:
            fd = os.open(self.path, FOLDER)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreUnavailable(f"{self.path} is no folder: is the volume mounted?") from error
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """The folders in it, made if they are missing."""
        with (
            self.root() as root,
            make_folder(root, OBJECTS) as objects,
            make_folder(root, ATTEMPTS) as attempts,
        ):
            yield Place(self, objects, attempts)

    def claim(self, owner: str, *, fresh: bool) -> str:
        """Whose store it is; `owner`'s from now on, if it was nobody's and `fresh`."""
        with self.border(), self.root() as root:
            try:
                return self._owner(root)
            except FileNotFoundError:
                if not fresh:
                    raise StoreUnavailable(
                        f"{self.path} has no {MARKER}, which was there before: is the volume mounted?"
                    ) from None
            if outer := next((each for each in Path(self.path).resolve().parents if (each / MARKER).exists()), None):
                raise InvalidConfiguration(
                    f"{self.path} lies in {outer}, which is a store itself; choose a folder that is in no other store"
                )
            aside = f"{MARKER}.{token_hex(8)}"
            try:
                write_small(root, aside, json.dumps({"owner": owner}).encode() + b"\n")
                with suppress(FileExistsError):
                    os.link(aside, MARKER, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=root)
            os.fsync(root)
            return self._owner(root)

    @contextmanager
    def border(self, key: str | None = None) -> Iterator[None]:
        """OSError becomes a Problem; with `key`, a missing file means that the object is not there."""
        try:
            yield
        except OSError as error:
            raise self._problem(error, key) from error

    def _problem(self, error: OSError, key: str | None) -> Problem:
        if key and error.errno in {errno.ENOENT, errno.ESTALE}:
            return NotFound(f"{self.location(key)} does not exist")
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StoreFull(f"{self.path} is full; remove images or enlarge the volume")
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            return StoreUnavailable(f"{self.path} holds a link or a file where a folder should be; remove it")
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return StoreUnavailable(
                f"{self.path}: {error.strerror}; check owner and mount, user {os.geteuid()} must be able to write"
            )
        return StoreUnavailable(f"{self.path}: {error.strerror}")

    def _owner(self, root: int) -> str:
        try:
            return str(json.loads(read_small(root, MARKER))["owner"])
        except (ValueError, TypeError, KeyError):
            raise StoreUnavailable(
                f"{self.path}/{MARKER} cannot be read; it is a JSON object with the member `owner`: restore it"
            ) from None


@dataclass(frozen=True, slots=True)
class Place:
    """The two folders in it, as descriptors."""

    folder: Folder
    objects: int
    attempts: int

    def make_room(self, key: str) -> None:
        """See that there is no object. Raises StoreConflict."""
        if holds(self.objects, key):
            raise StoreConflict(f"{self.folder.location(key)} exists, and objects are written once")
        _clear(self.objects, key)

    def commit(self, name: str, key: str) -> None:
        """Make an attempt the object, durably. Raises StoreConflict."""
        try:
            os.rename(name, key, src_dir_fd=self.attempts, dst_dir_fd=self.objects)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise StoreConflict(f"{self.folder.location(key)} was written by another attempt meanwhile") from error
            raise
        try:
            os.fsync(self.objects)
        except BaseException:
            os.rename(key, name, src_dir_fd=self.objects, dst_dir_fd=self.attempts)
            raise

    def discard(self, key: str) -> bool:
        """Take the folder of `key` away, as if it were a dead attempt, and remove it. Whether there was one."""
        name = f"{key}.{token_hex(8)}"
        try:
            os.rename(key, name, src_dir_fd=self.objects, dst_dir_fd=self.attempts)
        except FileNotFoundError:
            return False
        remove(self.attempts, name)
        return True


def holds(objects: int, key: str) -> bool:
    """Whether the folder of `key` is there, and has data."""
    try:
        with open_folder(objects, key) as folder:
            os.stat(DATA, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _clear(objects: int, key: str) -> None:
    """Empty a folder of `key` that has no data: it is damage, and in the way of a rename, which replaces an empty one.

    By its descriptor: an object that is committed meanwhile is another folder under the same name, and stays.
    """
    with suppress(FileNotFoundError), open_folder(objects, key) as folder:
        with suppress(FileNotFoundError):
            if stat.S_ISREG(os.stat(DATA, dir_fd=folder, follow_symlinks=False).st_mode):
                return
        for file in os.listdir(folder):  # noqa: PTH208 - a descriptor, not a path
            try:
                os.unlink(file, dir_fd=folder)
            except IsADirectoryError:
                shutil.rmtree(file, dir_fd=folder)
