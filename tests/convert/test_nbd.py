"""What a program writes to its disk is a stream; and what it does wrong is never one that ends."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimpse.nbd import Written
from glimpse.problems import ConversionFailed, Problem, WorkerLost
from glimpse.streams import CHUNK
from glimpse.testing.bodies import noise

GOODBYE = (2, 0, 0, b"")
Request = tuple[int, int, int, bytes]
"""Kind, offset, length, data."""


def write(offset: int, data: bytes) -> Request:
    """A request to write."""
    return 1, offset, len(data), data


def zero(offset: int, length: int) -> Request:
    """A request to write zeros."""
    return 6, offset, length, b""


class Client:
    """The other end: greets as qemu does, then sends what it was told to."""

    def __init__(self, connection: socket.socket, requests: list[Request | bytes]) -> None:
        self._socket, self._requests = connection, requests
        self.answers = 0
        self.size = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with self._socket, self._socket.makefile("rb") as answers:
            try:
                assert answers.read(18) == b"NBDMAGICIHAVEOPT\0\3"
                self._socket.sendall(struct.pack(">I", 3))
                for option, data in ((8, b""), (7, struct.pack(">IHH", 0, 1, 3))):
                    self._socket.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
                while True:
                    magic, _, kind, length = struct.unpack(">QIII", answers.read(20))
                    data = answers.read(length)
                    assert magic == 0x3E889045565A9
                    if kind == 3 and data[:2] == b"\0\0":
                        (self.size,) = struct.unpack(">Q", data[2:10])
                    if kind == 1:
                        break
                for request in self._requests:
                    self._talk(request, answers.read)
            except OSError:
                return  # the server wants no more

    def _talk(self, request: Request | bytes, read: Callable[[int], bytes]) -> None:
        if isinstance(request, bytes):
            self._socket.sendall(request)
            return
        kind, offset, length, data = request
        self._socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 77, offset, length) + data)
        if kind != 2:
            if read(16) != struct.pack(">IIQ", 0x67446698, 0, 77):
                raise ConnectionError
            self.answers += 1


def written(size: int, requests: list[Request | bytes], *, n: int = CHUNK, patience: float = 20) -> bytes:
    """All that comes of these requests."""
    ours, theirs = socket.socketpair()
    client = Client(theirs, requests)
    try:
        reader = Written(ours, size, patience, threading.Event())
        reader.greet()
        assert reader.size == size
        found = b"".join(iter(lambda: reader.read(n), b""))
        assert reader.read() == b""
    finally:
        ours.close()
        client.thread.join()
    assert client.size == size
    assert client.answers == len(requests) - 1, "each is answered, once"
    return found


DATA = noise(2 * CHUNK + 700)


@pytest.mark.parametrize("n", [1000, CHUNK, 2 * CHUNK])
@pytest.mark.parametrize("step", [4096, 65536, CHUNK - 512, CHUNK])
def test_writes_in_order_are_a_stream(step: int, n: int) -> None:
    """Whatever their size, and whatever is asked for at once."""
    requests: list[Request | bytes] = [write(at, DATA[at : at + step]) for at in range(0, len(DATA), step)]
    assert written(len(DATA), [*requests, (3, 0, 0, b""), GOODBYE], n=n) == DATA


@pytest.mark.parametrize(
    ("size", "requests"),
    [
        (0, []),
        (1, []),
        (CHUNK, []),
        (5 * CHUNK + 3, []),
        (5 * CHUNK, [zero(0, 5 * CHUNK)]),
        (5 * CHUNK, [zero(0, CHUNK), zero(CHUNK, 3 * CHUNK), zero(4 * CHUNK, CHUNK)]),
        (4 * CHUNK, [write(10, b"x"), zero(100, CHUNK), write(2 * CHUNK - 1, b"across"), write(3 * CHUNK, b"y")]),
        (4 * CHUNK, [write(4 * CHUNK - 1, b"z")]),
        (CHUNK, [write(5, b""), write(5, b"x"), zero(6, 0)]),
    ],
)
def test_what_is_left_out_is_zeros(size: int, requests: list[Request | bytes]) -> None:
    """Holes cost no bytes on the way, also first and last, and as large as the disk."""
    expected = bytearray(size)
    for request in requests:
        assert not isinstance(request, bytes)
        _, offset, _, data = request
        expected[offset : offset + len(data)] = data
    assert written(size, [*requests, GOODBYE]) == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(0, 3 * CHUNK))
def test_any_order_of_writes_and_holes(data: st.DataObject, size: int) -> None:
    """Against a model: a buffer that is written to."""
    expected = bytearray(size)
    requests: list[Request | bytes] = []
    at = 0
    while at < size and len(requests) < 8:
        at += data.draw(st.integers(0, size - at))
        length = data.draw(st.integers(0, min(size - at, CHUNK)))
        if data.draw(st.booleans()):
            piece = noise(length, seed=at)
            expected[at : at + length] = piece
            requests.append(write(at, piece))
        else:
            requests.append(zero(at, length))
        at += length
    n = data.draw(st.sampled_from([777, CHUNK]))
    assert written(size, [*requests, GOODBYE], n=n) == expected


ODD: dict[str, list[Request | bytes]] = {
    "back": [write(100, b"x"), write(99, b"y"), GOODBYE],
    "twice": [write(0, b"xx"), write(1, b"y"), GOODBYE],
    "zeros over data": [write(0, b"xx"), zero(0, 1), GOODBYE],
    "beyond the end": [write(CHUNK - 1, b"xx"), GOODBYE],
    "far beyond the end": [zero((1 << 64) - 1, 1), GOODBYE],
    "zeros beyond the end": [zero(0, CHUNK + 1), GOODBYE],
    "reads": [(0, 0, 512, b""), GOODBYE],
    "an unknown request": [(99, 0, 0, b""), GOODBYE],
    "no request": [b"x" * 28],
    "no goodbye": [write(0, b"x" * CHUNK)],
    "half a request": [b"\x25\x60\x95\x13"],
    "half its bytes": [struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 100) + b"x" * 50],
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_stream_never_ends_well(name: str) -> None:
    """The program has read hostile bytes: whatever else it does, there is no end that could be believed."""
    with pytest.raises(ConversionFailed):
        written(CHUNK, ODD[name])


def test_a_write_of_more_than_was_agreed() -> None:
    """No write is so large that its bytes would be held at once."""
    with pytest.raises(ConversionFailed):
        written(9 * CHUNK, [struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 8 * CHUNK)])


def greeted(greeting: bytes) -> Problem:
    """What a greeting like this leads to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(greeting)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Problem) as raised:
            Written(ours, CHUNK, 20, threading.Event()).greet()
        return raised.value


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        bytes(4),
        bytes(4) + b"x" * 16,
        bytes(4) + b"IHAVEOPT" + struct.pack(">II", 7, 1 << 31),
        bytes(4) + (b"IHAVEOPT" + struct.pack(">II", 99, 0)) * 65,
    ],
    ids=["nothing", "half", "nonsense", "endless option", "endless options"],
)
def test_odd_greetings(greeting: bytes) -> None:
    """Bounded in time and memory."""
    assert isinstance(greeted(greeting), ConversionFailed)


def silent() -> Iterator[tuple[Written, socket.socket]]:
    """A server whose client says nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Written(ours, CHUNK, 0.1, threading.Event()), theirs


def test_silence_is_not_waited_for() -> None:
    """A program that hangs is given up."""
    for reader, _ in silent():
        with pytest.raises(ConversionFailed, match=r"nothing for 0\.1 s"):
            reader.greet()


def test_a_client_that_hears_nothing_is_given_up() -> None:
    """Our answers are small; if even they find no room, nobody reads them, and we do not wait for it."""
    with pytest.raises(ConversionFailed):
        written(CHUNK, [struct.pack(">IHHQQI", 0x25609513, 0, 3, 1, 0, 0) * 100_000])


def test_a_wait_can_be_cancelled() -> None:
    """However patient it is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        cancelled = threading.Event()
        reader = Written(ours, CHUNK, 3600, cancelled)
        timer = threading.Timer(0.05, cancelled.set)
        timer.start()
        with pytest.raises(WorkerLost):
            reader.greet()
        timer.join()
