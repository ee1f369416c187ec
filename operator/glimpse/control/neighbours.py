"""The operator's own neighbourhood: addresses that no tenant's URL may lead to.

Who allows a private network for a mirror in it does not mean the API server and the operator beside it.
"""

import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path

from yarl import URL

from glimpse.settings import Network


def neighbours(server: str, environment: Mapping[str, str], network: Path = Path("/proc/net")) -> list[Network]:
    """The addresses of the API server at the URL `server`, of the one a pod is told of, and of our own interfaces.

    Loopback is not among them: it is denied anyway, and who allows it means it. What cannot be found is left out.
    """
    found = set[str]()
    for host in (URL(server).host, environment.get("KUBERNETES_SERVICE_HOST")):
        with suppress(OSError, UnicodeError):
            found.update(str(place[0]).partition("%")[0] for *_, place in socket.getaddrinfo(host or "", None))
    with suppress(OSError):
        found.update(re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", (network / "fib_trie").read_text()))
    with suppress(OSError):
        found.update(str(IPv6Address(int(line[:32], 16))) for line in (network / "if_inet6").read_text().splitlines())
    return [ip_network(address) for address in sorted(found) if not ip_address(address).is_loopback]
