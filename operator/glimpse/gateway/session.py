"""One upload in parts in the hands of this replica: how it comes there, the worker that takes its bytes, how it ends.

An upload outlives requests, workers and replicas: its account is an ImageUpload, its bytes are what a store keeps up to
a checkpoint. What is here makes it quick while all goes well, and can be lost at any moment. Two replicas that both
think that an upload is theirs do no harm: a store gives what was begun to one worker at a time.
"""

import asyncio
import logging
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

from pydantic import ValidationError

from glimpse.api.image import HistoryEntry, Image
from glimpse.api.upload import ImageUpload
from glimpse.gateway.account import Account, Taken
from glimpse.gateway.feed import Feed
from glimpse.gateway.grant import CHANGED, ENDED, Grant, Unwanted, revision, understood
from glimpse.gateway.intake import Intake, Patience, Wanted, told
from glimpse.gateway.refusals import LATER, SOON, Refusal, away, sentence
from glimpse.kube import UPLOAD, ApiError, Conflict, Gone, Object
from glimpse.problems import Problem
from glimpse.tasks import Fetch

log: Final = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=30)
"""How long an upload is held without another word of us ..."""
RENEW: Final = 10.0
"""... which comes each so many seconds."""
PATIENCE: Final = 10.0
"""Seconds that another replica has to give an upload to us, which it does between two requests."""
KEPT: Final = timedelta(minutes=5)
"""How long the end of an upload can be asked for."""
SILENT: Final = 5.0
"""Seconds of silence after which a sender gives way to another request: its connection may be long gone."""
LOST: Final = "There is no such upload: it has ended or expired, or never was. Its image says more; begin another one."


def locked() -> Refusal:
    """Somebody else has it."""
    return Refusal(423, "Another request is at work on this upload.", retry_after=SOON)


def taken() -> Refusal:
    """Another replica has it."""
    text = "Another replica of the gateway has taken this upload over; ask by HEAD how far it is, then go on."
    return Refusal(409, text, retry_after=SOON)


class Session:
    """One upload that this replica has in hand."""

    def __init__(self, intake: Intake, me: str, namespace: str, name: str, upload: str) -> None:
        """`me`: this replica; `name`: of the image; `upload`: of the ImageUpload."""
        self._intake, self._me = intake, me
        self._namespace, self._name, self._upload = namespace, name, upload
        self.busy = True
        """A request has its turn, or it is about to go."""
        self.free = asyncio.Event()
        """Nobody has it, or it is gone."""
        self.since = 0.0
        """Since when it rests, on the loop's clock."""
        self.offset = 0
        """Bytes that have come."""
        self.entry: HistoryEntry | None = None
        """The revision that it has become."""
        self.over = False
        """It need not be held any longer."""
        self.patience: Patience | None = None
        """Of the request that sends."""
        self.account: Account | None = None
        """As soon as it is ours."""
        self._why: Refusal | None = None
        self._grant: Grant | None = None
        self._feed: Feed | None = None
        self._task: Fetch | None = None
        self._placed = False
        self._expiry = timedelta(seconds=intake.settings.uploads.expiry)
        self._following = ExitStack()
        self._wake = asyncio.Event()
        follow = self._following.enter_context
        self._image = follow(intake.catalog.followers.follow(namespace, name, self._wake.set))
        self._object = follow(intake.catalog.uploads.follow(namespace, upload, self._wake.set))

    # -- into our hands

    async def take(self) -> None:
        """See that it is ours, from now on if it was not. Raises Refusal."""
        if self.account is None:
            self._image.learn(await self._intake.read(self._namespace, self._name))
            found = understood(self._image.obj)
            try:
                await self._acquire(found)
            except Gone:
                raise Refusal(404, LOST) from None
            except ApiError as error:
                raise away() from error
        if not self.entry:
            await self._check()

    async def _acquire(self, found: Image) -> None:
        loop, kube = asyncio.get_running_loop(), self._intake.kube
        until = loop.time() + PATIENCE
        while True:
            obj = await kube.get(UPLOAD, self._upload, self._namespace)
            upload = self._ours(obj, found)
            if upload.status.outcome == "Stored":
                await self._stored(upload, found)
                return
            self._object.learn(obj)
            status, left = upload.status, until - loop.time()
            try:
                if self._free(upload):
                    status = status.but(
                        holder=self._me,
                        held_until=datetime.now(UTC) + LEASE,
                        asked_by=None,
                        expires_at=datetime.now(UTC) + self._expiry,
                    )
                    obj = await kube.patch_status(UPLOAD, obj, status.dump(), exact=True)
                    break
                if left <= 0:
                    raise locked()
                if status.asked_by != self._me:
                    await kube.patch_status(UPLOAD, obj, status.but(asked_by=self._me).dump(), exact=True)
            except Conflict:
                continue
            await self._object.until(lambda o: True if o is None or self._free(_read(o)) else None, left)
        self._object.learn(obj)
        self._grant = Grant.now(self._image, upload.metadata.uid)
        if not self._grant:
            raise Refusal(404, LOST)
        self.account = Account(kube, obj)

    def _ours(self, obj: Object, found: Image) -> ImageUpload:
        """The upload, if it is one in parts for this image, and can go on. Raises Refusal."""
        upload = _read(obj)
        if not upload.spec.resumable or upload.spec.image_uid != found.metadata.uid:
            raise Refusal(404, LOST)
        if failure := upload.status.failure:
            raise Refusal(410, sentence(f"The upload came to nothing: {failure.reason}: {failure.message}"))
        if upload.status.outcome is None and upload.expires <= datetime.now(UTC):
            raise Refusal(410, "The upload has expired: nothing of it has come for too long. Begin another one.")
        return upload

    def _free(self, upload: ImageUpload) -> bool:
        """Whether nobody else has it; the one before us at our address is dead."""
        holder, until = upload.status.holder, upload.status.held_until
        ours = holder is not None and holder.rpartition("/")[0] == self._me.rpartition("/")[0]
        alone = not self._me.rpartition("/")[0].endswith(":0")  # then others may be called so
        return holder in (None, self._me) or (ours and alone) or until is None or until <= datetime.now(UTC)

    async def _stored(self, upload: ImageUpload, found: Image) -> None:
        """It has come to its end before: with which revision. Raises Refusal."""
        self.entry = revision(found, upload.status.revision)
        if not self.entry:
            grant = Grant.now(self._image, upload.metadata.uid)
            if not grant:
                raise Refusal(410, CHANGED)
            self.entry = await grant.promoted()
        self.account = Account(self._intake.kube, await self._intake.kube.get(UPLOAD, self._upload, self._namespace))
        self.offset, self.over = upload.spec.size or 0, True

    async def _judge(self) -> Refusal | None:
        """Why it can become nothing any more, or is not ours; None: all is well."""
        assert self._grant  # noqa: S101 - it is ours
        if self._why is None:
            if self._object.obj is None:
                self._why = await self._ended()
            else:
                try:
                    self._grant.check()
                except Refusal as refusal:
                    self._why = refusal
        self.over = self.over or self._why is not None
        return self._why

    async def _ended(self) -> Refusal:
        """Why there is no account of it any more."""
        assert self._grant  # noqa: S101 - the same
        try:
            await self._grant.look(self._intake.kube)
        except Refusal as refusal:
            return refusal
        return Unwanted(404, ENDED)

    async def _check(self) -> None:
        """Raises Refusal if it can become nothing any more, or is not ours."""
        if why := await self._judge():
            raise why

    # -- bytes

    async def open(self) -> None:
        """See that there is a worker that takes bytes, from `offset` on. Raises Refusal."""
        if self.entry:
            return
        assert self.account  # noqa: S101 - it was taken
        if self._feed and not self._feed.over:
            if self.complete:  # the request that brought the last byte has not ended well
                await self.finish()
            return
        assert self._grant  # noqa: S101 - the same
        await self._stop()
        if not self._placed:
            await self._intake.enter(self._namespace)
            self._placed = True
        found, spec = await self._grant.image(), self.account.spec
        said = tuple((name, value) for name, _, value in (digest.partition(":") for digest in spec.digests))
        wanted = Wanted(self._namespace, self._name, spec.size, said)
        self._task = await self._intake.task(wanted, found, self._grant.pending, self.account.uid)
        self._feed = Feed(self._intake.runner, self._task)
        try:
            start = await self._feed.start()
        except Problem as problem:
            await self._failed(problem)
        if start is None:
            await self._finished()
        else:
            self.offset = self.account.offset = start

    @property
    def complete(self) -> bool:
        """Whether all bytes have come; what becomes of them is another question."""
        return self.account is not None and self.offset == self.account.spec.size

    async def write(self, data: bytes) -> None:
        """Hand on the next bytes. Raises Refusal."""
        await self._check()
        assert self._feed  # noqa: S101 - it was opened
        assert self.account  # noqa: S101 - the same
        sent = False
        try:
            await self._feed.write(data)
            sent = True
        except Problem as problem:
            await self._failed(problem)
        finally:
            if not sent:  # a part of it may be in the pipe
                await self._stop()
        self.offset += len(data)
        self._intake.count(len(data))
        self.account.offset = self.offset

    async def finish(self) -> None:
        """All has come: wait until it is a revision that is served. Raises Refusal."""
        assert self._feed  # noqa: S101 - it was opened
        try:
            await self._feed.end()
        except Problem as problem:
            await self._failed(problem)
        await self._finished()

    async def _finished(self) -> None:
        assert self.account  # noqa: S101 - it was taken
        assert self._grant  # noqa: S101 - the same
        self.offset = self.account.offset = self.account.spec.size or 0
        self.account.store(self._grant.pending.revision, KEPT)
        await self._write()
        self.over = True
        self.entry = await self._grant.promoted()

    async def _failed(self, problem: Problem) -> NoReturn:
        """A worker has ended. What time can mend is gone on with from what the stores have kept."""
        await self._stop()
        refusal = told(problem)
        if problem.permanent:
            await self._end(problem)
        elif refusal.status == 400:  # noqa: PLR2004 - it was not this request's fault
            refusal = Refusal(503, refusal.detail, retry_after=LATER)
        raise refusal from problem

    async def end(self) -> None:
        """Its sender ends it; what is there of it goes. Raises Refusal."""
        await self._stop()
        await self._end(Refusal(410, "its sender has ended it"))

    async def _end(self, why: Exception) -> None:
        assert self.account  # noqa: S101 - it was taken
        self.over = True
        self.account.fail(why)
        await self._write()

    async def _write(self) -> None:
        assert self.account  # noqa: S101 - it was taken
        try:
            await self.account.write()
        except Taken:
            raise taken() from None
        except (Gone, Conflict):
            raise await self._ended() from None
        except ApiError as error:
            raise away() from error

    async def _stop(self) -> None:
        feed, self._feed = self._feed, None
        if feed:
            await feed.stop()

    # -- out of our hands

    @property
    def asked(self) -> bool:
        """Whether another replica wants to have it."""
        status = self._object.obj.get("status", {}) if self._object.obj else {}
        return status.get("askedBy") not in (None, self._me) and status.get("holder") == self._me

    def seize(self) -> None:
        """A request has its turn."""
        self.busy = True
        self.free.clear()

    def rest(self) -> None:
        """No request is at work any more."""
        self.busy, self.since = False, asyncio.get_running_loop().time()
        self._wake.set()
        self.free.set()

    async def yielded(self) -> None:
        """Wait for the end of a request whose sender is silent. Raises Refusal if it is not, or does not end."""
        if not self.patience or self.patience.silent < SILENT:
            raise locked()
        self.patience.end(Refusal(409, "Another request has taken this upload over."))
        try:
            async with asyncio.timeout(PATIENCE):
                await self.free.wait()
        except TimeoutError:
            raise locked() from None

    async def next(self, deadline: float) -> None:
        """Renew the lease until there is a reason to let go, or it was rested for so long. Never raises."""
        loop = asyncio.get_running_loop()
        due = loop.time() + RENEW
        while self.account and not self.over and self._why is None:
            self._wake.clear()
            if await self._judge() or (not self.busy and (self.asked or loop.time() >= self.since + deadline)):
                break
            if loop.time() >= due:
                due = loop.time() + RENEW
                await self._renew()
                continue
            rest = due if self.busy else min(due, self.since + deadline)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(rest):
                    await self._wake.wait()
        if self._why and self.patience:
            self.patience.end(self._why)

    async def _renew(self) -> None:
        assert self.account  # noqa: S101 - it was taken
        self.account.renew(lives=self._expiry, held=LEASE)
        try:
            await self.account.write()
        except Taken:
            self._why, self.over = taken(), True
        except Gone:
            self._why, self.over = await self._ended(), True
        except ApiError as error:
            log.warning("upload %s: %s", self._upload, error.message)

    async def release(self) -> None:
        """Let go: the worker ends, and what it has is left in the stores, or removed where nobody wants it."""
        await self._stop()
        if isinstance(self._why, Unwanted) and self._task:
            await self._intake.sweep(self._task)
        if self._placed:
            self._placed = False
            self._intake.leave(self._namespace)
        if self.account and not self.account.status.outcome and self._why is None:
            self.account.release()
            self.account.renew(lives=self._expiry)
            with suppress(ApiError):
                await self.account.write()
        self._following.close()


def _read(obj: Object) -> ImageUpload:
    """Raises Refusal 404 for what cannot be understood."""
    try:
        return ImageUpload.model_validate(obj)
    except ValidationError as error:
        raise Refusal(404, LOST) from error
