"""Limits of bandwidth: kept over seconds, shared fairly, cancelled at once, and nobody's slowness."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sources.conftest import LOOPBACK, Ask, drain

from glimpse.problems import SourceUnavailable, WorkerLost
from glimpse.settings import Transfers
from glimpse.sources.client import Client
from glimpse.sources.pace import TOGETHER, Pace
from glimpse.streams import CHUNK
from glimpse.tasks import HttpOrigin
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import Workbench

DATA = noise(CHUNK)


@pytest.fixture
def web() -> Iterator[Server]:
    """A server that is as fast as this machine."""
    with faults.Server() as server:
        server.serve("/a", Reply(DATA))
        yield server


@pytest.fixture
def together() -> Iterator[None]:
    """The limit for all is set by the test, and there is none afterwards."""
    yield
    TOGETHER.rate, TOGETHER.free = 0, 0.0


class Clock(threading.Event):
    """Time that passes when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def wait(self, timeout: float | None = None) -> bool:
        """Nobody cancels."""
        self.now += timeout or 0
        return False

    def __call__(self) -> float:
        """The time."""
        return self.now


@given(
    rate=st.integers(1 << 10, 1 << 30),
    reads=st.lists(st.tuples(st.integers(1, 4 << 20), st.floats(0, 1), st.floats(0, 2)), min_size=1, max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_the_limit_holds_whatever_is_read(rate: int, reads: list[tuple[int, float, float]]) -> None:
    """From any moment on, no more comes than the rate allows, but for a quarter of a second and the share in hand."""
    clock = Clock()
    limit = Pace(rate, clock, clock=clock)
    came: list[tuple[float, int]] = []
    for wanted, part, pause in reads:
        share = limit.take(wanted)
        assert 0 < share <= wanted
        count = int(share * part)
        limit.leave(share - count)
        came.append((clock.now, count))
        clock.now += pause * share / rate
    spare = 0.25 * rate + max(rate / 16, 4096) + 1
    for first in range(len(came)):
        total = 0
        for moment, count in came[first:]:
            total += count
            assert total <= (moment - came[first][0]) * rate + spare


def test_who_does_not_use_the_limit_is_not_slowed_by_it() -> None:
    """Without a limit nothing waits, and everything is given."""
    clock = Clock()
    assert [Pace(0, clock, clock=clock).take(CHUNK) for _ in range(3)] == [CHUNK] * 3
    slow = Pace(CHUNK, clock, clock=clock)
    for _ in range(5):
        clock.now += 1
        assert slow.take(1000) == 1000
    assert clock.now == 1005


@pytest.mark.parametrize("how", [{}, {"chunked": 50_000}, {"length": None}])
@pytest.mark.parametrize("secure", [False, True])
def test_a_transfer_keeps_its_limit(
    ask: Ask, request: pytest.FixtureRequest, how: dict[str, Any], secure: bool
) -> None:
    """In clear and over TLS, however the body is sent: 1 MiB at 2 MiB/s takes half a second, less the credit."""
    with faults.Server(request.getfixturevalue("tls") if secure else None) as server:
        server.serve("/a", Reply(DATA, **how))
        started = time.monotonic()
        assert drain(ask(server.url("/a"), transfers=Transfers(bandwidth=2 * CHUNK))) == DATA
        assert time.monotonic() - started > 0.2


def test_connections_share_the_limit_of_their_transfer(web: Server) -> None:
    """Eight of them are no faster than one."""
    client = Client(HttpOrigin(urls=(web.url("/a"),)), LOOPBACK, Transfers(bandwidth=4 * CHUNK), threading.Event())

    def fetch(_: int) -> int:
        answer = client.get(web.url("/a"))
        try:
            return len(drain(answer))
        finally:
            answer.close()

    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(fetch, range(8))) == 8 * CHUNK
    assert time.monotonic() - started > 1.7
    client.close()


def test_waiting_for_ones_turn_is_not_the_servers_silence(web: Server, ask: Ask) -> None:
    """Neither the idle timeout nor the least speed counts what we wait for ourselves."""
    web.serve("/a", Reply(DATA[:24_000]))
    patience = Transfers(idle_timeout=0.5, minimum_rate=1 << 30, rate_window=0.4, bandwidth=8192)
    started = time.monotonic()
    assert drain(ask(web.url("/a"), transfers=patience)) == DATA[:24_000]
    assert time.monotonic() - started > 1


def test_a_silent_server_is_still_given_up(web: Server, ask: Ask) -> None:
    """A limit is no excuse."""
    web.serve("/a", Reply(DATA, stall=100_000))
    with pytest.raises(SourceUnavailable, match=r"sent nothing for 0\.5 s"):
        drain(ask(web.url("/a"), transfers=Transfers(idle_timeout=0.5, bandwidth=CHUNK)))


def test_cancelling_ends_the_wait(web: Server, ask: Ask) -> None:
    """Whoever waits for his turn, or behind one who does, hears it at once."""
    cancelled = threading.Event()
    answer = ask(web.url("/a"), transfers=Transfers(bandwidth=1024), cancelled=cancelled)
    answer.read()
    threading.Timer(0.2, cancelled.set).start()
    started = time.monotonic()
    with pytest.raises(WorkerLost, match="cancelled"):
        drain(answer)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("together")
def test_all_transfers_share_one_limit(web: Server) -> None:
    """Two transfers of one machine together are no faster than the limit for all, and the lower limit counts."""

    def fetch(bandwidth: int) -> float:
        transfers = Transfers(bandwidth=bandwidth)
        client = Client(HttpOrigin(urls=(web.url("/a"),)), LOOPBACK, transfers, threading.Event())
        answer = client.get(web.url("/a"))
        assert drain(answer) == DATA
        client.close()
        return time.monotonic()

    TOGETHER.rate = 2 * CHUNK
    started = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(fetch, (0, 1 << 40)))
    assert max(ends) - started > 0.7
    started = time.monotonic()
    fetch(2 * CHUNK)
    assert time.monotonic() - started > 0.2


PROCESSES = """
import os, threading, time
from glimpse.sources.pace import TOGETHER, Pace

TOGETHER.rate = 8 << 20
began = time.monotonic()
pipe, out = os.pipe()
for rate in (0, 0, 1 << 20):
    if os.fork() == 0:
        limit, got = Pace(rate, threading.Event()), 0
        while time.monotonic() < began + 1:
            got += limit.take(1 << 20)
        os.write(out, b"%d %f\\n" % (got, time.monotonic() - began))
        os._exit(0)
os.close(out)
print(os.fdopen(pipe).read())
"""
"""Three workers, of which the last asks for less; each says how much it got, and when it was done."""


def test_processes_share_it_too() -> None:
    """Workers are forked from one process, and none of them knows of the others: what one leaves, others take."""
    command = [sys.executable, "-c", PROCESSES]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
    got, ends = [int(word) for word in lines[::2]], [float(word) for word in lines[1::2]]
    share = (8 << 20) // 16
    assert 4 << 20 < sum(got) <= (8 << 20) * (max(ends) + 0.25) + 6 * share
    assert max(got) > 2 << 20


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize(
    "moment",
    [float("nan"), float("inf"), float("-inf"), 1e300, -1e300, time.monotonic() + 3600],
    ids=lambda moment: f"{moment:.0e}",
)
def test_a_spoilt_line_mends_itself(moment: float) -> None:
    """Memory that another worker has spoilt holds nobody up."""
    TOGETHER.rate, TOGETHER.free = 1 << 20, moment
    clock = Clock()
    clock.now = time.monotonic()
    started = clock.now
    for _ in range(4):
        assert Pace(0, clock, clock=clock).take(1 << 20) == 1 << 16
    assert clock.now - started < 1
    assert started - 1 < TOGETHER.free < started + 1


@pytest.mark.usefixtures("together")
def test_a_task_brings_the_limit_for_all(web: Server, tmp_path: Path) -> None:
    """What is shared is memory; how much may be used comes with each task, and none after one without."""
    bench = Workbench(tmp_path)
    started = time.monotonic()
    assert bench.fetch(web.url("/a"), (bench.store("a"),), bandwidth=2 * CHUNK).stored == {"a"}
    assert time.monotonic() - started > 0.2
    assert TOGETHER.rate == 2 * CHUNK
    assert bench.fetch(web.url("/a"), (bench.store("b"),)).stored == {"b"}
    assert TOGETHER.rate == 0
