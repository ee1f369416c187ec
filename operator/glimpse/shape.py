"""From the bytes as downloaded to the bytes as stored: what changes them in between, and which checks look at which.

Most often nothing does, and there is one pass with one set of checks. Where a file is unpacked or converted, what
comes in and what goes on are two things, and each has its own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from glimpse.api.image import stored_format
from glimpse.convert import Spooled, convertible
from glimpse.decompress import HEAD, Decompressed, Peeked, recognise
from glimpse.formats import Inspect, Inspection, foretell
from glimpse.problems import ConversionFailed, InvalidConfiguration, Problem, UnsafeImage
from glimpse.sources.proof import Expected
from glimpse.streams import CHUNK, Cancel, Checked, Digest, Limit, Meter, Reader, Tap
from glimpse.tasks import Event, Fetch, Progress
from glimpse.trail import Trail

_MAIN: Final = "sha256"
"""The digest that every object has."""


class Shape:
    """The way of one download to what is stored of it."""

    def __init__(
        self,
        task: Fetch,
        source: Reader,
        wanted: Expected | None,
        say: Callable[[Event], None],
        cancelled: threading.Event,
        *,
        start: int = 0,
    ) -> None:
        """`wanted`: what the download must be; `start`: bytes of it that are no progress any more.

        Raises TooLarge at once if the source says so.
        """
        self._task, self._source, self._wanted, self._say, self._cancelled = task, source, wanted, say, cancelled
        self._stack = ExitStack()
        self._limit = Limit(task.limit, source.size)
        self._last: Tap = self._meter(start)
        self._look = Inspect(task.disk_format)
        self._received: Digest | None = None  # of the download, if other bytes are stored
        self._digests: dict[str, Digest] = {}  # of what is stored
        self.trail = Trail(_MAIN)
        """The main digest of what is stored."""
        self.compression = ""
        """What the download is compressed with, if it is; known while it is open."""
        self._unpacked = False
        self._origin: Inspection | None = None  # of what was converted

    @contextmanager
    def open(self, *more: Tap) -> Iterator[Checked]:
        """The bytes to store. Where the image is converted, all of the source has been read, and was good.

        `more`: taps that look at them after all others, when `facts` are known.

        Raises, here or at a read, what the source and the checks raise, DecompressionFailed, ConversionFailed, and
        InvalidConfiguration where there is no spool to convert on.
        """
        with self._stack as stack:
            head = Peeked(self._source)
            self.compression = recognise(head.peek(HEAD)) or ""
            body = self._unpack(head) if self.compression and self._task.decompress == "auto" else head
            body = self._convert(Peeked(body)) if self._task.convert_to else body
            self._digests = {name: Digest(name) for name in (_MAIN, *self._task.digests)}
            if self._wanted and not self._received:
                self._digests[self._wanted.algorithm] = self._compared(self._wanted)
                if self._wanted.algorithm == _MAIN:
                    self.trail = Trail(_MAIN, self._wanted.hex, by=self._wanted.by)
            self._digests[_MAIN] = self.trail
            taps: list[Tap] = [self._limit, *self._digests.values(), self._look, self._last, *more]
            yield stack.enter_context(Checked(body, taps))

    @property
    def verified(self) -> bool:
        """Whether what was downloaded has proven to be what it must be."""
        return any(digest.agreed for digest in (self._received, *self._digests.values()) if digest)

    @property
    def untouched(self) -> bool:
        """Whether what is stored are the bytes as downloaded; known while it is open."""
        return self._received is None

    def _meter(self, start: int) -> Meter:
        def report(done: int) -> None:
            if done >= start:
                self._say(Progress(done=done, total=self._source.size, start=start))

        if start:
            report(start)
        return Meter(report)

    def facts(self) -> dict[str, Any]:
        """What a record says of the bytes, once they have been read to their end."""
        found = _result(self._look)
        origin = self.compression or (self._origin.disk_format if self._origin else "")
        if self._unpacked:
            origin = f"{(self._origin or found).disk_format}.{self.compression}"
        return {
            "digest": f"{_MAIN}:{self._digests[_MAIN].hex}",
            "digests": {name: digest.hex for name, digest in self._digests.items()},
            "verification": self._wanted.proof if self._wanted else None,
            "source_digest": f"{self._received.algorithm}:{self._received.hex}" if self._received else "",
            "source_format": origin,
            "size": self._limit.passed,
            "virtual_size": found.virtual_size,
            "disk_format": found.disk_format,
        }

    @staticmethod
    def _compared(wanted: Expected) -> Digest:
        return Digest(wanted.algorithm, wanted.hex, by=wanted.by)

    def _checked(self, body: Reader, *more: Tap) -> Checked:
        """The last look at bytes that are not stored themselves; what follows is counted and limited anew."""
        taps: list[Tap] = [self._limit]
        if self._received is None:
            self._received = self._compared(self._wanted) if self._wanted else Digest(_MAIN)
            taps.append(self._received)
        checked = self._stack.enter_context(Checked(body, [*taps, *more, self._last]))
        self._limit, self._last = Limit(self._task.limit), Cancel(self._cancelled)
        return checked

    def _unpack(self, body: Reader) -> Reader:
        self._unpacked = True
        return Decompressed(self._checked(body), self.compression, self._task.ratio)

    def _convert(self, head: Peeked) -> Reader:
        """What is stored of the image: the same, if it comes in the right format, or what qemu-img makes of it."""
        task, target = self._task, self._task.convert_to
        if not head.peek(1):
            return head  # there is no image, which the last look says
        found = foretell(head.peek(CHUNK), task.disk_format)
        if stored_format(found, target) == found:
            self._look = _Only(task.disk_format, found, otherwise=_other_than_it_looked)
            return head
        if not convertible(found):
            raise ConversionFailed(f"{found} cannot be converted: leave spec.format.convertTo out")
        if not task.spool.path:
            raise InvalidConfiguration(
                f"the image is {found}, and to make it {target} takes a spool: an administrator sets "
                "GLIMPSE_SPOOL__PATH, or leave spec.format.convertTo out"
            )
        spooled = Spooled(str(task.spool.path), task.spool.size, task.transfers.stall_timeout, self._cancelled)
        self._stack.enter_context(spooled)
        spooled.fill(self._checked(head, self._look))
        self._origin = _result(self._look)
        if target == "qcow2":
            self._look = Inspect(target)
            return self._stack.enter_context(spooled.as_qcow2(self._origin.disk_format, self._report))
        self._look = _Only("auto", "raw", "iso", otherwise=_two_at_once)
        return self._stack.enter_context(spooled.as_raw(self._origin.disk_format, self._expect))

    def _expect(self, size: int) -> None:
        """A raw image of this size is about to come. Raises TooLarge."""
        self._limit = Limit(self._task.limit, size)
        self._last = Meter(lambda done: self._say(Progress(done=done, total=size, converting=True)))

    def _report(self, part: float) -> None:
        """So much of a qcow2 is done."""
        size = self._origin.virtual_size if self._origin else 0
        self._say(Progress(done=int(size * part), total=size, converting=True))


class _Only(Inspect):
    """An Inspect that in the end takes some formats only."""

    def __init__(self, declared: str, *formats: str, otherwise: Callable[[str], Problem]) -> None:
        super().__init__(declared)
        self._formats, self._otherwise = formats, otherwise

    def finish(self) -> None:
        super().finish()
        if _result(self).disk_format not in self._formats:
            raise self._otherwise(_result(self).disk_format)


def _other_than_it_looked(disk_format: str) -> Problem:
    return ConversionFailed(
        f"the image is {disk_format}, which shows at its end only: to have it converted, name it in spec.format.disk"
    )


def _two_at_once(disk_format: str) -> Problem:
    return UnsafeImage(f"the disk in the image is itself {disk_format}, and whoever opens it could take it for that")


def _result(look: Inspect) -> Inspection:
    assert look.result  # noqa: S101 - asked for when the bytes have ended
    return look.result
