"""The GridFS driver, less patient, for tests in which the server does not answer."""

from typing import ClassVar

from glimpse.stores.gridfs import GridFS


class Quick(GridFS):
    """Some seconds in place of minutes."""

    patience: ClassVar[float] = 3.0
    lease: ClassVar[float] = 6.0
