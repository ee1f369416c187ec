"""The client of the Kubernetes API, on the real API server; failures come from a relay before it."""

import asyncio
import statistics
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.relay import Relay, relay

from glimpse.kube import (
    CONFIGMAP,
    EVENT,
    IMAGE,
    NAMESPACE,
    SECRET,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    Kind,
    Kube,
    Object,
    Unavailable,
)
from glimpse.kube import events as events_module
from servers.kube import Cluster, write_kubeconfig
from servers.kube import Kube as KubeServer

WAIT = 90.0


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Kube]:
    """A client with an administrator's rights."""
    found = await Kube.connect(cluster.kubeconfig)
    yield found
    await found.close()


@asynccontextmanager
async def through(cluster: Cluster, folder: Path) -> AsyncIterator[tuple[Relay, Kube]]:
    """A client that speaks through a relay."""
    async with relay(cluster, folder) as between:
        found = await Kube.connect(between.kubeconfig(cluster.token))
        try:
            yield between, found
        finally:
            await found.close()


def configmap(name: str, **data: str) -> Object:
    """A small object."""
    return {"metadata": {"name": name}, "data": data}


def an_image(name: str) -> Object:
    """An Image that nobody fetches."""
    return {"metadata": {"name": name}, "spec": {"source": {"http": {"urls": ["https://example.org/a"]}}}}


async def names(client: Kube, kind: Kind, namespace: str, **more: Any) -> list[str]:
    """Names of all objects."""
    return [obj["metadata"]["name"] async for obj in client.list(kind, namespace, **more)]


async def test_list_gives_every_page(client: Kube, namespace: str) -> None:
    """A list goes on until the last page, and its items say what they are."""
    for number in range(5):
        await client.create(CONFIGMAP, configmap(f"c{number}"), namespace)
    assert await names(client, CONFIGMAP, namespace, limit=2) == [f"c{n}" for n in range(5)]
    first = await anext(client.list(CONFIGMAP, namespace))
    assert (first["apiVersion"], first["kind"]) == ("v1", "ConfigMap")


async def test_list_begins_again_when_its_snapshot_is_gone(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """410 in the middle of a list costs a second reading, never an object."""
    async with through(cluster, tmp_path) as (between, client):
        for number in range(5):
            await client.create(CONFIGMAP, configmap(f"c{number}"), namespace)
        found: list[str] = []
        async for page, _ in client.pages(CONFIGMAP, namespace, limit=2):
            if not found:
                between.first.append((410, {}))
            found += [obj["metadata"]["name"] for obj in page]
        assert set(found) == {f"c{n}" for n in range(5)}


async def test_errors_say_what_they_are(client: Kube, cluster: Cluster, namespace: str) -> None:
    """Each refusal has a type of its own, and no retry."""
    with pytest.raises(Gone):
        await client.get(CONFIGMAP, "absent", namespace)
    await client.create(CONFIGMAP, configmap("twice"), namespace)
    with pytest.raises(Conflict):
        await client.create(CONFIGMAP, configmap("twice"), namespace)
    with pytest.raises(Invalid, match=r"spec\.source"):
        await client.create(IMAGE, {"metadata": {"name": "bad"}, "spec": {"source": {}}}, namespace)
    other = await Kube.connect(cluster.kubeconfig_for(namespace, "nobody"))
    with pytest.raises(Forbidden, match="nobody"):
        await other.get(SECRET, "any", namespace)
    await other.close()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a?b", "a b", "%2e"])
def test_no_name_leaves_its_place(name: str) -> None:
    """A name that is none never becomes a path."""
    with pytest.raises(ValueError, match="not the name"):
        CONFIGMAP.path("team-a", name)


async def test_a_status_is_written_to_exactly_this_object(client: Kube, namespace: str) -> None:
    """Another uid or an older generation is a Conflict and writes nothing; a bad status is Invalid; no object, Gone."""
    image = await client.create(IMAGE, an_image("i"), namespace)
    status = {"observedGeneration": 1, "summary": {"progress": "5%"}}
    written = await client.patch_status(IMAGE, image, status)
    assert written["status"]["summary"] == {"progress": "5%"}

    meta = image["metadata"]
    for wrong in ({"uid": str(uuid.uuid4())}, {"generation": 7}):
        with pytest.raises(Conflict):
            await client.patch_status(IMAGE, image | {"metadata": meta | wrong}, {"observedGeneration": 9})
    with pytest.raises(Conflict):  # another has written since
        await client.patch_status(IMAGE, image, {"observedGeneration": 9}, exact=True)
    with pytest.raises(Invalid):
        await client.patch_status(IMAGE, image, {"observedGeneration": "many"})
    now = await client.get(IMAGE, "i", namespace)
    assert now["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"]
    with pytest.raises(Gone):
        await client.patch_status(IMAGE, image | {"metadata": meta | {"name": "absent"}}, status)


async def test_finalizers_are_written_to_exactly_this_version(client: Kube, namespace: str) -> None:
    """What another has changed meanwhile is a Conflict; nobody's finalizer is lost."""
    old = await client.create(IMAGE, an_image("f"), namespace)
    new = await client.set_finalizers(IMAGE, old, ["example.org/one"])
    with pytest.raises(Conflict):
        await client.set_finalizers(IMAGE, old, ["example.org/two"])
    assert (await client.set_finalizers(IMAGE, new, []))["metadata"].get("finalizers", []) == []


async def test_our_writes_are_told(client: Kube, namespace: str) -> None:
    """Who asks is told of each object that a patch gave; so the watch can be checked against it."""
    told: list[tuple[Kind, str]] = []
    client.wrote = lambda kind, obj: told.append((kind, obj["metadata"]["resourceVersion"]))
    image = await client.create(IMAGE, an_image("t"), namespace)
    new = await client.set_finalizers(IMAGE, image, [])
    assert told == [(IMAGE, new["metadata"]["resourceVersion"])]


@pytest.mark.parametrize("failure", [(503, {}), (429, {"Retry-After": "1"}), (500, {}), (401, {})])
async def test_a_server_that_is_away_is_asked_again(
    cluster: Cluster, tmp_path: Path, failure: tuple[int, dict[str, str]]
) -> None:
    """429, 5xx and a refused token are tried again; the caller sees only the answer."""
    async with through(cluster, tmp_path) as (between, client):
        between.first.extend([failure, failure])
        began = asyncio.get_running_loop().time()
        assert (await client.get(NAMESPACE, "default"))["metadata"]["name"] == "default"
        waited = asyncio.get_running_loop().time() - began
        assert between.count("GET", "/api/v1/namespaces/default") == 3
        assert waited >= (2 if failure[1] else 0)


async def test_tries_are_bounded(cluster: Cluster, tmp_path: Path) -> None:
    """A server that stays away becomes Unavailable, after some seconds and with its words."""
    async with through(cluster, tmp_path) as (between, client):
        between.away = True
        with pytest.raises(Unavailable, match="503 away"):
            await client.get(NAMESPACE, "default")
        assert 3 <= len(between.requests) <= 10
        with pytest.raises(Unavailable):
            await client.ping()


async def test_nobody_listens(cluster: Cluster, tmp_path: Path, unused_tcp_port: int) -> None:
    """A refused connection and a certificate that nobody vouches for are Unavailable, never an answer."""
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, f"https://127.0.0.1:{unused_tcp_port}", cluster.ca_file, "t")
    client = await Kube.connect(path)
    with pytest.raises(Unavailable):
        await client.ping()
    await client.close()
    async with relay(cluster, tmp_path) as between:
        write_kubeconfig(path, between.url, cluster.ca_file, cluster.token)
        client = await Kube.connect(path)
        with pytest.raises(Unavailable, match="certificate"):
            await client.ping()
        await client.close()
        assert between.requests == []


async def test_connections_are_bounded(cluster: Cluster, tmp_path: Path) -> None:
    """A thousand tasks do not open a thousand connections."""
    async with through(cluster, tmp_path) as (between, client):
        await asyncio.gather(*(client.get(NAMESPACE, "default") for _ in range(200)))
        assert between.most <= 32


async def test_reviews_do_not_wait_for_other_requests(cluster: Cluster, tmp_path: Path) -> None:
    """While all connections hang in reads, callers can still be reviewed."""
    async with through(cluster, tmp_path) as (between, client):
        between.flowing.clear()
        path = CONFIGMAP.path("default")
        reads = [asyncio.create_task(client._call("GET", path, params={"watch": "true"})) for _ in range(32)]
        await between.asked("WATCH", path, 32)
        async with asyncio.timeout(WAIT):
            assert not (await client.token_review("nonsense")).authenticated
            assert not await client.subject_access_review("nobody", namespace="a", verb="get", resource="images")
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


async def test_requests_are_observed(cluster: Cluster) -> None:
    """Each request is told with its verb and status."""
    told: list[tuple[str, int]] = []
    client = await Kube.connect(cluster.kubeconfig, observe=lambda verb, code, _: told.append((verb, code)))
    await client.get(NAMESPACE, "default")
    with pytest.raises(Gone):
        await client.get(NAMESPACE, "absent")
    await client.close()
    assert told == [("GET", 200), ("GET", 404)]


async def test_watch_tells_what_is_and_then_what_changes(client: Kube, namespace: str) -> None:
    """ADDED for all that is, SYNCED, then each change in its order."""
    await client.create(CONFIGMAP, configmap("a"), namespace)
    async with asyncio.timeout(WAIT), aclosing(client.watch(CONFIGMAP, namespace)) as watch:
        assert (await anext(watch))[0] == "ADDED"
        assert await anext(watch) == ("SYNCED", {})
        new = await client.create(CONFIGMAP, configmap("b", big="x" * 300_000), namespace)
        change, obj = await anext(watch)
        assert (change, obj["metadata"]["name"], len(obj["data"]["big"])) == ("ADDED", "b", 300_000)
        await client.set_finalizers(CONFIGMAP, new, ["example.org/x"])
        assert (await anext(watch))[0] == "MODIFIED"


async def test_watch_goes_on_after_a_reset(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """A connection that is reset costs no event, and no second list."""
    async with through(cluster, tmp_path) as (between, client):
        path = CONFIGMAP.path(namespace)
        async with asyncio.timeout(WAIT), aclosing(client.watch(CONFIGMAP, namespace)) as watch:
            assert await anext(watch) == ("SYNCED", {})
            for number in range(3):
                event = asyncio.ensure_future(anext(watch))
                await between.asked("STREAM", path, number + 1)
                between.cut()
                await client.create(CONFIGMAP, configmap(f"c{number}"), namespace)
                change, obj = await event
                assert (change, obj["metadata"]["name"]) == ("ADDED", f"c{number}")
        assert between.count("GET", path) == 1


async def test_watch_notices_silence(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """A connection that stays open and says nothing is given up, and nothing is missed."""
    async with through(cluster, tmp_path) as (between, client):
        path = CONFIGMAP.path(namespace)
        async with asyncio.timeout(WAIT), aclosing(client.watch(CONFIGMAP, namespace, silence=0.5)) as watch:
            assert await anext(watch) == ("SYNCED", {})
            event = asyncio.ensure_future(anext(watch))
            await between.asked("WATCH", path, 1)
            between.flowing.clear()
            await client.create(CONFIGMAP, configmap("c"), namespace)
            await between.asked("WATCH", path, 2)
            between.flowing.set()
            assert (await event)[1]["metadata"]["name"] == "c"


async def test_watch_survives_a_server_that_has_forgotten(kube: KubeServer, tmp_path: Path) -> None:
    """After 410 the whole state is told again, and what vanished meanwhile is DELETED."""
    cluster = kube.cluster
    namespace = cluster.namespace()
    admin = await Kube.connect(cluster.kubeconfig)
    async with through(cluster, tmp_path) as (between, client):
        await admin.create(CONFIGMAP, configmap("stays"), namespace)
        goes = await admin.create(CONFIGMAP, configmap("goes"), namespace)
        async with asyncio.timeout(3 * WAIT), aclosing(client.watch(CONFIGMAP, namespace)) as watch:
            while (await anext(watch))[0] != "SYNCED":
                pass
            event = asyncio.ensure_future(anext(watch))
            await between.asked("WATCH", CONFIGMAP.path(namespace), 1)
            between.flowing.clear()
            between.cut()
            cluster.request("DELETE", CONFIGMAP.path(namespace, "goes"))
            await admin.create(CONFIGMAP, configmap("new"), namespace)
            # A server that starts remembers no events of before.
            kube.stop()
            kube.start()
            between.flowing.set()
            found = [await event]
            while found[-1][0] != "SYNCED":
                found.append(await anext(watch))
        told = {(change, obj["metadata"]["name"]) for change, obj in found if obj}
        assert told >= {("DELETED", "goes"), ("ADDED", "new")}
        gone = next(obj for change, obj in found if change == "DELETED")
        assert gone["metadata"]["uid"] == goes["metadata"]["uid"]
    await admin.close()


async def test_an_event_is_written_once(client: Kube, cluster: Cluster, namespace: str) -> None:
    """The same Event is not repeated, and one object cannot flood the server; kubectl shows what was said."""
    image = await client.create(IMAGE, an_image("e"), namespace)
    for _ in range(3):
        await client.event(image, type="Normal", reason="Stored", message="it is there")
    for number in range(100):
        await client.event(image, type="Warning", reason="Noise", message=f"number {number}")
    await client.events.written()
    found = [event async for event in client.list(EVENT, namespace)]
    assert sum(event["reason"] == "Stored" for event in found) == 1
    assert len(found) == 25
    assert "it is there" in cluster.kubectl("events", "-n", namespace, "--for", "image/e")


async def test_an_event_costs_the_same_however_many_there_were(client: Kube) -> None:
    """Ten thousand images that each say something must not hold up the loop: no Event looks at those before it."""

    async def steps(number: int) -> int:
        """How many calls the Event of this object takes, those of generators and of C included."""
        meta = {"name": f"i{number}", "uid": str(uuid.UUID(int=number)), "namespace": "default"}
        image = {"apiVersion": IMAGE.api_version, "kind": IMAGE.kind, "metadata": meta}
        count, before = 0, sys.getprofile()

        def called(_frame: object, _event: str, _argument: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(called)
        try:
            await client.event(image, type="Normal", reason="Stored", message="it is there")
        finally:
            sys.setprofile(before)
        return count

    counts = [await steps(number) for number in range(900)]  # nothing is waited for, so none is posted yet
    assert client.events._waiting.qsize() == 900
    # garbage may be collected in any one of them, so the middle of the last is compared with that of the first
    assert statistics.median(counts[-100:]) < 2 * statistics.median(counts[1:101])


async def test_a_silenced_object_may_speak_again(client: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said long ago does not count any more, and takes no memory."""
    meta = {"name": "i", "uid": str(uuid.uuid4()), "namespace": "default"}
    image = {"apiVersion": IMAGE.api_version, "kind": IMAGE.kind, "metadata": meta}
    for number in range(30):
        await client.event(image, type="Warning", reason="Noise", message=f"number {number}")
    assert client.events._waiting.qsize() == 25
    monkeypatch.setattr(events_module, "_REPEAT", -1.0)
    await client.event(image, type="Warning", reason="Noise", message="number 0")
    assert client.events._waiting.qsize() == 26
    assert (len(client.events._said), client.events._spoken) == (1, {meta["uid"]: 1})


async def test_an_event_never_hurts(cluster: Cluster, namespace: str) -> None:
    """Who may post no Events goes on without."""
    admin = await Kube.connect(cluster.kubeconfig)
    image = await admin.create(IMAGE, an_image("q"), namespace)
    await admin.close()
    client = await Kube.connect(cluster.kubeconfig_for(namespace, "mute"))
    await client.event(image, type="Normal", reason="Stored", message="nobody hears")
    await client.events.written()
    await client.close()


async def test_who_a_caller_is(client: Kube, cluster: Cluster, namespace: str) -> None:
    """A token is known for its own audience only; a wrong one is an answer, not an error."""
    token = cluster.token_for(namespace, "reader", audience="glimpse")
    review = await client.token_review(token, ["glimpse"])
    assert (review.authenticated, review.user) == (True, f"system:serviceaccount:{namespace}:reader")
    assert f"system:serviceaccounts:{namespace}" in review.groups
    assert not (await client.token_review(token, ["other"])).authenticated
    assert not (await client.token_review(token)).authenticated
    assert not (await client.token_review("nonsense", ["glimpse"])).authenticated


async def test_what_a_caller_may(client: Kube, cluster: Cluster, namespace: str) -> None:
    """An access review says what RBAC says, for the subresource and the namespace that were asked for."""
    user = f"system:serviceaccount:{namespace}:reader"
    cluster.kubectl("create", "role", "r", "--verb=get", "--resource=images.glimpse.dev/data", "-n", namespace)
    cluster.kubectl("create", "rolebinding", "r", "--role=r", f"--user={user}", "-n", namespace)

    async def may(namespace: str, verb: str, subresource: str) -> bool:
        return await client.subject_access_review(
            user, namespace=namespace, verb=verb, resource="images", subresource=subresource
        )

    async with asyncio.timeout(WAIT):  # RBAC reaches the authorizer a moment later
        while not await may(namespace, "get", "data"):
            pass
    assert not await may(namespace, "update", "data")
    assert not await may(namespace, "get", "")
    assert not await may("default", "get", "data")


async def test_a_token_is_minted(client: Kube, cluster: Cluster, namespace: str) -> None:
    """A minted token speaks as its ServiceAccount."""
    cluster.token_for(namespace, "minted")
    token, end = await client.token_request(namespace, "minted", ["glimpse"], ttl=900)
    review = await client.token_review(token, ["glimpse"])
    assert review.user == f"system:serviceaccount:{namespace}:minted"
    assert end.tzinfo is not None


async def test_served_kinds(client: Kube) -> None:
    """A kind is served or it is not, whether its group is known or unknown."""
    assert await client.served(IMAGE)
    assert not await client.served(IMAGE._replace(plural="paintings"))
    assert not await client.served(IMAGE._replace(group="example.org"))
