"""One place of each kind of store on its real server: what `make up STORES=…`, the tests and the bench use.

A store that needs preparation (a pool, a database, a folder) gets it here, as its page in the docs tells a person.
"""

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servers import Server
from servers.ceph import Ceph
from servers.cinder import Cinder
from servers.ferretdb import FerretDB
from servers.kube import NAMESPACE, Object
from servers.sheepdog import Sheepdog
from servers.swift import Swift
from servers.vcsim import VCSim
from servers.web import Web

_LABEL: Final = {"glimpse.dev/use": "store"}


@dataclass(frozen=True)
class Place:
    """Where a store can be."""

    kind: str
    """The driver."""
    config: Mapping[str, Any]
    secret: Mapping[str, str] = field(repr=False)
    ca_file: Path | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    """What else an ImageStore there says."""

    def manifests(self, name: str) -> list[Object]:
        """An ImageStore there, with its Secret and the ConfigMap of its CA."""
        made: list[Object] = []
        spec: dict[str, Any] = {self.kind: dict(self.config), **self.rules}
        if self.secret:
            meta = {"name": f"{name}-login", "namespace": NAMESPACE, "labels": _LABEL}
            data = {key: base64.b64encode(value.encode()).decode() for key, value in self.secret.items()}
            made.append({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
            spec["secretRef"] = {"name": f"{name}-login"}
        if self.ca_file:
            meta = {"name": f"{name}-ca", "namespace": NAMESPACE}
            bundle = {"ca.crt": self.ca_file.read_text()}
            made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": bundle})
            spec["caBundleRef"] = {"configMap": f"{name}-ca"}
        kind = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore"}
        return [*made, {**kind, "metadata": {"name": name}, "spec": spec}]


def _cinder(name: str, cinder: Cinder) -> Place:
    project = uuid.uuid5(uuid.NAMESPACE_URL, name).hex
    return Place("cinder", {"endpoint": cinder.cloud.url, "project": project}, {"cephKey": cinder.cloud.key})


def _gridfs(name: str, ferret: FerretDB) -> Place:
    with ferret.client() as client:
        if "glimpse.files" not in client[name].list_collection_names():
            client[name].create_collection("glimpse.files")
    mongo = ferret.mongo
    login = {"username": mongo.username, "password": mongo.password}
    return Place("gridfs", {"uri": mongo.uri, "database": name}, login, mongo.ca_file)


def _http(_name: str, web: Web) -> Place:
    rules = {"locations": [{"prefix": "import/{namespace}/"}]}
    return Place("http", {"baseUrl": web.site.url}, {}, web.site.ca_file, rules)


def _rbd(name: str, ceph: Ceph) -> Place:
    pool = ceph.cluster.pool(name)
    key = ceph.cluster.client(name, mon="profile rbd", osd=f"profile rbd pool={pool}")
    return Place("rbd", {"pool": pool, "monitors": list(ceph.cluster.monitors), "user": name}, {"userKey": key})


def _s3(name: str, ceph: Ceph) -> Place:
    gateway = ceph.cluster.gateway
    assert gateway, "a Ceph with its gateway"
    keys = {"accessKey": gateway.access_key, "secretKey": gateway.secret_key}
    return Place("s3", {"endpoint": gateway.url, "bucket": name, "createBucket": True}, keys, gateway.ca_file)


def _sheepdog(name: str, sheepdog: Sheepdog) -> Place:
    return Place("sheepdog", {"address": sheepdog.node.address, "port": sheepdog.node.port, "prefix": name}, {})


def _swift(name: str, swift: Swift) -> Place:
    cloud = swift.cloud
    config = {"authUrl": cloud.auth_url, "authVersion": "1", "container": name, "createContainer": True}
    return Place("swift", config, {"user": cloud.user, "key": cloud.key})


def _vmware(name: str, vcsim: VCSim) -> Place:
    vcenter = vcsim.vcenter
    (vcenter.files() / name).mkdir(exist_ok=True)
    config = {"server": vcenter.server, "datacenter": "DC0", "datastore": "LocalDS_0", "folder": name}
    return Place("vmware", config, {"username": vcenter.username, "password": vcenter.password}, vcenter.ca_file)


SERVERS: Final[Mapping[str, Sequence[str]]] = {
    "cinder": ("ceph", "cinder"),
    "gridfs": ("ferretdb",),
    "http": ("web",),
    "rbd": ("ceph",),
    "s3": ("ceph",),
    "sheepdog": ("sheepdog",),
    "swift": ("swift",),
    "vmware": ("vcsim",),
}
"""The servers that each kind of store needs, its own one last. Of `http` images are registered: it takes no bytes."""

_MAKERS: Final[Mapping[str, Callable[..., Place]]] = {
    "cinder": _cinder,
    "gridfs": _gridfs,
    "http": _http,
    "rbd": _rbd,
    "s3": _s3,
    "sheepdog": _sheepdog,
    "swift": _swift,
    "vmware": _vmware,
}


FOLDER: Final = "filesystem"
"""The kind that needs no server: an ImageStore of it is there anyway."""
KINDS: Final = (FOLDER, *SERVERS)


def kinds_of(stores: str) -> list[str]:
    """Kinds of stores with commas between, as in `STORES=…`. Raises ValueError for what is none, and says what is."""
    kinds = list(dict.fromkeys(kind.strip() for kind in stores.split(",") if kind.strip()))
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"no such store: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return kinds


def place(kind: str, name: str, server: Server[Any]) -> Place:
    """A place of that name for a store of this kind; it is made in the server, if that takes doing."""
    return _MAKERS[kind](name, server)


def new(name: str, folder: Path, others: Mapping[str, Server[Any]], *, detached: bool = False) -> Server[Any]:
    """A server that a store needs, not started; `others`: those that run already, among them what it leans on."""
    match name:
        case "ceph":
            return Ceph(folder, gateway=True, detached=detached)
        case "cinder":
            ceph = others["ceph"]
            assert isinstance(ceph, Ceph), "what is called so"
            return Cinder(folder, ceph.cluster, detached=detached)
        case "ferretdb":
            return FerretDB(folder, detached=detached)
        case "sheepdog":
            return Sheepdog(folder, emulated=True, detached=detached)
        case "swift":
            return Swift(folder, detached=detached)
        case "web":
            return Web(folder, detached=detached)
        case _:
            return VCSim(folder, detached=detached)


TYPES: Final[Mapping[str, type[Server[Any]]]] = {
    "web": Web,
    "ceph": Ceph,
    "cinder": Cinder,
    "ferretdb": FerretDB,
    "sheepdog": Sheepdog,
    "swift": Swift,
    "vcsim": VCSim,
}
"""Those servers, each after what it leans on."""
