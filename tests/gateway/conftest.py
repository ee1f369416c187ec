"""A gateway as an installation runs it: a process of its own under its ServiceAccount, with its RBAC and no more."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.signing import drop, known, made, put

from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Shelf

OPEN = {"GLIMPSE_GATEWAY_IDLE": "60", "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0"}
"""Settings for a crowd of clients, which all come from one address."""


@pytest.fixture(scope="session")
def glimpse(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """A gateway that all tests share; its operator is not started."""
    # all tests come from one address
    settings = {"GLIMPSE_GATEWAY_IDLE": "5", "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0"}
    server = Glimpse(tmp_path_factory.mktemp("gateway"), cluster=cluster, settings=settings)
    with server.running("gateway"):
        yield server


@pytest.fixture
def fresh(cluster: Cluster, tmp_path: Path) -> Iterator[Glimpse]:
    """A gateway of the test's own: it has kept no memory of others, which would hide what its clients take."""
    server = Glimpse(tmp_path / "fresh", cluster=cluster, settings=OPEN)
    with server.running("gateway"):
        yield server


def peak(glimpse: Glimpse) -> int:
    """The most memory that a gateway has had since this was asked before, in bytes; from now on, what it has now."""
    proc = Path(f"/proc/{glimpse.processes['gateway'].pid}")
    found = re.search(r"^VmHWM:\s+([0-9]+) kB$", (proc / "status").read_text(), re.MULTILINE)
    assert found
    (proc / "clear_refs").write_text("5")  # proc(5): the mark begins anew
    return int(found[1]) << 10


@pytest.fixture
def shelf(cluster: Cluster, tmp_path: Path) -> Iterator[Shelf]:
    """Where a test puts its images."""
    with contextlib.closing(Shelf(cluster, tmp_path / "stores")) as shelf:
        yield shelf


@pytest.fixture
def gateway(glimpse: Glimpse) -> str:
    """The address of the shared gateway."""
    return glimpse.installation.gateway_url


@pytest.fixture
def token(shelf: Shelf, namespace: str) -> str:
    """A token that may download every image of the test's namespace."""
    return shelf.grant(namespace, "reader")


@pytest.fixture(scope="module")
def keys(glimpse: Glimpse, cluster: Cluster) -> Iterator[dict[str, str]]:
    """The keys of the shared gateway, which knows them when this returns, and no longer when they are gone."""
    url, found = glimpse.installation.gateway_url, made("20260101T000000Z")
    put(cluster, found)
    wait_until("the keys", lambda: known(url, found), timeout=20)
    yield found
    drop(cluster)
    wait_until("the keys to go", lambda: not known(url, found), timeout=20)
