"""The vCenter of tests: it is as strict as a real one where VMware's own simulator is not."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from servers.require import require
from servers.tools import Missing
from servers.vcsim import DATACENTER, DATASTORE, READER, VCenter, VCSim


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VCenter]:
    """One for all tests here."""
    try:
        with VCSim(tmp_path_factory.mktemp("vcsim")) as started:
            yield started
    except Missing as error:
        require("vcsim", str(error))


def ask(vcenter: VCenter, method: str, path: str, *, cookie: str = "", data: bytes | None = None) -> int:
    """The status of a request for a file."""
    url = f"https://{vcenter.server}/folder/{path}?{urlencode({'dcPath': DATACENTER, 'dsName': DATASTORE})}"
    request = urllib.request.Request(url, data, {"Cookie": f"vmware_soap_session={cookie}"}, method=method)
    context = ssl.create_default_context(cafile=vcenter.ca_file)
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return int(error.code)


def test_files_need_a_session_and_a_folder(vcenter: VCenter) -> None:
    """Nobody gets a file without a session; a file goes into a folder that is there; 201 is a new one, 200 an old."""
    with vcenter.session() as content:
        cookie = content.sessionManager.currentSession.key
        assert ask(vcenter, "PUT", "a.img", data=b"x") == 401
        assert ask(vcenter, "PUT", "a.img", data=b"x", cookie=cookie) == 201
        assert ask(vcenter, "PUT", "a.img", data=b"x", cookie=cookie) == 200
        assert ask(vcenter, "PUT", "missing/a.img", data=b"x", cookie=cookie) == 404
        assert ask(vcenter, "GET", "a.img", cookie=cookie) == 200
        assert ask(vcenter, "GET", "a.img") == 401
    assert ask(vcenter, "GET", "a.img", cookie=cookie) == 401
    assert (vcenter.files() / "a.img").read_bytes() == b"x"


def test_a_reader_may_only_look(vcenter: VCenter) -> None:
    """There is a user who may see and change nothing."""
    from pyVmomi import vim

    (vcenter.files() / "b.img").write_bytes(b"x")
    with replace(vcenter, username=READER).session() as content:
        cookie = content.sessionManager.currentSession.key
        assert ask(vcenter, "GET", "b.img", cookie=cookie) == 200
        assert ask(vcenter, "PUT", "b.img", data=b"y", cookie=cookie) == 403
        datacenter = vcenter.datastore(content).parent.parent
        source, target = f"[{DATASTORE}] b.img", f"[{DATASTORE}] c"
        with pytest.raises(vim.fault.NoPermission):
            content.fileManager.MakeDirectory(target, datacenter)
        with pytest.raises(vim.fault.NoPermission):
            content.fileManager.CopyDatastoreFile_Task(source, datacenter, target, datacenter)
    assert (vcenter.files() / "b.img").read_bytes() == b"x"


def test_the_room_is_that_of_the_disk(vcenter: VCenter, tmp_path: Path) -> None:
    """A datastore tells of its disk, and what is the matter with it, when it is asked to look."""
    vcenter.add_datastore("third", tmp_path)
    (tmp_path / ".state").write_text("inMaintenance")
    with vcenter.session() as content:
        datastore = vcenter.datastore(content, "third")
        before = datastore.summary
        datastore.RefreshDatastore()
        after = datastore.summary
    assert (before.capacity, before.maintenanceMode) == (1 << 40, "normal")
    assert after.capacity != 1 << 40
    assert after.freeSpace < after.capacity
    assert after.maintenanceMode == "inMaintenance"


def test_a_server_is_found_again(tmp_path: Path) -> None:
    """What one command saved, another one can ask and stop."""
    server = VCSim(tmp_path / "vcsim", detached=True)
    try:
        server.start()
        server.save(tmp_path / "vcsim.json")
        found = VCSim.load(tmp_path / "vcsim.json")
        assert found is not None
        assert found.ready()
        assert found.vcenter == server.vcenter
    except Missing as error:
        require("vcsim", str(error))
    finally:
        server.stop()
