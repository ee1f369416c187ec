"""KubeVirt's importer: it gets what it insists on, from the first request to the disk of a machine."""

import filecmp
import hashlib
import subprocess
from pathlib import Path

import pytest
import trustme
from tests.gateway.line import line
from tests.gateway.signing import link

from glimpse.testing.bodies import noise
from servers import run
from servers.cdi import COMPRESSED, HEAD, Importer, ImportFailedError
from servers.glimpse import Glimpse
from servers.require import require_tool
from servers.shelf import Shelf, Shown, ask

ISO = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
MIB = 1 << 20


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk; beside it the same as qcow2."""
    for name, package in (("nbdkit", "nbdkit"), ("qemu-img", "qemu-utils")):
        require_tool(name, package)
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    path.write_bytes(noise(3 * MIB) + bytes(4 * MIB) + noise(MIB, seed=1))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, path.with_suffix(".qcow2"))
    return path


@pytest.fixture
def image(shelf: Shelf, namespace: str, disk: Path) -> Shown:
    """The disk as a qcow2 image."""
    return shelf.image(namespace, disk.with_suffix(".qcow2").read_bytes(), store=shelf.store(), disk_format="qcow2")


def basic(token: str) -> dict[str, str]:
    """The Secret of a DataVolume."""
    return {"accessKeyId": "token", "secretKey": token}


@pytest.mark.parametrize("kind", ["qcow2", "raw", "iso"])
def test_an_image_becomes_a_disk(
    *, gateway: str, glimpse: Glimpse, shelf: Shelf, namespace: str, token: str, disk: Path, tmp_path: Path, kind: str
) -> None:
    """Of a qcow2 image, a raw one and a disc, with the token in Basic: two pods, no failure, the right bytes."""
    path = {"qcow2": disk.with_suffix(".qcow2"), "raw": disk, "iso": ISO}[kind]
    expected = ISO if kind == "iso" else disk
    data = path.read_bytes()
    image = shelf.image(namespace, data, store=shelf.store(), disk_format=kind)
    checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
    size = expected.stat().st_size + MIB
    url = gateway + image.revision()
    done = Importer(tmp_path, url, size, secret=basic(token), checksum=checksum).run(restarts=0)
    assert (done.disk_format, done.length) == ("qcow2" if kind == "qcow2" else "raw", len(data))
    assert (done.pods, done.sized) == (2, True)
    assert filecmp.cmp(done.disk, expected, shallow=False)
    log = glimpse.processes["gateway"].log.read_text()
    assert f" HEAD {image.path}/revisions/1 200 " in log
    assert f" GET {image.path}/revisions/1 206 " in log


@pytest.mark.parametrize("kind", ["qcow2.gz", "raw.xz", "qcow2.zst"])
def test_a_compressed_image(
    *, gateway: str, shelf: Shelf, namespace: str, token: str, disk: Path, tmp_path: Path, kind: str
) -> None:
    """It is sent as it is, with the length and the digest of the packed bytes; the importer unpacks it."""
    inside, _, packed = kind.partition(".")
    program, package = COMPRESSED[packed]
    pack = [require_tool(program, package), "-c", str(disk.with_suffix(f".{inside}"))]
    data = subprocess.run(pack, check=True, capture_output=True, timeout=60).stdout
    image = shelf.image(namespace, data, store=shelf.store(), disk_format=inside)
    checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
    url, size = gateway + image.revision(), disk.stat().st_size
    done = Importer(tmp_path, url, size, secret=basic(token), checksum=checksum).run(restarts=0)
    assert (done.disk_format, done.length, done.sized) == (inside, len(data), False)
    assert filecmp.cmp(done.disk, disk, shallow=False)


def test_other_ways_in(
    *, gateway: str, image: Shown, keys: dict[str, str], token: str, disk: Path, tmp_path: Path
) -> None:
    """A header of `secretExtraHeaders`, or a signed link, which needs nothing."""
    assert keys
    size = disk.stat().st_size
    header = Importer(tmp_path / "one", gateway + image.revision(), size, extra=(f"Authorization: Bearer {token}",))
    signed = Importer(tmp_path / "two", link(gateway, image, token), size)
    for each in (header, signed):
        assert filecmp.cmp(each.run(restarts=0).disk, disk, shallow=False)


def test_over_tls(gateway: str, image: Shown, token: str, disk: Path, tmp_path: Path) -> None:
    """With TLS before the gateway, its authority in `tls.crt` is trusted by all of the importer; without it by none."""
    ca = trustme.CA()
    (tmp_path / "certs").mkdir()
    ca.cert_pem.write_to_path(str(tmp_path / "certs" / "tls.crt"))
    with line(gateway, ca=ca) as way:
        importer = Importer(tmp_path / "out", way.url + image.revision(), disk.stat().st_size, secret=basic(token))
        with pytest.raises(ImportFailedError, match="CERTIFICATE_VERIFY_FAILED"):
            importer.run(restarts=0)
        importer.certificates = tmp_path / "certs"
        done = importer.run(restarts=0)
    assert done.sized
    assert filecmp.cmp(done.disk, disk, shallow=False)


def test_behind_a_front_that_refuses_head(gateway: str, image: Shown, token: str, disk: Path, tmp_path: Path) -> None:
    """The importer takes the length from GET then, and goes without the look ahead."""
    with line(gateway, heads=False) as way:
        url = way.url + image.revision()
        done = Importer(tmp_path, url, disk.stat().st_size, secret=basic(token)).run(restarts=0)
    assert (done.length, done.sized) == (disk.with_suffix(".qcow2").stat().st_size, False)
    assert filecmp.cmp(done.disk, disk, shallow=False)


def test_a_line_that_breaks(gateway: str, image: Shown, token: str, disk: Path, tmp_path: Path) -> None:
    """The importer sees that bytes are missing, and another pod begins anew."""
    with line(gateway, cuts=2, after=2 * MIB) as way:
        url = way.url + image.revision()
        importer = Importer(tmp_path, url, disk.stat().st_size, secret=basic(token), scratch=True)
        with pytest.raises(ImportFailedError, match="unexpected EOF"):
            importer.run(restarts=0)
        done = importer.run(restarts=1)
        assert (way.cuts, done.pods) == (0, 2)
    assert filecmp.cmp(done.disk, disk, shallow=False)


def test_what_it_refuses(gateway: str, image: Shown, token: str, disk: Path, tmp_path: Path) -> None:
    """A token that is none and a volume too small end an import before its download; a wrong checksum after it."""
    size, url = disk.stat().st_size, gateway + image.revision()
    for importer, word in (
        (Importer(tmp_path, url, size, secret=basic("nonsense")), "got 401"),
        (Importer(tmp_path, url, size), "got 401"),
        (Importer(tmp_path, url, size - 1, secret=basic(token)), "larger than the volume"),
        (Importer(tmp_path, url, size, secret=basic(token), checksum=f"sha256:{'0' * 64}"), "checksum mismatch"),
    ):
        with pytest.raises(ImportFailedError, match=word):
            importer.run(restarts=0)


def test_bytes_as_they_are(gateway: str, image: Shown, token: str) -> None:
    """Its answers are exactly 200, of a type that it does not warn of, never compressed, and say that ranges work."""
    for method in ("HEAD", "GET"):
        answer = ask(gateway + image.revision(), token=token, method=method, headers={"Accept-Encoding": "gzip"})
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Content-Encoding"] is None
        assert int(answer.headers["Content-Length"]) >= HEAD
