"""The Cinder driver, with less patience, shorter leases and pages, so tests meet their ends."""

from typing import ClassVar

from glimpse.stores.cinder import Cinder


class Quick(Cinder):
    """For tests."""

    patience: ClassVar[float] = 6.0
    settling: ClassVar[float] = 60.0
    lease: ClassVar[float] = 12.0
    page: ClassVar[int] = 3
    block: ClassVar[int] = 1 << 20
