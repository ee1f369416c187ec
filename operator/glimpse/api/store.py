"""The kind `ImageStore`: where an administrator lets bytes live.

The driver's own member is opaque here: its model belongs to the driver, and the operator loads no driver.
"""

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from glimpse.api.base import (
    Condition,
    Duration,
    Int64,
    ListMap,
    Metadata,
    Model,
    ObjectName,
    Quantity,
    Rule,
    Time,
    between,
    exactly_one,
)
from glimpse.api.labels import LabelSelector
from glimpse.api.locations import LocationRule

READ_ONLY: Final = "http"
"""The driver member of a store that is only read from: it takes no bytes, and nothing of ours is in it."""

UNREGISTERED: Final = frozenset({"cinder", "gridfs", "sheepdog", "vmware"})
"""The driver members of stores in which nothing can be registered."""

SOME = "type(self) == int ? self > 0 : self.matches('[1-9]')"
"""That a Quantity is more than nothing."""


class StoreCaBundleRef(Model):
    """Certificates of authorities: every key of a ConfigMap or Secret is PEM. Exactly one member."""

    rules = (exactly_one("configMap", "secret"),)

    config_map: ObjectName | None = None
    """The name of a ConfigMap in the operator's namespace."""
    secret: ObjectName | None = None
    """The name of a Secret in the operator's namespace, with the label `glimpse.dev/use: store`."""


CONFIG_REF: Final = "configRef/"
"""In a driver's `secret`, stands before each key of what the member `configRef` of its configuration names."""


class ConfigRef(Model):
    """A file of configuration that a driver understands, in a ConfigMap or Secret. Exactly one member."""

    rules = (exactly_one("configMap", "secret"),)

    config_map: ObjectName | None = None
    """The name of a ConfigMap in the operator's namespace."""
    secret: ObjectName | None = None
    """The name of a Secret in the operator's namespace, with the label `glimpse.dev/use: store`."""


class StoreSecretRef(Model):
    """A Secret in the operator's namespace, with the label `glimpse.dev/use: store`."""

    name: ObjectName
    """The name of the Secret."""


class Quota(Model):
    """Limits of a store for those who use it."""

    per_namespace: Annotated[Quantity, Rule(SOME, "must be at least one byte")]
    """Bytes that all images of one namespace may keep here."""


class ImageStoreSpec(Model):
    """What you want. Exactly one driver member, besides the fields here."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel, populate_by_name=True)

    weight: Annotated[int, Field(ge=0, le=1000)] = 100
    """Which copy a download prefers: the highest."""
    reserve: Quantity = 0
    """Room that is never filled, also while writing."""
    max_image_size: Annotated[Quantity | None, Rule(SOME, "must be at least one byte")] = None
    """The largest image that this store takes."""
    secret_ref: StoreSecretRef | None = None
    """Credentials, with the keys that the page of the driver names. An edit counts at once."""
    ca_bundle_ref: StoreCaBundleRef | None = None
    """Who has signed the certificate of the store's server. Omitted: the authorities that the machine trusts."""
    quota: Quota | None = None
    """What others may take of it."""
    locations: Annotated[tuple[LocationRule, ...], Field(max_length=16)] = ()
    """Who may register bytes that lie in the store already, with `source.location` of an Image. Omitted: nobody."""
    allowed_namespaces: LabelSelector | None = None
    """Namespaces that may use this store. Omitted: all."""
    probe_interval: Annotated[Duration, between("1s", "24h")] = 60.0
    """How often the store is looked at, as a duration: `60s`."""

    def driver(self) -> tuple[str, dict[str, Any]]:
        """The name of the driver and its member as written, unchecked. Raises ValueError unless there is one."""
        members = self.model_extra or {}
        if len(members) != 1:
            raise ValueError(f"a store has exactly one driver member, this one has {sorted(members) or 'none'}")
        ((name, config),) = members.items()
        return name, config


class Capacity(Model):
    """Room in the store, in bytes."""

    total: Int64 | None = None
    """All of it, where the store can tell."""
    used: Int64 | None = None
    """Used, by anybody."""
    free: Int64 | None = None
    """Left, `reserve` not taken off."""


class StoreSummary(Model):
    """For the columns of `kubectl get`, whose paths cannot shorten."""

    used: Annotated[str | None, Field(max_length=16)] = None
    """Room used, by anybody, as `335 MiB`."""
    free: Annotated[str | None, Field(max_length=16)] = None
    """Room left, as `1.2 TiB`."""


class ImageStoreStatus(Model):
    """What is. Written by the operator alone."""

    observed_generation: int = -1
    """The generation of the spec that this status speaks of."""
    last_handled_reconcile_at: Annotated[str | None, Field(max_length=128)] = None
    """The value of the annotation `glimpse.dev/reconcile-requested-at` that was acted upon last."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), ListMap("type")] = ()
    """`Ready`, `Reconciling`, `Stalled` (kstatus), `InUse` (while a deleted store is held by its images)."""
    driver: Annotated[str | None, Field(max_length=63)] = None
    """The name of the driver, for the column."""
    is_default: bool | None = None
    """Whether Images without `stores` go here, for the column."""
    installation: Annotated[str | None, Field(max_length=128)] = None
    """The owner in the store's marker, once it was written or seen: a store whose marker vanishes is not taken anew."""
    capacity: Capacity | None = None
    """Room in the store."""
    summary: StoreSummary | None = None
    """For the columns of `kubectl get`."""
    images: Int64 | None = None
    """Images that have bytes here, or may have since an attempt began."""
    bytes: Int64 | None = None
    """Bytes of those images."""
    endpoint: Annotated[str | None, Field(max_length=4096)] = None
    """Where the store is."""
    boot_format: Annotated[str | None, Field(max_length=16)] = None
    """The disk format that machines must find in the store to start from it; omitted: they start from none of it."""
    last_probe_time: Time | None = None
    """When it was looked at last."""


class ImageStore(Model):
    """A place for the bytes of images."""

    rules = (Rule("size(self.metadata.name) <= 63", "the name of an ImageStore has at most 63 characters"),)

    metadata: Metadata
    spec: ImageStoreSpec
    """What you want."""
    status: ImageStoreStatus = ImageStoreStatus()
    """What is."""
