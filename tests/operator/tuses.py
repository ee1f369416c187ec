"""A sender of uploads in parts (tus 1.0), as slow and as clumsy as a test wants it."""

import base64
import hashlib
import http.client
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.operator.conftest import SETTINGS
from tests.operator.support import Tenant

from servers import wait_until
from servers.glimpse import Glimpse
from servers.processes import children
from servers.shelf import Answer, ask

VERSION = {"Tus-Resumable": "1.0.0"}
PART = {"Content-Type": "application/offset+octet-stream"}


def named(headers: dict[str, str]) -> dict[str, str]:
    """Headers as Python can name them."""
    return {key.replace("_", "-"): value for key, value in headers.items()}


def checksum(data: bytes, algorithm: str = "sha1") -> str:
    """As in the header."""
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


def metadata(namespace: str, image: str) -> str:
    """As in the header, where the address does not say for which image an upload is."""
    said = {"namespace": namespace, "image": image}
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in said.items())


@dataclass
class Tus:
    """One upload for one image."""

    tenant: Tenant
    image: str
    token: str
    path: str = ""
    """Of the upload, as the gateway named it."""
    gateway: str = ""
    """Which replica is asked; the one of the installation if it is empty."""
    ca: Path | None = None
    """Who must have signed the gateway's certificate."""

    def url(self, path: str = "") -> str:
        """Where it is."""
        gateway = self.gateway or self.tenant.glimpse.installation.gateway_url
        return gateway + (path or self.path or self.start)

    @property
    def start(self) -> str:
        """Where uploads begin."""
        return f"{urlsplit(self.tenant.link(self.image)).path}/uploads"

    @property
    def name(self) -> str:
        """Of the ImageUpload."""
        return self.path.rpartition("/")[2]

    def ask(self, method: str, body: bytes | None = None, *, token: str | None = None, **headers: str) -> Answer:
        """One request to it."""
        said = VERSION | named(headers)
        return ask(self.url(), method=method, body=body, token=token or self.token, headers=said, ca=self.ca)

    def create(self, size: int, headers: dict[str, str] | None = None, first: bytes | None = None) -> Answer:
        """Begin."""
        said = VERSION | {"Upload-Length": str(size)} | (PART if first is not None else {}) | named(headers or {})
        answer = ask(self.url(self.start), method="POST", body=first, token=self.token, headers=said, ca=self.ca)
        self.path = answer.headers["Location"] or self.path
        return answer

    def begun(self, size: int, **headers: str) -> "Tus":
        """The same, well."""
        answer = self.create(size, headers)
        assert answer.status == 201, answer.body
        return self

    def patch(self, offset: int, data: bytes, **headers: str) -> Answer:
        """Send a part."""
        said = {"Upload_Offset": str(offset), "Content_Type": PART["Content-Type"]}
        return self.ask("PATCH", data, **(said | headers))

    def sent(self, offset: int, data: bytes, size: int = 1 << 20) -> None:
        """Send parts of this size, all taken."""
        for start in range(0, len(data), size):
            part = data[start : start + size]
            answer, after = self.patch(offset + start, part), offset + start + len(part)
            assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(after)), answer.body

    def offset(self) -> int:
        """How far it is, as soon as that is said."""
        found: list[Answer] = []

        def look() -> bool:
            found[:] = [self.ask("HEAD")]
            return found[0].status not in (423, 503)

        wait_until("the offset", look, timeout=90)
        assert found[0].status == 200, found[0].status
        return int(found[0].headers["Upload-Offset"])

    @contextmanager
    def sending(self, offset: int, length: int) -> Iterator[http.client.HTTPConnection]:
        """A part of which the head is sent."""
        parts = urlsplit(self.url())
        with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=90)) as connection:
            connection.putrequest("PATCH", parts.path)
            headers = {"Authorization": f"Bearer {self.token}", "Content-Length": str(length), **VERSION, **PART}
            for name, value in (headers | {"Upload-Offset": str(offset)}).items():
                connection.putheader(name, value)
            connection.endheaders()
            yield connection

    def account(self) -> dict[str, Any]:
        """The status of the ImageUpload."""
        found: dict[str, Any] = self.tenant.read(self.name, "ImageUpload").get("status", {})
        return found


@contextmanager
def another_gateway(tenant: Tenant, folder: Path, ca: Path | None = None, **settings: str) -> Iterator[Tenant]:
    """The tenant as he is at a second gateway of the installation, with these settings of its own."""
    named = {f"GLIMPSE_{name}": value for name, value in settings.items()}
    gateway = Glimpse(folder, cluster=tenant.cluster, settings=SETTINGS | named, ca=ca)
    with gateway.running("gateway"):
        yield replace(tenant, glimpse=gateway)
    log = (folder / "gateway.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 1000 :][:6000]


def workers(tenant: Tenant) -> list[int]:
    """The processes that take what is sent to the gateway: children of its warm process."""
    return [pid for warm in children(tenant.glimpse.processes["gateway"].pid) for pid in children(warm)]
