"""How an rbd store keeps Ceph busy: writes in flight, and an image that grows with what comes."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.stores.test_rbd import WATCH, Place, started

from glimpse.ceph import DEPTH, open_image
from glimpse.stores import open_store
from glimpse.streams import CHUNK
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, read
from servers import Process, wait_until
from servers.ceph import Ceph

BLOCK = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Ceph:
    """A cluster in memory."""
    return Ceph(tmp_path_factory.mktemp("ceph"), objectstore="memstore", options=WATCH)


@pytest.fixture(scope="module")
def place(server: Ceph) -> Iterator[Place]:
    """Its pool."""
    yield from started(server)


def length(place: Place, name: str) -> int:
    """How large an image is, as another client sees it."""
    with place.io() as io, open_image(io, name, read_only=True) as image:
        return int(image.size())


class Watched(Body):
    """A body; how large the image was at each read of a piece of it."""

    def __init__(self, place: Place, data: bytes, *, known: bool = True) -> None:
        self.sizes: list[int] = []

        def look(given: int) -> None:
            if given < len(data):
                self.sizes.append(length(place, f"{KEY}.a1"))

        super().__init__(data, known=known, before=look)


def written(place: Place, name: str) -> int:
    """How many bytes of an image are there, as another client sees it."""
    found = []
    with place.io() as io, open_image(io, name, read_only=True) as image:
        image.diff_iterate(0, image.size(), None, lambda _offset, size, exists: found.append(size * exists))
    return sum(found)


def test_four_writes_are_in_flight(place: Place, server: Ceph) -> None:
    """While an OSD answers nothing, so many blocks more are sent, and one is held that waits: no more are asked for."""
    osd: Process = server.processes["osd"]
    data, stopped = noise(16 * BLOCK), 4 * BLOCK
    given: list[int] = []

    def stop(so_far: int) -> None:
        given.append(so_far)
        if so_far == stopped:
            wait_until("the blocks before", lambda: written(place, f"{KEY}.a1") == stopped, timeout=60)
            osd.signal(signal.SIGSTOP)
            wait_until("the stop of the OSD", osd.stopped, timeout=10)

    store = open_store(place.ref(objectSize="1Mi").model_copy(update={"driver": "rbd"}))
    store.claim()
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(store.put, KEY, "a1", Body(data, before=stop), lambda: record_of(KEY))
        try:
            sent = stopped + DEPTH * BLOCK
            wait_until("the blocks in flight", lambda: put.done() or given[-1:] == [sent], timeout=20)
            assert given[-1] == sent
        finally:
            osd.signal(signal.SIGCONT)
            server.thaw()
        assert put.result(60).size == len(data)
    assert DEPTH == 4
    assert read(store, KEY) == data
    store.delete(KEY)


@pytest.mark.usefixtures("outside")
def test_an_image_grows_by_doubling(place: Place) -> None:
    """Where nobody knows how much will come: each growth is a request, so they are few; in the end it fits."""
    data = noise(40 * BLOCK)
    store = open_store(place.ref(objectSize="1Mi"))
    store.claim()
    body = Watched(place, data, known=False)
    assert store.put(KEY, "a1", body, lambda: record_of(KEY)).size == len(data)
    assert sorted(set(body.sizes)) == [0, *(BLOCK << n for n in range(7))]
    assert body.sizes == sorted(body.sizes)
    assert length(place, KEY) == len(data)
    store.delete(KEY)


@pytest.mark.usefixtures("outside")
def test_an_image_of_a_known_length_grows_once(place: Place) -> None:
    """Then it has its length from the first block on."""
    data = noise(9 * BLOCK + 5)
    store = open_store(place.ref(objectSize="1Mi"))
    store.claim()
    body = Watched(place, data)
    store.put(KEY, "a1", body, lambda: record_of(KEY))
    assert set(body.sizes) == {0, len(data)}
    assert body.sizes.count(0) == BLOCK // CHUNK
    store.delete(KEY)
