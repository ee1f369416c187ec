"""The operator as a process, under its own ServiceAccount, before a real API server that can be made to hang."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from tests.relay import relay

from glimpse.kube import IMAGE, NAMESPACE, STORE
from servers.glimpse import Glimpse
from servers.kube import NAMESPACE as SYSTEM
from servers.kube import Cluster, Kube
from servers.require import require
from servers.tools import Missing


class Operator(Glimpse):
    """The operator alone."""

    async def page(self, name: str) -> tuple[int, str]:
        """Status and text of a page; 0 before it answers."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.installation.operator_url}/{name}", timeout=aiohttp.ClientTimeout(10)) as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def until(self, name: str, holds: Callable[[int, str], bool], seconds: float = 60) -> str:
        """Wait until a page says so; its text."""
        async with asyncio.timeout(seconds):
            while not holds(*(last := await self.page(name))):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        return last[1]

    def log(self) -> str:
        """What the operator has written."""
        return "".join(path.read_text() for path in self.folder.rglob("*operator*.log"))


def ok(status: int, _: str) -> bool:
    """A page that says yes."""
    return status == 200


def no(status: int, _: str) -> bool:
    """A page that says no."""
    return status == 503


async def test_it_stops_at_once(cluster: Cluster, tmp_path: Path) -> None:
    """SIGTERM ends the operator with status 0, and nothing of it must be waited for; it has read only what it may."""
    operator = Operator(tmp_path, cluster=cluster, settings={"GLIMPSE_LOG_LEVEL": "debug"})
    process = operator.launch("operator")
    try:
        await operator.until("readyz", ok)
        assert (await operator.page("healthz"))[0] == 200
        text = (await operator.page("metrics"))[1]
        assert 'glimpse_watch_last_event_age_seconds{kind="images"}' in text
        assert 'glimpse_api_requests_total{code="200",verb="GET"}' in text
        assert 'code="403"' not in text
        assert process.child
        process.child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.child.wait, 30) == 0
    finally:
        operator.stop()
    assert "Traceback" not in operator.log()
    assert "Unclosed" not in operator.log()
    assert "Hung tasks stopping is skipped: no tasks given" in operator.log(), "for others kopf waits 5 s"


async def test_a_watch_that_hangs_is_noticed(cluster: Cluster, tmp_path: Path) -> None:
    """Watches that say nothing make /healthz fail after the time that was set, though all else works; they heal."""
    async with relay(cluster, tmp_path) as between:
        token = cluster.token_for(SYSTEM, "glimpse-operator")
        operator = Operator(
            tmp_path / "glimpse",
            cluster=cluster,
            settings={"GLIMPSE_KUBECONFIG": str(between.kubeconfig(token)), "GLIMPSE_SILENCE": "4"},
        )
        operator.launch("operator")
        try:
            await operator.until("readyz", ok)
            # A quiet cluster is a healthy one: for longer than the silence that is allowed.
            for kind in (IMAGE, STORE, NAMESPACE):
                seen = between.count("WATCH", kind.path())
                async with asyncio.timeout(120):
                    await between.asked("WATCH", kind.path(), seen + 3)
                assert (await operator.page("healthz"))[0] == 200
            between.flowing.clear()
            began = time.monotonic()
            assert "silent for more than 4 s" in await operator.until("healthz", no)
            assert time.monotonic() - began >= 1.5
            assert (await operator.page("readyz"))[0] == 200
            between.flowing.set()
            await operator.until("healthz", ok)
        finally:
            operator.stop()


async def test_an_outage_kills_nobody(cluster: Cluster, tmp_path: Path) -> None:
    """While the API server is away the operator is not ready, but lives; after it, all is well again."""
    async with relay(cluster, tmp_path) as between:
        token = cluster.token_for(SYSTEM, "glimpse-operator")
        operator = Operator(
            tmp_path / "glimpse",
            cluster=cluster,
            settings={"GLIMPSE_KUBECONFIG": str(between.kubeconfig(token)), "GLIMPSE_SILENCE": "3"},
        )
        process = operator.launch("operator")
        try:
            await operator.until("readyz", ok)
            between.away = True
            between.cut()
            await operator.until("readyz", no)
            seen = len(between.requests)
            async with asyncio.timeout(120):
                while len(between.requests) < seen + 12:
                    assert (await operator.page("healthz"))[0] == 200
                    await asyncio.sleep(0.2)
            between.away = False
            await operator.until("readyz", ok)
            async with asyncio.timeout(120):
                await between.asked("WATCH", IMAGE.path(), between.count("WATCH", IMAGE.path()) + 1)
            await operator.until("healthz", ok)  # 3 s of silence are soon over on a busy machine
            assert process.child
            assert process.child.poll() is None
        finally:
            operator.stop()


async def test_it_waits_for_its_kinds(tmp_path: Path) -> None:
    """Without the definitions the operator says what to install, and goes on by itself once they are there."""
    server = Kube(tmp_path / "kube")
    try:
        with server as cluster:
            settings = {"GLIMPSE_KUBECONFIG": str(cluster.kubeconfig)}
            operator = Operator(tmp_path / "glimpse", cluster=cluster, settings=settings)
            _system(cluster)
            operator.launch("operator")
            try:
                text = await operator.until("readyz", lambda status, text: status == 503 and "images" in text)
                assert "kubectl apply -f crds/" in text
                assert (await operator.page("healthz"))[0] == 200
                cluster.install()
                await operator.until("readyz", ok)
            finally:
                operator.stop()
    except Missing as error:
        require("kube", str(error))


def _system(cluster: Cluster) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"GLIMPSE_KUBECONFIG": "/nowhere/kubeconfig"}, "/nowhere/kubeconfig"),
        ({"GLIMPSE_OPERATOR_LISTEN": "taken"}, "in use"),
    ],
)
async def test_a_start_that_cannot_be(cluster: Cluster, tmp_path: Path, settings: dict[str, str], word: str) -> None:
    """One line says what is wrong, without a traceback, and the status is 1."""
    async with relay(cluster, tmp_path) as between:
        if "GLIMPSE_OPERATOR_LISTEN" in settings:
            settings = settings | {"GLIMPSE_OPERATOR_LISTEN": between.url.removeprefix("https://")}
        operator = Operator(tmp_path / "glimpse", cluster=cluster, settings=settings)
        process = operator.launch("operator")
        try:
            assert process.child
            assert await asyncio.to_thread(process.child.wait, 60) == 1
        finally:
            operator.stop()
    assert word in operator.log()
    assert "Traceback" not in operator.log()
