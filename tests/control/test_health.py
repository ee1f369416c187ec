"""Signs of life: our own writes come back through the watch, or it is dead."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from tests.relay import relay

from glimpse.control.health import Health
from glimpse.kube import IMAGE, STORE, Kube, Object
from servers.kube import Cluster


@pytest.fixture
async def kube(cluster: Cluster) -> AsyncIterator[Kube]:
    """A client with an administrator's rights."""
    found = await Kube.connect(cluster.kubeconfig)
    yield found
    await found.close()


def running(kube: Kube, silence: float) -> Health:
    """An operator's health after its start."""
    state = Health(kube, (IMAGE, STORE), silence)
    state.waiting = ""
    state.close()
    return state


def quiet(state: Health, seconds: float) -> None:
    """So much time has passed."""
    for pulse in state._pulses.values():
        pulse.read -= seconds
        pulse.written = type(pulse.written)((version, at - seconds) for version, at in pulse.written)


async def written(kube: Kube, namespace: str) -> Object:
    """A write of ours."""
    spec = {"source": {"http": {"urls": ["https://example.org/a"]}}}
    image = await kube.create(IMAGE, {"metadata": {"name": "i"}, "spec": spec}, namespace)
    return await kube.patch_status(IMAGE, image, {"observedGeneration": 1})


async def test_a_write_that_does_not_come_back(kube: Kube, namespace: str) -> None:
    """A watch that reads bookmarks but delivers nothing is dead; with the event it lives."""
    state = running(kube, silence=60)
    image = await written(kube, namespace)
    quiet(state, 61)
    for pulse in state._pulses.values():
        pulse.read += 61
    assert "images is silent" in await state.dead()
    state.saw(IMAGE, image)
    assert await state.dead() == ""


async def test_a_write_that_changed_nothing_is_not_awaited(kube: Kube, namespace: str) -> None:
    """No event follows a write of what is there already."""
    state = running(kube, silence=60)
    image = await written(kube, namespace)
    state.saw(IMAGE, image)
    again = await kube.patch_status(IMAGE, image, image["status"])
    assert again["metadata"]["resourceVersion"] == image["metadata"]["resourceVersion"]
    assert max(state.ages().values()) < 60
    assert not state._pulses[IMAGE.path()].written


async def test_a_later_event_answers_for_an_earlier_write(kube: Kube, namespace: str) -> None:
    """Versions of one kind are in order: what is past a write has passed it, as after a deletion."""
    state = running(kube, silence=60)
    image = await written(kube, namespace)
    await kube.set_finalizers(IMAGE, image, ["example.org/x"])
    state.saw(IMAGE, {"metadata": {"resourceVersion": str(int(image["metadata"]["resourceVersion"]) + 1_000_000)}})
    assert not state._pulses[IMAGE.path()].written


async def test_nothing_dies_while_the_api_server_is_away(cluster: Cluster, tmp_path: Path) -> None:
    """An outage is no reason to restart; after it the watches get their time again, and then none."""
    async with relay(cluster, tmp_path) as between:
        kube = await Kube.connect(between.kubeconfig(cluster.token))
        state = running(kube, silence=60)
        between.away = True
        quiet(state, 3600)
        assert await state.dead() == ""
        between.away = False
        assert await state.dead() == ""
        state._pardon -= 61
        assert "silent" in await state.dead()
        await kube.close()


async def test_readiness_names_what_is_missing(kube: Kube) -> None:
    """Not ready says why: the start, the queue, the watches."""
    state = running(kube, silence=60)
    state.waiting = "the kinds"
    assert await state.unready() == "the kinds"
    assert await state.dead() == ""
    state.waiting = ""
    assert "stores" in await state.unready()
    state.synced = lambda: True
    assert "not watching images, imagestores" in await state.unready()


async def test_pages(kube: Kube) -> None:
    """Probes answer by status, Prometheus gets its text."""
    app = running(kube, silence=60).app()
    for path, status, word in (("/healthz", 200, "ok"), ("/readyz", 503, "stores"), ("/metrics", 200, "glimpse_build")):
        request = make_mocked_request("GET", path)
        answer = await (await app.router.resolve(request)).handler(request)
        assert isinstance(answer, web.Response)
        assert answer.status == status
        assert isinstance(answer.body, bytes)
        assert word in answer.body.decode()
