"""Ceph on loopback: a monitor and an OSD, and if asked for the gateway that speaks S3 and Swift.

One node is all of Ceph that a client can tell: pools, RBD, snapshots, locks and watchers are the real ones. A manager
is there only if it is asked for: without one there are no statistics (`ceph df`), and quotas are not enforced.
"""

import base64
import json
import os
import shutil
import signal
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar, Final, Literal

import trustme

from servers import Process, Server, ServerError, run, tool, wait_until

_CONFIG: Final = """\
[global]
fsid = {fsid}
mon host = {monitors}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
keyring = {folder}/$name.keyring
run dir = {folder}
crash dir = {folder}
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 2000
{options}
[mon]
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 1
mon warn on pool no redundancy = false
paxos propose interval = 0.01
paxos min wait = 0.005
log to file = false
log to stderr = true
admin socket = mon.asok
[osd]
osd data = {folder}/osd
osd objectstore = {objectstore}
memstore device bytes = {size}
bluestore block create = true
bluestore block size = {size}
bluestore fsck on mkfs = false
bluestore cache autotune = false
bluestore cache size = 268435456
log to file = false
log to stderr = true
admin socket = osd.asok
[mgr]
mgr data = {folder}/mgr
mgr module path = {folder}/modules
mgr stats period = 1
mgr tick period = 1
log to file = false
log to stderr = true
admin socket = mgr.asok
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast {frontend} tcp_nodelay=1
rgw enable apis = s3, sts, swift, swift_auth, admin
rgw thread pool size = 32
rgw swift account in url = true
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw gc processor max time = 5
rgw enable usage log = false
rgw run sync thread = false
rgw enable lc threads = false
log to file = false
log to stderr = true
"""

_CAPS: Final[Mapping[str, Mapping[str, str]]] = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"},
    "osd.0": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
    "mgr.a": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
    "client.rgw.a": {"mon": "allow rw", "osd": "allow rwx", "mgr": "allow rw"},
}


@dataclass(frozen=True)
class Gateway:
    """The RADOS Gateway: one account, by S3 and by Swift."""

    url: str
    """Of S3, without a slash at the end; buckets are in the path."""
    ca_file: Path | None
    """Who signed the certificate; None for plain HTTP."""
    access_key: str
    secret_key: str = field(repr=False)
    swift_user: str
    """For auth version 1."""
    swift_key: str = field(repr=False)

    @property
    def swift_auth(self) -> str:
        """Where Swift's auth version 1 is."""
        return f"{self.url}/auth/v1.0"


@dataclass(frozen=True)
class Cluster:
    """A Ceph cluster and an administrator's way into it."""

    fsid: str
    monitors: tuple[str, ...]
    """As clients are told: protocol, host and port."""
    conf: Path
    """A ceph.conf; it names a keyring for `client.admin` and for each client that was made here."""
    key: str = field(repr=False)
    """Of `client.admin`."""
    gateway: Gateway | None

    def ceph(self, *args: str) -> Any:
        """The answer to an administrator's command. Raises ServerError with Ceph's words."""
        answer = run(tool("ceph", "ceph-common"), "--conf", self.conf, "--format", "json", *args)
        return json.loads(answer) if answer.strip() else None

    def pool(self, name: str) -> str:
        """Make a pool for RBD; its name."""
        self.ceph("osd", "pool", "create", name)
        run(tool("rbd", "ceph-common"), "--conf", self.conf, "pool", "init", name)
        return name

    def client(self, name: str, **caps: str) -> str:
        """Make the user `client.{name}`, such as `client("glimpse", mon="profile rbd", osd="profile rbd")`; its key."""
        words = [word for pair in caps.items() for word in pair]
        key: str = self.ceph("auth", "get-or-create", f"client.{name}", *words)[0]["key"]
        _keyring(self.conf.with_name(f"client.{name}.keyring"), {f"client.{name}": key})
        return key


class Ceph(Server[Cluster]):
    """ceph-mon, ceph-osd, perhaps ceph-mgr and radosgw.

    Started again in its folder, it has its data, ports and keys again.
    """

    name: ClassVar[str] = "ceph"
    cluster: Cluster

    def __init__(
        self,
        folder: Path,
        *,
        objectstore: Literal["bluestore", "memstore"] = "bluestore",
        size: int = 32 << 30,
        gateway: bool = False,
        manager: bool = False,
        ca: trustme.CA | None = None,
        options: Mapping[str, object] | None = None,
        detached: bool = False,
    ) -> None:
        """`memstore` starts in 1 s and not in 4, for a few hundred MB that are gone when it stops.

        `size`: of the one OSD, in bytes; a file that grows as it is written. `manager`: one counts what is stored, and
        quotas are enforced. `ca`: the gateway speaks TLS, with a certificate of it for 127.0.0.1 and localhost.
        `options`: more of ceph.conf, for all.
        """
        super().__init__(folder.resolve(), detached=detached)
        self._objectstore = objectstore
        self._size = size
        self._gateway = gateway
        self._manager = manager
        self._ca = ca
        self._tls = ca is not None
        self._options = options or {}

    def start(self) -> Cluster:
        """Start all, wait for the OSD and the gateway. Raises Missing, ServerError."""
        for program, package in (
            ("ceph-mon", "ceph-mon"),
            ("ceph-osd", "ceph-osd"),
            ("ceph", "ceph-common"),
            ("monmaptool", "ceph-common"),
        ):
            tool(program, package)
        if self._manager:
            tool("ceph-mgr", "ceph-mgr")
        if self._gateway:
            tool("radosgw", "radosgw")
            tool("radosgw-admin", "radosgw")
        made = self._objectstore == "bluestore" and self._made.exists()
        for attempt in (1, 2, 3):
            try:
                self._start(fresh=not made)
            except BaseException as error:
                self.stop()
                # Somebody took a port between our look and the bind; a cluster that was there keeps its ports.
                taken = isinstance(error, ServerError) and "in use" in str(error)
                if made or not taken or attempt == 3:
                    raise
                self.ports(3, fresh=True)
            else:
                return self.cluster
        raise AssertionError

    def _start(self, *, fresh: bool) -> None:
        self._configure(fresh=fresh)
        conf = ("--conf", self.cluster.conf)
        if fresh:
            osd = str(uuid.uuid4())
            filling = self._make(osd)
        self.spawn("mon", [tool("ceph-mon", "ceph-mon"), *conf, "-i", "a", "-f"])
        wait_until("ceph-mon", self._quorate, timeout=30, alive=list(self.processes.values()))
        if fresh:
            self.cluster.ceph("osd", "new", osd, "0")
            _end(filling)
        before = self._booted()
        self.spawn("osd", [tool("ceph-osd", "ceph-osd"), *conf, "-i", "0", "-f"])
        wait_until("ceph-osd", lambda: self._booted() > before, timeout=60, alive=list(self.processes.values()))
        if self._manager:
            self.spawn("mgr", [tool("ceph-mgr", "ceph-mgr"), *conf, "-i", "a", "-f"])
            wait_until("ceph-mgr", self._counted, timeout=60, alive=list(self.processes.values()))
        if self._gateway:
            self._start_gateway()
        self._made.touch()

    def _make(self, osd: str) -> Process:
        """Make the data of both; those of the OSD are made while the caller goes on."""
        conf, monmap = ("--conf", self.cluster.conf), self.folder / "monmap"
        address = self._addresses()
        run(
            tool("monmaptool", "ceph-common"),
            *("--create", "--clobber", "--fsid", self.cluster.fsid, "--addv", "a", address, monmap),
        )
        mkfs = ("-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config", "--monmap", monmap)
        filling = self.spawn("osd-mkfs", [tool("ceph-osd", "ceph-osd"), *conf, *mkfs])
        del self.processes[filling.name]  # it ends by itself
        keyring = self.folder / "mon.keyring"
        run(tool("ceph-mon", "ceph-mon"), *conf, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        return filling

    def _configure(self, *, fresh: bool) -> None:
        """Write ceph.conf and, the first time, keys."""
        secrets = self.folder / "secrets.json"
        if fresh:
            self._wipe()  # what an earlier start did not finish
            for name in ("mon", "osd", "mgr", "modules"):
                (self.folder / name).mkdir(parents=True)
            keys = {name: _key() for name in _CAPS}
            for name, key in keys.items():
                _keyring(self.folder / f"{name}.keyring", {name: key})
            _keyring(self.folder / "mon.keyring", keys)
            secrets.touch(mode=0o600)
            secrets.write_text(
                json.dumps({"fsid": str(uuid.uuid4()), **keys, "s3": token_hex(20), "swift": token_hex(20)})
            )
        self._take_up()
        frontend = f"endpoint=127.0.0.1:{self.ports(3)[2]}"
        if self._ca is not None:
            self._ca.cert_pem.write_to_path(str(self.folder / "ca.pem"))
            pair = self.folder / "server.pem"
            self._ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
            frontend = f"ssl_{frontend} ssl_certificate={pair} ssl_private_key={pair}"
        self.cluster.conf.write_text(
            _CONFIG.format(
                fsid=self.cluster.fsid,
                monitors=self._addresses(),
                folder=self.folder,
                options="\n".join(f"{name} = {value}" for name, value in self._options.items()),
                objectstore=self._objectstore,
                size=self._size,
                frontend=frontend,
            )
        )

    def _take_up(self) -> None:
        """What the folder says of the cluster."""
        secrets = json.loads((self.folder / "secrets.json").read_text())
        port, _, web = self.ports(3)
        gateway = None
        if self._gateway:
            gateway = Gateway(
                url=f"{'https' if self._tls else 'http'}://127.0.0.1:{web}",
                ca_file=self.folder / "ca.pem" if self._tls else None,
                access_key="GLIMPSE",
                secret_key=secrets["s3"],
                swift_user="glimpse:swift",
                swift_key=secrets["swift"],
            )
        self.cluster = Cluster(
            fsid=secrets["fsid"],
            monitors=(f"v2:127.0.0.1:{port}",),
            conf=self.folder / "ceph.conf",
            key=secrets["client.admin"],
            gateway=gateway,
        )

    def _addresses(self) -> str:
        port, legacy, _ = self.ports(3)
        return f"[v2:127.0.0.1:{port}/0,v1:127.0.0.1:{legacy}/0]"

    def _quorate(self) -> bool:
        try:
            self.cluster.ceph("--connect-timeout", "1", "mon", "stat")
        except ServerError:
            return False
        return True

    def _booted(self) -> int:
        """In which epoch the OSD has begun to serve; 0 while it is not up."""
        osds = self.cluster.ceph("osd", "dump")["osds"]
        return int(osds[0]["up_from"]) if osds and osds[0]["up"] else 0

    def _counted(self) -> bool:
        """Whether the manager has counted what the OSD has."""
        return bool(self.cluster.ceph("df")["stats"]["total_bytes"])

    def _start_gateway(self) -> None:
        gateway = self.cluster.gateway
        assert gateway is not None
        conf = ("--conf", self.cluster.conf, "-n", "client.rgw.a")
        self.spawn("radosgw", [tool("radosgw", "radosgw"), *conf, "-f"])
        wait_until("radosgw", self._answers, timeout=30, alive=list(self.processes.values()))
        if not (user := self.folder / "user").exists():
            admin = tool("radosgw-admin", "radosgw")
            who, _, _ = gateway.swift_user.partition(":")
            pair = ("--access-key", gateway.access_key, "--secret-key", gateway.secret_key)
            run(admin, *conf, "user", "create", "--uid", who, "--display-name", who, *pair)
            key = ("--key-type", "swift", "--secret-key", gateway.swift_key)
            run(admin, *conf, "subuser", "create", "--uid", who, "--subuser", gateway.swift_user, *key, "--access=full")
            user.touch()

    def freeze(self) -> None:
        """Stop its processes: nothing is answered, and nobody hangs up."""
        for process in self.processes.values():
            process.signal(signal.SIGSTOP)
        for process in self.processes.values():
            wait_until(f"the stop of {process.name}", process.stopped, timeout=10)

    def thaw(self) -> None:
        """Have them go on, start anew those that were killed, and wait until all of its data can be read.

        What an OSD that was stopped had leased to its readers it may never renew (Ceph 16: a placement group stays
        `laggy`); then it is told to peer anew. Raises ServerError.
        """
        for process in self.processes.values():
            process.signal(signal.SIGCONT)
        if not all(process.alive() for process in self.processes.values()):
            self.start()
        try:
            wait_until("all data", self._readable, timeout=5)
        except ServerError:
            self.cluster.ceph("osd", "down", "0")
            wait_until("all data", self._readable, timeout=60)

    def _readable(self) -> bool:
        """Whether each placement group gives what is in it: to list a pool takes all that it has."""
        try:
            for pool in self.cluster.ceph("--connect-timeout", "5", "osd", "pool", "ls"):
                run(tool("rados", "ceph-common"), "--conf", self.cluster.conf, "-p", pool, "ls", "--all", timeout=5)
        except (ServerError, subprocess.TimeoutExpired):
            return False
        return True

    def restart_gateway(self) -> None:
        """End the gateway and start it again; the cluster goes on. Raises ServerError."""
        self.processes.pop("radosgw").stop()
        self._start_gateway()

    def _answers(self) -> bool:
        gateway = self.cluster.gateway
        assert gateway is not None
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if gateway.ca_file:
            context = ssl.create_default_context(cafile=str(gateway.ca_file))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        try:
            with urllib.request.build_opener(*handlers).open(gateway.url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ready(self) -> bool:
        """Whether the OSD serves, by what the monitor says, and the gateway answers."""
        if not self._quorate():
            return False
        return self._booted() > 0 and (not self._gateway or self._answers())

    def describe(self) -> dict[str, str]:
        """Configuration and gateway."""
        gateway = self.cluster.gateway
        return {"CEPH_CONF": str(self.cluster.conf)} | ({"url": gateway.url} if gateway else {})

    def state(self) -> dict[str, Any]:
        """What is there; all else is in the folder."""
        return {"objectstore": self._objectstore, "size": self._size, "gateway": self._gateway, "tls": self._tls}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what is there."""
        self._objectstore, self._size = state["objectstore"], state["size"]
        self._gateway, self._tls = state["gateway"], state["tls"]
        self._take_up()

    def _wipe(self) -> None:
        for name in ("mon", "osd", "mgr", "modules", "rgw"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("made", "user"):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def _made(self) -> Path:
        """Is there once all has started for the first time."""
        return self.folder / "made"


def _key() -> str:
    """A key of cephx: its type, when it was made, its length, and 16 random bytes."""
    return base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()


def _keyring(path: Path, keys: Mapping[str, str]) -> None:
    """Write a keyring that only its owner can read; monitors take what the users may do from it."""
    lines = []
    for name, key in keys.items():
        lines += [f"[{name}]", f"\tkey = {key}"]
        lines += [f'\tcaps {service} = "{words}"' for service, words in _CAPS.get(name, {}).items()]
    path.touch(mode=0o600)
    path.write_text("\n".join([*lines, ""]))


def _end(process: Process) -> None:
    """Wait for a program that ends by itself. Raises ServerError."""
    if not process.wait(60) or process.child is None or process.child.returncode:
        process.kill()
        raise ServerError(f"{process.name} failed; the end of {process.log}:\n{process.tail()}")
