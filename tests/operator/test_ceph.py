"""A store in a pool of Ceph, as a person sees it: its room, and images that no machine can start from."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.operator.support import REQUESTED_AT, Tenant, condition, content, holds, said

from servers import wait_until
from servers.ceph import Ceph
from servers.kube import Object
from servers.require import require, require_tool
from servers.stores import place
from servers.tools import Missing

SIZE = 1 << 30
FULL = 0.95
"""Of the room of an OSD, what may be filled."""


@pytest.fixture(scope="module", params=[True], ids=["manager"])
def ceph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A cluster in memory, with a manager or without."""
    folder = tmp_path_factory.mktemp("ceph")
    try:
        with (server := Ceph(folder, objectstore="memstore", size=SIZE, manager=request.param)):
            yield server
    except Missing as error:
        require("ceph", str(error))


def pool(tenant: Tenant, ceph: Ceph) -> str:
    """A store in a pool of its own; its name."""
    name = f"rbd-{tenant.namespace.removeprefix('test-')}"
    tenant.cluster.apply(*place("rbd", name, ceph).manifests(name))
    tenant.wait(name, lambda o: holds(o, "Ready"), kind="ImageStore")
    return name


@pytest.mark.parametrize("ceph", [True, False], ids=["manager", "none"], indirect=True)
def test_the_room_of_a_pool(tenant: Tenant, ceph: Ceph, request: pytest.FixtureRequest) -> None:
    """What the managers have counted is in the status, in each look; without one nothing is said, not even nought."""
    name = pool(tenant, ceph)
    data = content(3, 24 << 20)
    tenant.image("a", tenant.serve("a", data), stores=[name])
    tenant.ready("a")
    if request.node.callspec.id == "none":
        tenant.annotate(name, REQUESTED_AT, "now", "ImageStore")
        found = tenant.wait(name, lambda o: said(o).get("lastHandledReconcileAt") == "now", kind="ImageStore")
        assert "capacity" not in found["status"] or found["status"]["capacity"] == {}
        assert "free" not in found["status"].get("summary", {})
        return

    def counted() -> bool:
        pools = {each["name"]: each["stats"]["stored"] for each in ceph.cluster.ceph("df")["pools"]}
        return bool(pools.get(name, 0) >= len(data))

    wait_until("the manager's count", counted, timeout=60)
    tenant.annotate(name, REQUESTED_AT, "now", "ImageStore")
    found = tenant.wait(name, lambda o: said(o).get("lastHandledReconcileAt") == "now", kind="ImageStore")
    capacity = found["status"]["capacity"]
    assert capacity["used"] == pytest.approx(len(data), rel=0.05)
    assert capacity["free"] == pytest.approx(FULL * SIZE - len(data), rel=0.05)
    assert capacity["total"] == capacity["used"] + capacity["free"]
    assert found["status"]["summary"]["free"].endswith(" MiB")


def unbootable(o: Object, store: str) -> str:
    """What the Image says of that store; empty if machines can start from it."""
    (found,) = (each for each in said(o).get("stores", []) if each["name"] == store)
    told: list[str] = [each["message"] for each in found["conditions"] if each["type"] == "Bootable"]
    return told[0] if told else ""


def test_a_qcow2_in_a_pool(tenant: Tenant, ceph: Ceph, tmp_path: Path) -> None:
    """The Image is Ready, says of that store alone what is wrong, once; the way out that it names is one."""
    command = [require_tool("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]
    subprocess.run(command, cwd=tmp_path, check=True)
    name, plain = pool(tenant, ceph), tenant.store()
    assert tenant.read(name, "ImageStore")["status"]["bootFormat"] == "raw"
    tenant.image("a", tenant.serve("a", (tmp_path / "disk.qcow2").read_bytes()), stores=[plain, name])
    tenant.ready("a")
    text = unbootable(tenant.read("a"), name)
    assert text == (
        f"machines start from {name} as it lies there, and find qcow2 in place of raw; set spec.format.convertTo to raw"
    )
    assert unbootable(tenant.read("a"), plain) == ""
    assert tenant.event("a", reason="NotBootable") == text
    tenant.annotate("a", REQUESTED_AT, "now")
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
