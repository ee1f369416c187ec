"""Whether the operator lives, is ready, and what Prometheus may know: `/healthz`, `/readyz`, `/metrics`.

A watch can go silent while all else looks well: a connection that a load balancer has forgotten, a task that ended.
Two signs together show it, and neither costs a request: bytes that the watch has read (the API server sends a
bookmark once a minute), and our own writes, which must come back through the watch.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, cast

import aiohttp
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from glimpse.control import metrics
from glimpse.kube import ApiError, Kind, Kube, Object

log = logging.getLogger(__name__)

_PATIENCE: Final = 3.0
"""Seconds that a question to the API server may take in a probe; the kubelet waits some more."""


class _Pulse:
    """The signs of life of one kind's watch."""

    def __init__(self) -> None:
        self.read = time.monotonic()
        """When the watch has last read anything."""
        self.watching = False
        """The first list is done, and the watch has begun."""
        self.seen = 0
        """The newest resourceVersion that came through the watch."""
        self.written: deque[tuple[int, float]] = deque(maxlen=1000)
        """Our own writes that have not come back: resourceVersion and when; one a second is enough."""


class Health:
    """What is known about the operator's own state."""

    def __init__(self, kube: Kube, kinds: Sequence[Kind], silence: float) -> None:
        """`silence`: seconds without a sign of life from a watch after which the operator counts as dead."""
        self._kube = kube
        self._silence = silence
        self._pulses = {kind.path(): _Pulse() for kind in kinds}
        self._names = {kind.path(): kind.plural for kind in kinds}
        self._pardon = 0.0
        self.waiting = "starting"
        """What the start is waiting for; empty once it is done."""
        self.synced: Callable[[], bool] = lambda: False
        """Asks the queue whether it can decide."""
        kube.wrote = self.wrote
        self._collector = metrics.WatchAges(self.ages)
        metrics.REGISTRY.register(self._collector)

    def close(self) -> None:
        """Take the ages out of the metrics again."""
        metrics.REGISTRY.unregister(self._collector)

    # --- signs of life

    def wrote(self, kind: Kind, obj: Object) -> None:
        """Our own write has succeeded; the watch must tell us of it."""
        if pulse := self._pulses.get(kind.path()):
            version, now = _version(obj), time.monotonic()
            if version > pulse.seen and (not pulse.written or now - pulse.written[-1][1] >= 1):
                pulse.written.append((version, now))

    def saw(self, kind: Kind, obj: Object) -> None:
        """An event has come through the watch, all the way to its handler."""
        pulse = self._pulses[kind.path()]
        # Versions may be compared within one kind: https://kubernetes.io/docs/reference/using-api/api-concepts/.
        pulse.seen = max(pulse.seen, _version(obj))
        while pulse.written and pulse.written[0][0] <= pulse.seen:
            pulse.written.popleft()

    def responses(self) -> type[aiohttp.ClientResponse]:
        """A class of responses that notes what a watch reads; for the session that the watches use."""
        pulses = self._pulses

        class Response(aiohttp.ClientResponse):
            """Notes each read."""

            async def start(self, connection: Any) -> aiohttp.ClientResponse:
                """Read the headers."""
                await super().start(connection)
                pulse = pulses.get(self.url.path)
                if pulse and self.status == 200:  # noqa: PLR2004 - HTTP
                    pulse.read = time.monotonic()
                    if "watch" in self.url.query:
                        pulse.watching = True
                        self.content = cast("aiohttp.StreamReader", _Heard(self.content, pulse))
                    else:
                        # A list shows what is, so what we wrote before it has come back.
                        pulse.written.clear()
                return self

        return Response

    # --- answers

    def ages(self) -> dict[str, float]:
        """Seconds since the last sign of life, by the plural of the kind."""
        now = time.monotonic()
        found = {}
        for path, pulse in self._pulses.items():
            echo = now - pulse.written[0][1] if pulse.written else 0.0
            found[self._names[path]] = max(now - pulse.read, echo)
        return found

    async def dead(self) -> str:
        """Why a restart would help; empty while it would not."""
        late = [kind for kind, age in self.ages().items() if age > self._silence]
        if self.waiting or not late or time.monotonic() - self._pardon < self._silence:
            return ""
        if trouble := await self._away():
            # No watch can live while the API server is away, and a restart would only lose running transfers. Once
            # it is back, the watches get as much time again.
            log.warning("the API server is away: %s", trouble)
            self._pardon = time.monotonic()
            return ""
        return f"the watch of {', '.join(late)} is silent for more than {self._silence:.0f} s"

    async def unready(self) -> str:
        """Why the operator cannot do its work now; empty if it can."""
        if self.waiting:
            return self.waiting
        if not self.synced():
            return "the queue does not know all stores yet"
        if missing := [self._names[path] for path, pulse in self._pulses.items() if not pulse.watching]:
            return f"not watching {', '.join(missing)} yet"
        return await self._away()

    async def _away(self) -> str:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._kube.ping()
        except TimeoutError:
            return "the API server does not answer"
        except ApiError as error:
            # A refusal is an answer.
            return "" if 400 <= error.status < 500 else error.message  # noqa: PLR2004 - HTTP
        return ""

    def app(self) -> web.Application:
        """The three pages."""

        async def healthz(_: web.Request) -> web.Response:
            return _answer(await self.dead())

        async def readyz(_: web.Request) -> web.Response:
            return _answer(await self.unready())

        async def scrape(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

        app = web.Application()
        app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
        return app


async def serve(app: web.Application, listen: str) -> web.AppRunner:
    """Serve on `host:port`; the caller cleans up the runner. Raises OSError if the address is taken."""
    host, _, port = listen.rpartition(":")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


class _Heard:
    """A stream that notes when it is read; all else is the stream's own."""

    def __init__(self, stream: aiohttp.StreamReader, pulse: _Pulse) -> None:
        self._stream = stream
        self._pulse = pulse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """As kopf reads a watch."""
        async for chunk in self._stream.iter_chunked(n):
            self._pulse.read = time.monotonic()
            yield chunk


def _answer(trouble: str) -> web.Response:
    return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)


def _version(obj: Object) -> int:
    said = str(obj.get("metadata", {}).get("resourceVersion", ""))
    return int(said) if said.isdigit() else 0
