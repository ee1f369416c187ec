"""Cinder, as its users see it."""

import urllib.error
from collections.abc import Iterator
from secrets import token_hex

import pytest

from servers import run
from servers.ceph import Ceph
from servers.cinder import ELSEWHERE, POOL, USER, Cinder, Cloud
from servers.require import require
from servers.tools import Missing


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A Ceph for this module."""
    server = Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore")
    try:
        with server:
            yield server
    except Missing as error:
        require("ceph", str(error))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ceph: Ceph) -> Iterator[Cinder]:
    """A Cinder for this module."""
    server = Cinder(tmp_path_factory.mktemp("cinder"), ceph.cluster)
    try:
        with server:
            yield server
    except Missing as error:
        require("cinder", str(error))


@pytest.fixture
def cloud(server: Cinder) -> Cloud:
    """Where it is."""
    return server.cloud


def made(cloud: Cloud, project: str, **wanted: object) -> str:
    """A new volume of 1 GiB, whatever becomes of it; its id."""
    volume: str = cloud.call(project, "POST", "/volumes", {"volume": {"size": 1, **wanted}})["volume"]["id"]
    cloud.reaches(project, volume, "available", "error")
    return volume


def test_a_volume_is_an_image_in_ceph(cloud: Cloud) -> None:
    """A volume is made and removed as an RBD image; attached, it tells where that is, and Cinder keeps it."""
    project = token_hex(16)
    volume = made(cloud, project)
    rbd = ("rbd", "--conf", cloud.cluster.conf, "--id", USER)
    assert f"volume-{volume}" in run(*rbd, "ls", POOL)
    body = {"volume_uuid": volume, "connector": {"host": "here"}, "mode": "ro"}
    attachment = cloud.call(project, "POST", "/attachments", {"attachment": body})["attachment"]
    way = attachment["connection_info"]
    assert (way["driver_volume_type"], way["name"]) == ("rbd", f"{POOL}/volume-{volume}")
    with pytest.raises(urllib.error.HTTPError, match="400") as raised:
        cloud.call(project, "DELETE", f"/volumes/{volume}")
    raised.value.close()
    cloud.call(project, "DELETE", f"/attachments/{attachment['id']}")
    cloud.call(project, "DELETE", f"/volumes/{volume}")
    cloud.reaches(project, volume)
    assert volume not in run(*rbd, "ls", POOL)


def test_a_project_has_a_quota(cloud: Cloud) -> None:
    """What a project may not have is refused with 413, and another one may have it."""
    project = token_hex(16)
    cloud.quota(project, 0)
    with pytest.raises(urllib.error.HTTPError, match="413") as raised:
        made(cloud, project)
    raised.value.close()
    other = token_hex(16)
    cloud.call(other, "DELETE", f"/volumes/{made(cloud, other)}")


def test_a_type_may_have_no_backend(cloud: Cloud) -> None:
    """A volume of such a type comes to an error, which says why."""
    project = token_hex(16)
    volume = made(cloud, project, volume_type=ELSEWHERE)
    found = cloud.volume(project, volume)
    assert found
    assert found["status"] == "error"
    assert "backend" in cloud.call(project, "GET", "/messages")["messages"][0]["user_message"]


def test_volumes_outlive_a_kill(server: Cinder) -> None:
    """Killed and started again in its folder, it has its volumes and its address."""
    project = token_hex(16)
    volume, before = made(server.cloud, project), server.cloud
    server.processes["cinder"].kill()
    assert not server.ready()
    assert server.start() == before
    assert [each["id"] for each in before.volumes(project)] == [volume]
