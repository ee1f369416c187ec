"""Stores that have failed: which is read from first, and for how long that is remembered."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import pytest
from aiohttp import web

from glimpse.gateway import places
from glimpse.gateway.bandwidth import Bandwidth
from glimpse.gateway.catalog import Catalog, Entry, Revision
from glimpse.gateway.copies import Threads
from glimpse.gateway.meters import Meters
from glimpse.gateway.parts import body
from glimpse.gateway.places import Places
from glimpse.gateway.redirect import Redirects
from glimpse.gateway.sending import Sending
from glimpse.kube import Kube
from glimpse.problems import DataLost, NotFound, Problem, StoreRefused, StoreUnauthorized, StoreUnavailable
from glimpse.stores import Store
from glimpse.streams import Reader
from glimpse.tasks import Record, StoreRef
from glimpse.testing.memory import Memory, MemoryConfig
from servers.shelf import Bytes

DATA: Final = b"0123456789"
DIGEST: Final = "sha256:" + hashlib.sha256(DATA).hexdigest()
SINCE: Final = datetime(2026, 1, 2, tzinfo=UTC)
UNASKED: Final = cast("Kube", None)
"""Stores without a Secret ask it nothing."""


def shown(name: str, weight: int, *, ready: bool = True, probed: int = 0, path: str = "/stores") -> dict[str, Any]:
    """What a watch tells of an ImageStore that was looked at in this minute."""
    said = {
        "type": "Ready",
        "status": str(ready),
        "reason": "X",
        "message": "",
        "lastTransitionTime": f"{SINCE:%FT%TZ}",
    }
    status = {"conditions": [said], "installation": "tests", "lastProbeTime": f"{SINCE:%FT%H}:{probed:02}:00Z"}
    meta = {"name": name, "uid": name}
    return {"metadata": meta, "spec": {"weight": weight, "filesystem": {"path": path}}, "status": status}


@pytest.fixture
def three(tmp_path: Path) -> Places:
    """Three stores, the heaviest first by their names."""
    found = Places(UNASKED, "glimpse-system")
    for name, weight in (("a", 3), ("b", 2), ("c", 1)):
        found.learn("ADDED", shown(name, weight, path=str(tmp_path)))
    return found


async def order(found: Places) -> str:
    """In which they are tried."""
    return "".join([store.name async for store in found.copies(["c", "b", "a"])])


@pytest.mark.parametrize(
    ("problem", "then"),
    [
        (StoreUnavailable, "bca"),
        (StoreUnauthorized, "bca"),
        (StoreRefused, "bca"),
        (DataLost, "abc"),
        (NotFound, "abc"),
    ],
)
async def test_tried_after_the_others(three: Places, problem: type[Problem], then: str) -> None:
    """A store that has failed comes last, and not for what is wrong with one object."""
    assert await order(three) == "abc"
    three.failed("a", problem("x"))
    three.failed("missing", problem("x"))
    assert await order(three) == then
    assert (three.avoided("a"), three.avoided("missing")) == (then != "abc", False)


async def test_for_a_while(three: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is forgotten in time; one that is not ready comes before it until then."""
    three.learn("MODIFIED", shown("b", 2, ready=False))
    three.failed("a", StoreUnavailable("x"))
    assert await order(three) == "cba"
    monkeypatch.setattr(places, "AVOID", 0.0)
    assert await order(three) == "acb"


async def test_forgotten_when_it_gives_bytes(three: Places) -> None:
    """A read that succeeds says that it is there."""
    three.failed("a", StoreUnavailable("x"))
    three.gave("b")
    assert await order(three) == "bca"
    three.gave("a")
    three.gave("missing")
    assert await order(three) == "abc"


async def test_forgotten_when_its_probe_succeeds(three: Places) -> None:
    """A new look at it counts: no old one that is told again, and none that has failed."""
    three.failed("a", StoreUnavailable("x"))
    three.learn("MODIFIED", shown("a", 3))
    assert await order(three) == "bca"
    three.learn("MODIFIED", shown("a", 3, probed=1, ready=False))
    three.learn("MODIFIED", shown("a", 3, probed=1))
    assert await order(three) == "bca"
    three.learn("MODIFIED", shown("a", 3, probed=2))
    assert await order(three) == "abc"


class Away(Memory):
    """A store whose server can be away, which it sees at the first read."""

    away = False
    asked = 0

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Open what is there, without asking."""
        with super().get(key, offset, length) as reader:
            yield Asking(self, reader)

    def link(self, key: str, _seconds: float, _name: str, /) -> str:
        """Where its server would give it."""
        self.asked += 1
        if self.away:
            raise StoreUnavailable("the server is away")
        return f"http://127.0.0.1:9/{key}"


class Asking:
    """A Reader that asks when it is read."""

    size: int | None = None

    def __init__(self, store: Away, reader: Reader) -> None:
        self._store, self._reader = store, reader

    def read(self, n: int = 1, /) -> bytes:
        """As the reader, unless the server is away."""
        self._store.asked += 1
        if self._store.away:
            raise StoreUnavailable("the server is away")
        return self._reader.read(n)


@pytest.fixture
def drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Away]:
    """Two stores, the heavier one first, with the same object; the gateway opens these."""
    made, stores = dict[str, Away](), dict[str, Store]()
    for name in ("heavy", "light"):
        config = {"place": f"{tmp_path}/{name}"}
        made[name] = Away(MemoryConfig.model_validate(config), {}, None)
        ref = StoreRef(name=name, driver="memory", config=config, installation="tests")
        record = Record(
            installation="tests", namespace="n", name="i", uid="0", revision=1, spec_hash="0", digest=DIGEST
        )
        stores[name] = Store(ref, made[name])
        stores[name].put("0-1", "a", Bytes(DATA), lambda record=record: record)  # type: ignore[misc]  # bound here
    monkeypatch.setattr(places, "open_store", lambda ref: stores[ref.name])
    return made


@pytest.fixture
async def url(drivers: dict[str, Away]) -> AsyncIterator[str]:
    """Sends the object from the stores that the path names; with `?redirect=true` it leads to one if it can."""
    catalog, threads, meters = Catalog(UNASKED, "glimpse-system", silence=60), Threads(), Meters()
    for weight, name in enumerate(reversed(drivers), 1):
        catalog.places.learn("ADDED", shown(name, weight))
    sending = Sending(catalog, cast("Any", None), threads, meters, Bandwidth(0, 0))
    redirects = Redirects(catalog.places, threads, meters, "asked", base="http://gateway")

    async def send(request: web.Request) -> web.StreamResponse:
        revision = Revision(1, DIGEST, (), len(DATA), "raw", SINCE, tuple(request.match_info["stores"].split("+")))
        response, content = web.StreamResponse(), body((), len(DATA))
        response.content_length = content.length
        entry = Entry("0", 1, (revision,))
        if elsewhere := await redirects.find(request, entry, revision, "x.raw"):
            return elsewhere
        sent = await sending.send(request, response, entry, revision, content)
        return response if sent else web.Response(status=503)

    app = web.Application()
    app.add_routes([web.get("/{stores}", send)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()
    threads.close()


async def test_downloads_pay_once(url: str, drivers: dict[str, Away]) -> None:
    """One download finds out that a server is away, the next ones ask it only if there is no other copy."""
    heavy = drivers["heavy"]
    async with aiohttp.ClientSession() as session:

        async def get(stores: str) -> tuple[int, int]:
            """The status, and how often the heavier store was asked for it."""
            before = heavy.asked
            async with session.get(f"{url}/{stores}") as got:
                assert await got.read() == (DATA if got.status == 200 else b"")
                return got.status, heavy.asked - before

        assert await get("heavy+light") == (200, 1)
        heavy.away = True
        assert await get("heavy+light") == (200, 1)
        assert await get("heavy+light") == (200, 0)
        assert await get("heavy") == (503, 1)
        async with session.head(f"{url}/heavy") as seen:
            assert seen.status == 200  # it was not read from
        assert await get("heavy+light") == (200, 0)
        heavy.away = False
        assert await get("heavy+light") == (200, 0)
        assert await get("heavy") == (200, 1)
        assert await get("heavy+light") == (200, 1)


async def test_nobody_is_led_to_a_store_that_has_failed(url: str, drivers: dict[str, Away]) -> None:
    """It is not asked for an address again: the bytes come from a copy that can be read, at last from its own."""
    heavy = drivers["heavy"]
    async with aiohttp.ClientSession() as session:

        async def get() -> tuple[int, int]:
            before = heavy.asked
            async with session.get(f"{url}/heavy?redirect=true", allow_redirects=False) as got:
                return got.status, heavy.asked - before

        assert await get() == (307, 1)
        heavy.away = True
        assert await get() == (503, 2)  # for an address, and for the bytes
        assert await get() == (503, 1)
        heavy.away = False
        assert await get() == (200, 1)
        assert await get() == (307, 1)
