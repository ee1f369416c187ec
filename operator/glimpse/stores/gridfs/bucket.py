"""The collections of a bucket, and the one border where an error of the client becomes a Problem."""

import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from glimpse.problems import (
    InvalidConfiguration,
    NotFound,
    Problem,
    StoreConflict,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.collection import Collection
    from pymongo.database import Database
    from pymongo.errors import PyMongoError

Document = dict[str, Any]

LONG: Final = 3
"""How much longer than others an answer may take for which all chunks of a file are looked at."""

REMOVAL: Final = 1 << 30
"""Bytes of chunks that are removed with one request: it must not take longer than our patience."""

# Codes: https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
_UNAUTHORIZED: Final = {11, 13, 18, 334}  # UserNotFound, Unauthorized, AuthenticationFailed, MechanismUnavailable
_FULL: Final = {12501, 14031}  # a quota, OutOfDiskSpace
_DUPLICATE: Final = {11000}  # DuplicateKey
_INDEX_DIFFERS: Final = {85, 86, *_DUPLICATE}  # IndexOptionsConflict, IndexKeySpecsConflict
# Words, in small letters, of databases that have no code of their own for it.
_UNAUTHORIZED_WORDS: Final = ("bad auth",)
_FULL_WORDS: Final = ("disk is full", "space quota", "no space left")
_DUPLICATE_WORDS: Final = ("unique constraint failed",)
_CERTIFICATE_WORDS: Final = "certificate verify failed"


class Bucket:
    """A bucket on a server, which is reached when it is used; shared by threads."""

    def __init__(
        self, uri: str, database: str, name: str, *, login: Mapping[str, str], ca_bundle: str | None, patience: float
    ) -> None:
        """`login`: `username` and `password`, or nothing; `patience`: seconds that an answer may take."""
        self.patience = patience
        self._uri, self._database, self._name = uri, database, name
        self._login, self._ca_bundle = dict(login), ca_bundle
        scheme, _, rest = uri.partition("://")
        self.url = f"{scheme}://{rest.partition('?')[0].rstrip('/')}/{database}/{name}"
        """Tells a person where it is."""
        options = dict(each.partition("=")[::2] for each in rest.partition("?")[2].split("&"))
        tls = ca_bundle or options.get("tls", str(scheme == "mongodb+srv").lower()) == "true"
        self._hint = "; does it speak TLS?" if tls else ""
        self._hint += f"; is {called} the name of its replica set?" if (called := options.get("replicaSet")) else ""
        self._lock = threading.Lock()
        self._client: MongoClient[Document] | None = None

    @property
    def database(self) -> "Database[Document]":
        """The database that it is in."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
                weakref.finalize(self, self._client.close)
            return self._client[self._database]

    @property
    def marker(self) -> "Collection[Document]":
        """One document: whose it is."""
        return self.database[f"{self._name}.store"]

    @property
    def files(self) -> "Collection[Document]":
        """A document for each file."""
        return self.database[f"{self._name}.files"]

    @property
    def chunks(self) -> "Collection[Document]":
        """Their bytes."""
        return self.database[f"{self._name}.chunks"]

    def now(self) -> datetime:
        """The time by the server's clock."""
        time: datetime = self.database.command("hello")["localTime"]
        return time

    def prepare(self) -> None:
        """Make the indexes, if they are missing: the specification's, and that a filename is there only once."""
        from pymongo.errors import OperationFailure

        try:
            self.files.create_index("filename", unique=True)
            self.chunks.create_index([("files_id", 1), ("n", 1)], unique=True)
        except OperationFailure as error:
            if error.code in _INDEX_DIFFERS or is_duplicate(error):
                raise InvalidConfiguration(
                    f"{self.url} holds several files of one name, or has another index of its own; "
                    "give the store a bucket of its own"
                ) from error
            raise

    def remove(self, file: Any, chunk_size: int, count: int) -> None:
        """Remove so many chunks, then the document. After a failure a second call goes on."""
        step = max(REMOVAL // chunk_size, 1)
        for start in range(0, count, step):
            with self.patient():
                self.chunks.delete_many({"files_id": file, "n": {"$gte": start, "$lt": start + step}})
        self.files.delete_one({"_id": file})

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Wait LONG for the answer: not every database that speaks the protocol has indexes that serve it."""
        from pymongo import timeout

        with timeout(self.patience * LONG):
            yield

    def location(self, key: str) -> str:
        """A URL for people."""
        return f"{self.url}/{key}"

    def absent(self, key: str) -> NotFound:
        """Says that it is not there."""
        return NotFound(f"{self.location(key)} does not exist")

    @contextmanager
    def border(self) -> Iterator[None]:
        """PyMongoError becomes a Problem."""
        from pymongo.errors import PyMongoError

        try:
            yield
        except PyMongoError as error:
            raise self._problem(error) from error

    def _connect(self) -> "MongoClient[Document]":
        """A client that connects later. A write counts when most of the servers have it in their journals."""
        from pymongo import MongoClient

        times = ("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS", "waitQueueTimeoutMS", "wTimeoutMS")
        options: Document = dict.fromkeys(times, int(self.patience * 1000))
        options |= {"w": "majority", "journal": True, "readPreference": "primary", "tz_aware": True}
        options |= {"appname": "glimpse", "connect": False, **self._login}
        if not self._ca_bundle:
            return MongoClient(self._uri, **options)
        # The client wants a file, once and now. A worker may write none, but it can have one without a name.
        with os.fdopen(os.memfd_create("authorities"), "wb") as file:
            file.write(self._ca_bundle.encode())
            file.flush()
            return MongoClient(self._uri, tls=True, tlsCAFile=f"/proc/self/fd/{file.fileno()}", **options)

    def _problem(self, error: "PyMongoError") -> Problem:
        """Most specific first. What the server said may quote what it was sent, so none of it is in the message."""
        from pymongo.errors import ConfigurationError, ConnectionFailure

        code, words, name = _said(error)
        if code in _UNAUTHORIZED or any(word in words for word in _UNAUTHORIZED_WORDS):
            if not self._login:
                return StoreUnauthorized(f"{self.url} wants username and password: name their Secret in secretRef")
            return StoreUnauthorized(
                f"{self.url} refuses the user in the store's Secret; mend it, "
                f"or grant the user readWrite on the database {self._database}"
            )
        if code in _FULL or any(word in words for word in _FULL_WORDS):
            return StoreFull(f"{self.url} is full; remove images or enlarge it")
        if is_duplicate(error):
            return StoreConflict(f"{self.url} was written by another attempt meanwhile")
        if isinstance(error, ConnectionFailure):
            if _CERTIFICATE_WORDS in words:
                return StoreUnavailable(
                    f"{self.url}: no authority that is trusted has signed the server's certificate for this name; "
                    "name its authority in caBundleRef"
                )
            return StoreUnavailable(f"{self.url} cannot be reached, or takes no writes at the moment{self._hint}")
        if isinstance(error, ConfigurationError):
            if self._uri.startswith("mongodb+srv"):
                return StoreUnavailable(
                    f"{self.url}: the DNS names no servers for it (SRV), or the options in gridfs.uri do not fit "
                    "together"
                )
            return InvalidConfiguration(f"{self.url}: the options in gridfs.uri do not fit together")
        return StoreUnavailable(f"{self.url} fails: {name}")


def is_duplicate(error: "PyMongoError") -> bool:
    """Whether a unique index forbids it."""
    code, words, _ = _said(error)
    return code in _DUPLICATE or any(word in words for word in _DUPLICATE_WORDS)


def _said(error: "PyMongoError") -> tuple[int | None, str, str]:
    """The code of an error, its words in small letters, and a name for people."""
    from pymongo.errors import BulkWriteError, OperationFailure

    if not isinstance(error, OperationFailure):
        return None, str(error).lower(), type(error).__name__
    details: Mapping[str, Any] = error.details or {}
    if isinstance(error, BulkWriteError):
        details = (details.get("writeErrors") or details.get("writeConcernErrors") or [{}])[0]
    code = details.get("code", error.code)
    return code, str(details.get("errmsg", "")).lower(), str(details.get("codeName") or f"error {code}")
