"""Which copy is sent, and what happens when a copy is not what it should be."""

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.client import IncompleteRead
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from glimpse.gateway.bandwidth import Pace
from glimpse.gateway.copies import Threads, Wanted, cached, fetch
from glimpse.gateway.ranges import Span
from glimpse.problems import DataLost, NotFound, StoreUnavailable
from glimpse.stores import Store
from glimpse.streams import Reader
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import noise
from glimpse.testing.memory import Memory, MemoryConfig
from servers import wait_until
from servers.shelf import Bytes, Content, Shelf, Shown, ask

DATA = noise(1 << 20)
LONG = noise((3 << 20) + 5, seed=1)


def test_heaviest_first(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """The copy of the heaviest store is sent; the others are only a way out."""
    light, heavy = shelf.store(weight=1), shelf.store(weight=500)
    image = shelf.image(namespace, Content(DATA, [heavy], absent=[light]))
    disguised(shelf, light, image)
    assert ask(gateway + image.path, token=token).body == DATA


def disguised(shelf: Shelf, store: str, image: Shown) -> None:
    """Put other bytes there, by size and record the same: no look tells them apart, so whoever reads them has them."""
    shelf.put(store, image, 1, DATA[::-1], digest="sha256:" + hashlib.sha256(DATA).hexdigest())


def test_ready_before_heavy(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A store that is not Ready comes last, and is still better than nothing: a full store can be read."""
    light, heavy = shelf.store(weight=1), shelf.store(weight=500, ready=False)
    image = shelf.image(namespace, Content(DATA, [light], absent=[heavy]))
    disguised(shelf, heavy, image)
    assert ask(gateway + image.path, token=token).body == DATA
    alone = shelf.image(namespace, Content(DATA, [heavy]))
    assert ask(gateway + alone.path, token=token).body == DATA


@pytest.mark.parametrize("fault", ["absent", "short", "long", "other", "store missing", "store unknown"])
def test_next_copy(gateway: str, shelf: Shelf, namespace: str, token: str, fault: str) -> None:
    """A copy that is gone, of another size, or of another digest by its record, is passed over for the next."""
    first, second = shelf.store(weight=500), shelf.store(weight=1)
    if fault == "store missing":
        first = shelf.store(weight=500, missing=True)
    elif fault == "store unknown":
        first = "no-such-store"
    image = shelf.image(namespace, Content(DATA, [second], absent=[first]))
    match fault:
        case "short":
            shelf.put(first, image, 1, DATA[:-1])
        case "long":
            shelf.put(first, image, 1, DATA + b"1")
        case "other":
            shelf.put(first, image, 1, DATA[::-1])
    assert ask(gateway + image.path, token=token).body == DATA
    part = ask(gateway + image.path, token=token, headers={"Range": "bytes=5-9"})
    assert (part.status, part.body) == (206, DATA[5:10])


def test_no_copy(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Without a copy the answer is 503 and says when to come back, for GET and HEAD; no store is named."""
    store = shelf.store()
    image = shelf.image(namespace, Content(DATA, [], absent=[store]))
    got = ask(gateway + image.path, token=token)
    assert (got.status, got.headers["Retry-After"], got.headers["ETag"]) == (503, "5", None)
    assert got.problem()["detail"] == "No store can give the bytes of this image at the moment."
    assert ask(gateway + image.path, token=token, method="HEAD").status == 503
    assert ask(f"{gateway}{image.path}.sha256", token=token).status == 200


def test_reads_during_delete(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Objects that are deleted under many readers give the right bytes or no answer, never other bytes."""
    store = shelf.store()
    images = [shelf.image(namespace, hashlib.sha256(b"%d" % n).digest() * 65536, store=store) for n in range(8)]
    wanted = {i.path: hashlib.sha256(b"%d" % n).digest() * 65536 for n, i in enumerate(images)}
    stop, statuses = threading.Event(), []

    def read(number: int) -> None:
        while not stop.is_set():
            path = images[number % len(images)].path
            got = ask(gateway + path, token=token)
            statuses.append(got.status)
            assert got.status in (200, 503), got.body
            assert got.status == 503 or got.body == wanted[path]
            number += 1

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, n) for n in range(6)]
        for image in images:
            seen = len(statuses)
            while len(statuses) < seen + 6 and not any(r.done() for r in readers):
                threading.Event().wait(0.01)
            shelf.remove(store, image.key())
        stop.set()
        for reader in readers:
            reader.result(timeout=60)
    assert {200, 503} <= set(statuses)


def test_removed_while_it_is_sent(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Who has begun to read gets all of it, though the object is removed meanwhile."""
    store, data = shelf.store(), noise(64 << 20)
    image = shelf.image(namespace, data, store=store)
    with begun(gateway, image.path, token) as connection:
        shelf.remove(store, image.key())
        assert rest(connection) == data


def test_cut_short_while_it_is_sent(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A file that becomes shorter under the reader cuts the connection: no client takes that for the image."""
    store, data = shelf.store(), noise(64 << 20)
    image = shelf.image(namespace, data, store=store)
    with begun(gateway, image.path, token) as connection:
        os.truncate(shelf.data(store, image.key()), 40 << 20)
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            rest(connection)


def test_written_to_while_it_is_sent(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A file that somebody writes to, as he may to one of his own, does not get its end: the connection is cut."""
    store, data = shelf.store(), noise(64 << 20)
    image = shelf.image(namespace, data, store=store)
    with begun(gateway, image.path, token) as connection:
        with shelf.data(store, image.key()).open("r+b") as file:
            file.seek(50 << 20)
            file.write(b"other")
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            rest(connection)


@pytest.mark.parametrize("asked", [None, (1000, 60 << 20)], ids=["whole", "range"])
def test_goes_on_with_another_copy(
    gateway: str, shelf: Shelf, namespace: str, token: str, asked: tuple[int, int] | None
) -> None:
    """A copy that breaks in the middle is replaced by the next one, at the byte where it broke."""
    first, second, data = shelf.store(weight=500), shelf.store(weight=1), noise(64 << 20)
    image = shelf.image(namespace, Content(data, [first, second]))
    span = f"Range: bytes={asked[0]}-{asked[1]}\r\n" if asked else ""
    with begun(gateway, image.path, token, span) as connection:
        os.truncate(shelf.data(first, image.key()), (40 << 20) + 5)
        assert rest(connection) == (data[asked[0] : asked[1] + 1] if asked else data)


def test_no_other_copy_mends_what_others_may_have_changed(
    gateway: str, shelf: Shelf, namespace: str, token: str
) -> None:
    """Where others write, what was sent before a change was seen may be wrong: the connection is cut."""
    first, second, data = shelf.store(weight=500), shelf.store(weight=1), noise(64 << 20)
    image = shelf.image(namespace, Content(data, [first, second]))
    status = shelf.cluster.read(image.object)["status"]
    told = {"location": {"store": first, "key": "import/x"}, "storedAt": "2031-01-01T00:00:00Z"}
    status = {"artifact": status["artifact"] | told, "history": [status["history"][0] | told]}
    path = f"{shelf.cluster.path(image.object)}/status"
    shelf.cluster.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")

    def heard() -> bool:
        return "2031" in (ask(gateway + image.path, token=token, method="HEAD").headers["Last-Modified"] or "")

    wait_until("the gateway", heard, timeout=30)
    with begun(gateway, image.path, token) as connection:
        os.truncate(shelf.data(first, image.key()), (40 << 20) + 5)
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            rest(connection)
    assert ask(gateway + image.path, token=token).body == data


def begun(gateway: str, path: str, token: str, headers: str = "") -> socket.socket:
    """A download of which nothing was taken yet; little fits into the socket's buffers."""
    host, _, port = gateway.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    lines = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
    connection.sendall(lines.encode())
    assert connection.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) in {b"HTTP/1.1 200", b"HTTP/1.1 206"}
    return connection


def rest(connection: socket.socket) -> bytes:
    """The body of the one answer that comes."""
    with connection.makefile("rb") as stream:
        length = 0
        while line := stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = stream.read(length)
    if len(body) < length:
        raise IncompleteRead(body, length - len(body))
    return body


# --- stores without files


class Counted:
    """A meter, without limits unless it is given some."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.sent, self.pace = 0, pace

    def count(self, sent: int, /) -> None:
        """So many more."""
        self.sent += sent
        if self.pace:
            self.pace.count(sent)


class Narrow(Pace):
    """Lets a few bytes pass at a time, and at once."""

    def __init__(self) -> None:
        self.granted = 0

    async def allow(self, wanted: int) -> int:
        """Few."""
        assert not self.granted
        self.granted = min(wanted, 50_001)
        return self.granted

    def count(self, sent: int) -> None:
        """All that was granted, if there is as much."""
        assert sent <= self.granted
        self.granted = 0


@asynccontextmanager
async def sending(store: Store, wanted: Wanted, *spans: Span, pace: Pace | None = None) -> AsyncIterator[str]:
    """A server that sends these parts of an object; its URL."""
    threads = Threads()
    meter = Counted(pace)

    async def send(request: web.Request) -> web.StreamResponse:
        async with threads.open(store, wanted, spans[0]) as copy:
            response = web.StreamResponse()
            response.content_length = sum(span.length for span in spans)
            await response.prepare(request)
            for span in spans:
                await copy.send(request, response, span, meter)
            assert meter.sent == response.content_length
            return response

    app = web.Application()
    app.add_routes([web.get("/", send)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
        threads.close()


@pytest.fixture
def pulled(tmp_path: Path) -> tuple[Store, Wanted]:
    """A store without files, with DATA in it."""
    place = str(tmp_path)
    ref = StoreRef(name="memory", driver="memory", config={"place": place}, installation="tests")
    store = Store(ref, Memory(MemoryConfig(place=place), {}, None))
    digest = "sha256:" + hashlib.sha256(LONG).hexdigest()
    record = Record(installation="tests", namespace="n", name="i", uid="0", revision=1, spec_hash="0", digest=digest)
    store.put("0-1", "a", Bytes(LONG), lambda: record)
    return store, Wanted("0-1", len(LONG), digest)


@pytest.mark.parametrize("pace", [None, Narrow()], ids=["unlimited", "limited"])
async def test_pulled(pulled: tuple[Store, Wanted], pace: Pace | None) -> None:
    """A store without files is pulled chunk by chunk, wholly or in part; what was read first is sent once."""
    store, wanted = pulled
    assert store.open("0-1") is None
    whole, parts = Span(0, len(LONG)), [Span(0, 1), Span((1 << 20) - 1, 2), Span(len(LONG) - 1, 1)]
    for spans in ([whole], *([part] for part in parts), parts[::-1], [*parts, Span(0, 0)]):
        async with (
            sending(store, wanted, *spans, pace=pace) as url,
            aiohttp.ClientSession() as session,
            session.get(url) as got,
        ):
            assert await got.read() == b"".join(LONG[span.start : span.start + span.length] for span in spans)


async def test_a_look_reads_nothing(pulled: tuple[Store, Wanted]) -> None:
    """HEAD asks a store whether it has the object, and opens nothing there: a server would begin to send all of it."""
    store, wanted = pulled
    opened: list[str] = []

    class Counting(Memory):
        @contextmanager
        def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
            opened.append(key)
            with super().get(key, offset, length) as reader:
                yield reader

    counting = Store(store._ref, Counting(MemoryConfig(place=store._ref.config["place"]), {}, None))
    threads = Threads()
    async with threads.open(counting, wanted, None):
        assert opened == []
    with pytest.raises(NotFound):
        async with threads.open(counting, wanted._replace(key="0-2"), None):
            pass
    async with threads.open(counting, wanted, Span(0, 1)):
        assert opened == ["0-1"]
    threads.close()


async def test_pulled_is_looked_at(pulled: tuple[Store, Wanted]) -> None:
    """Size and digest are compared before anything is sent, as with files."""
    store, wanted = pulled
    threads = Threads()
    for wrong, problem in (
        (wanted._replace(size=7), DataLost),
        (wanted._replace(digest="sha256:00"), DataLost),
        (wanted._replace(key="0-2"), NotFound),
    ):
        with pytest.raises(problem):
            async with threads.open(store, wrong, Span(0, 1)):
                pass
    threads.close()


async def test_fails_at_the_first_read(pulled: tuple[Store, Wanted]) -> None:
    """What is wrong is said before anything is promised, also by a store that opens all and asks when it is read."""
    store, wanted = pulled
    closed: list[str] = []

    class Lazy(Memory):
        @contextmanager
        def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:  # noqa: ARG002 - the contract
            yield Late(b"" if offset else None)
            closed.append(key)

    lazy = Store(store._ref, Lazy(MemoryConfig(place=store._ref.config["place"]), {}, None))
    threads = Threads()
    for start, problem in ((0, StoreUnavailable), (1, DataLost)):
        with pytest.raises(problem):
            async with threads.open(lazy, wanted, Span(start, 7)):
                pass
    assert closed == [wanted.key] * 2
    async with threads.open(lazy, wanted, Span(0, 0)):
        pass  # the end of several ranges has no bytes
    async with threads.open(lazy, wanted, None):
        pass  # a look reads nothing
    threads.close()


class Late:
    """A Reader that gives this, or fails."""

    size: int | None = None

    def __init__(self, gives: bytes | None) -> None:
        self._gives = gives

    def read(self, _n: int = 1, /) -> bytes:
        """As it was told."""
        if self._gives is None:
            raise StoreUnavailable("the server is away")
        return self._gives


async def test_cancelled_while_a_thread_reads() -> None:
    """What a thread reads from is closed after the thread has come back, not under it."""
    threads, order = Threads(), []
    started, go = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        go.wait(120)
        order.append("read")

    async def use() -> None:
        try:
            await threads.run("store", slow)
        finally:
            order.append("closed")

    task = asyncio.create_task(use())
    await asyncio.to_thread(started.wait)
    task.cancel()
    asyncio.get_running_loop().call_later(0.1, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["read", "closed"]
    threads.close()


async def test_a_store_that_hangs(pulled: tuple[Store, Wanted], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not open an object is given up in time, holds up no other, and its late answer is closed."""
    monkeypatch.setattr("glimpse.gateway.copies.OPENING", 0.2)
    store, wanted = pulled
    go, closed = threading.Event(), threading.Event()

    class Hanging(Memory):
        @contextmanager
        def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
            go.wait(120)
            with super().get(key, offset, length) as reader:
                yield reader
            closed.set()

    config = MemoryConfig(place=store._ref.config["place"])
    hanging = Store(store._ref.model_copy(update={"name": "hanging"}), Hanging(config, {}, None))
    threads = Threads()
    for _ in range(20):  # more than it has threads
        with pytest.raises(StoreUnavailable, match="within"):
            async with threads.open(hanging, wanted, Span(0, 1)):
                pass
    async with threads.open(store, wanted, Span(0, 1)):
        pass
    go.set()
    assert await asyncio.to_thread(closed.wait, 10)
    threads.close()


def test_cached(tmp_path: Path) -> None:
    """What was dropped from memory is seen as such, and is there again after it was fetched."""
    file = tmp_path / "file"
    file.write_bytes(noise(8 << 20))
    with file.open("rb") as opened:
        fd = opened.fileno()
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert not cached(fd, 0, 8 << 20)
        fetch(fd, 1 << 20, 2 << 20)
        assert cached(fd, 1 << 20, 2 << 20)
        assert cached(fd, (3 << 20) - 1, 1)


def test_cold(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """An object that is not in memory is sent all the same."""
    store = shelf.store()
    image = shelf.image(namespace, LONG * 5, store=store)
    with shelf.data(store, image.key()).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert not cached(file.fileno(), 0, len(LONG) * 5)
    assert ask(gateway + image.path, token=token).body == LONG * 5
