"""The Swift store: the contracts against a real Swift, and its containers looked at around it."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import ClassVar
from urllib.parse import quote

import pytest
import trustme
from pydantic import SecretStr
from tests.stores.damage import Damage
from tests.stores.swifts import Fixtures, Talk, changed, container_of, hidden, laying, names, ref_to

from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    SecretNotReadable,
    StoreConflict,
    StoreRefused,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import RECORD_LIMIT, Store, open_store
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.cloneable import CloneableContract, clone, original
from glimpse.testing.registering import PLACE, Lay, RegisteringContract, register
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.store_model import check_against_model
from glimpse.testing.stores import KEY, OTHER, StoreContract, put, read
from glimpse.testing.wire import Wire
from servers import wait_until
from servers.require import require
from servers.swift import Cloud, Swift
from servers.tools import Missing


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A Swift for this module."""
    swift = Swift(tmp_path_factory.mktemp("swift"), memory=60)
    try:
        with swift:
            yield swift
    except Missing as error:
        require("swift", str(error))


@pytest.fixture
def cloud(server: Swift) -> Cloud:
    """Where it is."""
    return server.cloud


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Another one, whose quotas are exact."""
    try:
        with Swift(tmp_path_factory.mktemp("strict")) as cloud:
            yield cloud
    except Missing as error:
        require("swift", str(error))


class Places(Fixtures):
    """The places in it."""

    @pytest.fixture
    def cloud(self, server: Swift) -> Cloud:
        """Where it is."""
        return server.cloud

    @pytest.fixture
    def small(self, strict: Cloud, outside: Path) -> StoreRef:  # noqa: ARG002 - has the driver
        """A container with a quota."""
        return ref_to(strict, container_of(strict, {"X-Container-Meta-Quota-Bytes": str(24 << 20)}))


class TestContract(Places, StoreContract):
    """What every store promises."""

    def test_behaves_like_a_dictionary(self, store: Store) -> None:
        """The same with fewer sequences: each call is a dozen requests."""
        check_against_model(store, sequences=6)


class TestCloneable(Places, CloneableContract):
    """What a store promises that makes one object of another."""

    turns = 5
    asks = True


class TestRegistering(Places, RegisteringContract):
    """What a store promises that holds what others have put into it."""

    @pytest.fixture
    def lay(self, cloud: Cloud, ref: StoreRef) -> Lay:
        """By requests of one's own."""
        return laying(cloud, ref)


class TestResumable(Places, ResumableContract):
    """What a store promises that goes on with a put that died."""

    lag: ClassVar[int] = 12 << 20
    examples: ClassVar[int] = 6
    turns: ClassVar[int] = 4


class TestRemote(Places, RemoteContract):
    """What a store on a server promises besides."""

    @pytest.fixture
    def far(self, cloud: Cloud, ref: StoreRef) -> Iterator[Far]:
        """The same container, by a wire that can be cut."""
        with Wire(("127.0.0.1", cloud.port)) as wire:
            url = cloud.auth_url.replace(str(cloud.port), str(wire.port))
            changes = {"config": ref.config | {"authUrl": url}, "driver": "quick-swift-remote"}
            yield Far(ref.model_copy(update=changes), wire)

    @pytest.fixture
    def restart(self, server: Swift) -> Restart:
        """All of Swift, which forgets its tokens."""

        def again() -> None:
            server.stop()
            server.start()

        return again

    @pytest.fixture(params=["wrong key", "guest"])
    def locked_out(self, request: pytest.FixtureRequest, cloud: Cloud, ref: StoreRef) -> StoreRef:
        """A key that is wrong, and a user who may do nothing."""
        if request.param == "wrong key":
            secret = {"user": cloud.user, "key": "wrong-key"}
        else:
            secret = {"user": cloud.guest, "key": cloud.guest_key}
        return ref.model_copy(update={"secret": {name: SecretStr(value) for name, value in secret.items()}})

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """A container that does not exist."""
        return ref.model_copy(update={"config": ref.config | {"container": "missing"}})


# Around the store: its containers


@pytest.fixture
def ref(cloud: Cloud, outside: Path) -> StoreRef:  # noqa: ARG001 - has the driver
    """A store in a container of its own."""
    return ref_to(cloud, container_of(cloud))


def test_objects_are_where_the_docs_say(cloud: Cloud, ref: StoreRef) -> None:
    """A marker, a small object, and a large one that any client reads as one; nothing else."""
    store = open_store(ref)
    container = ref.config["container"]
    data = noise((5 << 20) + 7)
    entry = store.put(KEY, "a1", Body(data), lambda: record_of(KEY))
    assert names(cloud, container) == sorted(
        [
            "in/here/glimpse-store.json",
            f"in/here/objects/{KEY}",
            f"in/here/data/{KEY}.a1",
            *(f"in/here/data/{KEY}.a1/{n:08d}" for n in range(6)),
            *(f"in/here/data/{KEY}.a1/m0-{n:08d}" for n in range(2)),  # three segments in a manifest, in tests
        ]
    )
    assert entry.location == f"swift://{container}/in/here/data/{KEY}.a1"
    assert cloud.call("GET", f"/{container}/in/here/data/{KEY}.a1")[1] == data
    commit = json.loads(cloud.call("GET", f"/{container}/in/here/objects/{KEY}")[1])
    assert commit | {"record": ""} == {"attempt": "a1", "size": len(data), "segment": 1 << 20, "record": ""}
    assert json.loads(cloud.call("GET", f"/{container}/in/here/glimpse-store.json")[1]) == {"owner": "here/swift"}
    put(store, OTHER, b"small", attempt="a1")
    assert cloud.call("GET", f"/{container}/in/here/data/{OTHER}.a1")[1] == b"small"


def test_the_longest_record_fits(ref: StoreRef) -> None:
    """Metadata of Swift end at 256 bytes a value and 4 KiB in all; a record may have 4 KiB, and so is a body."""
    store = open_store(ref)
    store.claim()
    for length in (RECORD_LIMIT, RECORD_LIMIT - 10):
        record = json.dumps({"x": "é" * ((length - 10) // 6)}, ensure_ascii=True).encode().ljust(length)
        store.driver.put(KEY, "a1", Body(b"x"), lambda record=record: record)  # type: ignore[misc]
        assert store.driver.stat(KEY).record == record
        store.driver.update(KEY, record[::-1])
        assert store.driver.stat(KEY).record == record[::-1]
        store.delete(KEY)


def test_a_registered_object_is_noted_where_the_docs_say(cloud: Cloud, ref: StoreRef) -> None:
    """The small object says where the bytes lie and which they are; no byte, and no link to what may change."""
    container = ref.config["container"]
    ref = changed(ref, publicEndpoint="http://localhost:1")
    store = open_store(ref.model_copy(update={"secret": ref.secret | hidden({"tempURLKey": "sesame"})}))
    laying(cloud, ref)(PLACE, b"theirs")
    entry = register(store, KEY, PLACE)
    assert names(cloud, container) == sorted(
        ["in/here/glimpse-store.json", f"in/here/{PLACE}", f"in/here/objects/{KEY}"]
    )
    commit = json.loads(cloud.call("GET", f"/{container}/in/here/objects/{KEY}")[1])
    assert commit["at"]["location"] == PLACE
    assert entry.location == f"swift://{container}/in/here/{quote(PLACE)}"
    assert store.link(KEY, 60, "x.raw") is None
    assert store.clone(KEY, "", OTHER, "b1", lambda record: record) is None


def test_no_link_is_followed(cloud: Cloud, ref: StoreRef) -> None:
    """A symbolic link in the container could lead to what belongs to anybody, also in place of what was registered."""
    container, store = ref.config["container"], open_store(ref)
    put(store, OTHER, b"ours")
    laying(cloud, ref)("import/x", b"ours")
    register(store, KEY, "import/x")
    target = f"{container}/in/here/data/{OTHER}.a1"
    cloud.call("PUT", f"/{container}/in/here/import/x", {"X-Symlink-Target": target})
    with pytest.raises(StoreRefused, match="symbolic link"):
        store.locate("import/x")
    with pytest.raises((DataLost, StoreRefused)):
        read(store, KEY)
    store.erase("import/x")
    assert read(store, OTHER) == b"ours"


def test_what_may_change_unseen_is_refused(cloud: Cloud, ref: StoreRef) -> None:
    """A dynamic large object is whatever begins with a name at the moment."""
    container, store = ref.config["container"], open_store(ref)
    cloud.call("PUT", f"/{container}/in/here/import/x", {"X-Object-Manifest": f"{container}/in/other"})
    with pytest.raises(StoreRefused, match="dynamic"):
        store.locate("import/x")


def test_the_same_bytes_written_again_are_another_version(cloud: Cloud, ref: StoreRef) -> None:
    """Two contents may have one ETag, an MD5, so the time of the writing counts as well."""
    store = open_store(ref)
    for data in (b"theirs", noise(3 << 20)):
        laying(cloud, ref)(PLACE, data)
        register(store, KEY, PLACE)
        laying(cloud, ref)(PLACE, data)
        with pytest.raises(DataLost, match="changed"):
            read(store, KEY)
        store.delete(KEY)


def test_only_segments_that_are_named_after_it_go_with_an_object(cloud: Cloud, ref: StoreRef) -> None:
    """A manifest names what its writer likes: what he could only read, the store must not remove for him."""
    container, store = ref.config["container"], open_store(ref)
    put(store, KEY, b"ours")
    cloud.call("PUT", f"/{container}/in/here/import/x/1", {}, b"theirs")
    paths = [f"/{container}/in/here/import/x/1", f"/{container}/in/here/data/{KEY}.a1"]
    manifest = json.dumps([{"path": path} for path in paths]).encode()
    cloud.call("PUT", f"/{container}/in/here/import/x?multipart-manifest=put", {}, manifest)
    assert store.locate("import/x").size == len(b"theirsours")
    store.erase("import/x")
    assert not [name for name in names(cloud, container) if "import" in name]
    assert read(store, KEY) == b"ours"


def test_a_name_longer_than_any_is_not_there(ref: StoreRef) -> None:
    """Swift answers otherwise to what it could never hold."""
    store = open_store(ref)
    with pytest.raises(NotFound):
        store.locate(f"import/{'ü' * 600}")
    store.erase(f"import/{'ü' * 600}")


def test_a_probe_writes(cloud: Cloud, ref: StoreRef) -> None:
    """Who may only read is told so by the probe, which leaves nothing, also where many look at once."""
    container, store = ref.config["container"], open_store(ref)
    store.claim()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.probe(), range(40)))
    assert names(cloud, container) == ["in/here/glimpse-store.json"]
    cloud.call("POST", f"/{container}", {"X-Container-Read": cloud.guest})
    guest = open_store(ref.model_copy(update={"secret": hidden({"user": cloud.guest, "key": cloud.guest_key})}))
    guest.claim()
    with pytest.raises(StoreUnauthorized):
        guest.probe()


def test_segments_may_have_a_container_of_their_own(cloud: Cloud, ref: StoreRef) -> None:
    """They are there and nowhere else, also of an attempt that is dead, and go with their object."""
    apart = container_of(cloud)
    store = open_store(changed(ref, segmentContainer=apart, prefix=None))
    data = noise(3 << 20)
    put(store, KEY, data)
    assert read(store, KEY) == data
    assert names(cloud, ref.config["container"]) == [f"data/{KEY}.a1", "glimpse-store.json", f"objects/{KEY}"]
    assert names(cloud, apart) == [f"data/{KEY}.a1/{n:08d}" for n in range(3)]
    cloud.call("PUT", f"/{apart}/data/{OTHER}.dead/00000000", {}, b"of a dead attempt")
    assert [(each.key, each.size) for each in store.list() if each.partial] == [(f"{OTHER}.dead", 17)]
    store.delete(OTHER)
    store.delete(KEY)
    assert names(cloud, ref.config["container"]) == ["glimpse-store.json"]
    assert names(cloud, apart) == []


@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
def test_containers_are_made_if_one_says_so(cloud: Cloud, ref: StoreRef, apart: bool) -> None:
    """At the first use, and never again: one that was there and is gone is missing."""
    made = {"container": f"made-{token_hex(4)}"} | ({"segmentContainer": f"made-{token_hex(4)}"} if apart else {})
    new = changed(ref, createContainer=True, **made)
    put(open_store(new), KEY, noise(2 << 20))
    assert names(cloud, made["container"])
    gone = changed(new, container="missing").model_copy(update={"claimed": True})
    with pytest.raises(StoreUnavailable, match="container missing does not exist"):
        open_store(gone).claim()


def test_a_link_needs_no_token(cloud: Cloud, ref: StoreRef) -> None:
    """Whoever has a link reads the object, or a part of it, for as long as it says; and nothing else with it.

    It leads to the address that clients know, and says under which name the bytes are to be saved.
    """
    container = ref.config["container"]
    cloud.call("POST", f"/{container}", {"X-Container-Meta-Temp-URL-Key": "signs-links"})
    secret = ref.secret | {"tempURLKey": SecretStr("signs-links")}
    public = f"http://localhost:{cloud.port}"
    store = open_store(changed(ref, publicEndpoint=public).model_copy(update={"secret": secret}))
    data = noise((3 << 20) + 5)
    put(store, KEY, data)
    url = store.link(KEY, 60, "x.raw")
    assert url
    assert url.startswith(f"{public}/v1/")
    assert "signs-links" not in url
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == data
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="x.raw"')
        assert answer.headers["Content-Type"] == "application/octet-stream"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers={"Range": "bytes=1048570-1048580"}), timeout=10
    ) as answer:
        assert answer.read() == data[1048570:1048581]
    for bad in (
        url.replace(KEY, OTHER),
        url.replace("temp_url_expires=1", "temp_url_expires=2"),
        store.link(KEY, -1, "x.raw") or "",
    ):
        with pytest.raises(urllib.error.HTTPError, match="401") as raised:
            urllib.request.urlopen(bad, timeout=10)
        raised.value.close()
    with pytest.raises(NotFound):
        store.link(OTHER, 60, "x.raw")
    with pytest.raises(InvalidConfiguration, match="tempURLKey"):
        open_store(changed(ref, publicEndpoint=public)).link(KEY, 60, "x.raw")
    assert open_store(ref.model_copy(update={"secret": secret})).link(KEY, 60, "x.raw") is None


def test_tokens_end_in_the_middle(server: Swift, ref: StoreRef) -> None:
    """A token that ends while an object is written, or read, is renewed; no byte is lost."""
    store = open_store(ref)
    data = noise(8 << 20)
    ends = iter((1 << 20, 4 << 20, 7 << 20))
    until = next(ends)

    def end(given: int) -> None:
        nonlocal until
        if given >= until:
            until = next(ends, 1 << 30)
            server.forget_tokens()

    store.put(KEY, "a1", Body(data, before=end), lambda: record_of(KEY))
    with store.get(KEY) as reader:
        got = b""
        while chunk := reader.read():
            got += chunk
            if len(got) in {1 << 20, 4 << 20}:
                server.forget_tokens()
    assert got == data


@pytest.mark.parametrize("length", [500_000, 5 << 20], ids=["plain", "segments"])
def test_a_byte_that_is_changed_on_the_way_in(cloud: Cloud, ref: StoreRef, length: int) -> None:
    """Swift refuses what has another MD5 than was said (422), and it is sent again: what is stored is right."""
    here, data = open_store(ref), noise(length)
    here.claim()
    with Damage(("127.0.0.1", cloud.port)) as wire:
        there = open_store(changed(ref, authUrl=cloud.auth_url.replace(str(cloud.port), str(wire.port))))
        there.claim()
        wire.arm(300_000, upwards=True)
        body = Body(data)
        there.put(KEY, "a1", body, lambda: record_of(KEY))
        assert (wire.changed, body.given) == (1, length)
    assert read(here, KEY) == data


def test_nothing_is_open_after_a_get(ref: StoreRef) -> None:
    """Who reads only the beginning of an object leaves no thread behind, and may read again."""
    store = open_store(ref)
    put(store, KEY, noise(8 << 20))
    for _ in range(3):
        with store.get(KEY) as reader:
            reader.read(10)
        assert not [each.name for each in threading.enumerate() if each.name.startswith("ThreadPool")]
    assert read(store, KEY, 7 << 20) == noise(8 << 20)[7 << 20 :]


def test_a_commit_that_breaks_off(cloud: Cloud, ref: StoreRef) -> None:
    """Wherever the way breaks in a commit: the object is there whole or not at all, and what is left can be removed."""
    here = open_store(ref)
    here.claim()
    seen = set()
    with Wire(("127.0.0.1", cloud.port)) as wire:
        there = open_store(changed(ref, authUrl=cloud.auth_url.replace(str(cloud.port), str(wire.port))))
        for turn, count in enumerate((250, 700, 1300, 2000, 1 << 20)):
            key = f"{KEY}{turn}"

            def record(key: str = key, count: int = count) -> Record:
                wire.after(count, wire.cut)
                return record_of(key)

            try:
                there.put(key, "a1", Body(noise(100)), record)
            except StoreUnavailable:
                seen.add("failed")
            else:
                seen.add("stored")
                assert read(here, key) == noise(100)
            finally:
                wire.heal()
            with suppress(NotFound):
                assert read(here, key) == noise(100)
    assert seen == {"failed", "stored"}
    driver = here.driver
    wait_until(
        "the end of all leases",
        lambda: not any(left.alive for left in driver._names.attempts("").values()),  # type: ignore[attr-defined]
        timeout=30,
    )
    for each in list(here.list()):
        here.delete(each.key)
    assert names(cloud, ref.config["container"]) == ["in/here/glimpse-store.json"]


def test_a_commit_waits_for_those_that_began(cloud: Cloud, ref: StoreRef) -> None:
    """Who says that it is about to commit may come later and win: until it has ended nobody is told that he stored."""
    store = open_store(ref)
    store.claim()
    container = ref.config["container"]
    other = f"/{container}/in/here/data/{KEY}.other"
    cloud.call("PUT", f"{other}.alive", {}, b"about to commit")
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(put, store, KEY, b"ours")
        wait_until("our commit", lambda: f"in/here/objects/{KEY}" in names(cloud, container), timeout=20)
        assert not stored.done()
        theirs = {"attempt": "other", "size": 6, "segment": 0, "record": "{}"}
        cloud.call("PUT", other, {}, b"theirs")
        cloud.call("PUT", f"/{container}/in/here/objects/{KEY}", {}, json.dumps(theirs).encode())
        cloud.call("DELETE", f"{other}.alive")
        with pytest.raises(StoreConflict, match="by another attempt"):
            stored.result(120)
    assert read(store, KEY) == b"theirs"
    assert names(cloud, container) == [
        f"in/here/data/{KEY}.other",
        "in/here/glimpse-store.json",
        f"in/here/objects/{KEY}",
    ]


@pytest.mark.parametrize("length", [1000, (5 << 20) + 7], ids=["plain", "segments"])
@pytest.mark.parametrize("apart", [False, True], ids=["beside", "apart"])
def test_no_byte_of_a_copy_passes_through_us(cloud: Cloud, ref: StoreRef, length: int, apart: bool) -> None:
    """The server copies, each segment by itself: the copy is laid out as the original, and whole without it."""
    container = ref.config["container"]
    segments = container_of(cloud) if apart else container
    data = noise(length)
    with Talk(("127.0.0.1", cloud.port)) as wire:
        url = cloud.auth_url.replace(str(cloud.port), str(wire.port))
        store = open_store(changed(ref, authUrl=url, segmentContainer=segments))
        original(store, data)
        before = wire.passed
        assert clone(store)
        assert wire.passed - before < 60_000

    def laid_out(key: str) -> list[str]:
        found = {f"{place}/{name}" for place in (container, segments) for name in names(cloud, place) if key in name}
        return sorted(name.replace(key, "").replace(".a1", "").replace(".b1", "") for name in found)

    assert laid_out(OTHER) == laid_out(KEY)
    store = open_store(changed(ref, segmentContainer=segments))
    store.delete(KEY)
    assert laid_out(KEY) == []
    assert read(store, OTHER) == data
    assert cloud.call("GET", f"/{container}/in/here/data/{OTHER}.b1")[1] == data
    store.delete(OTHER)
    assert names(cloud, container) == ["in/here/glimpse-store.json"]
    assert not apart or names(cloud, segments) == []


@pytest.mark.parametrize("length", [0, 3 << 20])
def test_a_server_that_copies_nothing_is_told_from_one_that_fails(cloud: Cloud, ref: StoreRef, length: int) -> None:
    """Then there is no clone, nothing of it is left, and whoever wants the bytes copies them himself."""
    with Talk(("127.0.0.1", cloud.port)) as wire:
        store = open_store(changed(ref, authUrl=cloud.auth_url.replace(str(cloud.port), str(wire.port))))
        original(store, noise(length))
        before = names(cloud, ref.config["container"])
        wire.refusing = True
        assert clone(store) is None
    assert names(cloud, ref.config["container"]) == before


@pytest.mark.parametrize("length", [1000, (2 << 20) + 7], ids=["plain", "segments"])
def test_damage_is_not_copied(cloud: Cloud, ref: StoreRef, length: int) -> None:
    """Bytes that somebody has cut or removed do not become an object a second time, and nothing is left of it."""
    container, store = ref.config["container"], open_store(ref)
    original(store, noise(length))
    before = names(cloud, container)
    name = f"in/here/data/{KEY}.a1" + ("/00000001" if length > 1 << 20 else "")
    cloud.call("PUT", f"/{container}/{name}", {}, b"cut")
    with pytest.raises(DataLost, match="as long as it was"):
        clone(store)
    assert names(cloud, container) == before
    cloud.call("DELETE", f"/{container}/{name}")
    assert clone(store) is None
    assert names(cloud, container) == [each for each in before if each != name]


def test_copies_remove_what_the_dead_left(cloud: Cloud, ref: StoreRef) -> None:
    """As a put does: an attempt on the key that died is removed by the one that follows."""
    store = open_store(ref)
    original(store, noise(1000))
    cloud.call("PUT", f"/{ref.config['container']}/in/here/data/{OTHER}.dead/00000000", {}, b"of a dead attempt")
    assert clone(store)
    assert not [name for name in names(cloud, ref.config["container"]) if ".dead" in name]


def test_damage_is_found(cloud: Cloud, ref: StoreRef) -> None:
    """Bytes that are gone, and a small object that is damaged, are DataLost, block nobody, and can be removed."""
    store = open_store(ref)
    container = ref.config["container"]
    put(store, KEY, noise(3 << 20))
    cloud.call("DELETE", f"/{container}/in/here/data/{KEY}.a1/00000001")
    with pytest.raises(DataLost, match="are gone"):
        read(store, KEY)
    for damage in (b"", b"{", b"[]", b'{"attempt": "a1"}'):
        cloud.call("PUT", f"/{container}/in/here/objects/{KEY}", {}, damage)
        with pytest.raises(DataLost, match="cannot be read"):
            store.stat(KEY)
        assert [(each.key, each.record) for each in store.list() if not each.partial] == [(KEY, None)]
    with pytest.raises(DataLost):
        store.delete(f"{KEY}.a1")  # it may be the one that is meant
    store.delete(KEY)
    assert names(cloud, container) == ["in/here/glimpse-store.json"]


def test_a_broken_marker_is_not_replaced(cloud: Cloud, ref: StoreRef) -> None:
    """A marker that cannot be read belongs to somebody."""
    path = f"/{ref.config['container']}/in/here/glimpse-store.json"
    for text in (b"", b"here", b"[]", b"{}"):
        cloud.call("PUT", path, {}, text)
        with pytest.raises(StoreUnavailable, match=r"glimpse-store\.json .* cannot be read.*restore"):
            open_store(ref).claim()
        assert cloud.call("GET", path)[1] == text


@pytest.mark.parametrize(
    ("config", "secret", "message"),
    [
        ({"authVersion": "1"}, {"key": "x"}, "'user'"),
        ({"authVersion": "1"}, {"user": "x"}, "'key'"),
        ({"authVersion": "1"}, {"user": "x", "key": "a\nb"}, "'key' .*line break"),
        ({"authVersion": "1"}, {"user": "\xfc", "key": "x"}, "'user' .*beyond ASCII"),
        ({}, {"username": "x", "password": "x"}, "'projectName'"),
        ({}, {"applicationCredentialID": "x"}, "'applicationCredentialSecret'"),
    ],
    ids=str,
)
def test_missing_and_wrong_keys_are_named(config: dict[str, str], secret: dict[str, str], message: str) -> None:
    """What the Secret lacks, or has that no request can carry, is said before anybody is asked."""
    whole = {"authUrl": "http://127.0.0.1:1/v3", "container": "images", **config}
    ref = StoreRef(name="swift", driver="swift", config=whole, secret=hidden(secret), installation="here")
    with pytest.raises(SecretNotReadable, match=message):
        open_store(ref)


@pytest.mark.parametrize("size", ["1Ki", "65Mi", 0, "5Gi"])
def test_segments_fit_into_memory(ref: StoreRef, size: object) -> None:
    """A segment is kept until it is stored, so a worker has room for no larger ones."""
    with pytest.raises(InvalidConfiguration, match="from 1Mi to 64Mi"):
        open_store(changed(ref, segmentSize=size))


def test_over_tls_in_a_cage(tmp_path: Path) -> None:
    """A worker, which can read no file but the system's and Python's, trusts the given authority and no other."""
    authority = trustme.CA()
    script = """
import sys
from glimpse.confine import Cage
from glimpse.problems import Problem
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
Cage().enter([])
for line in sys.stdin.buffer.read().splitlines():
    try:
        store = open_store(StoreRef.model_validate_json(line))
        store.put("a-1", "a1", Body(noise(3 << 20)), lambda: record_of("a-1"))
        with store.get("a-1") as reader:
            print(b"".join(iter(reader.read, b"")) == noise(3 << 20))
    except Problem as problem:
        print(problem.reason, problem.message)
"""
    try:
        with Swift(tmp_path / "swift", memory=60, ca=authority) as cloud:
            ref = ref_to(cloud, container_of(cloud), driver="swift")
            trusting = ref.model_copy(update={"ca_bundle": authority.cert_pem.bytes().decode()})
            other = ref.model_copy(update={"ca_bundle": trustme.CA().cert_pem.bytes().decode()})
            done = subprocess.run(
                [sys.executable, "-c", script],
                input=b"\n".join(each.line().strip() for each in (trusting, other, ref)),
                capture_output=True,
                check=True,
                timeout=60,
                env={
                    "PATH": os.environ["PATH"],
                    "http_proxy": "http://127.0.0.1:1",
                    "https_proxy": "http://127.0.0.1:1",
                },
            )
    except Missing as error:
        require("swift", str(error))
    first, *others = done.stdout.decode().splitlines()
    assert first == "True"
    assert len(others) == 2
    assert all(re.fullmatch("StoreUnavailable .* certificate that is not trusted.*", line) for line in others)
