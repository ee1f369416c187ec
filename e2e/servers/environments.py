"""Servers that are Python programs: each in an environment of its own, built once by uv and cached.

Their libraries must not meet ours, and an environment is known by what was asked for: a newer version is another one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from servers import ROOT, Missing, ServerError, locked

_UV: Final = (ROOT / ".run" / "uv" / "bin" / "uv", Path.home() / ".local" / "bin" / "uv")
"""Where `make setup` puts it, or finds it, if it is not on the path."""


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The folder with the programs of an environment that has these requirements, each with its version.

    Built in seconds where there is none yet. Raises Missing without uv or without the packages.
    """
    python = f"{sys.implementation.cache_tag}-{os.uname().machine}"
    wanted = hashlib.sha256("\n".join([python, *requirements]).encode()).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glimpse"
    folder = base / name / f"{python}-{wanted}"
    if not (folder / "complete").exists():
        with locked(folder.with_suffix(".lock")):
            if not (folder / "complete").exists():
                _build(folder, requirements)
    return folder / "bin"


def _build(folder: Path, requirements: Sequence[str]) -> None:
    """In place, since an environment cannot be moved; `complete` is written last."""
    uv = shutil.which("uv") or next((str(path) for path in _UV if path.exists()), None)
    if uv is None:
        raise Missing(f"no uv to install {', '.join(requirements)} with: run `make setup`")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    base = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
    for command in (
        [uv, "venv", "--quiet", "--python", base, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *requirements],
    ):
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "UV_COMPILE_BYTECODE": "1"},
        )
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise Missing(f"cannot install {', '.join(requirements)} from PyPI: {done.stderr.strip()[-500:]}")
    if not (folder / "bin" / "python").exists():
        raise ServerError(f"{folder} has no Python")
    (folder / "complete").touch()
