"""Remove, probe, list and verify."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from glimpse.streams import CHUNK
from glimpse.tasks import EVENT, List, Probe, Remove, Verify
from glimpse.testing.bodies import noise, record_of, writer
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import KEY, UID, Workbench

DATA = noise(CHUNK + 3)
OTHER = "6f1c0000-0000-4000-8000-000000000002"


@pytest.fixture
def filled(bench: Workbench, web: Server) -> Workbench:
    """Stores a and b, with three revisions of an image and one of another."""
    web.serve("/a", Reply(DATA))
    stores = (bench.store("a"), bench.store("b"))
    for record in (bench.record(1), bench.record(2), bench.record(12), bench.record(1, uid=OTHER)):
        bench.fetch(web.url("/a"), stores, record=record)
    return bench


def keys(bench: Workbench, name: str = "a") -> set[str]:
    """What a store holds."""
    return {path.rpartition("/")[2] for path in bench.left() if path.startswith(f"{name}/")}


@pytest.mark.parametrize(
    ("which", "rest"),
    [
        ({"uid": UID}, {f"{OTHER}-1"}),
        ({"uid": UID, "revisions": (1,)}, {f"{UID}-2", f"{UID}-12", f"{OTHER}-1"}),
        ({"uid": UID, "revisions": (2, 7)}, {f"{UID}-1", f"{UID}-12", f"{OTHER}-1"}),
        ({"keys": (f"{UID}-1", f"{OTHER}-1")}, {f"{UID}-2", f"{UID}-12"}),
        ({"uid": "6f1c"}, {f"{UID}-1", f"{UID}-2", f"{UID}-12", f"{OTHER}-1"}),
        ({}, {f"{UID}-1", f"{UID}-2", f"{UID}-12", f"{OTHER}-1"}),
    ],
)
def test_removal_takes_exactly_what_it_names(filled: Workbench, which: dict[str, str], rest: set[str]) -> None:
    """All of an Image, some of its revisions, or some keys, from every store named; twice is fine."""
    task = Remove.model_validate({"stores": (filled.store("a"), filled.store("b")), **which})
    for _ in range(2):
        told = filled.do(task)
        assert told.answer.event == "done"
        assert [event.store for event in told.of("removed")] == ["a", "b"]
        assert keys(filled, "a") == keys(filled, "b") == rest


def test_removal_goes_on_where_one_store_fails(filled: Workbench) -> None:
    """A store that cannot be reached says so; the others are done."""
    stranger = filled.store("a", installation="elsewhere")
    told = filled.do(Remove(uid=UID, stores=(stranger, filled.store("b"))))
    assert told.failed == {"a": "StoreOwnedByAnother"}
    assert [event.store for event in told.of("removed")] == ["b"]
    assert len(keys(filled, "a")) == 4


def test_removal_goes_on_where_one_key_fails(filled: Workbench) -> None:
    """A stranger's link under a name of ours is neither listed nor removed, said, and holds up nothing else."""
    link = Path(filled.store("a").config["path"]) / "objects" / f"{UID}-0"
    link.symlink_to("/nowhere")
    assert link.name not in {entry.key for entry in filled.opened("a").list()}
    told = filled.do(Remove(keys=(link.name, f"{UID}-1", f"{UID}-2"), stores=(filled.store("a"),)))
    assert told.failed == {"a": "StoreUnavailable"}
    assert keys(filled, "a") == {link.name, f"{UID}-12", f"{OTHER}-1"}
    assert link.is_symlink()


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("revisions", [(), (7,)])
def test_what_dead_attempts_left_goes_too(bench: Workbench, retain: bool, revisions: tuple[int, ...]) -> None:
    """Also where no object was ever committed, and also if objects are retained."""
    bench.opened("a").claim()
    with writer(bench.store("a"), f"{UID}-7", "dead", 4 * CHUNK) as process:
        process.kill()
        assert keys(bench) == {f"{UID}-7.dead"}
        bench.do(Remove(uid=UID, revisions=revisions, retain=retain, stores=(bench.store("a"),)))
    assert keys(bench) == set()


def test_retained_objects_stay_and_say_so(filled: Workbench) -> None:
    """Their bytes and records are as before, but for the word that nobody waits for an Image any more."""
    before = filled.opened("a").stat(KEY)
    for _ in range(2):
        filled.do(Remove(uid=UID, retain=True, stores=(filled.store("a"),)))
    after = filled.opened("a").stat(KEY)
    assert before.record
    assert after.record == before.record.model_copy(update={"retained": True})
    assert filled.data("a", KEY) == DATA
    other = filled.opened("a").stat(f"{OTHER}-1").record
    assert other
    assert not other.retained


def test_the_sweep_leaves_what_is_retained_meanwhile(filled: Workbench) -> None:
    """Its list is older than its removal: an object that was released in between says itself that it stays."""
    filled.do(Remove(uid=UID, revisions=(1,), retain=True, stores=(filled.store("a"),)))
    told = filled.do(Remove(keys=(f"{UID}-1", f"{UID}-2", f"{UID}-99"), stores=(filled.store("a"),)))
    assert [event.store for event in told.of("removed")] == ["a"]
    assert keys(filled) == {f"{UID}-1", f"{UID}-12", f"{OTHER}-1"}


TAMPERED: list[dict[str, Any]] = [
    {"size": -1},
    {"size": 1 << 63},
    {"virtual_size": 1 << 63},
    {"revision": -1},
    {"digest": "sha256:../../etc"},
    {"digest": "shake_128:00"},
    {"digests": {f"{number}": "00" for number in range(9)}},
    {"digests": {"sha256": "0" * 200}},
    {"disk_format": "x" * 17},
    {"source_url": 1},
    {"stored_at": "yesterday"},
    {"stored_at": "2026-01-01T00:00:00Z\n"},
    {"spec_hash": "x" * 65},
    {"uid": "../x"},
]


@pytest.mark.parametrize("change", TAMPERED, ids=str)
def test_a_tampered_record_is_none(filled: Workbench, tmp_path: Path, change: dict[str, Any]) -> None:
    """What status could not hold is not read from a store, nor believed of a worker; its object counts as lost."""
    path = tmp_path / "a" / "objects" / KEY / "record.json"
    record = filled.opened("a").stat(KEY).record
    assert record
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert filled.opened("a").stat(KEY).record is None
    assert filled.do(Verify(key=KEY, digest=record.digest, store=filled.store("a"))).reason == "DataLost"
    with pytest.raises(ValidationError):
        EVENT.validate_python({"event": "done", "record": record.model_dump() | change})


def test_what_a_server_made_too_long_is_left_out(filled: Workbench, tmp_path: Path) -> None:
    """The object is no less sound for a long URL."""
    path = tmp_path / "a" / "objects" / KEY / "record.json"
    record = filled.opened("a").stat(KEY).record
    assert record
    long = {"source_url": "http://" + "x" * 2042, "etag": "x" * 1025, "last_modified": "x" * 65}
    path.write_text(json.dumps(json.loads(path.read_text()) | long))
    assert filled.opened("a").stat(KEY).record == record.model_copy(update=dict.fromkeys(long))


def test_an_unknown_digest_is_no_proof(filled: Workbench) -> None:
    """Nobody can compare the bytes with it: they count as lost."""
    for digest in ("sha3_256:00", "shake_128:00", "nonsense"):
        assert filled.do(Verify(key=KEY, digest=digest, store=filled.store("a"))).reason == "DataLost"


def test_a_probe_claims_and_measures(bench: Workbench) -> None:
    """A new store gets our marker and tells its room; a foreign or vanished one says so."""
    answer = bench.do(Probe(store=bench.store("a"))).answer
    assert answer.event == "done"
    assert answer.total
    assert answer.free
    assert answer.used is not None
    assert bench.do(Probe(store=bench.store("a", claimed=True))).reason is None
    assert bench.do(Probe(store=bench.store("a", installation="elsewhere"))).reason == "StoreOwnedByAnother"
    assert bench.do(Probe(store=bench.store("b", claimed=True))).reason == "StoreUnavailable"


def test_a_list_says_all_in_batches(bench: Workbench) -> None:
    """Objects with their records, and what attempts have left; no event holds more than some hundred."""
    store = bench.opened("a")
    for number in range(1, 451):
        key = f"{OTHER}-{number}"
        store.put(key, "a1", Nothing(), lambda key=key: record_of(key))  # type: ignore[misc]
    with writer(bench.store("a"), f"{UID}-7", "dead", 4 * CHUNK) as process:
        process.kill()
        told = bench.do(List(store=bench.store("a")))
    batches = [event.entries for event in told.of("listed")]
    assert max(map(len, batches)) <= 200
    entries = {entry.key: entry for batch in batches for entry in batch}
    assert len(entries) == 451
    partial = entries.pop(f"{UID}-7.dead")
    assert partial.partial
    assert not any(entry.partial for entry in entries.values())
    assert all(entry.record and entry.record.key == key and 0 <= entry.age < 300 for key, entry in entries.items())


class Nothing:
    """A body without bytes."""

    size = 0

    def read(self, _n: int = CHUNK, /) -> bytes:
        """The end."""
        return b""


def test_verify_finds_what_is_lost(filled: Workbench) -> None:
    """Sound bytes are Done; changed, cut or absent ones DataLost; progress is told meanwhile."""
    record = filled.opened("a").stat(KEY).record
    assert record

    def verify(key: str = KEY) -> str | None:
        told = filled.do(Verify(key=key, digest=record.digest, store=filled.store("a")))
        return told.reason

    told = filled.do(Verify(key=KEY, digest=record.digest, store=filled.store("a")))
    assert told.record == record
    assert told.of("progress")[-1].done == len(DATA)
    for spoiled in (DATA[:-1], DATA + b"x", noise(len(DATA), seed=1)):
        filled.spoil("a", KEY, spoiled)
        assert verify() == "DataLost"
    assert verify(f"{UID}-99") == "DataLost"


def test_a_cancelled_task_ends(filled: Workbench) -> None:
    """Nobody waits for it any more."""
    filled.cancelled.set()
    record = filled.opened("a").stat(KEY).record
    assert record
    assert filled.do(Verify(key=KEY, digest=record.digest, store=filled.store("a"))).reason == "WorkerLost"
    assert filled.do(List(store=filled.store("a"))).reason == "WorkerLost"
    assert filled.do(Remove(uid=UID, stores=(filled.store("a"),))).failed == {"a": "WorkerLost"}
    assert len(keys(filled)) == 4
