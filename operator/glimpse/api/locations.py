"""Registered locations: bytes that a store holds already, where they lie, and who may register what.

One place for what a key may be: it is judged by the API server, again by the operator, and again by whoever opens it.
"""

import re
from typing import Annotated, Final

from pydantic import Field

from glimpse.api.base import Model, Name, Rule
from glimpse.api.labels import LabelSelector

KEY_LENGTH: Final = 1024
"""Characters of the longest key: what object stores take, in bytes."""
NAMESPACE: Final = "{namespace}"
"""What stands for the namespace of an Image in a prefix."""

_OWN: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-[0-9]+([.@].*)?", re.DOTALL)
_AREAS: Final = ("objects", "attempts", "data")
_MARKER: Final = "glimpse-"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and halves of characters, which no name can hold."""

_PLAIN: Final = (
    Rule("!self.startsWith('/') && !self.contains('://')", "must be relative to the store: neither absolute nor a URL"),
    Rule(
        "!self.matches('(^|/)[.]{0,2}/') && !self.matches('(^|/)[.]{1,2}$')",
        "must not hold the segments . and .., nor an empty one",
    ),
    Rule("!self.matches('[[:cntrl:]\\\\\\\\]')", "must not hold control characters and backslashes"),
    Rule(
        "!self.matches('^(objects|attempts|data)(/|$)') && !self.startsWith('glimpse-')",
        "must not lie in objects/, attempts/, data/ or glimpse-...: what is there belongs to Glimpse",
    ),
)
"""What keys and prefixes have in common; a prefix may end in a slash."""


def fault(key: str) -> str | None:
    """Why nothing can be registered under this key in any store; None if it is plain."""
    segments = key.split("/")
    if not key or len(key) > KEY_LENGTH:
        return f"a key has 1 to {KEY_LENGTH} characters"
    if key.startswith("/") or "://" in key:
        return "a key is relative to the store: neither absolute nor a URL"
    if not {"", ".", ".."}.isdisjoint(segments):
        return "a key has no segments . and .., and no empty ones"
    if _CONTROL.search(key) or "\\" in key:
        return "a key has no control characters and no backslashes"
    if segments[0] in _AREAS or key.startswith(_MARKER) or any(_OWN.fullmatch(segment) for segment in segments):
        return "what is named so belongs to Glimpse"
    return None


class Location(Model):
    """Bytes that an ImageStore holds already: they are registered where they are, and nothing is copied."""

    store: Name
    """The ImageStore. If `stores` is given, it names this one too."""
    key: Annotated[
        str,
        Field(min_length=1, max_length=KEY_LENGTH),
        *_PLAIN,
        Rule("!self.endsWith('/')", "must be the key of a file, not of a folder"),
        Rule(
            "!self.matches('(^|/)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-[0-9]+([.@][^/]*)?(/|$)')",
            "must not look like a key of Glimpse's own",
        ),
    ]
    """Where in the store: the path below its folder, bucket, pool or address. It must lie below a prefix that the
    store's `locations` allow to this namespace."""


class LocationRule(Model):
    """Which namespaces may register what."""

    namespace_selector: LabelSelector | None = None
    """Namespaces that may. Omitted: all."""
    prefix: Annotated[
        str,
        Field(min_length=1, max_length=253),
        *_PLAIN,
        Rule(
            "!self.contains('{namespace}') || self.matches('^[^{}]*[{]namespace[}][/._][^{}]*$')",
            "must have {namespace} once at most, and /, . or _ after it, which no name of a namespace has:"
            " else team would reach what is team-b's",
        ),
        Rule("self.contains('{namespace}') || !self.matches('[{}]')", "must hold no braces but those of {namespace}"),
    ]
    """How the keys begin that they may register; `{namespace}` stands for the name of theirs."""
    allow_delete: bool = False
    """Remove such bytes when the Image that registered them is deleted with `deletionPolicy: Delete`. They stay by
    default."""

    def of(self, namespace: str) -> str:
        """The prefix for one namespace."""
        return self.prefix.replace(NAMESPACE, namespace)
