"""Who may download: tokens by TokenReview, rights by SubjectAccessReview, on the real API server."""

import asyncio
import base64
from pathlib import Path

import pytest

from glimpse.gateway import access
from glimpse.gateway.app import serve
from glimpse.kube import Kube
from glimpse.settings import Settings
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import NAMESPACE, Cluster
from servers.kube import Kube as Server
from servers.shelf import Answer, Shelf, ask


def basic(user: str, password: str) -> dict[str, str]:
    """The header of Basic (RFC 7617)."""
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def challenged(answer: Answer) -> None:
    """Assert that this is a 401 that says how to do better."""
    assert (answer.status, answer.problem()["title"]) == (401, "Unauthorized")
    assert answer.headers.get_all("WWW-Authenticate") == [
        'Bearer realm="glimpse"',
        'Basic realm="glimpse", charset="UTF-8"',
    ]


def test_ways_to_send_a_token(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """A token goes as Bearer, or as the password of Basic with any user name, as CDI and curl send it."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    for headers in (
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"bearer  {token}"},
        basic("anybody", token),
        basic("", token),
        basic("Jürgen", token),
    ):
        assert ask(gateway + image.path, headers=headers).body == b"bytes"


def test_no_token_and_bad_tokens(gateway: str, shelf: Shelf, namespace: str, cluster: Cluster, token: str) -> None:
    """Without a good token of our audience the answer is 401, whether the image exists or not."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    foreign = cluster.token_for(namespace, "reader")  # for the API server, not for us
    other = cluster.token_for(namespace, "reader", audience="another")
    head, _, signature = token.rpartition(".")
    forged = f"{head}.{signature[:-6]}{'A' * 6}"
    for path in (image.path, image.path + ".sha256", image.revision(), "/v1/namespaces/none/images/none"):
        for headers in (
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Digest {token}"},
            {"Authorization": token},
            {"Authorization": "Bearer nonsense"},
            {"Authorization": f"Bearer {forged}"},
            {"Authorization": f"Bearer {foreign}"},
            {"Authorization": f"Bearer {other}"},
            {"Authorization": f"Bearer {cluster.token}"},
            {"Authorization": "Basic %%%"},
            {"Authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
            basic(token, ""),
            basic("user", "password"),
        ):
            challenged(ask(gateway + path, headers=headers))


def test_what_one_may_not_see(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, token: str) -> None:
    """An image that the caller may not download and one that is not there get the very same answer."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    stranger = shelf.grant(cluster.namespace(), "stranger")
    nobody = cluster.token_for(namespace, "nobody", audience="glimpse")
    reader = shelf.grant(namespace, "writer", verbs=["update", "list"])
    missing = ask(f"{gateway}/v1/namespaces/{namespace}/images/missing", token=token)
    assert missing.status == 404
    for account in (stranger, nobody, reader):
        for path in (image.path, image.path + ".sha256", image.path + ".md5", image.revision(), image.revision(7)):
            got = ask(gateway + path, token=account)
            assert (got.status, got.body) == (404, missing.body)
            assert got.headers.keys() == missing.headers.keys()


def test_right_to_one_image(gateway: str, shelf: Shelf, namespace: str) -> None:
    """A role may name the images that it gives."""
    store = shelf.store()
    one, two = (shelf.image(namespace, name.encode(), store=store, name=name) for name in ("one", "two"))
    account = shelf.grant(namespace, "only-one", only=["one"])
    assert ask(gateway + one.path, token=account).body == b"one"
    assert ask(gateway + one.path + ".sha256", token=account).status == 200
    assert ask(gateway + two.path, token=account).status == 404


def test_shipped_role(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """The shipped role for editors gives downloads, the one for viewers does not."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    for role, status in (("glimpse-edit", 200), ("glimpse-view", 404)):
        api = "rbac.authorization.k8s.io"
        cluster.apply(
            {
                "apiVersion": f"{api}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": namespace},
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": namespace}],
            }
        )
        account = cluster.token_for(namespace, role, audience="glimpse")
        assert ask(gateway + image.path, token=account).status == status, role


def test_a_new_right_counts_soon(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """A refusal is remembered for seconds only."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    account = cluster.token_for(namespace, "late", audience="glimpse")
    assert ask(gateway + image.path, token=account).status == 404
    shelf.grant(namespace, "late")
    wait_until("the right", lambda: ask(gateway + image.path, token=account).status == 200, timeout=15)


@pytest.mark.parametrize(("what", "status"), [("rolebindings", 404), ("serviceaccounts", 401)])
async def test_what_is_withdrawn_counts_no_more(
    *,
    shelf: Shelf,
    cluster: Cluster,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    status: int,
) -> None:
    """Without the binding of his role, or without his account, the next download is refused within a minute.

    The minute is shorter here; that a right counts for as long is what the docs say.
    """
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    assert f"one that is withdrawn after {access.YES:.0f} s" in page
    monkeypatch.setattr(access, "YES", 2.0)
    image = await asyncio.to_thread(shelf.image, namespace, b"bytes", store=await asyncio.to_thread(shelf.store))
    token = await asyncio.to_thread(shelf.grant, namespace, "reader")
    api = "/api/v1" if what == "serviceaccounts" else "/apis/rbac.authorization.k8s.io/v1"
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-gateway"))
    async with serve(Settings(gateway_listen="127.0.0.1:0", gateway_drain=1), kube) as (host, port):

        def download() -> int:
            return ask(f"http://{host}:{port}{image.path}", token=token).status

        assert await asyncio.to_thread(download) == 200
        await asyncio.to_thread(cluster.request, "DELETE", f"{api}/namespaces/{namespace}/{what}/reader")
        # the answer that is kept, and what the API server keeps of tokens itself
        await asyncio.to_thread(wait_until, f"{status}", lambda: download() == status, timeout=2 + 20)
    await kube.close()


def test_probes_need_no_token(gateway: str) -> None:
    """Probes and metrics are for machines that have no token; they name no image."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert ask(gateway + path).status == 200, path
    assert b"glimpse_gateway_requests_total{" in ask(gateway + "/metrics").body


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """An API server that a test may stop."""
    return Server(tmp_path_factory.mktemp("frail"))


def test_api_server_away(frail: Server, tmp_path: Path) -> None:
    """While the API server is away, those whose rights are known are served; others are told to come back."""
    with frail as cluster:
        cluster.install()
        namespace, shelf = cluster.namespace(), Shelf(cluster, tmp_path / "stores")
        image = shelf.image(namespace, b"bytes", store=shelf.store())
        token, second = shelf.grant(namespace, "reader"), shelf.grant(namespace, "second")
        server = Glimpse(tmp_path / "gateway", cluster=cluster, settings={"GLIMPSE_SILENCE": "4"})
        url = server.installation.gateway_url
        server.launch("gateway")
        try:
            server.await_ready("gateway")
            assert ask(url + image.path, token=token).body == b"bytes"
            frail.processes["kube-apiserver"].kill()
            assert ask(url + image.path, token=token).body == b"bytes"
            for path, account in (
                (image.path, second),
                ("/v1/namespaces/a/images/b", token),
            ):
                got = ask(url + path, token=account)
                assert (got.status, got.headers["Retry-After"]) == (503, "5")
                assert got.problem()["title"] == "Service Unavailable"
            wait_until("readyz to say no", lambda: not server.program_ready("gateway"), timeout=20)
            assert ask(url + "/healthz").status == 200
        finally:
            server.stop()
            shelf.close()
