"""The ImageStores: probes them, keeps their status, holds those that are in use, and sweeps them.

Apart from the engine of images, which only reads what is known here.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from glimpse.api.base import FINALIZER
from glimpse.api.image import Image
from glimpse.api.store import ImageStore
from glimpse.control import metrics
from glimpse.control.conditions import READY, find, is_true
from glimpse.control.draft import touched
from glimpse.control.store import NAMED, StoreSeen, Users, decide, is_default, view
from glimpse.control.sweep import TooMuch, leftovers
from glimpse.kube import IMAGE, STORE, ApiError, Conflict, Gone, Invalid, Kube
from glimpse.problems import Problem, StoreNotFound, StoreUnavailable
from glimpse.runners import Runner
from glimpse.settings import Settings
from glimpse.storeref import resolve
from glimpse.tasks import (
    Answer,
    Done,
    Event,
    Failed,
    List,
    Listed,
    ListedEntry,
    Probe,
    Remove,
    StoreFailed,
    StoreRef,
    Trouble,
)

log = logging.getLogger(__name__)

_PATIENCE: Final = 60.0
"""Seconds until a store that does not answer a probe counts as unreachable."""
_SETTLE: Final = 2.0
"""Seconds in which changes of a store's users are gathered into one write."""


class _Entry:
    """One ImageStore."""

    def __init__(self, name: str, uid: str) -> None:
        self.name, self.uid = name, uid
        self.raw: dict[str, Any] | None = None
        self.min_version = 0
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.probe: asyncio.Task[Done | Problem] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.hung: asyncio.Future[Answer] | None = None
        self.sweeper: asyncio.Task[None] | None = None


class Shelf:
    """All ImageStores."""

    def __init__(
        self,
        settings: Settings,
        kube: Kube,
        runner: Runner,
        users: Callable[[str], Users],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when images may expect something else of a store."""
        self.stores: dict[str, ImageStore] = {}
        self.installation = ""
        self._settings = settings
        self._kube = kube
        self._runner = runner
        self._users = users
        self._changed = changed
        self._entries: dict[str, _Entry] = {}
        self._running = False

    def start(self) -> None:
        """Begin to act; what was offered before is known."""
        self._running = True
        for entry in self._entries.values():
            self._kick(entry)

    async def ref(self, name: str) -> StoreRef:
        """A store as a task has it, with its secrets as they are now.

        Raises StoreNotFound, InvalidConfiguration, SecretNotReadable.
        """
        store = self.stores.get(name)
        if not store:
            raise StoreNotFound(f"there is no ImageStore {name!r}")
        return await resolve(self._kube, self._settings.namespace, store, self.installation)

    async def close(self) -> None:
        """Stop everything."""
        self._running = False
        tasks = [t for e in self._entries.values() for t in (e.task, e.probe, e.sweeper) if t]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in self._entries.values():
            if entry.timer:
                entry.timer.cancel()

    def offer(self, obj: dict[str, Any]) -> None:
        """An ImageStore is there, or has changed."""
        meta = obj["metadata"]
        entry = self._entries.get(meta["name"])
        if entry is None or entry.uid != meta["uid"]:
            if entry:
                self._forget(entry)
            entry = self._entries[meta["name"]] = _Entry(meta["name"], meta["uid"])
        version = int(meta["resourceVersion"])
        if version < entry.min_version or (entry.raw and version <= int(entry.raw["metadata"]["resourceVersion"])):
            return
        self._learn(entry, obj)
        self._kick(entry)

    def gone(self, obj: dict[str, Any]) -> None:
        """An ImageStore is no more."""
        entry = self._entries.get(obj["metadata"]["name"])
        if entry and entry.uid == obj["metadata"]["uid"]:
            self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        if self._entries.get(entry.name) is not entry:
            return
        del self._entries[entry.name]
        self.stores.pop(entry.name, None)
        for task in (entry.probe, entry.sweeper):
            if task:
                task.cancel()
        if entry.timer:
            entry.timer.cancel()
        metrics.store_gone(entry.name)
        self._changed()

    def users_changed(self, name: str) -> None:
        """An image has come to this store, or has left it."""
        entry = self._entries.get(name)
        if entry and self._running:
            self._later(entry, _SETTLE)

    def _later(self, entry: _Entry, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if entry.timer and entry.timer.when() <= loop.time() + seconds:
            return
        if entry.timer:
            entry.timer.cancel()
        entry.timer = loop.call_later(seconds, self._kick, entry)

    def _learn(self, entry: _Entry, obj: dict[str, Any]) -> None:
        """Take the newest object, and tell the images if it matters to them."""
        if self._entries.get(entry.name) is not entry:
            return  # gone, or another one of the same name by now
        obj["metadata"].pop("managedFields", None)
        entry.raw = obj
        try:
            old, new = self.stores.get(entry.name), ImageStore.model_validate(obj)
        except ValidationError as error:
            log.error("store %s cannot be understood: %s", entry.name, error)  # noqa: TRY400 - no bug, so no traceback
            self.stores.pop(entry.name, None)
            self._changed()
            return
        self.stores[entry.name] = new
        if (
            old is None
            or view(old, "", {}).version != view(new, "", {}).version
            or is_default(old) != is_default(new)
            or old.spec != new.spec
        ):
            self._changed()

    def _kick(self, entry: _Entry) -> None:
        entry.wake.set()
        if entry.timer:
            entry.timer.cancel()
            entry.timer = None
        if entry.task is None and self._running:
            entry.task = asyncio.create_task(self._drive(entry), name=f"store {entry.name}")

    async def _drive(self, entry: _Entry) -> None:
        failures = 0
        try:
            while entry.wake.is_set():
                entry.wake.clear()
                try:
                    await self._step(entry)
                    failures = 0
                except Gone:
                    self._forget(entry)
                    return
                except Conflict:
                    await self._read_again(entry)
                except Invalid as error:
                    log.error("store %s: %s", entry.name, error.message)  # noqa: TRY400 - no bug
                    await self._read_again(entry)
                    await asyncio.sleep(30)
                except Exception as error:
                    failures += 1
                    bug = not isinstance(error, ApiError)
                    log.log(logging.ERROR if bug else logging.WARNING, "store %s: %s", entry.name, error, exc_info=bug)
                    entry.wake.set()
                    await asyncio.sleep(min(30.0, 0.5 * 2 ** min(failures, 10)))
        finally:
            entry.task = None

    async def _read_again(self, entry: _Entry) -> None:
        """Our write met another state. Raises ApiError."""
        try:
            obj = await self._kube.get(STORE, entry.name)
        except Gone:
            self._forget(entry)
            return
        if obj["metadata"]["uid"] == entry.uid:
            self._learn(entry, obj)
            entry.wake.set()
            await asyncio.sleep(0.05)  # whatever it is, it is no reason for a tight loop

    async def _users_of(self, store: ImageStore) -> Users:
        """Who has bytes in the store; of one that is to go, by the word of the API server too."""
        users = self._users(store.metadata.name)
        if store.metadata.deletion_timestamp is None or users.images:
            return users
        names = [
            f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
            async for obj in self._kube.list(IMAGE)
            if store.metadata.name in touched(Image.model_validate(obj).status)
        ]
        return Users(len(names), 0, tuple(names[:NAMED])) if names else self._users(store.metadata.name)

    async def _step(self, entry: _Entry) -> None:
        store = self.stores.get(entry.name)
        if store is None or entry.raw is None:
            return
        users = await self._users_of(store)
        if self.stores.get(entry.name) is not store:
            entry.wake.set()
            return
        result = None
        if entry.probe and entry.probe.done():
            probe, entry.probe = entry.probe, None
            result = probe.result()
        seen = StoreSeen(
            store=store,
            now=datetime.now(UTC),
            installation=self.installation,
            users=users,
            probing=entry.probe is not None,
            result=result,
        )
        verdict = decide(seen)
        if verdict.finalizer is not None:
            finalizers = [f for f in store.metadata.finalizers if f != FINALIZER]
            finalizers += [FINALIZER] if verdict.finalizer else []
            self._wrote(entry, await self._kube.set_finalizers(STORE, entry.raw, finalizers))
            if verdict.finalizer:
                entry.wake.set()
            return
        if verdict.status != store.status.dump():
            await self._write(entry, store, verdict.status)
        if verdict.probe:
            entry.probe = asyncio.create_task(self._probe(entry))
            entry.probe.add_done_callback(lambda _: self._kick(entry))
        elif verdict.again and entry.probe is None:
            self._later(entry, max(0.05, (verdict.again - datetime.now(UTC)).total_seconds()))
        if entry.sweeper is None:
            entry.sweeper = asyncio.create_task(self._sweep_for_ever(entry))

    async def _write(self, entry: _Entry, store: ImageStore, status: Any) -> None:
        assert entry.raw  # noqa: S101 - _step has looked
        before = find(store.status.conditions, READY)
        self._wrote(entry, await self._kube.patch_status(STORE, entry.raw, dict(status)))
        now = self.stores[entry.name].status
        after = find(now.conditions, READY)
        free = now.capacity.free if now.capacity else None
        metrics.store_seen(entry.name, ready=is_true(now.conditions, READY), free=free)
        if after and (not before or (before.status, before.reason) != (after.status, after.reason)):
            kind = "Normal" if after.status == "True" else "Warning"
            await self._kube.event(entry.raw, type=kind, reason=after.reason, message=after.message)
            log.info("store %s: %s: %s", entry.name, after.reason, after.message)

    def _wrote(self, entry: _Entry, obj: dict[str, Any]) -> None:
        entry.min_version = int(obj["metadata"]["resourceVersion"])
        self._learn(entry, obj)

    async def _probe(self, entry: _Entry) -> Done | Problem:
        """Look at the store; never raises. A store that hangs is left hanging, and asked no more until it answers."""
        if entry.hung and not entry.hung.done():
            return StoreUnavailable(f"store {entry.name} does not answer")
        try:
            ref = await self.ref(entry.name)
            work = asyncio.ensure_future(self._runner.run(Probe(store=ref), lambda _: None))
            try:
                await asyncio.wait({work}, timeout=_PATIENCE)
            finally:
                if not work.done():
                    # Not waited for: a worker that waits for a dead mount cannot even be killed.
                    entry.hung = work
                    work.cancel()
            if entry.hung is work:
                return StoreUnavailable(f"store {entry.name} did not answer within {_PATIENCE:.0f} s")
            answer = work.result()
        except Problem as problem:
            return problem
        except Exception as error:
            log.exception("store %s: the probe failed", entry.name)
            return StoreUnavailable(f"store {entry.name} could not be looked at: {type(error).__name__}")
        return answer.trouble.problem() if isinstance(answer, Failed) else answer

    # -- leftovers

    async def _sweep_for_ever(self, entry: _Entry) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            try:
                if is_true(self.stores[entry.name].status.conditions, READY):
                    await self.sweep(entry.name)
            except Exception as error:  # noqa: BLE001 - the next one may go well
                log.warning("store %s: the sweep ended early: %s", entry.name, error)

    async def _say(self, name: str, reason: str, message: str) -> None:
        log.warning("store %s: %s: %s", name, reason, message)
        if raw := self._entries[name].raw:
            await self._kube.event(raw, type="Warning", reason=reason, message=message)

    async def sweep(self, name: str) -> tuple[str, ...]:
        """Remove what nobody owns: the store is listed first, Images are read after. Raises Problem, ApiError."""
        entries: list[ListedEntry] = []

        def say(event: Event) -> None:
            if isinstance(event, Listed):
                entries.extend(event.entries)

        answer = await self._runner.run(List(store=await self.ref(name)), say)
        if isinstance(answer, Failed):
            raise answer.trouble.problem()
        owned: dict[str, frozenset[int]] = {}
        pending: dict[str, int] = {}
        async for obj in self._kube.list(IMAGE):
            status = Image.model_validate(obj).status
            revisions = [h.revision for h in status.history]
            if status.pending:
                revisions.append(status.pending.revision)
                pending[obj["metadata"]["uid"]] = status.pending.revision
            revisions += [status.artifact.revision] if status.artifact else []
            owned[obj["metadata"]["uid"]] = frozenset(revisions)
        try:
            keys = leftovers(entries, owned, pending, self.installation, self._settings.sweep_age)
        except TooMuch as error:
            await self._say(name, "SweepRefused", str(error))
            return ()
        if keys:
            log.info("store %s: the sweep removes %d leftovers", name, len(keys))
            troubles: list[Trouble] = []
            answer = await self._runner.run(
                Remove(keys=keys, stores=(await self.ref(name),)),
                lambda event: troubles.append(event.trouble) if isinstance(event, StoreFailed) else None,
            )
            for trouble in [*troubles, *([answer.trouble] if isinstance(answer, Failed) else [])]:
                await self._say(name, "SweepIncomplete", trouble.message)
        return keys
