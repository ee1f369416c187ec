"""Ceph as the driver sees it: one connection, the directory of images, what a header says, and its errors as Problems.

An image is opened in some 10 ms and read at a glance in 0.2: so whether it is there, its record and its size are read
from the objects in which RBD (image format 2) keeps them, with one request, and all at the same moment.
"""

import errno
import json
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from glimpse.ceph import Pool
from glimpse.problems import NotFound, Problem, StoreConflict, StoreFull, StoreUnauthorized, StoreUnavailable
from glimpse.stores import Capacity, Note, Stat
from glimpse.stores.rbd.conf import Known

_DIRECTORY: Final = "rbd_directory"  # omap: name_{name of an image} -> its id
_HEADER: Final = "rbd_header."  # and its id; omap: size, timestamps, metadata_{key}
_ID: Final = "rbd_id."  # and its name: its id, for whoever opens it by name
_TRASH: Final = "rbd_trash"

MARKER: Final = "glimpse-store"
"""An object: whose the pool is; omap: names of clones that have no sign of ours yet."""

RECORD: Final = "glimpse.record"
SIZE: Final = "glimpse.size"
STORED: Final = "glimpse.stored"
CHECKPOINT: Final = "glimpse.checkpoint"
ATTEMPT: Final = "glimpse.attempt"
LAYERS: Final = "glimpse.layers"
"""How many images it lies on, as a clone of a clone."""
AT: Final = "glimpse.at"
"""Where the bytes are of what is registered: the image has none then."""
IMAGE: Final = "glimpse.image"
"""The id of the image that the others speak of: a clone has the metadata of what it was cloned from."""
_KEYS: Final = (
    "size",
    "modify_timestamp",
    *(f"metadata_{key}" for key in (RECORD, SIZE, STORED, CHECKPOINT, ATTEMPT, LAYERS, IMAGE, AT)),
)

_MISMATCH: Final = 4095
"""The first of the errors that tell where what was compared begins to differ; the library has no class for it."""
_GONE: Final = {errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.EIO}


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself."""

    room: int
    """Bytes that it has room for."""
    modified: float
    """Seconds since the epoch."""
    meta: Mapping[str, str]
    """Of our own keys, those that are there and speak of this image."""

    @property
    def ours(self) -> bool:
        """Whether a store made it; an attempt that was killed at once has no sign yet, but no byte either."""
        return bool(self.meta) or self.room == 0

    @property
    def complete(self) -> bool:
        """Whether it has all that an object has."""
        return RECORD in self.meta and SIZE in self.meta

    @property
    def size(self) -> int:
        """Bytes of an object."""
        return int(self.meta[SIZE])

    @property
    def note(self) -> Note | None:
        """Of what is registered. Raises StoreUnavailable if it cannot be read."""
        if AT not in self.meta:
            return None
        try:
            return Note.model_validate_json(self.meta[AT])
        except ValidationError:
            raise StoreUnavailable(f"{AT} in the metadata of an image cannot be read; delete the image") from None

    @property
    def layers(self) -> int:
        """How many images it lies on."""
        return int(self.meta.get(LAYERS, 0))

    def stat(self, key: str, location: str, *, partial: bool = False) -> Stat:
        """As the contract says it."""
        record = self.meta[RECORD].encode() if RECORD in self.meta else None
        size = self.room if partial else self.size
        return Stat(key, size, location, float(self.meta.get(STORED, self.modified)), record, partial)


class Cluster:
    """The way to a pool: opened when it is needed, shared by threads, opened anew after it has failed."""

    def __init__(
        self,
        known: Known,
        pool: str,
        namespace: str,
        *,
        user: str,
        key: str,
        patience: float,
        page: int,
    ) -> None:
        """`patience`: seconds that one request may take; `page`: names that are asked for at once."""
        self.pool, self.namespace = pool, namespace
        self.place = "/".join(quote(part) for part in (pool, namespace) if part)
        self._monitors, self._fsid, self._user, self._key = ",".join(known.monitors), known.fsid, user, key
        self._patience, self._page = patience, page
        self._lock = threading.Lock()
        self._open: Pool | None = None

    def open(self) -> Pool:
        """The pool. Raises StoreUnavailable, StoreUnauthorized."""
        with self._lock:
            if self._open is None:
                self._open = self._connect()
            return self._open

    def _connect(self) -> Pool:
        import rados

        with self.border():
            try:
                pool = Pool.open(
                    self.pool,
                    self._monitors,
                    user=self._user,
                    key=self._key,
                    patience=self._patience,
                    enter=self._enter,
                )
            except (rados.PermissionError, rados.PermissionDeniedError):
                raise StoreUnauthorized(
                    f"Ceph does not let client.{self._user} in: either there is no such user, or userKey is not what "
                    f"`ceph auth get-key client.{self._user}` prints"
                ) from None
            except rados.ObjectNotFound:
                raise StoreUnavailable(
                    f"the pool {self.pool} does not exist on {self._monitors}; create it with: ceph osd pool create "
                    f"{self.pool} && rbd pool init {self.pool}"
                ) from None
        if self._fsid and pool.fsid != self._fsid:
            raise StoreUnavailable(
                f"at {self._monitors} is the Ceph cluster {pool.fsid}, where configRef says {self._fsid}: one of its "
                "mon_host and fsid is wrong"
            )
        return pool

    def _enter(self, io: Any) -> None:
        import rbd

        if not self.namespace:
            return
        if not rbd.RBD().namespace_exists(io, self.namespace):
            raise StoreUnavailable(
                f"the pool {self.pool} has no namespace {self.namespace}; create it with: rbd namespace create "
                f"{self.pool}/{self.namespace}"
            )
        io.set_namespace(self.namespace)

    @contextmanager
    def border(self, where: str | None = None) -> Iterator[None]:
        """Errors of Ceph's libraries become Problems; with `where`, what is missing is that image."""
        try:
            yield
        except Exception as error:
            number = abs(getattr(error, "errno", None) or errno.EIO)
            if type(error).__module__ not in {"rados", "rbd"}:
                raise
            raise self.problem(number, where) from error

    def problem(self, number: int, where: str | None = None) -> Problem:
        """What an error means; after one that a connection may not survive, the next call has a new one."""
        if number in _GONE:
            self._open = None
        if number == errno.ENOENT and where:
            return NotFound(f"{where} does not exist")
        if number in {errno.ENOSPC, errno.EDQUOT}:
            return StoreFull(f"the pool {self.pool} is full; remove images, add OSDs or raise its quota")
        if number in {errno.EPERM, errno.EACCES}:
            return StoreUnauthorized(
                f"Ceph refuses client.{self._user}: the pool {self.place} needs the right key, mon 'profile rbd' and "
                f"osd 'profile rbd pool={self.pool}'"
            )
        if number == errno.EEXIST:
            return StoreConflict(f"{where or self.place} exists")
        if number == errno.ETIMEDOUT:
            return StoreUnavailable(
                f"the Ceph cluster at {self._monitors} has not answered for {self._patience:.0f} s; see what "
                "`ceph -s` says, and whether this machine reaches monitors and OSDs"
            )
        if number == errno.ESHUTDOWN:
            return StoreUnavailable("the Ceph cluster has shut out this client, which it took for dead")
        if number == errno.EINVAL:
            return StoreUnavailable(
                f"{self.place}: Ceph takes something for invalid; see whether the monitors {self._monitors} are "
                "names that can be resolved, or addresses, each with the right port"
            )
        return StoreUnavailable(f"{self.place}: {os.strerror(number)}")

    # The directory

    def find(self, pool: Pool, name: str) -> str | None:
        """The id of an image, None if there is none. Here and nowhere else a name begins and ends."""
        import rados

        wanted = f"name_{name}"
        with rados.ReadOpCtx() as op:
            found, _ = pool.io.get_omap_vals_by_keys(op, (wanted,))
            try:
                pool.io.operate_read_op(op, _DIRECTORY)
            except rados.ObjectNotFound:
                return None
            return next((_text(value) for name, value in found if name == wanted), None)

    def names(self, pool: Pool, prefix: str) -> Iterator[tuple[str, str]]:
        """The images whose name begins so: name and id."""
        for name, value in self._omap(pool, _DIRECTORY, f"name_{prefix}"):
            yield name.removeprefix("name_"), _text(value)

    def _omap(self, pool: Pool, thing: str, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Those pairs of an object whose key begins so; none if there is no object."""
        import rados

        after = ""
        while True:
            with rados.ReadOpCtx() as op:
                found, _ = pool.io.get_omap_vals(op, after, prefix, self._page)
                try:
                    pool.io.operate_read_op(op, thing)
                except rados.ObjectNotFound:
                    return
                batch = list(found)
            yield from batch
            if not batch:
                return
            after = batch[-1][0]

    def header(self, pool: Pool, image: str) -> Header | None:
        """What the image of that id says of itself; None if it is not whole: being made, or being removed."""
        import rados

        with rados.ReadOpCtx() as op:
            found, _ = pool.io.get_omap_vals_by_keys(op, _KEYS)
            try:
                pool.io.operate_read_op(op, _HEADER + image)
            except rados.ObjectNotFound:
                return None
            values = dict(found)
        if "size" not in values:
            return None
        seconds, nanoseconds = struct.unpack("<II", values.get("modify_timestamp") or bytes(8))
        meta = {key.removeprefix("metadata_"): value.decode() for key, value in values.items() if "metadata_" in key}
        if meta.get(IMAGE) != image:
            meta = {}
        return Header(struct.unpack("<Q", values["size"])[0], seconds + nanoseconds / 1e9, meta)

    def changes(self, pool: Pool, image: str, snapshot: int | None) -> int | None:
        """How often Ceph has seen the header of the image of that id change; None if it, or that snapshot, is gone."""
        import rados

        wanted = "size" if snapshot is None else f"snapshot_{snapshot:016x}"
        with pool.client.open_ioctx(self.pool) as io, rados.ReadOpCtx() as op:  # what it was last is one's own there
            io.set_namespace(self.namespace)
            found, _ = io.get_omap_vals_by_keys(op, (wanted,))
            try:
                io.operate_read_op(op, _HEADER + image)
            except rados.ObjectNotFound:
                return None
            return int(io.get_last_version()) if dict(found) else None

    def alias(self, pool: Pool, name: str) -> str | None:
        """The id that whoever opens an image by this name is led to; what a rename that died has left may mislead."""
        import rados

        try:
            return _text(pool.io.read(_ID + name, 1024))
        except rados.ObjectNotFound:
            return None

    def mislead(self, pool: Pool, name: str, image: str) -> None:
        """Remove what leads from `name` to the image of that id, if it does: it is not the name of it."""
        import rados

        value = struct.pack("<I", len(image)) + image.encode()
        with rados.WriteOpCtx() as op, _unless_other():
            op.cmpext(value)
            op.remove()
            pool.io.operate_write_op(op, _ID + name)

    def prepare(self, pool: Pool) -> None:
        """See that there is a trash: librbd removes through it, and a full pool takes no new object."""
        import rados

        with rados.WriteOpCtx() as op:
            op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
            pool.io.operate_write_op(op, _TRASH)

    @contextmanager
    def alone(self, pool: Pool, image: str) -> Iterator[bool]:
        """Whether nobody else does in such a block what librbd can be caught in, if two do it: removing one image."""
        import rados

        name, cookie = "glimpse-removing", token_hex(8)
        if self.header(pool, image) is None:  # half removed; the lock would make it anew
            yield True
            return
        try:
            pool.io.lock_exclusive(_HEADER + image, name, cookie, duration=60)
        except (rados.ObjectBusy, rados.ObjectExists):
            yield False
            return
        if self.header(pool, image) is None:  # removed meanwhile, and made anew by the lock
            with suppress(rados.Error):
                pool.io.remove_object(_HEADER + image)
            yield True
            return
        try:
            yield True
        finally:
            with suppress(rados.Error):
                pool.io.unlock(_HEADER + image, name, cookie)

    # Clones without a sign: they have the size and the metadata of what they were cloned from, as those of others have

    def newborn(self, pool: Pool, prefix: str) -> Iterator[str]:
        """Names that begin so of clones of ours that are made just now, or whose maker has died over it."""
        for name, _ in self._omap(pool, MARKER, prefix):
            yield name

    def bear(self, pool: Pool, name: str) -> None:
        """Note that a clone of that name will be ours, before it is made."""
        import rados

        with rados.WriteOpCtx() as op:
            pool.io.set_omap(op, (name,), (b"",))
            pool.io.operate_write_op(op, MARKER)

    def grown(self, pool: Pool, names: Iterable[str]) -> None:
        """Remove that note of these: they have a sign, or are gone."""
        import rados

        with rados.WriteOpCtx() as op:
            pool.io.remove_omap_keys(op, tuple(names))
            pool.io.operate_write_op(op, MARKER)

    # The marker

    def read(self, pool: Pool, name: str) -> bytes | None:
        """A small object; None if there is none."""
        import rados

        try:
            content: bytes = pool.io.read(name, 1 << 16)
        except rados.ObjectNotFound:
            return None
        return content

    def create(self, pool: Pool, name: str, content: bytes) -> None:
        """Write a small object unless there is one."""
        import rados

        with rados.WriteOpCtx() as op, self._writing(), suppress(rados.ObjectExists):
            op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            op.write_full(content)
            pool.io.operate_write_op(op, name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Around the first request that changes something, after one that has read."""
        import rados

        try:
            yield
        except (rados.PermissionError, rados.PermissionDeniedError):
            raise StoreUnauthorized(
                f"client.{self._user} may read the pool {self.place}, but not write to it; let it: ceph auth caps "
                f"client.{self._user} mon 'profile rbd' osd 'profile rbd pool={self.pool}'"
            ) from None

    def touch(self, pool: Pool, name: str) -> None:
        """Write to a small object that is there, and leave it as it is: whoever may not write is told so."""
        import rados

        with rados.WriteOpCtx() as op, self._writing(), _unless_other():
            op.cmpext(b"{")
            op.set_xattr("probed", b"")
            pool.io.operate_write_op(op, name)

    def room(self, pool: Pool) -> Capacity:
        """What the managers of the cluster have counted for the pool, within its quota; nothing where there is none."""
        command = json.dumps({"prefix": "df", "detail": "detail", "format": "json"})
        code, answer, _ = pool.client.mon_command(command, b"", timeout=int(self._patience) or 1)
        if code:
            raise self.problem(-code)
        stats = next((each["stats"] for each in json.loads(answer)["pools"] if each["name"] == self.pool), None)
        if stats is None:
            return Capacity(None, None, None)
        used, free, quota = int(stats["stored"]), int(stats["max_avail"]), int(stats.get("quota_bytes", 0))
        if quota:
            free = min(free, max(quota - used, 0))
        return Capacity(used + free, used, free)


@contextmanager
def _unless_other() -> Iterator[None]:
    """Around a request that asks first what an object begins with: it may be something else, or there may be none."""
    import rados

    try:
        yield
    except (rados.ObjectNotFound, rados.ExtendMismatch):
        pass
    except rados.OSError as error:
        if abs(error.errno) != _MISMATCH:  # where the first byte is another one
            raise


def _text(value: bytes) -> str:
    """A string as Ceph encodes it: its length, then itself."""
    return value[4:].decode()
