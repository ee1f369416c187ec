"""`python -m servers up|down|status|programs|build`: servers that outlive the command, for a playground.

State is in `.run/<name>.json`, so a later command finds what an earlier one started, and stops only that.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from servers import RUN, Missing, Server, ServerError, cinder, ferretdb, keystone, locked, swift, vcsim
from servers.cinder import Cinder
from servers.environments import environment
from servers.glimpse import Glimpse
from servers.keystone import Keystone
from servers.kube import ApiError, Cluster, Kube
from servers.programs import have, obtain
from servers.stores import FOLDER, KINDS, SERVERS, TYPES, kinds_of, new, place
from servers.swift import Swift
from servers.web import Web

# In the order of starting: each may lean on those before it.
NAMES: Final = ("kube", *TYPES, "glimpse")
USUAL: Final = ("kube", "web", "glimpse")
"""Those that are started unless a store asks for more."""
STORE: Final = "local"

BUILT: Final[Mapping[str, Callable[[], Path]]] = {
    "vcsim": vcsim.obtain,
    "ferretdb": ferretdb.obtain,
    **{
        each.name: partial(environment, each.name, requirements)
        for each, requirements in (
            (Swift, swift.REQUIREMENTS),
            (Keystone, keystone.REQUIREMENTS),
            (Cinder, cinder.REQUIREMENTS),
        )
    },
}
"""Servers that are built, or installed into an environment, once."""

_FIRST: Final = """\
kubectl apply --server-side -f - <<END
apiVersion: glimpse.dev/v1alpha1
kind: Image
metadata: {{name: first, namespace: default}}
spec: {{source: {{http: {{urls: ["{url}"]}}}}}}
END
kubectl get gimg -w"""


def main() -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m servers", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "programs", "build"])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; none means {', '.join(USUAL)}")
    parser.add_argument("--stores", default="", help=f"further ImageStores, with commas between: {', '.join(KINDS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    try:
        kinds = kinds_of(arguments.stores)
    except ValueError as error:
        parser.error(str(error))
    started = {name for name in NAMES if (RUN / f"{name}.json").exists()}
    wanted = {*(arguments.names or USUAL), *(name for kind in kinds for name in SERVERS.get(kind, ()))}
    if arguments.command != "up" and not arguments.names:
        wanted |= started
    names = [name for name in NAMES if name in wanted]
    try:
        match arguments.command:
            case "programs":
                for program, path in obtain().items():
                    print(f"{program:15} {path}")
            case "build":
                build()
            case "up":
                with locked(RUN / "lock"):
                    up(names)
                    _stores(kinds)
            case "down":
                with locked(RUN / "lock"):
                    down(names)
            case _:
                return status(names)
    except (Missing, ServerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def build() -> None:
    """Build what the tests need besides Kubernetes, unless it is there. What cannot be had is named, and no failure.

    Here and not in a test, which would wait for it with its patience.
    """
    for name, make in BUILT.items():
        began = time.monotonic()
        try:
            make()
        except Missing as error:
            print(f"{name:10} cannot be had: {error}", file=sys.stderr)
        else:
            print(f"{name:10} {time.monotonic() - began:.0f} s", flush=True)


def up(names: list[str]) -> None:
    """Start what does not run yet, and say how to go on."""
    if "kube" in names and _foreign() is None:
        obtain()
    for name in names:
        began = time.monotonic()
        if name == "kube" and (foreign := _foreign()):
            _cluster().install()
            print(f"kube     {foreign} (named by GLIMPSE_KUBECONFIG; not ours to start)")
            continue
        server = _load(name)
        if server is not None and server.ready():
            print(f"{name:8} runs already; what has been set since counts after `make down`")
            continue
        if server is not None:
            server.stop()  # half of it may be left
        server = _new(name)
        server.start()
        server.save(RUN / f"{name}.json")
        if isinstance(server, Kube):
            server.cluster.install()
        print(f"{name:8} {time.monotonic() - began:4.1f} s  {_words(server)}", flush=True)
    if "glimpse" in names:
        _playground()


def down(names: list[str]) -> None:
    """Stop what `up` started, last started first. Data stay in `.run/`."""
    for name in reversed(names):
        if (server := _load(name)) is not None:
            server.stop()
            (RUN / f"{name}.json").unlink()
            print(f"{name:8} stopped")


def status(names: list[str]) -> int:
    """Say what runs; 0 if all of it does."""
    ready = True
    for name in names:
        server = _load(name)
        answers = server is not None and server.ready()
        ready &= answers
        if server is None:
            print(f"{name:8} down")
        else:
            memory = sum(process.rss() for process in server.processes.values()) >> 20
            print(f"{name:8} {'ready' if answers else 'NOT READY'}  {memory} MiB  {_words(server)}")
    return 0 if ready else 3


def _stores(kinds: list[str]) -> None:
    """An ImageStore of each of these kinds, named after it."""
    if FOLDER in kinds:
        print(f"\nA store of the kind {FOLDER} is there anyway: {STORE}")
    further = [kind for kind in kinds if kind != FOLDER]
    for kind in further:
        if server := _load(SERVERS[kind][-1]):
            name = f"my-{kind}"
            _cluster().apply(*place(kind, name, server).manifests(name))
    if further:
        print(f"\nFurther ImageStores, for spec.stores: {', '.join(f'my-{kind}' for kind in further)}")


def _playground() -> None:
    """A default store, and what to type next."""
    cluster = _cluster()
    store: dict[str, Any] = {
        "apiVersion": "glimpse.dev/v1alpha1",
        "kind": "ImageStore",
        "metadata": {"name": STORE, "annotations": {"glimpse.dev/is-default-store": "true"}},
    }
    try:
        folder = Path(cluster.read(store)["spec"]["filesystem"]["path"])  # of an earlier `up`, or of the demo
    except ApiError:
        folder = RUN / "store"
        cluster.apply(store | {"spec": {"filesystem": {"path": str(folder)}}})
    folder.mkdir(exist_ok=True)
    print(f"\nThe ImageStore {STORE!r} keeps bytes in {folder}. Go on in another terminal:\n")
    print(f"export KUBECONFIG={cluster.kubeconfig} PATH={have('kubectl').parent}:$PATH")
    if isinstance(web := _load("web"), Web):
        url = f"{web.site.url}/disk.qcow2"
        print(f"cp ANY.qcow2 {web.site.root}/disk.qcow2     # is then {url}")
        print(_FIRST.format(url=url))
    print("kubectl explain image.spec.source.http")
    print("\nThere is no controller-manager here: deleted namespaces stay, and the roles edit and admin gain nothing.")
    print("\n`make down` stops it all and keeps the data; `make clean` removes them.")


def _new(name: str) -> Server[Any]:
    folder = RUN / name
    match name:
        case "kube":
            return Kube(folder, detached=True)
        case "glimpse":
            return Glimpse(folder, cluster=_cluster(), detached=True, settings=_settings())
        case _:
            others = {other: server for other in TYPES if (server := _load(other))}
            return new(name, folder, others, detached=True)


def _settings() -> dict[str, str]:
    """A spool for conversions, and every setting that the person has given: `GLIMPSE_LIMITS__TRANSFERS=1 make up`."""
    spool = RUN / "spool"
    spool.mkdir(exist_ok=True)
    given = {name: value for name, value in os.environ.items() if name.startswith("GLIMPSE_")}
    others = {"GLIMPSE_KUBECONFIG", "GLIMPSE_REQUIRE"}
    return {"GLIMPSE_SPOOL__PATH": str(spool)} | {name: given[name] for name in given.keys() - others}


def _load(name: str) -> Server[Any] | None:
    kinds: dict[str, type[Server[Any]]] = {"kube": Kube, **TYPES, "glimpse": Glimpse}
    return kinds[name].load(RUN / f"{name}.json")


def _foreign() -> Path | None:
    """The kubeconfig in GLIMPSE_KUBECONFIG, unless it is the one that `up` itself printed."""
    named = os.environ.get("GLIMPSE_KUBECONFIG")
    if not named or Path(named).resolve() == RUN / "kube" / "admin.kubeconfig":
        return None
    return Path(named)


def _cluster() -> Cluster:
    if foreign := _foreign():
        return Cluster.named_by(foreign, RUN / "foreign")
    if (kube := Kube.load(RUN / "kube.json")) is None:
        raise ServerError("no API server of ours runs: start it with `python -m servers up kube`")
    return kube.cluster


def _words(server: Server[Any]) -> str:
    return "  ".join(f"{key}={value}" for key, value in server.describe().items())


if __name__ == "__main__":
    sys.exit(main())
