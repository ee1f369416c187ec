"""TLS at the gateway itself: downloads, a certificate that changes, and clients who never finish the handshake."""

import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from glimpse.gateway.tls import Certificate
from glimpse.testing.bodies import noise
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster
from servers.shelf import Answer, Shelf, ask

DATA = noise(48 << 20) + b"the end"
CLIENT = 8
"""Connections of one client."""


class Mounted:
    """A Secret of the type `kubernetes.io/tls`, as the kubelet mounts it: all its files are replaced by one rename."""

    def __init__(self, folder: Path, ca: trustme.CA) -> None:
        self.folder, self._ca, self._number = folder, ca, 0
        folder.mkdir()
        ca.cert_pem.write_to_path(str(folder.parent / "ca.crt"))
        self.put(*self.issue())
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    @property
    def ca(self) -> Path:
        """Who signs."""
        return self.folder.parent / "ca.crt"

    @property
    def files(self) -> tuple[Path, Path]:
        """The certificate and its key."""
        return self.folder / "tls.crt", self.folder / "tls.key"

    def issue(self) -> tuple[bytes, bytes]:
        """A new certificate and its key."""
        made = self._ca.issue_cert("127.0.0.1")
        return b"".join(blob.bytes() for blob in made.cert_chain_pems), made.private_key_pem.bytes()

    def put(self, certificate: bytes, key: bytes) -> None:
        """Replace both."""
        self._number += 1
        version = self.folder / f"..version-{self._number}"
        version.mkdir()
        (version / "tls.crt").write_bytes(certificate)
        (version / "tls.key").write_bytes(key)
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self.folder / "..data")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Mounted:
    """The certificate of the gateway."""
    return Mounted(tmp_path_factory.mktemp("tls") / "secret", trustme.CA())


@pytest.fixture(scope="module")
def secure(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, mounted: Mounted) -> Iterator[Glimpse]:
    """A gateway that speaks TLS."""
    certificate, key = mounted.files
    settings = {
        "GLIMPSE_GATEWAY_IDLE": "5",
        "GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": str(CLIENT),
        "GLIMPSE_GATEWAY_TLS_CERTIFICATE": str(certificate),
        "GLIMPSE_GATEWAY_TLS_KEY": str(key),
    }
    server = Glimpse(tmp_path_factory.mktemp("gateway"), cluster=cluster, settings=settings, ca=mounted.ca)
    with server.running("gateway"):
        yield server


def enter(secure: Glimpse, client: str = "127.0.0.1") -> socket.socket:
    """A connection from this address, without a handshake."""
    parts = urlsplit(secure.installation.gateway_url)
    return socket.create_connection(("127.0.0.1", parts.port or 0), timeout=30, source_address=(client, 0))


@contextlib.contextmanager
def agreed(
    secure: Glimpse, mounted: Mounted, client: str = "127.0.0.1", **limits: ssl.TLSVersion
) -> Iterator[ssl.SSLSocket]:
    """A connection after the handshake; `limits` on the versions of TLS."""
    context = ssl.create_default_context(cafile=mounted.ca)
    for name, version in limits.items():
        setattr(context, name, version)
    with enter(secure, client) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        yield connection


def shown(secure: Glimpse, mounted: Mounted) -> bytes:
    """The certificate that a new connection gets to see."""
    with agreed(secure, mounted) as connection:
        return connection.getpeercert(binary_form=True) or b""


def der(certificate: bytes) -> bytes:
    """The first of a chain, as it is shown."""
    return ssl.PEM_cert_to_DER_cert(certificate.decode().partition("-----END")[0] + "-----END CERTIFICATE-----\n")


def alone(secure: Glimpse, mounted: Mounted) -> bool:
    """Whether nobody is connected but who asks."""
    return b"\nglimpse_gateway_connections 1.0\n" in ask(url(secure, "/metrics"), ca=mounted.ca).body


def url(secure: Glimpse, path: str) -> str:
    """A link."""
    return secure.installation.gateway_url + path


def test_download(secure: Glimpse, mounted: Mounted, shelf: Shelf, namespace: str, token: str) -> None:
    """A large image comes whole and in ranges, with the same headers as without TLS; so do probes and counters."""
    image = shelf.image(namespace, DATA, store=shelf.store())

    def get(method: str = "GET", **headers: str) -> Answer:
        return ask(url(secure, image.path), token=token, ca=mounted.ca, headers=headers, method=method)

    digest = hashlib.sha256(DATA).hexdigest()
    whole = get()
    assert (whole.status, whole.headers["Content-Length"]) == (200, str(len(DATA)))
    assert hashlib.sha256(whole.body).hexdigest() == digest
    assert whole.headers["ETag"] == f'"sha256:{digest}"'
    assert (get("HEAD").status, get("HEAD").body) == (200, b"")
    for start, end in ((0, 1), ((4 << 20) - 1, (4 << 20) + 1), (12345, 30 << 20), (len(DATA) - 7, len(DATA))):
        part = get(Range=f"bytes={start}-{end - 1}")
        assert (part.status, part.headers["Content-Range"]) == (206, f"bytes {start}-{end - 1}/{len(DATA)}")
        assert hashlib.sha256(part.body).digest() == hashlib.sha256(DATA[start:end]).digest()
    assert get(Range=f"bytes={len(DATA)}-").status == 416
    for path in ("/healthz", "/readyz", "/metrics"):
        assert ask(url(secure, path), ca=mounted.ca).status == 200


def test_versions(secure: Glimpse, mounted: Mounted) -> None:
    """TLS 1.2 and 1.3 are spoken; plain HTTP on the same port gets no answer, and harms nobody."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with agreed(secure, mounted, minimum_version=version, maximum_version=version) as connection:
            assert connection.version() == version.name.replace("_", ".")
    with enter(secure) as plain, contextlib.suppress(ConnectionError):
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(1 << 16)
    assert ask(url(secure, "/healthz"), ca=mounted.ca).status == 200


def test_new_certificate(secure: Glimpse, mounted: Mounted, shelf: Shelf, namespace: str, token: str) -> None:
    """A new pair is shown to who comes after it without a restart, and a running download goes on to its end."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    process = secure.processes["gateway"].pid
    with agreed(secure, mounted) as connection:
        asked = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        connection.sendall(asked.encode())
        got = bytearray(connection.recv(1 << 16))
        certificate, key = mounted.issue()
        mounted.put(certificate, key)

        def taken() -> bool:
            got.extend(connection.recv(1000))  # or it would be cut off as one who takes nothing
            return shown(secure, mounted) == der(certificate)

        wait_until("the new certificate", taken, timeout=30)
        while chunk := connection.recv(1 << 20):
            got += chunk
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert hashlib.sha256(body).digest() == hashlib.sha256(DATA).digest()
    assert secure.processes["gateway"].pid == process


def test_broken_pair(secure: Glimpse, mounted: Mounted) -> None:
    """A pair that does not fit is logged, and the one before goes on, until a good one comes."""
    before, log = shown(secure, mounted), secure.processes["gateway"].log
    good = mounted.issue()
    mounted.put(good[0], mounted.issue()[1])
    wait_until("the log", lambda: "the certificate before goes on" in log.read_text(), timeout=30)
    assert f"GLIMPSE_GATEWAY_TLS_KEY: {mounted.files[1]} is not the key of the certificate" in log.read_text()
    assert shown(secure, mounted) == before != der(good[0])
    mounted.put(*good)
    wait_until("the new certificate", lambda: shown(secure, mounted) == der(good[0]), timeout=30)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], ids=["nothing", "a begin"])
def test_slow_handshake(secure: Glimpse, mounted: Mounted, sent: bytes) -> None:
    """Who does not finish the handshake is closed after the limit (5 s here), and holds a place only until then."""
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        held = [stack.enter_context(enter(secure, "127.0.0.2")) for _ in range(CLIENT)]
        for connection in held:
            connection.sendall(sent)
        with agreed(secure, mounted, "127.0.0.2") as more:
            more.sendall(b"GET /v1/images HTTP/1.1\r\nHost: x\r\n\r\n")
            assert more.recv(12) == b"HTTP/1.1 503"  # there is no place left
        for connection in held:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        assert 4 < time.monotonic() - began < 12
        with agreed(secure, mounted, "127.0.0.2") as connection:
            assert connection.version()
    wait_until("all places to be free", lambda: alone(secure, mounted), timeout=10)


def test_silence_after_the_handshake(secure: Glimpse, mounted: Mounted) -> None:
    """Who asks nothing, and does not answer the goodbye either, has no place for ever."""
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENT):
            stack.enter_context(agreed(secure, mounted, "127.0.0.2"))
        assert not alone(secure, mounted)
        wait_until("all places to be free", lambda: alone(secure, mounted), timeout=30)


def test_client_that_takes_nothing(secure: Glimpse, mounted: Mounted, shelf: Shelf, namespace: str, token: str) -> None:
    """Who stops reading in the middle of a download is cut off after the limit (5 s here), as without TLS."""
    image = shelf.image(namespace, DATA, store=shelf.store())
    asked = f"GET {image.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENT):
            connection = stack.enter_context(agreed(secure, mounted, "127.0.0.2"))
            connection.sendall(asked)
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert not alone(secure, mounted)
        wait_until("all places to be free", lambda: alone(secure, mounted), timeout=30)


def test_cannot_start(cluster: Cluster, tmp_path: Path) -> None:
    """Without a certificate that can be used the gateway ends with status 1 and one line that says what is wrong."""
    mounted = Mounted(tmp_path / "secret", trustme.CA())
    certificate, key = mounted.files
    mounted.put(mounted.issue()[0], b"")
    settings = {"GLIMPSE_GATEWAY_TLS_CERTIFICATE": str(certificate), "GLIMPSE_GATEWAY_TLS_KEY": str(key)}
    server = Glimpse(tmp_path / "gateway", cluster=cluster, settings=settings)
    try:
        process = server.launch("gateway")
        assert process.wait(30)
        assert process.child
        assert process.child.returncode == 1
        assert f"GLIMPSE_GATEWAY_TLS_KEY: {key} has no usable key in PEM" in process.log.read_text()
        assert "Traceback" not in process.log.read_text()
    finally:
        server.stop()


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    """A file that is missing or wrong is named with its setting, and no password is asked for."""
    mounted = Mounted(tmp_path / "secret", trustme.CA())
    (certificate, key), (good, good_key) = mounted.files, mounted.issue()
    loaded = serialization.load_pem_private_key(good_key, None)
    encrypted = loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    for pair, message in (
        ((b"", good_key), f"GLIMPSE_GATEWAY_TLS_CERTIFICATE: {certificate} has no certificate in PEM"),
        ((good_key, good_key), f"GLIMPSE_GATEWAY_TLS_CERTIFICATE: {certificate} has no certificate in PEM"),
        ((good, good), f"GLIMPSE_GATEWAY_TLS_KEY: {key} has no usable key in PEM"),
        ((good, mounted.issue()[1]), f"GLIMPSE_GATEWAY_TLS_KEY: {key} is not the key of the certificate"),
        ((good, encrypted), f"GLIMPSE_GATEWAY_TLS_KEY: {key} is encrypted; write it without a password"),
    ):
        mounted.put(*pair)
        with pytest.raises(OSError, match=message):
            Certificate(certificate, key)
    key.unlink()
    with pytest.raises(OSError, match=f"GLIMPSE_GATEWAY_TLS_KEY: {key}: No such file or directory"):
        Certificate(certificate, key)
