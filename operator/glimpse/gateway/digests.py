"""Digests that answers say of what they give: the headers Repr-Digest and Content-Digest (RFC 9530).

Of the whole image, as it is known, also in a partial answer; of the content only where that is the whole image, as
nothing is computed while it is sent.
"""

import base64
import re
from collections.abc import Callable
from typing import Final

from glimpse.gateway.ranges import LONGEST

_NAMES: Final = {"sha-256": "sha256", "sha-512": "sha512"}
"""Algorithms by their names there. Those that it calls deprecated, as md5, are in checksum files only."""
_WANT: Final = re.compile(r"([a-z*][a-z0-9_.*-]*)=(10|[0-9])(?:;[^,]*)?", re.ASCII)


def said(hexes: Callable[[str], str | None], want: str | None) -> str | None:
    """The header's value; None if there is nothing to say. `hexes` gives the digest by an algorithm, if it is known.

    `want` is what the client would have (Want-Repr-Digest, Want-Content-Digest): of the known ones he gets the one that
    he likes best; all of them, without those that he refuses (0), if none is to his liking or he says nothing.
    """
    known = {name: digest for name, algorithm in _NAMES.items() if (digest := hexes(algorithm))}
    wants = _wants(want)
    liked = [name for name in known if wants.get(name)]
    shown = [max(liked, key=lambda name: wants[name])] if liked else [name for name in known if wants.get(name) != 0]
    return ", ".join(f"{name}=:{base64.b64encode(bytes.fromhex(known[name])).decode()}:" for name in shown) or None


def _wants(header: str | None) -> dict[str, int]:
    """Preferences by algorithm, 0 to 10. A header that is none says nothing (RFC 9651, 4.2)."""
    if not header or len(header) > LONGEST:
        return {}
    found = [_WANT.fullmatch(member.strip(" \t")) for member in header.split(",")]
    return {match[1]: int(match[2]) for match in found if match} if all(found) else {}
