"""Reading ahead: all bytes in order, with as much memory as the readers of a process may have together."""

import threading
from contextlib import ExitStack

import pytest

from glimpse.ahead import SMALL, Ahead, Room, ranges
from glimpse.streams import CHUNK
from glimpse.testing.bodies import noise
from servers import wait_until

DATA = noise(24 * CHUNK)
PART, AT_ONCE = 8 * CHUNK, 10


class Readers:
    """Readers of the same bytes, and how much they have fetched."""

    def __init__(self, room: Room) -> None:
        self.room, self.fetched = room, 0
        self._lock = threading.Lock()

    def fetch(self, part: tuple[int, int], _over: threading.Event) -> list[bytes]:
        """A range, in chunks."""
        start, count = part
        with self._lock:
            self.fetched += count
        return [DATA[at : min(at + CHUNK, start + count)] for at in range(start, start + count, CHUNK)]

    def open(self, start: int = 0, stop: int = len(DATA)) -> Ahead[tuple[int, int]]:
        """One more."""
        return Ahead(stop - start, ranges(start, stop), self.fetch, part=PART, at_once=AT_ONCE, room=self.room)


def settled(reader: Ahead[tuple[int, int]]) -> None:
    """All that it has sent for has come."""
    wait_until("what is under way", lambda: all(future.done() for future, _ in reader._flying), timeout=30)


def all_of(reader: Ahead[tuple[int, int]], n: int = CHUNK) -> bytes:
    """To its end."""
    return b"".join(iter(lambda: reader.read(n), b""))


@pytest.mark.parametrize("total", [None, 0, 1, 16 * CHUNK, 1 << 30])
@pytest.mark.parametrize(("start", "stop"), [(0, len(DATA)), (5, 5), (1, 2), (CHUNK + 1, 17 * CHUNK - 1)])
def test_gives_all_bytes_in_order(total: int | None, start: int, stop: int) -> None:
    """With and without a limit, in pieces of any size; and when it is over the room is as it was."""
    room = Room()
    room.limit(total)
    for n in (1 << 30, 100_001):
        with Readers(room).open(start, stop) as reader:
            assert all_of(reader, n) == DATA[start:stop]
    assert room._taken == 0


def test_many_slow_readers_share_what_there_is() -> None:
    """Each has read a byte and no more: all together hold the room, and each two small parts besides."""
    room, total = Room(), 16 * CHUNK
    room.limit(total)
    readers = Readers(room)
    with ExitStack() as stack:
        opened = [stack.enter_context(readers.open()) for _ in range(50)]
        for reader in opened:
            assert reader.read(1) == DATA[:1]
        for reader in opened:
            settled(reader)
        assert readers.fetched <= total + 50 * 2 * SMALL
        assert room._taken <= total
        for reader in opened[::7]:
            assert all_of(reader) == DATA[1:]
    assert room._taken == 0


def test_nobody_takes_all() -> None:
    """One reader has a quarter of the room, however it is left alone."""
    room = Room()
    room.limit(64 * CHUNK)
    readers = Readers(room)
    with readers.open() as first:
        first.read(1)
        settled(first)
        assert readers.fetched == 16 * CHUNK
        with readers.open() as second:
            second.read(1)
            settled(second)
            assert readers.fetched == 32 * CHUNK


def test_without_a_limit_memory_is_that_of_a_few_parts() -> None:
    """Of what a reader has not given yet it holds so many parts, and no more."""
    readers = Readers(Room())
    cut = ranges(0, len(DATA))
    with Ahead(len(DATA), cut, readers.fetch, part=CHUNK, at_once=3, room=readers.room) as reader:
        given = 0
        while chunk := reader.read():
            settled(reader)
            given += len(chunk)
            assert readers.fetched - given <= 3 * CHUNK
        assert given == len(DATA)


def test_a_part_that_fails_hides_what_is_behind_it() -> None:
    """To ask again gives the same answer; and its room is given back."""
    room = Room()
    room.limit(16 * CHUNK)

    def fetch(part: tuple[int, int], _over: threading.Event) -> list[bytes]:
        if part[0]:
            raise OSError("broken")
        return [bytes(part[1])]

    with Ahead(len(DATA), ranges(0, len(DATA)), fetch, part=PART, at_once=AT_ONCE, room=room) as reader:
        reader.read(PART)
        for _ in range(2):
            with pytest.raises(OSError, match="broken"):
                reader.read()
    assert room._taken == 0
