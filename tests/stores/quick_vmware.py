"""The VMware store with little patience, short leases, small pages, and a look at the room each time."""

from typing import ClassVar

from glimpse.stores.vmware import VMware


class Quick(VMware):
    """For tests that wait for what takes long."""

    patience: ClassVar[float] = 2.0
    lease: ClassVar[float] = 4.5
    page: ClassVar[int] = 3
    fresh: ClassVar[float] = 0.0
