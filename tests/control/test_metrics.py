"""What Prometheus gets: the names and labels that dashboards and alerts are made of."""

import time
from collections.abc import Mapping

from glimpse.control import metrics


def value(name: str, labels: Mapping[str, str] | None = None) -> float | None:
    """A sample as it would be scraped."""
    return metrics.REGISTRY.get_sample_value(name, dict(labels or {}))


def test_requests_are_counted_by_verb_and_code() -> None:
    """Watches are counted, but their hours are no durations."""
    before = value("glimpse_api_requests_total", {"verb": "PATCH", "code": "422"}) or 0
    metrics.request("PATCH", 422, 0.1)
    metrics.request("WATCH", 200, 3600)
    assert value("glimpse_api_requests_total", {"verb": "PATCH", "code": "422"}) == before + 1
    assert value("glimpse_api_requests_total", {"verb": "WATCH", "code": "200"})
    assert value("glimpse_api_request_duration_seconds_count", {"verb": "WATCH"}) is None


def test_transfers_are_counted_by_how_they_ended() -> None:
    """A failure has its reason."""
    metrics.transfer_ended(time.monotonic() - 2, "ChecksumMismatch")
    metrics.transfer_ended(time.monotonic() - 2)
    assert value("glimpse_transfer_failures_total", {"reason": "ChecksumMismatch"}) == 1
    for result in ("failed", "stored"):
        assert (value("glimpse_transfer_duration_seconds_sum", {"result": result}) or 0) >= 2


def test_a_store_comes_and_goes() -> None:
    """A store that was deleted leaves no series; one that cannot tell its room shows none."""
    metrics.store_seen("fast", ready=True, free=7)
    metrics.store_seen("blind", ready=False, free=None)
    assert value("glimpse_store_free_bytes", {"store": "fast"}) == 7
    assert value("glimpse_store_ready", {"store": "blind"}) == 0
    assert value("glimpse_store_free_bytes", {"store": "blind"}) is None
    for _ in range(2):
        metrics.store_gone("fast")
    assert value("glimpse_store_free_bytes", {"store": "fast"}) is None


def test_images_by_readiness() -> None:
    """A status that no Image has any more is none, not what it was."""
    metrics.images({"True": 3, "False": 1})
    metrics.images({"True": 2})
    assert [value("glimpse_images", {"ready": ready}) for ready in ("True", "False", "Unknown")] == [2, 0, 0]


def test_the_build_is_named() -> None:
    """The version stands in a label."""
    found = {sample.labels["version"] for family in metrics.REGISTRY.collect() for sample in family.samples
             if sample.name == "glimpse_build_info"}  # fmt: skip
    assert len(found) == 1
