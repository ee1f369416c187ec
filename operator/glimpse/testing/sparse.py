"""The contract of a store in which zeros take no room, besides the contract of every store.

There a large image costs a test nothing, so what counts in 32 bits is found out.
"""

from collections.abc import Callable
from typing import ClassVar

import pytest

from glimpse.stores import Sparse, Store
from glimpse.streams import CHUNK
from glimpse.testing.bodies import Islands, noise, record_of
from glimpse.testing.stores import KEY, StoreFixtures, put, read


class LargeContract(StoreFixtures):
    """What a store promises of images over 4 GiB. A subclass gives the fixtures of StoreFixtures."""

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_goes_beyond_4_gib(self, store: Store, known: bool) -> None:
        """Of 4 GiB and some, nearly all zeros, what lies about the border comes back, and what lies at the ends."""
        edge = 1 << 32
        islands = {0: noise(1000), edge - 70_000: noise(140_000, 1), edge + 3 * CHUNK + 5: noise(1000, 2)}
        body = Islands(islands, known=known)
        store.put(KEY, "a1", body, lambda: record_of(KEY))
        assert store.stat(KEY).size == body.length
        for offset, length in ((0, 2000), (edge - 80_000, 160_000), (edge, 10), (edge + CHUNK, 3 * CHUNK)):
            assert read(store, KEY, offset, length) == body.part(offset, length)
        assert read(store, KEY, body.length - 2000) == body.part(body.length - 2000, 2000)
        assert read(store, KEY, body.length) == b""


class SparseContract(LargeContract):
    """What a store promises that is Sparse. A subclass gives `taken` as well."""

    coarse: ClassVar[int] = 8 * CHUNK
    """Bytes of the smallest thing that the store keeps, or less: what is in one counts as a whole."""

    @pytest.fixture
    def taken(self) -> Callable[[str], int]:
        """Tells the bytes that an object takes, looked at around the store."""
        raise NotImplementedError

    def test_leaves_zeros_out(self, store: Store, taken: Callable[[str], int]) -> None:
        """Zeros in the middle and at the end take no room, and the length counts them."""
        assert isinstance(store.driver, Sparse)
        assert 0 < store.driver.hole <= self.coarse
        data = noise(1000) + bytes(4 * self.coarse) + noise(1000) + bytes(4 * self.coarse)
        put(store, KEY, data)
        assert store.stat(KEY).size == len(data)
        assert taken(KEY) <= 3 * self.coarse
        assert read(store, KEY) == data
