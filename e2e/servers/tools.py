"""Programs that a machine has or lacks.

A missing program is a fact about the machine, not a failure of ours, so it has an error of its own that says how
to get it; tests turn it into a skip or a failure.
"""

import shutil


class Missing(Exception):  # noqa: N818 - nothing went wrong: the machine lacks a program
    """A program is not on this machine; the message says how to get it."""


def tool(name: str, package: str) -> str:
    """The path of a program. Raises Missing, naming the Debian package that has it."""
    path = shutil.which(name, path=None) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"{name} is not installed; Debian has it in the package {package}")
    return path
