"""How an upload begins, in one request or in parts: what is refused, its turn, its account, its revision.

An account is an object in the API server and a revision keeps others out, so whoever can hear no hears it before there
is either; and what was right before a wait is looked at again after it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from pydantic import ValidationError

from glimpse.api.image import Image
from glimpse.api.upload import ImageUpload
from glimpse.gateway.account import Account
from glimpse.gateway.follow import Followed
from glimpse.gateway.grant import OTHER, TURN, Grant, understood
from glimpse.gateway.refusals import LATER, Refusal
from glimpse.kube import UPLOAD, ApiError, Kube

_GIVEN_UP: Final = "another upload has taken its place, since nothing more of it had come"


class Begun(NamedTuple):
    """An upload that may write to stores."""

    account: Account
    grant: Grant
    found: Image
    """What its bytes must be."""


class Beginnings:
    """Whose turn it is, image by image. For one event loop."""

    def __init__(self, kube: Kube, given_up: float) -> None:
        """`given_up`: seconds after which an upload in parts that nobody goes on with gives way to another."""
        self._kube, self._given_up = kube, timedelta(seconds=given_up)
        self._turns = WeakValueDictionary[tuple[str, str], asyncio.Lock]()

    @asynccontextmanager
    async def begin(
        self,
        followed: Followed,
        spec: Mapping[str, Any],
        refuse: Callable[[Image], Awaitable[None]],
        alive: Callable[[Account], AbstractAsyncContextManager[None]],
    ) -> AsyncIterator[Begun]:
        """An upload with this spec, which is at its end if the block fails. Raises Refusal.

        `refuse` raises Refusal for what the image takes no upload of; `alive` says of the account that it lives.
        """
        async with AsyncExitStack() as stack:
            async with self._turn(followed):
                found = understood(followed.obj)
                await refuse(found)
                account = await Account.create(self._kube, found, spec)
                await stack.enter_async_context(account.ending())
                await stack.enter_async_context(alive(account))
                grant = await Grant.wait(followed, account.uid)
            found = await grant.image()
            await refuse(found)
            yield Begun(account, grant, found)

    @asynccontextmanager
    async def _turn(self, followed: Followed) -> AsyncIterator[None]:
        """Nobody else begins one for this image here, and none is under way. Raises Refusal."""
        meta = understood(followed.obj).metadata
        lock = self._turns.setdefault((meta.namespace, meta.name), asyncio.Lock())
        until = asyncio.get_running_loop().time() + TURN
        try:
            async with asyncio.timeout_at(until):
                await lock.acquire()
        except TimeoutError:
            raise Refusal(409, OTHER, retry_after=LATER) from None
        try:
            if other := _under_way(followed):
                await self._end(meta.namespace, other)
                free = lambda _: None if _under_way(followed) else True  # noqa: E731 - it is a condition
                if not await followed.until(free, until - asyncio.get_running_loop().time()):
                    raise Refusal(409, OTHER, retry_after=LATER)
            yield
        finally:
            lock.release()

    async def _end(self, namespace: str, uid: str) -> None:
        """End the upload with this uid if it was given up."""
        with suppress(ApiError):  # it is not known to be, or somebody goes on with it just now
            async for obj in self._kube.list(UPLOAD, namespace):
                if obj["metadata"]["uid"] == uid and self._is_given_up(obj):
                    account = Account(self._kube, obj)
                    account.fail(Refusal(410, _GIVEN_UP))
                    await self._kube.patch_status(UPLOAD, obj, account.status.dump(), exact=True)

    def _is_given_up(self, obj: dict[str, Any]) -> bool:
        try:
            upload = ImageUpload.model_validate(obj)
        except ValidationError:
            return False
        since = upload.status.held_until or upload.metadata.creation_timestamp
        ended = upload.status.outcome is not None or not upload.spec.resumable
        return not ended and since is not None and since + self._given_up <= datetime.now(UTC)


def _under_way(followed: Followed) -> str | None:
    """The uid of the upload that the image has."""
    pending = understood(followed.obj).status.pending
    return pending.upload.uid if pending and pending.upload else None
