"""An image that no machine can start from, in a pool of Ceph: it is stored, and a person is told."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.operator.support import Tenant, condition, holds, said

from servers.ceph import Ceph
from servers.kube import Object
from servers.require import require, require_tool
from servers.stores import place
from servers.tools import Missing


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A cluster in memory."""
    try:
        with (server := Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore")):
            yield server
    except Missing as error:
        require("ceph", str(error))


def unbootable(o: Object, store: str) -> str:
    """What the Image says of that store; empty if machines can start from it."""
    (found,) = (each for each in said(o).get("stores", []) if each["name"] == store)
    told: list[str] = [each["message"] for each in found["conditions"] if each["type"] == "Bootable"]
    return told[0] if told else ""


def test_a_qcow2_in_a_pool(tenant: Tenant, ceph: Ceph, tmp_path: Path) -> None:
    """The Image is Ready, says of that store alone what is wrong, once; the way out that it names is one."""
    command = [require_tool("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]
    subprocess.run(command, cwd=tmp_path, check=True)
    name, plain = f"rbd-{tenant.namespace.removeprefix('test-')}", tenant.store()
    tenant.cluster.apply(*place("rbd", name, ceph).manifests(name))
    found = tenant.wait(name, lambda o: holds(o, "Ready"), kind="ImageStore")
    assert found["status"]["bootFormat"] == "raw"
    tenant.image("a", tenant.serve("a", (tmp_path / "disk.qcow2").read_bytes()), stores=[plain, name])
    tenant.ready("a")
    text = unbootable(tenant.read("a"), name)
    assert text == (
        f"machines start from {name} as it lies there, and find qcow2 in place of raw; set spec.format.convertTo to raw"
    )
    assert unbootable(tenant.read("a"), plain) == ""
    assert tenant.event("a", reason="NotBootable") == text
    tenant.annotate("a", "glimpse.dev/reconcile-requested-at", "now")
    tenant.wait("a", lambda o: said(o).get("lastHandledReconcileAt") == "now")
    assert len(warnings(tenant)) == 1
    tenant.edit("a", format={"convertTo": "raw"})
    o = tenant.wait("a", lambda o: holds(o, "Stored") and not unbootable(o, name))
    assert condition(o, "Ready")["status"] == "True"
    assert o["status"]["artifact"]["diskFormat"] == "raw"
    tenant.delete("a")
    tenant.delete(name, "ImageStore")


def warnings(tenant: Tenant) -> list[Object]:
    """The Events about what cannot be started from."""
    found: list[Object] = tenant.cluster.request("GET", f"/api/v1/namespaces/{tenant.namespace}/events")["items"]
    assert all(each.get("count", 1) == 1 for each in found if each["reason"] == "NotBootable")
    return [each for each in found if each["reason"] == "NotBootable"]
