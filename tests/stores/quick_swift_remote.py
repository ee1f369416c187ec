"""The same with little patience, for tests in which a server is silent."""

from typing import ClassVar

from glimpse.stores.swift import Swift


class Quick(Swift):
    """For tests."""

    patience: ClassVar[float] = 3.0
    lease: ClassVar[float] = 6.0
    page: ClassVar[int] = 3
    entries: ClassVar[int] = 3
