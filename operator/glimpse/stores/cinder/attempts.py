"""The volumes of a key: made by an attempt, stored as the only one of them, and removed.

Cinder has no names that are unique, so whose volume becomes the object is seen to here, by what stands in metadata.

The commit is the change of `glimpse-state` to `stored`: one value, in one transaction of Cinder's database. That only
one attempt on a key makes it is seen to by a mutual exclusion that needs nothing but such values, one written by each:
Burns' and Lamport's one-bit algorithm. An attempt declares itself `ready`, which also writes the record, and looks at
all volumes of its key afterwards. If one is stored, it has lost. If another one is ready whose id is smaller, it goes
back to `writing`, waits until that one is done, and begins again. If another one is ready at all, it waits. Else it is
alone, and stores: of two that were alone at once, the one that declared itself later would have seen the other. Who is
ready and dead, by its lease, is passed over; so it looks at its lease just before, and its request ends before the
lease does. It looks at its volume afterwards, too: who took it for dead has it removed.

A volume that Cinder is removing is gone, at once and for everybody. Whoever reads has the image open, and Ceph does
not remove what is open: then Cinder gives up, and the volume is left as `removed`, for who has read it, or else for the
next one who passes by.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final

from glimpse.lease import Lease
from glimpse.problems import NotFound, Problem, StoreConflict, StoreUnavailable
from glimpse.stores.cinder.service import POLLS, Refused, Service
from glimpse.stores.cinder.volumes import (
    ATTACHED,
    ATTEMPT,
    GONE,
    KEY,
    STATE,
    STORE,
    Snapshot,
    Volume,
    is_ready,
    is_stored,
    stored,
)

REFUSALS: Final = 4
"""Times that Cinder says no to the removal of a volume which is not in use, before it is believed."""

MELTING: Final = 60.0
"""Seconds for each GiB in which Cinder removes a snapshot; it copies what was made of it first, where Ceph does not."""

_ALIVE: Final = re.compile(r"alive at (\S+Z)")


class Attempts:
    """The volumes of one store; shared by threads."""

    def __init__(
        self,
        service: Service,
        endpoint: str,
        place: str,
        wanted: Mapping[str, str | None],
        *,
        lease: float,
        page: int,
        patience: float,
    ) -> None:
        """`place`: which store of the project; `wanted`: what Cinder is asked for besides, of a new volume.

        `lease`: seconds for which a sign of life is believed; `page`: volumes in one listing; `patience`: seconds for
        which a removal is waited for.
        """
        self._service, self._endpoint, self._place, self._wanted = service, endpoint, place, wanted
        self._lease, self._page, self._patience = lease, page, patience

    def of(self, key: str) -> Sequence[Volume]:
        """All volumes of a key, whatever they are."""
        return [*self._service.find({STORE: self._place, KEY: key}, self._page)]

    def find(self, key: str) -> Volume:
        """The object. Raises NotFound."""
        if found := stored(self.of(key)):
            return found
        raise NotFound(f"{self._endpoint} has no object {key}")

    @contextmanager
    def made(
        self,
        key: str,
        attempt: str,
        gigabytes: int,
        more: Mapping[str, str] | None = None,
        *,
        snapshot: str | None = None,
        going: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Volume, Lease]]:
        """A new volume, alive as long as the block lasts; removed if it fails. Raises StoreFull."""
        made = None
        try:
            with self._typed():
                made = self._service.create(
                    name=f"glimpse-{key}",
                    size=gigabytes,
                    description=self._sign(),
                    metadata={STORE: self._place, KEY: key, ATTEMPT: attempt, STATE: "writing", **(more or {})},
                    snapshot_id=snapshot,
                    **self._wanted,
                )
            volume = made
            with Lease(partial(self._live, volume), self._lease) as lease:
                yield self._service.settle(volume, "available", going), lease
        except BaseException:
            with suppress(Problem):
                for each in self.of(key):
                    # An answer that was lost leaves a volume whose id nobody was told.
                    unknown = made is None and each.metadata.get(ATTEMPT) == attempt and not is_stored(each)
                    if each.id == made or unknown:
                        self.drop(each)
            raise

    @contextmanager
    def cloned(
        self, original: Volume, key: str, attempt: str, going: Callable[[], None]
    ) -> Iterator[tuple[Volume, Lease]]:
        """The same, with the bytes of another one.

        It is made of a snapshot, which has gone when the block begins: Cinder has the new volume stand by itself then,
        by copying, or leaves that to Ceph. `going` may end the waiting.
        """
        notes = {STORE: self._place, KEY: key, ATTEMPT: attempt}
        snapshot = self._service.freeze(original.id, f"glimpse-{key}", notes)
        try:
            self._service.frozen(snapshot, going)
            with self.made(key, attempt, original.gigabytes, snapshot=snapshot, going=going) as (volume, lease):
                self._service.melt(snapshot)
                self._service.melted(snapshot, MELTING * original.gigabytes, going)
                yield volume, lease
        except BaseException:
            with suppress(Problem):
                try:
                    self._service.melt(snapshot)
                except Refused:  # it is still being made
                    self._service.frozen(snapshot)
                    self._service.melt(snapshot)
            raise

    def commit(self, volume: str, key: str, notes: Mapping[str, str], lease: Lease) -> None:
        """Have a volume stored, if no other one is: see the module. Raises StoreConflict, StoreUnavailable."""
        self._service.note(volume, {STATE: "ready", **notes})
        self._wait(volume, key)
        lease.check()
        try:
            self._service.note(volume, {STATE: "stored"}, within=self._lease / 4)
        except NotFound:
            held = False
        except StoreUnavailable:
            held = self._holds(volume)
            if not held:
                raise
        else:
            try:
                held = self._holds(volume)
            except StoreUnavailable:
                held = True  # Cinder has said so, in time
        if not held:
            raise StoreUnavailable(f"this attempt on {key} was taken for dead, as no sign of life had come in time")

    def confirm(self, volume: str) -> None:
        """Raises NotFound unless it is stored."""
        if not self._holds(volume):
            raise NotFound(f"{self.location(volume)} has been removed")

    def alive(self, volume: Volume) -> bool:
        """Whether somebody still writes it; clocks are read in whole seconds, so one more is granted."""
        sign = _ALIVE.search(volume.description)
        if not sign or volume.metadata.get(STATE) == "removed" or volume.status in GONE:
            return False
        try:
            then = datetime.fromisoformat(sign[1]).timestamp()
        except ValueError:
            return False
        return volume.now - then <= self._lease + 1

    def reap(self, volumes: Sequence[Volume], *, strict: bool = False) -> None:
        """Remove what is dead of these. What cannot be removed is in nobody's way, unless `strict`."""
        for each in volumes:
            if is_stored(each) or each.status == "deleting" or self.alive(each):
                continue
            try:
                self.drop(each)
            except Problem:
                if strict:
                    raise

    def drop(self, volume: Volume) -> None:
        """Remove a volume, whatever it is. Gone for all once Cinder agrees, and waited for for a while.

        If Ceph refuses, as somebody reads it, Cinder has it available again: it is no object then.
        """
        found, refusals, deadline, pauses = volume, 0, time.monotonic() + self._patience, iter(POLLS)
        try:
            while found.status != "deleting":
                if found.status == "error_deleting":
                    raise StoreUnavailable(
                        f"{self.location(volume.id)} could not be removed by Cinder; see its log, and set the status "
                        "to available: `openstack volume set --state available`"
                    )
                if found.status in ATTACHED:
                    self._service.release(volume.id)
                try:
                    if not self._service.remove(volume.id):
                        return
                    break
                except Refused as problem:
                    ours, others = self._held(volume.id)
                    refusals += found.status == "available" and not ours
                    if refusals == REFUSALS or time.monotonic() > deadline:
                        where = self.location(volume.id)
                        if others:
                            raise StoreUnavailable(
                                f"{where} cannot be removed while it has the snapshot {others[0]}, which is none of "
                                "Glimpse's: see to `openstack volume snapshot delete`"
                            ) from problem
                        raise StoreUnavailable(f"{where} cannot be removed. {problem.message}") from problem
                time.sleep(next(pauses, POLLS[-1]))
                found = self._service.show(volume.id)
            self._service.note(volume.id, {STATE: "removed"})
        except NotFound:
            return
        self._service.gone(volume.id, self._patience)

    def snapshots(self, key: str | None = None) -> Iterator[Snapshot]:
        """Those of attempts at clones, of this key or of all, but those that are being removed."""
        wanted = {STORE: self._place, **({} if key is None else {KEY: key})}
        return (each for each in self._service.snapshots(wanted, self._page) if each.status != "deleting")

    def melt(self, key: str, attempt: str) -> None:
        """Remove the snapshots of dead attempts at this key, or of this one. Raises Refused."""
        for each in self.snapshots(key):
            whose = each.metadata.get(ATTEMPT)
            if (attempt and attempt != whose) or self._service.now - each.created <= self._lease + 1:
                continue
            if not any(volume.metadata.get(ATTEMPT) == whose and self.alive(volume) for volume in self.of(key)):
                self._service.melt(each.id)

    def location(self, made: str, what: str = "volumes") -> str:
        """A URL that tells a person where it is."""
        return f"{self._endpoint}/{what}/{made}"

    def _held(self, volume: str) -> tuple[int, list[str]]:
        """Snapshots that hold a volume: how many are of clones, and which are others'.

        The former are removed, also of one that is being made: either it has its bytes by now, or it gets none.
        """
        ours, others = 0, []
        for each in self._service.snapshots_of(volume):
            if each.metadata.get(STORE) == self._place:
                ours += 1
                with suppress(Problem):
                    self._service.melt(each.id)
            else:
                others.append(each.id)
        return ours, others

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except NotFound as problem:
            raise StoreUnavailable(f"{problem.message}; create it, or mend volumeType") from problem

    def _wait(self, volume: str, key: str) -> None:
        """Until this volume, which is ready, is the only one that is. Raises StoreConflict, StoreUnavailable."""
        ready, deadline, pauses = True, time.monotonic() + 2 * self._lease, iter(POLLS)
        while time.monotonic() < deadline:
            others = [each for each in self.of(key) if each.id != volume]
            if stored(others):
                raise StoreConflict(f"an object {key} was stored by another attempt meanwhile")
            rivals = [each.id for each in others if is_ready(each) and self.alive(each)]
            first = all(each > volume for each in rivals)
            if ready and not rivals:
                return
            if ready != first:
                ready = first
                self._service.note(volume, {STATE: "ready" if ready else "writing"})
                if ready:
                    continue
            time.sleep(next(pauses, POLLS[-1]))
        raise StoreUnavailable(f"another attempt on {key} has been about to be stored for {2 * self._lease:.0f} s")

    def _holds(self, volume: str) -> bool:
        try:
            return is_stored(self._service.show(volume))
        except NotFound:
            return False

    def _live(self, volume: str) -> None:
        self._service.describe(volume, self._sign(), within=self._lease / 4)

    def _sign(self) -> str:
        now = datetime.fromtimestamp(self._service.now, UTC).isoformat(timespec="milliseconds")
        return f"An image of Glimpse; who writes it was alive at {now.replace('+00:00', 'Z')}."
