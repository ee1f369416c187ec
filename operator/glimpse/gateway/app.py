"""The gateway: the one door for those who use images.

It reads Kubernetes through its own ServiceAccount, and bytes through the stores; what is uploaded goes to workers. What
it cannot answer it says as a problem (RFC 9457), and nothing that a client does or leaves undone holds it up.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from glimpse import logs
from glimpse.ahead import ROOM
from glimpse.gateway import openapi
from glimpse.gateway.access import Access
from glimpse.gateway.admission import Admission
from glimpse.gateway.bandwidth import Bandwidth
from glimpse.gateway.catalog import Catalog
from glimpse.gateway.copies import Threads
from glimpse.gateway.door import Door, Place, Room, listen, spare
from glimpse.gateway.download import Downloads
from glimpse.gateway.events import Events
from glimpse.gateway.heads import READ, WAITING, HeadError, Parser
from glimpse.gateway.intake import Intake
from glimpse.gateway.keys import Keys
from glimpse.gateway.linking import Linking
from glimpse.gateway.links import Links
from glimpse.gateway.listing import Listing
from glimpse.gateway.meters import CUT, METHODS, Meters, kind_of
from glimpse.gateway.reading import Reading
from glimpse.gateway.redirect import Redirects
from glimpse.gateway.refusals import Refusal, refuse
from glimpse.gateway.sending import BODY, Sending
from glimpse.gateway.sessions import Sessions
from glimpse.gateway.tls import Certificate
from glimpse.gateway.tus import Tus
from glimpse.gateway.upload import Upload
from glimpse.kube import Kube
from glimpse.login import LoginError
from glimpse.settings import Settings

log: Final = logging.getLogger(__name__)

PROBES: Final = ("/healthz", "/readyz", "/metrics")
HOLDS: Final = (200, 206)
"""Statuses of an answer that holds bytes of an image."""
KEEP_ALIVE: Final = 75.0
"""Seconds that a connection may rest between two requests."""
LINGER: Final = 2.0
"""Seconds in which the rest of a body that nobody wants is read, before the connection is closed."""
BUFFER: Final = 32 << 10
"""Bytes that wait for a client before no more are read for him."""
READ_AHEAD: Final = 64 << 20
"""Bytes that all downloads together read ahead of their clients, out of stores on a network."""
SHOWN: Final = 1000
"""Characters of a request's path that are logged; no link is as long."""


def main(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status.

    1: there is no way to the API server, the address is taken, or the certificate cannot be used.
    """
    logs.configure(settings)
    ROOM.limit(READ_AHEAD)
    try:
        asyncio.run(_main(settings))
    except (LoginError, OSError) as error:
        log.error("the gateway cannot start: %s", error)  # noqa: TRY400 - the message says it all
        return 1
    return 0


async def _main(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    kube = await Kube.connect(settings.kubeconfig, token_file=settings.gateway_token_file)
    try:
        async with serve(settings, kube) as (host, port):
            log.info("serving on %s:%d", host, port)
            await stop.wait()
            log.info("stopping; running downloads have %.0f s", settings.gateway_drain)
    finally:
        await kube.close()


@asynccontextmanager
async def serve(settings: Settings, kube: Kube) -> AsyncIterator[tuple[str, int]]:
    """A gateway that serves at this address until the end, then lets downloads finish for `gateway_drain` seconds."""
    files = settings.gateway_tls_certificate, settings.gateway_tls_key
    certificate = Certificate(files[0], files[1]) if files[0] and files[1] else None
    connections, resting = spare(settings.gateway_connections)
    meters, threads = Meters(), Threads(resting)
    catalog = Catalog(kube, settings.namespace, silence=settings.silence)
    meters.images.set_function(lambda: len(catalog))
    app = web.Application(middlewares=[_answering(meters)])
    access = Access(kube, settings.audience, anonymous=settings.gateway_anonymous)
    keys = Keys(kube, settings.namespace, silence=settings.silence)
    links = Links(keys, settings.gateway_url, settings.links.maximum)
    admission = Admission(catalog, access, links)
    redirects = Redirects(catalog.places, threads, meters, settings.gateway_redirect, base=settings.gateway_url)
    bandwidth = Bandwidth(settings.gateway_bandwidth, settings.gateway_client_bandwidth)
    reading = Reading(kube, settings.namespace)
    sending = Sending(catalog, access, threads, meters, bandwidth)
    intake = Intake(settings, kube, catalog, access, admission)
    intake.count = meters.received.inc
    sessions = Sessions(intake)
    events = Events(catalog.index, access, meters, settings.gateway_idle)
    app.add_routes(
        [
            *Downloads(catalog, admission, redirects, sending, reading).routes(),
            *Upload(intake).routes(),
            *Tus(intake, sessions).routes(),
            *Linking(admission, links, patience=settings.gateway_idle).routes(),
            *Listing(catalog.index, access).routes(),
            *events.routes(),
            *_probes(catalog, meters),
            *openapi.routes(app, settings.gateway_url, anonymous=settings.gateway_anonymous),
        ]
    )
    app.on_shutdown.extend((sessions.close, events.close))
    app.on_cleanup.append(intake.close)
    app.on_response_prepare.append(_sign)
    runner = web.AppRunner(app, shutdown_timeout=settings.gateway_drain)
    await runner.setup()
    assert runner.server  # noqa: S101 - setup has made it
    listening = listen(settings.gateway_listen, settings.gateway_idle)
    door = Door(
        listening,
        partial(_Connection, runner.server),
        Room(connections, settings.gateway_client_connections),
        meters,
        idle=settings.gateway_idle,
        certificate=certificate,
    )
    door.open()
    helpers = [
        asyncio.create_task(_reap(runner.server, settings.gateway_idle), name="reaper"),
        asyncio.create_task(reading.follow(), name="reading"),
    ]
    if certificate:
        helpers.append(asyncio.create_task(certificate.follow(), name="certificate"))
    catalog.start()
    if settings.links.maximum > 0:
        keys.start()
    try:
        yield listening.getsockname()[:2]
    finally:
        await door.close()
        await runner.cleanup()
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await catalog.close()
        await keys.close()
        threads.close()


class _Connection(web.RequestHandler):
    """One connection: knows since when a request is owed, and answers what is not HTTP as everything else."""

    __slots__ = ("owed_since", "place")

    def __init__(self, server: web.Server, place: Place) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none; requests are logged below
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=LINGER,
        )
        self._parser = Parser(self, self._loop)  # type: ignore[assignment]  # as far as it is used
        self._max_msg_queue_size, self._msg_queue_resume_size = WAITING, WAITING // 2
        self.place = place
        self.owed_since: float | None = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep little of what a client does not take yet, where TLS would keep 512 KiB, and of what it sends."""
        super().connection_made(transport)
        if isinstance(transport, asyncio.WriteTransport):
            transport.set_write_buffer_limits(high=BUFFER)
        transport.max_size = READ  # type: ignore[attr-defined]  # what asyncio reads at once; 256 KiB by itself

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self.place.close()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Note when a request begins."""
        if self.owed_since is None and not self._request_in_progress:
            self.owed_since = time.monotonic()
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - not to be shown
    ) -> web.StreamResponse:
        """What cannot be parsed is refused without a word of it: not in the log either, it may hold a token."""
        log.info("%s sent what is no request: %s", request.remote, type(exc).__name__)
        if request.writer.output_size:
            raise ConnectionResetError
        response = refuse(
            exc.code if isinstance(exc, HeadError) else status,
            "This is not a request that can be understood: a header may be too long or malformed.",
        )
        response.headers["Server"] = "glimpse"
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Give the one answer that does not pass our middleware its form: it repeats what the client has sent.

        After a malformed body nothing more can be read.
        """
        if request.content.exception():
            resp.force_close()
            request.content.feed_eof()
        if isinstance(resp, web.HTTPExpectationFailed):
            self.owed_since = None
            resp = refuse(resp.status, "No expectation but 100-continue can be met.")
        return await super().finish_response(request, resp, start_time)


async def _reap(server: web.Server, idle: float) -> None:
    """Close connections that stay in the middle of a request's head."""
    while True:
        await asyncio.sleep(idle / 4)
        late = time.monotonic() - idle
        for connection in server.connections:
            if isinstance(connection, _Connection) and (connection.owed_since or late) < late:
                connection.force_close()


def _answering(meters: Meters) -> Middleware:
    """Every answer passes here: refusals get their form, and requests are counted and logged."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if isinstance(request.protocol, _Connection):
            request.protocol.owed_since = None
            if request.protocol.place.beyond:
                handler = _beyond(request.protocol.place, handler)
        began, code, sent, kind = time.monotonic(), 0, 0, kind_of(request)
        meters.active.labels(kind).inc()
        try:
            response = await _handled(request, handler)
            code, sent = response.status, response.content_length or 0
            return response
        finally:
            seconds, cut = time.monotonic() - began, not code
            if request.method == "HEAD":
                sent = 0
            elif (rest := request.get(BODY)) is not None and code in (0, *HOLDS):
                sent, cut = rest.sent, bool(rest)
            meters.active.labels(kind).dec()
            meters.seconds.labels(kind).observe(seconds)
            method = request.method if request.method in METHODS else "other"
            meters.requests.labels(kind, method, CUT if cut else code).inc()
            path, end = request.rel_url.raw_path, ", cut" if cut else ""
            level = logging.DEBUG if path in PROBES else logging.INFO
            form = "%s %s %s %d %d B%s %.3f s"
            log.log(level, form, request.remote, request.method, path[:SHOWN], code, sent, end, seconds)

    return answer


def _beyond(place: Place, handler: Handler) -> Handler:
    """The handler of a request for which there is no room: a probe gets its answer, all else is refused."""

    async def answer(request: web.Request) -> web.StreamResponse:
        place.probed = request.rel_url.raw_path in PROBES
        if place.probed:
            response = await handler(request)
        else:
            whose = "from your address" if place.beyond == "client" else "here"
            response = refuse(503, f"Too many connections {whose} are open; come back later.", {"Retry-After": "5"})
        response.force_close()
        return response

    return answer


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    """Whose answer it is; the versions of what we are made of are nobody's business."""
    response.headers["Server"] = "glimpse"


async def _handled(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return refuse(refusal.status, refusal.detail, refusal.headers)
    except web.HTTPException as error:  # the router's
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return refuse(error.status, "There is nothing at this address, or not by this method.", headers)
    except Exception:
        log.exception("a request failed")
        if request.writer.output_size and request.transport:
            request.transport.abort()
        return refuse(500, "The gateway has failed at this request; its log says more.")


def _probes(catalog: Catalog, meters: Meters) -> list[web.RouteDef]:
    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        trouble = catalog.trouble
        return refuse(503, f"Not ready: {trouble}.") if trouble else web.Response(text="ok\n")

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(meters.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [web.get(path, probe) for path, probe in zip(PROBES, (healthz, readyz, metrics), strict=True)]
