"""A TLS relay before the real API server, which can fail in the ways that networks and load balancers do."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import trustme
from aiohttp import web

from servers.kube import Cluster, write_kubeconfig


class Relay:
    """Passes everything on, unless it is told to fail."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.url = ""
        self.ca_file = folder / "relay-ca.crt"
        self.flowing = asyncio.Event()
        """Cleared: watches hang, those that are open and new ones; all else passes."""
        self.flowing.set()
        self.away = False
        """Every request is answered with 503, and watches hang."""
        self.first: deque[tuple[int, Mapping[str, str]]] = deque()
        """Statuses and headers with which the next requests are answered."""
        self.requests: list[tuple[str, str]] = []
        """Method and path of each request; WATCH for a watch, and STREAM once its answer has begun."""
        self.tokens: list[str] = []
        self.at_once = self.most = 0
        self._watches: list[web.Request] = []
        self._asked = asyncio.Condition()

    def kubeconfig(self, token: str) -> Path:
        """A kubeconfig that leads through here."""
        path = self.folder / "relay.kubeconfig"
        write_kubeconfig(path, self.url, self.ca_file, token)
        return path

    def cut(self) -> None:
        """Reset the connections of all watches."""
        for request in self._watches:
            if request.transport:
                request.transport.abort()

    def count(self, method: str, path: str) -> int:
        """How many requests of this kind there were."""
        return self.requests.count((method, path))

    async def asked(self, method: str, path: str, times: int = 1) -> None:
        """Wait until there were so many requests of this kind."""
        async with self._asked:
            await self._asked.wait_for(lambda: self.count(method, path) >= times)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        watch = "watch" in request.query
        self.requests.append(("WATCH" if watch else request.method, request.path))
        self.tokens.append(request.headers.get("Authorization", ""))
        async with self._asked:
            self._asked.notify_all()
        if self.first:
            status, headers = self.first.popleft()
            return web.json_response({"kind": "Status", "message": "told to fail"}, status=status, headers=headers)
        if self.away:
            return web.json_response({"kind": "Status", "message": "away"}, status=503)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            return await (self._watch(request) if watch else self._pass(request))
        finally:
            self.at_once -= 1

    async def _pass(self, request: web.Request) -> web.Response:
        async with self._forward(request) as answer:
            kept = {k: v for k, v in answer.headers.items() if k in ("Content-Type", "Retry-After")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self._watches.append(request)
        try:
            await self.flowing.wait()
            async with self._forward(request) as answer:
                response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
                try:
                    with suppress(aiohttp.ClientConnectionResetError):  # who watches may go at any moment
                        await response.prepare(request)
                        self.requests.append(("STREAM", request.path))
                        async with self._asked:
                            self._asked.notify_all()
                        async for chunk in answer.content.iter_any():
                            await self.flowing.wait()
                            await response.write(chunk)
                finally:
                    # Who takes leave by TLS waits for an answer, and the loop of the test may end meanwhile.
                    if answer.connection and answer.connection.transport:
                        answer.connection.transport.abort()
                return response
        finally:
            self._watches.remove(request)

    def _forward(self, request: web.Request) -> "aiohttp.client._RequestContextManager":
        kept = {k: v for k, v in request.headers.items() if k in ("Authorization", "Content-Type", "Accept")}
        body = request.content if request.can_read_body else None
        return self.session.request(request.method, self.cluster.url + request.path_qs, headers=kept, data=body)

    session: aiohttp.ClientSession


@asynccontextmanager
async def relay(cluster: Cluster, folder: Path) -> AsyncIterator[Relay]:
    """A relay that runs."""
    self = Relay(cluster, folder)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(self.ca_file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{path:.*}", self.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    trust = ssl.create_default_context(cafile=str(cluster.ca_file))
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, ssl=trust)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self.session:
        try:
            yield self
        finally:
            self.flowing.set()
            self.cut()
            await runner.cleanup()
