"""Images that others put into the pool: which version lies there, told by its id and what Ceph counts for it.

The bytes of a snapshot never change. Those of an image do so with no sign that could be trusted: its time is written
once a minute. But whoever writes to one with an exclusive lock takes that lock first, which Ceph counts as a change of
the header, and he watches it as long as he may write. So an image without a lock has to have a snapshot.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from glimpse.api.locations import fault
from glimpse.ceph import Pool, Range, open_image
from glimpse.problems import DataLost, NotFound, StoreRefused, StoreUnavailable
from glimpse.stores import Version
from glimpse.stores.rbd.attempts import SNAPSHOT, close
from glimpse.stores.rbd.cluster import Cluster
from glimpse.streams import Reader


@dataclass(frozen=True, slots=True)
class _Spot:
    """What lies at a place, open."""

    image: Any
    id: str
    snapshot: int | None
    """The number of the snapshot; None: the image itself."""
    version: Version


class Others:
    """Images of others: `{name}@{snapshot}`, or `{name}` with its snapshot `snap`, or as it is if it has none."""

    def __init__(self, cluster: Cluster, patience: float) -> None:
        """`patience`: seconds that a request may take."""
        self._cluster, self._patience = cluster, patience

    def where(self, pool: Pool, location: str) -> str:
        """As OpenStack writes it."""
        name, snapshot = _split(location)
        parts = (name, snapshot) if snapshot else (name,)
        return f"rbd://{pool.fsid}/{self._cluster.place}/{'/'.join(quote(part, safe='') for part in parts)}"

    def locate(self, pool: Pool, location: str) -> Version:
        """Which version lies there. Raises NotFound, StoreRefused."""
        with self._open(pool, location) as spot:
            return spot.version

    def check(self, pool: Pool, location: str, version: Version) -> None:
        """Raise DataLost unless this version lies there, NotFound if nothing does."""
        if not self.locate(pool, location).same(version):
            raise DataLost(f"{self.where(pool, location)} has been changed")

    @contextmanager
    def read(self, pool: Pool, location: str, version: Version, offset: int, length: int | None) -> Iterator[Reader]:
        """Read part of just this version, which is looked at again before any byte is handed out."""
        border = partial(self._cluster.border, self.where(pool, location))
        with self._open(pool, location) as spot:
            if not spot.version.same(version):
                raise DataLost(f"{self.where(pool, location)} has been changed")
            left = max(version.size - offset, 0)
            left = left if length is None else min(left, length)
            with border():
                confirm = self._confirm(pool, location, spot)
                block = spot.image.stat()["obj_size"]
            reader = Range(spot.image, offset, left, block, border=border, confirm=confirm, patience=self._patience)
            try:
                yield reader
            finally:
                reader.close()

    def erase(self, pool: Pool, location: str) -> None:
        """Remove the snapshot that is named, or else the image with its snapshot `snap`. Absent is fine."""
        import rbd

        name, snapshot = _split(location)
        image = self._cluster.find(pool, name)
        if image is None:
            return
        try:
            with suppress(rbd.ImageNotFound):
                with open_image(pool.io, image_id=image) as opened:
                    found = {each["name"] for each in opened.list_snaps()}
                    if snapshot or not found - {SNAPSHOT}:  # else the image stays, and so does what it has
                        _drop(opened, found & {snapshot or SNAPSHOT})
                if snapshot is None and self._cluster.find(pool, name) == image:
                    rbd.RBD().remove(pool.io, name)
        except (rbd.ImageBusy, rbd.ImageHasSnapshots) as error:
            raise StoreUnavailable(
                f"{self.where(pool, location)} is in use: it is open, or has clones or other snapshots; remove those"
            ) from error

    @contextmanager
    def _open(self, pool: Pool, location: str) -> Iterator[_Spot]:
        """What lies there. Raises NotFound, StoreRefused."""
        name, snapshot = _split(location)
        where = self.where(pool, location)
        with self._cluster.border(where):
            image = self._cluster.find(pool, name)
            if image is None:
                raise NotFound(f"nothing lies at {where}")
            opened = open_image(pool.io, image_id=image, read_only=True)
        try:
            with self._cluster.border(where):
                spot = self._look(pool, where, opened, image, snapshot)
            yield spot
        finally:
            close(opened)

    def _look(self, pool: Pool, where: str, opened: Any, image: str, snapshot: str | None) -> _Spot:
        import rbd

        numbers = {each["name"]: int(each["id"]) for each in opened.list_snaps()}
        if number := numbers.get(snapshot or SNAPSHOT):
            opened.set_snap_by_id(number)
            return _Spot(opened, image, number, Version(opened.size(), f'"{image}@{number}"'))
        if snapshot:
            raise NotFound(f"nothing lies at {where}: the image has no such snapshot")
        if not opened.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
            raise StoreRefused(f"{where} has neither a snapshot nor an exclusive lock, so a change could not be seen")
        count = self._cluster.changes(pool, image, None)
        if any(opened.watchers_list()):
            raise StoreRefused(f"{where} is open to be written; make a snapshot of it, and name it as key@snapshot")
        return _Spot(opened, image, None, Version(opened.size(), f'"{image}-{count}"'))

    def _confirm(self, pool: Pool, location: str, spot: _Spot) -> Callable[[bool], None]:
        """Raises NotFound if nothing is there any more, DataLost if it was written to or replaced."""
        name, _ = _split(location)
        before = self._cluster.changes(pool, spot.id, spot.snapshot)

        def confirm(_last: bool) -> None:
            after = self._cluster.changes(pool, spot.id, spot.snapshot)
            there = self._cluster.find(pool, name)
            if there is None or (after is None and there == spot.id):
                raise NotFound(f"{self.where(pool, location)} was removed while it was read")
            if there != spot.id or (spot.snapshot is None and after != before):
                raise DataLost(f"{self.where(pool, location)} was changed while it was read")

        return confirm


def _drop(image: Any, snapshots: Iterable[str]) -> None:
    for each in snapshots:
        if image.is_protected_snap(each):
            image.unprotect_snap(each)
        image.remove_snap(each)


def _split(location: str) -> tuple[str, str | None]:
    """Names of image and snapshot. Raises StoreRefused for an image of ours."""
    name, at, snapshot = location.rpartition("@") if "@" in location else (location, "", "")
    if why := fault(name):
        raise StoreRefused(f"{location}: {why}")
    if at and not snapshot:
        raise StoreRefused(f"{location}: there is no name behind the @")
    return name, snapshot or None
