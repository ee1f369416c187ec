"""The address policy: every way to write a forbidden address is refused, and nothing else."""

import socket
from ipaddress import ip_address

import pytest

from glimpse.problems import SourceForbidden, SourceUnavailable
from glimpse.settings import Addresses
from glimpse.sources.addresses import Policy

DEFAULT = Policy(Addresses())

FORBIDDEN = [
    # this machine
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::1", "::"),  # noqa: S104 - addresses, not listeners
    # link-local, and what clouds put there
    *("169.254.169.254", "169.254.0.1", "fe80::1", "fec0::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"),
    # private and shared
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.127.255.255", "fc00::1", "fdff::1"),
    # multicast, broadcast and reserved
    *("224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1", "ff02::1", "192.0.0.192", "198.18.0.1"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "100::1", "64:ff9b:1::1", "2001::1"),
    # the same as other addresses
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "::10.0.0.1"),
    *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.1.2.3", "2002:7f00:1::", "2002:a00:1::1"),
    *("::ffff:0:10.0.0.1", "::ffff:0:127.0.0.1", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1"),
    # what nobody has been given
    *("4000::1", "1::1", "8000::5efe:8.8.8.8", "64:ff9b:2::1", "fe00::1"),
]

PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "169.253.1.1"),
    *("2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"),
    *("::ffff:0:1.1.1.1", "2606:4700::5efe:8.8.8.8"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_forbidden_by_default(address: str) -> None:
    """Nothing inside a cluster, a cloud or this machine is reached."""
    assert DEFAULT.refusal(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_by_default(address: str) -> None:
    """The internet is reached, also through gateways between the two protocols."""
    assert DEFAULT.refusal(ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "allow", "deny", "passes"),
    [
        ("10.1.2.3", ["10.1.0.0/16"], [], True),
        ("10.2.2.3", ["10.1.0.0/16"], [], False),
        ("10.1.2.3", ["10.1.0.0/16"], ["10.1.2.0/24"], False),
        ("10.1.2.3", ["0.0.0.0/0"], [], True),
        ("8.8.8.8", [], ["8.8.8.0/24"], False),
        ("8.8.8.8", ["8.8.8.8/32"], ["8.8.8.0/24"], False),
        ("::ffff:10.1.2.3", ["10.1.0.0/16"], [], True),
        ("64:ff9b::10.1.2.3", ["10.1.0.0/16"], [], True),
        ("64:ff9b::8.8.8.8", [], ["8.8.8.0/24"], False),
        ("64:ff9b::10.1.2.3", ["64:ff9b::/96"], [], False),
        ("fd12::1", ["fd12::/16"], [], True),
    ],
)
def test_settings(address: str, allow: list[str], deny: list[str], passes: bool) -> None:
    """`allow` lifts a default, `deny` adds to them and wins; both see through other spellings of an address."""
    policy = Policy(Addresses.model_validate({"allow": allow, "deny": deny}))
    assert (policy.refusal(ip_address(address)) is None) == passes


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0"),
        *("::ffff:127.0.0.1", "0:0:0:0:0:ffff:7f00:1", "fe80::1%lo"),
        *("localhost", "LOCALHOST"),
    ],
)
def test_spellings_of_this_machine(host: str) -> None:
    """What the resolver makes of a host is what is judged, not how it was written."""
    with pytest.raises(SourceForbidden, match="GLIMPSE_ADDRESSES__ALLOW"):
        DEFAULT.admit(host, 80)


def test_what_is_admitted_is_where_to_connect() -> None:
    """The answer holds addresses, so that no second look-up is needed."""
    policy = Policy(Addresses.model_validate({"allow": ["127.0.0.0/8"]}))
    assert policy.admit("0x7f.1", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]


def resolver(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> list[str]:
    """A resolver that knows these names; the names that it was asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_options: object) -> list[object]:
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in names[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_one_forbidden_address_spoils_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to a public and to an inner address is refused; the message does not tell which it is."""
    resolver(monkeypatch, {"mirror.example": ["1.1.1.1", "10.9.8.7"]})
    with pytest.raises(SourceForbidden, match=r"mirror\.example leads to a private network") as caught:
        DEFAULT.admit("mirror.example", 80)
    assert "10.9.8.7" not in caught.value.message


@pytest.mark.parametrize(
    "name", ["api.team.svc", "api.team.svc.cluster.local", "metadata.google.internal", "METADATA.google.internal."]
)
def test_inner_names_pass_only_by_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A name of the cluster or the cloud is refused whatever networks are allowed; and a name lifts no network."""
    resolver(monkeypatch, {name: ["1.2.3.4"], f"{name}.x": ["1.2.3.4"]})
    for allow in ([], ["1.2.3.0/24"]):
        with pytest.raises(SourceForbidden, match=r"an inner service.*GLIMPSE_ADDRESSES__ALLOW_NAMES"):
            Policy(Addresses.model_validate({"allow": allow})).admit(name, 80)
    ending = "." + name.rstrip(".").rpartition(".")[2].lower()
    for names in ([name], [ending]):
        assert Policy(Addresses(allow_names=names)).admit(name, 80)
    resolver(monkeypatch, {name: ["10.0.0.1"]})
    with pytest.raises(SourceForbidden, match=r"a private network.*GLIMPSE_ADDRESSES__ALLOW$"):
        Policy(Addresses(allow_names=[name])).admit(name, 80)


def test_an_inner_name_that_is_allowed_may_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the resolver's search list adds to it is no other name; what it is an alias of is."""
    policy = Policy(Addresses(allow_names=["mirror.infra.svc"]))
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "mirror.infra.svc.cluster.local", ("1.2.3.4", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [place])
    assert policy.admit("mirror.infra.svc", 80)
    with pytest.raises(SourceForbidden, match="an inner service"):
        policy.admit("alias.example", 80)


@pytest.mark.parametrize(
    ("settings", "host", "passes"),
    [
        ({}, "mirror.example", True),
        ({"allow_hosts": ["mirror.example"]}, "mirror.example", True),
        ({"allow_hosts": ["Mirror.Example."]}, "MIRROR.example.", True),
        ({"allow_hosts": ["mirror.example"]}, "a.mirror.example", False),
        ({"allow_hosts": ["mirror.example"]}, "xmirror.example", False),
        ({"allow_hosts": [".mirror.example"]}, "a.b.mirror.example", True),
        ({"allow_hosts": [".mirror.example"]}, "mirror.example", True),
        ({"allow_hosts": [".mirror.example"]}, "xmirror.example", False),
        ({"allow_hosts": ["mirror.example"]}, "mirror.example.evil.example", False),
        ({"allow_hosts": ["mirror.example"]}, "1.2.3.4", False),
        ({"allow_hosts": ["1.2.3.4"]}, "1.2.3.4", True),
        ({"deny_hosts": ["mirror.example"]}, "mirror.example", False),
        ({"deny_hosts": ["mirror.example"]}, "a.mirror.example", True),
        ({"deny_hosts": [".example"]}, "a.mirror.EXAMPLE.", False),
        ({"deny_hosts": ["mirror.example"], "allow_hosts": [".example"]}, "mirror.example", False),
        ({"deny_hosts": ["mirror.example"], "allow_hosts": [".example"]}, "other.example", True),
    ],
)
def test_hosts(monkeypatch: pytest.MonkeyPatch, settings: dict[str, list[str]], host: str, passes: bool) -> None:
    """With an allow list nothing else passes, and deny wins; what is refused is not even looked up."""
    asked = resolver(monkeypatch, {host: ["1.2.3.4"]})
    policy = Policy(Addresses.model_validate(settings))
    if passes:
        assert policy.admit(host, 80)
        return
    with pytest.raises(SourceForbidden, match=r"GLIMPSE_ADDRESSES__(ALLOW|DENY)_HOSTS"):
        policy.admit(host, 80)
    assert asked == []


def test_an_alias_of_a_denied_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of one's own that stands for a denied one is denied; an allow list speaks of what is asked for."""
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "cdn.example", ("1.2.3.4", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [place])
    with pytest.raises(SourceForbidden, match="GLIMPSE_ADDRESSES__DENY_HOSTS"):
        Policy(Addresses(deny_hosts=["cdn.example"])).admit("alias.example", 80)
    assert Policy(Addresses(allow_hosts=["mirror.example"])).admit("mirror.example", 80)


def test_an_allowed_host_lifts_no_network() -> None:
    """A name is allowed or not; where it leads is another question."""
    with pytest.raises(SourceForbidden, match=r"GLIMPSE_ADDRESSES__ALLOW$"):
        Policy(Addresses(allow_hosts=["10.0.0.1"])).admit("10.0.0.1", 80)


@pytest.mark.parametrize(
    ("settings", "passing", "refused"),
    [
        ({}, (80, 443, 1024, 3128, 8080, 8443, 9000, 50000, 65535), (1, 22, 25, 53, 445, 636, 1023, 2379, 6379, 10250)),
        ({"ports": [8080]}, (8080,), (80, 443, 8081)),
        ({"ports": ["8000-8002", "443"]}, (443, 8000, 8001, 8002), (7999, 8003)),
        ({"deny_ports": []}, (2379, 6379, 10250), (25,)),
        ({"ports": ["1-65535"], "deny_ports": ["25"]}, (22, 6379), (25,)),
        ({"ports": []}, (), (80, 443)),
    ],
)
def test_ports(settings: dict[str, list[object]], passing: tuple[int, ...], refused: tuple[int, ...]) -> None:
    """Those of the web and all that anybody may choose, but for what is known to be something else."""
    policy = Policy(Addresses.model_validate(settings))
    for port in passing:
        assert policy.admit("1.1.1.1", port)
    for port in refused:
        with pytest.raises(SourceForbidden, match=f"port {port} .*GLIMPSE_ADDRESSES__PORTS"):
            policy.admit("1.1.1.1", port)


def test_schemes() -> None:
    """Both by default."""
    for scheme in ("http", "https"):
        DEFAULT.scheme(scheme)
        with pytest.raises(SourceForbidden, match="GLIMPSE_ADDRESSES__SCHEMES"):
            Policy(Addresses(schemes=[])).scheme(scheme)
    Policy(Addresses(schemes=["https"])).scheme("https")


def test_a_short_name_is_judged_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's search list makes inner names of harmless ones; what it made is what counts."""
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "api.team.svc.cluster.local", ("1.2.3.4", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [place])
    with pytest.raises(SourceForbidden, match="an inner service"):
        DEFAULT.admit("api", 80)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", ".", "a..b"])
def test_a_name_that_leads_nowhere_may_do_so_later(host: str) -> None:
    """What cannot be resolved is SourceUnavailable, and never a crash."""
    with pytest.raises(SourceUnavailable, match="cannot be resolved"):
        DEFAULT.admit(host, 80)
