"""kill -9 at random moments; `make kills` does thirty such runs."""

from pathlib import Path

import pytest

from kills import SETTINGS, Run
from servers.glimpse import Glimpse
from servers.kube import Kube


@pytest.mark.parametrize("seed", [7, 8])
def test_kills_lose_and_double_nothing(seed: int, kube: Kube, tmp_path: Path) -> None:
    """Operator, runner, workers and gateway die while fifty images come: all are right, once, and nothing is left."""
    glimpse = Glimpse(tmp_path / "glimpse", cluster=kube.cluster, settings=SETTINGS)
    with glimpse:
        report = Run(seed, kube.cluster, glimpse, tmp_path)()
    assert report.killed.total() >= 1
    assert report.faults == []
