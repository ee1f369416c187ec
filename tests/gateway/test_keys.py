"""How a gateway knows the keys of links: by a watch, and never longer than it can be believed."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.relay import Relay, relay

from glimpse.gateway import keys as module
from glimpse.gateway.keys import Keys
from glimpse.gateway.refusals import Refusal
from glimpse.kube import SECRET, Kube
from glimpse.linkkeys import SECRET_NAME
from servers.kube import Cluster


class World(NamedTuple):
    """Keys in a Secret of the test's own, behind what counts requests and can hold them up."""

    keys: Keys
    between: Relay
    kube: Kube
    namespace: str

    async def make(self) -> None:
        """A Secret with one key."""
        body = {"metadata": {"name": SECRET_NAME}, "data": {"first": _value()}}
        await self.kube.create(SECRET, body, self.namespace)

    async def add(self, name: str) -> None:
        """One more key."""
        secret = await self.kube.get(SECRET, SECRET_NAME, self.namespace)
        await self.kube.set_data(SECRET, secret, {name: _value()})

    def reads(self) -> int:
        """How often the Secret was read by its name."""
        return self.between.count("GET", SECRET.path(self.namespace, SECRET_NAME))


def _value() -> str:
    return base64.b64encode(os.urandom(32)).decode()


@pytest.fixture
async def world(cluster: Cluster, tmp_path: Path, namespace: str) -> AsyncIterator[World]:
    """Keys whose watch has not begun."""
    async with relay(cluster, tmp_path) as between:
        direct, behind = await Kube.connect(cluster.kubeconfig), await Kube.connect(between.kubeconfig(cluster.token))
        keys = Keys(behind, namespace, silence=60)
        yield World(keys, between, direct, namespace)
        await keys.close()
        await behind.close()
        await direct.close()


async def refused(asked: object) -> int:
    """Assert that there is no answer now, but may be one later."""
    with pytest.raises(Refusal) as refusal:
        await asked  # type: ignore[misc]  # any of two coroutines
    assert "Retry-After" in refusal.value.headers
    return refusal.value.status


async def test_a_watch_that_is_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of which the watch has not told yet is looked for, but not at each request: strangers can name any key."""
    monkeypatch.setattr(module, "AGAIN", 3600.0)
    await world.make()
    world.keys.start()
    assert (await world.keys.newest()).name == "first"
    assert await world.keys.named("first")
    assert world.reads() == 0
    world.between.flowing.clear()
    await world.add("second")
    world.keys._looked_at = -3600.0
    assert await world.keys.named("second")
    assert (await world.keys.newest()).name == "first"  # what was read once is not kept: the watch may be ahead of it
    found = await asyncio.gather(*(world.keys.named(f"guess-{number}") for number in range(50)))
    assert found == [None] * 50
    assert world.reads() == 1


async def test_no_secret(world: World) -> None:
    """Without one nothing can be signed, and no key is known."""
    world.keys.start()
    assert await refused(world.keys.newest()) == 503
    assert await world.keys.named("first") is None
    await world.make()
    async with asyncio.timeout(30):
        while not await world.keys.named("first"):  # noqa: ASYNC110 - the watch tells the keys, and nobody else
            await asyncio.sleep(0.02)


async def test_not_known_yet_or_any_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first list and after a long silence no key is believed: it may have been removed."""
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    await world.make()
    assert await refused(world.keys.newest()) == await refused(world.keys.named("first")) == 503
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    world.keys.start()
    assert await world.keys.named("first")
    world.keys._heard = time.monotonic() - 61
    assert await refused(world.keys.newest()) == await refused(world.keys.named("first")) == 503


async def test_the_api_server_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are known count on; of others it is not said that there are none."""
    await world.make()
    world.keys.start()
    assert await world.keys.named("first")
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "AGAIN", 3600.0)
    world.keys._looked_at = -3600.0
    world.between.away = True
    assert await world.keys.named("first")
    assert {await refused(world.keys.named(f"guess-{number}")) for number in range(20)} == {503}
    assert world.reads() <= 2
