"""One mirror's copy of a file: which version it is, and any part of just that version.

Between two requests a file may be replaced, and bytes of two versions joined would be an image that never was. So
each part is asked for under the validators of the first answer, and looked at again when it comes.
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Self

from urllib3.util import Url

from glimpse.problems import Permanent, SourceChanged, SourceRefused, SourceUnauthorized, SourceUnavailable
from glimpse.sources import brief
from glimpse.sources.client import Answer, Client
from glimpse.sources.places import parse
from glimpse.streams import CHUNK

_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416
REST: Final = (1 << 63) - 1
"""Where a part stops that goes to the end."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which bytes a server has under a name, as far as it says."""

    size: int | None
    etag: str | None
    last_modified: str | None
    guard: str | None
    """What to send in If-Range (RFC 9110 13.1.5): a strong ETag, or a date that is old enough to be one."""

    @classmethod
    def of(cls, answer: Answer) -> Self:
        """As an answer says."""
        guard = None
        if answer.etag and answer.etag.startswith('"'):
            guard = answer.etag
        elif answer.last_modified and answer.date and _settled(answer.last_modified, answer.date):
            guard = answer.last_modified
        size = answer.range[2] if answer.range else answer.size
        return cls(size, answer.etag, answer.last_modified, guard)

    def same(self, other: "Version") -> bool:
        """Whether nothing says that these are different bytes."""
        pairs = (
            (self.size, other.size),
            (self.etag, other.etag),
            (self.last_modified, other.last_modified),
        )
        return all(a is None or b is None or a == b for a, b in pairs)


def _settled(modified: str, date: str) -> bool:
    """Whether a file was old enough when it was sent that its date tells versions apart (RFC 9110 8.8.2.2)."""
    try:
        return (parsedate_to_datetime(date) - parsedate_to_datetime(modified)).total_seconds() >= 1
    except (ValueError, TypeError, OverflowError):
        return False


class Remote:
    """One URL, asked part by part. Shared by threads."""

    def __init__(self, client: Client, url: str) -> None:
        """Raises InvalidConfiguration."""
        self._client = client
        self._url = parse(url)
        self._place: Url = self._url
        self.name = brief(self._url)
        """In messages."""
        self.version: Version | None = None
        """Known since the first answer."""
        self.url = url
        """As it was given."""
        self.bytes = 0
        """Received from it; with `seconds` and `failed` under the lock of who counts."""
        self.seconds = 0.0
        """Of waiting for it, over all connections."""
        self.failed = False
        """It broke once at least."""
        self.away = False
        """It gave no answer at all when it was asked last."""
        self.length: int | None = None
        """Bytes that the file must have, where it is known from another mirror."""
        self.disputed = False
        """It has another file than was expected, of which it was not the one to speak."""
        self.fickle = False
        """What it answered does not go together: one answer alone may be of use."""
        self._answered = False

    @property
    def size(self) -> int | None:
        """Bytes of the file, as far as is known."""
        return self.version.size if self.version else None

    def ask(self, start: int, stop: int = REST) -> Answer:
        """The bytes from `start`, up to `stop` at most: a part (206), or the whole (200) whatever was asked for.

        A whole answer comes read up to `start`, if that is later. Raises SourceChanged if it is another version than
        before, and as `Client.get`.
        """
        try:
            self.away = True
            answer = self._get(start, stop)
            self.away = False
        except (SourceRefused, SourceUnauthorized):
            self.away = False
            self.fickle |= self._answered  # it gave a part a moment ago, so it is this one that it refuses
            raise
        try:
            self._judge(answer, start)
            if answer.range is None:
                _skip(answer, start)
        except BaseException:
            answer.close()
            raise
        self._place = answer.place
        return answer

    def open(self, stop: int) -> Answer:
        """The first answer: up to `stop`, or the whole from a server that gives no parts. Raises as `Client.get`."""
        answer = self._get(0, stop)
        if answer.status == _UNSATISFIABLE:  # of an empty file there is no part
            answer.close()
            return self.whole()
        try:
            self._judge(answer, 0)
        except BaseException:
            answer.close()
            raise
        self._place = answer.place
        return answer

    def whole(self) -> Answer:
        """The whole file in one answer; the version is what that says. Raises as `Client.get`."""
        answer = self._client.get(self._place)
        self.version = Version.of(answer)
        self._answered = True
        return answer

    def _get(self, start: int, stop: int) -> Answer:
        wanted = {"Range": f"bytes={start}-" if stop >= REST else f"bytes={start}-{stop - 1}"}
        if self.version and self.version.guard:
            wanted["If-Range"] = self.version.guard
        try:
            return self._client.get(self._place, wanted, also=(_UNSATISFIABLE,))
        except Permanent:
            # A signed address to which we were sent may have run out: ask again who gave it.
            if self._place == self._url:
                raise
            return self._client.get(self._url, wanted, also=(_UNSATISFIABLE,))

    def _judge(self, answer: Answer, start: int) -> None:
        if not answer.sound:
            self.fickle = True
            raise SourceUnavailable(f"{self.name}: the server answered 206 without saying rightly which part it sends")
        if answer.range and answer.range[0] != start:
            self.fickle = True
            raise SourceUnavailable(f"{self.name}: the server sent another part than the one that was asked for")
        found = Version.of(answer)
        known = self.version
        if answer.status == _UNSATISFIABLE:
            self._differ()
            raise SourceChanged(f"{self.name}: the file is shorter now than it was")
        if known and not known.same(found):
            self._differ()
            raise SourceChanged(f"{self.name}: the file has changed while it was read")
        if None not in {self.length, found.size} and found.size != self.length:
            self._differ()
            raise SourceChanged(f"{self.name}: the file has {found.size} bytes, and {self.length} at another mirror")
        self.version = known or found
        self.fickle &= self._answered
        self._answered = True

    def _differ(self) -> None:
        """Its answer does not go with its own before, or else with what is known from elsewhere."""
        if self._answered:
            self.fickle = True
        else:
            self.disputed = True


def _skip(answer: Answer, count: int) -> None:
    """Read over what is known already: the server gives the whole only."""
    while count and (chunk := answer.read(min(CHUNK, count))):
        count -= len(chunk)
