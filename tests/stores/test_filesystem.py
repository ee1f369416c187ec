"""The filesystem store: the contract, and its files looked at around it."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from functools import partial
from pathlib import Path

import pytest
from tests.stores.disks import make_ext4, make_xfs, mounted

from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    SourceUnavailable,
    StoreConflict,
    StoreRefused,
    StoreUnavailable,
)
from glimpse.stores import Version, open_store
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.cloneable import CloneableContract
from glimpse.testing.registering import Lay, RegisteringContract, register
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.sparse import SparseContract
from glimpse.testing.stores import KEY, UID, Raw, StoreContract, StoreFixtures, read
from servers.require import require_tool


def ref_to(path: Path) -> StoreRef:
    """A store in that folder."""
    return StoreRef(name="fast", driver="filesystem", config={"path": str(path)}, installation="here")


@pytest.fixture
def ref(tmp_path: Path) -> StoreRef:
    """A store in an empty folder."""
    return ref_to(tmp_path)


@pytest.fixture(params=["tmpfs", "ext4"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreRef]:
    """A file system of its own of some 20 MiB: one that has no delayed allocation, and one that has."""
    folder, image = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("image") / "disk"
    if request.param == "tmpfs":
        what = ["-t", "tmpfs", "-o", "size=20m", "glimpse-test"]
    else:
        make_ext4(image)
        what = ["-o", "loop", str(image)]
    with mounted(folder, *what):
        yield ref_to(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An xfs, on which files can share blocks."""
    folder, image = tmp_path_factory.mktemp("xfs"), tmp_path_factory.mktemp("image") / "disk"
    make_xfs(image)
    with mounted(folder, "-o", "loop", str(image)):
        yield folder


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in."""

    @pytest.fixture
    def ref(self, tmp_path: Path) -> StoreRef:
        """A store in an empty folder."""
        return ref_to(tmp_path)

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Raw:
        """Complete folders in `objects` by their key, anything else by its path."""

        def look() -> set[str]:
            found = set()
            for path in tmp_path.rglob("*"):
                match path.relative_to(tmp_path).parts:
                    case ("glimpse-store.json",) | ("objects",) | ("attempts",):
                        pass
                    case ("objects", key):
                        found.add(key)
                        assert {file.name for file in path.iterdir()} - {"location.json"} == {"data", "record.json"}
                    case ("objects", _, _) | ("import", *_):
                        pass
                    case other:
                        found.add("/".join(other))
            return found

        return look

    @pytest.fixture
    def small(self, volume: StoreRef) -> StoreRef:
        """A file system of its own."""
        return volume


class TestContract(Fixtures, StoreContract):
    """What every store promises."""


class TestSparse(Fixtures, SparseContract):
    """What a store promises in which zeros take no room."""

    @pytest.fixture
    def taken(self, tmp_path: Path) -> Callable[[str], int]:
        """Blocks of the file."""
        return lambda key: (tmp_path / "objects" / key / "data").stat().st_blocks * 512


class TestResumable(Fixtures, ResumableContract):
    """What a store promises that goes on with a put that died."""

    lag = 8 << 20


class TestRegistering(Fixtures, RegisteringContract):
    """What a store promises that holds what others have put into it."""

    @pytest.fixture
    def lay(self, tmp_path: Path) -> Lay:
        """Write in place, as a person would."""

        def lay(location: str, data: bytes | None) -> None:
            path = tmp_path / location
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)

        return lay


class TestCloneable(Fixtures, CloneableContract):
    """What a store promises that makes one object of another: here a second name of the same file."""


class TestCloneableReflink(Fixtures, CloneableContract):
    """The same on a file system that shares blocks."""

    @pytest.fixture
    def tmp_path(self, shared: Path) -> Path:
        """An empty folder there, for each test anew."""
        return Path(tempfile.mkdtemp(dir=shared))


# Around the store: its files


def test_a_clone_takes_no_room(ref: StoreRef, shared: Path) -> None:
    """No byte is copied: the blocks are shared, or where that cannot be the file has a second name."""
    digest, twin = "sha256:" + 64 * "a", f"{UID}-2"
    for each in (ref, ref_to(shared)):
        store, path = open_store(each), Path(each.config["path"])
        store.put(KEY, "a1", Body(noise(8 << 20)), lambda: record_of(KEY, size=8 << 20, digest=digest))
        before = os.statvfs(path)
        assert store.clone(KEY, digest, twin, "b1", lambda _: record_of(twin, digest=digest))
        after = os.statvfs(path)
        one, two = ((path / "objects" / key / "data").stat() for key in (KEY, twin))
        if each is ref:
            assert os.path.samestat(one, two)
        else:  # nobody else writes there
            assert not os.path.samestat(one, two)
            assert (before.f_bfree - after.f_bfree) * after.f_frsize < 1 << 20
        store.delete(KEY)
        store.delete(twin)


def names(path: Path) -> set[str]:
    """Everything below, as paths."""
    return {str(file.relative_to(path)) for file in path.rglob("*")}


def test_files_are_where_the_docs_say(ref: StoreRef, tmp_path: Path) -> None:
    """A marker, a folder with data and record for each object, and nobody else can read them."""
    store = open_store(ref)
    entry = store.put(KEY, "a1", Body(noise(1000)), lambda: record_of(KEY))
    folder = tmp_path / "objects" / KEY
    assert names(tmp_path) == {
        "glimpse-store.json",
        "attempts",
        "objects",
        f"objects/{KEY}",
        f"objects/{KEY}/data",
        f"objects/{KEY}/record.json",
    }
    assert json.loads((tmp_path / "glimpse-store.json").read_text()) == {"owner": "here/fast"}
    assert json.loads((folder / "record.json").read_text())["uid"] == UID
    assert (folder / "data").read_bytes() == noise(1000)
    assert entry.location == f"file://{folder}/data"
    for file in (folder, folder / "data", folder / "record.json", tmp_path / "objects"):
        assert file.stat().st_mode & 0o027 == 0


@pytest.mark.parametrize("piece", [1 << 20, 1_000_000])
def test_zeros_take_no_room(ref: StoreRef, tmp_path: Path, piece: int) -> None:
    """Whole blocks of zeros are holes, at the end too; the length counts them."""
    data = noise(100_000) + bytes(20 << 20) + noise(100_000) + bytes(20 << 20)
    open_store(ref).put(KEY, "a1", Body(data, piece=piece), lambda: record_of(KEY))
    state = (tmp_path / "objects" / KEY / "data").stat()
    assert state.st_size == len(data)
    assert state.st_blocks * 512 < 4 << 20
    assert (tmp_path / "objects" / KEY / "data").read_bytes() == data


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_missing_folder_is_not_created(tmp_path: Path, place: str) -> None:
    """Where the folder is not, a volume is not mounted; nothing is written in its stead."""
    (tmp_path / "file").write_text("x")
    store = open_store(ref_to(tmp_path / place))
    for action in (store.claim, store.probe, lambda: store.put(KEY, "a1", Body(b"x"), lambda: record_of(KEY))):
        with pytest.raises(StoreUnavailable, match=rf"{place} is no folder: is the volume mounted\?"):
            action()
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("link", [False, True], ids=["by its path", "by a link"])
def test_a_folder_in_another_store(tmp_path: Path, link: bool) -> None:
    """Within a store is no other one: its objects would be files that the outer one could register."""
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "images" / "inner"
    inner.mkdir(parents=True)
    open_store(ref_to(outer)).claim()
    if link:
        inner = tmp_path / "link"
        inner.symlink_to(outer / "images" / "inner")
    with pytest.raises(InvalidConfiguration, match=rf"/(inner|link) lies in {outer}, which is a store itself"):
        open_store(ref_to(inner)).claim()
    assert names(outer / "images" / "inner") == set()


def test_a_folder_that_disappears(ref: StoreRef, tmp_path: Path) -> None:
    """A folder that is removed in the middle of a put is StoreUnavailable, and does not come back."""

    def remove(given: int) -> None:
        if given:
            shutil.rmtree(tmp_path, ignore_errors=True)

    store = open_store(ref)
    with pytest.raises(StoreUnavailable):
        store.put(KEY, "a1", Body(noise(3 << 20), before=remove), lambda: record_of(KEY))
    assert not tmp_path.exists()
    with pytest.raises(StoreUnavailable, match="mounted"):
        store.stat(KEY)


@pytest.mark.parametrize("link", ["objects", "attempts", f"objects/{KEY}", f"objects/{KEY}/data"])
def test_links_are_refused(ref: StoreRef, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, link: str) -> None:
    """A link in place of one of our folders or files is not followed, and what it leads to stays as it is."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(b"x"), lambda: record_of(KEY))
    away = tmp_path_factory.mktemp("away") / "moved"
    (tmp_path / link).rename(away)
    (tmp_path / link).symlink_to(away)
    before = names(away.parent)
    actions: list[Callable[[], object]] = [
        lambda: store.put(KEY, "a2", Body(b"y"), lambda: record_of(KEY)),
        lambda: store.delete(f"{KEY}.a1"),
    ]
    if link != "attempts":
        actions += [lambda: store.open(KEY), lambda: store.update(KEY, record_of(KEY))]
    for action in actions[0 if link != f"objects/{KEY}/data" else 2 :]:
        if link == f"objects/{KEY}" and action is actions[1]:
            continue  # removes attempts only
        with pytest.raises(StoreUnavailable, match="a link"):
            action()
    assert names(away.parent) == before


def test_a_broken_record_is_none(ref: StoreRef, tmp_path: Path) -> None:
    """An object whose record is broken or gone is still an object: it is read, listed, mended and removed."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(b"bytes"), lambda: record_of(KEY))
    file = tmp_path / "objects" / KEY / "record.json"
    for damage in (lambda: file.write_text("{"), lambda: file.write_bytes(bytes(10_000)), file.unlink):
        damage()
        assert store.stat(KEY).record is None
        assert [(entry.record, entry.partial) for entry in store.list()] == [(None, False)]
        store.update(KEY, record_of(KEY))
        assert store.stat(KEY).record == record_of(KEY)
    file.unlink()
    store.delete(KEY)
    assert names(tmp_path) == {"glimpse-store.json", "objects", "attempts"}


@pytest.mark.parametrize("action", ["put", "delete"])
def test_an_object_without_data_is_a_leftover(ref: StoreRef, tmp_path: Path, action: str) -> None:
    """A folder whose data somebody removed is not an object; it is listed as partial and is in nobody's way."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(b"bytes"), lambda: record_of(KEY))
    (tmp_path / "objects" / KEY / "data").unlink()
    with pytest.raises(NotFound):
        store.stat(KEY)
    assert [(entry.key, entry.partial) for entry in store.list()] == [(KEY, True)]
    if action == "put":
        store.put(KEY, "a2", Body(b"again"), lambda: record_of(KEY))
        assert (tmp_path / "objects" / KEY / "data").read_bytes() == b"again"
    else:
        store.delete(KEY)
        assert list(store.list()) == []
    assert list((tmp_path / "attempts").iterdir()) == []


@pytest.mark.parametrize("left", [[], ["record.json"], ["data"], ["data", "record.json"]], ids=repr)
def test_a_half_removed_attempt_is_removed(ref: StoreRef, tmp_path: Path, left: list[str]) -> None:
    """Whatever a death between two steps left of an attempt: the next call on its key removes it."""
    store = open_store(ref)
    store.claim()
    store.delete(KEY)
    folder = tmp_path / "attempts" / f"{KEY}.a1"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("x")
    assert [(entry.key, entry.partial) for entry in store.list()] == [(f"{KEY}.a1", True)]
    store.put(KEY, "a1", Body(b"bytes"), lambda: record_of(KEY))
    assert list((tmp_path / "attempts").iterdir()) == []


@pytest.mark.parametrize("name", ["data", "record.json"])
def test_a_folder_in_the_place_of_a_file_is_removed(ref: StoreRef, tmp_path: Path, name: str) -> None:
    """It is damage: whatever is below, it blocks neither a list nor the removal of the object."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(b"bytes"), lambda: record_of(KEY))
    file = tmp_path / "objects" / KEY / name
    file.unlink()
    (file / "below").mkdir(parents=True)
    (file / "below" / "x").write_text("x")
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    assert list(store.list()) == []
    assert list((tmp_path / "attempts").iterdir()) == []


@pytest.mark.parametrize("name", ["glimpse-store.json", f"objects/{KEY}/data", f"objects/{KEY}/record.json"])
@pytest.mark.timeout(100)
def test_a_pipe_holds_nobody_up(ref: StoreRef, tmp_path: Path, name: str) -> None:
    """To open a pipe waits for who writes to it; what is no file is refused instead."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(b"bytes"), lambda: record_of(KEY))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    if name.endswith("record.json"):
        assert store.stat(KEY).record is None
    elif name.endswith("data"):
        with pytest.raises(StoreUnavailable, match="data is no file"), store.get(KEY):
            pass
        with pytest.raises(StoreUnavailable, match="data is no file"):
            store.open(KEY)
    else:
        with pytest.raises(StoreUnavailable, match=r"glimpse-store\.json is no file"):
            store.claim()


def test_files_of_others_are_left_alone(ref: StoreRef, tmp_path: Path) -> None:
    """What has no name of ours is neither listed nor removed: lost+found, notes, a marker that was never linked."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(b"x"), lambda: record_of(KEY))
    others = {"lost+found", "objects/README.txt", "attempts/.nfs0001", "glimpse-store.json.00", "objects/lost+found"}
    for name in others:
        (tmp_path / name).write_text("x")
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    assert names(tmp_path) == {*others, "glimpse-store.json", "objects", "attempts"}


@pytest.mark.parametrize("text", ["", "here", "[]", "{}", "\0"])
def test_a_broken_marker_is_not_replaced(ref: StoreRef, tmp_path: Path, text: str) -> None:
    """A marker that cannot be read belongs to somebody: the store is unavailable until it is restored."""
    (tmp_path / "glimpse-store.json").write_text(text)
    with pytest.raises(StoreUnavailable, match=r"glimpse-store\.json cannot be read.*restore"):
        open_store(ref).claim()
    assert (tmp_path / "glimpse-store.json").read_text() == text


def test_a_read_only_volume(volume: StoreRef) -> None:
    """A volume that is mounted read-only gives its objects, and says at the probe that it takes none."""
    store = open_store(volume)
    store.put(KEY, "a1", Body(b"x"), lambda: record_of(KEY))
    remount = [require_tool("mount", "mount"), "-o", "remount,ro", volume.config["path"]]
    subprocess.run(remount, check=True)
    for action in (store.probe, lambda: store.delete(KEY), lambda: store.update(KEY, record_of(KEY))):
        with pytest.raises(StoreUnavailable, match="Read-only file system"):
            action()
    with store.get(KEY) as reader:
        assert reader.read() == b"x"


def test_descriptors_are_closed(ref: StoreRef) -> None:
    """No call leaves a descriptor open, whether it succeeds or fails."""
    store = open_store(ref)
    store.claim()
    before = sorted(Path("/proc/self/fd").iterdir())
    for error in (None, SourceUnavailable("reset")):
        with suppress(SourceUnavailable):
            store.put(KEY, "a1", Body(noise(1000), error=error), lambda: record_of(KEY))
        with suppress(NotFound), store.get(KEY) as reader:
            reader.read()
        with suppress(NotFound):
            store.update(KEY, record_of(KEY))
        list(store.list())
        with suppress(StoreConflict):
            store.put(KEY, "a2", Body(b"x"), lambda: record_of(KEY))
        store.delete(KEY)
        store.probe()
        with pytest.raises(NotFound):
            store.open(KEY)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


# What others have put there


def hostile(path: Path, outside: Path) -> dict[str, Path]:
    """What somebody may put below `path` who wants to read or change something else."""
    secret = outside / "secret"
    secret.write_bytes(b"secret")
    (path / "plain").write_bytes(b"plain")
    (path / "link").symlink_to(secret)
    (path / "near").symlink_to(path / "plain")
    (path / "folder-link").symlink_to(outside)
    (path / "up").symlink_to("../..")
    (path / "loop").symlink_to("loop")
    (path / "fd").symlink_to("/proc/self/fd")
    (path / "folder").mkdir()
    (path / "hard").hardlink_to(secret)
    os.mkfifo(path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound, chdir(path):
        bound.bind("socket")
    return {
        "a link": path / "link",
        "a link to a neighbour": path / "near",
        "a folder that is a link": path / "folder-link" / "secret",
        "a link upwards": path / "up" / "objects",
        "a link in a circle": path / "loop",
        "a link into the kernel": path / "fd" / "0",
        "a folder": path / "folder",
        "a second name": path / "hard",
        "a pipe": path / "fifo",
        "a socket": path / "socket",
        "below a file": path / "plain" / "x",
    }


def test_hostile_places_are_refused(ref: StoreRef, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing but a plain file with one name, reached through folders alone, is ever read; and nothing hangs."""
    store = open_store(ref)
    store.claim()
    area, outside = tmp_path / "import" / "team-a", tmp_path_factory.mktemp("outside")
    area.mkdir(parents=True)
    for what, path in hostile(area, outside).items():
        location = str(path.relative_to(tmp_path))
        for action in (partial(store.locate, location), store.read(location, Version(6, '"x"')).__enter__):
            with pytest.raises(StoreRefused) as raised:
                action()
            assert str(tmp_path) not in raised.value.message, what
    assert store.locate("import/team-a/plain").size == 5


def test_a_registered_file_is_not_followed_elsewhere(
    ref: StoreRef, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file, or a folder above it, that is replaced by a link after it was registered gives nothing of what it names.

    A removal through a folder that became a link takes nothing either.
    """
    store = open_store(ref)
    store.claim()
    area, outside = tmp_path / "import" / "team-a", tmp_path_factory.mktemp("outside")
    area.mkdir(parents=True)
    (area / "x").write_bytes(b"plain")
    (outside / "x").write_bytes(b"other")
    register(store, KEY, "import/team-a/x")
    (area / "x").rename(area / "aside")
    (area / "x").symlink_to(area / "aside")
    with pytest.raises(DataLost):
        read(store, KEY)
    (area / "x").unlink()
    (area / "aside").unlink()
    area.rmdir()
    area.symlink_to(outside)
    for action in (lambda: read(store, KEY), lambda: store.open(KEY)):
        with pytest.raises(DataLost):
            action()
    with pytest.raises(StoreRefused):
        store.erase("import/team-a/x")
    assert (outside / "x").read_bytes() == b"other"


@pytest.mark.parametrize("how", ["touched", "in place", "replaced", "linked"])
def test_a_change_that_hides_is_noticed(ref: StoreRef, tmp_path: Path, how: str) -> None:
    """The time of the last write can be set back, and the length kept; the time of the last change tells."""
    store = open_store(ref)
    store.claim()
    file = tmp_path / "import" / "x"
    file.parent.mkdir()
    file.write_bytes(b"good")
    register(store, KEY, "import/x")
    before = file.stat()
    if how == "in place":
        file.write_bytes(b"evil")
    elif how == "replaced":
        (tmp_path / "import" / "y").write_bytes(b"evil")
        (tmp_path / "import" / "y").rename(file)
    elif how == "linked":
        (tmp_path / "import" / "y").hardlink_to(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DataLost):
        read(store, KEY)


def test_files_of_a_registered_object(ref: StoreRef, tmp_path: Path) -> None:
    """A folder with a note and the record, and no byte of the image."""
    store = open_store(ref)
    store.claim()
    (tmp_path / "import").mkdir()
    (tmp_path / "import" / "x y").write_bytes(noise(1000))
    entry = register(store, KEY, "import/x y")
    folder = tmp_path / "objects" / KEY
    assert {file.name: file.stat().st_size > 0 for file in folder.iterdir()} == {
        "data": False,
        "location.json": True,
        "record.json": True,
    }
    assert json.loads((folder / "location.json").read_text())["location"] == "import/x y"
    assert json.loads((folder / "record.json").read_text())["location"] == "import/x y"
    assert entry.location == f"file://{tmp_path}/import/x%20y"
    (folder / "location.json").write_text("{")
    for action in (lambda: read(store, KEY), lambda: store.stat(KEY)):
        with pytest.raises(StoreUnavailable, match=r"location\.json"):
            action()
