"""Images as volumes of OpenStack Cinder, in projects whose volumes are in Ceph.

Cinder has no names that are unique and no rename that fails, so what a volume is stands in its metadata:

    glimpse-store             in which store: of a project, those of one `volumeType`
    glimpse-key               of which object, `marker` for the volume that says whose the store is
    glimpse-attempt           who has made it
    glimpse-state             writing, ready, stored, removed
    glimpse-size              how many bytes; a volume has whole GiB
    glimpse-written           when, by Cinder's clock
    glimpse-record            in how many parts the record is: glimpse-record-00, …; a value has 255 characters at most
    (the description)         the last sign of life of who writes it (glimpse.lease)

Which of several attempts becomes the object, and how one is removed: see `attempts`.

A snapshot carries the first three while an object is made of another one. Cinder would make a volume of a volume too,
but its driver for Ceph makes a snapshot of its own for that and never removes it: when both have gone, the bytes of the
original stay in the pool, where nobody sees them any more. By way of a snapshot of Cinder's nothing stays. To remove
that, Cinder copies all bytes where Ceph makes clones of format 1, as it does by default.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from secrets import token_hex
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlsplit

from pydantic import BaseModel

from glimpse.ceph import LIBRARIES, Pipe, Range, is_key
from glimpse.lease import Lease
from glimpse.problems import (
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreConflict,
    StoreUnavailable,
)
from glimpse.stores import Capacity, Stat
from glimpse.stores.cinder.attempts import Attempts
from glimpse.stores.cinder.config import CinderConfig, login
from glimpse.stores.cinder.image import Ceph, Nothing, Watch, Way, way
from glimpse.stores.cinder.service import Service
from glimpse.stores.cinder.volumes import (
    GIB,
    KEY,
    MARKER,
    OWNER,
    PROBED,
    RECORD,
    SIZE,
    STATE,
    STORE,
    WRITTEN,
    Volume,
    is_stored,
    joined,
    name,
    parts,
    stored,
)
from glimpse.stores.cinder.volumes import gigabytes as gigabytes_of
from glimpse.stores.cinder.volumes import size as size_of
from glimpse.streams import CHUNK, HOLE, Reader

WAYS: Final = 1000
"""Volumes of which it is remembered how they are reached."""
STEP: Final = 8
"""GiB by which a volume grows at most, where nobody knows how large it will be."""


class Cinder:
    """A store in a project."""

    Config: ClassVar[type[BaseModel]] = CinderConfig
    hole: ClassVar[int] = HOLE
    libraries: ClassVar[Mapping[str, str]] = LIBRARIES
    patience: ClassVar[float] = 30.0
    """Seconds that Cinder or Ceph may be silent."""
    settling: ClassVar[float] = 180.0
    """Seconds that a volume may take to be made or enlarged."""
    lease: ClassVar[float] = 120.0
    """Seconds without a sign of life after which an attempt is dead."""
    page: ClassVar[int] = 500
    """Volumes in one listing."""
    block: ClassVar[int] = 8 << 20
    """Bytes of a request to Ceph."""
    boot_format: ClassVar[str] = "raw"
    """A machine reads a volume as a disk, whatever is in it."""

    def __init__(self, config: CinderConfig, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """Logs in at the first request."""
        if bool(config.endpoint) == bool(config.auth_url):
            raise InvalidConfiguration("set exactly one of cinder.endpoint and cinder.authUrl")
        url = str(config.endpoint or config.auth_url)
        host, project = urlsplit(url).netloc, config.project or secret.get("projectName") or ""
        self._config = config
        self._ceph_key = secret.get("cephKey")
        if self._ceph_key and not is_key(self._ceph_key):
            raise SecretNotReadable(
                "the key cephKey of the Secret is no key of Ceph; copy it from `ceph auth get-key` for Cinder's user"
            )
        self._place = config.volume_type or "default"
        self._endpoint = f"cinder://{host}/{quote(project, safe='')}".rstrip("/")
        self._service = Service(
            f"Cinder at {host}",
            login(config, secret),
            ca_bundle,
            url=url,
            region=config.region,
            patience=self.patience,
            settling=self.settling,
        )
        self._attempts = Attempts(
            self._service,
            self._endpoint,
            self._place,
            {"volume_type": config.volume_type, "availability_zone": config.availability_zone},
            lease=self.lease,
            page=self.page,
            patience=self.patience,
        )
        self._ceph = Ceph(self.patience)
        self._ways: dict[str, Way] = {}
        self._unwritten: dict[str, int] = {}
        self._updating = threading.Lock()

    @property
    def endpoint(self) -> str:
        """Where one logs in, and the project."""
        return self._endpoint

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write a volume of this attempt, then have it stored as the only one."""
        self._beginning(key)
        with self._attempts.made(key, attempt, gigabytes_of(body.size or 0)) as (volume, lease):
            try:
                size = self._write(volume, body)
                return self._commit(volume, key, size, record(), lease)
            finally:
                self._unwritten.pop(volume.id, None)

    def clone(self, source: str, key: str, attempt: str, record: bytes, going: Callable[[], None], /) -> Stat:
        """Have Cinder make the volume; all else is done as for a put."""
        original = self._attempts.find(source)
        self._beginning(key)
        with self._attempts.cloned(original, key, attempt, going) as (volume, lease):
            return self._commit(volume, key, size_of(original), record, lease)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read blocks ahead, several at once."""
        volume = self._attempts.find(key)
        left = max(size_of(volume) - offset, 0)
        left = left if length is None else min(left, length)
        if not left:
            yield Nothing()
            return
        with ExitStack() as stack:
            stack.callback(self._left, volume.id)
            there, image = self._open(stack, volume.id)
            border = partial(self._ceph.border, there)
            watch = Watch(partial(self._attempts.confirm, volume.id))
            reader = Range(image, offset, left, self.block, border=border, confirm=watch, patience=self.patience)
            stack.callback(reader.close)
            yield reader

    def stat(self, key: str, /) -> Stat:
        """Read the metadata."""
        return self._stat(self._attempts.find(key))

    def update(self, key: str, record: bytes, /) -> None:
        """Replace the metadata, in one transaction; one at a time."""
        with self._updating:
            self._service.note(self._attempts.find(key).id, parts(RECORD, record))

    def delete(self, key: str, /) -> None:
        """Remove the volume; Cinder refuses that while it has snapshots, or is attached to a machine."""
        base, dot, attempt = key.partition(".")
        volumes = self._attempts.of(base)
        if dot:
            volumes = [each for each in volumes if name(each) == key]
        elif found := stored(volumes):
            self._attempts.drop(found)
        self._attempts.reap(volumes, strict=True)
        self._attempts.melt(base, attempt)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """A volume is in one listing once, whatever becomes of it meanwhile. What is being removed is not.

        Of an attempt at a clone there may be a snapshot alone.
        """
        attempts = set()
        for each in self._service.find({STORE: self._place}, self.page):
            key = each.metadata.get(KEY, "")
            if not key.startswith(prefix) or each.status == "deleting":
                continue
            if not is_stored(each):
                where = self._attempts.location(each.id)
                attempts.add(name(each))
                yield Stat(name(each), each.gigabytes * GIB, where, each.created, partial=True)
            elif key != MARKER:
                yield self._stat(each)
        for left in self._attempts.snapshots():
            if name(left).startswith(prefix) and name(left) not in attempts:
                yield Stat(name(left), 0, self._attempts.location(left.id, "snapshots"), left.created, partial=True)

    def probe(self) -> Capacity:
        """Write to the marker, and ask for the quota. Volumes that are being written count as what is written of them.

        The marker is written as an object is: what it says to Cinder, its bytes to Ceph.
        """
        if marker := stored(self._attempts.of(MARKER)):
            self._service.note(marker.id, {PROBED: f"{self._service.now:.0f}"})
            with ExitStack() as stack:
                there, image = self._open(stack, marker.id)
                with self._ceph.border(there):
                    image.write(MARKER.encode(), 0)
        limits = self._service.limits()
        total, used = limits.get("maxTotalVolumeGigabytes", -1), limits.get("totalGigabytesUsed", 0) * GIB
        used = max(used - sum(list(self._unwritten.values())), 0)
        if total < 0:
            return Capacity(None, used, None)
        return Capacity(total * GIB, used, max(total * GIB - used, 0))

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker, a volume of 1 GiB; it is stored as objects are, so of several that claim one wins.

        Before that its image is opened, so a key or a type of volumes that cannot work is found at once.
        """
        volumes = self._attempts.of(MARKER)
        if marker := stored(volumes):
            return self._owner(marker)
        if not fresh:
            raise StoreUnavailable(
                f"{self._endpoint} has no volume glimpse-{MARKER}, which was there before: is it another project, or "
                "another Cinder that is mounted in its place?"
            )
        self._attempts.reap(volumes)
        with (
            suppress(StoreConflict),
            self._attempts.made(MARKER, token_hex(8), 1, parts(OWNER, owner.encode())) as (volume, lease),
        ):
            with self._attached(volume.id, "rw") as there, self._ceph.image(there):
                pass
            self._attempts.commit(volume.id, MARKER, {SIZE: "0", WRITTEN: f"{self._service.now:.0f}"}, lease)
        return self._owner(self._attempts.find(MARKER))

    @classmethod
    def preload(cls) -> None:
        """The requests and the logins; Ceph's libraries are quick, and must not be there before a fork."""
        with suppress(ImportError):
            for module in ("keystoneauth1.session", "keystoneauth1.identity.v3", "cinderclient.client"):
                import_module(module)

    # Writing

    def _beginning(self, key: str) -> None:
        """Before an attempt. Raises StoreConflict."""
        volumes = self._attempts.of(key)
        if stored(volumes):
            raise StoreConflict(f"an object {key} exists in {self._endpoint}, and objects are written once")
        self._attempts.reap(volumes)

    def _commit(self, volume: Volume, key: str, size: int, record: bytes, lease: Lease) -> Stat:
        """Have a volume stored that holds all bytes. Raises StoreConflict."""
        stat = Stat(key, size, self._attempts.location(volume.id), float(int(self._service.now)), record)
        notes = {SIZE: str(size), WRITTEN: f"{stat.modified:.0f}", **parts(RECORD, record)}
        self._attempts.commit(volume.id, key, notes, lease)
        return stat

    def _write(self, volume: Volume, body: Reader) -> int:
        """All of `body`; how much that is. A volume that turns out to be too small is enlarged between two writes."""
        passed, room = 0, volume.gigabytes
        self._unwritten[volume.id] = room * GIB
        chunk = body.read(CHUNK)
        while chunk:
            with (
                self._attached(volume.id, "rw") as there,
                self._ceph.image(there) as image,
                self._ceph.border(there),
            ):
                pipe = Pipe(image, passed, self.block, partial(self._ceph.problem, there), patience=self.patience)
                try:
                    while chunk and pipe.passed + len(chunk) <= room * GIB:
                        pipe.write(chunk)
                        self._unwritten[volume.id] = room * GIB - pipe.passed
                        chunk = body.read(CHUNK)
                    pipe.flush()
                except BaseException:
                    with suppress(Problem):
                        pipe.settle()
                    raise
                passed = pipe.passed
                self._remember(volume.id, there)
            if chunk:
                room += min(room, STEP)
                self._service.extend(volume.id, room)
                self._unwritten[volume.id] = room * GIB - passed
        return passed

    # Reading

    def _open(self, stack: ExitStack, volume: str) -> tuple[Way, Any]:
        """The image of a stored volume; it stays as long as it is open."""
        try:
            there = self._way(volume)
            try:
                image = stack.enter_context(self._ceph.image(there))
            except NotFound:  # Cinder has moved it to another pool since we asked
                self._ways.pop(volume, None)
                there = self._way(volume)
                image = stack.enter_context(self._ceph.image(there))
        except NotFound as problem:
            self._attempts.confirm(volume)
            raise StoreUnavailable(f"{self._attempts.location(volume)} is a volume, but {problem.message}") from problem
        self._attempts.confirm(volume)
        return there, image

    def _left(self, volume: str) -> None:
        """Remove what was removed while we read it, and could not be."""
        with suppress(Problem):
            found = self._service.show(volume)
            if found.metadata.get(STATE) == "removed" and found.status == "available":
                self._attempts.drop(found)

    def _way(self, volume: str) -> Way:
        """How a volume is reached. It is not attached for that: others read it too, and a machine may have it."""
        if known := self._ways.get(volume):
            return known
        there = way(self._service.connection(volume), self._ceph_key)
        self._remember(volume, there)
        return there

    @contextmanager
    def _attached(self, volume: str, mode: str) -> Iterator[Way]:
        attachment, connection = self._service.attach(volume, mode)
        try:
            yield way(connection, self._ceph_key)
        except BaseException:
            with suppress(Problem):
                self._service.detach(attachment)
            raise
        self._service.detach(attachment)

    def _remember(self, volume: str, there: Way) -> None:
        if len(self._ways) >= WAYS:
            self._ways.clear()
        self._ways[volume] = there

    def _stat(self, volume: Volume) -> Stat:
        written = float(volume.metadata.get(WRITTEN) or volume.created)
        key = volume.metadata.get(KEY, "")
        return Stat(key, size_of(volume), self._attempts.location(volume.id), written, joined(RECORD, volume.metadata))

    def _owner(self, marker: Volume) -> str:
        found = joined(OWNER, marker.metadata)
        if not found:
            where = self._attempts.location(marker.id)
            raise StoreUnavailable(f"{where}, the marker of the store, does not say whose it is: restore its metadata")
        return found.decode(errors="replace")
