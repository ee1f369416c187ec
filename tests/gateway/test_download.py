"""Downloads over HTTP: headers, ranges, preconditions, links of revisions and checksum files."""

import base64
import hashlib
import subprocess
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from servers.shelf import SINCE, Content, Shelf, ask

DATA = bytes(range(256)) * 8192 + b"the end"
SHA256 = hashlib.sha256(DATA).hexdigest()


def test_whole(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """GET gives the bytes with everything that a client wants to know, and HEAD the same without them."""
    image = shelf.image(namespace, DATA, store=shelf.store(), name="debian-12", disk_format="qcow2")
    got = ask(gateway + image.path, token=token)
    head = ask(gateway + image.path, token=token, method="HEAD")
    assert (got.status, got.body) == (200, DATA)
    assert (head.status, head.body) == (200, b"")
    for answer in (got, head):
        assert answer.headers["Content-Length"] == str(len(DATA))
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["ETag"] == f'"sha256:{SHA256}"'
        assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
        assert answer.headers["Last-Modified"] == format_datetime(SINCE, usegmt=True)
        assert answer.headers["Content-Disposition"] == 'attachment; filename="debian-12.qcow2"'
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "glimpse"
        assert answer.headers["Content-Encoding"] is None


def test_digests(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """The whole says the digest of its content as well, and the client chooses among those that are known."""
    store = shelf.store()
    image = shelf.image(namespace, DATA, store=store, digests=("sha256", "sha512", "md5"))
    one = shelf.image(namespace, DATA, store=store)
    sha256, sha512 = (
        f"sha-{bits}=:{base64.b64encode(hashlib.new(f'sha{bits}', DATA).digest()).decode()}:" for bits in (256, 512)
    )
    both = f"{sha256}, {sha512}"
    table = {
        None: (both, sha256),
        "sha-512=3": (sha512, sha256),
        "sha-256=1, sha-512=10": (sha512, sha256),
        "sha-256=10,\tsha-512=9;q": (sha256, sha256),
        "sha-256=0": (sha512, None),
        "sha-256=0, sha-512=0": (None, None),
        "md5=10, unixsum=3": (both, sha256),
        "md5=10, sha-256=1": (sha256, sha256),
        "sha-512=11": (both, sha256),
        "sha-512": (both, sha256),
        "SHA-512=1": (both, sha256),
        '"': (both, sha256),
    }
    for want, wanted in table.items():
        for path, value in zip((image.path, one.path), wanted, strict=True):
            headers = {"Want-Repr-Digest": want, "Want-Content-Digest": want} if want else {}
            got = ask(gateway + path, token=token, headers=headers)
            assert (got.headers["Repr-Digest"], got.headers["Content-Digest"]) == (value, value), want
    got = ask(gateway + image.path, token=token, headers={"Want-Content-Digest": "sha-512=1"})
    assert (got.headers["Repr-Digest"], got.headers["Content-Digest"]) == (both, sha512)


def test_digests_of_no_content(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A part and a HEAD carry other bytes than the whole, so they say the digest of the whole only, as such."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    whole = ask(gateway + image.path, token=token).headers["Repr-Digest"]
    for method, asked in (("HEAD", None), ("GET", "bytes=0-"), ("GET", "bytes=0-9"), ("GET", "bytes=0-9,4000-4009")):
        got = ask(gateway + image.path, token=token, method=method, headers={"Range": asked} if asked else {})
        assert (got.headers["Repr-Digest"], got.headers["Content-Digest"]) == (whole, None), asked


def test_never_encoded(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """No Content-Encoding, whatever the client would take: the digest speaks of the bytes as they are."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    got = ask(gateway + image.path, token=token, headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
    assert (got.body, got.headers["Content-Encoding"]) == (DATA, None)


@pytest.mark.parametrize(
    "case",
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes=5-{len(DATA) * 2}", 5, len(DATA)),
        (f"bytes=-{len(DATA) * 2}", 0, len(DATA)),
        ("Bytes=1-2", 1, 3),
        ("bytes=0-99999999999999999999999999", 0, len(DATA)),
    ],
)
def test_range(gateway: str, shelf: Shelf, namespace: str, token: str, case: tuple[str, int, int]) -> None:
    """A range is answered by 206 with just these bytes, and the digest of the whole."""
    asked, start, end = case
    image = shelf.image(namespace, DATA, store=shelf.store())
    got = ask(gateway + image.path, token=token, headers={"Range": asked})
    assert (got.status, got.body) == (206, DATA[start:end])
    assert got.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert got.headers["Content-Length"] == str(end - start)
    assert got.headers["ETag"] == f'"sha256:{SHA256}"'


def test_what_is_not_one_range(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Other units and nonsense give the whole; a range beyond the end 416; HEAD takes no range."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    for asked in ("lines=1-2", "bytes=9-2", "bytes=a-b", "bytes=-", "bytes=", "0-5", "bytes=1-2;"):
        got = ask(gateway + image.path, token=token, headers={"Range": asked})
        assert (got.status, got.body) == (200, DATA), asked
    for asked in (f"bytes={len(DATA)}-", "bytes=99999999999999999999999999-", "bytes=-0"):
        got = ask(gateway + image.path, token=token, headers={"Range": asked})
        assert got.status == 416, asked
        assert got.headers["Content-Range"] == f"bytes */{len(DATA)}"
        assert str(len(DATA)) in got.problem()["detail"]
    head = ask(gateway + image.path, token=token, method="HEAD", headers={"Range": "bytes=0-1"})
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))


def test_empty_image(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """No bytes are bytes too."""
    image = shelf.image(namespace, b"", store=shelf.store())
    got = ask(gateway + image.path, token=token)
    assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")
    assert ask(gateway + image.path, token=token, headers={"Range": "bytes=0-"}).status == 416


def test_preconditions(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """What the client has already is 304, what is not what he thinks 412, in the order of RFC 9110."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    etag = f'"sha256:{SHA256}"'
    before, at, after = (format_datetime(SINCE + timedelta(seconds=s), usegmt=True) for s in (-1, 0, 1))
    table = [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f"W/{etag}"}, 304),
        ({"If-None-Match": f'"a", {etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": at}, 200),
        ({"If-Modified-Since": at}, 304),
        ({"If-Modified-Since": after}, 304),
        ({"If-Modified-Since": before}, 200),
        ({"If-Modified-Since": "nonsense"}, 200),
        ({"If-Match": etag}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": f"W/{etag}"}, 412),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": '"other"', "If-None-Match": etag}, 412),
        ({"If-Match": etag, "If-Unmodified-Since": before}, 200),
        ({"If-Unmodified-Since": before}, 412),
        ({"If-Unmodified-Since": at}, 200),
        ({"If-None-Match": etag, "Range": "bytes=0-1"}, 304),
        ({"If-Match": '"other"', "Range": "bytes=0-1"}, 412),
        ({"If-Range": etag, "Range": "bytes=0-1"}, 206),
        ({"If-Range": f"W/{etag}", "Range": "bytes=0-1"}, 200),
        ({"If-Range": '"other"', "Range": "bytes=0-1"}, 200),
        ({"If-Range": at, "Range": "bytes=0-1"}, 206),
        ({"If-Range": after, "Range": "bytes=0-1"}, 200),
        ({"If-Range": before, "Range": "bytes=0-1"}, 200),
        ({"If-Range": '"other"', "Range": f"bytes={len(DATA)}-"}, 200),
    ]
    for headers, status in table:
        for method in ("GET", "HEAD"):
            wanted = 200 if method == "HEAD" and status == 206 else status
            got = ask(gateway + image.path, token=token, headers=headers, method=method)
            assert got.status == wanted, (method, headers)
            if wanted == 304:
                assert (got.body, got.headers["ETag"], got.headers["Cache-Control"]) == (b"", etag, "private, no-cache")
            if wanted == 412 and method == "GET":
                assert got.problem()["title"] == "Precondition Failed"


def test_two_revisions_of_one_second(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A date that two revisions share is no validator for a range: joining their parts would be wrong bytes."""
    store = shelf.store()
    image = shelf.image(namespace, [Content(b"first", [store]), Content(b"second", [store])])
    resumed = {"Range": "bytes=2-", "If-Range": format_datetime(SINCE, usegmt=True)}
    assert ask(gateway + image.path, token=token, headers=resumed).body == b"second"


def test_revisions(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A revision has a link of its own, for ever the same bytes; the plain link gives the served one."""
    store = shelf.store()
    revisions = [Content(text, [store]) for text in (b"one", b"two", b"three")]
    at = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    image = shelf.image(namespace, revisions, served=2, stored_at=at)
    assert ask(gateway + image.path, token=token).body == b"two"
    for number, revision in enumerate(revisions, 1):
        got = ask(gateway + image.revision(number), token=token)
        assert (got.status, got.body) == (200, revision.data)
        assert got.headers["Cache-Control"] == "private, max-age=86400, immutable"
        assert got.headers["Last-Modified"] == format_datetime(at[number - 1], usegmt=True)


def test_wrong_revision_links(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A revision that is not there, or of another object, is 404; a link without uid says what it lacks."""
    image = shelf.image(namespace, b"one", store=shelf.store())
    for path in (
        image.revision(2),
        image.revision(0),
        image.revision(1).replace(image.uid, "00000000-0000-0000-0000-000000000000"),
        f"{image.path}/revisions/x?uid={image.uid}",
        f"{image.path}/revisions/{'1' * 25}?uid={image.uid}",
    ):
        got = ask(gateway + path, token=token)
        assert (got.status, got.problem()["title"]) == (404, "Not Found"), path
    for path in (f"{image.path}/revisions/1", f"{image.path}/revisions/1?uid="):
        assert "uid" in ask(gateway + path, token=token).problem()["detail"]
        assert ask(gateway + path, token=token).status == 400


def test_created_again(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A deleted Image is 404, and one of the same name does not inherit its links."""
    store = shelf.store()
    first = shelf.image(namespace, b"first", store=store, name="again")
    assert ask(gateway + first.path, token=token).body == b"first"
    shelf.delete(first)
    second = shelf.image(namespace, b"second", store=store, name="again")
    # the store still has the bytes of the first, and they must not be given
    assert shelf.data(store, first.key()).exists()
    assert ask(gateway + second.revision(), token=token).body == b"second"
    assert ask(gateway + second.path, token=token).body == b"second"
    assert ask(gateway + first.revision(), token=token).status == 404


def test_seen_at_once(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """An image can be downloaded as soon as its status says so: the gateway's own watch may be a moment late."""
    store = shelf.store()
    shelf.image(namespace, b"0", store=store)
    for number in range(20):
        image = shelf.image(namespace, b"%d" % number, store=store)
        assert ask(gateway + image.path, token=token).body == b"%d" % number


def test_states(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Hidden images and those that are not Ready are served if there is a revision; without one they are 404."""
    store = shelf.store()
    hidden = shelf.image(namespace, b"hidden", store=store, spec={"hidden": True})
    failing = shelf.image(namespace, b"failing", store=store, ready=False)
    empty = shelf.image(namespace, [])
    assert ask(gateway + hidden.path, token=token).body == b"hidden"
    assert ask(gateway + failing.path, token=token).body == b"failing"
    assert ask(gateway + empty.path, token=token).status == 404


def test_checksum_files(gateway: str, shelf: Shelf, namespace: str, token: str, tmp_path: Path) -> None:
    """What `curl -O` saves of a link and of its checksum file satisfies `sha256sum -c` and its like."""
    algorithms = ("sha256", "sha512", "md5")
    image = shelf.image(namespace, DATA, store=shelf.store(), digests=algorithms)
    for link in (image.path, f"{image.path}/revisions/1"):
        file = link.rpartition("/")[2]
        urls = [f"{gateway}{link}{suffix}?uid={image.uid}" for suffix in ("", *(f".{a}" for a in algorithms))]
        curl = ["curl", "-sSf", "--oauth2-bearer", token, "--remote-name-all", *urls]
        subprocess.run(curl, check=True, timeout=30, cwd=tmp_path)
        for algorithm in algorithms:
            check = [f"{algorithm}sum", "-c", f"{file}.{algorithm}"]
            checked = subprocess.run(check, check=True, timeout=30, cwd=tmp_path, capture_output=True)
            assert checked.stdout == f"{file}: OK\n".encode()


def test_preconditions_of_a_checksum_file(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """It has a tag of its own, by which a cache may ask whether it has changed."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    at = format_datetime(SINCE, usegmt=True)
    for path in (f"{image.path}.sha256", image.revision(suffix=".sha256")):
        first = ask(gateway + path, token=token)
        etag = first.headers["ETag"]
        for headers, status in (
            ({"If-None-Match": etag}, 304),
            ({"If-None-Match": f'"sha256:{SHA256}"'}, 200),
            ({"If-Modified-Since": at}, 304),
            ({"If-Match": etag}, 200),
            ({"If-Match": f'"sha256:{SHA256}"'}, 412),
            ({"If-Match": etag, "If-None-Match": etag}, 304),
        ):
            for method in ("GET", "HEAD"):
                got = ask(gateway + path, token=token, headers=headers, method=method)
                assert got.status == status, (method, headers)
                if status == 304:
                    assert (got.body, got.headers["ETag"]) == (b"", etag)
                    assert got.headers["Cache-Control"] == first.headers["Cache-Control"]


def test_checksum_that_nobody_computed(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Only digests that were computed have a file; the refusal says which there are."""
    image = shelf.image(namespace, DATA, store=shelf.store(), digests=("sha256", "md5"))
    got = ask(f"{gateway}{image.path}.sha512", token=token)
    assert (got.status, got.problem()["detail"]) == (
        404,
        "The sha512 digest of this revision was not computed; there is: sha256, md5.",
    )
    head = ask(f"{gateway}{image.path}.md5", token=token, method="HEAD")
    assert (head.status, head.body, head.headers["Content-Type"]) == (200, b"", "text/plain; charset=utf-8")


def test_other_addresses_and_methods(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Everything else is refused as a problem, and no trick with a path leads out of the links."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
        got = ask(gateway + image.path, token=token, method=method)
        assert (got.status, got.headers["Allow"]) == (405, "GET,HEAD,PUT"), method
        assert got.problem()["title"] == "Method Not Allowed"
    for path in (
        "/",
        "/v1",
        image.path + "/",
        image.path + "/revisions",
        image.path.upper(),
        image.path + "%2e%2e",
        f"/v1/namespaces/{namespace}/images/../images/{image.name}",
        f"/v1/namespaces/{namespace}/images/%2e%2e%2f{image.name}",
        f"/v1/namespaces/{namespace}/images/..",
        f"/v1/namespaces/{namespace}/images/.sha256",
        f"/v1/namespaces/{namespace}/images/{image.name}%00",
        f"//v1/namespaces/{namespace}/images/{image.name}",
    ):
        got = ask(gateway + path, token=token)
        assert (got.status, got.problem()["status"]) == (404, 404), path
