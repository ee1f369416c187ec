"""The real work in the real process: what the cage allows is what a transfer needs."""

import asyncio
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from pydantic import SecretStr

from glimpse.problems import InvalidConfiguration, StoreUnavailable, WorkerLost
from glimpse.runners import Inline, Runner
from glimpse.settings import Addresses, Transfers
from glimpse.tasks import Done, Failed, Fetch, HttpOrigin, List, Listed, Probe, Progress, Record, StoreRef
from glimpse.testing.faults import Reply, Server
from glimpse.testing.proxies import Socks5
from glimpse.testing.runners import Heard, alive, eventually, running

BODY = bytes(range(256)) * 4096 * 5
"""5 MiB of no format."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[Runner]:
    """The runner as the operator has it."""
    runner = Inline(stop_grace=2)
    await runner.start()
    yield runner
    await runner.close()


@pytest.fixture
def web() -> Iterator[Server]:
    """A web server."""
    with Server() as web:
        yield web


@pytest.fixture
def store(tmp_path: Path) -> StoreRef:
    """A new store in a folder."""
    (tmp_path / "store").mkdir()
    config = {"path": str(tmp_path / "store")}
    return StoreRef(name="local", driver="filesystem", config=config, installation="test")


def fetch(url: str, store: StoreRef, attempt: str = "a1") -> Fetch:
    """Fetch the body from there."""
    return Fetch(
        attempt=attempt,
        record=Record(installation="test", namespace="ns", name="n", uid="u-1", revision=1, spec_hash="h"),
        origin=HttpOrigin(urls=(url,)),
        checksum=f"sha256:{sha256(BODY).hexdigest()}",
        limit=1 << 30,
        stores=(store,),
        addresses=Addresses(allow=[ip_network("127.0.0.0/8"), ip_network("::1/128")]),
        transfers=Transfers(stop_grace=2),
    )


def objects(store: StoreRef) -> list[str]:
    """Complete objects and attempts, by the names of their folders."""
    root = Path(store.config["path"])
    return sorted(path.name for part in ("objects", "attempts") for path in root.glob(f"{part}/*"))


async def test_probe(runner: Runner, store: StoreRef) -> None:
    """A store can be claimed, and its room seen, from inside the cage."""
    answer = await runner.run(Probe(store=store), Heard())
    assert isinstance(answer, Done)
    assert answer.free


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_fetch(runner: Runner, store: StoreRef, web: Server, host: str) -> None:
    """So can an image be fetched, by address and by name, and what was stored is what was served."""
    web.serve("/image", Reply(BODY))
    heard = Heard()
    answer = await runner.run(fetch(web.url("/image").replace("127.0.0.1", host), store), heard)
    assert isinstance(answer, Done), answer
    assert answer.record
    assert answer.record.digest == f"sha256:{sha256(BODY).hexdigest()}"
    assert (Path(store.config["path"]) / "objects" / "u-1-1" / "data").read_bytes() == BODY
    assert [event.event for event in heard.events if not isinstance(event, Progress)] == ["started", "stored"]
    heard = Heard()
    await runner.run(List(store=store.model_copy(update={"claimed": True})), heard)
    assert [entry.key for event in heard.events if isinstance(event, Listed) for entry in event.entries] == ["u-1-1"]


async def test_fetch_with_a_certificate(runner: Runner, store: StoreRef) -> None:
    """A client certificate is read where no file can be opened but the store's, and works through a proxy."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    robot = authority.issue_cert("robot@mirror.example")
    with Server(context) as web, Socks5(login=("ann", "secret")) as proxy:
        web.serve("/image", Reply(BODY))
        task = fetch(web.url("/image"), store)
        origin = HttpOrigin(
            urls=(web.url("/image"),),
            ca_bundle=authority.cert_pem.bytes().decode(),
            certificate={
                "tls.crt": SecretStr(robot.cert_chain_pems[0].bytes().decode()),
                "tls.key": SecretStr(robot.private_key_pem.bytes().decode()),
            },
            proxy={"address": SecretStr(proxy.url), "username": SecretStr("ann"), "password": SecretStr("secret")},
        )
        answer = await runner.run(task.model_copy(update={"origin": origin}), Heard())
    assert isinstance(answer, Done), answer
    assert proxy.asked == [("127.0.0.1", web.port)]


async def test_workers_share_the_bandwidth(runner: Runner, tmp_path: Path, web: Server) -> None:
    """Two workers together are no faster than the limit for all that their tasks name."""
    web.serve("/image", Reply(BODY))
    tasks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        place = StoreRef(name=name, driver="filesystem", config={"path": str(tmp_path / name)}, installation="test")
        tasks.append(fetch(web.url("/image"), place).model_copy(update={"bandwidth": len(BODY)}))
    started = time.monotonic()
    answers = await asyncio.gather(*(runner.run(task, Heard()) for task in tasks))
    assert time.monotonic() - started > 1.6
    assert all(isinstance(answer, Done) for answer in answers)


async def test_cancel_leaves_nothing(runner: Runner, store: StoreRef, web: Server) -> None:
    """A cancelled fetch that nothing could go on with removes what it has written before its process ends."""
    web.serve("/image", Reply(BODY, stall=3 << 20))
    task = fetch(web.url("/image"), store).model_copy(update={"checksum": None})
    async with running(runner, task) as (work, heard):
        await eventually(lambda: objects(store) == ["u-1-1.a1"])
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not alive(heard.pid)
    assert objects(store) == []


async def test_kill_is_healed_by_the_next_attempt(runner: Runner, store: StoreRef, web: Server) -> None:
    """What a killed worker has left is removed by the next attempt on the same key."""
    web.serve("/image", Reply(BODY, stall=3 << 20), Reply(BODY))
    async with running(runner, fetch(web.url("/image"), store)) as (work, heard):
        await eventually(lambda: objects(store) == ["u-1-1.a1"])
        os.kill(heard.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost, match="SIGKILL"):
            await work
    assert objects(store) == ["u-1-1.a1"]
    assert isinstance(await runner.run(fetch(web.url("/image"), store, "a2"), Heard()), Done)
    assert objects(store) == ["u-1-1"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"driver": "floppy"}, InvalidConfiguration),
        ({"config": {"path": "relative"}}, InvalidConfiguration),
        ({"config": {"path": "/nonexistent"}}, StoreUnavailable),
        ({"config": {"path": "/etc/hosts"}}, StoreUnavailable),
    ],
)
async def test_store_that_cannot_be_opened(
    runner: Runner, store: StoreRef, change: dict[str, object], problem: type[Exception]
) -> None:
    """The cage takes nothing from the words: what is wrong with a store is said as without it."""
    answer = await runner.run(Probe(store=store.model_copy(update=change)), Heard())
    assert isinstance(answer, Failed)
    assert isinstance(answer.trouble.problem(), problem)
    assert "Permission" not in answer.trouble.message
