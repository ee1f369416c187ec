"""Reads URLs: to what place they lead, and nothing that two readers could understand differently.

Here and nowhere else, so that what is checked, what is connected to and who gets credentials is the same place.
"""

import re
import socket
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import urljoin

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from glimpse.problems import InvalidConfiguration, SourceRefused
from glimpse.sources import brief

Place = tuple[str, str, int]
"""Scheme, host and port: what the web calls an origin."""

_PORTS: Final = {"http": 80, "https": 443}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def parse(url: str) -> Url:
    """Parse and normalise. Raises InvalidConfiguration unless it is a plain http or https URL.

    Plain is also: a host of ASCII, as written, without credentials, backslashes, percent signs and zones before it,
    in it or after it. What is or could be taken for a number is an IPv4 address.
    """
    try:
        parts = parse_url(url)
        sound = parts.scheme in _PORTS and parts.host and not parts.auth and not _CONTROL.search(url)
        host = split(url)[0] if sound else ""
    except (LocationParseError, ValueError):
        sound = False
    if not sound:
        raise InvalidConfiguration(f"{brief(url)} is not a plain http or https URL")
    return parts._replace(host=f"[{host}]" if ":" in host else host)


def split(url: str) -> tuple[str, int | None]:
    """Host and port of any URL, the host in its usual spelling and without brackets. Raises ValueError."""
    authority = _AUTHORITY.match(url)
    match = _HOST_PORT.fullmatch(authority[1]) if authority else None
    if not match:
        raise ValueError("no plain host and port")
    port = int(match[2]) if match[2] else None
    if port is not None and not 1 <= port <= 65535:  # noqa: PLR2004 - the last port
        raise ValueError("no port")
    host = match[1].lower()
    if host.startswith("["):
        return str(IPv6Address(host[1:-1])), port
    if ".." in host or host.startswith("."):
        raise ValueError("an empty label")
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            return socket.inet_ntoa(socket.inet_aton(host.rstrip("."))), port  # 127.1, 0x7f000001, 2130706433
        except OSError:
            raise ValueError("no IPv4 address") from None
    return host, port


def place(url: Url) -> Place:
    """The origin of a parsed URL, its port always written out."""
    scheme, host = url.scheme or "", (url.host or "").strip("[]").lower()
    return scheme, host, url.port or _PORTS[scheme]


def follow(here: Url, location: str) -> Url:
    """The next hop. Raises SourceRefused."""
    try:
        there = parse(urljoin(here.url, location))
    except (InvalidConfiguration, ValueError):
        raise SourceRefused(f"{brief(here)} redirects to what is no plain http or https URL") from None
    if here.scheme == "https" and there.scheme == "http":
        raise SourceRefused(f"{brief(here)} redirects from https to http, where anybody could change the bytes")
    return there._replace(fragment=None)
