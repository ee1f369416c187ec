"""The names of images: which are objects, which are attempts, and how one becomes another or goes.

All is by RBD's directory, in which a name begins and ends in one step; what else librbd keeps of names may be behind.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final

from glimpse.ceph import Pool
from glimpse.problems import NotFound, StoreConflict, StoreUnavailable
from glimpse.stores import Stat
from glimpse.stores.rbd.attempts import SNAPSHOT, Attempt, alive, close, hold, move_away, noted, purge
from glimpse.stores.rbd.cluster import ATTEMPT, Cluster, Header
from glimpse.stores.rbd.others import Others

_EMPTY: Final = Header(0, 0.0, {})
SPARE: Final = 5.0
"""Seconds more than it should take until Ceph has forgotten a client."""
_NAME: Final = re.compile(r"[0-9a-z-]{1,80}(\.[0-9a-z]{1,64})?")


class Names:
    """What a store does with the names in its pool; shared by threads."""

    def __init__(self, cluster: Cluster, *, snapshot: bool, patience: float, settling: float) -> None:
        """`snapshot`: whether images have one; `patience`: seconds that a request may take."""
        self._cluster = cluster
        self.others = Others(cluster, patience)
        self._snapshot = snapshot
        self._patience, self._settling = patience, settling
        self._removing = threading.Lock()  # two of us would be in each other's way

    def location(self, pool: Pool, name: str) -> str:
        """As OpenStack writes it, and with a namespace one part more."""
        return f"rbd://{pool.fsid}/{self._cluster.place}/{name}" + (f"/{SNAPSHOT}" if self._snapshot else "")

    def place(self, pool: Pool, name: str, header: Header) -> str:
        """Where the bytes of an object are."""
        note = header.note
        return self.others.where(pool, note.location) if note else self.location(pool, name)

    def check_free(self, pool: Pool, key: str) -> None:
        """Raises StoreConflict."""
        if self._cluster.find(pool, key):
            raise StoreConflict(f"{self.location(pool, key)} exists, and objects are written once")

    def stored(self, pool: Pool, key: str) -> tuple[str, Header]:
        """Id and description of an object. Raises NotFound."""
        image = self._cluster.find(pool, key)
        header = self._cluster.header(pool, image) if image else None
        if image is None or header is None or not header.complete:
            raise NotFound(f"{self.location(pool, key)} does not exist")
        return image, header

    def list(self, pool: Pool, prefix: str) -> Iterator[Stat]:
        """Attempts first, so that one that becomes an object meanwhile is not missed; the trash last, for the same."""
        born = set(self._cluster.newborn(pool, prefix))
        for attempts in (True, False):
            for name, image in self._cluster.names(pool, prefix):
                if _NAME.fullmatch(name) and ("." in name) == attempts:
                    header = self._cluster.header(pool, image) or _EMPTY
                    if (header.ours or name in born) if attempts else header.complete:
                        yield header.stat(name, self.place(pool, name, header), partial=attempts)
        for name, image in _trash(pool, prefix):
            header = self._cluster.header(pool, image) or _EMPTY
            if header.ours or name in born:
                yield header.stat(name, self.location(pool, name), partial=True)

    @contextmanager
    def attempt(self, pool: Pool, key: str, name: str, make: Callable[[str], None]) -> Iterator[Attempt]:
        """A new attempt on `key`, whose image `make` makes, given its name; it is removed unless it is committed.

        Raises StoreConflict, and what `make` raises.
        """
        with self._cluster.border():
            self.check_free(pool, key)
            self.reap(pool, key)
            try:
                attempt = self._begin(pool, f"{key}.{name}", make)
            except BaseException:
                with suppress(Exception):
                    self.reap(pool, f"{key}.{name}")
                raise
        attempt.doomed = True
        try:
            yield attempt
        finally:
            attempt.release()

    def _begin(self, pool: Pool, name: str, make: Callable[[str], None]) -> Attempt:
        """Make it and hold it. A reaper may be quicker than our lock: then again."""
        import rbd

        deadline = time.monotonic() + self._settling
        while True:
            try:
                # A reaper that has found nobody here yet would remove it a moment after it was held.
                with self._removing:
                    make(name)
                    attempt = self._hold(pool, name)
            except rbd.ImageExists:
                if self._cluster.find(pool, name):
                    raise StoreConflict(f"the attempt {name} is running already") from None
                if other := self._cluster.alias(pool, name):
                    self._cluster.mislead(pool, name, other)
            except rbd.NoSpace:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                if attempt:
                    return attempt

    def _hold(self, pool: Pool, name: str) -> Attempt | None:
        """The attempt of that name, alive and ours from now on; None if it is gone or somebody's."""
        image = self._cluster.find(pool, name)
        opened = hold(pool, image) if image else None
        if image is None or opened is None:
            return None
        try:
            if self._cluster.find(pool, name) == image:
                return Attempt(name, image, opened, partial(self.reap, pool))
        except BaseException:
            close(opened)
            raise
        close(opened)
        return None

    def take(self, pool: Pool, key: str, name: str) -> tuple[Attempt, int, bytes] | None:
        """Of the dead attempts on `key` the one that came furthest, as the attempt `name`: length and mark with it."""
        self._wait_for_the_dying(pool, key)
        with self._removing:
            left = [
                (*note, other)
                for other, image in self._cluster.names(pool, f"{key}.")
                if (note := noted(self._cluster.header(pool, image))) and not alive(pool, image)
            ]
            for _, _, other in sorted(left, reverse=True):
                if attempt := self._hold(pool, other):
                    break
            else:
                attempt = None
        with ExitStack() as stack:
            if attempt:
                stack.callback(attempt.release)
            self.reap(pool, key)
            note = noted(self._cluster.header(pool, attempt.id)) if attempt else None
            if attempt is None or note is None:
                return None
            # From now on who had it can give it no name any more.
            for fresh in (f"{name}x", name) if attempt.name == name else (name,):
                if not self._rename(pool, attempt, fresh):
                    raise StoreConflict(f"the attempt {name} is running already")
            attempt.image.metadata_set(ATTEMPT, name)
            stack.pop_all()
        return attempt, *note

    def _wait_for_the_dying(self, pool: Pool, key: str) -> None:
        """Come back once it can be told of each attempt with a checkpoint whether it lives.

        One whose process was killed a moment ago looks alive until Ceph has forgotten it, which takes no longer than a
        request may take; one that lives gets further meanwhile.
        """
        deadline = time.monotonic() + self._patience + SPARE
        first = self._living(pool, key)
        now = first
        while any(first.get(name) == length for name, length in now.items()) and time.monotonic() < deadline:
            time.sleep(0.5)
            now = self._living(pool, key)

    def _living(self, pool: Pool, key: str) -> dict[str, int]:
        """The attempts on a key that somebody has open, with the length of their checkpoints."""
        return {
            name: note[0]
            for name, image in self._cluster.names(pool, f"{key}.")
            if (note := noted(self._cluster.header(pool, image))) and alive(pool, image)
        }

    def commit(self, pool: Pool, key: str, attempt: Attempt) -> None:
        """Change the name, which fails if there is another image of that name."""
        for _ in range(20):
            if self._rename(pool, attempt, key):
                attempt.doomed = False
                return
            self.check_free(pool, key)
            # Somebody is half-way with the same, or has died there.
            other = self._cluster.alias(pool, key)
            if other and alive(pool, other):
                time.sleep(0.05)
            else:
                self.reap(pool, key)
                if other:
                    self._cluster.mislead(pool, key, other)
        raise StoreConflict(f"{self.location(pool, key)} is being written by another attempt")

    def _rename(self, pool: Pool, attempt: Attempt, name: str) -> bool:
        """Whether the attempt has that name now. After a failure nothing leads from the name to it.

        The directory alone is believed: librbd says yes where another was quicker, and no where an answer was lost.
        """
        import rbd

        failed = None
        try:
            rbd.RBD().rename(pool.io, attempt.name, name)
        except (rbd.ImageExists, rbd.ImageNotFound):
            pass  # the latter where another removes at the same time what leads to the name
        except rbd.Error as error:
            failed = error
        if self._cluster.find(pool, name) == attempt.id:
            attempt.name = name
            return True
        self._cluster.mislead(pool, name, attempt.id)
        if failed:
            raise failed
        if self._cluster.find(pool, attempt.name) != attempt.id:
            raise StoreConflict(f"the attempt {attempt.name} was taken for dead by another one")
        return False

    def withdraw(self, pool: Pool, key: str) -> None:
        """Move an object to the trash, but none that comes after. Raises StoreUnavailable while it is open to write."""
        deadline = time.monotonic() + self._patience / 10
        image = self._cluster.find(pool, key)
        while image:
            header = self._cluster.header(pool, image)
            if header and not header.complete:  # somebody else's
                return
            moved = move_away(pool, key)
            if self._cluster.find(pool, key) != image:
                return
            if not moved and time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"somebody has {self.location(pool, key)} open; see who that is with "
                    f"`rbd status {self._cluster.place}/{key}`, and stop or unmap it"
                )
            time.sleep(random.uniform(0, 0.1))  # noqa: S311 - out of the way of another who tries

    def reap(self, pool: Pool, key: str) -> None:
        """Remove dead attempts on `key`, or the attempt `key` if it is dead, and what is in the trash of either."""

        def wanted(name: str) -> bool:
            return key in {name, name.partition(".")[0]}

        with self._removing:
            born = set(filter(wanted, self._cluster.newborn(pool, key)))
            for name, image in list(self._cluster.names(pool, key)):
                if "." in name and wanted(name):
                    header = self._cluster.header(pool, image) or _EMPTY
                    if (header.ours or name in born) and not alive(pool, image):
                        move_away(pool, name)
            for name, image in list(_trash(pool, key)):
                if wanted(name):
                    self._purge(pool, name, image, born)
            if born:
                left = {name for found in (self._cluster.names, _trash) for name, _ in found(pool, key)}
                self._cluster.grown(pool, born - left)

    def _purge(self, pool: Pool, name: str, image: str, born: AbstractSet[str] = frozenset()) -> None:
        """Remove an image in the trash that is ours, and those that waited there until their last clone is gone."""
        waiting: tuple[str, str] | None = (name, image)
        while waiting:
            name, image = waiting
            waiting = None
            header = self._cluster.header(pool, image) or _EMPTY
            if header.ours or name in born:
                with self._cluster.alone(pool, image) as free:
                    gone, parent = purge(pool, image) if free else (False, None)
                if gone:
                    for other in {name.partition(".")[0], name, header.meta.get(ATTEMPT, name)}:
                        self._cluster.mislead(pool, other, image)
                    waiting = _trashed(pool, parent) if parent else None


def _trash(pool: Pool, prefix: str) -> Iterator[tuple[str, str]]:
    """What in the trash has a name of ours that begins so: as the name of an attempt, and the id."""
    import rbd

    for entry in rbd.RBD().trash_list(pool.io):
        name = _as_attempt(entry)
        if name.startswith(prefix) and _NAME.fullmatch(name):
            yield name, entry["id"]


def _trashed(pool: Pool, image: str) -> tuple[str, str] | None:
    """The same of one image, if it is there."""
    import rbd

    try:
        name = _as_attempt(rbd.RBD().trash_get(pool.io, image))
    except rbd.ImageNotFound:
        return None
    return (name, image) if _NAME.fullmatch(name) else None


def _as_attempt(entry: Mapping[str, str]) -> str:
    return entry["name"] if "." in entry["name"] else f"{entry['name']}.{entry['id']}"
