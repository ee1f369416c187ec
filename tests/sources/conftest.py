"""What tests of the asking share: certificates, and a client that is closed when the test ends."""

import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from glimpse.settings import Addresses, Transfers
from glimpse.sources.client import Answer, Client
from glimpse.tasks import HttpOrigin
from glimpse.testing import faults
from glimpse.testing.faults import Server

LOOPBACK = Addresses.model_validate({"allow": ["127.0.0.0/8", "::1/128"]})
PATIENT = Transfers(connect_timeout=5, idle_timeout=20, redirects=3)
IMPATIENT = PATIENT.model_copy(update={"idle_timeout": 0.5})
"""For servers that fall silent."""

Ask = Callable[..., Answer]
"""`(*urls, **options)`: ask for the first of an origin's URLs."""


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs the certificates of servers and proxies."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """What a server with a certificate for this machine needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(params=["http", "https"])
def web(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server, once in clear and once over TLS."""
    with faults.Server(request.getfixturevalue("tls") if request.param == "https" else None) as server:
        yield server


@pytest.fixture
def plain() -> Iterator[Server]:
    """The server in clear."""
    with faults.Server() as server:
        yield server


@pytest.fixture
def ask(authority: trustme.CA) -> Iterator[Ask]:
    """Asks, trusting the authority. Options are those of HttpOrigin but for the three that are the client's."""
    open_ones: list[Answer | Client] = []

    def start(
        *urls: str,
        addresses: Addresses = LOOPBACK,
        transfers: Transfers = PATIENT,
        cancelled: threading.Event | None = None,
        **more: Any,
    ) -> Answer:
        options = {"ca_bundle": authority.cert_pem.bytes().decode(), **more}
        client = Client(HttpOrigin(urls=urls, **options), addresses, transfers, cancelled or threading.Event())
        open_ones.append(client)
        answer = client.get(urls[0])
        open_ones.append(answer)
        return answer

    yield start
    for one in reversed(open_ones):
        one.close()


def drain(answer: Answer) -> bytes:
    """All of it."""
    return b"".join(iter(answer.read, b""))
