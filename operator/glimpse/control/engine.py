"""The queue: one task for each unsettled object, which sees, decides and acts until nothing is left to do.

It knows neither kopf nor HTTP: objects are offered to it, and what it writes goes through Kube. Nothing here decides;
`decide` does.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from glimpse.api.base import FINALIZER
from glimpse.api.image import Image, ImageStatus
from glimpse.control import metrics, originals
from glimpse.control import store as stores
from glimpse.control.conditions import READY, RECONCILING, STALLED, find, is_true
from glimpse.control.draft import touched
from glimpse.control.driving import Looks, drive
from glimpse.control.entry import Entry
from glimpse.control.image import decide
from glimpse.control.originals import Referers
from glimpse.control.quota import Quotas, held
from glimpse.control.readers import Readers
from glimpse.control.references import References
from glimpse.control.scrub import Scrubber
from glimpse.control.seen import FetchWork, Result, Seen, Verdict, VerifyWork
from glimpse.control.shelf import Shelf
from glimpse.control.uploads import Uploads
from glimpse.control.works import Meter, Works
from glimpse.kube import IMAGE, NAMESPACE, STORE, UPLOAD, Gone, Kind, Kube
from glimpse.problems import DataLost, WorkerLost
from glimpse.runners import Runner
from glimpse.settings import Settings

log = logging.getLogger(__name__)


class Engine:
    """All Images and ImageStores."""

    def __init__(self, settings: Settings, kube: Kube, runner: Runner) -> None:
        self._settings = settings
        self._kube = kube
        self._runner = runner
        self._references = references = References(kube, settings)
        self._images: dict[str, Entry] = {}
        self._counts: Counter[str] = Counter()
        self._labels: dict[str, Mapping[str, str]] = {}
        self._referers = Referers()
        self._ready = asyncio.Event()
        self._closing = False
        self._shelf = Shelf(settings, kube, runner, self._users, self._store_changed)
        self._quotas = Quotas(self._shelf.stores, self._held)
        self._uploads = Uploads(kube, self._used)
        self._works = Works(settings, runner, references, self._shelf.ref, self._quotas)
        self._looks = Looks(self._works, settings.progress_interval)
        self._readers = Readers(kube, settings.namespace)
        self._scrubber = Scrubber(settings.scrub.interval, self._scrub)

    async def start(self) -> None:
        """Learn of all stores and namespaces first: a decision about an image needs them. Raises ApiError."""
        self._works.installation = self._shelf.installation = await self._installation()
        await self._runner.start()
        async for namespace in self._kube.list(NAMESPACE):
            self.offer(NAMESPACE, namespace)
        async for store in self._kube.list(STORE):
            self.offer(STORE, store)
        async for upload in self._kube.list(UPLOAD):
            self.offer(UPLOAD, upload)
        # Who uses a store must be known before anything is decided about it, and who refers to whom.
        async for obj in self._kube.list(IMAGE):
            self._referers.note(self._entry(obj), obj)
            with contextlib.suppress(ValidationError):  # said when it is decided about
                self._note_users(self._entry(obj), Image.model_validate(obj).status)
        self._ready.set()
        self._shelf.start()
        self._scrubber.start()

    async def _installation(self) -> str:
        if self._settings.installation:
            return self._settings.installation
        namespace = await self._kube.get(NAMESPACE, "kube-system")
        return str(namespace["metadata"]["uid"])

    def synced(self) -> bool:
        """Whether decisions can be made."""
        return self._ready.is_set()

    async def close(self) -> None:
        """Stop everything; afterwards no worker lives."""
        self._closing = True
        await self._scrubber.close()
        await self._shelf.close()
        tasks = [t for e in self._images.values() for t in (e.work_task, e.task) if t]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in self._images.values():
            if entry.timer:
                entry.timer.cancel()
        await self._runner.close()

    # -- what is offered

    def offer(self, kind: Kind, obj: dict[str, Any]) -> None:
        """An object is there, or has changed. Never raises."""
        meta = obj["metadata"]
        if kind == NAMESPACE:
            labels = dict(meta.get("labels") or {})
            if self._labels.get(meta["name"]) != labels:
                self._labels[meta["name"]] = labels
                self._kick_unsettled(e for e in self._images.values() if e.namespace == meta["name"])
        elif kind == STORE:
            self._shelf.offer(obj)
        elif kind == UPLOAD:
            self._upload(obj)
        elif kind == IMAGE:
            entry = self._entry(obj)
            version = int(meta["resourceVersion"])
            known = int(entry.raw["metadata"]["resourceVersion"]) if entry.raw else entry.min_version
            if version < entry.min_version or version <= known:
                return
            meta.pop("managedFields", None)
            entry.raw = obj
            self._referers.note(entry, obj)
            self._kick(entry)
            self._kick_referers(entry)

    def _entry(self, obj: dict[str, Any]) -> Entry:
        meta = obj["metadata"]
        if meta["uid"] not in self._images:
            self._images[meta["uid"]] = Entry(meta["uid"], meta["namespace"], meta["name"])
        return self._images[meta["uid"]]

    def gone(self, kind: Kind, obj: dict[str, Any]) -> None:
        """An object is no more."""
        meta = obj["metadata"]
        if kind == NAMESPACE:
            self._labels.pop(meta["name"], None)
        elif kind == STORE:
            self._shelf.gone(obj)
        elif kind == UPLOAD:
            self._upload(obj, gone=True)
        elif kind == IMAGE and (entry := self._images.get(meta["uid"])):
            self._forget(entry)

    def _upload(self, obj: dict[str, Any], *, gone: bool = False) -> None:
        image = self._uploads.offer(obj, gone=gone)
        if image and (entry := self._images.get(image)):
            self._kick(entry)

    def _kick_referers(self, entry: Entry) -> None:
        """Those that refer to this image look at it anew."""
        for uid in self._referers.of(entry.namespace, entry.name):
            if other := self._images.get(uid):
                self._kick(other)

    def _forget(self, entry: Entry) -> None:
        self._images.pop(entry.uid, None)
        entry.gone = True
        self._referers.note(entry, None)
        self._kick_referers(entry)
        if entry.timer:
            entry.timer.cancel()
        if entry.work_task:
            entry.work_task.cancel()
        self._count(entry, None)
        self._quotas.counted(entry.uid)
        self._turn_over(entry)
        self._scrubber.note(entry.uid, None)
        for name in entry.stores:
            self._shelf.users_changed(name)

    def _kick(self, entry: Entry) -> None:
        entry.wake.set()
        if entry.timer:
            entry.timer.cancel()
            entry.timer = None
        if entry.task is None and not self._closing:
            entry.task = asyncio.create_task(self._drive(entry), name=f"image {entry.namespace}/{entry.name}")

    def _kick_unsettled(self, entries: Iterable[Entry]) -> None:
        for entry in list(entries):
            if not entry.settled:
                self._kick(entry)

    def _store_changed(self) -> None:
        """A store has come, gone, or changed what images may expect of it."""
        self._kick_unsettled(self._images.values())

    def _users(self, store: str) -> stores.Users:
        """Who has bytes in a store."""
        users = [e for e in self._images.values() if store in e.stores]
        names = tuple(f"{e.namespace}/{e.name}" for e in users[: stores.NAMED])
        return stores.Users(len(users), sum(e.held.get(store, 0) for e in users), names)

    def _used(self, image: Image) -> tuple[str | None, Mapping[str, int]]:
        """What an upload must know of stores with a quota: one in which a transfer is at work, and what is used."""
        limited = self._quotas.limited(image.spec.stores or [store.name for store in image.status.stores])
        shares = {name: self._quotas.share(name, image, 0) for name in limited}
        busy = next((name for name in limited if self._works.slots.alone(image.metadata.namespace, name)), None)
        return busy, {name: share.used for name, share in shares.items() if share}

    def _held(self, namespace: str, store: str) -> Iterator[tuple[str, int]]:
        """Images of a namespace in a store, with their bytes."""
        of_it = (e for e in self._images.values() if e.namespace == namespace)
        return ((e.uid, e.held[store]) for e in of_it if store in e.held)

    # -- one image

    async def _drive(self, entry: Entry) -> None:
        """See, decide, act, until nothing is left to do."""
        await self._ready.wait()
        try:
            await drive(entry, self._step)
        except Gone:
            self._forget(entry)
        finally:
            entry.task = None

    async def _step(self, entry: Entry) -> None:
        """One decision and what follows from it. Sets `wake` if another one is due at once."""
        if entry.raw is None:
            entry.raw = await self._kube.get(IMAGE, entry.name, entry.namespace)
        raw = entry.raw
        if raw["metadata"]["uid"] != entry.uid:
            raise Gone(f"{entry.namespace}/{entry.name} is another image now")
        image = Image.model_validate(raw)
        references = await self._versions(entry, image)
        labels = await self._labels_of(entry.namespace)
        other = await self._other(image)
        original = originals.seen(image, other, self._referers.circle(entry.namespace, entry.name))
        reading = await self._readers.of(entry.uid, image.status)
        if entry.raw is not raw:
            entry.wake.set()  # it has changed while we looked: what is written must be decided from what is tested
            return
        result = entry.result
        seen = replace(self._see(entry, image, result, labels, references), original=original, reading=reading)
        verdict = decide(seen, self._settings)
        if verdict.finalizer is True:
            finalizers = [*image.metadata.finalizers, FINALIZER]
            self._wrote(entry, await self._kube.set_finalizers(IMAGE, raw, finalizers))
            entry.wake.set()
            return
        if verdict.cancel and entry.work_task:
            entry.work_task.cancel()
            await asyncio.wait([entry.work_task])
            entry.wake.set()
            return
        if verdict.finalizer is False:
            finalizers = [f for f in image.metadata.finalizers if f != FINALIZER]
            await self._kube.set_finalizers(IMAGE, raw, finalizers)
            await self._uploads.remove(entry.uid)
            self._forget(entry)
            return
        await self._write(entry, image, raw, verdict, result)
        later = await self._uploads.clear(entry.uid, verdict.status.pending, verdict.dropped)
        if entry.result is result:
            entry.result = None
        if not isinstance(verdict.start or entry.work, VerifyWork):
            lost = result is not None and isinstance(result.problem, DataLost)
            read = result is not None and isinstance(result.work, VerifyWork) and (lost or not result.problem)
            self._turn_over(entry, read=read)
        if later and (verdict.again is None or later < verdict.again):
            verdict = replace(verdict, again=later)
        await self._go_on(entry, image, verdict)

    async def _go_on(self, entry: Entry, image: Image, verdict: Verdict) -> None:
        """Start what is to be started, or wait for what runs, or for its time."""
        if verdict.start and not entry.work_task:
            entry.work = verdict.start
            entry.meter = Meter(verdict.start.attempt if isinstance(verdict.start, FetchWork) else 1)
            work = self._works.run(image, entry.work, entry.meter, lambda: self._looks.began(entry))
            entry.work_task = asyncio.create_task(work)
            # Not in the task itself: one that is cancelled before it has begun would never say that it has ended.
            entry.work_task.add_done_callback(lambda task: self._worked(entry, task))
        if entry.work_task:
            self._looks.later(entry)
            await entry.wake.wait()
            return
        entry.look = verdict.look
        if verdict.again:
            delay = max(0.0, (verdict.again - datetime.now(UTC)).total_seconds())
            entry.timer = asyncio.get_running_loop().call_later(delay, self._kick, entry)
        if entry.settled and not entry.wake.is_set():
            entry.raw = None

    async def _versions(self, entry: Entry, image: Image) -> str | None:
        """Of the Secrets and ConfigMaps, if they are to be looked at."""
        if not entry.look or entry.work_task:
            return None
        entry.look = False
        return await self._references.version(image)

    async def _other(self, image: Image) -> Image | None:
        """The Image that this one refers to, as it is now."""
        ref = image.spec.source.image
        if not ref:
            return None
        try:
            obj = await self._kube.get(IMAGE, ref.name, ref.namespace or image.metadata.namespace)
        except Gone:
            return None
        return Image.model_validate(obj)

    async def _labels_of(self, namespace: str) -> Mapping[str, str]:
        """Of the namespace; its own event may come after that of its first image."""
        if namespace not in self._labels:
            try:
                self.offer(NAMESPACE, await self._kube.get(NAMESPACE, namespace))
            except Gone:
                return {}
        return self._labels[namespace]

    def _see(
        self, entry: Entry, image: Image, result: Result | None, labels: Mapping[str, str], references: str | None
    ) -> Seen:
        known = self._shelf.stores
        namespace = image.metadata.namespace
        now = datetime.now(UTC)
        if not entry.meter:
            entry.place = self._works.behind(image)
        elif entry.meter.running:
            entry.place = None
        return Seen(
            image=image,
            stores={name: stores.view(store, namespace, labels) for name, store in known.items()},
            now=now,
            defaults=tuple(name for name, store in known.items() if stores.is_default(store)),
            upload=self._uploads.next(image, now),
            running=entry.work if entry.work_task else None,
            queued=entry.place,
            progress=entry.progress,
            result=result,
            scrub=entry.turn is not None and not (result and isinstance(result.work, VerifyWork)),
            references=references,
        )

    async def _scrub(self, uid: str) -> bool:
        """It is this image's turn: whether one of its copies was read."""
        entry = self._images.get(uid)
        if not entry:
            return False
        entry.turn = asyncio.get_running_loop().create_future()
        self._kick(entry)
        return await entry.turn

    def _turn_over(self, entry: Entry, *, read: bool = False) -> None:
        turn, entry.turn = entry.turn, None
        if turn and not turn.done():
            turn.set_result(read)

    async def _write(
        self, entry: Entry, image: Image, raw: dict[str, Any], verdict: Verdict, result: Result | None
    ) -> None:
        """Write the status if it has changed, tell people, and note what others ask of this image."""
        status = verdict.status
        # A store is held from before it may be written to until after its bytes are gone.
        self._note_users(entry, image.status, status)
        if result:
            self._quotas.counted(entry.uid)
        if status != image.status:
            self._wrote(entry, await self._kube.patch_status(IMAGE, raw, status.dump()))
            self._kick_referers(entry)  # our own write comes back as nothing new
            for kind, reason, message in verdict.events:
                await self._kube.event(raw, type=kind, reason=reason, message=message)
                log.info("%s/%s: %s: %s", entry.namespace, entry.name, reason, message)
        self._note_users(entry, status)
        self._scrubber.note(entry.uid, status)
        ready = find(status.conditions, READY)
        self._count(entry, ready.status if ready else "Unknown")
        busy = is_true(status.conditions, RECONCILING) or is_true(status.conditions, STALLED)
        # A time to look at the source again needs no object in memory: it is read when the time has come.
        entry.settled = not busy and verdict.start is None and not status.removals

    def _note_users(self, entry: Entry, *statuses: ImageStatus) -> None:
        """These stores may hold bytes of the image."""
        before = entry.stores
        entry.stores = tuple(dict.fromkeys(name for status in statuses for name in touched(status)))
        entry.held = {}
        for name, size in held(statuses[-1]):
            entry.held[name] = entry.held.get(name, 0) + size
        for name in set(before) ^ set(entry.stores):
            self._shelf.users_changed(name)

    def _count(self, entry: Entry, ready: str | None) -> None:
        if entry.ready != ready:
            self._counts.subtract([entry.ready] if entry.ready else [])
            self._counts.update([ready] if ready else [])
            entry.ready = ready
            metrics.images(self._counts)

    def _wrote(self, entry: Entry, obj: dict[str, Any]) -> None:
        """Our own write is the newest that we know of."""
        obj["metadata"].pop("managedFields", None)
        version = int(obj["metadata"]["resourceVersion"])
        entry.min_version = max(entry.min_version, version)
        if entry.raw is None or int(entry.raw["metadata"]["resourceVersion"]) < version:
            entry.raw = obj

    def _worked(self, entry: Entry, task: asyncio.Task[Result]) -> None:
        """A work has ended, in whatever way."""
        work = entry.work
        entry.work_task = entry.work = entry.meter = entry.progress = None
        entry.wake.set()
        if task.cancelled() or work is None:
            return
        if error := task.exception():
            log.error("%s/%s: %s", entry.namespace, entry.name, error, exc_info=error)
            entry.result = Result(work, problem=WorkerLost(f"the work could not be done: {type(error).__name__}"))
        else:
            entry.result = task.result()
