"""A tenant of a running installation: what he applies, and what he sees.

Tests read the objects as a person or a pipeline does, by watching them, so a test waits for what is said and never
for time to pass.
"""

import hashlib
import json
import random
import ssl
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from glimpse.testing.faults import Reply, Server
from servers import wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster, Object
from servers.shelf import Answer, Shelf, ask

API: Final = "glimpse.dev/v1alpha1"
WAIT: Final = 120.0
"""Seconds after which a wait fails; far more than anything takes on a machine with other work."""
REQUESTED_AT: Final = "glimpse.dev/reconcile-requested-at"
DEFAULT: Final = "glimpse.dev/is-default-store"


def content(seed: int, size: int = 300_000) -> bytes:
    """Bytes that are the same in every run, and in no format but raw."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - test data


def digest(data: bytes) -> str:
    """As status has it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def slow(data: bytes) -> Reply:
    """An answer that takes far longer than any test, and is never silent; whole at once after `Server.release`."""
    return Reply(data, trickle=(4096, 0.2))


def said(o: Object) -> dict[str, Any]:
    """The status; empty if there is none, or if it speaks of an older spec."""
    status: dict[str, Any] = o.get("status", {})
    return status if o and status.get("observedGeneration") == o["metadata"]["generation"] else {}


def condition(o: Object, kind: str) -> dict[str, Any]:
    """The condition of this type; empty if there is none, or if the status speaks of an older spec."""
    return next((c for c in said(o).get("conditions", []) if c["type"] == kind), {})


def holds(o: Object, kind: str) -> bool:
    """Whether the condition is True, of the spec as it is."""
    return condition(o, kind).get("status") == "True"


def done(o: Object) -> bool:
    """Whether all that the spec asks for is there, and nothing is going on."""
    return holds(o, "Ready") and holds(o, "Stored") and not holds(o, "Reconciling") and not holds(o, "Stalled")


def await_object(cluster: Cluster, o: Object, wanted: Callable[[Object], bool], timeout: float = WAIT) -> Object:
    """Watch one object until it is as wanted (empty: it is not there); as it was then. Raises AssertionError."""
    deadline, last = time.monotonic() + timeout, dict[str, Any]()
    collection, name = cluster.path(o).rsplit("/", 1)
    query = f"fieldSelector=metadata.name%3D{name}"
    while (left := deadline - time.monotonic()) > 0:
        listed = cluster.request("GET", f"{collection}?{query}")
        last = {**o, **listed["items"][0]} if listed["items"] else {}
        if wanted(last):
            return last
        since = listed["metadata"]["resourceVersion"]
        seconds = int(left) + 1
        path = f"{collection}?{query}&watch=true&resourceVersion={since}&timeoutSeconds={seconds}"
        for event in _watch(cluster, path, seconds + 5.0):
            if event["type"] == "ERROR":
                break
            last = {} if event["type"] == "DELETED" else event["object"]
            if wanted(last):
                return last
    seen = yaml.safe_dump({"metadata": last["metadata"], "status": last.get("status")}) if last else "not there"
    raise AssertionError(f"{o['kind']} {name} is not as wanted after {timeout:.0f} s, but:\n{seen}")


def _watch(cluster: Cluster, path: str, timeout: float) -> Iterator[Object]:
    request = urllib.request.Request(cluster.url + path, headers={"Authorization": f"Bearer {cluster.token}"})
    https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(cluster.ca_file)))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
    with opener.open(request, timeout=timeout) as lines:
        for line in lines:
            yield json.loads(line)


@dataclass
class Tenant:
    """A namespace with its images, an administrator's stores, and a web server that misbehaves to order."""

    cluster: Cluster
    glimpse: Glimpse
    folder: Path
    web: Server
    namespace: str
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As last applied, by the name of the image."""

    # -- what is applied

    def store(self, path: Path | None = None, *, ready: bool = True, default: bool = False, **spec: Any) -> str:
        """A new ImageStore, in a new folder unless `path` or another driver is given; its name.

        Waits for Ready if it shall be.
        """
        name = f"store-{uuid.uuid4().hex[:8]}"
        if path is None and "http" not in spec:
            path = self.folder / name
            path.mkdir()
        o = self.ref(name, "ImageStore")
        if default:
            o["metadata"]["annotations"] = {DEFAULT: "true"}
        self.cluster.apply(o | {"spec": ({"filesystem": {"path": str(path)}} if path else {}) | spec})
        if ready:
            self.wait(name, lambda o: holds(o, "Ready"), kind="ImageStore")
        return name

    def serve(self, name: str, *replies: Reply | bytes) -> str:
        """Put a file on the web server; its URL."""
        path = f"/{name}"
        self.web.serve(path, *(Reply(r) if isinstance(r, bytes) else r for r in replies))
        return self.web.url(path)

    def image(self, name: str, url: str | Sequence[str] = "", **spec: Any) -> Object:
        """Apply an Image from these URLs, with these further members of its spec; the object."""
        urls = [url] if isinstance(url, str) else list(url)
        self.specs[name] = {"source": {"http": {"urls": urls}}, **spec}
        return self._apply(name)

    def registered(self, name: str, store: str, key: str, **spec: Any) -> Object:
        """Apply an Image of what lies there; the object."""
        self.specs[name] = {"source": {"location": {"store": store, "key": key}}, **spec}
        return self._apply(name)

    def edit(self, name: str, **spec: Any) -> Object:
        """Apply the Image again with other members of its spec; None takes one out."""
        self.specs[name] = {k: v for k, v in (self.specs[name] | spec).items() if v is not None}
        return self._apply(name)

    def _apply(self, name: str) -> Object:
        (made,) = self.cluster.apply(self.ref(name) | {"spec": self.specs[name]})
        return made

    def annotate(self, name: str, key: str, value: str | None, kind: str = "Image") -> None:
        """Set or remove an annotation."""
        body = {"metadata": {"annotations": {key: value}}}
        path = self.cluster.path(self.ref(name, kind))
        self.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")

    def delete(self, name: str, kind: str = "Image", *, wait: bool = True) -> None:
        """Delete it as a person does; waits until it is gone."""
        self.cluster.request("DELETE", self.cluster.path(self.ref(name, kind)))
        if wait:
            self.gone(name, kind)

    # -- what is seen

    def ref(self, name: str, kind: str = "Image") -> Object:
        """What names an object."""
        meta = {"name": name} if kind == "ImageStore" else {"name": name, "namespace": self.namespace}
        return {"apiVersion": API, "kind": kind, "metadata": meta}

    def read(self, name: str, kind: str = "Image") -> Object:
        """The object as it is now."""
        return self.cluster.read(self.ref(name, kind))

    def wait(self, name: str, wanted: Callable[[Object], bool], kind: str = "Image") -> Object:
        """Watch until it is as wanted."""
        return await_object(self.cluster, self.ref(name, kind), wanted)

    def gone(self, name: str, kind: str = "Image") -> None:
        """Watch until it is gone."""
        self.wait(name, lambda o: not o, kind)

    def ready(self, name: str, revision: int | None = None) -> dict[str, Any]:
        """Wait until the Image is complete, and in this revision; its status."""
        found = self.wait(name, lambda o: done(o) and revision in {None, said(o)["artifact"]["revision"]})
        status: dict[str, Any] = found["status"]
        return status

    def stalled(self, name: str, reason: str) -> str:
        """Wait until the Image is given up: `Stalled` with this reason, and `Ready` without a revision; the message."""
        found = self.wait(name, lambda o: holds(o, "Stalled"))
        stalled = condition(found, "Stalled")
        assert stalled["reason"] == reason, stalled
        assert not holds(found, "Reconciling"), "an image that is given up is not worked on"
        ready = condition(found, "Ready")
        if "artifact" not in found["status"]:
            assert (ready["status"], ready["reason"]) == ("False", reason), ready
            assert ready["message"] == stalled["message"]
        return str(stalled["message"])

    def retried(self, name: str, reason: str) -> str:
        """Wait until the Image is to be tried again after a failure with this reason; the message of `Ready`."""

        def so(o: Object) -> bool:  # an edit leaves what was said before it for a moment
            return (
                condition(o, "Reconciling").get("reason") == "ProgressingWithRetry"
                and condition(o, "Ready").get("reason") == reason
            )

        found = self.wait(name, so)
        ready = condition(found, "Ready")
        assert ready["status"] == "False", ready
        assert condition(found, "Reconciling")["message"].startswith(f"{reason}: ")
        assert not holds(found, "Stalled"), "what time can mend is not given up"
        return str(ready["message"])

    def transferring(self, name: str) -> Object:
        """Wait until status shows bytes that have passed; the object."""
        return self.wait(name, lambda o: said(o).get("transfer", {}).get("bytesDone", 0) > 0)

    def event(self, name: str, kind: str = "Image", *, reason: str) -> str:
        """Wait until an Event about the object has this reason; its message."""
        space = "default" if kind == "ImageStore" else self.namespace
        query = urllib.parse.quote(f"involvedObject.name={name},reason={reason}")
        found: list[Object] = []

        def look() -> bool:
            found[:] = self.cluster.request("GET", f"/api/v1/namespaces/{space}/events?fieldSelector={query}")["items"]
            return bool(found)

        wait_until(f"an Event {reason} of {name}", look, timeout=WAIT)
        return str(found[0]["message"])

    def objects(self, store: str) -> dict[str, bytes]:
        """What a store holds, by key. Raises AssertionError if there is anything besides."""
        folder = self.folder / store
        assert self.leftover(store) == []
        return {o.name: (o / "data").read_bytes() for o in sorted((folder / "objects").glob("*"))}

    def leftover(self, store: str) -> list[str]:
        """What lies in a store and is no object, whole with its record."""
        folder = self.folder / store
        return [
            str(path.relative_to(folder))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and path.name != "glimpse-store.json"
            and (path.parent.parent.name != "objects" or path.name not in {"data", "record.json"})
        ] + [str(path) for path in sorted((folder / "attempts").glob("*"))]

    def works(self, store: str) -> None:
        """Nothing else has stopped working: a good image is fetched into this store and removed from it."""
        before = self.objects(store)
        data, name = content(99), f"good-{uuid.uuid4().hex[:6]}"
        self.image(name, self.serve(name, data), stores=[store])
        key = f"{self.read(name)['metadata']['uid']}-1"
        self.ready(name)
        assert self.objects(store) == before | {key: data}
        self.delete(name)
        assert self.objects(store) == before

    # -- what is downloaded

    @cached_property
    def token(self) -> str:
        """A token that may download every image of the namespace."""
        return Shelf(self.cluster, self.folder).grant(self.namespace, "reader")

    def link(self, name: str) -> str:
        """Where the gateway serves the image."""
        return f"{self.glimpse.installation.gateway_url}/v1/namespaces/{self.namespace}/images/{name}"

    def download(self, url: str, *, status: int = 200, body: bytes | None = None) -> Answer:
        """What the gateway answers, once it has heard of the newest state: this status, and these bytes."""
        found: list[Answer] = []

        def look() -> bool:
            found[:] = [ask(url, token=self.token)]
            return found[0].status == status and body in {None, found[0].body}

        wait_until(f"{url} with status {status}", look, timeout=WAIT)
        return found[0]
