"""Large files in parts, over several lines, from servers that do everything wrong."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glimpse.problems import Problem, SourceChanged, SourceNotFound, SourceUnavailable, WorkerLost
from glimpse.settings import Addresses, Transfers
from glimpse.sources.http import HttpSource, open_http
from glimpse.sources.line import Tuning
from glimpse.sources.ranged import Ranged
from glimpse.sources.remote import Version
from glimpse.tasks import HttpOrigin
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Kind, Reply, Server
from servers import wait_until

LOOPBACK = Addresses.model_validate({"allow": ["127.0.0.0/8"]})
PATIENT = Transfers(connect_timeout=5, idle_timeout=20, connections=4, retries=3)
KIB = 1 << 10
SMALL = Tuning(part=64 * KIB, least=8 * KIB, window=512 * KIB, alone=128 * KIB, pace=0.0, pause=0.001)
"""Parts so small that a file of some hundred KiB has many."""
DATA = noise(1_000_003)
OTHER = noise(1_000_003, seed=2)
V1 = {"ETag": '"v1"'}
V2 = {"ETag": '"v2"'}
GOOD = Reply(DATA, ranges=True, headers=V1)


@pytest.fixture
def web() -> Iterator[Server]:
    """The server."""
    with Server() as server:
        yield server


Open = Callable[..., Any]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens URLs, with small parts."""
    sources: list[HttpSource] = []

    def start(
        *urls: str,
        transfers: Transfers = PATIENT,
        tuning: Tuning = SMALL,
        cancelled: threading.Event | None = None,
        **how: Any,
    ) -> Any:
        origin = HttpOrigin(urls=urls)
        source = open_http(origin, urls, LOOPBACK, transfers, cancelled or threading.Event(), tuning=tuning, **how)
        assert isinstance(source, HttpSource)
        sources.append(source)
        return source

    yield start
    for source in sources:
        source.close()


def drain(source: Any, n: int = 1 << 20) -> bytes:
    """All of it."""
    return b"".join(iter(lambda: source.read(n), b""))


def sent(web: Server, path: str = "/a") -> int:
    """Bytes that the server has sent."""
    return sum(request.sent for request in web.asked(path))


def is_waiting(source: HttpSource, count: int) -> bool:
    """Whether so many bytes have been received and not read."""
    ranged = source._body
    assert isinstance(ranged, Ranged)
    with ranged._lock:
        return sum(len(chunk) for part in ranged._parts for chunk in part.chunks) >= count


# What works


@pytest.mark.parametrize("length", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, len(DATA)])
@pytest.mark.parametrize("connections", [1, 2, 8])
def test_parts_make_the_file(web: Server, opened: Open, length: int, connections: int) -> None:
    """Whatever the number of lines, each byte comes once, in order, and is asked for once."""
    web.serve("/a", replace(GOOD, body=DATA[:length]))
    source = opened(web.url("/a"), transfers=PATIENT.model_copy(update={"connections": connections}))
    assert source.size == length
    assert drain(source, 10_000) == DATA[:length]
    assert source.read() == b""
    web.wait_for("/a", sent=length)
    assert sent(web) == length


def test_lines_are_added_while_they_help(web: Server, opened: Open) -> None:
    """A server that gives each connection little is asked over as many as allowed, each kept for further parts."""
    web.serve("/a", replace(GOOD, trickle=(16 * KIB, 0.01)))
    assert drain(opened(web.url("/a"), tuning=replace(SMALL, pace=0.02))) == DATA
    ports = {request.port for request in web.asked("/a")}
    assert 2 <= len(ports) <= 4
    assert len(web.asked("/a")) > len(ports)


def test_one_line_is_enough_for_a_slow_reader(web: Server, opened: Open) -> None:
    """Where the one who reads is slower than the server, no line is added, and little is fetched ahead."""
    web.serve("/a", GOOD)
    source = opened(web.url("/a"), tuning=replace(SMALL, pace=3600.0))
    wait_until("bytes", partial(is_waiting, source, 128 * KIB), timeout=30, poll=0.001)
    source._body._pace._seconds = 0.0  # from now on, with each chunk: are more lines worth having?
    got = bytearray()
    while chunk := source.read(16 * KIB):
        got += chunk
        wait_until("bytes", partial(is_waiting, source, min(len(DATA) - len(got), 128 * KIB)), timeout=30, poll=0.001)
        assert sent(web) <= len(got) + (128 + 2 * 64) * KIB
    assert got == DATA
    assert len({request.port for request in web.asked("/a")}) == 1


def test_a_server_without_parts(web: Server, opened: Open) -> None:
    """It is asked once and read in one go."""
    web.serve("/a", replace(GOOD, ranges=False))
    assert drain(opened(web.url("/a"))) == DATA
    assert len(web.asked("/a")) == 1


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"v1"'}, {"Last-Modified": "Fri, 01 Jan 2100 00:00:00 GMT"}])
def test_what_cannot_be_told_apart_is_not_joined(web: Server, opened: Open, headers: dict[str, str]) -> None:
    """Without a strong validator two answers may be of two files: the whole is asked for in one, and not taken up."""
    web.serve("/a", Reply(DATA, ranges=True, headers=headers))
    assert drain(opened(web.url("/a"))) == DATA
    assert ["range" in request.headers for request in web.asked("/a")] == [True, False]
    web.interrupt("/a", 500_000, "cut")
    with pytest.raises(SourceUnavailable, match="ended early"):
        drain(opened(web.url("/a")))


def test_a_caller_who_proves_the_whole_needs_no_validator(web: Server, opened: Open) -> None:
    """A digest tells whether the parts belong together."""
    web.serve("/a", Reply(DATA, ranges=True))
    web.interrupt("/a", 500_000, "cut")
    source = opened(web.url("/a"), proven=True)
    assert drain(source) == DATA
    assert source.doubtful


def test_an_old_date_is_a_validator(web: Server, opened: Open) -> None:
    """RFC 9110 8.8.2.2: one that was settled when the answer was made."""
    date = "Thu, 01 Jan 2026 00:00:00 GMT"
    web.serve("/a", Reply(DATA, ranges=True, headers={"Last-Modified": date}))
    web.interrupt("/a", 500_000, "reset")
    assert drain(opened(web.url("/a"))) == DATA
    assert {request.headers.get("if-range") for request in web.asked("/a")} == {None, date}


# Breaks

KINDS: tuple[Kind, ...] = ("cut", "reset", "stall", "busy", "length")


def patience(kind: Kind) -> Transfers:
    """Little where silence is the break; else so much that a machine with other work is not taken for one."""
    return PATIENT.model_copy(update={"idle_timeout": 0.3 if kind == "stall" else 30.0})


@pytest.mark.parametrize("percent", range(0, 100, 5))
@pytest.mark.parametrize("kind", KINDS)
def test_one_break_anywhere(web: Server, opened: Open, kind: Kind, percent: int) -> None:
    """The bytes are right, and few come twice: what the kernel had taken, and was thrown away."""
    web.serve("/a", GOOD)
    web.interrupt("/a", len(DATA) * percent // 100, kind)
    source = opened(web.url("/a"), transfers=patience(kind))
    assert drain(source) == DATA
    assert not source.doubtful
    assert sent(web) <= len(DATA) * 1.05 + 64 * KIB * (kind in {"reset", "length"})


@pytest.mark.parametrize("kind", KINDS)
def test_breaks_all_the_way(web: Server, opened: Open, kind: Kind) -> None:
    """Each break that comes after some progress is borne: it is no row of failures."""
    web.serve("/a", GOOD)
    for at in range(20_000, len(DATA), 100_000):
        web.interrupt("/a", at, kind)
    got = drain(opened(web.url("/a"), transfers=patience(kind)))
    assert hashlib.sha256(got).digest() == hashlib.sha256(DATA).digest()


def test_a_server_that_stays_away_is_given_up(web: Server, opened: Open) -> None:
    """After so many breaks in a row, and not before."""
    web.serve("/a", GOOD, Reply(status=503))
    with pytest.raises(SourceUnavailable, match="answered 503"):
        drain(opened(web.url("/a"), transfers=PATIENT.model_copy(update={"connections": 1})))
    assert len(web.asked("/a")) == 1 + 1 + PATIENT.retries


def test_a_server_that_asks_for_patience_is_left_alone(web: Server, opened: Open) -> None:
    """A long Retry-After is the operator's to keep: no slot is held meanwhile."""
    web.serve("/a", GOOD, Reply(status=429, headers={"Retry-After": "120"}))
    with pytest.raises(SourceUnavailable) as caught:
        drain(opened(web.url("/a")))
    assert caught.value.retry_after == 120


def test_a_server_that_bears_few_lines(web: Server, opened: Open) -> None:
    """Refused requests make the lines fewer, and the transfer goes on."""
    slow = replace(GOOD, trickle=(16 * KIB, 0.005))
    web.serve("/a", *[slow, Reply(status=503)] * 3, slow)
    assert drain(opened(web.url("/a"), tuning=replace(SMALL, pause=0.05))) == DATA


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("slow", [(16 * KIB, 0.005), (1 * KIB, 0.0005)])
def test_a_server_that_limits_connections(web: Server, opened: Open, most: int, slow: tuple[int, float]) -> None:
    """A line that is refused leaves its part to those that work; it neither asks again nor counts as a failure."""
    web.serve("/a", replace(GOOD, most=most, trickle=slow))
    source = opened(web.url("/a"), transfers=PATIENT.model_copy(update={"connections": 8, "retries": 0}))
    assert drain(source) == DATA
    assert len([request for request in web.asked("/a") if not request.sent]) < 8
    assert not source.remotes[0].failed


def test_a_refused_line_leaves_its_part_to_one_that_waits(web: Server, opened: Open) -> None:
    """Whatever part is refused, also the one that is read next while the others are far ahead."""
    slow = replace(GOOD, trickle=(16 * KIB, 0.002))
    for refused in range(1, 12):
        web.serve("/a", *[slow] * refused, Reply(status=503), slow)
        transfers = PATIENT.model_copy(update={"retries": 1})
        assert drain(opened(web.url("/a"), transfers=transfers, tuning=replace(SMALL, alone=16 * KIB))) == DATA


def test_a_failure_after_refusals_names_the_setting(web: Server, opened: Open) -> None:
    """Who meets a server that allows few connections is told how to ask over fewer."""
    web.serve("/a", replace(GOOD, most=1, trickle=(2 * KIB, 0.005)))
    source = opened(web.url("/a"), transfers=PATIENT.model_copy(update={"retries": 1}))

    def read() -> None:
        while source.read(KIB):
            if any(request.whole and not request.sent for request in web.asked("/a")):
                web.serve("/a", Reply(status=503))

    with pytest.raises(SourceUnavailable, match=r"answered 503; .* lower transfer\.connections"):
        read()


def test_short_parts_are_taken(web: Server, opened: Open) -> None:
    """A server may give less than was asked for (RFC 9110 15.3.7)."""
    web.serve("/a", replace(GOOD, cap=10_000))
    assert drain(opened(web.url("/a"))) == DATA
    web.wait_for("/a", sent=len(DATA))
    assert sent(web) == len(DATA)


@pytest.mark.parametrize("connections", [1, 4])
def test_a_whole_answer_in_the_middle(web: Server, opened: Open, connections: int) -> None:
    """A server that gives no parts any more, of the same file, is read over one connection up to where we were."""
    web.serve("/a", GOOD, replace(GOOD, ranges=False))
    assert drain(opened(web.url("/a"), transfers=PATIENT.model_copy(update={"connections": connections}))) == DATA


# Other files


@pytest.mark.parametrize(
    "later",
    [
        Reply(OTHER, ranges=True, headers=V2),  # If-Range: the whole of the new file
        Reply(OTHER, ranges=False, headers=V2),
        Reply(OTHER[:-1], ranges=True, headers=V1),  # the same name for another length
        Reply(OTHER[:100], ranges=True, headers=V1),  # so short that there is no such part: 416
        Reply(DATA, ranges=True, headers={**V1, "Content-Range": "bytes 5-64/65"}),
    ],
)
def test_another_file_is_never_joined(web: Server, opened: Open, later: Reply) -> None:
    """Bytes of two files are no image: the transfer starts again."""
    web.serve("/a", GOOD, later)
    with pytest.raises((SourceChanged, SourceUnavailable)):
        drain(opened(web.url("/a")))


def test_a_server_that_ignores_if_range(web: Server, opened: Open) -> None:
    """The validator of each part is looked at, too."""
    web.serve("/a", GOOD, Reply(OTHER, ranges=True, headers={**V2}, ignore_if_range=True))
    with pytest.raises(SourceChanged, match="has changed"):
        drain(opened(web.url("/a")))


# Taken up


@pytest.mark.parametrize("start", [1, 64 * KIB, len(DATA) - 64 * KIB, len(DATA) - 1])
@pytest.mark.parametrize("parts", [True, False])
def test_a_transfer_is_taken_up(web: Server, opened: Open, start: int, parts: bool) -> None:
    """Only what is lacking is asked for; a server that gives no parts is read over what is there."""
    web.serve("/a", replace(GOOD, ranges=parts))
    expected = Version(len(DATA), '"v1"', None, '"v1"')
    source = opened(web.url("/a"), start=start, expected=expected)
    assert source.size == len(DATA)
    assert drain(source) == DATA[start:]
    if parts:
        web.wait_for("/a", sent=len(DATA) - start)
        assert sent(web) == len(DATA) - start


@pytest.mark.parametrize("later", [Reply(OTHER, ranges=True, headers=V2), Reply(DATA[:5000], ranges=True, headers=V1)])
def test_another_file_is_not_taken_up(web: Server, opened: Open, later: Reply) -> None:
    """It starts again."""
    web.serve("/a", later)
    with pytest.raises(SourceChanged):
        opened(web.url("/a"), start=5000, expected=Version(len(DATA), '"v1"', None, '"v1"'))


# Redirects


def test_a_redirect_is_followed_once(web: Server, opened: Open) -> None:
    """Parts are asked for where the first answer came from; when that place has run out, its giver is asked anew."""
    web.serve("/a", Reply.redirect("/signed?key=1"), Reply.redirect("/signed?key=2"))
    web.serve("/signed", GOOD, GOOD, GOOD, Reply(status=403), GOOD)
    assert drain(opened(web.url("/a"), transfers=PATIENT.model_copy(update={"connections": 1}))) == DATA
    assert len(web.asked("/a")) == 2
    paths = [request.path for request in web.asked("/signed")]
    assert paths[:5] == ["/signed?key=1"] * 4 + ["/signed?key=2"]
    assert set(paths[5:]) == {"/signed?key=2"}


# Mirrors


def test_another_mirror_goes_on(web: Server, opened: Open) -> None:
    """A mirror that breaks for good is left for another one at the byte, where the whole is proven."""
    with Server() as other:
        web.serve("/a", replace(GOOD, headers={}), Reply(status=404))
        other.serve("/b", replace(GOOD, headers={}))
        source = opened(web.url("/a"), other.url("/b"), proven=True)
        assert drain(source) == DATA
        assert [remote.url for remote in source.used] == [web.url("/a"), other.url("/b")]
        assert source.doubtful
        web.wait_for("/a", sent=64 * KIB)
        other.wait_for("/b", sent=len(DATA) - 64 * KIB)
        assert sent(web) + sent(other, "/b") == len(DATA)


def test_parts_from_several_mirrors_at_once(web: Server, opened: Open) -> None:
    """Lines are spread over the mirrors."""
    with Server() as other:
        slow = replace(GOOD, trickle=(16 * KIB, 0.01))
        web.serve("/a", slow)
        other.serve("/b", slow)
        assert drain(opened(web.url("/a"), other.url("/b"), proven=True, tuning=replace(SMALL, pace=0.02))) == DATA
        assert sent(other, "/b") > 100 * KIB


def test_a_mirror_of_another_length_is_left_out(web: Server, opened: Open) -> None:
    """It has another file; nothing of it is taken."""
    with Server() as other:
        slow = replace(GOOD, trickle=(16 * KIB, 0.01))
        web.serve("/a", slow)
        other.serve("/b", replace(GOOD, body=OTHER[:-1]))
        source = opened(web.url("/a"), other.url("/b"), proven=True, tuning=replace(SMALL, pace=0.02))
        assert drain(source) == DATA
        assert [remote.url for remote in source.used] == [web.url("/a")]


def test_the_first_mirror_that_answers_begins(web: Server, opened: Open) -> None:
    """One that has no such file is passed over; with none left, the last one's answer is told."""
    web.serve("/b", GOOD)
    assert drain(opened(web.url("/a"), web.url("/b"), proven=True)) == DATA
    with pytest.raises(SourceNotFound):
        opened(web.url("/a"), web.url("/c"), proven=True)


# Ends


def test_cancelling_ends_all_lines(web: Server, opened: Open) -> None:
    """Nobody waits for a server any more."""
    web.serve("/a", replace(GOOD, stall=10_000))
    cancelled = threading.Event()
    source = opened(web.url("/a"), transfers=PATIENT.model_copy(update={"idle_timeout": 3600}), cancelled=cancelled)
    assert source.read(10_000)
    cancelled.set()
    with pytest.raises(WorkerLost):
        drain(source)


def test_closing_ends_all_lines(web: Server, opened: Open) -> None:
    """Closed half-way, no thread is left, though a server may be silent for an hour."""
    before = threading.active_count()
    web.serve("/a", GOOD, replace(GOOD, stall=1000))
    source = opened(web.url("/a"), transfers=PATIENT.model_copy(update={"idle_timeout": 3600}))
    source.read()
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "line"], before


# Any faults at all

RAW = (b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b"HTTP/1.1 206 Partial\r\n\r\nxx")
FAULTS: dict[str, Callable[[int], Reply]] = {
    "good": lambda _: GOOD,
    "cut": lambda n: replace(GOOD, cut=n % 70_000),
    "reset": lambda n: replace(GOOD, cut=n % 70_000, reset=True),
    "stall": lambda n: replace(GOOD, stall=n % 70_000, cut=n % 70_000),
    "status": lambda n: Reply(status=(429, 500, 503, 404, 403, 416, 204, 301)[n % 8]),
    "short": lambda n: replace(GOOD, cap=1 + n % 70_000),
    "whole": lambda n: replace(GOOD, ranges=False, chunked=n % 2 * 5000),
    "length": lambda n: replace(GOOD, length=64 * KIB - 5 + n % 10),
    "other": lambda n: Reply((OTHER, OTHER[:-9], b"")[n % 3], ranges=True, headers=V2),
    "weak": lambda n: Reply((OTHER, OTHER[:-9], b"")[n % 3], ranges=True, headers={"ETag": 'W/"v2"'}),
    "elsewhere": lambda n: replace(GOOD, headers={**V1, "Content-Range": f"bytes {n}-{n + 9}/{len(DATA)}"}),
    "raw": lambda n: Reply(raw=RAW[n % 4]),
}
"""What a server may do to a request, by a name and a number."""


def test_the_rest_of_a_file_without_a_length_ends_where_the_file_did(web: Server, opened: Open) -> None:
    """An answer that mends a break and does not say its length must end with the file, or it is another one."""
    web.serve("/a", replace(GOOD, ranges=False, length=64 * KIB - 5), replace(GOOD, ranges=False, chunked=5000))
    with pytest.raises(SourceChanged, match="longer now"):
        drain(opened(web.url("/a")))


@example(faults=[("other", 36446), ("length", 0), ("whole", 1)], connections=1, proven=False)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 999_000)), max_size=12),
    connections=st.sampled_from([1, 3]),
    proven=st.booleans(),
)
def test_right_bytes_or_a_problem(
    web: Server, opened: Open, faults: list[tuple[str, int]], connections: int, proven: bool
) -> None:
    """Whatever a server does, what comes out is the file or a Problem; never other bytes, never a wait without end.

    A server whose file changes may end as the new file, if nothing of the old was read.
    """
    replies = [*(FAULTS[name](number) for name, number in faults), GOOD]
    web.serve("/a", *replies)
    transfers = PATIENT.model_copy(update={"connections": connections, "idle_timeout": 0.05, "rate_window": 5})
    try:
        found = drain(opened(web.url("/a"), transfers=transfers, proven=proven))
    except Problem:
        return
    assert found in {reply.body for reply in replies}
