"""Proxies that others have written: what we make of the protocols is what they make of them."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.sources.conftest import Ask, drain

from glimpse.problems import SourceRefused, SourceUnauthorized, SourceUnavailable
from glimpse.streams import CHUNK
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from servers import wait_until
from servers.require import require_tool

DATA = noise(3 * CHUNK + 17)
LOGIN = ("ada", "s3cret")

Start = Callable[..., str]
"""Starts a proxy that wants the login; its address."""


@pytest.fixture(params=["http", "https"])
def web(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server, in clear and over TLS."""
    with faults.Server(request.getfixturevalue("tls") if request.param == "https" else None) as server:
        server.serve("/a", Reply(DATA))
        yield server


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Tinyproxy or MicroSocks."""
    with ExitStack() as stack:

        def start(kind: str, *settings: str) -> str:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port: int = listener.getsockname()[1]
            if kind == "http":
                lines = (f"Port {port}", "Listen 127.0.0.1", "Timeout 10", f"BasicAuth {' '.join(LOGIN)}", *settings)
                (tmp_path / "tinyproxy.conf").write_text("\n".join((*lines, "")))
                program = require_tool("tinyproxy", "tinyproxy-bin")
                command = [program, "-d", "-c", str(tmp_path / "tinyproxy.conf")]
            else:
                program = require_tool("microsocks", "microsocks")
                command = [program, "-i", "127.0.0.1", "-p", str(port), "-u", LOGIN[0], "-P", LOGIN[1]]
            quiet = subprocess.DEVNULL
            process = stack.enter_context(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))
            stack.callback(process.kill)
            wait_until("the proxy", lambda: listens(port), timeout=30)
            return f"{kind}://127.0.0.1:{port}"

        yield start


def secret(address: str, login: tuple[str, str] | None = LOGIN) -> dict[str, SecretStr]:
    """The Secret of proxyRef."""
    found = {"address": SecretStr(address)}
    if login:
        found |= {"username": SecretStr(login[0]), "password": SecretStr(login[1])}
    return found


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_bytes_come_through(web: Server, start: Start, ask: Ask, kind: str) -> None:
    """With the login they come, in clear and over TLS."""
    assert drain(ask(web.url("/a"), proxy=secret(start(kind)))) == DATA


@pytest.mark.parametrize("login", [None, ("ada", "wrong")], ids=["without", "wrong"])
@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_the_login_is_wanted(start: Start, ask: Ask, kind: str, login: tuple[str, str] | None) -> None:
    """Without it, or with another, they say so in their ways, and a person is told one thing."""
    with pytest.raises(SourceUnauthorized, match=r"the proxy of proxyRef .*in the Secret of proxyRef"):
        ask("http://127.0.0.1:1024/a", proxy=secret(start(kind), login))


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_a_server_that_is_away(start: Start, ask: Ask, kind: str) -> None:
    """Time may mend it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceUnavailable, match="the proxy of proxyRef"):
        ask(f"http://127.0.0.1:{port}/a", proxy=secret(start(kind)))


def test_a_port_that_it_does_not_allow(start: Start, ask: Ask) -> None:
    """Many allow CONNECT to 443 alone, so that is what a message tells of."""
    with pytest.raises(SourceRefused, match="does not allow CONNECT to this server, or to port 1024"):
        ask("http://127.0.0.1:1024/a", proxy=secret(start("http", "ConnectPort 443")))
