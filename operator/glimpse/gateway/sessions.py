"""Uploads in parts that this replica has in hand: whose turn it is, and which one goes when there are too many.

One request at a time for each, so that no byte comes twice; between two requests the worker waits for a while.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from glimpse.gateway.intake import Intake
from glimpse.gateway.refusals import SOON, Refusal
from glimpse.gateway.session import Session, locked
from glimpse.settings import Settings


class Sessions:
    """All of them. For one event loop."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._me = _name(intake.settings)
        self._held: dict[tuple[str, str, str], Session] = {}
        self._keepers = dict[Session, asyncio.Task[None]]()
        self._closing = False
        intake.yields = self._yield

    async def close(self, _app: web.Application) -> None:
        """Let go of all, so that another replica need not wait. What has come to its end may end."""
        self._closing = True
        for session in self._held.values():
            if session.patience:
                session.patience.end(Refusal(503, "The gateway is stopping; go on in a moment.", retry_after=SOON))
        resting = [session for session in self._held.values() if not session.busy]
        await asyncio.gather(*map(self._let_go, resting))

    def sending(self, namespace: str, name: str, upload: str) -> Session | None:
        """The session of an upload whose bytes come here right now, and of which some are missing."""
        session = self._held.get((namespace, name, upload))
        return session if session and session.patience and not session.complete else None

    @asynccontextmanager
    async def turn(self, namespace: str, name: str, upload: str, *, opened: bool = True) -> AsyncIterator[Session]:
        """Have this upload for one request, with a worker that takes bytes if `opened`.

        Raises Refusal: 404, 410 there is none (any more), 423 somebody else has it, 503 no worker can be had.
        """
        where = (namespace, name, upload)
        session = self._held.get(where)
        if self._closing:
            raise Refusal(503, "The gateway is stopping; go on in a moment.", retry_after=SOON)
        if session and session.busy:
            await session.yielded()
            session = self._held.get(where)
        if session and session.busy:
            raise locked()
        if session is None:
            session = self._held[where] = Session(self._intake, self._me, namespace, name, upload)
        session.seize()
        try:
            await session.take()
            if session not in self._keepers and not session.entry:
                self._keepers[session] = asyncio.create_task(self._keep(session), name=f"upload {upload}")
            if opened:
                await session.open()
            yield session
        finally:
            session.patience = None
            if session.account is None or session.over or session.asked or self._closing:
                await asyncio.shield(asyncio.create_task(self._let_go(session)))
            else:
                session.rest()

    async def _keep(self, session: Session) -> None:
        await session.next(self._intake.settings.uploads.linger)
        if not session.busy:
            await self._let_go(session)

    async def _let_go(self, session: Session) -> None:
        session.seize()
        keeper = self._keepers.pop(session, None)
        if keeper and keeper is not asyncio.current_task():
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        try:
            await session.release()
        finally:
            self._held = {where: each for where, each in self._held.items() if each is not session}
            session.free.set()

    async def _yield(self, namespace: str | None) -> None:
        """The one that has rested for the longest time gives its place; in this namespace, if one is named."""
        held = [session for where, session in self._held.items() if namespace in (None, where[0])]
        resting = [session for session in held if not session.busy]
        if resting:
            await self._let_go(min(resting, key=lambda session: session.since))


def _name(settings: Settings) -> str:
    """Of this replica, in this life: all before the last slash is that of the one that was here before."""
    return f"{socket.gethostname()[:64]}/{settings.gateway_listen[-40:]}/{secrets.token_hex(4)}"
