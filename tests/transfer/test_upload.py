"""Bytes that somebody sends: whole or not at all, gone on with where they broke off, and never two uploads in one."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from glimpse.settings import Transfers
from glimpse.sources.pipe import FRAME, HEAD
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef, UploadOrigin
from glimpse.testing.bodies import noise
from glimpse.testing.workbench import KEY, Told, Workbench

DATA = noise(10 * CHUNK + 17)
UPLOAD = "6f1c0000-0000-4000-8000-00000000000a"


def frames(data: bytes, *, size: int = 70_000, end: bool = True) -> Iterable[bytes]:
    """As the gateway writes them."""
    for start in range(0, len(data), size):
        part = data[start : start + size]
        yield HEAD.pack(len(part)) + part
    if end:
        yield HEAD.pack(0)


def send(
    bench: Workbench,
    data: bytes,
    *stores: StoreRef,
    size: int | None = None,
    uid: str = UPLOAD,
    digests: tuple[str, ...] = (),
    written: Callable[[int], Iterable[bytes]] | None = None,
    **more: Any,
) -> Told:
    """Upload it; what is written to the pipe may depend on where the worker begins."""
    read, write = os.pipe()
    taking = threading.Event()
    starts: list[int] = []

    def hear(event: Any) -> None:
        if event.event == "taking":
            starts.append(event.start)
            taking.set()

    def feed() -> None:
        with os.fdopen(write, "wb", buffering=0) as pipe:
            taking.wait()
            if starts:
                with suppress(BrokenPipeError):
                    pipe.writelines((written or (lambda start: frames(data[start:])))(starts[0]))

    bench.hear = hear
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        return bench.fetch(
            "",
            stores,
            origin=UploadOrigin(uid=uid, size=size, digests=digests, pipe=read),
            transfers=Transfers(),
            **more,
        )
    finally:
        os.close(read)
        taking.set()
        feeder.join()


def begun(told: Told) -> list[int]:
    """From where the bytes were taken."""
    return [event.start for event in told.of("taking")]


@pytest.mark.parametrize("length", [1, 69_999, CHUNK, FRAME + 1, len(DATA)])
@pytest.mark.parametrize("known", [True, False])
def test_all_stores_get_all_bytes(bench: Workbench, length: int, known: bool) -> None:
    """In one pass, with the length known or not."""
    data = DATA[:length]
    told = send(bench, data, bench.store("a"), bench.store("b"), size=length if known else None)
    assert told.record.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (told.stored, begun(told)) == ({"a", "b"}, [0])
    assert bench.data("a", KEY) == bench.data("b", KEY) == data
    assert told.record.source_url is None


@pytest.mark.parametrize("known", [True, False])
def test_what_has_no_end_is_no_image(bench: Workbench, known: bool) -> None:
    """The end of the pipe is not the end of the bytes: whoever writes may have died."""
    told = send(
        bench, DATA, bench.store("a"), size=len(DATA) if known else None, written=lambda _: frames(DATA, end=False)
    )
    if known:  # nothing is missing but the word
        assert told.reason == "SourceUnavailable"
    told = send(bench, DATA, bench.store("b"), written=lambda _: frames(DATA[:-1], end=False))
    assert told.reason == "SourceUnavailable"
    assert not [name for name in bench.left() if "/objects/" in name]


@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA) + 1])
def test_a_length_that_lies(bench: Workbench, length: int) -> None:
    """More or fewer bytes than were announced are no image."""
    told = send(bench, DATA, bench.store("a"), size=length)
    assert told.reason == "SourceUnavailable"
    assert not [name for name in bench.left() if "/objects/" in name]


def test_nothing_is_no_image(bench: Workbench) -> None:
    """An upload without a byte is refused, and the store is not touched."""
    assert send(bench, b"", bench.store("a")).reason == "FormatMismatch"
    assert bench.left() == []


def test_it_goes_on_where_it_broke_off(bench: Workbench) -> None:
    """The next worker says from which byte it wants the rest, and the digest is that of the whole."""
    store = bench.store("a")
    told = send(bench, DATA, store, size=len(DATA), written=lambda _: frames(DATA[: 8 * CHUNK], end=False))
    assert told.reason == "SourceUnavailable"
    told = send(bench, DATA, store, bench.store("b"), size=len(DATA))
    assert 0 < begun(told)[0] <= 8 * CHUNK
    assert told.record.digest == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert bench.data("a", KEY) == bench.data("b", KEY) == DATA


def test_only_with_the_same_upload(bench: Workbench) -> None:
    """What was kept of one upload is never the start of another."""
    store = bench.store("a")
    send(bench, DATA, store, size=len(DATA), written=lambda _: frames(DATA[: 8 * CHUNK], end=False))
    other = noise(len(DATA), seed=3)
    told = send(bench, other, store, size=len(other), uid="another")
    assert begun(told) == [0]
    assert bench.data("a", KEY) == other


def test_what_was_kept_is_damaged(bench: Workbench) -> None:
    """It is dropped, and the sender is asked for all: what has come through a pipe does not come again."""
    store = bench.store("a")
    send(bench, DATA, store, size=len(DATA), written=lambda _: frames(DATA[: 8 * CHUNK], end=False))
    [kept] = [path for path in (bench._folder / "a" / "attempts").glob("*/data") if path.stat().st_size]
    with kept.open("r+b") as file:
        file.write(b"damaged")
    told = send(bench, DATA, store, size=len(DATA))
    assert begun(told)[0] > 0
    assert (told.reason, "send it again from its start" in told.message) == ("SourceUnavailable", True)
    told = send(bench, DATA, store, size=len(DATA))
    assert begun(told) == [0]
    assert bench.data("a", KEY) == DATA


def test_what_the_sender_says_is_compared(bench: Workbench) -> None:
    """A digest by any algorithm, beside the one that the Image asks for."""
    md5, right = (hashlib.new(name, DATA).hexdigest() for name in ("md5", "sha256"))
    told = send(bench, DATA, bench.store("a"), digests=(f"md5:{'0' * 32}",), checksum=f"sha256:{right}")
    assert (told.reason, "expected by the sender" in told.message) == ("ChecksumMismatch", True)
    assert not [name for name in bench.left() if "/objects/" in name]
    told = send(bench, DATA, bench.store("a"), digests=(f"md5:{md5}",), checksum=f"sha256:{right}")
    assert told.record.verification
    assert told.record.verification.digest == f"sha256:{right}"


def test_what_a_store_has_is_found(bench: Workbench) -> None:
    """Without a pipe a fetch says whether the upload has come to its end, and brings it to the stores that lack it."""
    a, b = bench.store("a"), bench.store("b")
    nothing = bench.fetch("", (a, b), origin=UploadOrigin(uid=UPLOAD))
    assert (nothing.reason, nothing.message) == (
        "SourceNotFound",
        "no store holds what was uploaded; upload it again",
    )
    send(bench, DATA, a, size=len(DATA))
    told = bench.fetch("", (a, b), origin=UploadOrigin(uid=UPLOAD))
    assert told.stored == {"a", "b"}
    assert bench.data("b", KEY) == DATA
