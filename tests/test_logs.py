"""Log lines: one an event, in the form that was asked for, without secrets."""

import json
import logging
from collections.abc import Iterator

import pytest

from glimpse import logs
from glimpse.settings import Settings


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in logs._QUIET:
        logging.getLogger(name).setLevel(logging.NOTSET)


def last(capsys: pytest.CaptureFixture[str]) -> str:
    """What was written."""
    return capsys.readouterr().err


def fail(text: str) -> None:
    """Raise something to log."""
    raise ValueError(text)


def test_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Level, logger, object and message on one line, whatever a user has put into a message."""
    logs.configure(Settings(log_format="text"))
    log = logs.About(logging.getLogger("glimpse.test"), "Image", "team-a/debian-12")
    log.info("stored in %s\n2026-01-01 INFO forged", "fast")
    line = last(capsys)
    assert line.count("\n") == 1
    assert r"INFO    glimpse.test [Image team-a/debian-12]: stored in fast\n2026" in line


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Machines get an object with the same fields, tracebacks included."""
    logs.configure(Settings(log_format="json"))
    try:
        fail("broken")
    except ValueError:
        logging.getLogger("glimpse.test").exception("it failed", extra={"attempt": 3})
    entry = json.loads(last(capsys))
    assert (entry["level"], entry["logger"], entry["message"], entry["attempt"]) == (
        "error",
        "glimpse.test",
        "it failed",
        3,
    )
    assert "ValueError: broken" in entry["traceback"]


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cr3t-s3cr3t",
        "authorization: basic dXNlcjpzM2NyM3Q=",
        "token eyJhbGciOiJSUzI1NiJ9.eyJzM2NyM3QiOjF9.s3cr3t",
        "GET https://user:s3cr3t@example.org/a",
        "in the middle, eyJhbGciOiJSUzI1NiJ9.eyJzM2NyM3QiOjF9",
        "GET https://example.org/a?X-Amz-Signature=s3cr3t",
        "GET /v1/namespaces/a/images/b/revisions/1?uid=1&signature=s3cr3t",
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_masked(capsys: pytest.CaptureFixture[str], text: str, form: str) -> None:
    """What looks like a credential is never written, in a message or in a traceback."""
    logs.configure(Settings.model_validate({"log_format": form}))
    try:
        fail(text)
    except ValueError:
        logging.getLogger("glimpse.test").exception("%s", text)
    written = last(capsys)
    assert "glimpse.test" in written
    for secret in ("s3cr3t", "dXNlcjpzM2NyM3Q=", "eyJzM2NyM3QiOjF9"):
        assert secret not in written


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    "part", ["http://", "eyJ-", "eyJa.", "Bearer ", "://:", "https://a:b", "://a:@", "signature="], ids=repr
)
def test_masking_costs_the_length_of_a_text(part: str) -> None:
    """A megabyte that strangers made up is masked in a moment; a square of it would be hours."""
    text = part * ((1 << 20) // len(part))
    assert logs.redact(text)
    assert logs.redact(" " * (1 << 20)) == " " * (1 << 20)
    assert logs.redact("Bearer" + " " * (1 << 20)) == "Bearer" + " " * (1 << 20)


def test_kopf_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Kopf's own news is no news of ours; its errors are."""
    logs.configure(Settings())
    logging.getLogger("kopf.objects").warning("Handler succeeded.")
    logging.getLogger("kopf.activities.authentication").info("Initial authentication has been initiated.")
    assert not last(capsys)
    logging.getLogger("kopf._core.reactor").error("broken")
    assert "broken" in last(capsys)


def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing below the level that was asked for; everything at debug."""
    logs.configure(Settings(log_level="warning"))
    logging.getLogger("glimpse.test").info("not now")
    assert not last(capsys)
    logs.configure(Settings(log_level="debug"))
    logging.getLogger("kopf").debug("now")
    assert "now" in last(capsys)
