"""What of the operator's surroundings no URL may lead to."""

from ipaddress import ip_network
from pathlib import Path

from glimpse.control.neighbours import neighbours

FIB = """Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.1.0.0/16 2 0 2
        |-- 10.1.0.0
           /16 link UNICAST
        |-- 10.1.2.3
           /32 host LOCAL
        |-- 10.1.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
"""
INET6 = """00000000000000000000000000000001 01 80 10 80       lo
fd120000000000000000000000000001 02 40 00 80     eth0
"""


def test_api_server_and_interfaces_are_found(tmp_path: Path) -> None:
    """The API server by its URL and as a pod is told of it, and our own addresses; never loopback."""
    (tmp_path / "fib_trie").write_text(FIB)
    (tmp_path / "if_inet6").write_text(INET6)
    found = neighbours("https://10.9.0.1:6443", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path)
    assert set(found) == {ip_network(a) for a in ("10.9.0.1/32", "10.96.0.1/32", "10.1.2.3/32", "fd12::1/128")}


def test_loopback_and_the_unknown_are_left_out(tmp_path: Path) -> None:
    """A server on this machine, a name that leads nowhere, a system without such files: nothing to deny."""
    assert neighbours("https://127.0.0.1:6443", {"KUBERNETES_SERVICE_HOST": "no-such.invalid"}, tmp_path) == []
    assert neighbours("https://[::1]:6443", {}, tmp_path) == []


def test_this_machine_can_be_asked() -> None:
    """The files of the system are read as they are."""
    assert not any(network.is_loopback for network in neighbours("https://localhost:1", {}))
