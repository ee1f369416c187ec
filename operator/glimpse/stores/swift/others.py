"""What others put into the container: which version lies there, told by its ETag and the time it was written.

An ETag is an MD5, and two files with the same one can be made; but the time is told in hundred-thousandths of a second.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from glimpse.ahead import Ahead, ranges
from glimpse.problems import DataLost, NotFound, StoreConflict, StoreRefused
from glimpse.stores import Version
from glimpse.stores.swift.client import Client, Headers
from glimpse.stores.swift.segments import FLIGHTS, PART

_LONGEST: Final = 1024
"""Bytes of a name, at most."""
_MANIFEST: Final = 8 << 20
"""Bytes of the list of segments of one object, at most."""


class Others:
    """Objects of others, below the prefix of a store."""

    def __init__(self, client: Client, container: str, prefix: str) -> None:
        self._client, self._container, self._prefix = client, container, prefix

    def where(self, location: str) -> str:
        """A URL, for people."""
        return f"swift://{quote(f'{self._container}/{self._prefix}{location}')}"

    def locate(self, location: str) -> Version:
        """Which version lies there. Raises NotFound, StoreRefused."""
        return self._version(location, self._head(location))

    def check(self, location: str, version: Version) -> None:
        """Raise DataLost unless this version lies there, NotFound if nothing does."""
        self._compare(location, self._head(location), version)

    def read(self, location: str, version: Version, offset: int, length: int | None) -> Ahead[tuple[int, int]]:
        """A Reader over part of just this version."""
        left = max(version.size - offset, 0)
        left = left if length is None else min(left, length)
        stop = offset + left

        def fetch(part: tuple[int, int], over: threading.Event) -> Sequence[bytes]:
            if not left:
                self.check(location, version)
                return ()
            start, count = part
            return self._fetch(location, version, start, start + count, over)

        return Ahead(left, ranges(offset, stop), fetch, part=PART, at_once=FLIGHTS)

    def erase(self, location: str) -> None:
        """Remove it; of a large object, first the segments that are named after it. Absent is fine."""
        with suppress(NotFound):
            name, found = self._named(location), self._head(location)
            if "x-static-large-object" in found:
                with ThreadPoolExecutor(FLIGHTS) as pool:
                    list(pool.map(lambda segment: self._client.delete(*segment), self._segments(name)))
            self._client.delete(self._container, name)

    def _segments(self, name: str) -> list[tuple[str, str]]:
        """Container and name of those below the object's own name; others could be anybody's."""
        query = "multipart-manifest=get"
        _, manifest = self._client.read(self._container, name, query=query, limit=_MANIFEST)
        try:
            paths = [str(each["name"]) for each in json.loads(manifest or b"[]")]
        except (ValueError, TypeError, KeyError):
            return []  # Ceph's gateway gives none
        parts = [path.lstrip("/").partition("/") for path in paths]
        return [(container, below) for container, _, below in parts if below.startswith(f"{name}/")]

    def _fetch(self, location: str, version: Version, start: int, stop: int, over: threading.Event) -> Sequence[bytes]:
        only = {"If-Match": version.etag} if version.etag else {}
        try:
            return self._client.fetch(
                self._container,
                self._named(location),
                start,
                stop,
                over,
                headers=only,
                check=lambda headers: self._compare(location, headers, version),
            )
        except StoreConflict as problem:  # what a server says where it is not the one that was asked for
            raise DataLost(f"{self.where(location)} has been changed") from problem

    def _head(self, location: str) -> Headers:
        try:
            return self._client.head(self._container, self._named(location))
        except NotFound as problem:
            raise NotFound(f"nothing lies at {self.where(location)}") from problem

    def _named(self, location: str) -> str:
        name = f"{self._prefix}{location}"
        if len(name.encode()) > _LONGEST:
            raise NotFound(f"{self.where(location)} is longer than a name can be")
        return name

    def _compare(self, location: str, headers: Headers, version: Version) -> None:
        if not self._version(location, headers).same(version):
            raise DataLost(f"{self.where(location)} has been changed")

    def _version(self, location: str, headers: Headers) -> Version:
        """Which version this is an answer of."""
        if "content-location" in headers:
            raise StoreRefused(f"{self.where(location)} is a symbolic link, and those are never followed")
        if "x-object-manifest" in headers:
            raise StoreRefused(
                f"{self.where(location)} is a dynamic large object, whose segments may change unseen; make it a static "
                "one"
            )
        size = headers.get("content-range", "").rpartition("/")[2] or headers["content-length"]
        etag, written = headers.get("etag"), headers.get("x-timestamp")
        if not etag or not written:
            raise StoreRefused(f"{self.where(location)} has no ETag or no time, so a change could not be seen")
        return Version(int(size), etag, written)
