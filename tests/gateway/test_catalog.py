"""What is asked of the API server where the watch knows nothing: little, however much is asked for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.relay import Relay, relay

from glimpse.gateway import catalog
from glimpse.gateway.catalog import Catalog
from glimpse.kube import IMAGE, Kube
from servers.kube import Cluster
from servers.shelf import Shelf


@pytest.fixture
async def between(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Relay]:
    """What counts the requests."""
    async with relay(cluster, tmp_path) as found:
        yield found


@pytest.fixture
async def blind(between: Relay) -> AsyncIterator[Catalog]:
    """A catalogue whose watch has not begun, as one that is late."""
    kube = await Kube.connect(between.kubeconfig(between.cluster.token))
    yield Catalog(kube, "glimpse-system", silence=60)
    await kube.close()


async def test_an_absent_name_is_asked_for_once(
    between: Relay, blind: Catalog, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That there is no object of a name is remembered for a moment, by a bounded number of names."""
    monkeypatch.setattr(catalog, "ABSENT", 3600.0)
    monkeypatch.setattr(catalog, "KEPT", 3)
    for _ in range(5):
        assert await blind.find(namespace, "missing", None, None) is None
    assert between.count("GET", IMAGE.path(namespace, "missing")) == 1
    for number in range(10):
        await blind.find(namespace, f"missing-{number}", None, None)
    assert len(blind._absent) == 3
    await blind.find(namespace, "missing", None, None)
    assert between.count("GET", IMAGE.path(namespace, "missing")) == 2


async def test_a_name_is_absent_for_a_moment_only(
    between: Relay, blind: Catalog, shelf: Shelf, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the moment it is asked for again; and of an image without bytes nothing is remembered."""
    monkeypatch.setattr(catalog, "ABSENT", 0.0)
    assert await blind.find(namespace, "new", None, None) is None
    store = await asyncio.to_thread(shelf.store)
    image = await asyncio.to_thread(shelf.image, namespace, b"bytes", store=store, name="new", served=None)
    monkeypatch.setattr(catalog, "ABSENT", 3600.0)
    assert await blind.find(namespace, "new", None, None) is None  # there is one, but it serves nothing yet
    assert await blind.find(namespace, "new", 1, image.uid)
    assert between.count("GET", IMAGE.path(namespace, "new")) == 3


async def test_the_watch_ends_an_absence(blind: Catalog, shelf: Shelf, namespace: str) -> None:
    """What the watch tells of is not absent any more."""
    assert await blind.find(namespace, "new", None, None) is None
    store = await asyncio.to_thread(shelf.store)
    image = await asyncio.to_thread(shelf.image, namespace, b"bytes", store=store, name="new", served=None)
    blind._image("ADDED", image.object | {"metadata": image.object["metadata"] | {"uid": image.uid}})
    assert not blind._absent
    assert await blind.find(namespace, "new", 1, image.uid)


async def test_few_look_at_once(between: Relay, blind: Catalog, namespace: str) -> None:
    """A flood of names that are not there becomes no flood of requests."""
    await asyncio.gather(*(blind.find(namespace, f"missing-{number}", None, None) for number in range(100)))
    assert len(between.requests) == 100
    assert between.most <= catalog.LOOKING


async def test_made_anew_while_nobody_looked(between: Relay, blind: Catalog, shelf: Shelf, namespace: str) -> None:
    """What was deleted while the watch was broken is gone, though another object of that name is there by then.

    A list tells only of that one. It has no bytes yet, and does not show the old ones to those whom its owner never
    let see it.
    """
    store = await asyncio.to_thread(shelf.store)
    public = {"visibility": "public", "members": []}
    old = await asyncio.to_thread(shelf.image, namespace, b"bytes", store=store, name="one", spec=public)
    watch = asyncio.create_task(blind._watch(IMAGE, blind._image))
    try:
        await between.asked("STREAM", IMAGE.path())
        assert blind.known(namespace, "one")
        between.flowing.clear()
        between.cut()
        await between.asked("WATCH", IMAGE.path(), 2)
        await asyncio.to_thread(shelf.delete, old)
        await asyncio.to_thread(shelf.image, namespace, [], name="one", served=None)
        between.first.append((410, {}))
        between.cut()
        between.flowing.set()
        await between.asked("STREAM", IMAGE.path(), 2)
        assert between.count("GET", IMAGE.path()) == 2
        assert blind.known(namespace, "one") is None
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
