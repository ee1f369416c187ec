"""Images as large objects in OpenStack Swift, or in the Swift API of Ceph's gateway.

Swift has neither a rename nor a lock, and of two writers the later one wins. So an attempt writes under names of its
own, the commit is one small object that names the attempt, and who may have written it at the same moment waits until
it can be told which one stands.

    {prefix}/glimpse-store.json            the marker: whose store this is
    {prefix}/objects/{key}                 the commit: which attempt has the bytes, how many, and the record;
                                           or where they lie elsewhere in the container, if they are registered
    {prefix}/data/{key}.{attempt}          the bytes: a static large object, which any client reads as one
    {prefix}/data/{key}.{attempt}/00000000 its segments; in `segmentContainer`, if there is one
    {prefix}/data/{key}.{attempt}.alive    a sign of life while it is written (glimpse.lease); not empty in the commit
    {prefix}/data/{key}.{attempt}.record   the record, once it was replaced
    {prefix}/data/{key}.{attempt}.checkpoint and …/t000000001234567: how much is there of one that is not complete,
                                           and the end of that, where it is no whole segment
"""

import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from secrets import token_hex
from typing import ClassVar, Final
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel

from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    StoreFull,
    StoreUnavailable,
)
from glimpse.stores import Capacity, Mark, Note, Stat, Unable, Version
from glimpse.stores.swift.attempts import Attempt
from glimpse.stores.swift.checkpoints import Notes
from glimpse.stores.swift.client import Client, Headers, host
from glimpse.stores.swift.config import SwiftConfig, login
from glimpse.stores.swift.names import MARKER, Commit, Names
from glimpse.stores.swift.places import Layout, Place
from glimpse.stores.swift.resume import Left, take
from glimpse.stores.swift.segments import FLIGHTS, Aloft, Range, copy, write
from glimpse.streams import CHUNK, Reader

PROBE: Final = "glimpse-probe"


class Swift:
    """A store in a container."""

    Config: ClassVar[type[BaseModel]] = SwiftConfig
    patience: ClassVar[float] = 30.0
    """Seconds that a server may be silent; less than half a lease."""
    lease: ClassVar[float] = 120.0
    """Seconds without a sign of life after which an attempt is dead."""
    page: ClassVar[int] = 1000
    """Names in one listing."""
    every: ClassVar[int] = 64 << 20
    """Bytes between two checkpoints."""
    entries: ClassVar[int] = 1000
    """Segments in one manifest; Swift takes no more. A longer object is made of manifests of manifests."""

    def __init__(self, config: SwiftConfig, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """Logs in at the first request."""
        self._container, self._segments = config.container, config.segment_container or config.container
        self._create, self._segment = config.create_container, config.segment_size
        self._public, self._link_key = config.public_endpoint, secret.get("tempURLKey")
        self._where = f"{host(config.auth_url)}, container {config.container}"
        self._client = Client(self._where, config.region, login(config, secret), ca_bundle)
        self._client.patience = self.patience
        self._names = Names(self._client, config, self._where, lease=self.lease, page=self.page)
        self._aloft = Aloft()
        self._standing: str | None = None  # the owner, once nobody was about to write another one

    @property
    def endpoint(self) -> str:
        """Where one logs in, and the container."""
        return self._names.endpoint

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write segments and their manifest, then the small object that names them."""
        return self._make(key, attempt, lambda place: self._write(place, body), record)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read segments ahead, several at once."""
        commit = self._names.load(key)
        if commit.note:
            with self._names.others.read(commit.note.location, commit.note.version, offset, length) as placed:
                yield _Object(self._names, key, commit, placed)
            return
        left = max(commit.layout.size - offset, 0)
        place = self._names.place(f"{key}.{commit.attempt}")
        with Range(place, commit.layout, offset, left if length is None else min(left, length)) as reader:
            yield _Object(self._names, key, commit, reader)

    def put_marked(self, key: str, attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """The same with a checkpoint beside the bytes."""

        def make(ours: Attempt) -> Stat:
            notes = Notes(partial(self._names.note, ours.name), mark, self._segment, self.every)
            return ours.make(lambda: self._write(ours.place, body, notes), record, notes)

        return self._begin(key, attempt, make)

    @contextmanager
    def take(self, key: str, attempt: str, /) -> Iterator[Left | None]:
        """Have the server copy what is there, to where whoever wrote it does not write."""
        taken = take(self._names, key, attempt, self.lease)
        if taken is None:
            yield None
            return
        writer = partial(write, entries=self.entries, aloft=self._aloft)
        try:
            with Left(self._names, *taken, writer, self.every) as left:
                yield left
        finally:
            taken[0].release()

    def clone(self, source: str, key: str, attempt: str, record: bytes, going: Callable[[], None], /) -> Stat:
        """Have the server copy the segments, then write what a put writes."""
        commit = self._names.load(source)
        if commit.note:
            raise Unable  # what others may write to is no object of ours
        original = self._names.place(f"{source}.{commit.attempt}")
        return self._make(
            key, attempt, lambda place: copy(original, place, commit.layout, self.entries, going), lambda: record
        )

    def where(self, location: str, /) -> str:
        """The object."""
        return self._names.others.where(location)

    def locate(self, location: str, /) -> Version:
        """Ask for its head."""
        return self._names.others.locate(location)

    @contextmanager
    def read(self, location: str, version: Version, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read ranges of just this version, some ahead."""
        with self._names.others.read(location, version, offset, length) as reader:
            yield reader

    def register(self, key: str, attempt: str, location: str, version: Version, record: bytes, /) -> Stat:
        """Write the small object alone, which names an attempt without bytes, and the place."""

        def fill() -> Layout:
            self._names.others.check(location, version)
            return Layout(version.size, 0)

        return self._begin(key, attempt, lambda ours: ours.make(fill, lambda: record, at=Note.of(location, version)))

    def erase(self, location: str, /) -> None:
        """Remove the object, and segments that are named after it."""
        self._names.others.erase(location)

    def stat(self, key: str, /) -> Stat:
        """Read the small object."""
        return self._names.stat(key, self._names.load(key))

    def update(self, key: str, record: bytes, /) -> None:
        """Write the record beside the bytes, then say in the small object's metadata that it counts.

        The small object is never written again, so that a delete at the same time stays one.
        """
        name = f"{key}.{self._names.load(key).attempt}"
        self._names.put(f"data/{name}.record", record)
        try:
            self._names.renewed(key)
        except NotFound:
            self._names.drop(f"data/{name}.record")
            raise

    def delete(self, key: str, /) -> None:
        """Remove the small object, and then what no living attempt and no commit needs."""
        base, dot, _ = key.partition(".")
        if not dot:
            self._names.drop(f"objects/{key}")
        self._names.reap(base, key if dot else None)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Attempts are looked at first: one that is committed meanwhile is then an object."""
        attempts = self._names.attempts(prefix)
        with ThreadPoolExecutor(FLIGHTS) as pool:
            for key, stat, attempt in pool.map(self._names.look, self._names.keys(prefix)):
                attempts.pop(f"{key}.{attempt}", None)
                if stat:
                    yield stat
        for name, left in attempts.items():
            for each in self._names.segments(name):
                left.size += each.size
                left.modified = max(left.modified, each.modified)
            yield Stat(name, left.size, self._names.location(name), left.modified, partial=True)

    def probe(self) -> Capacity:
        """Ask for quotas; and write an empty object and remove it, which takes the rights of a put."""
        aloft, rooms = self._aloft.bytes, []
        for container in {self._container: 0, self._segments: 0}:
            try:
                with suppress(StoreFull):
                    self._client.touch(container, f"{self._names.prefix}{PROBE}")
                rooms.append(_room(self._client.head(container), "container", aloft))
            except NotFound as problem:
                raise self._names.missing(container) from problem
        with suppress(Problem):  # not everybody may look at the account
            rooms.append(_room(self._client.head(), "account", aloft))
        known = [room for room in rooms if room.free is not None]
        return min(known, key=lambda room: room.free or 0) if known else rooms[0]

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker; of several who write one at once, all wait until it can be told which one stands."""
        with suppress(NotFound):
            found = self._names.owner()
            if fresh and found != self._standing:
                # it may be written over by one who began when it was not
                self._names.settle(f"{MARKER}.", lambda _: True)
                found = self._standing = self._names.owner()
            return found
        for container in {self._container: 0, self._segments: 0}:
            try:
                self._client.head(container)
            except NotFound as problem:
                if not (self._create and fresh):
                    raise self._names.missing(container) from problem
                self._client.create(container)
        if not fresh:
            raise StoreUnavailable(
                f"{self._where} has no {self._names.prefix}{MARKER}, which was there before: was it emptied, "
                "or is another one mounted in its place?"
            )
        word = f"{MARKER}.{token_hex(8)}"
        self._names.put(word, b"about to write")
        failure = None
        try:
            if not self._names.owned():
                failure = self._names.once(MARKER, json.dumps({"owner": owner}).encode() + b"\n", lambda: None)
        finally:
            self._names.drop(word)
        self._names.settle(f"{MARKER}.", lambda _: True)
        for each in self._names.listed(f"{MARKER}."):
            if each.age > self.lease:
                self._client.delete(self._container, each.name)
        try:
            self._standing = self._names.owner()
        except NotFound as problem:
            raise failure or StoreUnavailable(
                f"{self._where}: {self._names.prefix}{MARKER} has gone again"
            ) from problem
        return self._standing

    def link(self, key: str, seconds: float, name: str, /) -> str | None:
        """A temporary URL (TempURL). Raises InvalidConfiguration unless the Secret has the key to sign it with."""
        if not self._public:
            return None
        if not self._link_key:
            raise InvalidConfiguration(
                f"{self._where}: the Secret has no `tempURLKey`, the Temp-URL-Key of the account or the container"
            )
        commit = self._names.load(key)
        if commit.note:
            return None
        place = f"{self._names.prefix}data/{key}.{commit.attempt}"
        path = f"{urlsplit(self._client.url()).path.rstrip('/')}/{quote(self._container)}/{quote(place)}"
        expires = int(time.time() + seconds)
        signed = hmac.new(self._link_key.encode(), f"GET\n{expires}\n{path}".encode(), "sha256").hexdigest()
        query = urlencode({"temp_url_sig": signed, "temp_url_expires": expires, "filename": name})
        return f"{self._public}{path}?{query}"

    @classmethod
    def preload(cls) -> None:
        """The requests and the logins."""
        with suppress(ImportError):
            for name in (
                "keystoneauth1.session",
                "keystoneauth1.identity.v3",
                "swiftclient.authv1",
                "swiftclient.client",
            ):
                import_module(name)

    # Committing

    def _make(self, key: str, attempt: str, fill: Callable[[Place], Layout], record: Callable[[], bytes]) -> Stat:
        """An object of the bytes that `fill` writes to the place that it is given."""
        return self._begin(key, attempt, lambda ours: ours.make(lambda: fill(ours.place), record))

    def _begin(self, key: str, attempt: str, make: Callable[[Attempt], Stat]) -> Stat:
        self._names.refuse(key)
        self._names.reap(key)
        ours = Attempt(self._names, key, attempt, self.lease)
        try:
            ours.begin()
            return make(ours)
        finally:
            ours.release()

    def _write(self, place: Place, body: Reader, notes: Notes | None = None) -> Layout:
        try:
            return write(place, body, self._segment, self.entries, self._aloft, notes)
        except NotFound as problem:
            raise self._names.missing(self._segments) from problem


class _Object:
    """A Reader over an object, which knows what it means if its bytes are gone."""

    def __init__(self, names: Names, key: str, commit: Commit, reader: Reader) -> None:
        self._names, self._key, self._commit, self._reader = names, key, commit, reader
        self.size = reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        try:
            return self._reader.read(n)
        except NotFound as problem:
            if self._names.load(self._key).attempt != self._commit.attempt:
                raise
            raise DataLost(f"bytes of {self._names.location(self._key)} are gone; fetch the image anew") from problem


def _room(headers: Headers, what: str, aloft: int) -> Capacity:
    quota, used = headers.get(f"x-{what}-meta-quota-bytes") or "", int(headers.get(f"x-{what}-bytes-used", 0)) + aloft
    if not quota.isdigit():
        return Capacity(None, used, None)
    total = int(quota)
    return Capacity(total, min(used, total), max(total - used, 0))
