"""Images as files below one folder: a local disk, or a volume that several nodes mount.

Everything rests on what POSIX promises of a file system: a rename is atomic, and a folder with something in it is
never replaced by one. So an attempt fills a folder of its own, and the rename that gives it the key is the commit.

    glimpse-store.json                  the marker: whose store this is
    objects/{key}/{data,record.json}    complete, verified, durable
    objects/{key}/location.json         `data` is empty: the bytes are registered, and lie below the folder elsewhere
    attempts/{key}.{attempt}/...        being written, or being removed; alive while `data` is locked (flock)
    attempts/.../checkpoint.json        up to where `data` is durable, so that another attempt may go on from there
    attempts/.../written.json           up to where it is there as long as this machine runs
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import ClassVar, Final
from urllib.parse import quote

from pydantic import BaseModel

from glimpse.problems import NotFound
from glimpse.stores import Capacity, Mark, Note, Stat, Unable, Version
from glimpse.stores.filesystem.attempts import DATA, Attempt, Checkpoint, Checkpoints, begin, reap, remove, take
from glimpse.stores.filesystem.clones import clone
from glimpse.stores.filesystem.config import FilesystemConfig
from glimpse.stores.filesystem.files import (
    FILE,
    WRITE_BACK,
    make_folder,
    names,
    open_file,
    open_folder,
    read_small,
    start_writing,
    write_small,
)
from glimpse.stores.filesystem.folder import ATTEMPTS, OBJECTS, Folder, Place, holds
from glimpse.stores.filesystem.places import (
    LOCATION,
    open_noted,
    open_parent,
    open_place,
    read_note,
    settle,
    version_of,
)
from glimpse.stores.filesystem.ranges import Range, reading
from glimpse.streams import CHUNK, HOLE, Reader, solid, write_at

RECORD: Final = "record.json"


class Filesystem:
    """A store in a folder."""

    Config: ClassVar[type[BaseModel]] = FilesystemConfig
    hole: ClassVar[int] = HOLE

    def __init__(self, config: FilesystemConfig, _secret: Mapping[str, str], _ca_bundle: str | None, /) -> None:
        """A folder has no credentials."""
        self._folder = Folder(config.path)

    @property
    def endpoint(self) -> str:
        """The folder."""
        return f"file://{quote(self._folder.path)}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write a folder for this attempt, then rename it."""
        return self._put(key, attempt, None, body, record)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the file; it stays readable while it is open, also when it is deleted."""
        fd, note = self._open(key)
        with reading(self._folder, fd, offset, length, note=note, key=key) as reader:
            yield reader

    def open(self, key: str, /) -> int:
        """The file itself."""
        return self._open(key)[0]

    def folders(self) -> tuple[str, ...]:
        """The one folder."""
        return (self._folder.path,)

    def stat(self, key: str, /) -> Stat:
        """Look at the file and read the record."""
        with self._folder.border(key), self._folder.root() as root, open_folder(root, OBJECTS) as objects:
            return self._stat(objects, key)

    def update(self, key: str, record: bytes, /) -> None:
        """Write a new record and rename it over the old one; one at a time."""
        with (
            self._folder.border(key),
            self._folder.root() as root,
            open_folder(root, OBJECTS) as objects,
            open_folder(objects, key) as folder,
        ):
            fd = os.open(DATA, os.O_RDWR | FILE, dir_fd=folder)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                write_small(folder, RECORD + ".new", record)
                os.rename(RECORD + ".new", RECORD, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            finally:
                os.close(fd)

    def delete(self, key: str, /) -> None:
        """Rename the folder away, so that it is gone at once and whole, then remove it."""
        with self._folder.border(), self._folder.place() as place:
            if "." not in key and place.discard(key):
                os.fsync(place.objects)
            reap(place.attempts, key)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Attempts first, so that one that becomes an object meanwhile is not missed; names that are not ours are."""
        with self._folder.border(), self._folder.root() as root:
            for part in (ATTEMPTS, OBJECTS):
                with suppress(FileNotFoundError), open_folder(root, part) as folder:
                    for name in names(folder, prefix):
                        # Removed while we looked, or a stranger's link or file under a name like ours.
                        with suppress(FileNotFoundError, NotADirectoryError):
                            yield self._stat(folder, name, partial=part == ATTEMPTS or not holds(folder, name))

    def put_marked(self, key: str, attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """The same with notes beside the data."""
        return self._put(key, attempt, mark, body, record)

    @contextmanager
    def take(self, key: str, attempt: str, /) -> Iterator["_Left | None"]:
        """Lock the folder and rename it."""
        with ExitStack() as stack:
            with self._folder.border():
                place = stack.enter_context(self._folder.place())
                taken = take(stack, place.attempts, key, f"{key}.{attempt}")
            yield _Left(self, self._folder, key, *taken) if taken else None

    def where(self, location: str, /) -> str:
        """The file."""
        return self._folder.where(location)

    def locate(self, location: str, /) -> Version:
        """Look at the file."""
        with self._folder.border(), self._folder.root() as root:
            fd = open_place(root, location)
            try:
                settle(fd)
                return version_of(fd)
            finally:
                os.close(fd)

    @contextmanager
    def read(self, location: str, version: Version, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the file, and look at its end whether it has changed."""
        with self._folder.border(), self._folder.root() as root:
            fd = open_place(root, location, version)
        with reading(self._folder, fd, offset, length, note=Note.of(location, version)) as reader:
            yield reader

    def register(self, key: str, attempt: str, location: str, version: Version, record: bytes, /) -> Stat:
        """Write a folder with a note, then rename it; `data` is what all look for, and stays empty."""
        with ExitStack() as stack, self._folder.border():
            place = stack.enter_context(self._folder.place())
            root = stack.enter_context(self._folder.root())
            place.make_room(key)
            reap(place.attempts, key)
            ours = begin(stack, place.attempts, f"{key}.{attempt}")
            try:
                write_small(ours.folder, LOCATION, Note.of(location, version).line().encode() + b"\n")
                write_small(ours.folder, RECORD, record, ours.data)
                os.fsync(ours.folder)
                os.close(open_place(root, location, version))
                place.commit(ours.name, key)
            except BaseException:
                with suppress(OSError):
                    remove(place.attempts, ours.name)
                raise
            return Stat(key, version.size, self.where(location), os.fstat(ours.data).st_mtime, record)

    def erase(self, location: str, /) -> None:
        """Remove the file; the folder stays, also if it is empty now."""
        with (
            suppress(NotFound),
            self._folder.border(),
            self._folder.root() as root,
            open_parent(root, location) as (folder, name),
            suppress(FileNotFoundError),
        ):
            os.unlink(name, dir_fd=folder)
            os.fsync(folder)

    def probe(self) -> Capacity:
        """Ask the file system, and open a file without a name: that is what tells of a read-only or foreign folder."""
        with self._folder.border(), self._folder.root() as root, make_folder(root, ATTEMPTS) as attempts:
            room = os.fstatvfs(attempts)
            try:
                os.close(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=attempts))
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSPC, errno.EDQUOT}:
                    raise
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=attempts, effective_ids=True):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
        used = room.f_blocks - room.f_bfree
        return Capacity(room.f_blocks * room.f_frsize, used * room.f_frsize, room.f_bavail * room.f_frsize)

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker; a new one is written aside and linked, which fails if another was there first."""
        return self._folder.claim(owner, fresh=fresh)

    def _put(self, key: str, attempt: str, mark: Mark | None, body: Reader, record: Callable[[], bytes]) -> Stat:
        with ExitStack() as stack:
            with self._folder.border():
                place = stack.enter_context(self._folder.place())
                place.make_room(key)
                reap(place.attempts, key)
                ours = begin(stack, place.attempts, f"{key}.{attempt}")
            checkpoints = stack.enter_context(Checkpoints(place.attempts, ours, mark))
            return self._fill(place, key, checkpoints, body, record)

    def clone(self, source: str, key: str, attempt: str, record: bytes, _going: Callable[[], None], /) -> Stat:
        """A reflink, or where the file system has none a second name of the same file."""
        with ExitStack() as stack, self._folder.border(source):
            place = stack.enter_context(self._folder.place())
            place.make_room(key)
            folder = stack.enter_context(open_folder(place.objects, source))
            if read_note(folder) is not None:
                raise Unable  # what others may write to is no object of ours
            reap(place.attempts, key)
            ours = begin(stack, place.attempts, f"{key}.{attempt}")
            try:
                data = clone(stack, folder, ours)
                if data is not None:
                    write_small(ours.folder, RECORD, record, ours.data)
                    os.fsync(ours.folder)
                    place.commit(ours.name, key)
                    state = os.fstat(data)
                    return Stat(key, state.st_size, self._folder.location(key), state.st_mtime, record)
            except BaseException:
                with suppress(OSError):
                    remove(place.attempts, ours.name)
                raise
            remove(place.attempts, ours.name)
            raise Unable

    def resume(self, left: "_Left", length: int, mark: Mark, body: Reader, record: Callable[[], bytes]) -> Stat:
        """Go on with an attempt that `take` gave. Its descriptors are doubled: they may be closed meanwhile."""
        with ExitStack() as stack:
            with self._folder.border():
                place = stack.enter_context(self._folder.place())
                place.make_room(left.key)
                ours = left.attempt.double(stack)
                checkpoints = stack.enter_context(Checkpoints(place.attempts, ours, mark))
                checkpoints.go_on(left.checkpoint, length)
            return self._fill(place, left.key, checkpoints, body, record)

    def _fill(
        self,
        place: Place,
        key: str,
        checkpoints: Checkpoints,
        body: Reader,
        record: Callable[[], bytes],
    ) -> Stat:
        """Write an attempt to its end and commit it."""
        ours = checkpoints.attempt
        try:
            line = self._write(ours.data, checkpoints, body, record)
            with self._folder.border():
                checkpoints.wait()
                write_small(ours.folder, RECORD, line, ours.data)
                os.fsync(ours.folder)
                checkpoints.drop()
                place.commit(ours.name, key)
        except BaseException:
            if not checkpoints.kept:
                with suppress(OSError):
                    remove(place.attempts, ours.name)
            raise
        with self._folder.border():
            state = os.fstat(ours.data)
        return Stat(key, state.st_size, self._folder.location(key), state.st_mtime, line)

    def _write(self, data: int, checkpoints: Checkpoints, body: Reader, record: Callable[[], bytes]) -> bytes:
        """All of `body`, zeros as holes, behind the checkpoint that is there; then ask for the record.

        What `body` and `record` raise comes out as it is.
        """
        position = started = checkpoints.start
        while True:
            with checkpoints.ending(position):
                chunk = body.read(CHUNK)
                if not chunk:
                    line = record()
                    break
            with self._folder.border():
                view = memoryview(chunk)
                for start, stop in solid(chunk, position):
                    write_at(data, view[start:stop], position + start)
                position += len(chunk)
                if position - started >= WRITE_BACK:
                    start_writing(data, started, position - started)
                    started = position
                checkpoints.passed(position)
        with self._folder.border():
            os.ftruncate(data, position)  # a hole at the end is part of the length
        return line

    def _open(self, key: str) -> tuple[int, Note | None]:
        """The file with the bytes of an object, and the note if it is registered."""
        with self._folder.border(key), self._folder.root() as root, open_folder(root, OBJECTS) as objects:
            with open_folder(objects, key) as folder:
                note = read_note(folder)
                if note is None:
                    return open_file(folder, DATA), None
                os.stat(DATA, dir_fd=folder, follow_symlinks=False)  # a removal takes it first
            return open_noted(root, note), note

    def _stat(self, parent: int, name: str, *, partial: bool = False) -> Stat:
        """The record is read before the file is looked at: a removal takes the file first, so half is never seen."""
        with open_folder(parent, name) as folder:
            record, note = None, None if partial else read_note(folder)
            with suppress(FileNotFoundError, IsADirectoryError):
                record = read_small(folder, RECORD)
            try:
                state = os.stat(DATA, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                if not partial:
                    raise
                state = os.fstat(folder)
                return Stat(name, 0, self._folder.location(name), state.st_mtime, record, partial)
        if note:
            return Stat(name, note.size, self.where(note.location), state.st_mtime, record)
        return Stat(name, state.st_size, self._folder.location(name), state.st_mtime, record, partial)


class _Left:
    """What a dead attempt has left, in our hands."""

    def __init__(self, store: Filesystem, folder: Folder, key: str, attempt: Attempt, checkpoint: Checkpoint) -> None:
        self._store, self._folder = store, folder
        self.key, self.attempt, self.checkpoint = key, attempt, checkpoint
        self.length, self.mark = checkpoint.length, checkpoint.mark

    def open(self) -> Reader:
        return Range(self._folder, None, self.attempt.data, 0, self.length)

    def resume(self, length: int, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        return self._store.resume(self, length, mark, body, record)
