"""Real clients, with a token and with a signed link: curl, wget, aria2c, qemu-img and nbdkit."""

import filecmp
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.gateway.line import line
from tests.gateway.signing import link

from glimpse.testing.bodies import noise
from servers import wait_until
from servers.glimpse import Glimpse
from servers.require import require, require_tool
from servers.shelf import Shelf, Shown
from servers.web import Web

DATA = noise((8 << 20) + 11)


@pytest.fixture
def image(shelf: Shelf, namespace: str) -> Shown:
    """An image of some size."""
    return shelf.image(namespace, DATA, store=shelf.store(), disk_format="qcow2")


def run(folder: Path, program: str, *args: str) -> bytes:
    """What a tool prints; it must succeed."""
    return subprocess.run([program, *args], cwd=folder, check=True, capture_output=True, timeout=60).stdout


def test_curl(gateway: str, image: Shown, token: str, tmp_path: Path) -> None:
    """Curl takes parts, goes on where it broke off, and does not fetch what it has."""
    curl = require_tool("curl", "curl")
    url, login = gateway + image.path, ["-sSf", "--oauth2-bearer", token]
    assert run(tmp_path, curl, *login, "-r", "100-199", url) == DATA[100:200]
    assert run(tmp_path, curl, *login, "-r", "-5", url) == DATA[-5:]
    (tmp_path / "part").write_bytes(DATA[:5_000_000])
    run(tmp_path, curl, *login, "-C", "-", "-o", "part", url)
    assert (tmp_path / "part").read_bytes() == DATA
    written = ["-w", "%{http_code} %{size_download}", "-o", "new", "--etag-save", "etag", "--etag-compare", "etag"]
    assert run(tmp_path, curl, *login, *written, url) == b"200 %d" % len(DATA)
    assert run(tmp_path, curl, *login, *written, url) == b"304 0"
    run(tmp_path, curl, "-sSfOJ", "-u", f"me:{token}", url)
    assert (tmp_path / f"{image.name}.qcow2").read_bytes() == DATA


def test_wget(gateway: str, image: Shown, token: str, tmp_path: Path) -> None:
    """Wget with Basic, as it answers a challenge; it goes on where it broke off, and names the file as we say."""
    wget = require_tool("wget", "wget")
    login = ["-q", "--user=me", f"--password={token}"]
    run(tmp_path, wget, *login, "--content-disposition", gateway + image.revision())
    assert (tmp_path / f"{image.name}.qcow2").read_bytes() == DATA
    (tmp_path / image.name).write_bytes(DATA[:4_000_000])
    run(tmp_path, wget, *login, "-c", gateway + image.path)
    assert (tmp_path / image.name).read_bytes() == DATA


def test_aria2(gateway: str, image: Shown, token: str, tmp_path: Path) -> None:
    """Eight connections, each with its range, make the same file."""
    aria2c = require_tool("aria2c", "aria2")
    header = f"--header=Authorization: Bearer {token}"
    run(tmp_path, aria2c, "-q", "-x8", "-s8", "-k1M", header, "-o", "eight", gateway + image.path)
    assert (tmp_path / "eight").read_bytes() == DATA


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with data, a hole and data; beside it the same as qcow2."""
    folder = tmp_path_factory.mktemp("disk")
    path = folder / "disk.raw"
    path.write_bytes(DATA[: 5 << 20] + bytes(4 << 20) + DATA[5 << 20 : 8 << 20])
    qemu = require_tool("qemu-img", "qemu-utils")
    run(folder, qemu, "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2")
    return path


@dataclass(frozen=True)
class Linked:
    """An image with a signed link."""

    image: Shown
    url: str
    log: Path

    def answered(self, code: int) -> int:
        """How many downloads got this status by now."""
        return self.log.read_text().count(f" GET {self.image.path}/revisions/1 {code} ")

    def only_in_parts(self) -> None:
        """Wait until the gateway has logged parts; it must never have been asked for the whole."""
        wait_until("answers with parts", lambda: self.answered(206) > 0, timeout=10)
        assert self.answered(200) == 0


@pytest.fixture
def linked(glimpse: Glimpse, keys: dict[str, str], shelf: Shelf, namespace: str, token: str) -> Callable[..., Linked]:
    """Puts an image on the shelf and gets a link for it."""
    assert keys

    def put(data: bytes, disk_format: str = "raw") -> Linked:
        image = shelf.image(namespace, data, store=shelf.store(), disk_format=disk_format)
        gateway = glimpse.installation.gateway_url
        return Linked(image, link(gateway, image, token), glimpse.processes["gateway"].log)

    return put


def test_a_link_over_a_line_that_breaks(gateway: str, linked: Callable[..., Linked], tmp_path: Path) -> None:
    """Curl is told of the break and goes on from where it was; wget does so by itself. The file is the image."""
    curl, wget = require_tool("curl", "curl"), require_tool("wget", "wget")
    one, two = linked(DATA), linked(DATA)
    with line(gateway, cuts=2, after=3_000_000) as way:
        url = one.url.replace(gateway, way.url)
        for left in (1, 0):
            broken = subprocess.run([curl, "-sSf", "-C", "-", "-o", "part", url], cwd=tmp_path, check=False, timeout=60)
            assert (broken.returncode, way.cuts) == (18, left)
        assert 0 < (tmp_path / "part").stat().st_size < len(DATA)
        run(tmp_path, curl, "-sSf", "-C", "-", "-o", "part", url)
    assert (tmp_path / "part").read_bytes() == DATA
    wait_until("the rest", lambda: one.answered(206) == 2, timeout=10)
    with line(gateway, cuts=2, after=3_000_000) as way:
        run(tmp_path, wget, "-q", "-c", "--waitretry=0", "-O", "whole", two.url.replace(gateway, way.url))
        assert way.cuts == 0
    assert (tmp_path / "whole").read_bytes() == DATA
    wait_until("the rest", lambda: two.answered(206) == 2, timeout=10)


def test_a_link_in_eight_parts(linked: Callable[..., Linked], tmp_path: Path) -> None:
    """Aria2c fetches over eight connections at once."""
    aria2c, image = require_tool("aria2c", "aria2"), linked(DATA)
    run(tmp_path, aria2c, "-q", "-x8", "-s8", "-k1M", "-o", "eight", image.url)
    assert (tmp_path / "eight").read_bytes() == DATA
    wait_until("the parts", lambda: image.answered(206) >= 7, timeout=10)


def need_qemu_over_http() -> str:
    """The path of a qemu-img that reads from the web."""
    qemu = require_tool("qemu-img", "qemu-utils")
    formats = run(Path("/"), qemu, "--help").decode().partition("Supported formats:")[2].split()
    if "http" not in formats:
        require("qemu-block-extra", "qemu-img has no driver for http; Debian has it in the package qemu-block-extra")
    return qemu


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_qemu_reads_a_link(linked: Callable[..., Linked], disk: Path, tmp_path: Path, disk_format: str) -> None:
    """Qemu's own driver for the web needs no file: it says what the image is, and converts it, by ranges."""
    qemu, stored = need_qemu_over_http(), disk.with_suffix(f".{disk_format}").read_bytes()
    image = linked(stored, disk_format)
    said = json.loads(run(tmp_path, qemu, "info", "--output=json", image.url))
    assert (said["format"], said["virtual-size"]) == (disk_format, disk.stat().st_size)
    # one request at a time: with several, qemu 7.2 may hang, as the next test shows
    run(tmp_path, qemu, "convert", "-m", "1", "-f", disk_format, "-O", "raw", image.url, "out")
    assert filecmp.cmp(tmp_path / "out", disk, shallow=False)
    image.only_in_parts()


def test_qemu_hangs_by_itself(disk: Path, tmp_path: Path) -> None:
    """Qemu 7.2 that asks for several ranges at once waits for ever for what nginx has sent, too."""
    qemu, _ = need_qemu_over_http(), require_tool("nginx", "nginx-light")
    convert = [qemu, "convert", "-f", "qcow2", "-O", "raw"]

    def hangs(url: str) -> bool:
        try:
            subprocess.run([*convert, "-W", url, "out"], cwd=tmp_path, check=True, capture_output=True, timeout=15)
        except subprocess.TimeoutExpired:
            return True
        return False

    with Web(tmp_path / "web") as site:
        (site.root / "disk.qcow2").write_bytes(disk.with_suffix(".qcow2").read_bytes())
        url = f"{site.url}/disk.qcow2"
        run(tmp_path, *convert, "-m", "1", url, "out")
        assert filecmp.cmp(tmp_path / "out", disk, shallow=False)
        told = run(tmp_path, qemu, "--version")
        assert any(hangs(url) for _ in range(5)) or b"version 7.2." not in told


def test_nbdkit_reads_a_link(linked: Callable[..., Linked], disk: Path, tmp_path: Path) -> None:
    """The curl plugin of nbdkit makes a block device of it, from which others copy: all of it by ranges."""
    nbdkit, copy = require_tool("nbdkit", "nbdkit"), require_tool("nbdcopy", "libnbd-bin")
    qemu = require_tool("qemu-img", "qemu-utils")
    raw, qcow2 = linked(disk.read_bytes()), linked(disk.with_suffix(".qcow2").read_bytes(), "qcow2")
    device = [nbdkit, "--exit-with-parent", "-r", "-U", "-", "curl"]
    run(tmp_path, *device, f"url={raw.url}", "--run", f'{copy} "$uri" copied')
    assert filecmp.cmp(tmp_path / "copied", disk, shallow=False)
    run(tmp_path, *device, f"url={qcow2.url}", "--run", f'{qemu} convert -f qcow2 -O raw "$nbd" out')
    assert filecmp.cmp(tmp_path / "out", disk, shallow=False)
    for image in (raw, qcow2):
        image.only_in_parts()
