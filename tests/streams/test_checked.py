"""Checked and its taps: nothing is released at the end that was not verified."""

import hashlib
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse.problems import ChecksumMismatch, DataLost, Problem, SourceUnavailable, TooLarge
from glimpse.streams import AHEAD, CHUNK, Checked, Digest, Limit, Meter, Reader
from glimpse.testing.bodies import Body, noise


class Pieces:
    """A source that gives just these pieces, and says what it likes about their length."""

    def __init__(self, pieces: list[bytes], size: int | None, error: Problem | None = None) -> None:
        self.size = size
        self._pieces: Iterator[bytes] = iter(pieces)
        self._error = error

    def read(self, _n: int = CHUNK, /) -> bytes:
        """The next piece."""
        piece = next(self._pieces, b"")
        if not piece and self._error:
            raise self._error
        return piece


class Watch:
    """A tap that notes what it saw, and may refuse at the end."""

    def __init__(self, refusal: Problem | None = None) -> None:
        self.seen = b""
        self.finished = 0
        self.closed = False
        self._refusal = refusal

    def feed(self, chunk: bytes, /) -> None:
        """Keep it."""
        self.seen += chunk

    def finish(self) -> None:
        """Refuse, if so told."""
        self.finished += 1
        if self._refusal:
            raise self._refusal

    def close(self) -> None:
        """Note it."""
        self.closed = True


def drain(reader: Reader, n: int = CHUNK) -> bytes:
    """All that the reader gives."""
    return b"".join(iter(lambda: reader.read(n), b""))


def drain_into(reader: Reader, out: list[bytes], n: int) -> None:
    """As `drain`, keeping what came before an error."""
    while chunk := reader.read(n):
        out.append(chunk)


def take(reader: Reader, out: list[bytes], length: int) -> None:
    """Read so many bytes and no more, as a store that trusts the announced length."""
    while left := length - len(b"".join(out)):
        out.append(reader.read(min(CHUNK, left)))


LENGTHS = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n", [CHUNK, 1000, CHUNK + 5])
def test_sound_bytes_pass_unchanged(length: int, known: bool, n: int) -> None:
    """What is verified comes out as it went in, whatever the caller asks for at a time; after the end comes the end."""
    data, watch = noise(length), Watch()
    body = Checked(Body(data, known=known), [watch, Digest("sha256", hashlib.sha256(data).hexdigest())])
    assert drain(body, n) == data == watch.seen
    assert watch.finished == 1
    assert body.read() == b""
    assert body.size == (length if known else None)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("lie", [-1, 1])
def test_a_length_that_lies_by_one_holds_back_the_end(length: int, lie: int) -> None:
    """A source that gives one byte more or fewer than it said never gets all its bytes out."""
    if length + lie < 0:
        lie = 1
    out: list[bytes] = []
    with pytest.raises(SourceUnavailable, match=f"announced {length + lie} bytes"):
        drain_into(Checked(Body(noise(length), lie=lie), []), out, CHUNK)
    assert len(b"".join(out)) < max(length + lie, 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_refusal_at_the_end_holds_back_the_last_chunk(length: int) -> None:
    """Who reads exactly as much as was announced still lacks the end if a tap refuses."""
    data = noise(length)
    body = Checked(Body(data), [Watch(ChecksumMismatch("no"))])
    out: list[bytes] = []
    with pytest.raises(ChecksumMismatch):
        take(body, out, max(length, 1))
    assert len(b"".join(out)) < max(length, 1)


def test_an_empty_body_passes_the_taps_before_a_store_is_touched() -> None:
    """`start` already raises what a tap says about nothing at all."""
    with pytest.raises(ChecksumMismatch):
        Checked(Body(b""), [Digest("sha256", "0" * 64)]).start()


def test_an_error_comes_again() -> None:
    """After a failure every read fails in the same way; no remainder leaks out."""
    body = Checked(Body(noise(2 * CHUNK), error=DataLost("gone")), [])
    assert len(body.read(10)) == 10
    for _ in range(3):
        with pytest.raises(DataLost):
            drain(body, 10)
    assert body.error


def test_leaving_closes_the_taps() -> None:
    """Whatever happens, taps are closed, and closing twice does no harm."""
    watch, digest = Watch(), Digest("sha256")
    with pytest.raises(DataLost), Checked(Body(noise(CHUNK), error=DataLost("gone")), [watch, digest]) as body:
        drain(body)
    assert watch.closed
    digest.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sha256"]


@given(
    data=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    lie=st.integers(-3, 3),
    known=st.booleans(),
    wrong=st.booleans(),
    broken=st.booleans(),
    asked=st.lists(st.integers(1, 70), min_size=1, max_size=5),
)
def test_bytes_are_exact_or_a_problem(  # noqa: PLR0917 - hypothesis gives them all
    data: bytes, cuts: list[int], lie: int, known: bool, wrong: bool, broken: bool, asked: list[int]
) -> None:
    """Any pieces, any lie, any digest: all the bytes and just these come out, or a Problem before the last of them."""
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges) if a < b]
    size = max(len(data) + lie, 0) if known else None
    expected = hashlib.sha256(data + b"!" if wrong else data).hexdigest()
    source = Pieces(pieces, size, SourceUnavailable("cut") if broken else None)
    sound = not wrong and not broken and size in {None, len(data)}
    got = b""
    with Checked(source, [Digest("sha256", expected)]) as body:
        try:
            for turn in range(1000):
                chunk = body.read(asked[turn % len(asked)])
                assert len(chunk) <= asked[turn % len(asked)]
                if not chunk:
                    break
                got += chunk
        except Problem:
            assert not sound
            assert data.startswith(got)
            assert len(got) < max(len(data), 1)
        else:
            assert sound
            assert got == data


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha384", "sha512"])
def test_digests_are_those_of_hashlib(algorithm: str) -> None:
    """The thread sees each chunk once and in order."""
    data = noise(5 * CHUNK + 7)
    digest = Digest(algorithm)
    drain(Checked(Body(data, piece=CHUNK // 3), [digest]))
    assert digest.hex == hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def test_a_wrong_digest_names_both() -> None:
    """ChecksumMismatch says what was expected and what came."""
    right = hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(ChecksumMismatch, match=rf"have sha256:{right}, expected was sha256:{'0' * 64}"):
        drain(Checked(Body(b"abc"), [Digest("sha256", "0" * 64)]))


def test_a_digest_holds_few_chunks() -> None:
    """A digest that falls behind makes the source wait: memory is bounded by the queue."""
    digest = Digest("sha256")
    assert digest._queue.maxsize == AHEAD


def test_the_limit_is_the_largest_that_passes() -> None:
    """Exactly the limit passes, one byte more does not; a length that is announced is refused before the first byte."""
    drain(Checked(Body(noise(100)), [Limit(100)]))
    with pytest.raises(TooLarge, match="GLIMPSE_LIMITS__IMAGE_SIZE"):
        drain(Checked(Body(noise(101), known=False), [Limit(100)]))
    with pytest.raises(TooLarge):
        Limit(100, 101)


def test_the_meter_reports_first_last_and_not_too_often() -> None:
    """One report at the first chunk, one at the end, none between if that is sooner than the interval."""
    reports: list[int] = []
    drain(Checked(Body(noise(100), piece=10), [Meter(reports.append, interval=3600)]))
    assert reports == [10, 100]
    reports.clear()
    drain(Checked(Body(noise(100), piece=10), [Meter(reports.append, interval=0)]))
    assert reports == [*range(10, 101, 10), 100]
