"""Items: what the list of images shows of each, encoded once.

A list of a hundred images is asked for far more often than one of them changes, so the JSON of each is kept as bytes,
and beside it only what is filtered and sorted by. Nothing is in it that a caller from another namespace must not see:
no members, stores, messages or sources.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pydantic_core import from_json, to_json

from glimpse.kube import Object

NEVER: Final = -1
"""Stands for a time or a size that an image does not have (yet)."""
_ARTIFACT: Final = ("revision", "digest", "digests", "size", "virtualSize", "diskFormat", "containerFormat", "storedAt")
FIELDS: Final = (
    *("namespace", "name", "uid", "title", "creationTimestamp", "visibility", "hidden", "protected", "deactivated"),
    *("tags", "properties", "minimum", "ready", "status", *_ARTIFACT, "url"),
)
"""The members of an item, named as in the Image."""
_SHORT: Final = 64
"""Characters of what may be said of many images alike, and is then kept once."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image as the list shows it."""

    namespace: str
    name: str
    uid: str
    title: str
    """Empty if there is none."""
    created: int
    """Seconds since 1970, as all times here."""
    visibility: str
    members: tuple[str, ...]
    """Namespaces that may have it, if it is shared; never shown."""
    hidden: bool
    protected: bool
    deactivated: bool
    tags: tuple[str, ...]
    properties: tuple[str, ...]
    """Each as `name=value`."""
    disk_gib: int
    memory_mib: int
    ready: bool
    status: str
    """The reason of `Ready`; empty before the operator has said one."""
    digest: str
    size: int
    virtual_size: int
    disk_format: str
    container_format: str
    stored: int
    json: bytes = field(repr=False)

    def encoded(self, fields: frozenset[str] | None) -> bytes:
        """As JSON; with `fields` these members only."""
        if fields is None:
            return self.json
        return encode({name: value for name, value in from_json(self.json).items() if name in fields})


def item(obj: Object) -> Item | None:
    """What is shown of an Image; None if it is being removed. The API server has checked its types already."""
    meta, spec, status = obj["metadata"], obj["spec"], obj.get("status", {})
    if meta.get("deletionTimestamp") and not spec.get("protected"):  # as for downloads
        return None
    artifact = status.get("artifact") or {}
    ready: Object = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
    minimum, visibility = spec.get("minimum") or {}, spec.get("visibility", "private")
    shown = {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "title": spec.get("title"),
        "creationTimestamp": meta["creationTimestamp"],
        "visibility": visibility,
        "hidden": spec.get("hidden", False),
        "protected": spec.get("protected", False),
        "deactivated": spec.get("deactivated", False),
        "tags": spec.get("tags", []),
        "properties": spec.get("properties", {}),
        "minimum": minimum or None,
        "ready": ready.get("status") == "True",
        "status": ready.get("reason"),
    } | {name: artifact.get(name) for name in (*_ARTIFACT, "url")}
    return Item(
        namespace=sys.intern(shown["namespace"]),
        name=shown["name"],
        uid=shown["uid"],
        title=shown["title"] or "",
        created=_seconds(shown["creationTimestamp"]),
        visibility=sys.intern(visibility),
        members=_kept(spec.get("members", ())) if visibility == "shared" else (),
        hidden=shown["hidden"],
        protected=shown["protected"],
        deactivated=shown["deactivated"],
        tags=_kept(shown["tags"]),
        properties=_kept(f"{name}={value}" for name, value in shown["properties"].items()),
        disk_gib=minimum.get("diskGiB", 0),
        memory_mib=minimum.get("memoryMiB", 0),
        ready=shown["ready"],
        status=sys.intern(shown["status"] or ""),
        digest=shown["digest"] or "",
        size=artifact.get("size", NEVER),
        virtual_size=artifact.get("virtualSize", NEVER),
        disk_format=sys.intern(shown["diskFormat"] or ""),
        container_format=sys.intern(shown["containerFormat"] or ""),
        stored=_seconds(shown["storedAt"]) if shown["storedAt"] else NEVER,
        json=encode({name: value for name, value in shown.items() if value is not None}),
    )


def encode(value: Any) -> bytes:
    """As JSON in one line."""
    return to_json(value)


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def _kept(texts: Iterable[str]) -> tuple[str, ...]:
    """What many have alike is kept once."""
    return tuple(sys.intern(text) if len(text) <= _SHORT else text for text in texts)
