"""Bodies for stores: bytes that come as a test wants them, in this process or in one that can be killed.

They are Readers like any other, so a store cannot tell that it is being tested.
"""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Final

from glimpse.stores import Mark, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import Record, StoreRef

_ZEROS: Final = bytes(CHUNK)


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes without a pattern, the same each time."""
    return random.Random(seed).randbytes(length)  # noqa: S311 - test data


def record_of(key: str, *, size: int = 0, digest: str = "") -> Record:
    """A record that belongs to `key`."""
    uid, _, revision = key.rpartition("-")
    return Record(
        installation="here",
        namespace="team-a",
        name="debian",
        uid=uid,
        revision=int(revision),
        spec_hash="0123",
        size=size,
        digest=digest,
    )


def marked(word: bytes) -> Mark:
    """A mark that says this word, and of how many bytes."""
    return lambda length: word + b" %d" % length


class Body:
    """A Reader over `data`, which may lie about its length, come in small pieces, stall or end in an error."""

    def __init__(
        self,
        data: bytes,
        *,
        lie: int = 0,
        known: bool = True,
        piece: int = CHUNK,
        error: BaseException | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        """`lie` is added to the length that is told, if it is `known`; a read gives `piece` bytes at most.

        `error` comes in place of the end; `before` is called before each read with the number of bytes given so far.
        """
        self.size = len(data) + lie if known else None
        self.given = 0
        self.ended = False
        self._data, self._piece, self._error, self._before = data, piece, error, before

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next piece."""
        if self._before:
            self._before(self.given)
        chunk = self._data[self.given : self.given + min(n, self._piece)]
        self.given += len(chunk)
        if not chunk and self._error:
            raise self._error.with_traceback(None)  # one that is raised often would hold all that it has met
        self.ended = not chunk
        return chunk


class Islands:
    """A Reader over zeros with some other bytes in them, as many as one likes: they are made as they are read."""

    def __init__(self, islands: Mapping[int, bytes], *, known: bool = True) -> None:
        """`islands`: by their offsets, which do not overlap; it ends with the last one."""
        self._islands = sorted(islands.items())
        start, last = self._islands[-1]
        self.length = start + len(last)
        self.size = self.length if known else None
        self._given = 0

    def part(self, offset: int, length: int) -> bytes:
        """The bytes of a range, as far as it exists."""
        length = max(0, min(length, self.length - offset))
        found = _ZEROS if length == CHUNK else bytes(length)
        for start, data in self._islands:
            first, last = max(start, offset), min(start + len(data), offset + length)
            if first < last:
                found = found[: first - offset] + data[first - start : last - start] + found[last - offset :]
        return found

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next piece."""
        chunk = self.part(self._given, min(n, CHUNK))
        self._given += len(chunk)
        return chunk


class Writer:
    """A put in a process of its own, stopped in the middle."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def kill(self) -> None:
        """SIGKILL it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def go_on(self) -> str:
        """Let it write the rest; what became of the put: `stored`, or the reason of its Problem."""
        out, _ = self._process.communicate(b"go on\n", timeout=60)
        return out.decode().strip()


@contextmanager
def writer(
    ref: StoreRef, key: str, attempt: str, length: int, *, mark: bytes | None = None, stop: int | None = None
) -> Iterator[Writer]:
    """Begin a put of `noise(length)` in another process; it has written half of it, or `stop` bytes, and waits.

    With the word `mark` it goes on with what another attempt has left, if there is something.
    """
    where = length // 2 if stop is None else stop
    command = [sys.executable, "-m", __name__, key, attempt, str(length), str(where)]
    command += [] if mark is None else [mark.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(ref.line())
            process.stdin.flush()
            assert process.stdout.readline() == b"half\n"
            yield Writer(process)
        finally:
            process.kill()


def _main(key: str, attempt: str, length: int, where: int, mark: bytes | None) -> None:
    from glimpse.problems import Problem

    stopped = False

    def stop(given: int) -> None:
        nonlocal stopped
        if given >= where and not stopped:
            stopped = True
            sys.stdout.write("half\n")
            sys.stdout.flush()
            if not sys.stdin.buffer.readline():
                sys.exit("the test is gone")

    store = open_store(StoreRef.model_validate_json(sys.stdin.buffer.readline()))
    body = Body(noise(length), before=stop)
    try:
        with nullcontext() if mark is None else store.partial(key, attempt) as left:
            if left:
                store.resume(left, left.length, body, lambda: record_of(key, size=length), marked(mark or b""))
            else:
                said = None if mark is None else marked(mark)
                store.put(key, attempt, body, lambda: record_of(key, size=length), said)
        sys.stdout.write("stored\n")
    except Problem as problem:
        sys.stdout.write(f"{problem.reason}\n")


if __name__ == "__main__":
    name, wrote, size, where, *given = sys.argv[1:]
    _main(name, wrote, int(size), int(where), bytes.fromhex(given[0]) if given else None)
