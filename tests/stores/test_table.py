"""The tables of stores in the docs say what drivers are, what they were tested with, and what is not run on them."""

import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from glimpse.api.store import UNREGISTERED
from glimpse.stores import Cloneable, Linkable, Placed, Registering, Resumable, Sendable, Sparse, installed, load
from glimpse.testing.cloneable import CloneableContract
from glimpse.testing.placed_remote import RemotePlacedContract
from glimpse.testing.registering import PlacedContract, RegisteringContract
from glimpse.testing.remote import RemoteContract
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.sparse import SparseContract
from glimpse.testing.stores import StoreContract, StoreFixtures
from servers import ROOT, cinder, ferretdb, keystone, run, swift, tool, vcsim

PAGE: Final = ROOT / "docs" / "stores" / "README.md"
CAPABILITIES: Final = (Resumable, Linkable, Cloneable, Placed, Sendable, Sparse)
"""In the order of the columns."""
SUITES: Final[dict[type[StoreFixtures], type | None]] = {
    StoreContract: None,
    RemoteContract: None,
    ResumableContract: Resumable,
    CloneableContract: Cloneable,
    PlacedContract: Placed,
    RegisteringContract: Registering,
    SparseContract: Sparse,
}
"""What is run on each kind of server, if the driver can do what it is about."""


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose head begins so."""
    found: dict[str, list[list[str]]] = {}
    table = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("|---"):
            continue
        if not line.startswith("| "):
            table = ""
        elif not table:
            table = line
            found[table] = []
        else:
            found[table].append([cell.strip() for cell in line.strip("| ").split(" | ")])
    [wanted] = [table for head, table in found.items() if head.startswith(f"| {first} |")]
    return wanted


def store_of(cell: str) -> str:
    """Its name, whether it is a link or not."""
    return re.sub(r"[\[`]+(\w+)[\]`].*", r"\1", cell)


def methods(protocol: type) -> list[str]:
    """What makes an object one of this protocol."""
    return [name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")]


def can(name: str, protocol: type) -> bool:
    """Whether the driver's class is of the protocol."""
    return all(hasattr(load(name), word) for word in methods(protocol))


def test_each_driver_has_its_capabilities() -> None:
    """One row for each that is installed, with what its class can do."""
    shown = {
        store_of(row[0]): [cell == "yes" for cell in row[1:]] for row in rows("store | takes up a transfer that died")
    }
    assert shown == {name: [can(name, each) for each in CAPABILITIES] for name in installed()}


def test_what_registers_nothing_is_known_beforehand() -> None:
    """The API server refuses `locations` of those drivers, and of no others."""
    assert {name for name in installed() if not can(name, Placed)} == UNREGISTERED


def test_each_driver_has_its_options() -> None:
    """All names of its member in an ImageStore, in their order."""
    shown = {store_of(row[0]): re.findall(r"`(\w+)`", row[1]) for row in rows("store | options")}
    wanted = {
        name: [field.alias or each for each, field in load(name).Config.model_fields.items()] for name in installed()
    }
    assert shown == wanted


def test_each_driver_names_its_server() -> None:
    """One row each; the versions are those that the tests start."""
    shown = {store_of(row[0]): row[1] for row in rows("store | server of the tests")}
    assert set(shown) == set(installed())
    ceph = str(run(tool("ceph", "ceph-common"), "--version")).split()[2]
    versions = {
        "Cinder": cinder.VERSION,
        "Keystone": keystone.VERSION,
        "OpenStack Swift": swift.VERSION,
        "FerretDB": ferretdb.VERSION,
        "govmomi": vcsim.VERSION.removeprefix("v"),
        "Ceph": ".".join(ceph.split(".")[:2]),
    }
    for product, version in versions.items():
        named = [found for cell in shown.values() for found in re.findall(rf"{product} (\d[\d.]*\d)", cell)]
        assert set(named) == {version}, product


# What is not run


def exemptions() -> set[tuple[str, str, str, str]]:
    """Store, kind of server (nothing where there is one), suite or test, and the reason."""
    found = set()
    for store, against, what, reason in rows("store | with"):
        [kind] = re.findall(r"`(\w+)`", against) or [""]
        found.add((store_of(store), kind, what.strip("`"), reason))
    return found


@cache
def suites() -> dict[tuple[str, str], list[type[StoreFixtures]]]:
    """The classes with tests of contracts, by store and kind of server."""
    found = defaultdict(list)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        store = path.stem.removeprefix("test_").split("_")[0]
        if store not in installed():
            continue
        module = importlib.import_module(f"tests.stores.{path.stem}")
        for name, value in vars(module).items():
            if name.startswith("Test") and isinstance(value, type) and issubclass(value, StoreFixtures):
                found[store, value.against].append(value)
    return found


def remote(kinds: list[type[StoreFixtures]]) -> bool:
    """Whether what a network does is tried, by either suite for that."""
    return any(issubclass(kind, RemoteContract | RemotePlacedContract) for kind in kinds)


def left_out() -> Iterator[tuple[str, str, str]]:
    """Store, kind of server, and the suite that is not run on it though the driver can do what it is about."""
    for (store, against), kinds in suites().items():
        for suite, capability in SUITES.items():
            applies = capability is None or can(store, capability)
            found = remote(kinds) if suite is RemoteContract else any(issubclass(kind, suite) for kind in kinds)
            if applies and not found:
                yield store, against, suite.__name__


def test_each_driver_runs_its_contracts() -> None:
    """A whole suite that is not run has a row with its reason, for each kind of server; none that is run has one."""
    shown = {row[:3] for row in exemptions() if row[2].endswith("Contract")}
    assert shown == set(left_out())
    assert {store for store, _ in suites()} == set(installed())
    assert all(row[3] for row in exemptions())


def test_each_exemption_is_told() -> None:
    """Single tests that are left out stand in the table as well, with the words of the test module, and exist."""
    found = set()
    for (store, against), kinds in suites().items():
        for kind in kinds:
            for test, reason in kind.exempt.items():
                assert hasattr(kind, test), (kind, test)
                found.add((store, against, test, reason))
    assert {row for row in exemptions() if row[2].startswith("test_")} == found


def test_no_contract_is_taken_in_part() -> None:
    """A class that picks tests of a suite without being one would look as if the suite were run."""
    for kinds in suites().values():
        for kind in kinds:
            for name in vars(kind):
                if not name.startswith("test_"):
                    continue
                owners = [suite.__name__ for suite in SUITES if hasattr(suite, name)]
                assert not owners or any(suite.__name__ in owners for suite in kind.__mro__), (kind, name)
