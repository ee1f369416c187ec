"""The rbd store, with less patience and short pages."""

from typing import ClassVar

from glimpse.stores.rbd import RBD


class Quick(RBD):
    """Gives up sooner."""

    patience: ClassVar[float] = 3.0
    page: ClassVar[int] = 3
