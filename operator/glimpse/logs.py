"""How the programs log: one line an event, text for people or JSON for machines, and never a secret.

The root logger is ours, so that libraries (kopf, aiohttp, kubernetes) write in the same form.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

from glimpse.settings import Settings

# Each one reads a text once, whatever is in it: strangers write parts of what is logged.
_SECRETS: Final = (
    (re.compile(r"\b(Bearer|Basic)\s++[A-Za-z0-9._~+/=-]{8,}+", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"eyJ[A-Za-z0-9_.-]{8,}+"), "***"),  # a JWT (RFC 7519), or a part of one
    (re.compile(r"(://)[^/\s:@]*+:[^/\s@]*+@"), r"\1***@"),
    (re.compile(r"(https?://[^\s?\"']++)(?:\?[^\s\"']*+)?"), r"\1"),  # signatures travel in queries
    (re.compile(r"\b(signature=)[^\s&\"']++", re.IGNORECASE), r"\1***"),  # of a query without its address
)
"""The last line of defence: what comes this far is a mistake somewhere else."""
_HINT: Final = re.compile(r"bearer|basic|eyJ|://|signature=", re.IGNORECASE)
"""What each of them has; most lines have none of it."""

_QUIET: Final = {
    # kopf tells of each handler that it calls, and logs to its objects are what it would post as Events.
    "kopf": logging.WARNING,
    "kopf.objects": logging.ERROR,
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "kubernetes": logging.WARNING,
    "kubernetes_aio": logging.WARNING,
}


def configure(settings: Settings) -> None:
    """Log to stderr as the settings say; replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = getattr(logging, settings.log_level.upper())
    root.setLevel(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(level if level == logging.DEBUG else max(level, least))


class About(logging.LoggerAdapter[logging.Logger]):
    """A logger that says which object it speaks of: `log = About(logger, "Image", "team-a/debian-12")`."""

    def __init__(self, logger: logging.Logger, kind: str, name: str) -> None:
        super().__init__(logger, {"object": f"{kind} {name}"})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """As logging asks."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def redact(text: str) -> str:
    """The text with everything masked that looks like a credential."""
    for pattern, instead in _SECRETS if _HINT.search(text) else ():
        text = pattern.sub(instead, text)
    return text


_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _extras(record: logging.LogRecord) -> Mapping[str, object]:
    # kopf hangs whole objects on its records.
    return {
        k: v
        for k, v in vars(record).items()
        if k not in _PLAIN and not k.startswith("k8s_") and isinstance(v, str | int | float)
    }


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on its own."""
        extras = dict(_extras(record))
        about = f" [{extras.pop('object')}]" if "object" in extras else ""
        more = "".join(f" {k}={v}" for k, v in extras.items())
        # A line break in what somebody else wrote could pretend to be another line.
        message = (record.getMessage() + more).replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_time(record)} {record.levelname:<7} {record.name}{about}: {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        entry |= {k: redact(v) if isinstance(v, str) else v for k, v in _extras(record).items()}
        if record.exc_info:
            entry["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(entry)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
