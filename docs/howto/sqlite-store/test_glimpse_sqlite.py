"""The driver keeps the contract of every store: this is all that has to be written."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from glimpse.tasks import StoreRef
from glimpse.testing.stores import Raw, StoreContract


class TestSqlite(StoreContract):
    """A database in a folder of the test."""

    @pytest.fixture
    def ref(self, tmp_path: Path) -> StoreRef:
        """An empty one."""
        config = {"path": str(tmp_path / "images.db"), "deadAfter": "6s"}
        return StoreRef(name="lite", driver="sqlite", config=config, installation="here")

    @pytest.fixture
    def small(self, ref: StoreRef) -> StoreRef:
        """Another one, of 20 MiB."""
        path = ref.config["path"].replace("images", "small")
        return ref.model_copy(update={"config": {**ref.config, "path": path, "size": "20Mi"}})

    @pytest.fixture
    def raw(self, ref: StoreRef) -> Raw:
        """Every name in any table."""

        def look() -> set[str]:
            if not Path(ref.config["path"]).exists():
                return set()
            with closing(sqlite3.connect(ref.config["path"])) as db:
                objects = dict(db.execute("SELECT name, key FROM objects"))
                found = {name for (name,) in db.execute("SELECT name FROM chunks UNION SELECT name FROM attempts")}
                return {objects.get(name, name) for name in found} | set(objects.values())

        return look

    @pytest.fixture
    def buried(self, ref: StoreRef) -> Callable[[], None]:
        """Wait until no sign of life counts any more."""

        def wait() -> None:
            with closing(sqlite3.connect(ref.config["path"])) as db:
                while db.execute("SELECT 1 FROM attempts WHERE beat > ?", [time.time() - 6]).fetchone():
                    time.sleep(0.05)

        return wait
