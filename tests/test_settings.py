"""The page about settings tells what the code does, and settings that make no sense are refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from glimpse.settings import Addresses, Settings, Spool, unknown

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The line of each setting."""
    for name, field in model.model_fields.items():
        variable, kind = f"{prefix}{name.upper()}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"| **{(kind.__doc__ or '').splitlines()[0]}** | | |"
            yield from rows(kind, f"{variable}__")
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, list):
            default = json.dumps([str(entry) for entry in default])
        elif isinstance(default, bool):
            default = json.dumps(default)
        elif isinstance(default, float):
            default = f"{default:.15g}"
        meaning = " ".join((field.description or "").split())
        yield f"| `{variable}` | {f'`{default}`' if default not in (None, '') else ''} | {meaning} |"


def test_every_setting_has_its_line() -> None:
    """Name, default and meaning, in the order of the model; nothing else is in the table."""
    table = [line for line in PAGE.read_text().splitlines() if line.startswith(("| `", "| **"))]
    assert table == list(rows(Settings, "GLIMPSE_"))


def test_the_spool_is_an_absolute_path() -> None:
    """Workers live in the root folder: a path from elsewhere would lead elsewhere."""
    assert Spool(path=Path("/var/spool")).path == Path("/var/spool")
    with pytest.raises(ValidationError, match="must be absolute"):
        Spool(path=Path("spool"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ports", ["0"], "write a port as 8080"),
        ("ports", ["65536"], "write a port as 8080"),
        ("ports", ["9000-8000"], "write a port as 8080"),
        ("ports", ["http"], "write a port as 8080"),
        ("deny_ports", ["1-2-3"], "write a port as 8080"),
        ("allow_hosts", ["*.example"], "write a host as"),
        ("allow_hosts", ["https://mirror.example"], "write a host as"),
        ("allow_hosts", ["mirror.example:8443"], "write a host as"),
        ("allow_hosts", ["müller.example"], "in punycode"),
        ("allow_hosts", ["a..example"], "write a host as"),
        ("deny_hosts", [""], "write a host as"),
        ("deny_hosts", ["10.0.0.1"], "as a network in deny"),
        ("deny_hosts", ["fd00::1"], "as a network in deny"),
        ("schemes", ["ftp"], "'http' or 'https'"),
    ],
)
def test_rules_for_addresses_that_are_none(field: str, value: list[str], message: str) -> None:
    """A rule that could not mean what it seems to mean is refused, with the form that it has."""
    with pytest.raises(ValidationError, match=re.escape(message)):
        Addresses.model_validate({field: value})


def test_rules_for_addresses() -> None:
    """Ports may be numbers, and hosts are kept in one spelling."""
    rules = Addresses.model_validate({"ports": [80, "8000-8999"], "allow_hosts": ["Mirror.EXAMPLE.", ".Cdn.example"]})
    assert rules.ports == ["80", "8000-8999"]
    assert rules.allow_hosts == ["mirror.example", ".cdn.example"]
    assert Addresses.model_validate_json(rules.model_dump_json()) == rules


def test_what_is_no_setting() -> None:
    """It is told from settings, whose groups tell their own members, and from what Kubernetes says of Services."""
    wrong = ["GLIMPSE_GATEWAY_ANONYMUS", "GLIMPSE_LIMITS_TRANSFERS", "glimpse_silense"]
    right = ["GLIMPSE_GATEWAY_ANONYMOUS", "GLIMPSE_LIMITS__TRANSFERS", "glimpse_silence", "HOME", "GLIMPSEX"]
    services = ["GLIMPSE_GATEWAY_SERVICE_HOST", "GLIMPSE_GATEWAY_SERVICE_PORT_HTTP", "GLIMPSE_GATEWAY_PORT"]
    services += ["GLIMPSE_GATEWAY_PORT_80_TCP", "GLIMPSE_GATEWAY_PORT_80_TCP_ADDR"]
    assert unknown([*right, *wrong, *services]) == wrong
