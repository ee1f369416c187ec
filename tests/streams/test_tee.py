"""The tee: several stores from one reading, none of which can hurt another."""

import threading
from collections.abc import Callable

import pytest

from glimpse.problems import ChecksumMismatch, SourceUnavailable, StoreFull, StoreUnavailable
from glimpse.streams import AHEAD, CHUNK, Checked, Digest, Reader, tee
from glimpse.testing.bodies import Body, noise

LONG = 60.0


def keep(body: Reader) -> bytes:
    """A sink that takes all."""
    return b"".join(iter(body.read, b""))


def keep_views(body: Reader) -> list[bytes]:
    """A sink that keeps every chunk as it got it."""
    return list(iter(body.read, b""))


def fail(body: Reader) -> bytes:
    """A sink that fails after the first chunk."""
    body.read()
    raise StoreFull("full")


def readers() -> list[threading.Thread]:
    """Threads of sinks that still run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("store-")]


@pytest.mark.parametrize("length", [0, 1, CHUNK, CHUNK + 1, (AHEAD + 3) * CHUNK])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_sink_gets_all_bytes(length: int, count: int) -> None:
    """Each sees the same bytes in the same order, and how many there will be."""
    data = noise(length)
    sizes: list[int | None] = []

    def sink(body: Reader) -> bytes:
        sizes.append(body.size)
        return keep(body)

    assert tee(Body(data), {f"store-{n}": sink for n in range(count)}, LONG) == {
        f"store-{n}": data for n in range(count)
    }
    assert sizes == [length] * count
    assert not readers()


def test_kept_chunks_stay_as_they_were() -> None:
    """A sink may keep what it got: chunks are not used again."""
    data = noise(20 * CHUNK)
    got = tee(Body(data), {"store-a": keep_views, "store-b": keep_views}, LONG)
    for chunks in got.values():
        assert isinstance(chunks, list)
        assert b"".join(chunks) == data


@pytest.mark.parametrize("others", [{}, {"store-b": keep}, {"store-b": keep, "store-c": fail}])
def test_one_that_fails_does_not_stop_the_others(others: dict[str, Callable[[Reader], bytes]]) -> None:
    """A sink's Problem is its outcome; the others' are their own."""
    data = noise(20 * CHUNK)
    outcomes = tee(Body(data), {"store-a": fail, **others}, LONG)
    for name, sink in {"store-a": fail, **others}.items():
        if sink is fail:
            assert isinstance(outcomes[name], StoreFull)
        else:
            assert outcomes[name] == data


def test_with_all_dropped_the_source_is_read_no_further() -> None:
    """Nobody wants the rest: a few chunks at most were read ahead."""
    source = Body(noise(50 * CHUNK))
    tee(source, {"store-a": fail, "store-b": fail}, LONG)
    assert source.given <= (AHEAD + 3) * CHUNK


def test_one_that_stalls_is_dropped_and_cannot_finish() -> None:
    """A sink that takes nothing for longer than the timeout fails; when it wakes up it sees that, never the end."""
    wake, woken = threading.Event(), threading.Event()
    seen: list[object] = []

    def stall(body: Reader) -> bytes:
        body.read()
        wake.wait()
        try:
            seen.append(keep(body))
        except StoreUnavailable as problem:
            seen.append(problem)
            raise
        finally:
            woken.set()
        return b""

    data = noise(20 * CHUNK)
    outcomes = tee(Body(data), {"store-a": stall, "store-b": keep}, 0.2)
    assert outcomes["store-b"] == data
    assert isinstance(outcomes["store-a"], StoreUnavailable)
    assert "store-a took no bytes for 0.2 s" in outcomes["store-a"].message
    wake.set()
    assert woken.wait(120)
    assert seen == [outcomes["store-a"]]


def test_a_slow_commit_is_waited_for() -> None:
    """Once it has all the bytes, a store may take its time: it holds up nobody."""
    commit = threading.Event()
    threading.Timer(0.5, commit.set).start()

    def slow(body: Reader) -> bytes:
        data = keep(body)
        assert commit.wait(120)
        return data

    assert tee(Body(b"abc"), {"store-a": slow, "store-b": keep}, 0.05) == {"store-a": b"abc", "store-b": b"abc"}


@pytest.mark.parametrize("count", [1, 3])
def test_what_the_source_raises_comes_out_of_every_sink(count: int) -> None:
    """Every sink sees the source's Problem in place of the end, and so does the caller, after the sinks have ended."""
    error = SourceUnavailable("gone")
    seen: list[BaseException] = []

    def sink(body: Reader) -> bytes:
        try:
            return keep(body)
        except SourceUnavailable as problem:
            seen.append(problem)
            raise

    with pytest.raises(SourceUnavailable) as caught:
        tee(Body(noise(5 * CHUNK), error=error), {f"store-{n}": sink for n in range(count)}, LONG)
    assert caught.value is error
    assert seen == [error] * count
    assert not readers()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, CHUNK, 7 * CHUNK + 3])
def test_no_sink_sees_the_end_of_a_body_that_failed_its_check(count: int, length: int) -> None:
    """The last chunk is withheld from all of them until it is checked."""
    got: list[int] = []

    def sink(body: Reader) -> bytes:
        count = 0
        try:
            while chunk := body.read():
                count += len(chunk)
        finally:
            got.append(count)
        return b""

    body = Checked(Body(noise(length)), [Digest("sha256", "0" * 64)])
    with pytest.raises(ChecksumMismatch):
        tee(body, {f"store-{n}": sink for n in range(count)}, LONG)
    assert len(got) == count
    assert all(count < length for count in got)


def test_a_bug_in_a_sink_comes_out() -> None:
    """Any other exception is not an outcome: it is raised, with several sinks as with one."""

    def bug(body: Reader) -> bytes:
        body.read()
        raise ZeroDivisionError

    for sinks in ({"store-a": bug}, {"store-a": bug, "store-b": keep}):
        with pytest.raises(ZeroDivisionError):
            tee(Body(noise(20 * CHUNK)), sinks, LONG)
