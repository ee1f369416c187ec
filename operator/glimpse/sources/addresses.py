"""Where a tenant's URL may lead: names are resolved once, every address is checked, and only those are connected to.

What is fetched can be downloaded by the tenant, so without this an Image could read the cluster's inner services and
the cloud's metadata. The lists are those of IANA's special-purpose registries (RFC 6890) and the metadata addresses of
the cloud providers.
"""

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from glimpse.problems import SourceForbidden, SourceUnavailable
from glimpse.settings import Addresses

Address = tuple[socket.AddressFamily, Any]
"""Family and socket address: what can be connected to."""
_Address = IPv4Address | IPv6Address

_DENIED: Final = {
    ip_network(network): what
    for what, networks in {
        "a cloud's metadata": ("169.254.169.254/32", "168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128"),
        "this machine": ("0.0.0.0/8", "127.0.0.0/8", "::/128", "::1/128"),
        "a link-local address": ("169.254.0.0/16", "fe80::/10", "fec0::/10"),
        "a private network": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
        "a carrier's shared network": ("100.64.0.0/10",),
        "a multicast address": ("224.0.0.0/4", "ff00::/8"),
        "a reserved address": (
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("240.0.0.0/4", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16"),
        ),
    }.items()
    for network in networks
}

_INNER_NAMES: Final = (".svc", ".cluster.local", ".localhost", ".internal")
"""Endings of names that only mean something inside a cluster or a cloud, `metadata.google.internal` among them."""
_LOCAL_NAME: Final = ".localhost"
"""This machine, which its network decides about (RFC 6761 6.3)."""

_INNER: Final = "an inner service"
_GLOBAL: Final = IPv6Network("2000::/3")
"""All that is given out of IPv6; the rest is special, or may become so."""
_TRANSLATED: Final = tuple(map(IPv6Network, ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
"""IPv4-compatible, SIIT (RFC 2765) and NAT64 (RFC 6052): the last 32 bits are an IPv4 address."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""What stands before the IPv4 address in an interface's identifier, RFC 5214 6.1."""


class Policy:
    """The rules of one installation."""

    def __init__(self, addresses: Addresses) -> None:
        self._rules = addresses
        self._names = [name.lower().rstrip(".") for name in addresses.allow_names]
        self._ports = [_span(ports) for ports in addresses.ports]
        self._no_ports = [_span(ports) for ports in addresses.deny_ports]

    def scheme(self, scheme: str | None) -> None:
        """Raises SourceForbidden unless URLs of this scheme may be fetched."""
        if scheme not in self._rules.schemes:
            raise SourceForbidden(
                f"images may not come over {scheme}; an administrator can allow it in GLIMPSE_ADDRESSES__SCHEMES"
            )

    def admit(self, host: str, port: int, name: str = "") -> list[Address]:
        """Everything that `host` leads to, in the resolver's order, all of it checked; `name`: of it in messages.

        Connect to these and do not look the name up again. Raises SourceForbidden if one of them is denied, and
        SourceUnavailable if the name leads nowhere.
        """
        shown = name or host
        self._check_port(port, shown)
        self._check_host(host, shown)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
        except (OSError, UnicodeError) as error:
            if self._inner(host):  # who asks must not learn what there is
                raise _forbidden(shown, _INNER) from None
            raise SourceUnavailable(f"the name {'of ' * bool(name)}{shown} cannot be resolved") from error
        reals = {real for *_, real, _ in found if real}  # a short name in full, or what an alias stands for
        for real in reals:
            if _listed(real, self._rules.deny_hosts):
                raise _denied(shown)
        allowed = _listed(host, self._names)
        inner = self._inner(host) or any(
            self._inner(real) for real in reals if not (allowed and real.lower().startswith(f"{host.lower()}."))
        )
        for *_, place in found:
            if why := self.refusal(ip_address(str(place[0]).partition("%")[0]), inner=inner):
                raise _forbidden(shown, why)
        return [(family, place) for family, _, _, _, place in found]

    def _check_port(self, port: int, shown: str) -> None:
        if not _within(port, self._ports) or _within(port, self._no_ports):
            raise SourceForbidden(
                f"{shown}: port {port} is none that images may come from; an administrator can allow it with "
                "GLIMPSE_ADDRESSES__PORTS and GLIMPSE_ADDRESSES__DENY_PORTS"
            )

    def _check_host(self, host: str, shown: str) -> None:
        """What can be told from the name alone."""
        if _listed(host, self._rules.deny_hosts):
            raise _denied(shown)
        if self._rules.allow_hosts and not _listed(host, self._rules.allow_hosts):
            raise SourceForbidden(
                f"{shown} is none of the hosts that images may come from; an administrator can allow it in "
                "GLIMPSE_ADDRESSES__ALLOW_HOSTS"
            )
        if self._inner(host) and not _listed(host, [_LOCAL_NAME]):
            raise _forbidden(shown, _INNER)

    def refusal(self, address: _Address, *, inner: bool = False) -> str | None:
        """What the address is that it is denied, or None. With `inner`, only this machine can pass, if allowed."""
        forms = _forms(address)
        for form in forms:
            if any(form in network for network in self._rules.deny):
                return "a network that this installation denies"
            if inner and not form.is_loopback:
                return _INNER
            if any(form in network for network in self._rules.allow):
                continue
            for network, what in _DENIED.items():
                if form in network:
                    return what
            if isinstance(form, IPv6Address) and form not in _GLOBAL and not _translated(form):
                return "a reserved address"
        return None

    def _inner(self, host: str) -> bool:
        """Whether it is a name of the cluster or the cloud that nobody has allowed."""
        return _listed(host, _INNER_NAMES) and not _listed(host, self._names)


def _listed(host: str, names: Iterable[str]) -> bool:
    """Whether a host is one of these, or ends like one that begins with a dot."""
    name = host.rstrip(".").lower()
    return any(f".{name}".endswith(known) if known[:1] == "." else name == known for known in names)


def _span(ports: str) -> range:
    first, _, last = ports.partition("-")
    return range(int(first), int(last or first) + 1)


def _within(port: int, spans: Iterable[range]) -> bool:
    return any(port in span for span in spans)


def _denied(shown: str) -> SourceForbidden:
    return SourceForbidden(f"{shown} is a host that this installation denies, in GLIMPSE_ADDRESSES__DENY_HOSTS")


def _forbidden(shown: str, why: str) -> SourceForbidden:
    way = "name in GLIMPSE_ADDRESSES__ALLOW_NAMES" if why == _INNER else "network in GLIMPSE_ADDRESSES__ALLOW"
    return SourceForbidden(
        f"{shown} leads to {why}, where images may not come from; an administrator can allow the {way}"
    )


def _forms(address: _Address) -> list[_Address]:
    """The address, and the IPv4 address that it is another spelling of, or that a gateway makes of it."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address, address.sixtofour]
    if _translated(address) or int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return [address, IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]


def _translated(address: IPv6Address) -> bool:
    return int(address) > 1 and any(address in network for network in _TRANSLATED)
