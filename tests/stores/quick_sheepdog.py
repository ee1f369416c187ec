"""The Sheepdog driver, less patient, for tests."""

from typing import ClassVar

from glimpse.stores.sheepdog import Sheepdog


class Quick(Sheepdog):
    """Some seconds in place of minutes."""

    patience: ClassVar[float] = 2.0
    lease: ClassVar[float] = 4.0
