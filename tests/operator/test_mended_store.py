"""Stores on a server that goes and comes back, and Secrets that change: nobody touches the ImageStore, or restarts."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.operator.support import Tenant, condition, content, holds

from servers.ferretdb import FerretDB
from servers.kube import NAMESPACE
from servers.require import require
from servers.stores import place
from servers.tools import Missing

ONE, TWO = content(1), content(2)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FerretDB]:
    """A database, which wants a password."""
    server = FerretDB(tmp_path_factory.mktemp("ferretdb"))
    try:
        with server:
            yield server
    except Missing as error:
        require("ferretdb", str(error))


@pytest.fixture
def store(tenant: Tenant, database: FerretDB) -> str:
    """A store in it, looked at each second; its name."""
    name = f"mended-{tenant.namespace.removeprefix('test-')}"
    manifests = place("gridfs", name, database).manifests(name)
    manifests[-1]["spec"]["probeInterval"] = "1s"
    tenant.cluster.apply(*manifests)
    tenant.wait(name, lambda o: holds(o, "Ready"), "ImageStore")
    return name


def login(tenant: Tenant, store: str, data: dict[str, str], use: str | None = "store") -> None:
    """Apply the Secret of the store anew."""
    meta: dict[str, Any] = {"name": f"{store}-login", "namespace": NAMESPACE, "labels": {"glimpse.dev/use": use}}
    tenant.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})


def lost(tenant: Tenant, store: str, reason: str) -> str:
    """Wait until the store is not ready for this reason; the message."""
    found = tenant.wait(store, lambda o: condition(o, "Ready").get("reason") == reason, "ImageStore")
    ready = condition(found, "Ready")
    assert ready["status"] == "False"
    return str(ready["message"])


def test_a_secret_is_rotated(tenant: Tenant, store: str, database: FerretDB) -> None:
    """A key that the server refuses any more makes the store not ready; the edited Secret is enough to mend it."""
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    link = tenant.ready("a")["artifact"]["url"]
    good = {"username": database.mongo.username, "password": database.mongo.password}
    login(tenant, store, good | {"password": "yesterdays-word"})
    assert "yesterdays-word" not in lost(tenant, store, "StoreUnauthorized")
    tenant.image("b", tenant.serve("b", TWO), stores=[store])
    assert store in tenant.retried("b", "StoreUnauthorized")
    login(tenant, store, good)
    tenant.wait(store, lambda o: holds(o, "Ready"), "ImageStore")
    tenant.download(tenant.ready("b")["artifact"]["url"], body=TWO)
    tenant.download(link, body=ONE)
    assert "yesterdays-word" not in tenant.glimpse.processes["operator"].log.read_text()


def test_a_secret_that_is_not_for_stores(tenant: Tenant, store: str, database: FerretDB) -> None:
    """A Secret that loses its label, or is gone, is used no more; with it the store is ready again."""
    good = {"username": database.mongo.username, "password": database.mongo.password}
    login(tenant, store, good, use="source")
    assert f"kubectl label secret {store}-login" in lost(tenant, store, "SecretNotReadable")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{store}-login", "namespace": NAMESPACE}}
    tenant.cluster.request("DELETE", tenant.cluster.path(secret))
    tenant.wait(store, lambda o: "does not exist" in condition(o, "Ready")["message"], "ImageStore")
    login(tenant, store, good)
    tenant.wait(store, lambda o: holds(o, "Ready"), "ImageStore")


def test_a_server_that_goes_and_comes_back(tenant: Tenant, store: str, database: FerretDB) -> None:
    """While it is away its images stay as they are and new ones wait; then all is well, and all is counted."""
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    before = tenant.ready("a")["artifact"]
    database.stop()
    try:
        lost(tenant, store, "StoreUnavailable")
        tenant.image("b", tenant.serve("b", TWO), stores=[store])
        assert store in tenant.retried("b", "StoreUnavailable")
        assert tenant.read("a")["status"]["artifact"] == before
    finally:
        database.start()
    tenant.download(tenant.ready("b")["artifact"]["url"], body=TWO)
    tenant.download(before["url"], body=ONE)
    assert len(tenant.web.asked("/a")) == 1

    def counted(obj: dict[str, Any]) -> bool:
        held = obj["status"].get("images"), obj["status"].get("bytes")
        return held == (2, len(ONE) + len(TWO)) and holds(obj, "Ready")

    status = tenant.wait(store, counted, "ImageStore")["status"]
    assert (status["driver"], status["endpoint"].partition(":")[0]) == ("gridfs", "mongodb")
    tenant.delete("a")
    tenant.wait(store, lambda o: (o["status"]["images"], o["status"]["bytes"]) == (1, len(TWO)), "ImageStore")


def test_a_marker_that_a_person_puts_right(tenant: Tenant) -> None:
    """A store that was given up for its marker, and an Image for that store, go on once it names this ImageStore."""
    folder = tenant.folder / "handed-over"
    folder.mkdir()
    (folder / "glimpse-store.json").write_text(json.dumps({"owner": "somebody-else"}))
    store = tenant.store(folder, ready=False, probeInterval="1s")
    message = lost(tenant, store, "StoreOwnedByAnother")
    tenant.image("a", tenant.serve("a", ONE), stores=[store])
    tenant.stalled("a", "StoreOwnedByAnother")
    (folder / "glimpse-store.json").write_text(json.dumps({"owner": message.split("this one is '")[1].split("'")[0]}))
    tenant.download(tenant.ready("a")["artifact"]["url"], body=ONE)
