"""Paths: what the address of a request names."""

import re
from typing import Final, NamedTuple, Self

from aiohttp import web

from glimpse.gateway.refusals import NOT_FOUND, Refusal

CHECKSUMS: Final = ("sha256", "sha512", "md5")
"""Algorithms that have a checksum file."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_IMAGE: Final = "/v1/namespaces/{namespace:[a-z0-9-]{1,63}}/images/{%s:[a-z0-9.-]{1,70}}"

SERVED: Final = _IMAGE % "file"
"""The revision that is served, or its checksum file."""
REVISION: Final = _IMAGE % "name" + "/revisions/{file:[a-z0-9.]{1,30}}"
"""One revision, or its checksum file."""
UPLOADS: Final = _IMAGE % "name" + "/uploads"
"""Where an upload in parts begins."""
ALL_UPLOADS: Final = "/v1/uploads"
"""Where one for any image begins."""
UPLOAD: Final = UPLOADS + "/{upload:[a-z0-9][a-z0-9.-]{0,69}}"
"""One of them."""
LINKS: Final = _IMAGE % "name" + "/links"
"""Where a signed link is asked for."""


class Asked(NamedTuple):
    """What a link names."""

    namespace: str
    name: str
    number: int | None
    """The revision; None for the served one."""
    uid: str | None
    checksum: str | None
    """The algorithm, if the checksum file is wanted."""
    file: str
    """The last part of the link, without the checksum's suffix."""

    @classmethod
    def of(cls, request: web.Request) -> Self:
        """Read a link. Raises Refusal 404 for one that cannot be ours."""
        match = request.match_info
        file, _, checksum = match["file"].rpartition(".")
        if checksum not in CHECKSUMS:
            file, checksum = match["file"], ""
        number = None
        if "name" in match:
            if not file.isdecimal() or len(file) > 18:  # noqa: PLR2004 - more digits are no int64
                raise Refusal(404, NOT_FOUND)
            number = int(file)
        namespace, name = image(match["namespace"], match.get("name", file))
        return cls(namespace, name, number, request.query.get("uid"), checksum or None, file)


def image(namespace: str, name: str) -> tuple[str, str]:
    """Where an image is. Raises Refusal 404 if no object can be called so."""
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(namespace):
        raise Refusal(404, NOT_FOUND)
    return namespace, name
