"""The docs: what they show is true.

Examples are copied more often than they are read, so the real API server judges each of them; and a field or a reason
without its words in the docs fails here.
"""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from glimpse import stores
from glimpse.api import crd
from glimpse.problems import REASONS
from servers import ROOT
from servers.kube import Cluster

PAGES: Final = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
KINDS: Final = {"Image": ROOT / "docs" / "image.md", "ImageStore": ROOT / "docs" / "imagestore.md"}
_FENCE: Final = re.compile(r"^( *)```yaml\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[dict[str, Any]]:
    """Every object in a page's YAML."""
    found = [each for _, text in _FENCE.findall(page.read_text()) for each in yaml.safe_load_all(text)]
    return [each for each in found if isinstance(each, dict) and "kind" in each]


def schema(kind: str) -> dict[str, Any]:
    """The schema of a kind."""
    drivers = {name: stores.load(name).Config for name in stores.installed()}
    (found,) = (d for d in crd.build(drivers) if d["spec"]["names"]["kind"] == kind)
    openapi: dict[str, Any] = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return openapi


@pytest.mark.lint
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_are_valid(cluster: Cluster, namespace: str, page: Path) -> None:
    """Every Image and ImageStore in the docs is one that the API server takes."""
    for number, each in enumerate(examples(page)):
        if each["apiVersion"].startswith("glimpse.dev/"):
            # A name of its own: a store that exists must not be judged as a change of it.
            meta = each["metadata"] | {"name": f"docs-{namespace}-{number}"}
            if each["kind"] == "Image":
                meta |= {"namespace": namespace}
            each["metadata"] = meta
            collection = cluster.path(each).rpartition("/")[0]
            answer = cluster.request("POST", f"{collection}?fieldValidation=Strict&dryRun=All", each)
            assert answer["spec"] == each["spec"]


def test_data_volumes_read_from_the_gateway() -> None:
    """Each DataVolume in the docs has only fields that CDI knows, and the link of one revision."""
    found = [each for page in PAGES for each in examples(page) if each["kind"] == "DataVolume"]
    assert found
    for each in found:
        http = each["spec"]["source"]["http"]
        assert set(http) <= {"url", "secretRef", "certConfigMap", "checksum", "secretExtraHeaders"}
        where = f"/v1/namespaces/{each['metadata']['namespace']}/images/"
        assert re.fullmatch(rf"https?://[a-z.-]+{where}[a-z0-9-]+/revisions/[0-9]+\?uid=[-0-9a-f]{{36}}", http["url"])
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", http.get("checksum", f"sha256:{'0' * 64}"))
        assert set(each["spec"]["storage"]["resources"]["requests"]) == {"storage"}


@pytest.mark.parametrize(("kind", "page"), KINDS.items(), ids=list(KINDS))
def test_every_field_is_explained(kind: str, page: Path) -> None:
    """Each field of the spec, at every depth, and each field of the status stands in the page of its kind, as code.

    Those of a driver may stand in the driver's own page.
    """
    pages = [page, *(ROOT / "docs" / "stores").glob("*.md")] if kind == "ImageStore" else [page]
    text = "\n".join(each.read_text() for each in pages)
    words = {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[^A-Za-z0-9_]+", code)}
    fields = {path.split(".")[-1].removesuffix("[]") for path, _ in crd.descriptions(schema(kind)["spec"])}
    fields |= set(schema(kind)["status"]["properties"])
    assert fields - words == set()


UNIONS = {
    ".source.http.caBundleRef.secret",
    ".source.location",
    ".source.location.store",
    ".source.location.key",
    ".source.image",
    ".source.image.name",
    ".source.image.namespace",
    ".source.upload",
    ".checksum.digest",
    ".checksum.signature.keysRef.secret",
    ".caBundleRef.secret",
}
"""Their siblings are in the examples: a union has one member."""


def paths(spec: dict[str, Any], path: str = "") -> set[str]:
    """Of all fields that an example has."""
    below = {f"{path}.{name}": value for name, value in spec.items()}
    lists = {f"{where}[]": value[0] for where, value in below.items() if isinstance(value, list)}
    inner = [paths(value, where) for where, value in (below | lists).items() if isinstance(value, dict)]
    return set(below).union(*inner)


@pytest.mark.parametrize(("kind", "page"), KINDS.items(), ids=list(KINDS))
def test_one_example_has_every_field(kind: str, page: Path) -> None:
    """One example of each page has all fields of the spec, so a reader sees where each belongs."""
    others = tuple(f".{driver}." for driver in stores.installed() if driver != "filesystem")
    wanted = {f".{path}" for path, _ in crd.descriptions(schema(kind)["spec"])}
    wanted = {path for path in wanted if not f"{path}.".startswith(others)}
    shown = [paths(each["spec"]) for each in examples(page) if each["kind"] == kind]
    assert min((wanted - UNIONS - each for each in shown), key=len) == set()


@pytest.mark.parametrize("driver", sorted(stores.installed()))
def test_one_example_has_every_field_of_a_driver(driver: str) -> None:
    """The page of each driver has one example with all its fields; where two exclude each other, some with each."""
    wanted = {f".{path}" for path, _ in crd.descriptions(schema("ImageStore")["spec"])}
    wanted = {path for path in wanted if f"{path}.".startswith(f".{driver}.")}
    shown = [paths(each["spec"]) for each in examples(ROOT / "docs" / "stores" / f"{driver}.md")]
    assert wanted - set().union(*shown) == set()


def test_every_reason_is_explained() -> None:
    """Each reason that can stand in a condition has its row: what happened, what to do."""
    rows = set(re.findall(r"^\| `(\w+)` \|", KINDS["Image"].read_text(), re.MULTILINE))
    sources = [file for file in (ROOT / "operator" / "glimpse").rglob("*.py") if file.name != "problems.py"]
    code = "\n".join(file.read_text() for file in sources if "testing" not in file.parts)
    used = {name for name in REASONS if re.search(rf"\b{name}\b", code)} - {"NotFound"}
    assert used - rows == set()
    assert len(used) > 10


def failures() -> list[tuple[str, str, list[str]]]:
    """The rows of the tables of failures: the heading that they stand under, the reason, the other cells."""
    found, heading = [], ""
    for line in KINDS["Image"].read_text().partition("## Debugging")[2].splitlines():
        if line.startswith("### "):
            heading = line.removeprefix("### ")
        elif match := re.match(r"\| `(\w+)` \| (.+) \|$", line):
            found.append((heading, match[1], match[2].split(" | ")))
    return found


@pytest.mark.parametrize(("heading", "reason", "cells"), failures(), ids=[reason for _, reason, _ in failures()])
def test_each_failure_is_in_its_table(heading: str, reason: str, cells: list[str]) -> None:
    """Whether it is tried again is as the table says, and each row says what happened and what to do."""
    assert REASONS[reason].permanent == {"A person must act": True, "Time can mend it": False}[heading]
    assert len(cells) == 2
    assert all(cell.strip().endswith((".", ")")) for cell in cells)


def test_each_failure_has_one_row() -> None:
    """None is told twice, and none in two ways."""
    reasons = [reason for _, reason, _ in failures()]
    assert len(reasons) == len(set(reasons)) > 20
