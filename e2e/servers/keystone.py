"""OpenStack Keystone, version 3 of the identity API, on SQLite and loopback: who may enter another server.

One process makes the database at its first start and serves then; a web server of its own is for those who have many
users.
"""

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from servers import Server, ServerError, wait_until
from servers.environments import environment

VERSION: Final = "30.0.0"
REQUIREMENTS: Final = (f"keystone=={VERSION}", "setuptools<81")
REGION: Final = "RegionOne"

_CONFIG: Final = """
[DEFAULT]
use_stderr = true
[database]
connection = sqlite:///{folder}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {folder}/keys
[fernet_receipts]
key_repository = {folder}/keys
[credential]
key_repository = {folder}/keys
[cache]
enabled = false
"""
_SERVE: Final = """
import os, shutil, sys, warnings
warnings.simplefilter("ignore")
from keystone.cmd import cli
from keystone.server import wsgi
from werkzeug.serving import run_simple
config, port, password, region, url, database, empty = sys.argv[1:]
def manage(*words):  # in a child: a process reads its configuration once, and to import all of it takes seconds
    child = os.fork()
    if not child:
        cli.main(argv=["keystone-manage", "--config-file", config, *words])
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(words[0] + " failed")
if not os.path.exists(database + ".complete"):
    if os.path.exists(empty):
        shutil.copy(empty, database)
    else:  # the slowest part, and always the same
        if os.path.exists(database):
            os.unlink(database)
        manage("db_sync")
        shutil.copy(database, f"{empty}.{os.getpid()}")
        os.replace(f"{empty}.{os.getpid()}", empty)
    manage("bootstrap", "--bootstrap-password", password, "--bootstrap-region-id", region,
           "--bootstrap-public-url", url, "--bootstrap-admin-url", url)
    open(database + ".complete", "w").close()
sys.argv = ["keystone"]
os.environ["OS_KEYSTONE_CONFIG_DIR"] = os.path.dirname(config)
run_simple("127.0.0.1", int(port), wsgi.initialize_public_application(), threaded=True)
"""


@dataclass(frozen=True)
class User:
    """Somebody with a role in a project, both in the domain `Default`."""

    name: str
    password: str = field(repr=False)
    project: str


@dataclass(frozen=True)
class Identity:
    """A Keystone and an administrator's way into it."""

    url: str
    """With /v3 at its end."""
    password: str = field(repr=False)
    """Of the user `admin`, in the project `admin`."""
    region: str = REGION

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, user: User | None = None
    ) -> dict[str, Any]:
        """One request, with a new token of the administrator or of `user`. Raises urllib's HTTPError."""
        token, _ = self.token(user)
        _, answer = _call(method, f"{self.url}{path}", body, {"X-Auth-Token": token})
        return answer

    def token(self, user: User | None = None) -> tuple[str, dict[str, Any]]:
        """A new one, and what it says."""
        who = user or User("admin", self.password, "admin")
        domain = {"domain": {"name": "Default"}}
        login = {"user": {"name": who.name, "password": who.password, **domain}}
        auth = {
            "identity": {"methods": ["password"], "password": login},
            "scope": {"project": {"name": who.project, **domain}},
        }
        headers, answer = _call("POST", f"{self.url}/auth/tokens", {"auth": auth}, {})
        return headers["X-Subject-Token"], answer["token"]

    def revoke(self, token: str) -> None:
        """End the life of a token."""
        mine, _ = self.token()
        _call("DELETE", f"{self.url}/auth/tokens", None, {"X-Auth-Token": mine, "X-Subject-Token": token})

    def user(self, name: str, password: str, project: str, *, role: str = "member") -> User:
        """Make a project, and a user with this role in it."""
        made = self.call("POST", "/projects", {"project": {"name": project, "domain_id": "default"}})["project"]["id"]
        wanted = {"user": {"name": name, "password": password, "domain_id": "default"}}
        who = self.call("POST", "/users", wanted)["user"]["id"]
        [known] = self.call("GET", f"/roles?name={role}")["roles"]
        self.call("PUT", f"/projects/{made}/users/{who}/roles/{known['id']}")
        return User(name, password, project)

    def credential(self, user: User, name: str = "glimpse") -> tuple[str, str]:
        """Make an application credential of this user: its ID and its secret."""
        _, said = self.token(user)
        wanted = {"application_credential": {"name": name}}
        made = self.call("POST", f"/users/{said['user']['id']}/application_credentials", wanted, user=user)[
            "application_credential"
        ]
        return made["id"], made["secret"]

    def register(self, kind: str, url: str) -> None:
        """Put a service into the catalog."""
        service = self.call("POST", "/services", {"service": {"type": kind, "name": kind}})["service"]["id"]
        endpoint = {"service_id": service, "interface": "public", "url": url, "region_id": self.region}
        self.call("POST", "/endpoints", {"endpoint": endpoint})

    def filters(self) -> str:
        """What Swift's proxy needs to believe in this Keystone, as the filters `authtoken` and `keystoneauth`."""
        return f"""
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {self.url}
auth_url = {self.url}
auth_type = password
interface = public
username = admin
password = {self.password}
project_name = admin
user_domain_id = default
project_domain_id = default
delay_auth_decision = true
cache = swift.cache
include_service_catalog = false
service_token_roles_required = true
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member
"""


class Keystone(Server[Identity]):
    """Keystone. A second start in the folder finds users and keys of the first, at the same address."""

    name: ClassVar[str] = "keystone"
    identity: Identity

    def start(self) -> Identity:
        """Start it; some 10 s the first time. Raises Missing, ServerError."""
        programs = environment("keystone", REQUIREMENTS)
        keys = self.folder / "keys"
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("0", "1"):
            if not (keys / name).exists():
                (keys / name).touch(mode=0o600)
                (keys / name).write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
        config = self.folder / "keystone.conf"
        config.write_text(_CONFIG.format(folder=self.folder))
        password = "adminsecret"  # noqa: S105 - of a server on loopback, for tests
        for attempt in (1, 2, 3):
            [port] = self.ports(1, fresh=attempt > 1)
            self.identity = Identity(f"http://127.0.0.1:{port}/v3", password)
            database, empty = self.folder / "keystone.db", programs.parent / "empty.db"
            words = [str(port), password, REGION, self.identity.url]
            process = self.spawn("keystone", [programs / "python", "-c", _SERVE, config, *words, database, empty])
            try:
                wait_until("Keystone", self.ready, timeout=180, alive=[process])
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
            return self.identity
        raise AssertionError

    def ready(self) -> bool:
        """Whether one can log in."""
        try:
            self.identity.token()
        except OSError:
            return False
        return True

    def describe(self) -> dict[str, str]:
        """The address."""
        return {"url": self.identity.url}

    def state(self) -> dict[str, Any]:
        """The address and the password."""
        return {"url": self.identity.url, "password": self.identity.password}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.identity = Identity(state["url"], state["password"])


def _call(
    method: str, url: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
) -> tuple[Mapping[str, str], dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - a server on loopback
        url, data, {"Content-Type": "application/json", **headers}, method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        content = answer.read()
        return answer.headers, json.loads(content) if content else {}
