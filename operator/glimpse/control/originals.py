"""The Image that another one refers to, as that one may see it.

Asked anew at each decision: who may use an Image is for its owner to say at any time. What may not be used and what is
not there are told in the same words.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from glimpse.api.image import Image
from glimpse.control.conditions import READY, find
from glimpse.control.entry import Entry
from glimpse.control.seen import Original
from glimpse.problems import InvalidConfiguration, SourceNotFound, SourceUnavailable

STEPS: Final = 16
"""References that are followed, to see whether they lead back."""

Where = tuple[str, str]
"""Namespace and name of an Image."""


def usable(original: Image, namespace: str) -> bool:
    """Whether Images of a namespace may refer to this one."""
    spec = original.spec
    if original.metadata.namespace == namespace or spec.visibility in ("community", "public"):
        return True
    return spec.visibility == "shared" and namespace in spec.members


def seen(image: Image, other: Image | None, circle: Sequence[Where] = ()) -> Original | None:
    """What `image` sees of the Image that it names, which is `other`; None: it names none.

    `circle`: the Images by which its reference leads back to itself, if it does.
    """
    ref = image.spec.source.image
    if ref is None:
        return None
    mine = image.metadata.namespace
    where = (ref.namespace or mine, ref.name)
    name = "/".join(where)
    if where == (mine, image.metadata.name):
        return Original(problem=InvalidConfiguration("spec.source.image names the Image itself; name another"))
    missing = SourceNotFound(f"there is no Image {name} that the namespace {mine} may use: spec.source.image")
    if other is None or other.metadata.deletion_timestamp:
        return Original(problem=missing)
    if not usable(other, mine):
        return Original(problem=missing, withdrawn=True)
    if circle:
        # what the others refer to elsewhere is not this one's to know
        way = " -> ".join("/".join(each) if each[0] == mine or each == where else "…" for each in circle)
        return Original(
            problem=InvalidConfiguration(f"spec.source.image leads back to the Image itself: {way}; name another")
        )
    if other.spec.deactivated:
        return Original(problem=SourceUnavailable(f"the Image {name} is deactivated; it is waited for"))
    artifact = other.status.artifact
    entry = next((h for h in other.status.history if artifact and h.revision == artifact.revision), None)
    if entry is None or not entry.stores:
        ready = find(other.status.conditions, READY)
        why = f" ({ready.reason})" if ready else ""
        return Original(problem=SourceUnavailable(f"the Image {name} has no verified bytes{why}; they are waited for"))
    return Original(uid=other.metadata.uid, entry=entry)


class Referers:
    """Which images refer to which other one."""

    def __init__(self) -> None:
        self._of: dict[Where, set[str]] = {}
        self._from: dict[Where, Entry] = {}

    def of(self, namespace: str, name: str) -> Iterable[str]:
        """Uids of those that refer to this Image."""
        return tuple(self._of.get((namespace, name), ()))

    def circle(self, namespace: str, name: str) -> Sequence[Where]:
        """From this Image by what each refers to back to it; nothing where it does not lead back in a few steps."""
        way = [(namespace, name)]
        while len(way) <= STEPS and (entry := self._from.get(way[-1])) and entry.refers:
            way.append(entry.refers)
            if entry.refers == way[0]:
                return way
        return ()

    def note(self, entry: Entry, obj: dict[str, Any] | None) -> None:
        """To which Image this one refers; None: it is gone."""
        ref = (obj["spec"].get("source") or {}).get("image") if obj else None
        refers = (ref.get("namespace") or entry.namespace, ref["name"]) if ref else None
        if refers == entry.refers:
            return
        if entry.refers:
            self._of[entry.refers].discard(entry.uid)
            if not self._of[entry.refers]:
                del self._of[entry.refers]
        where = (entry.namespace, entry.name)
        if refers:
            self._of.setdefault(refers, set()).add(entry.uid)
            self._from[where] = entry
        elif self._from.get(where) is entry:
            del self._from[where]
        entry.refers = refers
