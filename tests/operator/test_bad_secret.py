"""Secrets that cannot be used yet: the Image waits and says what is missing, and goes on once it is there.

Nobody touches the Image in between: what it refers to is looked at from time to time.
"""

import base64
from collections.abc import Mapping

import pytest
from tests.operator.support import Tenant, content

from glimpse.testing.faults import Reply

ONE = content(1)
GOOD = {"username": "ann", "password": "s3cret-word"}


def secret(tenant: Tenant, data: Mapping[str, str], *, labelled: bool = True) -> None:
    """Apply the Secret `login`."""
    meta = {"name": "login", "namespace": tenant.namespace, "labels": {"glimpse.dev/use": "source"} if labelled else {}}
    tenant.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": dict(data)})


def bind(tenant: Tenant) -> None:
    """Do what the condition's message tells the owner of the namespace to do."""
    tenant.cluster.kubectl(
        *("create", "rolebinding", "glimpse-secrets", "--clusterrole=glimpse-secrets"),
        *("--serviceaccount=glimpse-system:glimpse-operator", "-n", tenant.namespace),
    )


@pytest.fixture
def store(tenant: Tenant) -> str:
    """Where the image goes."""
    return tenant.store()


def asks(tenant: Tenant, store: str) -> str:
    """Apply an Image that names the Secret, and see it wait for it; the message."""
    http = {"urls": [tenant.serve("a", ONE)], "secretRef": {"name": "login"}}
    tenant.specs["a"] = {"stores": [store]}
    tenant.edit("a", source={"http": http})
    message = tenant.retried("a", "SecretNotReadable")
    assert tenant.web.requests == [], "without its Secret nothing is asked for"
    assert tenant.objects(store) == {}
    tenant.works(store)
    assert "login" in message
    return message


def mended(tenant: Tenant, store: str, header: str = "") -> None:
    """The Image becomes Ready by itself, the server got the credentials, and no word of them is shown."""
    status = tenant.ready("a")
    assert list(tenant.objects(store).values()) == [ONE]
    expected = header or "Basic " + base64.b64encode(b"ann:s3cret-word").decode()
    assert tenant.web.asked("/a")[0].headers["authorization"] == expected
    logs = tenant.glimpse.processes["operator"].log.read_text()
    for word in ("s3cret-word", expected.partition(" ")[2]):
        assert word not in str(status)
        assert word not in logs


def test_secret_missing(tenant: Tenant, store: str) -> None:
    """A Secret that is not there is waited for."""
    bind(tenant)
    assert "does not exist" in asks(tenant, store)
    secret(tenant, GOOD)
    mended(tenant, store)


def test_secret_missing_a_key(tenant: Tenant, store: str) -> None:
    """A Secret without the key that is needed is waited for."""
    bind(tenant)
    secret(tenant, {"username": "ann"})
    assert "'password'" in asks(tenant, store)
    secret(tenant, GOOD)
    mended(tenant, store)


def test_secret_not_labelled(tenant: Tenant, store: str) -> None:
    """A Secret without the label is not used: who may create Images could else send any Secret anywhere."""
    bind(tenant)
    secret(tenant, GOOD, labelled=False)
    assert "glimpse.dev/use=source" in asks(tenant, store)
    secret(tenant, GOOD)
    mended(tenant, store)


def test_secret_not_bound(tenant: Tenant, store: str) -> None:
    """A namespace whose owner has not bound the role is waited for, and the message holds the command."""
    secret(tenant, GOOD)
    message = asks(tenant, store)
    assert "kubectl create rolebinding glimpse-secrets --clusterrole=glimpse-secrets" in message
    bind(tenant)
    mended(tenant, store)


def test_a_token(tenant: Tenant, store: str) -> None:
    """A Secret with a token is sent as a Bearer's."""
    bind(tenant)
    secret(tenant, {"token": "s3cret-word"})
    tenant.specs["a"] = {"stores": [store]}
    tenant.edit("a", source={"http": {"urls": [tenant.serve("a", ONE)], "secretRef": {"name": "login"}}})
    mended(tenant, store, "Bearer s3cret-word")


def test_wrong_credentials_mend_with_the_secret(tenant: Tenant, store: str) -> None:
    """Refused credentials are given up; a changed Secret is another try, without a touch of the Image."""
    bind(tenant)
    secret(tenant, {"username": "ann", "password": "wrong"})
    tenant.specs["a"] = {"stores": [store]}
    url = tenant.serve("a", Reply(b"", 401))
    tenant.edit("a", source={"http": {"urls": [url], "secretRef": {"name": "login"}}})
    tenant.stalled("a", "SourceUnauthorized")
    tenant.serve("a", ONE)
    before = len(tenant.web.asked("/a"))
    secret(tenant, GOOD)
    tenant.ready("a")
    assert len(tenant.web.asked("/a")) == before + 1
