"""The contract suite itself: an honest driver passes, a careless one is found out."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glimpse.stores import Version
from glimpse.tasks import StoreRef
from glimpse.testing.cloneable import CloneableContract
from glimpse.testing.memory import PLACES, Place
from glimpse.testing.registering import Lay, RegisteringContract
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.stores import Raw, StoreContract, StoreFixtures

CARELESS = """
from pathlib import Path
import pytest
from glimpse.tasks import StoreRef
from glimpse.testing.resumable import ResumableContract
from glimpse.testing.stores import StoreContract, StoreFixtures

class Fixtures(StoreFixtures):
    @pytest.fixture
    def ref(self, tmp_path):
        return StoreRef(name="careless", driver="careless", config={"path": str(tmp_path)}, installation="here")

    @pytest.fixture
    def raw(self, tmp_path):
        return lambda: {file.name for file in tmp_path.iterdir()} - {"marker"}

class TestCareless(Fixtures, StoreContract):
    pass

class TestHurried(Fixtures, ResumableContract):
    lag = 8 << 20
"""


class Fixtures(StoreFixtures):
    """Places in memory."""

    @pytest.fixture
    def ref(self, outside: Path) -> StoreRef:
        """A place that is named after the test's folder."""
        return StoreRef(name="memory", driver="memory", config={"place": str(outside)}, installation="here")

    @pytest.fixture
    def raw(self, outside: Path) -> Raw:
        """All that the place holds."""
        place = PLACES.setdefault(str(outside), Place())
        return lambda: {*place.objects, *place.attempts, *place.dead}

    @pytest.fixture
    def small(self, outside: Path) -> StoreRef:
        """A place of 16 MiB."""
        config = {"place": f"{outside}/small", "total": 16 << 20}
        return StoreRef(name="small", driver="memory", config=config, installation="here")


class TestMemory(Fixtures, StoreContract):
    """The driver of the tests keeps the contract, as far as a process can outlive itself."""

    test_leaves_an_attempt_of_another_process_alone = None  # type: ignore[assignment]  # a place in memory dies with its process
    test_survives_a_kill = None  # type: ignore[assignment]  # a place in memory dies with its process
    test_removes_the_dead = None  # type: ignore[assignment]  # a place in memory dies with its process


class TestCloneableMemory(Fixtures, CloneableContract):
    """The same for objects that are made of others."""


class TestResumableMemory(Fixtures, ResumableContract):
    """The same for what it remembers of puts that failed."""

    test_never_offers_what_is_alive_elsewhere = None  # type: ignore[assignment]  # a place in memory dies with its process
    test_survives_kills = None  # type: ignore[assignment]  # a place in memory dies with its process


class TestRegisteringMemory(Fixtures, RegisteringContract):
    """The same for what others have put there."""

    @pytest.fixture
    def lay(self, outside: Path) -> Lay:
        """Enter it."""
        others = PLACES.setdefault(str(outside), Place()).others
        count = itertools.count()

        def lay(location: str, data: bytes | None) -> None:
            others.pop(location, None)
            if data is not None:
                others[location] = Version(len(data), f'"{next(count)}"'), data

        return lay


FOUND = {
    # StoreContract
    "test_believes_the_body_and_not_its_length",
    "test_behaves_like_a_dictionary",
    "test_is_whole_or_absent_to_others",
    "test_leaves_a_living_attempt_alone",
    "test_leaves_an_attempt_of_another_process_alone",
    "test_lets_one_of_many_win",
    "test_lets_the_error_of_a_body_out",
    "test_lets_the_error_of_a_record_out",
    "test_misses_its_marker",
    "test_reads_to_the_end_before_it_commits",
    "test_survives_a_kill",
    "test_survives_a_stalled_attempt",
    "test_writes_an_object_once",
    # ResumableContract
    "test_gives_it_to_one_of_many",
    "test_is_removed_as_any_dead_attempt",
    "test_never_offers_what_is_alive",
    "test_never_offers_what_is_alive_elsewhere",
    "test_never_offers_what_is_gone_on_with",
    "test_offers_the_one_that_came_furthest",
}
"""What a careless driver cannot pass, on any machine."""


def test_finds_a_careless_driver_out(outside: Path, tmp_path: Path) -> None:
    """A driver that writes in place, by the told length, with no regard to others, fails what it should."""
    (tmp_path / "test_careless.py").write_text(CARELESS)
    path = os.pathsep.join([str(outside), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--tb=no",
            "-rA",
            "-k",
            "TestCareless or offers or one_of_many or dead_attempt or goes_on",
            "test_careless.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))
    passed = set(re.findall(r"^PASSED \S+::(\w+)", done.stdout, re.MULTILINE))
    assert failed >= FOUND, done.stdout
    assert {"test_gives_back_what_it_was_given", "test_goes_on_with_what_was_written"} <= passed - failed, done.stdout
