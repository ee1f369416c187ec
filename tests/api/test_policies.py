"""The admission policies, as a person without special rights meets them.

They rest on the authorizer and on the order of admission, which only a real API server has.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from servers import wait_until
from servers.kube import ApiError, Cluster

SOURCE = {"http": {"urls": ["https://a.example/debian-12.qcow2"]}}


def image(namespace: str, name: str = "debian-12", **spec: Any) -> dict[str, Any]:
    """An Image, which nobody works on here."""
    return {
        "apiVersion": "glimpse.dev/v1alpha1",
        "kind": "Image",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"source": SOURCE} | spec,
    }


def bind(cluster: Cluster, namespace: str, role: str) -> None:
    """Bind the account `user` of the namespace to a ClusterRole there."""
    body = {
        "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "user", "namespace": namespace}],
    }
    cluster.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", body)


def allowed(cluster: Cluster, namespace: str, verb: str, resource: str, subresource: str = "") -> bool:
    """Whether the API server lets the account `user` do this."""
    attributes = {"group": "glimpse.dev", "namespace": namespace, "verb": verb, "resource": resource}
    spec = {
        "user": f"system:serviceaccount:{namespace}:user",
        "resourceAttributes": attributes | ({"subresource": subresource} if subresource else {}),
    }
    review = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})
    return bool(review["status"]["allowed"])


@pytest.fixture
def user(cluster: Cluster, namespace: str) -> str:
    """The token of a person who may edit Images in the namespace, and nothing else."""
    token = cluster.token_for(namespace, "user")
    bind(cluster, namespace, "glimpse-edit")
    wait_until("the role", lambda: allowed(cluster, namespace, "create", "images"), timeout=10)
    return token


@pytest.fixture(autouse=True)
def _policies_work(cluster: Cluster, namespace: str) -> None:
    """A policy is in force a moment after it was created, and nothing says when: so try until it is."""

    def refuses() -> bool:
        probe = image(namespace, "probe", protected=True)
        cluster.apply(probe)
        try:
            cluster.request("DELETE", cluster.path(probe))
        except ApiError:
            return True
        return False

    wait_until("the policies", refuses, timeout=30)


def create(cluster: Cluster, token: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create an Image as this person."""
    answer: dict[str, Any] = cluster.request("POST", cluster.path(body).rpartition("/")[0], body, token=token)
    return answer


def merge(cluster: Cluster, token: str, body: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Change an Image as this person."""
    answer: dict[str, Any] = cluster.request(
        "PATCH", cluster.path(body), {"spec": spec}, token=token, content_type="application/merge-patch+json"
    )
    return answer


def test_protected_image_is_not_deleted(cluster: Cluster, namespace: str, user: str) -> None:
    """A protected image is deleted by nobody, an administrator included, until it is unprotected."""
    body = create(cluster, user, image(namespace, protected=True))
    for token in (user, cluster.token):
        with pytest.raises(ApiError) as caught:
            cluster.request("DELETE", cluster.path(body), token=token)
        assert caught.value.status == 422
        assert "image debian-12 is protected: unset spec.protected, then delete it" in caught.value.message
    merge(cluster, user, body, {"protected": None})
    cluster.request("DELETE", cluster.path(body), token=user)
    with pytest.raises(ApiError, match="404"):
        cluster.read(body)


def test_protected_images_survive_a_deletion_of_all(cluster: Cluster, namespace: str, user: str) -> None:
    """A deletion of all images of a namespace does not reach the protected ones."""
    kept, gone = image(namespace, "kept", protected=True), image(namespace, "gone")
    create(cluster, user, kept)
    create(cluster, user, gone)
    with pytest.raises(ApiError, match="is protected"):
        cluster.request("DELETE", cluster.path(kept).rpartition("/")[0], token=user)
    assert cluster.read(kept)["metadata"]["name"] == "kept"


@pytest.mark.parametrize("protected", [None, False])
def test_other_images_are_deleted(cluster: Cluster, namespace: str, user: str, protected: bool | None) -> None:
    """The policy leaves alone what is not protected."""
    body = image(namespace) if protected is None else image(namespace, protected=protected)
    create(cluster, user, body)
    cluster.request("DELETE", cluster.path(body), token=user)
    with pytest.raises(ApiError, match="404"):
        cluster.read(body)


@pytest.mark.parametrize("visibility", ["community", "public"])
def test_publishing_takes_a_permission(cluster: Cluster, namespace: str, user: str, visibility: str) -> None:
    """Nobody makes an image visible to everybody without `create images/public`, by creation or by change."""
    body = image(namespace, visibility=visibility)
    with pytest.raises(ApiError) as caught:
        create(cluster, user, body)
    assert caught.value.status == 403
    assert f"visibility {visibility} needs the permission to create images/public" in caught.value.message
    assert f"in namespace {namespace}" in caught.value.message
    assert "glimpse-publisher" in caught.value.message
    create(cluster, user, image(namespace))
    with pytest.raises(ApiError, match="needs the permission to create images/public"):
        merge(cluster, user, body, {"visibility": visibility})
    merge(cluster, user, body, {"visibility": "shared"})


def test_a_publisher_publishes(cluster: Cluster, namespace: str, user: str) -> None:
    """The ClusterRole glimpse-publisher gives the permission, in the namespace where it is bound and in no other."""
    elsewhere = cluster.namespace()
    bind(cluster, namespace, "glimpse-publisher")
    wait_until("the role", lambda: allowed(cluster, namespace, "create", "images", "public"), timeout=10)
    body = create(cluster, user, image(namespace, visibility="public"))
    assert merge(cluster, user, body, {"visibility": "community"})["spec"]["visibility"] == "community"
    assert not allowed(cluster, elsewhere, "create", "images", "public")


def test_published_images_stay_editable(cluster: Cluster, namespace: str, user: str) -> None:
    """Who may edit an image may change what an administrator published, and take it back, but not publish it more."""
    body = image(namespace, visibility="community")
    cluster.apply(body)
    assert merge(cluster, user, body, {"title": "Debian 12"})["spec"]["title"] == "Debian 12"
    with pytest.raises(ApiError, match="needs the permission"):
        merge(cluster, user, body, {"visibility": "public"})
    merge(cluster, user, body, {"visibility": "private"})
    with pytest.raises(ApiError, match="needs the permission"):
        merge(cluster, user, body, {"visibility": "community"})


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"http": {"urls": ["https://evil.example/debian-12.qcow2"]}}},
        {"checksum": {"digest": "sha256:" + "0" * 64}},
        {"format": {"disk": "raw"}},
        {"revisions": {"pin": 1}},
    ],
)
@pytest.mark.parametrize("visibility", ["community", "public"])
def test_published_bytes_are_a_publishers(
    cluster: Cluster, namespace: str, user: str, visibility: str, change: dict[str, Any]
) -> None:
    """Who may not publish may not put other bytes under a name that everybody trusts; a publisher may."""
    body = image(namespace, visibility=visibility)
    cluster.apply(body)
    with pytest.raises(ApiError, match="needs the permission to create images/public"):
        merge(cluster, user, body, change)
    bind(cluster, namespace, "glimpse-publisher")
    wait_until("the role", lambda: allowed(cluster, namespace, "create", "images", "public"), timeout=10)
    merge(cluster, user, body, change)


def test_an_editor_writes_no_status(cluster: Cluster, namespace: str, user: str) -> None:
    """The role for people covers the spec and the bytes; the status is the operator's."""
    body = create(cluster, user, image(namespace))
    patch = {"status": {"observedGeneration": 1}}
    with pytest.raises(ApiError, match="403"):
        cluster.request(
            "PATCH", cluster.path(body) + "/status", patch, token=user, content_type="application/merge-patch+json"
        )
    assert allowed(cluster, namespace, "get", "images", "data")
    assert allowed(cluster, namespace, "update", "images", "data")
    assert not allowed(cluster, namespace, "get", "imagestores")


@pytest.fixture
def site(cluster: Cluster) -> Iterator[str]:
    """A store that takes no bytes, among others that do; its name. The policy has heard of it."""
    names = [f"policy-{uuid.uuid4().hex[:8]}-{kind}" for kind in ("http", "filesystem")]
    specs = [{"http": {"baseUrl": "https://a.example/"}}, {"filesystem": {"path": "/a"}}]
    stores = [
        {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": {"name": name}, "spec": spec}
        for name, spec in zip(names, specs, strict=True)
    ]
    namespace = cluster.namespace()

    def refuses() -> bool:
        try:
            create(cluster, cluster.token, image(namespace, f"probe-{uuid.uuid4().hex[:8]}", stores=[names[0]]))
        except ApiError:
            return True
        return False

    for each in stores:
        cluster.apply(each)
    wait_until("the policy", refuses, timeout=30)
    yield names[0]
    for each in stores:
        cluster.request("DELETE", cluster.path(each))


def test_a_store_that_takes_no_bytes_is_not_named(cluster: Cluster, namespace: str, user: str, site: str) -> None:
    """Neither alone nor beside others, neither at once nor later; whoever names it is told why."""
    other = site.replace("-http", "-filesystem")
    for stores in ([site], [other, site]):
        with pytest.raises(ApiError) as caught:
            create(cluster, user, image(namespace, stores=stores))
        assert caught.value.status == 422
        assert f"store {site} is a web server, which takes no bytes" in caught.value.message
    body = create(cluster, user, image(namespace, stores=[other, "nowhere"]))
    with pytest.raises(ApiError, match="takes no bytes"):
        merge(cluster, user, body, {"stores": [other, site]})
    merge(cluster, user, body, {"stores": None})


def test_what_such_a_store_has_is_registered(cluster: Cluster, namespace: str, user: str, site: str) -> None:
    """There it is named, since the bytes are there; when the source becomes another one, it is none any more."""
    other = site.replace("-http", "-filesystem")
    location = {"location": {"store": site, "key": "a.img"}}
    create(cluster, user, image(namespace, "plain", source=location))
    body = create(cluster, user, image(namespace, "more", source=location, stores=[site, other]))
    with pytest.raises(ApiError, match="takes no bytes"):
        merge(cluster, user, body, {"source": {"location": None, **SOURCE}})
    merge(cluster, user, body, {"source": {"location": None, **SOURCE}, "stores": [other]})


def test_what_named_it_before_can_be_changed(cluster: Cluster, namespace: str, user: str, site: str) -> None:
    """An Image that was there before its store is not held up: another field of it may change, and it may go."""
    body = image(namespace, stores=[f"{site}-late"])
    create(cluster, user, body)
    late = {"http": {"baseUrl": "https://a.example/"}}
    store = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": {"name": f"{site}-late"}}
    cluster.apply(store | {"spec": late})

    def refuses() -> bool:
        try:
            create(cluster, user, image(namespace, f"probe-{uuid.uuid4().hex[:8]}", stores=[f"{site}-late"]))
        except ApiError:
            return True
        return False

    wait_until("the policy", refuses, timeout=30)
    merge(cluster, user, body, {"title": "New"})
    cluster.request("DELETE", cluster.path(body), token=user)
    cluster.request("DELETE", cluster.path(store))
