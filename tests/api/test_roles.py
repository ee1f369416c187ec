"""What operator and gateway may do, asked of the real authorizer.

A right too many is a hole that no other test would notice; one too few would show in each of them.
"""

from typing import Final

import pytest

from servers.kube import Cluster

SYSTEM: Final = "glimpse-system"
OPERATOR: Final = f"system:serviceaccount:{SYSTEM}:glimpse-operator"
GATEWAY: Final = f"system:serviceaccount:{SYSTEM}:glimpse-gateway"
OURS: Final = "glimpse.dev"


def may(cluster: Cluster, user: str, words: str) -> bool:
    """Whether `user` may; `words`: verb, [group/]resource[/subresource][:name], namespace or `-`."""
    verb, what, namespace = words.split()
    what, _, name = what.partition(":")
    group, _, resource = what.rpartition("|")
    resource, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name}
    attributes["namespace"] = "" if namespace == "-" else namespace
    groups = ["system:serviceaccounts", "system:authenticated"]
    spec = {"user": user, "groups": groups, "resourceAttributes": attributes}
    review = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})
    return bool(review["status"]["allowed"])


@pytest.mark.parametrize(
    "words",
    [
        *(
            f"{verb} glimpse.dev|{what} -"
            for verb in ("get", "list", "watch", "patch")
            for what in ("images", "imagestores")
        ),
        "patch glimpse.dev|images/status team-a",
        "patch glimpse.dev|imagestores/status -",
        *(f"{verb} namespaces -" for verb in ("get", "list", "watch")),
        "create events team-a",
        "create events default",
        f"create serviceaccounts/token:glimpse-gateway {SYSTEM}",
        f"get secrets {SYSTEM}",
        f"get configmaps {SYSTEM}",
        *(f"{verb} coordination.k8s.io|leases {SYSTEM}" for verb in ("list", "delete")),
    ],
)
def test_operator_may(cluster: Cluster, words: str) -> None:
    """What the operator cannot do without."""
    assert may(cluster, OPERATOR, words)


@pytest.mark.parametrize(
    "words",
    [
        *(f"{verb} secrets team-a" for verb in ("get", "list", "watch", "create")),
        *(f"{verb} secrets {SYSTEM}" for verb in ("list", "watch", "create", "update", "delete")),
        "get configmaps team-a",
        f"create serviceaccounts/token:glimpse-operator {SYSTEM}",
        "create serviceaccounts/token:default team-a",
        *(f"{verb} glimpse.dev|images team-a" for verb in ("create", "update", "delete", "deletecollection")),
        "get glimpse.dev|images/data team-a",
        "create glimpse.dev|images/public team-a",
        "get apiextensions.k8s.io|customresourcedefinitions:images.glimpse.dev -",
        "patch apiextensions.k8s.io|customresourcedefinitions:images.glimpse.dev -",
        "get pods team-a",
        "get events team-a",
        "create authorization.k8s.io|subjectaccessreviews -",
    ],
)
def test_operator_may_not(cluster: Cluster, words: str) -> None:
    """What would make a stolen token of the operator worth more."""
    assert not may(cluster, OPERATOR, words)


@pytest.mark.parametrize(
    "words",
    [
        *(f"{verb} glimpse.dev|{what} -" for verb in ("get", "list", "watch") for what in ("images", "imagestores")),
        "create authentication.k8s.io|tokenreviews -",
        "create authorization.k8s.io|subjectaccessreviews -",
        f"get secrets {SYSTEM}",
        f"get configmaps {SYSTEM}",
        *(f"{verb} coordination.k8s.io|leases {SYSTEM}" for verb in ("create", "patch", "delete")),
    ],
)
def test_gateway_may(cluster: Cluster, words: str) -> None:
    """What the gateway cannot do without."""
    assert may(cluster, GATEWAY, words)


@pytest.mark.parametrize(
    "words",
    [
        *(f"{verb} glimpse.dev|images team-a" for verb in ("create", "update", "patch", "delete")),
        "patch glimpse.dev|images/status team-a",
        "update glimpse.dev|images/status team-a",
        "patch glimpse.dev|imagestores -",
        "get secrets team-a",
        f"list secrets {SYSTEM}",
        f"update secrets {SYSTEM}",
        f"create serviceaccounts/token:glimpse-gateway {SYSTEM}",
        "get namespaces -",
        "create events team-a",
        *(f"{verb} coordination.k8s.io|leases kube-system" for verb in ("create", "patch", "delete")),
    ],
)
def test_gateway_may_not(cluster: Cluster, words: str) -> None:
    """The gateway faces the network: it writes nothing, and sees no more than it serves."""
    assert not may(cluster, GATEWAY, words)


def test_a_namespace_lends_its_secrets(cluster: Cluster, namespace: str) -> None:
    """The command of the docs lets the operator read Secrets and ConfigMaps of one namespace by name, no more."""
    other = cluster.namespace()
    cluster.kubectl(
        "create",
        "rolebinding",
        "glimpse-secrets",
        "--clusterrole=glimpse-secrets",
        f"--serviceaccount={SYSTEM}:glimpse-operator",
        "-n",
        namespace,
    )
    assert may(cluster, OPERATOR, f"get secrets:mirror-login {namespace}")
    assert may(cluster, OPERATOR, f"get configmaps:corp-ca {namespace}")
    assert not may(cluster, OPERATOR, f"list secrets {namespace}")
    assert not may(cluster, OPERATOR, f"get secrets {other}")
