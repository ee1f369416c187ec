"""Mirrors in the order of speed and health."""

import pytest

from glimpse.control.mirrors import Mirrors
from glimpse.tasks import Mirror

A, B, C = "https://a.example/x", "https://b.example:8443/x", "https://c.example/x?token=1"


def did(mib: int, seconds: float = 1.0, *, failed: bool = False) -> Mirror:
    """A transfer of so many MiB."""
    return Mirror(number=0, bytes=mib << 20, seconds=seconds, failed=failed)


def test_nothing_is_known() -> None:
    """Then the order of the spec holds."""
    assert Mirrors().order([B, A, C]) == (B, A, C)


@pytest.mark.parametrize(
    ("seen", "order"),
    [
        ([(A, did(10)), (B, did(20)), (C, did(5))], (B, A, C)),
        ([(A, did(10)), (B, did(20))], (C, B, A)),  # who is not known gets a chance
        ([(A, did(10)), (B, did(20, failed=True)), (C, did(5))], (A, C, B)),
        ([(A, did(0, failed=True))], (B, C, A)),
        ([(A, did(0, failed=True)), (A, did(10)), (B, did(1)), (C, did(1))], (A, B, C)),  # sound again
        ([(A, did(10)), (B, did(20)), (C, did(5)), *[(C, did(100))] * 3], (C, B, A)),
        ([(A, did(10, 0.0)), (B, Mirror(number=0, bytes=1000, seconds=1e-9))], (A, B, C)),  # too little to tell
        ([("https://a.example/another", did(1)), (B, did(2)), (C, did(3))], (C, B, A)),  # the server counts
    ],
)
def test_order(seen: list[tuple[str, Mirror]], order: tuple[str, ...]) -> None:
    """Sound before sick, fast before slow."""
    mirrors = Mirrors()
    for url, how in seen:
        mirrors.note(url, how)
    assert mirrors.order([A, B, C]) == order


def test_the_sick_are_forgiven() -> None:
    """After some minutes a server that failed is as good as its speed."""
    now = 0.0
    mirrors = Mirrors(lambda: now)
    for url, mib in ((A, 10), (B, 5), (C, 1)):
        mirrors.note(url, did(mib))
    mirrors.note(A, did(0, failed=True))
    assert mirrors.order([A, B, C]) == (B, C, A)
    now = 601.0
    assert mirrors.order([A, B, C]) == (A, B, C)


def test_memory_is_bounded() -> None:
    """Tenants name as many servers as they like."""
    mirrors = Mirrors()
    for number in range(3000):
        mirrors.note(f"https://{number}.example/", did(1))
    assert len(mirrors._servers) == 1000
