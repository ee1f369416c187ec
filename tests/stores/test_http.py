"""The http store: nginx as people have it, and a server that does what others may."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreReadOnly,
    StoreRefused,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import Placed, Registering, Store, Version, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing import faults
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.faults import Reply
from glimpse.testing.placed_remote import RemotePlacedContract
from glimpse.testing.registering import Lay, PlacedContract, record_at, register
from glimpse.testing.remote import Far, Restart
from glimpse.testing.stores import KEY, Raw, StoreFixtures, put, read
from glimpse.testing.wire import Wire
from servers.require import require_tool
from servers.web import Site, Web

DATA = noise(2 * CHUNK + 17)
ETAG = {"ETag": '"one"'}


def ref_to(url: str, driver: str = "http", **more: Any) -> StoreRef:
    """A store at that address."""
    return StoreRef(name="site", driver=driver, config={"baseUrl": url}, **{"installation": "here", **more})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Nginx with a folder."""
    require_tool("nginx", "nginx-light")
    with Web(tmp_path_factory.mktemp("web")) as started:
        yield started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Another one that wants a login."""
    require_tool("nginx", "nginx-light")
    server = Web(tmp_path_factory.mktemp("guarded"), login=("ada", "pässword"))
    with server:
        yield server


@pytest.fixture
def web() -> Iterator[faults.Server]:
    """A server that does as told."""
    with faults.Server() as server:
        yield server


@pytest.fixture
def store(outside: Path, web: faults.Server) -> Store:  # noqa: ARG001 - has the driver installed
    """A store there, of little patience."""
    return open_store(ref_to(web.url("/"), "quick-http"))


def served(store: Store, location: str = "a", version: Version | None = None) -> bytes:
    """All that lies there."""
    with store.read(location, version or store.locate(location)) as reader:
        return b"".join(iter(reader.read, b""))


class Fixtures(StoreFixtures):
    """The place that the contracts are tested in."""

    @pytest.fixture
    def ref(self, site: Site) -> StoreRef:
        """A store whose address has a path."""
        return ref_to(site.url)

    @pytest.fixture
    def raw(self, site: Site) -> Raw:
        """Nothing is ever written: whatever is not below `import/`."""
        return lambda: {file.name for file in site.root.iterdir()} - {"import"}

    @pytest.fixture
    def lay(self, site: Site) -> Lay:
        """Write in place, each time some seconds later: nginx tells versions apart by the second."""
        seconds = itertools.count(1_500_000_000, 10)

        def lay(location: str, data: bytes | None) -> None:
            path = site.root / location
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                path.unlink()
                return
            path.write_bytes(data)
            now = next(seconds)
            os.utime(path, (now, now))

        return lay


class TestPlaced(Fixtures, PlacedContract):
    """What every store promises that reads what others have put there."""


class TestRemotePlaced(Fixtures, RemotePlacedContract):
    """What a store on a server promises besides; nginx gives these files to who has logged in."""

    @pytest.fixture
    def site(self, guarded: Web) -> Site:
        """Nginx that wants a login."""
        return guarded.site

    @pytest.fixture
    def ref(self, site: Site, outside: Path) -> StoreRef:  # noqa: ARG002 - has the driver
        """A store with that login."""
        secret = {"username": SecretStr("ada"), "password": SecretStr("pässword")}
        return ref_to(site.url, "quick-http", secret=secret)

    @pytest.fixture
    def far(self, ref: StoreRef, site: Site) -> Iterator[Far]:
        """The same by a wire that can be cut."""
        with Wire(("127.0.0.1", int(site.url.rpartition(":")[2]))) as wire:
            yield Far(ref.model_copy(update={"config": {"baseUrl": f"http://127.0.0.1:{wire.port}"}}), wire)

    @pytest.fixture
    def restart(self, guarded: Web) -> Restart:
        """The whole server."""

        def again() -> None:
            guarded.stop()
            guarded.start()

        return again

    @pytest.fixture(params=["another password", "no login"])
    def locked_out(self, request: pytest.FixtureRequest, ref: StoreRef) -> StoreRef:
        """One that is wrong, or none."""
        secret = ref.secret | {"password": SecretStr("not-this-one")} if request.param == "another password" else {}
        return ref.model_copy(update={"secret": secret})


def test_it_reads_and_never_writes(site: Site) -> None:
    """It can be read from, and takes neither bytes nor notes; what is not there needs no removal."""
    store = open_store(ref_to(site.url))
    assert isinstance(store.driver, Placed)
    assert not isinstance(store.driver, Registering)
    body = Body(b"x")
    actions: list[Callable[[], object]] = [
        lambda: store.put(KEY, "a1", body, lambda: record_of(KEY)),
        lambda: store.update(KEY, record_of(KEY)),
        lambda: store.erase("import/x"),
    ]
    for action in actions:
        with pytest.raises(StoreReadOnly):
            action()
    assert body.given == 0
    store.delete(KEY)
    store.delete(f"{KEY}.a1")
    assert list(store.list()) == []
    for action in (lambda: store.stat(KEY), lambda: read(store, KEY)):
        with pytest.raises(NotFound):
            action()
    assert {file.name for file in site.root.iterdir()} <= {"import"}


def test_two_may_read(site: Site) -> None:
    """Nothing is written, so an address belongs to nobody."""
    for more in ({}, {"installation": "there"}, {"name": "twin"}):
        store = open_store(ref_to(site.url).model_copy(update={"claimed": True, **more}))
        store.claim()
        assert store.probe().free is None


def test_a_registration_is_told(site: Site) -> None:
    """What the store cannot note is known to who is told of it, and to nobody else."""
    (site.root / "x.img").write_bytes(b"theirs")
    store = open_store(ref_to(f"{site.url}/"))
    entry = register(store, KEY, "x.img")
    assert entry.location == f"{site.url}/x.img"
    assert entry.record
    told = store.knowing(entry.record)
    assert read(told, KEY) == b"theirs"
    assert told.stat(KEY).record == entry.record
    with pytest.raises(NotFound):
        store.stat(KEY)
    (site.root / "x.img").unlink()
    for action in (lambda: read(told, KEY), lambda: told.stat(KEY)):
        with pytest.raises(DataLost):
            action()


@pytest.mark.parametrize("path", ["", "/", "/below", "/below/"])
def test_keys_are_below_the_address(web: faults.Server, path: str) -> None:
    """With a slash at its end or without; and they are encoded, so that nothing in them means anything."""
    sent = f"{path.rstrip('/')}/a%20b/%252e%3Fq%23f%3Bp%26%C3%BC"
    web.serve(sent, Reply(DATA, headers=ETAG))
    store = open_store(ref_to(web.url(path)))
    assert store.locate("a b/%2e?q#f;p&ü").size == len(DATA)
    assert store.where("a b/%2e?q#f;p&ü") == web.url(sent)


@pytest.mark.parametrize("location", ["a/%2e%2e/b", "%2E/b", "a%2Fb", "a%2f%2e%2e"])
def test_no_encoded_step_is_sent(store: Store, web: faults.Server, location: str) -> None:
    """A server that decodes twice would be led elsewhere."""
    with pytest.raises(StoreRefused):
        store.locate(location)
    assert web.requests == []


ODD: dict[str, tuple[Reply, type[Problem], str]] = {
    "no length": (Reply(DATA, chunked=1000, headers=ETAG), StoreRefused, "how long"),
    "no validator": (Reply(DATA), StoreRefused, "neither a strong ETag nor a Last-Modified"),
    "a weak one": (Reply(DATA, headers={"ETag": 'W/"1"'}), StoreRefused, "neither"),
    "a long one": (Reply(DATA, headers={"ETag": f'"{"x" * 300}"'}), StoreRefused, "neither"),
    "compressed": (Reply(DATA, headers={**ETAG, "Content-Encoding": "gzip"}), StoreRefused, "compresses"),
    "a redirect": (Reply.redirect("http://169.254.169.254/"), StoreRefused, "not followed"),
    "absent": (Reply(status=404), NotFound, "404"),
    "gone": (Reply(status=410), NotFound, "410"),
    "unauthorized": (Reply(status=401), StoreUnauthorized, "secretRef"),
    "forbidden": (Reply(status=403), StoreUnauthorized, "secretRef"),
    "busy": (Reply(status=503), StoreUnavailable, "503"),
    "too many": (Reply(status=429), StoreUnavailable, "429"),
    "a teapot": (Reply(status=418), StoreRefused, "418"),
    "no HTTP": (Reply(raw=b"SSH-2.0-x\r\n"), StoreUnavailable, "broke"),
    "silent": (Reply(stall_head=True), StoreUnavailable, "nothing for 1 s"),
}


@pytest.mark.parametrize(("reply", "problem", "words"), ODD.values(), ids=list(ODD))
def test_odd_answers(store: Store, web: faults.Server, reply: Reply, problem: type[Problem], words: str) -> None:
    """Each has its Problem, which names the address; nothing of the answer is told."""
    web.serve("/a", reply)
    for action in (lambda: store.locate("a"), lambda: served(store, "a", Version(len(DATA), '"one"'))):
        with pytest.raises(problem) as raised:
            action()
        assert words in raised.value.message
        assert web.url("/a") in raised.value.message
    assert len(web.asked("/a")) == (4 if reply.raw else 2), "what is no answer is asked for once more"
    web.release()


def test_a_server_without_head(store: Store, web: faults.Server) -> None:
    """Then it is asked for the file, and no more is read than its head."""
    web.serve("/a", Reply(status=405), Reply(DATA, headers=ETAG))
    assert store.locate("a") == Version(len(DATA), '"one"')
    assert [request.method for request in web.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("ranges", [True, False])
def test_breaks_are_mended(store: Store, web: faults.Server, ranges: bool) -> None:
    """A read goes on where it broke; with a server that gives no parts it passes over what it has."""
    web.serve("/a", Reply(DATA, ranges=ranges, headers=ETAG))
    for at in (1000, CHUNK, CHUNK + 1, len(DATA) - 1):
        web.interrupt("/a", at, "cut")
    assert served(store) == DATA
    version = store.locate("a")
    web.interrupt("/a", CHUNK + 5 if ranges else CHUNK - 5, "reset")
    assert isinstance(store.driver, Placed)
    with store.driver.read("a", version, CHUNK, CHUNK) as reader:
        assert b"".join(iter(reader.read, b"")) == DATA[CHUNK : 2 * CHUNK]


def test_another_version_is_never_joined(store: Store, web: faults.Server) -> None:
    """After a break the rest must be of the same file."""
    reply = Reply(DATA, ranges=True, headers=ETAG)
    web.serve("/a", reply, reply, Reply(noise(len(DATA), 1), ranges=True, headers={"ETag": '"two"'}))
    version = store.locate("a")
    web.interrupt("/a", CHUNK + 1, "cut")
    with pytest.raises(DataLost):
        served(store, "a", version)


def test_a_server_that_stays_away(store: Store, web: faults.Server) -> None:
    """After some tries it is enough, and then all is as before."""
    web.serve("/a", Reply(DATA, ranges=True, headers=ETAG))
    version = store.locate("a")
    for fault in ("cut", "stall"):
        with Wire(("127.0.0.1", web.port)) as wire:
            away = open_store(ref_to(f"http://127.0.0.1:{wire.port}", "quick-http"))
            assert away.probe().free is None
            getattr(wire, fault)()
            for action in (away.probe, lambda s=away: s.locate("a"), lambda s=away: served(s, "a", version)):
                with pytest.raises(StoreUnavailable):
                    action()
            wire.heal()
            assert served(away) == DATA


def test_connections_are_kept(store: Store, web: faults.Server) -> None:
    """A file after the other over one connection; one that is given up half-way is not used again."""
    web.serve("/a", Reply(DATA, headers=ETAG))
    version = store.locate("a")
    for _ in range(3):
        assert served(store, "a", version) == DATA
    assert len({request.port for request in web.requests}) == 1
    with store.read("a", version) as reader:
        reader.read(1000)
    assert served(store, "a", version) == DATA
    assert len({request.port for request in web.requests}) == 2


# Credentials and authorities

SECRETS = {
    "basic": ({"username": "ada", "password": "pässword"}, "Basic YWRhOnDDpHNzd29yZA=="),
    "token": ({"token": "t0ken"}, "Bearer t0ken"),
}


@pytest.mark.parametrize(("secret", "header"), SECRETS.values(), ids=list(SECRETS))
def test_credentials_are_sent(web: faults.Server, secret: dict[str, str], header: str) -> None:
    """With each request; and no secret is in a message."""
    web.serve("/a", Reply(DATA, headers=ETAG))
    held = {key: SecretStr(value) for key, value in secret.items()}
    store = open_store(ref_to(web.url("/"), secret=held))
    assert served(store) == DATA
    assert {request.headers["authorization"] for request in web.requests} == {header}
    web.serve("/a", Reply(status=401))
    with pytest.raises(StoreUnauthorized) as raised:
        store.locate("a")
    assert not any(value in raised.value.message for value in secret.values())


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ({"username": "ada"}, "'password'"),
        ({"other": "x"}, "'password'"),
        ({"token": "a\nb"}, "'token'"),
        ({"token": "ü"}, "'token'"),
        ({"username": "a", "password": "b\r\nX: y"}, "'password'"),
    ],
)
def test_a_secret_that_cannot_be_used(secret: dict[str, str], words: str) -> None:
    """The message names the key."""
    held = {key: SecretStr(value) for key, value in secret.items()}
    with pytest.raises(SecretNotReadable, match=words):
        open_store(ref_to("http://127.0.0.1/", secret=held))


def test_a_probe_tells_of_refused_credentials(store: Store, web: faults.Server) -> None:
    """But not of an address that has no page of its own."""
    web.serve("/", Reply(status=401))
    with pytest.raises(StoreUnauthorized):
        store.probe()
    for status in (200, 302, 403, 404):
        web.serve("/", Reply(status=status))
        assert store.probe().total is None


def test_an_authority_of_its_own(tmp_path: Path) -> None:
    """A certificate counts if the named authority has signed it, and is refused else."""
    require_tool("nginx", "nginx-light")
    with Web(tmp_path / "tls", ca=trustme.CA()) as site:
        (site.root / "a").write_bytes(DATA)
        assert site.ca_file
        assert served(open_store(ref_to(site.url, ca_bundle=site.ca_file.read_text()))) == DATA
        for bundle in (None, trustme.CA().cert_pem.bytes().decode()):
            with pytest.raises(StoreUnavailable, match="caBundleRef"):
                open_store(ref_to(site.url, ca_bundle=bundle)).locate("a")
        with pytest.raises(InvalidConfiguration):
            open_store(ref_to(site.url, ca_bundle="nothing"))


def test_memory_is_bounded_and_records_fit(store: Store, web: faults.Server) -> None:
    """A read gives no more than was asked for; a record has what tells the version."""
    web.serve("/a", Reply(DATA, headers={**ETAG, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}))
    version = store.locate("a")
    record = record_at(KEY, "a", version)
    assert (record.etag, record.last_modified) == ('"one"', "Thu, 01 Jan 2026 00:00:00 GMT")
    with store.read("a", version) as reader:
        assert len(reader.read(1000)) == 1000
        assert len(reader.read()) <= CHUNK
    with pytest.raises(StoreReadOnly):
        put(store, KEY, b"x")
