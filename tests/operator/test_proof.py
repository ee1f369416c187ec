"""Checksum files and signatures on a real API server: what is proven stands in status, what is not is refused."""

import base64
import hashlib
import json
from typing import Any

import pytest
from tests.operator.support import Tenant, condition, content, digest, holds
from tests.signers import Signer

ONE, TWO = content(1), content(2)
SHA512 = hashlib.sha512(ONE).hexdigest()
SUMS = f"# of today\n{'0' * 128}  other.img\n{SHA512}  ./one.img\n".encode()
ANN, BEN = Signer(), Signer("Ben")


def keys(tenant: Tenant, signer: Signer) -> dict[str, Any]:
    """Apply the ConfigMap `keys` with this key, as bytes; how an Image names it."""
    meta = {"name": "keys", "namespace": tenant.namespace}
    binary = {"some.gpg": base64.b64encode(signer.binary).decode()}
    tenant.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "binaryData": binary})
    return {"keysRef": {"configMap": "keys"}}


@pytest.fixture
def store(tenant: Tenant) -> str:
    """Where the image goes, of a tenant who lets the operator read his ConfigMaps."""
    tenant.cluster.kubectl(
        *("create", "rolebinding", "glimpse-secrets", "--clusterrole=glimpse-secrets"),
        *("--serviceaccount=glimpse-system:glimpse-operator", "-n", tenant.namespace),
    )
    return tenant.store()


def test_a_signed_checksum_file(tenant: Tenant, store: str) -> None:
    """The image is Ready, and status says by which file and whose key its bytes were proven, as does its record."""
    signature = keys(tenant, ANN) | {"url": tenant.serve("SUMS.sign", ANN.detached(SUMS))}
    checksum = {"url": tenant.serve("SUMS", SUMS), "signature": signature}
    tenant.image("one", tenant.serve("one.img", ONE), stores=[store], checksum=checksum)
    status = tenant.ready("one")
    proof = {"digest": f"sha512:{SHA512}", "file": checksum["url"], "key": ANN.fingerprint}
    assert status["artifact"]["verification"] == proof
    # One that is always there, one that the file asks for, and one that the installation does.
    digests = {"sha256": digest(ONE).partition(":")[2], "sha512": SHA512, "md5": hashlib.md5(ONE).hexdigest()}  # noqa: S324 - users have such sums
    assert status["artifact"]["digests"] == digests
    found = condition(tenant.read("one"), "SourceVerified")
    assert (found["status"], found["reason"]) == ("True", "SignatureMatched")
    assert found["message"] == (
        f"the downloaded bytes have the digest sha512:{SHA512}, as {checksum['url']} says, "
        f"which is signed by the OpenPGP key {ANN.fingerprint}"
    )
    (record,) = (tenant.folder / store / "objects").glob("*/record.json")
    assert json.loads(record.read_text())["verification"] == proof
    tenant.download(tenant.link("one"), body=ONE)


def test_a_clear_signed_file_and_back(tenant: Tenant, store: str) -> None:
    """A signature that is asked for later is a new revision; one that fails leaves the proven one as it is."""
    url = tenant.serve("one.img", ONE)
    sums = tenant.serve("CHECKSUM", ANN.clear(SUMS))
    tenant.image("one", url, stores=[store], checksum={"url": sums})
    assert tenant.ready("one")["artifact"]["verification"] == {"digest": f"sha512:{SHA512}", "file": sums}
    assert condition(tenant.read("one"), "SourceVerified")["reason"] == "ChecksumFileMatched"
    tenant.edit("one", checksum={"url": sums, "signature": keys(tenant, ANN)})
    assert tenant.ready("one", revision=2)["artifact"]["verification"]["key"] == ANN.fingerprint
    tenant.serve("other", BEN.clear(SUMS))
    tenant.edit("one", checksum={"url": tenant.web.url("/other"), "signature": {"keysRef": {"configMap": "keys"}}})
    assert tenant.stalled("one", "SignatureInvalid").endswith(
        f"which is none of those in ConfigMap {tenant.namespace}/keys: {ANN.fingerprint}"
    )
    served = tenant.read("one")
    assert holds(served, "Ready")
    assert condition(served, "SourceVerified")["reason"] == "SignatureMatched"
    assert served["status"]["artifact"]["revision"] == 2


def test_a_signature_by_another_key(tenant: Tenant, store: str) -> None:
    """Nothing is stored; the key that is added to the ConfigMap mends it, without a touch of the Image."""
    signature = keys(tenant, BEN) | {"url": tenant.serve("SUMS.sign", ANN.detached(SUMS))}
    checksum = {"url": tenant.serve("SUMS", SUMS), "signature": signature}
    tenant.image("one", tenant.serve("one.img", ONE), stores=[store], checksum=checksum)
    message = tenant.stalled("one", "SignatureInvalid")
    assert f"none of those in ConfigMap {tenant.namespace}/keys: {BEN.fingerprint}" in message
    found = condition(tenant.read("one"), "SourceVerified")
    assert (found["status"], found["reason"], found["message"]) == ("False", "SignatureInvalid", message)
    assert tenant.objects(store) == {}
    assert not tenant.web.asked("/one.img")
    keys(tenant, ANN)
    assert tenant.ready("one")["artifact"]["verification"]["key"] == ANN.fingerprint


def test_a_file_without_a_line(tenant: Tenant, store: str) -> None:
    """The message has the name that was looked for; the right file mends it."""
    url = tenant.serve("two.img", TWO)
    tenant.image("two", url, stores=[store], checksum={"url": tenant.serve("SUMS", SUMS) + "?token=hidden"})
    message = tenant.stalled("two", "ChecksumUnavailable")
    assert message == f"{tenant.web.url('/SUMS')} has no line for 'two.img'"
    tenant.edit("two", checksum={"url": tenant.web.url("/none")})
    tenant.wait("two", lambda o: "404" in condition(o, "Stalled").get("message", ""))
    tenant.edit("two", checksum={"url": tenant.serve("SUMS2", f"{SHA512}  two.img\n".encode())})
    tenant.wait("two", lambda o: condition(o, "Stalled").get("reason") == "ChecksumMismatch")
    assert f"expected by {tenant.web.url('/SUMS2')} was sha512:{SHA512}" in tenant.stalled("two", "ChecksumMismatch")
    assert tenant.objects(store) == {}
    tenant.edit("two", checksum={"url": tenant.serve("SUMS3", hashlib.sha256(TWO).hexdigest().encode())})
    assert tenant.ready("two")["artifact"]["digest"] == digest(TWO)
