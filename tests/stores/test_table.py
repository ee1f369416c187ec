"""The table of stores in the docs says what the drivers are, and which tests they are exempt from."""

import ast
import re

from glimpse.stores import Cloneable, Linkable, Placed, Resumable, Sendable, installed, load
from servers import ROOT

PAGE = ROOT / "docs" / "stores" / "README.md"
CAPABILITIES = (Resumable, Linkable, Cloneable, Placed, Sendable)
"""In the order of the columns."""


def rows(width: int) -> list[list[str]]:
    """The rows of all tables with so many columns, without their heads."""
    found = re.findall(r"^\| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r" \| ", line)] for line in found]
    return [row for row in cells if len(row) == width and row[0] != "store" and not row[0].startswith("---")]


def test_each_driver_has_its_capabilities() -> None:
    """One row for each that is installed, with what its class can do."""
    shown = {re.sub(r"\[(\w+)\].*", r"\1", row[0]): [cell == "yes" for cell in row[1:]] for row in rows(6)}
    wanted = {}
    for name in installed():
        driver = load(name)
        wanted[name] = [all(hasattr(driver, word) for word in methods(each)) for each in CAPABILITIES]
    assert shown == wanted


def methods(protocol: type) -> list[str]:
    """What makes an object one of this protocol."""
    return [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]


def test_each_driver_names_its_server() -> None:
    """One row each."""
    assert {row[0].strip("`") for row in rows(2)} == set(installed())


def test_each_exemption_is_told() -> None:
    """What test modules leave out stands in the table, with the same words."""
    found = set()
    for file in (ROOT / "tests" / "stores").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["exempt"]:
                store = file.stem.removeprefix("test_").split("_")[0]
                found |= {(f"`{store}`", f"`{test}`", reason) for test, reason in ast.literal_eval(node.value).items()}
    assert {tuple(row) for row in rows(3)} == found
