"""The Cinder driver for tests in which several want something at once of a Cinder that is one process."""

from typing import ClassVar

from glimpse.stores.cinder import Cinder


class Quick(Cinder):
    """For tests."""

    patience: ClassVar[float] = 30.0
    settling: ClassVar[float] = 60.0
    lease: ClassVar[float] = 60.0
    page: ClassVar[int] = 3
