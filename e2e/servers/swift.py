"""OpenStack Swift: one proxy, and one account, container and object server, on loopback, with one replica.

The real thing, with the middleware that installations have: large objects, quotas, temporary URLs, and the S3 API.
"""

import json
import os
import pwd
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import trustme

from servers import Server, ServerError, run, tool, wait_until
from servers.environments import environment

VERSION: Final = "2.38.3"
REQUIREMENTS: Final = (f"swift=={VERSION}", "keystonemiddleware==13.0.1", "eventlet==0.41.3", "setuptools<81")

_SWIFT: Final = """
[swift-hash]
swift_hash_path_prefix = glimpse
swift_hash_path_suffix = glimpse
[storage-policy:0]
name = gold
default = yes
"""
_COMMON: Final = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
bind_timeout = 1
workers = 0
swift_dir = {folder}
user = {user}
log_address = {folder}/no-syslog
log_level = WARNING
"""
_BACKEND: Final = """
devices = {folder}/disks
mount_check = false
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY: Final = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache{s3} bulk tempurl {auth} copy
  container_quotas account_quotas slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
recheck_container_existence = {memory}
recheck_account_existence = {memory}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
check_bucket_owner = false
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:copy]
use = egg:swift#copy
[filter:container_quotas]
use = egg:swift#container_quotas
[filter:account_quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""
# Two users of one account (project): one may do all, the other may enter and do nothing. A third may set quotas.
_TEMPAUTH: Final = """
[filter:tempauth]
use = egg:swift#tempauth
token_life = {token_life}
user_img_swift = swsecret .admin
user_img_guest = guestsecret
user_admin_admin = adminsecret .admin .reseller_admin
"""
_RINGS: Final = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), map(int, ports), strict=True):
    ring = RingBuilder(2, 1, 0)
    ring.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0,
                  "replication_ip": "127.0.0.1", "replication_port": port, "meta": ""})
    ring.rebalance()
    ring.get_ring().save(f"{folder}/{name}.ring.gz")
"""


@dataclass(frozen=True)
class Cloud:
    """Where Swift is, and who may enter by its own authentication (v1, tempauth)."""

    url: str
    """The proxy; without a slash at the end. Also the endpoint of its S3 API, in the region us-east-1."""
    ca_file: Path | None = None
    """Who signed the certificate; None for plain HTTP."""
    user: str = "img:swift"
    """Its S3 access key too."""
    key: str = field(default="swsecret", repr=False)
    guest: str = "img:guest"
    """May enter, and has no right to anything."""
    guest_key: str = field(default="guestsecret", repr=False)

    @property
    def auth_url(self) -> str:
        """Where tokens are given out, v1."""
        return f"{self.url}/auth/v1.0"

    @property
    def port(self) -> int:
        """The proxy's."""
        return int(self.url.rpartition(":")[2])

    def login(self, user: str | None = None, key: str | None = None) -> tuple[str, str]:
        """The URL of the account, and a token."""
        headers = {"X-Auth-User": user or self.user, "X-Auth-Key": key or self.key}
        answer, _ = _call(self.auth_url, "GET", headers, ca_file=self.ca_file)
        return answer["X-Storage-Url"], answer["X-Auth-Token"]

    def call(
        self, method: str, path: str = "", headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> tuple[Mapping[str, str], bytes]:
        """One request to the account: the headers and the body of the answer. Raises urllib's HTTPError."""
        url, token = self.login()
        return _call(url + path, method, {"X-Auth-Token": token, **(headers or {})}, data, self.ca_file)

    def listed(self, container: str, prefix: str = "") -> list[dict[str, Any]]:
        """What the container has."""
        _, body = self.call("GET", f"/{container}?format=json&prefix={prefix}")
        found: list[dict[str, Any]] = json.loads(body)
        return found


class Swift(Server[Cloud]):
    """Swift with tempauth. A second start in the folder finds the objects of the first, at the same address."""

    name: ClassVar[str] = "swift"
    cloud: Cloud

    def __init__(
        self,
        folder: Path,
        *,
        token_life: int = 86400,
        memory: int = -1,
        auth: str = "tempauth",
        filters: str = "",
        ca: trustme.CA | None = None,
        detached: bool = False,
    ) -> None:
        """`token_life`: seconds that a token of tempauth is good for.

        `memory`: seconds for which the proxy believes what it knows of a container; -1: it asks each time, so that a
        quota is exact, and is half as fast. Installations have 60.

        `ca`: over TLS, with a certificate of it for 127.0.0.1 and localhost.

        `auth`: the authentication in the pipeline; what is not tempauth is configured by `filters`, and without S3.
        """
        super().__init__(folder, detached=detached)
        self._ca = ca
        self._token_life, self._memory, self._auth, self._filters = token_life, memory, auth, filters

    def start(self) -> Cloud:
        """Start all of it. Raises Missing, ServerError."""
        memcached = tool("memcached", "memcached")
        programs = environment("swift", REQUIREMENTS)
        (self.folder / "disks" / "d1").mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2, 3):
            try:
                return self._start(memcached, programs, fresh=attempt > 1)
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
        raise AssertionError

    def ready(self) -> bool:
        """Whether one can log in, which takes the proxy, memcached and the three servers."""
        try:
            with _open(f"{self.cloud.url}/healthcheck", "GET", {}, ca_file=self.cloud.ca_file):
                pass
            if self._auth == "tempauth":
                self.cloud.call("PUT", "/.ready")
                self.cloud.call("DELETE", "/.ready")
        except OSError:
            return False
        return all(_listens(port) for port in self.ports(5))

    def describe(self) -> dict[str, str]:
        """Address and user."""
        return {"auth": self.cloud.auth_url, "user": self.cloud.user, "key": self.cloud.key}

    def forget_tokens(self) -> None:
        """End the life of all tokens of tempauth; what the proxy knows of containers is forgotten too."""
        with socket.create_connection(("127.0.0.1", self.ports(5)[1]), timeout=5) as cache:
            cache.sendall(b"flush_all\r\n")
            assert cache.recv(64) == b"OK\r\n"

    def state(self) -> dict[str, Any]:
        """The address."""
        return {"url": self.cloud.url, "ca": str(self.cloud.ca_file or ""), "auth": self._auth}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the address."""
        self.cloud = Cloud(state["url"], Path(state["ca"]) if state["ca"] else None)
        self._auth = state["auth"]

    def _start(self, memcached: str, programs: Path, *, fresh: bool) -> Cloud:
        proxy, cache, *backends = self.ports(5, fresh=fresh)
        ca_file = None
        if self._ca:
            ca_file = self.folder / "ca.pem"
            self._ca.cert_pem.write_to_path(str(ca_file))
            pair = self._ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem
            pair.write_to_path(str(self.folder / "server.pem"))
        self.cloud = Cloud(f"http{'s' * bool(ca_file)}://127.0.0.1:{proxy}", ca_file)
        self._configure(proxy, cache, backends)
        run(programs / "python", "-c", _RINGS, self.folder, *map(str, backends))
        user = ["-u", "root"] if os.geteuid() == 0 else []
        self.spawn("memcached", [memcached, "-l", "127.0.0.1", "-p", str(cache), "-U", "0", "-m", "16", *user])
        for name in ("account", "container", "object", "proxy"):
            self.spawn(name, [programs / f"swift-{name}-server", self.folder / f"{name}-server.conf", "-v"])
        wait_until("Swift", self.ready, timeout=60, alive=list(self.processes.values()))
        return self.cloud

    def _configure(self, proxy: int, cache: int, backends: list[int]) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        (self.folder / "swift.conf").write_text(_SWIFT)
        for name, port in zip(("account", "container", "object"), backends, strict=True):
            text = (_COMMON + _BACKEND).format(name=name, port=port, folder=self.folder, user=user)
            (self.folder / f"{name}-server.conf").write_text(text)
        tls = f"cert_file = {self.folder}/server.pem\nkey_file = {self.folder}/server.pem\n" if self._ca else ""
        text = (_COMMON + tls + _PROXY).format(
            port=proxy,
            folder=self.folder,
            user=user,
            auth=self._auth,
            memcached=cache,
            memory=self._memory,
            s3=" s3api" * (self._auth == "tempauth"),
        )
        text += _TEMPAUTH.format(token_life=self._token_life) + self._filters
        path = self.folder / "proxy-server.conf"
        path.touch(mode=0o600)
        path.write_text(text)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _open(
    url: str, method: str, headers: Mapping[str, str], data: bytes | None = None, ca_file: Path | None = None
) -> Any:
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if ca_file:
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)))
    request = urllib.request.Request(url, data, dict(headers), method=method)  # noqa: S310 - a server on loopback
    return urllib.request.build_opener(*handlers).open(request, timeout=30)


def _call(
    url: str, method: str, headers: Mapping[str, str], data: bytes | None = None, ca_file: Path | None = None
) -> tuple[Mapping[str, str], bytes]:
    with _open(url, method, headers, data, ca_file) as answer:
        return answer.headers, answer.read()
