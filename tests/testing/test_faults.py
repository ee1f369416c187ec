"""The misbehaving web server does what it is told, as a plain client sees it."""

import http.client
import threading
from collections.abc import Iterator

import pytest

from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server

DATA = noise(100_000)


@pytest.fixture
def web() -> Iterator[Server]:
    """The server."""
    with faults.Server() as server:
        yield server


def get(web: Server, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of one answer."""
    connection = http.client.HTTPConnection(web.host, web.port, timeout=30)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def test_replies_come_in_turn_and_the_last_one_stays(web: Server) -> None:
    """A path answers as scripted, whatever its query; an unknown one with 404; requests and bytes are counted."""
    web.serve("/a", Reply(status=503, headers={"Retry-After": "7"}), Reply(DATA))
    status, _, headers = get(web, "/a")
    assert (status, headers["retry-after"]) == (503, "7")
    assert [get(web, "/a?x=1")[:2] for _ in range(2)] == [(200, DATA)] * 2
    assert get(web, "/b")[0] == 404
    assert [request.sent for request in web.asked("/a")] == [0, len(DATA), len(DATA)]
    assert web.requests[-1].path == "/b"


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=0-9", 206, DATA[:10]),
        ("bytes=10-", 206, DATA[10:]),
        (f"bytes=99990-{1 << 40}", 206, DATA[99990:]),
        (f"bytes={len(DATA)}-", 416, b""),
    ],
)
def test_ranges(web: Server, wanted: str, status: int, body: bytes) -> None:
    """Parts are served where that is wanted, and only while the validator holds."""
    web.serve("/a", Reply(DATA, ranges=True, headers={"ETag": '"v1"'}))
    assert get(web, "/a", Range=wanted)[:2] == (status, body)
    assert get(web, "/a", Range=wanted, If_Range='"v1"')[:2] == (status, body)
    assert get(web, "/a", Range=wanted, If_Range='"v0"')[:2] == (200, DATA)
    web.serve("/a", Reply(DATA))
    assert get(web, "/a", Range=wanted)[:2] == (200, DATA)


def test_a_stall_lasts_until_it_is_released(web: Server) -> None:
    """Just so many bytes go out; nothing depends on how long that takes."""
    web.serve("/a", Reply(DATA, stall=1000))
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(get(web, "/a")[1]))
    thread.start()
    web.wait_for("/a", sent=1000)
    assert web.requests[0].sent == 1000
    web.release()
    thread.join()
    assert got == [DATA]


def test_waiting_for_what_does_not_come_ends(web: Server) -> None:
    """A test that waits in vain fails, and does not hang."""
    with pytest.raises(TimeoutError, match="not 1 requests"):
        web.wait_for("/a", timeout=0.01)


def test_leaving_ends_what_stalls() -> None:
    """No thread and no connection is left behind."""
    before = threading.active_count()
    with faults.Server() as web:
        web.serve("/a", Reply(DATA, stall_head=True))
        connection = http.client.HTTPConnection(web.host, web.port, timeout=30)
        connection.request("GET", "/a")
        web.wait_for("/a")
    connection.close()
    assert threading.active_count() == before
