"""Drivers whose client library is not there: each names the command that installs it, and its page the same one."""

import subprocess
import sys
import tomllib
from typing import Any, Final

import pytest

from glimpse.problems import InvalidConfiguration
from glimpse.stores import installed, open_store
from glimpse.tasks import StoreRef
from servers import ROOT

APT: Final = "apt install python3-rados python3-rbd"
COMMANDS: Final = {
    ("cinder", "cinderclient"): "pip install 'glimpse[cinder]'",
    ("cinder", "keystoneauth1"): "pip install 'glimpse[cinder]'",
    ("cinder", "rados"): APT,
    ("cinder", "rbd"): APT,
    ("gridfs", "pymongo"): "pip install 'glimpse[gridfs]'",
    ("rbd", "rados"): APT,
    ("rbd", "rbd"): APT,
    ("s3", "botocore"): "pip install 'glimpse[s3]'",
    ("swift", "keystoneauth1"): "pip install 'glimpse[swift]'",
    ("swift", "swiftclient"): "pip install 'glimpse[swift]'",
    ("vmware", "pyVmomi"): "pip install 'glimpse[vmware]'",
}

NOBODY: Final = "http://127.0.0.1:9"
LOGIN: Final = {
    "username": "a",
    "password": "b",
    "projectName": "c",
    "cephKey": "AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA0ODw==",
}
STORES: Final[dict[str, tuple[dict[str, Any], dict[str, str]]]] = {
    "cinder": ({"authUrl": NOBODY}, LOGIN),
    "gridfs": ({"uri": "mongodb://127.0.0.1:9", "database": "images"}, {}),
    "rbd": (
        {"pool": "images", "monitors": ["127.0.0.1:9"], "user": "a"},
        {"userKey": "AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA0ODw=="},
    ),
    "s3": ({"endpoint": NOBODY, "bucket": "images"}, {"accessKey": "a", "secretKey": "b"}),
    "swift": ({"authUrl": NOBODY, "container": "images"}, LOGIN),
    "vmware": ({"server": "127.0.0.1:9", "datacenter": "a", "datastore": "b", "folder": "c"}, LOGIN),
}

SCRIPT: Final = """
import importlib.abc, sys
from glimpse.problems import Problem
from glimpse.stores import open_store
from glimpse.tasks import StoreRef

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
store = open_store(StoreRef.model_validate_json(sys.argv[2]))
try:
    if sys.argv[3:]:
        with store._border():  # where it takes a server to come so far
            __import__(sys.argv[1])
    store.claim()
except Problem as problem:
    print(problem.reason, problem.message)
"""


@pytest.mark.parametrize(("driver", "library"), COMMANDS)
def test_a_library_that_is_missing(driver: str, library: str) -> None:
    """In a Python in which it cannot be imported, the first use says which it is, and how it is installed."""
    config, secret = STORES[driver]
    ref = StoreRef(name="x", driver=driver, config=config, secret=secret, installation="here")
    far = ["far"] if (driver, library) in {("cinder", "rados"), ("cinder", "rbd"), ("rbd", "rbd")} else []
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, library, ref.line(), *far],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith("InvalidConfiguration store x needs the Python package"), done.stdout + done.stderr
    assert f"'{library}" in done.stdout
    assert f"not installed where Glimpse runs: {COMMANDS[driver, library]}" in done.stdout
    assert "pip install rados" not in done.stdout


@pytest.mark.parametrize(
    ("driver", "command"), sorted({(driver, command) for (driver, _), command in COMMANDS.items()})
)
def test_the_page_names_the_command(driver: str, command: str) -> None:
    """Word for word."""
    assert f"`{command}`" in (ROOT / "docs" / "stores" / f"{driver}.md").read_text()


def test_no_driver_is_forgotten() -> None:
    """Each that has an extra, or says of libraries how they are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["optional-dependencies"])
    wanted |= {name for name, point in installed().items() if hasattr(point.load(), "libraries")}
    assert {driver for driver, _ in COMMANDS} == wanted


@pytest.mark.usefixtures("outside")
def test_a_package_of_another_name_is_not_recommended() -> None:
    """Where the driver's package has no extra, what is imported is not taken for a name on PyPI."""
    ref = StoreRef(name="x", driver="lost", config={}, installation="here")
    with pytest.raises(InvalidConfiguration) as raised:
        open_store(ref)
    assert "'absent', which is not installed where Glimpse runs: install what outside needs" in raised.value.message
