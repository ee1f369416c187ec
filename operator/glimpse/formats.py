"""What an image is, from its bytes as they pass, and what makes it unsafe.

The bytes of a tenant are hostile: a backing file would read the host's files, and two formats at once would show one
thing to us and another to the hypervisor. The parsing is oslo.utils' `format_inspector`, which OpenStack trusts with
the same task; here are the rules around it.
"""

import uuid
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from oslo_utils.imageutils import format_inspector as oslo

from glimpse.problems import FormatMismatch, UnsafeImage
from glimpse.streams import CHUNK

_HEAD: Final = CHUNK
"""Inspectors get the beginning only when it is there: some judge what their first chunk holds, and a server chooses how
it trickles."""
_SECTOR: Final = 512
_STEPS: Final = (_SECTOR, 64 << 10, 256 << 10)
"""Where in the head most inspectors have seen enough: after a sector, a disc's descriptor, VHDX's tables."""
_TAIL: Final = 4 * _SECTOR
_ON_TRUST: Final = frozenset({"ploop", "ami", "ari", "aki"})
"""Formats that cannot be told from raw."""
_LARGEST: Final = (1 << 63) - 1
_VHD_FIXED, _VHD_DIFFERENCING = 2, 4
_VDI_UNDO, _VDI_DIFFERENCING = 3, 4
_VHDX_PARENT: Final = uuid.UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C").bytes_le
"""The parent locator, [MS-VHDX] 2.6.2.6."""

_RAW: Final = (frozenset[str](), frozenset({"gpt"}), frozenset({"luks"}))
"""What a machine sees as a plain disk: nothing known, a partition table, an encrypted disk."""
_ISO: Final = (frozenset({"iso"}), frozenset({"iso", "gpt"}))
"""A disc; every hybrid one, which also boots from a stick, has a partition table."""

_WHY: Final = {
    "backing_file": "it has a backing file",
    "data_file": "it keeps its data in another file",
    "unknown_features": "it uses features that are not known to be safe",
    "descriptor": "its descriptor refers to other files, or cannot be read",
    "footer": "its footer contradicts its header",
    "banned": "nobody supports this format",
}


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the bytes are."""

    disk_format: str
    """A word of `spec.format.disk`, never `auto`."""
    virtual_size: int
    """Bytes of the disk that a machine sees."""


class Inspect:
    """A Tap that recognises the image, and refuses it as early as it can.

    `feed` and `finish` raise UnsafeImage, and FormatMismatch where the bytes are not what was declared, or none.
    """

    def __init__(self, declared: str = "auto") -> None:
        """`declared`: `spec.format.disk`."""
        self._declared = declared
        self._size = 0
        self._head: list[bytes] = []
        self._held = 0  # bytes in the head
        self._tail = b""
        self._begun = False
        self._inspectors = {name: kind() for name, kind in oslo.ALL_FORMATS.items() if name != "raw"}
        self._hungry = dict(self._inspectors)
        self._broken: set[str] = set()
        self._text = False
        self.guess: str | None = None
        """The disk format as far as the beginning tells; a fixed VHD that nobody declared looks raw."""
        self.result: Inspection | None = None
        """After `finish`."""

    def feed(self, chunk: bytes, /) -> None:
        """Look at the next bytes."""
        self._size += len(chunk)
        self._tail = chunk[-_TAIL:] if len(chunk) >= _TAIL else (self._tail + chunk)[-_TAIL:]
        if self._begun:
            self._eat(chunk)
            return
        self._head.append(chunk)
        self._held += len(chunk)
        if self._held >= _HEAD:
            self._begin()

    def finish(self) -> None:
        """Judge the whole."""
        if not self._size:
            raise FormatMismatch("the image is empty, there is not one byte of it: look at what its source gives")
        if not self._begun:
            self._begin()
        if self._inspectors["vmdk"].has_region("footer"):
            self._feed("vmdk", self._tail)
        for name, inspector in self._inspectors.items():
            try:
                inspector.finish()
            except Exception:  # noqa: BLE001 - as in _feed
                self._broken.add(name)
        disk_format = self._judge(self._found(), fixed=self._is_fixed_vhd(), whole=True)
        self._compare(disk_format)
        named = self._declared if self._declared in _ON_TRUST else disk_format
        self.result = Inspection(named, self._virtual_size(disk_format))

    def close(self) -> None:
        """Let go of what was captured."""
        self._head.clear()
        self._hungry = {}

    def _begin(self) -> None:
        """The head is complete: whatever can be known from it is known here, long before the last byte."""
        self._begun = True
        head, self._head = self._head, []
        # shorter than any header, but enough for qemu, which reads zeros beyond the end
        first = _cut(head, 0, _SECTOR).ljust(_SECTOR, b"\0")
        self._text = _is_vmdk_text(first)
        # inspectors copy what they are given, so most are dropped after a sector; text is parsed as far as it goes
        text = first.isascii() and b"\0" not in first
        self._eat(first if not text or self._held <= _SECTOR else _cut(head, 0, self._held))
        for start, end in pairwise(() if text else (*_STEPS, self._held)):
            if self._hungry and start < self._held:
                self._eat(_cut(head, start, end))
        found = self._found()
        if found not in _RAW:
            self.guess = self._judge(found)
        else:
            self.guess = "vhd" if self._declared == "vhd" else "raw"  # a fixed one shows itself in the last sector only
        self._compare(self.guess)

    def _eat(self, chunk: bytes) -> None:
        for name in list(self._hungry):
            self._feed(name, chunk)
            if name in self._broken or self._sated(name):
                del self._hungry[name]

    def _feed(self, name: str, chunk: bytes) -> None:
        try:
            self._inspectors[name].eat_chunk(chunk)
        except Exception:  # noqa: BLE001 - hostile bytes may raise anything in a parser; what it means is decided by _judge
            self._broken.add(name)

    def _sated(self, name: str) -> bool:
        """Whether it has seen enough."""
        inspector = self._inspectors[name]
        try:
            return inspector.complete or _only_lacks_footer(inspector)
        except Exception:  # noqa: BLE001 - as in _feed
            self._broken.add(name)
            return True

    def _found(self) -> frozenset[str]:
        """What it may be; an inspector that cannot say might be right."""
        found = set[str]()
        for name, inspector in self._inspectors.items():
            try:
                matches = inspector.format_match
            except AttributeError:  # of VMDK's, at text that is no descriptor
                matches = name != "vmdk"
            except Exception:  # noqa: BLE001 - as in _feed
                matches = True
                self._broken.add(name)
            if matches:
                found.add(name)
        return frozenset(found | {"vmdk"} if self._text else found)

    def _judge(self, found: frozenset[str], *, fixed: bool = False, whole: bool = False) -> str:
        """The disk format. Raises UnsafeImage."""
        if fixed and found <= {"gpt"}:
            return "vhd"
        if found in _RAW and not fixed:
            # the inspector's check of the partition table is left out: no entry of it can lead out of the image
            return "raw"
        if found in _ISO and not fixed:
            return "iso"
        names = [*sorted(found), *(["vhd (fixed)"] if fixed else [])]
        if len(names) != 1:
            raise UnsafeImage(f"the image is {' and '.join(names)} at once")
        self._check(names[0], whole=whole)
        return names[0]

    def _check(self, name: str, *, whole: bool) -> None:
        """Raise UnsafeImage if the image leads out of itself, or cannot be read well enough to say."""
        inspector = self._inspectors[name]
        if self._text:
            raise _unsafe(name, "it is only a description of other files")
        if name in self._broken:
            raise _unsafe(name, "its header cannot be read")
        try:
            if not inspector.complete and not whole:
                return
            inspector.safety_check()
            derived = _has_parent(name, inspector)
        except oslo.SafetyCheckFailed as error:
            raise _unsafe(name, " and ".join(_WHY.get(fault, fault) for fault in error.failures)) from None
        except Exception:  # noqa: BLE001 - as in _feed
            raise _unsafe(name, "its header is incomplete") from None
        if derived:
            raise _unsafe(name, "it holds only the differences to another image")

    def _compare(self, disk_format: str) -> None:
        allowed = "raw" if self._declared in _ON_TRUST else self._declared
        if allowed not in {"auto", disk_format}:
            raise FormatMismatch(
                f"spec.format.disk says {self._declared}, and the bytes are {disk_format}; "
                f"if that is right, say {disk_format} or auto"
            )

    def _is_fixed_vhd(self) -> bool:
        """A footer of type `fixed` in the last sector, and the plain disk before it."""
        footer = self._tail[-_SECTOR:]
        return (
            len(footer) == _SECTOR < self._size and footer.startswith(b"conectix") and _vhd_type(footer) == _VHD_FIXED
        )

    def _virtual_size(self, disk_format: str) -> int:
        inspector = self._inspectors.get(disk_format)
        if disk_format in {"raw", "iso"} or inspector is None:
            return self._size
        if disk_format == "vhd" and not inspector.format_match:
            return self._size - _SECTOR
        try:
            size = inspector.virtual_size
        except Exception:  # noqa: BLE001 - as in _feed
            size = 0
        if not 0 < size <= _LARGEST:
            raise _unsafe(disk_format, "its header does not say a possible size")
        return size


def foretell(head: bytes, declared: str = "auto") -> str:
    """The disk format of an image that begins with `head`, of a MiB if there is so much. Raises as `Inspect.feed`."""
    look = Inspect(declared)
    look.feed(head)
    if not look.guess:  # there is no more
        look._begin()  # noqa: SLF001 - one module
    assert look.guess  # noqa: S101 - _begin makes it
    return declared if declared in _ON_TRUST else look.guess


def _cut(chunks: list[bytes], start: int, end: int) -> bytes:
    """These bytes of what the chunks are together."""
    parts, at = [], 0
    for chunk in chunks:
        if at < end and at + len(chunk) > start:
            parts.append(chunk[max(0, start - at) : end - at])
        at += len(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _only_lacks_footer(inspector: oslo.FileInspector) -> bool:
    """Whether all that a VMDK still needs is the end, which is kept anyway: fed to it, every chunk would be copied."""
    return inspector.has_region("footer") and inspector.region("descriptor").complete


def _unsafe(name: str, why: str) -> UnsafeImage:
    return UnsafeImage(f"the {name} image is refused: {why}; make one that stands alone, with qemu-img convert")


def _vhd_type(footer: bytes | bytearray) -> int:
    return int.from_bytes(footer[60:64], "big")


def _has_parent(name: str, inspector: oslo.FileInspector) -> bool:
    """What the inspectors do not look at: differencing disks, which are backing files by another name."""
    if name == "vhd":
        return _vhd_type(inspector.region("header").data) == _VHD_DIFFERENCING
    if name == "vdi":
        return int.from_bytes(inspector.region("header").data[0x4C:0x50], "little") in {_VDI_UNDO, _VDI_DIFFERENCING}
    if name == "vhdx":
        return _VHDX_PARENT in inspector.region("metadata").data
    return name == "vmdk" and b"parentfilenamehint" in bytes(inspector.region("descriptor").data).lower()


def _is_vmdk_text(sector: bytes) -> bool:
    """As qemu recognises a descriptor (`vmdk_probe`): comments and blank lines, then the version."""
    for line in sector.split(b"\n"):
        words = line.rstrip(b"\r")
        if not line.startswith(b"#") and words.strip(b" "):
            return words in {b"version=1", b"version=2", b"version=3"}
    return False
