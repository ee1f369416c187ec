"""Uploads in parts into stores on real servers: those that keep parts go on after a kill, and others say so at once."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.operator.support import Tenant, content, digest, holds
from tests.operator.test_beginnings import made, version
from tests.operator.test_tus_breaks import killed
from tests.operator.test_upload import detail, no_more, send, uploads, waiting
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.tuses import Tus, another_gateway

from servers import Server, wait_until
from servers.require import require
from servers.shelf import ask
from servers.stores import SERVERS, new, place
from servers.tools import Missing

DATA = content(8, 240_000_007)
HALF = 220_000_000
BEHIND = {"rbd": 48 << 20, "swift": 160 << 20}
"""Bytes that a kill may cost: those since the last checkpoint, and those on their way then."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server[Any]]]:
    """Ceph with its S3 gateway, and Swift."""
    folder = tmp_path_factory.mktemp("servers")
    started: dict[str, Server[Any]] = {}
    try:
        for name in ("ceph", "swift"):
            started[name] = new(name, folder / name, started)
            try:
                started[name].start()
            except Missing as error:
                require(name, str(error))
        yield started
    finally:
        for server in reversed(started.values()):
            server.stop()


@pytest.fixture
def large(tenant: Tenant, tmp_path: Path) -> Iterator[Tenant]:
    """At a gateway that takes images as large as it takes for a store to note how far they are."""
    with another_gateway(tenant, tmp_path / "large", LIMITS__IMAGE_SIZE=str(1 << 30)) as found:
        yield found


def store(tenant: Tenant, servers: dict[str, Server[Any]], kind: str) -> str:
    """A store of this kind, ready."""
    name = f"{kind}-{tenant.namespace.removeprefix('test-')}"
    tenant.cluster.apply(*place(kind, name, servers[SERVERS[kind][-1]]).manifests(name))
    tenant.wait(name, lambda o: holds(o, "Ready"), kind="ImageStore")
    return name


def offset(tus: Tus) -> int:
    """How far it is, as soon as the store can tell that the worker before is dead: by its lease of two minutes."""
    found = [-1]

    def look() -> bool:
        with suppress(TimeoutError, AssertionError):  # it is being found out, by a request whose client is gone
            found[0] = tus.offset()
        return found[0] >= 0

    wait_until("the offset", look, timeout=200)
    return found[0]


@pytest.mark.parametrize("kind", ["rbd", "swift"])
def test_a_gateway_is_killed_between_parts(
    tenant: Tenant, sender: str, large: Tenant, servers: dict[str, Server[Any]], kind: str
) -> None:
    """The upload goes on with what the store has kept, and the image has the right bytes."""
    waiting(tenant, "a", store(tenant, servers, kind))
    tus = Tus(large, "a", sender).begun(len(DATA))
    tus.sent(0, DATA[:HALF], 4_000_000)
    killed(large)
    at = offset(tus)
    assert HALF - BEHIND[kind] <= at <= HALF
    tus.sent(at, DATA[at:], 4_000_000)
    assert tenant.ready("a")["artifact"]["digest"] == digest(DATA)
    assert ask(tenant.link("a"), token=sender).body == DATA


def test_a_store_that_keeps_no_parts(tenant: Tenant, sender: str, servers: dict[str, Server[Any]]) -> None:
    """It is refused before there is an upload, and the other way is open at once."""
    name = store(tenant, servers, "s3")
    waiting(tenant, "a", name)
    since = version(tenant)
    answer = Tus(tenant, "a", sender).create(1_000_000)
    assert (answer.status, answer.headers["Location"]) == (409, None)
    assert f"stores {name} can keep a part" in detail(answer)
    assert (uploads(tenant), made(tenant, since)) == ([], 0)
    assert "pending" not in tenant.read("a")["status"]
    assert send(tenant, "a", DATA[:1_000_000], sender).status == 201
    no_more(tenant)
