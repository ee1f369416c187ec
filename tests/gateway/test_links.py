"""Signed links: they give one revision to whoever has them, and nothing else, nor longer, nor after their key."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from tests.gateway.signing import SECRET, drop, link, made, put, wish

from glimpse import linkkeys
from glimpse.gateway.links import Terms
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import NAMESPACE, ApiError, Cluster
from servers.shelf import Answer, Content, Shelf, Shown, ask


def refused(answer: Answer, word: str, status: int = 403) -> bytes:
    """Assert that this is a refusal that says why; its body."""
    assert answer.status == status, answer.body
    assert word in answer.problem()["detail"]
    return answer.body


@pytest.fixture
def image(keys: dict[str, str], shelf: Shelf, namespace: str) -> Shown:
    """An image with two revisions."""
    assert keys
    store = shelf.store()
    return shelf.image(namespace, [Content(b"first", [store]), Content(b"second", [store])])


def test_a_link_needs_no_token(gateway: str, image: Shown, token: str) -> None:
    """It gives the served revision by GET and HEAD, in parts too, with its checksum file, until its time is over."""
    got = wish(gateway, image, token)
    assert (got.status, got.headers["Content-Type"]) == (201, "application/json; charset=utf-8")
    assert got.headers["Cache-Control"] == "no-store"
    said = json.loads(got.body)
    assert said.keys() == {"expiresAt", "url"}
    left = datetime.fromisoformat(said["expiresAt"]) - datetime.now(UTC)
    assert 3500 < left.total_seconds() <= 3601
    url = said["url"]
    assert url.startswith(f"{gateway}{image.path}/revisions/2?uid={image.uid}&")
    assert (ask(url).status, ask(url).body) == (200, b"second")
    head = ask(url, method="HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, "6")
    part = ask(url, headers={"Range": "bytes=1-2"})
    assert (part.status, part.body) == (206, b"ec")
    assert ask(url.replace("/revisions/2?", "/revisions/2.sha256?")).body.endswith(b"  2\n")
    # a client that sends something else besides, as from a .netrc, is not refused for it
    assert ask(url, token="nonsense").body == b"second"


def test_what_may_be_asked_for(gateway: str, image: Shown, token: str) -> None:
    """A revision, a time and a method; what makes no sense, or is too long, is refused with its name."""
    assert ask(link(gateway, image, token, revision=1, uid=image.uid, expiresIn="2h")).body == b"first"
    got = json.loads(wish(gateway, image, token, {"expiresIn": "24h"}).body)
    assert (datetime.fromisoformat(got["expiresAt"]) - datetime.now(UTC)).total_seconds() > 86_000
    for body, word in (
        ({"expiresIn": "24h1s"}, "expiresIn must be from 1s to 86400s here."),
        ({"expiresIn": "0s"}, "expiresIn"),
        ({"expiresIn": "soon"}, "expiresIn: 'soon' is not a duration such as 90s."),
        ({"expiresIn": -1}, "expiresIn"),
        (b'{"expiresIn": NaN}', "expiresIn"),
        (b'{"expiresIn": Infinity}', "expiresIn"),
        ({"revision": "first"}, "revision: must be a whole number; it is 'first'."),
        ({"revision": -1}, "revision: must be at least 0; it is -1."),
        ({"method": "PUT"}, "method: must be 'GET' or 'HEAD'; it is 'PUT'."),
        ({"uid": "x" * 65}, "uid: must have at most 64 characters."),
        ({"expires": "1h"}, "expires: is not known here; is it mistyped? Known are expiresIn, revision, uid, method."),
        (b"[]", "body: must be a JSON object."),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 4000, "JSON"),
    ):
        refused(wish(gateway, image, token, body), word, 400)
    refused(wish(gateway, image, token, b" " * 4097), "4096", 413)
    for missing in ({"revision": 7}, {"uid": "another"}):
        refused(wish(gateway, image, token, missing), "no such image", 404)


def test_who_may_ask(gateway: str, image: Shown, shelf: Shelf, cluster: Cluster, namespace: str) -> None:
    """Who has the right in the image's namespace. Who may only see it is told so, and to others it is not there."""
    team, store = cluster.namespace(), shelf.store()
    member, stranger = shelf.grant(team, "member"), shelf.grant(cluster.namespace(), "stranger")
    shared = shelf.image(namespace, b"shared", store=store, spec={"visibility": "shared", "members": [team]})
    only = shelf.grant(namespace, "only", only=[shared.name])
    wait_until("the image", lambda: ask(gateway + shared.path, token=member).status == 200, timeout=20)
    assert ask(link(gateway, shared, only)).body == b"shared"
    missing = Shown(namespace, "missing", "", {})
    gone = refused(wish(gateway, missing, stranger), "no such image", 404)
    for where, account in ((image, stranger), (image, member), (image, only), (shared, stranger)):
        assert refused(wish(gateway, where, account), "no such image", 404) == gone
    refused(wish(gateway, shared, member), "permission")
    assert wish(gateway, image, None).status == 401
    assert wish(gateway, image, "nonsense").status == 401
    # a link is no right to ask for others
    signed = link(gateway, shared, only)
    assert ask(signed.replace("/revisions/1?", "/links?"), method="POST").status == 401


def altered(url: str) -> Iterator[str]:
    """The link with one thing changed."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    base = f"{parts.scheme}://{parts.netloc}{parts.path}"
    later = str(int(query["expires"]) + 1)
    other = query["signature"]
    swapped = "".join(chr(ord(c) ^ 32) if c.isalpha() else c for c in other)
    for name, values in {
        "uid": ["", "another", query["uid"].upper()],
        "expires": ["", later, "99999999999", f"{query['expires']}.0", "-1", "١٢٣", "9" * 5000],
        "key": ["", "20270101T000000Z", "../x", "x" * 300],
        "signature": ["", "x", other[:-1], other + "A", other + "=", "A" * 43, swapped, f"{other}\n", "ä" * 43],
    }.items():
        for value in values:
            yield f"{base}?{urlencode(query | {name: value})}"
        if name != "signature":
            yield f"{base}?{urlencode({k: v for k, v in query.items() if k != name})}"
        yield f"{url}&{urlencode({name: query[name]})}"
    yield f"{base}?signature"
    yield url.replace("/revisions/2?", "/revisions/1?")
    yield url.replace("/revisions/2?", "/revisions/1.sha256?")
    yield url.replace("/revisions/2?", "?")
    yield url.replace("/revisions/2?", ".sha256?")
    yield url.replace("/images/", "/images/x")
    yield url.replace("/namespaces/", "/namespaces/x")


def test_an_altered_link(gateway: str, image: Shown, token: str) -> None:
    """Whatever is changed, left out or given twice: it is refused as a whole, also with a good token besides."""
    url = link(gateway, image, token)
    seen = 0
    for each in altered(url):
        seen += 1
        for account in (None, token):
            refused(ask(each, token=account), "link")
    assert seen > 30
    assert ask(url).status == 200


def test_links_cannot_be_mixed(gateway: str, image: Shown, shelf: Shelf, namespace: str, token: str) -> None:
    """The signature of one link is none for another image, revision or time."""
    other = shelf.image(namespace, b"other", store=shelf.store())
    urls = [
        link(gateway, image, token),
        link(gateway, image, token, revision=1),
        link(gateway, image, token, expiresIn="2h"),
        link(gateway, other, token),
    ]
    signatures = [dict(parse_qsl(urlsplit(url).query))["signature"] for url in urls]
    assert len(set(signatures)) == len(urls)
    for url, own in zip(urls, signatures, strict=True):
        for foreign in set(signatures) - {own}:
            refused(ask(url.replace(own, foreign)), "altered")


def test_another_method(gateway: str, image: Shown, token: str) -> None:
    """A link for HEAD gives no bytes, and no link is good for a method that changes something."""
    head = link(gateway, image, token, method="HEAD")
    assert ask(head, method="HEAD").status == 200
    refused(ask(head), "method")
    get = link(gateway, image, token)
    for method in ("PUT", "POST", "PATCH", "DELETE", "OPTIONS"):
        assert ask(get, method=method).status == 405


def test_an_expired_link(gateway: str, image: Shown, token: str, keys: dict[str, str]) -> None:
    """It is refused from the moment on that it names; what it was for is not looked at."""
    short = link(gateway, image, token, expiresIn="1s")
    wait_until("the end", lambda: ask(short).status == 403, timeout=10)
    refused(ask(short), "expired")
    assert ask(short, method="HEAD").status == 403
    (key,) = linkkeys.read({"data": keys}).values()
    for name in (image.name, "missing"):
        terms = Terms("GET", image.namespace, name, image.uid, 2, int(time.time()) - 1)
        query = {"uid": image.uid, "expires": terms.expires, "key": key.name, "signature": terms.signature(key)}
        refused(ask(f"{gateway}{terms.path}?{urlencode(query)}"), "expired")


def test_what_is_lost(gateway: str, image: Shown, shelf: Shelf, namespace: str, token: str) -> None:
    """Of an image that is gone or was made anew, and of a revision that is not kept, a link says the same."""
    store = shelf.store()
    old = shelf.image(namespace, b"old", store=store, name="one")
    url = link(gateway, old, token)
    assert ask(url).body == b"old"
    shelf.delete(old)
    wait_until("it to be gone", lambda: ask(url).status == 403, timeout=20)
    gone = refused(ask(url), "no longer there")
    new = shelf.image(namespace, b"new", store=store, name="one")
    wait_until("the new one", lambda: ask(gateway + new.path, token=token).status == 200, timeout=20)
    assert refused(ask(url), "no longer there") == gone
    assert ask(link(gateway, new, token)).body == b"new"
    first = link(gateway, image, token, revision=1)
    shelf.forget(image, 1)
    wait_until("it to be gone", lambda: ask(first).status == 403, timeout=20)
    assert refused(ask(first), "no longer there") == gone


def test_a_deactivated_image(gateway: str, shelf: Shelf, cluster: Cluster, namespace: str, image: Shown) -> None:
    """A link gives no more than its maker has: nothing of an image that was deactivated, whoever made the link."""
    admin = shelf.grant(namespace, "admin", resources=["images/data", "images/deactivated"])
    url, path = link(gateway, image, admin), cluster.path(image.object)
    cluster.request("PATCH", path, {"spec": {"deactivated": True}}, content_type="application/merge-patch+json")
    wait_until("the change", lambda: ask(url).status == 403, timeout=20)
    refused(ask(url), "deactivated")
    refused(wish(gateway, image, admin), "deactivated")
    assert ask(gateway + image.path, token=admin).status == 200


def test_signatures_are_not_logged(gateway: str, glimpse: Glimpse, image: Shown, token: str) -> None:
    """Neither the log nor the metrics have a query, or the names in it."""
    url = link(gateway, image, token)
    query = dict(parse_qsl(urlsplit(url).query))
    assert ask(url).status == 200
    assert ask(url + "1").status == 403
    assert ask(url.replace("/revisions/", "/nowhere/")).status == 404
    log = glimpse.processes["gateway"].log.read_text()
    metrics = ask(gateway + "/metrics").body.decode()
    assert f"POST {image.path}/links 201" in log
    assert f"GET {image.path}/revisions/2 200" in log
    assert 'method="POST"' in metrics
    for text in (log, metrics):
        for word in (query["signature"], query["key"], "signature=", "expires=", "key="):
            assert word not in text
    assert image.name not in metrics


@pytest.fixture
def replica(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Glimpse]]:
    """Starts further gateways, each with its settings."""
    running: list[Glimpse] = []

    def start(**settings: str) -> Glimpse:
        folder = tmp_path / f"replica-{len(running)}"
        running.append(server := Glimpse(folder, cluster=cluster, settings=settings))
        server.launch("gateway")
        server.await_ready("gateway")
        return server

    yield start
    for server in running:
        server.stop()


def test_at_every_replica_and_after_a_restart(
    gateway: str, replica: Callable[..., Glimpse], image: Shown, token: str
) -> None:
    """A link that one gateway has signed is good at each, and when it comes back: they share nothing but the keys."""
    other = replica(GLIMPSE_GATEWAY_URL=gateway)
    there = other.installation.gateway_url
    here, url = link(gateway, image, token), link(there, image, token)
    assert url.startswith(gateway)
    for each in (here, url):
        assert ask(each).body == ask(each.replace(gateway, there)).body == b"second"
    other.kill("gateway")
    other.launch("gateway")
    other.await_ready("gateway")
    for each in (here, url):
        assert ask(each.replace(gateway, there)).body == b"second"


def test_switched_off(replica: Callable[..., Glimpse], gateway: str, image: Shown, token: str) -> None:
    """Where links may live for no time there are none, and those that there were are not taken."""
    url = link(gateway, image, token)
    there = replica(GLIMPSE_LINKS__MAXIMUM="0").installation.gateway_url
    refused(wish(there, image, token), "switched off")
    refused(ask(url.replace(gateway, there)), "switched off")
    assert ask(there + image.path, token=token).status == 200


def test_keys_come_and_go(gateway: str, cluster: Cluster, image: Shown, token: str, keys: dict[str, str]) -> None:
    """The newest key signs, older ones are still good, and with a key all links go that it has signed."""

    def signer(url: str) -> str:
        return dict(parse_qsl(urlsplit(url).query))["key"]

    def patch(data: Mapping[str, str | None]) -> None:
        cluster.request("PATCH", cluster.path(SECRET), {"data": data}, content_type="application/merge-patch+json")

    first = link(gateway, image, token)
    assert [signer(first)] == list(keys)
    new, short = made("20260201T000000Z"), {"20260301T000000Z": base64.b64encode(b"x" * 31).decode()}
    patch(new | short)
    wait_until("the new key", lambda: signer(link(gateway, image, token)) in new, timeout=20)
    second = link(gateway, image, token)
    assert ask(first).status == ask(second).status == 200
    patch(dict.fromkeys(keys))
    wait_until("the old key to go", lambda: ask(first).status == 403, timeout=20)
    refused(ask(first), "key")
    assert ask(second).status == 200
    drop(cluster)
    wait_until("the last key to go", lambda: ask(second).status == 403, timeout=20)
    refused(wish(gateway, image, token), "no key", 503)
    put(cluster, keys)
    wait_until("the keys", lambda: ask(first).status == 200, timeout=20)
    refused(ask(second), "key")


def test_the_gateway_s_rights(cluster: Cluster) -> None:
    """It may watch this Secret and no other, and write none."""
    token = cluster.token_for(NAMESPACE, "glimpse-gateway")
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets"
    only = f"{path}?fieldSelector=metadata.name%3D"
    assert cluster.request("GET", only + linkkeys.SECRET_NAME, token=token)["kind"] == "SecretList"
    for method, where in (
        ("GET", path),
        ("GET", only + "other"),
        ("POST", path),
        ("PATCH", f"{path}/{linkkeys.SECRET_NAME}"),
        ("DELETE", f"{path}/{linkkeys.SECRET_NAME}"),
    ):
        with pytest.raises(ApiError) as error:
            cluster.request(method, where, token=token)
        assert error.value.reason == "Forbidden", (method, where)
