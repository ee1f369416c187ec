"""The bytes of a volume that is in Ceph: librbd reads and writes them, several requests at once, without any device.

Whoever attaches a volume as OpenStack's own library does needs root, a privileged helper and the kernel's modules; for
volumes in Ceph it needs none of them, and nothing but what Cinder says of the connection.
"""

import errno
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from glimpse.ceph import Pool, open_image
from glimpse.problems import (
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.streams import CHUNK

WATCHED: Final = 10.0
"""Seconds for which Ceph surely still holds the watch of who has not been heard: a third of its own patience."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the bytes of a volume are reached."""

    monitors: tuple[str, ...]
    """Host and port of each."""
    user: str
    key: str = field(repr=False)
    pool: str
    image: str


def way(connection: Mapping[str, Any], key: str | None) -> Way:
    """What Cinder says of a connection. Raises InvalidConfiguration if it needs more than librbd, SecretNotReadable."""
    protocol = connection.get("driver_volume_type")
    if protocol != "rbd":
        raise InvalidConfiguration(
            f"the volumes are reached by {protocol}, which needs a device on the host, and so root there; "
            "only volumes in Ceph (rbd) can be used without: choose a volumeType whose backend is Ceph"
        )
    if connection.get("encrypted"):
        raise InvalidConfiguration("volumes of this type are encrypted by the host; choose another volumeType")
    pool, _, image = str(connection["name"]).partition("/")
    user = str(connection.get("auth_username") or "admin")
    hosts = (f"[{host}]" if ":" in host and not host.startswith("[") else host for host in connection["hosts"])
    monitors = tuple(f"{host}:{port}" for host, port in zip(hosts, connection["ports"], strict=True))
    if not key and connection.get("keyring"):
        found = re.search(r"^\s*key\s*=\s*(\S+)", str(connection["keyring"]), re.MULTILINE)
        key = found[1] if found else None
    if not key:
        raise SecretNotReadable(
            f"the Secret of the store has no key cephKey, and Cinder tells none: it is what "
            f"`ceph auth get-key client.{user}` prints"
        )
    return Way(monitors, user, key, pool, image)


class Ceph:
    """Connections to clusters: made when they are needed, shared by threads, made anew after one has failed."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds that one request may take."""
        self.patience = patience
        self._lock = threading.Lock()
        self._open: dict[tuple[tuple[str, ...], str, str], Pool] = {}

    @contextmanager
    def image(self, there: Way) -> Iterator[Any]:
        """The `rbd.Image` of a volume, watched: who wants to remove it is told that it is in use. Raises NotFound."""
        with self.border(there):
            pool = self._within(partial(self.pool, there))
            image = self._within(partial(open_image, pool.io, there.image))
        try:
            yield image
        finally:
            with suppress(Problem), self.border(there):
                self._within(partial(_close, image, pool))

    @contextmanager
    def border(self, there: Way) -> Iterator[None]:
        """Errors of Ceph's libraries become Problems."""
        try:
            yield
        except Exception as error:
            if type(error).__module__ not in {"rados", "rbd"}:
                raise
            raise self.problem(there, abs(getattr(error, "errno", None) or errno.EIO)) from error

    def problem(self, there: Way, number: int) -> Problem:
        """What an error means; the next one who needs the connection has a new one."""
        if number == errno.ENOENT:
            return NotFound(f"{there.pool} has no image {there.image}")
        self._drop(there)
        if number in {errno.ENOSPC, errno.EDQUOT}:
            return StoreFull(f"the pool {there.pool} is full; remove images, add OSDs or raise its quota")
        if number in {errno.EPERM, errno.EACCES}:
            return StoreUnauthorized(
                f"Ceph refuses client.{there.user}: cephKey must be its key, and the pool {there.pool} needs mon "
                f"'profile rbd' and osd 'profile rbd pool={there.pool}'"
            )
        if number == errno.ETIMEDOUT:
            return self._silent(there)
        return StoreUnavailable(f"Ceph, pool {there.pool}: {os.strerror(number)}")

    def _silent(self, there: Way) -> Problem:
        return StoreUnavailable(
            f"the Ceph cluster at {', '.join(there.monitors)} has not answered for {self.patience:.0f} s; see what "
            "`ceph -s` says, and whether this machine reaches monitors and OSDs"
        )

    def pool(self, there: Way) -> Pool:
        """The pool of a volume, with its connection."""
        whose = (there.monitors, there.user, there.pool)
        with self._lock:
            if found := self._open.get(whose):
                return found
        monitors = ",".join(map(_spoken, there.monitors))
        found = Pool.open(there.pool, monitors, user=there.user, key=there.key, patience=self.patience)
        with self._lock:
            return self._open.setdefault(whose, found)

    def _drop(self, there: Way) -> None:
        with self._lock:
            self._open.pop((there.monitors, there.user, there.pool), None)

    def _within(self, work: Callable[[], Any]) -> Any:
        """Do what ends by itself as a rule, within three times the patience; Ceph's libraries have no word for that."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to who waits
                future.set_exception(error)

        threading.Thread(target=run, name="librbd", daemon=True).start()
        try:
            return future.result(3 * self.patience)
        except TimeoutError:
            raise StoreUnavailable(
                f"a request to Ceph has not ended in {3 * self.patience:.0f} s, three times what it may take"
            ) from None


class Watch:
    """Has a volume looked for again only where Ceph may have forgotten that it is being read.

    Ceph refuses to remove what is watched, as everything is that is open. So it is looked for after it was opened, and
    again before the last bytes are handed out if the watch may have been lost meanwhile.
    """

    def __init__(self, confirm: Callable[[], None]) -> None:
        """`confirm` raises NotFound once the volume is being removed."""
        self._confirm = confirm
        self._looked = time.monotonic()

    def __call__(self, last: bool) -> None:
        """Before bytes are handed out. Raises NotFound."""
        if last and time.monotonic() - self._looked > WATCHED:
            self._confirm()


class Nothing:
    """A Reader over no bytes."""

    size: int | None = 0

    def read(self, _n: int = CHUNK, /) -> bytes:
        """The end."""
        return b""


def _close(image: Any, _pool: Pool) -> None:
    """Close an image while its pool is there, however long that takes."""
    image.close()


def _spoken(monitor: str) -> str:
    """A monitor with the protocol that it speaks, which Cinder does not tell: v1, or v2 since Nautilus.

    Where librados has to guess, a refused key looks to it like a monitor that does not answer.
    """
    host, _, port = monitor.rpartition(":")
    known = {"6789": "v1:", "3300": "v2:"}.get(port)
    if known is None:
        banner = b""
        with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
            banner = connection.recv(8, socket.MSG_WAITALL)
        known = {b"ceph v2\n": "v2:", b"ceph v02": "v1:"}.get(banner, "")
    return known + monitor
