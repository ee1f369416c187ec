"""Put and get of one large image for each kind of store, beside the usual tool for it: writes docs/stores/speed.md.

    make bench STORES=filesystem,s3,swift,rbd,cinder,vmware,gridfs,http

Both talk to the same server, started here, in turns and each time in a process of its own, so that its memory can be
told. Ours verifies as it always does: SHA-256 of all that is put. So the tool puts it twice: alone, and while sha256sum
reads the same file. All forget what they get.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from glimpse.confine import harden
from glimpse.problems import Problem
from glimpse.stores import Store, open_store
from glimpse.streams import CHUNK, Checked, Digest, Reader, tee
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import record_of
from servers import ROOT, Server, tool
from servers.stores import SERVERS, TYPES, Place, new, place
from servers.web import Web

PAGE: Final = ROOT / "docs" / "stores" / "speed.md"
KEY: Final = "bench-1"
TOGETHER: Final = ("filesystem", "s3", "swift", "rbd")
"""What one pass fills."""
READ: Final = ("http",)
"""What takes no bytes: a file that lies there already is read."""
SMALL: Final = 64
"""MiB of the small image: how much more memory the large one takes is told by the difference."""


class FromFile:
    """A Reader over a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size: int | None = path.stat().st_size

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes."""
        return self._file.read(n)


class Nowhere(io.BytesIO):
    """A file that forgets what it is given."""

    def write(self, data: Any, /) -> int:
        """All of it."""
        return len(data)

    def seek(self, offset: int, _whence: int = 0, /) -> int:
        """Anywhere."""
        return offset

    def seekable(self) -> bool:
        """So that ranges may be written as they come."""
        return True


def ours(where: Place, folder: Path) -> Store:
    """Our store."""
    config = dict(where.config)
    if where.kind == "filesystem":
        config["path"] = str(folder / "store")
    elif where.kind in {"s3", "swift"}:
        config["prefix"] = "ours"
    ca = where.ca_file.read_text() if where.ca_file else None
    ref = StoreRef(
        name="bench",
        driver=where.kind,
        config=config,
        secret={name: SecretStr(value) for name, value in where.secret.items()},
        ca_bundle=ca,
        installation="bench",
    )
    store = open_store(ref)
    if where.kind not in READ:
        store.claim()
        store.probe()  # logs in and connects, wherever that is
    return store


def run(*words: str | Path, env: Mapping[str, str] | None = None) -> None:
    """Run a program that must succeed; what it says goes nowhere."""
    subprocess.run(
        [str(word) for word in words], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )


# The usual tools: to put, to get, and to remove, where that is needed before the next round.


def _filesystem(_where: Place, folder: Path, source: Path, action: str) -> None:
    target = folder / "copy"
    match action:
        case "put":
            run("bash", "-c", 'cp "$0" "$1" && sync "$1"', source, target)
        case "get":
            run("bash", "-c", 'cat "$0" | cat > /dev/null', target)
        case _:
            target.unlink()


def _s3(where: Place, _folder: Path, source: Path, action: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=where.config["endpoint"],
        region_name="us-east-1",
        aws_access_key_id=where.secret["accessKey"],
        aws_secret_access_key=where.secret["secretKey"],
    )
    bucket = where.config["bucket"]
    match action:
        case "put":
            with source.open("rb") as file:
                client.upload_fileobj(file, bucket, "theirs")
        case "get":
            client.download_fileobj(bucket, "theirs", Nowhere())
        case _:
            client.delete_object(Bucket=bucket, Key="theirs")


def _swift(where: Place, _folder: Path, source: Path, action: str) -> None:
    swift: list[str | Path] = [Path(sys.executable).parent / "swift", "-q", "-A", where.config["authUrl"], "-V", "1"]
    swift += ["-U", where.secret["user"], "-K", where.secret["key"]]
    match action:
        case "put":
            words = ["--segment-size", str(64 << 20), "--use-slo", "--object-name", "theirs", where.config["container"]]
            run(*swift, "upload", *words, source)
        case "get":
            run(*swift, "download", "--output", "/dev/null", where.config["container"], "theirs")
        case _:
            run(*swift, "delete", where.config["container"], "theirs")


def _rbd(where: Place, folder: Path, source: Path, action: str) -> None:
    user, key, pool = "cinder", where.secret.get("cephKey", ""), "volumes"
    if where.kind == "rbd":
        user, key, pool = where.config["user"], where.secret["userKey"], where.config["pool"]
    keyfile = folder / "key"
    keyfile.touch(mode=0o600)
    keyfile.write_text(key)
    rbd: list[str | Path] = [tool("rbd", "ceph-common"), "--conf", folder / "ceph" / "ceph.conf"]
    rbd += ["--id", user, "--keyfile", keyfile, "--no-progress"]
    match action:
        case "put":
            run(*rbd, "import", source, f"{pool}/theirs")
        case "get":
            run(*rbd, "export", f"{pool}/theirs", "-")
        case _:
            run(*rbd, "rm", f"{pool}/theirs")


def _gridfs(where: Place, _folder: Path, source: Path, action: str) -> None:
    import gridfs
    from pymongo import MongoClient

    with MongoClient[dict[str, Any]](
        where.config["uri"],
        username=where.secret["username"],
        password=where.secret["password"],
        tlsCAFile=str(where.ca_file) if where.ca_file else None,
    ) as client:
        bucket = gridfs.GridFSBucket(client[where.config["database"]], "theirs")
        match action:
            case "put":
                with source.open("rb") as file:
                    bucket.upload_from_stream("theirs", file)
            case "get":
                # As GridFSBucket does, but FerretDB's batches of it are larger than it takes itself.
                for _ in client[where.config["database"]]["theirs.chunks"].find().sort("n").batch_size(32):
                    pass
            case _:
                bucket.delete_by_name("theirs")


_LOGIN: Final = """<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><Login xmlns="urn:vim25">\
<_this type="SessionManager">SessionManager</_this><userName>{username}</userName><password>{password}</password>\
</Login></Body></Envelope>"""


def _vmware(where: Place, folder: Path, source: Path, action: str) -> None:
    config = where.config
    url = f"https://{config['server']}/folder/{config['folder']}/theirs?dcPath={config['datacenter']}"
    curl: list[str | Path] = [tool("curl", "curl"), "-sSf", "--noproxy", "*", "--cacert", str(where.ca_file)]
    curl += ["-o", "/dev/null"]
    run(*curl, "-c", folder / "cookies", "-d", _LOGIN.format(**where.secret), f"https://{config['server']}/sdk")
    curl += ["-b", folder / "cookies"]
    match action:
        case "put":
            run(*curl, "-T", source, f"{url}&dsName={config['datastore']}")
        case "get":
            run(*curl, f"{url}&dsName={config['datastore']}")
        case _:
            pass  # it is replaced


def _http(where: Place, _folder: Path, source: Path, _action: str) -> None:
    run(tool("curl", "curl"), "-sSf", "--noproxy", "*", "-o", "/dev/null", f"{where.config['baseUrl']}/{source.name}")


TOOLS: Final[Mapping[str, tuple[str, Callable[[Place, Path, Path, str], None]]]] = {
    "filesystem": ("`cp` and `sync`, `cat` into a pipe", _filesystem),
    "s3": ("boto3 `upload_fileobj`, `download_fileobj`", _s3),
    "swift": ("`swift upload` with segments of 64 MiB, `swift download`", _swift),
    "rbd": ("`rbd import`, `rbd export`", _rbd),
    "cinder": ("`rbd import`, `rbd export`", _rbd),
    "vmware": ("`curl -T`, `curl -o /dev/null`", _vmware),
    "gridfs": ("pymongo `GridFSBucket`", _gridfs),
    "http": ("`curl -o /dev/null`", _http),
}


def one(who: str, action: str, places: Sequence[Place], folder: Path, source: Path) -> None:
    """Do one thing, and print how long it took, and the memory that it needed besides that of an idle process."""
    where = places[0]
    if who == "ours":
        harden()  # as a worker does
        stores = {each.kind: ours(each, folder) for each in places}
        store = stores[where.kind]
        things: Mapping[str, Callable[[], object]] = {
            "put": partial(put, store, source),
            "put into all": partial(put_all, stores, source),
            "get": partial(read, store, source.name) if where.kind in READ else partial(get, store),
            "remove": partial(remove, stores.values()),
        }
        thing = things[action]
    else:
        thing = partial(TOOLS[where.kind][1], where, folder, source, action)
        if (who, action) == ("verified", "put"):
            thing = partial(verified, source, thing)
    began = time.perf_counter()
    thing()
    seconds = time.perf_counter() - began
    whose = resource.RUSAGE_SELF
    print(json.dumps([seconds, resource.getrusage(whose).ru_maxrss << 10]))


def put(store: Store, source: Path) -> None:
    """Store the file, verified."""
    with Checked(FromFile(source), [Digest("sha256")]) as body:
        store.put(KEY, f"a{time.monotonic_ns()}", body, lambda: record_of(KEY))


def put_all(stores: Mapping[str, Store], source: Path) -> None:
    """Store the file in all of them in one pass, verified: it is read once."""
    with Checked(FromFile(source), [Digest("sha256")]) as body:
        attempt = f"a{time.monotonic_ns()}"

        def into(store: Store, branch: Reader) -> object:
            return store.put(KEY, attempt, branch, lambda: record_of(KEY))

        done = tee(body, {name: partial(into, store) for name, store in stores.items()}, stall_timeout=60)
    assert not any(isinstance(each, Problem) for each in done.values()), done


def verified(source: Path, put: Callable[[], object]) -> None:
    """Put while sha256sum reads the file too: what it takes to know what is stored."""
    with subprocess.Popen(["sha256sum", source], stdout=subprocess.DEVNULL) as check:
        put()
        assert check.wait() == 0


def remove(stores: Iterable[Store]) -> None:
    """Remove it from all of them."""
    for store in stores:
        store.delete(KEY)


def get(store: Store) -> None:
    """Read it."""
    with store.get(KEY) as reader:
        while reader.read():
            pass


def read(store: Store, location: str) -> None:
    """Read what others have put there."""
    with store.read(location, store.locate(location)) as reader:
        while reader.read():
            pass


class Bench:
    """The measurements, in one folder."""

    def __init__(self, folder: Path, mib: int, rounds: int) -> None:
        self.folder, self.mib, self.rounds = folder, mib, rounds
        self.rows: list[tuple[str, ...]] = []
        self.together_said = ""
        self.sources = {size: folder / f"source-{size}" for size in (SMALL, mib)}
        for size, path in self.sources.items():
            with path.open("wb") as file:
                for _ in range(size):
                    file.write(os.urandom(1 << 20))

    @contextmanager
    def running(self, *kinds: str) -> Iterator[list[Place]]:
        """The servers that these kinds need, and a place for each."""
        running: dict[str, Server[Any]] = {}
        needed = {name for kind in kinds for name in SERVERS.get(kind, ())}
        try:
            for name in TYPES:
                if name in needed:
                    running[name] = new(name, self.folder / name, running)
                    running[name].start()
            (self.folder / "store").mkdir()
            if isinstance(web := running.get("web"), Web):
                for path in self.sources.values():
                    (web.site.root / path.name).hardlink_to(path)
            yield [
                place(kind, "bench", running[SERVERS[kind][-1]]) if kind in SERVERS else Place(kind, {}, {})
                for kind in kinds
            ]
        finally:
            for server in reversed(running.values()):
                server.stop()
            for name in (*running, "store", "copy"):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def act(self, who: str, action: str, mib: int, *places: Place) -> tuple[float, int]:
        """Do it in a process of its own: seconds, and bytes of its memory."""
        words = [asdict(where) | {"ca_file": str(where.ca_file) if where.ca_file else None} for where in places]
        command = [sys.executable, __file__, "--one", who, action, str(self.folder), str(self.sources[mib])]
        out = subprocess.run(command, input=json.dumps(words), check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, memory = json.loads(out)
        print(f"  {'+'.join(where.kind for where in places)} {who} {action}: {seconds:.2f} s", flush=True)
        return seconds, memory

    def measure(self, kind: str) -> None:
        """Start what this kind needs, measure, stop it."""
        shown = ("get",) if kind in READ else ("put", "get")
        every = shown if kind in READ else (*shown, "remove")
        with self.running(kind) as (where,):
            act = partial(self._act_at, where)
            flat = {action: act("ours", action, SMALL)[1] for action in every}
            took: dict[tuple[str, str], list[tuple[float, int]]] = {}
            for turn in range(self.rounds):
                whose = ("ours", "theirs") if kind in READ else ("ours", "theirs", "verified")
                first = turn % len(whose)  # each begins, and ends, as often: disks are quick for a while only
                for who in (*whose[first:], *whose[:first]):
                    for action in every:
                        os.sync()
                        took.setdefault((who, action), []).append(act(who, action, self.mib))
        for action in shown:
            mine, other = took["ours", action], took["theirs", action]
            memory = f"{flat[action] >> 20} / {max(each[1] for each in mine) >> 20} MiB"
            goal = "1.0" if action == "put" else "0.9"
            sure = took["verified", "put"] if action == "put" else None
            row = (kind, action, _times(mine), f"{TOOLS[kind][0]}: {_times(other)}", _ratio(mine, other))
            self.rows.append((*row, *((_times(sure), _ratio(mine, sure)) if sure else ("", "")), goal, memory))
            print(" | ".join(self.rows[-1]), flush=True)

    def _act_at(self, where: Place, who: str, action: str, mib: int) -> tuple[float, int]:
        return self.act(who, action, mib, where)

    def together(self) -> None:
        """One pass into several stores, beside a put into each of them alone."""
        with self.running(*TOGETHER) as places:
            took: dict[str, list[tuple[float, int]]] = {}
            for _ in range(self.rounds):
                for name, some in ({each.kind: [each] for each in places} | {"all": places}).items():
                    os.sync()
                    took.setdefault(name, []).append(self.act("ours", "put into all", self.mib, *some))
                    self.act("ours", "remove", self.mib, *some)
        median = {name: statistics.median(seconds for seconds, _ in times) for name, times in took.items()}
        alone = sorted((median[name], name) for name in TOGETHER)
        slowest = alone[-1][1]
        each = ", ".join(f"{name} {seconds:.2f} s" for seconds, name in alone)
        self.together_said = (
            f"Into {', '.join(TOGETHER[:-1])} and {TOGETHER[-1]} in one pass, in which the file is read once: "
            f"{_times(took['all'])}; one after the other they take {sum(seconds for seconds, _ in alone):.2f} s "
            f"({each}), so it is {median['all'] / median[slowest]:.2f} times as long as into the slowest alone, "
            f"{slowest}: they share {os.cpu_count()} cores with their servers."
        )
        print(self.together_said, flush=True)

    def page(self, command: str) -> str:
        """The table as a page."""
        machine = f"{os.cpu_count()} cores, Linux {platform.release()}"
        lines = [
            "# How fast the stores are",
            "",
            f"Written by `{command}`; do not edit.",
            f"An image of {self.mib} MiB of random bytes, from a file in the page cache to a real server on the same",
            f"machine ({machine}), and back to nowhere.",
            "Ours has logged in and is connected, as in a gateway that runs; the programs do that in their time.",
            f"Medians of {self.rounds} rounds in which all take turns, the range in brackets.",
            "Ours computes SHA-256 of all that is put, as it always does; the tools do not, so each puts the file once",
            "more while `sha256sum` reads it: only then it is known what was stored.",
            f"The last column is the largest memory of our process, for {SMALL} and for {self.mib} MiB.",
            "",
            "| store | | Glimpse | beside it | times as fast | and `sha256sum` | times as fast | goal | memory |",
            "|---|---|---|---|---|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in self.rows),
            *(("", self.together_said) if self.together_said else ()),
            "",
            "`http` takes no bytes. Not measured: of Sheepdog only an emulator of its protocol runs in the tests.",
        ]
        return "\n".join(lines) + "\n"


def _ratio(mine: list[tuple[float, int]], other: list[tuple[float, int]]) -> str:
    return f"{statistics.median(b[0] / a[0] for a, b in zip(mine, other, strict=True)):.2f}"


def _times(took: list[tuple[float, int]]) -> str:
    seconds = [each[0] for each in took]
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"


def main() -> int:
    """Measure and write; or do the one thing that a process of its own is started for."""
    if sys.argv[1:2] == ["--one"]:
        who, action, place_, source = sys.argv[2:]
        found = json.load(sys.stdin)
        for each in found:
            each["ca_file"] = Path(each["ca_file"]) if each["ca_file"] else None
        one(who, action, [Place(**each) for each in found], Path(place_), Path(source))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", help=f"with commas between: {', '.join(TOOLS)}; or all")
    parser.add_argument("--mib", type=int, default=1024, help="size of the image")
    parser.add_argument("--rounds", type=int, default=3, help="how often each thing is measured")
    parser.add_argument("--folder", type=Path, help="where: the file system that is measured")
    parser.add_argument("--dry", action="store_true", help="print only, write no page")
    arguments = parser.parse_args()
    kinds = list(TOOLS) if arguments.stores == "all" else arguments.stores.split(",")
    if unknown := set(kinds) - set(TOOLS):
        parser.error(f"no such store: {', '.join(sorted(unknown))}; there are {', '.join(TOOLS)}")
    folder = Path(tempfile.mkdtemp(prefix="glimpse-bench-", dir=arguments.folder))
    try:
        bench = Bench(folder, arguments.mib, arguments.rounds)
        steps: list[Callable[[], None]] = [partial(bench.measure, kind) for kind in kinds]
        if set(TOGETHER) <= {*kinds}:
            steps.append(bench.together)
        for step in steps:
            step()
            if not arguments.dry:  # at once: what was measured stays, though a server breaks down afterwards
                PAGE.write_text(bench.page(f"make bench STORES={arguments.stores}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
