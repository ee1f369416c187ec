"""Disk images as qemu-img makes them, and what a machine would see of one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from glimpse.testing.bodies import noise
from servers.require import require_tool

DISK: Final = noise(700_000) + bytes(2 << 20) + noise(64 << 10) + bytes(1 << 20) + noise(100) + bytes(3996)
"""Data, holes, a little data, and an end that is no multiple of anything but a sector."""
DISK_LENGTH: Final = len(DISK) // 512 * 512

MADE: Final = {
    "qcow2": ("qcow2", ()),
    "qcow2 compressed": ("qcow2", ("-c",)),
    "vmdk": ("vmdk", ()),
    "vmdk for streams": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vdi": ("vdi", ()),
    "vhd": ("vpc", ("-o", "force_size=on")),
    "vhd fixed": ("vpc", ("-o", "subformat=fixed,force_size=on")),
    "vhdx": ("vhdx", ()),
}
"""Formats with qemu-img's words for them; the first word of a key is ours."""


def disk() -> bytes:
    """What is in the images."""
    return DISK[:DISK_LENGTH]


def qemu_img(*words: str, cwd: Path) -> str:
    """Run it; its output."""
    program = require_tool("qemu-img", "qemu-utils")
    return subprocess.run([program, *words], cwd=cwd, check=True, capture_output=True, text=True, timeout=60).stdout


def image(folder: Path, kind: str, *options: str, data: bytes | None = None) -> bytes:
    """An image of this format, by qemu-img's word, with this disk in it."""
    (folder / "disk.raw").write_bytes(disk() if data is None else data)
    qemu_img("convert", "-f", "raw", "-O", kind, *options, "disk.raw", "image", cwd=folder)
    return (folder / "image").read_bytes()


def seen(folder: Path, kind: str, data: bytes) -> bytes:
    """The disk in an image."""
    (folder / "stored").write_bytes(data)
    qemu_img("convert", "-f", kind, "-O", "raw", "stored", "seen", cwd=folder)
    return (folder / "seen").read_bytes()


@contextmanager
def small_volume(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size, mounted."""
    mount, umount = require_tool("mount", "mount"), require_tool("umount", "mount")
    subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "glimpse-test", folder], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run([umount, "-l", folder], check=True, timeout=30)
