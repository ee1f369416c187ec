"""Uploads in one request: the bytes of a new revision, answered when it is there, or with the reason why not.

The operator gives each upload a revision, a worker takes the bytes, and the operator makes what the worker has stored a
revision that is served; here the three are brought together, and the client hears what became of it.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from glimpse.api.base import GROUP, VERSION
from glimpse.api.image import HistoryEntry, Image, Pending
from glimpse.api.upload import ImageUploadStatus, UploadFailure
from glimpse.gateway.access import Access
from glimpse.gateway.admission import Admission
from glimpse.gateway.catalog import Catalog
from glimpse.gateway.feed import Feed
from glimpse.gateway.follow import Followed
from glimpse.gateway.paths import SERVED, image
from glimpse.gateway.refusals import LATER, NOT_FOUND, Refusal
from glimpse.gateway.said import digests
from glimpse.kube import IMAGE, UPLOAD, ApiError, Conflict, Forbidden, Gone, Kube, Object
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
from glimpse.tasks import Fetch, Record, Share, StoreRef, UploadOrigin

log: Final = logging.getLogger(__name__)

TURN: Final = 10.0
"""Seconds that another upload for the same image is waited for."""
BEGIN: Final = 60.0
"""Seconds that the operator may take to give an upload a revision."""
PROMOTE: Final = 120.0
"""Seconds that it may take to make a revision of what was stored."""
CHANGED: Final = "The image was changed while its bytes were uploaded; upload them again."
ALIVE: Final = timedelta(seconds=60)
"""How long an upload counts as under way without another word of us ..."""
SAY: Final = 20.0
"""... which comes each so many seconds."""
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
class _Wanted:
    """What a request brings."""

    namespace: str
    name: str
    size: int | None
    said: tuple[tuple[str, str], ...]
    """Digests: algorithm and hex."""


class Upload:
    """The handler of PUT."""

    def __init__(self, settings: Settings, kube: Kube, catalog: Catalog, access: Access, admission: Admission) -> None:
        self._settings, self._kube, self._catalog = settings, kube, catalog
        self._access, self._admission = access, admission
        self._runner = Inline(stop_grace=settings.transfers.stop_grace, at_once=settings.uploads.at_once)
        self._running = 0

    def routes(self) -> list[web.RouteDef]:
        """PUT of an image's bytes."""
        return [web.put(SERVED, self._put, expect_handler=_wait)]

    async def close(self, _app: web.Application) -> None:
        """End all workers."""
        await self._runner.close()

    async def _put(self, request: web.Request) -> web.Response:
        namespace, name = image(request.match_info["namespace"], request.match_info["file"])
        await self._may(request, namespace, name)
        wanted = _wanted(request, namespace, name)
        with self._catalog.followers.follow(namespace, name) as followed:
            followed.learn(await self._read(namespace, name))
            found = _image(followed.obj)
            self._refuse(request, found, wanted)
            if self._running >= self._settings.uploads.at_once:
                text = f"{self._running} uploads are under way here, which is as many as may be."
                raise Refusal(503, text, retry_after=LATER)
            self._running += 1
            try:
                entry = await self._upload(request, wanted, found, followed)
            finally:
                self._running -= 1
        path = f"/v1/namespaces/{namespace}/images/{name}/revisions/{entry.revision}?uid={found.metadata.uid}"
        answer = {
            "digest": entry.digest,
            "revision": entry.revision,
            "size": entry.size,
            "diskFormat": entry.disk_format,
        }
        url = self._settings.gateway_url + path
        headers = {"Location": path, "ETag": f'"{entry.digest}"', "Cache-Control": "no-store"}
        return web.json_response({**answer, "url": url}, status=201, headers=headers)

    async def _may(self, request: web.Request, namespace: str, name: str) -> None:
        """Raises Refusal unless the caller may upload. Who may not even see the image hears that there is none."""
        caller = await self._access.caller(request.headers.get("Authorization"), request.remote)
        if not await self._access.allowed(caller, "update", namespace, name):
            await self._admission.sight(caller, namespace, name)
            raise Refusal(403, f"This takes the permission to update images/data in the namespace {namespace}.")

    async def _read(self, namespace: str, name: str) -> Object:
        try:
            return await self._kube.get(IMAGE, name, namespace)
        except Gone:
            raise Refusal(404, NOT_FOUND) from None
        except ApiError as error:
            raise _away() from error

    def _refuse(self, request: web.Request, found: Image, wanted: _Wanted) -> None:
        """Raises Refusal for what can be seen before the first byte."""
        spec, where = found.spec, f"The image {wanted.namespace}/{wanted.name}"
        if found.metadata.deletion_timestamp:
            raise Refusal(409, f"{where} is being deleted.")
        if not spec.source.upload:
            raise Refusal(409, f"{where} takes no uploads: its bytes come from elsewhere; set spec.source to upload.")
        if spec.suspend:
            raise Refusal(409, f"{where} is suspended: unset spec.suspend first.")
        if wanted.size is not None and wanted.size > self._settings.limits.image_size:
            raise Refusal(413, f"This installation takes images up to {self._settings.limits.image_size} bytes.")
        served = f'"{found.status.artifact.digest}"' if found.status.artifact else None
        if request.headers.get("If-None-Match", "").strip() == "*" and served:
            raise Refusal(412, f"{where} has bytes already.")
        if (match := request.headers.get("If-Match")) and match.strip() not in ("*" if served else "", served):
            raise Refusal(412, f"{where} serves other bytes than your precondition names.")
        given = spec.checksum.digest.partition(":") if spec.checksum and spec.checksum.digest else None
        if given and dict(wanted.said).get(given[0], given[2]) != given[2]:
            raise Refusal(422, f"What you send has not the {given[0]} digest that spec.checksum.digest asks for.")

    async def _upload(self, request: web.Request, wanted: _Wanted, found: Image, followed: Followed) -> HistoryEntry:
        async with self._account(wanted, found) as account:
            pending = await self._begin(account, followed)
            task = await self._task(wanted, found, pending, account.uid)
            await self._send(request, task, account, partial(self._still, account, pending, followed))
            account.status = account.status.but(
                outcome="Stored", revision=pending.revision, expires_at=datetime.now(UTC)
            )
            try:
                await self._write(account)
            except (Gone, Conflict):
                raise Refusal(409, CHANGED) from None
            except ApiError as error:
                raise _away() from error
            return await self._promoted(account, pending, followed)

    @asynccontextmanager
    async def _account(self, wanted: _Wanted, found: Image) -> AsyncIterator["_Account"]:
        """An ImageUpload, which is kept alive, and ends with the block: as what has happened there."""
        account = _Account(await self._create(wanted, found), wanted.size)
        saying = asyncio.create_task(self._say(account))
        try:
            yield account
        except BaseException as error:
            if account.status.outcome != "Stored":
                account.fail(error)
                with suppress(ApiError):
                    await asyncio.shield(self._write(account))
            raise
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)

    async def _create(self, wanted: _Wanted, found: Image) -> Object:
        meta = found.metadata
        body: Object = {
            "metadata": {
                "name": f"{meta.name[:50].rstrip('-.')}-{secrets.token_hex(5)}",
                "namespace": meta.namespace,
                "ownerReferences": [
                    {"apiVersion": f"{GROUP}/{VERSION}", "kind": IMAGE.kind, "name": meta.name, "uid": meta.uid}
                ],
                "labels": {
                    "app.kubernetes.io/name": "glimpse",
                    "app.kubernetes.io/component": "upload",
                    "app.kubernetes.io/part-of": "glimpse",
                    "app.kubernetes.io/managed-by": "glimpse",
                },
            },
            "spec": {
                "image": meta.name,
                "imageUID": meta.uid,
                **({"size": wanted.size} if wanted.size is not None else {}),
            },
        }
        try:
            return await self._kube.create(UPLOAD, body, meta.namespace)
        except Forbidden as error:
            log.warning("no upload can be begun in %s: %s", meta.namespace, error.message)
            raise Refusal(403, f"No upload can be begun in the namespace {meta.namespace}: {error.message}") from error
        except ApiError as error:
            raise _away() from error

    async def _say(self, account: "_Account") -> None:
        while True:
            await asyncio.sleep(SAY)
            try:
                await self._write(account.renewed())
            except ApiError as error:
                log.warning("upload %s: %s", account.name, error.message)

    async def _write(self, account: "_Account") -> None:
        async with account.turn:
            account.obj = await self._kube.patch_status(UPLOAD, account.obj, account.status.dump())

    async def _begin(self, account: "_Account", followed: Followed) -> Pending:
        """Wait until the operator has given this upload a revision."""

        def granted(obj: Object | None) -> Pending | None:
            pending = _image(obj).status.pending
            return pending if pending and pending.upload and pending.upload.uid == account.uid else None

        for seconds in (TURN, BEGIN - TURN):
            if pending := await followed.until(granted, seconds):
                return pending
            status = _image(followed.obj).status
            if status.pending and status.pending.upload:
                raise Refusal(409, "Another upload for this image is under way.", retry_after=LATER)
        said = {each.type: each for each in status.conditions}
        why = next((said[name] for name in ("Stalled", "Reconciling", "Ready") if name in said), None)
        text = f": {why.reason}: {why.message}" if why and why.reason != "WaitingForUpload" else "."
        raise Refusal(503, f"The image cannot take an upload at the moment{text}", retry_after=LATER)

    async def _task(self, wanted: _Wanted, found: Image, pending: Pending, uid: str) -> Fetch:
        spec, settings, upload = found.spec, self._settings, pending.upload
        assert upload  # noqa: S101 - _begin has looked
        refs = await self._stores(wanted, pending.stores, upload.used)
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

    async def _stores(self, wanted: _Wanted, names: Sequence[str], used: Any) -> tuple[StoreRef, ...]:
        """Those of these stores that can be opened, at least one. Raises Refusal."""
        refs, troubles = list[StoreRef](), list[str]()
        for name in names:
            try:
                ref, limit = await self._catalog.places.ref(name)
            except Problem as problem:
                troubles.append(problem.message)
                continue
            if limit is not None and name in used:
                if wanted.size is None:
                    text = f"The store {name} has a quota for each namespace: say the length of what you send."
                    raise Refusal(411, text)
                share = Share(namespace=wanted.namespace, limit=limit, used=used[name])
                ref = ref.model_copy(update={"share": share})
            refs.append(ref)
        if not refs:
            raise Refusal(503, f"No store can be written to: {'; '.join(troubles)}", retry_after=LATER)
        return tuple(refs)

    async def _send(self, request: web.Request, task: Fetch, account: "_Account", check: Callable[[], None]) -> None:
        """Hand the body to a worker, to its end. `check` raises if it is not wanted any more. Raises Refusal."""
        feed = Feed(self._runner, task)
        try:
            await feed.start()
            await _go_on(request)
            try:
                while True:
                    async with asyncio.timeout(self._settings.gateway_idle):
                        chunk = await request.content.readany()
                    if not chunk:
                        break
                    check()
                    account.offset += len(chunk)
                    await feed.write(chunk)
            except TimeoutError:
                raise Refusal(408, f"Nothing came for {self._settings.gateway_idle:.0f} s.") from None
            except (OSError, aiohttp.ClientError, web.PayloadAccessError, aiohttp.http.HttpProcessingError) as error:
                raise Refusal(400, f"The upload broke off after {account.offset} bytes.") from error
            await feed.end()
        except Problem as problem:
            account.fail(problem)
            raise _told(problem) from problem
        finally:
            await feed.stop()

    @staticmethod
    def _still(account: "_Account", pending: Pending, followed: Followed) -> None:
        """Raises Refusal if the operator has changed its mind. Looks only at what is new."""
        if followed.obj is account.looked:
            return
        account.looked = followed.obj
        now = _image(followed.obj).status.pending
        if not (now and now.upload and (now.upload.uid, now.revision) == (account.uid, pending.revision)):
            raise Refusal(409, CHANGED)

    async def _promoted(self, account: "_Account", pending: Pending, followed: Followed) -> HistoryEntry:
        """Wait until what was stored is a revision."""

        def there(obj: Object | None) -> HistoryEntry | None:
            status = _image(obj).status
            if entry := next((h for h in status.history if h.revision == pending.revision), None):
                return entry
            now = status.pending
            if not (now and now.upload and (now.upload.uid, now.revision) == (account.uid, pending.revision)):
                raise Refusal(409, CHANGED)
            return None

        if entry := await followed.until(there, PROMOTE):
            return entry
        text = f"All was stored, but is no revision after {PROMOTE:.0f} s; look at the image later."
        raise Refusal(503, text, retry_after=math.ceil(PROMOTE))


class _Account:
    """What is said of one upload."""

    def __init__(self, obj: Object, size: int | None) -> None:
        self.obj = obj
        self.uid: str = obj["metadata"]["uid"]
        self.name: str = obj["metadata"]["name"]
        self.offset = 0
        self.status = ImageUploadStatus(observed_generation=1)
        self.turn = asyncio.Lock()
        self.looked: Object | None = None
        """The image as it was looked at last."""
        self._size = size

    def renewed(self) -> "_Account":
        """It lives."""
        progress = f"{100 * self.offset // self._size}%" if self._size else None
        self.status = self.status.but(offset=self.offset, progress=progress, expires_at=datetime.now(UTC) + ALIVE)
        return self

    def fail(self, error: BaseException) -> None:
        """Nothing comes of it."""
        if self.status.outcome:
            return
        reason, message = "UploadFailed", f"it broke off after {self.offset} bytes"
        if isinstance(error, Problem):
            reason, message = error.reason, error.message
        elif isinstance(error, Refusal):
            message = error.detail
        failure = UploadFailure(reason=reason, message=message[:2048])
        self.status = self.status.but(outcome="Failed", failure=failure, expires_at=datetime.now(UTC))


async def _wait(request: web.Request) -> None:
    """The client sends nothing until it is told to, which is when a worker is there to take it."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed


async def _go_on(request: web.Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= aiohttp.HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


def _wanted(request: web.Request, namespace: str, name: str) -> _Wanted:
    if "Content-Range" in request.headers:
        raise Refusal(400, "A part of an image cannot be put: send the whole, without Content-Range.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "Send the bytes as they are, without Content-Encoding; a compressed file is unpacked.")
    size = request.content_length
    if size == 0 or not request.can_read_body:
        raise Refusal(411 if size is None else 400, "There are no bytes in this request: send the image as its body.")
    headers = (request.headers.get("Content-Digest"), request.headers.get("Repr-Digest"))
    return _Wanted(namespace, name, size, tuple(digests(*headers).items()))


def _image(obj: Object | None) -> Image:
    """What is known of the image. Raises Refusal if it is gone."""
    if obj is None:
        raise Refusal(404, NOT_FOUND)
    try:
        return Image.model_validate(obj)
    except ValidationError as error:
        raise Refusal(409, "This image cannot be understood: it may be of another version.") from error


def _told(problem: Problem) -> Refusal:
    status = next((code for kind, code in _STATUS.items() if isinstance(problem, kind)), None)
    status = status or (422 if problem.permanent else 503)
    later = LATER if status in (503, 507) else None
    return Refusal(status, f"{problem.reason}: {problem.message}", retry_after=later)


def _away() -> Refusal:
    return Refusal(503, "The API server does not answer at the moment.", retry_after=LATER)
