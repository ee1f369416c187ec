"""References of an Image, read with the operator's own rights from the real API server."""

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from glimpse.api.image import Image, ImageSpec
from glimpse.control.references import References
from glimpse.kube import Kube
from glimpse.problems import SecretNotReadable
from glimpse.settings import Settings
from glimpse.tasks import ChecksumFile, HttpOrigin
from servers.kube import NAMESPACE, Cluster

LABEL = {"glimpse.dev/use": "source"}
LOGIN = {"username": "me", "password": "s3cr3t"}
PEM = trustme.CA().cert_pem.bytes().decode()


@pytest.fixture
async def references(cluster: Cluster) -> AsyncIterator[References]:
    """As the operator has them: its ServiceAccount, its RBAC."""
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    yield References(kube, Settings())
    await kube.close()


@pytest.fixture
def bound(cluster: Cluster, namespace: str) -> str:
    """A namespace whose owner lets the operator read."""
    bind(cluster, namespace)
    return namespace


def bind(cluster: Cluster, namespace: str) -> None:
    """What the message of an unbound namespace tells its owner to do."""
    command = (
        "create rolebinding glimpse-secrets --clusterrole=glimpse-secrets "
        f"--serviceaccount={NAMESPACE}:glimpse-operator -n {namespace}"
    )
    cluster.kubectl(*command.split())


def secret(
    cluster: Cluster,
    namespace: str,
    data: Mapping[str, str],
    *,
    labels: Mapping[str, str] = LABEL,
    annotations: Mapping[str, str] | None = None,
    name: str = "s",
) -> None:
    """Make or change a Secret."""
    meta = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations or {}}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": dict(data)})


def configmap(cluster: Cluster, namespace: str, data: Mapping[str, str], name: str = "ca") -> None:
    """Make or change a ConfigMap."""
    meta = {"name": name, "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(data)})


def image(namespace: str, **http: Any) -> Image:
    """An Image with this web source."""
    source = {"http": {"urls": ["https://example.org/a"], **http}}
    return Image.model_validate({"metadata": {"name": "i", "namespace": namespace}, "spec": {"source": source}})


def with_secret(namespace: str) -> Image:
    """One that names the Secret `s`."""
    return image(namespace, secretRef={"name": "s"})


def with_ca(namespace: str, **ref: str) -> Image:
    """One that names authorities."""
    return image(namespace, caBundleRef=ref)


async def problem(references: References, image: Image) -> str:
    """The message that a user will read."""
    found = (await references.resolve(image)).origin
    assert isinstance(found, SecretNotReadable), found
    assert "s3cr3t" not in found.message
    return found.message


async def origin(references: References, image: Image) -> HttpOrigin:
    """What the worker gets."""
    found = (await references.resolve(image)).origin
    assert isinstance(found, HttpOrigin), found
    return found


async def test_no_reference_needs_no_right(references: References, namespace: str) -> None:
    """An Image without references reads nothing, and its version is empty."""
    found = await references.resolve(image(namespace, insecureSkipTLSVerify=True))
    assert isinstance(found.origin, HttpOrigin)
    assert (found.origin.urls, found.origin.insecure_skip_tls_verify, found.version) == (
        ("https://example.org/a",),
        True,
        "",
    )


@pytest.mark.parametrize("data", [LOGIN, {"token": "s3cr3t"}])
async def test_credentials(references: References, cluster: Cluster, bound: str, data: dict[str, str]) -> None:
    """Basic or Bearer, with the line break cut that an editor leaves; shown to nobody."""
    annotations = {"glimpse.dev/hosts": " Example.org, mirror.example.org:8443 ,"}
    secret(cluster, bound, {key: f"{value}\n" for key, value in data.items()}, annotations=annotations)
    found = await origin(references, with_secret(bound))
    assert {key: value.get_secret_value() for key, value in found.secret.items()} == data
    assert found.secret_hosts == ("example.org", "mirror.example.org:8443")
    assert "s3cr3t" not in repr(found)


async def test_a_namespace_that_is_not_bound(references: References, cluster: Cluster, namespace: str) -> None:
    """The message holds the command, and the command is what mends it."""
    secret(cluster, namespace, LOGIN)
    configmap(cluster, namespace, {"ca.crt": PEM})
    for asked in (with_secret(namespace), with_ca(namespace, configMap="ca")):
        message = await problem(references, asked)
        assert message.endswith(
            "kubectl create rolebinding glimpse-secrets --clusterrole=glimpse-secrets "
            f"--serviceaccount={NAMESPACE}:glimpse-operator -n {namespace}"
        )
    before = await references.version(with_secret(namespace))
    cluster.kubectl(*message.partition("kubectl ")[2].split())
    while await references.version(with_secret(namespace)) == before:
        pass  # RBAC reaches the authorizer a moment later
    assert (await origin(references, with_secret(namespace))).secret


async def test_a_secret_without_the_label(references: References, cluster: Cluster, bound: str) -> None:
    """A Secret that is not labelled is never used, bound or not; the command in the message mends it."""
    secret(cluster, bound, LOGIN, labels={"glimpse.dev/use": "other"})
    message = await problem(references, with_secret(bound))
    command = message.partition("kubectl ")[2].split()
    assert command == ["label", "secret", "s", "glimpse.dev/use=source", "-n", bound]
    cluster.kubectl(*command, "--overwrite")
    assert (await origin(references, with_secret(bound))).secret


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"username": "me"}, "key 'password'"),
        ({"password": "s3cr3t"}, "key 'username'"),
        ({"other": "s3cr3t"}, "needs the keys"),
        ({}, "needs the keys"),
        ({"token": "s3cr3t", "username": "me"}, "keep one"),
        ({"token": ""}, "empty"),
        ({"token": "s3cr3t\r\nX-Injected: 1"}, "cannot carry"),
        ({"username": "a:b", "password": "s3cr3t"}, "colon"),
    ],
)
async def test_a_secret_that_says_too_little(
    references: References, cluster: Cluster, bound: str, data: dict[str, str], word: str
) -> None:
    """What is missing or cannot be sent is named by its key, never by its value."""
    secret(cluster, bound, data)
    message = await problem(references, with_secret(bound))
    assert word in message
    assert f"{bound}/s" in message


async def test_what_is_missing_is_named(references: References, bound: str) -> None:
    """A reference to nothing names what it looked for."""
    assert f"Secret {bound}/s does not exist" in await problem(references, with_secret(bound))
    assert f"ConfigMap {bound}/ca does not exist" in await problem(references, with_ca(bound, configMap="ca"))


async def test_hosts_that_name_nobody(references: References, cluster: Cluster, bound: str) -> None:
    """An annotation that is there but empty allows nobody; it is not taken for its absence."""
    secret(cluster, bound, LOGIN, annotations={"glimpse.dev/hosts": " , "})
    assert "names no host" in await problem(references, with_secret(bound))


async def test_authorities(references: References, cluster: Cluster, bound: str) -> None:
    """Every key is PEM, and nothing but certificates goes on."""
    key = "-----BEGIN PRIVATE KEY-----\nczNjcjN0\n-----END PRIVATE KEY-----\n"
    configmap(cluster, bound, {"a.crt": f"# a comment\n{PEM}{key}", "b.crt": PEM + PEM})
    bundle = (await origin(references, with_ca(bound, configMap="ca"))).ca_bundle or ""
    assert bundle.count("BEGIN CERTIFICATE") == 3
    assert "PRIVATE" not in bundle
    assert "comment" not in bundle
    secret(cluster, bound, {"ca.crt": PEM}, name="ca")
    assert (await origin(references, with_ca(bound, secret="ca"))).ca_bundle


@pytest.mark.parametrize(
    "text", ["", "s3cr3t", PEM[:60], PEM.replace("CERTIFICATE", "PUBLIC KEY")], ids=["empty", "no-pem", "cut", "key"]
)
async def test_authorities_that_are_none(references: References, cluster: Cluster, bound: str, text: str) -> None:
    """A key that is not PEM is named."""
    configmap(cluster, bound, {"good.crt": PEM, "bad.crt": text})
    assert "key 'bad.crt'" in await problem(references, with_ca(bound, configMap="ca"))


async def test_authorities_in_a_secret_need_the_label(references: References, cluster: Cluster, bound: str) -> None:
    """Else the message of a failed parse could be used to look for Secrets."""
    secret(cluster, bound, {"ca.crt": PEM}, labels={}, name="ca")
    assert "not meant for sources" in await problem(references, with_ca(bound, secret="ca"))


def signed(namespace: str, **ref: str) -> Image:
    """One whose checksum file must be signed by keys that are named so."""
    signature = {"url": "https://example.org/SUMS.sign", "keysRef": ref}
    checksum = {"url": "https://example.org/SUMS", "signature": signature}
    plain = image(namespace)
    return plain.but(spec=ImageSpec.model_validate(plain.spec.dump() | {"checksum": checksum}))


async def test_keys(references: References, cluster: Cluster, bound: str) -> None:
    """Each entry goes on as it is, text or bytes, and the worker is told where they are from."""
    meta = {"name": "keys", "namespace": bound}
    binary = {"b.gpg": base64.b64encode(b"\x99\xff").decode()}
    held = {"data": {"a.asc": "text, grün"}, "binaryData": binary}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, **held})
    found = (await references.resolve(signed(bound, configMap="keys"))).checksum_file
    assert found
    assert found.url == "https://example.org/SUMS"
    assert found.signature
    assert found.signature.url == "https://example.org/SUMS.sign"
    assert found.signature.keys == {"a.asc": "text, grün".encode(), "b.gpg": b"\x99\xff"}
    assert found.signature.keys_from == f"ConfigMap {bound}/keys"
    secret(cluster, bound, {"a.asc": "text"}, name="keys")
    found = (await references.resolve(signed(bound, secret="keys"))).checksum_file
    assert found
    assert found.signature
    assert (found.signature.keys, found.signature.keys_from) == ({"a.asc": b"text"}, f"Secret {bound}/keys")


async def test_a_checksum_file_without_a_signature(references: References, namespace: str) -> None:
    """It needs no right to read anything."""
    plain = image(namespace)
    asked = plain.but(spec=ImageSpec.model_validate(plain.spec.dump() | {"checksum": {"url": "https://b.example/S"}}))
    found = await references.resolve(asked)
    assert found.checksum_file == ChecksumFile(url="https://b.example/S")
    assert found.version == ""
    assert (await references.resolve(plain)).checksum_file is None


async def test_keys_that_cannot_be_had(references: References, cluster: Cluster, namespace: str) -> None:
    """The same words as for any reference: not bound, missing, without the label, empty."""
    assert "create rolebinding" in await problem(references, signed(namespace, configMap="keys"))
    bind(cluster, namespace)
    while "create rolebinding" in (message := await problem(references, signed(namespace, configMap="keys"))):
        pass  # RBAC reaches the authorizer a moment later
    assert f"ConfigMap {namespace}/keys does not exist" in message
    configmap(cluster, namespace, {}, name="keys")
    assert f"ConfigMap {namespace}/keys holds no OpenPGP key" in await problem(
        references, signed(namespace, configMap="keys")
    )
    secret(cluster, namespace, {"a": "s3cr3t"}, labels={}, name="keys")
    assert "not meant for sources" in await problem(references, signed(namespace, secret="keys"))
    assert (await references.resolve(signed(namespace, secret="keys"))).checksum_file is None


async def test_the_version_follows_the_keys(references: References, cluster: Cluster, bound: str) -> None:
    """A key that comes later is noticed."""
    asked = signed(bound, configMap="keys")
    seen = [await references.version(asked)]
    for text in ("one", "two"):
        configmap(cluster, bound, {"a.asc": text}, name="keys")
        seen.append(await references.version(asked))
    assert len(set(seen)) == 3
    assert (await references.resolve(asked)).version == seen[-1]


OPTIONS = ("secretRef", "headersSecretRef", "clientCertificateRef", "proxyRef")
PAIR = {"tls.crt": "-----BEGIN CERTIFICATE-----", "tls.key": "-----BEGIN PRIVATE KEY-----\ns3cr3t"}
PROXY = {"address": "http://proxy.example:3128", "username": "me", "password": "s3cr3t"}
GOOD = {
    "secretRef": LOGIN,
    "headersSecretRef": {"X-Token": "s3cr3t", "Cookie": "a=b"},
    "clientCertificateRef": PAIR,
    "proxyRef": PROXY,
}


def revealed(found: Mapping[str, SecretStr]) -> dict[str, str]:
    """What the worker will see."""
    return {key: value.get_secret_value() for key, value in found.items()}


async def test_each_option_has_its_secret(references: References, cluster: Cluster, bound: str) -> None:
    """All keys of each, without the line breaks that editors leave, and with the hosts of each; shown to nobody."""
    for ref, data in GOOD.items():
        values = {key: f"{value}\n" for key, value in data.items()}
        annotations = {"glimpse.dev/hosts": f"{ref.lower()}.example"}
        secret(cluster, bound, values, name=ref.lower(), annotations=annotations)
    found = await origin(references, image(bound, **{ref: {"name": ref.lower()} for ref in OPTIONS}))
    held = (found.secret, found.headers, found.certificate, found.proxy)
    assert [revealed(values) for values in held] == [GOOD[ref] for ref in OPTIONS]
    hosts = (found.secret_hosts, found.headers_hosts, found.certificate_hosts, found.proxy_hosts)
    assert hosts == tuple((f"{ref.lower()}.example",) for ref in OPTIONS)
    assert "s3cr3t" not in repr(found)


async def test_an_open_proxy(references: References, cluster: Cluster, bound: str) -> None:
    """One that wants no login has no keys for it; half a login goes on, for the worker to refuse."""
    for data in ({"address": "socks5://p:1080"}, {"address": "socks5://p:1080", "username": "me"}):
        secret(cluster, bound, data)
        assert revealed((await origin(references, image(bound, proxyRef={"name": "s"}))).proxy) == data


@pytest.mark.parametrize(
    "case",
    [
        ("headersSecretRef", {}, "holds no header"),
        ("headersSecretRef", {"X-Token": ""}, "key 'X-Token'"),
        ("headersSecretRef", {"X-Token": "\n"}, "key 'X-Token'"),
        ("headersSecretRef", PROXY, "`address`, which is no header"),
        ("headersSecretRef", PAIR, "`tls.crt`, which is no header"),
        ("secretRef", PROXY, "is a proxy's"),
        ("clientCertificateRef", {"tls.crt": "x"}, "key 'tls.key'"),
        ("clientCertificateRef", {"tls.key": "s3cr3t"}, "key 'tls.crt'"),
        ("clientCertificateRef", {"tls.crt": "x", "tls.key": ""}, "key 'tls.key'"),
        ("clientCertificateRef", LOGIN, "key 'tls.crt'"),
        ("proxyRef", LOGIN, "key 'address'"),
        ("proxyRef", {"address": ""}, "key 'address'"),
        ("proxyRef", {**PROXY, "password": ""}, "key 'password'"),
    ],
)
async def test_a_secret_of_another_kind(
    references: References, cluster: Cluster, bound: str, case: tuple[str, dict[str, str], str]
) -> None:
    """What is missing is named, and a Secret for one use is not taken for another: its owner meant the one."""
    ref, data, word = case
    secret(cluster, bound, data)
    message = await problem(references, image(bound, **{ref: {"name": "s"}}))
    assert word in message
    assert f"{bound}/s" in message


@pytest.mark.parametrize("ref", OPTIONS)
async def test_every_secret_needs_its_owner(references: References, cluster: Cluster, bound: str, ref: str) -> None:
    """The label, and hosts that are hosts, whatever it is used for; and it is named when it is missing."""
    asked = image(bound, **{ref: {"name": "s"}})
    assert f"Secret {bound}/s does not exist" in await problem(references, asked)
    secret(cluster, bound, GOOD[ref], labels={})
    assert "not meant for sources" in await problem(references, asked)
    secret(cluster, bound, GOOD[ref], annotations={"glimpse.dev/hosts": ","})
    assert "names no host" in await problem(references, asked)


async def test_bytes_that_are_no_text(references: References, cluster: Cluster, bound: str) -> None:
    """A value that is no UTF-8 is named by its key."""
    meta = {"name": "s", "namespace": bound, "labels": LABEL}
    data = {"X-Token": base64.b64encode(b"\xff\xfes3cr3t").decode()}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    assert "key 'X-Token'" in await problem(references, image(bound, headersSecretRef={"name": "s"}))


@pytest.mark.parametrize("ref", OPTIONS)
async def test_the_version_follows_every_option(references: References, cluster: Cluster, bound: str, ref: str) -> None:
    """A changed Secret of any use is another try."""
    asked = image(bound, **{ref: {"name": "s"}})
    versions = [await references.version(asked)]
    for more in ("1", "2"):
        secret(cluster, bound, GOOD[ref] | {"other": more})
        versions.append(await references.version(asked))
    assert len(set(versions)) == 3


async def test_the_version_follows_each_reference(references: References, cluster: Cluster, bound: str) -> None:
    """The version changes when any referenced object appears, changes or goes, and only then."""
    asked = image(bound, secretRef={"name": "s"}, caBundleRef={"configMap": "ca"})
    seen = [await references.version(asked)]
    secret(cluster, bound, LOGIN)
    seen.append(await references.version(asked))
    configmap(cluster, bound, {"ca.crt": PEM})
    seen.append(await references.version(asked))
    secret(cluster, bound, LOGIN | {"password": "n3w"})
    seen.append(await references.version(asked))
    assert (await references.resolve(asked)).version == seen[-1] == await references.version(asked)
    cluster.request("DELETE", f"/api/v1/namespaces/{bound}/secrets/s")
    seen.append(await references.version(asked))
    secret(cluster, bound, LOGIN)
    seen.append(await references.version(asked))
    assert len(set(seen)) == len(seen)
    assert all(0 < len(version) <= 64 for version in seen)
