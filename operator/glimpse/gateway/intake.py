"""What all uploads go through, in one request or in parts: who may, what is refused before a byte, what a worker gets.

One place, so that no way in has another rule.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar

import aiohttp
from aiohttp import web

from glimpse.api.image import Image, Pending
from glimpse.gateway.access import Access, Caller
from glimpse.gateway.admission import Admission
from glimpse.gateway.beginnings import Beginnings
from glimpse.gateway.catalog import Catalog
from glimpse.gateway.ranges import matches
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal, away, said, sentence
from glimpse.gateway.turns import Turns
from glimpse.kube import IMAGE, ApiError, Gone, Kube, Object
from glimpse.problems import (
    ConversionFailed,
    DecompressionFailed,
    Problem,
    QuotaExceeded,
    SourceUnavailable,
    StoreFull,
    TooLarge,
)
from glimpse.runners import Inline
from glimpse.settings import Settings
from glimpse.tasks import Fetch, Record, Remove, Share, StoreRef, UploadOrigin

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

_STATUS: Final[dict[type[Problem], int]] = {
    TooLarge: 413,
    QuotaExceeded: 413,
    StoreFull: 507,
    DecompressionFailed: 422,
    ConversionFailed: 422,
    SourceUnavailable: 400,
}
"""The HTTP status for a failure of a worker; for others 422 if a person must act, 503 if time may help."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a sender wants to bring."""

    namespace: str
    name: str
    size: int | None
    """Bytes of the whole, if it is known."""
    said: tuple[tuple[str, str], ...] = ()
    """Digests: algorithm and hex."""


class Intake:
    """The one way for bytes from a sender to a worker. For one event loop."""

    def __init__(self, settings: Settings, kube: Kube, catalog: Catalog, access: Access, admission: Admission) -> None:
        self.settings, self.kube, self.catalog = settings, kube, catalog
        self._access, self._admission = access, admission
        self.runner = Inline(stop_grace=settings.transfers.stop_grace, at_once=settings.uploads.at_once)
        self.beginnings = Beginnings(kube, settings.uploads.given_up)
        self._turns = Turns(settings.uploads.at_once)
        self.count: Callable[[int], None] = lambda _bytes: None
        """Told of each byte that was received."""
        self.yields: Callable[[str | None], Awaitable[None]] | None = None
        """Has a place given back that is held without need: in this namespace, if one is named."""

    async def close(self, _app: web.Application) -> None:
        """End all workers."""
        await self.runner.close()

    async def may(self, request: web.Request, namespace: str, name: str) -> Caller:
        """Who calls. Raises Refusal unless he may upload. Who may not even see the image hears that there is none."""
        caller = await self._access.caller(request.headers.get("Authorization"), request.remote)
        if not await self._access.allowed(caller, "update", namespace, name):
            await self._admission.sight(caller, namespace, name)
            raise Refusal(403, f"This takes the permission to update images/data in the namespace {namespace}.")
        return caller

    async def read(self, namespace: str, name: str) -> Object:
        """The Image as it is now. Raises Refusal."""
        try:
            return await self.kube.get(IMAGE, name, namespace)
        except Gone:
            raise Refusal(404, NOT_FOUND) from None
        except ApiError as error:
            raise away() from error

    async def refuse(self, request: web.Request, caller: Caller, wanted: Wanted, found: Image) -> None:
        """Raises Refusal for what can be seen before the first byte."""
        spec, where = found.spec, f"The image {wanted.namespace}/{wanted.name}"
        if found.metadata.deletion_timestamp:
            raise Refusal(409, f"{where} is being deleted.")
        if not spec.source.upload:
            raise Refusal(409, f"{where} takes no uploads: its bytes come from elsewhere; set spec.source to upload.")
        if spec.suspend:
            raise Refusal(409, f"{where} is suspended: unset spec.suspend first.")
        if spec.deactivated and not await self._access.administers(caller, wanted.namespace, wanted.name):
            raise Refusal(
                403, f"{where} is deactivated: it takes no uploads until its owner or an administrator unsets that."
            )
        if wanted.size is not None and wanted.size > self.settings.limits.image_size:
            raise Refusal(413, f"This installation takes images up to {self.settings.limits.image_size} bytes.")
        served = f'"{found.status.artifact.digest}"' if found.status.artifact else None
        none, some = (",".join(request.headers.getall(name, ())) for name in ("If-None-Match", "If-Match"))
        if served and matches(none, served, weak=True):
            raise Refusal(412, f"{where} has such bytes already.")
        if some and not (served and matches(some, served, weak=False)):
            raise Refusal(412, f"{where} serves other bytes than your precondition names.")
        given = spec.checksum.digest.partition(":") if spec.checksum and spec.checksum.digest else None
        if given and dict(wanted.said).get(given[0], given[2]) != given[2]:
            raise Refusal(422, f"What you send has not the {given[0]} digest that spec.checksum.digest asks for.")

    async def enter(self, namespace: str) -> None:
        """Take one of the places for a worker, to be given back by `leave`. Raises Refusal if there is none."""
        if not self._turns.free(namespace) and self.yields:
            await self.yields(None if self._turns.full else namespace)
        if not self._turns.take(namespace):
            text = f"{len(self._turns)} uploads are under way here, which is as many as may be."
            if not self._turns.full:
                text = f"{self._turns.each} uploads into namespace {namespace} are under way here, half of all places."
            raise Refusal(503, text, retry_after=LATER)

    @asynccontextmanager
    async def place(self, namespace: str) -> AsyncIterator[None]:
        """Around what takes a place for a worker. Raises Refusal if there is none."""
        await self.enter(namespace)
        try:
            yield
        finally:
            self.leave(namespace)

    def leave(self, namespace: str) -> None:
        """Give the place back."""
        self._turns.leave(namespace)

    async def task(self, wanted: Wanted, found: Image, pending: Pending, uid: str) -> Fetch:
        """What a worker is to do with the bytes of the upload with this uid. Raises Refusal."""
        spec, settings, upload = found.spec, self.settings, pending.upload
        refs = await self.stores(wanted, pending.stores, upload.used if upload else {})
        said = [f"{algorithm}:{value}" for algorithm, value in wanted.said]
        checksum = spec.checksum.digest if spec.checksum else None
        checksum = checksum or (said[0] if said else None)
        others = [each for each in said if checksum is None or each.partition(":")[0] != checksum.partition(":")[0]]
        return Fetch(
            attempt=secrets.token_hex(6),
            record=Record(
                installation=refs[0].installation,
                namespace=wanted.namespace,
                name=wanted.name,
                uid=found.metadata.uid,
                revision=pending.revision,
                spec_hash=pending.spec_hash,
            ),
            origin=UploadOrigin(uid=uid, size=wanted.size, digests=tuple(others)),
            checksum=checksum,
            digests=tuple(settings.digests),
            disk_format=spec.format.disk,
            decompress=spec.format.decompress,
            convert_to=spec.format.convert_to,
            limit=settings.limits.image_size,
            ratio=settings.limits.compression_ratio,
            stores=refs,
            transfers=settings.transfers,
            spool=settings.spool,
        )

    async def stores(
        self, wanted: Wanted, names: Sequence[str], used: Mapping[str, int] = MappingProxyType({})
    ) -> tuple[StoreRef, ...]:
        """Those of these stores that can be opened, at least one; `used`: by quota. Raises Refusal."""
        refs, troubles = list[StoreRef](), list[str]()
        for name in names:
            try:
                ref, limit = await self.catalog.places.ref(name)
            except Problem as problem:
                log.warning("store %s takes no upload: %s: %s", name, problem.reason, problem.message)
                troubles.append(f"{name}: {problem.reason}")
                continue
            if limit is not None and name in used:
                if wanted.size is None:
                    text = f"The store {name} has a quota for each namespace: say the length of what you send."
                    raise Refusal(411, text)
                share = Share(namespace=wanted.namespace, limit=limit, used=used[name])
                ref = ref.model_copy(update={"share": share})
            refs.append(ref)
        if not refs:
            raise Refusal(503, f"No store can be written to ({', '.join(troubles)}).", retry_after=LATER)
        return tuple(refs)

    async def sweep(self, task: Fetch) -> None:
        """Remove what this task's worker, which has ended, may have left: nobody else will look for it there soon."""
        keys = tuple(f"{task.record.key}.{task.attempt}{more}" for more in ("", "y"))
        try:
            await self.runner.run(Remove(keys=keys, stores=task.stores), lambda _: None)
        except Problem as problem:
            log.warning("what is left of an upload is left to the sweep: %s", problem.message)

    @asynccontextmanager
    async def patience(self) -> AsyncIterator["Patience"]:
        """Around what is read of a body. Raises Refusal where its sender is silent, too slow, or goes away."""
        with_end, uploads = asyncio.timeout(None), self.settings.uploads
        patience = Patience(with_end, self.settings.gateway_idle, uploads.minimum_rate, uploads.rate_window)
        try:
            async with with_end:
                yield patience
        except TimeoutError:
            raise patience.refusal from None
        except (OSError, aiohttp.ClientError, web.PayloadAccessError, aiohttp.http.HttpProcessingError) as error:
            raise Refusal(400, "The upload broke off.") from error


class Patience:
    """How long a sender is waited for."""

    def __init__(self, timeout: asyncio.Timeout, idle: float, rate: int, window: float) -> None:
        """`idle`: seconds of silence that are borne; `rate`: bytes per second, the least over `window` s of waiting."""
        self._timeout, self._idle, self._rate, self._window = timeout, idle, rate, window
        self._since: float | None = None
        self._waited, self._came = 0.0, 0  # in this window
        self.why: Refusal | None = None

    async def chunk(self, request: web.Request) -> bytes:
        """The next bytes of a body; none at its end."""
        came = await self.wait(request.content.readany())
        self.count(len(came))
        return came

    def count(self, came: int) -> None:
        """So many bytes were sent."""
        self._came += came
        if self._enough and self._waited >= self._window:
            self._waited, self._came = 0.0, 0

    async def wait(self, sender: Awaitable[T]) -> T:
        """For something that is the sender's to do."""
        self._since = asyncio.get_running_loop().time()
        if self.why is None:
            self._timeout.reschedule(self._since + min(self._idle, self._left))
        came = await sender
        self._waited += self.silent
        self._since = None
        if self.why is None:
            self._timeout.reschedule(None)
        return came

    @property
    def silent(self) -> float:
        """Seconds for which the sender has said nothing, though it may."""
        return asyncio.get_running_loop().time() - self._since if self._since is not None else 0.0

    @property
    def _enough(self) -> bool:
        """Whether this window has what it must have."""
        return self._came >= self._rate * self._window

    @property
    def _left(self) -> float:
        """Seconds that the sender has to bring what is missing of it."""
        return math.inf if self._enough else max(self._window - self._waited, 0.0)

    @property
    def refusal(self) -> Refusal:
        """Why it was waited no longer."""
        if self.why:
            return self.why
        if self._left < self._idle:
            return Refusal(408, f"Fewer than {self._rate} bytes a second came over {self._window:g} s.")
        return Refusal(408, f"Nothing came for {self._idle:.0f} s.")

    def end(self, why: Refusal) -> None:
        """Wait no longer, whatever is being waited for."""
        if self.why is None:
            self.why = why
            if self._timeout.expired():
                return
            self._timeout.reschedule(asyncio.get_running_loop().time())


async def wait(request: web.Request) -> None:
    """The client sends nothing until it is told to, which is when a worker is there to take it."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed


async def go_on(request: web.Request) -> None:
    """Tell a client that waits for it to send."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= aiohttp.HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


def told(problem: Problem) -> Refusal:
    """What a sender hears of a worker's failure."""
    status = next((code for kind, code in _STATUS.items() if isinstance(problem, kind)), None)
    status = status or (422 if problem.permanent else 503)
    later = LATER if status in (503, 507) else None
    log.warning("an upload has failed: %s: %s", problem.reason, problem.message)
    text = sentence(f"{problem.reason}: {said(problem.reason, problem.message)}")
    return Refusal(status, text, retry_after=later)
