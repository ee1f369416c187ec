"""The catalogue: what can be downloaded and where its copies are, fed by a watch.

A download must not wait for the API server, and must not ask it what thousands of clients ask at once. Of an Image
only what a download needs is kept, so many of them cost little.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from glimpse.api import image
from glimpse.api.image import ImageStatus
from glimpse.gateway.follow import Followers
from glimpse.gateway.index import Index
from glimpse.gateway.places import Places
from glimpse.gateway.refusals import LATER, Refusal
from glimpse.gateway.sharing import Sharing
from glimpse.kube import IMAGE, STORE, UPLOAD, ApiError, Gone, Kind, Kube, Object

log: Final = logging.getLogger(__name__)

PATIENCE: Final = 5.0
"""Seconds to wait for the API server, where the watch does not know."""
LOOKING: Final = 8
"""Looks at the API server at once, for names that the watch does not know."""
ABSENT: Final = 1.0
"""Seconds that it is remembered that there is no object of a name."""
KEPT: Final = 10_000
"""Such names that are remembered."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of an image, as far as a download needs it."""

    number: int
    digest: str
    """`algorithm:hex`."""
    digests: tuple[tuple[str, str], ...]
    """Further ones: algorithm and hex."""
    size: int
    disk_format: str
    stored_at: datetime
    """Without a fraction of a second."""
    stores: tuple[str, ...]
    """Names of stores that hold it."""
    registered: image.Revision | None = None
    """All about it, if one of them holds it where others have put it."""

    def hex(self, algorithm: str) -> str | None:
        """The digest by this algorithm, if it was computed."""
        named, _, value = self.digest.partition(":")
        return value if named == algorithm else dict(self.digests).get(algorithm)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that can be downloaded."""

    uid: str
    served: int | None
    """The number of the revision that the plain link gives."""
    revisions: tuple[Revision, ...]
    visibility: str = "private"
    members: tuple[str, ...] = ()
    """Namespaces that may have it, if it is shared."""
    deactivated: bool = False

    def revision(self, number: int | None = None) -> Revision | None:
        """One revision; without a number the served one."""
        wanted = self.served if number is None else number
        return next((r for r in self.revisions if r.number == wanted), None)

    def pick(self, number: int | None, uid: str | None) -> Revision | None:
        """The same, of the object with this `uid` if one is given."""
        return self.revision(number) if uid in (None, self.uid) else None

    def key(self, revision: Revision) -> str:
        """The name of a revision in every store."""
        return f"{self.uid}-{revision.number}"

    def dated(self, revision: Revision) -> bool:
        """Whether its date tells this revision from the others: two may be made in one second."""
        return all(r.stored_at != revision.stored_at for r in self.revisions if r is not revision)


class Catalog:
    """Images and stores of the whole cluster, as of a moment ago. Read by the event loop only."""

    def __init__(self, kube: Kube, namespace: str, *, silence: float) -> None:
        """`namespace`: the operator's own; `silence`: seconds after which a watch without a sign of life is dead."""
        self.places = Places(kube, namespace)
        self.sharing = Sharing()
        self.followers = Followers()
        self.uploads = Followers()
        self._kube = kube
        self._silence = silence
        self.index = Index(lambda: self.complete)
        self._images: dict[tuple[str, str], Entry] = {}
        self._absent: dict[tuple[str, str], float] = {}
        self._looks = asyncio.Semaphore(LOOKING)
        self._heard: dict[str, float] = {}
        self._synced: set[str] = set()
        self._watches: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch."""
        self._watches = [
            asyncio.create_task(
                self._watch(IMAGE, self._image, self.index.take, self.followers.learn), name="watch images"
            ),
            asyncio.create_task(self._watch(STORE, self.places.learn), name="watch stores"),
            asyncio.create_task(self._watch(UPLOAD, self.uploads.learn), name="watch uploads"),
        ]

    async def close(self) -> None:
        """Stop watching; what is known stays."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    @property
    def trouble(self) -> str | None:
        """Why the catalogue may be incomplete or old; None if it is neither."""
        return self._trouble(IMAGE) or self._trouble(STORE)

    @property
    def complete(self) -> bool:
        """Whether all images are known, and as they were no longer than `silence` ago.

        Else one may be there that is not known, or be withdrawn unheard.
        """
        return self._trouble(IMAGE) is None

    def _trouble(self, kind: Kind) -> str | None:
        if kind.plural not in self._synced:
            return f"the first list of {kind.plural} is not complete"
        if (silent := time.monotonic() - self._heard[kind.plural]) > self._silence:
            return f"the watch of {kind.plural} is silent for {silent:.0f} s"
        return None

    @property
    def _old(self) -> bool:
        """Whether what is known counts no more. What is known before all is, is as good as ever."""
        return IMAGE.plural in self._synced and not self.complete

    def __len__(self) -> int:
        """How many images can be downloaded."""
        return len(self._images)

    def known(self, namespace: str, name: str) -> Entry | None:
        """What the watch knows of an image: for those who may not learn whether there is one, so nobody is asked.

        Nothing while the watch is silent for too long: then look at `complete`.
        """
        return None if self._old else self._images.get((namespace, name))

    async def find(
        self, namespace: str, name: str, number: int | None, uid: str | None
    ) -> tuple[Entry, Revision] | None:
        """A revision, of the object with this `uid` if one is given; without a number the served one.

        What a moment ago was not there is looked for at the API server itself: who has just seen an image become
        Ready must find it, though the watch may be a moment late. Only that there was no object at all is remembered,
        for a second, in which none is made and filled. Only call it for those who may see the answer.
        Raises Refusal 503 while the API server is away.
        """
        where = (namespace, name)
        if found := _pick(self.known(namespace, name), number, uid):
            return found
        try:
            async with asyncio.timeout(PATIENCE), self._looks:
                if self._absent.get(where, 0.0) > time.monotonic():
                    return None
                obj = await self._kube.get(IMAGE, name, namespace)
        except Gone:
            self._miss(where)
            return None
        except (ApiError, TimeoutError) as error:
            raise Refusal(
                503, "Whether there is such an image cannot be asked at the moment.", retry_after=LATER
            ) from error
        # the answer may be older than what the watch says next, so it is used once and not kept
        return _pick(_entry(obj), number, uid)

    def _miss(self, where: tuple[str, str]) -> None:
        now = time.monotonic()
        self._absent.pop(where, None)
        while self._absent and (len(self._absent) >= KEPT or next(iter(self._absent.values())) <= now):
            del self._absent[next(iter(self._absent))]
        self._absent[where] = now + ABSENT

    async def _watch(self, kind: Kind, *takers: Callable[[str, Object], None]) -> None:
        async for change, obj in self._kube.watch(kind):
            self._heard[kind.plural] = time.monotonic()
            if change == "SYNCED":
                self._synced.add(kind.plural)
                self.index.synced = IMAGE.plural in self._synced
            elif change != "BOOKMARK":
                for take in takers:
                    try:
                        take(change, obj)
                    except Exception:  # one strange object must not end the watch
                        log.exception("%s %s cannot be read", kind.kind, obj.get("metadata", {}).get("name"))

    def _image(self, change: str, obj: Object) -> None:
        meta = obj["metadata"]
        where = (sys.intern(meta["namespace"]), meta["name"])
        self._absent.pop(where, None)
        known = self._images.get(where)
        entry = None if change == "DELETED" else _entry(obj)
        if entry is None:
            # a list tells only of the new object where one was deleted and made anew while nobody looked
            if known and (change != "DELETED" or known.uid == meta["uid"]):
                del self._images[where]
                self.sharing.learn(where, ())
        elif entry != known:
            self._images[where] = entry
            self.sharing.learn(where, entry.members)


def _pick(entry: Entry | None, number: int | None, uid: str | None) -> tuple[Entry, Revision] | None:
    revision = entry.pick(number, uid) if entry else None
    return (entry, revision) if entry and revision else None


def _entry(obj: Object) -> Entry | None:
    """What of an Image can be downloaded; None if there is nothing, or if it is being removed."""
    meta = obj["metadata"]
    if meta.get("deletionTimestamp") and not obj["spec"].get("protected"):  # the operator keeps a protected one whole
        return None
    try:
        status = ImageStatus.model_validate(obj.get("status", {}))
    except ValidationError as error:
        what = error.errors(include_input=False, include_url=False)[0]
        log.warning("image %s/%s has a status that cannot be read: %s", meta["namespace"], meta["name"], what)
        return None
    revisions = tuple(_revisions(status))
    if not revisions:
        return None
    spec = obj["spec"]
    visibility = sys.intern(spec.get("visibility", "private"))
    return Entry(
        meta["uid"],
        status.artifact.revision if status.artifact else None,
        revisions,
        visibility,
        tuple(sys.intern(name) for name in spec.get("members", ())) if visibility == "shared" else (),
        spec.get("deactivated", False),
    )


def _revisions(status: ImageStatus) -> Iterator[Revision]:
    """Every revision with a copy."""
    artifact = status.artifact
    held: dict[int, tuple[image.Revision, list[str]]] = {h.revision: (h, [*h.stores]) for h in status.history}
    if artifact:
        kept = held.pop(artifact.revision, (artifact, []))[1]
        where = [*kept, *(s.name for s in status.stores if s.revision == artifact.revision)]
        held = {artifact.revision: (artifact, where), **held}
    for about, where in held.values():
        yield Revision(
            about.revision,
            about.digest,
            tuple((sys.intern(a), h) for a, h in about.digests.items() if not about.digest.startswith(f"{a}:")),
            about.size,
            sys.intern(about.disk_format),
            about.stored_at.replace(microsecond=0),
            tuple(sys.intern(name) for name in dict.fromkeys(where)),
            about if about.location else None,
        )
