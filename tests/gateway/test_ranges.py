"""Ranges and preconditions as pure functions, against a model that says the same in other words."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse.gateway.ranges import _ETAG, LONGEST, Span, Unsatisfiable, parse_range, precondition, range_applies

SIZES = st.integers(0, 40)
NUMBERS = st.one_of(st.integers(0, 50), st.integers(10**17, 10**30))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def answer(value: str, size: int) -> list[int] | str:
    """Which positions are sent: a list of them, "whole" or "unsatisfiable"."""
    try:
        span = parse_range(value, size)
    except Unsatisfiable:
        return "unsatisfiable"
    return "whole" if span is None else list(range(span.start, span.start + span.length))


@given(first=NUMBERS, last=st.one_of(st.none(), NUMBERS), size=SIZES)
def test_from_to(first: int, last: int | None, size: int) -> None:
    """`first-last` is every position between both that exists."""
    end = size if last is None else min(last + 1, size)
    model: list[int] | str
    if last is not None and last < first:
        model = "whole"  # malformed (RFC 9110, 14.1.1), so ignored
    else:
        model = list(range(first, end)) if first < size else "unsatisfiable"
    assert answer(f"bytes={first}-{'' if last is None else last}", size) == model


@given(length=NUMBERS, size=SIZES)
def test_suffix(length: int, size: int) -> None:
    """`-length` is the end, or all if there is not as much; no byte at all is unsatisfiable."""
    wanted = list(range(size))[-min(length, size) :] if length else "unsatisfiable"
    # a part of nothing cannot be written as Content-Range, so it is the whole nothing
    assert answer(f"bytes=-{length}", size) == (wanted or "whole")


@given(value=st.text(alphabet="bytesBYTES=-,0123456789 \t", max_size=30), size=SIZES)
def test_anything(value: str, size: int) -> None:
    """Whatever is sent, an answer lies within the representation and is never empty."""
    got = answer(value, size)
    if isinstance(got, list):
        assert got
        assert set(got) <= set(range(size))


@given(value=st.text(max_size=200))
def test_nonsense(value: str) -> None:
    """No text makes the functions fail."""
    answer(value, 10)
    precondition(lambda _: value, '"a"', NOW)
    range_applies(value, '"a"', NOW)


def test_very_long_numbers() -> None:
    """Python refuses to convert numbers of more than 4,300 digits; a range may have them."""
    assert answer(f"bytes=0-{'9' * 8000}", 3) == [0, 1, 2]
    assert answer(f"bytes={'9' * 8000}-", 3) == "unsatisfiable"
    assert answer(f"bytes={'0' * 8000}1-", 3) == [1, 2]
    assert parse_range("bytes=1-1", 3) == Span(1, 1)


@given(
    have=st.sampled_from(['"a"', '"b,c"', '""']),
    tags=st.lists(st.sampled_from(['"a"', '"b,c"', '""', '"d"']), min_size=1, max_size=4),
    weak=st.booleans(),
)
def test_lists_of_tags(have: str, tags: list[str], *, weak: bool) -> None:
    """A tag is found in a list wherever it stands, also with a comma in it; strong comparison wants no W/."""
    value = ", ".join(f"W/{tag}" if weak else tag for tag in tags)
    assert precondition({"If-Match": value}.get, have, NOW) == (None if have in tags and not weak else 412)
    assert precondition({"If-None-Match": value}.get, have, NOW) == (304 if have in tags else None)


@given(seconds=st.integers(-3, 3))
def test_dates(seconds: int) -> None:
    """Dates compare as dates; for If-Range only the very same will do."""
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert precondition({"If-Modified-Since": date}.get, '"a"', NOW) == (304 if seconds >= 0 else None)
    assert precondition({"If-Unmodified-Since": date}.get, '"a"', NOW) == (412 if seconds < 0 else None)
    assert range_applies(date, '"a"', NOW) is (seconds == 0)
    assert not range_applies(date, '"a"', None)


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    "tags", ["x" + " " * (1 << 20) + "x", '" ' * (1 << 19), "W/" * (1 << 19), '"' + "a" * (1 << 20)]
)
def test_a_list_of_tags_costs_its_length(tags: str) -> None:
    """A megabyte that is no list of tags is read in a moment; a square of it would be hours."""
    assert not _ETAG.findall(tags)


def test_headers_that_are_too_long() -> None:
    """A header beyond the limit names nothing: the whole is sent, but not to who has insisted on another."""
    tags = ", ".join(['"b"'] * LONGEST) + ', "a"'
    date = " " * LONGEST + format_datetime(NOW, usegmt=True)
    assert precondition({"If-None-Match": tags}.get, '"a"', NOW) is None
    assert precondition({"If-Match": tags}.get, '"a"', NOW) == 412
    assert precondition({"If-Modified-Since": date}.get, '"a"', NOW) is None
    assert not range_applies(" " * LONGEST + '"a"', '"a"', None)
    assert answer("bytes=1-1" + " " * LONGEST, 3) == "whole"
