"""What a worker and the programs that it starts may do: limits, no new privileges, only the files that they need.

A worker reads hostile bytes as the same user as the operator beside it, so a fault in a parser must not be able to
read the operator's token. All of it is calls to the kernel that Python has no words for: prctl(2), mallopt(3) and
Landlock (landlock(7), the syscalls of linux/landlock.h).
"""

import ctypes
import os
import resource
import signal
import site
import stat
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

MEMORY: Final = 4 << 30
"""Bytes of address space of one worker: far above what a transfer needs, far below what hurts a host."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

# linux/landlock.h; the numbers of the syscalls are the same on every architecture
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_RULESET_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_EXECUTE: Final = 1 << 0
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_OF_A_FILE: Final = _EXECUTE | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15  # the rest is for folders only
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_ALL: Final = (1 << 16) - 1
_RIGHTS: Final = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # by ABI; all since 5: 16 bits
_NETWORKED: Final = 4
_TCP: Final = 0b11  # since that ABI: neither bind nor connect
_SCOPED: Final = 6
_SCOPES: Final = 0b11  # since that ABI: no abstract sockets and no signals out of the worker

# sched.h
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000

_PROGRAMS: Final = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_READABLE: Final = (
    *_PROGRAMS,
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/mime.types",
    "/sys/devices/system/cpu",
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def seal() -> None:
    """Let nobody but root look into the memory of this process, alive or as a core. Raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def harden() -> None:
    """Limit this process and all that it will start. Once, before anything is read. Raises OSError."""
    # If memory runs out a worker goes first: it can be started again, the operator has more to lose.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    seal()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Chunks come from one heap and go back to it; else each is mapped, zeroed and unmapped anew.
    if mallopt := getattr(_LIBC, "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        mallopt(_M_ARENA_MAX, 1)


def die_with(parent: int) -> None:
    """Be killed when `parent`, which must be our parent, ends; more precisely the thread of it that started us."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we had asked
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


class Cage:
    """The files that workers may read, opened once, and the door that each worker shuts behind itself."""

    def __init__(self) -> None:
        """Open what every worker needs. Says so in the log where the kernel has no Landlock."""
        import logging  # here, as a cell imports this module each time and needs neither
        import ssl

        self.abi = _abi()
        self._readable: list[int] = []
        self._devices: list[int] = []
        # With ABI 1 no file can be renamed into another folder, which stores must do.
        if self.abi < min(_RIGHTS):
            logging.getLogger(__name__).warning(
                "this kernel has no Landlock (5.19 or later, switched on): workers can read all files that the "
                "operator's user can read"
            )
            return
        certificates = ssl.get_default_verify_paths()
        own = (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, *site.getsitepackages())
        self._readable = _opened([*_READABLE, *own, certificates.cafile, certificates.capath])
        self._devices = _opened(_DEVICES)

    def enter(self, folders: Iterable[str]) -> None:
        """From now on: read the system's and Python's files, read and write below `folders`, nothing else.

        Binds the calling thread and the threads and processes that it starts later. Folders that do not exist are
        left out. Raises OSError.
        """
        own = _opened(folders)
        try:
            _restrict(self.abi, [(self._readable, _READ), (self._devices, _ALL), (own, _ALL)])
        finally:
            for fd in own:
                os.close(fd)


def isolate(readable: Iterable[int], writable: Iterable[int]) -> None:
    """From now on: read programs and their libraries, open these files again by their descriptors, nothing else.

    No TCP, and no network at all where the kernel allows us to leave it. Binds this process, which must have one
    thread, and all that it starts. Where the kernel has no Landlock, files stay as they were. Raises OSError.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _LIBC.unshare(_CLONE_NEWNET) != 0:  # that is root's; others may in a user namespace of their own, or not
        _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    abi = _abi()
    programs, devices = _opened(_PROGRAMS), _opened(_DEVICES)
    _restrict(abi, [(programs, _READ), (devices, _ALL), (readable, _READ_FILE), (writable, _ALL)], net=_TCP)
    for fd in (*programs, *devices):
        os.close(fd)


def _abi() -> int:
    """What the kernel knows of Landlock; 0 is nothing."""
    return max(int(_LIBC.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)), 0)


def _restrict(abi: int, rules: Iterable[tuple[Iterable[int], int]], *, net: int = 0) -> None:
    """Allow what is below these descriptors, and nothing else; `net`: what is denied of TCP."""
    if abi < min(_RIGHTS):
        return
    rights = _RIGHTS.get(abi, (1 << 16) - 1)
    attributes = struct.pack("=QQQ", rights, net, _SCOPES)
    size = 24 if abi >= _SCOPED else 16 if abi >= _NETWORKED else 8  # an older kernel knows fewer fields
    ruleset = _check(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0), "landlock_create_ruleset")
    try:
        for fds, access in rules:
            for fd in fds:
                _allow(ruleset, fd, access & rights)
        _check(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _opened(paths: Iterable[str | None]) -> list[int]:
    fds = []
    for path in dict.fromkeys(paths):
        if path and path != "/":
            with suppress(OSError):
                fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    return fds


def _allow(ruleset: int, fd: int, access: int) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= _OF_A_FILE
    rule = struct.pack("=Qi", access, fd)
    _check(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), "landlock_add_rule")


def _check(result: int, name: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
