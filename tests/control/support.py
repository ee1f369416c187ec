"""A small world for decisions: stores that hold revisions, and works that end as the test says."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from glimpse.api.base import FINALIZER
from glimpse.api.image import Image, ImageStatus, Transfer
from glimpse.control.image import decide
from glimpse.control.seen import (
    FetchWork,
    LookWork,
    Original,
    RemoveWork,
    Result,
    Seen,
    StoreView,
    Verdict,
    VerifyWork,
    Work,
)
from glimpse.control.slots import Place
from glimpse.control.uploads import Upload
from glimpse.problems import DataLost, Problem, StoreConflict
from glimpse.settings import Settings
from glimpse.tasks import Record, Stored

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = Settings(gateway_url="https://gate")
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
URL = "https://a.example/debian.qcow2"
DIGEST = "sha256:" + "a" * 64


def image(
    spec: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    *,
    generation: int = 1,
    finalizer: bool = True,
    **meta: Any,
) -> Image:
    """An Image as the API server would give it."""
    source = {"http": {"urls": [URL]}}
    metadata = {"name": "debian", "namespace": "team-a", "uid": "11-22", "generation": generation}
    metadata["finalizers"] = [FINALIZER] if finalizer else []
    return Image.model_validate(
        {"metadata": metadata | meta, "spec": {"source": source} | (spec or {}), "status": status or {}}
    )


@dataclass
class World:
    """What decisions act upon."""

    image: Image = field(default_factory=image)
    stores: dict[str, StoreView] = field(default_factory=lambda: {"fast": StoreView("fast", "1")})
    defaults: tuple[str, ...] = ("fast",)
    now: datetime = NOW
    running: Work | None = None
    queued: Place | None = None
    progress: Transfer | None = None
    references: str | None = None
    original: Original | None = None
    upload: Upload | None = None
    held: dict[str, dict[int, str]] = field(default_factory=dict)
    """Spec hashes by revision by store: the bytes."""
    contents: dict[tuple[str, int], int] = field(default_factory=dict)
    """Which bytes were stored where."""
    digests: dict[int, str] = field(default_factory=dict)
    """Of what was stored last as a revision."""
    damaged: set[tuple[str, int]] = field(default_factory=set)
    """Copies that differ from what was stored."""
    content: int = 0
    """Which bytes the source has."""
    touched: int = 0
    """How often they were written anew, as they are."""
    validators: bool = True
    """Whether the server tells them apart; a place in a store always does."""
    scrub: bool = False
    reading: frozenset[int] = frozenset()
    """Revisions that a gateway reads."""
    said: list[tuple[str, str, str]] = field(default_factory=list)
    again: datetime | None = None
    gone: bool = False

    def step(self, result: Result | None = None) -> Verdict:
        """See, decide, write the status."""
        seen = Seen(
            image=self.image,
            stores=self.stores,
            now=self.now,
            defaults=self.defaults,
            running=self.running,
            queued=self.queued,
            progress=self.progress,
            result=result,
            scrub=self.scrub,
            references=self.references,
            original=self.original,
            upload=self.upload,
            reading=self.read(self.image.status),
        )
        verdict = decide(seen, SETTINGS)
        again = decide(seen, SETTINGS)
        assert verdict == again, "a decision depends on what is seen alone"
        soon = decide(
            Seen(
                self.image.but(status=verdict.status),
                self.stores,
                self.now + timedelta(milliseconds=1),
                self.defaults,
                verdict.start or self.running,
                self.queued,
                self.progress,
                original=self.original,
                upload=self.upload if self.upload and self.upload.uid != verdict.dropped else None,
                reading=self.read(verdict.status),
            ),
            SETTINGS,
        )
        at_once = verdict.cancel or verdict.finalizer is not None or (verdict.again or NEVER) <= self.now
        if not at_once:
            assert soon.status == verdict.status, "a decision changes nothing when nothing has changed"
        if verdict.finalizer is True:
            self.image = self.image.but(metadata=self.image.metadata.but(finalizers=(FINALIZER,)))
            return verdict
        self.image = self.image.but(status=verdict.status)
        self.gone = verdict.finalizer is False
        self.said += verdict.events
        self.again = verdict.again
        if self.upload and self.upload.uid == verdict.dropped:
            self.upload = None
        if verdict.cancel:
            self.running = None
        elif verdict.start:
            self.running = verdict.start
        return verdict

    def read(self, status: ImageStatus) -> frozenset[int] | None:
        """What is read; nobody looks before something is to be removed."""
        return self.reading if any(removal.after <= self.now for removal in status.removals) else None

    def edit(self, **spec: Any) -> None:
        """A person changes the spec."""
        new = self.image.spec.model_validate(self.image.spec.dump() | spec)
        meta = self.image.metadata
        self.image = self.image.but(spec=new, metadata=meta.but(generation=meta.generation + 1))

    def annotate(self, **annotations: str) -> None:
        """A person sets annotations; no new generation."""
        self.image = self.image.but(metadata=self.image.metadata.but(annotations=annotations))

    def delete(self) -> None:
        """A person deletes the image."""
        self.image = self.image.but(metadata=self.image.metadata.but(deletion_timestamp=self.now))

    def later(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)

    def succeed(self, **record: Any) -> Verdict:
        """What runs ends well."""
        work, self.running = self.running, None
        assert work
        return self.step(self.ended_well(work, **record))

    def ended_well(self, work: Work, **record: Any) -> Result:
        """The result of a work that nothing disturbs, and its effect on the stores."""
        match work:
            case RemoveWork():
                for name in work.stores:
                    held = self.held.setdefault(name, {})
                    for revision in work.revisions or tuple(held):
                        held.pop(revision, None)
                        self.damaged.discard((name, revision))
                return Result(work, removed=frozenset(work.stores))
            case LookWork():
                hope = work.likely and work.etag is None
                return Result(work, unchanged=hope or (self.tells and work.etag == self.etag))
            case VerifyWork():
                bad = work.revision not in self.held.get(work.store, {}) or (work.store, work.revision) in self.damaged
                return Result(work, problem=DataLost("the bytes differ") if bad else None)
            case FetchWork():
                return self._fetched(work, record)

    def _fetched(self, work: FetchWork, more: dict[str, Any]) -> Result:
        origin = None if work.location else work.copy_from  # registered again, it is read from its place
        if origin and ((origin, work.revision) in self.damaged or work.revision not in self.held.get(origin, {})):
            return Result(work, problem=DataLost("the origin differs"))
        content = self.contents[origin, work.revision] if origin else None
        failed: dict[str, Problem] = {}
        adopted = set[str]()
        for name in work.stores:
            if work.revision in self.held.get(name, {}):
                found = self.contents[name, work.revision]
                if (content is None and work.expects in {None, digest_of(found)}) or content == found:
                    content = found  # it feeds the others
                    adopted.add(name)
                else:
                    failed[name] = StoreConflict("other bytes")
        if content is None:
            content = self.content
            if work.expects and digest_of(content) != work.expects:
                return Result(work, problem=DataLost("the source has other bytes"))
            if digest_of(content) == work.unless:
                return Result(work, record=self._record(work, content, more), unchanged=True)
        good = [name for name in work.stores if name not in failed]
        for name in good:
            self.held.setdefault(name, {})[work.revision] = work.spec_hash
            self.contents[name, work.revision] = content
        stored = {n: Stored(store=n, location=f"file:///{n}/11-22-{work.revision}", size=10) for n in good}
        if not good:
            return Result(work, problem=StoreConflict("other bytes"), failed=failed)
        self.digests[work.revision] = digest_of(content)
        return Result(work, record=self._record(work, content, more), stored=stored, failed=failed)

    def _record(self, work: FetchWork, content: int, more: dict[str, Any]) -> Record:
        etag = self.etag if self.tells and content == self.content else None
        stored_at = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        return make_record(work, **({"digest": digest_of(content), "etag": etag, "stored_at": stored_at} | more))

    @property
    def etag(self) -> str:
        """What the server says of what it has now."""
        return f'"{self.content}{"+" * self.touched}"'

    @property
    def tells(self) -> bool:
        """Whether versions are told apart."""
        return self.validators or self.image.spec.source.location is not None

    @property
    def digest(self) -> str:
        """Of what the server has now."""
        return digest_of(self.content)

    def fail(self, problem: Problem, *, crashed: bool = False, references: str | None = None) -> Verdict:
        """What runs ends badly."""
        work, self.running = self.running, None
        assert work
        return self.step(Result(work, problem=problem, crashed=crashed, references=references))

    def settle(self, limit: int = 40) -> Verdict:
        """Let everything end well until nothing is to do."""
        verdict = self.step()
        for _ in range(limit):
            busy = verdict.cancel or (verdict.again is not None and verdict.again <= self.now)
            if self.gone or (not self.running and verdict.finalizer is None and not busy):
                return verdict
            verdict = self.succeed() if self.running else self.step()
        raise AssertionError("it never settles")

    def condition(self, kind: str) -> tuple[str, str] | None:
        """(status, reason) of a condition."""
        return next(((c.status, c.reason) for c in self.image.status.conditions if c.type == kind), None)

    def message(self, kind: str) -> str:
        """The message of a condition."""
        return next(c.message for c in self.image.status.conditions if c.type == kind)


def digest_of(content: int) -> str:
    """Of the bytes that are called so."""
    return f"sha256:{content:064x}" if content else DIGEST


def make_record(work: FetchWork, **more: Any) -> Record:
    """What a worker writes down."""
    values: dict[str, Any] = {
        "installation": "i",
        "namespace": "team-a",
        "name": "debian",
        "uid": "11-22",
        "revision": work.revision,
        "spec_hash": work.spec_hash,
        "digest": DIGEST,
        "digests": {},
        "size": 10,
        "virtual_size": 100,
        "disk_format": "qcow2",
        "source_url": URL,
        "stored_at": "2030-01-01T00:00:00Z",
    }
    return Record(**(values | more))


def ready_world(**spec: Any) -> World:
    """An image that is stored."""
    world = World(image(spec))
    for name in spec.get("stores", ()):
        world.stores[name] = StoreView(name, "1")
    world.settle()
    assert world.condition("Ready") == ("True", "Stored")
    return world
