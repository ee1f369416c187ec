"""Ceph, for the stores that speak to it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from servers import ServerError, run, wait_until
from servers.ceph import Ceph, Cluster
from servers.require import require
from servers.tools import Missing


@contextmanager
def started(server: Ceph) -> Iterator[Cluster]:
    """The server, running."""
    try:
        with server as cluster:
            yield cluster
    except Missing as error:
        require("ceph", str(error))


def test_a_client_may_do_what_it_was_allowed(tmp_path: Path) -> None:
    """A user that was made for one pool stores an image there, and gets no other pool."""
    with started(Ceph(tmp_path / "ceph", objectstore="memstore")) as cluster:
        mine, theirs = cluster.pool("mine"), cluster.pool("theirs")
        assert cluster.client("guest", mon="profile rbd", osd=f"profile rbd pool={mine}")
        rbd = ("rbd", "--conf", cluster.conf, "--id", "guest")
        run(*rbd, "create", f"{mine}/one", "--size", "1")
        assert run(*rbd, "ls", mine) == "one\n"
        with pytest.raises(ServerError, match="not permitted"):
            run(*rbd, "ls", theirs)


def test_data_outlive_a_kill(tmp_path: Path) -> None:
    """Killed and started again in its folder, it has its images, keys and addresses; a stop takes moments."""
    server = Ceph(tmp_path / "ceph")
    with started(server) as cluster:
        pool = cluster.pool("images")
        run("rbd", "--conf", cluster.conf, "create", f"{pool}/one", "--size", "1")
        for process in server.processes.values():
            process.kill()
        assert not server.ready()
        assert server.start() == cluster
        assert run("rbd", "--conf", cluster.conf, "ls", pool) == "one\n"
        assert server.ready()
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_gateway_knows_its_account(tmp_path: Path, tls: bool) -> None:
    """S3 answers, over TLS if asked for, and Swift's login gives a token to the right key only."""
    server = Ceph(tmp_path / "ceph", objectstore="memstore", gateway=True, ca=trustme.CA() if tls else None)
    with started(server) as cluster:
        gateway = cluster.gateway
        assert gateway
        assert gateway.url.startswith("https://" if tls else "http://")
        curl: list[str | Path] = ["curl", "--noproxy", "*", "--silent", "--fail"]
        curl += ["--cacert", gateway.ca_file] if gateway.ca_file else []
        signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{gateway.access_key}:{gateway.secret_key}"]
        signed += ["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]
        run(*curl, *signed, "--request", "PUT", f"{gateway.url}/bucket")
        assert "<Name>bucket</Name>" in run(*curl, *signed, gateway.url)
        user = f"X-Auth-User: {gateway.swift_user}"
        right, wrong = f"X-Auth-Key: {gateway.swift_key}", "X-Auth-Key: wrong"
        assert "X-Auth-Token" in run(*curl, "--include", "--header", user, "--header", right, gateway.swift_auth)
        with pytest.raises(ServerError):
            run(*curl, "--header", user, "--header", wrong, gateway.swift_auth)


def test_a_server_is_found_again_and_stopped_by_another(tmp_path: Path) -> None:
    """What one command saved, another one can ask and stop."""
    state = tmp_path / "ceph.json"
    server = Ceph(tmp_path / "ceph", objectstore="memstore", detached=True)
    try:
        server.start()
        server.save(state)
        found = Ceph.load(state)
        assert found is not None
        assert found.cluster == server.cluster
        assert found.ready()
    except Missing as error:
        require("ceph", str(error))
    finally:
        server.stop()
    assert not found.ready()


def test_a_manager_counts(tmp_path: Path) -> None:
    """The room of the OSD is known once it has started, and that of a pool soon after it was made."""
    with started(Ceph(tmp_path / "ceph", objectstore="memstore", size=1 << 30, manager=True)) as cluster:
        assert cluster.ceph("df")["stats"]["total_bytes"] == 1 << 30
        pool = cluster.pool("images")

        def counted() -> bool:
            return [each["name"] for each in cluster.ceph("df")["pools"]] == [pool]

        wait_until("the count of a pool", counted, timeout=60)
