"""Drivers from outside the project, installed as such: by an entry point of another distribution."""

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from glimpse.stores import installed

VARIANTS: Final = {"cinder": 3, "gridfs": 6, "rbd": 8, "s3": 8, "swift": 6, "vmware": 8}
"""How many variants of one test of a contract are run where the server takes a second for each; the table says it."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a server is slow, choose among the variants of a test: always the same ones, others in each module."""
    groups = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.function.__module__.startswith("glimpse.testing"):
            groups[item.path, item.parent, item.originalname].append(item)
    spared: set[pytest.Item] = set()
    for (path, _, name), found in groups.items():
        few = VARIANTS.get(path.stem.split("_")[1])
        if path.parent == Path(__file__).parent and few and few < len(found):
            chosen = random.Random(f"{path.stem} {name}").sample(found, few)  # noqa: S311 - the same each time
            spared |= set(found) - set(chosen)
    if spared:
        config.hook.pytest_deselected(items=sorted(spared, key=lambda item: item.nodeid))
        items[:] = [item for item in items if item not in spared]


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, in which another distribution has installed drivers.

    `memory` and `careless`; and for each module `quick_x` here a driver `quick-x`: one of ours, less patient.
    Child processes see them too.
    """
    folder = tmp_path_factory.mktemp("site")
    (folder / "outside-1.dist-info").mkdir()
    (folder / "outside-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outside\nVersion: 1\nProvides-Extra: extra\n"
    )
    here = Path(__file__).parent
    points = ["memory = glimpse.testing.memory:Memory", "careless = careless:Careless", "lost = absent:Driver"]
    points.append("extra = absent:Driver")
    (folder / "careless.py").symlink_to(here / "careless.py")
    for file in here.glob("quick_*.py"):
        points.append(f"{file.stem.replace('_', '-')} = {file.stem}:Quick")
        (folder / file.name).symlink_to(file)
    (folder / "outside-1.dist-info" / "entry_points.txt").write_text("\n".join(["[glimpse.stores]", *points, ""]))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)  # for child processes
    installed.cache_clear()
    yield folder
    monkeypatch.undo()
    installed.cache_clear()
