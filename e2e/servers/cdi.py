"""A stand-in for the importer of KubeVirt's CDI: what its pods do with `source.http`, request by request.

The requests have its order and its headers, an answer that it would refuse is refused, and what it does with nbdkit and
qemu-img is done with them. An archive (tar) is beyond it, and it restarts at once where Kubernetes would wait.
"""

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from servers.tools import tool

HEAD: Final = 512
"""Bytes at the beginning that it looks for a format in; a body must have as many."""
IDLE: Final = 600.0
"""Seconds without a byte after which it gives up."""
MAGIC: Final = {
    "qcow2": (0, b"QFI\xfb"),
    "gz": (0, b"\x1f\x8b"),
    "xz": (0, b"\xfd7zXZ\0"),
    "zst": (0, b"\x28\xb5\x2f\xfd"),
    "vmdk": (0, b"KDMV"),
    "vdi": (0x40, b"\x7f\x10\xda\xbe"),
    "vhdx": (0, b"vhdxfile"),
    "vhd": (0, b"conectix"),
    "tar": (0x101, b"ustar"),
}
COMPRESSED: Final = {"gz": ("gzip", "gzip"), "xz": ("xz", "xz-utils"), "zst": ("zstd", "zstd")}
"""Programs that unpack it, with their packages."""
LED: Final = frozenset({301, 302, 303, 307, 308})
"""Statuses that it follows, however often."""


class ImportFailedError(Exception):
    """A pod has failed; the message says at what."""


@dataclass(frozen=True)
class Imported:
    """What an import has come to."""

    disk: Path
    """The volume: raw."""
    disk_format: str
    """Of the bytes as they were served: what their head says."""
    length: int
    """As HEAD or GET have said it; 0: not at all, so there is no progress to show."""
    sized: bool
    """Whether the size of the disk was known before the download."""
    pods: int


@dataclass
class Importer:
    """One DataVolume."""

    folder: Path
    url: str
    size: int
    """Bytes that the volume has."""
    secret: Mapping[str, str] = field(default_factory=dict)
    """What `secretRef` names: `accessKeyId` and `secretKey`."""
    certificates: Path | None = None
    """A folder with what `certConfigMap` names."""
    extra: tuple[str, ...] = ()
    """Lines of `secretExtraHeaders`."""
    checksum: str = ""
    """As `sha256:…`, of the bytes as they are served."""
    scratch: bool = False
    """Whether the first pod has scratch space already."""
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    """The servers that were asked, each time with these headers."""

    def run(self, restarts: int = 3) -> Imported:
        """All of it: a pod that finds that it needs scratch space, and one that has it. Raises ImportFailedError.

        `restarts`: how often a pod may fail.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch, failures = self.scratch, 0
        for pod in itertools.count(1):
            try:
                done = self._pod(scratch=scratch, number=pod)
            except (ImportFailedError, OSError, http.client.HTTPException) as error:
                failures += 1
                if failures > restarts:
                    raise ImportFailedError(f"pod {pod}: {error}") from error
                continue
            if done:
                return done
            scratch = True
        raise AssertionError

    def _pod(self, *, scratch: bool, number: int) -> Imported | None:
        """One pod; None: it needs scratch space, which the next one gets."""
        length, ranges = self._length()
        with self._ask("GET", {"Accept-Encoding": "gzip"}) as answer:
            if answer.status != 200:
                raise ImportFailedError(f"GET: expected status code 200, got {answer.status}")
            if answer.headers["Content-Encoding"]:
                raise ImportFailedError("GET: the bytes would be decoded on the way, and have no length")
            ranges = ranges and answer.headers.get("Accept-Ranges", "none") != "none"
            length = length or int(answer.headers.get("Content-Length", 0))
            head = _read(answer, HEAD)
            disk_format = sniff(head)
            if disk_format == "tar":
                raise ImportFailedError("an archive is beyond this stand-in")
            ranges = ranges and disk_format not in COMPRESSED  # of what is unpacked nobody can look at a part
            if ranges:
                self._fits(self._virtual_size(disk_format))
            if not scratch:
                return None
            path = self.folder / "tmpimage"
            self._store(path, head, answer)
        if disk_format in COMPRESSED:
            disk_format = _unpack(path, disk_format)
        qemu = tool("qemu-img", "qemu-utils")
        said = json.loads(_run(qemu, "info", "--output=json", str(path)))
        if said["format"] != disk_format or "backing-filename" in said:
            raise ImportFailedError(f"qemu-img info: {said}")
        self._fits(int(said["virtual-size"]))
        disk = self.folder / "disk.img"
        _run(qemu, "convert", "-t", "writeback", "-p", "-O", "raw", "-f", disk_format, str(path), str(disk))
        return Imported(disk, disk_format, length, ranges, number)

    def _length(self) -> tuple[int, bool]:
        """What HEAD says, and whether qemu can be let at the address: who refuses HEAD is spared the look ahead."""
        with self._ask("HEAD", {}) as answer:
            if answer.status != 200:
                return 0, False
            return int(answer.headers.get("Content-Length", 0)), True

    @contextlib.contextmanager
    def _ask(self, method: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """A request as Go's client writes it; where it is led to, all headers go along. Leaving hangs up."""
        url = self.url
        while True:
            with self._once(method, url, headers) as answer:
                if answer.status not in LED:
                    yield answer
                    return
                url = urljoin(url, answer.headers["Location"])

    @contextlib.contextmanager
    def _once(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            for each in sorted(self.certificates.iterdir()) if self.certificates else ():
                context.load_verify_locations(each)
            connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=IDLE, context=context)
        else:
            connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=IDLE)
        with contextlib.closing(connection):
            connection.putrequest(method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
            sent = {"User-Agent": "cdi-golang-importer", **headers}
            if self.secret:
                pair = f"{self.secret['accessKeyId']}:{self.secret['secretKey']}"
                sent["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
            for line in self.extra:
                name, _, value = line.partition(":")
                sent[name] = value.strip()
            for name, value in sent.items():
                connection.putheader(name, value)
            self.asked.append((parts.netloc, sent))
            connection.endheaders()
            with connection.getresponse() as answer:
                yield answer

    def _virtual_size(self, disk_format: str) -> int:
        """What qemu-img sees through nbdkit, which asks HEAD and then ranges, on connections of its own."""
        nbdkit, qemu = tool("nbdkit", "nbdkit"), tool("qemu-img", "qemu-utils")
        options = ["header=User-Agent: cdi-nbdkit-importer", "retry-exponential=no"]
        if self.secret:
            options += [f"user={self.secret['accessKeyId']}", f"password={self.secret['secretKey']}"]
        if self.certificates:
            options.append(f"cainfo={self.certificates / 'tls.crt'}")
        options += [f"header={line}" for line in self.extra]
        filters = ["--filter=readahead", "--filter=retry"]
        args = ["--foreground", "--readonly", "--exit-with-parent", "-U", "-", *filters, "curl", *options]
        look = f'{qemu} info --output=json "$nbd"'
        said: dict[str, Any] = json.loads(_run(nbdkit, *args, f"url={self.url}", "--run", look))
        if said["format"] != disk_format:
            raise ImportFailedError(f"nbdkit shows {said['format']}, the head of the body {disk_format}")
        return int(said["virtual-size"])

    def _fits(self, size: int) -> None:
        if size > self.size:
            raise ImportFailedError(f"virtual image size {size} is larger than the volume, {self.size}")

    def _store(self, path: Path, head: bytes, answer: http.client.HTTPResponse) -> None:
        """The rest of the body into scratch space; it must be whole, and what was announced."""
        algorithm, _, wanted = self.checksum.partition(":")
        digest = hashlib.new(algorithm or "sha256", head)
        with path.open("wb") as file:
            file.write(head)
            while chunk := answer.read(32 << 10):
                digest.update(chunk)
                file.write(chunk)
            if answer.length:
                raise ImportFailedError(f"unexpected EOF: {answer.length} bytes are missing")
        if wanted and digest.hexdigest() != wanted:
            raise ImportFailedError(f"checksum mismatch: {digest.hexdigest()}")


def sniff(head: bytes) -> str:
    """The format that the first bytes tell of; raw, if none."""
    for name, (offset, magic) in MAGIC.items():
        if head[offset : offset + len(magic)] == magic:
            return name
    return "raw"


def _unpack(path: Path, packed: str) -> str:
    """Put what is in it in its place; its format."""
    program, package = COMPRESSED[packed]
    packed_path = path.rename(path.with_suffix(f".{packed}"))
    with path.open("wb") as out:
        done = subprocess.run([tool(program, package), "-dc", packed_path], check=False, stdout=out, timeout=120)
    if done.returncode:
        raise ImportFailedError(f"{packed}: the bytes cannot be unpacked")
    with path.open("rb") as file:
        return sniff(file.read(HEAD))


def _read(answer: http.client.HTTPResponse, wanted: int) -> bytes:
    found = answer.read(wanted)
    if len(found) < wanted:
        raise ImportFailedError("could not process image header: unexpected EOF")
    return found


def _run(*args: str) -> bytes:
    done = subprocess.run(args, check=False, capture_output=True, timeout=120)
    if done.returncode:
        raise ImportFailedError(f"{Path(args[0]).name}: {done.stderr.decode(errors='replace')}")
    return done.stdout
