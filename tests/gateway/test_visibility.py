"""Images of other namespaces: who may have them, and that a refusal tells nothing of what is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.gateway.test_events import watching
from tests.relay import Relay, relay

from glimpse.gateway.app import serve
from glimpse.gateway.sharing import Sharing
from glimpse.kube import ACCESS_REVIEW, TOKEN_REVIEW, Kube
from glimpse.settings import Settings
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import NAMESPACE, Cluster
from servers.shelf import Answer, Shelf, Shown, ask


@pytest.fixture
def stranger(shelf: Shelf, cluster: Cluster) -> str:
    """A token of an account that may download the images of its own namespace, and is a member nowhere."""
    return shelf.grant(cluster.namespace(), "stranger")


def seen(gateway: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Wait until the gateway knows all that was made before: a watch tells of objects in their order."""
    marker = shelf.image(namespace, b"marker", store=shelf.store(), spec={"visibility": "public"})
    wait_until("the marker", lambda: ask(gateway + marker.path, token=token).status == 200, timeout=20)


def change(cluster: Cluster, image: Shown, spec: Mapping[str, object]) -> None:
    """Change an image's spec."""
    path = cluster.path(image.object)
    cluster.request("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json")


def test_who_may_have_it(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, token: str) -> None:
    """Private: who has the right there. Shared: members too. Community and public: whoever has a token."""
    store, team = shelf.store(), cluster.namespace()
    member, stranger = shelf.grant(team, "member"), shelf.grant(cluster.namespace(), "stranger")
    nobody = cluster.token_for(cluster.namespace(), "nobody", audience="glimpse")
    spec = {"members": ["elsewhere", team]}
    levels = ("private", "shared", "community", "public")
    images = {v: shelf.image(namespace, v.encode(), store=store, spec=spec | {"visibility": v}) for v in levels}
    seen(gateway, shelf, namespace, stranger)
    for account, may in (
        (token, levels),
        (member, levels[1:]),
        (stranger, levels[2:]),
        (nobody, levels[2:]),
    ):
        for visibility, image in images.items():
            for path in (image.path, image.path + ".sha256", image.revision()):
                got = ask(gateway + path, token=account)
                assert got.status == (200 if visibility in may else 404), (visibility, path)
    assert ask(gateway + images["shared"].path, token=member).body == b"shared"
    for path in (f"{images['public'].path}/revisions/1", images["public"].revision(7)):
        assert ask(gateway + path, token=member).status == (404 if "uid" in path else 400)


def test_who_belongs_to_a_member(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """To a namespace belongs who may download its images, wherever his account is; not who lives there, or has one."""
    home, team = cluster.namespace(), cluster.namespace()
    shelf.image(team, b"theirs", store=shelf.store(), name="theirs")
    image = shelf.image(namespace, b"bytes", store=shelf.store(), spec={"visibility": "shared", "members": [team]})
    lives_there = cluster.token_for(team, "lives-there", audience="glimpse")
    has_one = shelf.grant(team, "has-one", only=["theirs"])
    uploads = shelf.grant(team, "uploads", verbs=["update"])
    visitor = cluster.token_for(home, "visitor", audience="glimpse")
    api = "rbac.authorization.k8s.io"
    shelf.grant(team, "all")
    cluster.apply(
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "visitor", "namespace": team},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "all"},
            "subjects": [{"kind": "ServiceAccount", "name": "visitor", "namespace": home}],
        }
    )
    seen(gateway, shelf, namespace, visitor)
    assert ask(gateway + image.path, token=visitor).body == b"bytes"
    for account in (lives_there, has_one, uploads):
        assert ask(gateway + image.path, token=account).status == 404


def test_a_change_counts_at_once(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, stranger: str) -> None:
    """What the owner says of visibility and members is not remembered: only what the API server says of callers is."""
    team = cluster.namespace()
    member = shelf.grant(team, "member")
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    for spec, may in (
        ({"visibility": "shared", "members": [team]}, True),
        ({"members": ["elsewhere"]}, False),
        ({"members": ["elsewhere", team]}, True),
        ({"visibility": "private"}, False),
        ({"visibility": "public"}, True),
        ({"visibility": "shared", "members": []}, False),
    ):
        change(cluster, image, spec)
        seen(gateway, shelf, namespace, stranger)
        assert ask(gateway + image.path, token=member).status == (200 if may else 404), spec


def test_a_new_image_of_the_same_name(
    gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, stranger: str
) -> None:
    """An image that is deleted and made again is what the new one says, and the links of the old one lead nowhere."""
    store, public = shelf.store(), {"visibility": "public"}
    old = shelf.image(namespace, b"old", store=store, name="one", spec=public)
    seen(gateway, shelf, namespace, stranger)
    assert ask(gateway + old.revision(), token=stranger).body == b"old"
    shelf.delete(old)
    new = shelf.image(namespace, b"new", store=store, name="one")
    seen(gateway, shelf, namespace, stranger)
    assert {ask(gateway + each.revision(), token=stranger).status for each in (old, new)} == {404}
    change(cluster, new, public)
    seen(gateway, shelf, namespace, stranger)
    assert ask(gateway + old.revision(), token=stranger).status == 404
    assert ask(gateway + new.revision(), token=stranger).body == b"new"


def test_deactivated(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, stranger: str) -> None:
    """A deactivated image is refused to all who may see it but administrators; to others it is not there, as ever."""
    store, off, token = shelf.store(), {"deactivated": True}, shelf.grant(namespace, "reader")
    private = shelf.image(namespace, b"private", store=store, spec=off)
    public = shelf.image(namespace, b"public", store=store, spec=off | {"visibility": "public"})
    seen(gateway, shelf, namespace, stranger)
    for path in (private.path, private.path + ".sha256", private.revision(), public.path, public.revision()):
        got = ask(gateway + path, token=token)
        assert (got.status, "deactivated" in got.problem()["detail"]) == (403, True)
    assert ask(gateway + public.path, token=stranger).status == 403
    assert ask(gateway + private.path, token=stranger).status == 404
    admin = shelf.grant(namespace, "admin", resources=["images/data", "images/deactivated"])
    assert ask(gateway + private.path, token=admin).body == b"private"
    change(cluster, private, {"deactivated": False})
    seen(gateway, shelf, namespace, stranger)
    assert ask(gateway + private.path, token=token).body == b"private"


FRONT_PROXY = {
    "X-Remote-User": "system:admin",
    "X-Remote-Group": "system:masters",
    "X-Remote-Extra-Scopes": "everything",
    "Impersonate-User": "system:admin",
    "Impersonate-Group": "system:masters",
    "X-Forwarded-Client-Cert": 'By=x;Hash=0;Subject="O=system:masters,CN=admin"',
    "X-Forwarded-User": "admin",
    "X-Forwarded-For": "127.0.0.1",
    "X-SSL-Client-Verify": "SUCCESS",
    "Ssl-Client-Subject-Dn": "O=system:masters,CN=admin",
    "Client-Cert": ":MIIB:",
    "Forwarded": "for=127.0.0.1;proto=https",
}


def test_a_front_proxy_is_not_believed(gateway: str, shelf: Shelf, namespace: str, stranger: str) -> None:
    """Headers in which a proxy would say whom it has let in change nothing, with a token and without."""
    image = shelf.image(namespace, b"bytes", store=shelf.store())
    for headers in (FRONT_PROXY, {name.lower(): value for name, value in FRONT_PROXY.items()}):
        assert ask(gateway + image.path, headers=headers).status == 401
        assert ask(gateway + image.path, headers=headers, token=stranger).status == 404


@pytest.fixture(scope="module")
def open_door(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway that gives public images to anybody."""
    settings = {"GLIMPSE_GATEWAY_ANONYMOUS": "true"}
    server = Glimpse(tmp_path_factory.mktemp("open"), cluster=cluster, settings=settings)
    server.launch("gateway")
    try:
        server.await_ready("gateway")
        yield server.installation.gateway_url
    finally:
        server.stop()


def test_without_a_token(gateway: str, open_door: str, shelf: Shelf, namespace: str, token: str) -> None:
    """Where it is switched on, public images need no token; all else does, whether it is there or not."""
    store = shelf.store()
    levels = ("private", "shared", "community", "public")
    images = {v: shelf.image(namespace, v.encode(), store=store, spec={"visibility": v}) for v in levels}
    off = shelf.image(namespace, b"off", store=store, spec={"visibility": "public", "deactivated": True})
    public = images.pop("public")
    seen(open_door, shelf, namespace, token)
    for path in (public.path, public.path + ".md5", public.revision()):
        assert ask(open_door + path).status == 200
        assert ask(open_door + path, method="HEAD").status == 200
        assert ask(gateway + path).status == 401
    assert ask(open_door + public.path).body == b"public"
    assert ask(open_door + public.revision(7)).status == 404
    assert ask(open_door + off.path).status == 403
    missing = ask(open_door + f"/v1/namespaces/{namespace}/images/missing")
    assert missing.status == 401
    for image in images.values():
        got = ask(open_door + image.path, headers=FRONT_PROXY)
        assert (got.status, got.body, got.headers.keys()) == (401, missing.body, missing.headers.keys())
        assert ask(open_door + image.path, token=token).status == 200
    for bad in ("", "Bearer nonsense", "Basic Og=="):  # a token that is no good is no reason to be let in as nobody
        for path in (public.path, "/v1/images", "/v1/images/events"):
            assert ask(open_door + path, headers={"Authorization": bad}).status == 401


def test_the_list_without_a_token(
    *, gateway: str, open_door: str, shelf: Shelf, cluster: Cluster, namespace: str, token: str
) -> None:
    """Where it is switched on, the list and its events show who has no token just what he may download."""
    store = shelf.store()
    for visibility in ("private", "shared", "community", "public"):
        shelf.image(namespace, b"bytes", store=store, name=visibility, spec={"visibility": visibility})
    public = {"visibility": "public"}
    hidden = shelf.image(namespace, b"bytes", store=store, name="hidden", spec=public | {"hidden": True})
    shelf.image(namespace, b"bytes", store=store, name="off", spec=public | {"deactivated": True})
    shelf.image(namespace, [], served=None, name="empty", spec=public)
    seen(open_door, shelf, cluster.namespace(), token)

    def names(asked: str) -> list[str]:
        got = ask(f"{open_door}/v1/images?namespace={namespace}{asked}", headers=FRONT_PROXY)
        assert got.status == 200
        return [each["name"] for each in json.loads(got.body)["images"]]

    for asked, wanted in (
        ("", ["public"]),
        ("&visibility=community&visibility=public", ["public"]),
        ("&hidden=true&hidden=false", ["hidden", "public"]),
        ("&deactivated=true", []),
    ):
        assert names(asked) == wanted, asked
    for name in names("&hidden=true&hidden=false"):
        assert ask(f"{open_door}/v1/namespaces/{namespace}/images/{name}").status == 200
    assert namespace.encode() in ask(f"{open_door}/v1/images?limit=1000").body  # of all namespaces
    assert ask(f"{open_door}/v1/images?as={namespace}").status == 401
    assert ask(f"{gateway}/v1/images").status == 401
    assert ask(f"{gateway}/v1/images/events").status == 401
    with watching(open_door, "", namespace=namespace) as watcher:
        assert watcher.synced() == ["public"]
        change(cluster, hidden, {"hidden": False})
        assert watcher.told() == ("ADDED", "hidden")
        change(cluster, hidden, {"visibility": "community"})
        assert watcher.told() == ("DELETED", "hidden")
    document = json.loads(ask(f"{open_door}/openapi.json").body)["paths"]
    free = {path for path, each in document.items() if {} in each.get("get", {}).get("security", ())}
    image = "/v1/namespaces/{namespace}/images/"
    assert free == {"/v1/images", "/v1/images/events", image + "{file}", image + "{name}/revisions/{file}"}


class Watched(NamedTuple):
    """A gateway whose questions are counted."""

    url: str
    between: Relay

    async def ask(self, path: str, token: str, method: str = "GET") -> tuple[Answer, tuple[int, int, int]]:
        """The answer, and how many tokens and rights were asked for, and all else."""
        self.between.requests.clear()
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"} if path.endswith("/uploads") else {}
        got = await asyncio.to_thread(ask, self.url + path, token=token, method=method, headers=headers)
        asked = [path for method, path in self.between.requests if method not in ("WATCH", "STREAM")]
        tokens, rights = asked.count(TOKEN_REVIEW.path()), asked.count(ACCESS_REVIEW.path())
        return got, (tokens, rights, len(asked) - tokens - rights)


@pytest.fixture
async def watched(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Watched]:
    """A gateway with its own rights, behind what counts."""
    async with relay(cluster, tmp_path) as between:
        kube = await Kube.connect(between.kubeconfig(cluster.token_for(NAMESPACE, "glimpse-gateway")))
        async with serve(Settings(gateway_listen="127.0.0.1:0", gateway_drain=1), kube) as (host, port):
            yield Watched(f"http://{host}:{port}", between)
        await kube.close()


@pytest.mark.parametrize("way", ["GET", "GET .sha256", "PUT", "POST /links", "POST /uploads"])
async def test_a_refusal_costs_the_same(
    watched: Watched, shelf: Shelf, cluster: Cluster, namespace: str, way: str
) -> None:
    """Whatever is behind a name that one may not see, it is refused in the same words after the same questions.

    That holds for who comes for the first time, for who comes again, and in every order.
    """
    method, _, suffix = way.partition(" ")

    def make() -> list[str]:
        store = shelf.store()

        def image(visibility: str, *members: str, **spec: object) -> str:
            spec |= {"visibility": visibility, "members": list(members)}
            return shelf.image(namespace, b"bytes", store=store, spec=spec).path

        empty = shelf.image(namespace, [], served=None, spec={"visibility": "public"})
        made = [
            f"/v1/namespaces/{namespace}/images/missing",
            image("private"),
            image("private", "a", "b", "c", "d", "e"),
            image("shared", "a"),
            image("shared", "a", "b", "c"),
            f"/v1/namespaces/{namespace}/images/missing-too",
            image("shared", "a"),
            image("shared", "d", "e"),
            image("shared"),
            image("private", deactivated=True),
            image("shared", "f", deactivated=True),
            empty.path,
            f"/v1/namespaces/{cluster.namespace()}/images/missing",
            "/v1/namespaces/none/images/none",
        ]
        seen(watched.url, shelf, namespace, shelf.grant(namespace, "reader"))
        return made

    paths = await asyncio.to_thread(make)
    words, first, again = set(), set(), set()
    for number, path in enumerate(paths):
        token = await asyncio.to_thread(shelf.grant, cluster.namespace(), f"stranger-{number}")
        got, questions = await watched.ask(path + suffix, token, method)
        assert got.status == 404
        words.add(got.body)
        first.add(questions)
        again.add((await watched.ask(path + suffix, token, method))[1])
    assert len(words) == 1
    ((tokens, rights, others),) = first
    assert (tokens, others) == (1, 0)
    assert rights >= 2 + 3
    assert again == {(0, 0, 0)}
    # one who goes through all of them: what was asked for one name is not known for the next
    token = await asyncio.to_thread(shelf.grant, cluster.namespace(), "one")
    await watched.ask(f"/v1/namespaces/{namespace}/images/first{suffix}", token, method)
    costs = {(await watched.ask(path + suffix, token, method))[1] for path in paths if f"/{namespace}/" in path}
    assert costs == {(0, rights - (2 if method == "PUT" or suffix == "/uploads" else 1), 0)}


async def test_an_edit_shows_in_no_refusal(watched: Watched, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """When the members of an image change, the next refusal of any name costs what that one's does."""

    def make() -> tuple[Shown, str, str]:
        shared = {"visibility": "shared", "members": ["a"]}
        edited, other = (shelf.image(namespace, b"bytes", store=shelf.store(), spec=shared) for _ in range(2))
        widest = shared | {"members": [f"z{number}" for number in range(8)]}
        shelf.image(namespace, b"bytes", store=shelf.store(), spec=widest)
        seen(watched.url, shelf, namespace, shelf.grant(namespace, "reader"))
        return edited, other.path, shelf.grant(cluster.namespace(), "stranger")

    edited, other, stranger = await asyncio.to_thread(make)
    paths = (edited.path, other, f"/v1/namespaces/{namespace}/images/missing")

    async def costs() -> set[int]:
        found = set()
        for path in paths:
            got, (_, rights, others) = await watched.ask(path, stranger)
            assert (got.status, others) == (404, 0)
            found.add(rights)
        return found

    await costs()
    change(cluster, edited, {"members": ["b"]})
    await asyncio.to_thread(
        seen, watched.url, shelf, namespace, await asyncio.to_thread(shelf.grant, namespace, "reader")
    )
    (after,) = await costs()
    assert after >= 1


async def test_what_all_may_see_costs_nothing(watched: Watched, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """For a public image nobody's rights are asked for; a member's answer is kept, as are all good ones."""

    def make() -> tuple[str, str, str]:
        store, team = shelf.store(), cluster.namespace()
        shared = shelf.image(namespace, b"bytes", store=store, spec={"visibility": "shared", "members": [team]})
        public = shelf.image(namespace, b"bytes", store=store, spec={"visibility": "public"})
        member = shelf.grant(team, "member")
        seen(watched.url, shelf, namespace, member)
        return shared.path, public.path, member

    shared, public, member = await asyncio.to_thread(make)
    got, questions = await watched.ask(public, member)
    assert (got.status, questions) == (200, (0, 0, 0))
    got, (tokens, rights, others) = await watched.ask(shared, member)
    assert (got.status, tokens, others) == (200, 0, 0)
    assert rights >= 3
    for suffix in ("", ".sha256"):
        got, questions = await watched.ask(shared + suffix, member)
        assert (got.status, questions) == (200, (0, 0, 0))


async def test_a_watch_that_is_dead(cluster: Cluster, tmp_path: Path, shelf: Shelf, namespace: str) -> None:
    """What an owner withdraws while the watch is broken is given to nobody after GLIMPSE_SILENCE seconds.

    Who has a right in the namespace gets what the API server says at that moment; all others are told to come back.
    """

    def make() -> tuple[Shown, Shown, str, str]:
        store, public = shelf.store(), {"visibility": "public"}
        images = [shelf.image(namespace, b"bytes", store=store, spec=public) for _ in range(2)]
        owner, stranger = shelf.grant(namespace, "owner"), shelf.grant(cluster.namespace(), "stranger")
        return images[0], images[1], owner, stranger

    withdrawn, stopped, owner, stranger = await asyncio.to_thread(make)
    settings = Settings(gateway_listen="127.0.0.1:0", gateway_drain=1, gateway_anonymous=True, silence=3)
    async with relay(cluster, tmp_path) as between:
        kube = await Kube.connect(between.kubeconfig(cluster.token_for(NAMESPACE, "glimpse-gateway")))
        async with serve(settings, kube) as (host, port):

            async def got(path: str, token: str | None) -> Answer:
                return await asyncio.to_thread(ask, f"http://{host}:{port}{path}", token=token)

            async def until(path: str, token: str | None, status: int) -> None:
                url = f"http://{host}:{port}{path}"
                await asyncio.to_thread(
                    wait_until, f"{status}", lambda: ask(url, token=token).status == status, timeout=30
                )

            for who in (owner, stranger, None):
                await until(withdrawn.path, who, 200)
            between.flowing.clear()
            between.cut()
            change(cluster, withdrawn, {"visibility": "private"})
            change(cluster, stopped, {"deactivated": True})
            for who in (stranger, None):
                await until(withdrawn.path, who, 503)
                for path in (stopped.path, "/v1/images", "/v1/images/events"):
                    answer = await got(path, who)
                    assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), path
            assert (await got(withdrawn.path, owner)).body == b"bytes"
            assert (await got(stopped.path, owner)).status == 403
            missing = await got(f"/v1/namespaces/{namespace}/images/missing", stranger)
            assert missing.body == (await got(withdrawn.path, stranger)).body
            between.flowing.set()
            await until(withdrawn.path, stranger, 404)
            await until(stopped.path, stranger, 403)
        await kube.close()


def test_questions_to_ask_besides() -> None:
    """They bring every image to the number of members that the widest one has, and name nobody twice."""
    sharing = Sharing()
    assert sharing.others(()) == sharing.others(("a",)) == ()
    for name, members in (("one", ("a", "b")), ("two", ("c", "a", "d")), ("three", ("e",))):
        sharing.learn(("n", name), members)
    for text in ("", "a", "x", "ab", "xyz", "cad"):
        asked = (*text, *sharing.others(tuple(text)))
        assert len(asked) == len(set(asked)) == 3
    sharing.learn(("n", "two"), ())
    sharing.learn(("n", "none"), ())
    assert sharing.others(()) == ("a", "b")
