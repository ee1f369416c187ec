"""Sheepdog: one node on its own, where somebody has built it, or an emulator of one.

No distribution has it any more, so nothing of the project needs it; the tests of its store run against an emulator, and
against this too where the environment variable `GLIMPSE_SHEEPDOG` names the program `sheep`, or a cluster as
`host:port`, in which each test takes a prefix of its own.
"""

import os
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from servers import Missing, Server, ServerError, wait_until

_FORMAT, _LOOK = 0x84, 0x14
_STORE = b"plain"


@dataclass(frozen=True)
class Node:
    """Where it is."""

    address: str
    port: int


class Sheepdog(Server[Node]):
    """A cluster of one node, formatted for one copy; or the one that the environment names."""

    name: ClassVar[str] = "sheepdog"
    node: Node

    def __init__(self, folder: Path, *, emulated: bool = False, detached: bool = False) -> None:
        """`emulated`: where the environment names none, an emulator, whose data are in memory."""
        super().__init__(folder, detached=detached)
        self._emulated = emulated

    def start(self) -> Node:
        """Start it. Raises Missing, ServerError."""
        named = os.environ.get("GLIMPSE_SHEEPDOG")
        if not named and not self._emulated:
            raise Missing("no distribution has Sheepdog: GLIMPSE_SHEEPDOG=/path/of/sheep, or host:port, names one")
        if named and not Path(named).exists():
            address, _, port = named.rpartition(":")
            self.node = Node(address, int(port))
            return self.node
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2, 3):
            [port_] = self.ports(1, fresh=attempt > 1)
            self.node = Node("127.0.0.1", port_)
            args: list[str | Path] = [sys.executable, "-m", "glimpse.testing.sheep", str(port_)]
            if named:
                args = [named, "-f", "-n", "-c", "local", "-b", "127.0.0.1", "-p", str(port_), data]
            process = self.spawn("sheep", args)
            try:
                wait_until("sheep", self.ready, timeout=30, alive=[process])
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
            return self.node
        raise AssertionError

    def ready(self) -> bool:
        """Whether it answers; formatted if it is new."""
        try:
            if self._ask(_LOOK, 0x02, bytes(512)) == 0x16:
                # the number of copies stands behind two words of eight bytes
                self._ask(_FORMAT, 0x0A, _STORE + b"\0", struct.pack("<QQB", 0, 0, 1))
            return self._ask(_LOOK, 0x02, bytes(512)) == 0x08
        except OSError:
            return False

    def _ask(self, opcode: int, version: int, data: bytes, rest: bytes = b"") -> int:
        """The result of one request."""
        head = struct.pack("<BBHIII32s", version, opcode, 1, 0, 0, len(data), rest)
        with socket.create_connection((self.node.address, self.node.port), timeout=5) as connection:
            connection.sendall(head + data)
            with connection.makefile("rb") as answer:
                return int.from_bytes(answer.read(48)[16:20], "little")

    def describe(self) -> dict[str, str]:
        """The address."""
        return {"address": f"{self.node.address}:{self.node.port}"}

    def state(self) -> dict[str, Any]:
        """The address."""
        return {"address": self.node.address, "port": self.node.port}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the address."""
        self.node = Node(state["address"], state["port"])
