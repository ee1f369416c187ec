"""The worked example of the docs: a driver from another distribution, which keeps the contract."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from servers import ROOT

EXAMPLE = ROOT / "docs" / "howto" / "sqlite-store"


def installed(folder: Path) -> dict[str, str]:
    """Install the example's package into a folder, as an installer would; the environment in which it is found."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["glimpse.stores"]
    (info / "entry_points.txt").write_text(
        "\n".join(["[glimpse.stores]", *(f"{name} = {where}" for name, where in points.items()), ""])
    )
    for file in EXAMPLE.glob("*.py"):
        (folder / file.name).symlink_to(file)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def run(folder: Path, env: dict[str, str], *words: str) -> str:
    """What a Python module prints."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_keeps_the_contract(tmp_path: Path) -> None:
    """Its own test module, in a process of its own."""
    env = installed(tmp_path)
    out = run(tmp_path, env, "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "test_glimpse_sqlite.py")
    assert " passed" in out
    assert "skipped" not in out


def test_the_example_is_part_of_the_api(tmp_path: Path) -> None:
    """The definitions have its member, with its help, once it is installed."""
    found = yaml.safe_load_all(run(tmp_path, installed(tmp_path), "glimpse", "crds"))
    (store,) = (each for each in found if each["metadata"]["name"] == "imagestores.glimpse.dev")
    spec = store["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert {"path", "size", "deadAfter"} == set(spec["sqlite"]["properties"])
    assert "database file" in spec["sqlite"]["description"]
