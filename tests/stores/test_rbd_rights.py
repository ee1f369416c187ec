"""What an rbd store says to who may not use a pool, or not all of it: each cause has words of its own."""

from collections.abc import Iterator
from secrets import token_hex

import pytest
from pydantic import SecretStr
from tests.stores.test_rbd import WATCH, Place, put, started

from glimpse.problems import StoreUnauthorized, StoreUnavailable
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.stores import KEY, read
from servers.ceph import Ceph


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster in memory."""
    yield from started(Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore", options=WATCH))


def by(place: Place, key: str = "", user: str = "glimpse", **caps: str) -> StoreRef:
    """The store by a user with these rights, or with this key, which is not his."""
    if caps:
        user = f"user-{token_hex(4)}"
        key = place.cluster.client(user, **caps)
    ref = place.ref(user=user)
    return ref.model_copy(update={"secret": {"userKey": SecretStr(key or place.key)}})


@pytest.mark.usefixtures("outside")
def test_who_may_only_read(place: Place) -> None:
    """He is told so by a claim and by each probe, with the command that helps; what is there he can read."""
    reading = by(place, mon="profile rbd", osd="profile rbd-read-only pool=images")
    user = reading.config["user"]
    told = (
        f"client.{user} may read the pool images, but not write to it; let it: "
        f"ceph auth caps client.{user} mon 'profile rbd' osd 'profile rbd pool=images'"
    )
    with pytest.raises(StoreUnauthorized) as raised:
        open_store(reading).claim()
    assert raised.value.message == told
    store = open_store(place.ref())
    store.claim()
    put(store, b"image")
    with pytest.raises(StoreUnauthorized) as raised:
        open_store(reading).probe()
    assert raised.value.message == told
    assert read(open_store(reading), KEY) == b"image"
    store.delete(KEY)


@pytest.mark.usefixtures("outside")
def test_who_is_not_known(place: Place) -> None:
    """A wrong key and a wrong user look alike to Ceph."""
    other = place.cluster.client(f"user-{token_hex(4)}", mon="profile rbd", osd="profile rbd")
    for ref in (by(place, key=other), by(place, user="nobody")):
        user = ref.config["user"]
        with pytest.raises(
            StoreUnauthorized, match=f"does not let client.{user} in: .*ceph auth get-key client.{user}"
        ):
            open_store(ref).claim()


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("osd", ["profile rbd pool=theirs", "profile rbd namespace=golden"])
def test_who_may_use_another_place(place: Place, osd: str) -> None:
    """Rights in another pool, or in a namespace of it, are none here; which are needed is said."""
    with pytest.raises(StoreUnauthorized, match=r"the pool images needs .* osd 'profile rbd pool=images'"):
        open_store(by(place, mon="profile rbd", osd=osd)).claim()


@pytest.mark.usefixtures("outside")
def test_a_pool_that_is_missing(place: Place) -> None:
    """The commands that make it are said."""
    ref = place.ref(pool="missing")
    with pytest.raises(StoreUnavailable, match="ceph osd pool create missing && rbd pool init missing"):
        open_store(ref).claim()
