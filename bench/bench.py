"""Measures Glimpse side by side with what people use otherwise, in one run, and writes the table itself.

`make bench` writes docs/performance.md. Nothing here is a test: a machine that is busy measures worse, and says so by
the spread.
"""

import argparse
import http.client
import json
import os
import platform
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import shapes
import transfers
from rich.console import Console

from gateway import HEADING
from servers import ROOT, tool
from servers.glimpse import Glimpse
from servers.kube import Cluster, Kube, Object
from servers.web import Site, Web

console = Console(highlight=False, soft_wrap=True)
PAGE: Final = ROOT / "docs" / "performance.md"
MANY: Final = 200
CROWD: Final = 1000
API: Final = "/apis/glimpse.dev/v1alpha1"


class Bench:
    """All measurements, on servers of their own."""

    def __init__(self, folder: Path, gib: float, rounds: int) -> None:
        """`gib`: size of the large image; `rounds`: how often the large ones are measured."""
        self.folder, self.size, self.rounds = folder, int(gib * (1 << 30)), rounds
        self.rows: list[tuple[str, str, str, str]] = []
        self.cluster: Cluster
        self.glimpse: Glimpse
        self.site: Site

    def run(self) -> None:
        """Start the servers, measure, stop them."""
        with Kube(self.folder / "kube") as self.cluster, Web(self.folder / "web") as self.site:
            self.cluster.install()
            self.glimpse = Glimpse(self.folder / "glimpse", cluster=self.cluster)
            with self.glimpse:
                self.api = Api(self.cluster)
                (self.folder / "store").mkdir()
                self.cluster.apply(
                    {
                        "apiVersion": "glimpse.dev/v1alpha1",
                        "kind": "ImageStore",
                        "metadata": {"name": "bench", "annotations": {"glimpse.dev/is-default-store": "true"}},
                        "spec": {"filesystem": {"path": str(self.folder / "store")}},
                    }
                )
                self.namespace = self.cluster.namespace("bench")
                self.large()
                self.many()
                self.crowd()
            (self.folder / "transfers").mkdir()
            self.rows += transfers.measure(self.folder / "transfers", self.site, self.rounds, console.print)

    def large(self) -> None:
        """One large image: in, against a pipeline; out, against nginx."""
        file = self.site.root / "large.img"
        with file.open("wb") as out:
            for _ in range(self.size >> 20):
                out.write(os.urandom(1 << 20))
        url, copy = f"{self.site.url}/large.img", self.folder / "copy.img"
        digest = _run("sha256sum", str(file)).split()[0]

        def pipeline() -> None:
            found = _run("bash", "-c", f"curl -sf {url} | tee {copy} | sha256sum").split()[0]
            assert found == digest

        def pipeline_sync() -> None:
            pipeline()
            _run("sync", str(copy))

        def imported() -> None:
            self.api.create(self.namespace, "large", url, digest)
            self.api.wait_ready(self.namespace, {"large"})

        def reset() -> None:
            copy.unlink(missing_ok=True)
            self.api.delete_all(self.namespace)
            os.sync()

        ours, theirs, synced = _rounds(self.rounds, reset, imported, pipeline, pipeline_sync)
        self.row("import, `kubectl create` to Ready, on disk (fsync)", "curl | tee | sha256sum", ours, theirs, 1.5)
        self.row("the same", "… and `sync FILE`", ours, synced, None)
        imported()
        token = self.cluster.token_for(self.namespace, "reader", audience="glimpse")
        self.allow("reader")
        gateway = f"{self.glimpse.installation.gateway_url}/v1/namespaces/{self.namespace}/images/large"
        header = f"Authorization: Bearer {token}"

        def download() -> None:
            _run("curl", "-sf", "-o", "/dev/null", "-H", header, gateway)

        # The very same file, so that both find it alike in the page cache.
        [stored] = (self.folder / "store" / "objects").glob("*/data")
        (self.site.root / "same.img").hardlink_to(stored)

        def nginx() -> None:
            _run("curl", "-sf", "-o", "/dev/null", f"{self.site.url}/same.img")

        download()
        nginx()
        ours, theirs = _rounds(self.rounds + 2, lambda: None, download, nginx)
        self.row("download to /dev/null by curl", "nginx, sendfile", ours, theirs, 0.8)
        reset()

    def many(self) -> None:
        """Many small images at once."""
        names = {f"small-{n}" for n in range(MANY)}
        for name in names:
            (self.site.root / name).write_bytes(os.urandom(1 << 20))
        rates = []
        for _ in range(self.rounds):
            began = time.monotonic()
            for name in names:
                self.api.create(self.namespace, name, f"{self.site.url}/{name}")
            self.api.wait_ready(self.namespace, names)
            rates.append(MANY / (time.monotonic() - began))
            self.api.delete_all(self.namespace)
        text = f"{statistics.median(rates):.0f} images/s ({min(rates):.0f}-{max(rates):.0f})"
        self.rows.append((f"{MANY} images of 1 MiB, first create to last Ready", text, "Glance: 6 images/s", "≥ 30"))
        console.print(self.rows[-1])

    def crowd(self) -> None:
        """The memory that a thousand images take."""
        (self.site.root / "tiny").write_bytes(os.urandom(4096))
        names = {f"tiny-{n}" for n in range(CROWD)}
        began = time.monotonic()
        for name in names:
            self.api.create(self.namespace, name, f"{self.site.url}/tiny")
        self.api.wait_ready(self.namespace, names)
        rate = CROWD / (time.monotonic() - began)
        self.glimpse.await_ready("gateway")
        for program, goal in (("operator", "≤ 200 MB"), ("gateway", "")):
            rss = self.glimpse.rss()[program] / 1e6
            self.rows.append((f"memory (RSS) of the {program} with {CROWD} images", f"{rss:.0f} MB", "", goal))
            console.print(self.rows[-1])
        self.rows.append((f"{CROWD} images of 4 KiB, first create to last Ready", f"{rate:.0f} images/s", "", ""))
        self.glimpse.restart("operator")
        self.glimpse.await_ready("operator")
        rss = self.glimpse.rss()["operator"] / 1e6
        self.rows.append(("the same after a restart of the operator", f"{rss:.0f} MB", "", "≤ 200 MB"))

    def row(self, what: str, other: str, ours: list[float], theirs: list[float], goal: float | None) -> None:
        """One comparison of times."""
        ratio = statistics.median(theirs) / statistics.median(ours)
        size = f"{self.size / (1 << 30):g} GiB: "
        goal_text = f"{ratio:.2f} times as fast" + (f"; goal ≥ {goal}" if goal else "")
        self.rows.append((size + what, _times(ours, self.size), f"{other}: {_times(theirs, self.size)}", goal_text))
        console.print(self.rows[-1])

    def allow(self, account: str) -> None:
        """Let a ServiceAccount download."""
        rbac = "rbac.authorization.k8s.io"
        self.cluster.apply(
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": account, "namespace": self.namespace},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "glimpse-edit"},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": self.namespace}],
            }
        )

    def page(self) -> str:
        """The table with what one must know of the machine."""
        model = next(
            (
                line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.machine(),
        )
        lines = [
            "# Performance",
            "",
            "Written by `make bench`: medians (with the fastest and the slowest) of one run on one machine.",
            "The API server, etcd, the web server, Glimpse and the yardstick share its cores.",
            "",
            f"{os.cpu_count()} cores ({model}), {time.strftime('%Y-%m-%d')},",
            f"Linux {platform.release()}, Python {platform.python_version()}.",
            "",
            "| what | Glimpse | yardstick | result |",
            "|---|---|---|---|",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows),
            "",
        ]
        return "\n".join(lines)


class Api:
    """The API server over one kept connection: the load must not cost more than what is measured."""

    def __init__(self, cluster: Cluster) -> None:
        self._where = urlsplit(cluster.url).netloc
        self._context = ssl.create_default_context(cafile=str(cluster.ca_file))
        self._headers = {"Authorization": f"Bearer {cluster.token}", "Content-Type": "application/json"}
        self._connection = self._connect()

    def _connect(self, timeout: float = 60) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._where, context=self._context, timeout=timeout)

    def call(self, method: str, path: str, body: Object | None = None) -> Object:
        """One call."""
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        found: Object = json.loads(answer.read())
        assert answer.status < 300, found
        return found

    def create(self, namespace: str, name: str, url: str, digest: str | None = None) -> None:
        """Create an Image."""
        spec: Object = {"source": {"http": {"urls": [url]}}}
        if digest:
            spec["checksum"] = {"digest": f"sha256:{digest}"}
        meta = {"name": name, "namespace": namespace}
        body = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "Image", "metadata": meta, "spec": spec}
        self.call("POST", f"{API}/namespaces/{namespace}/images", body)

    def wait_ready(self, namespace: str, names: set[str]) -> None:
        """Watch until all of these are Ready."""
        waiting = set(names)
        with self._watch(namespace) as events:
            for kind, image in events:
                conditions = {c["type"]: c for c in image.get("status", {}).get("conditions", ())}
                assert "Stalled" not in conditions, conditions["Stalled"]
                if kind != "DELETED" and conditions.get("Ready", {}).get("status") == "True":
                    waiting.discard(image["metadata"]["name"])
                if not waiting:
                    return
        raise RuntimeError(f"the watch ended while {len(waiting)} images were not Ready")

    def delete_all(self, namespace: str) -> None:
        """Delete all Images of a namespace and wait until they are gone."""
        path = f"{API}/namespaces/{namespace}/images"
        left = {image["metadata"]["name"] for image in self.call("GET", path)["items"]}
        if not left:
            return
        with self._watch(namespace) as events:
            self.call("DELETE", path)
            for kind, image in events:
                if kind == "DELETED":
                    left.discard(image["metadata"]["name"])
                if not left:
                    return
        raise RuntimeError(f"the watch ended while {len(left)} images were not gone")

    @contextmanager
    def _watch(self, namespace: str) -> Iterator[Iterator[tuple[str, Object]]]:
        connection = self._connect(timeout=300)
        connection.request("GET", f"{API}/namespaces/{namespace}/images?watch=true", headers=self._headers)
        answer = connection.getresponse()

        def events() -> Iterator[tuple[str, Object]]:
            for line in answer:
                event = json.loads(line)
                yield event["type"], event["object"]

        try:
            yield events()
        finally:
            connection.close()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _rounds(rounds: int, reset: Callable[[], None], *things: Callable[[], None]) -> list[list[float]]:
    """Seconds of each thing in each round; they take turns, so that what disturbs one disturbs all."""
    seconds: list[list[float]] = [[] for _ in things]
    for _ in range(rounds):
        for number, thing in enumerate(things):
            reset()
            began = time.monotonic()
            thing()
            seconds[number].append(time.monotonic() - began)
    return seconds


def _times(seconds: list[float], size: int) -> str:
    median = statistics.median(seconds)
    return f"{median:.2f} s ({min(seconds):.2f}-{max(seconds):.2f}), {size / median / 1e6:.0f} MB/s"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the large image in GiB")
    parser.add_argument("--rounds", type=int, default=3, help="how often each thing is measured")
    parser.add_argument("--folder", type=Path, help="where: the file system that is measured")
    parser.add_argument("--dry", action="store_true", help="print only, write no page")
    arguments = parser.parse_args()
    for name, package in (("curl", "curl"), ("nginx", "nginx-light")):
        tool(name, package)
    folder = Path(tempfile.mkdtemp(prefix="glimpse-bench-", dir=arguments.folder))
    try:
        # First, while this process has no threads: it forks.
        kinds = ("gzip", "zstd", "xz", "qcow2", "qcow2-c")
        rows = shapes.measure(folder, int(arguments.gib * 256), arguments.rounds, console.print, kinds)
        bench = Bench(folder, arguments.gib, arguments.rounds)
        bench.run()
        bench.rows += rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    page = bench.page()
    console.print(page, markup=False)
    if not arguments.dry:
        kept = PAGE.read_text().partition(HEADING)
        PAGE.write_text(page + "".join(("\n", *kept[1:]) if kept[1] else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
