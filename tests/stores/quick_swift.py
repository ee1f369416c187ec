"""The Swift driver with shorter leases, pages and manifests, and more checkpoints, so that tests meet their ends."""

from typing import ClassVar

from glimpse.stores.swift import Swift


class Quick(Swift):
    """For tests."""

    patience: ClassVar[float] = 10.0
    lease: ClassVar[float] = 6.0
    page: ClassVar[int] = 3
    entries: ClassVar[int] = 3
    every: ClassVar[int] = 4 << 20
