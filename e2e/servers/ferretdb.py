"""FerretDB: a database that speaks MongoDB's protocol, with its data in SQLite.

MongoDB itself is in no registry of packages. This one is built from its own sources in a minute, starts in one, asks
for a password, speaks TLS and can be given little room, so what a client of MongoDB does can be tested for real.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import trustme

from servers import ROOT, Missing, Server, ServerError, locked, tool, wait_until
from servers.programs import cache, go

VERSION: Final = "1.23.1"
"""Of FerretDB; `e2e/ferretdb/go.mod` names the same."""
SOURCES: Final = ROOT / "e2e" / "ferretdb"
PACKAGE: Final = "github.com/FerretDB/FerretDB"
LOGIN: Final = ("glimpse", "s3cr3t-word")
"""Name and password of the user that it begins with."""

_PAGE: Final = 4096
"""Bytes of a page of SQLite."""


@dataclass(frozen=True)
class Mongo:
    """Where it is, and how to get in."""

    uri: str
    """Without credentials."""
    host: str
    port: int
    username: str
    password: str
    ca_file: Path | None = None
    """Who signed the certificate; None for plain TCP."""


class FerretDB(Server[Mongo]):
    """FerretDB on SQLite. Over TLS if `ca` is given, with a certificate of it for 127.0.0.1 and localhost."""

    name: ClassVar[str] = "ferretdb"
    mongo: Mongo

    def __init__(
        self, folder: Path, *, ca: trustme.CA | None = None, room: int | None = None, detached: bool = False
    ) -> None:
        """`room`: bytes that each database may take on disk; what it stores takes a third more than it has."""
        super().__init__(folder, detached=detached)
        self._ca = ca
        self._room = room

    def start(self) -> Mongo:
        """Start it. Raises Missing, ServerError."""
        program = obtain()
        data, state = self.folder / "data", self.folder / "state"
        data.mkdir(parents=True, exist_ok=True)
        state.mkdir(exist_ok=True)
        ca_file, tls = None, list[str]()
        for attempt in (1, 2, 3):
            [port] = self.ports(1, fresh=attempt > 1)
            address = f"127.0.0.1:{port}"
            where = [f"--listen-addr={address}"]
            if self._ca is not None:
                ca_file = self.folder / "ca.pem"
                self._ca.cert_pem.write_to_path(str(ca_file))
                pair = self.folder / "server.pem"
                self._ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
                tls = [f"--listen-tls-cert-file={pair}", f"--listen-tls-key-file={pair}"]
                where = ["--listen-addr=", f"--listen-tls={address}", *tls]
            self.mongo = Mongo(
                f"mongodb://{address}/{'?tls=true' if ca_file else ''}",
                "127.0.0.1",
                port,
                *LOGIN,
                ca_file,
            )
            pragma = f"?_pragma=max_page_count({self._room // _PAGE})" if self._room else ""
            process = self.spawn(
                "ferretdb",
                [
                    program,
                    "--handler=sqlite",
                    f"--sqlite-url=file:{data}/{pragma}",
                    f"--state-dir={state}",
                    *where,
                    "--debug-addr=-",
                    "--telemetry=disable",
                    "--test-enable-new-auth",  # else it lets everybody in
                    "--setup-database=admin",
                    f"--setup-username={self.mongo.username}",
                    f"--setup-password={self.mongo.password}",
                    "--log-level=WARN",
                ],
            )
            try:
                wait_until("FerretDB", self.ready, timeout=30, alive=[process])
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
            return self.mongo
        raise AssertionError

    def ready(self) -> bool:
        """Whether it lets us in."""
        from pymongo.errors import PyMongoError

        try:
            with self.client(timeout=1) as client:
                client.admin.command("ping")
        except PyMongoError:
            return False
        return True

    def client(self, *, timeout: float = 10) -> "Any":
        """The usual client, logged in; `timeout` in seconds."""
        import pymongo

        return pymongo.MongoClient(
            self.mongo.uri,
            username=self.mongo.username,
            password=self.mongo.password,
            serverSelectionTimeoutMS=timeout * 1000,
            tlsCAFile=str(self.mongo.ca_file) if self.mongo.ca_file else None,
        )

    def describe(self) -> dict[str, str]:
        """Address, name and password."""
        return {"uri": self.mongo.uri, "username": self.mongo.username, "password": self.mongo.password}

    def state(self) -> dict[str, Any]:
        """The address."""
        return {"port": self.mongo.port, "uri": self.mongo.uri, "ca": str(self.mongo.ca_file or "")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the address."""
        ca_file = Path(state["ca"]) if state["ca"] else None
        self.mongo = Mongo(state["uri"], "127.0.0.1", state["port"], *LOGIN, ca_file)


def obtain() -> Path:
    """The program, built the first time. Raises Missing, ServerError."""
    target = cache("ferretdb", VERSION) / "ferretdb"
    if os.access(target, os.X_OK):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent.parent / f"{target.parent.name}.lock"):
        if not os.access(target, os.X_OK):  # another run may have built it meanwhile
            scratch = target.parent.parent / f"{target.parent.name}.building"
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed; the lock says that none goes on
            scratch.mkdir()
            try:
                _build(scratch)
                (scratch / "ferretdb").rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def _build(scratch: Path) -> None:
    """Its program wants to find its version in a file that only its own release scripts write: a copy has it."""
    print(f"building FerretDB {VERSION}, once (cold on 2 cores: a minute)", file=sys.stderr, flush=True)
    for name in ("go.mod", "go.sum"):
        shutil.copy(SOURCES / name, scratch / name)
    env = {k: v for k, v in os.environ.items() if k not in {"GOOS", "GOARCH", "GOEXPERIMENT"}}
    env |= {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    with go(scratch, f"put FerretDB {VERSION} into {cache('ferretdb', VERSION)}") as program:

        def call(*words: str) -> None:
            command = [tool("setpriv", "util-linux"), "--pdeathsig", "TERM", "--", program, *words]
            done = subprocess.run(command, cwd=scratch, env=env, check=False, capture_output=True, text=True)
            if done.returncode:
                raise (ServerError if words[0] == "build" else Missing)(
                    f"go {words[0]} failed, so there is no FerretDB: {done.stderr.strip()[-2000:]}"
                )

        call("mod", "vendor")
        (scratch / "vendor" / PACKAGE / "build" / "version" / "version.txt").write_text(f"v{VERSION}\n")
        flags = ["-mod=vendor", "-buildvcs=false", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"]
        call("build", *flags, "-o", str(scratch / "ferretdb"), f"{PACKAGE}/cmd/ferretdb")
