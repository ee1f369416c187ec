"""Uploads in one request: the bytes of a new revision, answered when it is there, or with the reason why not.

The operator gives each upload a revision, a worker takes the bytes, and the operator makes what the worker has stored a
revision that is served; here the three are brought together, and the client hears what became of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

from aiohttp import web

from glimpse.api.image import HistoryEntry
from glimpse.gateway.account import Account
from glimpse.gateway.beginnings import Begun
from glimpse.gateway.feed import Feed
from glimpse.gateway.grant import ENDED, Grant, Unwanted, understood
from glimpse.gateway.intake import Intake, Wanted, go_on, told, wait
from glimpse.gateway.paths import SERVED, image
from glimpse.gateway.refusals import Refusal, away
from glimpse.gateway.said import digests
from glimpse.gateway.straight import hand_on
from glimpse.kube import ApiError, Conflict, Gone
from glimpse.problems import Problem
from glimpse.tasks import Fetch

log: Final = logging.getLogger(__name__)

ALIVE: Final = timedelta(seconds=60)
"""How long an upload counts as under way without another word of us ..."""
SAY: Final = 20.0
"""... which comes each so many seconds."""


class Upload:
    """The handler of PUT."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def routes(self) -> list[web.RouteDef]:
        """PUT of an image's bytes."""
        return [web.put(SERVED, self._put, expect_handler=wait)]

    async def _put(self, request: web.Request) -> web.Response:
        namespace, name = image(request.match_info["namespace"], request.match_info["file"])
        caller = await self._intake.may(request, namespace, name)
        wanted = _wanted(request, namespace, name)
        refuse = partial(self._intake.refuse, request, caller, wanted)
        with self._intake.catalog.followers.follow(namespace, name) as followed:
            followed.learn(await self._intake.read(namespace, name))
            await refuse(understood(followed.obj))
            async with self._intake.place(namespace):
                pass  # where there is none, nothing is begun; and who waits for his turn holds none
            begin, spec = self._intake.beginnings.begin, {"size": wanted.size}
            async with begin(followed, spec, refuse, self._alive) as begun, self._intake.place(namespace):
                entry = await self._upload(request, wanted, begun)
        path = f"/v1/namespaces/{namespace}/images/{name}/revisions/{entry.revision}?uid={begun.found.metadata.uid}"
        answer = {
            "digest": entry.digest,
            "revision": entry.revision,
            "size": entry.size,
            "diskFormat": entry.disk_format,
        }
        url = self._intake.settings.gateway_url + path
        headers = {"Location": path, "ETag": f'"{entry.digest}"', "Cache-Control": "no-store"}
        return web.json_response({**answer, "url": url}, status=201, headers=headers)

    async def _upload(self, request: web.Request, wanted: Wanted, begun: Begun) -> HistoryEntry:
        account, grant, found = begun
        task = await self._intake.task(wanted, found, grant.pending, account.uid)
        await self._send(request, task, account, grant)
        account.store(grant.pending.revision, timedelta(0))
        try:
            await account.write()
        except (Gone, Conflict):
            await grant.look(self._intake.kube)
            raise Refusal(409, ENDED) from None
        except ApiError as error:
            raise away() from error
        return await grant.promoted()

    @asynccontextmanager
    async def _alive(self, account: Account) -> AsyncIterator[None]:
        saying = asyncio.create_task(self._say(account))
        try:
            yield
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)

    @staticmethod
    async def _say(account: Account) -> None:
        while True:
            await asyncio.sleep(SAY)
            account.renew(lives=ALIVE)
            try:
                await account.write()
            except ApiError as error:
                log.warning("upload %s: %s", account.name, error.message)

    async def _send(self, request: web.Request, task: Fetch, account: Account, grant: Grant) -> None:
        """Hand the body to a worker, to its end. Raises Refusal."""

        def count(sent: int) -> None:
            grant.check()
            account.offset += sent
            self._intake.count(sent)

        feed = Feed(self._intake.runner, task)
        try:
            await feed.start()
            async with self._intake.patience() as patience:
                await go_on(request)
                await hand_on(request, feed, patience, count)
            await feed.end()
        except Problem as problem:
            account.fail(problem)
            raise told(problem) from problem
        except Unwanted:
            await feed.stop()
            await self._intake.sweep(task)
            raise
        finally:
            await feed.stop()


def _wanted(request: web.Request, namespace: str, name: str) -> Wanted:
    if "Content-Range" in request.headers:
        raise Refusal(400, "A part of an image cannot be put: send the whole, without Content-Range.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "Send the bytes as they are, without Content-Encoding; a compressed file is unpacked.")
    size = request.content_length
    if size == 0 or not request.can_read_body:
        raise Refusal(411 if size is None else 400, "There are no bytes in this request: send the image as its body.")
    headers = (request.headers.get("Content-Digest"), request.headers.get("Repr-Digest"))
    return Wanted(namespace, name, size, tuple(digests(*headers).items()))
