"""What the API server answers: an object, or an error that says what to do.

    ApiError
    ├── Gone            404: there is no such object
    ├── Conflict        409, or a test of a patch that does not hold: read again, decide again
    ├── Forbidden       403: RBAC or an admission policy says no
    ├── Invalid         400, 422 and any other 4xx: the request is wrong, and would be again
    └── Unavailable     429, 5xx, network: tried again for some seconds, then raised

Callers decide by these, so that none of them has to know HTTP.
"""

import contextlib
import json

from glimpse.kube.kinds import Object


class ApiError(Exception):
    """The API server said no, or nothing. `status` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Gone(ApiError):  # noqa: N818 - reads as what the API server says
    """There is no such object."""


class Conflict(ApiError):  # noqa: N818 - reads as what the API server says
    """The object is not as we thought: read it again and decide again."""


class Forbidden(ApiError):  # noqa: N818 - reads as what the API server says
    """RBAC or an admission policy says no."""


class Invalid(ApiError):  # noqa: N818 - reads as what the API server says
    """The request is wrong, and would be wrong again."""


class Unavailable(ApiError):  # noqa: N818 - reads as what the API server says
    """The API server did not answer, or asked us to come later; tried again for some seconds already."""

    retry_after: float = 0.0
    """Seconds that it asked us to wait."""


class Expired(ApiError):  # noqa: N818 - reads as what the API server says
    """410: the version that we speak of is compacted. Handled here: never leaves this module."""

    goes_on = ""
    """Continues a list, if the server offers it."""


def answer(verb: str, path: str, status: int, raw: bytes, retry_after: str) -> Object:
    """The object of an answer, or the error that it is."""
    body: Object = {}
    with contextlib.suppress(ValueError):
        parsed = json.loads(raw)
        body = parsed if isinstance(parsed, dict) else {}
    if 200 <= status < 300 and body:  # noqa: PLR2004 - HTTP
        return body
    message = f"{verb} {path}: {status} {body.get('message', '')}".rstrip()[:500]
    details = body.get("details") or {}
    error: ApiError
    match status:
        case 404:
            error = Gone(message, status)
        case 403:
            error = Forbidden(message, status)
        case 410:
            error = expired = Expired(message, status)
            expired.goes_on = (body.get("metadata") or {}).get("continue", "")
        case 409:
            error = Conflict(message, status)
        case 422 if verb == "PATCH" and not details:
            # Seen: a test that fails comes without any detail, an object that is not valid names its kind and causes.
            error = Conflict(f"{verb} {path}: 422 the object has changed", status)
        case _ if 400 <= status < 500 and status not in (401, 408, 425, 429):  # noqa: PLR2004 - HTTP
            error = Invalid(message, status)
        case _:
            error = away = Unavailable(message, status)
            seconds = retry_after or str(details.get("retryAfterSeconds", ""))
            away.retry_after = float(seconds) if seconds.isdigit() else 0.0
    raise error
