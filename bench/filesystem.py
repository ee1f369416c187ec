"""How fast the filesystem store takes and gives bytes, durably: numbers for docs/stores/filesystem.md.

    .venv/bin/python bench/filesystem.py /folder/on/the/disk

The bytes come from memory, so what is measured is the store and the disk. `dd` with conv=fdatasync stands beside it
as what the disk can do.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from glimpse.stores import Mark, Store, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import record_of

ROUNDS = 5
SMALL = 200


class Memory:
    """A Reader that gives the same chunks round and round."""

    def __init__(self, chunks: list[bytes], length: int) -> None:
        self.size: int | None = length
        self._chunks, self._left, self._turn = chunks, length, 0

    def read(self, _n: int = CHUNK, /) -> bytes:
        """The next chunk."""
        if not self._left:
            return b""
        self._turn, self._left = self._turn + 1, self._left - CHUNK
        return self._chunks[self._turn % len(self._chunks)]


def show(what: str, seconds: list[float], amount: float, unit: str) -> None:
    """One line: the median, and the range of all rounds."""
    rates = sorted(amount / second for second in seconds)
    middle = statistics.median(rates)
    print(f"{what:44} {middle:9,.0f} {unit:10} ({rates[0]:,.0f} to {rates[-1]:,.0f})")


def timed(action: Callable[[], object]) -> float:
    """Seconds that it took."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def large(store: Store, chunks: list[bytes], mark: Mark | None = None) -> tuple[list[float], list[float], list[float]]:
    """Seconds of whole puts of 1 GiB, of their part after the last byte, and of reading it back.

    With a `mark` the put makes checkpoints.
    """
    puts, ends, gets = [], [], []

    def read() -> None:
        with store.get("bench-1") as reader:
            while reader.read():
                pass

    for turn in range(ROUNDS):
        last = 0.0

        def record() -> Record:
            nonlocal last
            last = time.perf_counter()
            return record_of("bench-1")

        body = Memory(chunks, 1 << 30)
        puts.append(timed(lambda: store.put("bench-1", f"a{turn}", body, record, mark)))  # noqa: B023 - called at once
        ends.append(time.perf_counter() - last)
        gets.append(timed(read))
        store.delete("bench-1")
    return puts, ends, gets


def small(store: Store, chunks: list[bytes]) -> tuple[list[float], list[float]]:
    """Seconds of many puts of 1 MiB, one after the other, and of deleting them."""
    keys = [f"bench-{n}" for n in range(SMALL)]
    puts, deletes = [], []
    for turn in range(ROUNDS):
        begin = time.perf_counter()
        for key in keys:
            store.put(key, f"a{turn}", Memory(chunks, CHUNK), lambda: record_of(key))  # noqa: B023 - called at once
        middle = time.perf_counter()
        for key in keys:
            store.delete(key)
        puts.append(middle - begin)
        deletes.append(time.perf_counter() - middle)
    return puts, deletes


def main(folder: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store = open_store(StoreRef(name="bench", driver="filesystem", config={"path": place}, installation="bench"))
        store.claim()
        random, zero = [os.urandom(CHUNK) for _ in range(64)], [bytes(CHUNK)]
        large(store, random)  # warm up
        puts, ends, gets = large(store, random)
        show("put 1 GiB of noise", puts, 1024, "MiB/s")
        print(f"    of that after the last byte {statistics.median(ends) * 1000:20,.0f} ms")
        show("get it (page cache)", gets, 1024, "MiB/s")
        puts, ends, _ = large(store, random, lambda _: b"mark")
        show("put 1 GiB of noise, with checkpoints", puts, 1024, "MiB/s")
        print(f"    of that after the last byte {statistics.median(ends) * 1000:20,.0f} ms")
        puts, _, _ = large(store, zero)
        show("put 1 GiB of zeros", puts, 1024, "MiB/s")
        dd = ["dd", "if=/dev/urandom", f"of={place}/noise", "bs=1M", "count=1024", "status=none"]
        subprocess.run(dd, check=True)
        copy = ["dd", f"if={place}/noise", f"of={place}/dd", "bs=1M", "conv=fdatasync", "status=none"]
        show(
            "dd conv=fdatasync of 1 GiB",
            [timed(lambda: subprocess.run(copy, check=True)) for _ in range(ROUNDS)],
            1024,
            "MiB/s",
        )
        puts, deletes = small(store, random)
        show("put objects of 1 MiB, one thread", puts, SMALL, "objects/s")
        show("delete them", deletes, SMALL, "objects/s")


if __name__ == "__main__":
    main(sys.argv[1])
