"""The real API server that all other tests lean on."""

import pytest

from servers import ServerError
from servers.kube import NAMESPACE, ApiError, Cluster, Kube


def test_a_namespace_is_new_each_time(cluster: Cluster, namespace: str) -> None:
    """Two tests never share a namespace, and each can create objects in its own at once."""
    other = cluster.namespace()
    assert other != namespace
    cluster.apply(_configmap(namespace), _configmap(other))
    assert cluster.read(_configmap(other))["data"] == {"key": "value"}


def test_a_serviceaccount_has_only_what_rbac_grants(cluster: Cluster, namespace: str) -> None:
    """A kubeconfig for an account that nobody bound to a role may do nothing."""
    path = cluster.kubeconfig_for(namespace, "nobody")
    assert f"system:serviceaccount:{namespace}:nobody" in cluster.kubectl("auth", "whoami", kubeconfig=path)
    with pytest.raises(ServerError, match="forbidden"):
        cluster.kubectl("get", "configmaps", kubeconfig=path)
    assert path.stat().st_mode & 0o077 == 0


def test_a_refusal_carries_the_servers_words(cluster: Cluster) -> None:
    """What the API server says is what a test can assert."""
    with pytest.raises(ApiError, match='namespaces "no-such" not found') as caught:
        cluster.apply(_configmap("no-such"))
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")


def test_install_can_be_repeated(cluster: Cluster) -> None:
    """Applying the kinds and roles again changes nothing and fails at nothing."""
    cluster.install()
    assert cluster.read({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})


def test_a_server_keeps_its_data_over_a_kill(kube: Kube) -> None:
    """Started again in its folder after SIGKILL, the server has its objects, address and tokens again."""
    cluster = kube.cluster
    space = cluster.namespace()
    cluster.apply(_configmap(space))
    for process in kube.processes.values():
        process.kill()
    assert not kube.ready()
    kube.stop()
    again = kube.start()
    assert (again.url, again.token) == (cluster.url, cluster.token)
    assert cluster.read(_configmap(space))["data"] == {"key": "value"}
    kube.stop()
    assert not kube.ready()


def _configmap(namespace: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "thing", "namespace": namespace},
        "data": {"key": "value"},
    }
