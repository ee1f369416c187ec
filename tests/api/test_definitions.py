"""The definitions: what is made from the models, and what the real API server and kubectl make of that.

A definition that an API server refuses, or a help text that nobody sees, shows only there.
"""

import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from glimpse import stores
from glimpse.__main__ import main
from glimpse.api import crd
from glimpse.api.base import Condition, ListMap, Model, Rule, Time
from glimpse.api.image import Image
from servers import ROOT, ServerError, wait_until
from servers.kube import ApiError, Cluster

SOURCE = {"http": {"urls": ["https://a.example/debian-12.qcow2"]}}
DRIVERS = {name: stores.load(name).Config for name in stores.installed()}


def image(namespace: str, name: str = "debian-12", **spec: Any) -> dict[str, Any]:
    """An Image, which nobody works on here."""
    return {
        "apiVersion": "glimpse.dev/v1alpha1",
        "kind": "Image",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"source": SOURCE} | spec,
    }


def schemas() -> list[Any]:
    """The schema of each kind with its name."""
    return [
        pytest.param(d["spec"]["versions"][0]["schema"]["openAPIV3Schema"], id=d["spec"]["names"]["kind"])
        for d in crd.build(DRIVERS)
    ]


def nodes(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every node of a schema by its path."""
    below = [(f"{path}.{name}", node) for name, node in schema.get("properties", {}).items()]
    below += [
        (f"{path}{mark}", schema[key])
        for key, mark in (("items", "[]"), ("additionalProperties", ".*"))
        if key in schema
    ]
    return [(path, schema), *(each for name, node in below for each in nodes(node, name))]


@pytest.mark.lint
def test_folder_is_current() -> None:
    """`crds/` holds what the models say now, and nothing else: `make crds` writes it."""
    folder = {file.name: file.read_text() for file in (ROOT / "crds").iterdir()}
    assert folder == crd.files(DRIVERS)


def test_dump_is_plain() -> None:
    """The YAML has no aliases, which some readers refuse, and says what was put in."""
    text = crd.dump([*crd.build(DRIVERS), *crd.policies()])
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    assert list(yaml.safe_load_all(text)) == [*crd.build(DRIVERS), *crd.policies()]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`glimpse crds` prints all that the API server must know, for one pipe to kubectl."""
    assert main(["crds"]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == [*crd.build(DRIVERS), *crd.policies()]


@pytest.mark.parametrize("schema", schemas())
def test_every_field_has_a_description(schema: dict[str, Any]) -> None:
    """`kubectl explain` has words for every field, whole sentences that fit a terminal."""
    fields = dict(crd.descriptions(schema))
    assert len(fields) > 15
    silent = [name for name, text in fields.items() if not text and name != "metadata"]
    assert silent == []
    assert [name for name, text in fields.items() if text and not text.endswith((".", "`."))] == []


@pytest.mark.parametrize("schema", schemas())
def test_defaults_only_in_status(schema: dict[str, Any]) -> None:
    """A default in a schema is for ever, so there is but one: a fresh object never looks as if it had been seen."""
    defaults = {path: node["default"] for path, node in nodes(schema) if "default" in node}
    assert defaults == {".status": {"observedGeneration": -1}, ".status.observedGeneration": -1}


@pytest.mark.parametrize("schema", schemas())
def test_status_is_never_judged(schema: dict[str, Any]) -> None:
    """No rule and no pattern on a status: they could only keep the operator from telling the truth."""
    status = schema["properties"]["status"]
    assert [path for path, node in nodes(status) if "pattern" in node or "x-kubernetes-validations" in node] == []


def test_required() -> None:
    """Required is what has no default in the model, at every depth."""
    schema = crd.build(DRIVERS)[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    required = {path: set(node["required"]) for path, node in nodes(schema) if "required" in node}
    assert required[""] == {"spec"}
    assert required[".spec"] == {"source"}
    assert required[".spec.source.http"] == {"urls"}
    assert required[".spec.source.http.secretRef"] == {"name"}
    conditions = {"type", "status", "lastTransitionTime", "reason", "message"}
    assert required[".status.conditions[]"] == conditions
    assert not any(path.startswith(".spec.revisions") for path in required)


def test_lists() -> None:
    """A list merges by its key or as a set where that has a meaning, and is replaced whole elsewhere."""
    schema = dict(nodes(crd.build(DRIVERS)[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
    assert schema[".spec.stores"]["x-kubernetes-list-type"] == "set"
    assert schema[".spec.source.http.urls"]["x-kubernetes-list-type"] == "atomic"
    assert schema[".status.conditions"]["x-kubernetes-list-type"] == "map"
    assert schema[".status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


# --- what the generator refuses


class Inner(Model):
    """A part."""

    name: Annotated[str, Field(max_length=8)]
    """A name."""


class Recursive(Model):
    """Holds itself."""

    child: "Recursive | None" = None
    """Itself."""


class Unbounded(Model):
    """A string without end."""

    word: str
    """Any word."""


class UnboundedList(Model):
    """A list without end."""

    words: tuple[Inner, ...] = ()
    """Words."""


class UnboundedMap(Model):
    """A map without end."""

    words: dict[str, Annotated[str, Field(max_length=8)]] | None = None
    """Words."""


class AnyType(Model):
    """Of any type."""

    thing: Any = None
    """Anything."""


class FreeMap(Model):
    """Of any type."""

    thing: Annotated[dict[str, Any], Field(max_length=8)]
    """Anything."""


class Union(Model):
    """Two types in one field."""

    value: Annotated[str, Field(max_length=8)] | int
    """A string or a number."""


class Silent(Model):
    """A field without words."""

    word: Annotated[str, Field(max_length=8)]


class Pair(Model):
    """A tuple, each entry with a type of its own."""

    pair: tuple[int, bool]
    """Two things."""


class KeylessList(Model):
    """A map by a key that may be missing."""

    class Entry(Model):
        """An entry."""

        type: Annotated[str | None, Field(max_length=8)] = None
        """The key."""

    entries: Annotated[tuple[Entry, ...], Field(max_length=8), ListMap("type")] = ()
    """Entries."""


class Mail(Model):
    """A format that no API server knows."""

    address: Annotated[str, Field(max_length=80, json_schema_extra={"format": "email"})]
    """An address."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Recursive, "spec.x.child: Recursive holds itself"),
        (Unbounded, "spec.x.word: string without a maximum"),
        (UnboundedList, "spec.x.words: array without a maximum"),
        (UnboundedMap, "spec.x.words: object without a maximum"),
        (AnyType, "spec.x.thing: of any type"),
        (FreeMap, "spec.x.thing: object without a maximum"),
        (Union, "spec.x.value: a union of types; use one optional member for each"),
        (Silent, "spec.x.word: without a docstring"),
        (Pair, "spec.x.pair: prefixItems has no place in a structural schema"),
        (KeylessList, "spec.x.entries: type is the key of this list, so it must be required"),
        (Mail, "spec.x.address: the format email is unknown"),
    ],
)
def test_refused(model: type[Model], message: str) -> None:
    """What has no place in a structural schema, no bound or no words is refused when the definitions are made."""
    with pytest.raises(TypeError) as caught:
        crd.build({"x": model})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "Upper", "with-dash", "weight", "reserve", "probeInterval", "1st"])
def test_driver_names(name: str) -> None:
    """A driver cannot take the name of another field, nor one that CEL could not say."""
    with pytest.raises(TypeError, match="a driver's name is lowerCamelCase"):
        crd.build({name: Inner})


class Odd(Model):
    """Everything that has another spelling in a structural schema."""

    rules: ClassVar[tuple[Rule, ...]] = (Rule("self.above > self.least", "above must be more than least"),)

    above: Annotated[int, Field(gt=0, lt=10)]
    """Between two bounds
    that are excluded."""
    least: Annotated[float, Field(ge=0)] = 0
    """A number."""
    fixed: Literal["one"] = "one"
    """One word only."""
    when: Time | None = None
    """A time."""
    large: int = 0
    """A number without bounds."""
    inner: Annotated[Inner | None, Rule("self.name != 'b'", "not b")] = None
    """A part."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=4), ListMap("type")] = ()
    """Conditions."""


def test_spellings(cluster: Cluster) -> None:
    """Exclusive bounds, constants, optional members, rules of models and of fields: the API server takes them all."""
    spec = crd.build({"odd": Odd})[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    odd = spec["properties"]["odd"]
    above = {"minimum": 0, "exclusiveMinimum": True, "maximum": 10, "exclusiveMaximum": True, "format": "int32"}
    assert above.items() <= odd["properties"]["above"].items()
    assert odd["properties"]["above"]["description"] == "Between two bounds that are excluded."
    assert odd["properties"]["fixed"]["enum"] == ["one"]
    assert odd["properties"]["large"]["format"] == "int64"
    assert odd["properties"]["inner"]["x-kubernetes-validations"] == [{"rule": "self.name != 'b'", "message": "not b"}]
    assert odd["x-kubernetes-validations"] == [{"rule": Odd.rules[0].rule, "message": Odd.rules[0].message}]
    install(cluster, elsewhere({"odd": Odd}, "odd.example"))


# --- what the API server and kubectl make of them


def elsewhere(drivers: dict[str, type[BaseModel]], group: str) -> dict[str, Any]:
    """The definition of ImageStore in a group of its own, so that the project's stays as it is."""
    definition = copy.deepcopy(crd.build(drivers)[1])
    names = definition["spec"]["names"]
    names["shortNames"], names["categories"] = [], []
    definition["spec"]["group"] = group
    definition["metadata"]["name"] = f"{names['plural']}.{group}"
    return definition


def install(cluster: Cluster, definition: dict[str, Any]) -> None:
    """Apply a definition and wait until it is served."""
    cluster.apply(definition)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", definition["metadata"]["name"])


class Other(Model):
    """Another kind of store."""

    pool: Annotated[str, Field(max_length=8)]
    """Its pool."""


def test_union_of_drivers(cluster: Cluster) -> None:
    """An ImageStore has exactly one driver member, and keeps its kind for ever; an outside driver joins the union."""
    install(cluster, elsewhere({"one": Inner, "other": Other}, "union.example"))
    path = "/apis/union.example/v1alpha1/imagestores"

    def create(name: str, **spec: Any) -> Any:
        meta = {"apiVersion": "union.example/v1alpha1", "kind": "ImageStore", "metadata": {"name": name}}
        return cluster.request("POST", path, meta | {"spec": spec})

    with pytest.raises(ApiError, match="set exactly one of one, other"):
        create("none", weight=1)
    with pytest.raises(ApiError, match="set exactly one of one, other"):
        create("both", one={"name": "a"}, other={"pool": "b"})
    create("single", one={"name": "a"})
    patch = {"spec": {"one": None, "other": {"pool": "b"}}}
    with pytest.raises(ApiError, match="the kind of a store cannot be changed: create another ImageStore"):
        cluster.request("PATCH", f"{path}/single", patch, content_type="application/merge-patch+json")
    changed = {"spec": {"one": {"name": "c"}}}
    cluster.request("PATCH", f"{path}/single", changed, content_type="application/merge-patch+json")


def test_fresh_object_is_not_current(cluster: Cluster, namespace: str) -> None:
    """Its observedGeneration is -1 on create, and again where a status is written without it."""
    (fresh,) = cluster.apply(image(namespace))
    assert fresh["status"] == {"observedGeneration": -1}
    patch = [{"op": "add", "path": "/status", "value": {"lastHandledReconcileAt": "now"}}]
    path = cluster.path(fresh) + "/status"
    written = cluster.request("PATCH", path, patch, content_type="application/json-patch+json")
    assert written["status"] == {"observedGeneration": -1, "lastHandledReconcileAt": "now"}


def test_status_of_the_model_is_taken(cluster: Cluster, namespace: str) -> None:
    """A status as the operator writes it comes back as it was, with nothing pruned."""
    (fresh,) = cluster.apply(image(namespace))
    status = yaml.safe_load((Path(__file__).parent / "status.yaml").read_text())
    patch = [{"op": "add", "path": "/status", "value": status}]
    path = cluster.path(fresh) + "/status?fieldValidation=Strict"
    written = cluster.request("PATCH", path, patch, content_type="application/json-patch+json")
    assert written["status"] == status
    assert Image.model_validate(written).status.dump() == status
    members = crd.build(DRIVERS)[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert members["status"]["properties"].keys() == status.keys()


def test_apply_twice_changes_nothing(cluster: Cluster, namespace: str) -> None:
    """`kubectl apply --server-side` of the same object again writes nothing; a plain `kubectl apply` neither."""
    full = yaml.safe_load((Path(__file__).parent / "good" / "image-every-field.yaml").read_text())
    for name, mode in (("server", ["--server-side"]), ("client", [])):
        full["metadata"] = {"name": name, "namespace": namespace}
        text = yaml.safe_dump(full)
        cluster.kubectl("apply", *mode, "-f-", stdin=text)
        seen = [{"op": "add", "path": "/status", "value": {"observedGeneration": 1}}]
        path = cluster.path(full) + "/status"
        before = cluster.request("PATCH", path, seen, content_type="application/json-patch+json")
        cluster.kubectl("diff", *mode, "-f-", stdin=text)  # fails where there is a difference
        cluster.kubectl("apply", *mode, "-f-", stdin=text)
        assert cluster.read(full)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_definitions_apply_twice(cluster: Cluster) -> None:
    """The API server stores the definitions and policies as they were written: GitOps sees no drift."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", ROOT / "crds")
    cluster.kubectl("diff", "--server-side", "--force-conflicts", "-f", ROOT / "crds")


def test_explain(cluster: Cluster) -> None:
    """`kubectl explain` shows the words and types of the models, for the kind by its short name too."""

    def explained() -> bool:
        # The API server publishes schemas a moment after the kind is served.
        try:
            return "urls" in cluster.kubectl("explain", "images.spec.source.http")
        except ServerError:
            return False

    wait_until("kubectl explain", explained, timeout=30, poll=0.5)
    text = " ".join(cluster.kubectl("explain", "image.spec.source.http").split())
    for part in (
        "GROUP: glimpse.dev",
        "FIELD: http <Object>",
        "Fetched from a web server.",
        "urls <[]string> -required-",
        "Mirrors of the same bytes, http or https",
        "secretRef <Object>",
        "caBundleRef <Object>",
        "insecureSkipTLSVerify <boolean>",
    ):
        assert part in text
    assert "FIELD: reserve <Object>" not in cluster.kubectl("explain", "gstore.spec.filesystem")


def test_columns(cluster: Cluster, namespace: str) -> None:
    """`kubectl get gimg` shows the columns that people know, `-o wide` the others too."""
    cluster.apply(image(namespace))
    narrow = cluster.kubectl("get", "gimg", "-n", namespace).splitlines()[0].split()
    assert narrow == ["NAME", "READY", "STATUS", "PROGRESS", "SIZE", "VIRTUAL", "FORMAT", "AGE"]
    wide = cluster.kubectl("get", "gimg", "-n", namespace, "-o", "wide").splitlines()[0].split()
    assert wide[7:] == ["STORES", "DIGEST", "REVISION", "MESSAGE", "AGE"]
    assert "image.glimpse.dev/debian-12" in cluster.kubectl("get", "glimpse", "-n", namespace, "-o", "name")
    columns = [c["name"] for c in crd.build(DRIVERS)[1]["spec"]["versions"][0]["additionalPrinterColumns"]]
    assert [c for c in columns if c not in {"Status", "Message"}] == [
        *("Ready", "Driver", "Images", "Used", "Free", "Default", "Age")
    ]
