"""What Prometheus may know of the operator.

Names follow the Prometheus conventions (base units, `_total`); no label holds a URL or grows with the number of
images.
"""

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call] # they double the series and nobody asks for them

REGISTRY: Final = CollectorRegistry(auto_describe=True)
"""All metrics of the operator."""
REGISTRY.register(GC_COLLECTOR)
REGISTRY.register(PLATFORM_COLLECTOR)
ProcessCollector(registry=REGISTRY)

TRANSFERS_RUNNING: Final = Gauge("glimpse_transfers_running", "Transfers that run now.", registry=REGISTRY)
QUEUE_DEPTH: Final = Gauge("glimpse_queue_depth", "Images that wait for a transfer.", registry=REGISTRY)
TRANSFER_BYTES: Final = Counter(
    "glimpse_transfer_bytes_total", "Bytes that were stored, complete and verified.", ["store"], registry=REGISTRY
)
TRANSFER_SECONDS: Final = Histogram(
    "glimpse_transfer_duration_seconds",
    "Time of a transfer, from its start to its answer.",
    ["result"],
    buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000),
    registry=REGISTRY,
)
TRANSFER_FAILURES: Final = Counter(
    "glimpse_transfer_failures_total", "Transfers that failed.", ["reason"], registry=REGISTRY
)
LOOKS: Final = Counter(
    "glimpse_source_looks_total",
    "Looks at sources, by what they found: unchanged, changed, failed.",
    ["result"],
    registry=REGISTRY,
)
SCRUBS: Final = Counter(
    "glimpse_scrubs_total",
    "Copies that were read again, by what was found: good, lost, failed.",
    ["result"],
    registry=REGISTRY,
)
SCRUB_OLDEST: Final = Gauge(
    "glimpse_scrub_oldest_seconds", "Since the copy was verified that was not for the longest time.", registry=REGISTRY
)
IMAGES: Final = Gauge("glimpse_images", "Images by the status of their condition Ready.", ["ready"], registry=REGISTRY)
STORE_FREE: Final = Gauge(
    "glimpse_store_free_bytes", "Bytes that are free in a store, as it was last seen.", ["store"], registry=REGISTRY
)
STORE_READY: Final = Gauge("glimpse_store_ready", "Whether a store can be used: 1 or 0.", ["store"], registry=REGISTRY)
API_REQUESTS: Final = Counter(
    "glimpse_api_requests_total",
    "Requests to the Kubernetes API by our own client; code 0: no answer.",
    ["verb", "code"],
    registry=REGISTRY,
)
API_SECONDS: Final = Histogram(
    "glimpse_api_request_duration_seconds", "Time of those requests, watches left out.", ["verb"], registry=REGISTRY
)
_BUILD: Final = Gauge("glimpse_build_info", "The version that runs; always 1.", ["version"], registry=REGISTRY)
_BUILD.labels(version("glimpse")).set(1)


def request(verb: str, code: int, seconds: float) -> None:
    """Count one request to the Kubernetes API; what `Kube` is given as `observe`."""
    API_REQUESTS.labels(verb, str(code)).inc()
    if verb != "WATCH":
        API_SECONDS.labels(verb).observe(seconds)


def transfer_ended(began: float, reason: str | None = None) -> None:
    """Count one transfer; `began` by `time.monotonic()`, `reason` if it failed."""
    TRANSFER_SECONDS.labels("failed" if reason else "stored").observe(time.monotonic() - began)
    if reason:
        TRANSFER_FAILURES.labels(reason).inc()


def stored(store: str, size: int) -> None:
    """Count one object that a store now holds; `size` in bytes."""
    TRANSFER_BYTES.labels(store).inc(size)


def store_seen(store: str, *, ready: bool, free: int | None) -> None:
    """Note what a probe found; `free` in bytes, None where the store cannot tell."""
    STORE_READY.labels(store).set(ready)
    if free is not None:
        STORE_FREE.labels(store).set(free)


def store_gone(store: str) -> None:
    """Forget a store that was deleted."""
    STORE_READY.remove(store)
    STORE_FREE.remove(store)


def images(ready: dict[str, int]) -> None:
    """Note how many Images there are by the status of Ready; absent statuses are none."""
    for status in ("True", "False", "Unknown"):
        IMAGES.labels(status).set(ready.get(status, 0))


class WatchAges(Collector):
    """The age of each watch's last sign of life, asked at the time of the scrape."""

    def __init__(self, ages: Callable[[], dict[str, float]]) -> None:
        """`ages`: seconds by the plural of the kind."""
        self._ages = ages

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks."""
        family = GaugeMetricFamily(
            "glimpse_watch_last_event_age_seconds", "Since a watch last gave a sign of life.", labels=["kind"]
        )
        for kind, age in self._ages().items():
            family.add_metric([kind], age)
        yield family
