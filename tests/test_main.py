"""The command line: arguments, and what is wrong with the settings."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml

from glimpse.__main__ import main

NETWORK = "must be a network such as 10.20.0.0/16, without bits of a host"
PAIR = "must be set if GLIMPSE_GATEWAY_TLS_CERTIFICATE is, and only then"


def glimpse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "glimpse", *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_version() -> None:
    """The version is that of the distribution."""
    assert glimpse("--version").stdout == f"glimpse {version('glimpse')}\n"


@pytest.mark.parametrize("program", ["operator", "gateway"])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LIMITS__TRANSFERS", "many", "LIMITS__TRANSFERS: must be a whole number; it is 'many'"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: must be 'debug', 'info', 'warning' or 'error'; it is 'loud'"),
        ("ADDRESSES__ALLOW", '["300.0.0.0/8"]', f"ADDRESSES__ALLOW: {NETWORK}; it is '300.0.0.0/8'"),
        ("ADDRESSES__ALLOW", "10.0.0.0/8", "ADDRESSES__ALLOW: lists and groups are written as JSON"),
        ("GATEWAY_TLS_CERTIFICATE", "/tls.crt", f"GATEWAY_TLS_KEY: {PAIR}"),
        ("GATEWAY_TLS_KEY", "/tls.key", f"GATEWAY_TLS_KEY: {PAIR}; it is '/tls.key'"),
    ],
)
def test_wrong_settings_are_one_line(program: str, name: str, value: str, words: str) -> None:
    """A wrong setting ends the program at once, with status 2 and one line that names it and what it takes."""
    done = glimpse(program, **{f"GLIMPSE_{name}": value})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"glimpse: GLIMPSE_{words}\n")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LIMITS__TRANSFERS", "0", "must be at least 1; it is '0'"),
        ("LIMITS__TRANSFERS", "1.5", "must be a whole number; it is '1.5'"),
        ("LIMITS__TRANSFERZ", "1", "is not known here; is it mistyped?"),
        ("LIMITS", "[]", "must be a JSON object"),
        ("TRANSFERS__CONNECTIONS", "17", "must be at most 16; it is '17'"),
        ("SILENCE", "soon", "must be a number; it is 'soon'"),
        ("SILENCE", "0", "must be more than 0; it is '0'"),
        ("SILENCE", "inf", "must be a finite number; it is 'inf'"),
        ("TRANSFERS__STALL_TIMEOUT", "nan", "must be a finite number; it is 'nan'"),
        ("GATEWAY_ANONYMOUS", "perhaps", "must be true or false; it is 'perhaps'"),
        ("ADDRESSES__ALLOW", '"10.0.0.0/8"', "must be a list; it is '10.0.0.0/8'"),
        ("DIGESTS", "[5]", "must be 'sha256', 'sha512', 'sha384', 'sha1' or 'md5'; it is 5"),
        ("ADDRESSES__ALLOW_NAMES", "[1]", "must be text; it is 1"),
        ("ADDRESSES__PORTS", '["http"]', "write a port as 8080, or several as 8000-8999; it is 'http'"),
        ("SPOOL__PATH", "spool", "must be absolute; it is 'spool'"),
    ],
)
def test_each_fault_has_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, words: str
) -> None:
    """What a setting must be, and what it is: the variable's own name, and none of the library's words."""
    monkeypatch.setenv(f"GLIMPSE_{name}", value)
    assert main(["gateway"]) == 2
    assert capsys.readouterr().err == f"glimpse: GLIMPSE_{name}: {words}\n"


def test_a_setting_that_is_none_is_named() -> None:
    """It may be mistyped; the program goes on, here to where it finds no API server."""
    done = glimpse("gateway", GLIMPSE_GATEWAY_ANONYMUS="true", GLIMPSE_KUBECONFIG="/nowhere")
    assert done.returncode == 1
    assert "GLIMPSE_GATEWAY_ANONYMUS is no setting" in done.stderr


def test_crds() -> None:
    """The definitions are printed with the members of the drivers that are installed."""
    done = glimpse("crds")
    assert done.returncode == 0, done.stderr
    objects = {printed["metadata"]["name"]: printed for printed in yaml.safe_load_all(done.stdout)}
    spec = objects["imagestores.glimpse.dev"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert "filesystem" in spec["properties"]


def test_no_program() -> None:
    """Without a program there is a line of usage."""
    done = glimpse()
    assert done.returncode == 2
    assert done.stderr.startswith("usage: glimpse")
