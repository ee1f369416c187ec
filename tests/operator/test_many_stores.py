"""One Image in stores of every kind at once, on a real API server and with each real server."""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import boto3
import pytest
from pydantic import SecretStr
from tests.gateway.test_copies import begun, rest
from tests.gateway.test_meters import count
from tests.operator.support import REQUESTED_AT, Tenant, content, digest, done, holds

from glimpse.problems import NotFound
from glimpse.readers import KEYS
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.faults import Reply
from servers import Server, wait_until
from servers.kube import NAMESPACE
from servers.require import require
from servers.shelf import Answer, ask
from servers.stores import SERVERS, TYPES, Place, new, place
from servers.tools import Missing

SIZE = 24 << 20
"""Several parts of each store."""
WRITTEN: Final = tuple(kind for kind in SERVERS if kind != "http")
"""Kinds that take bytes."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server[Any]]]:
    """Each server that a store needs."""
    folder = tmp_path_factory.mktemp("stores")
    started: dict[str, Server[Any]] = {}
    try:
        for name in TYPES:
            started[name] = new(name, folder / name, started)
            try:
                started[name].start()
            except Missing as error:
                require(name, str(error))
        yield started
    finally:
        for server in reversed(started.values()):
            server.stop()


def opened(tenant: Tenant, name: str) -> StoreRef:
    """The store as a worker would open it."""
    spec = tenant.read(name, "ImageStore")
    (driver,) = (key for key in spec["spec"] if key in {*SERVERS, "filesystem"})
    login: dict[str, str] = {}
    if "secretRef" in spec["spec"]:
        meta = {"name": spec["spec"]["secretRef"]["name"], "namespace": NAMESPACE}
        secret = tenant.cluster.read({"apiVersion": "v1", "kind": "Secret", "metadata": meta})
        login = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    ca = None
    if bundle := spec["spec"].get("caBundleRef"):
        meta = {"name": bundle["configMap"], "namespace": NAMESPACE}
        ca = tenant.cluster.read({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})["data"]["ca.crt"]
    return StoreRef(
        name=name,
        driver=driver,
        config=spec["spec"][driver],
        secret={key: SecretStr(value) for key, value in login.items()},
        ca_bundle=ca,
        installation=spec["status"]["installation"],
        claimed=True,
    )


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_read_stays(tenant: Tenant, servers: dict[str, Server[Any]], kind: str) -> None:
    """A slow reader of a revision that is replaced, without grace, gets all of it; then it goes from the store."""
    store = made(tenant, servers, kind)
    one, two = content(1, SIZE), content(2)
    url = tenant.serve("a", Reply(one, ranges=True, headers={"ETag": '"1"'}))
    revisions = {"keep": 1, "grace": "0s"}
    uid = tenant.image("a", url, stores=[store], revisions=revisions, refresh={"interval": "6h"})["metadata"]["uid"]
    tenant.ready("a")
    tenant.download(tenant.link("a") + ".sha256")
    gateway, _, path = tenant.link("a").partition("/v1/")
    with begun(gateway, f"/v1/{path}", tenant.token) as reader:
        wait_until("the lease", lambda: f"{uid}-1" in named(tenant), timeout=60)
        tenant.serve("a", Reply(two, headers={"ETag": '"2"'}))
        tenant.annotate("a", REQUESTED_AT, "now")
        tenant.wait("a", lambda o: bool(o["status"].get("artifact", {}).get("revision") == 2))
        tenant.download(tenant.link("a"), body=two)
        asked = len(tenant.web.requests)
        tenant.annotate("a", REQUESTED_AT, "again")
        wait_until("another look", lambda: len(tenant.web.requests) > asked, timeout=60)  # after any removal
        status = tenant.read("a")["status"]
        assert [each["revision"] for each in status["history"]] == [2, 1]
        assert status["removals"][0]["revision"] == 1
        assert rest(reader) == one
    tenant.wait("a", lambda o: len(o["status"]["history"]) == 1)
    assert [entry.key for entry in open_store(opened(tenant, store)).list()] == [f"{uid}-2"]


def named(tenant: Tenant) -> set[str]:
    """The revisions that a gateway says it reads."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    leases = tenant.cluster.request("GET", path)["items"]
    return {key for each in leases for key in each["metadata"].get("annotations", {}).get(KEYS, "").split()}


def made(tenant: Tenant, servers: dict[str, Server[Any]], kind: str) -> str:
    """A store of this kind, ready; its name."""
    name = f"{kind}-{tenant.namespace.removeprefix('test-')}"
    tenant.cluster.apply(*place(kind, name, servers[SERVERS[kind][-1]]).manifests(name))
    tenant.wait(name, lambda o: holds(o, "Ready"), kind="ImageStore")
    return name


def in_parts(tenant: Tenant, store: str, data: bytes) -> None:
    """Make the gateway read from this store, and see that each sort of range is right, and that HEAD reads nothing."""
    gateway, path = tenant.glimpse.installation.gateway_url, tenant.cluster.path(tenant.ref(store, "ImageStore"))

    def weigh(weight: int) -> None:
        body = {"spec": {"weight": weight}}
        tenant.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")

    def ranged(said: str, method: str = "GET") -> Answer:
        return ask(tenant.link("a"), token=tenant.token, headers={"Range": f"bytes={said}"}, method=method)

    def given() -> float:
        return count(gateway, "sent_bytes_total", store=store)

    def chosen() -> bool:
        before = given()
        return ranged("0-0").body == data[:1] and given() == before + 1

    weigh(1000)
    wait_until(f"{store} to be read", chosen, timeout=60)
    before, size = given(), len(data)
    middle = (8 << 20) - 3  # over the edge of what stores keep apart
    for said, part in (
        ("0-4", data[:5]),
        (f"{middle}-{middle + 9}", data[middle : middle + 10]),
        (f"{size - 3}-", data[-3:]),
        ("-7", data[-7:]),
        (f"{size - 1}-{size + 10}", data[-1:]),
    ):
        got = ranged(said)
        assert (got.status, got.body) == (206, part), (store, said)
    got = ranged(f"5-9,{middle}-{middle + 9},-4")
    assert got.status == 206
    boundary = got.headers["Content-Type"].partition("boundary=")[2].encode()
    several = [part.partition(b"\r\n\r\n")[2][:-2] for part in got.body.split(b"--" + boundary)[1:-1]]
    assert several == [data[5:10], data[middle : middle + 10], data[-4:]], store
    assert ranged(f"{size}-").status == 416
    assert given() == before + 5 + 10 + 3 + 7 + 1 + 19, f"all of it came from {store}"
    head = ranged("0-4", "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(size))
    weigh(100)


def test_one_pass_fills_them_all(tenant: Tenant, servers: dict[str, Server[Any]]) -> None:
    """The source is read once; each store has its condition and the right bytes, and is empty after the delete."""
    names = [tenant.store(), *(made(tenant, servers, kind) for kind in WRITTEN)]
    data = content(7, SIZE)
    tenant.image("a", tenant.serve("a", Reply(data, ranges=True, headers={"ETag": '"1"'})), stores=names)
    status = tenant.ready("a")
    assert status["artifact"]["digest"] == digest(data)
    assert sorted(store["name"] for store in status["stores"]) == sorted(names)
    assert all(condition["status"] == "True" for store in status["stores"] for condition in store["conditions"])
    assert sum(request.sent for request in tenant.web.requests) <= SIZE * 1.05
    key = f"{tenant.read('a')['metadata']['uid']}-1"
    stores = {name: open_store(opened(tenant, name)) for name in names}
    for name, store in stores.items():
        with store.get(key) as reader:
            seen = hashlib.sha256()
            while chunk := reader.read():
                seen.update(chunk)
        assert f"sha256:{seen.hexdigest()}" == digest(data), name
        with store.get(key, SIZE - 1000, 500) as reader:
            assert b"".join(iter(reader.read, b"")) == data[-1000:-500], name
    tenant.download(tenant.link("a"), body=data)
    for name in names:
        in_parts(tenant, name, data)
    tenant.delete("a")
    assert {name: [entry.key for entry in store.list()] for name, store in stores.items()} == {
        name: [] for name in names
    }


def lie(where: Place, key: str, data: bytes) -> None:
    """Others put an object into a bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=where.config["endpoint"],
        region_name="us-east-1",
        aws_access_key_id=where.secret["accessKey"],
        aws_secret_access_key=where.secret["secretKey"],
    )
    client.put_object(Bucket=where.config["bucket"], Key=key, Body=data)


def test_what_lies_in_a_bucket_is_registered(tenant: Tenant, servers: dict[str, Server[Any]]) -> None:
    """Verified, served, copied elsewhere as any image; noted in the bucket; refused to others; goes where it may."""
    name = f"bucket-{tenant.namespace.removeprefix('test-')}"
    where = replace(
        place("s3", name, servers["ceph"]),
        rules={"locations": [{"prefix": "import/{namespace}/", "allowDelete": True}]},
    )
    tenant.cluster.apply(*where.manifests(name))
    tenant.wait(name, lambda o: holds(o, "Ready"), kind="ImageStore")
    data, key = content(1), f"import/{tenant.namespace}/debian.img"
    lie(where, key, data)
    uid = tenant.registered("a", name, key, checksum={"digest": digest(data)})["metadata"]["uid"]
    status = tenant.ready("a")
    assert (status["artifact"]["digest"], status["artifact"]["size"]) == (digest(data), len(data))
    assert [store["location"] for store in status["stores"]] == [f"s3://{name}/{key}"]
    tenant.download(tenant.link("a"), body=data)
    part = ask(tenant.link("a"), token=tenant.token, headers={"Range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, data[1000:2000])
    spare = tenant.store()
    tenant.edit("a", stores=[name, spare])
    tenant.wait("a", lambda o: done(o) and len(o["status"]["stores"]) == 2)
    assert tenant.objects(spare) == {f"{uid}-1": data}
    store = open_store(opened(tenant, name))
    assert [(entry.key, entry.location) for entry in store.list()] == [(f"{uid}-1", f"s3://{name}/{key}")]

    tenant.registered("b", name, "import/somebody-else/x")
    assert f"only what begins with import/{tenant.namespace}/" in tenant.stalled("b", "StoreRefused")
    tenant.delete("b")

    tenant.delete("a")
    assert list(store.list()) == []
    with pytest.raises(NotFound):  # allowDelete
        store.locate(key)
