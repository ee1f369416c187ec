"""The Swift store by the Swift API of Ceph's gateway, which is another program than Swift."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from tests.stores.swifts import Fixtures, container_of, laying, ref_to

from glimpse.stores import Store
from glimpse.tasks import StoreRef
from glimpse.testing.cloneable import CloneableContract
from glimpse.testing.registering import Lay, RegisteringContract
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.store_model import check_against_model
from glimpse.testing.stores import StoreContract
from servers.ceph import Ceph
from servers.require import require
from servers.swift import Cloud
from servers.tools import Missing


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The Swift API of Ceph's gateway."""
    try:
        with Ceph(tmp_path_factory.mktemp("ceph"), gateway=True) as cluster:
            assert cluster.gateway
            yield Cloud(cluster.gateway.url, user=cluster.gateway.swift_user, key=cluster.gateway.swift_key)
    except Missing as error:
        require("ceph", str(error))


class Places(Fixtures):
    """The places in it."""

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
