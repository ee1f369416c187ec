"""Heads: how much a client may say before it is answered: bytes of a request's head, and requests that wait.

aiohttp bounds lines and their number, which together are a megabyte, and lets 32 requests wait: who sends no token
could fill the memory with what nobody has looked at yet.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage

from glimpse.gateway.refusals import Refusal

HEAD: Final = 32 << 10
"""Bytes of a request's head, and of what is no body between two bytes of one."""
LINE: Final = 8190
"""Bytes of the longest line in it. A token has some 1,500."""
LINES: Final = 100
"""Header lines of one request."""
WAITING: Final = 2
"""Requests of one connection that wait for their turn; no more is read before."""
READ: Final = 32 << 10
"""Bytes that are read at once."""

Parsed = tuple[Sequence[tuple[RawRequestMessage, StreamReader]], bool, bytes]


class HeadError(HttpProcessingError):
    """Ends a connection. It repeats nothing of what has come."""

    code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class Parser:
    """aiohttp's parser of the requests of one connection, with these bounds."""

    def __init__(self, protocol: BaseProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self._parser = HttpRequestParser(
            protocol,
            loop,
            READ,
            max_line_size=LINE,
            max_field_size=LINE,
            max_headers=LINES,
            max_msg_queue_size=WAITING,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,  # nobody asks for it, and a small body could become a large one
        )
        self._vain = 0  # bytes since the last ones that brought a request or a part of a body
        self._waiting = 0  # requests that were given out and not taken yet
        self._body: StreamReader | None = None  # of the last one, while some of it is missing
        self._broken = False

    def feed_data(self, data: bytes) -> Parsed:
        """What these bytes bring. Raises HttpProcessingError, after which nothing more is read."""
        if self._broken:
            return (), False, b""
        try:
            return self._fed(data)
        except HttpProcessingError:
            self._broken = True
            if self._body:  # who reads it would wait for the rest
                self._body.set_exception(Refusal(400, "The body of this request is malformed."))
            raise

    def _fed(self, data: bytes) -> Parsed:
        body, before = self._body, self._body.total_bytes if self._body else 0
        messages, upgraded, tail = self._parser.feed_data(data)
        if body and body.is_eof():
            self._body = None
            if not self._waiting and not upgraded:
                # aiohttp counts a request when it is complete, and this one was taken before: else its place were lost
                self._parser.message_consumed()
                more, upgraded, tail = self._parser.feed_data(b"")
                messages = [*messages, *more]
        came = messages or (body and body.total_bytes > before)
        self._vain = 0 if came else self._vain + len(data)
        if self._vain > HEAD or any(_length(message) > HEAD for message, _ in messages):
            raise HeadError
        if any(_strange(message) for message, _ in messages):
            raise BadHttpMessage("the coding of the body")
        self._waiting += len(messages)
        if messages:
            payload = messages[-1][1]
            self._body = None if payload.is_eof() else payload
        return messages, upgraded, tail

    def message_consumed(self) -> None:
        """One of the requests has its turn."""
        self._waiting -= 1
        self._parser.message_consumed()

    def pause_reading(self) -> None:
        """Nobody takes what comes of a body."""
        self._parser.pause_reading()

    def set_upgraded(self, upgraded: bool) -> None:
        """Whether what comes is still HTTP."""
        self._parser.set_upgraded(upgraded)


def _strange(message: RawRequestMessage) -> bool:
    """Whether others may see another body: HTTP/1.0 has no chunks, and what is coded besides would be kept so.

    RFC 9112, 6.1.
    """
    coding = message.headers.get("Transfer-Encoding")
    return coding is not None and (message.version < HttpVersion11 or coding.strip().lower() != "chunked")


def _length(message: RawRequestMessage) -> int:
    return len(message.path) + sum(len(name) + len(value) for name, value in message.raw_headers)
