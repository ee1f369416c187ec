"""Images in a bucket of Amazon S3, or of a server that speaks as it does: Ceph's gateway, MinIO, Swift and others.

A bucket has no rename, so the commit is an object of its own: it names the attempt whose bytes are the image, and
whoever looks goes by it. Bytes, the sign of life of whoever writes them and a later record lie together, so that one
listing shows all that there is of a key.

    glimpse-store.json                      the marker: whose store this is
    glimpse-store.json.{token}.alive        there for a moment, while the marker is written
    objects/{key}                           two lines of JSON, {attempt, size} and the record: complete, verified;
                                            {at} besides: the bytes are registered, and lie elsewhere in the bucket
    data/{key}.{attempt}                    the bytes
    data/{key}.{attempt}.alive              renewed while the attempt lives; not empty while it commits
    data/{key}.{attempt}.record             the record, if it was replaced since

Not every server keeps `If-None-Match: *` where two write at once (Swift lets both succeed), some ignore it, and
`If-Match` and conditional deletes are rarer still. So it is sent, but nothing rests on it: who wants to commit says
so, and goes on only if a listing shows nobody else who does (of two at least one sees the other). A record that is
replaced has a name of its own attempt, so a late writer can bring nothing back that was deleted.

The driver is longer than others, as here it is the client that must do what a server with a rename does.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar, Final
from urllib.parse import quote

from pydantic import BaseModel

from glimpse.lease import Lease
from glimpse.problems import DataLost, NotFound, Problem, StoreConflict, StoreUnavailable
from glimpse.stores import RECORD_LIMIT, Capacity, Note, Stat, Unable, Version
from glimpse.stores.s3 import places
from glimpse.stores.s3.bucket import BYTES, Bucket, Listed, Upload, age
from glimpse.stores.s3.client import TOKEN_FILES, Keys, Place, preload
from glimpse.stores.s3.config import S3Config
from glimpse.stores.s3.moves import copy, fetch, send
from glimpse.stores.s3.parts import AT_ONCE, ahead
from glimpse.stores.s3.turns import ALIVE, Mark
from glimpse.streams import Reader

MARKER: Final = "glimpse-store.json"
OBJECTS: Final = "objects/"
DATA: Final = "data/"
RECORD: Final = ".record"
PROBE: Final = "glimpse-probe"

_KEY: Final = re.compile(r"[0-9a-z-]+")
_NAME: Final = re.compile(r"([0-9a-z-]+\.[0-9a-z]+)(\.alive|\.record)?")
_HEAD_LIMIT: Final = 8 << 10
"""Bytes of the first line of a commit, and of a marker."""
LONGEST_LINK: Final = 7 * 24 * 3600
"""Seconds; no server takes more."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What an object in `objects` says: which attempt has written the image."""

    key: str
    attempt: str
    size: int
    record: bytes
    modified: float = 0.0
    note: Note | None = None
    """Of what is registered: the attempt has no bytes then."""

    @property
    def name(self) -> str:
        """Of the attempt."""
        return f"{self.key}.{self.attempt}"

    @property
    def place(self) -> str:
        """Where they are."""
        return self.note.location if self.note else DATA + self.name

    def content(self) -> bytes:
        """As it is stored."""
        said: dict[str, Any] = {"attempt": self.attempt, "size": self.size}
        said |= {"at": self.note.model_dump(exclude_none=True)} if self.note else {}
        return json.dumps(said).encode() + b"\n" + self.record


class S3:
    """A store in a bucket."""

    Config: ClassVar[type[BaseModel]] = S3Config

    lease: ClassVar[float] = 120.0
    """Seconds after which an attempt that gives no sign of life is dead."""
    patience: ClassVar[float] = 30.0
    """Seconds that a silent server is waited for; less than half a lease."""
    page: ClassVar[int] = 1000
    """Names in one answer to a listing."""
    whole: ClassVar[int] = 5 << 30
    """Bytes that the server copies in one request, at most; Amazon's limit."""
    piece: ClassVar[int] = 64 << 20
    """Bytes of a part that it copies; so many that each is answered before patience ends."""

    def __init__(self, config: S3Config, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """`secret` has keys, or is empty: then the pod or the machine says who it is."""
        self._keys = Keys.of(secret)
        region = config.region or "us-east-1"
        expires = bool(self._keys and self._keys.token)
        place = Place(config.endpoint, region, config.bucket, config.addressing, self.patience, expires)
        public = replace(place, endpoint=config.public_endpoint) if config.public_endpoint else None
        self._prefix = f"{config.prefix}/" if config.prefix else ""
        self._bucket = Bucket(place, self._prefix, self._keys, ca_bundle, self.page)
        self._public = Bucket(public, self._prefix, self._keys, ca_bundle, self.page) if public else None
        self._part_size, self._create = config.part_size, config.create_bucket

    @property
    def endpoint(self) -> str:
        """The server and the bucket."""
        place = self._bucket.place
        server = place.endpoint or f"https://s3.{place.region}.amazonaws.com"
        return f"{server.rstrip('/')}/{place.bucket}/{quote(self._prefix)}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Send the bytes, then write the object that names the attempt."""
        return self._make(key, attempt, lambda name: send(self._bucket, name, body, self._part_size), record)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read ranges, some ahead."""
        commit = self._read(key)
        with ahead(partial(self._fetch, commit), commit.size, offset, length) as reader:
            yield reader

    def link(self, key: str, seconds: float, name: str, /) -> str | None:
        """A signed URL of the bytes, at the address that clients know."""
        public, commit = self._public, self._read(key)
        if not public or commit.note:
            return None
        where = {
            "Bucket": public.name,
            "Key": public.at(commit.place),
            "ResponseContentType": BYTES,
            "ResponseContentDisposition": f'attachment; filename="{name}"',
        }
        life = max(1, min(int(seconds), LONGEST_LINK))
        return public.ask(lambda s3: s3.generate_presigned_url("get_object", Params=where, ExpiresIn=life))

    def clone(self, source: str, key: str, attempt: str, record: bytes, going: Callable[[], None], /) -> Stat:
        """Have the server copy the bytes, then write the object that names the attempt."""
        original = self._read(source)
        if original.note:
            raise Unable  # what others may write to is no object of ours

        def fill(name: str) -> int:
            copy(self._bucket, original.place, name, original.size, whole=self.whole, piece=self.piece, going=going)
            return original.size

        return self._make(key, attempt, fill, lambda: record)

    def where(self, location: str, /) -> str:
        """The object."""
        return self._bucket.url(location)

    def locate(self, location: str, /) -> Version:
        """Ask for its head."""
        return places.locate(self._bucket, location)

    @contextmanager
    def read(self, location: str, version: Version, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read ranges of just this version, some ahead."""
        with ahead(partial(fetch, self._bucket, location, version), version.size, offset, length) as reader:
            yield reader

    def register(self, key: str, attempt: str, location: str, version: Version, record: bytes, /) -> Stat:
        """Write the object that names an attempt, which has no bytes, and the place."""

        def fill(_name: str) -> int:
            places.check(self._bucket, location, version)
            return version.size

        return self._make(key, attempt, fill, lambda: record, Note.of(location, version))

    def erase(self, location: str, /) -> None:
        """Remove the object."""
        with suppress(NotFound):
            self._bucket.erase(places.named(self._bucket, location))

    def stat(self, key: str, /) -> Stat:
        """Read the object that names the attempt, and the record if there is a newer one."""
        return self._stat(self._read(key))

    def update(self, key: str, record: bytes, /) -> None:
        """Write the record beside the bytes; if those are deleted meanwhile, nobody ever looks at it."""
        name = self._read(key).name
        self._bucket.write(DATA + name + RECORD, record)
        found = self._found(key)
        if not found or found.name != name:
            self._bucket.erase(DATA + name + RECORD)
            raise NotFound(f"{self._location(name)} was deleted meanwhile")

    def delete(self, key: str, /) -> None:
        """Remove the object that names the attempt first, so that the image is gone at once and whole."""
        base, dot, _ = key.partition(".")
        if not dot and (found := self._found(key)):
            self._bucket.erase(OBJECTS + key)
            self._bucket.erase(*(DATA + found.name + kind for kind in ("", RECORD, ALIVE)))
        self._reap(base, only=key if dot else None)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Attempts first, so that one that is committed meanwhile is not missed; names that are not ours are."""
        attempts: dict[str, Stat] = {}
        replaced = set()
        for listed, name, kind in self._parts(prefix):
            if kind == RECORD:
                replaced.add(name)
            if not kind or name not in attempts:
                attempts[name] = self._partial(name, 0 if kind else listed.size, listed.modified)
        for upload, name in self._uploads(prefix):
            attempts.setdefault(name, self._partial(name, 0, upload.begun))
        names = (listed.name.removeprefix(OBJECTS) for listed in self._bucket.listed(OBJECTS + prefix))
        keys = (name for name in names if _KEY.fullmatch(name))
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="list") as pool:
            while batch := list(islice(keys, self.page)):
                for commit in filter(None, pool.map(self._found, batch)):
                    attempts.pop(commit.name, None)
                    yield self._stat(commit) if commit.name in replaced else self._stat_of(commit)
        yield from attempts.values()

    def probe(self) -> Capacity:
        """Begin an upload and abort it, which takes the rights of a put and leaves nothing. A bucket has no size."""
        self._bucket.abort(self._bucket.begin(PROBE))
        return Capacity(None, None, None)

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker; where there is none, one at a time may write it."""
        if fresh and self._create:
            self._bucket.make()
        if (found := self._owner()) is not None:
            return found
        if not fresh:
            raise StoreUnavailable(
                f"{self._location()} has no {MARKER}, which was there before: as with a volume that is not mounted "
                "nothing in it is believed; name the right bucket, or restore the marker"
            )
        mark = Mark(self._bucket, f"{MARKER}.{token_hex(8)}{ALIVE}", self.lease)
        try:
            with suppress(StoreConflict):
                mark.take_turn(f"{MARKER}.", lambda: self._owner() is not None)
                self._bucket.write(MARKER, json.dumps({"owner": owner}).encode() + b"\n", once=True)
        finally:
            with suppress(Problem):
                self._bucket.erase(mark.name)
        found = self._owner()
        if found is None:
            raise StoreUnavailable(f"{self._location()}: {MARKER} is gone as soon as it is written")
        return found

    def folders(self) -> tuple[str, ...]:
        """Where the pod's token lies, if that is who we are; with keys of our own, nothing."""
        if self._keys:
            return ()
        return tuple(str(Path(file).parent) for name in TOKEN_FILES if (file := os.environ.get(name)))

    @classmethod
    def preload(cls) -> None:
        """The library takes half a second to import."""
        preload()

    # Bytes

    def _make(
        self, key: str, attempt: str, fill: Callable[[str], int], record: Callable[[], bytes], note: Note | None = None
    ) -> Stat:
        """An object of what `fill` writes under the name that it is given; it says how much that was.

        With a `note` it writes nothing.
        """
        name = f"{key}.{attempt}"
        self._refuse_second(key)
        self._reap(key, mine=name)
        mark = Mark(self._bucket, DATA + name + ALIVE, self.lease)
        try:
            with Lease(mark.write, self.lease) as lease:
                size = fill(DATA + name)
                commit = Commit(key, attempt, size, record(), note=note)
                self._commit(commit, mark, lease)
            # The mark goes before the last look: whoever deletes the key is seen by it, or sees nothing alive.
            with suppress(Problem):
                self._bucket.erase(DATA + name + ALIVE)
            return self._stat_of(self._look_again(commit))
        except BaseException:
            if not mark.unsure:
                with suppress(Problem):
                    self._discard(name)
            raise

    def _fetch(self, commit: Commit, part: tuple[int, int], over: threading.Event) -> Sequence[bytes]:
        """The bytes of a range of an object. Raises NotFound if it was deleted, DataLost if it has lost them."""
        try:
            return fetch(self._bucket, commit.place, commit.note.version if commit.note else None, part, over)
        except NotFound:
            found = self._found(commit.key)
            if found and found.name == commit.name:
                raise DataLost(f"{self._bucket.url(commit.place)} is gone, and was not deleted by us") from None
            raise

    # The commit

    def _commit(self, commit: Commit, mark: Mark, lease: Lease) -> None:
        """Give the key to an attempt. From here on a lost answer leaves it open whether it has the key."""
        mark.take_turn(f"{DATA}{commit.key}.", lambda: self._found(commit.key) is not None)
        lease.check()
        mark.unsure = True
        try:
            self._bucket.write(OBJECTS + commit.key, commit.content(), once=True)
        except StoreUnavailable:
            found = self._found(commit.key)
            if not found or found.name != commit.name:
                raise  # it may still arrive: the bytes stay until nobody can think so any more
        except Problem:
            mark.unsure = False
            raise

    def _look_again(self, commit: Commit) -> Commit:
        """The commit as it is in the bucket; it was told to have arrived."""
        try:
            found = self._found(commit.key)
        except Problem:
            return replace(commit, modified=time.time())
        if found and found.name == commit.name:
            return found
        with suppress(Problem):
            self._discard(commit.name)  # whoever deleted it may have taken us for alive
        raise StoreConflict(f"{self._location(commit.name)} was deleted as soon as it was there")

    def _refuse_second(self, key: str) -> None:
        if found := self._found(key):
            raise StoreConflict(f"{self._location(found.name)} exists, and objects are written once")

    # The dead

    def _reap(self, key: str, *, mine: str | None = None, only: str | None = None) -> None:
        """Remove what dead attempts on `key` have left, or one of them; `mine` is dead, since it is about to begin."""
        marks: dict[str, Listed | None] = {}
        for listed, name, kind in self._parts(f"{key}."):
            marks[name] = listed if kind == ALIVE else marks.get(name)
        for _, name in self._uploads(f"{key}."):
            marks.setdefault(name, None)
        dead = [
            name
            for name, listed in marks.items()
            if only in {None, name} and (name == mine or not self._alive(name, listed))
        ]
        if not dead:
            return
        found = self._found(key)  # after the signs of life: one that has ended well since is named by it
        for name in dead:
            if found and found.name == name:
                self._bucket.erase(DATA + name + ALIVE)
            else:
                self._discard(name)

    def _alive(self, name: str, listed: Listed | None) -> bool:
        """Whether the attempt has given a sign of life. Listings may be late: death is believed of the mark alone."""
        if listed and listed.age < self.lease:
            return True
        try:
            head = self._bucket.head(DATA + name + ALIVE)
        except NotFound:
            return False
        return age(head, head["LastModified"]) < self.lease

    def _discard(self, name: str) -> None:
        """Remove all of an attempt, the sign of life last."""
        for upload, found in self._uploads(name):
            if found == name:
                self._bucket.abort(upload)
        self._bucket.erase(*(DATA + name + kind for kind in ("", RECORD, ALIVE)))

    # Small objects

    def _found(self, key: str) -> Commit | None:
        try:
            return self._read(key)
        except NotFound:
            return None

    def _read(self, key: str) -> Commit:
        content, modified = self._bucket.load(OBJECTS + key, _HEAD_LIMIT + RECORD_LIMIT)
        head, _, record = content.partition(b"\n")
        try:
            said = json.loads(head)
            note = Note.model_validate(said["at"]) if "at" in said else None
            return Commit(key, str(said["attempt"]), int(said["size"]), record, modified, note)
        except (ValueError, TypeError, KeyError):
            raise StoreUnavailable(f"{self._location()}{OBJECTS}{key} was not written by us; remove it") from None

    def _owner(self) -> str | None:
        try:
            return str(json.loads(self._bucket.load(MARKER, _HEAD_LIMIT)[0])["owner"])
        except NotFound:
            return None
        except (ValueError, TypeError, KeyError):
            raise StoreUnavailable(
                f"{self._location()}{MARKER} cannot be read; it is a JSON object with the member `owner`: restore it"
            ) from None

    # Listings

    def _parts(self, prefix: str) -> Iterator[tuple[Listed, str, str]]:
        """Whatever attempts have written, in one request: with the attempt's name, and which part of it this is."""
        for listed in self._bucket.listed(DATA + prefix):
            if match := _NAME.fullmatch(listed.name.removeprefix(DATA)):
                yield listed, match[1], match[2] or ""

    def _uploads(self, prefix: str) -> Iterator[tuple[Upload, str]]:
        """Uploads in parts of attempts, with the attempt's name."""
        for upload in self._bucket.uploads(DATA + prefix):
            match = _NAME.fullmatch(upload.name.removeprefix(DATA))
            if match and not match[2]:
                yield upload, match[1]

    # Names

    def _stat(self, commit: Commit) -> Stat:
        record = commit.record
        with suppress(NotFound):
            record, _ = self._bucket.load(DATA + commit.name + RECORD, RECORD_LIMIT)
        return self._stat_of(replace(commit, record=record))

    def _stat_of(self, commit: Commit) -> Stat:
        return Stat(commit.key, commit.size, self._bucket.url(commit.place), commit.modified, commit.record)

    def _partial(self, name: str, size: int, modified: datetime) -> Stat:
        return Stat(name, size, self._location(name), modified.timestamp(), partial=True)

    def _location(self, name: str | None = None) -> str:
        return self._bucket.url(DATA + name if name else "")
