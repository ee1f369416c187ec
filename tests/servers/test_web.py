"""The web server of the demo and the bench."""

import ssl
import urllib.request
from pathlib import Path

import pytest
import trustme

from servers.require import require_tool
from servers.web import Web


@pytest.fixture(autouse=True)
def _nginx() -> None:
    require_tool("nginx", "nginx-light")


def test_a_file_in_the_folder_is_served(tmp_path: Path) -> None:
    """What is put into the folder is on the web, ranges too."""
    with Web(tmp_path / "web") as site:
        (site.root / "a.img").write_bytes(b"0123456789")
        request = urllib.request.Request(f"{site.url}/a.img", headers={"Range": "bytes=2-4"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert (answer.status, answer.read()) == (206, b"234")


def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    """Over TLS the site is trusted by its own authority and by nobody else's."""
    with Web(tmp_path / "web", ca=trustme.CA()) as site:
        (site.root / "a.img").write_bytes(b"x")
        context = ssl.create_default_context(cafile=site.ca_file)
        with urllib.request.urlopen(f"{site.url}/a.img", timeout=5, context=context) as answer:
            assert answer.read() == b"x"
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{site.url}/a.img", timeout=5)


def test_a_server_is_found_again_and_stopped_by_another(tmp_path: Path) -> None:
    """What one command saved, another one can ask and stop; what it finds dead it does not touch."""
    state = tmp_path / "web.json"
    server = Web(tmp_path / "web", detached=True)
    server.start()
    try:
        server.save(state)
        found = Web.load(state)
        assert found is not None
        assert found.ready()
        assert state.stat().st_mode & 0o077 == 0
    finally:
        server.stop()
    again = Web.load(state)
    assert again is not None
    assert again.processes == {}
    assert not again.ready()
