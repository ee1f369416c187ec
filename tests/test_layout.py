"""What the layout promises and neither a linter nor a type can see."""

import ast
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from glimpse.stores import installed

ROOT = Path(__file__).resolve().parents[1]
STORES = ROOT / "operator/glimpse/stores"
DRIVERS = sorted({*STORES.rglob("*.py"), STORES.parent / "ceph.py"} - {STORES / "__init__.py"})


def test_the_source_root_shadows_no_module() -> None:
    """The standard library has a module `operator`: a file in the source root's own name would replace it."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def eager(module: Path) -> set[str]:
    """What is imported as soon as the module is."""
    return {
        name.partition(".")[0]
        for node in ast.parse(module.read_text()).body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda path: str(path.relative_to(STORES.parent)))
def test_a_driver_can_be_read_without_its_client_library(driver: Path) -> None:
    """A driver imports its client lazily, so that its Config is readable where the library is absent."""
    assert eager(driver) <= sys.stdlib_module_names | {"glimpse", "pydantic"}


def test_all_drivers_are_kept_apart() -> None:
    """What is installed as a driver is in the contract of imports that says that drivers do not know each other."""
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    apart = contracts["importlinter:contract:drivers"]["modules"].split()
    ours = [point.module for point in installed().values() if point.dist and point.dist.name == "glimpse"]
    assert sorted(ours) == apart


def test_openpgp_is_loaded_only_where_somebody_has_signed() -> None:
    """Its library is native code and reads hostile bytes: a worker that needs none of it does not have it."""
    module = ROOT / "operator/glimpse/sources/signatures.py"
    assert "pysequoia" in module.read_text()
    assert eager(module) <= sys.stdlib_module_names | {"glimpse"}


def test_what_tests_need_is_set_up() -> None:
    """`make setup` installs the package of every program that a test, a measurement or the demo asks for."""
    setup = (ROOT / "e2e/setup").read_text()
    asked = {
        match[2]
        for folder in ("tests", "e2e", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for match in re.finditer(r'tool\("([^"]+)", "([^"]+)"\)', path.read_text())
    }
    built = {"kubernetes-client"}  # kubectl, by `make programs`
    assert "curl" in asked
    assert [package for package in sorted(asked - built) if not re.search(rf'"\S+ {package}"', setup)] == []
