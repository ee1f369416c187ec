"""How fast a compressed or foreign image becomes what is stored, beside the pipelines that people use for it.

    PYTHONPATH=e2e .venv/bin/python bench/shapes.py /folder/on/the/disk [MiB [gzip zstd xz bzip2 qcow2 qcow2-c]]

`make bench` has these rows too. Each thing runs in a process of its own, forked from a warm one as the operator does
it, and ends with its bytes on the disk. What it wrote is what the disks of the machine have been given meanwhile, so
nothing else may be at work: a process's own account has pages that were dropped before they reached a disk.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from glimpse import transfer
from glimpse.problems import Problem
from glimpse.settings import Addresses, Spool
from glimpse.tasks import Done, Fetch, HttpOrigin, Record, StoreRef
from servers import tool
from servers.web import Web

ROUNDS = 3
_SECTOR = 512  # whatever the disk has: Linux, Documentation/block/stat.rst
Row = tuple[str, str, str, str]


def disk(path: Path, size: int) -> None:
    """A raw disk such as people have: the files of this machine on three fifths of it, and nothing on the rest."""
    left = size * 3 // 5
    with path.open("wb") as out:
        for file in sorted(Path("/usr/lib").rglob("*")):
            if left and file.is_file() and not file.is_symlink():
                left -= out.write(file.read_bytes()[:left])
        out.truncate(size)


def given() -> int:
    """Bytes that the disks of this machine have been given to write, since it was started."""
    disks = (path for path in Path("/sys/block").iterdir() if (path / "device").exists())
    return sum(int((path / "stat").read_text().split()[6]) * _SECTOR for path in disks)


def apart(thing: Callable[[], object]) -> tuple[float, float, int]:
    """Seconds, seconds of CPU time, and bytes written by this thing in a process of its own."""
    os.sync()
    before, begin = given(), time.perf_counter()
    if (pid := os.fork()) == 0:
        thing()
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - begin
    assert status == 0
    return seconds, usage.ru_utime + usage.ru_stime, given() - before


class Shapes:
    """The measurements, in one folder."""

    def __init__(self, folder: Path, url: str, digest: str, rounds: int, say: Callable[[Row], None]) -> None:
        """`digest`: of the raw disk; `say` hears each row as it is there."""
        self._folder, self._url, self._digest, self._rounds, self._say = folder, url, digest, rounds, say
        self.rows: list[Row] = []
        (folder / "spool").mkdir()

    def glimpse(self, name: str) -> Callable[[], None]:
        """Fetch this file, and store a raw disk."""

        def fetch() -> None:
            with tempfile.TemporaryDirectory(dir=self._folder) as place:
                task = Fetch(
                    attempt="a",
                    record=Record(installation="bench", namespace="b", name="b", uid="b", revision=1, spec_hash="b"),
                    origin=HttpOrigin(urls=(f"{self._url}/{name}",)),
                    convert_to="raw",
                    limit=1 << 40,
                    stores=(StoreRef(name="bench", driver="filesystem", config={"path": place}, installation="bench"),),
                    addresses=Addresses.model_validate({"allow": ["127.0.0.0/8"]}),
                    spool=Spool(path=self._folder / "spool"),
                )
                answer = transfer.do(task, lambda _: None, threading.Event())
                assert isinstance(answer, Done), answer
                assert answer.record
                assert answer.record.digest == f"sha256:{self._digest}"

        return fetch

    def pipeline(self, script: str) -> Callable[[], None]:
        """A shell's way to the same; `$URL` and the file `out`, which is on the disk in the end."""

        def run() -> None:
            with tempfile.TemporaryDirectory(dir=self._folder) as place:
                command = ["bash", "-ec", f"set -o pipefail; {script}; sync out"]
                subprocess.run(
                    command, cwd=place, env={**os.environ, "URL": self._url}, check=True, capture_output=True
                )

        return run

    def compare(self, what: str, name: str, script: str) -> None:
        """A row of the table; the two take turns."""
        ours, theirs = self.glimpse(name), self.pipeline(script)
        found = [(apart(ours), apart(theirs)) for _ in range(self._rounds)]
        cells = []
        for runs in zip(*found, strict=True):
            seconds, cpu, written = (statistics.median(column) for column in zip(*runs, strict=True))
            spread = f"{min(run[0] for run in runs):.2f}-{max(run[0] for run in runs):.2f}"
            cells.append(f"{seconds:.2f} s ({spread}), {cpu:.2f} CPU s, {written / 1e6:.0f} MB written")
        ratio = statistics.median(b[0] / a[0] for a, b in found)
        shown = script.replace(" -sf", "").replace("$URL/", "…/")
        self.rows.append((what, cells[0], f"{shown}: {cells[1]}", f"{ratio:.2f} times as fast"))
        self._say(self.rows[-1])


def measure(folder: Path, mib: int, rounds: int, say: Callable[[Row], None], only: Sequence[str] = ()) -> list[Row]:
    """Make the files, measure; `folder` is on the file system that is measured. In a process without other threads."""
    programs = {"xz": "xz-utils", "zstd": "zstd", "gzip": "gzip", "bzip2": "bzip2"}
    qemu = tool("qemu-img", "qemu-utils")
    with tempfile.TemporaryDirectory(dir=folder) as place, Web(Path(place) / "web") as site:
        raw = site.root / "disk.raw"
        disk(raw, mib << 20)
        digest = hashlib.file_digest(raw.open("rb"), "sha256").hexdigest()
        shapes = Shapes(Path(place), site.url, digest, rounds, say)
        for program, options in (("gzip", ["-1"]), ("zstd", ["-q"]), ("xz", ["-1", "-T2"]), ("bzip2", ["-1"])):
            if only and program not in only:
                continue
            path = tool(program, programs[program])
            with (site.root / program).open("wb") as out:
                subprocess.run([path, "-c", *options, raw], stdout=out, check=True)
            script = f"curl -sf $URL/{program} | {program} -dc | tee out | sha256sum"
            shapes.compare(f"a disk of {mib} MiB: {program} to raw", program, script)
        for file, options in (("qcow2", []), ("qcow2-c", ["-c"])):
            if only and file not in only:
                continue
            subprocess.run([qemu, "convert", "-O", "qcow2", *options, raw, site.root / file], check=True)
            script = f"curl -sf -o in $URL/{file} && qemu-img convert -O raw in out"
            what = f"a disk of {mib} MiB: {'compressed ' * bool(options)}qcow2 to raw"
            shapes.compare(what, file, script)
            shapes.compare(f"{what}, both files synced and hashed", file, f"{script} && sync in && sha256sum in out")
        return shapes.rows


if __name__ == "__main__":
    try:
        measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1024, ROUNDS, print, sys.argv[3:])
    except Problem as problem:
        sys.exit(problem.message)
