"""Downloads that a store's own server gives: where the gateway leads to, whom, and when it does not."""

import base64
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import boto3
import pytest
import trustme
from botocore.config import Config
from tests.gateway.signing import drop, known, link, made, put

from glimpse.testing.bodies import noise
from servers import Missing, wait_until
from servers.cdi import Importer
from servers.ceph import Ceph
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.require import require
from servers.shelf import Answer, Content, Shelf, Shown, ask
from servers.swift import Cloud, Swift

DATA = noise((3 << 20) + 7)
CONTAINER = "images"


class Far(NamedTuple):
    """A server, as an ImageStore names it; plain HTTP at 127.0.0.1, and to clients TLS or another name."""

    driver: str
    config: dict[str, Any]
    secret: dict[str, str]
    public: str
    """Its address for clients."""
    ca: Path | None = None

    def store(self, shelf: Shelf, prefix: str, **config: object) -> str:
        """A store there."""
        merged = self.config | {"prefix": prefix, "publicEndpoint": self.public} | config
        kept = {name: value for name, value in merged.items() if value is not None}
        return shelf.remote(self.driver, kept, self.secret, ca=self.ca.read_text() if self.ca else None)


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """Ceph's gateway, which speaks S3 over TLS."""
    try:
        with Ceph(tmp_path_factory.mktemp("ceph"), gateway=True, ca=trustme.CA()) as cluster:
            assert cluster.gateway
            url, ca = cluster.gateway.url, cluster.gateway.ca_file
            keys = {"accessKey": cluster.gateway.access_key, "secretKey": cluster.gateway.secret_key}
            client = boto3.client(
                "s3",
                endpoint_url=url,
                region_name="us-east-1",
                verify=str(ca),
                aws_access_key_id=keys["accessKey"],
                aws_secret_access_key=keys["secretKey"],
                config=Config(s3={"addressing_style": "path"}),
            )
            client.create_bucket(Bucket=CONTAINER)
            client.close()
            yield Far("s3", {"endpoint": url, "bucket": CONTAINER}, keys, url.replace("127.0.0.1", "localhost"), ca)
    except Missing as error:
        require("ceph", str(error))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """OpenStack Swift."""
    try:
        with Swift(tmp_path_factory.mktemp("swift"), memory=60) as cloud:
            yield cloud
    except Missing as error:
        require("swift", str(error))


@pytest.fixture(scope="module")
def swift(cloud: Cloud) -> Far:
    """A container with a key for temporary URLs."""
    cloud.call("PUT", f"/{CONTAINER}", {"X-Container-Meta-Temp-URL-Key": "signs-links"})
    config = {"authUrl": cloud.auth_url, "authVersion": "1", "container": CONTAINER, "segmentSize": "1Mi"}
    secret = {"user": cloud.user, "key": cloud.key, "tempURLKey": "signs-links"}
    return Far("swift", config, secret, f"http://localhost:{cloud.port}")


def launched(cluster: Cluster, folder: Path, mode: str, **settings: str) -> Iterator[Glimpse]:
    """A gateway with this setting."""
    given = {"GLIMPSE_GATEWAY_REDIRECT": mode, "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0", **settings}
    server = Glimpse(folder, cluster=cluster, settings=given)
    with server.running("gateway"):
        yield server


@pytest.fixture(scope="module")
def asked(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glimpse]:
    """A gateway that redirects who asks for it, and lets in who has no token."""
    yield from launched(cluster, tmp_path_factory.mktemp("asked"), "asked", GLIMPSE_GATEWAY_ANONYMOUS="true")


class Scene(NamedTuple):
    """What a test plays with."""

    gateway: Glimpse
    url: str
    """Its address."""
    shelf: Shelf
    namespace: str
    token: str
    """May download all of the namespace."""
    servers: Mapping[str, Far]

    def store(self, server: str, suffix: str = "", **config: object) -> str:
        """A store there of this test's own."""
        return self.servers[server].store(self.shelf, self.namespace + suffix, **config)

    def image(self, content: bytes | Content, **about: Any) -> Shown:
        """One in the namespace; public, unless it is said otherwise."""
        return self.shelf.image(self.namespace, content, **{"spec": {"visibility": "public"}} | about)

    def get(self, image: Shown, query: str = "?redirect=true", **asked: Any) -> Answer:
        """By default without a token, and asking to be led on; waits until the gateway has heard of the image."""
        wait_until(image.name, lambda: ask(f"{self.url}{image.path}", method="HEAD").status != 401, timeout=20)
        return ask(f"{self.url}{image.path}{query}", **asked)


@pytest.fixture(scope="module")
def servers(radosgw: Far, swift: Far) -> Mapping[str, Far]:
    """Both."""
    return {"radosgw": radosgw, "swift": swift}


@pytest.fixture
def scene(asked: Glimpse, shelf: Shelf, namespace: str, token: str, servers: Mapping[str, Far]) -> Scene:
    """With a gateway that redirects who asks for it."""
    return Scene(asked, asked.installation.gateway_url, shelf, namespace, token, servers)


def follow(answer: Answer, out: Path, *args: str, ca: Path | None = None) -> bytes:
    """What a client gets where it was sent to, saved as the server says."""
    out.mkdir()
    trust = ["--cacert", str(ca)] if ca else []
    curl = ["curl", "-sSfOJ", *trust, *args, answer.headers["Location"]]
    subprocess.run(curl, check=True, timeout=60, cwd=out)
    (file,) = out.iterdir()
    assert file.name == "debian.qcow2"
    return file.read_bytes()


@pytest.mark.parametrize("kind", ["radosgw", "swift"])
def test_redirect(scene: Scene, kind: str, tmp_path: Path) -> None:
    """Who asks is led to the store's server, at the address that clients know: the bytes, ranges, and the file's name.

    The address is kept by no cache, and stands in no log.
    """
    far = scene.servers[kind]
    image = scene.image(DATA, store=scene.store(kind), name="debian", disk_format="qcow2")
    assert scene.get(image, "").body == DATA
    got = scene.get(image)
    assert (got.status, got.body) == (307, b"")
    assert got.headers["Cache-Control"] == "no-store"
    assert got.headers["Referrer-Policy"] == "no-referrer"
    where = got.headers["Location"]
    assert where.startswith(far.public)
    assert "signs-links" not in where
    assert follow(got, tmp_path / "whole", ca=far.ca) == DATA
    assert follow(got, tmp_path / "part", "-r", "5-9", ca=far.ca) == DATA[5:10]
    assert scene.get(image, f"/revisions/1?uid={image.uid}&redirect=true").status == 307
    log = scene.gateway.processes["gateway"].log.read_text()
    assert f"GET {image.path} 307" in log
    (signature,) = (pair[-40:] for pair in where.split("&") if "ignature=" in pair or "temp_url_sig=" in pair)
    assert signature not in log
    assert "localhost:" not in log


def test_a_client_that_follows(scene: Scene, tmp_path: Path) -> None:
    """A client follows by itself, sends its range along, and resumes."""
    image = scene.image(DATA, store=scene.store("radosgw"))
    out = tmp_path / "out"
    out.write_bytes(DATA[:1000])
    trust = ["--cacert", str(scene.servers["radosgw"].ca)]
    url = f"{scene.url}{image.path}?redirect=true"
    curl = [
        "curl",
        "-sSfL",
        *trust,
        "-o",
        str(out),
        "-C",
        "-",
        "-w",
        "%{num_redirects}",
    ]
    done = subprocess.run([*curl, url], check=True, timeout=60, capture_output=True)
    assert (done.stdout, out.read_bytes()) == (b"1", DATA)


def test_an_importer_that_sends_all_headers_on(scene: Scene, tmp_path: Path) -> None:
    """KubeVirt's CDI is led on without a token; the token that it sends, by whatever header, reaches no other server.

    What else it was told to send it sends to the store's server too.
    """
    far, authority = scene.servers["radosgw"], tmp_path / "certificates"
    assert far.ca
    authority.mkdir()
    (authority / "tls.crt").write_bytes(far.ca.read_bytes())
    image = scene.image(DATA, store=scene.store("radosgw"))
    assert scene.get(image).status == 307
    url, server = f"{scene.url}{image.revision()}&redirect=true", urlsplit(far.public).netloc
    led = Importer(tmp_path / "led", url, len(DATA) + 512, certificates=authority, extra=("X-Extra: word",))
    assert led.run(restarts=0).disk.read_bytes()[: len(DATA)] == DATA
    assert [headers["X-Extra"] for asked, headers in led.asked if asked == server] == ["word"] * 2
    for name, said in (
        ("basic", {"secret": {"accessKeyId": "token", "secretKey": scene.token}}),
        ("bearer", {"extra": (f"Authorization: Bearer {scene.token}",)}),
    ):
        kept = Importer(tmp_path / name, url, len(DATA) + 512, certificates=authority, **said)
        assert kept.run(restarts=0).disk.read_bytes()[: len(DATA)] == DATA
        assert {asked for asked, _ in kept.asked} == {urlsplit(scene.url).netloc}


def test_streamed(scene: Scene) -> None:
    """What the store would answer otherwise is streamed: HEAD, preconditions, checksums, and all that is not asked.

    And who sends a token, by Bearer or Basic, which his client may send to the store as well.
    """
    image = scene.image(DATA, store=scene.store("radosgw"))
    etag = scene.get(image, method="HEAD").headers["ETag"]
    for query in ("", "?redirect=false", "?redirected=true"):
        assert scene.get(image, query).status == 200
    for query in ("?redirect=", "?redirect=1", "?redirect=maybe", "?redirect=true&redirect=false"):
        answer = scene.get(image, query)
        assert (answer.status, b"redirect must be true or false" in answer.body) == (400, True)
        assert scene.get(image, f".sha256{query}").status == 400
    assert scene.get(image, method="HEAD").status == 200
    assert scene.get(image, ".sha256?redirect=true").status == 200
    basic = "Basic " + base64.b64encode(f"any:{scene.token}".encode()).decode()
    table: list[tuple[Mapping[str, str], int]] = [
        ({"Authorization": basic}, 200),
        ({"Authorization": f"Bearer {scene.token}"}, 200),
        ({"authorization": f"bearer {scene.token}"}, 200),
        ({"If-Match": etag}, 200),
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
        ({"If-Unmodified-Since": "Fri, 01 Jan 2038 00:00:00 GMT"}, 200),
        ({"If-Range": etag, "Range": "bytes=0-1"}, 206),
        ({"Range": "bytes=0-1"}, 307),
    ]
    for headers, status in table:
        assert scene.get(image, headers=headers).status == status, headers


def test_only_where_clients_reach_it(scene: Scene) -> None:
    """A store without an address for clients, one without the key, one without a server: their bytes are streamed."""
    swift = scene.servers["swift"]
    lacking = swift._replace(secret={name: key for name, key in swift.secret.items() if name != "tempURLKey"})
    stores = {
        "no address": scene.store("radosgw", "/a", publicEndpoint=None),
        "no key": lacking.store(scene.shelf, f"{scene.namespace}-b"),
        "files": scene.shelf.store(),
    }
    for what, store in stores.items():
        got = scene.get(scene.image(DATA, store=store))
        assert (got.status, got.body) == (200, DATA), what
    # any store that can is taken, also where another one is before it
    assert scene.get(scene.image(Content(DATA, [stores["files"], scene.store("radosgw", "/c")]))).status == 307


def test_only_what_was_verified(scene: Scene) -> None:
    """To an object of another size or digest nobody is led, nor to one that is gone."""
    shelf, store = scene.shelf, scene.store("radosgw")
    images = [scene.image(Content(DATA, [shelf.store()], absent=[store])) for _ in range(3)]
    shelf.put(store, images[0], 1, DATA[:-1])
    shelf.put(store, images[1], 1, DATA, digest="sha256:" + "0" * 64)
    for image in images:
        got = scene.get(image)
        assert (got.status, got.body) == (200, DATA)
    shelf.put(store, images[2], 1, DATA)
    assert scene.get(images[2]).status == 307


def test_who_is_redirected(scene: Scene) -> None:
    """Who may not download gets no address, nor does who has sent a token; of a deactivated image nobody does."""
    store, shelf, cluster = scene.store("radosgw"), scene.shelf, scene.shelf.cluster
    shown = {
        name: scene.image(DATA, store=store, spec=spec)
        for name, spec in (("private", {}), ("public", {"visibility": "public"}), ("stopped", {"deactivated": True}))
    }
    inspector = shelf.grant(scene.namespace, "inspector", resources=("images/data", "images/deactivated"))
    stranger = cluster.token_for(cluster.namespace(), "default", audience="glimpse")
    table = {
        ("private", None): 401,
        ("private", stranger): 404,
        ("private", scene.token): 200,
        ("public", None): 307,
        ("public", stranger): 200,
        ("stopped", None): 401,
        ("stopped", scene.token): 403,
        ("stopped", inspector): 200,
    }
    for (name, who), status in table.items():
        got = ask(f"{scene.url}{shown[name].path}?redirect=true", token=who)
        assert got.status == status, (name, who)
        assert status == 307 or got.headers["Location"] is None


def test_signed_links(scene: Scene) -> None:
    """A signed link leads on too, to an address that is good no longer than the link; and none longer than a minute."""
    cluster, keys = scene.shelf.cluster, made("20260101T000000Z")
    put(cluster, keys)
    wait_until("the keys", lambda: known(scene.url, keys), timeout=20)
    try:
        for server in scene.servers:
            image = scene.image(DATA, store=scene.store(server), spec={})
            short, long = (link(scene.url, image, scene.token, expiresIn=life) for life in ("30s", "1h"))
            began = time.time()
            assert began < ends(ask(f"{short}&redirect=true")) <= int(terms(short)["expires"])
            assert began + 31 < ends(ask(f"{long}&redirect=true")) <= time.time() + 61
            assert ask(f"{long}&redirect=true", token=scene.token).status == 200
    finally:
        drop(cluster)


def terms(url: str) -> dict[str, str]:
    """What stands in its query."""
    return dict(parse_qsl(urlsplit(url).query))


def ends(answer: Answer) -> float:
    """When the address ends that a redirect leads to, in seconds since 1970."""
    assert answer.status == 307
    said = terms(answer.headers["Location"])
    if "temp_url_expires" in said:
        return int(said["temp_url_expires"])
    return datetime.strptime(said["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp() + int(said["X-Amz-Expires"])


@pytest.mark.parametrize(
    ("mode", "url", "statuses"),
    [
        ("always", "http://images.example", [307, 307]),
        ("always", "https://images.example", [307, 200]),
        ("off", "http://images.example", [200, 200]),
    ],
)
def test_modes(scene: Scene, tmp_path: Path, mode: str, url: str, statuses: list[int]) -> None:
    """By `always` all are led on unless they say no; from https never to http; by `off`, the default, nobody is."""
    images = [scene.image(DATA, store=scene.store(server)) for server in scene.servers]
    settings = {"GLIMPSE_GATEWAY_URL": url, "GLIMPSE_GATEWAY_ANONYMOUS": "true"}
    for server in launched(scene.shelf.cluster, tmp_path / "gateway", mode, **settings):
        there = scene._replace(url=server.installation.gateway_url)
        query = "" if mode == "always" else "?redirect=true"
        assert [there.get(image, query).status for image in images] == statuses
        assert [there.get(image, "?redirect=false").status for image in images] == [200, 200]
        assert [there.get(image, "?redirect=maybe").status for image in images] == [400, 400]
