"""Where bytes come from: what every source offers, and how its place is shown.

A source is opened once per try and read in order; whoever opened it closes it.
"""

from typing import Final, Protocol

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from glimpse.streams import Reader

_BEGINNING: Final = 140
_END: Final = 60
"""Characters of a long URL in a message: with eight mirrors of it a reason has room after each."""


class OpenSource(Reader, Protocol):
    """A Reader over the bytes of a source, with what the source says about them."""

    @property
    def url(self) -> str:
        """Where the bytes come from, without credentials and query."""

    @property
    def etag(self) -> str | None:
        """The source's word for this version of its bytes."""

    @property
    def last_modified(self) -> str | None:
        """The source's time for this version of its bytes, as it wrote it."""

    def close(self) -> None:
        """Let go of the connection; may be called twice."""


def shown(url: str | Url) -> str:
    """A URL as people may see it: without credentials, query and fragment, which may hold secrets."""
    try:
        parts = parse_url(url) if isinstance(url, str) else url
    except LocationParseError:
        return "a URL that cannot be read"
    plain = parts._replace(auth=None, query=None, fragment=None).url
    return plain if plain.isprintable() else "a URL that cannot be read"


def brief(url: str | Url) -> str:
    """The same in a message: of a long one, such as a server may redirect to, the middle is left out."""
    whole = shown(url)
    return whole if len(whole) <= _BEGINNING + _END else f"{whole[:_BEGINNING]}…{whole[-_END:]}"
