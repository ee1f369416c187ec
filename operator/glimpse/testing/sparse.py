"""The contract of a store in which zeros take no room, besides the contract of every store.

There a large image costs a test nothing, so what counts in 32 bits is found out.
"""

import pytest

from glimpse.stores import Store
from glimpse.streams import CHUNK
from glimpse.testing.bodies import Islands, noise, record_of
from glimpse.testing.stores import KEY, StoreFixtures, read


class SparseContract(StoreFixtures):
    """What such a store promises. A subclass gives the fixtures of StoreFixtures."""

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
