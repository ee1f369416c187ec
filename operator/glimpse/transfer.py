"""What a worker does with a task: fetch, look, remove, probe, list, verify.

Blocking, and without a word about processes, so that a test, a worker and the gateway's helper run the same code.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from glimpse.fetch import Fetcher, Say
from glimpse.problems import DataLost, NotFound, Problem, SourceNotFound, StoreRefused
from glimpse.sources.look import unchanged
from glimpse.sources.pace import TOGETHER
from glimpse.stores import Store, Version, open_store, version_of
from glimpse.streams import CHUNK, Cancel, Checked, Meter
from glimpse.tasks import (
    Answer,
    Done,
    Event,
    Failed,
    Fetch,
    HttpOrigin,
    List,
    Listed,
    ListedEntry,
    LocationOrigin,
    Look,
    Probe,
    Progress,
    Record,
    Remove,
    Removed,
    StoreFailed,
    Task,
    Trouble,
    Verify,
)
from glimpse.ways import stored

_BATCH: Final = 200
"""Entries of one `Listed`: some 100 KiB of JSON."""

_PATIENCE: Final = 20
"""Keys that cannot be removed until the store as a whole is given up."""


def do(task: Task, say: Say, cancelled: threading.Event) -> Answer:
    """Do one task to its answer. Events go to `say` as they come, one at a time, though from several threads.

    Cancelled, it ends soon with a Trouble, unless a store is just committing; nothing half-done is visible. A Problem
    becomes the answer `Failed`; any other exception is a bug and comes out.
    """
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            say(event)

    try:
        match task:
            case Fetch():
                TOGETHER.rate = task.bandwidth
                return Fetcher(task, tell, cancelled).run()
            case Look():
                same = (
                    unchanged(task, task.origin, cancelled)
                    if isinstance(task.origin, HttpOrigin)
                    else _still(task, task.origin)
                )
                return Done(unchanged=same)
            case Remove():
                return _remove(task, tell, cancelled)
            case Probe():
                return _probe(task)
            case List():
                return _list(task, tell, cancelled)
            case Verify():
                return _verify(task, tell, cancelled)
    except Problem as problem:
        return Failed(trouble=Trouble.of(problem))


def _remove(task: Remove, say: Say, cancelled: threading.Event) -> Done:
    for ref in task.stores:
        try:
            store = open_store(ref)
            met = list[Problem]()
            for key in _keys(task, store):
                Cancel(cancelled).finish()
                try:
                    if task.retain:
                        _retain(store, key)
                    elif not (task.keys and _retained(store, key)):
                        _erase(store, key, task.uid, task.erase.get(store.name, ()))
                        store.delete(key)
                except Problem as problem:  # one odd thing in a store is no reason to leave the others
                    met.append(problem)
                    if len(met) >= _PATIENCE:
                        break
            if met:
                raise met[0]
        except Problem as problem:
            say(StoreFailed(store=ref.name, trouble=Trouble.of(problem)))
        else:
            say(Removed(store=ref.name))
    return Done()


def _keys(task: Remove, store: Store) -> Sequence[str]:
    """What to remove from this store; an object's key also stands for dead attempts on it."""
    if task.keys or not task.uid:
        return task.keys
    if task.revisions:
        return [f"{task.uid}-{revision}" for revision in task.revisions]
    return sorted({entry.key.partition(".")[0] for entry in store.list(f"{task.uid}-")})


def _erase(store: Store, key: str, uid: str, prefixes: Sequence[str]) -> None:
    """Remove the bytes of a registered object, where that is allowed. Before the object: it knows where they are."""
    if not prefixes:
        return
    with suppress(NotFound, StoreRefused):
        record = store.stat(key).record
        if record is None or not record.location.startswith(tuple(prefixes)):
            return
        same = store.locate(record.location).same(version_of(record))
        if same and not any(_shares(entry.record, record.location, uid) for entry in store.list()):
            store.erase(record.location)


def _shares(record: Record | None, location: str, uid: str) -> bool:
    return record is not None and record.location == location and record.uid != uid


def _still(task: Look, origin: LocationOrigin) -> bool:
    """Whether the same bytes lie there; `likely`: bytes of the same length."""
    store = open_store(origin.store)
    try:
        found = store.locate(origin.key)
    except NotFound as problem:
        raise SourceNotFound(f"nothing lies at {origin.key} in store {store.name}") from problem
    known = Version(-1 if task.size is None else task.size, task.etag, task.last_modified)
    return found.same(known) or (task.likely and found.size == task.size)


def _retained(store: Store, key: str) -> bool:
    """Whether an object, found by the sweep a while ago, is kept by its own word since then."""
    with suppress(NotFound):
        record = store.stat(key.partition(".")[0]).record if "." not in key else None
        return bool(record and record.retained)
    return False


def _retain(store: Store, key: str) -> None:
    """Mark the object, if there is one, as kept without an Image, and remove what attempts have left."""
    for entry in list(store.list(key)):
        if entry.key.startswith(f"{key}."):
            store.delete(entry.key)
        elif entry.key == key and entry.record and not entry.record.retained:
            store.update(key, entry.record.model_copy(update={"retained": True}))


def _probe(task: Probe) -> Done:
    store = open_store(task.store)
    room = store.probe()
    return Done(
        total=room.total,
        used=room.used,
        free=room.free,
        endpoint=store.driver.endpoint,
        boot_format=store.boot_format,
    )


def _list(task: List, say: Say, cancelled: threading.Event) -> Done:
    now = time.time()
    entries = iter(open_store(task.store).list())
    while batch := tuple(
        ListedEntry(
            key=entry.key,
            size=entry.size,
            age=max(0.0, now - entry.modified),
            partial=entry.partial,
            record=entry.record,
        )
        for entry in islice(entries, _BATCH)
    ):
        Cancel(cancelled).finish()
        say(Listed(entries=batch))
    return Done()


def _verify(task: Verify, say: Say, cancelled: threading.Event) -> Done:
    with stored(open_store(task.store), task.key, cancelled, task.digest) as (reader, taps, found):
        meter = Meter(lambda done: say(Progress(done=done, total=reader.size)))
        began = time.monotonic()
        with Checked(reader, [*taps, meter], lie=DataLost) as body:
            while body.read(CHUNK):
                if task.rate:  # others read from this store too, and they are in a hurry
                    cancelled.wait(max(0.0, began + meter.passed / task.rate - time.monotonic()))
    return Done(record=found)
