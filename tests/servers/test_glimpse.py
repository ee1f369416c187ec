"""The programs as an installation runs them."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.glimpse import Glimpse
from servers.kube import Cluster, Kube
from servers.processes import children
from servers.require import require
from servers.tools import Missing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server without the stores and images that other tests have left."""
    try:
        with Kube(tmp_path_factory.mktemp("glimpse-kube")) as started:
            started.install()
            yield started
    except Missing as error:
        require("kube", str(error))


@pytest.fixture
def glimpse(cluster: Cluster, tmp_path: Path) -> Iterator[Glimpse]:
    """Operator and gateway, ready."""
    server = Glimpse(tmp_path / "glimpse", cluster=cluster)
    with server:
        yield server


def test_both_are_ready_with_the_shipped_rights_alone(glimpse: Glimpse) -> None:
    """Each program becomes ready as its own ServiceAccount, with what the shipped RBAC grants."""
    assert glimpse.ready()
    assert set(glimpse.rss()) == {"operator", "gateway"}


def test_a_program_comes_back_at_its_address(glimpse: Glimpse) -> None:
    """Killed or restarted, a program answers again where it did; the other one is not touched."""
    before = glimpse.installation
    gateway = glimpse.processes["gateway"]
    glimpse.kill("operator")
    assert not glimpse.program_ready("operator")
    glimpse.launch("operator")
    glimpse.await_ready("operator")
    assert glimpse.installation == before
    assert glimpse.processes["gateway"] is gateway
    glimpse.restart("gateway")
    assert glimpse.ready()


def test_a_kill_leaves_no_child(glimpse: Glimpse) -> None:
    """SIGKILL to the operator ends what it had started: its workers die with it."""
    operator = glimpse.processes["operator"]
    below = _descendants(operator.pid)
    assert below, "the operator keeps a warm worker"
    glimpse.kill("operator")
    for pid in below:
        _await_end(pid)


def _descendants(pid: int) -> set[int]:
    found = set(children(pid))
    return found.union(*map(_descendants, found))


def _await_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 10)[0], f"process {pid} is still there"
    finally:
        os.close(descriptor)
