"""The GridFS store: the contracts, and the database looked at around it."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

import gridfs
import pytest
import trustme
from tests.stores.quick_gridfs import Quick

from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    SecretNotReadable,
    StoreConflict,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.runners import Inline
from glimpse.settings import Addresses
from glimpse.stores import open_store
from glimpse.stores.gridfs.attempts import DEAD
from glimpse.streams import CHUNK
from glimpse.tasks import Done, Fetch, HttpOrigin, Probe, StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.faults import Reply, Server
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.runners import Heard
from glimpse.testing.stores import KEY, Raw, Stalled, StoreContract, StoreFixtures, absent, put, read
from glimpse.testing.wire import Wire
from servers import wait_until
from servers.ferretdb import FerretDB
from servers.require import require
from servers.tools import Missing


@pytest.fixture(scope="session")
def ferret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FerretDB]:
    """A database server."""
    server = FerretDB(tmp_path_factory.mktemp("ferretdb"))
    try:
        with server:
            yield server
    except Missing as error:
        require("ferretdb", str(error))


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FerretDB]:
    """One whose databases have room for some 14 MiB of images."""
    server = FerretDB(tmp_path_factory.mktemp("narrow"), room=20 << 20)
    try:
        with server:
            yield server
    except Missing as error:
        require("ferretdb", str(error))


def made(server: FerretDB, outside: Path) -> Iterator[StoreRef]:
    """A store in a database that is named after the test's folder, and dropped afterwards."""
    name = f"images-{outside.name}"
    with server.client() as client:
        client[name].create_collection("glimpse.files")
        yield StoreRef(
            name="mongo",
            driver="quick-gridfs",
            config={"uri": server.mongo.uri, "database": name},
            secret={"username": server.mongo.username, "password": server.mongo.password},
            installation="here",
        )
        client.drop_database(name)


@pytest.fixture
def ref(ferret: FerretDB, outside: Path) -> Iterator[StoreRef]:
    """A store in a database of its own."""
    yield from made(ferret, outside)


@pytest.fixture
def database(ferret: FerretDB, ref: StoreRef) -> Iterator[Any]:
    """The same database, by its usual client."""
    with ferret.client() as client:
        yield client[ref.config["database"]]


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in."""

    @pytest.fixture
    def ref(self, ferret: FerretDB, outside: Path) -> Iterator[StoreRef]:
        """A store in a database of its own."""
        yield from made(ferret, outside)

    @pytest.fixture
    def raw(self, database: Any) -> Raw:
        """Files by their names, chunks without a file by its id, and other collections."""

        def look() -> set[str]:
            files = {found["_id"]: found["filename"] for found in database["glimpse.files"].find()}
            chunks = database["glimpse.chunks"].find({}, {"files_id": 1})
            found = {files.get(chunk["files_id"], f"chunk of {chunk['files_id']}") for chunk in chunks}
            known = {"glimpse.files", "glimpse.chunks", "glimpse.store"}
            return {*files.values(), *found, *(set(database.list_collection_names()) - known)}

        return look

    @pytest.fixture
    def small(self, narrow: FerretDB, outside: Path) -> Iterator[StoreRef]:
        """A database that may not grow large."""
        yield from made(narrow, outside)

    @pytest.fixture
    def buried(self, database: Any) -> Callable[[], None]:
        """Waits until no attempt has given a sign of life for longer than a lease."""

        def over() -> bool:
            since = database.command("hello")["localTime"] - timedelta(seconds=Quick.lease)
            return not database["glimpse.files"].count_documents({"metadata.renewed": {"$gte": since}})

        return lambda: wait_until("the end of the lease", over, timeout=30)

    @pytest.fixture
    def far(self, ferret: FerretDB, ref: StoreRef) -> Iterator[Far]:
        """The same place over a wire."""
        with Wire((ferret.mongo.host, ferret.mongo.port)) as wire:
            config = ref.config | {"uri": f"mongodb://127.0.0.1:{wire.port}/"}
            yield Far(ref.model_copy(update={"driver": "quick-gridfs-far", "config": config}), wire)

    @pytest.fixture
    def restart(self, ferret: FerretDB) -> Restart:
        """The database server."""

        def again() -> None:
            ferret.stop()
            ferret.start()

        return again

    @pytest.fixture
    def locked_out(self, ref: StoreRef) -> StoreRef:
        """A wrong password."""
        secret = {"username": "ada", "password": "another-word"}
        return StoreRef.model_validate(ref.model_dump() | {"secret": secret})

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """A database that nobody made."""
        return ref.model_copy(update={"config": ref.config | {"database": "missing"}})


class TestContract(Fixtures, StoreContract):
    """What every store promises."""

    exempt: ClassVar[Mapping[str, str]] = {
        "test_keeps_its_reserve": "FerretDB on SQLite does not tell how much is free, so there is no reserve",
    }


class TestRemote(Fixtures, RemoteContract):
    """What a store on a server promises besides."""


# Around the store: its database


def test_documents_are_as_the_docs_say(ref: StoreRef, database: Any) -> None:
    """A file and its chunks as the specification of GridFS has them, the indexes, and a marker."""
    store = open_store(ref)
    store.put(KEY, "a1", Body(noise(CHUNK + 5)), lambda: record_of(KEY))
    [file] = database["glimpse.files"].find()
    assert set(file) == {"_id", "filename", "length", "chunkSize", "uploadDate", "metadata"}
    assert (file["filename"], file["length"], file["chunkSize"]) == (KEY, CHUNK + 5, CHUNK)
    assert (set(file["metadata"]), file["metadata"]["glimpse"]) == ({"glimpse", "record"}, KEY)
    chunks = list(database["glimpse.chunks"].find().sort("n"))
    assert [(chunk["files_id"], chunk["n"], len(chunk["data"])) for chunk in chunks] == [
        (file["_id"], 0, CHUNK),
        (file["_id"], 1, 5),
    ]
    assert list(database["glimpse.store"].find({}, {"probed": 0})) == [{"_id": "glimpse", "owner": "here/mongo"}]
    unique = [
        list(index["key"])
        for name in ("glimpse.files", "glimpse.chunks")
        for index in database[name].list_indexes()
        if index.get("unique")
    ]
    assert unique == [["filename"], ["files_id", "n"]]
    assert store.driver.endpoint == f"{ref.config['uri'].rstrip('/')}/{database.name}/glimpse"


def test_a_probe_writes(ref: StoreRef, database: Any) -> None:
    """Each probe changes the marker, and nothing else of it than the word of the last probe."""
    store = open_store(ref)
    store.claim()
    words = []
    for _ in range(2):
        store.probe()
        [marker] = database["glimpse.store"].find()
        words.append(marker.pop("probed"))
        assert marker == {"_id": "glimpse", "owner": "here/mongo"}
    assert words[0] != words[1]


@pytest.mark.parametrize("size", ["64Ki", "1Mi", "5Mi"])
def test_any_tool_reads_it(ref: StoreRef, database: Any, size: str) -> None:
    """The usual client finds an image by its name, whatever the size of its chunks; one being written it does not."""
    data = noise(6 * CHUNK + 17)
    store = open_store(ref.model_copy(update={"config": ref.config | {"chunkSize": size}}))
    bucket = gridfs.GridFSBucket(database, "glimpse")
    with Stalled(store, KEY, "a1", data) as stalled:
        with pytest.raises(gridfs.NoFile):
            bucket.open_download_stream_by_name(KEY)
        assert stalled.go_on() is None
    assert bucket.open_download_stream_by_name(KEY).read() == data
    other = open_store(ref)  # with chunks of another size
    assert read(other, KEY) == data
    assert read(other, KEY, 5 * CHUNK - 3, 10) == data[5 * CHUNK - 3 :][:10]


@pytest.mark.parametrize("far", [4 << 30, 6 << 40])
def test_offsets_have_64_bits(ref: StoreRef, database: Any, far: int) -> None:
    """Beyond 4 GiB, and beyond what one disk has, ranges are where they should be; what is missing before is lost."""
    store, data = open_store(ref), noise(2 * CHUNK + 5)
    put(store, KEY, data)
    for n, place in ((2, far // CHUNK), (1, far // CHUNK - 1)):
        database["glimpse.chunks"].update_one({"n": n}, {"$set": {"n": place}})
    database["glimpse.files"].update_one({"filename": KEY}, {"$set": {"length": far + 5}})
    assert store.stat(KEY).size == next(entry.size for entry in store.list()) == far + 5
    assert read(store, KEY, far - 10) == data[-15:]
    assert read(store, KEY, far - CHUNK, CHUNK + 100) == data[CHUNK:]
    assert read(store, KEY, far + 5) == b""
    assert read(store, KEY, 100, 50) == data[100:150]
    with pytest.raises(DataLost, match="chunk 1 is gone"):
        read(store, KEY, CHUNK - 10, 20)


def test_no_answer_is_too_large(ref: StoreRef) -> None:
    """Of more than 48 MB, which is the largest message there is, chunks come in answers of a few."""
    store = open_store(ref)
    data = noise(56 * CHUNK)
    put(store, KEY, data)
    assert read(store, KEY) == data


def test_no_chunk_is_ever_without_a_file(ref: StoreRef, database: Any) -> None:
    """What is written is not an orphan while it is written, so no tool that removes orphans takes it."""
    with Stalled(open_store(ref), KEY, "a1", noise(20 * CHUNK)) as stalled:
        wait_until("chunks", lambda: database["glimpse.chunks"].count_documents({}) > 0, timeout=30)
        [file] = database["glimpse.files"].find()
        assert {chunk["files_id"] for chunk in database["glimpse.chunks"].find({}, {"files_id": 1})} == {file["_id"]}
        assert file["filename"] == f"{KEY}.a1.{file['_id']}"
        assert stalled.go_on() is None


def test_files_of_others_are_left_alone(ref: StoreRef, database: Any) -> None:
    """What others keep in the bucket is neither listed nor removed, also if its name could be ours."""
    names = ["notes.txt", f"{KEY}.txt", "7-1", "7-2.a1"]
    bucket = gridfs.GridFSBucket(database, "glimpse")
    for name in names:
        bucket.upload_from_stream(name, b"theirs")
    store = open_store(ref)
    put(store, KEY, b"mine")
    assert [entry.key for entry in store.list()] == [KEY]
    with pytest.raises(NotFound):
        store.stat("7-1")
    with pytest.raises(StoreConflict):
        put(store, "7-1", b"mine")
    for key in (KEY, f"{KEY}.txt", "7-1", "7-2", "7-2.a1"):
        store.delete(key)
    assert sorted(file.filename for file in bucket.find()) == sorted(names)
    assert all(bucket.open_download_stream_by_name(name).read() == b"theirs" for name in names)


def test_a_bucket_with_two_files_of_one_name(ref: StoreRef, database: Any) -> None:
    """Where the names are not unique, a commit could not be one step: it is refused, and nothing is written."""
    bucket = gridfs.GridFSBucket(database, "glimpse")
    for _ in range(2):
        bucket.upload_from_stream("twice", b"theirs")
    store = open_store(ref)
    with pytest.raises(InvalidConfiguration, match="a bucket of its own"):
        put(store, KEY, b"mine")
    assert absent(store, KEY)
    assert database["glimpse.files"].count_documents({}) == 2


def test_what_was_declared_dead_commits_nothing(ref: StoreRef, database: Any) -> None:
    """An attempt that others took for dead ends so, though it was alive, and leaves nothing."""
    store = open_store(ref)
    with Stalled(store, KEY, "a1", noise(3 * CHUNK)) as stalled:
        database["glimpse.files"].update_one({}, {"$set": {"metadata.renewed": DEAD}})
        problem = stalled.go_on()
    assert isinstance(problem, StoreUnavailable)
    assert "no sign of life" in problem.message
    assert absent(store, KEY)
    assert database["glimpse.files"].count_documents({}) == database["glimpse.chunks"].count_documents({}) == 0


@pytest.mark.parametrize("damage", ["gone", "short", "last"])
def test_a_damaged_chunk_is_told(ref: StoreRef, database: Any, damage: str) -> None:
    """A chunk that is missing or too short is DataLost; what lies before it is read."""
    data = noise(6 * CHUNK)
    store = open_store(ref)
    put(store, KEY, data)
    chunks = database["glimpse.chunks"]
    if damage == "short":
        chunks.update_one({"n": 4}, {"$set": {"data": b"x"}})
    else:
        chunks.delete_one({"n": 5 if damage == "last" else 4})
    with pytest.raises(DataLost, match="chunk"):
        read(store, KEY)
    assert read(store, KEY, 0, 4 * CHUNK) == data[: 4 * CHUNK]


def test_a_read_goes_on_over_a_break(ref: StoreRef, ferret: FerretDB) -> None:
    """Where the connection breaks, and the server is there again, the rest is read over a new one."""
    data = noise(14 * CHUNK)
    with Wire((ferret.mongo.host, ferret.mongo.port)) as wire:
        config = ref.config | {"uri": f"mongodb://127.0.0.1:{wire.port}/"}
        store = open_store(ref.model_copy(update={"config": config}))
        put(store, KEY, data)
        with store.get(KEY) as reader:
            got = reader.read()
            wire.cut()
            wire.heal()
            while chunk := reader.read():
                got += chunk
        assert got == data


@pytest.mark.parametrize("owner", [None, 7], ids=repr)
def test_a_broken_marker_is_not_replaced(ref: StoreRef, database: Any, owner: object) -> None:
    """A marker without an owner belongs to somebody: the store is unavailable until it is restored."""
    database["glimpse.store"].insert_one({"_id": "glimpse", "owner": owner})
    with pytest.raises(StoreUnavailable, match="restore"):
        open_store(ref).claim()
    assert database["glimpse.store"].find_one()["owner"] == owner


def test_credentials_come_in_pairs(ref: StoreRef) -> None:
    """A Secret with one of the two is told so; without a Secret, the server's refusal says what to name."""
    for key, other in (("username", "password"), ("password", "username")):
        half = StoreRef.model_validate(ref.model_dump() | {"secret": {key: "word"}})
        with pytest.raises(SecretNotReadable, match=f"no {other}"):
            open_store(half)
    with pytest.raises(StoreUnauthorized, match="secretRef"):
        open_store(ref.model_copy(update={"secret": {}})).claim()


@pytest.mark.parametrize(
    "config",
    [
        {"uri": "mongodb://ada:xyzzy@a.example/"},
        {"uri": "mongodb://a.example/?tlsInsecure=true"},
        {"uri": "mongodb://a.example/?tlsCAFile=/etc/passwd"},
        {"uri": "mongodb://a.example/?tls=yes"},
        {"uri": "mongodb://a.example/?tls=true&tls=false"},
        {"uri": "mongodb://a.example/?retryWrites=true&tls=true&retryWrites=true"},
        {"uri": "mongodb://a.example/?authMechanism=FOO"},
        {"uri": "mongodb://a.example:99999/"},
        {"uri": "mongodb://a.example:27017,b.example:0/"},
        {"uri": "http://a.example/"},
        {"database": "a.b"},
        {"bucket": "a b"},
        {"chunkSize": "16Mi"},
        {"chunkSize": "1Ki"},
    ],
    ids=repr,
)
def test_what_cannot_work_is_refused(ref: StoreRef, config: dict[str, str]) -> None:
    """Credentials in the URI, weaker TLS, files of the operator's: also where the API server let them pass."""
    with pytest.raises(InvalidConfiguration, match=r"quick-gridfs\.(uri|database|bucket|chunkSize)") as raised:
        open_store(ref.model_copy(update={"config": ref.config | config}))
    assert "xyzzy" not in raised.value.message


def test_addresses_of_the_sixth_version(ref: StoreRef) -> None:
    """A host may be an address in brackets."""
    store = open_store(ref.model_copy(update={"config": ref.config | {"uri": "mongodb://[::1]:27017/"}}))
    assert store.driver.endpoint.startswith("mongodb://[::1]:27017/")


@pytest.mark.parametrize(
    ("options", "words"),
    [("tls=true", r"does it speak TLS\?"), ("replicaSet=other", "is other the name of its")],
)
def test_options_that_do_not_fit_the_server_are_named(ref: StoreRef, options: str, words: str) -> None:
    """What the server is not is told as that, not as silence."""
    config = ref.config | {"uri": f"{ref.config['uri']}?{options}"}
    with pytest.raises(StoreUnavailable, match=words):
        open_store(ref.model_copy(update={"driver": "quick-gridfs-far", "config": config})).claim()


# TLS


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[FerretDB]:
    """A server with a certificate of an authority that no machine knows."""
    server = FerretDB(tmp_path / "guarded", ca=trustme.CA())
    try:
        with server:
            yield server
    except Missing as error:
        require("ferretdb", str(error))


@pytest.fixture
def trusting(guarded: FerretDB, outside: Path) -> Iterator[StoreRef]:
    """A store there, with the authority; by the driver as it is installed for all."""
    assert guarded.mongo.ca_file
    for ref in made(guarded, outside):
        yield ref.model_copy(update={"driver": "gridfs", "ca_bundle": guarded.mongo.ca_file.read_text()})


async def test_tls_in_a_real_worker(trusting: StoreRef) -> None:
    """With the authority in caBundleRef, a worker reaches the server, though it may read few files and write none."""
    body = noise(CHUNK + 3)
    runner = Inline(stop_grace=2)
    await runner.start()
    try:
        assert isinstance(await runner.run(Probe(store=trusting), Heard()), Done)
        with Server() as web:
            web.serve("/disk.img", Reply(body))
            task = Fetch(
                attempt="a1",
                record=record_of(KEY),
                origin=HttpOrigin(urls=(web.url("/disk.img"),)),
                checksum=f"sha256:{sha256(body).hexdigest()}",
                limit=1 << 30,
                stores=(trusting,),
                addresses=Addresses(allow=[ip_network("127.0.0.0/8")]),
            )
            assert isinstance(await runner.run(task, Heard()), Done)
    finally:
        await runner.close()
    assert await asyncio.to_thread(read, open_store(trusting), KEY) == body


def test_a_certificate_of_a_stranger_is_refused(trusting: StoreRef) -> None:
    """Without the authority the server is not believed, and the message says where to name it."""
    with pytest.raises(StoreUnavailable, match="caBundleRef"):
        open_store(trusting.model_copy(update={"driver": "quick-gridfs-far", "ca_bundle": None})).probe()
