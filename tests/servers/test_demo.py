"""The demo with stores, as `make demo STORES=…` runs it."""

import os
import subprocess
import sys

from glimpse.stores import installed
from servers import ROOT
from servers.require import require_tool
from servers.stores import SERVERS, TYPES, kinds_of

SHORT = ("rbd", "gridfs", "sheepdog", "http")
"""Kinds whose servers start soon: one that machines start from, one more, an emulator, one that takes no bytes."""


def test_each_driver_has_its_servers() -> None:
    """`make up`, `make demo` and the bench can start what each kind of store needs, in that order."""
    assert set(SERVERS) == set(installed()) - {"filesystem"}
    order = list(TYPES)
    for names in SERVERS.values():
        assert sorted(names, key=order.index) == list(names)


def test_kinds_of_stores() -> None:
    """All that there are may be named, each once; what is none is told with those that are."""
    assert kinds_of(" s3, filesystem,,s3") == ["s3", "filesystem"]
    assert set(kinds_of(",".join(installed()))) == set(installed())
    for program in (["-m", "servers", "status"], [str(ROOT / "e2e" / "demo.py")]):
        done = subprocess.run(
            [sys.executable, *program, "--stores", "s4"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": "e2e"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "no such store: s4; there are filesystem, cinder, gridfs," in done.stderr


def test_the_demo_fills_stores() -> None:
    """Every step holds, with an image in each of these stores in one pass, and one that is registered."""
    require_tool("nginx", "nginx-light")
    require_tool("qemu-img", "qemu-utils")
    env = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    done = subprocess.run(
        [sys.executable, ROOT / "e2e" / "demo.py", "--stores", ",".join(SHORT)],
        cwd=ROOT,
        env=env | {"PYTHONPATH": "e2e"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "my-rbd has it: rbd://",
        "my-gridfs has it: mongodb://",
        "my-sheepdog has it: sheepdog://",
        "its bytes are where they were",
    ):
        assert words in done.stdout
