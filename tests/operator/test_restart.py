"""Programs that end in the middle of a transfer: nothing is lost, nothing is done twice, nothing is left."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.operator.conftest import SETTINGS
from tests.operator.support import WAIT, Tenant, condition, content, digest, said, slow

from glimpse.testing.faults import Reply, Server
from servers import wait_until
from servers.glimpse import Glimpse, Program
from servers.kube import Kube
from servers.processes import children
from servers.shelf import ask

ONE, TWO = content(1), content(2)


@pytest.fixture
def broken(installation: Glimpse) -> Iterator[Glimpse]:
    """The shared installation, for a test that ends one of its programs; afterwards both run again."""
    yield installation
    programs: tuple[Program, ...] = ("operator", "gateway")
    for program in programs:
        if program not in installation.processes or not installation.processes[program].alive():
            installation.launch(program)
            installation.await_ready(program)


@pytest.fixture
def midway(tenant: Tenant) -> str:
    """A store that holds the Image `done` and is being filled with `going`, which ends after `Server.release`."""
    store = tenant.store()
    tenant.image("done", tenant.serve("done", TWO), stores=[store])
    tenant.ready("done")
    tenant.image("going", tenant.serve("going", slow(ONE)), stores=[store])
    tenant.transferring("going")
    return store


def ends_well(tenant: Tenant, store: str, *, tries: int) -> None:
    """The transfer is done once more where it has to be, what was done is not, and each image is there once."""
    tenant.web.wait_for("/going", requests=tries)
    tenant.web.release()
    status = tenant.ready("going")
    assert status["artifact"]["digest"] == digest(ONE)
    uids = [tenant.read(name)["metadata"]["uid"] for name in ("done", "going")]
    revision = status["artifact"]["revision"]
    assert tenant.objects(store) == {f"{uids[0]}-1": TWO, f"{uids[1]}-{revision}": ONE}
    assert len(tenant.web.asked("/done")) == 1
    assert len(tenant.web.asked("/going")) == tries
    tenant.download(tenant.link("done"), body=TWO)
    tenant.download(tenant.link("going"), body=ONE)


def warm(glimpse: Glimpse) -> int:
    """The process that forks the workers."""
    (found,) = children(glimpse.processes["operator"].pid)
    return found


def worker(tenant: Tenant, store: str) -> int:
    """Wait for the worker that writes into this store (others may probe stores meanwhile)."""
    folder, found = str(tenant.folder / store / "attempts"), list[int]()

    def look() -> bool:
        found[:] = [pid for pid in children(warm(tenant.glimpse)) if _writes(pid, folder)]
        return len(found) == 1

    wait_until("the worker", look, timeout=WAIT)
    return found[0]


def _writes(pid: int, folder: str) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return any(str(fd.readlink()).startswith(folder + "/") for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def kill(pid: int) -> None:
    """SIGKILL, to a process of this installation."""
    os.kill(pid, signal.SIGKILL)


def test_the_operator_is_stopped(tenant: Tenant, broken: Glimpse, midway: str) -> None:
    """SIGTERM ends transfers without a leftover; the next operator begins them again."""
    process = broken.processes.pop("operator")
    process.stop(grace=15)
    assert process.child
    assert process.child.returncode == 0, process.tail()
    assert tenant.leftover(midway) == []
    broken.launch("operator")
    ends_well(tenant, midway, tries=2)


def test_a_stopped_transfer_goes_on(tenant: Tenant, broken: Glimpse) -> None:
    """The next operator fetches what is lacking, if the server tells that it is the same file; status counts it all."""
    data, etag = content(3, 6 << 20), {"ETag": '"one"'}
    store, reply = tenant.store(), Reply(data, ranges=True, headers=etag)
    tenant.image("going", tenant.serve("going", replace(reply, stall=4 << 20)), stores=[store])
    uid = tenant.transferring("going")["metadata"]["uid"]
    (folder,) = (tenant.folder / store / "attempts").glob(f"{uid}-1.*")
    wait_until("some bytes", lambda: (folder / "data").stat().st_size >= 3 << 20, timeout=WAIT)
    process = broken.processes.pop("operator")
    process.stop(grace=15)
    (left,) = (tenant.folder / store / "attempts").glob(f"{uid}-1.*/checkpoint.json")
    start = json.loads(left.read_text())["length"]
    before = len(tenant.web.asked("/going"))
    tenant.serve("going", replace(reply, stall=4096))
    broken.launch("operator")
    tenant.wait("going", lambda o: start <= said(o).get("transfer", {}).get("bytesDone", 0) < 5 << 20)
    tenant.serve("going", reply)
    tenant.web.release()
    assert tenant.ready("going")["artifact"]["digest"] == digest(data)
    assert tenant.objects(store) == {f"{uid}-1": data}
    first = tenant.web.asked("/going")[before]
    assert (first.headers["range"].split("-")[0], first.headers["if-range"]) == (f"bytes={start}", '"one"')


def test_a_transfer_that_nobody_wants_leaves_nothing(tenant: Tenant) -> None:
    """What could be gone on with is removed with the wish for it: by a change of the source, or with the Image."""
    reply = Reply(content(3, 6 << 20), ranges=True, headers={"ETag": '"one"'}, stall=4 << 20)
    store = tenant.store()
    for name in ("edited", "deleted"):
        tenant.image(name, tenant.serve(name, reply), stores=[store])
        uid = tenant.transferring(name)["metadata"]["uid"]
        (folder,) = (tenant.folder / store / "attempts").glob(f"{uid}-1.*")
        wait_until("some bytes", lambda folder=folder: (folder / "data").stat().st_size >= 3 << 20, timeout=WAIT)  # type: ignore[misc]
    tenant.edit("edited", source={"http": {"urls": [tenant.serve("other", TWO)]}})
    tenant.delete("deleted")
    tenant.ready("edited")
    uid = tenant.read("edited")["metadata"]["uid"]
    tenant.wait("edited", lambda o: "removals" not in o["status"])
    assert tenant.objects(store) == {f"{uid}-2": TWO}


def test_the_operator_is_killed(tenant: Tenant, broken: Glimpse, midway: str) -> None:
    """SIGKILL leaves what it leaves; the next operator begins again and tidies up."""
    broken.kill("operator")
    broken.launch("operator")
    ends_well(tenant, midway, tries=2)


def test_edited_and_deleted_while_the_operator_is_away(tenant: Tenant, broken: Glimpse, midway: str) -> None:
    """What was asked for meanwhile is done afterwards, and what was begun for nothing is not left."""
    broken.kill("operator")
    tenant.delete("done", wait=False)
    tenant.edit("going", source={"http": {"urls": [tenant.serve("other", TWO)]}})
    broken.launch("operator")
    tenant.gone("done")
    status = tenant.ready("going")
    uid = tenant.read("going")["metadata"]["uid"]
    tenant.wait("going", lambda o: "removals" not in o["status"])
    assert tenant.objects(midway) == {f"{uid}-{status['artifact']['revision']}": TWO}
    assert len(tenant.web.asked("/going")) == 1


def test_a_worker_is_killed(tenant: Tenant, midway: str) -> None:
    """A worker that ends without an answer is an attempt that failed; the next one is another worker."""
    kill(worker(tenant, midway))
    assert "going" not in tenant.event("going", reason="WorkerLost")
    ends_well(tenant, midway, tries=2)


def test_a_worker_that_always_dies(tenant: Tenant, midway: str) -> None:
    """Bytes on which the worker dies three times are given up; force tries again."""
    for number in (1, 2, 3):
        tenant.web.wait_for("/going", requests=number, sent=1)
        kill(worker(tenant, midway))
    assert "3 times" in tenant.stalled("going", "WorkerCrashed")
    tenant.annotate("going", "glimpse.dev/reconcile-requested-at", "1")
    ends_well(tenant, midway, tries=4)


def test_the_warm_process_is_killed(tenant: Tenant, broken: Glimpse, midway: str) -> None:
    """With the process that forks workers all of them end; another one takes its place."""
    kill(warm(broken))
    ends_well(tenant, midway, tries=2)


def test_the_gateway_is_killed(tenant: Tenant, broken: Glimpse, midway: str) -> None:
    """The gateway may end at any time: transfers go on, and the next one serves what is there."""
    tenant.download(tenant.link("done"), body=TWO)
    broken.kill("gateway")
    with pytest.raises(OSError, match="refused"):
        ask(tenant.link("done"))
    broken.launch("gateway")
    broken.await_ready("gateway")
    tenant.download(tenant.link("done"), body=TWO)
    ends_well(tenant, midway, tries=1)


def test_the_api_server_is_away(kube: Kube, web: Server, tmp_path: Path) -> None:
    """While the API server is away transfers go on, and what came of them is written when it is back."""
    cluster = kube.cluster
    server = Glimpse(tmp_path / "glimpse", cluster=cluster, settings=SETTINGS)
    with server:
        tenant = Tenant(cluster, server, tmp_path, web, cluster.namespace())
        store = tenant.store()
        tenant.image("done", tenant.serve("done", TWO), stores=[store])
        tenant.ready("done")
        tenant.download(tenant.link("done"), body=TWO)
        tenant.image("going", tenant.serve("going", slow(ONE)), stores=[store])
        key = tenant.transferring("going")["metadata"]["uid"] + "-1"
        tenant.image("failing", tenant.serve("failing", Reply(b"", 503)), stores=[store])
        tenant.retried("failing", "SourceUnavailable")
        kube.stop()
        wait_until("the operator to notice", lambda: not server.program_ready("operator"), timeout=WAIT)
        web.release()
        data = tmp_path / store / "objects" / key / "data"
        wait_until("the transfer's end", data.exists, timeout=WAIT)
        assert ask(f"{server.installation.operator_url}/healthz").status == 200, "an outage is no reason to be killed"
        kube.start()
        status = tenant.ready("going")
        assert status["artifact"]["digest"] == digest(ONE)
        tenant.serve("failing", ONE)
        tenant.ready("failing")
        assert len(tenant.web.asked("/going")) == 1
        assert len(tenant.web.asked("/done")) == 1
        assert len(tenant.objects(store)) == 3
        assert condition(tenant.read("done"), "Ready")["status"] == "True"
        tenant.download(tenant.link("going"), body=ONE)
        wait_until("the operator", lambda: server.program_ready("operator"), timeout=WAIT)
