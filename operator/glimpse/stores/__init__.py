"""Where the bytes of images are kept: what a driver is, the Store that callers use in its place, and how one is opened.

Drivers are packages of their own below, and are loaded when a store needs them.
"""

from pydantic import ValidationError

from glimpse.given import wrong
from glimpse.problems import InvalidConfiguration
from glimpse.stores.driver import (
    MARK_LIMIT,
    RECORD_LIMIT,
    Bootable,
    Capacity,
    Cloneable,
    Driver,
    Linkable,
    Local,
    Mark,
    Note,
    Packaged,
    Placed,
    Preloaded,
    Registering,
    Resumable,
    Sendable,
    Sparse,
    Stat,
    Taken,
    Unable,
    Version,
    lasting,
)
from glimpse.stores.entries import Entry, decode, encode, version_of
from glimpse.stores.plugins import installed, load
from glimpse.stores.store import Partial, Store
from glimpse.tasks import StoreRef

__all__ = [
    "MARK_LIMIT",
    "RECORD_LIMIT",
    "Bootable",
    "Capacity",
    "Cloneable",
    "Driver",
    "Entry",
    "Linkable",
    "Local",
    "Mark",
    "Note",
    "Packaged",
    "Partial",
    "Placed",
    "Preloaded",
    "Registering",
    "Resumable",
    "Sendable",
    "Sparse",
    "Stat",
    "Store",
    "Taken",
    "Unable",
    "Version",
    "decode",
    "encode",
    "installed",
    "lasting",
    "load",
    "open_store",
    "version_of",
]


def open_store(ref: StoreRef) -> Store:
    """The store that `ref` describes; nothing is reached yet. Raises InvalidConfiguration with driver and field."""
    driver = load(ref.driver)
    try:
        config = driver.Config.model_validate(ref.config)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in (ref.driver, *fault['loc']))}: {wrong({**fault, 'input': None})}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise InvalidConfiguration(f"store {ref.name}: {faults}") from None
    secret = {name: value.get_secret_value() for name, value in ref.secret.items()}
    return Store(ref, driver(config, secret, ref.ca_bundle))
