"""Drivers as they are installed: entry points, so that another package adds one without a change here."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from glimpse.problems import InvalidConfiguration
from glimpse.stores.driver import Driver


@cache
def installed() -> Mapping[str, EntryPoint]:
    """The drivers of this installation by name, not loaded: the entry points of the group `glimpse.stores`."""
    return MappingProxyType({point.name: point for point in entry_points(group="glimpse.stores")})


def load(name: str) -> type[Driver]:
    """Load one driver; its client library stays untouched. Raises InvalidConfiguration."""
    point = installed().get(name)
    if point is None:
        known = ", ".join(sorted(installed()))
        raise InvalidConfiguration(f"no driver {name!r} is installed for stores; there are: {known or 'none'}")
    _extra(name)  # a worker that is confined later cannot read it any more
    try:
        driver: type[Driver] = point.load()
    except ImportError as error:
        raise lacking(f"the driver {name!r}", name, error, {}) from error
    return driver


@cache
def _extra(driver: str) -> str:
    """How the client library of a driver is installed: by the extra with its name, if its package has one.

    The name that is imported is never taken for a package of PyPI: there it may be somebody else's.
    """
    dist = installed()[driver].dist
    if dist is None:
        return "install it"
    extras = dist.metadata.get_all("Provides-Extra") or ()
    if driver in extras:
        return f"pip install '{dist.name}[{driver}]'"
    return f"install what {dist.name} needs, the package that brings this driver"


def lacking(what: str, driver: str, error: ImportError, libraries: Mapping[str, str]) -> InvalidConfiguration:
    """Names the package and the command; `libraries` as in Packaged."""
    first = (error.name or "").partition(".")[0]
    return InvalidConfiguration(
        f"{what} needs the Python package {error.name!r}, which is not installed where Glimpse runs: "
        f"{libraries.get(first) or _extra(driver)}, and restart it"
    )
