"""Bandwidth and who gets how much of it: by a clock of the tests' own, and on real connections."""

import asyncio
import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimpse.gateway.bandwidth import LATE, LEAST, MOST, Ask, Bandwidth, Pace, Shares
from glimpse.testing.bodies import noise
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Shelf, ask

RATE = 10 << 20


class Taking(NamedTuple):
    """How a client downloads."""

    connections: int = 1
    speed: float = float("inf")
    """Bytes per second that each of its connections takes."""
    begins: float = 0.0
    """Seconds."""
    ends: float = float("inf")


def play(shares: Shares, clients: Mapping[str, Taking], seconds: float) -> Counter[str]:
    """Let these clients download for so long, by a clock that costs no time; the bytes that each got."""
    got: Counter[str] = Counter()
    order = count()
    asks: dict[Ask, str] = {}
    events: list[tuple[float, int, str]] = []
    for name, taking in clients.items():
        for _ in range(taking.connections):
            heappush(events, (taking.begins, next(order), name))
    when: float | None = None
    while True:
        now = min([when if when is not None else seconds, events[0][0] if events else seconds])
        if now >= seconds:
            return got
        while events and events[0][0] <= now:
            name = heappop(events)[2]
            if now < clients[name].ends:
                asks[shares.ask(name, 4 << 20)] = name
        granted, when = shares.grant(now)
        assert when is None or when > now
        for each in granted:
            name = asks.pop(each)
            got[name] += each.granted
            heappush(events, (now + each.granted / clients[name].speed, next(order), name))


def test_equal_shares() -> None:
    """Who opens ninety connections gets no more than who opens one, and nothing is left over."""
    got = play(Shares(RATE, 0), {"one": Taking(), "many": Taking(90), "two": Taking(2)}, 30)
    assert sum(got.values()) == pytest.approx(30 * RATE, rel=0.02)
    for name in got:
        assert got[name] == pytest.approx(10 * RATE, rel=0.03), got


def test_what_one_leaves_others_take() -> None:
    """A slow client gets all that it takes, and the others share what it leaves: nothing is kept for anybody."""
    slow = RATE / 10
    got = play(Shares(RATE, 0), {"slow": Taking(1, slow), "a": Taking(), "b": Taking(8)}, 60)
    assert got["slow"] == pytest.approx(60 * slow, rel=0.12)  # it waits for its turn and then takes
    for name in ("a", "b"):
        assert got[name] == pytest.approx((60 * RATE - got["slow"]) / 2, rel=0.03), got


def test_who_comes_later_waits_for_nobody() -> None:
    """One that comes while others download has its share from then on, and one that goes leaves its own at once."""
    clients = {"a": Taking(), "b": Taking(50), "late": Taking(1, begins=10, ends=20)}
    until = {seconds: play(Shares(RATE, 0), clients, seconds)["late"] for seconds in (10, 11, 20, 30)}
    assert until[10] == 0
    assert until[11] == pytest.approx(RATE / 3, rel=0.15)
    assert until[20] == pytest.approx(10 * RATE / 3, rel=0.05)
    assert until[30] - until[20] <= RATE // 10
    assert sum(play(Shares(RATE, 0), clients, 30).values()) == pytest.approx(30 * RATE, rel=0.02)


def test_each_has_a_limit_of_its_own() -> None:
    """Without a limit of all each client has his own, however many connections; with both the narrower one counts."""
    each = RATE // 8
    clients = {"a": Taking(), "b": Taking(20)}
    for got in (play(Shares(0, each), clients, 60), play(Shares(RATE, each), clients, 60)):
        assert [got[name] for name in "ab"] == pytest.approx([60 * each] * 2, rel=0.02)
    many = {f"client {n}": Taking() for n in range(40)}
    got = play(Shares(RATE, each), many, 60)
    assert sum(got.values()) == pytest.approx(60 * RATE, rel=0.02)
    assert min(got.values()) == pytest.approx(max(got.values()), rel=0.05)


def test_crowds_keep_nobody_from_a_turn() -> None:
    """However many others come, one after the other, who wants more has every second turn; and they are forgotten."""
    shares, now, turns = Shares(RATE, 0), 0.0, 0
    waiting = shares.ask("waits", MOST)
    for number in range(2000):
        shares.ask(number, MOST)
        granted, when = shares.grant(now)
        if waiting in granted:
            waiting, turns = shares.ask("waits", MOST), turns + 1
        now = max(now, when or now)
    assert turns >= 990
    assert len(shares) <= 1010  # those who still wait, and a few
    for _ in range(4000):
        now = shares.grant(now)[1] or now
    assert len(shares) == 0


@settings(deadline=None, max_examples=50)
@given(
    total=st.sampled_from([0, 1000, 1 << 20, 1 << 30]),
    each=st.sampled_from([0, 1000, 1 << 20, 1 << 30]),
    connections=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
def test_no_limit_is_passed(total: int, each: int, connections: list[int]) -> None:
    """No one gets more than is allowed in any time, but for two turns and what a timer may be late."""
    clients = {str(n): Taking(c, 2e9) for n, c in enumerate(connections)}
    for seconds in (0.5, 3):
        got = play(Shares(total, each), clients, seconds)
        assert got
        if total:
            assert sum(got.values()) <= total * (seconds + LATE) + 2 * max(LEAST, total // 50)
        if each:
            assert max(got.values()) <= each * (seconds + LATE) + 2 * max(LEAST, each // 4)


def test_withdrawn() -> None:
    """Who leaves the queue takes no turn, and is forgotten when he owes nothing."""
    shares = Shares(0, RATE)
    asks = [shares.ask(name, 10) for name in ("a", "b", "a")]
    shares.withdraw(asks[0])
    shares.withdraw(asks[1])
    granted, when = shares.grant(0.0)
    assert granted == [asks[2]]
    shares.withdraw(shares.ask("c", 1))
    while when is not None:
        granted, when = shares.grant(max(when, 0.0))
        assert not granted
    assert shares.grant(9.0) == ([], None)
    assert len(shares) == 0


async def test_waiters_that_go_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is cancelled, or whose connection is gone, is told so before its turn, and leaves that to the next."""
    monkeypatch.setattr("glimpse.gateway.bandwidth.LOOK", 0.02)
    bandwidth = Bandwidth(LEAST // 3, 0)  # one turn in three seconds, so all but the first wait
    gone = False

    async def take(name: Hashable) -> int:
        return await bandwidth.take(name, LEAST, lambda: gone and name == "gone")

    assert [await take("first"), await take("first")] == [LEAST, LEAST]  # one is as good as late
    waiting = [asyncio.create_task(take(name)) for name in ("cancelled", "gone", "last")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gone = True
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in done[:2]] == [asyncio.CancelledError, ConnectionResetError]
    assert done[2] == LEAST
    assert not Bandwidth(0, 0).limited


async def test_pace() -> None:
    """What was allowed and not sent needs no further turn."""
    pace = Pace(Bandwidth(1 << 30, 0), "a", lambda: False)
    assert await pace.allow(10) == 10
    pace.count(4)
    assert await pace.allow(1 << 20) == 6
    pace.count(6)
    assert await pace.allow(1 << 30) == MOST


# --- on real connections

LIMIT = 4 << 20


@pytest.fixture(scope="module")
def limited(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """A gateway with a limit."""
    values = {"GLIMPSE_GATEWAY_BANDWIDTH": str(LIMIT), "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0"}
    server = Glimpse(tmp_path_factory.mktemp("limited"), cluster=cluster, settings=values)
    with server.running("gateway"):
        yield server


def begin(url: str, path: str, token: str) -> socket.socket:
    """A download on a connection of its own."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    lines = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    connection.sendall(lines.encode())
    return connection


def test_users_share(limited: Glimpse, shelf: Shelf, namespace: str) -> None:
    """One connection of one user gets as much as six of another, and both together no more than there is."""
    image = shelf.image(namespace, noise(64 << 20), store=shelf.store())
    tokens = {name: shelf.grant(namespace, name) for name in ("one", "many")}
    for token in tokens.values():  # known to the gateway
        assert ask(limited.installation.gateway_url + image.path, token=token, method="HEAD").status == 200
    got: Counter[str] = Counter()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        began = time.monotonic()
        for name in ("many",) * 6 + ("one",):
            connection = begin(limited.installation.gateway_url, image.path, tokens[name])
            selector.register(stack.enter_context(connection), selectors.EVENT_READ, name)
        while sum(got.values()) < 5 * LIMIT:
            for key, _ in selector.select(30):
                taken = len(key.fileobj.recv(1 << 16))  # type: ignore[union-attr]  # they are sockets
                assert taken
                got[key.data] += taken
        seconds = time.monotonic() - began
    assert sum(got.values()) <= LIMIT * (seconds + 1)
    assert got["one"] == pytest.approx(got["many"], rel=0.25)


def test_parts_and_streams_are_limited(limited: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """A limited download is the same bytes, whole and in parts, and takes as long as its bytes must."""
    data = noise(LIMIT + 12345)
    image = shelf.image(namespace, data, store=shelf.store())
    url = limited.installation.gateway_url + image.path
    began = time.monotonic()
    assert ask(url, token=token).body == data
    assert time.monotonic() - began > 0.7
    assert ask(url, token=token, headers={"Range": "bytes=5-2000000"}).body == data[5:2000001]
    got = ask(url, token=token, headers={"Range": "bytes=0-99999,200000-299999"})
    assert (got.status, data[200000:300000] in got.body) == (206, True)


def test_each_client_is_limited(cluster: Cluster, shelf: Shelf, namespace: str, token: str, tmp_path: Path) -> None:
    """By the limit of a client alone one is held to it, by a token and by an address."""
    values = {"GLIMPSE_GATEWAY_CLIENT_BANDWIDTH": str(LIMIT), "GLIMPSE_GATEWAY_ANONYMOUS": "true"}
    data = noise(LIMIT * 2)
    image = shelf.image(namespace, data, store=shelf.store(), spec={"visibility": "public"})
    server = Glimpse(tmp_path / "gateway", cluster=cluster, settings=values)
    server.launch("gateway")
    try:
        server.await_ready("gateway")
        for who in (token, None):
            began = time.monotonic()
            assert ask(server.installation.gateway_url + image.path, token=who).body == data
            assert time.monotonic() - began > 1.5
    finally:
        server.stop()
