"""All of kopf: it logs in, watches and hands objects to the queue, and is the frame of the process.

Nothing else here may act: kopf ignores what a handler of events raises, so what must be tried again belongs to the
queue.
"""

import asyncio
import contextlib
import logging
import os
import time
from importlib.metadata import version
from typing import Any, Final

import kopf

from glimpse import logs
from glimpse.control import health, metrics
from glimpse.control.engine import Engine
from glimpse.control.health import Health
from glimpse.control.links import LinkKeys
from glimpse.control.neighbours import neighbours
from glimpse.control.tokens import GatewayToken
from glimpse.kube import IMAGE, NAMESPACE, STORE, UPLOAD, ApiError, Kind, Kube
from glimpse.login import LoginError
from glimpse.problems import Problem
from glimpse.runners import Inline
from glimpse.settings import Settings

log = logging.getLogger(__name__)

KINDS: Final = (IMAGE, STORE, NAMESPACE, UPLOAD)
"""What is watched."""
_SPARE: Final = 24
"""Workers besides those that transfer: probes, removals and looks must not wait for transfers."""
_LOOK: Final = 1.0
"""Seconds between two looks for what the start waits for."""


def main(settings: Settings) -> int:
    """Run the operator until SIGTERM or SIGINT; the exit status. 1: it could not start, or its frame has failed."""
    logs.configure(settings)
    log.info("glimpse %s starts", version("glimpse"))
    try:
        asyncio.run(operate(settings))
    except (LoginError, Problem, OSError) as error:
        log.error("the operator cannot start: %s", error)  # noqa: TRY400 - no bug, so no traceback
        return 1
    except Exception:
        log.exception("the operator ends, to be started again")
        return 1
    log.info("the operator has stopped")
    return 0


async def operate(settings: Settings) -> None:
    """The whole operator, until it is stopped. Raises LoginError, Problem, OSError if it cannot start."""
    asyncio.get_running_loop().set_exception_handler(_complained)
    kube = await Kube.connect(settings.kubeconfig, observe=metrics.request)
    near = await asyncio.to_thread(neighbours, kube.login.server, os.environ)
    addresses = settings.addresses.model_copy(update={"deny": [*settings.addresses.deny, *near]})
    settings = settings.model_copy(update={"addresses": addresses})
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(kube.close)
        state = Health(kube, KINDS, settings.silence)
        stack.callback(state.close)
        pages = await health.serve(state.app(), settings.operator_listen)
        stack.push_async_callback(pages.cleanup)
        await _kinds(kube, state)
        engine = Engine(
            settings, kube, Inline(stop_grace=settings.transfers.stop_grace, at_once=settings.limits.transfers + _SPARE)
        )
        stack.push_async_callback(engine.close)
        state.synced = engine.synced
        await _started(engine, state)
        token = GatewayToken(kube, settings)
        stack.push_async_callback(token.close)
        token.start()
        keys = LinkKeys(kube, settings)
        stack.push_async_callback(keys.close)
        keys.start()
        state.waiting = ""
        log.info("ready to watch; pages at http://%s", settings.operator_listen)
        # kopf waits five seconds for tasks that it does not know, so all of ours end in its cleanup.
        async with stack.pop_all() as ours:
            await kopf.operator(
                registry=_registry(kube, engine, state, ours),
                settings=_settings(settings),
                standalone=True,
                clusterwide=True,
            )


def _complained(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What kopf leaves open at its end may fail when the loop closes it, which nobody needs to know."""
    if "asyncgen" in context:
        log.debug("%s", context["message"])
    else:
        loop.default_exception_handler(context)


async def _kinds(kube: Kube, state: Health) -> None:
    """Wait for the definitions: a kind that is missing when kopf starts would never be watched."""
    said = 0.0
    while True:
        try:
            missing = [kind.plural for kind in (IMAGE, STORE, UPLOAD) if not await kube.served(kind)]
            if not missing:
                return
            state.waiting = f"the API server has no {' and '.join(missing)}; install them: kubectl apply -f crds/"
        except ApiError as error:
            state.waiting = error.message
        if time.monotonic() - said > 60 or not said:  # noqa: PLR2004 - once a minute is enough for a log
            log.warning("waiting: %s", state.waiting)
            said = time.monotonic()
        await asyncio.sleep(_LOOK)


async def _started(engine: Engine, state: Health) -> None:
    while True:
        try:
            return await engine.start()
        except ApiError as error:
            state.waiting = error.message
            log.warning("waiting: %s", error.message)
        await asyncio.sleep(_LOOK)


def _registry(kube: Kube, engine: Engine, state: Health, ours: contextlib.AsyncExitStack) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    logins = 0

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        nonlocal logins
        logins += 1
        if logins > 1:
            # Every request carries the credentials of the moment, so these are refused: do not ask in a tight loop.
            await asyncio.sleep(min(30.0, 1.0 * logins))
        session = kube.login.session(response_class=state.responses())
        return kopf.AiohttpSession(server=kube.login.server, aiohttp_session=session)

    @kopf.on.cleanup(registry=registry)
    async def down(**_: Any) -> None:
        await ours.aclose()

    def watch(kind: Kind) -> None:
        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"watch-{kind.plural}")
        async def event(event: kopf.RawEvent, **_: Any) -> None:
            obj: Any = event["object"]
            state.saw(kind, obj)
            if event["type"] == "DELETED":
                engine.gone(kind, obj)
            else:
                engine.offer(kind, obj)

    for kind in KINDS:
        watch(kind)
    return registry


def _settings(settings: Settings) -> kopf.OperatorSettings:
    s = kopf.OperatorSettings()
    s.posting.enabled = False
    s.peering.standalone = True
    s.scanning.disabled = True
    s.persistence.finalizer = "glimpse.dev/kopf-unused"  # never ours: kopf strips its own where it has no use for it
    s.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="glimpse.dev", v1=False)
    s.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="glimpse.dev", v1=False)
    s.queueing.idle_timeout = 0.1  # with a limit of workers an idle one would keep its place
    s.queueing.worker_limit = 200
    s.watching.chunk_size = 500
    s.watching.connect_timeout = s.networking.connect_timeout = 3
    # Bookmarks come once a minute; a shorter time only serves those who set a short silence.
    s.watching.inactivity_timeout = min(70.0, max(1.0, settings.silence / 2))
    s.networking.request_timeout = 60
    s.networking.error_backoffs = [0.2, 0.5, 1, 1, 2, 2, 3, 3] + [5] * 8
    s.process.ultimate_exiting_timeout = 30
    return s
