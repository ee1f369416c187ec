"""Signed links: an address that gives one revision to whoever has it, without a token, until it expires.

All that a link may give stands in it, signed with a key that only gateways know (HMAC-SHA256, RFC 2104). So nothing is
kept about links, each replica takes those of the others, and to remove a key revokes all that it has signed.
"""

import base64
import hashlib
import hmac
import re
from typing import Final, NamedTuple
from urllib.parse import urlencode

from aiohttp import web

from glimpse.gateway.keys import Keys
from glimpse.gateway.paths import Asked
from glimpse.gateway.refusals import Refusal
from glimpse.linkkeys import Key

LOST: Final = "What this link was made for is no longer there; ask for a new link."
"""The same whether the image is gone, was made anew, or only the revision is no longer kept."""
OFF: Final = "Signed links are switched off here."
_TERMS: Final = ("uid", "expires", "key", "signature")
_VALUE: Final = re.compile(r"[-._A-Za-z0-9]{1,253}")
_SECONDS: Final = re.compile(r"[0-9]{1,11}", re.ASCII)


class Terms(NamedTuple):
    """What a link gives, and until when."""

    method: str
    namespace: str
    name: str
    uid: str
    number: int
    """The revision."""
    expires: int
    """Seconds since 1970."""

    @property
    def path(self) -> str:
        """Of the revision."""
        return f"/v1/namespaces/{self.namespace}/images/{self.name}/revisions/{self.number}"

    def signature(self, key: Key) -> str:
        """Over all of them. No part can hold a line break, so no two terms give the same text."""
        text = "\n".join(("glimpse link 1", *map(str, self)))
        digest = hmac.digest(key.value.get_secret_value(), text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_link(request: web.Request) -> bool:
    """Whether the request wants to be let in by a signature; its token is not looked at then."""
    return "signature" in request.query


class Links:
    """Makes and checks links."""

    def __init__(self, keys: Keys, base: str, maximum: float) -> None:
        """`base`: the gateway's address as consumers see it; `maximum`: seconds that a link may live, 0: none may."""
        self.keys, self.maximum = keys, maximum
        self._base = base

    async def url(self, terms: Terms) -> str:
        """The link. Raises Refusal 503."""
        key = await self.keys.newest()
        values = (terms.uid, str(terms.expires), key.name, terms.signature(key))
        return f"{self._base}{terms.path}?{urlencode(list(zip(_TERMS, values, strict=True)))}"

    async def check(self, request: web.Request, asked: Asked, now: float) -> None:
        """Return if the request has a good link for what it asks. Raises Refusal: 403, 503.

        Whether there is such an image is looked for only after the signature was found good.
        """
        if self.maximum <= 0:
            raise Refusal(403, OFF)
        given = [request.query.getall(name, []) for name in _TERMS]
        values = [each[0] for each in given if len(each) == 1 and _VALUE.fullmatch(each[0])]
        if asked.number is None or len(values) != len(_TERMS) or not _SECONDS.fullmatch(values[1]):
            raise Refusal(403, "This is no link as it was signed; ask for a new one.")
        uid, expires, name, signature = values
        key = await self.keys.named(name)
        if key is None:
            raise Refusal(403, "The key that signed this link was removed; ask for a new link.")
        terms = Terms(request.method, asked.namespace, asked.name, uid, asked.number, int(expires))
        # a link for GET is good for HEAD too
        signed = [terms] if request.method != "HEAD" else [terms, terms._replace(method="GET")]
        if not any([hmac.compare_digest(each.signature(key), signature) for each in signed]):  # noqa: C419 - no early end
            raise Refusal(403, "This link was altered, or is for another method; ask for a new one.")
        if terms.expires <= now:
            raise Refusal(403, "This link has expired; ask for a new one.")
