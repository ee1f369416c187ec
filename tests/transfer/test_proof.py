"""A fetch whose digest stands in a checksum file: what is proven, who is asked, and what is in the way."""

import base64
import hashlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from tests.signers import Signer

from glimpse.streams import CHUNK
from glimpse.tasks import ChecksumFile, HttpOrigin, Signature, Verification
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.workbench import IMPATIENT, KEY, PATIENT, Told, Workbench

DATA = noise(CHUNK + 17)
SHA256, SHA512, MD5 = (hashlib.new(name, DATA).hexdigest() for name in ("sha256", "sha512", "md5"))
SUMS = f"{'0' * 64}  other.img\n{SHA256}  debian.img\n".encode()
ANN, BEN = Signer(), Signer("Ben")


def signature(url: str | None = None, *keys: bytes) -> Signature:
    """Who must have signed: Ann, if nobody else is named."""
    entries = {f"{number}.asc": base64.b64encode(key) for number, key in enumerate(keys or (ANN.armoured,))}
    return Signature(url=url, keys=entries, keys_from="ConfigMap team-a/keys")


@pytest.fixture
def other() -> Iterator[Server]:
    """A second web server: another origin, since its port is another."""
    with faults.Server() as server:
        yield server


class Publisher:
    """An image with a checksum file beside it."""

    def __init__(self, bench: Workbench, web: Server) -> None:
        self.bench, self.web = bench, web
        web.serve("/images/debian.img", Reply(DATA))
        web.serve("/SUMS", Reply(SUMS))
        web.serve("/SUMS.sign", Reply(ANN.detached(SUMS)))

    def fetch(self, sums: str = "/SUMS?token=hidden", signed: Signature | None = None, **more: Any) -> Told:
        """Fetch it, with the digest that stands there."""
        file = ChecksumFile(url=self.web.url(sums), signature=signed)
        urls = more.pop("urls", (self.web.url("/images/debian.img?token=hidden"),))
        return self.bench.fetch(urls, (self.bench.store("a"),), checksum_file=file, **more)

    def fails(self, reason: str, message: str, signed: Signature | None = None, **more: Any) -> str:
        """It ends with this reason; no byte of the image was asked for, and none is stored."""
        told = self.fetch(signed=signed, **more)
        assert told.reason == reason
        assert re.search(message, told.message), told.message
        assert "hidden" not in told.message
        assert not self.web.asked("/images/debian.img"), "what cannot be proven is not downloaded"
        assert self.bench.left() == []
        return told.message


@pytest.fixture
def publisher(bench: Workbench, web: Server) -> Publisher:
    """All is well with it."""
    return Publisher(bench, web)


# What is proven


def test_a_checksum_file(publisher: Publisher) -> None:
    """The record says which digest and which file; the file is asked for once."""
    told = publisher.fetch()
    name = publisher.web.url("/SUMS")
    assert told.record.verification == Verification(digest=f"sha256:{SHA256}", file=name)
    assert told.record.digests == {"sha256": SHA256}
    assert publisher.bench.data("a", KEY) == DATA
    assert publisher.bench.opened("a").stat(KEY).record == told.record
    assert len(publisher.web.asked("/SUMS")) == 1


def test_a_given_digest(publisher: Publisher) -> None:
    """It is a proof too, and no file is looked at."""
    told = publisher.fetch(checksum=f"md5:{MD5}")
    assert told.record.verification == Verification(digest=f"md5:{MD5}")
    assert not publisher.web.asked("/SUMS")


def test_nothing_to_prove(publisher: Publisher) -> None:
    """Without a checksum nothing is claimed."""
    told = publisher.bench.fetch(publisher.web.url("/images/debian.img"), (publisher.bench.store("a"),))
    assert told.record.verification is None


@pytest.mark.parametrize("armour", [True, False])
def test_a_detached_signature(publisher: Publisher, *, armour: bool) -> None:
    """The record says whose it is."""
    publisher.web.serve("/SUMS.sign", Reply(ANN.detached(SUMS, armour=armour)))
    told = publisher.fetch(signed=signature(publisher.web.url("/SUMS.sign"), BEN.binary, ANN.binary))
    file = publisher.web.url("/SUMS")
    assert told.record.verification == Verification(digest=f"sha256:{SHA256}", file=file, key=ANN.fingerprint)


def test_a_clear_signed_file(publisher: Publisher) -> None:
    """Only what is signed counts: better lines around it are not seen."""
    forged = b"%s  debian.img\n" % (b"0" * 128)
    publisher.web.serve("/SUMS", Reply(forged + ANN.clear(SUMS) + forged))
    told = publisher.fetch(signed=signature())
    assert told.record.verification
    assert (told.record.verification.digest, told.record.verification.key) == (f"sha256:{SHA256}", ANN.fingerprint)


def test_a_mirror_that_has_other_bytes(publisher: Publisher) -> None:
    """The file is asked for once for all mirrors, and the one that fits is taken."""
    publisher.web.serve("/1/debian.img", Reply(noise(len(DATA), seed=1)))
    publisher.web.serve("/2/debian.img", Reply(status=503))
    urls = tuple(publisher.web.url(path) for path in ("/1/debian.img", "/2/debian.img", "/images/debian.img"))
    assert publisher.fetch(urls=urls).record.source_url == urls[-1]
    assert len(publisher.web.asked("/SUMS")) == 1


def test_bytes_that_differ(publisher: Publisher) -> None:
    """The message says which file expected what; nothing is stored."""
    publisher.web.serve("/SUMS", Reply(b"%s  debian.img\n" % (b"0" * 128)))
    told = publisher.fetch()
    assert told.reason == "ChecksumMismatch"
    image, name = publisher.web.url("/images/debian.img"), publisher.web.url("/SUMS")
    assert told.message == f"{image}: the bytes have sha512:{SHA512}, expected by {name} was sha512:{'0' * 128}"
    assert publisher.bench.left() == []


def test_a_copy_asks_nobody(publisher: Publisher) -> None:
    """A store that has the bytes feeds another, and the proof goes along, though the publisher is gone by now."""
    first = publisher.fetch()
    publisher.web.serve("/SUMS", Reply(status=404))
    stores = (publisher.bench.store("a"), publisher.bench.store("b"))
    file = ChecksumFile(url=publisher.web.url("/SUMS"))
    told = publisher.bench.fetch(publisher.web.url("/images/debian.img"), stores, checksum_file=file)
    assert told.stored == {"a", "b"}
    assert publisher.bench.opened("b").stat(KEY).record == first.record
    assert len(publisher.web.asked("/SUMS")) == 1


def test_the_name_of_a_file_has_an_end(publisher: Publisher) -> None:
    """What a record and a status can hold is bounded."""
    path = "/" + "s" * 900
    publisher.web.serve(path, Reply(SUMS))
    record = publisher.fetch(path).record
    assert record.verification
    assert record.verification.file
    assert len(record.verification.file) == 512
    assert record.verification.file.endswith("s…")
    assert publisher.bench.opened("a").stat(KEY).record == record


@pytest.mark.parametrize(
    ("digests", "checksum", "expected"),
    [
        ((), None, {"sha256"}),
        (("sha256",), None, {"sha256"}),
        (("md5", "sha512"), None, {"sha256", "md5", "sha512"}),
        (("md5",), f"md5:{MD5}", {"sha256", "md5"}),
        (("md5",), f"sha256:{SHA256}", {"sha256", "md5"}),
    ],
)
def test_more_digests(
    bench: Workbench, web: Server, digests: tuple[str, ...], checksum: str | None, expected: set[str]
) -> None:
    """Those that the installation asks for are computed besides, each once, and no others."""
    web.serve("/a", Reply(DATA))
    told = bench.fetch(web.url("/a"), (bench.store("a"),), digests=digests, checksum=checksum)
    assert told.record.digests == {name: hashlib.new(name, DATA).hexdigest() for name in expected}
    assert told.record.digest == f"sha256:{SHA256}"
    wrong = {"checksum": f"md5:{'0' * 32}", "record": bench.record(2), "digests": digests}
    assert bench.fetch(web.url("/a"), (bench.store("a"),), **wrong).reason == "ChecksumMismatch"


# What is in the way


BAD: dict[str, tuple[Reply, str, str]] = {
    "absent": (Reply(status=404), "ChecksumUnavailable", "/SUMS: .* 404.*; it should have a line for 'debian.img'"),
    "gone": (Reply(status=410), "ChecksumUnavailable", "'debian.img'"),
    "no line": (Reply(b"x  y\n"), "ChecksumUnavailable", "/SUMS has no line for 'debian.img'"),
    "contradicts itself": (
        Reply(SUMS + b"%s  debian.img\n" % (b"0" * 64)),
        "ChecksumUnavailable",
        "/SUMS has lines for 'debian.img' that contradict",
    ),
    "too large": (Reply(SUMS * 9000), "ChecksumUnavailable", "/SUMS is larger than 1 MiB"),
    "too large, in chunks": (Reply(SUMS * 9000, chunked=CHUNK), "ChecksumUnavailable", "larger than 1 MiB"),
    "binary": (Reply(bytes(1000)), "ChecksumUnavailable", "/SUMS is not text"),
    "for others": (Reply(status=401), "SourceUnauthorized", "/SUMS: .* 401.*secretRef"),
    "refused": (Reply(status=451), "SourceRefused", "/SUMS: .* 451"),
    "a redirect inside": (Reply.redirect("http://10.0.0.1/"), "SourceForbidden", "GLIMPSE_ADDRESSES__ALLOW"),
    "a circle": (Reply.redirect("/SUMS?token=hidden"), "SourceRefused", "circle"),
    "busy": (Reply(status=503, headers={"Retry-After": "7"}), "SourceUnavailable", "/SUMS: .* 503"),
    "cut": (Reply(SUMS, cut=10), "SourceUnavailable", "/SUMS: .* early"),
    "silent": (Reply(SUMS, stall=10), "SourceUnavailable", "/SUMS: .* sent nothing"),
    "compressed on the way": (Reply(SUMS, headers={"Content-Encoding": "gzip"}), "SourceRefused", "compresses"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checksum_file(publisher: Publisher, name: str) -> None:
    """Each ends with its reason before the image is asked for."""
    reply, reason, message = BAD[name]
    publisher.web.serve("/SUMS", reply)
    publisher.fails(reason, message, transfers=IMPATIENT if name == "silent" else PATIENT)


def test_a_file_of_just_the_largest_size(publisher: Publisher) -> None:
    """A MiB is taken, a byte more is not."""
    full = SUMS + b"#" * ((1 << 20) - len(SUMS))
    publisher.web.serve("/SUMS", Reply(full + b"#", chunked=1 << 16))
    publisher.fails("ChecksumUnavailable", "larger than 1 MiB")
    for revision, reply in enumerate((Reply(full), Reply(full, chunked=1 << 16))):
        publisher.web.serve("/SUMS", reply)
        assert publisher.fetch(record=publisher.bench.record(revision)).record.verification


SIGNATURES: dict[str, tuple[Reply, str, str]] = {
    "absent": (Reply(status=404), "SignatureInvalid", "/SUMS.sign: .* 404.*; it should be the signature of .*/SUMS$"),
    "of another file": (Reply(ANN.detached(b"x")), "SignatureInvalid", "/SUMS.sign by key .* does not fit the file"),
    "of somebody else": (Reply(BEN.detached(SUMS)), "SignatureInvalid", "is none of those in ConfigMap team-a/keys"),
    "a page": (Reply(b"<html>hidden</html>"), "SignatureInvalid", "/SUMS.sign is no OpenPGP signature"),
    "too large": (Reply(ANN.detached(SUMS) * 6000), "SignatureInvalid", "/SUMS.sign is larger than 1 MiB"),
    "busy": (Reply(status=503), "SourceUnavailable", "/SUMS.sign: .* 503"),
    "for others": (Reply(status=403), "SourceUnauthorized", "/SUMS.sign: .* 403"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_bad_signature(publisher: Publisher, name: str) -> None:
    """Each ends with its reason, although the checksum file alone would do."""
    reply, reason, message = SIGNATURES[name]
    publisher.web.serve("/SUMS.sign", reply)
    publisher.fails(reason, message, signature(publisher.web.url("/SUMS.sign")))


def test_a_changed_checksum_file(publisher: Publisher) -> None:
    """The signature is good, but of what was there before."""
    publisher.web.serve("/SUMS", Reply(SUMS.replace(b"0" * 64, b"1" * 64)))
    publisher.fails("SignatureInvalid", "does not fit the file", signature(publisher.web.url("/SUMS.sign")))


def test_a_file_that_is_not_clear_signed(publisher: Publisher) -> None:
    """Without `signature.url` the signature must be in the file: the message says what to do."""
    publisher.fails("SignatureInvalid", "/SUMS is not clear-signed: .* signature.url", signature())


def test_a_clear_signed_file_by_somebody_else(publisher: Publisher) -> None:
    """The same rules as for a signature beside the file; a signed file without the line is no proof either."""
    publisher.web.serve("/SUMS", Reply(BEN.clear(SUMS)))
    publisher.fails("SignatureInvalid", "the signature in .*/SUMS is by key", signature())
    publisher.web.serve("/SUMS", Reply(ANN.clear(b"x  y\n") + SUMS))
    publisher.fails("ChecksumUnavailable", "/SUMS has no line for 'debian.img'", signature())


def test_keys_that_cannot_be_read(publisher: Publisher) -> None:
    """Nobody is asked before the keys are there."""
    publisher.fails("SignatureInvalid", "^entry '0.asc' of ConfigMap team-a/keys", signature(None, b"hidden"))
    assert publisher.web.requests == []


def test_an_address_that_is_denied(publisher: Publisher) -> None:
    """Checksum file and signature are no way round the address policy."""
    inside = ChecksumFile(url="http://169.254.169.254/latest/meta-data/")
    stores = (publisher.bench.store("a"),)
    told = publisher.bench.fetch(publisher.web.url("/images/debian.img"), stores, checksum_file=inside)
    assert told.reason == "SourceForbidden"
    publisher.fails("SourceForbidden", "where images may not come from", signature("http://10.1.2.3/SUMS.sign"))


def test_a_cancelled_fetch(publisher: Publisher) -> None:
    """A checksum server that is silent does not hold up anybody who waits for the end."""
    publisher.web.serve("/SUMS", Reply(SUMS, stall=10))

    def cancel() -> None:
        publisher.web.wait_for("/SUMS", sent=10)
        publisher.bench.cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    publisher.fails("WorkerLost", "", transfers=PATIENT.model_copy(update={"idle_timeout": 3600.0}))
    thread.join()


# Credentials


def login(*urls: str, **more: Any) -> HttpOrigin:
    """An origin with a token."""
    return HttpOrigin(urls=urls, secret={"token": SecretStr("t0ken")}, **more)


def test_credentials_go_to_the_images_own_servers(publisher: Publisher, other: Server) -> None:
    """Checksum file and signature get them there, and on no other server."""
    other.serve("/SUMS.sign", Reply(ANN.detached(SUMS)))
    origin = login(publisher.web.url("/images/debian.img"))
    publisher.fetch(signed=signature(other.url("/SUMS.sign")), origin=origin)
    assert [request.headers.get("authorization") for request in publisher.web.requests] == ["Bearer t0ken"] * 2
    assert "authorization" not in other.requests[0].headers
    named = login(publisher.web.url("/images/debian.img"), other.url("/images/debian.img"))
    publisher.fetch(signed=signature(other.url("/SUMS.sign")), origin=named, record=publisher.bench.record(2))
    assert other.requests[1].headers["authorization"] == "Bearer t0ken"


def test_credentials_do_not_follow_a_redirect(publisher: Publisher, other: Server) -> None:
    """To another server the file may move, the token may not; nor where the Secret's owner has not allowed it."""
    other.serve("/SUMS", Reply(SUMS))
    publisher.web.serve("/SUMS", Reply.redirect(other.url("/SUMS")))
    url = publisher.web.url("/images/debian.img")
    assert publisher.fetch(origin=login(url)).record.verification
    assert publisher.web.asked("/SUMS")[0].headers["authorization"] == "Bearer t0ken"
    assert "authorization" not in other.requests[0].headers
    publisher.fetch(origin=login(url, secret_hosts=("elsewhere.example",)), record=publisher.bench.record(2))
    assert "authorization" not in publisher.web.asked("/SUMS")[1].headers
