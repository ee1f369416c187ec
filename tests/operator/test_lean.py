"""An installation without the client library of a store: the store says so, and the rest works.

The library is really not there: the programs run in an environment of their own, made of links to all packages of ours
but that one.
"""

import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.operator.support import Tenant, condition, content, holds

from glimpse.testing.faults import Server
from servers.glimpse import Glimpse
from servers.kube import Kube
from servers.stores import Place

LIBRARY: Final = "botocore"
PLACE: Final = Place(
    "s3", {"endpoint": "http://127.0.0.1:9", "bucket": "images"}, {"accessKey": "key", "secretKey": "secret"}
)
"""Nobody listens there: to be told so takes the library."""


def link(packages: Path, found: Path) -> None:
    """Install it."""
    (packages / found.name).symlink_to(found)


@pytest.fixture
def ours() -> Path:
    """Where the packages of these tests are."""
    return Path(sysconfig.get_path("purelib"))


@pytest.fixture
def lean(tmp_path: Path, ours: Path) -> Path:
    """An environment with all of them except one."""
    folder = tmp_path / "lean"
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for found in ours.iterdir():
        if found.name != LIBRARY:
            link(packages, found)
    return folder


@pytest.fixture
def tenant(kube: Kube, lean: Path, tmp_path: Path) -> Iterator[Tenant]:
    """A tenant of an installation in that environment."""
    cluster = kube.cluster
    settings = {"GLIMPSE_RETRIES__BASE": "0.2", "GLIMPSE_SECRET_INTERVAL": "0.3"}
    server = Glimpse(tmp_path / "glimpse", cluster=cluster, settings=settings, python=lean / "bin" / "python")
    with server, Server() as web:
        yield Tenant(cluster, server, tmp_path, web, cluster.namespace())


def test_a_client_library_that_is_missing(tenant: Tenant, lean: Path, ours: Path) -> None:
    """The ImageStore names the package and the command; other stores serve; once it is installed the store goes on."""
    tenant.cluster.apply(*PLACE.manifests("cloud"))
    found = tenant.wait("cloud", lambda o: condition(o, "Ready").get("status") == "False", "ImageStore")
    assert condition(found, "Ready")["reason"] == "InvalidConfiguration"
    message = condition(found, "Ready")["message"]
    assert "needs the Python package 'botocore', which is not installed" in message
    assert "pip install 'glimpse[s3]'" in message
    disk = tenant.store()
    tenant.image("a", tenant.serve("a", content(1)), stores=["cloud", disk])
    image = tenant.wait("a", lambda o: holds(o, "Ready") and condition(o, "Stored").get("status") == "False")
    assert "cloud" in condition(image, "Stored")["message"]
    assert list(tenant.objects(disk).values()) == [content(1)]

    [packages] = lean.glob("lib/python*/site-packages")
    link(packages, ours / LIBRARY)
    tenant.glimpse.restart("operator")
    found = tenant.wait("cloud", lambda o: condition(o, "Ready").get("reason") == "StoreUnavailable", "ImageStore")
    assert "127.0.0.1:9" in condition(found, "Ready")["message"]
