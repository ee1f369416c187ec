"""Objects that the API server must take or refuse: one file each, in `good/` and `bad/`.

The schemas and rules are judged by the real API server, since nothing else knows what it makes of them.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from servers.kube import ApiError, Cluster

HERE = Path(__file__).parent
GOOD = sorted((HERE / "good").glob("*.yaml"))
BAD = sorted((HERE / "bad").glob("*.yaml"))


def read(file: Path, namespace: str) -> list[dict[str, Any]]:
    """The objects of a file, the namespaced ones in this namespace."""
    objects = list(yaml.safe_load_all(file.read_text()))
    for each in objects:
        if each["kind"] == "Image":
            each["metadata"]["namespace"] = namespace
    return objects


def create(cluster: Cluster, each: dict[str, Any], *, dry: bool = True) -> dict[str, Any]:
    """Send an object to the API server as kubectl does: unknown fields are errors."""
    collection = cluster.path(each).rpartition("/")[0]
    query = "fieldValidation=Strict" + ("&dryRun=All" if dry else "")
    answer: dict[str, Any] = cluster.request("POST", f"{collection}?{query}", each)
    return answer


def change(cluster: Cluster, each: dict[str, Any]) -> dict[str, Any]:
    """Make an object that exists like this one, as `kubectl patch` does."""
    answer: dict[str, Any] = cluster.request(
        "PATCH", cluster.path(each), {"spec": each["spec"]}, content_type="application/merge-patch+json"
    )
    return answer


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_good(cluster: Cluster, namespace: str, file: Path) -> None:
    """A good object is taken, and its spec is stored as it was written: no default is added to it."""
    for each in read(file, namespace):
        assert create(cluster, each)["spec"] == each["spec"]


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad(cluster: Cluster, namespace: str, file: Path) -> None:
    """A bad object is refused with words that name the way out; what stands before it in the file is taken."""
    head, _, _ = file.read_text().partition("\n")
    mark, _, message = head.partition("# refused: ")
    assert mark == "", "a bad object begins with a comment: # refused: <part of the message>"
    assert message, "a bad object says what the API server answers"
    *before, bad = read(file, namespace)
    try:
        for each in before:
            create(cluster, each, dry=False)
        send = change if before else create
        with pytest.raises(ApiError) as caught:
            send(cluster, bad)
    finally:
        for each in before:
            cluster.request("DELETE", cluster.path(each))
    assert message in caught.value.message
    assert "rule evaluation error" not in caught.value.message, "a rule that fails has no words for people"
