"""Measures the gateway side by side with nginx, in one run, and writes its table into docs/performance.md.

`make bench gateway`. Downloads come from a store's files, of which nginx serves the very same (hard links), so both
find them alike in the page cache; the crowd of clients is a process of its own (`load.py`).
`ARGS=--huge` uploads 64 GiB and nothing else, to see that memory does not grow with size.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import trustme
from load import Load, Result

from servers import ROOT, tool, wait_until
from servers.glimpse import Glimpse
from servers.kube import Cluster, Kube
from servers.shelf import Shelf, Shown
from servers.web import Site, Web

PAGE: Final = ROOT / "docs" / "performance.md"
HEADING: Final = "## The gateway"
FILES: Final = 1000
CROWDS: Final = (1, 16, 200)
HUGE: Final = 64 << 30
Row = tuple[str, str, str, str]


class Bench:
    """All measurements, on servers of their own."""

    def __init__(self, folder: Path, mib: int, rounds: int, seconds: float) -> None:
        """`mib`: size of the large image; `seconds`: how long a crowd asks, `rounds` times."""
        self.folder, self.mib, self.rounds, self.seconds = folder, mib, rounds, seconds
        self.rows: list[Row] = []
        self.cluster: Cluster
        self.glimpse: Glimpse
        self.site: Site

    def run(self, parts: Sequence[str]) -> None:
        """Start the servers, measure, stop them."""
        web = Web(self.folder / "web", dav=True)
        with Kube(self.folder / "kube") as self.cluster, web as self.site:
            self.cluster.install()
            # all clients come from one address
            settings = {"GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0"}
            self.glimpse = Glimpse(self.folder / "glimpse", cluster=self.cluster, settings=settings)
            self.namespace = self.cluster.namespace("bench")
            self.shelf = Shelf(self.cluster, self.folder / "stores")
            self.token = self.shelf.grant(self.namespace, "person", verbs=("get", "update"))
            try:
                self.glimpse.launch("gateway")
                self.glimpse.await_ready("gateway")
                if {"large", "small", "memory"} & {*parts}:
                    self.downloads(parts)
                if {"upload", "huge"} & {*parts}:
                    self.uploads(parts)
            finally:
                self.glimpse.stop()
                self.shelf.close()

    # --- downloads

    def downloads(self, parts: Sequence[str]) -> None:
        """Of one large image, of many small ones, and what memory it takes."""
        store = self.shelf.store()
        large = self.shelf.image(self.namespace, os.urandom(self.mib << 20), store=store, name="large")
        images = [large]
        if "large" in parts:
            self.compare(store, [large], f"{self.mib} MiB", 0.9)
        if "small" in parts:
            with ThreadPoolExecutor(8) as pool:
                made = [
                    pool.submit(self.shelf.image, self.namespace, os.urandom(1 << 20), store=store, name=f"small-{n}")
                    for n in range(FILES)
                ]
                small = [each.result() for each in made]
            images += small
            self.compare(store, small, f"{FILES} files of 1 MiB", 0.5)
        if "memory" in parts:
            self.memory(large)
        for image in images:
            self.shelf.delete(image)

    def compare(self, store: str, images: Sequence[Shown], what: str, goal: float) -> None:
        """Crowds that download these, from us and from nginx."""
        gateway = self.glimpse.installation.gateway_url
        ours, theirs = [gateway + image.revision() for image in images], []
        for image in images:
            (self.site.root / image.name).hardlink_to(self.shelf.data(store, image.key()))
            theirs.append(f"{self.site.url}/{image.name}")
        wait_until("the last image", lambda: self.crowd(ours[-1:], 1, 0.5).requests > 0, timeout=30)
        whole = len(images) > 1

        def rate(found: Result) -> float:
            return (found.requests if whole else found.bytes) / found.seconds

        for clients in CROWDS:
            took: tuple[list[Result], list[Result]] = ([], [])
            for _ in range(self.rounds):
                for urls, results in zip((ours, theirs), took, strict=True):
                    results.append(self.crowd(urls, clients, self.seconds))
            mine, other = ([rate(each) for each in results] for results in took)
            ratio = statistics.median(mine) / statistics.median(other)
            form = _requests if whole else _bytes
            title = f"download of {what} by {clients} client{'s' if clients > 1 else ''}"
            self.row(title, form(mine), f"nginx, sendfile: {form(other)}", f"{ratio:.2f} times as fast; goal ≥ {goal}")

    def crowd(self, urls: Sequence[str], clients: int, seconds: float, *, slow: int = 0) -> Result:
        """What a crowd has got."""
        load = Load(urls=urls, clients=clients, seconds=seconds, authorization=f"Bearer {self.token}", slow=slow)
        done = subprocess.run(
            [sys.executable, "-P", str(ROOT / "bench" / "load.py")],
            input=json.dumps(asdict(load)),
            capture_output=True,
            text=True,
            check=True,
        )
        result = Result(**json.loads(done.stdout))
        assert not result.failures, result
        return result

    def memory(self, large: Shown) -> None:
        """What 200 clients take, half of them slow: by plain HTTP, where files are sent by the kernel, and by TLS."""
        self.crowded(self.glimpse, large, "")
        authority, folder = trustme.CA(), self.folder / "tls"
        folder.mkdir()
        pair = folder / "pair.pem"
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pair))
        files = {"GLIMPSE_GATEWAY_TLS_CERTIFICATE": str(pair), "GLIMPSE_GATEWAY_TLS_KEY": str(pair)}
        settings = files | {"GLIMPSE_GATEWAY_CLIENT_CONNECTIONS": "0"}
        secure = Glimpse(folder, cluster=self.cluster, settings=settings, ca=folder / "ca.pem")
        secure.launch("gateway")
        try:
            secure.await_ready("gateway")
            self.crowded(secure, large, ", by TLS")
        finally:
            secure.stop()

    def crowded(self, glimpse: Glimpse, large: Shown, how: str) -> None:
        """A row of it."""
        gateway, pid = glimpse.installation.gateway_url, glimpse.processes["gateway"].pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        self.crowd([gateway + large.revision()], 200, 2 * self.seconds, slow=100)
        self.row(f"memory (RSS) of the gateway with 200 clients, half of them slow{how}", _peak(pid), "", "≤ 150 MB")

    # --- uploads

    def uploads(self, parts: Sequence[str]) -> None:
        """Into a store of their own, by the operator too."""
        self.glimpse.launch("operator")
        self.glimpse.await_ready("operator")
        (self.folder / "uploads").mkdir()
        store = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": {"name": "uploads"}}
        self.cluster.apply(store | {"spec": {"filesystem": {"path": str(self.folder / "uploads")}}})
        if "upload" in parts:
            self.upload(self.awaited("upload"))
        if "huge" in parts:
            self.huge(self.awaited("huge"))

    def awaited(self, name: str) -> str:
        """Where the bytes of a new image go, which waits for them."""
        image: dict[str, Any] = {
            "apiVersion": "glimpse.dev/v1alpha1",
            "kind": "Image",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"source": {"upload": {}}, "stores": ["uploads"], "revisions": {"keep": 1, "grace": "0s"}},
        }
        self.cluster.apply(image)

        def waits() -> bool:
            status = self.cluster.read(image).get("status", {})
            return any(each["reason"] == "WaitingForUpload" for each in status.get("conditions", ()))

        wait_until("the image to wait", waits, timeout=60)
        return f"{self.glimpse.installation.gateway_url}/v1/namespaces/{self.namespace}/images/{name}"

    def huge(self, link: str) -> None:
        """One of 64 GiB, all zeros and a file of holes: what memory it takes, of the gateway and of its worker."""
        file, gateway = self.folder / "huge.img", self.glimpse.processes["gateway"].pid
        with file.open("wb") as out:
            out.truncate(HUGE)
        Path(f"/proc/{gateway}/clear_refs").write_text("5")
        command = ["curl", "-sS", "--fail-with-body", "-T", str(file), "--oauth2-bearer", self.token, link]
        began, peaks = time.monotonic(), dict[int, str]()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sender:
            while sender.poll() is None:
                for pid in [each for warm in children(gateway) for each in children(warm)]:
                    with suppress(OSError, AssertionError):  # it has just ended
                        peaks[pid] = _peak(pid)
                time.sleep(0.5)
        assert sender.returncode == 0
        seconds = time.monotonic() - began
        title = f"upload of {HUGE >> 30} GiB of zeros by curl, to Ready, with sha256"
        self.row(title, f"{seconds:.0f} s, {HUGE / seconds / 1e6:.0f} MB/s", "", "")
        text = f"gateway {_peak(gateway)}, worker {', '.join(peaks.values())}"
        self.row("peak memory (RSS) meanwhile", text, "", "does not grow with size")

    def upload(self, link: str) -> None:
        """One large image, from a file to Ready."""
        file, copy = self.folder / "upload.img", self.folder / "copy.img"
        with file.open("wb") as out:
            for _ in range(self.mib):
                out.write(os.urandom(1 << 20))

        def ours() -> None:
            _run("curl", "-sS", "--fail-with-body", "-T", file, "--oauth2-bearer", self.token, link)

        def dav() -> None:
            _run("curl", "-sSf", "-T", file, f"{self.site.url}/put/copy.img")

        def shell() -> None:
            _run("bash", "-c", f"cat {file} > {copy}; sha256sum {copy}")

        def reset() -> None:
            copy.unlink(missing_ok=True)
            (self.site.root / "put" / "copy.img").unlink(missing_ok=True)
            os.sync()

        peak = self.glimpse.processes["gateway"].pid
        Path(f"/proc/{peak}/clear_refs").write_text("5")
        mine, nginx, hashed = _rounds(self.rounds + 2, reset, ours, dav, shell)
        title = f"upload of {self.mib} MiB by curl, to Ready, on disk (fsync), with sha256"
        for others, name in ((nginx, "nginx, dav, no digest, no fsync"), (hashed, "cat > FILE; sha256sum FILE")):
            ratio = statistics.median(others) / statistics.median(mine)
            text = f"{ratio:.2f} times as fast; goal ≥ 1, ≤ 2.5 s"
            self.row(title, _times(mine), f"{name}: {_times(others)}", text)
        self.row("peak memory (RSS) of the gateway meanwhile", _peak(peak), "", "")

    # --- the table

    def row(self, *cells: str) -> None:
        """One comparison."""
        what, ours, theirs, result = cells
        self.rows.append((what, ours, theirs, result))
        print(" | ".join(cells), flush=True)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command[0], done.stdout, done.stderr)


def _rounds(rounds: int, reset: Callable[[], None], *things: Callable[[], None]) -> list[list[float]]:
    """Seconds of each thing in each round; they take turns."""
    seconds: list[list[float]] = [[] for _ in things]
    for _ in range(rounds):
        for number, thing in enumerate(things):
            reset()
            began = time.monotonic()
            thing()
            seconds[number].append(time.monotonic() - began)
    return seconds


def children(pid: int) -> list[int]:
    """The processes that this one has started (proc(5))."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _peak(pid: int) -> str:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return f"{int(match[1]) * 1024 / 1e6:.0f} MB"


def _spread(values: Sequence[float], form: str, unit: str) -> str:
    return f"{statistics.median(values):{form}} {unit} ({min(values):{form}}-{max(values):{form}})"


def _bytes(rates: Sequence[float]) -> str:
    return _spread([each / 1e6 for each in rates], ".0f", "MB/s")


def _requests(rates: Sequence[float]) -> str:
    return _spread(rates, ".0f", "requests/s")


def _times(seconds: Sequence[float]) -> str:
    return _spread(seconds, ".2f", "s")


def page(old: str, rows: Sequence[Row]) -> str:
    """The page with this table, in place of the one before."""
    lines = [
        HEADING,
        "",
        f"Written by `make bench gateway`, {time.strftime('%Y-%m-%d')}, on {os.cpu_count()} cores.",
        "One worker of nginx serves the same files as one gateway; the clients drop what they get.",
        "",
        "| what | Glimpse | yardstick | result |",
        "|---|---|---|---|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    return f"{old.partition(HEADING)[0].rstrip()}\n\n" + "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large image in MiB")
    parser.add_argument("--rounds", type=int, default=3, help="how often each thing is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a crowd asks")
    parser.add_argument("--parts", default="large,small,memory,upload", help="what is measured")
    parser.add_argument("--huge", action="store_true", help="only an upload of 64 GiB, of minutes; writes no page")
    parser.add_argument("--folder", type=Path, help="where: the file system that is measured")
    parser.add_argument("--dry", action="store_true", help="print only, write no page")
    arguments = parser.parse_args()
    for name, package in (("curl", "curl"), ("nginx", "nginx-light")):
        tool(name, package)
    folder = Path(tempfile.mkdtemp(prefix="glimpse-bench-", dir=arguments.folder))
    try:
        bench = Bench(folder, arguments.mib, arguments.rounds, arguments.seconds)
        bench.run(["huge"] if arguments.huge else arguments.parts.split(","))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not (arguments.dry or arguments.huge):
        PAGE.write_text(page(PAGE.read_text(), bench.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
