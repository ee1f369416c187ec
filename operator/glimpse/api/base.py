"""What both kinds share: the model base, scalar types, conditions and CEL rules.

A rule or a bound stands beside its field, so that a reader of the model sees what the API server enforces.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

GROUP: Final = "glimpse.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FINALIZER: Final = "glimpse.dev/bytes"
REQUESTED_AT: Final = "glimpse.dev/reconcile-requested-at"
FORGET_STORE: Final = "glimpse.dev/forget-store"
DEFAULT_STORE: Final = "glimpse.dev/is-default-store"
SECRET_USE: Final = "glimpse.dev/use"  # noqa: S105 - a label
SECRET_HOSTS: Final = "glimpse.dev/hosts"  # noqa: S105 - an annotation

VALIDATIONS: Final = "x-kubernetes-validations"


class Model(BaseModel):
    """A part of a kind: camelCase outside, immutable, unknown fields ignored (strictness is kubectl's)."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    rules: ClassVar[tuple["Rule", ...]] = ()
    """CEL rules over the whole object."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        if cls.rules:
            model = handler.resolve_ref_schema(schema)
            for rule in cls.rules:
                model.update(rule.beside(model))
        return schema

    def dump(self) -> dict[str, Any]:
        """The object as it goes to the API server: JSON values, absent members and empty lists left out."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {name: value for name, value in values.items() if value not in ([], {})}

    def but(self, **changes: Any) -> Self:
        """A copy with these members changed; not validated, since our own code made the values."""
        return self.model_copy(update=changes)


class Rule(NamedTuple):
    """One CEL rule (`x-kubernetes-validations`); as metadata of a field or as a member of `Model.rules`."""

    rule: str
    message: str
    """For the person who wrote the object: what is wrong, and the way out."""
    optional_old_self: bool = False

    def beside(self, schema: JsonSchemaValue) -> JsonSchemaValue:
        """The schema with this rule as its last."""
        rule: dict[str, str | bool] = {"rule": self.rule, "message": self.message}
        if self.optional_old_self:
            rule["optionalOldSelf"] = True
        return {**schema, VALIDATIONS: [*schema.get(VALIDATIONS, ()), rule]}

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.beside(handler(core))


class ListMap(NamedTuple):
    """Marks a list that is a map by `key` (`x-kubernetes-list-type: map`)."""

    key: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}


class ListSet(NamedTuple):
    """Marks a list whose entries are unique (`x-kubernetes-list-type: set`)."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "x-kubernetes-list-type": "set"}


def exactly_one(*members: str) -> Rule:
    """The rule of a union: one of these optional members is set, and only one."""
    present = ", ".join(f"has(self.{name})" for name in members)
    message = f"set exactly one of {', '.join(members)}" if len(members) > 1 else f"set {members[0]}"
    return Rule(f"[{present}].exists_one(present, present)", message)


def immutable(name: str, way_out: str) -> Rule:
    """A field that identifies: it cannot be changed. On a required field only; elsewhere put it on the parent."""
    return Rule("self == oldSelf", f"{name} cannot be changed: {way_out}")


def between(least: str, most: str) -> Rule:
    """The bounds of a Duration, both included, as Go durations."""
    return Rule(
        f"self.matches('^([0-9]{{1,6}}([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('{least}')"
        f" && duration(self) <= duration('{most}')",
        f"must be a duration from {least} to {most}, such as 90s or 1h30m",
    )


_QUANTITY: Final = re.compile(r"^(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$")
_FACTORS: Final = {"": 1} | {
    letter + suffix: base**power
    for suffix, base in (("i", 1024), ("", 1000))
    for power, letter in enumerate("KMGTPE" if suffix else "kMGTPE", 1)
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_quantity(value: object) -> int:
    """Read a Kubernetes Quantity of bytes, as `16Mi`. Raises ValueError."""
    if isinstance(value, int):
        return value
    match = _QUANTITY.match(str(value))
    if not match:
        raise ValueError(f"{value!r} is not a quantity such as 16Mi")
    return (
        int(float(match[1]) * _FACTORS[match[2] or ""]) if "." in match[1] else int(match[1]) * _FACTORS[match[2] or ""]
    )


def parse_duration(value: object) -> float:
    """Read a Go duration, as `1h30m`, into seconds. Raises ValueError."""
    if isinstance(value, int | float):
        return float(value)
    parts = _DURATION.findall(str(value))
    if not parts or "".join(n + u for n, u in parts) != value:
        raise ValueError(f"{value!r} is not a duration such as 90s")
    return sum(float(n) * _UNITS[u] for n, u in parts)


def format_quantity(size: float) -> str:
    """Show bytes to a person, as `335 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":  # noqa: PLR2004 - the step between two units
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"  # noqa: PLR2004 - three digits are enough
        size /= 1024
    raise AssertionError


Quantity = Annotated[
    int,
    BeforeValidator(parse_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 20}),
    Rule(
        "type(self) == int ? self >= 0 : self.matches('^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$')"
        " && quantity(self).isLessThan(quantity('1Ei'))",
        "must be a number of bytes below 1Ei, such as 500M, 10Gi or 1Ti",
    ),
]
"""Bytes; a Kubernetes Quantity in YAML, an int in Python."""

Duration = Annotated[
    float, BeforeValidator(parse_duration), WithJsonSchema({"type": "string", "minLength": 2, "maxLength": 16})
]
"""Seconds; a Go duration in YAML, a float in Python. Each field names its bounds with `between`."""

Time = Annotated[
    datetime,
    PlainSerializer(lambda t: t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A point in time, RFC 3339 with a second's precision."""

Int64 = Annotated[int, Field(ge=0), WithJsonSchema({"type": "integer", "format": "int64", "minimum": 0})]
"""Bytes or counts in a status."""

Name = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Rule(
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "must be the name of an object: small letters, digits, '-' and '.', with a letter or digit at both ends",
    ),
]
"""The name of an object of ours."""

ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Rule(
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "must be the name of an object: small letters, digits, '-' and '.', with a letter or digit at both ends",
    ),
]
"""The name of an object of somebody else's, such as a Secret."""

NamespaceName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Rule(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "must be the name of a namespace: small letters, digits and '-', with a letter or digit at both ends",
    ),
]
"""The name of a namespace."""

Words = Rule("!self.matches('[[:cntrl:]]')", "must be one line, without control characters")
"""For text that is shown to people and put into headers."""

_HEX: Final = {"sha256": 64, "sha384": 96, "sha512": 128, "sha1": 40, "md5": 32}

Digest = Annotated[str, Field(max_length=140)]
"""`algorithm:hex`, as we write it."""

GivenDigest = Annotated[
    str,
    Field(min_length=1, max_length=135),
    AfterValidator(str.lower),
    Rule(
        f"self.matches('^({'|'.join(_HEX)}):[0-9a-fA-F]+$')",
        "must be algorithm:hex with one of " + ", ".join(_HEX) + ", such as sha256:1f0c…",
    ),
    Rule(
        " && ".join(f"(!self.startsWith('{name}:') || size(self) == {len(name) + 1 + n})" for name, n in _HEX.items()),
        "has the wrong length: " + ", ".join(f"{name} has {n} hex digits" for name, n in _HEX.items()),
    ),
]
"""`algorithm:hex`, as people write it: capital letters become small ones when it is read."""


class Condition(Model):
    """A `metav1.Condition`."""

    type: Annotated[str, Field(max_length=63)]
    """What it is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Int64 = 0
    """The generation of the spec that was judged."""
    last_transition_time: Time
    """When `status` last changed."""
    reason: Annotated[str, Field(max_length=63)]
    """What to do about it, as one word."""
    message: Annotated[str, Field(max_length=4096)]
    """The same for a person."""


class Metadata(Model):
    """What of `metadata` the operator and the gateway look at."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}


def requested_at(meta: Metadata) -> str | None:
    """The wish of a person to look again at once, as far as a status can echo it."""
    value = meta.annotations.get(REQUESTED_AT)
    return None if value is None else value[:128]
