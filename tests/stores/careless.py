"""A driver as one writes it in a hurry: in place, by the told length, nothing locked, nothing synced.

The contract suite must find it out; otherwise the suite is worth nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from glimpse.api.base import Model
from glimpse.problems import NotFound
from glimpse.stores import Capacity, Mark, Stat
from glimpse.streams import CHUNK, Reader


class CarelessConfig(Model):
    """A folder."""

    path: str


class Careless:
    """A store in a folder, without care."""

    Config: ClassVar[type[BaseModel]] = CarelessConfig

    def __init__(self, config: CarelessConfig, _secret: Mapping[str, str], _ca_bundle: str | None, /) -> None:
        self.path = Path(config.path)

    @property
    def endpoint(self) -> str:
        """The folder."""
        return str(self.path)

    def put(self, key: str, _attempt: str, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write it where it belongs, as long as it says it is."""
        written = 0
        with (self.path / key).open("wb") as file:
            while body.size is None or written < body.size:
                chunk = body.read(CHUNK)
                if not chunk:
                    break
                written += file.write(chunk)
        (self.path / f"{key}.record").write_bytes(record())
        return self.stat(key)

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Read it all, then cut."""
        if not (self.path / key).exists():
            raise NotFound(key)
        yield Bytes((self.path / key).read_bytes()[offset : None if length is None else offset + length])

    def stat(self, key: str, /) -> Stat:
        """Look at the file."""
        file, record = self.path / key, self.path / f"{key}.record"
        if not file.exists():
            raise NotFound(key)
        state = file.stat()
        return Stat(key, state.st_size, str(file), state.st_mtime, record.read_bytes() if record.exists() else None)

    def update(self, key: str, record: bytes, /) -> None:
        """Write another record."""
        self.stat(key)
        (self.path / f"{key}.record").write_bytes(record)

    def delete(self, key: str, /) -> None:
        """Remove the file."""
        (self.path / key).unlink(missing_ok=True)
        (self.path / f"{key}.record").unlink(missing_ok=True)

    def list(self, prefix: str = "", /) -> Iterator[Stat]:
        """All files but records and the marker."""
        return (
            self.stat(file.name)
            for file in self.path.glob(f"{prefix}*")
            if file.suffix not in {".record", ".part", ".mark"} and file.name != "marker"
        )

    def put_marked(self, key: str, _attempt: str, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Write it beside the place where it belongs, and leave it there whatever happens."""
        return self.append(key, 0, mark, body, record)

    @contextmanager
    def take(self, key: str, _attempt: str, /) -> "Iterator[Left | None]":
        """Whatever lies there."""
        part, mark = self.path / f"{key}.part", self.path / f"{key}.mark"
        yield Left(self, key, mark.read_bytes(), part.stat().st_size) if mark.exists() and part.exists() else None

    def append(self, key: str, offset: int, mark: Mark, body: Reader, record: Callable[[], bytes]) -> Stat:
        """Add to what lies there."""
        with (self.path / f"{key}.part").open("ab") as file:
            file.truncate(offset)
            while chunk := body.read(CHUNK):
                offset += file.write(chunk)
                (self.path / f"{key}.mark").write_bytes(mark(offset))
        (self.path / f"{key}.record").write_bytes(record())
        (self.path / f"{key}.part").replace(self.path / key)
        return self.stat(key)

    def probe(self) -> Capacity:
        """It cannot tell."""
        return Capacity(None, None, None)

    def claim(self, owner: str, /, *, fresh: bool) -> str:  # noqa: ARG002 - that is what is careless about it
        """Whoever writes last."""
        marker = self.path / "marker"
        if not marker.exists():
            marker.write_text(owner)
        return marker.read_text()


class Left:
    """What lies there."""

    def __init__(self, store: Careless, key: str, mark: bytes, length: int) -> None:
        self.store, self.key, self.mark, self.length = store, key, mark, length

    def open(self) -> "Bytes":
        """All of it."""
        return Bytes((self.store.path / f"{self.key}.part").read_bytes())

    def resume(self, length: int, mark: Mark, body: Reader, record: Callable[[], bytes], /) -> Stat:
        """Add to it."""
        return self.store.append(self.key, length, mark, body, record)


class Bytes:
    """A Reader over bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next piece."""
        chunk, self.data = self.data[:n], self.data[n:]
        return chunk
