# ruff: noqa: RUF001 - letters and digits that look like others are the point
"""The address policy against the usual ways around it: none of them gets a connection, asked for or redirected to.

The forbidden server really listens, on every address of this machine; a control shows that each spelling that can
lead to it does, where the policy allows it.
"""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

import pytest
from tests.sources.conftest import Ask, drain

from glimpse.problems import InvalidConfiguration, Problem, SourceForbidden, SourceNotFound, SourceRefused
from glimpse.settings import Addresses
from glimpse.testing.faults import Reply, Server

NOTHING = Addresses.model_validate({"allow": ["127.0.0.2/32"]})
"""Only the server that redirects can be asked."""
ALL = Addresses.model_validate(
    {"allow": ["127.0.0.0/8", "0.0.0.0/8", "::/127"], "allow_names": [".svc", ".cluster.local", ".internal"]}
)

LIVE = {
    "plain": "http://127.0.0.1:{port}/",
    "another address of loopback": "http://127.255.255.254:{port}/",
    "nothing": "http://0.0.0.0:{port}/",
    "zero": "http://0:{port}/",
    "decimal": "http://2130706433:{port}/",
    "octal": "http://0177.0.0.1:{port}/",
    "octal with many zeros": "http://0000177.0000.0000.0001:{port}/",
    "octal in one": "http://017700000001:{port}/",
    "hexadecimal": "http://0x7f.0x0.0x0.0x1:{port}/",
    "hexadecimal in one": "http://0x7F000001:{port}/",
    "hexadecimal and decimal": "http://0x7f.1:{port}/",
    "two parts": "http://127.1:{port}/",
    "three parts": "http://127.0.1:{port}/",
    "trailing dot": "http://127.0.0.1.:{port}/",
    "decimal with a trailing dot": "http://2130706433.:{port}/",
    "scheme in capitals": "HTTP://127.0.0.1:{port}/",
    "fragment before an at": "http://127.0.0.1:{port}#@good.example/",
    "query before an at": "http://127.0.0.1:{port}?@good.example/",
    "path before an at": "http://127.0.0.1:{port}/@good.example/",
    "dots in the path": "http://127.0.0.1:{port}/../..//good.example/",
    "IPv6": "http://[::1]:{port}/",
    "IPv6 in full": "http://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}/",
    "IPv6 with a tail of IPv4": "http://[::0.0.0.1]:{port}/",
    "IPv6, nothing": "http://[::]:{port}/",
    "mapped": "http://[::ffff:127.0.0.1]:{port}/",
    "mapped in hexadecimal": "http://[::FFFF:7F00:1]:{port}/",
    "mapped in full": "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/",
    "mapped, nothing": "http://[::ffff:0.0.0.0]:{port}/",
    "localhost": "http://localhost:{port}/",
    "localhost in capitals": "http://LOCALHOST:{port}/",
    "localhost in full": "http://localhost.:{port}/",
    "below localhost": "http://good.localhost:{port}/",
    "wildcard DNS": "http://127.0.0.1.nip.example:{port}/",
    "wildcard DNS in hexadecimal": "http://7f000001.nip.example:{port}/",
    "a name that leads here": "http://inward.example:{port}/",
    "the same in capitals": "http://INWARD.Example:{port}/",
    "the same in full": "http://inward.example.:{port}/",
    "a name that leads here over IPv6": "http://inward6.example:{port}/",
    "a name with a mapped address": "http://mapped.example:{port}/",
    "punycode": "http://xn--inwrd-hra.example:{port}/",
    "a service": "http://db.prod.svc:{port}/",
    "a service in full": "http://db.prod.svc.cluster.local.:{port}/",
    "a service in capitals": "http://DB.prod.SVC:{port}/",
    "a short name": "http://db:{port}/",
    "an alias of a service": "http://alias.example:{port}/",
    "metadata by its name": "http://metadata.google.internal:{port}/",
}
"""Spellings that lead to the forbidden server if nobody forbids it."""

DEAD = {
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata, decimal": "http://2852039166/",
    "metadata, octal": "http://0251.0376.0251.0376/",
    "metadata, mapped": "http://[::ffff:a9fe:a9fe]/",
    "metadata over IPv6": "http://[fd00:ec2::254]/",
    "metadata of Alibaba": "http://100.100.100.200/",
    "metadata of Azure": "http://168.63.129.16/",
    "metadata of Oracle": "http://192.0.0.192/",
    "metadata by its short name": "http://metadata/",
    "metadata by another name": "http://instance-data/",
    "one of several addresses": "http://several.example:{port}/",
    "one of several addresses, first": "http://first.example:{port}/",
    "the API server": "https://kubernetes.default.svc/",
    "the API server, in full": "https://kubernetes.default.svc.cluster.local/",
    "a service that is not there": "http://none.prod.svc:{port}/",
    "private": "http://10.0.0.1/",
    "private, as one number": "http://167772161/",
    "carrier": "http://100.64.0.1/",
    "multicast": "http://224.0.0.1/",
    "broadcast": "http://255.255.255.255/",
    "reserved": "http://240.0.0.1/",
    "compatible": "http://[::127.0.0.1]:{port}/",
    "NAT64": "http://[64:ff9b::127.0.0.1]:{port}/",
    "NAT64 of one's own": "http://[64:ff9b:1::7f00:1]:{port}/",
    "6to4": "http://[2002:7f00:1::]:{port}/",
    "Teredo": "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}/",
    "ISATAP": "http://[2606:4700::5efe:127.0.0.1]:{port}/",
    "ISATAP, global": "http://[2606:4700::200:5efe:127.0.0.1]:{port}/",
    "ISATAP, link-local": "http://[fe80::5efe:127.0.0.1]:{port}/",
    "SIIT": "http://[::ffff:0:127.0.0.1]:{port}/",
    "link-local": "http://[fe80::1]:{port}/",
    "site-local": "http://[fec0::1]:{port}/",
    "unique local": "http://[fd00::1]:{port}/",
    "IPv6 multicast": "http://[ff02::1]:{port}/",
    **{f"port {port}": f"http://127.0.0.2:{port}/" for port in (22, 25, 53, 110, 445, 636, 6379, 10250, 2379, 11211)},
}
"""What leads elsewhere, or nowhere, and is refused all the same."""

NO_URL = {
    "zone": "http://[::1%25lo]:{port}/",
    "zone without an escape": "http://[::1%lo]:{port}/",
    "zone of a link-local address": "http://[fe80::1%25lo]:{port}/",
    "zone of a mapped address": "http://[::ffff:127.0.0.1%251]:{port}/",
    "a future address": "http://[v1.127.0.0.1]:{port}/",
    "brackets around IPv4": "http://[127.0.0.1]:{port}/",
    "IPv6 without brackets": "http://::1:{port}/",
    "ideographic full stops": "http://127。0。0。1:{port}/",
    "full-width full stops": "http://127．0．0．1:{port}/",
    "half-width full stops": "http://127｡0｡0｡1:{port}/",
    "full-width digits": "http://１２７.0.0.1:{port}/",
    "circled digits": "http://①②⑦.⓪.⓪.①:{port}/",
    "circled letters": "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "full-width letters": "http://ｌocalhost:{port}/",
    "a soft hyphen": "http://local\u00adhost:{port}/",
    "a joiner": "http://local\u200dhost:{port}/",
    "percent-encoded digits": "http://%31%32%37.0.0.1:{port}/",
    "percent-encoded dots": "http://127%2e0%2e0%2e1:{port}/",
    "percent-encoded letters": "http://%6cocalhost:{port}/",
    "percent-encoded circled digits": "http://%E2%91%A0%E2%91%A1%E2%91%A6.0.0.1:{port}/",
    "percent-encoded nothing": "http://127.0.0.1%00.good.example:{port}/",
    "percent-encoded slash": "http://127.0.0.1%2fgood.example:{port}/",
    "percent-encoded at": "http://good.example%40127.0.0.1:{port}/",
    "somebody at": "http://good.example@127.0.0.1:{port}/",
    "somebody with a password at": "http://good.example:80@127.0.0.1:{port}/",
    "at somebody": "http://127.0.0.1:{port}@good.example/",
    "two at": "http://good.example@127.0.0.1:{port}@good.example/",
    "nobody at": "http://@127.0.0.1:{port}/",
    "backslash": "http://127.0.0.1:{port}\\@good.example/",
    "backslash the other way": "http://good.example\\@127.0.0.1:{port}/",
    "backslash for a slash": "http://127.0.0.1:{port}\\a",
    "backslashes for slashes": "http:\\\\127.0.0.1:{port}/",
    "one of them": "http:/\\127.0.0.1:{port}/",
    "numbers too large": "http://383.0.0.1:{port}/",
    "a number too large": "http://4294967297:{port}/",
    "five parts": "http://127.0.0.0.1:{port}/",
    "a wrong octal": "http://0189.0.0.1:{port}/",
    "an empty part": "http://127..1:{port}/",
    "two trailing dots": "http://127.0.0.1..:{port}/",
    "a dot in front": "http://.127.0.0.1:{port}/",
    "a wildcard": "http://*.localhost:{port}/",
    "a comma": "http://127.0.0.1,good.example:{port}/",
    "a semicolon": "http://127.0.0.1;good.example:{port}/",
    "two ports": "http://127.0.0.1:80:{port}/",
    "a port too large": "http://127.0.0.1:4295032837/",
    "port zero": "http://127.0.0.1:0/",
    "a port with many zeros": "http://127.0.0.1:000{port}/",
    "a port with a sign": "http://127.0.0.1:+{port}/",
    "three slashes": "http:///127.0.0.1:{port}/",
    "one slash": "http:/127.0.0.1:{port}/",
    "a tab in the host": "http://127.0.0.1\t:{port}/",
    "a space in the host": "http://127.0.0.1 :{port}/",
    "FTP": "ftp://127.0.0.1:{port}/",
    "gopher": "gopher://127.0.0.1:{port}/_GET",
    "dict": "dict://127.0.0.1:{port}/d",
    "file": "file:///etc/passwd",
    "a file over there": "file://127.0.0.1/etc/passwd",
    "data": "data:text/plain,x",
    "a wrapped scheme": "view-source:http://127.0.0.1:{port}/",
    "a scheme with a blank": " http://127.0.0.1:{port}/",
    "a line break": "http://127.0.0.1:{port}/\nX",
    "a line break in front": "\nhttp://127.0.0.1:{port}/",
}
"""What is no plain URL, or could be read in two ways."""
RELATIVE = {"three slashes", "one slash", "one of them", "backslashes for slashes", "a scheme with a blank"}
"""In a redirect these may be relative to where they stand: then they lead to nobody else."""

NAMES: Mapping[str, tuple[list[str], str]] = {
    "127.0.0.1.nip.example": (["127.0.0.1"], ""),
    "7f000001.nip.example": (["127.0.0.1"], ""),
    "inward.example": (["127.0.0.1"], ""),
    "inward6.example": (["::1"], ""),
    "mapped.example": (["::ffff:127.0.0.1"], ""),
    "xn--inwrd-hra.example": (["127.0.0.1"], ""),
    "localhost": (["127.0.0.1"], ""),
    "good.localhost": (["127.0.0.1"], ""),
    "db": (["127.0.0.1"], "db.prod.svc.cluster.local"),
    "db.prod.svc": (["127.0.0.1"], "db.prod.svc.cluster.local"),
    "db.prod.svc.cluster.local": (["127.0.0.1"], ""),
    "alias.example": (["127.0.0.1"], "db.prod.svc.cluster.local"),
    "kubernetes.default.svc": (["10.96.0.1"], "kubernetes.default.svc.cluster.local"),
    "kubernetes.default.svc.cluster.local": (["10.96.0.1"], ""),
    "metadata.google.internal": (["127.0.0.1"], ""),
    "metadata": (["169.254.169.254"], "metadata.google.internal"),
    "instance-data": (["169.254.169.254"], "instance-data.ec2.internal"),
    "several.example": (["127.0.0.2", "127.0.0.1"], ""),
    "first.example": (["127.0.0.1", "127.0.0.2"], ""),
}
"""Addresses of names, and the name in full where it is another."""


class Trap:
    """Listens on every address of this machine, hangs up at once, and counts."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._peers: list[int] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                connection.close()
                with self._changed:
                    self._peers.append(peer[1])
                    self._changed.notify_all()

    def caught(self) -> int:
        """Connections since the last time. Ours comes behind all of them, so once it has been seen they have."""
        with socket.socket() as own:  # and no look at names, which a test may have replaced
            own.connect(("127.0.0.1", self.port))
            port = own.getsockname()[1]
            with self._changed:
                assert self._changed.wait_for(lambda: port in self._peers, 30)
                caught = len(self._peers) - 1
                self._peers.clear()
        return caught


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    """The server that nobody may reach."""
    with Trap() as trap:
        yield trap


@pytest.fixture(scope="module")
def guide() -> Iterator[Server]:
    """The one server that may be asked; it redirects."""
    with Server(host="127.0.0.2") as server:
        yield server


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that knows our names, and else what the system's makes of addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        addresses, full = NAMES.get(host.rstrip(".").lower(), ([], ""))
        if not addresses:
            options["flags"] = options.get("flags", 0) | socket.AI_NUMERICHOST
            return real(host, port, *args, **options)
        found = [entry for address in addresses for entry in real(address, port, *args, **options)]
        return [(family, kind, protocol, full, address) for family, kind, protocol, _, address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("name", [*LIVE, *DEAD, *NO_URL])
def test_asked_for(trap: Trap, ask: Ask, name: str) -> None:
    """A URL of a tenant's is refused for good, and nobody gets a connection."""
    url = {**LIVE, **DEAD, **NO_URL}[name].format(port=trap.port)
    with pytest.raises(InvalidConfiguration if name in NO_URL else SourceForbidden):
        ask(url, addresses=NOTHING)
    assert trap.caught() == 0


@pytest.mark.parametrize("name", [name for name, url in {**LIVE, **DEAD, **NO_URL}.items() if "\n" not in url])
def test_redirected_to(trap: Trap, guide: Server, ask: Ask, name: str) -> None:
    """So is what a server of a stranger's redirects to."""
    url = {**LIVE, **DEAD, **NO_URL}[name].format(port=trap.port)
    guide.serve("/a", Reply.redirect(url.encode().decode("latin-1")))
    expected: tuple[type[Problem], ...] = (SourceRefused, SourceForbidden) if name in NO_URL else (SourceForbidden,)
    with pytest.raises((*expected, SourceNotFound) if name in RELATIVE else expected):
        ask(guide.url("/a"), addresses=NOTHING)
    assert trap.caught() == 0


@pytest.mark.parametrize("name", LIVE)
def test_they_do_lead_there(trap: Trap, ask: Ask, name: str) -> None:
    """The control: where it is allowed, each of these spellings reaches the server."""
    with pytest.raises(Problem):
        ask(LIVE[name].format(port=trap.port), addresses=ALL)
    assert trap.caught() == 1


@pytest.mark.parametrize("name", NO_URL)
def test_what_is_no_url_is_none_for_anybody(trap: Trap, ask: Ask, name: str) -> None:
    """It is not the policy that refuses it: no setting lets it pass."""
    with pytest.raises(InvalidConfiguration):
        ask(NO_URL[name].format(port=trap.port), addresses=ALL)
    assert trap.caught() == 0


def test_rebinding_between_check_and_connection(
    trap: Trap, guide: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is connected to; the next hop looks the name up and checks it again."""
    answers = ["127.0.0.2", "127.0.0.1"]

    def getaddrinfo(_host: str, port: int, **_options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    guide.serve("/a", Reply(b"x"))
    assert drain(ask(guide.url("/a", host="rebind.example"), addresses=NOTHING)) == b"x"
    assert answers == ["127.0.0.1"]
    with pytest.raises(SourceForbidden):
        ask(f"http://rebind.example:{trap.port}/", addresses=NOTHING)
    assert trap.caught() == 0


def test_rebinding_between_two_requests(trap: Trap, guide: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere after a redirect to itself is checked anew."""
    answers = ["127.0.0.2", "127.0.0.1"]

    def getaddrinfo(_host: str, port: int, **_options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    guide.serve("/a", Reply.redirect(f"http://rebind.example:{trap.port}/b"))
    with pytest.raises(SourceForbidden, match="this machine"):
        ask(guide.url("/a", host="rebind.example"), addresses=NOTHING)
    assert trap.caught() == 0


def test_who_asks_does_not_learn_what_there_is(ask: Ask) -> None:
    """A service that exists and one that does not are refused in the same words."""
    messages = []
    for name in ("db", "none"):
        with pytest.raises(SourceForbidden) as caught:
            ask(f"http://{name}.prod.svc:8080/", addresses=NOTHING)
        messages.append(caught.value.message.replace(name, ""))
    assert messages[0] == messages[1]
