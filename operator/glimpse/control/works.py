"""Turns a decided work into a worker's task, runs it, and gathers what came of it.

Here what the decision left open is filled in: Secrets, the stores as they are now, a slot.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from glimpse.api.image import HistoryEntry, Image, Transfer
from glimpse.api.locations import Location
from glimpse.api.source import Manner
from glimpse.control import metrics
from glimpse.control.mirrors import Mirrors
from glimpse.control.quota import Quotas
from glimpse.control.references import References
from glimpse.control.seen import FetchWork, LookWork, RemoveWork, Result, VerifyWork, Work
from glimpse.control.slots import Claim, Place, Slots
from glimpse.kube import ApiError
from glimpse.problems import (
    DataLost,
    Problem,
    SecretNotReadable,
    StoreUnavailable,
    WorkerLost,
)
from glimpse.runners import Runner
from glimpse.settings import Settings, Transfers
from glimpse.storeref import told
from glimpse.tasks import (
    ChecksumFile,
    Event,
    Failed,
    Fetch,
    HttpOrigin,
    ImageOrigin,
    LocationOrigin,
    Look,
    Mirror,
    Progress,
    Record,
    Remove,
    Removed,
    Stored,
    StoreFailed,
    StoreOrigin,
    StoreRef,
    Task,
    UploadOrigin,
    Verify,
)

log = logging.getLogger(__name__)

_REMOVALS = 8
"""Removals at once: they are short, and need no fairness."""
_LOOKS = 8
"""Looks at sources at once: they are short as well."""
_PATIENCE = 120.0
"""Seconds that a store may give no bytes while one of its copies is verified."""
_WINDOW = 5.0
"""Seconds that the speed which is shown is measured over."""


class Meter:
    """How far a fetch is and how fast, for status."""

    def __init__(self, attempt: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.running = False
        """Whether it has its slot."""
        self._attempt = attempt
        self._clock = clock
        self._started = datetime.now(UTC).replace(microsecond=0)
        self._points = deque([(clock(), 0)])
        """When it was how far: the last one before the window, and those in it."""
        self._total: int | None = None
        self._converting = False

    def begin(self) -> None:
        """The slot is there."""
        self.running = True
        self._started = datetime.now(UTC).replace(microsecond=0)
        self._points = deque([(self._clock(), 0)])

    def move(self, progress: Progress) -> None:
        """The worker has said how far it is."""
        again = not progress.start <= self._points[-1][1] <= progress.done
        if again or progress.converting != self._converting:
            # from the start again, or with what an earlier transfer had left; or something else is counted
            self._points.clear()
        self._converting = progress.converting
        self._points.append((self._clock(), progress.done))
        self._total = progress.total

    def show(self) -> Transfer:
        """As status has it."""
        now = self._clock()
        while len(self._points) > 1 and self._points[1][0] <= now - _WINDOW:
            self._points.popleft()
        (since, before), (_, done) = self._points[0], self._points[-1]
        speed = (done - before) / (now - since) if now > since else 0.0
        total = self._total
        return Transfer(
            stage="Converting" if self._converting else "Transferring",
            bytes_done=done,
            bytes_total=total,
            percent=min(100, 100 * done // total) if total else None,
            bytes_per_second=int(speed),
            eta_seconds=int((total - done) / speed) if total and speed >= 1 else None,
            attempt=self._attempt,
            started_at=self._started,
        )


def manner(usual: Transfers, wanted: Manner) -> Transfers:
    """How an Image is fetched: as it asks, but no faster than the installation allows."""
    limits = [limit for limit in (usual.bandwidth, wanted.bandwidth) if limit]
    asked = {name: getattr(wanted, name) for name in ("connections", "idle_timeout", "retries")}
    given = {name: value for name, value in asked.items() if value is not None}
    return usual.model_copy(update={**given, "bandwidth": min(limits, default=0)})


def host(image: Image, work: FetchWork | None = None) -> str | None:
    """Of the source that a work reads; without a work, of the Image's. None: bytes come from a store."""
    http = image.spec.source.http
    if http is None or (work and work.copy_from):
        return None
    try:
        return urlsplit(http.urls[0]).hostname
    except ValueError:  # the worker says what is wrong with it
        return None


class Works:
    """Runs works. One for all images."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        references: References,
        ref: Callable[[str], Awaitable[StoreRef]],
        quotas: Quotas,
    ) -> None:
        """`ref`: a store of that name with its secrets; raises Problem."""
        self._settings = settings
        self._runner = runner
        self._references = references
        self._ref = ref
        self._quotas = quotas
        self._removals = asyncio.Semaphore(_REMOVALS)
        self._mirrors = Mirrors()
        self._looks = asyncio.Semaphore(_LOOKS)
        self.slots = Slots(settings.limits)
        self.installation = ""

    async def run(self, image: Image, work: Work, meter: Meter, began: Callable[[], None]) -> Result:
        """Run a work to its end. Cancelled, the worker is dead before the error comes out. Raises nothing else."""
        match work:
            case RemoveWork():
                async with self._removals:
                    return await self._remove(image, work)
            case LookWork():
                async with self._looks:
                    return await self._look(image, work)
            case VerifyWork():
                return await self._verify(image, work)
            case FetchWork():
                return await self._transfer(image, work, meter, began)

    async def _transfer(self, image: Image, work: FetchWork, meter: Meter, began: Callable[[], None]) -> Result:
        claim = Claim(image.metadata.namespace, host(image, work), self._quotas.limited(work.stores))
        async with self.slots.take(meter, claim):
            meter.begin()
            began()
            self._gauge()
            start = time.monotonic()
            result = await self._fetch(image, work, meter)
            self._quotas.stored(image, result.stored)  # before the next one may begin
        self._gauge()
        metrics.transfer_ended(start, result.problem.reason if result.problem else None)
        for name, stored in result.stored.items():
            metrics.stored(name, stored.size)
        return result

    def behind(self, image: Image) -> Place | None:
        """The place in the queue of a fetch that would come now; None if it could begin at once."""
        names = image.spec.stores or [store.name for store in image.status.stores]
        return self.slots.behind(Claim(image.metadata.namespace, host(image), self._quotas.limited(names)))

    def place_of(self, meter: Meter) -> Place | None:
        """The place of one that waits; None if it does not."""
        return self.slots.place(meter)

    def _gauge(self) -> None:
        metrics.TRANSFERS_RUNNING.set(self.slots.used)
        metrics.QUEUE_DEPTH.set(self.slots.waiting)

    async def _fetch(self, image: Image, work: FetchWork, meter: Meter) -> Result:
        meta, spec = image.metadata, image.spec
        versions: str | None = None
        file: ChecksumFile | None = None
        refs, failed = await self._refs(work.stores)
        if not refs:
            return Result(work, failed=failed)
        shares = {ref.name: self._quotas.share(ref.name, image, work.revision) for ref in refs}
        refs = tuple(ref.model_copy(update={"share": shares[ref.name]}) for ref in refs)
        try:
            origin: StoreOrigin | HttpOrigin | LocationOrigin | ImageOrigin | UploadOrigin
            if work.copy_from and work.location:
                origin = await self._place(work.location)
            elif work.copy_from:
                origin = StoreOrigin(store=await self._holder(image, work.revision, work.copy_from))
            elif work.upload:
                origin = UploadOrigin(uid=work.upload)
            elif work.original and work.original.entry:
                origin = await self._original(work.original.uid, work.original.entry)
            else:
                found = await self._origin(image, work)
                if isinstance(found, Result):
                    return found
                origin, file, versions = found
            checksum = spec.checksum.digest if spec.checksum and not work.copy_from else None
            task = Fetch(
                attempt=secrets.token_hex(6),
                record=Record(
                    installation=self.installation,
                    namespace=meta.namespace,
                    name=meta.name,
                    uid=meta.uid,
                    revision=work.revision,
                    spec_hash=work.spec_hash,
                ),
                origin=origin,
                checksum=checksum,
                checksum_file=file,
                digests=tuple(self._settings.digests),
                disk_format=spec.format.disk if not work.copy_from else "auto",
                decompress=spec.format.decompress,
                convert_to=spec.format.convert_to if not work.copy_from else None,
                limit=self._settings.limits.image_size,
                ratio=self._settings.limits.compression_ratio,
                unless=work.unless,
                expects=work.expects,
                stores=refs,
                addresses=self._settings.addresses,
                transfers=manner(self._settings.transfers, spec.transfer),
                bandwidth=self._settings.limits.bandwidth,
                spool=self._settings.spool,
            )
        except Problem as problem:
            return Result(work, problem=problem, references=versions)
        result = await self._run(work, task, meter)
        return replace(result, references=versions, failed=failed | dict(result.failed))

    async def _place(self, location: Location) -> LocationOrigin:
        return LocationOrigin(store=await self._ref(location.store), key=location.key)

    async def _original(self, uid: str, entry: HistoryEntry) -> ImageOrigin:
        """A revision of another Image, in the stores that can be read from."""
        refs = [(await self._ref(name)).model_copy(update={"told": told(name, uid, entry)}) for name in entry.stores]
        return ImageOrigin(stores=tuple(refs), key=f"{uid}-{entry.revision}", digest=entry.digest)

    async def _holder(self, image: Image, revision: int, name: str) -> StoreRef:
        """A store that holds a revision, told of it if it is registered there."""
        ref = await self._ref(name)
        entry = next((h for h in image.status.history if h.revision == revision), None)
        return ref.model_copy(update={"told": told(name, image.metadata.uid, entry)}) if entry else ref

    async def _origin(
        self, image: Image, work: Work
    ) -> tuple[HttpOrigin | LocationOrigin, ChecksumFile | None, str] | Result:
        """The source with its secrets, who says what its bytes are, and their versions; or what is in the way."""
        versions: str | None = None
        try:
            resolved = await self._references.resolve(image)
            versions = resolved.version
            if isinstance(resolved.origin, Problem):
                raise resolved.origin
            if (location := image.spec.source.location) and resolved.origin is None:
                return await self._place(location), resolved.checksum_file, versions
        except ApiError as error:
            problem = SecretNotReadable(f"the API server does not answer: {error.message}")
            return Result(work, problem=problem, references=versions)
        except Problem as problem:
            return Result(work, problem=problem, references=versions)
        assert resolved.origin  # noqa: S101 - resolve() has seen to it
        ordered = self._mirrors.order(resolved.origin.urls)
        return resolved.origin.model_copy(update={"urls": ordered}), resolved.checksum_file, versions

    async def _look(self, image: Image, work: LookWork) -> Result:
        found = await self._origin(image, work)
        if isinstance(found, Result):
            result = found
        else:
            origin, _, versions = found
            task = Look(
                origin=origin,
                url=work.url,
                etag=work.etag,
                last_modified=work.last_modified,
                size=work.size,
                likely=work.likely,
                addresses=self._settings.addresses,
                transfers=manner(self._settings.transfers, image.spec.transfer),
            )
            result = replace(await self._run(work, task, Meter(1)), references=versions)
        said = "failed" if result.problem else "unchanged" if result.unchanged else "changed"
        metrics.LOOKS.labels(said).inc()
        return result

    async def _verify(self, image: Image, work: VerifyWork) -> Result:
        key = f"{image.metadata.uid}-{work.revision}"
        try:
            store = await self._holder(image, work.revision, work.store)
        except Problem as problem:
            return Result(work, problem=problem)
        task = Verify(key=key, digest=work.digest, store=store, rate=self._settings.scrub.rate)
        result = await self._patiently(work, task)
        said = "lost" if isinstance(result.problem, DataLost) else "failed" if result.problem else "good"
        metrics.SCRUBS.labels(said).inc()
        return result

    async def _patiently(self, work: VerifyWork, task: Verify) -> Result:
        """Run a task that only reads; one that hangs is left hanging, or it would hold up all that are to come."""
        meter = Meter(1)
        running = asyncio.ensure_future(self._run(work, task, meter))
        before = -1
        try:
            while not running.done() and before != (before := meter.show().bytes_done):
                await asyncio.wait({running}, timeout=_PATIENCE)
        finally:
            running.cancel()  # a worker that waits for a dead mount cannot even be killed
        if running.done() and not running.cancelled():
            return running.result()
        problem = StoreUnavailable(f"store {work.store} gave no bytes for {_PATIENCE:.0f} s")
        return Result(work, problem=problem)

    async def _remove(self, image: Image, work: RemoveWork) -> Result:
        refs, failed = await self._refs(work.stores)
        if not refs:
            return Result(work, failed=failed)
        erase = {name: tuple(prefix for of, prefix in work.erase if of == name) for name, _ in work.erase}
        task = Remove(uid=image.metadata.uid, revisions=work.revisions, retain=work.retain, erase=erase, stores=refs)
        result = await self._run(work, task, Meter(1))
        return replace(result, failed=failed | dict(result.failed))

    async def _refs(self, names: Iterable[str]) -> tuple[tuple[StoreRef, ...], dict[str, Problem]]:
        """The stores that are there, and what is wrong with the others: one may have gone while the work waited."""
        refs, failed = list[StoreRef](), dict[str, Problem]()
        for name in names:
            try:
                refs.append(await self._ref(name))
            except Problem as problem:
                failed[name] = problem
        return tuple(refs), failed

    async def _run(self, work: Work, task: Task, meter: Meter) -> Result:
        stored: dict[str, Stored] = {}
        failed: dict[str, Problem] = {}
        removed: set[str] = set()

        def say(event: Event) -> None:
            match event:
                case Progress():
                    meter.move(event)
                case Mirror() if isinstance(task, Fetch) and isinstance(task.origin, HttpOrigin):
                    self._mirrors.note(task.origin.urls[event.number], event)
                case Stored():
                    stored[event.store] = event
                case StoreFailed():
                    failed[event.store] = event.trouble.problem()
                case Removed():
                    removed.add(event.store)
                case _:
                    pass

        record, unchanged, problem, crashed = None, False, None, False
        try:
            answer = await self._runner.run(task, say)
            if isinstance(answer, Failed):
                problem = answer.trouble.problem()
            else:
                record, unchanged = answer.record, answer.unchanged
        except WorkerLost as lost:
            problem, crashed = lost, lost.crashed
        removed_from = frozenset(removed)
        return Result(work, record, problem, stored, failed, removed_from, unchanged=unchanged, crashed=crashed)
