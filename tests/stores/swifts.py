"""Places in a Swift for tests, whichever server it is."""

import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from glimpse.stores import open_store
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.registering import Lay
from glimpse.testing.stores import Raw, StoreFixtures
from glimpse.testing.wire import Wire
from servers import wait_until
from servers.swift import Cloud

OBJECT = re.compile(r"in/here/objects/([0-9a-z-]+)")
PART = re.compile(r"in/here/data/([0-9a-z-]+\.[0-9a-z]+)(/(m\d-)?\d{8}|\.record)?")

OTHERS = {"in/here/glimpse-store.json", "in/other.txt"}


def container_of(cloud: Cloud, headers: dict[str, str] | None = None) -> str:
    """A new one."""
    name = f"images-{token_hex(4)}"
    cloud.call("PUT", f"/{name}", headers)
    return name


def ref_to(cloud: Cloud, container: str, *, driver: str = "quick-swift", **config: object) -> StoreRef:
    """A store in that container."""
    return StoreRef(
        name="swift",
        driver=driver,
        config={
            "authUrl": cloud.auth_url,
            "authVersion": "1",
            "container": container,
            "prefix": "in/here",
            "segmentSize": "1Mi",
            **config,
        },
        secret={"user": SecretStr(cloud.user), "key": SecretStr(cloud.key)},
        installation="here",
    )


def held(cloud: Cloud, ref: StoreRef) -> set[str]:
    """Keys of objects, and the name of whatever else is in the containers that no object needs."""
    found, commits = set(), set()
    places = {ref.config["container"], ref.config.get("segmentContainer", ref.config["container"])}
    names = {(place, each["name"]) for place in places for each in cloud.listed(place)}
    for place, name in names:
        if match := OBJECT.fullmatch(name):
            commits.add(f"{match[1]}.{json.loads(cloud.call('GET', f'/{place}/{name}')[1])['attempt']}")
            found.add(match[1])
    for place, name in names:
        match = PART.fullmatch(name)
        known = OBJECT.fullmatch(name) or (match and match[1] in commits)
        if not known and name not in OTHERS and not name.startswith("in/here/import/"):
            found.add(f"{place}/{name}")
    return found


def hidden(secret: dict[str, str]) -> dict[str, SecretStr]:
    """What a Secret holds."""
    return {name: SecretStr(value) for name, value in secret.items()}


def names(cloud: Cloud, container: str) -> list[str]:
    """All that is in it."""
    return sorted(each["name"] for each in cloud.listed(container))


def changed(ref: StoreRef, **config: object) -> StoreRef:
    """The same store with another configuration; None leaves a field out."""
    merged = ref.config | config
    return ref.model_copy(update={"config": {name: value for name, value in merged.items() if value is not None}})


class Talk(Wire):
    """A wire that counts what passes, and can refuse copies as a proxy without them does."""

    passed = 0
    refusing = False

    def _count(self, count: int) -> None:
        self.passed += count
        super()._count(count)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                self._count(len(piece))
                if self.refusing and piece.startswith(b"COPY "):
                    source.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
                else:
                    target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def laying(cloud: Cloud, ref: StoreRef) -> Lay:
    """The hands of others. What has more than one chunk becomes a static large object, with segments below its name."""

    def lay(location: str, data: bytes | None) -> None:
        path = f"/{ref.config['container']}/{quote(f'in/here/{location}')}"
        if data is None:
            cloud.call("DELETE", path)
        elif len(data) <= CHUNK:
            cloud.call("PUT", path, {}, data)
        else:
            segments = []
            for number, start in enumerate(range(0, len(data), CHUNK)):
                part, name = data[start : start + CHUNK], f"in/here/{location}/{hash(data):x}/{number}"
                cloud.call("PUT", f"/{ref.config['container']}/{quote(name)}", {}, part)
                segments.append({"path": f"/{ref.config['container']}/{name}", "size_bytes": len(part)})
            cloud.call("PUT", f"{path}?multipart-manifest=put", {}, json.dumps(segments).encode())

    return lay


class Fixtures(StoreFixtures):
    """The places that the contracts are tested in. A subclass gives `cloud` and `small`."""

    @pytest.fixture
    def cloud(self) -> Cloud:
        """Where it is."""
        raise NotImplementedError

    @pytest.fixture
    def buried(self, ref: StoreRef) -> Callable[[], None]:
        """Waits until no sign of life is younger than a lease, also none that a broken way held back for a moment."""

        def wait() -> None:
            driver, quiet = open_store(ref).driver, 0

            def dead() -> bool:
                nonlocal quiet
                attempts = driver._names.attempts("").values()  # type: ignore[attr-defined]
                quiet = 0 if any(left.alive for left in attempts) else quiet + 1
                return quiet >= 5

            wait_until("the end of all leases", dead, timeout=30, poll=0.2)

        return wait

    @pytest.fixture
    def ref(self, cloud: Cloud, outside: Path) -> StoreRef:  # noqa: ARG002 - has the driver
        """A store in a container of its own, in which somebody else has something too."""
        container = container_of(cloud)
        cloud.call("PUT", f"/{container}/in/other.txt", {}, b"not ours")
        return ref_to(cloud, container)

    @pytest.fixture
    def raw(self, cloud: Cloud, ref: StoreRef) -> Raw:
        """What is in the container, and what is not ours is still there."""

        def look() -> set[str]:
            assert cloud.call("GET", f"/{ref.config['container']}/in/other.txt")[1] == b"not ours"
            return held(cloud, ref)

        return look
