"""Files that rest: they stay open for a moment after they were read, while they are what they were."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from glimpse.gateway import copies
from glimpse.gateway.copies import Copy, Threads, Wanted
from glimpse.gateway.ranges import Span
from glimpse.problems import DataLost, NotFound
from glimpse.stores import Store, open_store
from glimpse.tasks import Record, StoreRef
from servers import wait_until
from servers.shelf import Bytes

DATA = b"0123456789"
SPAN = Span(0, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with files, in which there are three objects."""
    ref = StoreRef(name="files", driver="filesystem", config={"path": str(tmp_path)}, installation="tests")
    found = open_store(ref)
    for number in (1, 2, 3):
        record = Record(
            installation="tests",
            namespace="n",
            name="i",
            uid="0",
            revision=number,
            spec_hash="0",
            digest=wanted().digest,
        )
        found.put(record.key, "a", Bytes(DATA), lambda record=record: record)  # type: ignore[misc]  # bound here
    return found


def wanted(number: int = 1) -> Wanted:
    """One of them."""
    return Wanted(f"0-{number}", len(DATA), "sha256:" + hashlib.sha256(DATA).hexdigest())


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    """Where two files may rest."""
    found = Threads(resting=2)
    yield found
    found.close()


def files() -> int:
    """Files of objects that this process has open."""
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            links.append(each.readlink())
        except FileNotFoundError:  # the folder itself
            continue
    return sum("objects" in link.parts for link in links)


async def opened(threads: Threads, store: Store, number: int = 1) -> Copy:
    """What is opened for one range, and no longer read."""
    async with threads.open(store, wanted(number), SPAN) as copy:
        return copy


async def test_the_next_range_finds_it_open(threads: Threads, store: Store) -> None:
    """One after the other read the same file; two at once do not share one."""
    first = await opened(threads, store)
    assert await opened(threads, store) is first
    async with threads.open(store, wanted(), SPAN) as one, threads.open(store, wanted(), SPAN) as two:
        assert one is not two
        assert files() == 2
    assert files() == 1  # the other was one too many


async def test_not_longer_than_a_moment(threads: Threads, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed when nobody has asked for a while, so that what is deleted frees its room."""
    monkeypatch.setattr(copies, "REST", 0.05)
    await opened(threads, store, 1)
    await opened(threads, store, 2)
    await asyncio.to_thread(wait_until, "the files to be closed", lambda: not files(), timeout=30)


async def test_not_more_than_may_rest(threads: Threads, store: Store) -> None:
    """The oldest goes when there are too many, and all go at the end."""
    first = await opened(threads, store, 1)
    await opened(threads, store, 2)
    await opened(threads, store, 3)
    assert files() == 2
    assert await opened(threads, store, 1) is not first
    threads.close()
    assert files() == 0


async def test_what_is_removed_does_not_rest(threads: Threads, store: Store) -> None:
    """An object that is deleted is not there, though its file was open."""
    await opened(threads, store)
    store.delete("0-1")
    with pytest.raises(NotFound):
        await opened(threads, store)
    assert files() == 0


@pytest.mark.parametrize("change", ["written", "longer"])
async def test_what_is_changed_is_looked_at_again(threads: Threads, store: Store, tmp_path: Path, change: str) -> None:
    """A file that was written to meanwhile is opened and looked at anew."""
    first, path = await opened(threads, store), tmp_path / "objects" / "0-1" / "data"
    path.chmod(0o600)
    if change == "longer":
        with path.open("ab") as file:
            file.write(b"!")
        with pytest.raises(DataLost):
            await opened(threads, store)
    else:
        os.utime(path, (1, 1))
        assert await opened(threads, store) is not first


async def test_what_has_failed_does_not_rest(threads: Threads, store: Store) -> None:
    """After an error it is closed at once."""
    with pytest.raises(ConnectionResetError):
        async with threads.open(store, wanted(), SPAN):
            raise ConnectionResetError
    assert files() == 0
