"""Parts: what the body of a download is made of: all of an image, a range of it, or several (multipart/byteranges).

A body is a list of ranges with what stands before each, so that several ranges take the same road out of the stores as
one, and its length is known before the first byte of an image is read.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from secrets import token_hex
from typing import Final, NamedTuple

from glimpse.gateway.ranges import Span

BYTES: Final = "application/octet-stream"
"""The media type of every image."""


class Piece(NamedTuple):
    """A range, and what is sent before it."""

    head: bytes
    span: Span


class Body(NamedTuple):
    """What is sent, in this order."""

    status: HTTPStatus
    headers: Mapping[str, str]
    """That say what it is."""
    pieces: Sequence[Piece]

    @property
    def length(self) -> int:
        """Of all of it, in bytes."""
        return sum(len(piece.head) + piece.span.length for piece in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether it is the image itself, all of it."""
        return self.status is HTTPStatus.OK


def body(spans: Sequence[Span], size: int) -> Body:
    """Those ranges of an image of this size, or all of it if there are none (RFC 9110, 15.3.7 and 14.6)."""
    if not spans:
        return Body(HTTPStatus.OK, {"Content-Type": BYTES}, [Piece(b"", Span(0, size))])
    where = [f"bytes {span.start}-{span.start + span.length - 1}/{size}" for span in spans]
    if len(spans) == 1:
        headers = {"Content-Type": BYTES, "Content-Range": where[0]}
        return Body(HTTPStatus.PARTIAL_CONTENT, headers, [Piece(b"", spans[0])])
    boundary = token_hex(16)  # nobody can have put it into his image: it is drawn anew for each answer
    heads = [f"\r\n--{boundary}\r\nContent-Type: {BYTES}\r\nContent-Range: {at}\r\n\r\n".encode() for at in where]
    end = Piece(f"\r\n--{boundary}--\r\n".encode(), Span(0, 0))
    pieces = [*map(Piece, heads, spans), end]
    return Body(HTTPStatus.PARTIAL_CONTENT, {"Content-Type": f"multipart/byteranges; boundary={boundary}"}, pieces)


class Rest:
    """What of a body is still to be sent, to the byte: another copy may go on with it."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = deque(pieces)
        self.sent = 0
        """Bytes of the image that have gone."""

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def span(self) -> Span:
        """The range that is next, or what is left of it."""
        return self._pieces[0].span

    def head(self) -> bytes:
        """What must be sent before it; once."""
        head, span = self._pieces[0]
        self._pieces[0] = Piece(b"", span)
        return head

    def count(self, more: int) -> None:
        """So many bytes of it have gone."""
        head, (start, length) = self._pieces[0]
        self._pieces[0] = Piece(head, Span(start + more, length - more))
        self.sent += more

    def next(self) -> None:
        """All of it has gone."""
        self._pieces.popleft()
