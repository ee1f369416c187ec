"""What the operator tells those who watch over it, while it works."""

from prometheus_client.parser import text_string_to_metric_families
from tests.operator.support import WAIT, Tenant, content, slow

from servers import wait_until
from servers.kube import Cluster
from servers.shelf import ask

ONE = content(1)


def scrape(tenant: Tenant) -> dict[tuple[str, str], float]:
    """Every sample, by its name and its labels in the order of their names."""
    answer = ask(f"{tenant.glimpse.installation.operator_url}/metrics")
    assert answer.status == 200
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def test_metrics(tenant: Tenant, cluster: Cluster) -> None:
    """Counters and gauges say what has happened, and their labels stay few."""
    before = scrape(tenant)
    store = tenant.store()
    tenant.image("good", tenant.serve("good", ONE), stores=[store])
    tenant.image("bad", tenant.web.url("/none"), stores=[store])
    tenant.ready("good")
    tenant.stalled("bad", "SourceNotFound")
    tenant.image("slow", tenant.serve("slow", slow(ONE)), stores=[store])
    tenant.transferring("slow")
    now = scrape(tenant)
    assert now["glimpse_transfer_bytes_total", f"store={store}"] == len(ONE)
    failures = ("glimpse_transfer_failures_total", "reason=SourceNotFound")
    assert now[failures] >= before.get(failures, 0) + 1
    stored = ("glimpse_transfer_duration_seconds_count", "result=stored")
    assert now[stored] >= before.get(stored, 0) + 1
    assert now["glimpse_store_ready", f"store={store}"] == 1
    assert now["glimpse_store_free_bytes", f"store={store}"] > 0
    assert now["glimpse_transfers_running", ""] >= 1
    assert now["glimpse_queue_depth", ""] >= 0
    ages = {labels: age for (name, labels), age in now.items() if name == "glimpse_watch_last_event_age_seconds"}
    assert set(ages) == {"kind=images", "kind=imagestores", "kind=imageuploads", "kind=namespaces"}
    assert max(ages.values()) < 120
    assert all(tenant.namespace not in labels and "/" not in labels for _, labels in now)
    tenant.web.release()
    tenant.ready("slow")

    def counted() -> bool:
        images = cluster.request("GET", "/apis/glimpse.dev/v1alpha1/images")["items"]
        ready = sum(_ready(i) for i in images)
        return scrape(tenant)["glimpse_images", "ready=True"] == ready

    wait_until("the count of images", counted, timeout=WAIT)
    for name in ("good", "bad", "slow"):
        tenant.delete(name)
    tenant.delete(store, "ImageStore")
    wait_until(
        "the store's metrics to go",
        lambda: ("glimpse_store_ready", f"store={store}") not in scrape(tenant),
        timeout=WAIT,
    )


def _ready(image: dict[str, object]) -> bool:
    status = image.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def test_health(tenant: Tenant) -> None:
    """Both programs say that they live and are ready."""
    for url in (tenant.glimpse.installation.operator_url, tenant.glimpse.installation.gateway_url):
        for page in ("healthz", "readyz"):
            assert ask(f"{url}/{page}").status == 200, (url, page)
