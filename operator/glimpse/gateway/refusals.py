"""Refusals: what a caller is told when he does not get what he asked for, as `application/problem+json` (RFC 9457).

One exception with one form, so that no handler can leak a stack trace or answer in another way.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    Problem,
    SecretNotReadable,
    StoreConflict,
    StoreFull,
    StoreNotFound,
    StoreOwnedByAnother,
    StoreReadOnly,
    StoreRefused,
    StoreUnauthorized,
    StoreUnavailable,
    WorkerCrashed,
    WorkerLost,
)

PROBLEM: Final = "application/problem+json"
NOT_FOUND: Final = "There is no such image, or you may not download it."
"""The same words for what is not there and for what the caller may not see."""
MISMATCH: Final = (460, "Checksum Mismatch")
"""A status that only tus knows (its extension `checksum`), with its words."""
LATER: Final = 5
"""Seconds after which a caller may ask again, where nothing better is known."""
SOON: Final = 1
"""The same where only others are before him."""

_OURS: Final[dict[type[Problem], str]] = {
    DataLost: "what was kept of it is gone, or is not what was sent",
    InvalidConfiguration: "a store, or the conversion that the image asks for, is not set up as it must be",
    SecretNotReadable: "a store cannot be opened",
    StoreConflict: "a store holds other bytes as this revision",
    StoreFull: "a store has no room for it",
    StoreNotFound: "there is a store missing",
    StoreOwnedByAnother: "a store belongs to another installation",
    StoreReadOnly: "a store takes no bytes",
    StoreRefused: "a store takes nothing of this namespace",
    StoreUnauthorized: "a store does not let this installation in",
    StoreUnavailable: "a store cannot be reached",
    WorkerCrashed: "the worker that took the bytes has crashed",
    WorkerLost: "the worker that took the bytes has ended",
}
"""Troubles of the installation: what a sender hears in place of their messages, which name its servers."""


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault of ours
    """Ends a request with this status. `detail` is for a person, and holds no secret."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, *, retry_after: int | None = None
    ) -> None:
        """`retry_after`: seconds after which the caller may try again."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)


def refuse(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer for one refusal."""
    title = title_of(status)
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    response = web.Response(
        status=status,
        reason=title,
        body=json.dumps(body).encode() + b"\n",
        content_type=PROBLEM,
        headers=headers,
    )
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers.add("WWW-Authenticate", 'Bearer realm="glimpse"')
        response.headers.add("WWW-Authenticate", 'Basic realm="glimpse", charset="UTF-8"')
    return response


def title_of(status: int) -> str:
    """The words of a status."""
    return MISMATCH[1] if status == MISMATCH[0] else HTTPStatus(status).phrase


def away() -> Refusal:
    """The API server cannot be asked."""
    return Refusal(503, "The API server does not answer at the moment.", retry_after=LATER)


def incomplete() -> Refusal:
    """The catalogue does not know all images as they are."""
    return Refusal(503, "Not all images are known as they are at the moment.", retry_after=LATER)


def said(reason: str, message: str) -> str:
    """What a sender hears of a Problem: all that is wrong with his bytes, and of ours what kind of trouble it is."""
    words = next((text for kind, text in _OURS.items() if kind.reason == reason), None)
    return f"{words}; an administrator finds more in the gateway's log" if words else message


def sentence(text: str) -> str:
    """With a period: what a Problem says goes on in conditions, and ends here."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
