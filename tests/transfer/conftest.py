"""A web server that misbehaves, and a workbench over folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from glimpse.testing import faults
from glimpse.testing.faults import Server
from glimpse.testing.workbench import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """Stores below the test's folder."""
    return Workbench(tmp_path)


@pytest.fixture
def web() -> Iterator[Server]:
    """The web server that does as told."""
    with faults.Server() as server:
        yield server
