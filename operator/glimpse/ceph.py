"""Ceph for the drivers whose bytes lie in it: a connection that ends by itself, and bytes into an image and out of it.

Where an image is and what makes it an object differs between them; how librbd is kept busy, and let go of, does not.
"""

import base64
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from glimpse.ahead import ROOM, SMALL
from glimpse.problems import Problem, StoreUnavailable
from glimpse.streams import CHUNK, solid

_APT: Final = "apt install python3-rados python3-rbd (or your distribution's, of Ceph's release)"
LIBRARIES: Final[Mapping[str, str]] = MappingProxyType({"rados": _APT, "rbd": _APT})
"""How Ceph's libraries are installed: they are not on PyPI, where `rados` is somebody else's."""

DEPTH: Final = 4
"""Writes in flight; more win nothing where it was measured, and each holds its bytes in memory."""
READS: Final = 8
"""Reads in flight."""
READ: Final = 2 << 20
"""Bytes of one of them, at most: so many of so many were the fastest way to hold 16 MiB."""
_HEAD: Final = 12
"""Bytes of a key of cephx before the key itself; the last two are its length."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Pool:
    """A pool that is open, with the connection that it needs; who has an image of it open keeps hold of this too.

    The connection ends once nobody has it any more: it has a dozen threads and as many descriptors.
    """

    io: Any
    """The `rados.Ioctx`; it is for all threads."""
    client: Any
    """The `rados.Rados`."""
    fsid: str
    """Which cluster it is."""

    @classmethod
    def open(
        cls,
        name: str,
        monitors: str,
        *,
        user: str,
        key: str,
        patience: float,
        enter: Callable[[Any], None] = lambda _: None,
    ) -> "Pool":
        """Connect, open the pool and have `enter` do what else it takes. Raises what the library raises.

        `monitors` as in `mon_host`; `patience`: seconds that one request may take.
        """
        import rados

        _CLOSER.start()
        client = rados.Rados(name=f"client.{user}", conf=_options(monitors, key, f"{patience:.0f}"))
        try:
            client.connect()
            io = client.open_ioctx(name)
            enter(io)
            io.set_osdmap_full_try()  # a full pool says so at once, and lets us remove what fills it
            pool = cls(io, client, client.get_fsid())
        except BaseException:
            client.shutdown()
            raise
        weakref.finalize(pool, _CLOSER.close, io, client).atexit = False
        return pool


def is_key(word: str) -> bool:
    """Whether it has the form of a key of cephx: whatever has not, librados prints as it is.

    Source: `CryptoKey::decode` in Ceph's src/auth/Crypto.cc: a type, the time, the length, the key.
    """
    try:
        raw = base64.b64decode(word, validate=True)
    except ValueError:
        return False
    return len(raw) > _HEAD and int.from_bytes(raw[_HEAD - 2 : _HEAD], "little") == len(raw) - _HEAD


def _options(monitors: str, key: str, seconds: str) -> dict[str, str]:
    return {
        "mon_host": monitors,
        "key": key,
        "keyring": "",
        # without these whoever asks a cluster that is away waits for it, however long
        "client_mount_timeout": seconds,
        "rados_mon_op_timeout": seconds,
        "rados_osd_op_timeout": seconds,
        "rbd_request_timed_out_seconds": seconds,
        # of these an image keeps the list itself, and a snapshot that was removed goes with the last
        "rbd_default_clone_format": "2",
        # once it is back it is soon found again
        "ms_max_backoff": "1",
        "objecter_tick_interval": "1",
        "mon_client_hunt_interval_max_multiple": "1",
        # what has been written is written, and nothing is read twice
        "rbd_cache": "false",
        "rbd_atime_update_interval": "0",
        "log_file": "",
        "log_to_stderr": "false",
        "err_to_stderr": "false",
        "admin_socket": "",
    }


class _Closer:
    """Ends connections in a thread of its own: who lets go of one last may be a thread of Ceph's, which cannot."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._process = 0

    def start(self) -> None:
        """See that the thread runs in this process."""
        with self._lock:
            if self._process != os.getpid():
                threading.Thread(target=self._run, name="rados-closer", daemon=True).start()
                self._process = os.getpid()

    def close(self, io: Any, client: Any) -> None:
        """End this connection soon; called at any moment, in any thread."""
        self._waiting.put((io, client))

    def _run(self) -> None:
        while True:
            io, client = self._waiting.get()
            with suppress(Exception):  # nobody is left whom it could concern
                io.close()
                client.shutdown()
            del io, client


_CLOSER: Final = _Closer()


def open_image(io: Any, name: str | None = None, **how: Any) -> Any:
    """An `rbd.Image`, of this name or as `how` says, that may be closed at any moment. Raises what the library raises.

    librbd, once an image is open, wakes whoever waits for that, and only then takes the image's lock a last time (Ceph
    16 and after, `ImageState::complete_action_unlock`). If by then the image is closed, the lock lies in freed memory:
    librbd aborts the process, or spoils what came into that place. It does so in a callback of librados, which calls
    one at a time: so it is over when another has come.
    """
    import rbd

    image = rbd.Image(io, name, **how)
    over = threading.Event()
    io.aio_stat("rbd_directory", lambda *_: over.set())  # whatever becomes of it; it ends as any request does
    over.wait()
    return image


class Pipe:
    """Writes an image from some position on, in pieces of `block` bytes, several at once, zeros left out.

    Methods raise what the library raises, and the Problem of a write that has failed.
    """

    def __init__(
        self, image: Any, start: int, block: int, problem: Callable[[int], Problem], *, patience: float
    ) -> None:
        """`problem`: what an error of the library means; `patience`: seconds that one request may take."""
        self.passed = start
        """Bytes that were given to `write`, and those before them."""
        self.written = 0
        """Bytes that were given to the image: without zeros, and without those before."""
        self._image, self._block, self._problem, self._patience = image, block, problem, patience
        self._held: list[bytes] = []  # the start of a block of which the rest has not come
        self._sent = start
        self._room = threading.Semaphore(DEPTH)
        self._lock = threading.Lock()
        self._flying: dict[int, int] = {}  # positions of writes in flight
        self._failed = 0
        self._number = 0

    @property
    def done(self) -> int:
        """All before it is in the image."""
        with self._lock:
            return min(self._flying.values(), default=self._sent)

    def write(self, chunk: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(chunk)
        while view:
            space = self._block - self.passed % self._block
            part, view = view[:space], view[space:]
            self._held.append(bytes(part) if len(part) < len(chunk) else chunk)
            self.passed += len(part)
            if len(part) == space:
                self._send()

    def flush(self) -> None:
        """Write all that was taken, and wait until it is there."""
        self._send()
        self.settle()
        self._check()

    def settle(self) -> None:
        """Wait for what is in flight, whatever becomes of it."""
        for _ in range(DEPTH):
            self._enter()
        self._room.release(DEPTH)

    def reach(self, end: int) -> None:
        """Before bytes up to `end` are written."""

    def _send(self) -> None:
        block = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held = []
        start, self._sent = self._sent, self._sent + len(block)
        self.reach(self._sent)
        for begin, end in solid(block, start):
            self._enter()
            self._check()
            self._fly(start + begin, block[begin:end] if end - begin < len(block) else block)

    def _fly(self, position: int, data: bytes) -> None:
        with self._lock:
            self._number += 1
            number = self._number
            self._flying[number] = position

        def landed(completion: Any) -> None:
            with self._lock:
                code = completion.get_return_value()
                if code < 0:
                    self._failed = self._failed or -code
                else:
                    del self._flying[number]
            self._room.release()

        try:
            self.written += len(data)
            self._image.aio_write(data, position, landed)
        except BaseException:
            self._room.release()
            raise

    def _enter(self) -> None:
        if not self._room.acquire(timeout=3 * self._patience):
            raise StoreUnavailable("a write has not ended in three times the time that it may take")

    def _check(self) -> None:
        if self._failed:
            raise self._problem(self._failed)


class Range:
    """A Reader over part of an image, which reads ahead.

    Of an image that is being removed zeros are read. So `confirm` is called when bytes have come, before they are
    handed out: with whether they are the last, and it raises NotFound if the image may have been removed.
    """

    def __init__(
        self,
        image: Any,
        offset: int,
        length: int,
        block: int,
        *,
        border: Callable[[], AbstractContextManager[None]],
        confirm: Callable[[bool], None],
        patience: float,
    ) -> None:
        """`border`: makes Problems of the library's errors; `patience`: seconds that one request may take."""
        self.size: int | None = length
        self._image, self._block, self._border, self._confirm, self._patience = image, block, border, confirm, patience
        self._next, self._end = offset, offset + length
        self._coming: deque[tuple[Future[bytes], int]] = deque()
        self._part = memoryview(b"")
        self._held = self._given = 0  # of the room of all readers: in all, and for what is given out now

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises NotFound, StoreUnavailable."""
        if not self._part:
            with self._border():
                self._let_go(self._given)
                self._given = 0
                self._ask()
                if not self._coming:
                    return b""
                future, self._given = self._coming.popleft()
                part = self._wait(future)
                self._ask()
                self._confirm(not self._coming)
            self._part = memoryview(part)
        piece, self._part = self._part[:n], self._part[n:]
        return bytes(piece)

    def close(self) -> None:
        """Wait for what is on its way: who closes an image under it waits for longer."""
        for future, _ in self._coming:
            with suppress(Exception):
                self._wait(future)
        self._let_go(self._held)

    def _ask(self) -> None:
        """For what there is room for, and for a small part if there is none at all."""
        while len(self._coming) < READS and self._next < self._end:
            taken = most = ROOM.part(min(self._block, READ))
            if not ROOM.take(taken, self._held):
                if self._coming:
                    return
                taken, most = 0, SMALL
            self._held += taken
            length = min(self._end - self._next, self._block - self._next % self._block, most)
            self._let_go(max(0, taken - length))
            self._coming.append((self._fetch(self._next, length), min(taken, length)))
            self._next += length

    def _let_go(self, count: int) -> None:
        self._held -= count
        ROOM.give(count)

    def _fetch(self, position: int, length: int) -> Future[bytes]:
        import rbd

        future: Future[bytes] = Future()

        def landed(completion: Any, data: bytes | None) -> None:
            code = completion.get_return_value()
            if code < 0 or data is None:
                future.set_exception(rbd.OSError("it could not be read", -code))
            else:
                future.set_result(data)

        self._image.aio_read(position, length, landed)
        return future

    def _wait(self, future: Future[bytes]) -> bytes:
        try:
            return future.result(3 * self._patience)
        except TimeoutError:
            raise StoreUnavailable("a read has not ended in three times the time that it may take") from None
