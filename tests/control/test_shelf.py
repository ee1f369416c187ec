"""The shelf with real workers: what it leaves behind when it ends."""

import asyncio
import gc
import os
import signal
import uuid
from pathlib import Path
from typing import Any

from glimpse.control.engine import Engine
from glimpse.kube import Kube
from glimpse.runners import Inline
from glimpse.settings import Settings
from glimpse.testing.runners import eventually
from servers.kube import NAMESPACE, Cluster


async def stop_while_it_probes(cluster: Cluster, folder: Path) -> None:
    """Start and stop the queue, with a probe under way; nothing of it is left."""
    name = f"store-{uuid.uuid4().hex[:8]}"
    store = {"apiVersion": "glimpse.dev/v1alpha1", "kind": "ImageStore", "metadata": {"name": name}}
    cluster.apply(store | {"spec": {"filesystem": {"path": str(folder)}}})
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    runner = Inline()
    engine = Engine(Settings(), kube, runner)
    try:
        await runner.start()
        warm = runner._warm
        assert warm
        pid = warm._transport.get_pid()
        assert pid
        os.kill(pid, signal.SIGSTOP)  # so the probe is under way for as long as we like
        await engine.start()
        await eventually(lambda: bool(warm._children))
        os.kill(pid, signal.SIGCONT)
    finally:
        await engine.close()
        await kube.close()


async def test_a_probe_ends_with_the_shelf(cluster: Cluster, tmp_path: Path) -> None:
    """A probe that runs when the operator stops is cancelled, and nobody complains about how it ended."""
    complaints = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await stop_while_it_probes(cluster, tmp_path)
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    gc.collect()  # whoever was left alone complains now
    assert complaints == []
