"""Attempts: folders in which an object is being written, alive while their data is locked, and what the dead have left.

A lock of the kernel goes with the process however that ends, so nothing has to be cleaned up for the next one to see
that an attempt is dead. It is on the file and not on the folder, because NFS carries locks to other nodes for files
only.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Self

from pydantic import BaseModel, Field, ValidationError

from glimpse.problems import StoreConflict
from glimpse.stores import MARK_LIMIT, Mark, lasting
from glimpse.stores.filesystem.files import FILE, names, open_folder, read_small, write_small
from glimpse.streams import write_at

DATA: Final = "data"
CHECKPOINT: Final = "checkpoint.json"
WRITTEN: Final = "written.json"

NOTE: Final = 4 << 20
"""Bytes after which it is noted how far the writing is: what a kill may cost."""
EVERY: Final = 32 << 20
"""Bytes after which what is written is made durable ..."""
SECONDS: Final = 10.0
"""... or seconds, where they come slowly: what a loss of power may cost ..."""
SHARE: Final = 10
"""... unless the disk is slow: it gets as many times as long for its other work as it took for that."""
WORTH: Final = 1 << 20
"""Bytes for which it is worth it to be gone on with."""

_ASIDE: Final = CHECKPOINT + ".new"
_LONGEST: Final = 6 * MARK_LIMIT + 200
"""Bytes of a checkpoint at most: JSON may need six for one."""


def _boot() -> str:
    """The run of this machine: as long as it is the same, what was written can be read. Empty if that is unknown."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


BOOT: Final = _boot()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far an attempt's data can be believed, and what its writer said about them."""

    length: int
    mark: bytes

    def line(self, boot: str = "") -> bytes:
        """As it is written. With `boot` it counts in that run of the machine only."""
        return _Line(length=self.length, mark=self.mark.decode("latin-1"), boot=boot).model_dump_json().encode() + b"\n"


class _Line(BaseModel):
    length: Annotated[int, Field(strict=True, gt=0, lt=1 << 63)]
    mark: Annotated[str, Field(max_length=MARK_LIMIT, pattern=r"^[\x00-\xff]*$")]
    """Each byte as the character of that number: a mark that is text can be read."""
    boot: Annotated[str, Field(max_length=64)] = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of ours: its folder and its locked data, as descriptors."""

    name: str
    folder: int
    data: int

    def double(self, stack: ExitStack) -> "Attempt":
        """The same with descriptors of its own, closed by `stack`; it is alive until both are closed."""
        folder, data = os.dup(self.folder), os.dup(self.data)
        stack.callback(os.close, folder)
        stack.callback(os.close, data)
        return Attempt(self.name, folder, data)


def begin(stack: ExitStack, attempts: int, name: str) -> Attempt:
    """A new attempt, closed by `stack`. A reaper may be quicker than our lock: then again. Raises StoreConflict."""
    while True:
        try:
            os.mkdir(name, 0o750, dir_fd=attempts)
        except FileExistsError:
            raise _running(name) from None
        with ExitStack() as trial, suppress(FileNotFoundError):
            folder = trial.enter_context(open_folder(attempts, name))
            data = os.open(DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL | FILE, 0o640, dir_fd=folder)
            trial.callback(os.close, data)
            fcntl.flock(data, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(data), os.stat(DATA, dir_fd=folder, follow_symlinks=False)):
                stack.push(trial.pop_all())
                return Attempt(name, folder, data)


def take(stack: ExitStack, attempts: int, key: str, name: str) -> tuple[Attempt, Checkpoint] | None:
    """The dead attempt on `key` with the furthest checkpoint, locked, called `name` from now on, closed by `stack`.

    The other dead ones are removed. None if there is no checkpoint. Raises StoreConflict.
    """
    best = None
    with ExitStack() as holding:
        for other in names(attempts, f"{key}."):
            with ExitStack() as trial:
                found = _revive(trial, attempts, other)
                if found and (best is None or best[1].length < found[1].length):
                    holding.close()
                    holding.push(trial.pop_all())
                    best = found
        reap(attempts, key)
        if best is None:
            return None
        left, checkpoint = best
        try:
            os.rename(left.name, name, src_dir_fd=attempts, dst_dir_fd=attempts)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                raise _running(name) from error
            raise
        stack.push(holding.pop_all())
        return Attempt(name, left.folder, left.data), checkpoint


def _revive(stack: ExitStack, attempts: int, name: str) -> tuple[Attempt, Checkpoint] | None:
    """Lock an attempt that is dead and has a checkpoint. With the lock held nobody renames or removes it."""
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, BlockingIOError):
        folder = stack.enter_context(open_folder(attempts, name))
        data = os.open(DATA, os.O_RDWR | FILE, dir_fd=folder)
        stack.callback(os.close, data)
        fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(data), os.stat(DATA, dir_fd=folder, follow_symlinks=False))
        here = os.path.samestat(os.fstat(folder), os.stat(name, dir_fd=attempts, follow_symlinks=False))
        if same and here and (checkpoint := _checkpoint(folder, data)):
            return Attempt(name, folder, data), checkpoint
    return None


def _checkpoint(folder: int, data: int) -> Checkpoint | None:
    """The furthest that makes sense and can be believed, or None."""
    size = os.fstat(data).st_size
    found = (_read(folder, CHECKPOINT, ""), _read(folder, WRITTEN, BOOT) if BOOT else None)
    return max((c for c in found if c and c.length <= size), key=lambda c: c.length, default=None)


def _read(folder: int, name: str, boot: str) -> Checkpoint | None:
    """What that file says, if it is of this run of the machine; one that was cut says nothing."""
    try:
        first, _, _ = read_small(folder, name, _LONGEST).partition(b"\n")
        line = _Line.model_validate_json(first)
    except (FileNotFoundError, IsADirectoryError, ValidationError):
        return None
    return Checkpoint(line.length, line.mark.encode("latin-1")) if line.boot == boot else None


def reap(attempts: int, key: str) -> None:
    """Remove dead attempts on `key`, or the attempt `key` if it is dead."""
    for name in names(attempts, key):
        if name != key and name.partition(".")[0] != key:
            continue
        with suppress(FileNotFoundError), open_folder(attempts, name) as folder, ExitStack() as stack:
            # removed half-way, or not begun: then rmdir decides; nor can a folder in its place be alive
            with suppress(IsADirectoryError):
                try:
                    data = os.open(DATA, os.O_RDWR | FILE, dir_fd=folder)
                except FileNotFoundError:
                    remove(attempts, name, begun=False)
                    continue
                stack.callback(os.close, data)
                try:
                    fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
            remove(attempts, name)


def remove(parent: int, name: str, *, begun: bool = True) -> None:
    """Remove a folder that nobody writes to, the data first. Absent is fine, and so is what still holds it up.

    (NFS keeps a removed file under another name while it is open; the next reaper gets it.) With `begun` false there
    was no data: if there is now, somebody has just begun to write.
    """
    with suppress(FileNotFoundError), open_folder(parent, name) as folder:
        files = os.listdir(folder)  # noqa: PTH208 - a descriptor, not a path
        if DATA in files and not begun:
            return
        for file in sorted(files, key=lambda file: file != DATA):
            with suppress(FileNotFoundError):
                try:
                    os.unlink(file, dir_fd=folder)
                except IsADirectoryError:  # not ours, and must not keep what is
                    shutil.rmtree(file, dir_fd=folder)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise


def _running(name: str) -> StoreConflict:
    return StoreConflict(f"the attempt {name} is running already")


class Checkpoints:
    """Notes how far an attempt is, and makes it durable from time to time, while it writes on.

    To make it durable may take long, so it is done in another thread, and as often as the disk can bear: the writer
    never waits. What is not durable is there as long as the machine runs, so for a kill a note is enough. Without a
    mark nothing is done at all.
    """

    def __init__(self, attempts: int, attempt: Attempt, mark: Mark | None) -> None:
        self.attempt = attempt
        self.start = 0
        """Where to go on."""
        self.kept = False
        """Whether the attempt is worth being left as it is."""
        self._attempts, self._mark = attempts, mark
        self._written: int | None = None  # the descriptor of the file of that name
        self._noted = self._begun = 0
        self._named = False  # the names of folder and checkpoint are durable
        self._since, self._due = time.monotonic(), 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        """There is a thread only once there is something to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown()
        if self._written is not None:
            os.close(self._written)

    def go_on(self, left: Checkpoint, length: int) -> None:
        """Begin with the first `length` bytes of what is left. Whatever happens, no other byte is believed."""
        durable = _read(self.attempt.folder, CHECKPOINT, "")
        self._begun = min(durable.length, length) if durable else 0
        if durable and durable.length > length:
            self._replace(Checkpoint(length, left.mark))
            os.fsync(self.attempt.folder)
        self._write_down(Checkpoint(length, left.mark))
        os.ftruncate(self.attempt.data, length)  # or what is behind would show through new holes
        self.start = self._noted = length
        self._named = durable is not None

    def passed(self, position: int) -> None:
        """All before `position` has been written. Raises the OSError that was met while it was made durable."""
        if self._mark is None:
            return
        if position - self._noted >= NOTE:
            self._note(position)
        if self._running and not self._running.done():
            return
        self.wait()
        ahead, now = position - self._begun, time.monotonic()
        if ahead and now >= self._due and (ahead >= EVERY or now - self._since >= SECONDS):
            self._begin(position)

    @contextmanager
    def ending(self, position: int) -> Iterator[None]:
        """Around what may raise while the data are sound up to `position`: then they are kept, if they are worth it."""
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # what was raised is what counts
                self.wait()
                if self._mark is not None and lasting(error) and (position >= WORTH or self._noted):
                    self._note(position)
                    if position - self._begun >= WORTH:
                        self._begin(position)
                        self.wait()
                    self.kept = True
            raise

    def wait(self) -> None:
        """Wait for what is being made durable. Raises the OSError that was met."""
        running, self._running = self._running, None
        if running:
            running.result()

    def drop(self) -> None:
        """Remove all notes: the attempt is about to be committed, or is not to be believed."""
        if self._noted or self._begun:
            for name in (WRITTEN, CHECKPOINT, _ASIDE):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.attempt.folder)

    def _note(self, position: int) -> None:
        assert self._mark is not None  # noqa: S101 - else nothing is noted
        data = self.attempt.data
        if os.fstat(data).st_size < position:
            os.ftruncate(data, position)  # zeros that were left out are part of the length
        self._write_down(Checkpoint(position, self._mark(position)))
        self._noted = position

    def _write_down(self, checkpoint: Checkpoint) -> None:
        """In place: a kill does not come in between, and after a loss of power it does not count."""
        if not BOOT:
            return
        if self._written is None:
            flags = os.O_WRONLY | os.O_CREAT | FILE
            self._written = os.open(WRITTEN, flags, 0o640, dir_fd=self.attempt.folder)
        write_at(self._written, memoryview(checkpoint.line(BOOT)), 0)

    def _begin(self, position: int) -> None:
        assert self._mark is not None  # noqa: S101 - else nothing is begun
        if self._noted < position:
            self._note(position)
        self._begun, self._since = position, time.monotonic()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running = self._pool.submit(self._make_durable, Checkpoint(position, self._mark(position)))

    def _make_durable(self, checkpoint: Checkpoint) -> None:
        """The data first; then the checkpoint, which counts from the rename on."""
        began = time.monotonic()
        try:
            os.fdatasync(self.attempt.data)
            self._replace(checkpoint)
            if not self._named:  # each rename is durable with the next one; the first may be the last
                os.fsync(self.attempt.folder)
                os.fsync(self._attempts)
                self._named = True
        except OSError:
            self.drop()  # the kernel tells once that it has lost what was written
            raise
        self._due = time.monotonic() + SHARE * (time.monotonic() - began)

    def _replace(self, checkpoint: Checkpoint) -> None:
        folder = self.attempt.folder
        write_small(folder, _ASIDE, checkpoint.line())
        os.rename(_ASIDE, CHECKPOINT, src_dir_fd=folder, dst_dir_fd=folder)
