"""What a put that died leaves on a file system, and how it is gone on with: its files, looked at around the store."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.stores.disks import make_ext4, mounted

from glimpse.problems import SourceChanged, SourceUnavailable, StoreUnavailable
from glimpse.stores import MARK_LIMIT, Store, open_store
from glimpse.stores.filesystem import attempts
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.resumable import BREAK, HOLED, MARK, broken, contents, go_on, left_of, resumed
from glimpse.testing.stores import KEY, put, read
from servers import wait_until


def ref_to(path: Path) -> StoreRef:
    """A store in that folder."""
    return StoreRef(name="fast", driver="filesystem", config={"path": str(path)}, installation="here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in an empty folder, claimed."""
    store = open_store(ref_to(tmp_path))
    store.claim()
    return store


@pytest.fixture
def left(store: Store, tmp_path: Path) -> Path:
    """The folder of a dead attempt that has written `HOLED[: 8 * CHUNK]`."""
    broken(store, HOLED[: 8 * CHUNK])
    return tmp_path / "attempts" / f"{KEY}.a1"


def often(monkeypatch: pytest.MonkeyPatch, every: int = CHUNK) -> None:
    """Make bytes durable each so many of them, whatever the disk says to it."""
    monkeypatch.setattr(attempts, "EVERY", every)
    monkeypatch.setattr(attempts, "SHARE", 0)


class AtOnce(Executor):
    """In place of another thread: what is to be made durable is, before anything else is written."""

    def __init__(self, *_: object, **__: object) -> None:
        """No thread."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """Do it."""
        done = Future[Any]()
        try:
            done.set_result(call(*args, **named))
        except OSError as error:
            done.set_exception(error)
        return done


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it is another run of the machine."""
    monkeypatch.setattr(attempts, "BOOT", "another")


def said(path: Path, name: str = "checkpoint.json") -> int:
    """Up to where the attempt in this folder is safe, by that file."""
    with suppress(FileNotFoundError):
        return int(json.loads((path / name).read_text().partition("\n")[0])["length"])
    return 0


def test_files_are_where_the_docs_say(store: Store, left: Path) -> None:
    """What is noted lies beside the data while it is needed, can be read by a person, and is gone with the commit."""
    assert {file.name for file in left.iterdir()} == {"data", "checkpoint.json", "written.json"}
    length, boot = 8 * CHUNK, Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = {"length": length, "mark": MARK(length).decode()}
    assert json.loads((left / "checkpoint.json").read_text()) == found | {"boot": ""}
    assert json.loads((left / "written.json").read_text().partition("\n")[0]) == found | {"boot": boot}
    assert (left / "data").read_bytes() == HOLED[: 8 * CHUNK]
    for name in ("checkpoint.json", "written.json"):
        assert (left / name).stat().st_mode & 0o027 == 0
    resumed(store, HOLED)
    folder = left.parents[1] / "objects" / KEY
    assert {file.name for file in folder.iterdir()} == {"data", "record.json"}
    assert (folder / "data").stat().st_blocks * 512 < 4 * CHUNK


def test_zeros_count(store: Store, tmp_path: Path) -> None:
    """Zeros take no room, and are part of what is safe all the same."""
    broken(store, bytes(6 * CHUNK))
    folder = tmp_path / "attempts" / f"{KEY}.a1"
    assert said(folder) == 6 * CHUNK
    assert (folder / "data").stat().st_blocks * 512 < CHUNK
    resumed(store, bytes(8 * CHUNK) + b"x")
    assert read(store, KEY) == bytes(8 * CHUNK) + b"x"


def test_what_is_behind_the_checkpoint_is_nothing(store: Store, left: Path) -> None:
    """A loss of power leaves anything behind the checkpoint: none of it is offered, or shows through new holes."""
    with (left / "data").open("r+b") as file:
        file.seek(8 * CHUNK)
        file.write(noise(4 * CHUNK, 7))
    with store.partial(KEY, "b1") as found:
        assert found
        assert contents(found.reader) == HOLED[: 8 * CHUNK]
    resumed(store, HOLED[: 8 * CHUNK] + bytes(4 * CHUNK))
    assert read(store, KEY) == HOLED[: 8 * CHUNK] + bytes(4 * CHUNK)


def test_data_that_are_shorter_than_their_checkpoint(store: Store, left: Path) -> None:
    """Somebody has cut the file: nothing of it is offered, and it is removed."""
    os.truncate(left / "data", 8 * CHUNK - 1)
    with store.partial(KEY, "b1") as found:
        assert found is None
    assert left_of(store) == []


BROKEN = {
    "empty": b"",
    "zeros": bytes(100),
    "no JSON": b"8388608",
    "a list": b"[]",
    "deep": b"[" * 20_000,
    "long": b'{"length": 1, "mark": "' + b"x" * 30_000 + b'"}',
    "no mark": b'{"length": 1}',
    "no length": b'{"mark": ""}',
    "nothing": b'{"length": 0, "mark": ""}',
    "less than nothing": b'{"length": -1, "mark": ""}',
    "a part of a byte": b'{"length": 1.5, "mark": ""}',
    "words": b'{"length": "1", "mark": ""}',
    "more than there is": b'{"length": 8388609, "mark": ""}',
    "more than there can be": b'{"length": 99999999999999999999999, "mark": ""}',
    "no bytes": '{"length": 1, "mark": "\u0100"}'.encode(),
    "a mark that is too long": b'{"length": 1, "mark": "' + b"x" * (MARK_LIMIT + 1) + b'"}',
}


def test_after_a_reboot_only_what_is_durable_counts(store: Store, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was only written may be lost then; with no checkpoint nothing is believed."""
    line = json.loads((left / "checkpoint.json").read_text())
    (left / "checkpoint.json").write_text(json.dumps(line | {"length": CHUNK}))
    with store.partial(KEY, "a1") as found:
        assert found
        assert found.length == 8 * CHUNK
    reboot(monkeypatch)
    with store.partial(KEY, "a1") as found:
        assert found
        assert found.length == CHUNK
    (left / "checkpoint.json").unlink()
    with store.partial(KEY, "a1") as found:
        assert found is None


def test_what_a_reboot_took_does_not_come_back(store: Store, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on after it is killed as well: what was noted before the reboot is not believed again."""
    line = json.loads((left / "checkpoint.json").read_text())
    (left / "checkpoint.json").write_text(json.dumps(line | {"length": 2 * CHUNK}))
    reboot(monkeypatch)
    with (left / "data").open("r+b") as file:
        file.seek(2 * CHUNK)
        file.write(noise(6 * CHUNK, 9))  # what the disk makes of it
    with store.partial(KEY, "a1") as found:
        assert found
        body = Body(HOLED[: 2 * CHUNK + 5], error=BREAK)
        with pytest.raises(SourceUnavailable):
            store.resume(found, found.length, body, lambda: record_of(KEY), MARK)
    with store.partial(KEY, "a1") as found:
        assert found
        assert contents(found.reader) == HOLED[: 2 * CHUNK + 5]
    resumed(store, HOLED)
    assert read(store, KEY) == HOLED


@pytest.mark.parametrize("length", [CHUNK, 3 * CHUNK])
def test_less_is_wanted_than_is_durable(store: Store, left: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Then no more than that is believed, also if the power fails before anything else is durable."""
    with store.partial(KEY, "a1") as found:
        assert found
        body = Body(HOLED[:length], error=BREAK)
        with pytest.raises(SourceUnavailable):
            store.resume(found, length, body, lambda: record_of(KEY), MARK)
    reboot(monkeypatch)
    assert said(left) == length
    with store.partial(KEY, "a1") as found:
        assert found
        assert (found.length, found.mark) == (length, MARK(8 * CHUNK))
    resumed(store, HOLED)
    assert read(store, KEY) == HOLED


def test_what_was_not_wanted_does_not_come_back(store: Store, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill, right after less was gone on with than was noted before: no more than that is believed."""
    monkeypatch.setattr(attempts, "NOTE", 1 << 40)
    other = HOLED[:CHUNK] + noise(9 * CHUNK, 5)

    def look(given: int) -> None:
        if given == len(other):
            shutil.copytree(left, left.with_name(f"{KEY}.c1"))  # as a kill would leave it, since nobody has a lock
            raise SourceChanged("and so it is discarded")

    with store.partial(KEY, "a1") as found:
        assert found
        with pytest.raises(SourceChanged):
            store.resume(found, CHUNK, Body(other, before=look), lambda: record_of(KEY), MARK)
    with store.partial(KEY, "c2") as found:
        assert found
        assert found.length == CHUNK
    store.delete(KEY)


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_makes_no_sense(store: Store, left: Path, name: str) -> None:
    """It is none: what belongs to it is not offered, but removed, and the next put is as any other."""
    for file in ("checkpoint.json", "written.json"):
        (left / file).write_bytes(BROKEN[name])
    with store.partial(KEY, "b1") as found:
        assert found is None
    assert left_of(store) == []
    put(store, KEY, b"x")


def test_a_torn_checkpoint(store: Store, left: Path) -> None:
    """Wherever it ends early it is none, and never a shorter or longer one."""
    for name, other in (("checkpoint.json", "written.json"), ("written.json", "checkpoint.json")):
        line = (left / name).read_bytes()
        (left / other).rename(left / "aside")
        with opened(left) as (folder, data):
            for length in range(len(line)):
                (left / name).write_bytes(line[:length])
                found = attempts._checkpoint(folder, data)
                assert found is None or (found.length, length) == (8 * CHUNK, len(line) - 1)
        (left / "aside").rename(left / other)
    store.delete(KEY)


@contextmanager
def opened(folder: Path) -> Iterator[tuple[int, int]]:
    """Descriptors of an attempt's folder and data."""
    fds = os.open(folder, os.O_RDONLY), os.open(folder / "data", os.O_RDONLY)
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
@pytest.mark.timeout(100)
def test_what_is_no_checkpoint(store: Store, left: Path, tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    """A pipe in its place holds nobody up, and a link is not followed."""
    (left / "written.json").unlink()
    away = tmp_path_factory.mktemp("away") / "checkpoint.json"
    (left / "checkpoint.json").rename(away)
    if kind == "link":
        (left / "checkpoint.json").symlink_to(away)
        with pytest.raises(StoreUnavailable, match="a link"), store.partial(KEY, "b1"):
            pass
    else:
        os.mkfifo(left / "checkpoint.json") if kind == "pipe" else (left / "checkpoint.json").mkdir()
        with store.partial(KEY, "b1") as found:
            assert found is None
    store.delete(KEY)
    assert left_of(store) == []
    assert away.exists()


def test_a_checkpoint_that_was_not_finished(store: Store, left: Path) -> None:
    """A crash while one was written: the one before counts, and the object has nothing of it."""
    (left / "checkpoint.json.new").write_bytes(b'{"length": 99')
    resumed(store, HOLED)
    assert read(store, KEY) == HOLED
    assert {file.name for file in (left.parents[1] / "objects" / KEY).iterdir()} == {"data", "record.json"}


def test_files_of_others_are_no_attempts(store: Store, left: Path) -> None:
    """What is not ours is neither offered nor in the way."""
    (left.parent / "lost+found").mkdir()
    (left.parent / f"{KEY}.A1").mkdir()
    (left.parent / f"{KEY}.a2").mkdir()  # not begun, or removed half-way
    with store.partial(KEY, "b1") as found:
        assert found
    assert {path.name for path in left.parent.iterdir()} == {"lost+found", f"{KEY}.A1", f"{KEY}.b1"}


# While bytes come


def test_notes_keep_up(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment no more than an interval is not noted, also where zeros are left out; the file is longer."""
    monkeypatch.setattr(attempts, "NOTE", 2 * CHUNK)
    folder = tmp_path / "attempts" / f"{KEY}.a1"
    data = noise(3 * CHUNK) + bytes(9 * CHUNK) + noise(5 * CHUNK + 7, 1)

    def look(given: int) -> None:
        if given == len(data):
            return  # it may be committed by then
        noted = said(folder, "written.json")
        assert given - 2 * CHUNK < noted <= given
        assert noted <= ((folder / "data").stat().st_size if given else 0)

    store.put(KEY, "a1", Body(data, before=look), lambda: record_of(KEY), MARK)
    assert read(store, KEY) == data


@pytest.mark.parametrize(("by", "value"), [("EVERY", 1), ("SECONDS", 0)])
def test_what_is_written_becomes_durable(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, value: int
) -> None:
    """After so many bytes, or so many seconds, while more is written."""
    monkeypatch.setattr(attempts, by, value)
    folder = tmp_path / "attempts" / f"{KEY}.a1"

    def look(given: int) -> None:
        if given == 1000:
            wait_until("a checkpoint", lambda: said(folder) == given, timeout=30)

    store.put(KEY, "a1", Body(noise(5000), piece=1000, before=look), lambda: record_of(KEY), MARK)
    assert read(store, KEY) == noise(5000)


def test_a_disk_that_is_slow_is_left_in_peace(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets many times as long for its other work as it took to make bytes durable."""
    monkeypatch.setattr(attempts, "EVERY", CHUNK)
    monkeypatch.setattr(attempts, "SHARE", 1 << 40)
    folder = tmp_path / "attempts" / f"{KEY}.a1"

    def look(given: int) -> None:
        if given == CHUNK:
            wait_until("a checkpoint", lambda: said(folder) == CHUNK, timeout=30)
        if CHUNK < given < 9 * CHUNK:
            assert said(folder) == CHUNK

    store.put(KEY, "a1", Body(noise(9 * CHUNK), before=look), lambda: record_of(KEY), MARK)


def test_a_folder_that_disappears(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the making of a checkpoint meets ends the put."""
    often(monkeypatch)

    def remove(given: int) -> None:
        while given == 3 * CHUNK and tmp_path.exists():  # a checkpoint may come in between
            shutil.rmtree(tmp_path, ignore_errors=True)

    with pytest.raises(StoreUnavailable):
        store.put(KEY, "a1", Body(noise(9 * CHUNK), before=remove), lambda: record_of(KEY), MARK)
    assert not tmp_path.exists()


def test_nothing_is_left_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither descriptors nor threads, whether it goes well or not."""
    often(monkeypatch)
    before = sorted(Path("/proc/self/fd").iterdir()), threading.active_count()
    for attempt in ("a1", "a2"):
        with store.partial(KEY, attempt) as found:
            body = Body(noise(5 * CHUNK), error=BREAK)
            with pytest.raises(SourceUnavailable):
                go_on(store, found, attempt, body)
    resumed(store, noise(9 * CHUNK))
    assert (sorted(Path("/proc/self/fd").iterdir()), threading.active_count()) == before


def test_the_power_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of the disk is left then: what is offered are the right bytes, and it is what was durable."""
    often(monkeypatch)
    monkeypatch.setattr(attempts, "ThreadPoolExecutor", AtOnce)
    image, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    make_ext4(image)
    data = noise(3 * CHUNK) + bytes(3 * CHUNK) + noise(4 * CHUNK, 1) + bytes(2 * CHUNK)
    moments = dict[int, bytes]()

    def look(given: int) -> None:
        moments[given] = still(image)

    def fresh() -> Store:
        found = open_store(ref_to(folder))
        found.claim()
        return found

    with mounted(folder, "-o", "loop", str(image)), pytest.raises(SourceUnavailable):
        fresh().put(KEY, "a1", Body(data, before=look, error=BREAK), lambda: record_of(KEY), MARK)
    reboot(monkeypatch)
    reached = []
    for given, state in moments.items():
        image.write_bytes(state)
        with mounted(folder, "-o", "loop", str(image)):
            with fresh().partial(KEY, "b1") as found:
                reached.append(found.length if found else 0)
                assert given - CHUNK <= reached[-1] <= given
                assert found is None or contents(found.reader) == data[: found.length]
            resumed(fresh(), data)
            assert read(fresh(), KEY) == data
    assert reached == sorted(reached)
    assert reached[-1] >= len(data) - CHUNK


def still(image: Path) -> bytes:
    """The image at a moment at which nothing was written to it."""
    states = (image.read_bytes() for _ in range(1000))
    return next(one for one, other in pairwise(states) if one == other)
