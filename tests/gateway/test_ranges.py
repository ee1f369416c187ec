"""Ranges and preconditions as pure functions, against a model that says the same in other words."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse.gateway.ranges import (
    _ETAG,
    GAP,
    LONGEST,
    MANY,
    Span,
    Unsatisfiable,
    parse_ranges,
    precondition,
    range_applies,
)

SIZES = st.integers(0, 40)
NUMBERS = st.one_of(st.integers(0, 50), st.integers(10**17, 10**30))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def answer(value: str, size: int) -> list[int] | str:
    """Which positions are sent: a list of them, "whole" or "unsatisfiable"."""
    try:
        spans = parse_ranges(value, size)
    except Unsatisfiable:
        return "unsatisfiable"
    return [at for span in spans for at in range(span.start, span.start + span.length)] if spans else "whole"


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
    assert parse_ranges("bytes=1-1", 3) == (Span(1, 1),)


BIG = 1 << 40


@given(
    ranges=st.lists(
        st.tuples(st.sampled_from([0, 1, 500, 10_000, BIG - 700, BIG - 1, BIG, BIG * 9]), st.integers(0, 3 * GAP)),
        min_size=2,
        max_size=MANY,
    )
)
def test_several(ranges: list[tuple[int, int]]) -> None:
    """Of several ranges each byte that exists is sent, once, and besides only what fills small gaps."""
    asked = ",".join(f"{start}-{start + more}" for start, more in ranges)
    there = [(start, min(start + more + 1, BIG)) for start, more in ranges if start < BIG]
    try:
        spans = parse_ranges(f"bytes={asked}", BIG)
    except Unsatisfiable:
        assert not there
        return
    assert spans
    sent = [(span.start, span.start + span.length) for span in spans]
    assert all(any(a <= start and end <= b for a, b in sent) for start, end in there)
    # what begins or ends was asked for, what was not is no longer than a gap, and the order is the client's
    assert {a for a, _ in sent} <= {start for start, _ in there}
    assert {b for _, b in sent} <= {end for _, end in there}
    edges = sorted(sent)
    assert all(before[1] + GAP < after[0] for before, after in pairwise(edges))
    first = [min(n for n, (start, _) in enumerate(there) if a <= start < b) for a, b in sent]
    assert first == sorted(first)


@pytest.mark.parametrize(
    ("asked", "spans"),
    [
        ("0-0,1000-1000", [(0, 1), (1000, 1)]),
        ("1000-1000 ,\t0-0", [(1000, 1), (0, 1)]),
        (",0-0,,1000-1000,", [(0, 1), (1000, 1)]),
        ("-1,0-0", [(BIG - 1, 1), (0, 1)]),
        ("0-9,5-19", [(0, 20)]),
        ("0-9,10-19", [(0, 20)]),
        (f"0-9,{10 + GAP}-{10 + GAP}", [(0, 11 + GAP)]),
        (f"0-9,{11 + GAP}-{11 + GAP}", [(0, 10), (11 + GAP, 1)]),
        ("5000-5000,0-9,5-19", [(5000, 1), (0, 20)]),
        ("0-0,1000-1000,2-2", [(0, 3), (1000, 1)]),
        (f"7-7,{BIG}-", [(7, 1)]),
        ("7-7,-0", [(7, 1)]),
        ("0-,5-6", []),
        (f"0-99,100-{BIG}", []),
        ("0-0,9-2", []),
        ("0-0,a-b", []),
        ("0-0,-", []),
        ("0-0;1000-1000", []),
        (",", []),
        (",".join(f"{n * 1000}-{n * 1000}" for n in range(MANY)), [(n * 1000, 1) for n in range(MANY)]),
        (",".join(f"{n * 1000}-{n * 1000}" for n in range(MANY + 1)), []),
        (",".join(f"{n}-{n}" for n in range(1000)), [(0, 1000)]),
        (",".join(["0-"] * 2000), []),
        (",".join(["5-5"] * 2000), [(5, 1)]),
        (",".join(["0-" + "9" * 2000, "-" + "9" * 2000, "9" * 2000 + "-"]), []),
    ],
)
def test_sets(asked: str, spans: list[tuple[int, int]]) -> None:
    """Sets are joined, answered in the order asked, or ignored where they are wrong, too many, or the whole."""
    assert parse_ranges(f"bytes={asked}", BIG) == tuple(Span(*span) for span in spans)


def test_sets_that_are_not_worth_it() -> None:
    """Parts that are the whole when they are joined are sent as such; of what does not exist nothing can be sent."""
    assert parse_ranges("bytes=0-199,361-559", 560) == (Span(0, 200), Span(361, 199))
    assert parse_ranges("bytes=0-199,360-559", 560) == ()
    assert parse_ranges("bytes=360-999,0-199", 561) == ()
    assert parse_ranges("bytes=0-0,300-300,600-600", 301) == (Span(0, 1), Span(300, 1))
    for asked in (f"{BIG}-,{BIG + 5}-", "-0,-0"):
        with pytest.raises(Unsatisfiable):
            parse_ranges(f"bytes={asked}", BIG)
    assert answer("bytes=-5,-3", 0) == "whole"
    assert answer("bytes=0-,-3", 0) == "whole"


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
