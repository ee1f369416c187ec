"""The main job on a real API server: apply an Image, get verified bytes back, change your mind."""

import hashlib
import json
import lzma
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.convert.support import image
from tests.operator.support import (
    REQUESTED_AT,
    Tenant,
    condition,
    content,
    digest,
    done,
    holds,
    said,
    slow,
)

from servers.kube import Cluster

ONE, TWO = content(1), content(2)


def test_a_compressed_image_is_stored_plain(tenant: Tenant) -> None:
    """The checksum speaks of the file as downloaded, the rest of what came out of it; an edit takes it back."""
    store, packed = tenant.store(), lzma.compress(ONE)
    url = tenant.serve("debian.raw.xz", packed)
    tenant.image("debian", url, stores=[store], checksum={"digest": digest(packed)})
    artifact = tenant.ready("debian")["artifact"]
    assert (artifact["digest"], artifact["size"], artifact["diskFormat"]) == (digest(ONE), len(ONE), "raw")
    assert (artifact["sourceDigest"], artifact["sourceFormat"]) == (digest(packed), "raw.xz")
    assert condition(tenant.read("debian"), "SourceVerified")["status"] == "True"
    tenant.download(tenant.link("debian"), body=ONE)
    tenant.edit("debian", format={"decompress": "never"})
    artifact = tenant.ready("debian", revision=2)["artifact"]
    assert (artifact["digest"], artifact["sourceFormat"]) == (digest(packed), "xz")
    assert "sourceDigest" not in artifact
    tenant.download(tenant.link("debian"), body=packed)


def test_a_qcow2_is_stored_as_raw(tenant: Tenant, tmp_path: Path) -> None:
    """By a worker that may reach its store and the spool alone; a changed format is a new revision."""
    disk = ONE.ljust(1 << 20, b"\0")
    data = image(tmp_path, "qcow2", data=disk)
    store = tenant.store()
    tenant.image(
        "debian",
        tenant.serve("debian.qcow2", data),
        stores=[store],
        checksum={"digest": digest(data)},
        format={"disk": "qcow2", "convertTo": "raw"},
    )
    artifact = tenant.ready("debian")["artifact"]
    assert (artifact["digest"], artifact["size"], artifact["diskFormat"]) == (digest(disk), len(disk), "raw")
    assert (artifact["sourceDigest"], artifact["sourceFormat"]) == (digest(data), "qcow2")
    tenant.download(tenant.link("debian"), body=disk)
    tenant.edit("debian", format={"disk": "qcow2"})
    artifact = tenant.ready("debian", revision=2)["artifact"]
    assert (artifact["digest"], artifact["diskFormat"]) == (digest(data), "qcow2")
    tenant.download(tenant.link("debian"), body=data)


def test_applied_stored_described_downloaded(tenant: Tenant) -> None:
    """An applied Image is fetched once, verified, stored, described in status and served by the gateway."""
    store = tenant.store()
    made = tenant.image(
        "debian",
        tenant.serve("debian.img", ONE),
        stores=[store],
        title="Debian",
        checksum={"digest": "sha512:" + hashlib.sha512(ONE).hexdigest()},
    )
    status = tenant.ready("debian")
    artifact, uid = status["artifact"], made["metadata"]["uid"]
    assert (artifact["revision"], artifact["digest"], artifact["size"]) == (1, digest(ONE), len(ONE))
    assert artifact["virtualSize"] == len(ONE)
    assert (artifact["diskFormat"], artifact["containerFormat"]) == ("raw", "bare")
    assert artifact["digests"]["sha512"] == hashlib.sha512(ONE).hexdigest()
    assert artifact["sourceUrl"] == tenant.web.url("/debian.img")
    assert {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]} == {
        "Ready": ("True", "Stored"),
        "Stored": ("True", "Stored"),
        "SourceVerified": ("True", "DigestMatched"),
    }
    assert [(s["name"], s["revision"], s["size"]) for s in status["stores"]] == [(store, 1, len(ONE))]
    assert status["summary"]["stores"] == "1/1"
    assert "pending" not in status
    assert "transfer" not in status
    assert tenant.objects(store) == {f"{uid}-1": ONE}
    assert len(tenant.web.requests) == 1
    assert tenant.web.requests[0].headers["user-agent"].startswith("glimpse/")
    tenant.download(tenant.link("debian"), body=ONE)
    tenant.download(artifact["url"], body=ONE)
    assert digest(ONE) in tenant.event("debian", reason="Stored")
    tenant.delete("debian")
    assert tenant.objects(store) == {}
    tenant.download(tenant.link("debian"), status=404)


def test_kubectl(tenant: Tenant, cluster: Cluster) -> None:
    """Wait, get and explain as people call them; server-side apply twice changes nothing and shows no diff."""
    store = tenant.store()
    manifest = tenant.folder / "image.yaml"
    manifest.write_text(json.dumps(tenant.ref("debian") | _spec(tenant.serve("debian.img", ONE), store)))
    cluster.kubectl("apply", "--server-side", "-f", manifest)
    cluster.kubectl("wait", "--for=condition=Ready", "gimg/debian", "-n", tenant.namespace, "--timeout=120s")
    tenant.ready("debian")
    before = tenant.read("debian")
    cluster.kubectl("apply", "--server-side", "-f", manifest)
    assert tenant.read("debian")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    cluster.kubectl("diff", "--server-side", "-f", manifest)
    head, line = cluster.kubectl("get", "gimg", "-n", tenant.namespace, "-o", "wide").splitlines()
    for column in ("READY", "STATUS", "SIZE", "FORMAT", "STORES", "DIGEST", "REVISION", "MESSAGE"):
        assert column in head
    for value in ("True", "Stored", "raw", "1/1", digest(ONE)[:19]):
        assert value in line
    assert "secretRef" in cluster.kubectl("explain", "image.spec.source.http")


def _spec(url: str, store: str) -> dict[str, object]:
    return {"spec": {"source": {"http": {"urls": [url]}}, "stores": [store]}}


def test_changed_source_is_a_new_revision(tenant: Tenant) -> None:
    """The old revision is served until the new one is complete; then it is removed after its grace."""
    store = tenant.store()
    uid = tenant.image("a", tenant.serve("1", ONE), stores=[store], revisions={"grace": "0s"})["metadata"]["uid"]
    tenant.ready("a")
    tenant.edit("a", source={"http": {"urls": [tenant.serve("2", slow(TWO))]}})
    found = tenant.transferring("a")
    assert holds(found, "Ready")
    assert holds(found, "Outdated")
    assert condition(found, "Reconciling")["reason"] == "Transferring"
    assert found["status"]["artifact"]["revision"] == 1
    assert found["status"]["pending"]["revision"] == 2
    tenant.download(tenant.link("a"), body=ONE)
    tenant.web.release()
    status = tenant.ready("a", revision=2)
    assert status["artifact"]["digest"] == digest(TWO)
    tenant.download(tenant.link("a"), body=TWO)
    found = tenant.wait("a", lambda o: len(said(o).get("history", [])) == 1)
    assert not holds(found, "Outdated")
    assert tenant.objects(store) == {f"{uid}-2": TWO}
    assert f"{uid}-1" not in json.dumps(found["status"])


def test_an_old_revision_stays_during_its_grace(tenant: Tenant) -> None:
    """What is no longer kept can be downloaded by its own link until its grace ends, which status tells."""
    store = tenant.store()
    uid = tenant.image("a", tenant.serve("1", ONE), stores=[store], revisions={"grace": "1h"})["metadata"]["uid"]
    old = tenant.ready("a")["artifact"]["url"]
    tenant.edit("a", source={"http": {"urls": [tenant.serve("2", TWO)]}})
    status = tenant.ready("a", revision=2)
    tenant.download(tenant.link("a"), body=TWO)
    tenant.download(old, body=ONE)
    (removal,) = status["removals"]
    assert (removal["revision"], removal["stores"]) == (1, [store])
    wait = datetime.fromisoformat(removal["after"]) - datetime.now(UTC)
    assert timedelta(minutes=50) < wait <= timedelta(hours=1)
    assert tenant.objects(store) == {f"{uid}-1": ONE, f"{uid}-2": TWO}
    tenant.delete("a")
    assert tenant.objects(store) == {}


def test_kept_revisions(tenant: Tenant) -> None:
    """With `keep: 2` two revisions stay and the third pushes the oldest out."""
    store = tenant.store()
    revisions = {"keep": 2, "grace": "0s"}
    uid = tenant.image("a", tenant.serve("1", ONE), stores=[store], revisions=revisions)["metadata"]["uid"]
    tenant.ready("a", revision=1)
    for number, data in ((2, TWO), (3, content(3))):
        tenant.edit("a", source={"http": {"urls": [tenant.serve(str(number), data)]}})
        tenant.ready("a", revision=number)
    tenant.wait("a", lambda o: [h["revision"] for h in said(o).get("history", [])] == [3, 2])
    assert tenant.objects(store) == {f"{uid}-2": TWO, f"{uid}-3": content(3)}


def test_changed_checksum(tenant: Tenant) -> None:
    """A checksum that the bytes fulfil moves nothing; one that they do not is a failed new revision, and mends."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", ONE), stores=[store])
    tenant.ready("a")
    tenant.edit("a", checksum={"digest": digest(ONE)})
    assert tenant.ready("a")["artifact"]["revision"] == 1
    assert holds(tenant.read("a"), "SourceVerified")
    assert len(tenant.web.requests) == 1
    tenant.edit("a", checksum={"digest": digest(TWO)})
    tenant.stalled("a", "ChecksumMismatch")
    found = tenant.read("a")
    assert holds(found, "Ready"), "a bad edit breaks nobody"
    assert holds(found, "Outdated")
    stored = condition(found, "Stored")
    assert (stored["status"], stored["reason"]) == ("False", "ChecksumMismatch")
    assert list(tenant.objects(store).values()) == [ONE]
    tenant.download(tenant.link("a"), body=ONE)
    tenant.edit("a", checksum={"digest": digest(ONE)})
    assert tenant.ready("a")["artifact"]["revision"] == 1


def test_changed_stores_copy_and_remove(tenant: Tenant) -> None:
    """A store more is a copy from the one that has it, a store less a removal; the web server is asked once."""
    one, two = tenant.store(), tenant.store()
    key = tenant.image("a", tenant.serve("1", ONE), stores=[one])["metadata"]["uid"] + "-1"
    tenant.ready("a")
    tenant.edit("a", stores=[one, two])
    status = tenant.ready("a")
    assert [(s["name"], s["revision"]) for s in status["stores"]] == [(one, 1), (two, 1)]
    assert tenant.objects(one) == tenant.objects(two) == {key: ONE}
    tenant.edit("a", stores=[two])
    tenant.wait("a", lambda o: done(o) and said(o)["history"][0]["stores"] == [two])
    assert (tenant.objects(one), tenant.objects(two)) == ({}, {key: ONE})
    tenant.download(tenant.link("a"), body=ONE)
    assert len(tenant.web.requests) == 1


def test_several_stores_are_filled_in_one_pass(tenant: Tenant) -> None:
    """One download feeds all stores."""
    stores = [tenant.store() for _ in range(3)]
    key = tenant.image("a", tenant.serve("1", ONE), stores=stores)["metadata"]["uid"] + "-1"
    assert tenant.ready("a")["summary"]["stores"] == "3/3"
    assert [tenant.objects(s) for s in stores] == [{key: ONE}] * 3
    assert len(tenant.web.requests) == 1


def test_changed_words_move_no_byte(tenant: Tenant) -> None:
    """Title, tags, visibility and the like are taken over without a request to the web server or a write to a store."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", ONE), stores=[store])
    before = tenant.ready("a")
    (file,) = (tenant.folder / store / "objects").glob("*/data")
    written = file.stat()
    tenant.edit(
        "a",
        title="New",
        tags=["lts"],
        properties={"os": "linux"},
        visibility="shared",
        members=["team-b"],
        hidden=True,
        minimum={"diskGiB": 10},
        deletionPolicy="Retain",
        format={"container": "ovf"},
    )
    assert tenant.ready("a")["artifact"] == before["artifact"] | {"containerFormat": "ovf"}
    assert len(tenant.web.requests) == 1
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_mirror_takes_over(tenant: Tenant) -> None:
    """A failing mirror falls over to the next one."""
    store = tenant.store()
    tenant.image("a", [tenant.web.url("/none"), tenant.serve("1", ONE)], stores=[store])
    assert tenant.ready("a")["artifact"]["sourceUrl"] == tenant.web.url("/1")


def test_suspend_and_resume(tenant: Tenant) -> None:
    """Suspended, a transfer stops and leaves nothing; what is served stays served; resumed, it goes on."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", slow(ONE)), stores=[store])
    tenant.transferring("a")
    tenant.edit("a", suspend=True)
    found = tenant.wait("a", lambda o: bool(condition(o, "Ready")))
    assert not holds(found, "Reconciling")
    assert not holds(found, "Stalled")
    assert "transfer" not in found["status"]
    assert tenant.objects(store) == {}
    tenant.serve("1", ONE)
    tenant.edit("a", suspend=None)
    tenant.ready("a")
    tenant.edit("a", suspend=True, source={"http": {"urls": [tenant.serve("2", TWO)]}})
    found = tenant.wait("a", lambda o: holds(o, "Ready"))
    tenant.download(tenant.link("a"), body=ONE)
    assert tenant.web.asked("/2") == []
    tenant.edit("a", suspend=None)
    assert tenant.ready("a", revision=2)["artifact"]["digest"] == digest(TWO)


def test_force_tries_again_what_was_given_up(tenant: Tenant) -> None:
    """A stalled Image is left alone until the annotation asks for another try, which status then confirms."""
    store = tenant.store()
    tenant.image("a", tenant.web.url("/1"), stores=[store])
    tenant.stalled("a", "SourceNotFound")
    tenant.serve("1", ONE)
    tenant.works(store)
    assert len(tenant.web.asked("/1")) == 1, "what was given up is not tried again by itself"
    tenant.annotate("a", REQUESTED_AT, "now")
    assert tenant.ready("a")["lastHandledReconcileAt"] == "now"


def test_retained(tenant: Tenant) -> None:
    """With `deletionPolicy: Retain` the object goes and the bytes stay, with a record that says so."""
    store = tenant.store()
    key = tenant.image("a", tenant.serve("1", ONE), stores=[store], deletionPolicy="Retain")["metadata"]["uid"] + "-1"
    tenant.ready("a")
    record = tenant.folder / store / "objects" / key / "record.json"
    assert "retained" not in json.loads(record.read_text())
    tenant.delete("a")
    assert tenant.objects(store) == {key: ONE}
    said = json.loads(record.read_text())
    assert (said["retained"], said["digest"], said["name"]) == (True, digest(ONE), "a")


def test_deleted_before_anything_was_stored(tenant: Tenant) -> None:
    """An Image that failed, that is suspended, or that waits for a store, goes at once."""
    store = tenant.store()
    tenant.image("failed", tenant.web.url("/none"), stores=[store])
    tenant.stalled("failed", "SourceNotFound")
    tenant.image("suspended", tenant.serve("1", ONE), stores=[store], suspend=True)
    tenant.wait("suspended", lambda o: condition(o, "Ready").get("reason") == "Suspended")
    tenant.image("storeless", tenant.serve("1", ONE), stores=["nowhere"])
    tenant.stalled("storeless", "StoreNotFound")
    for name in ("failed", "suspended", "storeless"):
        assert tenant.read(name)["metadata"]["finalizers"] == ["glimpse.dev/bytes"]
        tenant.delete(name)
    assert tenant.objects(store) == {}


def test_progress(tenant: Tenant) -> None:
    """A transfer shows bytes, percent and speed, and no trace of them once it is done."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", slow(ONE)), stores=[store])
    found = tenant.wait("a", lambda o: said(o).get("transfer", {}).get("percent", 0) >= 4)
    shown, progress = found["status"]["transfer"], found["status"]["summary"]["progress"]
    assert shown["bytesTotal"] == len(ONE)
    assert 0 < shown["bytesDone"] < len(ONE)
    assert 1_000 < shown["bytesPerSecond"] < 40_000, "4 KiB each 0.2 s, and the first at once"
    assert shown["etaSeconds"] > 0
    assert shown["attempt"] == 1
    assert progress == f"{shown['percent']}%"
    assert condition(found, "Ready")["reason"] == "Progressing"
    tenant.web.release()
    status = tenant.ready("a")
    assert "transfer" not in status
    assert "progress" not in status["summary"]


def test_queued(tenant: Tenant, cluster: Cluster) -> None:
    """One namespace cannot take all slots; who waits says so, and gets his turn."""
    store = tenant.store()
    hold = tenant.serve("hold", slow(ONE))
    other = Tenant(cluster, tenant.glimpse, tenant.folder, tenant.web, cluster.namespace())
    for name in ("a", "b"):
        tenant.image(name, hold, stores=[store])
        tenant.transferring(name)
    tenant.image("c", tenant.serve("c", ONE), stores=[store])
    tenant.wait("c", lambda o: condition(o, "Reconciling").get("reason") == "Queued")
    other.image("quick", tenant.serve("quick", ONE), stores=[store])
    other.ready("quick")
    for name in ("d", "e"):
        other.image(name, hold, stores=[store])
        other.transferring(name)
    third = Tenant(cluster, tenant.glimpse, tenant.folder, tenant.web, cluster.namespace())
    third.image("f", tenant.serve("f", ONE), stores=[store])
    third.wait("f", lambda o: condition(o, "Reconciling").get("reason") == "Queued")
    assert tenant.web.asked("/c") == tenant.web.asked("/f") == []
    tenant.web.release()
    for who, names in ((tenant, "abc"), (other, "de"), (third, "f")):
        for name in names:
            who.ready(name)


def test_edited_in_the_middle(tenant: Tenant) -> None:
    """A change of the source ends the transfer of what nobody wants any more; its number is not used again."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", slow(ONE)), stores=[store])
    tenant.transferring("a")
    tenant.edit("a", source={"http": {"urls": [tenant.serve("2", TWO)]}})
    status = tenant.ready("a")
    assert status["artifact"]["digest"] == digest(TWO)
    uid = tenant.read("a")["metadata"]["uid"]
    assert tenant.objects(store) == {f"{uid}-{status['artifact']['revision']}": TWO}
    assert len(tenant.web.asked("/1")) == 1


def test_a_new_image_of_an_old_name(tenant: Tenant) -> None:
    """A re-created Image of the same name is another: old links end, revisions and bytes are its own."""
    store = tenant.store()
    tenant.image("a", tenant.serve("1", ONE), stores=[store], deletionPolicy="Retain")
    old = tenant.ready("a")["artifact"]["url"]
    tenant.download(old, body=ONE)
    tenant.delete("a")
    tenant.image("a", tenant.serve("2", TWO), stores=[store], deletionPolicy="Delete")
    status = tenant.ready("a")
    assert [h["revision"] for h in status["history"]] == [1]
    assert status["artifact"]["digest"] == digest(TWO)
    tenant.download(status["artifact"]["url"], body=TWO)
    tenant.download(tenant.link("a"), body=TWO)
    tenant.download(old, status=404)
    tenant.delete("a")
    assert list(tenant.objects(store).values()) == [ONE], "what was retained is not the new one's"
