"""How fast the gateway lists images, how much memory that takes, and how soon watchers know; into docs/catalogue.md.

`make bench catalogue`. The real gateway over a real API server with so many images in two hundred namespaces, asked
over one connection that is kept open; the time is that of the client. Nothing is warmed but the order and the caller's
rights.
"""

import argparse
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from servers import ROOT
from servers.glimpse import Glimpse
from servers.kube import Cluster, Kube
from servers.shelf import Content, Shelf

NAMESPACES: Final = 200
WATCHERS: Final = 100
GOAL: Final = 5.0
"""Milliseconds for a page of 100, p50."""
PAGE: Final = ROOT / "docs" / "catalogue.md"
HEADING: Final = "## How fast"
Row = tuple[str, str, str, str, str]


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


def tell(glimpse: Glimpse, name: str, client: Client, query: str, rounds: int, *, goal: float | None) -> Row:
    """One row, printed; `goal`: milliseconds, p50."""
    before = spent(glimpse)
    times = timed(lambda: client.get(query), rounds)
    cpu = (spent(glimpse) - before) / (rounds + 1)
    page, size = client.page(query), len(client.get(query))
    aim = f"; goal ≤ {goal:.0f} ms" if goal else ""
    row = (
        name,
        f"{len(page['images'])} images, {size >> 10} KiB",
        f"{statistics.median(times):.1f} ms{aim}",
        f"{times[int(len(times) * 0.99)]:.1f} ms",
        f"{cpu:.1f} ms",
    )
    print(" | ".join(row), flush=True)
    return row


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


def watchers(cluster: Cluster, glimpse: Glimpse, namespace: str) -> str:
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
    for thread in threads:
        thread.join()
    return (
        f"{WATCHERS} watchers of one tag were told what is there in {told:.1f} s and took"
        f" {memory / WATCHERS / 1024:.0f} KiB each; the last heard of a new image {last:.0f} ms after its making."
    )


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


def page(old: str, images: int, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The page with this table, in place of the one before."""
    lines = [
        HEADING,
        "",
        f"Written by `make bench catalogue`, {time.strftime('%Y-%m-%d')}, on {os.cpu_count()} cores:",
        f"{images:,} images in two hundred namespaces, each with a title, three tags and six properties.",
        "They are asked for over one connection that is kept open.",
        "",
        "| question | answer | p50 | p99 | CPU time of the gateway |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *notes,
    ]
    return f"{old.partition(HEADING)[0].rstrip()}\n\n" + "\n".join(lines) + "\n"


def measure(images: int, rounds: int) -> tuple[list[Row], list[str]]:
    """All of it: the table, and what else is to be said."""
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
            memory = (
                f"Memory (RSS) of the gateway: {empty >> 20} MiB without images, {fed >> 20} MiB when the watch had"
                f" told of them, {listed >> 20} MiB after a restart, which took {time.perf_counter() - began:.1f} s"
            )
            url = glimpse.installation.gateway_url
            admin = Client(url, administrator(cluster, namespaces[0], "admin"))
            tenant = Client(url, shelf.grant(namespaces[0], "reader"))
            page = admin.page(f"limit={min(1000, images // 2)}&sort=-size")
            for _ in range(images // 2000 - 1):
                page = admin.page(page["next"])
            cursor = page["next"].rpartition("cursor=")[2]
            asked: list[tuple[str, Client, str, int, float | None]] = [
                ("a page of 100", admin, "limit=100", rounds, GOAL),
                ("the same in the middle, largest first", admin, f"sort=-size&cursor={cursor}", rounds, GOAL),
                ("one tenant among two hundred", tenant, "limit=100", rounds, GOAL),
                ("one tag and one property", admin, "tag=lts&property=os_distro%3Ddebian", rounds, GOAL),
                (
                    "a word in the title, newest first",
                    admin,
                    "title=*fedora*&sort=-creationTimestamp",
                    rounds,
                    GOAL,
                ),
                ("a page of 100, `fields=name,size`", admin, "fields=name,size", rounds, GOAL),
                ("a page of 1000", admin, "limit=1000", max(rounds // 10, 10), None),
                ("a property that no image has: all are looked at", admin, "property=os_distro%3Dsuse", rounds, None),
            ]
            rows = [tell(glimpse, name, who, query, times, goal=goal) for name, who, query, times, goal in asked]
            memory += f", and {glimpse.rss()['gateway'] >> 20} MiB after all these questions."
            notes = [memory, watchers(cluster, glimpse, namespaces[0])]
            print("\n".join(notes))
            return rows, notes
        finally:
            glimpse.stop()
            shelf.close()


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="how many there are")
    parser.add_argument("--rounds", type=int, default=500, help="how often each question is asked")
    parser.add_argument("--dry", action="store_true", help="print only, write no page")
    arguments = parser.parse_args()
    rows, notes = measure(arguments.images, arguments.rounds)
    if not arguments.dry:
        PAGE.write_text(page(PAGE.read_text(), arguments.images, rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
