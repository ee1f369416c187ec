"""The operator and the gateway as processes, each under its own ServiceAccount.

Tests, demo and playground run the programs as an installation does: started by their command, with only the rights
that the shipped RBAC grants.
"""

import contextlib
import http.client
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from servers import Process, Server, ServerError, wait_until
from servers.kube import NAMESPACE, Cluster

Program = Literal["operator", "gateway"]
PROGRAMS: Final[tuple[Program, ...]] = ("operator", "gateway")
LOOPBACK: Final = '["127.0.0.0/8"]'
"""Sources on this machine: an installation denies them, tests and demo allow them by this setting."""


@dataclass(frozen=True)
class Installation:
    """Where the programs answer; URLs without a slash at the end."""

    operator_url: str
    gateway_url: str


class Glimpse(Server[Installation]):
    """Operator and gateway. Either can be killed and started again; both keep their addresses."""

    name: ClassVar[str] = "glimpse"

    def __init__(
        self,
        folder: Path,
        *,
        cluster: Cluster | None = None,
        settings: Mapping[str, str] | None = None,
        detached: bool = False,
        python: Path = Path(sys.executable),
        ca: Path | None = None,
    ) -> None:
        """`cluster` must have the kinds and roles; `settings` are further `GLIMPSE_*` variables, which win.

        `python`: of the environment that they are installed in. `ca`: who has signed the certificate that `settings`
        give to the gateway.
        """
        super().__init__(folder, detached=detached)
        self._cluster = cluster
        self._settings = dict(settings or {})
        self._python = python
        self._ca = ca
        self._ports: dict[str, int] = dict(zip(PROGRAMS, self.ports(2), strict=True))

    @property
    def installation(self) -> Installation:
        """The addresses."""
        scheme = "https" if self._ca else "http"
        return Installation(
            f"http://127.0.0.1:{self._ports['operator']}", f"{scheme}://127.0.0.1:{self._ports['gateway']}"
        )

    def start(self) -> Installation:
        """Start both and wait until both are ready. Raises ServerError with the end of the log."""
        for attempt in (1, 2, 3):
            try:
                for program in PROGRAMS:
                    self.launch(program)
                for program in PROGRAMS:
                    self.await_ready(program)
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "address already in use" in str(error):
                    self._ports = dict(zip(PROGRAMS, self.ports(2, fresh=True), strict=True))
                    continue
                raise
            return self.installation
        raise AssertionError

    def launch(self, program: Program) -> Process:
        """Start one program without waiting; its log goes on in the same file."""
        assert self._cluster is not None, "a restored installation can be stopped, not started"
        # Nothing of the person's own settings may reach the programs.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("GLIMPSE_", "KUBECONFIG"))}
        env |= {
            "GLIMPSE_KUBECONFIG": str(self._cluster.kubeconfig_for(NAMESPACE, f"glimpse-{program}", ttl=30 * 86400)),
            "GLIMPSE_OPERATOR_LISTEN": f"127.0.0.1:{self._ports['operator']}",
            "GLIMPSE_GATEWAY_LISTEN": f"127.0.0.1:{self._ports['gateway']}",
            "GLIMPSE_GATEWAY_URL": self.installation.gateway_url,
            "GLIMPSE_ADDRESSES__ALLOW": LOOPBACK,
            **self._settings,
        }
        # -P: the folder that we start in must not shadow a module.
        return self.spawn(program, [str(self._python), "-P", "-m", "glimpse", program], env=env)

    @contextlib.contextmanager
    def running(self, program: Program) -> Iterator[None]:
        """One of the programs alone, ready, until the end of the block."""
        self.launch(program)
        try:
            self.await_ready(program)
            yield
        finally:
            self.stop()

    def await_ready(self, program: Program, timeout: float = 30) -> None:
        """Wait until one program is ready. Raises ServerError."""
        wait_until(
            f"the {program}", lambda: self.program_ready(program), timeout=timeout, alive=[self.processes[program]]
        )

    def kill(self, program: Program) -> None:
        """SIGKILL to one program; returns when it is gone."""
        self.processes.pop(program).kill()

    def restart(self, program: Program) -> None:
        """Stop one program in order, start it again, wait until it is ready."""
        self.processes.pop(program).stop(grace=15)
        self.launch(program)
        self.await_ready(program)

    def program_ready(self, program: Program) -> bool:
        """Whether `/readyz` of one program answers 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[program], timeout=5)
        if self._ca and program == "gateway":
            context = ssl.create_default_context(cafile=self._ca)
            connection = http.client.HTTPSConnection("127.0.0.1", self._ports[program], timeout=5, context=context)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def ready(self) -> bool:
        """Whether both are ready."""
        return all(self.program_ready(program) for program in PROGRAMS)

    def rss(self) -> dict[str, int]:
        """Resident memory of each program in bytes, without its workers."""
        return {name: process.rss() for name, process in self.processes.items()}

    def describe(self) -> dict[str, str]:
        """Addresses and logs."""
        return {
            "operator": self.installation.operator_url,
            "gateway": self.installation.gateway_url,
            "logs": str(self.folder),
        }

    def state(self) -> dict[str, Any]:
        """The ports."""
        return {"ports": self._ports}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the ports."""
        self._ports = dict(state["ports"])
