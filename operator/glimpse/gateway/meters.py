"""Meters: what the gateway counts, for Prometheus.

A registry of its own, so that two gateways in one process (a test) do not meet. No label holds a URL, or a name but
that of an ImageStore.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
"""Those that are counted by their names: others may be anything."""
CUT: Final = "cut"
"""Counted in place of the status of an answer that did not come to its end."""
_KINDS: Final[Mapping[str, str]] = {
    "{file}": "download",
    "uploads": "upload",
    "{upload}": "upload",
    "links": "link",
    "images": "list",
    "events": "events",
    "healthz": "probe",
    "readyz": "probe",
    "metrics": "probe",
}
"""What is asked for, by the last part of a route."""


def kind_of(request: web.Request) -> str:
    """The kind of a request."""
    resource = request.match_info.route.resource
    kind = _KINDS.get(resource.canonical.rpartition("/")[2], "other") if resource else "other"
    return "upload" if kind == "download" and request.method == "PUT" else kind


class Meters:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "glimpse_gateway_requests", "Requests answered.", ["kind", "method", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "glimpse_gateway_request_seconds",
            "Time from a request's head to the end of its answer.",
            ["kind"],
            buckets=(0.005, 0.05, 0.5, 5, 50, 500, 5000),
            registry=self.registry,
        )
        self.active = Gauge("glimpse_gateway_active_requests", "Requests in work.", ["kind"], registry=self.registry)
        self.connections = Gauge("glimpse_gateway_connections", "Connections that are open.", registry=self.registry)
        self.refused = Counter(
            "glimpse_gateway_refused_connections",
            "Connections that were closed at once, by the limit that they would have exceeded.",
            ["limit"],
            registry=self.registry,
        )
        self.bytes = Counter("glimpse_gateway_sent_bytes", "Image bytes sent.", ["store"], registry=self.registry)
        self.received = Counter(
            "glimpse_gateway_received_bytes", "Bytes of uploads received, as they were sent.", registry=self.registry
        )
        self.redirects = Counter(
            "glimpse_gateway_redirects",
            "Downloads that were sent to a store's own server.",
            ["store"],
            registry=self.registry,
        )
        self.images = Gauge("glimpse_gateway_images", "Images that can be downloaded.", registry=self.registry)
        self.watchers = Gauge(
            "glimpse_gateway_watchers", "Clients that watch the list of images.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)
