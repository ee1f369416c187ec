"""Who reads what, as a Lease holds it: gateways say which revisions they read, and the operator removes none of these.

Only files outlive their removal for who has them open; of all other stores a download would get no end. A Lease ends by
itself with the gateway that wrote it.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from glimpse.api.base import GROUP, SECRET_USE
from glimpse.kube import Object

USE: Final = "reading"
"""The value of the label `glimpse.dev/use` of such a Lease."""
SELECTOR: Final = f"{SECRET_USE}={USE}"
KEYS: Final = f"{GROUP}/reading"
"""The annotation: keys of what is read, `uid-revision`, with spaces between."""
MOST: Final = 4000
"""Keys of one Lease; annotations have room for 256 KiB."""
LIFE: Final = 60
"""Seconds that it counts after its last word, by the clocks of gateway and operator, which are not quite the same."""
_FORM: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


def lease(name: str, keys: Iterable[str], now: datetime) -> Object:
    """A Lease that says that these are read."""
    return {
        "metadata": {"name": name, "labels": {SECRET_USE: USE}, "annotations": {KEYS: " ".join(keys)}},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LIFE, "renewTime": now.strftime(_FORM)},
    }


def age(lease: Object, now: datetime) -> float:
    """Seconds since its last word."""
    return (now - datetime.strptime(lease["spec"]["renewTime"], _FORM).replace(tzinfo=UTC)).total_seconds()


def read(lease: Object, uid: str) -> frozenset[int]:
    """The revisions of this Image that it names."""
    keys = (lease["metadata"].get("annotations") or {}).get(KEYS, "").split()
    found = (key.rpartition("-") for key in keys)
    return frozenset(int(number) for image, _, number in found if image == uid and number.isdecimal())
