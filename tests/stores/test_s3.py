"""The S3 store: the contract on two genuine servers, Ceph's gateway and Swift's S3 API, and a look around it."""

import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar, Final

import pytest
import trustme
from boto3.s3.transfer import TransferConfig
from tests.stores.buckets import Server
from tests.stores.plain import plain

from glimpse.problems import DataLost, NotFound, SecretNotReadable, StoreUnavailable, TooLarge
from glimpse.runners import Inline
from glimpse.stores import Local, Store, open_store
from glimpse.stores.s3 import S3, parts
from glimpse.stores.s3.config import S3Config
from glimpse.streams import CHUNK
from glimpse.tasks import Done, Probe, StoreRef
from glimpse.testing.bodies import Body, noise, record_of, writer
from glimpse.testing.cloneable import CloneableContract, clone, original
from glimpse.testing.registering import PLACE, Lay, RegisteringContract, register
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.stores import KEY, OTHER, Raw, StoreContract, StoreFixtures, put, read
from glimpse.testing.wire import Wire
from servers import Missing, run, tool, wait_until
from servers.ceph import Ceph, Cluster
from servers.require import require
from servers.swift import Cloud, Swift


@pytest.fixture(scope="module")
def cephs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """Ceph with its gateway, which speaks TLS, has exact quotas, and takes parts as small as the bodies of tests."""
    options = {"rgw bucket quota ttl": 0, "rgw multipart min part size": CHUNK}
    server = Ceph(tmp_path_factory.mktemp("ceph"), gateway=True, ca=trustme.CA(), options=options)
    try:
        with server:
            yield server
    except Missing as error:
        require("ceph", str(error))


@pytest.fixture(scope="module")
def ceph(cephs: Ceph) -> Cluster:
    """Where it is."""
    return cephs.cluster


@pytest.fixture(scope="module")
def radosgw(ceph: Cluster) -> Server:
    """A bucket of Ceph's gateway."""
    gateway = ceph.gateway
    assert gateway
    port = int(gateway.url.rpartition(":")[2])
    server = Server(gateway.url, port, gateway.access_key, gateway.secret_key, gateway.ca_file, "images")
    server.client().create_bucket(Bucket=server.bucket)
    return server


@pytest.fixture(scope="module")
def radosgw_small(ceph: Cluster, radosgw: Server) -> Server:
    """A bucket of 20 MiB."""
    admin = (tool("radosgw-admin", "radosgw"), "--conf", ceph.conf, "-n", "client.rgw.a")
    user = ("--uid", "small")
    run(*admin, "user", "create", *user, "--display-name=small", "--access-key=SMALL", "--secret-key=secretsmall")
    run(*admin, "quota", "set", "--quota-scope=bucket", *user, "--max-size=20M")
    run(*admin, "quota", "enable", "--quota-scope=bucket", *user)
    server = radosgw._replace(access="SMALL", secret="secretsmall", bucket="small")
    server.client().create_bucket(Bucket=server.bucket)
    return server


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """Swift, which speaks S3 by itself."""
    server = Swift(tmp_path_factory.mktemp("swift"))
    try:
        with server:
            yield server
    except Missing as error:
        require("swift", str(error))


@pytest.fixture(scope="module")
def cloud(swift: Swift) -> Cloud:
    """Where it is."""
    return swift.cloud


@pytest.fixture(scope="module")
def s3api(cloud: Cloud) -> Server:
    """A bucket of Swift's."""
    server = Server(cloud.url, cloud.port, cloud.user, cloud.key, None, "images", "5Mi")
    server.client().create_bucket(Bucket=server.bucket)
    return server


@pytest.fixture(scope="module")
def s3api_small(cloud: Cloud, s3api: Server) -> Server:
    """A bucket of 20 MiB; Swift puts parts into a container of their own."""
    server = s3api._replace(bucket="small")
    for container in ("small", "small+segments"):
        cloud.call("PUT", f"/{container}", {"X-Container-Meta-Quota-Bytes": str(20 << 20)})
    return server


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in: a prefix for each test."""

    @pytest.fixture
    def server(self) -> Server:
        """Which one."""
        raise NotImplementedError

    @pytest.fixture
    def small_server(self) -> Server:
        """One with a small bucket."""
        raise NotImplementedError

    @pytest.fixture
    def ref(self, outside: Path, server: Server) -> StoreRef:
        """A store below a prefix of its own."""
        assert outside.is_dir()
        return server.ref(f"test/{token_hex(4)}")

    @pytest.fixture
    def raw(self, server: Server, ref: StoreRef) -> Raw:
        """Keys of what is committed with its bytes, anything else by its name."""
        return lambda: look(server, ref.config["prefix"])

    @pytest.fixture
    def buried(self, ref: StoreRef) -> Callable[[], None]:
        """Waits until no sign of life is fresh."""
        return lambda: bury(ref)

    @pytest.fixture
    def small(self, outside: Path, small_server: Server) -> StoreRef:
        """A store in a bucket with a quota."""
        assert outside.is_dir()
        return small_server.ref(f"test/{token_hex(4)}")


def look(server: Server, prefix: str) -> set[str]:
    """What a store has left below its prefix, marker aside; see Fixtures.raw."""
    s3, where = server.client(), {"Bucket": server.bucket, "Prefix": f"{prefix}/"}
    found = s3.list_objects_v2(**where)
    assert not found["IsTruncated"]
    names = {each["Key"].removeprefix(f"{prefix}/") for each in found.get("Contents", ())} - {"glimpse-store.json"}
    names = {name for name in names if not name.startswith("import/")}
    keys = {name.removeprefix("objects/") for name in names if name.startswith("objects/")}
    committed = set()
    for key in keys:
        head = s3.get_object(Bucket=server.bucket, Key=f"{prefix}/objects/{key}")["Body"].read().partition(b"\n")[0]
        said = json.loads(head)
        attempt = said["attempt"]
        assert (f"data/{key}.{attempt}" in names) == ("at" not in said)
        committed |= {f"objects/{key}", f"data/{key}.{attempt}", f"data/{key}.{attempt}.record"}
    uploads = {each["Key"] for each in s3.list_multipart_uploads(**where).get("Uploads", ())}
    return keys | (names - committed) | uploads


def bury(ref: StoreRef) -> None:
    """Wait until each sign of life in the store has run out."""
    driver: Any = open_store(ref).driver
    wait_until(
        "the end of all leases",
        lambda: all(
            each.age >= driver.lease for each in driver._bucket.listed("data/") if each.name.endswith(".alive")
        ),
        timeout=60,
        poll=0.2,
    )


NO_ROOM: Final[Mapping[str, str]] = {
    "test_keeps_its_reserve": "a bucket has no size that could be asked for, so there is no reserve"
}


class OnRadosgw(Fixtures):
    """Ceph's gateway, by TLS with an authority of its own."""

    against: ClassVar[str] = "radosgw"

    @pytest.fixture
    def server(self, radosgw: Server) -> Server:
        """The gateway."""
        return radosgw

    @pytest.fixture
    def small_server(self, radosgw_small: Server) -> Server:
        """The gateway, by a user with a quota."""
        return radosgw_small


class TestContract(OnRadosgw, StoreContract):
    """What every store promises."""

    sequences: ClassVar[int] = 8
    exempt: ClassVar[Mapping[str, str]] = NO_ROOM


class TestRemote(OnRadosgw, RemoteContract):
    """What a store on a server promises besides."""

    @pytest.fixture
    def far(self, ref: StoreRef, server: Server) -> Iterator[Far]:
        """The same by a wire that can be cut."""
        with Wire(("127.0.0.1", server.port)) as wire:
            endpoint = server.url.replace(str(server.port), str(wire.port))
            yield Far(ref.model_copy(update={"config": ref.config | {"endpoint": endpoint}}), wire)

    @pytest.fixture
    def restart(self, cephs: Ceph) -> Restart:
        """The gateway; the cluster behind it goes on."""
        return cephs.restart_gateway

    @pytest.fixture
    def locked_out(self, ref: StoreRef, server: Server) -> StoreRef:
        """With another secret key."""
        return server.ref(ref.config["prefix"], secret={"accessKey": server.access, "secretKey": "not-the-secret"})

    @pytest.fixture
    def nowhere(self, outside: Path, server: Server) -> StoreRef:
        """A bucket that nobody has made."""
        assert outside.is_dir()
        return server._replace(bucket="missing").ref("x")


class TestCloneable(OnRadosgw, CloneableContract):
    """What a store promises that makes one object of another."""


class TestCloneableInParts(OnRadosgw, CloneableContract):
    """The same where all are too large for one request."""

    asks: ClassVar[bool] = True

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The smallest that the server takes."""
        monkeypatch.setattr(S3, "whole", 0)
        monkeypatch.setattr(S3, "piece", CHUNK)


class Laying(Fixtures):
    """The hands of others."""

    @pytest.fixture
    def lay(self, server: Server, ref: StoreRef) -> Lay:
        """Write with a client; what lies there has more than one part if it can."""

        def lay(location: str, data: bytes | None) -> None:
            s3, where = server.client(), {"Bucket": server.bucket, "Key": f"{ref.config['prefix']}/{location}"}
            if data is None:
                s3.delete_object(**where)
            elif len(data) < 2 * CHUNK:
                s3.put_object(**where, Body=data)
            else:
                s3.upload_fileobj(BytesIO(data), *where.values(), Config=TransferConfig(multipart_threshold=CHUNK))

        return lay


class TestRegistering(OnRadosgw, Laying, RegisteringContract):
    """What a store promises that holds what others have put into it."""


class OnSwift(Fixtures):
    """Swift, where nothing keeps two from writing one name at once."""

    against: ClassVar[str] = "s3api"

    @pytest.fixture
    def server(self, s3api: Server) -> Server:
        """Swift."""
        return s3api

    @pytest.fixture
    def small_server(self, s3api_small: Server) -> Server:
        """Swift, with a quota."""
        return s3api_small


class TestContractOnSwift(OnSwift, StoreContract):
    """What every store promises."""

    part: ClassVar[int] = 5 * CHUNK
    sequences: ClassVar[int] = 2
    deaths: ClassVar[int] = 1
    rounds: ClassVar[int] = 3
    turns: ClassVar[int] = 3
    exempt: ClassVar[Mapping[str, str]] = NO_ROOM


class TestRemoteOnSwift(OnSwift, RemoteContract):
    """What a store on a server promises besides."""

    @pytest.fixture
    def far(self, ref: StoreRef, server: Server) -> Iterator[Far]:
        """The same by a wire that can be cut."""
        with Wire(("127.0.0.1", server.port)) as wire:
            endpoint = server.url.replace(str(server.port), str(wire.port))
            yield Far(ref.model_copy(update={"config": ref.config | {"endpoint": endpoint}}), wire)

    @pytest.fixture
    def restart(self, swift: Swift) -> Restart:
        """All of Swift."""

        def again() -> None:
            swift.stop()
            swift.start()

        return again

    @pytest.fixture
    def locked_out(self, ref: StoreRef, server: Server) -> StoreRef:
        """With another secret key."""
        return server.ref(ref.config["prefix"], secret={"accessKey": server.access, "secretKey": "not-the-secret"})

    @pytest.fixture
    def nowhere(self, outside: Path, server: Server) -> StoreRef:
        """A bucket that nobody has made."""
        assert outside.is_dir()
        return server._replace(bucket="missing").ref("x")


class TestCloneableOnSwift(OnSwift, CloneableContract):
    """What a store promises that makes one object of another."""

    turns = 2


class TestRegisteringOnSwift(OnSwift, Laying, RegisteringContract):
    """What a store promises that holds what others have put into it."""


# Around the store


@pytest.fixture
def ref(outside: Path, radosgw: Server) -> StoreRef:
    """A store below a prefix of its own."""
    assert outside.is_dir()
    return radosgw.ref(f"test/{token_hex(4)}")


@pytest.fixture
def store(ref: StoreRef) -> Store:
    """The store, claimed."""
    store = open_store(ref)
    store.claim()
    return store


def names(server: Server, prefix: str) -> set[str]:
    """Everything below a prefix."""
    found = server.client().list_objects_v2(Bucket=server.bucket, Prefix=prefix)
    return {each["Key"].removeprefix(prefix) for each in found.get("Contents", ())}


def test_objects_are_where_the_docs_say(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """A marker, and for each image its bytes as they are and an object that names them; a newer record beside."""
    prefix = f"{ref.config['prefix']}/"
    entry = store.put(KEY, "a1", Body(noise(1000)), lambda: record_of(KEY))
    at = {"glimpse-store.json", f"objects/{KEY}", f"data/{KEY}.a1"}
    assert names(radosgw, prefix) == at
    store.update(KEY, record_of(KEY, digest="md5:00"))
    assert names(radosgw, prefix) == at | {f"data/{KEY}.a1.record"}

    def content(name: str) -> bytes:
        body: bytes = radosgw.client().get_object(Bucket=radosgw.bucket, Key=prefix + name)["Body"].read()
        return body

    assert entry.location == f"s3://{radosgw.bucket}/{prefix}data/{KEY}.a1"
    assert content(f"data/{KEY}.a1") == noise(1000)
    assert json.loads(content("glimpse-store.json")) == {"owner": "here/fast"}
    commit, record = content(f"objects/{KEY}").splitlines()
    assert json.loads(commit) == {"attempt": "a1", "size": 1000}
    assert json.loads(record)["uid"] == json.loads(content(f"data/{KEY}.a1.record"))["uid"]
    assert store.driver.endpoint == f"{radosgw.url}/{radosgw.bucket}/{prefix}"


def test_what_others_have_is_left_alone(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """Objects and uploads beside the prefix, and below it under names that are not ours, stay and are not listed."""
    prefix, s3 = ref.config["prefix"], radosgw.client()
    others = [f"{prefix}.txt", f"{prefix}0/data/{KEY}.a1", f"{prefix}/README", f"{prefix}/data/{KEY}.a1.bak"]
    for name in others:
        s3.put_object(Bucket=radosgw.bucket, Key=name, Body=b"theirs")
    upload = s3.create_multipart_upload(Bucket=radosgw.bucket, Key=f"{prefix}0/data/{KEY}.a1")
    put(store, KEY, b"ours")
    assert [entry.key for entry in store.list()] == [KEY]
    store.delete(KEY)
    assert list(store.list()) == []
    assert names(radosgw, prefix) == {name.removeprefix(prefix) for name in [*others, f"{prefix}/glimpse-store.json"]}
    left = s3.list_multipart_uploads(Bucket=radosgw.bucket, Prefix=f"{prefix}0/")["Uploads"]
    assert [each["UploadId"] for each in left] == [upload["UploadId"]]


def test_parts_that_a_dead_attempt_has_sent_are_removed(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """Uploads of a dead attempt are listed as partial, and aborted by a delete."""
    prefix, s3 = ref.config["prefix"], radosgw.client()
    with writer(ref, KEY, "a1", 12 << 20) as other:
        other.kill()
    where = {"Bucket": radosgw.bucket, "Prefix": f"{prefix}/"}
    assert len(s3.list_multipart_uploads(**where)["Uploads"]) == 1
    bury(ref)
    assert [(entry.key, entry.partial) for entry in store.list()] == [(f"{KEY}.a1", True)]
    store.delete(f"{KEY}.a1")
    assert look(radosgw, prefix) == set()


def test_links_need_no_credentials(store: Store, radosgw: Server) -> None:
    """Whoever has the link gets the bytes and ranges of them, and nobody else; there is none to what is not there.

    It leads to the address that clients know, and says under which name the bytes are to be saved.
    """
    put(store, KEY, noise(100_000))
    link = store.link(KEY, 60, "x.raw")
    assert link
    assert link.startswith(f"{radosgw.public}/{radosgw.bucket}/")
    context = ssl.create_default_context(cafile=str(radosgw.ca_file))
    request = urllib.request.Request(link, headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(request, context=context) as answer:
        assert answer.read() == noise(100_000)[10:20]
        assert answer.headers["Content-Disposition"] == 'attachment; filename="x.raw"'
        assert answer.headers["Content-Type"] == "application/octet-stream"
    for bad in (link.replace("x.raw", "x.exe"), link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")):
        with pytest.raises(urllib.error.HTTPError, match="403") as altered:
            urllib.request.urlopen(bad, context=context)
        altered.value.close()
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(link.partition("?")[0], context=context)
    raised.value.close()
    with pytest.raises(NotFound):
        store.link(OTHER, 60, "x.raw")


def test_no_link_without_an_address_for_clients(store: Store, ref: StoreRef) -> None:
    """Where it is not said that clients reach the server, none is sent there."""
    put(store, KEY, b"x")
    config = {name: value for name, value in ref.config.items() if name != "publicEndpoint"}
    assert open_store(ref.model_copy(update={"config": config})).link(KEY, 60, "x.raw") is None


def theirs(server: Server, ref: StoreRef, location: str, data: bytes) -> None:
    """Somebody else writes there."""
    server.client().put_object(Bucket=server.bucket, Key=f"{ref.config['prefix']}/{location}", Body=data)


def test_a_registered_object_is_noted_where_the_docs_say(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """The object of the key says where the bytes lie and which they are; no byte, and no link to what may change."""
    theirs(radosgw, ref, PLACE, b"theirs")
    entry = register(store, KEY, PLACE)
    prefix = f"{ref.config['prefix']}/"
    assert names(radosgw, prefix) == {"glimpse-store.json", f"objects/{KEY}", PLACE}
    body = radosgw.client().get_object(Bucket=radosgw.bucket, Key=f"{prefix}objects/{KEY}")["Body"].read()
    said = json.loads(body.partition(b"\n")[0])
    assert said["at"]["location"] == PLACE
    assert entry.location == f"s3://{radosgw.bucket}/{prefix}{PLACE}"
    assert store.link(KEY, 60, "x.raw") is None
    assert store.clone(KEY, "", OTHER, "b1", lambda record: record) is None


def test_the_same_bytes_written_again_are_another_version(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """Two contents may have one ETag, an MD5, so the time of the writing counts as well."""
    theirs(radosgw, ref, PLACE, b"theirs")
    register(store, KEY, PLACE)
    theirs(radosgw, ref, PLACE, b"theirs")
    with pytest.raises(DataLost, match="changed"):
        read(store, KEY)


def test_a_name_longer_than_any_is_not_there(store: Store) -> None:
    """Servers answer otherwise to what they could never hold."""
    with pytest.raises(NotFound):
        store.locate(f"import/{'ü' * 600}")
    store.erase(f"import/{'ü' * 600}")


def test_a_bucket_is_made_if_that_is_wanted(outside: Path, radosgw: Server) -> None:
    """With createBucket the first claim makes it; a store that was there is missing, and stays so."""
    assert outside.is_dir()
    server = radosgw._replace(bucket=f"made-{token_hex(4)}")
    ref = server.ref("images", createBucket=True)
    with pytest.raises(StoreUnavailable, match="does not exist: create it"):
        open_store(ref.model_copy(update={"claimed": True})).claim()
    for _ in range(2):
        store = open_store(ref)
        store.claim()
    put(store, KEY, b"x")
    assert read(store, KEY) == b"x"


def test_a_certificate_of_a_stranger_is_refused(ref: StoreRef) -> None:
    """Without the authority nothing is sent, and the message says what is missing."""
    with pytest.raises(StoreUnavailable, match=r"not trusted.*caBundleRef"):
        open_store(ref.model_copy(update={"ca_bundle": None})).claim()


def test_a_server_without_tls_is_told_as_that(ref: StoreRef) -> None:
    """Behind a wrong port, say: the field is named, in no library's words."""
    with plain() as server, pytest.raises(StoreUnavailable, match="no TLS connection could be made; see to endpoint"):
        open_store(ref.model_copy(update={"config": ref.config | {"endpoint": f"https://{server}"}})).claim()


def test_secrets_may_have_the_names_that_amazon_gives_them(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """Both kinds of names are read, and a Secret that lacks one of them says which."""
    put(store, KEY, b"x")
    keys = {"AWS_ACCESS_KEY_ID": radosgw.access, "AWS_SECRET_ACCESS_KEY": radosgw.secret + "\n"}
    again = open_store(radosgw.ref(ref.config["prefix"], secret=keys))
    assert read(again, KEY) == b"x"
    for lacking in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(SecretNotReadable, match=lacking):
            open_store(radosgw.ref("x", secret={name: key for name, key in keys.items() if name != lacking}))
        with pytest.raises(SecretNotReadable, match=f"{lacking}.*line break"):
            open_store(radosgw.ref("x", secret={**keys, lacking: "a\nb"}))


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ({"endpoint": "https://s3.example.com"}, "https://s3.example.com/images/"),
        ({"endpoint": "https://s3.example.com", "addressing": "virtual"}, "https://images.s3.example.com/"),
        ({"region": "eu-central-1"}, "https://images.s3.eu-central-1.amazonaws.com/"),
        ({"region": "eu-central-1", "addressing": "path"}, "https://s3.eu-central-1.amazonaws.com/images/"),
    ],
)
def test_buckets_are_addressed_as_asked(config: dict[str, str], url: str) -> None:
    """In the path or in the host name; by itself, as the server is sure to understand."""
    driver = S3(S3Config.model_validate({"bucket": "images"} | config), {"accessKey": "a", "secretKey": "s"}, None)
    link = driver._bucket.ask(
        lambda s3: s3.generate_presigned_url("get_object", Params={"Bucket": "images", "Key": "k"})
    )
    assert link.startswith(f"{url}k?")


def test_bytes_that_are_gone_are_lost(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """An object whose bytes somebody else has removed or cut is DataLost, and not NotFound."""
    put(store, KEY, noise(1000))
    at = {"Bucket": radosgw.bucket, "Key": f"{ref.config['prefix']}/data/{KEY}.a1"}
    radosgw.client().put_object(**at, Body=noise(10))
    with pytest.raises(DataLost):
        read(store, KEY)
    with pytest.raises(DataLost):
        read(store, KEY, 500)
    radosgw.client().delete_object(**at)
    with pytest.raises(DataLost):
        read(store, KEY)


def test_an_update_brings_nothing_back(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """A record that was written too late, when the image is deleted or another, is not seen and goes with a delete."""
    put(store, KEY, b"first")
    store.delete(KEY)
    store.driver._bucket.write(f"data/{KEY}.a1.record", b"{}")  # type: ignore[attr-defined]  # a writer who is late
    with pytest.raises(NotFound):
        store.stat(KEY)
    put(store, KEY, b"second", attempt="a2")
    assert store.stat(KEY).record == record_of(KEY)
    store.delete(KEY)
    assert look(radosgw, ref.config["prefix"]) == set()


# Parts


@pytest.mark.parametrize("least", [5 << 20, 16 << 20, 128 << 20])
def test_all_sizes_fit_into_as_many_parts_as_there_may_be(least: int) -> None:
    """5 TiB fit into 10,000 parts, known or not, none is larger than one request, and most images have small ones."""
    grown = list(parts.sizes(None, least))
    assert len(grown) == parts.MOST
    assert sum(grown) >= 5 << 40
    assert grown[: parts.SMALL] == [least] * parts.SMALL
    assert max(grown) <= 1 << 30
    for length in (0, least, least * parts.MOST, (5 << 40) - 1, 5 << 40):
        equal = list(parts.sizes(length, least))
        assert len(equal) == parts.MOST
        assert sum(equal) >= length
        assert least <= max(equal) <= 525 << 20
        assert (length > least * parts.MOST) == (max(equal) > least)


def pieces(part: parts.Part) -> Iterator[bytes]:
    """What a library reads of a part."""
    return map(bytes, iter(partial(part.again().read, 70_000), b""))


@pytest.mark.parametrize("length", [0, 1, CHUNK, 3 * CHUNK, 3 * CHUNK + 1, 5 * CHUNK - 1])
@pytest.mark.parametrize("piece", [CHUNK, 100_001])
def test_a_body_is_cut_without_a_gap(length: int, piece: int) -> None:
    """Parts have their full size but the last, which says that it is; an empty body has one."""
    data = noise(length)
    found = list(parts.cut(Body(data, piece=piece), None, 3 * CHUNK))
    assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
    assert [len(part) for part, _ in found[:-1]] == [3 * CHUNK] * (len(found) - 1)
    assert len(found) == max(1, -(-length // (3 * CHUNK)))
    for _ in range(2):  # a part that is sent again is the same
        assert b"".join(piece for part, _ in found for piece in pieces(part)) == data


def test_parts_grow(store: Store, ref: StoreRef, radosgw: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the length is not known, parts of several sizes become one object; where there are too many, nothing."""
    monkeypatch.setattr(parts, "SMALL", 3)
    monkeypatch.setattr(parts, "STEP", 2)
    data = noise(12 * CHUNK + 7)
    store.put(KEY, "a1", Body(data, known=False), lambda: record_of(KEY))
    assert read(store, KEY) == data
    head = radosgw.client().head_object(Bucket=radosgw.bucket, Key=f"{ref.config['prefix']}/data/{KEY}.a1")
    assert head["ETag"].endswith('-7"')  # of 1, 1, 1, 2, 2, 4 and what is left
    monkeypatch.setattr(parts, "MOST", 5)
    with pytest.raises(TooLarge, match="larger partSize"):
        store.put(OTHER, "a1", Body(data, known=False), lambda: record_of(OTHER))
    assert look(radosgw, ref.config["prefix"]) == {KEY}


# Copies


class Talk(Wire):
    """A wire that counts what passes, and can refuse copies as a server does that has none, or be silent to them."""

    passed = 0
    parts = 0
    copies = "pass"
    deaf = 0

    def _count(self, count: int) -> None:
        self.passed += count
        super()._count(count)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self._count(len(piece))
                wanted = re.search(rb"(?i)^x-amz-copy-source(-range)?:", piece, re.MULTILINE)
                self.parts += bool(wanted) and b"partNumber=" in piece
                if wanted and self.copies == "refuse":
                    source.sendall(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n")
                elif wanted and self.copies == "whole ones are slow" and b"partNumber=" not in piece:
                    self.deaf += 1
                else:
                    target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def talk(outside: Path, s3api: Server) -> Iterator[tuple[Talk, Store, str]]:
    """Swift by such a wire, a store there, and its prefix."""
    assert outside.is_dir()
    prefix = f"test/{token_hex(4)}"
    with Talk(("127.0.0.1", s3api.port)) as wire:
        store = open_store(s3api._replace(url=f"http://127.0.0.1:{wire.port}").ref(prefix))
        yield wire, store, prefix


@pytest.mark.parametrize("whole", [0, 5 << 30], ids=["parts", "whole"])
def test_no_byte_of_a_copy_passes_through_us(
    s3api: Server, talk: tuple[Talk, Store, str], monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """The server copies, in one request or in parts; each of both is whole without the other, and nothing is left."""
    wire, store, prefix = talk
    monkeypatch.setattr(S3, "whole", whole)
    monkeypatch.setattr(S3, "piece", 5 << 20)
    data = noise((11 << 20) + 3)
    original(store, data)
    before = wire.passed
    assert clone(store)
    assert wire.passed - before < 100_000
    at = {"Bucket": s3api.bucket, "Key": f"{prefix}/data/{OTHER}.b1"}
    head = s3api.client().head_object(**at)
    assert (head["ContentLength"], head["ContentType"]) == (len(data), "application/octet-stream")
    assert wire.parts == (0 if whole else 3)
    assert look(s3api, prefix) == {KEY, OTHER}
    store.delete(KEY)
    assert read(store, OTHER) == data
    assert look(s3api, prefix) == {OTHER}


def test_a_copy_that_takes_too_long_is_made_in_parts(
    s3api: Server, talk: tuple[Talk, Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is silent over a copy as a whole answers in time for smaller ones; the lease holds meanwhile."""
    wire, store, prefix = talk
    monkeypatch.setattr(S3, "piece", 5 << 20)
    data = noise(11 << 20)
    original(store, data)
    wire.copies = "whole ones are slow"
    assert clone(store)
    assert (wire.deaf, wire.parts) == (1, 3)
    assert read(store, OTHER) == data
    assert look(s3api, prefix) == {KEY, OTHER}


@pytest.mark.parametrize("whole", [0, 5 << 30], ids=["parts", "whole"])
def test_a_server_that_copies_nothing_is_told_from_one_that_fails(
    s3api: Server, talk: tuple[Talk, Store, str], monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """Then there is no clone, nothing of it is left, and whoever wants the bytes copies them himself."""
    wire, store, prefix = talk
    monkeypatch.setattr(S3, "whole", whole)
    original(store, noise(1000))
    wire.copies = "refuse"
    assert clone(store) is None
    assert look(s3api, prefix) == {KEY}


def test_a_copy_of_what_is_gone_or_cut_is_none(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """Bytes that somebody has cut or removed are not made an object a second time."""
    original(store, noise(1000))
    at = {"Bucket": radosgw.bucket, "Key": f"{ref.config['prefix']}/data/{KEY}.a1"}
    radosgw.client().put_object(**at, Body=noise(10))
    with pytest.raises(DataLost):
        clone(store)
    radosgw.client().delete_object(**at)
    assert clone(store) is None
    assert names(radosgw, ref.config["prefix"]) == {"/glimpse-store.json", f"/objects/{KEY}"}


def test_copies_remove_what_the_dead_left(store: Store, ref: StoreRef, radosgw: Server) -> None:
    """As a put does: an attempt on the key that died is removed by the one that follows."""
    original(store, noise(1000))
    with writer(ref, OTHER, "a1", 12 << 20) as other:
        other.kill()
    bury(ref)
    assert clone(store)
    assert look(radosgw, ref.config["prefix"]) == {KEY, OTHER}


# When an answer is lost


class Deaf(Wire):
    """A wire that, once armed, breaks the connection in place of the answer to a commit."""

    armed = False
    _lost: socket.socket | None = None

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                if source is self._lost:
                    break
                if self.armed and re.match(rb"PUT /\S+/objects/", piece):
                    self.armed, self._lost = False, target
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def test_a_commit_whose_answer_is_lost_counts(outside: Path, s3api: Server) -> None:
    """If the object is there that gives the key to the attempt, it is stored, and its bytes are not removed."""
    assert outside.is_dir()
    prefix = f"test/{token_hex(4)}"
    with Deaf(("127.0.0.1", s3api.port)) as wire:
        store = open_store(s3api._replace(url=f"http://127.0.0.1:{wire.port}").ref(prefix))
        wire.armed = True
        entry = store.put(KEY, "a1", Body(noise(1000)), lambda: record_of(KEY))
        assert not wire.armed
        assert entry == store.stat(KEY)
        assert read(store, KEY) == noise(1000)
    assert look(s3api, prefix) == {KEY}


# In a worker


@pytest.fixture
async def runner() -> AsyncIterator[Inline]:
    """Workers as the operator has them."""
    runner = Inline(stop_grace=2)
    yield runner
    await runner.close()


async def test_a_worker_reaches_the_store(ref: StoreRef, runner: Inline) -> None:
    """Confined, it has the authority in memory, and the library from Python's folders."""
    probe = Probe(store=ref.model_copy(update={"driver": "s3"}))
    assert isinstance(await runner.run(probe, lambda _: None), Done)


class Identity(BaseHTTPRequestHandler):
    """Gives out credentials for a token, as the agent of a pod's identity does."""

    token = ""
    keys: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        """The credentials, or 403."""
        known = self.headers["Authorization"] == self.token
        body = json.dumps(self.keys).encode()
        self.send_response(200 if known else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Nothing."""


async def test_a_worker_goes_by_the_identity_of_the_pod(
    ref: StoreRef, radosgw: Server, runner: Inline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a Secret it takes the pod's token from its file, which no other worker can read, and asks for keys."""
    (tmp_path / "token").write_text("t0ken")
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    keys = {"AccessKeyId": radosgw.access, "SecretAccessKey": radosgw.secret, "Token": "", "Expiration": until}
    monkeypatch.setattr(Identity, "token", "t0ken")
    monkeypatch.setattr(Identity, "keys", keys)
    probe = Probe(store=ref.model_copy(update={"driver": "s3", "secret": {}}))
    with ThreadingHTTPServer(("127.0.0.1", 0), Identity) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/keys")
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
            answer = await runner.run(probe, lambda _: None)
        finally:
            server.shutdown()
            serving.join()
    assert isinstance(answer, Done), answer
    stores = [open_store(ref.model_copy(update={"secret": secret})).driver for secret in ({}, ref.secret)]
    assert [driver.folders() for driver in stores if isinstance(driver, Local)] == [(str(tmp_path),), ()]
