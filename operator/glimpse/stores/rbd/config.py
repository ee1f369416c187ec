"""What an ImageStore says of a pool of Ceph: where it is, who one is there, and how images are made."""

from typing import Annotated, Final, Literal

from pydantic import Field

from glimpse.api.base import Model, Rule, exactly_one, immutable
from glimpse.api.store import ConfigRef
from glimpse.stores.rbd.conf import MONITOR, MONITORS

_SAME_NAMESPACE: Final = Rule(
    "has(self.__namespace__) == has(oldSelf.__namespace__)"  # the word is a keyword of CEL
    " && (!has(self.__namespace__) || self.__namespace__ == oldSelf.__namespace__)",
    "namespace cannot be changed: create another ImageStore",
)


class RBDConfig(Model):
    """A pool of a Ceph cluster."""

    rules = (_SAME_NAMESPACE, exactly_one("monitors", "configRef"))

    pool: Annotated[
        str,
        Field(min_length=1, max_length=128),
        Rule("self.matches('^[A-Za-z0-9._-]+$')", "must be the name of a pool, such as images"),
        immutable("pool", "create another ImageStore"),
    ]
    """The pool; it must exist, and RBD must be initialised in it. Images of others in it are left alone."""
    monitors: Annotated[
        tuple[
            Annotated[
                str,
                Field(max_length=300),
                Rule(
                    f"self.matches('{MONITOR}')",
                    "must be a host, such as 10.0.0.1, ceph-1.example.com:6789 or v2:10.0.0.1:13300: "
                    "with a port other than 3300 and 6789, say which protocol is spoken there, v1 or v2",
                ),
            ],
            ...,
        ]
        | None,
        Field(min_length=1, max_length=MONITORS),
    ] = None
    """The monitors of the cluster, one that answers is enough. Exactly one of `monitors` and `configRef`."""
    config_ref: ConfigRef | None = None
    """A ceph.conf, or what Rook keeps of its cluster: monitors and fsid are taken from it, and nothing else."""
    user: Annotated[
        str | None,
        Field(min_length=1, max_length=128),
        Rule(
            "self.matches('^[A-Za-z0-9._-]+$') && !self.startsWith('client.')",
            "must be the name of a user without client. before it",
        ),
    ] = None
    """The user, `glimpse` for `client.glimpse`. Omitted: the key `userID` of the Secret."""
    namespace: Annotated[
        str | None,
        Field(min_length=1, max_length=128),
        Rule("self.matches('^[A-Za-z0-9._-]+$')", "must be the name of a namespace, such as glimpse"),
    ] = None
    """A namespace in the pool, which must exist. Omitted: the one without a name."""
    object_size: Literal["1Mi", "2Mi", "4Mi", "8Mi", "16Mi", "32Mi"] = "8Mi"
    """How large the objects are that an image is cut into; of images that are stored from now on."""
    snapshot: bool = True
    """Whether an image gets the protected snapshot `snap`, from which machines can be cloned."""
