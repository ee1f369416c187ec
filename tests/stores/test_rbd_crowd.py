"""Clones of RBD from several processes at once: made, cloned again, read and deleted, by whoever comes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores.test_rbd import WATCH, Place, bury, started

from glimpse.stores import open_store
from glimpse.testing.bodies import noise
from glimpse.testing.cloneable import clone, original
from glimpse.testing.stores import UID, read
from servers.ceph import Ceph

PROCESSES = 4
TURNS = 20
"""That each of them has; how long they take is the machine's to say."""
LENGTH = 1000
KEYS = [f"{UID}-{number}" for number in range(1, 7)]
"""For which they contend."""

CROWD = """
import os, random, sys
from glimpse.problems import NotFound, StoreConflict
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import noise
from glimpse.testing.cloneable import clone, original
from glimpse.testing.stores import read

me, turns, length, own, *keys = sys.argv[1:]
store = open_store(StoreRef.model_validate_json(sys.stdin.buffer.readline()))
store.claim()
chance = random.Random(int(me))
print("ready", flush=True)
sys.stdin.readline()
whole = noise(int(length))
for turn in range(1, int(turns) + 1):
    key, source = chance.sample(keys, 2)
    try:
        match chance.randrange(6):
            case 0:
                original(store, whole, key)
            case 1 | 2 | 3:
                clone(store, key, source=source, attempt=f"c{me}x{turn}")
            case 4:
                store.delete(key)
            case 5:
                assert read(store, key) == whole
    except (NotFound, StoreConflict):
        pass
    if not turn % 5:  # what is one's own nobody deletes
        store.delete(own)
        for source in keys:
            if clone(store, own, source=source, attempt=f"o{me}x{turn}"):
                assert read(store, own) == whole
                break
os._exit(0)  # as a worker ends: at Python's own end a thread of librados that is just leaving us would abort
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster in memory, for this module."""
    yield from started(Ceph(tmp_path_factory.mktemp("crowd"), objectstore="memstore", options=WATCH))


def test_survives_a_crowd_of_processes(place: Place, outside: Path) -> None:
    """They meet nothing but NotFound and StoreConflict; what stays is whole, what was deleted is gone, with its trash.

    Each has an object that no other one deletes, a clone of what others delete: it is whole in the end.
    """
    assert outside.is_dir()
    namespace = "crowd"
    ref = place.ref(namespace)
    store = open_store(ref)
    store.claim()
    original(store, noise(LENGTH), KEYS[0])
    owned = [f"{UID}-{100 + number}" for number in range(PROCESSES)]
    for key in owned:
        assert clone(store, key, source=KEYS[0])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(number), str(TURNS), str(LENGTH), key, *KEYS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number, key in enumerate(owned)
    ]
    try:
        for process in running:
            assert process.stdin
            assert process.stdout
            process.stdin.write(ref.line())
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
        for process in running:  # all at once
            assert process.stdin
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in running:
            process.communicate(timeout=300)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * PROCESSES
    left = {entry.key: entry for entry in store.list()}
    for key, entry in left.items():
        if not entry.partial:
            assert read(store, key) == noise(LENGTH)
    bury(place, namespace)
    for key in sorted(left):  # the sweep: first the objects, then what has waited for them
        store.delete(key)
    for entry in list(store.list()):
        store.delete(entry.key)
    assert place.raw(namespace) == set()
