"""Becomes another program, which may do far less than a worker: how qemu-img is started on a tenant's image.

A process of its own between worker and program, because limits are set best by the one whom they bind, and a worker
has threads, in which nothing of ours must run between fork and exec.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any, Final

from glimpse.confine import die_with, isolate

_STACK: Final = 2 << 20
"""Bytes of a thread's stack: qemu-img may start 64 threads, and with 8 MiB each they would take what is for images."""
_GRACE: Final = 5
"""Seconds of CPU time between the signal for the limit and the end."""
_ENVIRONMENT: Final = {"MALLOC_ARENA_MAX": "1"}
"""For the same reason: each arena takes 64 MiB of address space."""


def command(
    *words: str, memory: int, cpu: int, file_size: int, readable: Sequence[int] = (), writable: Sequence[int] = ()
) -> list[str]:
    """The command that runs the program `words[0]`, a path, with these limits; it dies with us.

    `memory`: bytes of address space; `cpu`: seconds of it; `file_size`: bytes of any file that it writes. `readable`
    and `writable` are descriptors that it inherits and may open again. Its environment holds nothing of ours.
    """
    limits = {"parent": os.getpid(), "memory": memory, "cpu": cpu, "file_size": file_size}
    files = {"readable": list(readable), "writable": list(writable)}
    return [sys.executable, "-I", "-B", "-m", __name__, json.dumps(limits | files), *words]


def main(limits: dict[str, Any], words: list[str]) -> None:
    """Shut the door and exec. Raises OSError."""
    die_with(limits["parent"])
    isolate(limits["readable"], limits["writable"])
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_STACK, _STACK),
        (resource.RLIMIT_FSIZE, limits["file_size"]),
        (resource.RLIMIT_AS, limits["memory"]),
    ):
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    # The signal of the soft limit tells what happened; that of the hard one could have come from anybody.
    most, hard = limits["cpu"], resource.getrlimit(resource.RLIMIT_CPU)[1]
    last = most + _GRACE if hard == resource.RLIM_INFINITY else min(most + _GRACE, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (min(most, last), last))
    os.execve(words[0], words, _ENVIRONMENT)  # noqa: S606 - a list of words, and no shell


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
