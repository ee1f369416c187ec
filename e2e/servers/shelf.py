"""Images on a shelf: stored and described as the operator would, without an operator.

The gateway is tested and measured with them, so that a fault is its own, and a state that passes in a moment can be
looked at for as long as a test needs.
"""

import contextlib
import hashlib
import http.client
import json
import ssl
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr

from glimpse.api.base import SECRET_USE, Condition
from glimpse.api.image import Artifact, HistoryEntry, ImageStatus, StoreStatus
from glimpse.api.store import ImageStoreStatus
from glimpse.stores import Store, open_store
from glimpse.tasks import Record, StoreRef
from servers.kube import NAMESPACE, Cluster

INSTALLATION: Final = "tests"
SINCE: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""When everything on a shelf was stored."""


class Content(NamedTuple):
    """Bytes for a revision."""

    data: bytes
    stores: Sequence[str]
    """Where they are put."""
    absent: Sequence[str] = ()
    """Stores that are said to hold them, and do not."""


@dataclass(frozen=True)
class Shown:
    """An image on the shelf."""

    namespace: str
    name: str
    uid: str
    object: dict[str, Any] = field(repr=False)

    @property
    def path(self) -> str:
        """The link of the served revision."""
        return f"/v1/namespaces/{self.namespace}/images/{self.name}"

    def revision(self, number: int = 1, suffix: str = "") -> str:
        """The link of one revision, or of its checksum file."""
        return f"{self.path}/revisions/{number}{suffix}?uid={self.uid}"

    def key(self, number: int = 1) -> str:
        """The name of a revision in the stores."""
        return f"{self.uid}-{number}"


@dataclass(frozen=True)
class Answer:
    """What a web server answered."""

    status: int
    headers: Message
    body: bytes = field(repr=False)

    def problem(self) -> dict[str, Any]:
        """The body as a problem (RFC 9457)."""
        assert self.headers["Content-Type"] == "application/problem+json", (self.status, self.body[:200])
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status, found
        return found


def ask(
    url: str,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
    timeout: float = 60,
    ca: Path | None = None,
) -> Answer:
    """One request on a connection of its own, nothing followed or guessed. Raises OSError, HTTPException.

    `ca`: who must have signed the server's certificate.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)
    if ca:
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=timeout, context=context)
    with contextlib.closing(connection):
        sent = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token is not None else {})
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, sent)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


class Bytes:
    """A Reader over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def size(self) -> int:
        """All of them."""
        return len(self._data)

    def read(self, n: int = 1 << 20, /) -> bytes:
        """The next ones."""
        chunk = self._data[self._at : self._at + n]
        self._at += len(chunk)
        return chunk


class Shelf:
    """Stores in folders, and images in them."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        self._stores: dict[str, Store] = {}
        self._local = threading.local()
        self._open: list[http.client.HTTPSConnection] = []

    def store(self, *, weight: int = 100, ready: bool = True, missing: bool = False) -> str:
        """A new store; its name. `missing`: its folder is not there."""
        name = f"shelf-{uuid.uuid4().hex[:8]}"
        if not missing:
            self.folder(name).mkdir(parents=True)
        config = {"path": str(self.folder(name))}
        ref = StoreRef(name=name, driver="filesystem", config=config, installation=INSTALLATION)
        return self._shown(ref, {"weight": weight}, ready=ready)

    def remote(
        self, driver: str, config: Mapping[str, Any], secret: Mapping[str, str], *, ca: str | None = None
    ) -> str:
        """A new store on a server; its name. `ca`: who signed the server's certificate, in PEM."""
        name = f"shelf-{uuid.uuid4().hex[:8]}"
        spec: dict[str, Any] = {"secretRef": {"name": name}}
        meta = {"name": name, "namespace": NAMESPACE, "labels": {SECRET_USE: "store"}}
        self.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": dict(secret)})
        if ca:
            spec["caBundleRef"] = {"configMap": name}
            self.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"ca.crt": ca}})
        hidden = {key: SecretStr(value) for key, value in secret.items()}
        ref = StoreRef(
            name=name, driver=driver, config=dict(config), secret=hidden, ca_bundle=ca, installation=INSTALLATION
        )
        return self._shown(ref, spec)

    def _shown(self, ref: StoreRef, spec: Mapping[str, Any], *, ready: bool = True) -> str:
        self._stores[ref.name] = open_store(ref)
        o = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": {"name": ref.name}}
        self.cluster.apply(o | {"spec": {ref.driver: ref.config, **spec}})
        said = _condition("Ready", ready)
        self._status(o, ImageStoreStatus(observed_generation=1, conditions=(said,), installation=INSTALLATION).dump())
        return ref.name

    def folder(self, store: str) -> Path:
        """Where a store has its files."""
        return self._folder / store

    def data(self, store: str, key: str) -> Path:
        """The file of one object."""
        return self.folder(store) / "objects" / key / "data"

    def image(
        self,
        namespace: str,
        content: bytes | Content | Sequence[Content],
        *,
        store: str = "",
        name: str = "",
        served: int | None = -1,
        disk_format: str = "raw",
        digests: Sequence[str] = ("sha256", "md5"),
        spec: Mapping[str, Any] | None = None,
        ready: bool = True,
        stored_at: Sequence[datetime] = (),
    ) -> Shown:
        """An image with these revisions, numbered from 1; the last one is served, or the one that is named, or none."""
        revisions = [Content(content, [store])] if isinstance(content, bytes) else content
        revisions = [revisions] if isinstance(revisions, Content) else revisions
        o: dict[str, Any] = {
            "apiVersion": "glimpse.dev/v1alpha1",
            "kind": "Image",
            "metadata": {"name": name or f"image-{uuid.uuid4().hex[:8]}", "namespace": namespace},
        }
        source = {"http": {"urls": ["http://127.0.0.1:9/nothing"]}}
        made = self._call(
            "POST", self.cluster.path(o).rpartition("/")[0], o | {"spec": {"source": source, **(spec or {})}}
        )
        shown = Shown(namespace, o["metadata"]["name"], made["metadata"]["uid"], o)
        history: list[HistoryEntry] = []
        artifact, places = None, tuple[StoreStatus, ...]()
        served = len(revisions) if served == -1 else served
        for number, revision in enumerate(revisions, 1):
            digest = "sha256:" + hashlib.sha256(revision.data).hexdigest()
            size, at = len(revision.data), stored_at[number - 1] if stored_at else SINCE
            for where in revision.stores:
                self.put(where, shown, number, revision.data)
            stores = (*revision.stores, *revision.absent)
            entry = HistoryEntry(
                revision=number, digest=digest, size=size, stored_at=at, disk_format=disk_format, stores=stores
            )
            history.insert(0, entry)
            if number == served:
                artifact = Artifact(
                    revision=number,
                    digest=digest,
                    digests={a: hashlib.new(a, revision.data).hexdigest() for a in digests},
                    size=size,
                    virtual_size=size,
                    disk_format=disk_format,
                    stored_at=at,
                    spec_hash="0",
                )
                places = tuple(StoreStatus(name=s, revision=number, size=size) for s in stores)
        status = ImageStatus(
            observed_generation=1,
            conditions=(_condition("Ready", ready),),
            artifact=artifact,
            stores=places,
            history=tuple(history),
        )
        self._status(o, status.dump())
        return shown

    def put(self, store: str, image: Shown, number: int, data: bytes, *, digest: str = "") -> None:
        """Store bytes as a revision; the record may lie about the digest."""
        record = _record(image, number, data, digest)
        self._stores[store].put(record.key, "a", Bytes(data), lambda: record)

    def register(self, store: str, image: Shown, number: int, data: bytes, location: str) -> None:
        """Register bytes that others have put there as a revision."""
        where, record = self._stores[store], _record(image, number, data)
        version = where.locate(location)
        where.register(record.key, "a", location, version, body=Bytes(data), record=lambda: record)

    def remove(self, store: str, key: str) -> None:
        """Remove one object."""
        self._stores[store].delete(key)

    def forget(self, image: Shown, number: int) -> None:
        """Say that a revision is no longer kept; its bytes stay."""
        path = self.cluster.path(image.object)
        history = self._call("GET", path, None)["status"]["history"]
        self._status(image.object, {"history": [each for each in history if each["revision"] != number]})

    def delete(self, image: Shown) -> None:
        """Delete the object; nothing holds it."""
        self.cluster.request("DELETE", self.cluster.path(image.object))

    def grant(
        self,
        namespace: str,
        account: str,
        *,
        verbs: Sequence[str] = ("get",),
        only: Sequence[str] = (),
        resources: Sequence[str] = ("images/data",),
    ) -> str:
        """Let a ServiceAccount of this namespace download its images, or `only` those named; a token for it."""
        resource = {"apiGroups": ["glimpse.dev"], "resources": list(resources), "verbs": list(verbs)}
        meta = {"name": account, "namespace": namespace}
        api = "rbac.authorization.k8s.io"
        self.cluster.apply(
            {
                "apiVersion": f"{api}/v1",
                "kind": "Role",
                "metadata": meta,
                "rules": [resource | ({"resourceNames": list(only)} if only else {})],
            },
            {
                "apiVersion": f"{api}/v1",
                "kind": "RoleBinding",
                "metadata": meta,
                "roleRef": {"apiGroup": api, "kind": "Role", "name": account},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
            },
        )
        return self.cluster.token_for(namespace, account, audience="glimpse")

    def _status(self, o: dict[str, Any], status: Mapping[str, Any]) -> None:
        self._call("PATCH", f"{self.cluster.path(o)}/status", {"status": status}, kind="application/merge-patch+json")

    def _call(self, method: str, path: str, body: Any, *, kind: str = "application/json") -> dict[str, Any]:
        """As `Cluster.request`, on one connection a thread: a thousand images are two thousand calls."""
        local = self._local
        if not hasattr(local, "connection"):
            parts = urlsplit(self.cluster.url)
            context = ssl.create_default_context(cafile=str(self.cluster.ca_file))
            local.connection = http.client.HTTPSConnection(str(parts.hostname), parts.port, context=context)
            self._open.append(local.connection)
        headers = {"Authorization": f"Bearer {self.cluster.token}", "Content-Type": kind}
        local.connection.request(method, path, json.dumps(body), headers)
        answer = local.connection.getresponse()
        text = answer.read().decode()
        assert answer.status in (200, 201), (method, path, answer.status, text)
        found: dict[str, Any] = json.loads(text)
        return found

    def close(self) -> None:
        """Close the connections; what is on the shelf stays."""
        for connection in self._open:
            connection.close()


def _condition(kind: str, holds: bool) -> Condition:
    return Condition(
        type=kind,
        status="True" if holds else "False",
        last_transition_time=SINCE,
        reason="Shelf",
        message="On a shelf.",
    )


def _record(image: Shown, number: int, data: bytes, digest: str = "") -> Record:
    return Record(
        installation=INSTALLATION,
        namespace=image.namespace,
        name=image.name,
        uid=image.uid,
        revision=number,
        spec_hash="0",
        digest=digest or "sha256:" + hashlib.sha256(data).hexdigest(),
        size=len(data),
    )
