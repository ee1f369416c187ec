"""Who may have which secrets of an Image: they stay with the servers that its spec names.

Apart from the asking, so that the rule that matters most to a tenant can be read on one page.
"""

import base64
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pydantic import SecretStr
from urllib3.util import Url

from glimpse.api.base import SECRET_HOSTS
from glimpse.problems import InvalidConfiguration
from glimpse.sources.places import Place, parse, place
from glimpse.tasks import HttpOrigin

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
"""RFC 9110, 5.6.2."""
_NO_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""RFC 9110, 5.5: a line break would begin another header."""
_OURS: Final = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"),
        *("host", "content-length", "content-encoding", "range", "accept-encoding", "expect"),
    }
)
"""What belongs to a connection and no further (RFC 9110, 7.6.1), and what says which bytes are asked for, and how."""
_OURS_TOO: Final = ("proxy-", "if-")
_MOST: Final = 64
"""Headers of one Secret."""
_LONGEST: Final = 16 << 10
"""Characters of them all; servers take half of that, or as much."""


class _Grant(NamedTuple):
    """A Secret, and who may have it besides the rule for all."""

    ref: str
    hosts: frozenset[str]

    def names(self, there: Place) -> bool:
        """Whether the Secret's owner allows this host."""
        _, host, port = there
        host = f"[{host}]" if ":" in host else host.rstrip(".")
        return not self.hosts or not self.hosts.isdisjoint((host, f"{host}:{port}"))


class Login:
    """The secrets of one origin, but for those of its proxy."""

    def __init__(self, origin: HttpOrigin) -> None:
        """Raises InvalidConfiguration."""
        self._places = {place(parse(url)) for url in origin.urls}
        self._value = _authorization(_revealed(origin.secret))
        self._headers = _headers(_revealed(origin.headers), login=bool(self._value))
        self._secret = _Grant("secretRef", frozenset(map(str.lower, origin.secret_hosts)))
        self._more = _Grant("headersSecretRef", frozenset(map(str.lower, origin.headers_hosts)))
        self._identity = _Grant("clientCertificateRef", frozenset(map(str.lower, origin.certificate_hosts)))
        held = ((self._secret, self._value), (self._more, self._headers), (self._identity, origin.certificate))
        self._held = [grant for grant, something in held if something]

    def headers(self, url: Url) -> dict[str, str]:
        """What to send to this URL."""
        there = place(url)
        sent = dict(self._headers) if self._may(self._more, there) else {}
        if self._value and self._may(self._secret, there):
            sent["Authorization"] = self._value
        return sent

    def identifies(self, url: Url) -> bool:
        """Whether to present the client certificate to this URL's server."""
        return self._identity in self._held and self._may(self._identity, place(url))

    def wanted(self, url: Url) -> str:
        """What a server that refuses us may be lacking."""
        there = place(url)
        if there not in self._places:
            lacks = "it got no credentials: they" if self._held else "it wants credentials, which"
            return f"{lacks} go to the servers named in urls, and {there[1]}:{there[2]} is none of them"
        if not self._held:
            return f"it wants credentials: name a Secret with them in {self._secret.ref}"
        if withheld := [grant.ref for grant in self._held if not grant.names(there)]:
            refs = " and ".join(withheld)
            return (
                f"it got no credentials: the annotation {SECRET_HOSTS} of the Secret of {refs} does not name {there[1]}"
            )
        refs = " or ".join(grant.ref for grant in self._held)
        return f"it wants other credentials, in the Secret of {refs}"

    def _may(self, grant: _Grant, there: Place) -> bool:
        return there in self._places and grant.names(there)


def basic(username: str, password: str) -> str:
    """RFC 7617; also what a log must not show."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _revealed(secret: Mapping[str, SecretStr]) -> dict[str, str]:
    return {key: value.get_secret_value() for key, value in secret.items()}


def _authorization(secret: dict[str, str]) -> str | None:
    """The header's value. Raises InvalidConfiguration."""
    if not secret:
        return None
    if any(_CONTROL.search(value) for value in secret.values()):
        raise InvalidConfiguration("a value in the Secret of secretRef holds a line break; write it without one")
    if token := secret.get("token"):
        value = f"Bearer {token}"
    elif {"username", "password"} <= secret.keys():
        value = basic(secret["username"], secret["password"])
    else:
        raise InvalidConfiguration("the Secret of secretRef needs the keys username and password, or the key token")
    if not value.isascii():
        raise InvalidConfiguration("the token in the Secret of secretRef holds characters that no token may have")
    return value


def _headers(secret: dict[str, str], *, login: bool) -> dict[str, str]:
    """The headers of a Secret. `login`: there is an Authorization already. Raises InvalidConfiguration."""
    what = "the Secret of headersSecretRef"
    if len(secret) > _MOST or sum(map(len, (*secret, *secret.values()))) > _LONGEST:
        raise InvalidConfiguration(f"{what} has more than {_MOST} headers, or {_LONGEST} characters")
    if len({name.lower() for name in secret}) < len(secret):
        raise InvalidConfiguration(f"{what} has a header twice, in small and capital letters")
    for name, value in secret.items():
        known = name.lower()
        if not _TOKEN.fullmatch(name):
            raise InvalidConfiguration(f"{what} has a key that is no name of a header")
        if known in _OURS or known.startswith(_OURS_TOO):
            raise InvalidConfiguration(f"{what} has the key {name!r}, a header that Glimpse sets itself; leave it out")
        if known == "authorization" and login:
            raise InvalidConfiguration(f"{what} has the key {name!r}, which secretRef gives already; keep one")
        if not value or _NO_VALUE.search(value):
            raise InvalidConfiguration(f"key {name!r} of {what} is empty, or holds a line break or a control character")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise InvalidConfiguration(f"key {name!r} of {what} holds characters beyond Latin-1") from None
    return secret
