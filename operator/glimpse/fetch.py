"""Brings one revision into stores: which of them lack it, the ways to its bytes, one pass over each until one succeeds.

Apart from the other tasks, since it is where sources, checks and stores meet.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial

from glimpse.problems import (
    ChecksumMismatch,
    DataLost,
    DecompressionFailed,
    InvalidConfiguration,
    NotFound,
    Problem,
    SourceChanged,
    SourceNotFound,
    SourceUnavailable,
    StoreConflict,
    combined,
)
from glimpse.resume import Joined, Left, Mark, furthest
from glimpse.shape import Shape
from glimpse.sources import brief, shown
from glimpse.sources.http import HttpSource, open_http
from glimpse.sources.pipe import UPLOADED, PipeSource
from glimpse.sources.proof import Expected, expected
from glimpse.stores import Entry, Store, open_store
from glimpse.streams import Cancel, Checked, Digest, Meter, Reader, tee
from glimpse.tasks import (
    URL_LENGTH,
    Answer,
    Done,
    Event,
    Fetch,
    HttpOrigin,
    ImageOrigin,
    LocationOrigin,
    Mirror,
    Progress,
    Record,
    Stored,
    StoreFailed,
    StoreOrigin,
    Taking,
    Trouble,
    UploadOrigin,
)
from glimpse.verdicts import Verdicts
from glimpse.ways import Familiar, Known, Once, Opened, Others, Way, place, stored

Say = Callable[[Event], None]

_log = logging.getLogger(__name__)


class Fetcher:
    """One fetch: which stores lack the object, the ways to its bytes, one pass over each until one succeeds."""

    def __init__(self, task: Fetch, say: Say, cancelled: threading.Event) -> None:
        self._task = task
        self._say = say
        self._cancelled = cancelled
        self._key = task.record.key
        self._failures: dict[str, Problem] = {}
        self._record: Record | None = None
        self._sent = False  # the pipe of an upload is read from
        self._verdicts = Verdicts()

    def run(self) -> Answer:
        """Raises the most useful Problem if no store holds the object afterwards."""
        holders, lacking = self._look()
        lacking = [store for store in lacking if not self._clone(store)]
        if lacking:
            try:
                copies = [] if isinstance(self._task.origin, LocationOrigin) else list(map(self._copy, holders))
                self._fill(lacking, copies or self._ways(lacking))
            except Known as known:
                return Done(record=known.record, unchanged=True)
            except Problem as problem:
                if not holders:
                    raise
                for store in lacking:
                    if store.name not in self._failures:
                        self._fail(store.name, problem)
        if self._record is None:
            raise combined([(f"store {name}", problem) for name, problem in self._failures.items()])
        return Done(record=self._record)

    def _look(self) -> tuple[list[Store], list[Store]]:
        """The stores that hold the object already, and those that lack it; the others have failed."""
        holders, lacking = list[Store](), list[Store]()
        for ref in self._task.stores:
            try:
                store = open_store(ref)
                entry = self._adopt(store)
            except Problem as problem:
                self._fail(ref.name, problem)
                continue
            if entry:
                holders.append(store)
                self._say(Stored(store=store.name, location=entry.location, size=entry.size))
            else:
                lacking.append(store)
        return holders, lacking

    def _adopt(self, store: Store) -> Entry | None:
        """What an attempt before this one has committed. Raises StoreConflict if that is something else."""
        try:
            entry = store.stat(self._key)
        except NotFound:
            return None
        found = entry.record
        if (
            found is None
            or (found.spec_hash, found.size) != (self._task.record.spec_hash, entry.size)
            or (self._record and found.digest != self._record.digest)
            or self._task.expects not in {None, found.digest}
        ):
            raise StoreConflict(f"store {store.name} holds other bytes as revision {self._task.record.revision}")
        self._record = self._record or found
        return entry

    def _clone(self, store: Store) -> bool:
        """Make the object of another Image's in the same store. What fails is in the log, and a copy follows."""
        origin = self._task.origin
        if not isinstance(origin, ImageOrigin) or store.name not in {ref.name for ref in origin.stores}:
            return False
        going = Cancel(self._cancelled).finish
        attempt = f"{self._task.attempt}c"  # a server may go on with a copy that has failed, under its own name
        try:
            going()
            entry = store.clone(origin.key, origin.digest, self._key, attempt, self._ours, going=going)
        except Problem as problem:
            if not self._cancelled.is_set():
                _log.warning("the bytes of %s are copied, as the store does not do it: %s", self._key, problem.message)
            return False
        if entry is None:
            return False
        self._record = self._record or entry.record
        self._say(Stored(store=store.name, location=entry.location, size=entry.size))
        return True

    def _ours(self, record: Record) -> Record:
        """Another Image's record, as ours."""
        identity = ("installation", "namespace", "name", "uid", "revision", "spec_hash")
        ours = {name: getattr(self._task.record, name) for name in identity}
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return record.model_copy(update={**ours, "retained": False, "location": "", "stored_at": now})

    def _ways(self, lacking: Sequence[Store]) -> Iterator[Way]:
        """What to try next, if what came before has failed."""
        origin = self._task.origin
        if isinstance(origin, ImageOrigin):
            for ref in origin.stores:
                yield Way(f"store {ref.name}", (ref.name,), partial(self._from_image, open_store(ref), origin))
            return
        if isinstance(origin, StoreOrigin):
            yield self._copy(open_store(origin.store))
            return
        wanted = expected(self._task, self._cancelled)
        if isinstance(origin, LocationOrigin):
            yield Way("", (origin.key,), partial(self._from_location, origin, wanted))
            return
        if isinstance(origin, UploadOrigin):
            begun = partial(self._begun_by, origin.uid)
            yield Way("", (origin.kind,), partial(self._from_upload, origin, wanted), begun)
            return
        yield from self._web_ways(origin, wanted, lacking)

    def _web_ways(self, origin: HttpOrigin, wanted: Expected | None, lacking: Sequence[Store]) -> Iterator[Way]:
        if wanted:
            # A digest proves the whole, so the mirrors can help each other out.
            yield self._web("", origin, origin.urls, wanted, proven=True)
            if not self._verdicts.alone:
                return
        for url in self._begun(origin.urls, lacking):
            if url not in self._verdicts.useless | self._verdicts.fickle:
                yield self._web(brief(url), origin, (url,), wanted)
            if url in self._verdicts.fickle:
                yield self._web(brief(url), origin, (url,), wanted, whole=True)

    def _begun(self, urls: Sequence[str], lacking: Sequence[Store]) -> Sequence[str]:
        """These mirrors, the one first of which most is left: another could not go on with it, and would remove it."""
        if len(urls) == 1:
            return urls
        with furthest(lacking, self._key, self._task.attempt, self._alike) as left:
            return sorted(urls, key=lambda url: not left or left.mark.url != shown(url))

    def _alike(self, mark: Mark) -> bool:
        return mark.spec_hash == self._task.record.spec_hash

    def _begun_by(self, upload: str, mark: Mark) -> bool:
        return (mark.url, mark.guard) == (UPLOADED, upload) and self._alike(mark)

    def _web(
        self,
        name: str,
        origin: HttpOrigin,
        urls: Sequence[str],
        wanted: Expected | None,
        *,
        proven: bool = False,
        whole: bool = False,
    ) -> Way:
        """`proven`, `whole`: as in `open_http`."""

        def fits(mark: Mark) -> bool:
            same = proven or (mark.url == shown(urls[0]) and bool(mark.guard or wanted))
            return same and not whole and self._alike(mark)

        task = self._task
        how = partial(open_http, origin, urls, task.addresses, task.transfers, self._cancelled)
        return Way(
            name, urls, partial(self._from_http, partial(how, proven=proven, whole=whole), origin, urls, wanted), fits
        )

    def _copy(self, store: Store) -> Way:
        return Way(f"store {store.name}", (store.name,), partial(self._from_store, store))

    def _fill(self, lacking: Sequence[Store], ways: Iterable[Way]) -> None:
        """Bring the bytes into all these stores, in one pass. Raises Problem if no way leads to them."""
        met = dict[str, tuple[str, Problem]]()
        for number, way in enumerate(ways):
            attempt = f"{self._task.attempt}x{number}" if number else self._task.attempt
            try:
                outcomes = self._pass(lacking, way, attempt)
            except Problem as problem:
                if self._cancelled.is_set() or isinstance(problem, Known):
                    raise
                met.update(dict.fromkeys(way.places, (way.name, problem)))
                continue
            for store, outcome in outcomes.items():
                if isinstance(outcome, Problem):
                    self._fail(store, outcome)
                else:
                    self._record = self._record or outcome.record
            return
        raise combined(list(dict.fromkeys(met.values())))

    def _pass(self, lacking: Sequence[Store], way: Way, attempt: str) -> dict[str, Entry | Problem]:
        """One reading into all these stores; what an earlier one has left in one of them is not asked for again.

        What fails then for good is tried once more from the start: it may be due to what was left.
        """
        with furthest(lacking, self._key, attempt, way.fits) as left:
            try:
                return self._read(lacking, way, attempt, left)
            except Problem as problem:
                spoiled = problem.permanent or isinstance(problem, SourceChanged | DataLost)
                final = self._cancelled.is_set() or isinstance(problem, Known)
                if left is None or not left.used or not spoiled or final:
                    raise
            left.drop()
        return self._read(lacking, way, f"{attempt}y", None)

    def _read(self, lacking: Sequence[Store], way: Way, attempt: str, left: Left | None) -> dict[str, Entry | Problem]:
        with way.open(left) as opened:
            opened.body.start()
            once = Once(opened.record)
            sinks = {store.name: partial(self._put, store, attempt, opened, once) for store in lacking}
            return tee(opened.body, sinks, self._task.transfers.stall_timeout)

    def _put(self, store: Store, attempt: str, opened: Opened, record: Callable[[], Record], body: Reader) -> Entry:
        left, mark, origin = opened.left, opened.mark, self._task.origin
        if opened.version and isinstance(origin, LocationOrigin) and store.name == origin.store.name:
            with place(origin):
                entry = store.register(self._key, attempt, origin.key, opened.version, body=body, record=record)
        elif left and left.store is store and mark:
            entry = store.resume(left.partial, left.mark.length, body, record, mark)
        else:
            entry = store.put(self._key, attempt, body, record, mark)
        self._say(Stored(store=store.name, location=entry.location, size=entry.size))
        return entry

    def _fail(self, name: str, problem: Problem) -> None:
        self._failures[name] = problem
        self._say(StoreFailed(store=name, trouble=Trouble.of(problem)))

    def _open(
        self, opened: Callable[..., HttpSource], urls: Sequence[str], left: Left | None
    ) -> tuple[HttpSource, Reader]:
        """The source, and the whole of its bytes; of them those that are left, if it is still the same file."""
        if left:
            expected = left.mark.version(alone=[left.mark.url] == [shown(url) for url in urls])
            try:
                source = opened(start=left.start, expected=expected)
            except SourceChanged:
                left.drop()
            else:
                left.used = True
                return source, Joined(left, source, self._cancelled)
        source = opened()
        return source, source

    @contextmanager
    def _from_http(
        self,
        opened: Callable[..., HttpSource],
        origin: HttpOrigin,
        urls: Sequence[str],
        wanted: Expected | None,
        left: Left | None,
    ) -> Iterator[Opened]:
        task = self._task
        try:
            source, whole = self._open(opened, urls, left)
        except Problem:
            self._tell(origin, [(url, 0, 0.0, True) for url in urls])
            raise
        left = left if left and left.used else None
        shape: Shape | None = None
        try:
            shape = Shape(task, whole, wanted, self._say, self._cancelled, start=left.mark.length if left else 0)

            def record() -> Record:
                return self._described(shape, source.url, source.etag, source.last_modified)

            mark = Mark.of(task.record.spec_hash, source, proven=wanted is not None)
            with shape.open(Familiar(record, task.expects, task.unless)) as body:
                if left and not (mark and shape.untouched):
                    raise DataLost("what an earlier transfer has left is not what is stored now")
                if left:
                    shape.trail.demand(left.mark.length, left.mark.digest)
                yield Opened(body, record, mark.along(shape.trail) if mark and shape.untouched else None, left)
        except Problem as problem:
            if not (shape and shape.verified) and not isinstance(problem, Known):
                self._verdicts.learn(source, problem, resumed=left is not None)
            if left or not isinstance(problem, ChecksumMismatch | DecompressionFailed):
                raise
            used = ", ".join(remote.name for remote in source.used)
            whose = "joined of several answers," if source.doubtful else f"{used}:"
            raise type(problem)(f"{whose} {problem.message}") from problem
        finally:
            source.close()
            self._tell(origin, [(each.url, each.bytes, each.seconds, each.failed) for each in source.remotes])

    @contextmanager
    def _from_upload(self, origin: UploadOrigin, wanted: Expected | None, left: Left | None) -> Iterator[Opened]:
        """What somebody sends, after what was kept of it. What has been read from a pipe does not come again."""
        if origin.pipe is None:
            raise SourceNotFound("no store holds what was uploaded; upload it again")
        if self._sent:
            raise SourceUnavailable("what was kept of the upload is not what was sent; send it again from its start")
        self._sent = True
        # One byte is asked for at least, so that there is a request that hears what became of it.
        task, start = self._task, left.start if left else 0
        kept = left.mark.length if left else 0
        source = PipeSource(origin.pipe, origin.uid, origin.size, start=start)
        if left:
            left.used = True
        self._say(Taking(start=start))
        whole = Joined(left, source, self._cancelled) if left else source
        said = [Digest(name, value, by="the sender") for name, _, value in (d.partition(":") for d in origin.digests)]
        with Checked(whole, said) as sent:
            shape = Shape(task, sent if said else whole, wanted, self._say, self._cancelled, start=kept)

            def record() -> Record:
                return self._described(shape, None, None, None)

            mark = Mark.of(task.record.spec_hash, source, proven=False)
            with shape.open() as body:
                if left:
                    if not shape.untouched:
                        raise DataLost("what was kept of the upload is not what is stored now")
                    shape.trail.demand(kept, left.mark.digest)
                yield Opened(body, record, mark.along(shape.trail) if mark and shape.untouched else None, left)

    @contextmanager
    def _from_location(self, origin: LocationOrigin, wanted: Expected | None, _left: Left | None) -> Iterator[Opened]:
        """What others have put into a store, as it is: it stays there, so nothing can be made of it."""
        task, home = self._task, open_store(origin.store)
        with ExitStack() as stack:
            with place(origin):
                version = home.locate(origin.key)
                reader = stack.enter_context(home.read(origin.key, version))
            plain = task.model_copy(update={"decompress": "never", "convert_to": None})
            shape = Shape(plain, Others(origin, reader), wanted, self._say, self._cancelled)

            def record() -> Record:
                return self._described(shape, home.where(origin.key), version.etag, version.last_modified)

            known = task.expects or (self._record.digest if self._record else None)
            body = stack.enter_context(shape.open(Familiar(record, known, task.unless)))
            if shape.compression and task.decompress == "auto":
                raise InvalidConfiguration(
                    f"{origin.key} in store {home.name} is compressed ({shape.compression}), and what is registered "
                    "stays as it is: set spec.format.decompress to never, or let it be fetched by source.http"
                )
            yield Opened(body, record, version=version)

    def _described(self, shape: Shape, url: str | None, etag: str | None, last_modified: str | None) -> Record:
        return self._task.record.model_copy(
            update={
                **shape.facts(),
                "source_url": url if url and len(url) <= URL_LENGTH else None,
                "etag": etag,
                "last_modified": last_modified,
                "stored_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            }
        )

    def _tell(self, origin: HttpOrigin, met: Iterable[tuple[str, int, float, bool]]) -> None:
        """How mirrors did, where there is a choice; those that were not asked are left out."""
        for url, count, seconds, failed in met:
            if len(origin.urls) > 1 and (count or failed) and not self._cancelled.is_set():
                self._say(Mirror(number=origin.urls.index(url), bytes=count, seconds=seconds, failed=failed))

    @contextmanager
    def _from_store(self, store: Store, _left: Left | None) -> Iterator[Opened]:
        """A verified copy; its record stays as it is, but that it is one of this Image, and lies nowhere else."""
        with (
            stored(store, self._key, self._cancelled, self._task.expects) as (reader, taps, found),
            Checked(reader, [*taps, self._meter(reader.size)], lie=DataLost) as body,
        ):
            whose = {name: getattr(self._task.record, name) for name in ("installation", "namespace", "name")}
            copied = found.model_copy(update={"location": "", **whose})
            yield Opened(body, lambda: copied)

    @contextmanager
    def _from_image(self, store: Store, origin: ImageOrigin, _left: Left | None) -> Iterator[Opened]:
        """Another Image's bytes, verified, under our own name."""
        with (
            stored(store, origin.key, self._cancelled, origin.digest) as (reader, taps, found),
            Checked(reader, [*taps, self._meter(reader.size)], lie=DataLost) as body,
        ):
            yield Opened(body, lambda: self._ours(found))

    def _meter(self, total: int | None) -> Meter:
        return Meter(lambda done: self._say(Progress(done=done, total=total)))
