"""What a replica says of the revisions that it reads, and that it says no more than is needed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.relay import Relay, relay

from glimpse.api.image import ImageStatus, Removal
from glimpse.control.readers import Readers
from glimpse.gateway import reading
from glimpse.gateway.reading import Reading
from glimpse.kube import LEASE, Kube
from glimpse.readers import LIFE, SELECTOR, lease
from servers.kube import NAMESPACE, Cluster


@pytest.fixture
async def between(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Relay]:
    """What counts the requests."""
    async with relay(cluster, tmp_path) as found:
        yield found


@pytest.fixture
async def gateway(between: Relay) -> AsyncIterator[Kube]:
    """With a gateway's rights."""
    kube = await Kube.connect(between.kubeconfig(between.cluster.token_for(NAMESPACE, "glimpse-gateway")))
    yield kube
    await kube.close()


@pytest.fixture
async def operator(cluster: Cluster) -> AsyncIterator[Kube]:
    """With an operator's."""
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    yield kube
    await kube.close()


def going(revision: int, after: datetime) -> ImageStatus:
    """The status of an image of which this revision is to go then."""
    return ImageStatus(removals=(Removal(revision=revision, stores=("a",), after=after),))


async def seen(operator: Kube, uid: str) -> frozenset[int] | None:
    """What the operator knows to be read, when something is to go."""
    return await Readers(operator, NAMESPACE).of(uid, going(1, datetime.now(UTC)))


async def test_what_takes_long_is_named(
    gateway: Kube, operator: Kube, between: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download is named once it has lasted for some seconds, in one object, which goes when nothing is read."""
    monkeypatch.setattr(reading, "LOOK", 0.05)
    monkeypatch.setattr(reading, "LONG", 0.2)
    subject = Reading(gateway, NAMESPACE)
    path = LEASE.path(NAMESPACE, subject._name)
    task = asyncio.create_task(subject.follow())
    with subject.of("u-u-i-d-1"):
        pass
    with subject.of("u-u-i-d-7"), subject.of("u-u-i-d-7"), subject.of("other-8"):
        await between.asked("PATCH", path)
        await until(operator, frozenset({7}))
        with subject.of("u-u-i-d-9"):
            await between.asked("PATCH", path, 2)
            await until(operator, frozenset({7, 9}))
        assert between.count("PATCH", path) == 2  # what is over is named until the next word is due
        assert await seen(operator, "another") == frozenset()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert between.count("DELETE", path) == 1
    assert await seen(operator, "u-u-i-d") == frozenset()


async def test_it_goes_when_nothing_is_read(gateway: Kube, between: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that reads nothing any more takes its word back, and writes nothing until it reads again."""
    monkeypatch.setattr(reading, "LOOK", 0.05)
    monkeypatch.setattr(reading, "LONG", 0.0)
    monkeypatch.setattr(reading, "RENEW", 0.2)
    subject = Reading(gateway, NAMESPACE)
    path = LEASE.path(NAMESPACE, subject._name)
    task = asyncio.create_task(subject.follow())
    with subject.of("a-1"):
        await between.asked("PATCH", path, 3)  # renewed
    await between.asked("DELETE", path)
    written = between.count("PATCH", path)
    with subject.of("a-1"):
        await between.asked("PATCH", path, written + 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_gateway_that_has_died(operator: Kube, cluster: Cluster) -> None:
    """What it has said counts for a minute; later its Lease is removed."""
    admin = await Kube.connect(cluster.kubeconfig)
    now = datetime.now(UTC)
    for name, age in (("alive", 0), ("silent", LIFE + 30), ("dead", 11 * LIFE)):
        await admin.apply(LEASE, lease(name, [f"{name}-1"], now - timedelta(seconds=age)), NAMESPACE)
    read = [await seen(operator, name) for name in ("alive", "silent", "dead")]
    assert read == [frozenset({1}), frozenset(), frozenset()]
    left = {each["metadata"]["name"] async for each in admin.list(LEASE, NAMESPACE, label_selector=SELECTOR)}
    assert {"alive", "silent"} <= left
    assert "dead" not in left
    assert await Readers(operator, NAMESPACE).of("alive", going(1, now + timedelta(hours=1))) is None
    for name in ("alive", "silent"):
        found = await admin.get(LEASE, name, NAMESPACE)
        await admin.delete(LEASE, name, NAMESPACE, uid=found["metadata"]["uid"])
    await admin.close()


async def until(operator: Kube, wanted: frozenset[int]) -> None:
    """Wait until the operator knows that these are read: an answer follows its request."""
    async with asyncio.timeout(20):
        while await seen(operator, "u-u-i-d") != wanted:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)
