"""One installation for all tests here: operator and gateway as processes, each with its ServiceAccount's rights only.

It has an API server of its own, since a default store and an admission policy are matters of a whole cluster.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.operator.support import Tenant

from glimpse.testing.faults import Server
from servers.glimpse import Glimpse
from servers.kube import Cluster, Kube
from servers.require import require
from servers.tools import Missing

SETTINGS: Final = {
    "GLIMPSE_RETRIES__BASE": "0.2",
    "GLIMPSE_SECRET_INTERVAL": "0.3",
    "GLIMPSE_PROGRESS_INTERVAL": "0.3",
    "GLIMPSE_TRANSFERS__IDLE_TIMEOUT": "2",
    "GLIMPSE_TRANSFERS__REDIRECTS": "3",
    "GLIMPSE_LIMITS__TRANSFERS": "4",
    "GLIMPSE_LIMITS__NAMESPACE_TRANSFERS": "2",
    "GLIMPSE_LIMITS__IMAGE_SIZE": str(32 << 20),
    "GLIMPSE_DIGESTS": '["md5"]',
    "GLIMPSE_UPLOADS__LINGER": "4",
}
"""What takes minutes in an installation takes moments here; the limits are small enough to reach."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server that nobody else uses, with the project's kinds, policies and roles."""
    try:
        with Kube(tmp_path_factory.mktemp("operator-kube")) as started:
            started.install()
            yield started
    except Missing as error:
        require("kube", str(error))


@pytest.fixture(scope="session")
def installation(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """Operator and gateway, shared. A test that stops one starts it again."""
    spool = {"GLIMPSE_SPOOL__PATH": str(tmp_path_factory.mktemp("spool"))}
    server = Glimpse(tmp_path_factory.mktemp("operator"), cluster=cluster, settings=SETTINGS | spool)
    with server:
        yield server
    for log in server.folder.glob("*.log"):
        assert "Traceback" not in log.read_text(), f"something unexpected happened, see {log}"


@pytest.fixture
def web() -> Iterator[Server]:
    """The web server of one test."""
    with Server() as server:
        yield server


@pytest.fixture
def tenant(cluster: Cluster, installation: Glimpse, web: Server, tmp_path: Path) -> Tenant:
    """A tenant with a namespace of his own."""
    return Tenant(cluster, installation, tmp_path, web, cluster.namespace())
