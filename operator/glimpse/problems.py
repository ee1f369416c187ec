"""Failures, typed by what to do next: a person must act, or time must pass.

The operator turns a Problem into a condition by its class alone, so every reason of the API is a class here
and nothing has to read messages.

    Problem
    ├── Permanent                 a person must act; Stalled
    │   ├── SourceNotFound        404, 410
    │   ├── SourceUnauthorized    401, 403, 407
    │   ├── SourceRefused         any other 4xx
    │   ├── SourceForbidden       the address policy says no
    │   ├── ChecksumMismatch
    │   ├── ChecksumUnavailable
    │   ├── SignatureInvalid
    │   ├── FormatMismatch        spec.format.disk says one thing, the bytes another; or there are none
    │   ├── UnsafeImage           a backing file, a data file, two formats at once
    │   ├── TooLarge
    │   ├── QuotaExceeded
    │   ├── DecompressionFailed
    │   ├── ConversionFailed
    │   ├── StoreNotFound
    │   ├── StoreReadOnly
    │   ├── StoreRefused          the namespace may not use this store
    │   ├── StoreOwnedByAnother   the marker in the store names another installation
    │   ├── InvalidConfiguration
    │   └── WorkerCrashed         three times on the same bytes
    └── Transient                 time can mend it; tried again
        ├── SourceUnavailable     5xx, 408, 425, 429, network, name resolution
        ├── SourceChanged         other bytes than a moment ago
        ├── StoreUnavailable
        ├── StoreFull
        ├── StoreUnauthorized     credentials rotate, every probe looks again
        ├── StoreConflict         another attempt has committed this key
        ├── WorkerLost            the worker ended without an answer
        ├── SecretNotReadable     missing, without the label, or not bound
        └── DataLost              stored bytes are gone or differ
    NotFound                      a store does not hold the key; never leaves the data path
"""

from collections.abc import Sequence
from typing import ClassVar, Final


class Problem(Exception):  # noqa: N818 - the word of the design; an error says what is wrong, a problem what to do
    """A failure with a reason that is part of the API.

    The message names the thing and the way out. It never holds a secret, a URL's credentials or query, or a
    fetched body.
    """

    reason: ClassVar[str] = "Problem"
    permanent: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """`retry_after`: seconds that the other side asked us to wait, if it did."""
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after

    def __init_subclass__(cls) -> None:
        """Name the reason after the class, so the two cannot differ."""
        cls.reason = cls.__name__


class Permanent(Problem):
    """Nothing is tried again until the spec, a referenced object or the force annotation changes."""

    permanent = True


class Transient(Problem):
    """Tried again, later each time."""


class SourceNotFound(Permanent):
    """The server says that there is no such file."""


class SourceUnauthorized(Permanent):
    """The server wants other credentials."""


class SourceRefused(Permanent):
    """The server refuses the request, and would refuse it again."""


class SourceForbidden(Permanent):
    """The address policy of the installation refuses the address."""


class ChecksumMismatch(Permanent):
    """The bytes are not the ones that the spec names."""


class ChecksumUnavailable(Permanent):
    """The checksum file is missing, or has no line for the image."""


class SignatureInvalid(Permanent):
    """The signature does not prove the checksum file."""


class FormatMismatch(Permanent):
    """The bytes are not in the format that the spec names, or there are none."""


class UnsafeImage(Permanent):
    """The image refers to other files, or pretends to be two things."""


class TooLarge(Permanent):
    """The image is over the limit of the installation or of the store."""


class QuotaExceeded(Permanent):
    """The namespace has used up its share."""


class DecompressionFailed(Permanent):
    """The compressed stream is broken, or grows beyond the limit."""


class ConversionFailed(Permanent):
    """The image cannot be converted."""


class StoreNotFound(Permanent):
    """There is no ImageStore of that name."""


class StoreReadOnly(Permanent):
    """The store takes no bytes."""


class StoreRefused(Permanent):
    """The namespace may not use the store."""


class StoreOwnedByAnother(Permanent):
    """The store belongs to another installation of Glimpse."""


class InvalidConfiguration(Permanent):
    """The specification cannot be acted upon."""


class WorkerCrashed(Permanent):
    """The worker crashed three times on the same bytes."""


class SourceUnavailable(Transient):
    """The server or the network fails at the moment."""


class SourceChanged(Transient):
    """The bytes changed while they were read."""


class StoreUnavailable(Transient):
    """The store cannot be reached."""


class StoreFull(Transient):
    """The store has no room left above its reserve."""


class StoreUnauthorized(Transient):
    """The store refuses our credentials."""


class StoreConflict(Transient):
    """Another attempt has committed an object under this key."""


class WorkerLost(Transient):
    """The worker ended without an answer."""

    crashed: bool = False
    """It had begun and died alone, so what it was working on may be the reason; set by the runner."""


class SecretNotReadable(Transient):
    """A Secret or ConfigMap that the Image names cannot be read."""


class DataLost(Transient):
    """Stored bytes are gone, or differ from what was stored."""


class NotFound(Problem):
    """The store holds no object under this key."""


def _leaves(cls: type[Problem]) -> dict[str, type[Problem]]:
    below = {name: leaf for sub in cls.__subclasses__() for name, leaf in _leaves(sub).items()}
    return below or {cls.reason: cls}


REASONS: Final = _leaves(Problem)
"""Every concrete Problem by its reason: what crosses the border between worker and operator."""


def combined(met: Sequence[tuple[str, Problem]]) -> Problem:
    """One Problem for several, of which each has a place: permanent only if all are; its message says what each was.

    Of permanent ones that speaks whose bytes were looked at, or else the first.
    """
    problems = [problem for _, problem in met]
    if len(problems) == 1:
        return problems[0]
    passing = [problem for problem in problems if not problem.permanent]
    refused = SourceNotFound | SourceUnauthorized | SourceRefused | SourceForbidden
    telling = passing or [problem for problem in problems if not isinstance(problem, refused)] or problems
    waits = [problem.retry_after for problem in passing if problem.retry_after is not None]
    message = "; ".join(
        problem.message if problem.message.startswith(place) else f"{place}: {problem.message}"
        for place, problem in met
    )
    return type(telling[0])(message, retry_after=min(waits) if waits else None)
