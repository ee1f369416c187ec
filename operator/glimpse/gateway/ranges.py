"""Ranges and preconditions (RFC 9110, sections 13 and 14): pure functions over headers.

Resuming clients depend on every corner of them, so they stand apart and are tested against a model.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, NamedTuple

_UNIT: Final = re.compile(r"bytes=", re.IGNORECASE)
_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)", re.ASCII)
# Possessive, and nothing optional before the tag but two letters: no part of a list is looked at more than twice.
_ETAG: Final = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\U0010ffff]*+")[ \t]*+(?:,|$)')
_DIGITS: Final = 4000  # Python refuses to convert much longer ones
MANY: Final = 50
"""Parts of one answer; who asks for more gets the whole."""
GAP: Final = 160
"""Bytes between two ranges that cost no more to send than the head of another part."""
LONGEST: Final = 8192
"""Characters of a header with all its lines; a longer one names nothing: no 304, no 206, and If-Match fails."""

Header = Callable[[str], str | None]
"""Gives a header's value, its lines joined by commas; None without one."""


class Span(NamedTuple):
    """The part of a representation to send, in bytes."""

    start: int
    length: int


class Unsatisfiable(Exception):  # noqa: N818 - the word of RFC 9110
    """All ranges lie outside of the representation: 416."""


def parse_ranges(value: str, size: int) -> tuple[Span, ...]:
    """The byte ranges that `value` asks for, as they are to be sent; none if that is the whole. Raises Unsatisfiable.

    Several are joined where they overlap, touch, or leave out no more than GAP bytes, and stand where the first of
    them was asked for (RFC 9110, 15.3.7.2): what is left costs less than the whole. What is malformed or in another
    unit is ignored, and so are more than MANY that cannot be joined, as is allowed there (14.2). The work is bounded by
    the header's length.
    """
    unit = _UNIT.match(value) if len(value) <= LONGEST else None
    if not unit:
        return ()
    asked = [part for each in value[unit.end() :].split(",") if (part := each.strip(" \t"))]  # empty ones mean nothing
    try:
        spans = [span for each in asked if (span := _span(each, size))]
    except ValueError:
        return ()
    if asked and not spans:
        raise Unsatisfiable
    if len(asked) == 1:
        return tuple(span for span in spans if span.length)
    joined = _join(spans)
    return () if len(joined) > MANY or joined == (Span(0, size),) else joined


def _span(asked: str, size: int) -> Span | None:
    """One range; None if no byte of it exists. Raises ValueError if it is none. Of nothing, the end is nothing."""
    match = _RANGE.fullmatch(asked)
    if not match or not (match[1] or match[2]):
        raise ValueError(asked)
    first, last = _number(match[1]), _number(match[2])
    if first is None:  # a suffix: the last so many bytes
        length = min(last or 0, size)
        return Span(size - length, length) if last else None
    if last is not None and last < first:
        raise ValueError(asked)
    return Span(first, (size if last is None else min(last + 1, size)) - first) if first < size else None


def _join(spans: list[Span]) -> tuple[Span, ...]:
    """The same bytes and those of small gaps, each once; in the order in which they were first asked for."""
    found: list[tuple[int, Span]] = []  # with the place of the first that it is made of
    for place, span in sorted(enumerate(spans), key=lambda each: each[1]):
        before = found[-1] if found else None
        if before and span.start - (before[1].start + before[1].length) <= GAP:
            end = max(before[1].start + before[1].length, span.start + span.length)
            found[-1] = min(place, before[0]), Span(before[1].start, end - before[1].start)
        else:
            found.append((place, span))
    return tuple(span for _, span in sorted(found))


def precondition(header: Header, etag: str, modified: datetime) -> HTTPStatus | None:
    """What the preconditions of a GET or HEAD say, in the order of RFC 9110, 13.2.2: 412, 304, or go on.

    `etag` is strong, with its quotes; `modified` has no fraction of a second.
    """
    if (match := header("If-Match")) is not None:
        if not matches(match, etag, weak=False):
            return HTTPStatus.PRECONDITION_FAILED
    elif (since := _date(header("If-Unmodified-Since"))) and modified > since:
        return HTTPStatus.PRECONDITION_FAILED
    if (match := header("If-None-Match")) is not None:
        return HTTPStatus.NOT_MODIFIED if matches(match, etag, weak=True) else None
    if (since := _date(header("If-Modified-Since"))) and modified <= since:
        return HTTPStatus.NOT_MODIFIED
    return None


def range_applies(condition: str | None, etag: str, modified: datetime | None) -> bool:
    """Whether `If-Range` lets the Range count: the validator is strong and equal.

    `modified` is None where the date is no strong validator, as two revisions share it.
    """
    if condition is None:
        return True
    if len(condition) > LONGEST:
        return False
    condition = condition.strip()
    if condition.startswith(('"', "W/")):
        return condition == etag
    return modified is not None and _date(condition) == modified


def _number(digits: str) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS else 10**_DIGITS


def matches(value: str, etag: str, *, weak: bool) -> bool:
    """Whether `*` or a list of ETags names this strong one, with its quotes; `weak`: by a weak comparison too."""
    if len(value) > LONGEST:
        return False
    if value.strip() == "*":
        return True
    return any(tag == etag and (weak or not prefix) for prefix, tag in _ETAG.findall(value))


def _date(value: str | None) -> datetime | None:
    """An HTTP date; None if there is none or it cannot be read, which means that it does not count."""
    try:
        date = parsedate_to_datetime(value) if value and len(value) <= LONGEST else None
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date and date.tzinfo is None else date
