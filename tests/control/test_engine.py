"""The queue with real workers on a real API server: what it keeps of images that wait, and what it counts."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

from glimpse.control.engine import Engine
from glimpse.kube import IMAGE, STORE, Kind, Kube
from glimpse.runners import Inline
from glimpse.settings import Addresses, Settings
from glimpse.testing.faults import Reply, Server
from glimpse.testing.runners import eventually
from servers.kube import NAMESPACE, Cluster


async def test_an_image_that_waits_for_its_next_look_is_a_timer(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """No task and no object in memory: there may be ten thousand. At its time the object is read, and looked after."""
    meta = {"name": f"store-{uuid.uuid4().hex[:8]}"}
    store = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": meta}
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    addresses = Addresses.model_validate({"allow": ["127.0.0.0/8"]})
    engine = Engine(Settings(addresses=addresses), kube, Inline())
    with Server() as web:
        web.serve("/a", Reply(b"bytes" * 1000, headers={"ETag": '"1"'}), Reply(status=304))
        image = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "Image"}
        image["metadata"] = {"name": "a", "namespace": namespace}  # type: ignore[assignment] # plain JSON
        source = {"http": {"urls": [web.url("/a")]}}
        spec = {"source": source, "stores": [meta["name"]], "refresh": {"interval": "24h"}}
        cluster.apply(store | {"spec": {"filesystem": {"path": str(tmp_path)}}})
        (made,) = cluster.apply(image | {"spec": spec})
        try:
            await engine.start()
            engine.offer(STORE, cluster.read(store))
            engine.offer(IMAGE, cluster.read(made))
            entry = engine._images[made["metadata"]["uid"]]
            await eventually(lambda: entry.timer is not None and entry.task is None)
            assert (entry.raw, entry.settled) == (None, True)
            before = cluster.read(made)["status"]
            assert entry.timer
            engine._kick(entry)  # too early, as by a clock that was set
            await eventually(lambda: entry.timer is not None and entry.task is None)
            assert (entry.raw, cluster.read(made)["status"]) == (None, before)
            assert len(web.requests) == 1
        finally:
            await engine.close()
            await kube.close()


class Slow(Kube):
    """An API server that takes its time to write the first revision of one image."""

    slow: str = ""
    go_on: asyncio.Event

    async def patch_status(
        self, kind: Kind, obj: dict[str, Any], status: dict[str, Any], *, exact: bool = False
    ) -> dict[str, Any]:
        """The same, at last."""
        if obj["metadata"]["name"] == self.slow and status.get("history"):
            await self.go_on.wait()
        return await super().patch_status(kind, obj, status, exact=exact)


def is_over(obj: dict[str, Any]) -> bool:
    """Whether an image is ready, or will not be."""
    conditions = obj.get("status", {}).get("conditions", [])
    return any(each["status"] == "True" and each["type"] in ("Ready", "Stalled") for each in conditions)


async def test_what_is_being_written_counts_once(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """A quota that holds two images takes the second one also while the status of the first is being written."""
    meta = {"name": f"store-{uuid.uuid4().hex[:8]}"}
    store = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": meta}
    kube = await Slow.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    kube.slow, kube.go_on = "a", asyncio.Event()
    engine = Engine(Settings(addresses=Addresses.model_validate({"allow": ["127.0.0.0/8"]})), kube, Inline())
    with Server() as web:
        cluster.apply(store | {"spec": {"filesystem": {"path": str(tmp_path)}, "quota": {"perNamespace": 10_000}}})

        def apply(name: str) -> str:
            web.serve(f"/{name}", Reply(b"bytes" * 1000))
            image: dict[str, Any] = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "Image"}
            image["metadata"] = {"name": name, "namespace": namespace}
            image["spec"] = {"source": {"http": {"urls": [web.url(f"/{name}")]}}, "stores": [meta["name"]]}
            [made[name]] = cluster.apply(image)
            engine.offer(IMAGE, cluster.read(made[name]))
            return str(made[name]["metadata"]["uid"])

        made: dict[str, dict[str, Any]] = {}
        try:
            await engine.start()
            engine.offer(STORE, cluster.read(store))
            first = apply("a")
            await eventually(lambda: bool(engine._images[first].held))
            apply("b")
            await eventually(lambda: is_over(cluster.read(made["b"])))
            assert cluster.read(made["b"])["status"]["history"][0]["size"] == 5000
            assert not cluster.read(made["a"])["status"].get("history")
            kube.go_on.set()
            await eventually(lambda: bool(cluster.read(made["a"])["status"].get("history")))
        finally:
            kube.go_on.set()
            await engine.close()
            await kube.close()
