"""Bytes that a store has already, from an Image to a download and to its end, on a real API server."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.operator.support import Tenant, condition, content, digest, done, holds, said
from tests.operator.test_refresh import looked
from tests.operator.test_scrub import age

from servers import wait_until
from servers.kube import ApiError, Cluster, Object
from servers.require import require_tool
from servers.shelf import ask
from servers.web import Site, Web

ONE, TWO = content(1), content(2)
RULE = {"prefix": "import/{namespace}/"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Nginx with a folder."""
    require_tool("nginx", "nginx-light")
    with Web(tmp_path / "site") as started:
        yield started


class Home:
    """A store with a folder where others put their files; a web server of this folder, or the folder itself."""

    def __init__(self, tenant: Tenant, site: Site | None, **rule: Any) -> None:
        self.tenant = tenant
        rules: dict[str, Any] = {"locations": [RULE | rule]}
        if site:
            self.store = tenant.store(http={"baseUrl": site.url}, **rules)
            self.root, self.where = site.root, site.url
        else:
            self.store = tenant.store(**rules)
            self.root = tenant.folder / self.store
            self.where = f"file://{self.root}"
        self._seconds = 1_700_000_000

    def key(self, name: str) -> str:
        """Where the tenant's files are."""
        return f"import/{self.tenant.namespace}/{name}"

    def file(self, name: str) -> Path:
        """One of them."""
        return self.root / self.key(name)

    def lay(self, name: str, data: bytes) -> None:
        """Write one; a web server tells versions apart by the second."""
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        self.file(name).write_bytes(data)
        self._seconds += 10
        os.utime(self.file(name), (self._seconds, self._seconds))

    def register(self, image: str, name: str, **spec: Any) -> Object:
        """Apply an Image of it."""
        return self.tenant.registered(image, self.store, self.key(name), **spec)


@pytest.fixture(params=["filesystem", "http"])
def home(request: pytest.FixtureRequest, tenant: Tenant, site: Site) -> Home:
    """A store of each kind that can."""
    return Home(tenant, site if request.param == "http" else None)


def objects(home: Home) -> list[str]:
    """What of Glimpse's own is in the store."""
    return [str(path.relative_to(home.root)) for path in sorted((home.root / "objects").glob("*"))]


def test_the_whole_road(home: Home, tenant: Tenant) -> None:
    """Registered, verified, downloaded, copied elsewhere later, and deleted: the file is as it was all the time."""
    home.lay("debian.img", ONE)
    before = home.file("debian.img").stat()
    uid = home.register("a", "debian.img", checksum={"digest": digest(ONE)})["metadata"]["uid"]
    status = tenant.ready("a")
    artifact = status["artifact"]
    assert (artifact["digest"], artifact["size"], artifact["diskFormat"]) == (digest(ONE), len(ONE), "raw")
    assert artifact["location"] == {"store": home.store, "key": home.key("debian.img")}
    assert artifact["sourceUrl"] == f"{home.where}/{home.key('debian.img')}"
    assert [s["name"] for s in status["stores"]] == [home.store]
    assert status["stores"][0]["location"] == artifact["sourceUrl"]
    found = tenant.read("a")
    assert condition(found, "SourceVerified")["reason"] == "DigestMatched"
    tenant.download(tenant.link("a"), body=ONE)
    part = ask(tenant.link("a"), token=tenant.token, headers={"Range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, ONE[1000:2000])

    spare = tenant.store()
    tenant.edit("a", stores=[home.store, spare])
    tenant.wait("a", lambda o: done(o) and len(said(o)["stores"]) == 2)
    assert tenant.objects(spare) == {f"{uid}-1": ONE}
    if (home.root / "objects").exists():
        assert (home.root / "objects" / f"{uid}-1" / "data").stat().st_size == 0, "nothing is copied there"

    tenant.delete("a")
    assert tenant.objects(spare) == {}
    assert objects(home) == []
    after = home.file("debian.img").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert home.file("debian.img").read_bytes() == ONE


def test_one_reading_for_all(home: Home, tenant: Tenant) -> None:
    """Other stores are filled while it is read, and their copies are served when the file is gone."""
    spare = tenant.store(weight=1)
    home.lay("a", ONE)
    uid = home.register("a", "a", stores=[spare, home.store])["metadata"]["uid"]
    tenant.ready("a")
    assert tenant.objects(spare) == {f"{uid}-1": ONE}
    home.file("a").unlink()
    tenant.download(tenant.link("a"), body=ONE)
    age(tenant, "a")
    tenant.event("a", reason="DataLost")
    found = tenant.wait("a", lambda o: condition(o, "Stored").get("reason") == "SourceNotFound")
    assert holds(found, "Ready")
    assert not holds(found, "Stored")
    home.lay("a", ONE)
    tenant.annotate("a", "glimpse.dev/reconcile-requested-at", "now")
    status = tenant.wait("a", done)["status"]
    assert status["artifact"]["revision"] == 1
    assert set(status["history"][0]["stores"]) == {home.store, spare}
    assert tenant.objects(spare) == {f"{uid}-1": ONE}, "nothing but registered again"


def test_a_change_is_noticed(home: Home, tenant: Tenant) -> None:
    """Other bytes are never served; the scrub says that they are lost, and takes them up again when they are back."""
    home.lay("a", ONE)
    home.register("a", "a")
    before = tenant.ready("a")["artifact"]
    tenant.download(tenant.link("a"), body=ONE)
    home.lay("a", TWO)
    tenant.download(tenant.link("a"), status=503)
    age(tenant, "a")
    found = tenant.wait("a", lambda o: holds(o, "Stalled"))
    assert condition(found, "Ready")["reason"] == "DataLost"
    assert "other bytes" in condition(found, "Stalled")["message"]
    home.lay("a", ONE)
    tenant.annotate("a", "glimpse.dev/reconcile-requested-at", "now")
    after = tenant.ready("a")["artifact"]
    assert (after["revision"], after["digest"]) == (1, before["digest"])
    assert after["etag"] != before["etag"]
    tenant.download(tenant.link("a"), body=ONE)


def test_refresh_follows_the_file(home: Home, tenant: Tenant) -> None:
    """Unchanged is a look; changed bytes become a new revision, which is served."""
    home.lay("a", ONE)
    home.register("a", "a", refresh={"interval": "6h"}, revisions={"grace": "0s"})
    first = tenant.ready("a")["artifact"]
    assert looked(tenant, "a", "1")["artifact"] == first
    home.lay("a", TWO)
    tenant.annotate("a", "glimpse.dev/reconcile-requested-at", "2")
    second = tenant.ready("a", revision=2)["artifact"]
    assert second["digest"] == digest(TWO)
    assert second["location"] == first["location"]
    tenant.download(tenant.link("a"), body=TWO)
    tenant.wait("a", lambda o: len(said(o)["history"]) == 1)


def test_only_what_is_allowed(home: Home, tenant: Tenant, cluster: Cluster) -> None:
    """Another namespace can register neither this one's files nor anything else; a rule for it is taken up at once."""
    home.lay("a", ONE)
    other = Tenant(cluster, tenant.glimpse, tenant.folder, tenant.web, cluster.namespace())
    other.registered("theirs", home.store, home.key("a"))
    message = other.stalled("theirs", "StoreRefused")
    assert f"only what begins with import/{other.namespace}/" in message
    assert objects(home) == []
    chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other.namespace}}}
    patch = {"spec": {"locations": [RULE, {"prefix": "import/", **chosen}]}}
    path = cluster.path(tenant.ref(home.store, "ImageStore"))
    cluster.request("PATCH", path, patch, content_type="application/merge-patch+json")
    assert other.ready("theirs")["artifact"]["digest"] == digest(ONE)
    third = Tenant(cluster, tenant.glimpse, tenant.folder, tenant.web, cluster.namespace())
    third.registered("none", home.store, home.key("a"))
    assert "register only" in third.stalled("none", "StoreRefused")


def test_nobody_without_a_rule(tenant: Tenant) -> None:
    """A store that says nothing lets nobody register."""
    store = tenant.store()
    (tenant.folder / store / "a").write_bytes(ONE)
    tenant.registered("a", store, "a")
    assert "register nothing that it holds" in tenant.stalled("a", "StoreRefused")
    tenant.delete("a")


BAD = {
    "absent": (b"", {}, "SourceNotFound"),
    "wrong digest": (ONE, {"checksum": {"digest": digest(TWO)}}, "ChecksumMismatch"),
    "wrong format": (ONE, {"format": {"disk": "qcow2"}}, "FormatMismatch"),
    "too large": (bytes(33 << 20), {}, "TooLarge"),
    "compressed": (b"\x1f\x8b\x08" + bytes(100), {}, "InvalidConfiguration"),
}


@pytest.mark.parametrize(("data", "spec", "reason"), BAD.values(), ids=list(BAD))
def test_bad_files(home: Home, tenant: Tenant, data: bytes, spec: dict[str, Any], reason: str) -> None:
    """They fail as a download does, are registered nowhere, and their Images go as any other."""
    if data:
        home.lay("a", data)
    home.register("a", "a", **spec)
    tenant.stalled("a", reason)
    tenant.delete("a")
    assert objects(home) == []
    assert home.file("a").exists() == bool(data)


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
@pytest.mark.parametrize("allowed", [True, False])
def test_deletion(tenant: Tenant, policy: str, allowed: bool) -> None:
    """The file goes with its Image only where store and Image want it; not when only the source is changed."""
    home = Home(tenant, None, allowDelete=allowed)
    home.lay("a", ONE)
    home.lay("b", TWO)
    uid = home.register("a", "a", deletionPolicy=policy, revisions={"grace": "0s"})["metadata"]["uid"]
    tenant.ready("a")
    tenant.edit("a", source={"location": {"store": home.store, "key": home.key("b")}})
    tenant.ready("a", revision=2)
    tenant.wait("a", lambda o: len(said(o)["history"]) == 1 and not said(o).get("removals"))
    tenant.delete("a")
    assert home.file("a").read_bytes() == ONE
    assert home.file("b").exists() == (not allowed or policy == "Retain")
    assert objects(home) == ([f"objects/{uid}-2"] if policy == "Retain" else [])


def test_a_link_is_not_followed(tenant: Tenant) -> None:
    """Whoever may write into the folder cannot make the operator read something else."""
    home = Home(tenant, None)
    secret = tenant.folder / "secret"
    secret.write_bytes(ONE)
    home.lay("plain", TWO)
    home.file("link").symlink_to(secret)
    home.file("folder").symlink_to(tenant.folder)
    for name in ("link", "folder/secret"):
        tenant.registered("a", home.store, home.key(name))
        assert "link" in tenant.stalled("a", "StoreRefused")
        tenant.delete("a")


def test_a_web_server_takes_no_bytes(tenant: Tenant, site: Site) -> None:
    """Where it is known, the API server refuses; where it is the default, the image says so."""
    home = Home(tenant, site)

    def refused() -> bool:
        try:
            tenant.image("a", tenant.serve("a", ONE), stores=[home.store])
        except ApiError as error:
            return "takes no bytes" in str(error)
        tenant.delete("a")
        return False

    wait_until("the policy", refused, timeout=30)
    tenant.annotate(home.store, "glimpse.dev/is-default-store", "true", kind="ImageStore")
    tenant.image("b", tenant.serve("b", ONE))
    message = tenant.stalled("b", "StoreReadOnly")
    assert "register what it has with source.location" in message
    tenant.delete("b")
    tenant.annotate(home.store, "glimpse.dev/is-default-store", None, kind="ImageStore")
    assert list(site.root.iterdir()) == []
    tenant.delete(home.store, kind="ImageStore")


def test_a_restart_forgets_nothing(tenant: Tenant, site: Site) -> None:
    """What a web server cannot note, operator and gateway know from the status, and from nothing else."""
    home = Home(tenant, site)
    home.lay("a", ONE)
    home.register("a", "a")
    before = tenant.ready("a")
    tenant.glimpse.restart("operator")
    tenant.glimpse.restart("gateway")
    tenant.download(tenant.link("a"), body=ONE)
    age(tenant, "a")
    found = tenant.wait("a", lambda o: home.store in said(o)["history"][0].get("verified", {}))
    assert found["status"]["artifact"] | {"storedAt": ""} == before["artifact"] | {"storedAt": ""}
    tenant.delete("a")
    assert home.file("a").read_bytes() == ONE
