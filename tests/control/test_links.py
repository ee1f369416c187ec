"""The keys of signed links: made when they are missing, renewed in time, removed when no link of theirs can be good."""

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from glimpse import linkkeys
from glimpse.control.links import LinkKeys
from glimpse.kube import SECRET, Conflict, Forbidden, Gone, Kube, Object
from glimpse.settings import Links, Settings
from servers.kube import NAMESPACE, ApiError, Cluster

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def kube(cluster: Cluster) -> AsyncIterator[Kube]:
    """A client that may do everything, in any namespace."""
    kube = await Kube.connect(cluster.kubeconfig)
    yield kube
    await kube.close()


def keeper(kube: Kube, namespace: str) -> LinkKeys:
    """Keys of links that live a day at most, made anew every week."""
    return LinkKeys(kube, Settings(namespace=namespace, links=Links(maximum=86400, rotation=7 * 86400)))


async def held(kube: Kube, namespace: str) -> Object:
    """The Secret."""
    return await kube.get(SECRET, linkkeys.SECRET_NAME, namespace)


async def names(kube: Kube, namespace: str) -> list[str]:
    """The keys in it, the newest last."""
    return list(linkkeys.read(await held(kube, namespace)))


async def put(kube: Kube, namespace: str, data: Mapping[str, str | None]) -> None:
    """Change keys, as a person would."""
    await kube.set_data(SECRET, await held(kube, namespace), data)


def key() -> str:
    """A key of somebody's own."""
    return base64.b64encode(os.urandom(32)).decode()


async def test_the_first_key(kube: Kube, namespace: str) -> None:
    """Where there is no Secret one is made, with one key and a label that keeps it from being used for a store."""
    keys = keeper(kube, namespace)
    await keys.look(NOW)
    secret = await held(kube, namespace)
    assert secret["metadata"]["labels"]["glimpse.dev/use"] == "links"
    (only,) = linkkeys.read(secret).values()
    assert (only.name, only.made, len(only.value.get_secret_value())) == ("20260501T120000Z", NOW, 32)
    assert base64.b64encode(only.value.get_secret_value()).decode() not in repr(only)
    await keys.look(NOW + timedelta(days=6))
    assert (await held(kube, namespace))["metadata"]["resourceVersion"] == secret["metadata"]["resourceVersion"]


async def test_they_are_renewed(kube: Kube, namespace: str) -> None:
    """After the rotation's time a new key comes; the one before stays until the last of its links has expired."""
    keys = keeper(kube, namespace)
    await keys.look(NOW)
    week = NOW + 7 * DAY
    first, second, third = (linkkeys.name(at) for at in (NOW, week, week + 7 * DAY))
    for at, there in (
        (week - timedelta(seconds=1), [first]),
        (week, [first, second]),
        (week + DAY, [first, second]),
        (week + DAY + timedelta(minutes=10), [second]),
        (week + 7 * DAY, [second, third]),
    ):
        await keys.look(at)
        assert await names(kube, namespace) == there, at
    values = {each.value.get_secret_value() for each in linkkeys.read(await held(kube, namespace)).values()}
    assert len(values) == 2


async def test_revoked_keys_stay_away(kube: Kube, namespace: str) -> None:
    """What somebody removes is not put back; where nothing is left, a new key is made."""
    keys = keeper(kube, namespace)
    await keys.look(NOW)
    await keys.look(NOW + 7 * DAY)
    first, second = await names(kube, namespace)
    await put(kube, namespace, {first: None})
    await keys.look(NOW + 7 * DAY)
    assert await names(kube, namespace) == [second]
    await put(kube, namespace, {second: None})
    later = NOW + 8 * DAY
    await keys.look(later)
    assert await names(kube, namespace) == [linkkeys.name(later)]


async def test_keys_of_somebody_s_own(kube: Kube, namespace: str) -> None:
    """A key with another name is neither renewed nor removed; one that is too short is none."""
    keys = keeper(kube, namespace)
    await keys.look(NOW)
    await put(kube, namespace, {"mine": key(), "20260502T000000Z": base64.b64encode(b"short").decode()})
    await keys.look(NOW + 30 * DAY)
    assert await names(kube, namespace) == [linkkeys.name(NOW), "mine"]
    await put(kube, namespace, {"mine": None, "0wn": key()})
    await keys.look(NOW + 30 * DAY)
    assert await names(kube, namespace) == ["0wn", linkkeys.name(NOW), linkkeys.name(NOW + 30 * DAY)]


async def test_what_somebody_does_in_between_counts(kube: Kube, namespace: str) -> None:
    """A change is made to the Secret as it was read, or not at all."""
    await keeper(kube, namespace).look(NOW)
    before = await held(kube, namespace)
    await put(kube, namespace, {"mine": key()})
    with pytest.raises(Conflict):
        await kube.set_data(SECRET, before, {"mine": None})
    assert "mine" in await names(kube, namespace)


async def test_the_operator_s_rights(cluster: Cluster) -> None:
    """With the operator's own rights the Secret is made and changed, and no other can be."""
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    drop = partial(cluster.request, "DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/{linkkeys.SECRET_NAME}")
    with contextlib.suppress(ApiError):
        await asyncio.to_thread(drop)
    keys = keeper(kube, NAMESPACE)
    await keys.look(NOW)
    await keys.look(NOW + 7 * DAY)
    assert len(await names(kube, NAMESPACE)) == 2
    for write in (kube.apply, kube.create):
        with pytest.raises(Forbidden):
            await write(SECRET, {"metadata": {"name": "another"}, "data": {}}, NAMESPACE)
    await asyncio.to_thread(drop)
    await kube.close()


async def test_it_runs_until_it_is_closed(kube: Kube, namespace: str) -> None:
    """Started, the Secret comes by itself; where links are switched off nothing is started."""
    off = LinkKeys(kube, Settings(namespace=namespace, links=Links(maximum=0)))
    off.start()
    await off.close()
    with pytest.raises(Gone):
        await held(kube, namespace)
    keys = keeper(kube, namespace)
    keys.start()
    async with asyncio.timeout(30):
        async for change, obj in kube.watch(SECRET, namespace, name=linkkeys.SECRET_NAME):
            if change == "ADDED":
                assert len(linkkeys.read(obj)) == 1
                break
    await keys.close()


async def test_a_watch_of_one_object(kube: Kube, namespace: str) -> None:
    """It tells of that object, when it comes and when it goes, and of no other."""
    await kube.create(SECRET, {"metadata": {"name": "before"}}, namespace)
    told = []
    async with asyncio.timeout(30):
        async for change, obj in kube.watch(SECRET, namespace, name="one"):
            told.append((change, obj.get("metadata", {}).get("name")))
            if change == "SYNCED":
                for name in ("other", "one"):
                    await kube.create(SECRET, {"metadata": {"name": name}}, namespace)
            if change == "ADDED":
                break
    assert told == [("SYNCED", None), ("ADDED", "one")]
