"""OpenStack Cinder over a Ceph of ours: the API, the scheduler and the volume service, in one process on loopback.

Without Keystone everybody may do everything in the project that he names, which is what Cinder calls noauth; with one,
the same volumes are reached at a second address, where a token is asked for.
"""

import importlib.util
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from servers import ROOT, Missing, Server, ServerError, locked, run, tool, wait_until
from servers.ceph import Cluster
from servers.environments import environment

VERSION: Final = "29.0.0"
REQUIREMENTS: Final = (f"cinder=={VERSION}", "setuptools<81")
POOL: Final = "volumes"
USER: Final = "cinder"
ELSEWHERE: Final = "elsewhere"
"""A volume type that no backend offers, so volumes of it fail."""

_CONFIG: Final = """
[DEFAULT]
transport_url = fake:/
auth_strategy = noauth
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
api_paste_config = {folder}/api-paste.ini
resource_query_filters_file = {programs}/../etc/cinder/resource_filters.json
rootwrap_config = {programs}/../etc/cinder/rootwrap.conf
enabled_backends = rbd
state_path = {folder}/state
host = glimpse
my_ip = 127.0.0.1
glance_api_servers = http://127.0.0.1:9
allocated_capacity_gb = 0
periodic_fuzzy_delay = 0
periodic_interval = 5
report_interval = 2
backend_stats_polling_interval = 5
service_down_time = 3600
scheduler_default_filters = AvailabilityZoneFilter,CapabilitiesFilter
default_log_levels = cinder=WARNING,eventlet=WARNING,oslo=WARNING,cinder.volume.drivers.rbd=ERROR,cinder.quota=ERROR
[database]
connection = sqlite:///{folder}/cinder.sqlite
sqlite_synchronous = false
[oslo_concurrency]
lock_path = {folder}/state/lock
[coordination]
backend_url = file://{folder}/state/coordination
[rbd]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = rbd
rbd_pool = {pool}
rbd_user = {user}
rbd_ceph_conf = {ceph}
rbd_cluster_name = ceph
rbd_exclusive_cinder_pool = true
rados_connection_interval = 1
backend_host = glimpse
"""
# Cinder asks for the monitors at each attachment, by a program that takes half a second to start. Here they stay.
_CEPH: Final = """\
#!/bin/sh
[ "$1 $2" = "mon dump" ] && exec cat {folder}/monitors.json
exec {ceph} "$@"
"""
# As Cinder ships it, but for what no test needs, and for the second way in.
_PASTE: Final = """
[composite:osapi_volume]
use = call:cinder.api:root_app_factory
/: apiversions
/v3: open
/keystone/v3: guarded
[pipeline:open]
pipeline = request_id faultwrap sizelimit noauth apiv3
[pipeline:guarded]
pipeline = request_id faultwrap sizelimit {guard} apiv3
[pipeline:apiversions]
pipeline = request_id faultwrap versions
[app:versions]
paste.app_factory = cinder.api.versions:Versions.factory
[app:apiv3]
paste.app_factory = cinder.api.v3.router:APIRouter.factory
[filter:request_id]
paste.filter_factory = cinder.api.middleware.request_id:RequestId.factory
[filter:faultwrap]
paste.filter_factory = cinder.api.middleware.fault:FaultWrapper.factory
[filter:sizelimit]
paste.filter_factory = oslo_middleware.sizelimit:RequestBodySizeLimiter.factory
[filter:noauth]
paste.filter_factory = cinder.api.middleware.auth:NoAuthMiddleware.factory
[filter:keystonecontext]
paste.filter_factory = cinder.api.middleware.auth:CinderKeystoneContext.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
{login}
"""


@dataclass(frozen=True)
class Cloud:
    """Where Cinder is, and what a client of its volumes needs."""

    url: str
    """Of the API without authentication, with /v3 at its end."""
    cluster: Cluster
    """Where the volumes are, in the pool `volumes`."""
    key: str = field(repr=False)
    """Of the Ceph user `cinder`, which may use that pool."""

    @property
    def guarded(self) -> str:
        """What Keystone's catalog says, if there is one: the API that asks for tokens."""
        return f"{self.url.removesuffix('/v3')}/keystone/v3/$(project_id)s"

    @property
    def port(self) -> int:
        """The API's."""
        return int(self.url.removesuffix("/v3").rpartition(":")[2])

    def call(self, project: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request as an administrator of `project`; what was answered. Raises urllib's HTTPError."""
        request = urllib.request.Request(  # noqa: S310 - a server on loopback
            f"{self.url}/{project}{path}",
            None if body is None else json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "X-Auth-Token": f"admin:{project}",
                "OpenStack-API-Version": "volume 3.60",
            },
            method=method,
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def volumes(self, project: str) -> list[dict[str, Any]]:
        """All volumes of a project."""
        found: list[dict[str, Any]] = self.call(project, "GET", "/volumes/detail")["volumes"]
        return found

    def volume(self, project: str, volume: str) -> dict[str, Any] | None:
        """One volume; None without it."""
        try:
            found: dict[str, Any] = self.call(project, "GET", f"/volumes/{volume}")["volume"]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise
        return found

    def reaches(self, project: str, volume: str, *status: str) -> None:
        """Wait until a volume has this status; with none, until it is gone. Raises ServerError."""

        def there() -> bool:
            found = self.volume(project, volume)
            return found["status"] in status if found else not status

        wait_until(f"volume {volume} as {' or '.join(status) or 'gone'}", there, timeout=60)

    def quota(self, project: str, gigabytes: int) -> None:
        """Let a project have so many GiB of volumes; -1: any."""
        self.call(project, "PUT", f"/os-quota-sets/{project}", {"quota_set": {"gigabytes": gigabytes}})


class Cinder(Server[Cloud]):
    """Cinder. A second start in the folder finds the volumes of the first, at the same address."""

    name: ClassVar[str] = "cinder"
    cloud: Cloud

    def __init__(
        self, folder: Path, cluster: Cluster | None = None, *, login: str = "", detached: bool = False
    ) -> None:
        """`cluster`: where the volumes are; None for one that `restore` brings.

        `login`: the section `keystone_authtoken` with which it asks a Keystone; empty without one.
        """
        super().__init__(folder, detached=detached)
        self._cluster, self._login = cluster, login

    def start(self) -> Cloud:
        """Start it; 4 s, and 6 s more once a version. Raises Missing, ServerError."""
        cluster = self._cluster
        assert cluster, "one to start with"
        programs = environment("cinder", REQUIREMENTS)
        _lend(programs, ("rados", "rbd"))
        pools = [pool["pool_name"] for pool in cluster.ceph("osd", "pool", "ls", "detail")]
        if POOL not in pools:
            cluster.pool(POOL)
        key = cluster.client(USER, mon="profile rbd", osd=f"profile rbd pool={POOL}")
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2, 3):
            [port] = self.ports(1, fresh=attempt > 1)
            self.cloud = Cloud(f"http://127.0.0.1:{port}/v3", cluster, key)
            self._configure(cluster, programs, port)
            config = self.folder / "cinder.conf"
            words: list[str | Path] = [programs / "python", "-W", "ignore", ROOT / "e2e" / "cinder_all.py"]
            words += ["--config-file", config]
            path = f"{self.folder.resolve() / 'bin'}:{os.environ.get('PATH', os.defpath)}"
            process = self.spawn("cinder", words, env={**os.environ, "PATH": path})
            try:
                wait_until("Cinder", self.ready, timeout=120, alive=[process])
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
            self._declare()
            return self.cloud
        raise AssertionError

    def ready(self) -> bool:
        """Whether the API answers, and the volume service has reported."""
        try:
            services = self.cloud.call(_ADMIN, "GET", "/os-services")["services"]
        except OSError:
            return False
        return {each["binary"] for each in services if each["state"] == "up"} >= {"cinder-volume", "cinder-scheduler"}

    def describe(self) -> dict[str, str]:
        """The address."""
        return {"url": self.cloud.url}

    def state(self) -> dict[str, Any]:
        """Where it is, and over which cluster."""
        cluster = self.cloud.cluster
        ceph = {"fsid": cluster.fsid, "monitors": cluster.monitors, "conf": str(cluster.conf), "key": cluster.key}
        return {"url": self.cloud.url, "key": self.cloud.key, "ceph": ceph}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take that up."""
        ceph = state["ceph"]
        cluster = Cluster(ceph["fsid"], tuple(ceph["monitors"]), Path(ceph["conf"]), ceph["key"], None)
        self.cloud = Cloud(state["url"], cluster, state["key"])

    def _configure(self, cluster: Cluster, programs: Path, port: int) -> None:
        database = self.folder / "cinder.sqlite"
        folder = self.folder.resolve()
        text = _CONFIG.format(port=port, folder=folder, programs=programs, pool=POOL, user=USER, ceph=cluster.conf)
        config = self.folder / "cinder.conf"
        config.touch(mode=0o600)
        config.write_text(text)
        ceph = cluster.conf.read_text()
        section = f"[client.{USER}]\nkeyring = {cluster.conf.with_name(f'client.{USER}.keyring')}\n"
        # In one process, whoever waits for a Ceph that hangs would keep all others waiting.
        section += "rados mon op timeout = 5\nrados osd op timeout = 5\nclient mount timeout = 5\n"
        if section not in ceph:  # the one of all, `$name.keyring`, is not where Cinder looks first
            cluster.conf.write_text(ceph + section)
        guard = "authtoken keystonecontext" if self._login else "noauth"
        paste = self.folder / "api-paste.ini"
        paste.touch(mode=0o600)
        paste.write_text(_PASTE.format(guard=guard, login=""))
        if self._login:
            config.write_text(text + self._login)
        (self.folder / "monitors.json").write_text(json.dumps(cluster.ceph("mon", "dump")))
        (self.folder / "bin").mkdir(exist_ok=True)
        program = self.folder / "bin" / "ceph"
        program.write_text(_CEPH.format(folder=folder, ceph=tool("ceph", "ceph-common")))
        program.chmod(0o755)
        if not database.exists():
            shutil.copyfile(_migrated(programs), database)

    def _declare(self) -> None:
        """A type that cannot be had, and no quota for who has none of his own."""
        none = {"quota_class_set": {"volumes": -1, "gigabytes": -1}}
        self.cloud.call(_ADMIN, "PUT", "/os-quota-class-sets/default", none)
        types = self.cloud.call(_ADMIN, "GET", "/types")["volume_types"]
        if ELSEWHERE not in {each["name"] for each in types}:
            wanted = {"name": ELSEWHERE, "extra_specs": {"volume_backend_name": "absent"}}
            self.cloud.call(_ADMIN, "POST", "/types", {"volume_type": wanted})


_ADMIN: Final = "0" * 32


def _lend(programs: Path, modules: Sequence[str]) -> None:
    """Ceph's libraries are not on PyPI: the environment gets those that our own has."""
    [site] = programs.parent.glob("lib/python*/site-packages")
    for name in modules:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise Missing(f"the Python module {name} is missing: Debian has it in python3-{name}; run `make setup`")
        origin = Path(found.origin).resolve()
        link = site / origin.name
        with locked(programs.parent.with_suffix(".lock")):
            if not link.exists():
                link.unlink(missing_ok=True)
                link.symlink_to(origin)


def _migrated(programs: Path) -> Path:
    """An empty database of this version: made in 6 s, and kept beside the programs."""
    made = programs.parent / "cinder.sqlite"
    with locked(programs.parent.with_suffix(".lock")):
        if not made.exists():
            fresh = made.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            config = made.with_suffix(".conf")
            config.write_text(f"[database]\nconnection = sqlite:///{fresh}\n[DEFAULT]\nlog_file = {fresh}.log\n")
            run(programs / "cinder-manage", "--config-file", config, "db", "sync", timeout=180)
            fresh.rename(made)
    return made
