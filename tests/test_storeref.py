"""What an ImageStore refers to, read with the rights of those who open stores from the real API server."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import trustme

from glimpse.api.store import ImageStore
from glimpse.kube import Kube
from glimpse.problems import InvalidConfiguration, SecretNotReadable
from glimpse.storeref import describe, resolve
from glimpse.tasks import StoreRef
from servers.kube import NAMESPACE, Cluster

LABEL = {"glimpse.dev/use": "store"}
PEM = trustme.CA().cert_pem.bytes().decode()


@pytest.fixture(params=["glimpse-operator", "glimpse-gateway"])
async def kube(request: pytest.FixtureRequest, cluster: Cluster) -> AsyncIterator[Kube]:
    """As they have it: their ServiceAccounts, their RBAC."""
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, request.param))
    yield kube
    await kube.close()


def secret(cluster: Cluster, name: str, data: Mapping[str, str], labels: Mapping[str, str] = LABEL) -> None:
    """Make or change a Secret of the operator's namespace."""
    meta = {"name": name, "namespace": NAMESPACE, "labels": labels}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": dict(data)})


def store(**spec: Any) -> ImageStore:
    """An ImageStore with these fields."""
    spec = {"filesystem": {"path": "/a"}, **spec}
    return ImageStore.model_validate({"metadata": {"name": "fast", "uid": "1"}, "spec": spec})


async def resolved(kube: Kube, **spec: Any) -> StoreRef:
    """What a worker gets."""
    return await resolve(kube, NAMESPACE, store(**spec), "here")


async def test_a_secret_is_read_when_it_is_needed(kube: Kube, cluster: Cluster) -> None:
    """All its keys go to the driver, and an edit counts at the next use."""
    for value in ("s3cret-one", "s3cret-two\n"):
        secret(cluster, "store-keys", {"accessKey": "AK", "secretKey": value})
        ref = await resolved(kube, secretRef={"name": "store-keys"})
        found = {key: held.get_secret_value() for key, held in ref.secret.items()}
        assert found == {"accessKey": "AK", "secretKey": value.strip()}
        assert value.strip() not in repr(ref)


@pytest.mark.parametrize("kind", ["configMap", "secret"])
async def test_authorities_are_read(kube: Kube, cluster: Cluster, kind: str) -> None:
    """From either kind, and nothing but certificates goes on."""
    if kind == "secret":
        secret(cluster, "store-ca", {"ca.crt": f"chatter\n{PEM}"})
    else:
        meta = {"name": "store-ca", "namespace": NAMESPACE}
        data = {"ca.crt": f"chatter\n{PEM}"}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    ref = await resolved(kube, caBundleRef={kind: "store-ca"})
    assert ref.ca_bundle
    assert "chatter" not in ref.ca_bundle
    assert ref.ca_bundle.count("BEGIN CERTIFICATE") == 1


async def test_nothing_is_read_without_a_reference() -> None:
    """Then no request is made: no connection is needed."""
    nobody = Kube.__new__(Kube)
    assert await resolve(nobody, NAMESPACE, store(), "here") == describe(store(), "here")


async def test_what_cannot_be_read_is_named(kube: Kube, cluster: Cluster) -> None:
    """With the way out."""
    with pytest.raises(SecretNotReadable, match=f"Secret {NAMESPACE}/absent does not exist; create it"):
        await resolved(kube, secretRef={"name": "absent"})
    with pytest.raises(SecretNotReadable, match=f"ConfigMap {NAMESPACE}/absent does not exist"):
        await resolved(kube, caBundleRef={"configMap": "absent"})
    secret(cluster, "store-unlabelled", {"key": "s3cr3t"}, labels={"glimpse.dev/use": "source"})
    with pytest.raises(SecretNotReadable, match="is not meant for stores") as raised:
        await resolved(kube, secretRef={"name": "store-unlabelled"})
    assert f"kubectl label secret store-unlabelled glimpse.dev/use=store -n {NAMESPACE}" in raised.value.message
    assert "s3cr3t" not in raised.value.message
    secret(cluster, "store-no-ca", {"ca.crt": "none"})
    with pytest.raises(SecretNotReadable, match="is not a certificate in PEM"):
        await resolved(kube, caBundleRef={"secret": "store-no-ca"})
    with pytest.raises(SecretNotReadable, match="may not read"):
        await resolve(kube, "kube-system", store(secretRef={"name": "any"}), "here")


def test_a_store_has_one_driver() -> None:
    """What the API server would refuse is refused here too."""
    with pytest.raises(InvalidConfiguration, match="exactly one driver"):
        describe(store(s3={}), "here")


@pytest.mark.parametrize("kind", ["configMap", "secret"])
async def test_a_configuration_is_read(kube: Kube, cluster: Cluster, kind: str) -> None:
    """What a driver's `configRef` names goes to it beside the Secret, under names that no key of a Secret can have."""
    secret(cluster, "store-ceph-keys", {"userKey": "k"})
    data = {"ceph.conf": "[global]\nmon host = 10.0.0.1\n"}
    if kind == "secret":
        secret(cluster, "store-conf", data)
    else:
        meta = {"name": "store-conf", "namespace": NAMESPACE}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
    rbd = {"pool": "images", "configRef": {kind: "store-conf"}}
    made = ImageStore.model_validate(
        {"metadata": {"name": "ceph", "uid": "1"}, "spec": {"rbd": rbd, "secretRef": {"name": "store-ceph-keys"}}}
    )
    ref = await resolve(kube, NAMESPACE, made, "here")
    found = {key: held.get_secret_value() for key, held in ref.secret.items()}
    assert found == {"userKey": "k", "configRef/ceph.conf": data["ceph.conf"]}
    secret(cluster, "store-other", data, labels={})
    for named, message in (
        ({"secret": "store-other"}, "is not meant for stores"),
        ({"configMap": "gone"}, "not exist"),
    ):
        other = made.spec.model_copy(update={"rbd": {"pool": "images", "configRef": named}})
        with pytest.raises(SecretNotReadable, match=message):
            await resolve(kube, NAMESPACE, made.but(spec=other), "here")
