"""Fixtures of all tests: the real API server, and namespaces of their own.

One API server a session is shared by all tests, so a test makes its own namespace and names its cluster-scoped
objects uniquely; one that breaks the server takes `kube`, a server of its own.
"""

import gc
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from servers.kube import Cluster, Kube
from servers.require import require
from servers.tools import Missing

LONG: Final = 60.0
"""Seconds of all tests together from which it is told where they went."""

# A run says of a commit what the next run will; who looks for news draws others with --hypothesis-profile=default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several run at once, begin with what takes longest: the stores, which mostly wait."""
    items.sort(key=lambda item: "stores" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Whoever collects garbage from now on need not look through all that was imported."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long the tests of each folder took, one after the other: one that grows too long is seen."""
    spent: defaultdict[str, float] = defaultdict(float)
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            spent[Path(report.nodeid.partition("::")[0]).parent.as_posix()] += report.duration
    if sum(spent.values()) > LONG:
        told = (f"{folder} {seconds / 60:.1f}" for folder, seconds in sorted(spent.items()))
        terminalreporter.write_line(f"minutes, if one test ran at a time: {', '.join(told)}")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Kubernetes API server with the project's kinds, policies and roles.

    The cluster that `GLIMPSE_KUBECONFIG` names; without it one of our own that ends with the session.
    """
    folder = tmp_path_factory.mktemp("kube")
    try:
        if named := os.environ.get("GLIMPSE_KUBECONFIG"):
            found = Cluster.named_by(Path(named), folder)
            found.install()
            yield found
            return
        server = Kube(folder)
        with server as started:
            started.install()
            yield started
    except Missing as error:
        require("kube", str(error))


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    """A namespace that no other test uses. Nothing removes it: there is no controller that could."""
    return cluster.namespace()


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Kube]:
    """A running API server of this test's own, with the project's kinds, that it may stop, kill and start again."""
    server = Kube(tmp_path / "kube")
    try:
        with server as started:
            started.install()
            yield server
    except Missing as error:
        require("kube", str(error))
