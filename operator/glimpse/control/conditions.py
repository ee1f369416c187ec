"""Conditions: from what is known to what a person and a pipeline read.

One place, so that the rules of `metav1.Condition` and kstatus (when a transition counts, which conditions exist
only while they are True) are kept for every kind alike.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from glimpse.api.base import Condition

READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
STORED: Final = "Stored"
SOURCE_VERIFIED: Final = "SourceVerified"
OUTDATED: Final = "Outdated"
IN_USE: Final = "InUse"
BOOTABLE: Final = "Bootable"

MESSAGE_LIMIT: Final = 2048


class Conditions:
    """A list of conditions being made from the one before."""

    def __init__(self, before: Iterable[Condition], generation: int, now: datetime) -> None:
        """`generation`: of the spec that is judged."""
        self._before = {c.type: c for c in before}
        self._by_type = dict(self._before)
        self._generation = generation
        self._now = now

    def set(self, kind: str, status: bool, reason: str, message: str) -> None:
        """State a condition. The time changes only with the status."""
        word = "True" if status else "False"
        old = self._before.get(kind)
        self._by_type[kind] = Condition(
            type=kind,
            status="True" if status else "False",
            observed_generation=self._generation,
            last_transition_time=old.last_transition_time if old and old.status == word else self._now,
            reason=reason,
            message=shorten(message),
        )

    def keep(self, kind: str) -> None:
        """The condition holds as it was, for this generation too."""
        if old := self._by_type.get(kind):
            self._by_type[kind] = old.but(observed_generation=self._generation)

    def drop(self, *kinds: str) -> None:
        """These do not hold, and exist only while they do."""
        for kind in kinds:
            self._by_type.pop(kind, None)

    def get(self, kind: str) -> Condition | None:
        """As it stands now."""
        return self._by_type.get(kind)

    def result(self) -> tuple[Condition, ...]:
        """All of them, in an order that does not change."""
        return tuple(self._by_type[kind] for kind in sorted(self._by_type))


def shorten(message: str) -> str:
    """A message within the bounds of the API."""
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of this type."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: Iterable[Condition], kind: str) -> bool:
    """Whether the condition is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"
