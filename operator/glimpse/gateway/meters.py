"""Meters: what the gateway counts, for Prometheus.

A registry of its own, so that two gateways in one process (a test) do not meet. No label holds a name or a URL.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Meters:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "glimpse_gateway_requests", "Requests answered.", ["method", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "glimpse_gateway_request_seconds",
            "Time from a request's head to the end of its answer.",
            buckets=(0.005, 0.05, 0.5, 5, 50, 500, 5000),
            registry=self.registry,
        )
        self.active = Gauge("glimpse_gateway_active_requests", "Requests in work.", registry=self.registry)
        self.connections = Gauge("glimpse_gateway_connections", "Connections that are open.", registry=self.registry)
        self.refused = Counter(
            "glimpse_gateway_refused_connections",
            "Connections that were closed at once, by the limit that they would have exceeded.",
            ["limit"],
            registry=self.registry,
        )
        self.bytes = Counter("glimpse_gateway_sent_bytes", "Image bytes sent.", ["store"], registry=self.registry)
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
