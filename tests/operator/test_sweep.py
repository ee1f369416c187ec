"""The sweep removes what nobody owns, and nothing else."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.operator.conftest import SETTINGS
from tests.operator.support import Tenant, content, digest

from glimpse.stores import Store, open_store
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import Body
from glimpse.testing.faults import Server
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Kube

SWEEPING = {"GLIMPSE_SWEEP_INTERVAL": "0.3", "GLIMPSE_SWEEP_AGE": "60"}
UID = "00000000-0000-4000-8000-00000000000a"


@pytest.fixture
def sweeper(kube: Kube, web: Server, tmp_path: Path) -> Iterator[Tenant]:
    """A tenant of an installation that sweeps all the time."""
    glimpse = Glimpse(tmp_path / "glimpse", cluster=kube.cluster, settings=SETTINGS | SWEEPING)
    with glimpse:
        yield Tenant(kube.cluster, glimpse, tmp_path, web, kube.cluster.namespace())


def put(store: Store, installation: str, revision: int, *, retained: bool = False) -> str:
    """An object of an Image that does not exist; its key."""
    data = content(revision, 5000)
    record = Record(
        installation=installation,
        namespace="gone",
        name="gone",
        uid=UID,
        revision=revision,
        spec_hash="h",
        digest=digest(data),
        size=len(data),
        retained=retained,
    )
    store.put(record.key, "a", Body(data), lambda: record)
    return record.key


def age(folder: Path) -> None:
    """Let it be as old as what a sweep looks at."""
    before = time.time() - 3600
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (before, before))


def test_leftovers_go_and_all_else_stays(sweeper: Tenant) -> None:
    """Objects and attempts of vanished Images go; what is owned, retained, young or another's stays."""
    folder = sweeper.folder / "swept"
    folder.mkdir()
    name = sweeper.store(folder)
    sweeper.image("owned", sweeper.serve("a.img", content(1)), stores=[name])
    owned = sweeper.ready("owned")["artifact"]
    installation = sweeper.read(name, "ImageStore")["status"]["installation"]
    ref = StoreRef(
        name=name, driver="filesystem", config={"path": str(folder)}, installation=installation, claimed=True
    )
    store = open_store(ref)
    orphan = put(store, installation, 1)
    retained = put(store, installation, 2, retained=True)
    foreign = put(store, "another", 3)
    attempt = folder / "attempts" / f"{UID}-4.dead"
    attempt.mkdir()
    (attempt / "data").write_bytes(b"half")
    for path in (*(folder / "objects").iterdir(), attempt):
        age(path)
    young = put(store, installation, 5)
    wait_until("the sweep", lambda: not (folder / "objects" / orphan).exists() and not attempt.exists(), timeout=30)
    held = {path.name for path in (folder / "objects").iterdir()}
    uid = sweeper.read("owned")["metadata"]["uid"]
    assert held == {f"{uid}-{owned['revision']}", retained, foreign, young}
    assert sweeper.ready("owned")["artifact"] == owned
