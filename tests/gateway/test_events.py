"""Events of the list: what watchers are told, how they go on, and what slow ones and many cost."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import aiohttp
import pytest
from aiohttp import web
from tests.gateway.test_index import image

from glimpse.gateway import access as rights
from glimpse.gateway import events
from glimpse.gateway import index as module
from glimpse.gateway.access import Access
from glimpse.gateway.app import _answering
from glimpse.gateway.events import Events
from glimpse.gateway.index import Index
from glimpse.gateway.meters import Meters
from glimpse.kube import Kube
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Shelf, ask


class Event(NamedTuple):
    """One block of the stream."""

    kind: str
    data: dict[str, Any]
    id: str


class Watcher:
    """A client of the stream, as the standard has it."""

    def __init__(self, gateway: str, token: str, last: str = "", **asked: Any) -> None:
        parts = urlsplit(gateway)
        self.connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
        headers = ({"Authorization": f"Bearer {token}"} if token else {}) | ({"Last-Event-ID": last} if last else {})
        self.connection.request("GET", f"/v1/images/events?{urlencode(asked, doseq=True)}", headers=headers)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["Content-Type"] == "text/event-stream"
        self.last = last

    def block(self) -> Event | None:
        """The next block; None at the end. One without data is a sign of life."""
        told: dict[str, str] = {}
        while (line := self.answer.readline().decode()) != "\n":
            if not line:
                return None
            name, _, value = line.rstrip("\n").partition(": ")
            assert name not in told
            told[name] = value
        self.last = told.get("id", self.last)
        return Event(told.get("event", ""), json.loads(told.get("data", "{}")), told.get("id", ""))

    def event(self) -> Event:
        """The next event."""
        while (found := self.block()) is not None:
            if found.kind:
                return found
        raise AssertionError("the stream has ended")

    def told(self) -> tuple[str, str]:
        """The next event, in short."""
        found = self.event()
        return found.kind, found.data.get("name", "")

    def synced(self) -> list[str]:
        """Names of what is there, to the end of the telling."""
        assert self.told() == ("RESET", "")
        names = []
        while (found := self.event()).kind != "SYNCED":
            assert (found.kind, found.id) == ("ADDED", "")
            names.append(found.data["name"])
        assert found.id
        return names


@contextlib.contextmanager
def watching(gateway: str, token: str, last: str = "", **asked: Any) -> Iterator[Watcher]:
    """A watcher that leaves at the end."""
    watcher = Watcher(gateway, token, last, **asked)
    try:
        yield watcher
    finally:
        watcher.connection.close()


def bare(shelf: Shelf, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """An image without bytes; the object, to be changed."""
    image = shelf.image(namespace, [], name=name, served=None, spec=spec)
    return image.object | {"spec": {"source": {"http": {"urls": ["http://127.0.0.1:9/nothing"]}}, **spec}}


def alter(cluster: Cluster, obj: dict[str, Any], **spec: Any) -> None:
    """Change some of its spec."""
    cluster.request("PATCH", cluster.path(obj), {"spec": spec}, content_type="application/merge-patch+json")


def watchers(gateway: str) -> int:
    """How many there are."""
    (line,) = (
        line for line in ask(f"{gateway}/metrics").body.splitlines() if line.startswith(b"glimpse_gateway_watchers ")
    )
    return int(float(line.split()[1]))


def listed(gateway: str, token: str, namespace: str, names: Sequence[str]) -> None:
    """Wait until the gateway knows these images and no others, whole."""

    def there() -> bool:
        got = json.loads(ask(f"{gateway}/v1/images?namespace={namespace}&status=Shelf", token=token).body)
        return [each["name"] for each in got["images"]] == list(names)

    wait_until(f"the list of {names}", there, timeout=20)


def test_what_happens(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, token: str) -> None:
    """A watcher is told what is there, then what comes, changes and goes, each with an id."""
    first = bare(shelf, namespace, "first")
    listed(gateway, token, namespace, ["first"])
    with watching(gateway, token, namespace=namespace, fields="name,title") as watcher:
        assert watcher.synced() == ["first"]
        alter(cluster, first, title="T")
        found = watcher.event()
        assert (found.kind, found.data) == ("MODIFIED", {"name": "first", "title": "T"})
        assert found.id
        bare(shelf, namespace, "second")
        assert watcher.told() == ("ADDED", "second")
        assert watcher.told() == ("MODIFIED", "second")  # its status
        cluster.request("DELETE", cluster.path(first))
        found = watcher.event()
        assert (found.kind, {*found.data}) == ("DELETED", {"namespace", "name", "uid"})


def test_going_on(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, token: str) -> None:
    """One who comes back with the last id is told what he missed, and nothing else."""
    first = bare(shelf, namespace, "first")
    listed(gateway, token, namespace, ["first"])
    with watching(gateway, token, namespace=namespace) as watcher:
        watcher.synced()
    alter(cluster, first, title="T")
    bare(shelf, namespace, "second")
    listed(gateway, token, namespace, ["first", "second"])
    with watching(gateway, token, watcher.last, namespace=namespace) as again:
        assert [again.told() for _ in range(3)] == [("MODIFIED", "first"), ("ADDED", "second"), ("MODIFIED", "second")]
    cluster.request("DELETE", cluster.path(first))
    listed(gateway, token, namespace, ["second"])
    with watching(gateway, token, again.last, namespace=namespace) as third:
        assert third.told() == ("DELETED", "first")
    with watching(gateway, token, again.last, namespace=namespace, tag="x") as other:
        assert other.synced() == []  # another question: what is there now
    epoch, number, suffix = again.last.split("-")
    for strange in (f"00000000-{number}-{suffix}", f"{epoch}-{10**17}-{suffix}", f"{epoch}-x-{suffix}", "1", "-" * 99):
        with watching(gateway, token, strange, namespace=namespace) as stranger:
            assert stranger.synced() == ["second"]


def test_coming_into_sight(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """What comes to be meant or visible is added for who is told of it, and what ceases to be is deleted."""
    stranger = shelf.grant(cluster.namespace(), "stranger")
    image = bare(shelf, namespace, "image", tags=["x"])
    with watching(gateway, stranger, namespace=namespace, tag="x") as watcher:
        assert watcher.synced() == []
        alter(cluster, image, visibility="public")
        assert watcher.told() == ("ADDED", "image")
        alter(cluster, image, tags=["y"])
        assert watcher.told() == ("DELETED", "image")
        alter(cluster, image, tags=["x", "y"])
        assert watcher.told() == ("ADDED", "image")
        alter(cluster, image, hidden=True)
        assert watcher.told() == ("DELETED", "image")
        alter(cluster, image, hidden=False)
        assert watcher.told() == ("ADDED", "image")
        alter(cluster, image, visibility="private", title="secret")
        found = watcher.event()
        assert (found.kind, "title" in found.data) == ("DELETED", False)


def test_refusals(gateway: str, token: str) -> None:
    """What cannot be watched is a problem, as for the list; a page has no events."""
    for query, status in (("sort=name", 400), ("limit=5", 400), ("cursor=x", 400), ("x=1", 400), ("as=none", 403)):
        got = ask(f"{gateway}/v1/images/events?{query}", token=token)
        assert got.status == status
        assert got.problem()["detail"]
    assert ask(f"{gateway}/v1/images/events").status == 401
    assert ask(f"{gateway}/v1/images/events", token=token, method="HEAD").status == 405


def test_not_too_many(gateway: str, namespace: str, token: str) -> None:
    """One user has sixteen streams at most; one that ends makes room."""
    with contextlib.ExitStack() as stack:
        own = [stack.enter_context(watching(gateway, token, namespace=namespace)) for _ in range(16)]
        got = ask(f"{gateway}/v1/images/events", token=token)
        assert (got.status, got.headers["Retry-After"]) == (429, "5")
        assert got.problem()["detail"] == "You watch 16 times already."
        assert watchers(gateway) >= 16
        for watcher in own:
            watcher.synced()


def test_who_leaves_makes_room(gateway: str, namespace: str, token: str) -> None:
    """A watcher who leaves is noticed soon, also while there is nothing to tell."""
    with watching(gateway, token, namespace=namespace) as watcher:
        watcher.synced()
        assert watchers(gateway) > 0
    wait_until("all to have left", lambda: watchers(gateway) == 0, timeout=30)


def test_a_slow_watcher_is_cut_off(glimpse: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """One who takes nothing for the time that clients have (5 s here) is cut off, and held nothing up meanwhile.

    He comes back with his last id; as too much has happened since, he begins anew.
    """
    gateway = glimpse.installation.gateway_url
    large = bare(shelf, namespace, "large", properties={f"p{n}": "x" * 1000 for n in range(120)})
    listed(gateway, token, namespace, ["large"])
    wait_until("all to have left", lambda: watchers(gateway) == 0, timeout=30)
    with watching(gateway, token, namespace=namespace) as slow, watching(gateway, token, namespace=namespace) as quick:
        assert slow.connection.sock
        slow.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        assert slow.synced() == quick.synced() == ["large"]
        memory = glimpse.rss()["gateway"]
        for number in range(50):
            alter(shelf.cluster, large, title=str(number))
            assert quick.event().data["title"] == str(number)
        wait_until("the slow one to be cut off", lambda: watchers(gateway) == 1, timeout=30)
        assert glimpse.rss()["gateway"] < memory + (32 << 20)
        with watching(gateway, token, slow.last, namespace=namespace) as again:
            assert again.synced() == ["large"]


def test_the_end_of_the_gateway(cluster: Cluster, namespace: str, shelf: Shelf, tmp_path: Path) -> None:
    """SIGTERM ends the streams at once and in order: nobody waits for what never ends."""
    token = shelf.grant(namespace, "reader")
    own = Glimpse(tmp_path / "gateway", cluster=cluster, settings={"GLIMPSE_GATEWAY_DRAIN": "60"})
    own.launch("gateway")
    try:
        own.await_ready("gateway")
        with watching(own.installation.gateway_url, token, namespace=namespace) as watcher:
            watcher.synced()
            own.processes["gateway"].signal(signal.SIGTERM)
            assert own.processes["gateway"].wait(40)
            while watcher.block():
                pass
    finally:
        own.stop()


@dataclass(frozen=True)
class Served:
    """The stream in this process, so that a test can say what happens between two of its steps."""

    index: Index
    url: str
    session: aiohttp.ClientSession

    def watch(self, token: str, **headers: str) -> "aiohttp.client._RequestContextManager":
        """A watcher of public images."""
        return self.session.get(self.url, headers={"Authorization": f"Bearer {token}", **headers})


async def lines(answer: aiohttp.ClientResponse, last: bytes) -> list[bytes]:
    """What comes, to the end of the block that begins so."""
    found: list[bytes] = []
    while not (found and found[-1] == b"\n" and any(line.startswith(last) for line in found)):
        found.append(await answer.content.readline())
        assert found[-1], found
    return found


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for four, and it is soon noticed that one has left."""
    monkeypatch.setattr(events, "WATCHERS", 4)
    monkeypatch.setattr(events, "LOOK", 0.05)


@pytest.fixture
async def served(cluster: Cluster) -> AsyncIterator[Served]:
    """The stream over an index that the test feeds, with the rights of the real API server."""
    kube, index = await Kube.connect(cluster.kubeconfig), Index()
    index.synced = True
    meters = Meters()
    app = web.Application(middlewares=[_answering(meters)])
    app.add_routes(Events(index, Access(kube, "glimpse"), meters, 30).routes())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        yield Served(index, f"http://127.0.0.1:{runner.addresses[0][1]}/v1/images/events", session)
    await runner.cleanup()
    await kube.close()


async def test_falling_behind(
    served: Served, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who is further behind than what is remembered is cut off: he would miss something."""
    monkeypatch.setattr(module, "CHANGES", 3)
    token = await asyncio.to_thread(cluster.token_for, namespace, "nobody", audience="glimpse")
    async with served.watch(token) as answer:
        await lines(answer, b"event: SYNCED")
        for number in range(3):
            served.index.take("ADDED", image("1", visibility="public", title=str(number)))
        told = await lines(answer, b"id: " + f"{served.index.epoch}-3-".encode())
        assert [line for line in told if line.startswith(b"event")] == [b"event: ADDED\n"] + [b"event: MODIFIED\n"] * 2
        for number in range(4):
            served.index.take("MODIFIED", image("1", visibility="public", title=f"more {number}"))
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


@pytest.mark.usefixtures("few")
async def test_half_of_the_streams(served: Served, cluster: Cluster, namespace: str) -> None:
    """All accounts of a namespace have half of the streams; others find room, and so do they when one has ended."""
    tokens = [await asyncio.to_thread(cluster.token_for, namespace, f"a{n}", audience="glimpse") for n in range(3)]
    theirs = await asyncio.to_thread(cluster.token_for, cluster.namespace(), "b", audience="glimpse")
    async with served.watch(tokens[0]) as first:
        await lines(first, b"event: SYNCED")
        async with served.watch(tokens[1]) as second:
            await lines(second, b"event: SYNCED")
            async with served.watch(tokens[2]) as third:
                assert (third.status, third.headers["Retry-After"]) == (503, "5")
            async with served.watch(theirs) as another:
                await lines(another, b"event: SYNCED")
        async with asyncio.timeout(30):
            status = 503
            while status == 503:
                async with served.watch(tokens[2]) as third:
                    status = third.status
        assert status == 200


async def test_signs_of_life(served: Served, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is nothing to tell there are signs of life, whose ids keep up with what is not told."""
    monkeypatch.setattr(events, "HEARTBEAT", 0.05)
    token = await asyncio.to_thread(cluster.token_for, namespace, "nobody", audience="glimpse")
    async with served.watch(token) as answer:
        told = await lines(answer, b"event: SYNCED")
        last = told[-2].decode().removeprefix("id: ").strip()
        assert await lines(answer, b"id: ") == [f"id: {last}\n".encode(), b"\n"]
        served.index.take("ADDED", image("1"))  # private
        moved = last.replace("-0-", "-1-")
        await lines(answer, f"id: {moved}".encode())
    served.index.take("ADDED", image("2", name="public", visibility="public"))
    async with served.watch(token, **{"Last-Event-ID": moved}) as answer:
        assert (await lines(answer, b"id: "))[0] == b"event: ADDED\n"


async def test_a_right_that_is_withdrawn(
    served: Served, cluster: Cluster, shelf: Shelf, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sees less than before, or is nobody any more, is sent away; he comes back to what there is for him."""
    for where, name in ((events, "HEARTBEAT"), (events, "RECHECK"), (rights, "YES")):
        monkeypatch.setattr(where, name, 0.05)
    token = await asyncio.to_thread(shelf.grant, namespace, "reader")
    served.index.take("ADDED", image("1", namespace=namespace))
    async with served.watch(token) as answer:
        last = (await lines(answer, b"event: SYNCED"))[-2].decode().removeprefix("id: ").strip()
        await lines(answer, b"id: ")
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
        path = cluster.path(role | {"metadata": {"name": "reader", "namespace": namespace}})
        await asyncio.to_thread(cluster.request, "DELETE", path)
        await answer.read()
        assert answer.content.at_eof()
    async with served.watch(token, **{"Last-Event-ID": last}) as answer:
        told = await lines(answer, b"event: SYNCED")
        assert [line for line in told if line.startswith(b"event")] == [b"event: RESET\n", b"event: SYNCED\n"]
