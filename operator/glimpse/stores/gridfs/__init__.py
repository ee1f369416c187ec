"""Images in a GridFS bucket of MongoDB, or of a database that speaks its protocol.

Everything rests on what the server promises of one document: a change of it is atomic, and a unique index holds. So an
attempt is a document in `files` from its first byte on, its chunks hang on that document's `_id`, and the one change
that gives it the key for its `filename` is the commit. Any tool that knows the GridFS specification reads the image by
its name; and no chunk is ever without a document, so what removes orphaned chunks takes none of ours.

    {bucket}.store    the marker: whose store this is
    {bucket}.files    {filename: key, length, chunkSize, uploadDate, metadata: {glimpse: key, record}}: complete
                      {filename: key.attempt.id, …, metadata: {glimpse: key.attempt, renewed}}: being written, or being
                      removed; alive while `renewed` is young by the server's clock
    {bucket}.chunks   {files_id, n, data}, as the specification has them
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BaseModel, Field

from glimpse.api.base import Model, Quantity, Rule, immutable
from glimpse.lease import Lease
from glimpse.problems import Problem, SecretNotReadable, StoreConflict, StoreUnavailable
from glimpse.stores import Capacity, Stat
from glimpse.stores.gridfs.attempts import DEAD, Attempt
from glimpse.stores.gridfs.bucket import Bucket, Document
from glimpse.stores.gridfs.ranges import Range
from glimpse.streams import Reader

CHUNK_SIZE: Final = 1 << 20
"""Bytes of a chunk where the store names none: fewer, larger documents than the 255 KiB of most tools."""

_OPTION: Final = (
    "((tls|directConnection|loadBalanced|retryWrites)=(true|false)"
    "|authMechanism=(SCRAM-SHA-1|SCRAM-SHA-256|PLAIN)"
    "|(replicaSet|authSource|srvServiceName)=[A-Za-z0-9._$-]+|srvMaxHosts=[0-9]+)"
)
"""Of a word that it does not know the client makes nothing: with `tls=yes` it would speak in clear text."""
_URI: Final = f"^mongodb([+]srv)?://[]A-Za-z0-9._:,[-]+/?([?]{_OPTION}(&{_OPTION})*)?$"
_NAME: Final = "^[A-Za-z0-9_-]+$"
_CREDENTIALS: Final = "must be without credentials: username and password belong into the Secret"

_OURS: Final = {"metadata.glimpse": {"$exists": True}}
"""Files of others have no such field: they are neither listed nor changed."""


def _plain(uri: str) -> str:
    if "@" in uri:
        raise ValueError(_CREDENTIALS)
    options = [each.partition("=")[0] for each in uri.partition("?")[2].split("&")]
    ports = [int(each) for each in re.findall(r":([0-9]+)(?=[,/?]|$)", uri)]
    if not re.match(_URI, uri) or len({*options}) < len(options) or any(not 0 < port < 1 << 16 for port in ports):
        raise ValueError("must be such as mongodb://a.example:27017,b.example:27017/?replicaSet=rs0")
    return uri


def _fits(size: int) -> int:
    if not 64 << 10 <= size <= 15 << 20:
        raise ValueError("must be from 64Ki to 15Mi")
    return size


class GridFSConfig(Model):
    """A GridFS bucket in a database of MongoDB."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(has(self.bucket) ? self.bucket : 'glimpse') == (has(oldSelf.bucket) ? oldSelf.bucket : 'glimpse')",
            "bucket cannot be changed: create another ImageStore",
        ),
    )

    uri: Annotated[
        str,
        Field(min_length=1, max_length=1024),
        AfterValidator(_plain),
        Rule("!self.contains('@')", _CREDENTIALS),
        Rule("!self.matches('[?&]tls=.*&tls=')", "must say only once whether TLS is spoken"),
        Rule(
            f"self.contains('@') || self.matches('{_URI}')",
            "must be such as mongodb://a.example:27017,b.example:27017/?replicaSet=rs0&tls=true, or mongodb+srv://…; "
            "its options may be replicaSet, tls, authSource, authMechanism, directConnection, loadBalanced, "
            "retryWrites, srvServiceName and srvMaxHosts",
        ),
    ]
    """The connection string, without credentials and database. Its hosts may change."""
    database: Annotated[
        str, Field(min_length=1, max_length=63, pattern=_NAME), immutable("database", "create another ImageStore")
    ]
    """The database; it must exist."""
    bucket: Annotated[str, Field(min_length=1, max_length=63, pattern=_NAME)] = "glimpse"
    """The bucket, which is the first part of the names of its collections; by default `glimpse`."""
    chunk_size: Annotated[
        Quantity,
        AfterValidator(_fits),
        Rule(
            "!isQuantity(string(self)) || (quantity(string(self)).compareTo(quantity('64Ki')) >= 0"
            " && quantity(string(self)).compareTo(quantity('15Mi')) <= 0)",
            "must be from 64Ki to 15Mi",
        ),
    ] = CHUNK_SIZE
    """Bytes of a chunk of what is written from now on; by default 1Mi."""


class GridFS:
    """A store in a bucket."""

    Config: ClassVar[type[BaseModel]] = GridFSConfig

    patience: ClassVar[float] = 30.0
    """Seconds that an answer may take."""
    lease: ClassVar[float] = 120.0
    """Seconds after its last sign of life that an attempt counts as dead."""
    page: ClassVar[int] = 1000
    """Documents in one answer to a list."""

    def __init__(self, config: GridFSConfig, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """Credentials are `username` and `password`, or nothing."""
        login = {key: secret[key] for key in ("username", "password") if secret.get(key)}
        if len(login) == 1:
            [missing] = {"username", "password"} - login.keys()
            raise SecretNotReadable(f"the Secret of the store has no {missing}: it needs username and password")
        self._chunk_size = config.chunk_size
        self._bucket = Bucket(
            config.uri, config.database, config.bucket, login=login, ca_bundle=ca_bundle, patience=self.patience
        )

    @property
    def endpoint(self) -> str:
        """The hosts, the database and the bucket."""
        return self._bucket.url

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Enter an attempt, hang chunks on it, then give it the key."""
        bucket = self._bucket
        with bucket.border():
            if bucket.files.find_one({"filename": key}, {"_id": 1}):
                raise StoreConflict(f"{bucket.location(key)} exists, and objects are written once")
            bucket.prepare()
            self._reap(key)
            ours = Attempt(bucket, key, attempt, self._chunk_size)
        try:
            with Lease(ours.renew, self.lease) as lease:
                length = ours.write(body)
                within = min(self.patience, self.lease / 2)
                return self._stat(ours.commit(lease, length, record(), within=within))
        except BaseException:
            with suppress(Problem):
                ours.give_up()
            raise

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read the chunks in order, some ahead."""
        with self._bucket.border():
            found = self._find(key)
        left = max(int(found["length"]) - offset, 0)
        reader = Range(self._bucket, key, found, offset, left if length is None else min(left, length))
        try:
            yield reader
        finally:
            reader.close()

    def stat(self, key: str, /) -> Stat:
        """Look at the document."""
        with self._bucket.border():
            return self._stat(self._find(key))

    def update(self, key: str, record: bytes, /) -> None:
        """Change one field of the document."""
        with self._bucket.border():
            change = {"$set": {"metadata.record": record.decode()}}
            if not self._bucket.files.update_one({"filename": key, **_OURS}, change).matched_count:
                raise self._bucket.absent(key)

    def delete(self, key: str, /) -> None:
        """Take the key away, which makes it a dead attempt, and remove that with all other dead ones on the key."""
        bucket = self._bucket
        with bucket.border():
            if "." in key:
                self._reap(key.partition(".")[0], key)
                return
            if found := bucket.files.find_one({"filename": key, **_OURS}):
                name = f"{key}.{found['_id']}"
                gone = {"filename": f"{name}.{found['_id']}", "metadata.glimpse": name, "metadata.renewed": DEAD}
                bucket.files.update_one({"_id": found["_id"]}, {"$set": gone})
                bucket.remove(found["_id"], found["chunkSize"], -(-found["length"] // found["chunkSize"]))
            self._reap(key)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """All files of ours whose name begins so."""
        with self._bucket.border():
            wanted = {"filename": {"$regex": f"^{re.escape(prefix)}"}, **_OURS}
            with self._bucket.files.find(wanted, batch_size=self.page) as cursor:
                yield from map(self._stat, cursor)

    def probe(self) -> Capacity:
        """Write to the marker, and ask for the room on the server's disk, which not all can tell."""
        from bson import ObjectId

        with self._bucket.border():
            self._bucket.marker.update_one({"_id": "glimpse"}, {"$set": {"probed": ObjectId()}})
            room = self._bucket.database.command("dbStats")
        total, used = room.get("fsTotalSize"), room.get("fsUsedSize")
        if not total or used is None:
            return Capacity(None, None, None)
        return Capacity(int(total), int(used), max(int(total) - int(used), 0))

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """Read the marker, a document: of two that enter it one fails. A database is not made by naming it."""
        from pymongo.errors import DuplicateKeyError

        bucket = self._bucket
        with bucket.border():
            found = bucket.marker.find_one({"_id": "glimpse"})
            if not found:
                if not fresh:
                    raise StoreUnavailable(
                        f"{bucket.url} has no marker ({bucket.marker.name}), which was there before: "
                        "is it another database, or one whose disk is not mounted?"
                    )
                if not bucket.database.list_collection_names():
                    name = bucket.database.name
                    raise StoreUnavailable(
                        f"{bucket.url}: there is no database {name}; create it with "
                        f"db.getSiblingDB('{name}').createCollection('{bucket.files.name}')"
                    )
                with suppress(DuplicateKeyError):
                    bucket.marker.insert_one({"_id": "glimpse", "owner": owner})
                found = bucket.marker.find_one({"_id": "glimpse"})
        if not found or not isinstance(found.get("owner"), str):
            raise StoreUnavailable(f"the marker of {bucket.url}, in {bucket.marker.name}, has no owner: restore it")
        return str(found["owner"])

    def _reap(self, key: str, name: str | None = None) -> None:
        """Remove the dead attempts on `key`, or those of them that are called `name`.

        That one is dead is first written into its document, if it is as it was seen: from then on it cannot commit.
        """
        files = self._bucket.files
        since = self._bucket.now() - timedelta(seconds=self.lease)
        dead = {"filename": {"$regex": f"^{re.escape(key)}[.]"}, "metadata.renewed": {"$lt": since}}
        for found in files.find(dead):
            if name in {None, found["metadata"]["glimpse"]}:
                seen = {"_id": found["_id"], "metadata.renewed": found["metadata"]["renewed"]}
                if files.update_one(seen, {"$set": {"metadata.renewed": DEAD}}).matched_count:
                    of = {"files_id": found["_id"]}
                    with self._bucket.patient():
                        last = self._bucket.chunks.find_one(of, {"n": 1, "_id": 0}, sort=[("n", -1)])
                    self._bucket.remove(found["_id"], found["chunkSize"], last["n"] + 1 if last else 0)

    def _find(self, key: str) -> Document:
        found = self._bucket.files.find_one({"filename": key, **_OURS})
        if found is None:
            raise self._bucket.absent(key)
        return found

    def _stat(self, found: Document) -> Stat:
        about = found["metadata"]
        key, record, renewed = str(about["glimpse"]), about.get("record"), about.get("renewed")
        return Stat(
            key,
            int(found["length"]),
            self._bucket.location(key),
            max(found["uploadDate"], renewed or DEAD).timestamp(),
            record.encode() if isinstance(record, str) else None,
            partial=renewed is not None,
        )
