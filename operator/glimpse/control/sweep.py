"""Decides which things in a store nobody owns: what kill -9, lost answers and lost objects leave behind.

Careful by rule, since what is removed here was not asked to be removed by anybody.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from glimpse.tasks import ListedEntry

SHARE: Final = 5
"""No more than one in so many objects is removed at once ..."""
FEW: Final = 1
"""... but so few are never suspicious. Leftovers of attempts are not counted: no Image ever had them."""


class TooMuch(Exception):  # noqa: N818 - says what it is
    """The sweep would remove so much that a mistake is likelier than leftovers."""


def leftovers(
    entries: Iterable[ListedEntry],
    owned: Mapping[str, frozenset[int]],
    pending: Mapping[str, int],
    installation: str,
    age: float,
) -> tuple[str, ...]:
    """Keys that nobody owns. Raises TooMuch.

    `owned`: revisions by uid, read after the list was made, for every Image there is; `pending`: of these the one in
    the making, of which attempts may have left what the next one goes on with. `age`: seconds; what is younger may
    belong to a status that is not written yet.
    """
    found: list[str] = []
    objects = doomed = 0
    for entry in entries:
        uid, _, revision = entry.key.partition(".")[0].rpartition("-")
        objects += not entry.partial
        if entry.age < age or (entry.record and (entry.record.retained or entry.record.installation != installation)):
            continue
        if not revision.isdigit():
            continue
        if int(revision) == pending.get(uid) if entry.partial else int(revision) in owned.get(uid, ()):
            continue
        if not entry.partial and entry.record is None:
            continue  # not ours by its own word
        doomed += not entry.partial
        found.append(entry.key)
    if doomed * SHARE > objects and doomed > FEW:
        raise TooMuch(
            f"{doomed} of {objects} objects belong to no Image: more than a fifth is never removed at once; "
            "are all Images there?"
        )
    return tuple(found)
