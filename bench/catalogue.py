"""How fast the gateway lists images, how much memory that takes, and how soon watchers know.

    PYTHONPATH=e2e .venv/bin/python bench/catalogue.py [IMAGES [ROUNDS]]

The real gateway over a real API server with so many images in two hundred namespaces, asked over one connection that
is kept open; the time is that of the client. Nothing is warmed but the order and the caller's rights.
"""

import hashlib
import http.client
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from servers.glimpse import Glimpse
from servers.kube import Cluster, Kube
from servers.shelf import Content, Shelf

NAMESPACES: Final = 200
WATCHERS: Final = 100
GOAL: Final = 5.0
"""Milliseconds for a page of 100, p50."""


def fill(cluster: Cluster, shelf: Shelf, images: int) -> list[str]:
    """Describe so many images, as people do; the namespaces that they are in."""
    store, chance = shelf.store(), random.Random(1)  # noqa: S311 - the same each time
    namespaces = [cluster.namespace("bench") for _ in range(NAMESPACES)]

    def make(number: int) -> None:
        system = ("debian", "ubuntu", "fedora", "windows")[number % 4]
        spec = {
            "title": f"{system.title()} {number % 20} generic, build {number}",
            "tags": [system, "lts" if number % 3 else "rolling", f"team-{number % 50}"],
            "properties": {
                "os_distro": system,
                "os_version": str(number % 20),
                "hw_disk_bus": "virtio",
                "hw_firmware_type": "uefi",
                "architecture": "x86_64",
                "build": hashlib.sha256(b"%d" % number).hexdigest(),
            },
            "minimum": {"diskGiB": 10, "memoryMiB": 512},
            "visibility": "public" if number % 50 == 0 else "private",
        }
        content = Content(b"x" * sizes[number], [], [store])
        name = f"{system}-{number:05}"
        shelf.image(namespaces[number % NAMESPACES], content, name=name, disk_format="qcow2", spec=spec)

    sizes = [chance.randrange(1000) for _ in range(images)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(make, range(images)):
            pass
    return namespaces


class Client:
    """One connection that is kept open."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        self._headers = {"Authorization": f"Bearer {token}"}

    def get(self, query: str) -> bytes:
        """The body of a page."""
        self._connection.request("GET", f"/v1/images?{query}" if "/" not in query else query, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body

    def page(self, query: str) -> dict[str, Any]:
        """The same, read."""
        found: dict[str, Any] = json.loads(self.get(query))
        return found


def timed(what: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds of each round."""
    what()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        what()
        found.append((time.perf_counter() - began) * 1000)
    return sorted(found)


def spent(glimpse: Glimpse) -> float:
    """Milliseconds of CPU time that the gateway has used: what a busy machine does not change."""
    fields = Path(f"/proc/{glimpse.processes['gateway'].pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def tell(glimpse: Glimpse, name: str, client: Client, query: str, rounds: int) -> None:
    """Print one row."""
    before = spent(glimpse)
    times = timed(lambda: client.get(query), rounds)
    cpu = (spent(glimpse) - before) / (rounds + 1)
    page, size = client.page(query), len(client.get(query))
    print(
        f"{name:<52} p50 {statistics.median(times):6.2f} ms  p99 {times[int(len(times) * 0.99)]:6.2f} ms"
        f"  CPU {cpu:5.2f} ms"
        f"  {len(page['images']):4} images  {size >> 10:4} KiB"
    )


def watch(url: str, token: str, ready: threading.Barrier, heard: list[float]) -> None:
    """One watcher: to the end of what is there, then to the first event."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=300)
    connection.request("GET", "/v1/images/events?tag=team-7", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    assert answer.status == 200
    while answer.readline() != b"event: SYNCED\n":
        pass
    ready.wait()
    while not answer.readline().startswith(b"event: "):
        pass
    heard.append(time.perf_counter())
    ready.wait()
    connection.close()


def watchers(cluster: Cluster, glimpse: Glimpse, namespace: str) -> None:
    """Many watchers, and how soon they hear of one new image."""
    url, heard, before = glimpse.installation.gateway_url, list[float](), glimpse.rss()["gateway"]
    ready = threading.Barrier(WATCHERS + 1)
    tokens = [administrator(cluster, namespace, f"watcher-{n}") for n in range(WATCHERS // 10)]
    threads = [
        threading.Thread(target=watch, args=(url, tokens[n % len(tokens)], ready, heard), daemon=True)
        for n in range(WATCHERS)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    ready.wait()
    told, memory = time.perf_counter() - began, glimpse.rss()["gateway"] - before
    began = time.perf_counter()
    cluster.apply(
        {
            "apiVersion": "glimpse.dev/v1alpha1",
            "kind": "Image",
            "metadata": {"name": "new", "namespace": namespace},
            "spec": {"source": {"http": {"urls": ["http://127.0.0.1:9/nothing"]}}, "tags": ["team-7"]},
        }
    )
    ready.wait()
    last = (max(heard) - began) * 1000
    print(
        f"{WATCHERS} watchers of one tag are told what is there in {told:.1f} s;"
        f" {memory / WATCHERS / 1024:.0f} KiB of RSS each; the last hears of a new image {last:.0f} ms after its making"
    )
    for thread in threads:
        thread.join()


def administrator(cluster: Cluster, namespace: str, name: str) -> str:
    """A token of one who may get all images."""
    api = "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["glimpse.dev"], "resources": ["images/data"], "verbs": ["get"]}
    cluster.apply(
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": "all"}, "rules": [rule]},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "all"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    )
    return cluster.token_for(namespace, name, audience="glimpse")


def main(images: int, rounds: int) -> None:
    """All of it."""
    with tempfile.TemporaryDirectory() as name, Kube(Path(name) / "kube") as cluster:
        cluster.install()
        shelf = Shelf(cluster, Path(name) / "stores")
        glimpse = Glimpse(Path(name) / "glimpse", cluster=cluster)
        try:
            glimpse.launch("gateway")
            glimpse.await_ready("gateway", 300)
            empty = glimpse.rss()["gateway"]
            began = time.perf_counter()
            namespaces = fill(cluster, shelf, images)
            print(f"{images} images made in {time.perf_counter() - began:.0f} s")
            fed = glimpse.rss()["gateway"]
            began = time.perf_counter()
            glimpse.kill("gateway")
            glimpse.launch("gateway")
            glimpse.await_ready("gateway", 300)
            listed = glimpse.rss()["gateway"]
            print(
                f"memory (RSS): {empty >> 20} MiB empty, {fed >> 20} MiB after the watch,"
                f" {listed >> 20} MiB after a restart ({time.perf_counter() - began:.1f} s)"
            )
            url = glimpse.installation.gateway_url
            admin = Client(url, administrator(cluster, namespaces[0], "admin"))
            tenant = Client(url, shelf.grant(namespaces[0], "reader"))
            page = admin.page(f"limit={min(1000, images // 2)}&sort=-size")
            for _ in range(images // 2000 - 1):
                page = admin.page(page["next"])
            cursor = page["next"].rpartition("cursor=")[2]
            tell(glimpse, "a page of 100", admin, "limit=100", rounds)
            tell(
                glimpse, "the same in the middle, by size, largest first", admin, f"sort=-size&cursor={cursor}", rounds
            )
            tell(glimpse, "one tenant among two hundred", tenant, "limit=100", rounds)
            tell(glimpse, "one tag, one property", admin, "tag=lts&property=os_distro%3Ddebian", rounds)
            tell(glimpse, "a word in the title, newest first", admin, "title=*fedora*&sort=-creationTimestamp", rounds)
            tell(glimpse, "what no image has: all are looked at", admin, "property=os_distro%3Dsuse", rounds)
            tell(glimpse, "a page of 100, name and size alone", admin, "fields=name,size", rounds)
            tell(glimpse, "a page of 1000", admin, "limit=1000", max(rounds // 10, 10))
            print(f"memory (RSS) after all this: {glimpse.rss()['gateway'] >> 20} MiB")
            watchers(cluster, glimpse, namespaces[0])
        finally:
            glimpse.stop()
            shelf.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 500)
