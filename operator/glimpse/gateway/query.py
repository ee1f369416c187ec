"""Queries: what a caller asks of the list of images, read once into tests of an item.

Everything has a limit, and what is not understood is refused with the words that would be: a filter that is silently
ignored shows images that nobody asked for.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter, eq, ge, gt, le, lt
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from glimpse.api.base import parse_quantity
from glimpse.gateway.index import SORTS, Place, Test
from glimpse.gateway.item import FIELDS, NEVER, Item, encode
from glimpse.gateway.refusals import Refusal
from glimpse.gateway.sight import Sight, visible

LIMIT: Final = 100
"""Entries of a page, if nothing is said."""
MOST: Final = 1000
"""Entries of a page at most."""
AT_ONCE: Final = 32
"""Filters at most."""
NAMESPACES: Final = 8
"""Namespaces that may be named; the API server is asked about each."""
LENGTH: Final = 4096
"""Bytes of all filters. With a cursor they fit into a request's line."""
CONTROLS: Final = frozenset({"as", "fields"})
"""What may be asked besides filters, always."""
PAGING: Final = frozenset({"sort", "limit", "cursor"})
"""What may be asked of a page."""
_VALUE: Final = 1300
"""Characters of one value: no property is longer."""
STARS: Final = 8
"""`*` in all values of one filter: every image is looked at for the text between two of them."""
_NUMBER: Final = 40
"""Characters of a number or a time."""
_CURSOR: Final = 3072
"""Characters of a cursor; a title has 255."""
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {"eq": eq, "gt": gt, "gte": ge, "lt": lt, "lte": le}
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VISIBILITIES: Final = ("private", "shared", "community", "public")

Maker = Callable[[str, list[str]], Test]
"""Makes a test of the values of one filter."""


class Filter(NamedTuple):
    """One filter."""

    make: Maker
    value: Mapping[str, Any]
    """One value, as a JSON schema."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked."""

    tests: tuple[Test, ...]
    namespaces: frozenset[str]
    """Only images of these; of all, if none is named."""
    acting: frozenset[str]
    """Namespaces whose members' images the caller wants to see: `as`."""
    community: bool
    """Community images of others are meant too."""
    fields: frozenset[str] | None
    sort: str
    """As it was asked for."""
    limit: int
    after: Place | None
    pairs: tuple[tuple[str, str], ...]
    """All of it but the cursor."""

    @classmethod
    def read(cls, pairs: Iterable[tuple[str, str]], controls: frozenset[str]) -> "Query":
        """Read names and values; besides filters these controls are known. Raises Refusal 400."""
        values, kept = _gathered(list(pairs), controls)
        sort = values.get("sort", ["name"])[0]
        if sort.removeprefix("-") not in SORTS:
            raise Refusal(400, f"sort must be one of {', '.join(SORTS)}, with '-' before it for the other way round.")
        limit = values.get("limit", [str(LIMIT)])[0]
        if not limit.isascii() or not limit.isdecimal() or len(limit) > _NUMBER or not 0 < int(limit) <= MOST:
            raise Refusal(400, f"limit must be a number from 1 to {MOST}.")
        namespaces, acting = (frozenset(values.get(name, ())) for name in ("namespace", "as"))
        if len(namespaces) > NAMESPACES or len(acting) > NAMESPACES:
            raise Refusal(400, f"namespace and as may be given {NAMESPACES} times each.")
        if not all(_NAMESPACE.fullmatch(name) for name in namespaces | acting):
            raise Refusal(400, "namespace and as must be names of namespaces.")
        tests = {name: each.make(name, values[name]) for name, each in FILTERS.items() if name in values}
        tests.setdefault("hidden", lambda item: not item.hidden)
        return cls(
            tests=tuple(tests.values()),
            namespaces=namespaces,
            acting=acting,
            community="community" in values.get("visibility", ()),
            fields=_fields(values.get("fields")),
            sort=sort,
            limit=int(limit),
            after=_place(values["cursor"][0], sort) if "cursor" in values else None,
            pairs=kept,
        )

    @property
    def named(self) -> frozenset[str]:
        """The namespaces that the API server is asked about."""
        return self.namespaces | self.acting

    def sieve(self, sight: Sight) -> tuple[Test, ...]:
        """What an item must pass to be meant, and to be one that the caller may know of."""
        return self.tests if sight.everywhere else (*self.tests, self._sight(sight))

    def _sight(self, sight: Sight) -> Test:
        community = self.community

        def test(item: Item) -> bool:
            if item.visibility == "community" and not community and not sight.owns(item.namespace):
                return False  # as in Glance: found by those who ask for such, in nobody's way else
            return visible(item, sight)

        return test

    def pool(self, sight: Sight) -> tuple[frozenset[str], bool] | None:
        """The namespaces whose images can be meant, and whether others' visible ones can too; None for any."""
        if self.namespaces:
            return self.namespaces, False
        return None if sight.everywhere else (sight.namespaces, True)

    def cursor(self, place: Place) -> str:
        """What stands for this place in the next query.

        It is not signed: it holds nothing that the caller has not seen, and gives no right.
        """
        return base64.urlsafe_b64encode(encode([self.sort, *place])).decode()


def _gathered(
    asked: list[tuple[str, str]], controls: frozenset[str]
) -> tuple[dict[str, list[str]], tuple[tuple[str, str], ...]]:
    """The values by name, and all as it was asked but for the cursor. Raises Refusal 400."""
    values: dict[str, list[str]] = {}
    for name, value in asked:
        if name not in FILTERS and name not in controls:
            known = ", ".join(sorted({*FILTERS, *controls}))
            raise Refusal(400, f"There is no {name[:64]!r} to ask for; known are: {known}.")
        most = _CURSOR if name == "cursor" else _VALUE
        if not 0 < len(value) <= most:
            raise Refusal(400, f"{name} must have a value, of at most {most} characters.")
        values.setdefault(name, []).append(value)
    kept = tuple((name, value) for name, value in asked if name != "cursor")
    if len(urlencode(kept, errors="replace")) > LENGTH or sum(name in FILTERS for name, _ in kept) > AT_ONCE:
        raise Refusal(400, f"There may be {AT_ONCE} filters, of {LENGTH} bytes together.")
    for name in PAGING:
        if len(values.get(name, ())) > 1:
            raise Refusal(400, f"{name} may be given once.")
    return values, kept


def _place(cursor: str, sort: str) -> Place:
    """The place in this order that a cursor stands for. Raises Refusal 400."""
    try:
        made_for, key, uid = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise Refusal(400, "The cursor is none of ours: take next from the page before, as it is.") from None
    if made_for != sort:
        raise Refusal(400, "The cursor was made for another sort: begin with the first page.")
    wanted = str if SORTS[sort.removeprefix("-")] in ("name", "namespace", "title") else int
    if type(key) is not wanted or type(uid) is not str:
        raise Refusal(400, "The cursor is none of ours: take next from the page before, as it is.")
    return key, uid


def _fields(values: list[str] | None) -> frozenset[str] | None:
    if values is None:
        return None
    fields = frozenset(name for value in values for name in value.split(","))
    if not fields <= {*FIELDS}:
        raise Refusal(400, f"fields must be of {', '.join(FIELDS)}, with commas between.")
    return fields


# --- filters

_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": _VALUE}


def _one_of(attribute: str, choices: tuple[str, ...] = ()) -> Filter:
    """One of the values."""
    get = attrgetter(attribute)

    def make(name: str, values: list[str]) -> Test:
        wanted = frozenset(values)
        if choices and not wanted <= {*choices}:
            raise Refusal(400, f"{name} must be one of {', '.join(choices)}.")
        return lambda item: get(item) in wanted

    return Filter(make, {"type": "string", "enum": list(choices)} if choices else _TEXT)


def _flag(attribute: str) -> Filter:
    get = attrgetter(attribute)

    def make(name: str, values: list[str]) -> Test:
        if not {*values} <= {"true", "false"}:
            raise Refusal(400, f"{name} must be true or false.")
        wanted = {value == "true" for value in values}
        return lambda item: get(item) in wanted

    return Filter(make, {"type": "string", "enum": ["true", "false"]})


def _pattern(attribute: str, *, fold: bool = False) -> Filter:
    """One of the values, in which `*` stands for any text."""
    get = attrgetter(attribute)

    def make(name: str, values: list[str]) -> Test:
        if sum(value.count("*") for value in values) > STARS:
            raise Refusal(400, f"{name} may have {STARS} times '*', in all that is given.")
        folded = [value.casefold() for value in values] if fold else values
        if not any("*" in value for value in folded):
            wanted = frozenset(folded)
            return lambda item: (get(item).casefold() if fold else get(item)) in wanted
        globs = [_glob(value) for value in folded]

        def test(item: Item) -> bool:
            text = get(item).casefold() if fold else get(item)
            return any(glob(text) for glob in globs)

        return test

    return Filter(make, _TEXT)


def _glob(pattern: str) -> Callable[[str], bool]:
    """Whether a text fits; in time that grows with text and pattern, not with their product's power as in `re`."""
    head, *rest = pattern.split("*")
    if not rest:
        return pattern.__eq__
    *middle, tail = rest
    middle = [part for part in middle if part]

    def fits(text: str) -> bool:
        at, end = len(head), len(text) - len(tail)
        if at > end or not text.startswith(head) or not text.endswith(tail):
            return False
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return fits


def _tags(_name: str, values: list[str]) -> Test:
    """All of the values."""
    if len(values) == 1:
        (tag,) = values
        return lambda item: tag in item.tags
    wanted = frozenset(values)
    return lambda item: wanted.issubset(item.tags)


def _properties(_name: str, values: list[str]) -> Test:
    """All of the values: `name=value`, or `name` for any value."""
    if len(values) == 1 and "=" in values[0]:
        (value,) = values
        return lambda item: value in item.properties
    exact = [value for value in values if "=" in value]
    starts = [f"{value}=" for value in values if "=" not in value]

    def test(item: Item) -> bool:
        properties = item.properties
        return all(each in properties for each in exact) and all(
            any(each.startswith(start) for each in properties) for start in starts
        )

    return test


def _compared(attribute: str, parse: Callable[[str], float], example: str) -> Filter:
    """Fits all of the values: a number, or how it compares, as `gte:1Gi`. What an image does not have fits none."""
    get = attrgetter(attribute)

    def make(name: str, values: list[str]) -> Test:
        tests = []
        for value in values:
            how, _, text = value.partition(":")
            if how not in _COMPARE:  # a time has colons of its own
                how, text = "eq", value
            try:
                tests.append((_COMPARE[how], _bound(parse, text)))
            except (ValueError, OverflowError):
                raise Refusal(
                    400, f"{name} must be such as {example}, or eq:, gt:, gte:, lt: or lte: and that."
                ) from None

        def test(item: Item) -> bool:
            mine = get(item)
            return mine != NEVER and all(compare(mine, bound) for compare, bound in tests)

        return test

    said = {"type": "string", "minLength": 1, "maxLength": _NUMBER + 4, "examples": [example, f"gte:{example}"]}
    return Filter(make, said)


def _bound(parse: Callable[[str], float], text: str) -> float:
    if len(text) > _NUMBER:
        raise ValueError("this is no number and no time")
    return parse(text)


def _time(text: str) -> float:
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


FILTERS: Final[Mapping[str, Filter]] = {
    # the cheapest first
    "namespace": _one_of("namespace"),
    "hidden": _flag("hidden"),
    "name": _pattern("name"),
    "title": _pattern("title", fold=True),
    "tag": Filter(_tags, _TEXT),
    "property": Filter(_properties, _TEXT),
    "diskFormat": _one_of("disk_format"),
    "containerFormat": _one_of("container_format"),
    "visibility": _one_of("visibility", _VISIBILITIES),
    "protected": _flag("protected"),
    "deactivated": _flag("deactivated"),
    "ready": _flag("ready"),
    "status": _one_of("status"),
    "digest": _one_of("digest"),
    "size": _compared("size", parse_quantity, "10Gi"),
    "virtualSize": _compared("virtual_size", parse_quantity, "10Gi"),
    "minimum.diskGiB": _compared("disk_gib", parse_quantity, "10"),
    "minimum.memoryMiB": _compared("memory_mib", parse_quantity, "512"),
    "creationTimestamp": _compared("created", _time, "2026-01-02T03:04:05Z"),
    "storedAt": _compared("stored", _time, "2026-01-02T03:04:05Z"),
}
