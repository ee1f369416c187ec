"""File systems of their own for stores: small, and on an image that can be looked at from outside."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers.require import require, require_tool


def make_ext4(image: Path, size: int = 24 << 20) -> None:
    """An empty ext4 of that many bytes in a file."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([require_tool("mkfs.ext4", "e2fsprogs"), "-q", image], check=True)


def make_xfs(image: Path, size: int = 320 << 20) -> None:
    """An empty xfs, which shares blocks between files, of that many bytes in a file."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([require_tool("mkfs.xfs", "xfsprogs"), "-q", "-m", "reflink=1", image], check=True)


@contextmanager
def mounted(folder: Path, *what: str) -> Iterator[None]:
    """Mount it there as long as the block lasts; `what`: arguments of mount(8) before the folder."""
    done = subprocess.run([require_tool("mount", "mount"), *what, folder], capture_output=True, check=False)
    if done.returncode:
        require("mount", done.stderr.decode())
    try:
        yield
    finally:
        subprocess.run([require_tool("umount", "mount"), folder], check=True)
