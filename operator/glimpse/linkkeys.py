"""The keys of signed links, as a Secret holds them: the operator makes and removes them, gateways sign with them.

Their names say which is the newest, and when the operator made it; so nothing else has to be kept about them.
"""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from pydantic import SecretBytes

from glimpse.kube import Object

SECRET_NAME: Final = "glimpse-links"  # noqa: S105 - a name
"""In the operator's namespace."""
USE: Final = "links"
"""The value of its label `glimpse.dev/use`: it is no store's and no source's."""
LEAST: Final = 32
"""Bytes of a key: as many as the digest has (RFC 2104, section 3)."""
_TIMED: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_FORM: Final = "%Y%m%dT%H%M%SZ"


class Key(NamedTuple):
    """One key."""

    name: str
    value: SecretBytes

    @property
    def made(self) -> datetime | None:
        """When the operator made it; None for a key with a name of somebody's own."""
        try:
            return datetime.strptime(self.name, _FORM).replace(tzinfo=UTC) if _TIMED.fullmatch(self.name) else None
        except ValueError:
            return None


def name(made: datetime) -> str:
    """What a key is called that is made now; later ones sort after it."""
    return made.astimezone(UTC).strftime(_FORM)


def read(secret: Object | None) -> dict[str, Key]:
    """The keys by their names, the newest last. What is too short, or no base64, is none."""
    found: dict[str, Key] = {}
    for each, text in sorted(((secret or {}).get("data") or {}).items()):
        try:
            value = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(value) >= LEAST:
            found[each] = Key(each, SecretBytes(value))
    return found
