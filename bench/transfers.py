"""Measures the transfer engine alone: a worker, as the operator starts it, side by side with the tools for the same.

No API server takes part, so that what is measured is what moves the bytes.
"""

import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from glimpse.runners import Inline
from glimpse.settings import Addresses, Transfers
from glimpse.tasks import Done, Event, Fetch, HttpOrigin, Progress, Record, Started, StoreRef
from servers import ROOT, tool
from servers.web import Site

Row = tuple[str, str, str, str]
GIB: Final = 1 << 30
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """One measured thing."""

    seconds: float
    cpu: float = 0.0
    """Seconds of processors, of the worker alone."""
    rss: int = 0
    """Bytes of memory at most, of the worker alone."""
    digests: dict[str, str] = field(default_factory=dict)


class Engine:
    """Workers under the real runner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner = Inline(program=(str(ROOT / "bench" / "slowstore.py"),))

    async def __aenter__(self) -> Self:
        await self._runner.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.close()

    async def fetch(
        self,
        url: str,
        *,
        stores: tuple[str, ...] = ("filesystem",),
        digests: tuple[str, ...] = (),
        checksum: str | None = None,
        **how: float,
    ) -> Run:
        """Fetch into new stores of these drivers, removed afterwards; what it took."""
        refs = []
        for driver in stores:
            path = self._folder / f"store-{uuid.uuid4().hex[:8]}"
            path.mkdir()
            config = {"path": str(path)}
            refs.append(StoreRef(name=path.name, driver=driver, config=config, installation="bench"))
        task = Fetch(
            attempt=uuid.uuid4().hex[:12],
            record=Record(
                installation="bench", namespace="n", name="i", uid=str(uuid.uuid4()), revision=1, spec_hash=""
            ),
            origin=HttpOrigin(urls=(url,)),
            checksum=checksum,
            digests=("sha256", *digests),
            limit=1 << 40,
            stores=tuple(refs),
            addresses=Addresses.model_validate({"allow": ["127.0.0.0/8"]}),
            transfers=Transfers.model_validate(how),
        )
        run, pid = Run(0), 0

        def say(event: Event) -> None:
            nonlocal pid
            if isinstance(event, Started):
                pid = event.pid
            elif isinstance(event, Progress):
                run.rss = max(run.rss, _peak(pid))

        warm = self._runner._warm  # noqa: SLF001 - whose children are measured
        assert warm
        before = _children(warm._transport.get_pid() or 0)  # noqa: SLF001 - the same
        os.sync()
        began = time.monotonic()
        answer = await self._runner.run(task, say)
        run.seconds = time.monotonic() - began
        run.cpu = _children(warm._transport.get_pid() or 0) - before  # noqa: SLF001 - the same
        assert isinstance(answer, Done), answer
        assert answer.record
        run.digests = answer.record.digests
        for ref in refs:
            shutil.rmtree(str(ref.config["path"]))
        return run


def _children(pid: int) -> float:
    """Seconds of processors that the ended children of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


class Comparison:
    """All rows."""

    def __init__(self, folder: Path, site: Site, rounds: int, say: Callable[[Row], None]) -> None:
        """`say` hears each row as it is there."""
        self._folder, self._site, self._rounds, self._say = folder, site, rounds, say
        self.rows: list[Row] = []

    async def run(self) -> None:
        """Measure."""
        self._copy = self._folder / "copy"
        async with Engine(self._folder) as self._engine:
            await self._large()
            await self._long_line()
            await self._memory()
            await self._two_stores()

    def _row(self, what: str, ours: list[Run], other: str, theirs: list[float], goal: str) -> None:
        mine, yours = statistics.median(run.seconds for run in ours), statistics.median(theirs)
        cpu = statistics.median(run.cpu for run in ours)
        row = (
            what,
            f"{mine:.2f} s ({min(r.seconds for r in ours):.2f}-{max(r.seconds for r in ours):.2f}), {cpu:.2f} CPU s",
            f"{other}: {yours:.2f} s ({min(theirs):.2f}-{max(theirs):.2f})",
            f"{yours / mine:.2f} times as fast; goal {goal}",
        )
        self.rows.append(row)
        self._say(row)

    def _ratio(self, what: str, ours: list[Run], other: str, theirs: list[float], most: float) -> None:
        """A row where ours is expected to take longer."""
        mine, yours = statistics.median(run.seconds for run in ours), statistics.median(theirs)
        shown = f"{mine:.2f} s ({min(r.seconds for r in ours):.2f}-{max(r.seconds for r in ours):.2f})"
        base = f"{other}: {yours:.2f} s ({min(theirs):.2f}-{max(theirs):.2f})"
        row = (what, shown, base, f"{mine / yours:.2f} times as long; goal ≤ {most}")
        self.rows.append(row)
        self._say(row)

    def _timed(self, command: str) -> float:
        """Seconds of a pipeline, its files on disk at the end, as a store's are."""
        self._copy.unlink(missing_ok=True)
        os.sync()
        began = time.monotonic()
        subprocess.run(["bash", "-ec", command + f"; sync {self._copy}"], check=True, capture_output=True)
        return time.monotonic() - began

    def _file(self, name: str, size: int) -> str:
        path = self._site.root / name
        if not path.exists():
            with path.open("wb") as out:
                for _ in range(size >> 20):
                    out.write(os.urandom(1 << 20))
        return f"{self._site.url}/{name}"

    async def _large(self) -> None:
        url = self._file("1g", GIB)
        for what, digests, command, goal in (
            ("sha256", (), "curl -sf {url} | tee {copy} | sha256sum", "≥ 2, ≤ 2.5 CPU s"),
            (
                "sha256, md5 and sha512",
                ("md5", "sha512"),
                "curl -sf {url} | tee >(md5sum >&2) >(sha512sum >&2) {copy} | sha256sum",
                "≥ 1.2",
            ),
        ):
            ours, theirs = [], []
            for _ in range(self._rounds):
                theirs.append(self._timed(command.format(url=url, copy=self._copy)))
                self._copy.unlink()
                ours.append(await self._engine.fetch(url, digests=digests))
            shown = command.format(url="…", copy="FILE").replace(" -sf", "").replace(" >&2", "")
            self._row(f"1 GiB from nginx to a folder with {what}", ours, f"{shown}; sync", theirs, goal)

    async def _long_line(self) -> None:
        size = 420 << 20
        url = self._file("420m", size)
        digest = "sha256:" + hashlib.sha256((self._site.root / "420m").read_bytes()).hexdigest()
        tools = {
            "aria2c -x8 -s8": f"aria2c -q -x8 -s8 -k1M --allow-overwrite=true -d {self._folder} -o copy {{url}}",
            "curl": f"curl -sfo {self._copy} {{url}}",
            "wget": f"wget -qO {self._copy} {{url}}",
        }
        with _long_line(url) as far:
            ours = [await self._engine.fetch(far, checksum=digest, connections=8) for _ in range(self._rounds)]
            for name, command in tools.items():
                rounds = self._rounds if name.startswith("aria2") else 1
                theirs = [self._timed(command.format(url=far)) for _ in range(rounds)]
                goal = "≥ 0.91" if name.startswith("aria2") else "≥ 5" if name == "curl" else ""
                self._row("420 MiB, 40 ms and 25 MB/s a connection, 8 connections, verified", ours, name, theirs, goal)
        self._copy.unlink(missing_ok=True)

    async def _memory(self) -> None:
        found = []
        for mib in (64, 1024, 16384):
            path = self._site.root / "sparse"
            with path.open("wb") as out:
                out.truncate(mib << 20)
            run = await self._engine.fetch(f"{self._site.url}/sparse", connections=8)
            found.append(f"{mib} MiB of zeros: {run.rss / 1e6:.0f} MB")
            path.unlink()
        with _long_line(self._file("420m", 420 << 20)) as far:
            run = await self._engine.fetch(far, connections=8)
            found.append(f"420 MiB over 8 connections: {run.rss / 1e6:.0f} MB")
        row = ("peak memory (RSS) of a worker", ", ".join(found), "", "flat; goal ≤ 200 MB")
        self.rows.append(row)
        self._say(row)

    async def _two_stores(self) -> None:
        url = self._file("1g", GIB)
        ours, single = [], []
        for _ in range(self._rounds):
            single.append((await self._engine.fetch(url)).seconds)
            ours.append(await self._engine.fetch(url, stores=("filesystem",) * 2))
        self._ratio("1 GiB to two folders of one disk in one pass", ours, "to one of them", single, 1.7)
        ours, single = [], []
        for _ in range(self._rounds):
            single.append((await self._engine.fetch(url, stores=("slow",))).seconds)
            ours.append(await self._engine.fetch(url, stores=("filesystem", "slow")))
        self._ratio("1 GiB to a folder and a store that takes 64 MiB/s", ours, "to the slow one alone", single, 1.1)


@contextmanager
def _long_line(url: str) -> Iterator[str]:
    """The same URL, far away."""
    where, _, path = url.removeprefix("http://").partition("/")
    command = [sys.executable, str(ROOT / "bench" / "longline.py"), where.rpartition(":")[2]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as line:
        assert line.stdout
        assert line.stdin
        try:
            yield f"http://{line.stdout.readline().strip()}/{path}"
        finally:
            line.stdin.close()


def measure(folder: Path, site: Site, rounds: int, say: Callable[[Row], None]) -> list[Row]:
    """All comparisons of the transfer engine; `folder` is on the file system that is measured."""
    for name, package in (("aria2c", "aria2"), ("wget", "wget"), ("curl", "curl")):
        tool(name, package)
    comparison = Comparison(folder, site, rounds, say)
    asyncio.run(comparison.run())
    return comparison.rows
