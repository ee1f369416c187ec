"""The list of images as callers get it: over HTTP, with their rights, on the real API server."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.relay import Relay, relay

from glimpse.gateway.access import Access
from glimpse.gateway.index import Index
from glimpse.gateway.listing import complete
from glimpse.gateway.refusals import Refusal
from glimpse.gateway.sight import Sight, look
from glimpse.kube import ACCESS_REVIEW, Kube
from servers import wait_until
from servers.kube import Cluster
from servers.shelf import Content, Shelf, ask

HERE = "127.0.0.1"


def listed(gateway: str, token: str, **asked: Any) -> dict[str, Any]:
    """One page."""
    got = ask(f"{gateway}/v1/images?{urlencode(asked, doseq=True)}", token=token)
    assert (got.status, got.headers["Content-Type"]) == (200, "application/json"), got.body
    page: dict[str, Any] = json.loads(got.body)
    return page


def names(gateway: str, token: str, **asked: Any) -> list[str]:
    """The names in one page."""
    return [each["name"] for each in listed(gateway, token, **asked)["images"]]


def until(gateway: str, token: str, wanted: list[str], **asked: Any) -> None:
    """Wait until a page has these names: the watch may be a moment late."""
    wait_until(f"the list of {wanted}", lambda: names(gateway, token, **asked) == wanted, timeout=20)


def problem(gateway: str, token: str | None, query: str, status: int) -> str:
    """What is said of a request that is refused."""
    got = ask(f"{gateway}/v1/images{query}", token=token)
    assert got.status == status, got.body
    detail: str = got.problem()["detail"]
    return detail


def everything(cluster: Cluster, namespace: str) -> str:
    """A token for one who may get all images of the cluster."""
    api, name = "rbac.authorization.k8s.io", f"all-{namespace}"
    rule = {"apiGroups": ["glimpse.dev"], "resources": ["images/data"], "verbs": ["get"]}
    ref = {"apiGroup": api, "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "name": "all", "namespace": namespace}
    cluster.apply(
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": ref,
            "subjects": [subject],
        },
    )
    return cluster.token_for(namespace, "all", audience="glimpse")


def test_one_image(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """An image is told by the names that the Image has, and as its status says."""
    image = shelf.image(
        namespace,
        Content(b"bytes", [shelf.store()]),
        name="debian-12",
        disk_format="qcow2",
        spec={
            "title": "Debian „12“ ☃",
            "tags": ["linux"],
            "properties": {"os_distro": "debian"},
            "minimum": {"diskGiB": 10},
            "visibility": "shared",
            "members": ["team-b"],
        },
    )
    until(gateway, token, ["debian-12"], namespace=namespace, ready="true")
    (told,) = listed(gateway, token, namespace=namespace)["images"]
    created = told.pop("creationTimestamp")
    digests = told.pop("digests")
    assert created.endswith("Z")
    assert {*digests} == {"sha256", "md5"}
    assert told == {
        "namespace": namespace,
        "name": "debian-12",
        "uid": image.uid,
        "title": "Debian „12“ ☃",
        "visibility": "shared",
        "hidden": False,
        "protected": False,
        "deactivated": False,
        "tags": ["linux"],
        "properties": {"os_distro": "debian"},
        "minimum": {"diskGiB": 10},
        "ready": True,
        "status": "Shelf",
        "revision": 1,
        "digest": f"sha256:{digests['sha256']}",
        "size": 5,
        "virtualSize": 5,
        "diskFormat": "qcow2",
        "containerFormat": "bare",
        "storedAt": "2026-01-02T03:04:05Z",
    }
    assert listed(gateway, token, namespace=namespace, fields="name,size")["images"] == [
        {"name": "debian-12", "size": 5}
    ]
    for asked, there in (
        ({"title": "debian*☃"}, True),
        ({"property": "os_distro=debian", "tag": "linux"}, True),
        ({"storedAt": "gte:2026-01-02", "size": "lt:1Ki"}, True),
        ({"property": "os_distro=suse"}, False),
    ):
        assert names(gateway, token, namespace=namespace, **asked) == ["debian-12"] * there


def test_a_waiting_image(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """An image without bytes is in the list too, without what it does not have yet; a deleted one is not."""
    image = shelf.image(namespace, [], name="waiting", served=None, ready=False)
    until(gateway, token, ["waiting"], namespace=namespace, status="Shelf")
    (told,) = listed(gateway, token, namespace=namespace, ready="false")["images"]
    assert not {"size", "digest", "storedAt", "title", "minimum", "url"} & {*told}
    shelf.delete(image)
    until(gateway, token, [], namespace=namespace)


def test_pages(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """`next` leads from page to page, with all that was asked; images that come and go in between move nothing."""
    store = shelf.store()
    images = [
        shelf.image(namespace, Content(b"x" * n, [], [store]), name=f"i-{n}", spec={"tags": ["t"]}) for n in range(7)
    ]
    until(gateway, token, [f"i-{n}" for n in range(7)], namespace=namespace, sort="size")
    url, seen = f"/v1/images?limit=2&sort=-size&tag=t&fields=name&namespace={namespace}", list[str]()
    while True:
        got = ask(gateway + url, token=token)
        page = json.loads(got.body)
        seen += [each["name"] for each in page["images"]]
        if "next" not in page:
            assert "Link" not in got.headers
            break
        url = page["next"]
        assert got.headers["Link"] == f'<{url}>; rel="next"'
        if len(seen) == 2:
            shelf.delete(images[5])  # the one that the cursor names
            shelf.delete(images[0])
            shelf.image(namespace, Content(b"x" * 9, [], [store]), name="i-9", spec={"tags": ["t"]})
            until(gateway, token, ["i-1", "i-2", "i-3", "i-4", "i-6", "i-9"], namespace=namespace)
    assert seen == ["i-6", "i-5", "i-4", "i-3", "i-2", "i-1"]
    assert names(gateway, token, namespace=namespace, sort="name", limit=1000) == [
        "i-1",
        "i-2",
        "i-3",
        "i-4",
        "i-6",
        "i-9",
    ]


def test_who_sees_what(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, token: str) -> None:
    """Members of a namespace see all of it, others what it has made visible to them; administrators see everything."""
    team = cluster.namespace()
    for visibility in ("private", "shared", "community", "public"):
        spec = {"visibility": visibility} | ({"members": [team]} if visibility == "shared" else {})
        shelf.image(namespace, [], name=f"{namespace}-{visibility}", served=None, spec=spec)
    shelf.image(namespace, [], name="veiled", served=None, spec={"visibility": "public", "hidden": True})
    whole, pattern = [f"{namespace}-{each}" for each in ("community", "private", "public", "shared")], f"{namespace}-*"
    until(gateway, token, whole, name=pattern)
    until(gateway, token, ["veiled"], namespace=namespace, hidden="true")
    for account, seen in (
        (everything(cluster, cluster.namespace()), whole),
        (shelf.grant(team, "member"), whole[2:]),
        (shelf.grant(cluster.namespace(), "anybody"), whole[2:3]),
        (cluster.token_for(cluster.namespace(), "nobody", audience="glimpse"), whole[2:3]),
    ):
        assert names(gateway, account, name=pattern) == seen
        assert names(gateway, account, namespace=namespace) == seen
        assert names(gateway, account, namespace=namespace, hidden="true") == ["veiled"]
        assert names(gateway, account, name=pattern, visibility="community") == whole[:1]
        assert all("members" not in each for each in listed(gateway, account, namespace=namespace)["images"])


def test_namespaces_that_a_caller_names(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """One who belongs to several namespaces names them: where he looks, or for whom."""
    second, third = cluster.namespace(), cluster.namespace()
    shelf.image(second, [], name=f"{namespace}-2", served=None)
    shelf.image(third, [], name=f"{namespace}-3", served=None, spec={"visibility": "shared", "members": [second]})
    account = shelf.grant(namespace, "many")
    subject = {"kind": "ServiceAccount", "name": "many", "namespace": namespace}
    api = "rbac.authorization.k8s.io"
    shelf.grant(second, "many")
    cluster.apply(
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "guest", "namespace": second},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "many"},
            "subjects": [subject],
        }
    )
    both, pattern = [f"{namespace}-2", f"{namespace}-3"], f"{namespace}-*"
    until(gateway, account, both[:1], namespace=second)
    until(gateway, account, both[1:], namespace=third, **{"as": second})
    assert names(gateway, account, namespace=[second, third]) == both
    assert names(gateway, account, name=pattern) == []
    assert names(gateway, account, name=pattern, **{"as": second}) == both
    assert names(gateway, account, namespace=third) == []
    said = problem(gateway, account, f"?as={third}", 403)
    assert said == f"You may not speak for namespace {third}: that takes the right to get images/data there."
    assert problem(gateway, account, "?as=none-such", 403) == said.replace(third, "none-such")


def test_refusals(gateway: str, token: str) -> None:
    """What is refused is refused as a problem, before anything is shown: callers first, then what they ask."""
    assert "token" in problem(gateway, None, "?nonsense=1", 401)
    assert "There is no 'nonsense' to ask for; known are: as, " in problem(gateway, token, "?nonsense=1", 400)
    assert "cursor is none of ours" in problem(gateway, token, "?cursor=AAAA", 400)
    assert "limit must be" in problem(gateway, token, "?limit=1000000", 400)
    got = ask(f"{gateway}/v1/images", token=token, method="DELETE")
    assert (got.status, got.headers["Allow"]) == (405, "GET,HEAD")
    head = ask(f"{gateway}/v1/images", token=token, method="HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    "query", [b"name=\xff\xfe", b"name=%ff", b"name=%00", b"tag=%ED%A0%80", b"\xff=1", b"a=1&&=&?"]
)
def test_strange_bytes(gateway: str, token: str, query: bytes) -> None:
    """Bytes that are no text are found nowhere, or refused; nothing breaks."""
    host, _, port = gateway.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"GET /v1/images?" + query + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Authorization: Bearer " + token.encode() + b"\r\n\r\n"
        )
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer


@pytest.fixture
async def between(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Relay]:
    """What counts the requests."""
    async with relay(cluster, tmp_path) as found:
        yield found


async def test_few_questions(between: Relay, cluster: Cluster, shelf: Shelf, namespace: str) -> None:
    """However many namespaces there are, the API server is asked about the caller's own and those that he names.

    One who has the right everywhere costs one question, and the answers are kept.
    """
    kube = await Kube.connect(between.kubeconfig(cluster.token))
    access = Access(kube, "glimpse")
    token = await asyncio.to_thread(shelf.grant, namespace, "reader")
    caller = await access.caller(f"Bearer {token}", HERE)
    for _ in range(3):
        seen = await look(access, caller, ["default", namespace])
        assert seen == Sight(everywhere=False, namespaces=frozenset({namespace}))
    assert between.count("POST", ACCESS_REVIEW.path()) == 3  # everywhere, its own, default
    admin = await access.caller(f"Bearer {await asyncio.to_thread(everything, cluster, namespace)}", HERE)
    for _ in range(3):
        assert (await look(access, admin, ["default"])).everywhere
    assert between.count("POST", ACCESS_REVIEW.path()) == 4
    between.away = True
    with pytest.raises(Refusal) as refusal:
        await look(access, caller, ["another"])
    assert refusal.value.status == 503
    await kube.close()


def test_not_complete() -> None:
    """Before all images are known there is no list, as a part of it would look as the whole; nor of what is too old."""
    fresh = True
    index = Index(lambda: fresh)
    with pytest.raises(Refusal) as refusal:
        complete(index)
    assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "5"})
    index.synced = True
    complete(index)
    fresh = False
    with pytest.raises(Refusal, match="as they are"):
        complete(index)
