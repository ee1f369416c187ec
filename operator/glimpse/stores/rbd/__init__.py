"""Images as RBD images in a pool of Ceph: what virtual machines there start from, as clones that cost nothing.

RBD has no rename that is one step, but a directory of names that changes in one: an image is there under the name that
the directory says, and under no other. So an attempt fills an image under a name of its own, and the change of its
name in the directory is the commit.

    glimpse-store             the marker, an object: whose store this is; and which clones have no sign of ours yet
    {key}                     an image, complete and verified, with the protected snapshot `snap`
    {key}.{attempt}           being written: alive while somebody watches it, as everybody does who has it open
    glimpse.record            among the metadata of an image: what it is; `glimpse.size`: how many bytes
    glimpse.checkpoint        up to where another attempt may go on
    glimpse.at                the bytes are registered, and lie in an image of others: this one is empty

Who takes a dead attempt over, or removes it, breaks its lock; Ceph then shuts the client out that had it, wherever that
client still is, so nobody writes to what is no longer his.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Final

from pydantic import BaseModel

from glimpse.api.base import parse_quantity
from glimpse.ceph import LIBRARIES, Pool, Range, is_key, open_image
from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreRefused,
    StoreUnavailable,
)
from glimpse.stores import Capacity, Mark, Note, Stat, Unable, Version
from glimpse.stores.rbd import conf
from glimpse.stores.rbd.attempts import SNAPSHOT, Attempt, Notes, checkpoint, close, open_to_read
from glimpse.stores.rbd.clones import DEEPEST, Origin
from glimpse.stores.rbd.cluster import AT, CHECKPOINT, LAYERS, MARKER, RECORD, SIZE, STORED, Cluster, Header
from glimpse.stores.rbd.conf import Known
from glimpse.stores.rbd.config import RBDConfig
from glimpse.stores.rbd.names import Names
from glimpse.stores.rbd.pipe import Growing
from glimpse.stores.rbd.room import Room
from glimpse.streams import CHUNK, HOLE, Reader

_FEATURES: Final = ("LAYERING", "EXCLUSIVE_LOCK", "OBJECT_MAP", "FAST_DIFF", "DEEP_FLATTEN")
"""Those that images have by default."""


class RBD:
    """A store in a pool."""

    Config: ClassVar[type[BaseModel]] = RBDConfig
    hole: ClassVar[int] = HOLE
    libraries: ClassVar[Mapping[str, str]] = LIBRARIES

    patience: ClassVar[float] = 30.0
    """Seconds that one request to the cluster may take."""
    page: ClassVar[int] = 1000
    """Names that are asked for at once."""
    settling: ClassVar[float] = 10.0
    """Seconds after which a full pool has noticed that something was removed: OSDs look at that now and then."""
    boot_format: ClassVar[str] = "raw"
    """A hypervisor reads an image as a disk, whatever is in it."""

    def __init__(self, config: RBDConfig, secret: Mapping[str, str], _ca_bundle: str | None, /) -> None:
        """The names in the Secret are those that ceph-csi uses. Ceph has no certificates."""
        user = config.user or secret.get("userID")
        if not user:
            raise InvalidConfiguration("rbd.user is missing, and the Secret has no key userID either; set one of them")
        if not secret.get("userKey"):
            raise SecretNotReadable(
                f"the Secret of the store has no key userKey; it is what `ceph auth get-key client.{user}` prints"
            )
        if not is_key(secret["userKey"]):
            raise SecretNotReadable("the key userKey of the Secret is no key of Ceph; copy it from `ceph auth get-key`")
        if bool(config.monitors) == bool(config.config_ref):
            raise InvalidConfiguration("set exactly one of rbd.monitors and rbd.configRef")
        known = Known(config.monitors, None) if config.monitors else conf.read(secret)
        self._config, self._monitor = config, known.monitors[0]
        self._block = parse_quantity(config.object_size)
        self._cluster = Cluster(
            known,
            config.pool,
            config.namespace or "",
            user=user,
            key=secret["userKey"],
            patience=self.patience,
            page=self.page,
        )
        self._names = Names(self._cluster, snapshot=config.snapshot, patience=self.patience, settling=self.settling)

        self._room = Room(self.settling)

    @property
    def endpoint(self) -> str:
        """The first monitor and the pool."""
        return f"rbd://{self._monitor}/{self._cluster.place}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Fill an image of this attempt, then give it the name."""
        return self._put(key, attempt, None, body, record)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the snapshot, or the image if it has none."""
        pool = self._cluster.open()
        border = partial(self._cluster.border, self._names.location(pool, key))
        with border():
            stored, header = self._names.stored(pool, key)
        if note := header.note:
            lost = partial(self._lost, pool, key, stored, note)
            with (
                lost(),
                self._names.others.read(pool, note.location, note.version, offset, length) as placed,
            ):
                yield _Registered(placed, lost)
            return
        with border():
            image = open_to_read(pool, stored)
        try:
            with border():
                left = max(image.size() - offset, 0)
            left = left if length is None else min(left, length)

            def confirm(_last: bool) -> None:
                if self._cluster.find(pool, key) != stored:
                    raise NotFound("the image was removed while it was read")

            reader = Range(image, offset, left, self._block, border=border, confirm=confirm, patience=self.patience)
            try:
                yield reader
            finally:
                reader.close()
        finally:
            close(image)

    def stat(self, key: str, /) -> Stat:
        """Look at the header."""
        pool = self._cluster.open()
        where = self._names.location(pool, key)
        with self._cluster.border(where):
            header = self._names.stored(pool, key)[1]
            return header.stat(key, self._names.place(pool, key, header))

    def update(self, key: str, record: bytes, /) -> None:
        """Replace one of the image's metadata, which is one step."""
        pool = self._cluster.open()
        where = self._names.location(pool, key)
        with self._cluster.border(where):
            stored, _ = self._names.stored(pool, key)
            with open_image(pool.io, image_id=stored) as image:
                image.metadata_set(RECORD, record.decode())
            if self._cluster.find(pool, key) != stored:
                raise NotFound(f"{where} does not exist")

    def delete(self, key: str, /) -> None:
        """Move the image into RBD's trash, so that it is gone at once and whole, then remove it from there."""
        pool = self._cluster.open()
        with self._cluster.border():
            if "." not in key:
                self._names.withdraw(pool, key)
            self._names.reap(pool, key)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """By the directory and the trash."""
        pool = self._cluster.open()
        with self._cluster.border():
            yield from self._names.list(pool, prefix)

    def put_marked(self, key: str, attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """The same with checkpoints among the metadata."""
        return self._put(key, attempt, mark, body, record)

    @contextmanager
    def take(self, key: str, attempt: str, /) -> Iterator["_Left | None"]:
        """Break the lock of the dead, and give the image another name."""
        pool = self._cluster.open()
        with self._cluster.border():
            found = self._names.take(pool, key, f"{key}.{attempt}")
        left = _Left(self, pool, key, *found) if found else None
        try:
            yield left
        finally:
            if left:
                left.attempt.release()

    def clone(self, source: str, key: str, attempt: str, record: bytes, _going: Callable[[], None], /) -> Stat:
        """Make a clone of the snapshot, which is an attempt until it has its own."""
        pool = self._cluster.open()
        with self._cluster.border():
            image, header = self._names.stored(pool, source)
            if self._config.snapshot and header.layers < DEEPEST and not header.note:
                origin = Origin(self._cluster, pool, source, image)
                # RBD clones nothing that is empty
                make, layers = (origin.clone, header.layers + 1) if header.size else (partial(self._create, pool), 0)
                with self._names.attempt(pool, key, attempt, make) as ours:
                    if layers:
                        origin.confirm(ours)
                    made = self._describe(ours.image, ours.image.size(), record, layers)
                    ours.sign()
                    self._cluster.grown(pool, (ours.name,))
                    self._names.commit(pool, key, ours)
                return made.stat(key, self._names.location(pool, key))
        raise Unable

    def where(self, location: str, /) -> str:
        """The image, or its snapshot."""
        return self._names.others.where(self._cluster.open(), location)

    def locate(self, location: str, /) -> Version:
        """Look at its header."""
        return self._names.others.locate(self._cluster.open(), location)

    @contextmanager
    def read(self, location: str, version: Version, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the snapshot, or the image that nobody writes to."""
        with self._names.others.read(self._cluster.open(), location, version, offset, length) as reader:
            yield reader

    def register(self, key: str, attempt: str, location: str, version: Version, record: bytes, /) -> Stat:
        """Make an empty image that says where the bytes are, and give it the name."""
        pool = self._cluster.open()
        with self._names.attempt(pool, key, attempt, partial(self._create, pool)) as ours, self._cluster.border():
            ours.sign()
            made = self._describe(ours.image, version.size, record, at=Note.of(location, version))
            self._names.others.check(pool, location, version)
            self._names.commit(pool, key, ours)
        return made.stat(key, self._names.place(pool, key, made))

    def erase(self, location: str, /) -> None:
        """Remove the snapshot that is named, or else the image."""
        pool = self._cluster.open()
        with self._cluster.border():
            self._names.others.erase(pool, location)

    @contextmanager
    def _lost(self, pool: Pool, key: str, stored: str, note: Note) -> Iterator[None]:
        """Around what reads registered bytes: if they are not there they are lost, unless the registration went too."""
        try:
            yield
        except (NotFound, StoreRefused) as problem:
            if self._cluster.find(pool, key) != stored:
                raise
            raise DataLost(f"the bytes were registered at {note.location}: {problem.message}") from problem

    def probe(self) -> Capacity:
        """Write to the marker what is there, and ask for the room."""
        pool = self._cluster.open()
        with self._cluster.border():
            self._cluster.touch(pool, MARKER)
            return self._room.left(self._cluster.room(pool))

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker, an object that is created only if there is none."""
        pool = self._cluster.open()
        with self._cluster.border():
            line = self._cluster.read(pool, MARKER)
            if line is None and not fresh:
                raise StoreUnavailable(
                    f"the pool {self._cluster.place} has no object {MARKER}, which was there before: is another "
                    "cluster or pool mounted in its place?"
                )
            if line is None:
                self._cluster.create(pool, MARKER, json.dumps({"owner": owner}).encode())
                self._cluster.prepare(pool)
                line = self._cluster.read(pool, MARKER)
            try:
                return str(json.loads(line or b"")["owner"])
            except (ValueError, TypeError, KeyError):
                raise StoreUnavailable(
                    f"the object {MARKER} in {self._cluster.place} cannot be read; it is a JSON object with the member "
                    "`owner`: restore it"
                ) from None

    def _put(self, key: str, name: str, mark: Mark | None, body: Reader, record: Callable[[], bytes]) -> Stat:
        pool = self._cluster.open()
        with self._names.attempt(pool, key, name, partial(self._create, pool)) as attempt:
            with self._cluster.border():
                attempt.sign()
            return self._fill(pool, key, attempt, 0, mark, body, record)

    def _create(self, pool: Pool, name: str) -> None:
        import rbd

        features = sum(getattr(rbd, f"RBD_FEATURE_{feature}") for feature in _FEATURES)
        order = self._block.bit_length() - 1
        rbd.RBD().create(pool.io, name, 0, order=order, old_format=False, features=features)

    def resume(self, left: "_Left", length: int, mark: Mark, body: Reader, record: Callable[[], bytes]) -> Stat:
        """Go on with an attempt that `take` gave. Whatever happens, no other byte is believed."""
        attempt = left.attempt.share()
        try:
            with self._cluster.border():
                self._names.check_free(left.pool, left.key)
                if length < left.length:
                    checkpoint(attempt.image, length, left.mark)
                attempt.image.resize(length)  # or what is behind would show through what is left out
            return self._fill(left.pool, left.key, attempt, length, mark, body, record)
        finally:
            attempt.release()

    def open_left(self, left: "_Left") -> Reader:
        """Read what `take` gave."""
        return Range(
            left.attempt.image,
            0,
            left.length,
            self._block,
            border=self._cluster.border,
            confirm=lambda _: None,
            patience=self.patience,
        )

    def _fill(  # noqa: PLR0917 - the two who call it have the same
        self,
        pool: Pool,
        key: str,
        attempt: Attempt,
        start: int,
        mark: Mark | None,
        body: Reader,
        record: Callable[[], bytes],
    ) -> Stat:
        """Write an attempt to its end and commit it. What `body` and `record` raise comes out as it is."""
        hint = None if body.size is None else start + body.size
        pipe = Growing(attempt.image, start, self._block, self._cluster.problem, patience=self.patience, hint=hint)
        notes = Notes(attempt.image, pipe, mark)
        try:
            with self._room.writing(pipe):
                while True:
                    with notes.ending():
                        chunk = body.read(CHUNK)
                        if not chunk:
                            line = record()
                            break
                    with self._cluster.border():
                        pipe.write(chunk)
                        notes.passed()
                with self._cluster.border():
                    pipe.finish()
            with self._cluster.border():
                header = self._describe(attempt.image, pipe.passed, line)
                self._names.commit(pool, key, attempt)
        except BaseException:
            attempt.doomed = not notes.kept
            with suppress(Problem):
                pipe.settle()
            raise
        return header.stat(key, self._names.location(pool, key))

    def _describe(self, image: Any, size: int, line: bytes, layers: int = 0, at: Note | None = None) -> Header:
        """All that an image has to say of itself, and the snapshot; none of what is registered `at` a place."""
        import rbd

        meta = {RECORD: line.decode(), SIZE: str(size), STORED: str(time.time())}
        meta |= ({LAYERS: str(layers)} if layers else {}) | ({AT: at.line()} if at else {})
        for name, value in meta.items():
            image.metadata_set(name, value)
        with suppress(KeyError):
            image.metadata_remove(CHECKPOINT)
        if self._config.snapshot and at is None:
            image.create_snap(SNAPSHOT, rbd.RBD_SNAP_CREATE_SKIP_QUIESCE)
            image.protect_snap(SNAPSHOT)
        return Header(size, 0.0, meta)


class _Registered:
    """A Reader over registered bytes, which knows what it means if they are gone."""

    def __init__(self, reader: Reader, lost: Callable[[], AbstractContextManager[None]]) -> None:
        self._reader, self._lost = reader, lost
        self.size = reader.size

    def read(self, n: int = CHUNK, /) -> bytes:
        with self._lost():
            return self._reader.read(n)


class _Left:
    """What a dead attempt has left, in our hands."""

    def __init__(  # noqa: PLR0917 - one place makes it
        self, store: RBD, pool: Pool, key: str, attempt: Attempt, length: int, mark: bytes
    ) -> None:
        self._store = store
        self.pool, self.key, self.attempt, self.length, self.mark = pool, key, attempt, length, mark

    def open(self) -> Reader:
        return self._store.open_left(self)

    def resume(self, length: int, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        return self._store.resume(self, length, mark, body, record)
