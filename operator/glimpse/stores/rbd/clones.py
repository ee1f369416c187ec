"""An object made of another one, without its bytes being read: a clone, as virtual machines are.

It is one of format 2, of which the original keeps the list itself: so that can be removed first, and waits in the trash
until the last clone is gone.
"""

from typing import Final

from glimpse.ceph import Pool, open_image
from glimpse.problems import NotFound
from glimpse.stores import Unable
from glimpse.stores.rbd.attempts import SNAPSHOT, Attempt
from glimpse.stores.rbd.cluster import Cluster

DEEPEST: Final = 8
"""Images that one may lie on: each is looked at for a block that those above lack, and kernels take 16 at most."""

TRIES: Final = 5
"""How often it is tried, where others who clean up take the clone away as it is made."""


class Origin:
    """An image that is to be cloned, by its name: librbd takes no id, and under the name there may be another soon."""

    def __init__(self, cluster: Cluster, pool: Pool, name: str, image: str) -> None:
        self._cluster, self._pool, self._name, self._image = cluster, pool, name, image
        self._tries = 0

    def clone(self, name: str) -> None:
        """Make one of that name, or none if somebody who cleans up was quicker. Raises NotFound, Unable."""
        import rbd

        self._cluster.bear(self._pool, name)
        try:
            rbd.RBD().clone(self._pool.io, self._name, SNAPSHOT, self._pool.io, name)
        except (rbd.FunctionNotSupported, rbd.OperationNotSupported) as error:
            raise Unable from error
        except rbd.ImageNotFound as error:
            self._check(self._cluster.find(self._pool, self._name))
            self._tries += 1
            if self._tries == TRIES or not self._has_snapshot():
                raise Unable from error

    def confirm(self, made: Attempt) -> None:
        """See that this is a clone of it. Raises NotFound."""
        self._check(made.image.parent_id())

    def _check(self, image: str | None) -> None:
        if image != self._image:
            raise NotFound(f"{self._name} was removed while it was cloned")

    def _has_snapshot(self) -> bool:
        import rbd

        try:
            open_image(self._pool.io, image_id=self._image, snapshot=SNAPSHOT, read_only=True).close()
        except rbd.ImageNotFound:
            return False
        return True
