"""Drivers from outside the project, installed as such: by an entry point of another distribution."""

import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from glimpse.stores import installed
from glimpse.streams import CHUNK

VARIANTS: Final = {"cinder": 3, "gridfs": 6, "rbd": 8, "s3": 8, "s3 s3api": 3, "swift": 6, "vmware": 8}
"""How many variants of one test of a contract are run where the server takes a second for each; the table says it."""


REQUIRED: Final[Mapping[str, tuple[Mapping[str, object], ...]]] = {
    "test_gives_back_what_it_was_given": ({"length": 0}, {"length": CHUNK}, {"length": CHUNK + 1}),
    "test_cuts_where_a_part_ends": ({"parts": 1, "more": 0}, {"parts": 1, "more": 1}),
    "test_lets_the_error_of_a_body_out": ({"length": 0}, {"length": CHUNK}, {"length": CHUNK + 1}),
    "test_reads_what_lies_there": ({"length": 0}, {"length": CHUNK}),
}
"""What is never left out, one variant of each at least: nothing at all, just one part, and a byte more."""


def choose(name: str, found: list[pytest.Function], few: int, seed: str) -> set[pytest.Item]:
    """So many of the variants of a test: what is required, and whatever chance adds; always the same ones."""
    order = random.Random(seed).sample(found, len(found))  # noqa: S311 - the same each time
    chosen = [
        next(item for item in order if wanted.items() <= item.callspec.params.items())
        for wanted in REQUIRED.get(name, ())
    ]
    chosen += [item for item in order if item not in chosen]
    return set(chosen[:few])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a server is slow, choose among the variants of a test, others in each module."""
    groups = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.function.__module__.startswith("glimpse.testing"):
            groups[item.path, item.parent, item.originalname].append(item)
    spared: set[pytest.Item] = set()
    for (path, _, name), found in groups.items():
        store, against = path.stem.split("_")[1], getattr(found[0].cls, "against", "")
        few = VARIANTS.get(f"{store} {against}", VARIANTS.get(store))
        if path.parent == Path(__file__).parent and few and few < len(found):
            spared |= set(found) - choose(name, found, few, f"{path.stem} {name}")
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
