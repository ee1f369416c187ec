"""Secrets in a task come out nowhere: a word of each stands in every place, and everything fails that can.

What is looked at is all that leaves a worker: events, answers, and whatever is logged or printed.
"""

import base64
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from glimpse import worker
from glimpse.settings import Addresses, Transfers
from glimpse.streams import CHUNK
from glimpse.tasks import Fetch, HttpOrigin, Look
from glimpse.testing import faults
from glimpse.testing.bodies import noise
from glimpse.testing.faults import Reply, Server
from glimpse.testing.proxies import Http, Manner, Socks5
from glimpse.testing.workbench import LOOPBACK, PATIENT, Told, Workbench

DATA = noise(CHUNK)
LOGIN = {"username": "sentinel-user", "password": "sentinel-password"}
PROXY_LOGIN = ("sentinel-proxy-user", "sentinel-proxy-password")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Signs the servers' certificates, and the client's."""
    return trustme.CA()


@pytest.fixture(scope="module")
def pair(authority: trustme.CA) -> dict[str, str]:
    """The client's certificate and key."""
    made = authority.issue_cert("robot@mirror.example")
    return {
        "tls.crt": made.cert_chain_pems[0].bytes().decode(),
        "tls.key": made.private_key_pem.bytes().decode(),
    }


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """What a server with a certificate for this machine needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@dataclass
class Scene:
    """A server, a proxy, and a task with a secret in every place."""

    bench: Workbench
    web: Server
    proxy: Http | Socks5
    origin: dict[str, Any]
    settings: dict[str, Any]

    def words(self) -> set[str]:
        """What must not come out."""
        held = [self.origin[place] for place in ("secret", "headers", "proxy")]
        values = [value for place in held for value in place.values()] + [self.origin["certificate"]["tls.key"]]
        words = {word for value in values for word in value.split() if len(word) > 7}
        for username, password in (tuple(LOGIN.values()), PROXY_LOGIN):
            words.add(base64.b64encode(f"{username}:{password}".encode()).decode())
        return words - {"-----BEGIN", "-----END", "KEY-----", "PRIVATE"} | {"sentinel"}

    def task(self) -> Fetch:
        """To fetch from the server through the proxy."""
        held = {
            place: {key: SecretStr(value) for key, value in self.origin[place].items()}
            for place in ("secret", "headers", "certificate", "proxy")
        }
        options = {"addresses": LOOPBACK, "transfers": PATIENT, **self.settings}
        return Fetch(
            attempt="a1",
            record=self.bench.record(),
            origin=HttpOrigin(**{**self.origin, **held}),
            limit=1 << 40,
            stores=(self.bench.store("a"),),
            **options,
        )


def refuse(manner: Manner) -> Callable[[Scene], None]:
    """The proxy behaves so."""

    def prepare(scene: Scene) -> None:
        scene.proxy._manner = manner

    return prepare


def reply(*replies: Reply) -> Callable[[Scene], None]:
    """The server answers so."""
    return lambda scene: scene.web.serve("/a", *replies)


def origin(**changes: Any) -> Callable[[Scene], None]:
    """The task has this in place of what is right."""

    def prepare(scene: Scene) -> None:
        for place, value in changes.items():
            old = scene.origin.get(place)
            scene.origin[place] = {**old, **value} if isinstance(old, dict) else value

    return prepare


def closed() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def echo(scene: Scene) -> None:
    """The server sends back, in every place, what it was sent; it knows, since we know."""
    heard = "sentinel-password sentinel-header " + scene.origin["secret"]["password"]
    scene.web.serve(
        "/a", Reply(raw=f"HTTP/1.1 500 {heard}\r\nX: {heard}\r\nLocation: /{heard}\r\n\r\n{heard}".encode())
    )


def withheld(scene: Scene) -> None:
    """The server wants what it may not have."""
    scene.web.serve("/a", Reply(b"sentinel", 401))
    origin(secret_hosts=("mirror.example",), headers_hosts=("mirror.example",))(scene)


WAYS: dict[str, Callable[[Scene], None]] = {
    **{
        f"status {status}": reply(Reply(b"sentinel", status))
        for status in (400, 401, 403, 404, 407, 416, 429, 500, 503)
    },
    "an echo": echo,
    "no HTTP": reply(Reply(raw=b"sentinel\r\n\r\n")),
    "a broken head": reply(Reply(raw=b"HTTP/1.1 200 OK\r\nsentinel\r\n\r\n")),
    "a length that is none": reply(Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: sentinel\r\n\r\n")),
    "a coding": reply(Reply(DATA, headers={"Content-Encoding": "sentinel"})),
    "an early end": reply(Reply(DATA, cut=1000)),
    "an early end in chunks": reply(Reply(DATA, cut=1000, chunked=100)),
    "a reset": reply(Reply(DATA, cut=1000, reset=True)),
    "a length that lies": reply(Reply(DATA, length=1000)),
    "silence": reply(Reply(DATA, stall_head=True)),
    "a redirect to a circle": reply(Reply.redirect("/a?signature=sentinel")),
    "a redirect to no URL": reply(Reply.redirect("http://sentinel:sentinel@127.0.0.1/")),
    "a redirect elsewhere": reply(Reply.redirect("http://10.0.0.1/?signature=sentinel")),
    "a redirect to another port": lambda scene: scene.web.serve(
        "/a", Reply.redirect(f"https://127.0.0.1:{closed()}/a")
    ),
    "a certificate of nobody's": origin(ca_bundle=None),
    "a bundle that is none": origin(ca_bundle="sentinel"),
    "a token with a line break": origin(secret={"token": "sentinel\r\nX: y"}),
    "a token beyond ASCII": origin(secret={"token": "sentinel-\u20ac"}),
    "a header with a line break": origin(headers={"X-Other": "sentinel\r\nX: y"}),
    "a header beyond Latin-1": origin(headers={"X-Other": "sentinel-\u20ac"}),
    "a header that is ours": origin(headers={"Range": "sentinel"}),
    "Authorization twice": origin(headers={"Authorization": "sentinel"}),
    "hosts that are others'": withheld,
    "a key that is none": origin(certificate={"tls.key": "sentinel"}),
    "a certificate that is none": origin(certificate={"tls.crt": "sentinel"}),
    "a key and no more": origin(
        certificate={"tls.crt": "-----BEGIN CERTIFICATE-----\nsentinel\n-----END CERTIFICATE-----"}
    ),
    "a proxy that is none": origin(proxy={"address": "sentinel"}),
    "a proxy with credentials": origin(proxy={"address": "http://sentinel:sentinel@127.0.0.1:1"}),
    "a proxy of no name": origin(proxy={"address": "http://sentinel.invalid:3128"}),
    "a proxy inside": origin(proxy={"address": "http://sentinel.svc:3128"}),
    "a proxy that is away": origin(proxy={"address": f"http://127.0.0.1:{closed()}"}),
    "a proxy that wants another login": origin(proxy={"password": "sentinel-wrong-password"}),
    "a proxy whose login is half": origin(proxy={"password": ""}),
    "a proxy of others' hosts": origin(proxy_hosts=("mirror.example",)),
    "a proxy that refuses": refuse(Manner(says=b"HTTP/1.1 403 sentinel\r\n\r\nsentinel")),
    "a proxy that fails": refuse(Manner(says=b"HTTP/1.1 502 sentinel\r\n\r\nsentinel")),
    "a proxy that speaks something else": refuse(Manner(begins=b"sentinel sentinel")),
    "a proxy that is silent": refuse(Manner(silent=True)),
    "a proxy that hangs up": refuse(Manner(says=b"")),
    "an address that is forbidden": lambda scene: scene.settings.update(addresses=Addresses()),
    "a port that is forbidden": origin(urls=("https://127.0.0.1:25/a?signature=sentinel",)),
    "a URL that is none": origin(urls=("https://sentinel:sentinel@127.0.0.1/a?signature=sentinel",)),
    "a name that is none": origin(urls=("https://mirror.invalid/a?signature=sentinel",)),
    "a server that is away": origin(urls=(f"https://127.0.0.1:{closed()}/?signature=sentinel",)),
    "bytes that are others": lambda scene: scene.settings.update(checksum=f"sha256:{'0' * 64}"),
}
"""Ways to fail."""


@pytest.fixture
def kind() -> str:
    """The proxy's."""
    return "http"


@pytest.fixture
def scene(
    kind: str, bench: Workbench, authority: trustme.CA, pair: dict[str, str], tls: ssl.SSLContext
) -> Iterator[Scene]:
    """All is right."""
    kinds: dict[str, Callable[[], Http | Socks5]] = {
        "http": lambda: Http(login=PROXY_LOGIN),
        "https": lambda: Http(login=PROXY_LOGIN, tls=tls),
        "socks5": lambda: Socks5(login=PROXY_LOGIN),
    }
    with faults.Server(tls) as web, kinds[kind]() as proxy:
        web.serve("/a", Reply(DATA))
        proxy_login = {"username": PROXY_LOGIN[0], "password": PROXY_LOGIN[1]}
        yield Scene(
            bench,
            web,
            proxy,
            origin={
                "urls": (web.url("/a?signature=sentinel"),),
                "ca_bundle": authority.cert_pem.bytes().decode(),
                "secret": dict(LOGIN),
                "headers": {"X-Secret": "sentinel-header", "Cookie": "sentinel-cookie"},
                "certificate": dict(pair),
                "proxy": {"address": proxy.url, **proxy_login},
            },
            settings={"transfers": Transfers(connect_timeout=2, idle_timeout=3, redirects=3)},
        )


@pytest.fixture
def everything(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[Told], str]:
    """All that has left, as one text; every logger says all it can, but for the one that a worker silences too."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.ERROR, "urllib3")

    def gather(told: Told) -> str:
        lines = [event.line().decode() for event in (*told.events, told.answer)]
        return "\n".join([*lines, caplog.text, *capfd.readouterr()])

    return gather


KINDS = ["http", "https", "socks5"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_right(scene: Scene, everything: Callable[[Told], str]) -> None:
    """The control: what the ways below break does work, each secret is used, and none comes out."""
    told = scene.bench.do(scene.task())
    assert told.stored == {"a"}, told.answer
    [request] = scene.web.requests
    assert "sentinel-header" in str(request.headers)
    assert base64.b64encode(b"sentinel-user:sentinel-password").decode() in request.headers["authorization"]
    assert request.path.endswith("sentinel")
    text = everything(told)
    assert not [word for word in scene.words() if word in text]


@pytest.mark.parametrize(
    ("kind", "way"), [(kind, way) for kind in KINDS for way in WAYS if kind == "http" or "a proxy" in way]
)
def test_no_failure_tells_a_secret(scene: Scene, everything: Callable[[Told], str], way: str) -> None:
    """Whatever fails, the task ends with a reason, and no secret is in it or beside it."""
    WAYS[way](scene)
    told = scene.bench.do(scene.task())
    assert told.reason, told.answer
    text = everything(told)
    assert told.message in text.replace("\\\\", "\\").replace('\\"', '"')
    assert not [word for word in scene.words() if word in text]


def test_what_a_crash_prints_is_scrubbed(scene: Scene) -> None:
    """A traceback may hold any form of a secret: as it is, as Python writes it, a line of it, or as a login."""
    task = scene.task()
    assert isinstance(task.origin, HttpOrigin)
    forms = [
        *(value for place in ("secret", "headers", "certificate", "proxy") for value in scene.origin[place].values()),
        *(repr(value) for value in scene.origin["certificate"].values()),
        *scene.origin["certificate"]["tls.key"].splitlines(),
        *(base64.b64encode(":".join(login).encode()).decode() for login in (tuple(LOGIN.values()), PROXY_LOGIN)),
        f"ValueError: Invalid header value b'Bearer {LOGIN['password']}'",
        scene.origin["urls"][0],
    ]
    for form in forms:
        for each in (task, Look(origin=task.origin)):
            text = worker._scrubbed(f"Traceback\n  x = {form}\nE: {form!r}", each)
            assert not [word for word in scene.words() if word in text], form


def test_a_task_shows_no_secret_but_on_its_line(scene: Scene) -> None:
    """A task can be printed and dumped; only the line that goes to the worker has them all."""
    task = scene.task()
    shown = repr(task) + str(task) + task.model_dump_json() + str(task.model_dump())
    words = scene.words() - {"sentinel"}
    assert not [word for word in words if word in shown]
    line = task.line().decode()
    assert all(word in line for word in words if not word.startswith("c2VudGluZWw"))
