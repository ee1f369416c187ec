"""Sources that are looked at again, and revisions that are pinned, on a real API server."""

from typing import Any

from tests.operator.support import REQUESTED_AT, Tenant, condition, content, digest, done, holds, said, slow

from glimpse.testing.faults import Reply
from servers.kube import Object

ONE, TWO, THREE = content(1), content(2), content(3)
REFRESH = {"refresh": {"interval": "6h"}}


def tagged(data: bytes, etag: str) -> Reply:
    """An answer with a validator."""
    return Reply(data, headers={"ETag": etag})


def looked(tenant: Tenant, name: str, wish: str) -> dict[str, Any]:
    """Have the source looked at now, and wait until that has come to its end; the status."""
    before = said(tenant.read(name)).get("refresh", {}).get("lastCheckTime")
    tenant.annotate(name, REQUESTED_AT, wish)

    def over(o: Object) -> bool:
        status = said(o)
        last = status.get("refresh", {}).get("lastCheckTime")
        return done(o) and status.get("lastHandledReconcileAt") == wish and last is not None and last >= (before or "")

    found: dict[str, Any] = tenant.wait(name, over)["status"]
    return found


def at(tenant: Tenant, name: str, moment: str) -> None:
    """Set the time of the next look, as another operator would have."""
    path = f"{tenant.cluster.path(tenant.ref(name))}/status"
    body = {"status": {"refresh": {"nextCheckTime": moment}}}
    tenant.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")


def test_unchanged_is_one_small_request(tenant: Tenant) -> None:
    """A look is a conditional request; nothing is fetched, stored or said."""
    store = tenant.store()
    tenant.image("a", tenant.serve("a", tagged(ONE, '"1"'), Reply(status=304)), stores=[store], **REFRESH)
    before = tenant.ready("a")
    assert before["refresh"]["nextCheckTime"] > before["artifact"]["storedAt"]
    after = looked(tenant, "a", "now")
    assert [r.headers.get("if-none-match") for r in tenant.web.requests] == [None, '"1"']
    assert after["artifact"] == before["artifact"]
    assert after["conditions"] == before["conditions"]
    assert after["lastRevision"] == 1
    assert list(tenant.objects(store).values()) == [ONE]


def test_changed_bytes_are_a_new_revision(tenant: Tenant) -> None:
    """The old one is served while the new one comes, and can be pinned when that is there."""
    store = tenant.store()
    url = tenant.serve("a", tagged(ONE, '"1"'))
    uid = tenant.image("a", url, stores=[store], revisions={"keep": 2, "grace": "0s"}, **REFRESH)["metadata"]["uid"]
    first = tenant.ready("a")["artifact"]
    tenant.serve("a", slow(TWO))
    tenant.annotate("a", REQUESTED_AT, "now")
    found = tenant.transferring("a")
    assert holds(found, "Ready")
    assert condition(found, "Outdated")["reason"] == "NewRevisionFound"
    assert condition(found, "Reconciling")["reason"] == "Transferring"
    assert found["status"]["artifact"] == first
    tenant.download(tenant.link("a"), body=ONE)
    tenant.web.release()
    second = tenant.ready("a", revision=2)["artifact"]
    assert second["digest"] == digest(TWO)
    tenant.download(tenant.link("a"), body=TWO)
    assert tenant.objects(store) == {f"{uid}-1": ONE, f"{uid}-2": TWO}

    tenant.edit("a", revisions={"keep": 2, "grace": "0s", "pin": 1})
    back = tenant.ready("a", revision=1)
    assert back["artifact"] == first
    assert back["stores"][0]["location"].count(f"{uid}-1") == 1
    tenant.download(tenant.link("a"), body=ONE)
    tenant.download(second["url"], body=TWO)
    assert "revision 1 is served instead of revision 2" in tenant.event("a", reason="Served")

    tenant.serve("a", tagged(THREE, '"3"'))
    looked(tenant, "a", "again")
    found = tenant.wait("a", lambda o: [h["revision"] for h in said(o).get("history", [])] == [3, 2, 1] and done(o))
    assert found["status"]["artifact"]["revision"] == 1
    tenant.download(tenant.link("a"), body=ONE)
    tenant.edit("a", revisions={"keep": 2, "grace": "0s"})
    assert tenant.ready("a", revision=3)["artifact"]["digest"] == digest(THREE)
    tenant.download(tenant.link("a"), body=THREE)
    tenant.wait("a", lambda o: [h["revision"] for h in said(o).get("history", [])] == [3, 2])
    assert tenant.objects(store) == {f"{uid}-2": TWO, f"{uid}-3": THREE}
    tenant.edit("a", revisions={"keep": 2, "grace": "0s", "pin": 1})
    found = tenant.wait("a", lambda o: holds(o, "Stalled"))
    assert condition(found, "Stalled")["reason"] == "InvalidConfiguration"
    assert "kept are: 3, 2." in condition(found, "Stalled")["message"]
    tenant.download(tenant.link("a"), body=THREE)


def test_the_same_bytes_are_no_revision(tenant: Tenant) -> None:
    """A server that tells nothing about its files is fetched whole, and its bytes are recognised."""
    store = tenant.store()
    tenant.image("a", tenant.serve("a", ONE), stores=[store], **REFRESH)
    before = tenant.ready("a")
    after = looked(tenant, "a", "now")
    after = tenant.wait("a", lambda o: done(o) and said(o)["lastRevision"] == 2 and "removals" not in said(o))["status"]
    assert len(tenant.web.requests) == 3
    assert after["artifact"] == before["artifact"]
    assert [h["revision"] for h in after["history"]] == [1]
    assert list(tenant.objects(store).values()) == [ONE]
    tenant.serve("a", tagged(ONE, '"1"'))
    looked(tenant, "a", "again")
    after = tenant.wait("a", lambda o: done(o) and "removals" not in said(o) and "etag" in said(o)["artifact"])[
        "status"
    ]
    assert (after["artifact"]["etag"], after["artifact"]["revision"]) == ('"1"', 1)


def test_a_checksum_file_that_comes_late(tenant: Tenant) -> None:
    """New bytes with the old file are tried again at the next look; each revision keeps what was proven of it."""
    store = tenant.store()

    def sums(data: bytes) -> str:
        return tenant.serve("SUMS", f"{digest(data).partition(':')[2]}  a\n".encode())

    url, revisions = tenant.serve("a", tagged(ONE, '"1"')), {"keep": 2}
    tenant.image("a", url, stores=[store], checksum={"url": sums(ONE)}, revisions=revisions, **REFRESH)
    first = tenant.ready("a")["artifact"]
    tenant.serve("a", tagged(TWO, '"2"'))
    tenant.annotate("a", REQUESTED_AT, "now")
    found = tenant.wait("a", lambda o: "ChecksumMismatch" in (condition(o, "Reconciling") or {}).get("message", ""))
    assert "the source is looked at again at 20" in condition(found, "Reconciling")["message"]
    assert holds(found, "Ready")
    assert condition(found, "SourceVerified")["reason"] == "ChecksumFileMatched"
    tenant.download(tenant.link("a"), body=ONE)
    sums(TWO)
    tenant.annotate("a", REQUESTED_AT, "again")
    second = tenant.ready("a", revision=2)["artifact"]
    assert second["verification"]["digest"] == digest(TWO)
    tenant.edit("a", revisions=revisions | {"pin": 1})
    assert tenant.ready("a", revision=1)["artifact"] == first
    assert digest(ONE) in condition(tenant.read("a"), "SourceVerified")["message"]


def test_a_failing_renewal_breaks_nothing(tenant: Tenant) -> None:
    """It is never given up: Reconciling with the reason and the next look, and a look that goes well ends it."""
    store = tenant.store()
    tenant.image("a", tenant.serve("a", tagged(ONE, '"1"')), stores=[store], **REFRESH)
    tenant.ready("a")
    tenant.serve("a", Reply(status=404))
    tenant.annotate("a", REQUESTED_AT, "now")
    found = tenant.wait("a", lambda o: holds(o, "Reconciling"))
    assert condition(found, "Reconciling")["reason"] == "ProgressingWithRetry"
    assert "SourceNotFound" in condition(found, "Reconciling")["message"]
    assert "the source is looked at again at 20" in condition(found, "Reconciling")["message"]
    assert holds(found, "Ready")
    assert holds(found, "Stored")
    assert not holds(found, "Stalled")
    assert not holds(found, "Outdated")
    tenant.download(tenant.link("a"), body=ONE)
    assert "404" in tenant.event("a", reason="SourceNotFound")
    tenant.serve("a", tagged(TWO, '"2"'))
    looked(tenant, "a", "again")
    assert tenant.ready("a", revision=2)["artifact"]["digest"] == digest(TWO)


def test_the_next_look_outlives_the_operator(tenant: Tenant) -> None:
    """A restart does not look at once, and does not move the time; a time that has come while it was away counts."""
    store = tenant.store()
    url = tenant.serve("a", tagged(ONE, '"1"'), Reply(status=304))
    tenant.image("a", url, stores=[store], **REFRESH)
    tenant.image("b", tenant.serve("b", tagged(TWO, '"2"'), Reply(status=304)), stores=[store], **REFRESH)
    planned = tenant.ready("a")["refresh"]["nextCheckTime"]
    tenant.ready("b")
    tenant.glimpse.kill("operator")
    at(tenant, "b", "2026-01-01T00:00:00Z")
    tenant.glimpse.launch("operator")
    tenant.glimpse.await_ready("operator")
    tenant.wait("b", lambda o: "lastCheckTime" in said(o).get("refresh", {}))
    tenant.works(store)
    after = said(tenant.read("a"))["refresh"]
    assert after == {"nextCheckTime": planned}
    assert len(tenant.web.asked("/a")) == 1
    assert len(tenant.web.asked("/b")) == 2
