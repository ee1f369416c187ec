"""Uploads in parts by tus 1.0, through the whole installation: what each of its extensions promises."""

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from tests.gateway.test_meters import count
from tests.operator.support import Tenant, condition, content, digest, holds
from tests.operator.test_upload import begun, detail, repr_digest, send, uploads, waiting
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.tuses import PART, VERSION, Tus, checksum, metadata, workers

from servers import wait_until
from servers.shelf import Answer, Shelf, ask

DATA = content(5, 3_000_001)
GONE = (404, 410)


def served(tenant: Tenant, name: str, token: str, data: bytes) -> None:
    """The image has these bytes."""
    assert ask(tenant.link(name), token=token).body == data


def versions(answer: Answer) -> tuple[str | None, str | None]:
    """Which ones the gateway speaks, and speaks here."""
    return answer.headers["Tus-Version"], answer.headers["Tus-Resumable"]


def nothing_left(tenant: Tenant, store: str) -> None:
    """Nothing of any upload is in the store."""
    wait_until("an empty store", lambda: tenant.leftover(store) == [], timeout=60)
    assert tenant.objects(store) == {}


def test_what_the_gateway_can(tenant: Tenant, sender: str) -> None:
    """OPTIONS names version, extensions, the largest image and the checksums, to everybody."""
    link = tenant.link("none")
    for path in (f"{link}/uploads", f"{link}/uploads/none", f"{tenant.glimpse.installation.gateway_url}/v1/uploads"):
        answer = ask(path, method="OPTIONS")
        assert (answer.status, versions(answer)) == (204, ("1.0.0", "1.0.0"))
        assert answer.headers["Tus-Max-Size"] == str(32 << 20)
        assert {"creation", "checksum", "termination", "expiration"} <= set(answer.headers["Tus-Extension"].split(","))
        assert "sha1" in answer.headers["Tus-Checksum-Algorithm"].split(",")
    waiting(tenant, "a")
    for headers in ({}, {"Tus-Resumable": "0.2.2"}):
        answer = ask(f"{tenant.link('a')}/uploads", method="POST", token=sender, headers=headers)
        assert (answer.status, versions(answer)) == (412, ("1.0.0", "1.0.0"))


def test_in_parts(tenant: Tenant, sender: str) -> None:
    """The last part is answered when the image is ready; until then HEAD says how far it is, and afterwards too."""
    gateway = tenant.glimpse.installation.gateway_url
    received = count(gateway, "received_bytes_total")
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA), Upload_Metadata="filename ZGlzay5pbWc=,is_confidential")
    assert tus.offset() == 0
    tus.sent(0, DATA[:2_000_000], 300_000)
    found = tus.ask("HEAD")
    assert (found.status, found.headers["Upload-Offset"], found.headers["Upload-Length"]) == (
        200,
        "2000000",
        str(len(DATA)),
    )
    assert found.headers["Upload-Metadata"] == "filename ZGlzay5pbWc=,is_confidential"
    assert found.headers["Cache-Control"] == "no-store"
    assert parsedate_to_datetime(found.headers["Upload-Expires"]) > datetime.now(UTC)
    tenant.wait("a", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
    last = tus.patch(2_000_000, DATA[2_000_000:])
    assert (last.status, last.headers["Upload-Offset"], last.headers["ETag"]) == (
        204,
        str(len(DATA)),
        f'"{digest(DATA)}"',
    )
    assert count(gateway, "received_bytes_total") == received + len(DATA)
    assert holds(tenant.read("a"), "Ready")
    served(tenant, "a", sender, DATA)
    assert tus.offset() == len(DATA)
    assert tus.patch(len(DATA), b"").status == 204
    assert "complete" in detail(tus.ask("DELETE"))
    tenant.delete("a")
    wait_until("no uploads", lambda: uploads(tenant) == [], timeout=60)


def test_one_address_for_all_images(tenant: Tenant, sender: str) -> None:
    """Who knows but that address says in the metadata for which image it is; for the rest all is as elsewhere."""
    gateway = tenant.glimpse.installation.gateway_url
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender)

    def begin(said: str, token: str | None = sender) -> Answer:
        headers = VERSION | PART | {"Upload-Length": str(len(DATA)), "Upload-Metadata": said}
        return ask(f"{gateway}/v1/uploads", method="POST", token=token, body=DATA[:1000], headers=headers)

    for said in ("", "namespace dGVhbQ==", "namespace ,image YQ==", "filename YQ=="):
        answer = begin(said)
        assert (answer.status, "namespace and image" in detail(answer)) == (400, True)
    assert begin(metadata(tenant.namespace, "a"), token=None).status == 401
    for namespace, image in ((tenant.namespace, "b"), ("elsewhere", "a"), ("../x", "a"), (tenant.namespace, "a/b")):
        assert begin(metadata(namespace, image)).status == 404
    assert uploads(tenant) == []

    answer = begin(metadata(tenant.namespace, "a") + ",filename ZGlzaw==")
    assert (answer.status, answer.headers["Upload-Offset"]) == (201, "1000")
    tus.path = answer.headers["Location"]
    assert tus.path.startswith(f"{tus.start}/")
    tus.sent(1000, DATA[1000:])
    served(tenant, "a", sender, DATA)


def test_one_worker_takes_many_parts(tenant: Tenant, sender: str) -> None:
    """What has come is not read again for each: the worker waits for the next part."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:100])
    [worker] = workers(tenant)
    tus.sent(100, DATA[100:50_000], 2_000)
    assert workers(tenant) == [worker]
    tus.sent(50_000, DATA[50_000:])
    served(tenant, "a", sender, DATA)


def test_what_is_not_begun(tenant: Tenant, sender: str) -> None:
    """Each with its reason, and there is no upload then."""
    store = tenant.store(maxImageSize="1Mi", quota={"perNamespace": 900_000})
    waiting(tenant, "a", checksum={"digest": digest(DATA)})
    waiting(tenant, "small", store)
    tenant.image("web", tenant.serve("web", DATA), stores=[tenant.store()])
    cases: list[tuple[str, dict[str, str], int, str]] = [
        ("a", {"Upload_Length": ""}, 400, "Upload-Length"),
        ("a", {"Upload_Length": "-1"}, 400, "Upload-Length"),
        ("a", {"Upload_Length": "9" * 30}, 400, "Upload-Length"),
        ("a", {"Upload_Length": "0"}, 400, "no bytes"),
        ("a", {"Upload_Defer_Length": "1"}, 400, "cannot be said later"),
        ("a", {"Upload_Length": str(1 << 40)}, 413, "images up to"),
        ("a", {"Upload_Metadata": "filename not-base64!"}, 400, "Upload-Metadata"),
        ("a", {"Upload_Metadata": "a,a"}, 400, "each of them once"),
        ("a", {"Upload_Metadata": f"a {'QUFB' * 600}"}, 400, "characters"),
        ("a", {"Upload_Metadata": ",".join(f"k{n}" for n in range(33))}, 400, "keys"),
        ("a", {"Repr_Digest": repr_digest(b"other")}, 422, "spec.checksum.digest"),
        ("a", {"If_Match": '"sha256:1"'}, 412, "precondition"),
        ("web", {}, 409, "takes no uploads"),
        ("small", {"Upload_Length": str(2 << 20)}, 413, "maxImageSize"),
        ("small", {"Upload_Length": "950000"}, 413, "quota"),
    ]
    for name, headers, status, words in cases:
        answer = Tus(tenant, name, sender).create(len(DATA), headers)
        assert (answer.status, words in detail(answer)) == (status, True), (headers, answer.body)
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    wait_until("no uploads", lambda: uploads(tenant) == [], timeout=60)


def test_who_may(tenant: Tenant, sender: str) -> None:
    """As with PUT, at each request; and an upload is one of its image only."""
    waiting(tenant, "a")
    waiting(tenant, "b")
    stranger = Shelf(tenant.cluster, tenant.folder).grant(tenant.cluster.namespace(), "sender", verbs=("update",))
    for token, status in ((tenant.token, 403), (stranger, 404)):
        assert Tus(tenant, "a", token).create(len(DATA)).status == status
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    for method in ("HEAD", "PATCH", "DELETE"):
        assert tus.ask(method, token=tenant.token).status == 403
        assert tus.ask(method, token=stranger).status == 404
        assert ask(tus.url(), method=method, headers=VERSION).status == 401
    other = Tus(tenant, "b", sender, path=tus.path.replace("/images/a/", "/images/b/"))
    none = Tus(tenant, "a", sender, f"{tus.start}/none")
    for answer in (other.ask("HEAD"), other.ask("DELETE"), other.patch(0, b"x"), none.ask("HEAD")):
        assert answer.status == 404
    with begun(tenant, "b", sender, 10):
        tenant.wait("b", lambda o: condition(o, "Reconciling").get("reason") == "Uploading")
        [put] = [each for each in uploads(tenant) if each["spec"]["image"] == "b"]
        other.path = f"{other.start}/{put['metadata']['name']}"
        assert other.ask("DELETE").status == other.ask("HEAD").status == 404


def test_what_is_no_part(tenant: Tenant, sender: str) -> None:
    """Each is refused with its reason, and nothing of it has come."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:1000])
    good = checksum(b"x")
    cases: list[tuple[dict[str, str], int, str]] = [
        ({"Upload_Offset": "999"}, 409, "goes on at byte 1000"),
        ({"Upload_Offset": "1001"}, 409, "goes on at byte 1000"),
        ({"Upload_Offset": "x"}, 400, "Upload-Offset"),
        ({"Content_Type": "text/plain"}, 415, "application/offset+octet-stream"),
        ({"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
        ({"Upload_Checksum": "crc32 AAAA"}, 400, "sha1"),
        ({"Upload_Checksum": "sha1 AAAA"}, 400, "another length"),
        ({"Upload_Checksum": "sha1 \u00e9"}, 400, "another length"),
        ({"Upload_Checksum": good}, 460, "Upload-Checksum"),
        ({"Tus_Resumable": "2.0.0"}, 412, "1.0.0"),
    ]
    for headers, status, words in cases:
        answer = tus.patch(1000, b"bytes", **headers)
        assert (answer.status, words in detail(answer)) == (status, True), (headers, answer.body)
    assert tus.patch(1000, DATA).status == 413
    assert chunked(tus, 1000, DATA[1000:] + DATA) == 413
    at = tus.offset()
    assert 1000 <= at <= len(DATA)
    tus.sent(at, DATA[at:])
    served(tenant, "a", sender, DATA)
    assert tus.patch(len(DATA), b"x").status == 413, "also when it is complete"
    assert tus.patch(len(DATA), b"").status == 204


def chunked(tus: Tus, offset: int, data: bytes) -> int:
    """Send a part without its length, in pieces; the status."""
    parts = urlsplit(tus.url())
    headers = {"Authorization": f"Bearer {tus.token}", "Upload-Offset": str(offset), **VERSION, **PART}
    with closing(HTTPConnection(str(parts.hostname), parts.port, timeout=60)) as connection:
        pieces = [data[start : start + 50_000] for start in range(0, len(data), 50_000)]
        with suppress(OSError):  # an answer may come before the end
            connection.request("PATCH", parts.path, iter(pieces), headers)
        return connection.getresponse().status


def test_without_a_length(tenant: Tenant, sender: str) -> None:
    """A part may come in chunks, with a checksum too."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    assert chunked(tus, 0, DATA[:1_000_000]) == 204
    assert chunked(tus, 1_000_000, DATA[1_000_000:]) == 204
    served(tenant, "a", sender, DATA)


@pytest.mark.parametrize("more", [b"5\r\nbytes\r\n", None], ids=["more bytes", "no end"])
def test_the_end_of_the_last_part(tenant: Tenant, sender: str, more: bytes | None) -> None:
    """Where all bytes have come and their request ends badly, the image is made when the sender asks again."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    parts = urlsplit(tus.url())
    headers = {"Authorization": f"Bearer {tus.token}", "Upload-Offset": "0", **VERSION, **PART}
    with closing(HTTPConnection(str(parts.hostname), parts.port, timeout=60)) as connection:
        connection.putrequest("PATCH", parts.path)
        for name, value in (headers | {"Transfer-Encoding": "chunked"}).items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(b"%x\r\n%b\r\n" % (len(DATA) - 3, DATA[:-3]))
        wait_until("the bytes", lambda: tus.offset() == len(DATA) - 3, timeout=60)
        connection.send(b"3\r\n%b\r\n" % DATA[-3:])
        wait_until("the last ones", lambda: tus.ask("HEAD").status == 423, timeout=60)
        if more:
            connection.send(more)
            assert connection.getresponse().status == 413
    wait_until("the revision", lambda: tus.ask("HEAD").headers["ETag"] == f'"{digest(DATA)}"', timeout=60)
    served(tenant, "a", sender, DATA)


def test_checksums_of_parts(tenant: Tenant, sender: str) -> None:
    """Each algorithm that is named; a part is bounded, since it is kept back until it is known to be right."""
    waiting(tenant, "a")
    size = 17 << 20
    data = content(6, size)
    tus = Tus(tenant, "a", sender).begun(size)
    at = 0
    for algorithm in ("sha1", "sha256", "sha512", "md5"):
        part = data[at : at + 70_000]
        assert tus.patch(at, part[:-1] + b"?", Upload_Checksum=checksum(part, algorithm)).status == 460
        assert tus.patch(at, part, Upload_Checksum=checksum(part, algorithm)).status == 204
        at += len(part)
    rest = data[at:]
    answer = tus.patch(at, rest, Upload_Checksum=checksum(rest))
    assert (answer.status, "smaller ones" in detail(answer)) == (413, True)
    assert tus.patch(at, rest).status == 204
    served(tenant, "a", sender, data)


@pytest.mark.parametrize("whole", [True, False])
def test_creation_with_upload(tenant: Tenant, sender: str, whole: bool) -> None:
    """The first bytes may come with the wish; all of them make an image in one request."""
    waiting(tenant, "a")
    tus, first = Tus(tenant, "a", sender), DATA if whole else DATA[:1_000_000]
    answer = tus.create(len(DATA), first=first)
    assert (answer.status, answer.headers["Upload-Offset"]) == (201, str(len(first))), answer.body
    if not whole:
        tus.sent(len(first), DATA[len(first) :])
    served(tenant, "a", sender, DATA)


def test_termination(tenant: Tenant, sender: str) -> None:
    """What was sent goes from the stores, the upload is no more, and another one may begin."""
    store = tenant.store()
    waiting(tenant, "a", store)
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:2_500_000])
    other = send(tenant, "a", DATA, sender)
    assert (other.status, "Another upload" in detail(other)) == (409, True)
    assert tus.ask("DELETE").status == 204
    wait_until("the end", lambda: tus.ask("HEAD").status in GONE, timeout=60)
    assert tus.patch(0, b"x").status in GONE
    found = tenant.wait("a", lambda o: "came to nothing" in condition(o, "Ready").get("message", ""))
    assert "its sender has ended it" in condition(found, "Ready")["message"]
    nothing_left(tenant, store)
    assert send(tenant, "a", DATA, sender).status == 201


def test_expiration(tenant: Tenant, sender: str) -> None:
    """When nothing more comes it goes, from the stores too, and the image says so."""
    store = tenant.store()
    waiting(tenant, "a", store)
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:2_500_000])
    wait_until("nobody to have it in hand", lambda: "holder" not in tus.account(), timeout=60)
    path = f"{tenant.cluster.path(tenant.ref(tus.name, 'ImageUpload'))}/status"
    past = {"status": {"expiresAt": "2026-01-01T00:00:00Z"}}
    tenant.cluster.request("PATCH", path, past, content_type="application/merge-patch+json")
    tenant.wait("a", lambda o: "UploadExpired" in condition(o, "Ready").get("message", ""))
    assert tus.ask("HEAD").status in GONE
    nothing_left(tenant, store)


def test_what_is_no_image(tenant: Tenant, sender: str) -> None:
    """The last part is answered with the reason, the image says it too, and no byte stays."""
    store = tenant.store()
    waiting(tenant, "a", store, checksum={"digest": digest(b"other")})
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:1_000_000])
    answer = tus.patch(1_000_000, DATA[1_000_000:])
    assert (answer.status, detail(answer).partition(":")[0]) == (422, "ChecksumMismatch")
    tenant.wait("a", lambda o: "ChecksumMismatch" in condition(o, "Ready").get("message", ""))
    wait_until("the end", lambda: tus.ask("HEAD").status in GONE, timeout=60)
    nothing_left(tenant, store)


def test_what_the_sender_says_of_the_whole(tenant: Tenant, sender: str) -> None:
    """Repr-Digest at the beginning, compared at the end."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA), Repr_Digest=repr_digest(b"other"))
    assert detail(tus.patch(0, DATA)).startswith("ChecksumMismatch")
    tus = Tus(tenant, "a", sender).begun(len(DATA), Repr_Digest=repr_digest(DATA))
    tus.sent(0, DATA)
    assert condition(tenant.read("a"), "SourceVerified")["reason"] == "DigestMatched"


def test_clients_that_can_only_post(tenant: Tenant, sender: str) -> None:
    """A header names the method, as tus has it."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    headers = {"Upload_Offset": "0", "Content_Type": PART["Content-Type"]}
    assert tus.ask("POST", DATA[:10], X_HTTP_Method_Override="PATCH", **headers).status == 204
    assert tus.ask("POST", X_HTTP_Method_Override="TRACE").status == 405
    assert tus.ask("POST", X_HTTP_Method_Override="DELETE").status == 204


def test_one_request_at_a_time(tenant: Tenant, sender: str) -> None:
    """While a part comes, another one is told to wait, and what is asked for is how far it is."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    with tus.sending(0, len(DATA)) as connection:
        connection.send(DATA[:100_000])
        wait_until("the bytes", lambda: tus.offset() == 100_000, timeout=60)
        for answer in (tus.patch(100_000, b"x"), tus.ask("DELETE")):
            assert (answer.status, answer.headers["Retry-After"]) == (423, "1")
        connection.send(DATA[100_000:])
        assert connection.getresponse().status == 204
    served(tenant, "a", sender, DATA)


def test_a_part_that_breaks_off(tenant: Tenant, sender: str) -> None:
    """What has come of it stays, and it goes on there; of one with a checksum nothing stays."""
    waiting(tenant, "a")
    tus = Tus(tenant, "a", sender).begun(len(DATA))
    with tus.sending(0, len(DATA)) as connection:
        connection.send(DATA[:1_200_000])
        wait_until("the bytes", lambda: tus.offset() == 1_200_000, timeout=60)
    assert tus.offset() == 1_200_000
    tus.sent(1_200_000, DATA[1_200_000:])
    served(tenant, "a", sender, DATA)


def test_an_image_that_changes_meanwhile(tenant: Tenant, sender: str) -> None:
    """Suspended, deleted, or with another spec: the sender is told at once, also amid a part, and nothing is left."""
    store = tenant.store()
    changes: dict[str, Callable[[str, Tus], object]] = {
        "suspended": lambda name, _: tenant.edit(name, suspend=True),
        "edited": lambda name, _: tenant.edit(name, checksum={"digest": digest(b"x")}),
        "deleted": lambda name, _: tenant.delete(name),
        "ended": lambda _, tus: tenant.delete(tus.name, "ImageUpload"),
    }
    for name, change in changes.items():
        waiting(tenant, name, store)
        tus = Tus(tenant, name, sender).begun(len(DATA))
        tus.sent(0, DATA[:1_500_000])
        with tus.sending(1_500_000, len(DATA) - 1_500_000) as connection:
            connection.send(DATA[1_500_000:2_500_000])
            wait_until("the bytes", lambda tus=tus: tus.offset() == 2_500_000, timeout=60)  # type: ignore[misc]
            change(name, tus)
            refused(connection)
        wait_until("the end", lambda tus=tus: tus.ask("HEAD").status in GONE, timeout=60)  # type: ignore[misc]
        if name == "suspended":  # nothing is done until then
            tenant.edit(name, suspend=False)
        nothing_left(tenant, store)


def refused(connection: HTTPConnection) -> None:
    """The answer, before all was sent."""
    answer = connection.getresponse()
    assert answer.status in (404, 409), json.loads(answer.read())


def test_compressed(tenant: Tenant, sender: str) -> None:
    """What is unpacked on its way comes in parts too, as long as its worker lives."""
    waiting(tenant, "a")
    packed = gzip.compress(DATA, 1)
    tus = Tus(tenant, "a", sender).begun(len(packed))
    tus.sent(0, packed, 500_000)
    served(tenant, "a", sender, DATA)


def test_eight_at_once(tenant: Tenant, sender: str) -> None:
    """Each image gets the bytes of its own sender, part by part in turn with those of others."""
    store = tenant.store()
    names = [f"i{number}" for number in range(8)]
    for name in names:
        waiting(tenant, name, store)

    def upload(name: str) -> None:
        data = content(int(name[1:]), len(DATA))
        Tus(tenant, name, sender).begun(len(data)).sent(0, data, 400_000)
        served(tenant, name, sender, data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, names))
