"""A vCenter on loopback: VMware's own simulator (govmomi), made stricter by `e2e/vcsim/main.go`.

A real one needs a licence and a machine of 14 GiB. The simulator is what VMware tests its own clients with: it speaks
the vSphere API and keeps the files of its datastores in folders, so what a store has done can be looked at.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import trustme

from servers import ROOT, Missing, Server, ServerError, tool, wait_until
from servers.programs import cache, go, once

VERSION: Final = "0.52.0"
"""Of govmomi; `e2e/vcsim/go.mod` names the same."""
SOURCES: Final = ROOT / "e2e" / "vcsim"
_WHERE: Final = ("list", "-m", "-f", "{{.Dir}}", "github.com/vmware/govmomi")
DATACENTER: Final = "DC0"
DATASTORE: Final = "LocalDS_0"
USER: Final = "administrator@vsphere.local"
READER: Final = "reader@vsphere.local"
"""May log in, with the same password, and only look."""


@dataclass(frozen=True)
class VCenter:
    """Where it is, and how to get in."""

    server: str
    """Host and port."""
    username: str
    password: str
    ca_file: Path
    """Who signed the certificate."""
    thumbprint: str
    """SHA-256 of the certificate, hex."""

    @contextmanager
    def session(self) -> Iterator[Any]:
        """What the service has, for an administrator with the usual client (a `vim.ServiceInstance`'s content)."""
        import ssl

        from pyVmomi import vim
        from pyVmomi.SoapAdapter import SoapStubAdapter

        host, _, port = self.server.partition(":")
        context = ssl.create_default_context(cafile=self.ca_file)
        stub = SoapStubAdapter(host, int(port), version="vim.version.version11", sslContext=context)
        try:
            content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
            content.sessionManager.Login(self.username, self.password)
            yield content
            content.sessionManager.Logout()
        finally:
            stub.DropConnections()

    def datastore(self, content: Any, name: str = DATASTORE) -> Any:
        """One datastore, as the client has it."""
        [datacenter] = [each for each in content.rootFolder.childEntity if each.name == DATACENTER]
        [found] = [each for each in datacenter.datastore if each.name == name]
        return found

    def files(self, name: str = DATASTORE) -> Path:
        """The folder on this machine in which the simulator keeps the files of a datastore."""
        with self.session() as content:
            return Path(self.datastore(content, name).summary.url)

    def add_datastore(self, name: str, path: Path) -> None:
        """Make a folder of this machine a datastore."""
        with self.session() as content:
            host = self.datastore(content).host[0].key
            host.configManager.datastoreSystem.CreateLocalDatastore(name, str(path))


class VCSim(Server[VCenter]):
    """The simulator: one datacenter, one datastore, a certificate of `ca` for 127.0.0.1 and localhost."""

    name: ClassVar[str] = "vcsim"
    vcenter: VCenter

    def __init__(self, folder: Path, *, ca: trustme.CA | None = None, detached: bool = False) -> None:
        """`ca`: one of its own without it."""
        super().__init__(folder, detached=detached)
        self._ca = ca or trustme.CA()
        self._certificate: trustme.LeafCert | None = None

    def start(self) -> VCenter:
        """Start it, with a new certificate. Raises Missing, ServerError."""
        self._certificate = self._ca.issue_cert("127.0.0.1", "localhost")
        return self._start()

    def _start(self) -> VCenter:
        assert self._certificate
        program = obtain()
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        ca_file, pair = self.folder / "ca.pem", self.folder / "server.pem"
        self._ca.cert_pem.write_to_path(str(ca_file))
        self._certificate.private_key_and_cert_chain_pem.write_to_path(str(pair))
        for attempt in (1, 2, 3):
            [port] = self.ports(1, fresh=attempt > 1)
            self.vcenter = VCenter(
                f"127.0.0.1:{port}",
                USER,
                "s3cr3t-word",
                ca_file,
                _thumbprint(self._certificate.cert_chain_pems[0].bytes()),
            )
            process = self.spawn(
                "vcsim",
                [program, "-listen", f"127.0.0.1:{port}", "-certificate", pair, "-user", USER, "-reader", READER],
                # its datastores are temporary folders
                env=os.environ | {"TMPDIR": str(temporary), "VCSIM_PASSWORD": self.vcenter.password},
            )
            try:
                wait_until("the vCenter simulator", self.ready, timeout=20, alive=[process])
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
            return self.vcenter
        raise AssertionError

    def restart(self) -> None:
        """End it and start it again. It forgets all but its first datastore, whose files stay where they were.

        Raises ServerError.
        """
        before = self.vcenter.files()
        self.processes.pop("vcsim").kill()  # in order, it would remove them
        after = self._start().files()
        after.rename(after.with_name(f"{after.name}.empty"))
        after.symlink_to(before)

    def ready(self) -> bool:
        """Whether it lets us in."""
        with suppress(OSError), self.vcenter.session():
            return True
        return False

    def describe(self) -> dict[str, str]:
        """Address, name and password."""
        return {"server": self.vcenter.server, "username": self.vcenter.username, "password": self.vcenter.password}

    def state(self) -> dict[str, Any]:
        """The address and the certificate."""
        return {"server": self.vcenter.server, "ca": str(self.vcenter.ca_file), "thumbprint": self.vcenter.thumbprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the address and the certificate."""
        self.vcenter = VCenter(state["server"], USER, "s3cr3t-word", Path(state["ca"]), state["thumbprint"])


def obtain() -> Path:
    """The program, built the first time, and again when its source has changed. Raises Missing, ServerError."""
    paths = [*sorted(SOURCES.iterdir()), Path(__file__)]
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
    return once(cache("vcsim", f"{VERSION}-{sources.hexdigest()[:8]}") / "vcsim", _build)


def _build(scratch: Path) -> Path:
    print(
        f"building the vCenter simulator {VERSION}, once (cold on 2 cores: 1 to 3 minutes)", file=sys.stderr, flush=True
    )
    env = {k: v for k, v in os.environ.items() if k not in {"GOOS", "GOARCH", "GOEXPERIMENT"}}
    env |= {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    with go(scratch, "make do without the tests of the VMware store") as program:

        def call(failure: type[Exception], *words: str) -> str:
            command = [tool("setpriv", "util-linux"), "--pdeathsig", "TERM", "--", program, *words]
            done = subprocess.run(command, cwd=SOURCES, env=env, check=False, capture_output=True, text=True)
            if done.returncode:
                raise failure(f"go {words[0]} failed, so there is no vCenter simulator: {done.stderr.strip()[-2000:]}")
            return done.stdout

        call(Missing, "mod", "download")
        flags = ["-buildvcs=false", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"]
        flags.append(f"-modfile={_mended(Path(call(ServerError, *_WHERE).strip()), scratch)}")
        call(ServerError, "build", *flags, "-o", str(scratch / "vcsim"), ".")
    return scratch / "vcsim"


def _mended(govmomi: Path, scratch: Path) -> Path:
    """A go.mod with a copy of govmomi whose simulator does not die of a file that goes while it lists a folder."""
    copy = shutil.copytree(govmomi, scratch / "govmomi", copy_function=shutil.copyfile)  # the original is read-only
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    source = copy / "simulator" / "host_datastore_browser.go"
    text, bad = source.read_text(), "info, _ := file.Info()\n"
    if text.count(bad) != 1:
        raise ServerError(f"the simulator of govmomi {VERSION} is not what was mended: see whether it still takes that")
    source.write_text(text.replace(bad, "info, err := file.Info()\n\t\tif err != nil {\n\t\t\tcontinue\n\t\t}\n"))
    module = scratch / "go.mod"
    module.write_text(f"{(SOURCES / 'go.mod').read_text()}\nreplace github.com/vmware/govmomi => {copy}\n")
    shutil.copyfile(SOURCES / "go.sum", scratch / "go.sum")
    return module


def _thumbprint(certificate: bytes) -> str:
    import ssl

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).hexdigest()
