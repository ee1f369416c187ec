"""Sources behind logins and proxies, as a tenant writes them: Secrets are used, waited for, and never shown."""

import json
import ssl
from collections.abc import Iterator, Mapping

import pytest
import trustme
from tests.operator.support import Tenant, content

from glimpse.testing.faults import Reply, Server
from glimpse.testing.proxies import Http

ONE = content(1)
LOGIN = ("sentinel-user", "sentinel-password")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Signs the certificates of the server and of its client."""
    return trustme.CA()


@pytest.fixture
def members(authority: trustme.CA) -> Iterator[Server]:
    """A server for those who have a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with Server(context) as server:
        server.serve("/a", Reply(ONE))
        yield server


def secret(tenant: Tenant, name: str, data: Mapping[str, str], **annotations: str) -> None:
    """Apply a Secret that is meant for sources."""
    meta = {"name": name, "namespace": tenant.namespace, "labels": {"glimpse.dev/use": "source"}}
    annotated = {f"glimpse.dev/{key}": value for key, value in annotations.items()}
    tenant.cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta | {"annotations": annotated}, "stringData": dict(data)}
    )


def bind(tenant: Tenant, authority: trustme.CA) -> None:
    """Let Glimpse read, and give it the authority."""
    tenant.cluster.kubectl(
        *("create", "rolebinding", "glimpse-secrets", "--clusterrole=glimpse-secrets"),
        *("--serviceaccount=glimpse-system:glimpse-operator", "-n", tenant.namespace),
    )
    meta = {"name": "ca", "namespace": tenant.namespace}
    data = {"ca.crt": authority.cert_pem.bytes().decode()}
    tenant.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})


def shown(tenant: Tenant, name: str) -> str:
    """All that we say of an Image: its status, its Events, and what the operator logs."""
    events = tenant.cluster.request("GET", f"/api/v1/namespaces/{tenant.namespace}/events")
    log = tenant.glimpse.processes["operator"].log.read_text()
    return json.dumps([tenant.read(name)["status"], events["items"]]) + log


def test_all_of_them_at_once(tenant: Tenant, members: Server, authority: trustme.CA) -> None:
    """A proxy that wants another login is told as such; with the right one each Secret reaches whom it is for."""
    bind(tenant, authority)
    robot = authority.issue_cert("robot@mirror.example")
    key = robot.private_key_pem.bytes().decode()
    secret(tenant, "tls", {"tls.crt": robot.cert_chain_pems[0].bytes().decode(), "tls.key": key}, hosts="127.0.0.1")
    secret(tenant, "headers", {"X-Token": "sentinel-header"})
    secret(tenant, "login", {"token": "sentinel-token"})
    store = tenant.store()
    with Http(login=LOGIN) as proxy:
        secret(tenant, "proxy", {"address": proxy.url, "username": LOGIN[0], "password": "sentinel-wrong"})
        refs = {"secretRef": "login", "headersSecretRef": "headers", "clientCertificateRef": "tls", "proxyRef": "proxy"}
        http: dict[str, object] = {ref: {"name": name} for ref, name in refs.items()}
        http |= {"urls": [members.url("/a?signature=sentinel")], "caBundleRef": {"configMap": "ca"}}
        tenant.specs["a"] = {"stores": [store], "transfer": {"connections": 2, "bandwidth": "100M", "retries": 1}}
        tenant.edit("a", source={"http": http})
        message = tenant.stalled("a", "SourceUnauthorized")
        assert message.startswith(members.url("/a: the proxy of proxyRef answered 407"))
        assert members.requests == []
        secret(tenant, "proxy", {"address": proxy.url, "username": LOGIN[0], "password": LOGIN[1]})
        tenant.ready("a")
    assert list(tenant.objects(store).values()) == [ONE]
    [request] = members.requests
    assert (request.headers["x-token"], request.headers["authorization"]) == (
        "sentinel-header",
        "Bearer sentinel-token",
    )
    assert set(proxy.asked) == {("127.0.0.1", members.port)}
    text = shown(tenant, "a")
    assert "the proxy of proxyRef answered 407" in text
    words = ["sentinel", str(proxy.port), *(line for line in key.splitlines() if "-----" not in line)]
    assert not [word for word in words if word in text]


def test_a_header_that_is_refused(tenant: Tenant, authority: trustme.CA) -> None:
    """A Secret whose content cannot be used is given up, and is another try when it has changed."""
    bind(tenant, authority)
    secret(tenant, "headers", {"Range": "bytes=0-1"})
    tenant.specs["a"] = {"stores": [tenant.store()]}
    url = tenant.serve("a", ONE)
    tenant.edit("a", source={"http": {"urls": [url], "headersSecretRef": {"name": "headers"}}})
    assert "'Range', a header that Glimpse sets itself" in tenant.stalled("a", "InvalidConfiguration")
    assert tenant.web.requests == []
    tenant.cluster.request("DELETE", f"/api/v1/namespaces/{tenant.namespace}/secrets/headers")
    secret(tenant, "headers", {"X-Token": "t"})
    tenant.ready("a")
    assert tenant.web.requests[0].headers["x-token"] == "t"


def test_an_image_may_be_less_patient(tenant: Tenant) -> None:
    """What `transfer` says holds for this Image, in place of what the installation says."""
    store = tenant.store()
    transfer = {"idleTimeout": "1s", "retries": 0}
    tenant.image("a", tenant.serve("a", Reply(ONE, stall=100_000)), stores=[store], transfer=transfer)
    assert "sent nothing for 1 s" in tenant.retried("a", "SourceUnavailable")


def test_ports_of_others(tenant: Tenant) -> None:
    """What is no port of web servers is refused by the operator's settings, and the message names them."""
    store = tenant.store()
    tenant.image("a", "http://127.0.0.1:25/a", stores=[store])
    assert "GLIMPSE_ADDRESSES__PORTS" in tenant.stalled("a", "SourceForbidden")
