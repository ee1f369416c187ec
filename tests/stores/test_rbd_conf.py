"""What an rbd store takes from a ceph.conf that somebody else has written: where the cluster is, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.stores.test_rbd import WATCH, Place, put, started

from glimpse.api.store import CONFIG_REF
from glimpse.problems import InvalidConfiguration, SecretNotReadable, StoreUnavailable
from glimpse.stores import open_store
from glimpse.stores.rbd.conf import Known, read
from glimpse.tasks import StoreRef
from glimpse.testing.stores import KEY
from glimpse.testing.stores import read as content
from servers.ceph import Ceph

FSID = "6f1c2a90-0000-4000-8000-00000000000b"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster in memory."""
    yield from started(Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore", options=WATCH))


def by_conf(place: Place, **entries: str) -> StoreRef:
    """The store as a worker gets it, if its configRef holds these."""
    ref = place.ref()
    config = {name: value for name, value in ref.config.items() if name != "monitors"}
    held = {f"{CONFIG_REF}{name.replace('_conf', '.conf')}": SecretStr(text) for name, text in entries.items()}
    return ref.model_copy(
        update={"config": {**config, "configRef": {"configMap": "ceph"}}, "secret": {**ref.secret, **held}}
    )


@pytest.mark.parametrize(
    ("entries", "known"),
    [
        (
            {"ceph.conf": f"[global]\nfsid = {FSID}\nmon host = 10.0.0.1, ceph-2:6789 ; two\n"},
            Known(("10.0.0.1", "ceph-2:6789"), FSID),
        ),
        (
            {"ceph.conf": "mon-host=[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] [v2:[fd00::1]:13300/0,v1:[fd00::1]:6789]"},
            Known(("v2:10.0.0.1:3300", "v1:10.0.0.1:6789", "v2:[fd00::1]:13300", "v1:[fd00::1]:6789"), None),
        ),
        (
            {"ceph.conf": "[client]\nmon_host = 10.0.0.9\n[global]\nmon_host = '[fd00::2]:6789'\n[osd]\nmon host = b"},
            Known(("[fd00::2]:6789",), None),
        ),
        (
            {"mon_host": "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]", "mon_initial_members": "a"},
            Known(("v2:10.0.0.1:3300", "v1:10.0.0.1:6789"), None),
        ),
        ({"data": "a=10.0.0.1:6789,b=10.0.0.2:3300", "mapping": "{}"}, Known(("10.0.0.1:6789", "10.0.0.2:3300"), None)),
    ],
    ids=["plain", "addresses", "sections", "Rook's Secret", "Rook's ConfigMap"],
)
def test_monitors_are_found(entries: dict[str, str], known: Known) -> None:
    """As Ceph, or Rook, writes them."""
    assert read({"userKey": "k", **{f"{CONFIG_REF}{name}": text for name, text in entries.items()}}) == known


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "no key ceph.conf"),
        ({"ceph.conf": "[global]\nkeyring = /etc/k\n"}, "no mon_host"),
        ({"ceph.conf": "[client]\nmon host = 10.0.0.1\n"}, "no mon_host"),
        ({"ceph.conf": "mon host = 10.0.0.1\nfsid = mine\n"}, "fsid"),
        ({"ceph.conf": "mon host = 10.0.0.1:1234\n"}, "no monitor such as"),
        ({"ceph.conf": "mon host = /etc/passwd\n"}, "no monitor such as"),
        ({"ceph.conf": "mon host = $name\n"}, "no monitor such as"),
        ({"ceph.conf": "mon host = @/run/monitors\n"}, "no monitor such as"),
    ],
)
def test_what_is_wrong_is_named(entries: dict[str, str], message: str) -> None:
    """With the way out; nothing is guessed, expanded or looked up in a file."""
    with pytest.raises(SecretNotReadable, match=message):
        read({f"{CONFIG_REF}{name}": text for name, text in entries.items()})


@pytest.mark.usefixtures("outside")
def test_a_cluster_is_found(place: Place) -> None:
    """By the ceph.conf of its own servers as it is; one of another cluster is told by its fsid."""
    text = place.cluster.conf.read_text()
    store = open_store(by_conf(place, ceph_conf=text))
    store.claim()
    put(store, b"here")
    assert content(store, KEY) == b"here"
    assert store.driver.endpoint == f"rbd://{place.cluster.monitors[0]}/images"
    store.delete(KEY)
    with pytest.raises(
        StoreUnavailable, match=f"is the Ceph cluster {place.cluster.fsid}, where configRef says {FSID}"
    ):
        open_store(by_conf(place, ceph_conf=text.replace(place.cluster.fsid, FSID))).claim()


@pytest.mark.usefixtures("outside")
def test_a_hostile_file_does_nothing(place: Place, tmp_path: Path) -> None:
    """No option of it is heard: no log, no socket, no plugin, no key of another file, no other size or time."""
    evil = {
        "log file": tmp_path / "log",
        "log to file": "true",
        "debug ms": "20",
        "admin socket": tmp_path / "socket",
        "crash dir": tmp_path,
        "heartbeat file": tmp_path / "beat",
        "plugin dir": tmp_path,
        "erasure code dir": tmp_path,
        "keyring": tmp_path / "keyring",
        "key": "A" * 38 + "==",
        "rbd default data pool": "theirs",
        "rbd plugins": "pwl_cache",
        "rbd persistent cache mode": "ssd",
        "rbd persistent cache path": tmp_path,
    }
    lines = [f"{name} = {value}" for name, value in evil.items()]
    text = "\n".join(["[global]", f"mon host = {place.cluster.monitors[0]}", *lines, "[client]", *lines, ""])
    store = open_store(by_conf(place, ceph_conf=text))
    store.claim()
    put(store, b"safe")
    assert content(store, KEY) == b"safe"
    store.delete(KEY)
    assert list(tmp_path.iterdir()) == []


def test_one_of_two_ways() -> None:
    """Monitors here or there: where the API server's own rule is missing, the driver keeps it."""
    key = {"userKey": SecretStr("AQAAAAAAAAAAABAAAAECAwQFBgcICQoLDA0ODw==")}
    both = {"pool": "images", "user": "u", "monitors": ["10.0.0.1"], "configRef": {"configMap": "ceph"}}
    for config in (both, {"pool": "images", "user": "u"}):
        ref = StoreRef(name="fast", driver="rbd", config=config, secret=key, installation="here")
        with pytest.raises(InvalidConfiguration, match=r"exactly one of rbd\.monitors and rbd\.configRef"):
            open_store(ref)
