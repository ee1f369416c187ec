"""Images as VDIs of a Sheepdog cluster.

A cluster has few atomic steps: the name of a VDI can be had only once, and it is had together with a size; and some
bytes of an inode, by the number of its VDI, change at once. So an attempt writes a VDI of its own, and the commit is
another one without any objects, whose name is the key and whose size says the number of the first. What is removed is
marked so in its inode: from then on it is no image, and the rest can be done by whoever comes next.

    {prefix}.store                           the marker; its size says the number of the VDI that has the owner
    {prefix}/{key}                           the commit; its size says the number of the VDI that is the image
    {prefix}/data/{key}.{attempt}.{random}   an image, or what an attempt has written; behind it the record
"""

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Annotated, ClassVar, Final

from pydantic import BaseModel, Field

from glimpse.api.base import Model, Rule
from glimpse.lease import Lease
from glimpse.problems import DataLost, NotFound, Problem, StoreConflict, StoreUnavailable
from glimpse.stores import Capacity, Stat
from glimpse.stores.sheepdog.attempts import Attempt, empty, make_snapshot, packed, remove, unpacked
from glimpse.stores.sheepdog.cluster import INDEX, Cluster, Inode, inode_of, unanswered
from glimpse.stores.sheepdog.ranges import ahead
from glimpse.streams import Reader

PORT: Final = 7000
PREFIX: Final = "glimpse"
UNIT: Final = 512
"""The size of a VDI without objects is the number of another times this."""

RECORDS: Final = 2
"""Objects of a commit that may have a later record."""

_OWNER: Final = "owner"
_KEY: Final = re.compile(r"[0-9a-z-]+")
_LOOKS: Final = 4
"""VDIs that are looked at at once."""
_TURNS: Final = 8
"""How often a commit is tried while others remove what has its name."""


class SheepdogConfig(Model):
    """A Sheepdog cluster, by one of its nodes."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.prefix) == has(oldSelf.prefix) && (!has(self.prefix) || self.prefix == oldSelf.prefix)",
            "prefix cannot be changed: create another ImageStore",
        ),
    )

    address: Annotated[
        str,
        Field(min_length=1, max_length=253, pattern="^([A-Za-z0-9._-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)$"),
        Rule("!self.matches('^[^:]*:[^:]*$')", "must be a name or an address alone: its port is the field port"),
    ]
    """The name or IP address of a node; it may change to another node of the same cluster."""
    port: Annotated[int, Field(ge=1, le=65535)] = PORT
    """Its port; by default 7000."""
    copies: Annotated[int | None, Field(ge=1, le=31)] = None
    """How many copies of each object the cluster keeps; by default as many as it was formatted for."""
    prefix: Annotated[str, Field(min_length=1, max_length=63, pattern="^[A-Za-z0-9_-]+$")] = PREFIX
    """What the names of the store's VDIs begin with; by default `glimpse`."""


class Sheepdog:
    """A store in a cluster."""

    Config: ClassVar[type[BaseModel]] = SheepdogConfig
    hole: ClassVar[int] = 4 << 20

    patience: ClassVar[float] = 30.0
    """Seconds that an answer may take."""
    lease: ClassVar[float] = 120.0
    """Seconds after its last sign of life that an attempt counts as dead."""

    def __init__(self, config: SheepdogConfig, _secret: Mapping[str, str], _ca_bundle: str | None, /) -> None:
        """A cluster has neither credentials nor TLS."""
        self._cluster = Cluster(config.address, config.port, copies=config.copies or 0, patience=self.patience)
        self._prefix = config.prefix
        self._data, self._marker = f"{config.prefix}/data/", f"{config.prefix}.store"

    @property
    def endpoint(self) -> str:
        """The node, and what our names begin with."""
        return f"{self._cluster.url}/{self._prefix}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write a VDI for this attempt, then create the one that has the key for its name."""
        if self._look(key):
            raise StoreConflict(f"{self._location(key)} exists, and objects are written once")
        ours = Attempt(self._cluster, self._begin(f"{key}.{attempt}"))
        try:
            with Lease(ours.renew, self.lease) as lease:
                self._reap(key, now=ours.now())
                inode = ours.finish(ours.write(body), record())
                lease.check()
                with ours.watched():
                    commit = self._commit(key, inode)
                return self._stat(key, commit, inode)
        except BaseException:
            # What may still be done would outlive the removal: the lease runs out, and whoever comes next removes it.
            if not ours.unsure:
                with suppress(Problem):
                    remove(self._cluster, ours.inode)
            raise

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the objects that the index names, some ahead."""
        commit, inode = self._find(key)

        def gone() -> Problem:
            found = self._look(key)
            if found and found[0] == commit:
                return DataLost(f"{self._location(key)}: an object of VDI {inode.name} is gone")
            return self._absent(key)

        left = max(inode.size - offset, 0)
        left = left if length is None else min(left, length)
        with ahead(self._cluster, inode, gone, offset, left) as reader:
            if self._image(commit) is None:  # what was read of the index may be of its removal
                raise self._absent(key)
            yield reader

    def stat(self, key: str, /) -> Stat:
        """Look at both VDIs."""
        if found := self._seen(key, *self._find(key)):
            return found
        raise self._absent(key)

    def update(self, key: str, record: bytes, /) -> None:
        """Write the new record in the place of the older of two that the commit has room for: the newest counts."""
        commit, _ = self._find(key)
        held = self._records(commit)
        newest = max(held, key=lambda place: held[place][0], default=RECORDS - 1)
        number, place = held[newest][0] + 1 if held else 2, (newest + 1) % RECORDS
        self._cluster.write(inode_of(commit.vid), commit.vid.to_bytes(4, "little"), INDEX + 4 * place)
        self._cluster.create_object(commit.vid << 32 | place, packed(number, record))
        if self._image(commit) is None:
            raise self._absent(key)

    def delete(self, key: str, /) -> None:
        """Mark the image as removed, which is the end of it; then free its objects and the key."""
        if "." in key:
            self._reap(key.partition(".")[0], name=key)
            return
        if found := self._look(key):
            remove(self._cluster, found[1])
        self._reap(key)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Look at all VDIs of the cluster, since it can list nothing but their numbers."""
        found = list(self._scan(f"{self._prefix}/"))
        for inode in found:
            key = inode.name.removeprefix(f"{self._prefix}/")
            if not key.startswith(prefix) or not _KEY.fullmatch(key) or inode.snapshot:
                continue
            if (image := self._image(inode)) and (seen := self._seen(key, inode, image)):
                yield seen
        for inode in found:
            name = inode.name.removeprefix(self._data).rpartition(".")[0]
            key = name.partition(".")[0]
            if (
                inode.name.startswith(self._data)
                and name.startswith(prefix)
                and key != _OWNER
                and not self._is_committed(key, inode)
            ):
                modified = max(inode.created, inode.renewed)
                yield Stat(name, inode.size, self._location(name), modified, partial=True)

    def probe(self) -> Capacity:
        """Write to the marker. It does not tell how much room all its nodes together have for objects in copies."""
        if marker := self._cluster.find(self._marker):
            self._cluster.write(inode_of(marker.vid), bytes(4), INDEX)  # it has no object that an index could name
        return Capacity(None, None, None)

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker. A new one is a VDI with the owner and then its name, which only one can have."""
        marker = self._cluster.find(self._marker)
        if marker is None:
            if not fresh:
                raise StoreUnavailable(
                    f"{self.endpoint} has no marker (the VDI {self._marker}), which was there before: "
                    "is it another cluster, or are its disks not mounted?"
                )
            ours = Attempt(self._cluster, self._begin(f"{_OWNER}.{token_hex(8)}"))
            inode = ours.finish(ours.write(_Nothing()), json.dumps({"owner": owner}).encode())
            if self._cluster.create(self._marker, inode.vid * UNIT) is None:
                remove(self._cluster, inode)
            marker = self._cluster.find(self._marker)
        its = self._cluster.inode(marker.size // UNIT) if marker else None
        try:
            found = unpacked(self._cluster, its.vid << 32) if its else None
            return str(json.loads(found[1] if found else b"")["owner"])
        except (ValueError, TypeError, KeyError):
            raise StoreUnavailable(
                f"the marker of {self.endpoint}, VDI {self._marker}, cannot be read; restore it"
            ) from None

    def _begin(self, name: str) -> Inode:
        """A new VDI for data."""
        vid = self._cluster.create(f"{self._data}{name}.{token_hex(8)}")
        inode = self._cluster.inode(vid) if vid else None
        if inode is None:
            raise StoreUnavailable(f"{self.endpoint}: a VDI that was just created is not there")
        return inode

    def _commit(self, key: str, inode: Inode) -> Inode:
        """Create the VDI that makes `inode` the image of `key`. What has its name without an image is removed."""
        for _ in range(_TURNS):
            try:
                taken = self._cluster.create(f"{self._prefix}/{key}", inode.vid * UNIT) is None
            except StoreUnavailable as problem:
                found = self._cluster.find(f"{self._prefix}/{key}") if unanswered(problem) else None
                if found is None or found.size != inode.vid * UNIT:
                    raise
                return found
            found = self._cluster.find(f"{self._prefix}/{key}")
            if found and found.size == inode.vid * UNIT:
                return found
            if found and self._image(found):
                break
            if found:
                self._retire(found)
            elif not taken:
                break  # it was, and is removed already
        raise StoreConflict(f"{self._location(key)} was written by another attempt meanwhile")

    def _reap(self, key: str, *, now: float | None = None, name: str | None = None) -> None:
        """Remove the dead attempts on `key`, or those of them that are called `name`; and a commit without image."""
        for inode in self._scan(f"{self._data}{key}."):
            if name not in {None, inode.name.removeprefix(self._data).rpartition(".")[0]}:
                continue
            if not inode.removed:
                if now is None:
                    now = self._now()
                if now - max(inode.created, inode.renewed) <= self.lease or self._is_committed(key, inode):
                    continue
            remove(self._cluster, inode)
        commit = self._cluster.find(f"{self._prefix}/{key}")
        if commit and self._image(commit) is None:
            self._retire(commit)

    def _retire(self, commit: Inode) -> None:
        """Remove a commit: this one, by its number, whoever may get its name from now on.

        A VDI can be deleted by its name alone. As a snapshot it has a name and a tag, and frees the name.
        """
        empty(self._cluster, commit.vid, RECORDS)
        make_snapshot(self._cluster, commit.vid, f"{commit.vid:x}")
        self._cluster.delete(commit.name, f"{commit.vid:x}")

    def _now(self) -> float:
        """The time by the cluster's clock: it tells it of each new VDI."""
        inode = self._begin(f"clock.{token_hex(8)}")
        remove(self._cluster, inode)
        return inode.created

    def _scan(self, prefix: str) -> Iterator[Inode]:
        """All VDIs, snapshots too, whose name begins so."""
        with ThreadPoolExecutor(_LOOKS, thread_name_prefix="sheepdog") as pool:
            for inode in pool.map(self._cluster.inode, self._cluster.numbers()):
                if inode and inode.name.startswith(prefix):
                    yield inode

    def _image(self, commit: Inode) -> Inode | None:
        """The VDI that it makes an image, unless the removal of that has begun."""
        inode = self._cluster.inode(commit.size // UNIT)
        key = commit.name.removeprefix(f"{self._prefix}/")
        return inode if inode and not inode.removed and inode.name.startswith(f"{self._data}{key}.") else None

    def _is_committed(self, key: str, inode: Inode) -> bool:
        commit = self._cluster.find(f"{self._prefix}/{key}")
        return commit is not None and commit.size == inode.vid * UNIT and not inode.removed

    def _look(self, key: str) -> tuple[Inode, Inode] | None:
        """The commit and the image."""
        commit = self._cluster.find(f"{self._prefix}/{key}")
        image = self._image(commit) if commit else None
        return (commit, image) if commit and image else None

    def _find(self, key: str) -> tuple[Inode, Inode]:
        if found := self._look(key):
            return found
        raise self._absent(key)

    def _stat(self, key: str, commit: Inode, inode: Inode) -> Stat:
        held = max(self._records(commit).values(), default=None)
        held = held or unpacked(self._cluster, inode.vid << 32 | inode.count)
        return Stat(key, inode.size, self._location(key), commit.created, held[1] if held else None)

    def _seen(self, key: str, commit: Inode, inode: Inode) -> Stat | None:
        """The same; None if its removal began before the record was read, which is then gone."""
        found = self._stat(key, commit, inode)
        return found if found.record is not None or self._image(commit) else None

    def _records(self, commit: Inode) -> dict[int, tuple[int, bytes]]:
        """Those that came later, by their place."""
        index = self._cluster.read(inode_of(commit.vid), 4 * RECORDS, INDEX) or b""
        places = [place for place, (owner,) in enumerate(struct.iter_unpack("<I", index)) if owner]
        found = {place: unpacked(self._cluster, commit.vid << 32 | place) for place in places}
        return {place: record for place, record in found.items() if record}

    def _absent(self, key: str) -> NotFound:
        return NotFound(f"{self._location(key)} does not exist")

    def _location(self, key: str) -> str:
        return f"{self.endpoint}/{key}"


class _Nothing:
    """An empty body."""

    size: int | None = 0

    def read(self, _n: int = 0, /) -> bytes:
        return b""
