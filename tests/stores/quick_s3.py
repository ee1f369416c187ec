"""The S3 driver with little patience, short leases and small pages."""

from typing import ClassVar

from glimpse.stores.s3 import S3


class Quick(S3):
    """For tests."""

    patience: ClassVar[float] = 2.0
    lease: ClassVar[float] = 4.0
    page: ClassVar[int] = 3
