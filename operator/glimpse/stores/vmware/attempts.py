"""Attempts on objects: the ticket that says whose bytes an object is, and what an attempt has written or left.

All that is done with tickets is here, to be read together: what one step takes for granted another one promises.
"""

import json
import re
from contextlib import nullcontext, suppress
from secrets import token_hex
from typing import Final

from glimpse.problems import StoreConflict, StoreUnavailable
from glimpse.stores.vmware.files import File, Files
from glimpse.stores.vmware.session import Exists, Missing, Place

OBJECTS: Final = "objects"
DATA: Final = "data"
RECORDS: Final = "records"
ATTEMPTS: Final = "attempts"

_KEY: Final = r"[0-9a-z-]{1,80}"
_ATTEMPT: Final = r"[0-9a-z]{1,64}"
_NAMES: Final = {
    OBJECTS: re.compile(rf"({_KEY})\.json"),
    DATA: re.compile(rf"({_KEY}\.{_ATTEMPT})\.img"),
    RECORDS: re.compile(rf"({_KEY}\.{_ATTEMPT})\.json"),
    ATTEMPTS: re.compile(rf"({_KEY}\.{_ATTEMPT})\.(json|alive)"),
}
"""What of us is in each folder. Whatever has another name is somebody else's."""

_NOTHING: Final = re.compile(r"(?!)")
_SIGN: Final = "sign"


class Attempts:
    """All attempts in one place, those that have become objects among them. Shared by threads.

    Methods raise Missing where the place itself is lost, else Problem.
    """

    def __init__(self, files: Files, place: Place, lease: float) -> None:
        """`lease`: seconds after which an attempt without a sign of life is taken for dead."""
        self._files, self._place, self._lease = files, place, lease

    def begin(self, key: str, attempt: str) -> None:
        """Write its ticket."""
        self._files.write(ticket_of(f"{key}.{attempt}"), json.dumps({"attempt": attempt}).encode())

    def commit(self, key: str, attempt: str) -> None:
        """Move the ticket. Where the answer is lost the ticket is removed: then it can only have been moved before."""
        ticket = ticket_of(f"{key}.{attempt}")
        try:
            self._files.move(ticket, object_of(key))
        except (Exists, Missing, StoreUnavailable) as error:
            if not self._files.remove(ticket) and self.winner(key) == attempt:
                return
            match error:
                case Exists():
                    raise StoreConflict(f"{key} was written by another attempt meanwhile") from error
                case Missing():
                    raise StoreUnavailable(f"attempt {attempt} on {key} was taken for dead, and removed") from error
            raise

    def bury(self, key: str, attempt: str, *, strict: bool = True) -> None:
        """Remove an attempt, unless it has become the object. Without its ticket it cannot any more.

        Unless `strict`, files that the server still writes may stay: they are in nobody's way then.
        """
        name = f"{key}.{attempt}"
        self._files.remove(ticket_of(name))
        if self.winner(key) != attempt:
            with nullcontext() if strict else suppress(StoreUnavailable):
                self._remove(name)

    def reap(self, key: str, attempt: str = "*", *, strict: bool = True) -> None:
        """Remove dead attempts on `key`, or one if it is dead, and what is left of objects that were taken away."""
        for name, files in self.find(f"{key}.{attempt}.*").items():
            if not self._lives(name, files.get(_SIGN)):
                if ATTEMPTS in files:
                    self._finish(key, ticket_of(name))
                self.bury(key, name.rpartition(".")[2], strict=strict)

    def discard(self, key: str, expected: bytes | None = None) -> None:
        """Take the ticket of an object away, if there is one and it is the `expected`, and remove what it names."""
        aside = ticket_of(f"{key}.{token_hex(8)}")
        with suppress(Missing, Exists):  # or its answer alone is lost
            self._files.move(object_of(key), aside)
        words = self._files.peek(aside)
        if words is None:
            return
        if expected not in {None, words}:
            with suppress(Missing, Exists):
                self._files.move(aside, object_of(key))
            return
        self._finish(key, aside)
        self._files.remove(aside)

    def make_room(self, key: str) -> None:
        """See that there is no object. A ticket whose bytes somebody has removed is damage, and in the way."""
        while (words := self._files.peek(object_of(key))) is not None:
            with suppress(Missing):
                if attempt := _named(words):
                    self.look(f"{key}.{attempt}")
                    raise StoreConflict(f"{self.location(f'{key}.{attempt}')} exists, and objects are written once")
            if self._files.peek(object_of(key)) == words:
                self.discard(key, words)

    def renew(self, name: str) -> None:
        """Give a sign of life of an attempt."""
        self._files.write(sign_of(name), repr(self._files.now()).encode())

    def winner(self, key: str) -> str | None:
        """The attempt that is the object, empty if its ticket says nothing; None if there is no object."""
        ticket = self._files.peek(object_of(key))
        return None if ticket is None else _named(ticket)

    def sure(self, key: str) -> str:
        """The attempt that is the object. Raises Missing if there is no object."""
        if attempt := _named(self._files.read(object_of(key))):
            return attempt
        raise Missing

    def look(self, name: str) -> File:
        """The file with the bytes of an attempt. Raises Missing."""
        for file in self._find(f"{name}.img", DATA):
            return file
        raise Missing

    def size(self, name: str) -> int:
        """How many bytes of an attempt are there."""
        with suppress(Missing):
            return self.look(name).size
        return 0

    def objects(self, prefix: str) -> list[str]:
        """The keys that begin so and have a ticket."""
        return [
            match[1]
            for file in self._find(f"{prefix}*", OBJECTS)
            if (match := _NAMES[OBJECTS].fullmatch(file.name)) and match[1].startswith(prefix)
        ]

    def find(self, pattern: str) -> dict[str, dict[str, File]]:
        """Files that belong to attempts, by their names and what they are: DATA, RECORDS, ATTEMPTS or _SIGN."""
        found: dict[str, dict[str, File]] = {}
        for file in self._files.find(pattern, below=True):
            if file.folder != OBJECTS and (match := _NAMES.get(file.folder, _NOTHING).fullmatch(file.name)):
                kind = _SIGN if file.name.endswith(".alive") else file.folder
                found.setdefault(match[1], {})[kind] = file
        return found

    def location(self, name: str) -> str:
        """Where the bytes of an attempt are, as a browser can show it."""
        return f"https://{self._place.server}{self._place.url(data_of(name))}"

    def _remove(self, name: str) -> None:
        """Remove what an attempt has written, the bytes first: who has read the record then misses them."""
        for path in (data_of(name), record_of(name), sign_of(name)):
            self._files.remove(path)

    def _finish(self, key: str, ticket: str) -> None:
        """Remove what a ticket names that was the ticket of an object; whoever finds it does that."""
        named = _named(self._files.peek(ticket) or b"")
        if named and ticket != ticket_of(f"{key}.{named}") and self.winner(key) != named:
            self._remove(f"{key}.{named}")

    def _lives(self, name: str, sign: File | None) -> bool:
        """Whether an attempt has given a sign of life within a lease, by the server's clock, of which it told."""
        if sign is None:
            return False
        try:
            since = float(self._files.read(sign_of(name)))
        except Missing:
            return False
        except ValueError:
            since = sign.modified  # it is just being written, or for ever half written
        return self._files.now() - since < self._lease

    def _find(self, pattern: str, folder: str) -> list[File]:
        """Files in a folder of ours; none where it is not made yet."""
        with suppress(Missing):
            return self._files.find(pattern, folder)
        return []


def object_of(key: str) -> str:
    """The ticket of an object."""
    return f"{OBJECTS}/{key}.json"


def data_of(name: str) -> str:
    """The bytes of an attempt."""
    return f"{DATA}/{name}.img"


def record_of(name: str) -> str:
    """Its record."""
    return f"{RECORDS}/{name}.json"


def ticket_of(name: str) -> str:
    """Its ticket, until that is the object's."""
    return f"{ATTEMPTS}/{name}.json"


def sign_of(name: str) -> str:
    """Its sign of life."""
    return f"{ATTEMPTS}/{name}.alive"


def _named(ticket: bytes) -> str:
    """The attempt that a ticket names; none if somebody has spoiled it."""
    try:
        attempt = str(json.loads(ticket)["attempt"])
    except (ValueError, TypeError, KeyError):
        return ""
    return attempt if re.fullmatch(_ATTEMPT, attempt) else ""
