"""The S3 store by other ways: session tokens, web identities, virtual addressing, damage, and what is refused."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs

import boto3
import pytest
from botocore.config import Config
from tests.stores.buckets import Server
from tests.stores.damage import Damage

from glimpse.problems import DataLost, StoreFull, StoreUnauthorized, StoreUnavailable
from glimpse.runners import Inline
from glimpse.stores import Store, open_store
from glimpse.stores.s3 import client as s3_client
from glimpse.streams import CHUNK
from glimpse.tasks import Failed, StoreRef, Verify
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, put, read
from servers import Missing, run, tool, wait_until
from servers.ceph import Ceph, Cluster
from servers.require import require

DOMAIN: Final = "s3.test"
MOST: Final = 4 << 20
"""Bytes that the gateway takes in one request: what are 5 GiB elsewhere."""


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ceph, whose gateway gives out session tokens, knows buckets by host names, and takes no large requests."""
    options: dict[str, str | int] = {
        "rgw sts key": "0123456789abcdef",
        "rgw s3 auth use sts": "true",
        "rgw sts min session duration": 1,
        "rgw dns name": DOMAIN,
        "rgw max put size": MOST,
        "rgw multipart min part size": CHUNK,
    }
    server = Ceph(tmp_path_factory.mktemp("ceph"), gateway=True, options=options)
    try:
        with server:
            yield server.cluster
    except Missing as error:
        require("ceph", str(error))


def admin(ceph: Cluster, *words: str) -> None:
    """What the gateway's administrator does."""
    run(tool("radosgw-admin", "radosgw"), "--conf", ceph.conf, "-n", "client.rgw.a", *words)


@pytest.fixture(scope="module")
def server(ceph: Cluster) -> Server:
    """A bucket."""
    gateway = ceph.gateway
    assert gateway
    port = int(gateway.url.rpartition(":")[2])
    server = Server(gateway.url, port, gateway.access_key, gateway.secret_key, None, "images")
    server.client().create_bucket(Bucket=server.bucket)
    trust = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/glimpse"]}, "Action": ["sts:AssumeRole"]}
    rights = {"Effect": "Allow", "Action": ["s3:*"], "Resource": "arn:aws:s3:::*"}
    admin(ceph, "role", "create", "--role-name=images", f"--assume-role-policy-doc={policy(trust)}")
    admin(ceph, "role-policy", "put", "--role-name=images", "--policy-name=all", f"--policy-doc={policy(rights)}")
    return server


def policy(statement: dict[str, Any]) -> str:
    """As Amazon writes them."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture
def ref(outside: Path, server: Server) -> StoreRef:
    """A store below a prefix of its own."""
    assert outside.is_dir()
    return server.ref(f"test/{token_hex(4)}")


@pytest.fixture
def store(ref: StoreRef) -> Store:
    """The store, claimed."""
    store = open_store(ref)
    store.claim()
    return store


# Credentials that expire


def session(server: Server, seconds: int) -> dict[str, str]:
    """Credentials of the role, with a session token."""
    sts = boto3.client(
        "sts",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.access,
        aws_secret_access_key=server.secret,
        config=Config(parameter_validation=False),  # it asks for 15 minutes at least
    )
    given = sts.assume_role(RoleArn="arn:aws:iam:::role/images", RoleSessionName="tests", DurationSeconds=seconds)
    found = given["Credentials"]
    assert found["SessionToken"]
    return {
        "accessKey": found["AccessKeyId"],
        "secretKey": found["SecretAccessKey"],
        "sessionToken": found["SessionToken"],
    }


def test_credentials_with_a_session_token(server: Server, ref: StoreRef) -> None:
    """All three are needed: with them the store is written and read in parts, and linked to; without, refused."""
    secret = session(server, 900)
    prefix = ref.config["prefix"]
    store = open_store(server.ref(prefix, secret=secret))
    put(store, KEY, noise(5 << 20))
    assert read(store, KEY) == noise(5 << 20)
    assert "X-Amz-Security-Token=" in (store.link(KEY, 60, "x.raw") or "")
    lacking = {name: value for name, value in secret.items() if name != "sessionToken"}
    with pytest.raises(StoreUnauthorized):
        open_store(server.ref(prefix, secret=lacking)).claim()


def test_a_session_token_that_has_expired(server: Server, ref: StoreRef) -> None:
    """Every call says so, with the way out and no secret; new credentials in the Secret mend it."""
    prefix = ref.config["prefix"]
    secret = session(server, 2)
    store = open_store(server.ref(prefix, secret=secret))
    put(store, KEY, b"bytes")

    def expired() -> bool:
        try:
            store.probe()
        except StoreUnauthorized:
            return True
        return False

    wait_until("the end of the token", expired, timeout=30)
    for action in (store.claim, store.probe, lambda: read(store, KEY), lambda: put(store, f"{KEY}0", b"x")):
        with pytest.raises(
            StoreUnauthorized, match="if the session token in the Secret has expired, put new"
        ) as raised:
            action()
        assert not any(value in raised.value.message for value in secret.values())
    assert read(open_store(server.ref(prefix, secret=session(server, 900))), KEY) == b"bytes"


class Tokens(BaseHTTPRequestHandler):
    """Gives out credentials for a web identity, as Amazon's STS does; those of a role of the gateway."""

    keys: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[dict[str, list[str]]]] = []

    def do_POST(self) -> None:
        """AssumeRoleWithWebIdentity."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.asked.append(form)
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        known = form["WebIdentityToken"] == ["t0ken"]
        body = (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            "<AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{self.keys['accessKey']}</AccessKeyId>"
            f"<SecretAccessKey>{self.keys['secretKey']}</SecretAccessKey>"
            f"<SessionToken>{self.keys['sessionToken']}</SessionToken><Expiration>{until}</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            if known
            else "<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>"
        ).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Nothing."""


@contextmanager
def forgetful() -> Iterator[None]:
    """The library looks once at who the machine is."""
    s3_client._session.cache_clear()
    try:
        yield
    finally:
        s3_client._session.cache_clear()


def test_the_web_identity_of_a_pod(
    server: Server, ref: StoreRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a Secret the token in the pod's file is given for credentials of a role, session token and all.

    A token that is not taken is StoreUnauthorized, and is in no message.
    """
    monkeypatch.setattr(Tokens, "keys", session(server, 900))
    monkeypatch.setattr(Tokens, "asked", [])
    alone = ref.model_copy(update={"secret": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), Tokens) as sts, forgetful():
        serving = threading.Thread(target=sts.serve_forever)
        serving.start()
        try:
            monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
            monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/images")
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{sts.server_port}")
            (tmp_path / "token").write_text("an-old-t0ken")
            with pytest.raises(StoreUnauthorized, match=r"token service says 400.*AWS_ROLE_ARN") as raised:
                open_store(alone).claim()
            assert "t0ken" not in raised.value.message
            (tmp_path / "token").write_text("t0ken")
            store = open_store(alone)
            put(store, KEY, noise(3 << 20))
            assert read(store, KEY) == noise(3 << 20)
        finally:
            sts.shutdown()
            serving.join()
    assert Tokens.asked[-1]["RoleArn"] == ["arn:aws:iam::123456789012:role/images"]
    assert read(open_store(ref), KEY) == noise(3 << 20)


# Where the bucket is in the host name


def test_virtual_addressing(server: Server, ref: StoreRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds the bucket by the name it is called by, in every request, links too."""
    names = set()
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host).endswith(DOMAIN):
            names.add(host)
            host = "127.0.0.1"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    address = f"http://{DOMAIN}:{server.port}"
    config = ref.config | {"endpoint": address, "publicEndpoint": address, "addressing": "virtual"}
    store = open_store(ref.model_copy(update={"config": config}))
    put(store, KEY, noise(5 << 20))
    assert read(store, KEY) == noise(5 << 20)
    assert [entry.key for entry in store.list()] == [KEY]
    assert (store.link(KEY, 60, "x.raw") or "").startswith(
        f"http://images.{DOMAIN}:{server.port}/{ref.config['prefix']}"
    )
    assert names == {f"images.{DOMAIN}"}
    assert read(open_store(ref), KEY) == noise(5 << 20), "the same bucket as by its path"


# Damage on the way


@pytest.fixture
def damage(server: Server, ref: StoreRef) -> Iterator[tuple[Damage, StoreRef]]:
    """The store by such a wire."""
    with Damage(("127.0.0.1", server.port)) as wire:
        yield wire, server._replace(url=f"http://127.0.0.1:{wire.port}").ref(ref.config["prefix"])


@pytest.mark.parametrize("length", [500_000, 6 << 20], ids=["whole", "parts"])
def test_a_byte_that_is_changed_on_the_way_in(damage: tuple[Damage, StoreRef], store: Store, length: int) -> None:
    """The server refuses what has not the signed digest, nothing is there, and the next put is right."""
    wire, there = damage
    far = open_store(there)
    far.claim()
    wire.arm(300_000, upwards=True)
    with pytest.raises(StoreUnavailable, match=r"XAmzContentSHA256Mismatch|BadDigest"):
        put(far, KEY, noise(length))
    assert wire.changed == 1
    assert list(store.list()) == []
    put(far, KEY, noise(length))
    assert read(store, KEY) == noise(length)


async def test_a_byte_that_is_changed_on_the_way_out(damage: tuple[Damage, StoreRef], store: Store) -> None:
    """Who reads all of an object to believe it compares its digest, and says that the bytes are others."""
    wire, there = damage
    data = noise(3 << 20)
    record = record_of(KEY, digest=f"sha256:{sha256(data).hexdigest()}", size=len(data))
    store.put(KEY, "a1", Body(data), lambda: record)
    wire.arm(1 << 20, upwards=False)
    runner = Inline(stop_grace=2)
    try:
        task = Verify(key=KEY, digest=record.digest, store=there.model_copy(update={"driver": "s3"}))
        answer = await runner.run(task, lambda _: None)
    finally:
        await runner.close()
    assert wire.changed == 1
    assert isinstance(answer, Failed), answer
    assert answer.trouble.reason == DataLost.__name__
    assert read(store, KEY) == data


# What is refused, and what goes over more than one page


def test_uploads_over_several_pages(store: Store, ref: StoreRef, server: Server) -> None:
    """All that are unfinished are found, of one name and of several, with three in an answer."""
    prefix, s3 = ref.config["prefix"], server.client()
    wanted = set()
    for n in range(8):
        name = f"data/{KEY}{n % 5}.a{n // 5}"
        upload = s3.create_multipart_upload(Bucket=server.bucket, Key=f"{prefix}/{name}")["UploadId"]
        wanted.add((name, upload))
    upload = s3.create_multipart_upload(Bucket=server.bucket, Key=f"{prefix}/data/{KEY}0.a0")["UploadId"]
    wanted.add((f"data/{KEY}0.a0", upload))
    bucket = store.driver._bucket  # type: ignore[attr-defined]
    found = [(each.name, each.id) for each in bucket.uploads("data/")]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    for name, upload in wanted:
        s3.abort_multipart_upload(Bucket=server.bucket, Key=f"{prefix}/{name}", UploadId=upload)


def test_a_probe_tells_who_may_only_read(store: Store, ref: StoreRef, server: Server, ceph: Cluster) -> None:
    """Such a user sees the marker, so it is the probe that says what the first put would."""
    keys = ("--access-key=READER", "--secret-key=secretreader")
    admin(ceph, "user", "create", "--uid=reader", "--display-name=reader", *keys)
    rights = {
        "Effect": "Allow",
        "Principal": {"AWS": ["arn:aws:iam:::user/reader"]},
        "Action": ["s3:GetObject", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
        "Resource": [f"arn:aws:s3:::{server.bucket}", f"arn:aws:s3:::{server.bucket}/*"],
    }
    server.client().put_bucket_policy(Bucket=server.bucket, Policy=policy(rights))
    put(store, KEY, b"bytes")
    reader = open_store(server.ref(ref.config["prefix"], secret={"accessKey": "READER", "secretKey": "secretreader"}))
    reader.claim()
    assert read(reader, KEY) == b"bytes"
    for action in (reader.probe, lambda: put(reader, f"{KEY}0", b"x")):
        with pytest.raises(StoreUnauthorized, match=r"bucket images .* or what they may do: the server says 403"):
            action()


def test_a_server_that_takes_little_at_once(store: Store, ref: StoreRef, server: Server) -> None:
    """More than it takes in one request goes in parts; parts that are too large are refused with the way out."""
    put(store, KEY, noise(3 * MOST))
    assert read(store, KEY) == noise(3 * MOST)
    large = open_store(server.ref(ref.config["prefix"], partSize="8Mi"))
    with pytest.raises(StoreFull, match="smaller partSize"):
        put(large, f"{KEY}0", noise(3 * MOST))
    assert [entry.key for entry in store.list()] == [KEY]
