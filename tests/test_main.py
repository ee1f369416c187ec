"""The command line: arguments, and what is wrong with the settings."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml


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
    ("name", "value"),
    [
        ("GLIMPSE_LIMITS__TRANSFERS", "many"),
        ("GLIMPSE_LOG_LEVEL", "loud"),
        ("GLIMPSE_ADDRESSES__ALLOW", '["300.0.0.0/8"]'),
        ("GLIMPSE_ADDRESSES__ALLOW", "10.0.0.0/8"),
        ("GLIMPSE_GATEWAY_TLS_CERTIFICATE", "/tls.crt"),
        ("GLIMPSE_GATEWAY_TLS_KEY", "/tls.key"),
    ],
)
def test_wrong_settings_are_one_line(program: str, name: str, value: str) -> None:
    """A wrong setting ends the program at once, with status 2 and one line that names the variable."""
    done = glimpse(program, **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert name in done.stderr
    assert done.stderr.count("\n") == 1


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
