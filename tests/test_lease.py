"""A lease: renewed while the block lasts, and the writer knows when others may take it for dead."""

import threading

import pytest

from glimpse.lease import Lease
from glimpse.problems import StoreUnavailable

PATIENCE = 30


def test_it_is_renewed_until_the_block_ends() -> None:
    """Again and again while the writer waits, and never afterwards."""
    often = threading.Semaphore(0)
    with Lease(often.release, 0.05) as lease:
        for _ in range(4):
            assert often.acquire(timeout=PATIENCE)
        thread = lease._thread
    assert not thread.is_alive()


def test_the_first_mark_must_be_written() -> None:
    """Without one there is no attempt."""

    def renew() -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable, match="away"), Lease(renew, 60):
        pass


def test_a_fresh_lease_is_enough_for_a_commit() -> None:
    """And so is one that was renewed meanwhile."""
    with Lease(lambda: None, 3600) as lease:
        lease.check()


@pytest.mark.parametrize("error", [StoreUnavailable("away"), OSError("reset")], ids=repr)
def test_a_writer_that_may_be_dead_commits_nothing(error: Exception) -> None:
    """Renewals that fail are tried again; once the lease has run out, one that does not fail comes too late."""
    tried = threading.Semaphore(0)
    failing = threading.Event()

    def renew() -> None:
        tried.release()
        if failing.is_set():
            raise error

    with Lease(renew, 0.2) as lease:
        failing.set()
        for _ in range(8):  # more than a lease
            assert tried.acquire(timeout=PATIENCE)
        with pytest.raises(StoreUnavailable, match="no sign of life"):
            lease.check()
        failing.clear()
        for _ in range(3):
            assert tried.acquire(timeout=PATIENCE)
        with pytest.raises(StoreUnavailable, match="no sign of life"):  # others may have begun to remove it
            lease.check()
    assert not lease._thread.is_alive()
