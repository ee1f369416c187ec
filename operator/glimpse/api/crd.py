"""CustomResourceDefinitions, made from the models.

What a user may write stands once, in Python, with its bounds, its rules and its help text beside it; what cannot be
said in a structural schema, or has no bound, is refused here and not by an API server.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml
from pydantic import BaseModel

from glimpse.api.base import GROUP, VALIDATIONS, VERSION, Model, Rule, exactly_one
from glimpse.api.image import Image
from glimpse.api.policies import policies
from glimpse.api.store import UNREGISTERED, ImageStore
from glimpse.api.upload import ImageUpload

__all__ = ["build", "descriptions", "dump", "files", "policies"]

Schema = dict[str, Any]

LABELS: Final = {
    "app.kubernetes.io/name": "glimpse",
    "app.kubernetes.io/instance": "glimpse",
    "app.kubernetes.io/component": "api",
    "app.kubernetes.io/part-of": "glimpse",
    "app.kubernetes.io/managed-by": "glimpse",
}

_KEPT: Final = (
    *("description", "type", "x-kubernetes-int-or-string", "format", "enum", "pattern", "minimum", "maximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", VALIDATIONS, "required"),
)
"""In the order in which they are written."""
_DROPPED: Final = frozenset({"title", "default", "$defs"})
"""Titles repeat names. A default in a schema is written into each object and can never be changed again."""
_OWN: Final = frozenset(
    {"properties", "items", "additionalProperties", "const", "exclusiveMinimum", "exclusiveMaximum"}
)
_FORMATS: Final = frozenset({"int32", "int64", "double", "date-time"})
_WRAPPED: Final = re.compile(r"(?<!\n)\n(?!\n)")
"""The end of a line inside a paragraph."""
_INT32: Final = 1 << 31
_MEMBER: Final = re.compile(r"^[a-z][a-zA-Z0-9]{0,62}$")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`; `wide` ones come with `-o wide`."""

    name: str
    path: str
    description: str
    type: str = "string"
    wide: bool = False

    def dump(self) -> Schema:
        """As it stands in the definition."""
        column: Schema = {"name": self.name, "type": self.type, "jsonPath": self.path, "description": self.description}
        return column | {"priority": 1} if self.wide else column


@dataclass(frozen=True, slots=True)
class Kind:
    """What a definition says besides the schema."""

    model: type[Model]
    plural: str
    short: str
    scope: str
    columns: tuple[Column, ...]


def _ready(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


_AGE: Final = Column("Age", ".metadata.creationTimestamp", "When it was created.", "date")

IMAGE: Final = Kind(
    Image,
    "images",
    "gimg",
    "Namespaced",
    (
        Column("Ready", _ready("status"), "Whether the image is verified and can be downloaded."),
        Column("Status", _ready("reason"), "What to do about it, as one word."),
        Column("Progress", ".status.summary.progress", "How far the running transfer is."),
        Column("Size", ".status.summary.size", "Of the stored bytes."),
        Column("Virtual", ".status.summary.virtualSize", "Of the disk that a machine sees."),
        Column("Format", ".status.artifact.diskFormat", "The disk format of the stored bytes."),
        Column("Stores", ".status.summary.stores", "Stores that hold the image, of those that shall.", wide=True),
        Column("Digest", ".status.summary.digest", "The beginning of the digest.", wide=True),
        Column("Revision", ".status.artifact.revision", "The revision that is served.", "integer", wide=True),
        Column("Message", _ready("message"), "The same as Status, for a person.", wide=True),
        _AGE,
    ),
)

IMAGE_STORE: Final = Kind(
    ImageStore,
    "imagestores",
    "gstore",
    "Cluster",
    (
        Column("Ready", _ready("status"), "Whether the store can be used."),
        Column("Driver", ".status.driver", "What kind of store it is."),
        Column("Images", ".status.images", "Images that have bytes here, or may have.", "integer"),
        Column("Used", ".status.summary.used", "Room used, by anybody."),
        Column("Free", ".status.summary.free", "Room left."),
        Column("Default", ".status.isDefault", "Whether Images that name no store go here.", "boolean"),
        Column("Status", _ready("reason"), "What to do about it, as one word.", wide=True),
        Column("Message", _ready("message"), "The same as Status, for a person.", wide=True),
        _AGE,
    ),
)


IMAGE_UPLOAD: Final = Kind(
    ImageUpload,
    "imageuploads",
    "gup",
    "Namespaced",
    (
        Column("Image", ".spec.image", "The Image that the bytes are for."),
        Column("Progress", ".status.progress", "How far it is."),
        Column("Outcome", ".status.outcome", "What became of it; empty while it is under way."),
        Column("Expires", ".status.expiresAt", "When it ends if nothing more comes."),
        Column("Revision", ".status.revision", "The revision that it becomes.", "integer", wide=True),
        Column("Message", ".status.failure.message", "Why it came to nothing.", wide=True),
        _AGE,
    ),
)


def build(drivers: Mapping[str, type[BaseModel]]) -> list[Schema]:
    """The definitions of all kinds; an ImageStore has one member for each of `drivers` (name to its `Config`).

    Raises TypeError, with the path of the field, for what has no place in a structural schema: an unknown keyword, a
    union of types, a string, list or map without a maximum, a field without a docstring.
    """
    store = _schema(IMAGE_STORE.model)
    _join(store["properties"]["spec"], drivers)
    others = [_definition(kind, _schema(kind.model)) for kind in (IMAGE, IMAGE_UPLOAD)]
    return [others[0], _definition(IMAGE_STORE, store), others[1]]


def files(drivers: Mapping[str, type[BaseModel]]) -> dict[str, str]:
    """What belongs into the folder `crds/`: the text of each file by its name. Raises TypeError as `build` does."""
    head = "# Made from operator/glimpse/api by `make crds`; do not edit.\n"
    made = {f"{crd['spec']['names']['plural']}.yaml": head + dump([crd]) for crd in build(drivers)}
    return made | {"policies.yaml": head + dump(policies())}


def dump(objects: Iterable[Schema]) -> str:
    """Objects as a stream of YAML documents: in the order of the models, without aliases."""
    return yaml.dump_all(objects, Dumper=_Dumper, explicit_start=True, sort_keys=False, width=110, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - the same
        super().increase_indent(flow, indentless=False)


def _definition(kind: Kind, schema: Schema) -> Schema:
    name = kind.model.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": dict(LABELS)},
        "spec": {
            "group": GROUP,
            "scope": kind.scope,
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
                "shortNames": [kind.short],
                "categories": ["glimpse"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.dump() for column in kind.columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _schema(model: type[Model]) -> Schema:
    """The schema of a whole kind."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    members = raw["properties"]
    spec = _structural(members["spec"], raw["$defs"], "spec")
    status = _structural(members["status"], raw["$defs"], "status")
    # The first default works on create, the second where a status is written without the field: a fresh object
    # never looks as if it had been seen.
    status["default"] = {"observedGeneration": -1}
    status["properties"]["observedGeneration"]["default"] = -1
    return {
        "type": "object",
        "description": raw["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always `{GROUP}/{VERSION}`."},
            "kind": {"type": "string", "description": f"Always `{model.__name__}`."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _unjudged(status),
        },
        VALIDATIONS: raw.get(VALIDATIONS, []),
    }


def _join(spec: Schema, drivers: Mapping[str, type[BaseModel]]) -> None:
    """Give the spec of an ImageStore one optional member for each driver, of which exactly one is set, for ever."""
    names = sorted(drivers)
    for name in names:
        if not _MEMBER.match(name) or name in spec["properties"]:
            raise TypeError(f"spec.{name}: a driver's name is lowerCamelCase, and no other field has it")
        raw = drivers[name].model_json_schema(by_alias=True, mode="validation")
        spec["properties"][name] = _structural(raw, raw.get("$defs", {}), f"spec.{name}")
        if "description" not in spec["properties"][name]:
            raise TypeError(f"spec.{name}: say in a docstring of Config what this kind of store is")
    same = " && ".join(f"has(self.{name}) == has(oldSelf.{name})" for name in names)
    rules = [
        exactly_one(*names),
        Rule(same, "the kind of a store cannot be changed: create another ImageStore, and let Images name it"),
    ]
    if without := sorted(UNREGISTERED & drivers.keys()):
        told = " || ".join(f"has(self.{name})" for name in without)
        rules.append(
            Rule(
                f"!has(self.locations) || size(self.locations) == 0 || !({told})",
                f"nothing can be registered in stores of the kinds {', '.join(without)}: leave locations out",
            )
        )
    for rule in rules:
        spec.update(rule.beside(spec))


def _structural(node: Schema, defs: Schema, path: str, above: tuple[str, ...] = ()) -> Schema:
    """One node of a JSON schema as a node of a structural schema."""
    node, above = _flat(node, defs, path, above)
    unknown = node.keys() - set(_KEPT) - _OWN - _DROPPED
    if unknown:
        raise TypeError(f"{path}: {', '.join(sorted(unknown))} has no place in a structural schema")
    out = _values(node)
    _bounds(out, node, path)
    if "properties" in node:
        out["properties"] = {
            name: _described(_structural(member, defs, f"{path}.{name}", above), f"{path}.{name}")
            for name, member in node["properties"].items()
        }
    elif out.get("type") == "object":
        out["additionalProperties"] = _structural(node["additionalProperties"], defs, f"{path}.*", above)
    elif out.get("type") == "array":
        out["items"] = _structural(node["items"], defs, f"{path}[]", above)
        out.setdefault("x-kubernetes-list-type", "atomic")
        for key in out.get("x-kubernetes-list-map-keys", ()):
            if key not in out["items"].get("required", ()):
                raise TypeError(f"{path}: {key} is the key of this list, so it must be required")
    return out


def _values(node: Schema) -> Schema:
    """What may stand as it is, and what has another spelling in OpenAPI 3.0."""
    out: Schema = {key: node[key] for key in _KEPT if key in node}
    if "description" in out:
        out["description"] = _WRAPPED.sub(" ", out["description"])
    if "const" in node:
        out["enum"] = [node["const"]]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            out |= {bound: node[exclusive], exclusive: True}
    return out


def _flat(node: Schema, defs: Schema, path: str, above: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
    """The node with references resolved and `X | None` read as X; what stands beside either wins over what it names."""
    while "$ref" in node or "anyOf" in node:
        rest = {key: value for key, value in node.items() if key not in {"$ref", "anyOf"}}
        if "anyOf" in node:
            members = [member for member in node["anyOf"] if member != {"type": "null"}]
            if len(members) != 1:
                raise TypeError(f"{path}: a union of types; use one optional member for each")
            (inner,) = members
        else:
            name = node["$ref"].rpartition("/")[2]
            if name in above:
                raise TypeError(f"{path}: {name} holds itself, and a structural schema has an end")
            above = (*above, name)
            inner = defs[name]
        rules = [*inner.get(VALIDATIONS, ()), *rest.pop(VALIDATIONS, ())]
        node = {**inner, **rest, **({VALIDATIONS: rules} if rules else {})}
    return node, above


def _bounds(out: Schema, node: Schema, path: str) -> None:
    """Refuse what has no maximum: the API server could not say what a rule costs, nor we how large an object is."""
    kind = out.get("type")
    if "format" in out and out["format"] not in _FORMATS:
        raise TypeError(f"{path}: the format {out['format']} is unknown to the API server")
    if kind == "string" or "x-kubernetes-int-or-string" in out:
        bounded = "maxLength" in out or "enum" in out or out.get("format") == "date-time"
    elif kind == "array":
        bounded = "maxItems" in out
    elif kind == "object":
        bounded = "properties" in node or (
            "maxProperties" in out and isinstance(node.get("additionalProperties"), dict)
        )
    elif kind == "integer":
        bounded = True
        out.setdefault("format", "int32" if abs(out.get("maximum", _INT32)) < _INT32 else "int64")
    elif kind in {"boolean", "number"}:
        bounded = True
    else:
        raise TypeError(f"{path}: of any type; a structural schema needs one")
    if not bounded:
        raise TypeError(f"{path}: {kind} without a maximum")


def _described(out: Schema, path: str) -> Schema:
    if not out.get("description"):
        raise TypeError(f"{path}: without a docstring, and kubectl explain would be silent")
    return out


def _unjudged(node: Any) -> Any:
    """A status without rules and patterns: it is ours, and a rule on it could only keep us from telling the truth."""
    if isinstance(node, dict):
        return {key: _unjudged(value) for key, value in node.items() if key not in {VALIDATIONS, "pattern"}}
    return node


def descriptions(schema: Schema, path: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a schema with its help text, by its path."""
    for name, member in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here, member.get("description", "")
        yield from descriptions(member, here)
        yield from descriptions(member.get("items", {}), f"{here}[]")
