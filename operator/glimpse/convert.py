"""Images in another format: qemu-img, on a file in the spool, with as little written to disk as can be.

qemu-img needs the whole image as a file, so it is spooled first, and looked through, before qemu-img sees any of it.
The file has no name: nothing is left of it when its worker is gone, and if that is soon, most of it never reaches the
disk. A raw image is not written a second time: qemu-img sends it through a socket (`glimpse.nbd`), and it goes on as
any stream does. A qcow2 has its tables all over, so that one is a second file of the spool.
"""

import errno
import logging
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from glimpse import cell
from glimpse.api.base import format_quantity
from glimpse.nbd import Written
from glimpse.problems import ConversionFailed, InvalidConfiguration, Problem, StoreFull, TooLarge, WorkerLost
from glimpse.streams import CHUNK, Reader, solid, write_at

MEMORY: Final = 1 << 30
"""Bytes of address space of qemu-img; it takes an eighth of that."""
SPEED: Final = 8 << 20
"""Bytes that qemu-img must get done in a second of CPU time: it does some hundred MiB."""
START: Final = 60
"""Seconds of CPU time besides."""

_DRIVERS: Final = {
    "raw": "raw",
    "iso": "raw",
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "vhdx": "vhdx",
}
"""What qemu calls the formats that it is let at."""
_SLICE: Final = 0.5
_WORDS: Final = 64 << 10
"""Bytes of the longest answer of qemu-img that is read."""
_PERCENT: Final = re.compile(rb"\((\d{1,3}\.\d\d)/100%\)")
_EXTENT: Final = re.compile(rb'"length": (\d{1,19})\b[^}]*"offset": (\d{1,19})\b')
"""Of `qemu-img map`: so many bytes of the disk lie there in the file."""
_LEAKS, _NO_CHECK = 3, 63
"""How `qemu-img check` ends where some room is wasted, and for formats that it does not know how to check."""
_FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that no image brings upon its reader."""

_log = logging.getLogger(__name__)


class Spooled:
    """One image as a file without a name, and what qemu-img makes of it. A context manager; leaving it ends all."""

    def __init__(self, path: str, size: int, patience: float, cancelled: threading.Event) -> None:
        """`path`: the folder; `size`: bytes that may lie there, zeros not counted; `patience`: seconds of silence.

        Raises InvalidConfiguration if there can be no file, or no qemu-img.
        """
        self._path, self._limit = path, size
        self._patience, self._cancelled = patience, cancelled
        self._used = self._length = 0
        self._stack = ExitStack()
        program = shutil.which("qemu-img", path="/usr/local/bin:/usr/bin:/bin")
        if not program:
            raise InvalidConfiguration("spec.format.convertTo needs qemu-img where workers run (qemu-utils in Debian)")
        self._program = program
        self._file = self._open()

    def __enter__(self) -> Self:
        """The file is there since it was made."""
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fill(self, body: Reader) -> None:
        """Write all of `body`, zeros as holes. Raises what it raises, TooLarge, StoreFull, InvalidConfiguration."""
        while chunk := body.read(CHUNK):
            with memoryview(chunk) as view:
                for start, stop in solid(chunk, self._length):
                    self._used += stop - start
                    if self._used > self._limit:
                        raise self._too_large()
                    with self._border():
                        write_at(self._file, view[start:stop], self._length + start)
            self._length += len(chunk)
        with self._border():
            os.ftruncate(self._file, self._length)

    @contextmanager
    def as_raw(self, disk_format: str, check: Callable[[int], None]) -> Iterator[Reader]:
        """The disk that a machine sees, as it is converted. `check` gets its size before, and may refuse it.

        Raises ConversionFailed, here or at a read, and WorkerLost if cancelled.
        """
        size = self._prove(disk_format)
        check(size)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            target = f"driver=raw,file.driver=nbd,file.server.type=fd,file.server.str={theirs.fileno()}"
            words = ("convert", "--image-opts", "--target-image-opts", "-n", "--target-is-zero")
            with self._run(*words, self._source(disk_format), target, cpu=size, also=[theirs.fileno()]) as program:
                theirs.close()
                written = Written(ours, size, self._patience, self._cancelled)
                with program.explained():
                    written.greet()
                yield _Whole(written, program)

    @contextmanager
    def as_qcow2(self, disk_format: str, report: Callable[[float], None]) -> Iterator[Reader]:
        """A qcow2 of the same disk. `report` gets the part that is done, from 0 to 1. Raises as `as_raw`."""
        self._prove(disk_format)
        target = self._open()
        words = ("convert", "-p", "--image-opts", "-O", "qcow2", self._source(disk_format), f"/proc/self/fd/{target}")
        room = self._limit - self._used
        with self._run(*words, cpu=self._length, file_size=room, writable=[target]) as program:
            for word in program.words(lambda: os.fstat(target).st_size):
                for done in _PERCENT.findall(word):
                    report(min(float(done) / 100, 1.0))
            program.finish()
        yield _File(target, os.fstat(target).st_size)

    def _prove(self, disk_format: str) -> int:
        """The size of the disk as qemu sees it.

        Raises ConversionFailed if the file lacks bytes that its tables refer to: qemu would take them for zeros. The
        check looks at the tables, if it knows the format, but lets the last cluster be short; the map says where each
        part of the disk should lie that is not compressed, and what is, is read by the conversion or not at all.
        """
        source = self._source(disk_format)
        measure = ("measure", "--output=json", "--image-opts", "-O", "raw", source)
        with self._run(*measure, cpu=self._length) as sized:  # all at once, as each takes longer to start than to look
            if _DRIVERS[disk_format] != "raw":
                check = ("check", "-q", "--image-opts", source)
                map_ = ("map", "--output=json", "--image-opts", source)
                with (
                    self._run(*check, cpu=self._length, failure=self._damage) as checked,
                    self._run(*map_, cpu=self._length) as mapped,
                ):
                    for _ in checked.words(lambda: 0):
                        pass
                    checked.finish(fine={_LEAKS, _NO_CHECK})
                    if any(end > self._length for end in _ends(mapped.words(lambda: 0))):
                        raise _cut_off()
                    mapped.finish()
            said = b"".join(sized.words(lambda: 0))
            sized.finish()
        found = re.search(rb'"required": (\d{1,19})\b', said)
        if not found or int(found[1]) >= 1 << 63:
            raise ConversionFailed("qemu-img does not say how large the image is")
        return int(found[1])

    def _source(self, disk_format: str) -> str:
        """The spooled file, opened as what it was found to be and as nothing else, read only."""
        driver = _DRIVERS[disk_format]
        return f"driver={driver},file.driver=file,file.locking=off,file.filename=/proc/self/fd/{self._file}"

    @contextmanager
    def _run(
        self,
        *words: str,
        cpu: int,
        file_size: int = 0,
        writable: Sequence[int] = (),
        also: Sequence[int] = (),
        failure: Callable[[int, bytes], Problem] | None = None,
    ) -> "Iterator[_Program]":
        """Qemu-img with these words; `cpu`: bytes that it has to get through. It is dead when this is left.

        `failure`: what it means to have ended with a status and some words, if it is not as of a conversion.
        """
        limits = {"memory": MEMORY, "cpu": START + cpu // SPEED, "file_size": file_size}
        command = cell.command(self._program, *words, **limits, readable=[self._file], writable=writable)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[self._file, *writable, *also],
            env={},
            cwd="/",
        ) as process:
            try:
                yield _Program(process, failure or self._failure, self._patience, self._cancelled)
            finally:
                process.kill()

    def _open(self) -> int:
        """A new file without a name, closed with all the rest."""
        try:
            try:
                file = os.open(self._path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                    raise
                file, name = tempfile.mkstemp(prefix=".glimpse-", dir=self._path)
                Path(name).unlink()
        except OSError as error:
            raise self._problem(error) from error
        self._stack.callback(os.close, file)
        return file

    @contextmanager
    def _border(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._problem(error) from error

    def _problem(self, error: OSError) -> Problem:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return self._full()
        return InvalidConfiguration(
            f"the spool {self._path} cannot be written: {error.strerror}; an administrator sets GLIMPSE_SPOOL__PATH"
        )

    def _full(self) -> StoreFull:
        return StoreFull(f"the spool {self._path}, where images are converted, is full; wait, or enlarge it")

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"to convert the image takes more than {format_quantity(self._limit)} of the spool; "
            "an administrator can raise GLIMPSE_SPOOL__SIZE"
        )

    def _failure(self, status: int, said: bytes) -> Problem:
        if status == -signal.SIGXFSZ or b"File too large" in said:
            return self._too_large()
        if b"No space left" in said:
            return self._full()
        if status == -signal.SIGXCPU:
            return ConversionFailed("qemu-img took too much CPU time for an image of this size")
        if -status in _FROM_OUTSIDE:
            return WorkerLost(f"qemu-img was killed from outside ({signal.Signals(-status).name})")
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return ConversionFailed(
            f"qemu-img cannot convert the image ({how}); see with `qemu-img check` whether it is whole"
        )

    def _damage(self, status: int, said: bytes) -> Problem:
        """What it means if a check ends so."""
        return _cut_off() if status > 0 else self._failure(status, said)


class _Program:
    """A running qemu-img."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        failure: Callable[[int, bytes], Problem],
        patience: float,
        cancelled: threading.Event,
    ) -> None:
        """`failure`: what it means to have ended with this status and these words."""
        self._process, self._failure = process, failure
        self._patience, self._cancelled = patience, cancelled

    def words(self, seen: Callable[[], int]) -> Iterator[bytes]:
        """What it says, until it says no more; `seen`: a number that changes while it works in silence."""
        stdout = self._process.stdout
        assert stdout  # noqa: S101 - a pipe
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        until, before = time.monotonic() + self._patience, seen()
        while True:
            if poll.poll(_SLICE * 1000):
                word = os.read(stdout.fileno(), _WORDS)
                if not word:
                    return
                yield word
                until = time.monotonic() + self._patience
            if self._cancelled.is_set():
                raise WorkerLost("the conversion was cancelled")
            if (now := seen()) != before:
                until, before = time.monotonic() + self._patience, now
            if time.monotonic() > until:
                raise ConversionFailed(f"qemu-img has done nothing for {self._patience:g} s")

    def finish(self, fine: Collection[int] = ()) -> None:
        """Wait for its end, which is near. Raises ConversionFailed, TooLarge, StoreFull or WorkerLost for a bad one.

        `fine`: statuses besides 0 that are good.
        """
        try:
            status = self._process.wait(START)
        except subprocess.TimeoutExpired:
            raise ConversionFailed("qemu-img does not end") from None
        if status and status not in fine:
            said = self._complaint()
            _log.warning("qemu-img ended with %d: %r", status, said[:500])
            raise self._failure(status, said)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A stream that breaks off has its reason in how the program ended."""
        try:
            yield
        except ConversionFailed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_SLICE)
            if self._process.returncode:
                self.finish()
            raise

    def _complaint(self) -> bytes:
        stderr = self._process.stderr
        assert stderr  # noqa: S101 - a pipe
        os.set_blocking(stderr.fileno(), False)
        try:
            return os.read(stderr.fileno(), _WORDS)
        except BlockingIOError:
            return b""


class _Whole:
    """A Reader whose end is believed only when the program has ended well."""

    def __init__(self, written: Written, program: _Program) -> None:
        self._written, self._program = written, program
        self.size = written.size

    def read(self, n: int = CHUNK, /) -> bytes:
        with self._program.explained():
            chunk = self._written.read(n)
        if not chunk:
            self._program.finish()
        return chunk


class _File:
    """A Reader over a file of the spool."""

    def __init__(self, file: int, size: int) -> None:
        self._file, self._at = file, 0
        self.size: int | None = size

    def read(self, n: int = CHUNK, /) -> bytes:
        chunk = os.pread(self._file, n, self._at)
        self._at += len(chunk)
        return chunk


def _ends(words: Iterable[bytes]) -> Iterator[int]:
    """Where in the file the parts of a disk end, from what `qemu-img map` says."""
    rest = b""
    for word in words:
        *whole, rest = (rest + word).split(b"}")
        for extent in whole:
            if found := _EXTENT.search(extent):
                yield int(found[1]) + int(found[2])


def _cut_off() -> ConversionFailed:
    return ConversionFailed(
        "the image is damaged or cut off: its tables refer to what is not there; see with `qemu-img check`, or compare "
        "its length with the publisher's"
    )


def convertible(disk_format: str) -> bool:
    """Whether qemu-img reads such images, and is let at them."""
    return disk_format in _DRIVERS
