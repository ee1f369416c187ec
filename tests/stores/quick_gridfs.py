"""The GridFS driver with a short lease and short pages, for tests."""

from typing import ClassVar

from glimpse.stores.gridfs import GridFS


class Quick(GridFS):
    """As patient as a database that is slow on a busy machine needs it."""

    patience: ClassVar[float] = 15.0
    lease: ClassVar[float] = 6.0
    page: ClassVar[int] = 3
