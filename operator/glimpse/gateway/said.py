"""Digests that a sender says of what it sends: the headers Content-Digest and Repr-Digest (RFC 9530)."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from glimpse.gateway.refusals import Refusal

_NAMES: Final = {"sha-256": ("sha256", 32), "sha-512": ("sha512", 64), "md5": ("md5", 16), "sha": ("sha1", 20)}
"""Algorithms by their names there, with the bytes of a digest. Others are left out, as the RFC says."""
_MEMBER: Final = re.compile(r"\s*([a-z*][a-z0-9_.*-]{0,30})\s*=\s*:([A-Za-z0-9+/=]{0,200}):\s*")


def digests(*headers: str | None) -> Mapping[str, str]:
    """Digests in hex by algorithm. Raises Refusal 400 for a header that says nothing, or two things."""
    found = dict[str, str]()
    for header in filter(None, headers):
        for member in header.split(","):
            match = _MEMBER.fullmatch(member)
            if not match:
                raise Refusal(400, "A digest is written as sha-256=:BASE64:, several with a comma between them.")
            if match[1] not in _NAMES:
                continue
            algorithm, length = _NAMES[match[1]]
            try:
                value = base64.b64decode(match[2], validate=True)
            except binascii.Error:
                value = b""
            if len(value) != length:
                raise Refusal(400, f"The {match[1]} digest of what you send has not {length} bytes.")
            if found.setdefault(algorithm, value.hex()) != value.hex():
                raise Refusal(400, f"You say two {match[1]} digests of what you send.")
    return found
