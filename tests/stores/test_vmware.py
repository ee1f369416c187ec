"""The VMware store: the contracts against VMware's simulator, and its files looked at around it."""

import gc
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from pydantic import SecretStr
from tests.stores.disks import mounted
from tests.stores.plain import plain
from tests.stores.quick_vmware import Quick

from glimpse.problems import (
    InvalidConfiguration,
    NotFound,
    SecretNotReadable,
    SourceUnavailable,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
    WorkerLost,
)
from glimpse.runners import Inline
from glimpse.settings import Addresses, Transfers
from glimpse.stores import Cloneable, Unable, open_store
from glimpse.stores.vmware.session import Session
from glimpse.tasks import Done, Failed, Fetch, HttpOrigin, ImageOrigin, List, Probe, Record, StoreRef
from glimpse.testing.bodies import Body, noise, record_of, writer
from glimpse.testing.cloneable import DIGEST, CloneableContract, clone, original
from glimpse.testing.faults import Reply
from glimpse.testing.faults import Server as Web
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.runners import Heard, eventually
from glimpse.testing.sparse import LargeContract
from glimpse.testing.stores import KEY, OTHER, UID, Raw, StoreContract, StoreFixtures, put, read
from glimpse.testing.wire import Wire
from servers import wait_until
from servers.require import require
from servers.tools import Missing
from servers.vcsim import DATACENTER, DATASTORE, READER, VCenter, VCSim


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VCSim]:
    """One simulator for all tests here; each has a folder of its own."""
    server = VCSim(tmp_path_factory.mktemp("vcsim"))
    try:
        with server:
            yield server
    except Missing as error:
        require("vcsim", str(error))


@pytest.fixture(scope="module")
def vcenter(simulator: VCSim) -> VCenter:
    """Where it is."""
    return simulator.vcenter


@pytest.fixture(scope="module")
def root(vcenter: VCenter) -> Path:
    """Where the simulator keeps the files of the datastore."""
    return vcenter.files()


def ref_to(vcenter: VCenter, folder: str, datastore: str = DATASTORE) -> StoreRef:
    """A store in that folder, with a driver that is not patient."""
    place = {"server": vcenter.server, "datacenter": DATACENTER, "datastore": datastore, "folder": folder}
    return StoreRef(
        name="fast",
        driver="quick-vmware",
        config=place,
        installation="here",
        secret={"username": vcenter.username, "password": vcenter.password},
        ca_bundle=vcenter.ca_file.read_text(),
    )


@pytest.fixture
def place(root: Path, outside: Path) -> Path:  # noqa: ARG001 - there the driver is installed that is not patient
    """A folder in the datastore, beside those of others."""
    place = root / f"glimpse-{uuid4().hex[:8]}"
    place.mkdir()
    return place


@pytest.fixture
def ref(vcenter: VCenter, place: Path) -> StoreRef:
    """A store in that folder."""
    return ref_to(vcenter, place.name)


@pytest.fixture
def small(
    vcenter: VCenter,
    tmp_path_factory: pytest.TempPathFactory,
    outside: Path,  # noqa: ARG001 - there the driver is installed that is not patient
) -> Iterator[StoreRef]:
    """A datastore of 20 MiB."""
    folder = tmp_path_factory.mktemp("small")
    with mounted(folder, "-t", "tmpfs", "-o", "size=20m", "glimpse-test"):
        vcenter.add_datastore(folder.name, folder)
        (folder / "glimpse").mkdir()
        yield ref_to(vcenter, "glimpse", folder.name)


@pytest.fixture
def buried(place: Path) -> Callable[[], None]:
    """Waits until no sign of life is younger than a lease."""

    def over() -> bool:
        return all(time.time() - float(file.read_text()) > Quick.lease for file in place.rglob("*.alive"))

    return lambda: wait_until("the end of all leases", over, timeout=30)


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in."""

    @pytest.fixture
    def ref(self, vcenter: VCenter, place: Path) -> StoreRef:
        """A store in an empty folder of the datastore."""
        return ref_to(vcenter, place.name)

    @pytest.fixture
    def raw(self, place: Path) -> Raw:
        """Objects with ticket, data and record by their keys, anything else by its path."""

        def look() -> set[str]:
            files = {str(file.relative_to(place)) for file in place.rglob("*")}
            files -= {"glimpse-store.json", "attempts", "objects", "data", "records"}
            found = set()
            for ticket in sorted(name for name in files if name.startswith("objects/")):
                key = Path(ticket).stem
                name = f"{key}.{json.loads((place / ticket).read_text())['attempt']}"
                mine = {ticket, f"data/{name}.img", f"records/{name}.json"}
                if mine <= files:
                    files -= mine
                    found.add(key)
            return found | files

        return look

    @pytest.fixture
    def small(self, small: StoreRef) -> StoreRef:
        """A datastore of 20 MiB."""
        return small

    @pytest.fixture
    def buried(self, buried: Callable[[], None]) -> Callable[[], None]:
        """Waits until no sign of life is younger than a lease."""
        return buried


class TestContract(Fixtures, StoreContract):
    """What every store promises."""

    sequences: ClassVar[int] = 8


class TestCloneable(Fixtures, CloneableContract):
    """What a store promises that makes one object of another."""


class TestLarge(Fixtures, LargeContract):
    """Zeros take room there, for the seconds of the test."""

    @pytest.fixture
    def ref(self, vcenter: VCenter, place: Path) -> StoreRef:
        """With the patience of every day: to remove 4 GiB is work for the simulator's disk."""
        return ref_to(vcenter, place.name).model_copy(update={"driver": "vmware"})


class TestRemote(Fixtures, RemoteContract):
    """What a store on a server promises."""

    @pytest.fixture
    def far(self, ref: StoreRef, vcenter: VCenter) -> Iterator[Far]:
        """The same over a wire that can fail."""
        with Wire(("127.0.0.1", int(vcenter.server.rpartition(":")[2]))) as wire:
            config = ref.config | {"server": f"127.0.0.1:{wire.port}"}
            yield Far(ref.model_copy(update={"config": config}), wire)

    @pytest.fixture
    def restart(self, simulator: VCSim) -> Restart:
        """The simulator."""
        return simulator.restart

    @pytest.fixture
    def locked_out(self, ref: StoreRef) -> StoreRef:
        """Another password."""
        secret = ref.secret | {"password": SecretStr("another-word")}
        return ref.model_copy(update={"secret": secret})

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """A folder that nobody has made."""
        return ref.model_copy(update={"config": ref.config | {"folder": "missing-folder"}})


# Around the store: its files


def names(place: Path) -> set[str]:
    """All files of the store, as paths."""
    return {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}


def of(name: str) -> set[str]:
    """The files of an object that this attempt has written."""
    return {f"objects/{name.partition('.')[0]}.json", f"data/{name}.img", f"records/{name}.json"}


def changed(ref: StoreRef, **config: str | None) -> StoreRef:
    """The same store with another configuration."""
    return ref.model_copy(update={"config": ref.config | config})


def test_files_are_where_the_docs_say(ref: StoreRef, vcenter: VCenter, place: Path) -> None:
    """Marker, ticket, bytes and record; the usual client sees the same, and location and endpoint lead there."""
    from pyVmomi import vim

    store = open_store(ref)
    entry = store.put(KEY, "a1", Body(noise(1000)), lambda: record_of(KEY))
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a1")}
    assert json.loads((place / "glimpse-store.json").read_text()) == {"owner": "here/fast"}
    assert json.loads((place / "objects" / f"{KEY}.json").read_text()) == {"attempt": "a1"}
    assert json.loads((place / "records" / f"{KEY}.a1.json").read_text())["uid"] == UID
    assert (place / "data" / f"{KEY}.a1.img").read_bytes() == noise(1000)
    where = f"dcPath={DATACENTER}&dsName={DATASTORE}"
    assert store.driver.endpoint == f"https://{vcenter.server}/folder/{place.name}?{where}"
    assert entry.location == f"https://{vcenter.server}/folder/{place.name}/data/{KEY}.a1.img?{where}"
    with vcenter.session() as content:
        details = vim.host.DatastoreBrowser.FileInfo.Details(
            fileSize=True, modification=True, fileType=False, fileOwner=False
        )
        task = vcenter.datastore(content).browser.SearchDatastore_Task(
            f"[{DATASTORE}] {place.name}/data",
            vim.host.DatastoreBrowser.SearchSpec(matchPattern=["*"], details=details),
        )
        wait_until("the search", lambda: task.info.state == "success", timeout=10)
        [file] = task.info.result.file
    assert (file.path, file.fileSize) == (f"{KEY}.a1.img", 1000)
    assert file.modification.timestamp() == entry.modified


def test_files_of_others_are_left_alone(ref: StoreRef, place: Path, root: Path) -> None:
    """What has no name of ours is neither listed nor removed, in our folder and beside it."""
    store = open_store(ref)
    store.claim()
    others = {"README.txt", "objects/notes.txt", f"data/{KEY}.iso", f"data/{KEY}.a1.img.bak", f"attempts/{KEY}.x.y"}
    (place / "data" / f"{KEY}.d.img").mkdir()
    (place / "backup" / "data").mkdir(parents=True)
    others |= {f"{KEY}.a1.img", f"backup/data/{KEY}.a1.img"}
    for name in others:
        (place / name).write_text("x")
    beside = {str(path) for path in root.rglob("*") if not path.is_relative_to(place)}
    put(store, KEY, b"x")
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    assert names(place) == {*others, "glimpse-store.json"}
    assert {str(path) for path in root.rglob("*") if not path.is_relative_to(place)} == beside


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"datacenter": "missing"}, r"127.*has no datacenter 'missing', or the user may not see it"),
        ({"datastore": "missing"}, r"datacenter 'DC0' of 127.*has no datastore 'missing', or the user may not see it"),
        ({"folder": "missing"}, r"there is no folder \[LocalDS_0\] missing"),
    ],
    ids=["datacenter", "datastore", "folder"],
)
def test_what_is_missing_is_named(
    ref: StoreRef, vcenter: VCenter, root: Path, config: dict[str, str], what: str
) -> None:
    """It is named, with the way out, and made by nobody; no session is left for it."""
    before = sessions(vcenter)
    store = open_store(changed(ref, **config))
    for action in (store.claim, store.probe, lambda: put(store, KEY, b"x"), lambda: store.delete(KEY)):
        with pytest.raises(StoreUnavailable, match=what):
            action()
    assert not (root / "missing").exists()
    assert len(sessions(vcenter) - before) == ("folder" in config)


# Around the store: damage


@pytest.mark.parametrize("action", ["put", "delete"])
def test_a_ticket_without_bytes_is_a_leftover(ref: StoreRef, place: Path, action: str) -> None:
    """An object whose bytes somebody removed is none; it is listed as partial and is in nobody's way."""
    store = open_store(ref)
    put(store, KEY, b"bytes")
    (place / "data" / f"{KEY}.a1.img").unlink()
    for look in (lambda: store.stat(KEY), lambda: read(store, KEY), lambda: store.update(KEY, record_of(KEY))):
        with pytest.raises(NotFound):
            look()
    assert next((entry.key, entry.partial) for entry in store.list()) == (KEY, True)
    if action == "put":
        put(store, KEY, b"again", attempt="a2")
        assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a2")}
        assert read(store, KEY) == b"again"
    else:
        store.delete(KEY)
        assert names(place) == {"glimpse-store.json"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"attempt": "../x"}', "\0"])
def test_a_spoiled_ticket_is_a_leftover(ref: StoreRef, place: Path, text: str) -> None:
    """A ticket that says nothing is no object; the next put of its key removes it and what it may have named."""
    store = open_store(ref)
    put(store, KEY, b"bytes")
    (place / "objects" / f"{KEY}.json").write_text(text)
    with pytest.raises(NotFound):
        store.stat(KEY)
    assert {(entry.key, entry.partial) for entry in store.list()} == {(KEY, True), (f"{KEY}.a1", True)}
    put(store, KEY, b"again", attempt="a2")
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a2")}


def test_a_broken_record_is_none(ref: StoreRef, place: Path) -> None:
    """An object whose record is broken or gone is still an object: it is read, listed, mended and removed."""
    store = open_store(ref)
    put(store, KEY, b"bytes")
    file = place / "records" / f"{KEY}.a1.json"
    for damage in (lambda: file.write_text("{"), lambda: file.write_bytes(bytes(10_000)), file.unlink):
        damage()
        assert store.stat(KEY).record is None
        assert [(entry.key, entry.record, entry.partial) for entry in store.list()] == [(KEY, None, False)]
        store.update(KEY, record_of(KEY))
        assert store.stat(KEY).record == record_of(KEY)
    file.unlink()
    store.delete(KEY)
    assert names(place) == {"glimpse-store.json"}


@pytest.mark.parametrize("text", ["", "here", "[]", "{}", "\0"])
def test_a_broken_marker_is_not_replaced(ref: StoreRef, place: Path, text: str) -> None:
    """A marker that cannot be read belongs to somebody: the store is unavailable until it is restored."""
    (place / "glimpse-store.json").write_text(text)
    with pytest.raises(StoreUnavailable, match=r"glimpse-store\.json cannot be read.*restore"):
        open_store(ref).claim()
    assert (place / "glimpse-store.json").read_text() == text


@pytest.mark.parametrize("action", ["put", "delete", "delete it alone"])
@pytest.mark.parametrize(
    "left", [["a"], ["a", "d"], ["d"], ["a", "d", "r"], ["r"], ["s"], ["a", "d", "r", "s"]], ids="".join
)
def test_whatever_a_death_leaves_is_removed(ref: StoreRef, place: Path, left: list[str], action: str) -> None:
    """Ticket, bytes, record and sign of life of an attempt, in each combination that a death can leave."""
    store = open_store(ref)
    store.claim()
    files = {
        "a": (f"attempts/{KEY}.a1.json", '{"attempt": "a1"}'),
        "d": (f"data/{KEY}.a1.img", "x"),
        "r": (f"records/{KEY}.a1.json", "{}"),
        "s": (f"attempts/{KEY}.a1.alive", repr(time.time() - 60)),
    }
    for each in left:
        name, text = files[each]
        (place / name).write_text(text)
    assert [(entry.key, entry.size, entry.partial) for entry in store.list()] == [(f"{KEY}.a1", "d" in left, True)]
    if action == "put":
        put(store, KEY, b"bytes", attempt="a2")
        store.delete(KEY)
    else:
        store.delete(KEY if action == "delete" else f"{KEY}.a1")
    assert names(place) == {"glimpse-store.json"}


@pytest.mark.parametrize("sign", [None, "", "alive"])
@pytest.mark.parametrize("action", ["put", "delete", "sweep"])
def test_a_removal_that_died_is_ended_by_the_next(ref: StoreRef, place: Path, action: str, sign: str | None) -> None:
    """A ticket that was moved away still says what is to be removed, though its attempt seems to live."""
    store = open_store(ref)
    put(store, KEY, b"bytes")
    (place / "objects" / f"{KEY}.json").rename(place / "attempts" / f"{KEY}.0123abcd.json")
    if sign is not None:
        (place / "attempts" / f"{KEY}.a1.alive").write_text(repr(time.time()) if sign else "")
    with pytest.raises(NotFound):
        store.stat(KEY)
    if action == "put":
        put(store, KEY, b"again", attempt="a2")
        assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a2")}
    elif action == "delete":
        store.delete(KEY)
        assert names(place) == {"glimpse-store.json"}
    else:
        for entry in store.list():
            assert entry.partial
            store.delete(entry.key)
        assert names(place) == {"glimpse-store.json"}


# Around the store: the fence


def test_an_attempt_without_a_ticket_cannot_commit(ref: StoreRef, place: Path) -> None:
    """Who takes an attempt for dead removes its ticket: whatever its clock says, it is stored no more."""
    store = open_store(ref)
    store.claim()

    def record() -> bytes:
        (place / "attempts" / f"{KEY}.a1.json").unlink()
        return b"{}"

    with pytest.raises(StoreUnavailable, match=r"attempt a1 on .* was taken for dead"):
        store.driver.put(KEY, "a1", Body(noise(1000)), record)
    assert names(place) == {"glimpse-store.json"}


def test_a_writer_that_slept_is_dead(ref: StoreRef, place: Path) -> None:
    """One that was stopped for longer than a lease finds its attempt removed, and stores and leaves nothing."""
    store = open_store(ref)
    store.claim()
    with writer(ref, KEY, "a1", 3 << 20) as other:
        os.kill(other._process.pid, signal.SIGSTOP)
        sign = place / "attempts" / f"{KEY}.a1.alive"
        wait_until("the end of its lease", lambda: time.time() - float(sign.read_text()) > Quick.lease, timeout=30)
        put(store, KEY, b"quick", attempt="a2")
        os.kill(other._process.pid, signal.SIGCONT)
        assert other.go_on() in {"StoreUnavailable", "StoreConflict"}
    assert read(store, KEY) == b"quick"
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a2")}


def test_a_server_that_keeps_less_is_found_out(ref: StoreRef, place: Path) -> None:
    """An answer that all is well is not believed: the datastore must have as many bytes as were sent."""
    store = open_store(ref)
    store.claim()

    def record() -> bytes:
        os.truncate(place / "data" / f"{KEY}.a1.img", 500)
        return b"{}"

    with pytest.raises(StoreUnavailable, match="has 500 of the 1000 bytes that it was given"):
        store.driver.put(KEY, "a1", Body(noise(1000)), record)
    assert names(place) == {"glimpse-store.json"}


@pytest.fixture
def lost(root: Path) -> Iterator[Callable[..., None]]:
    """Makes the server do these calls, one after the other, and hang up instead of answering."""
    file = root / ".lose"

    def lose(*calls: str) -> None:
        file.write_text("\n".join(calls))

    yield lose
    left = file.read_text()
    file.unlink()
    assert left == ""


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_the_commit_is_no_failure(
    ref: StoreRef, place: Path, lost: Callable[..., None], times: int
) -> None:
    """If the ticket was moved the object is stored, however little of the answers came."""
    store = open_store(ref)
    store.claim()

    def record() -> bytes:
        lost(*times * ["MoveDatastoreFile_Task"])
        return b"{}"

    store.driver.put(KEY, "a1", Body(noise(1000)), record)
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a1")}
    assert read(store, KEY) == noise(1000)


def test_lost_answers_to_all_else_are_no_failures(ref: StoreRef, place: Path, lost: Callable[..., None]) -> None:
    """What was done already is asked for again, and that it was done is no failure."""
    move, remove = "MoveDatastoreFile_Task", "DeleteDatastoreFile_Task"
    store = open_store(ref)
    lost("Login", move, "MakeDirectory")
    store.claim()
    lost("SearchDatastoreSubFolders_Task", "CurrentTime", "SearchDatastore_Task", move)
    put(store, KEY, b"bytes")
    lost(move)
    store.update(KEY, record_of(KEY, digest="sha256:0"))
    assert store.stat(KEY).record == record_of(KEY, digest="sha256:0")
    for call in ("RefreshDatastore", "RetrieveProperties"):
        lost(call)
        store.probe()
    lost(move, remove)
    store.delete(KEY)
    assert names(place) == {"glimpse-store.json"}


# Around the store: sessions, users, certificates


def sessions(vcenter: VCenter) -> set[str]:
    """The keys of all sessions of the server besides the one that asks."""
    with vcenter.session() as content:
        manager = content.sessionManager
        return {each.key for each in manager.sessionList} - {manager.currentSession.key}


def end_sessions(vcenter: VCenter) -> None:
    """End them all, as an administrator can and time does."""
    with vcenter.session() as content:
        manager = content.sessionManager
        others = [each.key for each in manager.sessionList if each.key != manager.currentSession.key]
        manager.TerminateSession(others)


def test_a_session_that_has_ended_is_renewed(ref: StoreRef, vcenter: VCenter) -> None:
    """Every call goes on after the server has ended the session, be it one of the API or one for a file."""
    store = open_store(ref)
    driver = store.driver
    store.claim()
    put(store, KEY, noise(1000))
    actions: list[Callable[[], Any]] = [
        lambda: read(store, KEY),
        lambda: driver.stat(KEY),
        lambda: list(driver.list()),
        driver.probe,
        lambda: driver.update(KEY, b"{}"),
        lambda: driver.claim("here/fast", fresh=False),
        lambda: put(store, OTHER, b"x"),
        lambda: driver.delete(OTHER),
    ]
    for action in actions:
        end_sessions(vcenter)
        action()
    assert len(sessions(vcenter)) == 1


def test_a_session_that_ends_in_the_middle_is_renewed(ref: StoreRef, vcenter: VCenter) -> None:
    """A put and a get during which the session ends are brought to their end."""
    store = open_store(ref)
    data = noise(6 << 20)
    ended = False

    def end(given: int) -> None:
        nonlocal ended
        if given > 3 << 20 and not ended:
            ended = True
            end_sessions(vcenter)

    store.put(KEY, "a1", Body(data, before=end), lambda: record_of(KEY))
    with store.get(KEY) as reader:
        got = reader.read()
        end_sessions(vcenter)
        while chunk := reader.read():
            got += chunk
    assert got == data


def connections(vcenter: VCenter) -> int:
    """How many lead to the server."""
    to = f":{int(vcenter.server.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(to) and row[3] == "01" for row in rows)


def test_a_session_is_ended_with_its_store(ref: StoreRef, vcenter: VCenter) -> None:
    """A store that nobody has any more is logged out, and leaves no connection open."""
    gc.collect()
    before, lines = sessions(vcenter), connections(vcenter)
    store = open_store(ref)
    put(store, KEY, noise(1000))
    with suppress(SourceUnavailable):
        put(store, OTHER, noise(1000), error=SourceUnavailable("reset"))
    with store.get(KEY) as reader:
        reader.read(10)
    assert len(sessions(vcenter) - before) == 1
    del store, reader
    gc.collect()
    assert sessions(vcenter) <= before
    assert connections(vcenter) == lines


def test_a_download_goes_on_after_a_cut(ref: StoreRef, vcenter: VCenter) -> None:
    """What broke is asked for again from where it broke."""
    data = noise(12 << 20)
    with Wire(("127.0.0.1", int(vcenter.server.rpartition(":")[2]))) as wire:
        store = open_store(changed(ref, server=f"127.0.0.1:{wire.port}"))
        put(store, KEY, data)
        for offset, length in ((0, None), (5, len(data) - 9)):
            with store.get(KEY, offset, length) as reader:
                got = reader.read(1000)
                for _ in range(3):
                    wire.cut()
                    wire.heal()
                    got += reader.read(1 << 20)
                while chunk := reader.read():
                    got += chunk
            assert got == data[offset : None if length is None else offset + length]
        del store


def test_a_user_who_may_only_look_is_told(ref: StoreRef, place: Path) -> None:
    """He is told at the claim, with the privilege that he lacks; what is stored he reads."""
    put(open_store(ref), KEY, b"bytes")
    store = open_store(ref.model_copy(update={"secret": ref.secret | {"username": SecretStr(READER)}}))
    for action in (store.claim, store.probe, lambda: put(store, OTHER, b"x"), lambda: store.delete(KEY)):
        with pytest.raises(StoreUnauthorized, match=r"at datastore 'LocalDS_0': grant the privilege Datastore\.FileM"):
            action()
    with pytest.raises(StoreUnauthorized, match=r"Datastore\.FileManagement"):
        store.driver.put(OTHER, "a1", Body(b"x"), lambda: b"{}")
    assert read(store, KEY) == b"bytes"
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a1")}


@pytest.mark.parametrize("key", ["username", "password"])
def test_a_secret_without_a_key_is_named(ref: StoreRef, key: str) -> None:
    """What the Secret lacks is said before anything is reached."""
    secret = {name: value for name, value in ref.secret.items() if name != key}
    with pytest.raises(SecretNotReadable, match=f"has no key '{key}'"):
        open_store(ref.model_copy(update={"secret": secret}))


def test_an_unknown_certificate_is_refused(ref: StoreRef, vcenter: VCenter) -> None:
    """Without its authority the server is not trusted, and the ways out are named; nobody has logged in."""
    before = sessions(vcenter)
    for ca_bundle in (None, (vcenter.ca_file.parent / "server.pem").read_text()):
        store = open_store(ref.model_copy(update={"ca_bundle": ca_bundle}))
        with pytest.raises(
            StoreUnavailable, match=r"certificate of 127.* not trusted.*caBundleRef.*vmware\.thumbprint"
        ):
            store.probe()
    with pytest.raises(InvalidConfiguration, match="caBundleRef holds no certificates"):
        open_store(ref.model_copy(update={"ca_bundle": "-"}))
    assert sessions(vcenter) <= before


def test_a_server_without_tls_is_told_as_that(ref: StoreRef) -> None:
    """Behind a wrong port, say: the field is named, in no library's words."""
    with plain() as server, pytest.raises(StoreUnavailable, match=r"speaks no TLS there; see to vmware\.server"):
        open_store(changed(ref, server=server)).probe()


def test_a_thumbprint_is_believed_whoever_has_signed(ref: StoreRef, vcenter: VCenter) -> None:
    """With or without colons, in capitals or not; another one is refused, though its authority is known."""
    colons = ":".join(vcenter.thumbprint[i : i + 2] for i in range(0, 64, 2)).upper()
    for thumbprint in (vcenter.thumbprint, colons):
        store = open_store(changed(ref, thumbprint=thumbprint).model_copy(update={"ca_bundle": None}))
        put(store, KEY, noise(3 << 20))
        assert read(store, KEY) == noise(3 << 20)
        store.delete(KEY)
    store = open_store(changed(ref, thumbprint=64 * "0"))
    with pytest.raises(StoreUnavailable, match=r"not trusted, it is not the one that vmware\.thumbprint names"):
        store.probe()


def test_a_thumbprint_is_compared_on_every_connection(tmp_path: Path, ref: StoreRef) -> None:
    """A server that comes back with another certificate is another server, for the API and for files."""
    server = VCSim(tmp_path / "vcsim")
    with server as first:
        folder = first.files() / "glimpse"
        folder.mkdir()
        store = open_store(changed(ref, server=first.server, folder="glimpse", thumbprint=first.thumbprint))
        put(store, KEY, b"bytes")
    shutil.rmtree(tmp_path / "vcsim" / "tmp")
    with server as second:
        assert second.server == first.server
        assert second.thumbprint != first.thumbprint
        for action in (lambda: read(store, KEY), store.probe, lambda: store.driver.stat(KEY)):
            with pytest.raises(StoreUnavailable, match=r"vmware\.thumbprint"):
                action()
        assert sessions(second) == set()


# Around the store: copies


class Counting(Wire):
    """A wire that counts what passes."""

    passed = 0

    def _count(self, count: int) -> None:
        self.passed += count
        super()._count(count)


async def test_a_reference_is_copied_by_the_datastore(ref: StoreRef, vcenter: VCenter, place: Path) -> None:
    """A worker that makes an Image of another one in the same store passes none of its bytes."""
    data = noise(8 << 20)
    store = open_store(ref)
    original(store, data)
    record = Record(installation="here", namespace="ns", name="n", uid=UID, revision=2, spec_hash="h")
    with Counting(("127.0.0.1", int(vcenter.server.rpartition(":")[2]))) as wire:
        far = changed(ref, server=f"127.0.0.1:{wire.port}").model_copy(update={"driver": "vmware"})
        origin = ImageOrigin(stores=(far,), key=KEY, digest=DIGEST)
        fetch = Fetch(attempt="b1", record=record, origin=origin, limit=1 << 30, stores=(far,))
        runner = Inline(stop_grace=2)
        await runner.start()
        try:
            answer = await runner.run(fetch, Heard())
        finally:
            await runner.close()
    assert isinstance(answer, Done), answer
    assert wire.passed < 1 << 20
    store.delete(KEY)
    assert names(place) == {"glimpse-store.json", *of(f"{OTHER}.b1c")}
    assert read(store, OTHER) == data
    found = store.stat(OTHER).record
    assert found is not None
    assert (found.revision, found.digest, found.size) == (2, DIGEST, len(data))


@pytest.fixture
def refusing(root: Path) -> Iterator[None]:
    """The server is one that copies no files."""
    file = root / ".refuse"
    file.write_text("CopyDatastoreFile_Task")
    yield
    file.unlink()


@pytest.mark.usefixtures("refusing")
def test_a_server_that_copies_nothing_is_told_from_one_that_fails(ref: StoreRef, place: Path) -> None:
    """Then there is no clone, nothing of it is left, and whoever wants the bytes copies them himself."""
    store = open_store(ref)
    original(store, noise(1000))
    assert isinstance(store.driver, Cloneable)
    assert clone(store) is None
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a1")}


def test_a_file_that_the_server_cannot_read_is_not_copied_by_it(ref: StoreRef, place: Path) -> None:
    """A task that ends so leaves nothing either."""
    store = open_store(ref)
    original(store, noise(1000))
    file = place / "data" / f"{KEY}.a1.img"
    file.unlink()
    file.symlink_to(file)
    assert isinstance(store.driver, Cloneable)
    with pytest.raises(Unable):
        store.driver.clone(KEY, OTHER, "b1", b"{}", lambda: None)
    file.unlink()
    assert names(place) == {"glimpse-store.json", *(of(f"{KEY}.a1") - {f"data/{KEY}.a1.img"})}


def test_a_copy_of_what_is_gone_is_none(ref: StoreRef, place: Path) -> None:
    """A ticket whose bytes somebody has removed names no object that could be copied."""
    store = open_store(ref)
    original(store, noise(1000))
    (place / "data" / f"{KEY}.a1.img").unlink()
    assert isinstance(store.driver, Cloneable)
    with pytest.raises(NotFound):
        store.driver.clone(KEY, OTHER, "b1", b"{}", lambda: None)
    assert names(place) == {"glimpse-store.json", *(of(f"{KEY}.a1") - {f"data/{KEY}.a1.img"})}


def test_what_the_server_does_not_let_go_is_in_nobodys_way(
    ref: StoreRef, place: Path, buried: Callable[[], None]
) -> None:
    """Bytes that it still holds for a dead attempt, as for a copy that runs on, stay until they can be removed."""
    store = open_store(ref)
    with writer(ref, OTHER, "a1", 3 << 20) as other:
        other.kill()
    buried()
    file = place / "data" / f"{OTHER}.a1.img"
    with mounted(file, "--bind", str(file)):
        with pytest.raises(StoreUnavailable):
            store.delete(OTHER)
        put(store, OTHER, b"bytes", attempt="a2")
        assert read(store, OTHER) == b"bytes"
        assert file.exists()
    store.delete(OTHER)
    assert names(place) == {"glimpse-store.json"}


def test_copies_remove_what_the_dead_left(ref: StoreRef, place: Path, buried: Callable[[], None]) -> None:
    """As a put does: an attempt on the key that died is removed by the one that follows."""
    store = open_store(ref)
    original(store, noise(1000))
    with writer(ref, OTHER, "a1", 3 << 20) as other:
        other.kill()
    buried()
    assert clone(store)
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a1"), *of(f"{OTHER}.b1")}


def test_a_copy_whose_answer_is_lost_is_not_asked_for_twice(
    ref: StoreRef, place: Path, lost: Callable[..., None]
) -> None:
    """Nobody could tell when the first one is over: it is a failure, of which nothing is left."""
    store = open_store(ref)
    original(store, noise(1000))
    lost("CopyDatastoreFile_Task")
    with pytest.raises(StoreUnavailable):
        clone(store)
    assert names(place) == {"glimpse-store.json", *of(f"{KEY}.a1")}


def test_a_copy_that_does_not_fit_leaves_nothing(small: StoreRef, vcenter: VCenter) -> None:
    """It ends as a full store, and its room is free again."""
    store = open_store(small)
    original(store, noise(12 << 20))
    place = vcenter.files(small.config["datastore"]) / "glimpse"
    before = names(place)
    assert isinstance(store.driver, Cloneable)
    with pytest.raises(StoreFull):
        store.driver.clone(KEY, OTHER, "b1", b"{}", lambda: None)
    assert names(place) == before


class Slowly:
    """The bytes of an object, which the server gets as slowly as a test gives them.

    In their place is a link to a pipe; its path is as long as they are, so the server tells the same size.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self.pipe = folder / ("x" * 100)
        self.data = noise(len(str(self.pipe)))
        self._file = file

    def lay(self) -> None:
        """Put the pipe in the place of the file."""
        os.mkfifo(self.pipe)
        self._file.unlink()
        self._file.symlink_to(self.pipe)

    def begin(self, stack: ExitStack) -> int:
        """Wait until the server reads; where the bytes are to be written to."""
        fd = -1

        def read() -> bool:
            nonlocal fd
            with suppress(OSError):
                fd = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
            return fd >= 0

        wait_until("the copy to begin", read, timeout=30)
        stack.callback(os.close, fd)
        return fd


@pytest.fixture
def slowly(place: Path, tmp_path: Path) -> Slowly:
    """Those of KEY."""
    return Slowly(place / "data" / f"{KEY}.a1.img", tmp_path)


def wait_for_life(sign: Path) -> None:
    """Until the next sign of it."""
    said = sign.read_bytes()
    wait_until("a sign of life", lambda: sign.read_bytes() != said, timeout=30)


def test_a_copy_is_waited_for_as_long_as_it_grows(ref: StoreRef, place: Path, vcenter: VCenter, slowly: Slowly) -> None:
    """It takes longer than a task may and a lease lasts, and the session ends: it lives, and is finished."""
    store = open_store(ref)
    original(store, slowly.data)
    slowly.lay()
    sign = place / "attempts" / f"{OTHER}.b1.alive"
    with ThreadPoolExecutor(1) as pool:
        with ExitStack() as stack:
            made = pool.submit(clone, store)
            fd = slowly.begin(stack)
            began = time.monotonic()
            for n in range(9):
                os.write(fd, slowly.data[n : n + 1])
                if n == 3:
                    end_sessions(vcenter)
                wait_for_life(sign)
            assert time.monotonic() - began > max(2 * Quick.patience, Quick.lease)
            os.write(fd, slowly.data[9:])
        assert made.result(60)
    assert read(store, OTHER) == slowly.data


def test_a_copy_that_nobody_wants_is_cancelled(ref: StoreRef, vcenter: VCenter, slowly: Slowly) -> None:
    """While the server copies, who asked for it may end that; the task is cancelled, and there is no object."""
    store, unwanted = open_store(ref), threading.Event()
    original(store, slowly.data)
    slowly.lay()

    def going() -> None:
        if unwanted.is_set():
            raise WorkerLost("the task was cancelled")

    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        made = pool.submit(clone, store, going=going)
        slowly.begin(stack)
        unwanted.set()
        with pytest.raises(WorkerLost):
            made.result(60)
    with vcenter.session() as content:
        tasks = [
            Session(None, content).read(task, "info.descriptionId", "info.cancelled")
            for task in content.taskManager.recentTask
        ]
    assert [task["info.cancelled"] for task in tasks if "copy" in task["info.descriptionId"]][-1]
    with pytest.raises(NotFound):
        store.stat(OTHER)


def test_a_copy_that_stands_still_is_given_up(
    ref: StoreRef, place: Path, vcenter: VCenter, slowly: Slowly, buried: Callable[[], None]
) -> None:
    """It is cancelled, in whatever session; what the server writes after all is removed with the dead attempt."""
    store = open_store(ref)
    original(store, slowly.data)
    slowly.lay()
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        made = pool.submit(clone, store)
        os.write(slowly.begin(stack), b"x")
        end_sessions(vcenter)
        with pytest.raises(StoreUnavailable, match="has not gone on with a copy for 2 s"):
            made.result(60)
    with vcenter.session() as content:
        tasks = [
            Session(None, content).read(task, "info.descriptionId", "info.cancelled")
            for task in content.taskManager.recentTask
        ]
    assert [task["info.cancelled"] for task in tasks if "copy" in task["info.descriptionId"]][-1]
    buried()
    store.delete(OTHER)
    assert {name for name in names(place) if OTHER in name} == set()


# Around the store: the datastore


@pytest.mark.parametrize(
    ("state", "what"),
    [("inMaintenance", r"in maintenance \(inMaintenance\)"), ("inaccessible", "accessible to none of its hosts")],
)
def test_a_datastore_that_is_out_of_use(ref: StoreRef, vcenter: VCenter, tmp_path: Path, state: str, what: str) -> None:
    """One in maintenance, and one that no host reaches, is said to be so before anything is written."""
    name = f"ds-{uuid4().hex[:8]}"
    vcenter.add_datastore(name, tmp_path)
    (tmp_path / "glimpse").mkdir()
    store = open_store(changed(ref, datastore=name, folder="glimpse"))
    put(store, KEY, b"bytes")
    (tmp_path / ".state").write_text(state)
    body = Body(b"x")
    for action in (store.probe, lambda: store.put(OTHER, "a1", body, lambda: record_of(OTHER))):
        with pytest.raises(StoreUnavailable, match=f"datastore '{name}' of 127.* is {what}"):
            action()
    assert body.given == 0
    (tmp_path / ".state").unlink()
    assert store.probe().free


def test_folders_may_lie_deep_and_have_any_name(ref: StoreRef, root: Path) -> None:
    """A folder in a folder, with blanks and signs in their names."""
    folder = f"{uuid4().hex[:8]} & more/Bilder ä #1?"
    (root / folder).mkdir(parents=True)
    store = open_store(changed(ref, folder=folder))
    put(store, KEY, noise(1000))
    assert read(store, KEY) == noise(1000)
    assert names(root / folder) == {"glimpse-store.json", *of(f"{KEY}.a1")}
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)


def test_a_folder_that_disappears(ref: StoreRef, place: Path) -> None:
    """A folder that is removed in the middle of a put is StoreUnavailable, and does not come back."""

    def remove(given: int) -> None:
        if given:
            shutil.rmtree(place, ignore_errors=True)

    store = open_store(ref)
    with pytest.raises(StoreUnavailable):
        store.put(KEY, "a1", Body(noise(3 << 20), before=remove), lambda: record_of(KEY))
    assert not place.exists()
    with pytest.raises(StoreUnavailable, match="there is no folder"):
        open_store(ref.model_copy(update={"claimed": True})).stat(KEY)
    place.mkdir()
    put(store, KEY, b"again")
    assert read(store, KEY) == b"again"


# Around the store: in a worker


async def test_a_worker_needs_no_more_than_it_may_have(ref: StoreRef, vcenter: VCenter) -> None:
    """In its cage it probes, stores and reads, within its memory; it ends its session whether it succeeds or fails."""
    body = noise(20 << 20)
    store = ref.model_copy(update={"driver": "vmware"})
    record = Record(installation="here", namespace="ns", name="n", uid=UID, revision=1, spec_hash="h")
    before = sessions(vcenter)
    runner = Inline(stop_grace=2)
    await runner.start()
    try:
        with Web() as web:
            web.serve("/a.img", Reply(body))
            fetch = Fetch(
                attempt="a1",
                record=record,
                origin=HttpOrigin(urls=(web.url("/a.img"),)),
                checksum=f"sha256:{64 * '0'}",
                limit=1 << 30,
                stores=(store,),
                addresses=Addresses(allow=[ip_network("127.0.0.0/8")]),
                transfers=Transfers(stop_grace=2),
            )
            for task, reason in (
                (Probe(store=store), None),
                (fetch, "ChecksumMismatch"),
                (fetch.model_copy(update={"checksum": f"sha256:{sha256(body).hexdigest()}", "attempt": "a2"}), None),
                (List(store=store), None),
            ):
                answer = await runner.run(task, Heard())
                assert (answer.trouble.reason if isinstance(answer, Failed) else None) == reason
                await eventually(lambda: sessions(vcenter) <= before)
    finally:
        await runner.close()
    assert read(open_store(ref), KEY) == body
