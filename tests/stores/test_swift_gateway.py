"""The Swift store by the Swift API of Ceph's gateway, which is another program than Swift."""

import hmac
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs

import pytest
from tests.stores.swifts import Fixtures, changed, container_of, hidden, laying, ref_to

from glimpse.stores import Store, open_store
from glimpse.tasks import StoreRef
from glimpse.testing.cloneable import CloneableContract
from glimpse.testing.registering import Lay, RegisteringContract
from glimpse.testing.remote import Far, RemoteContract, Restart
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.store_model import check_against_model
from glimpse.testing.stores import KEY, StoreContract, put
from glimpse.testing.wire import Wire
from servers.ceph import Ceph
from servers.require import require
from servers.swift import Cloud
from servers.tools import Missing


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """Ceph with its gateway."""
    server = Ceph(tmp_path_factory.mktemp("ceph"), gateway=True)
    try:
        with server:
            yield server
    except Missing as error:
        require("ceph", str(error))


@pytest.fixture(scope="module")
def gateway(ceph: Ceph) -> Cloud:
    """The Swift API of Ceph's gateway."""
    found = ceph.cluster.gateway
    assert found
    return Cloud(found.url, user=found.swift_user, key=found.swift_key)


class Places(Fixtures):
    """The places in it."""

    against: ClassVar[str] = "radosgw"

    @pytest.fixture
    def cloud(self, gateway: Cloud) -> Cloud:
        """The gateway."""
        return gateway

    @pytest.fixture
    def small(self, gateway: Cloud, outside: Path) -> StoreRef:  # noqa: ARG002 - has the driver
        """A container with a quota."""
        return ref_to(gateway, container_of(gateway, {"X-Container-Meta-Quota-Bytes": str(24 << 20)}))


class TestGateway(Places, StoreContract):
    """What every store promises, by Ceph's gateway."""

    exempt: ClassVar[Mapping[str, str]] = {
        "test_keeps_its_reserve": "it enforces a container's quota and does not show it, so there is no reserve",
    }

    def test_behaves_like_a_dictionary(self, store: Store) -> None:
        """The same with fewer sequences: each call is a dozen requests."""
        check_against_model(store, sequences=6)


class TestResumable(Places, ResumableContract):
    """What a store promises that goes on with a put that died."""

    lag: ClassVar[int] = 12 << 20
    examples: ClassVar[int] = 6
    turns: ClassVar[int] = 4


class TestCloneable(Places, CloneableContract):
    """What a store promises that makes one object of another."""


class TestRegistering(Places, RegisteringContract):
    """What a store promises that holds what others have put into it."""

    @pytest.fixture
    def lay(self, cloud: Cloud, ref: StoreRef) -> Lay:
        """By requests of one's own."""
        return laying(cloud, ref)


class TestRemote(Places, RemoteContract):
    """What a store on a server promises besides."""

    @pytest.fixture
    def far(self, cloud: Cloud, ref: StoreRef) -> Iterator[Far]:
        """The login by a wire that can be cut, and by what it tells all else."""
        with Wire(("127.0.0.1", cloud.port)) as wire:
            url = cloud.auth_url.replace(str(cloud.port), str(wire.port))
            changes = {"config": ref.config | {"authUrl": url}, "driver": "quick-swift-remote"}
            yield Far(ref.model_copy(update=changes), wire)

    @pytest.fixture
    def restart(self, ceph: Ceph) -> Restart:
        """The gateway; the cluster behind it goes on."""
        return ceph.restart_gateway

    @pytest.fixture
    def locked_out(self, ref: StoreRef) -> StoreRef:
        """A key that is wrong."""
        return ref.model_copy(update={"secret": ref.secret | hidden({"key": "wrong-key"})})

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """A container that does not exist."""
        return changed(ref, container="missing")


def test_links_are_more_than_this_release_can_read(gateway: Cloud, outside: Path) -> None:
    """Ceph 16 knows no signature but by SHA-1, which is not made: whoever follows a link is refused."""
    assert outside.is_dir()
    gateway.call("POST", "", {"X-Account-Meta-Temp-URL-Key": "signs-links"})
    ref = ref_to(gateway, container_of(gateway), publicEndpoint=f"http://localhost:{gateway.port}")
    store = open_store(ref.model_copy(update={"secret": ref.secret | hidden({"tempURLKey": "signs-links"})}))
    put(store, KEY, b"bytes")
    url = store.link(KEY, 60, "x.raw")
    assert url
    path, _, query = url.removeprefix(f"http://localhost:{gateway.port}").partition("?")
    expires = parse_qs(query)["temp_url_expires"][0]
    known = hmac.new(b"signs-links", f"GET\n{expires}\n{path}".encode(), "sha1").hexdigest()
    with urllib.request.urlopen(url.replace(parse_qs(query)["temp_url_sig"][0], known), timeout=10) as answer:
        assert answer.read() == b"bytes", "all but the digest is as it should be"
    with pytest.raises(urllib.error.HTTPError, match="403") as raised:
        urllib.request.urlopen(url, timeout=10)
    raised.value.close()
