"""Attempts: images that are being written, alive while somebody has them open, and what the dead have left.

Whoever opens an image watches its header, by which Ceph knows within `osd_client_watch_timeout` (30 s) that he is gone,
however he ended. And he locks it: who locks it after him has Ceph shut him out first.
"""

import base64
import errno
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from glimpse.ceph import Pipe, Pool, open_image
from glimpse.stores import Mark, lasting
from glimpse.stores.rbd.cluster import ATTEMPT, CHECKPOINT, IMAGE, Header

EVERY: Final = 16 << 20
"""Bytes between two checkpoints."""
WORTH: Final = 1 << 20
"""Bytes for which it is worth it to be gone on with."""

SNAPSHOT: Final = "snap"
"""What OpenStack looks for in an image that machines are cloned from."""

BUSY: Final = {errno.EBUSY, errno.EROFS, errno.EAGAIN}
"""What librbd says where somebody else has an image locked or open."""


class Attempt:
    """An attempt of ours: its image, open and locked. Shared by who has taken it over and who goes on with it."""

    def __init__(self, name: str, id: str, image: Any, discard: Callable[[str], None]) -> None:  # noqa: A002 - Ceph's
        """`discard`: removes the attempt of that name."""
        self.name, self.id, self.image = name, id, image
        self.doomed = False
        """Whether it is removed when nobody has it any more."""
        self._discard = discard
        self._lock = threading.Lock()
        self._users = 1

    def sign(self) -> None:
        """Say whose the image is, and that what it says of itself is true."""
        self.image.metadata_set(ATTEMPT, self.name)
        self.image.metadata_set(IMAGE, self.id)

    def share(self) -> "Attempt":
        """One user more."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """One user less; without one it is dead. What cannot be removed now is left to the sweep."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        close(self.image)
        if self.doomed:
            with suppress(Exception):
                self._discard(self.name)


class Notes:
    """Notes in an image how far it is. What was written is on the disks of the cluster, so each note is for ever."""

    def __init__(self, image: Any, pipe: Pipe, mark: Mark | None) -> None:
        self.kept = False
        """Whether the attempt is worth being left as it is."""
        self._image, self._pipe, self._mark = image, pipe, mark
        self._noted = self._due = pipe.passed
        self._waiting: deque[tuple[int, bytes]] = deque()  # until all before them is in the image

    def passed(self) -> None:
        """After bytes were given to the pipe."""
        if self._mark is None:
            return
        if self._pipe.passed - self._due >= EVERY:
            self._due = self._pipe.passed
            self._waiting.append((self._due, self._mark(self._due)))
        ready = None
        while self._waiting and self._waiting[0][0] <= self._pipe.done:
            ready = self._waiting.popleft()
        if ready:
            self._note(*ready)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Around what may raise while what was written is sound: then it is kept, if it is worth it."""
        try:
            yield
        except BaseException as error:
            with suppress(Exception):  # what was raised is what counts
                length = self._pipe.passed
                if self._mark is not None and lasting(error) and (length >= WORTH or self._noted):
                    if length > self._noted:
                        self._pipe.flush()
                        self._note(length, self._mark(length))
                    self.kept = True
            raise

    def _note(self, length: int, mark: bytes) -> None:
        checkpoint(self._image, length, mark)
        self._noted = length


def checkpoint(image: Any, length: int, mark: bytes) -> None:
    """Write that the first `length` bytes are there."""
    image.metadata_set(CHECKPOINT, json.dumps({"length": length, "mark": base64.b64encode(mark).decode()}))


def noted(header: Header | None) -> tuple[int, bytes] | None:
    """Length and mark of an image's checkpoint; None if there is none, or none that makes sense."""
    if header is None or CHECKPOINT not in header.meta:
        return None
    try:
        found = json.loads(header.meta[CHECKPOINT])
        length, mark = int(found["length"]), base64.b64decode(found["mark"], validate=True)
    except (ValueError, TypeError, KeyError):
        return None
    return (length, mark) if 0 < length <= header.room else None


def hold(pool: Pool, image: str) -> Any:
    """The image of that id, open and locked; None if somebody else has it, or if it is gone."""
    import rbd

    try:
        opened = open_image(pool.io, image_id=image)
    except rbd.ImageNotFound:
        return None
    try:
        opened.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    except rbd.Error as error:
        close(opened)
        if abs(error.errno or 0) in BUSY | {errno.ENOENT}:
            return None
        raise
    return opened


def alive(pool: Pool, image: str) -> bool:
    """Whether somebody has it open to write; to look at it so is not seen by others."""
    import rbd

    try:
        with open_image(pool.io, image_id=image, read_only=True) as opened:
            return any(opened.watchers_list())
    except rbd.ImageNotFound:
        return False


def move_away(pool: Pool, name: str) -> bool:
    """Move an image that nobody has open to the trash; whether it is not there any more."""
    import rbd

    try:
        rbd.RBD().trash_move(pool.io, name, 0)
    except rbd.ImageNotFound:
        pass
    except rbd.Error as error:
        if abs(error.errno or 0) not in BUSY:
            raise
        return False
    return True


def purge(pool: Pool, image: str) -> tuple[bool, str | None]:
    """Remove an image in the trash with our snapshot: whether that could be, or clones need it, and its parent's id."""
    import rbd

    parent = None
    try:
        with open_image(pool.io, image_id=image) as opened:
            with suppress(rbd.ImageNotFound):
                parent = opened.parent_id()
            if SNAPSHOT in {each["name"] for each in opened.list_snaps()}:
                if opened.is_protected_snap(SNAPSHOT):
                    opened.unprotect_snap(SNAPSHOT)
                opened.remove_snap(SNAPSHOT)  # while a clone of ours needs it, it goes into a trash of its own
    except (rbd.ImageBusy, rbd.InvalidArgument):  # or another was quicker to unprotect it
        return False, parent
    except rbd.ImageNotFound:
        pass  # half removed: then the rest
    try:
        rbd.RBD().trash_remove(pool.io, image, force=True)
    except rbd.ImageNotFound:
        return True, parent
    except (rbd.ImageBusy, rbd.ImageHasSnapshots):
        return False, parent
    return True, parent


def close(image: Any) -> None:
    """Close an image, whatever becomes of it."""
    with suppress(Exception):
        image.close()


def open_to_read(pool: Pool, image: str) -> Any:
    """The snapshot of the image of that id, or the image if it has none."""
    import rbd

    try:
        return open_image(pool.io, image_id=image, snapshot=SNAPSHOT, read_only=True)
    except rbd.ImageNotFound:
        return open_image(pool.io, image_id=image, read_only=True)
