"""What is counted and logged of requests: by what they are, and nothing that would tell who asked for what."""

import re
import socket
import uuid

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.signing import link
from tests.gateway.test_copies import begun

from servers import wait_until
from servers.glimpse import Glimpse
from servers.shelf import Shelf, ask

LABELS = {"kind", "method", "code", "store", "limit", "le"}
KINDS = {"download", "upload", "link", "list", "events", "probe", "other"}


def count(gateway: str, name: str, **labels: str) -> float:
    """The sum of what is counted so."""
    families = text_string_to_metric_families(ask(f"{gateway}/metrics").body.decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == f"glimpse_gateway_{name}" and labels.items() <= s.labels.items())


@pytest.mark.usefixtures("keys")
def test_labels_tell_nothing(gateway: str, shelf: Shelf, namespace: str) -> None:
    """Whatever is sent, labels are of few values; but for an ImageStore's, no name is among them, and no address."""
    word = "telling" + "".join(chr(ord("a") + int(digit, 16)) for digit in uuid.uuid4().hex[:8])
    store = shelf.store()
    image = shelf.image(namespace, b"bytes", store=store, name=word)
    token = shelf.grant(namespace, f"user-{word}")
    asked = [
        ("GET", image.path, 200),
        ("HEAD", f"{image.path}.sha256", 200),
        ("GET", f"{image.path}?{word}={word}", 200),
        ("GET", f"/v1/namespaces/{word}/images/{word}", 404),
        ("GET", f"/{word}", 404),
        ("GET", f"/v1/images?name={word}", 200),
        ("GET", f"/v1/images?{word}=1", 400),
        ("GET", "/v1/images/events?limit=1", 400),
        ("PUT", f"/v1/namespaces/{namespace}/images/{word}", 403),
        ("POST", f"{image.path}/uploads", 412),
        ("POST", f"{image.path}/links", 201),
        ("OPTIONS", f"{image.path}/uploads", 204),
        ("PROPFIND", image.path, 405),
        ("GET", "/healthz", 200),
    ]
    for method, path, status in asked:
        assert ask(gateway + path, token=token, method=method).status == status, (method, path)
    assert ask(link(gateway, image, token)).status == 200
    assert ask(gateway + image.path, headers={"Authorization": f"Bearer {word}", "User-Agent": word}).status == 401
    families = [*text_string_to_metric_families(ask(f"{gateway}/metrics").body.decode())]
    samples = [sample for family in families for sample in family.samples]
    assert {name for sample in samples for name in sample.labels} <= LABELS
    assert {sample.labels["kind"] for sample in samples if "kind" in sample.labels} <= KINDS
    secrets = (word, word.upper(), namespace, image.uid, token[:30], "127.0.0.1", "/")
    values = [v for sample in samples for name, v in sample.labels.items() if name != "store"]
    assert [value for value in values if any(each in value for each in secrets)] == []
    assert store in {sample.labels["store"] for sample in samples if "store" in sample.labels}
    for kind in ("download", "upload", "link", "list", "events", "probe"):
        assert count(gateway, "requests_total", kind=kind) > 0, kind
        assert count(gateway, "request_seconds_count", kind=kind) > 0, kind
    assert count(gateway, "active_requests") == count(gateway, "active_requests", kind="probe") == 1
    assert count(gateway, "sent_bytes_total", store=store) == 3 * len(b"bytes")


def test_a_cut_download_is_no_success(gateway: str, glimpse: Glimpse, shelf: Shelf, namespace: str, token: str) -> None:
    """It counts as cut, and the log says so and how far it came; one that came to its end counts with its status."""
    image = shelf.image(namespace, bytes(64 << 20), store=shelf.store())
    log, form = glimpse.processes["gateway"].log, re.escape(image.path)
    before = count(gateway, "requests_total", kind="download", code="cut")
    with begun(gateway, image.path, token) as connection:
        assert count(gateway, "active_requests", kind="download") == 1
        connection.recv(100_000, socket.MSG_WAITALL)
    wait_until("the end", lambda: count(gateway, "active_requests", kind="download") == 0, timeout=30)
    assert count(gateway, "requests_total", kind="download", code="cut") == before + 1
    found = re.search(rf" GET {form} 200 ([0-9]+) B, cut [0-9.]+ s$", log.read_text(), re.MULTILINE)
    assert found
    assert 0 < int(found[1]) < 64 << 20
    good = count(gateway, "requests_total", kind="download", method="GET", code="206")
    assert ask(gateway + image.path, token=token, headers={"Range": "bytes=5-9"}).status == 206
    assert ask(gateway + image.path, token=token, method="HEAD").status == 200
    assert count(gateway, "requests_total", kind="download", method="GET", code="206") == good + 1
    assert count(gateway, "requests_total", kind="download", code="cut") == before + 1
    assert re.search(rf" GET {form} 206 5 B [0-9.]+ s$", log.read_text(), re.MULTILINE)
    assert re.search(rf" HEAD {form} 200 0 B [0-9.]+ s$", log.read_text(), re.MULTILINE)
