"""Images in an SQLite database: a driver from outside, to copy from.

It shows each promise of the contract with the least code: an attempt under a name of its own, one atomic step that
gives it the key, a lease by which others know that it is alive.
"""

import contextlib
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from glimpse.api.base import Duration, Model, Quantity, immutable
from glimpse.lease import Lease
from glimpse.problems import NotFound, Problem, StoreConflict, StoreFull, StoreUnavailable
from glimpse.stores import Capacity, Stat
from glimpse.streams import CHUNK, Reader

_TABLES = """
CREATE TABLE owner (one INTEGER PRIMARY KEY CHECK (one = 1), owner TEXT NOT NULL);
CREATE TABLE attempts (name TEXT PRIMARY KEY, beat REAL NOT NULL);
CREATE TABLE chunks (name TEXT, n INTEGER, data BLOB, PRIMARY KEY (name, n));
CREATE TABLE objects (key TEXT PRIMARY KEY, name TEXT, size INTEGER, modified REAL, record BLOB);
"""


class SqliteConfig(Model):
    """A database file."""

    path: Annotated[str, Field(min_length=1, max_length=1024), immutable("path", "create another ImageStore")]
    """The file, absolute; its folder must exist."""
    size: Quantity | None = None
    """The largest size of the file. Omitted: what the disk has."""
    dead_after: Duration = 60.0
    """How long a transfer that gives no sign of life counts as alive, as a duration: `60s`."""


class Sqlite:
    """A store in a database file."""

    Config: ClassVar[type[BaseModel]] = SqliteConfig

    def __init__(self, config: SqliteConfig, _secret: Mapping[str, str], _ca_bundle: str | None, /) -> None:
        """A file has no credentials."""
        self._config = config

    @property
    def endpoint(self) -> str:
        """The file."""
        return f"sqlite://{self._config.path}"

    def put(self, key: str, attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Insert chunks under the attempt's name; the row in `objects` is the commit."""
        name = f"{key}.{attempt}"
        with self._database() as db:
            if db.execute("SELECT 1 FROM objects WHERE key = ?", [key]).fetchone():
                raise StoreConflict(f"{self._location(key)} exists, and objects are written once")
        self._reap(key)
        try:
            with Lease(lambda: self._beat(name), self._config.dead_after) as lease:
                size = self._write(name, body)
                line = record()
                lease.check()
                stat = Stat(key, size, self._location(key), time.time(), line)
                self._commit(name, stat)
                return stat
        except BaseException:
            with contextlib.suppress(Problem):  # what is left then is dead, and the next put removes it
                self._remove(name)
            raise

    @contextlib.contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read in one transaction: it sees the object whole, whatever happens meanwhile."""
        with self._database() as db:
            db.execute("BEGIN")
            row = db.execute("SELECT name, size FROM objects WHERE key = ?", [key]).fetchone()
            if row is None:
                raise NotFound(f"{self._location(key)} does not exist")
            end = row[1] if length is None else min(row[1], offset + length)
            yield _Range(db, row[0], min(offset, row[1]), end)

    def stat(self, key: str, /) -> Stat:
        """Look at the row."""
        for stat in self._objects("WHERE key = ?", key):
            return stat
        raise NotFound(f"{self._location(key)} does not exist")

    def update(self, key: str, record: bytes, /) -> None:
        """One statement is atomic."""
        with self._database() as db:
            if not db.execute("UPDATE objects SET record = ? WHERE key = ?", [record, key]).rowcount:
                raise NotFound(f"{self._location(key)} does not exist")

    def delete(self, key: str, /) -> None:
        """Remove row and chunks in one transaction, and the dead."""
        with self._database() as db, _transaction(db):
            db.execute("DELETE FROM chunks WHERE name IN (SELECT name FROM objects WHERE key = ?)", [key])
            db.execute("DELETE FROM objects WHERE key = ?", [key])
        self._reap(key)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """Attempts first, so that one that becomes an object meanwhile is not missed."""
        with self._database() as db:
            rows = db.execute(
                "SELECT a.name, a.beat, (SELECT coalesce(sum(length(data)), 0) FROM chunks c WHERE c.name = a.name) "
                "FROM attempts a WHERE substr(a.name, 1, ?) = ?",
                [len(prefix), prefix],
            ).fetchall()
        for name, beat, size in rows:
            yield Stat(name, size, self._location(name), beat, partial=True)
        yield from self._objects("WHERE substr(key, 1, length(?1)) = ?1", prefix)

    def probe(self) -> Capacity:
        """Count pages; a database that cannot be written is found by `claim`."""
        with self._database() as db:
            size = db.execute("PRAGMA page_size").fetchone()[0]
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            used = (pages - db.execute("PRAGMA freelist_count").fetchone()[0]) * size
        if self._config.size is None:
            disk = shutil.disk_usage(Path(self._config.path).parent)
            return Capacity(disk.total, disk.used, disk.free)
        return Capacity(self._config.size, used, max(0, self._config.size - used))

    def claim(self, owner: str, /, *, fresh: bool) -> str:
        """The first row wins."""
        with self._database() as db:
            if fresh:
                db.execute("INSERT OR IGNORE INTO owner VALUES (1, ?)", [owner])
            row = db.execute("SELECT owner FROM owner").fetchone()
        if row is None:
            raise StoreUnavailable(f"{self._config.path} has no owner, and had one before: is the volume mounted?")
        return str(row[0])

    def folders(self) -> tuple[str, ...]:
        """SQLite writes files beside the database."""
        return (str(Path(self._config.path).parent),)

    def _write(self, name: str, body: Reader) -> int:
        """All of `body`, in chunks of one size; what it raises comes out as it is. Returns the number of bytes."""
        number, size, rest = 0, 0, b""
        ended = False
        while not ended:
            while len(rest) < CHUNK and not ended:
                chunk = body.read(CHUNK)
                rest, ended = rest + chunk, not chunk
            piece, rest = rest[:CHUNK], rest[CHUNK:]
            if piece:
                with self._database() as db:
                    db.execute("INSERT INTO chunks VALUES (?, ?, ?)", [name, number, piece])
            number, size = number + 1, size + len(piece)
        return size

    def _commit(self, name: str, stat: Stat) -> None:
        try:
            with self._database() as db, _transaction(db):
                row = [stat.key, name, stat.size, stat.modified, stat.record]
                db.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?)", row)
                db.execute("DELETE FROM attempts WHERE name = ?", [name])
        except sqlite3.IntegrityError as error:
            raise StoreConflict(f"{self._location(stat.key)} was written by another attempt meanwhile") from error

    def _beat(self, name: str) -> None:
        with self._database() as db, _transaction(db):
            if not db.execute("SELECT 1 FROM objects WHERE name = ?", [name]).fetchone():
                db.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?)", [name, time.time()])

    def _reap(self, key: str) -> None:
        """Remove what is dead of the attempts on a key, or one dead attempt."""
        with self._database() as db:
            dead = db.execute(
                "SELECT name FROM attempts "
                "WHERE beat < ?1 AND (name = ?2 OR substr(name, 1, length(?2) + 1) = ?2 || '.')",
                [time.time() - self._config.dead_after, key],
            ).fetchall()
        for (name,) in dead:
            self._remove(name)

    def _remove(self, name: str) -> None:
        with self._database() as db, _transaction(db):
            db.execute("DELETE FROM chunks WHERE name = ?", [name])
            db.execute("DELETE FROM attempts WHERE name = ?", [name])

    def _objects(self, where: str, word: str) -> Iterator[Stat]:
        with self._database() as db:
            rows = db.execute("SELECT key, size, modified, record FROM objects " + where, [word]).fetchall()  # noqa: S608 - ours
        for key, size, modified, record in rows:
            yield Stat(key, size, self._location(key), modified, record)

    def _location(self, name: str) -> str:
        return f"{self.endpoint}#{name}"

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A connection of this call alone; what SQLite raises becomes a Problem."""
        if not Path(self._config.path).parent.is_dir():
            raise StoreUnavailable(f"the folder of {self._config.path} does not exist: is the volume mounted?")
        try:
            if not Path(self._config.path).exists():
                self._create()
            with _connect(self._config.path) as db:
                if self._config.size is not None:
                    pages = self._config.size // db.execute("PRAGMA page_size").fetchone()[0]
                    db.execute(f"PRAGMA max_page_count = {pages}")
                yield db
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            if error.sqlite_errorname == "SQLITE_FULL":
                raise StoreFull(f"{self._config.path} is full; remove images or raise `size`") from error
            raise StoreUnavailable(f"{self._config.path}: {error}") from error

    def _create(self) -> None:
        """Link a whole one: of many that turn the same file to WAL, some are told at once that it is locked."""
        new = f"{self._config.path}.{uuid.uuid4()}"
        try:
            with _connect(new) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_TABLES)
            with contextlib.suppress(FileExistsError):
                os.link(new, self._config.path)
        finally:
            Path(new).unlink(missing_ok=True)


@contextlib.contextmanager
def _connect(path: str) -> Iterator[sqlite3.Connection]:
    """What is committed is on the disk; who finds a lock waits."""
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        yield db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


class _Range:
    """A Reader over part of an object."""

    def __init__(self, db: sqlite3.Connection, name: str, start: int, end: int) -> None:
        self._db, self._name, self._position, self._end = db, name, start, end
        self.size: int | None = max(0, end - start)

    def read(self, n: int = CHUNK, /) -> bytes:
        """At most to the end of one chunk."""
        number, skip = divmod(self._position, CHUNK)
        length = min(n, self._end - self._position)
        if length <= 0:
            return b""
        row = self._db.execute(
            "SELECT substr(data, ?, ?) FROM chunks WHERE name = ? AND n = ?", [skip + 1, length, self._name, number]
        ).fetchone()
        chunk: bytes = row[0] if row else b""
        self._position += len(chunk)
        return chunk
