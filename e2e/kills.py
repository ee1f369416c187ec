"""Kill what can be killed while fifty images are imported, and look whether anything is lost, doubled or left over.

`make kills RUNS=30` does thirty runs and prints the seed of each; `SEED=…` repeats one. The tests do a few.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from glimpse.testing.faults import Reply, Server
from servers import wait_until
from servers.glimpse import Glimpse, Program
from servers.kube import Cluster, Kube, Object
from servers.processes import children

IMAGES: Final = 50
KILLS: Final = 5
VICTIMS: Final = ("operator", "runner", "worker", "worker", "gateway")
SETTINGS: Final = {
    "GLIMPSE_RETRIES__BASE": "0.3",
    "GLIMPSE_RETRIES__CAP": "3",
    "GLIMPSE_LIMITS__NAMESPACE_TRANSFERS": "8",
}


@dataclass
class Report:
    """What one run did and found."""

    seed: int
    seconds: float = 0.0
    killed: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    """Downloads that were begun; one an image is the least."""
    faults: list[str] = field(default_factory=list)
    """What should not be."""


class Run:
    """One run, in a namespace and a store of its own."""

    def __init__(self, seed: int, cluster: Cluster, glimpse: Glimpse, folder: Path) -> None:
        """`glimpse` must run with SETTINGS; it runs again at the end."""
        self.report = Report(seed)
        self.random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self.cluster, self.glimpse = cluster, glimpse
        self.store = folder / f"store-{seed}"
        self.store.mkdir()
        self.namespace = cluster.namespace("kills")
        self.digests: dict[str, str] = {}
        self.asked_when_ready: dict[str, int] = {}

    def __call__(self) -> Report:
        """The whole run."""
        began = time.monotonic()
        with Server() as web:
            self.publish(web)
            moments = sorted(self.random.uniform(0.2, 8) for _ in range(KILLS))
            for moment in moments:
                self.watch(web, until=began + moment)
                self.kill(self.random.choice(VICTIMS))
            deadline = time.monotonic() + 120
            while len(self.asked_when_ready) < IMAGES and time.monotonic() < deadline:
                self.watch(web, until=time.monotonic() + 0.2)
            self.report.requests = len(web.requests)
            self.judge(web)
        self.report.seconds = time.monotonic() - began
        self.clean()
        return self.report

    def publish(self, web: Server) -> None:
        """Fifty images, each with bytes of its own, on a web server that takes about a second for each."""
        # The API server needs a moment until it knows of a new binding, so this is done first.
        rbac = "rbac.authorization.k8s.io"
        self.cluster.apply(
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "reader", "namespace": self.namespace},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "glimpse-edit"},
                "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": self.namespace}],
            }
        )
        store = f"kills-{self.report.seed}"
        objects: list[Object] = [
            {
                "apiVersion": "glimpse.dev/v1alpha1",
                "kind": "ImageStore",
                "metadata": {"name": store},
                "spec": {"filesystem": {"path": str(self.store)}},
            }
        ]
        for number in range(IMAGES):
            name = f"image-{number}"
            body = self.random.randbytes(self.random.randrange(1, 1 << 20))
            self.digests[name] = f"sha256:{hashlib.sha256(body).hexdigest()}"
            web.serve(f"/{name}", Reply(body, trickle=(32 << 10, 0.06)))
            spec: Object = {"source": {"http": {"urls": [web.url(f"/{name}")]}}, "stores": [store]}
            if number % 2:
                spec["checksum"] = {"digest": self.digests[name]}
            meta = {"name": name, "namespace": self.namespace}
            objects.append({"apiVersion": "glimpse.dev/v1alpha1", "kind": "Image", "metadata": meta, "spec": spec})
        self.cluster.apply(*objects)

    def images(self) -> list[Object]:
        """All images as they are."""
        path = f"/apis/glimpse.dev/v1alpha1/namespaces/{self.namespace}/images"
        found: list[Object] = self.cluster.request("GET", path)["items"]
        return found

    def watch(self, web: Server, until: float) -> None:
        """Note which images become ready, and how often they were asked for by then."""
        while True:
            for image in self.images():
                name = image["metadata"]["name"]
                conditions = {c["type"]: c["status"] for c in image.get("status", {}).get("conditions", ())}
                if conditions.get("Ready") == "True" and name not in self.asked_when_ready:
                    self.asked_when_ready[name] = len(web.asked(f"/{name}"))
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.1, left))

    def kill(self, victim: str) -> None:
        """SIGKILL, and what is ours to start again is started again."""
        if victim in ("operator", "gateway"):
            program: Program = "operator" if victim == "operator" else "gateway"
            self.glimpse.kill(program)
            self.glimpse.launch(program)
            # Nobody waits for it here: killed again before it is ready, it must come back all the same.
        else:
            runners = children(self.glimpse.processes["operator"].pid)
            victims = runners if victim == "runner" else [c for r in runners for c in children(r)]
            if not victims:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(victims), signal.SIGKILL)
        self.report.killed[victim] += 1

    def judge(self, web: Server) -> None:
        """Everything is there, once, right, and nothing else."""
        say = self.report.faults.append
        objects: dict[str, str] = {}
        for image in self.images():
            name, status = image["metadata"]["name"], image.get("status", {})
            artifact = status.get("artifact")
            if name not in self.asked_when_ready or not artifact:
                say(f"{name} is not Ready: {json.dumps(status.get('conditions'))}")
                continue
            if artifact["digest"] != self.digests[name]:
                say(f"{name} has the digest {artifact['digest']}, not {self.digests[name]}")
            if len(web.asked(f"/{name}")) > self.asked_when_ready[name]:
                say(f"{name} was fetched again after it was Ready")
            objects[f"{image['metadata']['uid']}-{artifact['revision']}"] = self.digests[name]
        for name in self.digests:
            if len(web.asked(f"/{name}")) > 1 + self.report.killed.total():
                say(f"{name} was asked for {len(web.asked(f'/{name}'))} times")
        self.look_into_the_store(objects)
        self.download(say)

    def look_into_the_store(self, objects: dict[str, str]) -> None:
        """Exactly these objects, given by key with their digests, and nothing of any attempt."""
        say = self.report.faults.append
        held = {path.name: path / "data" for path in (self.store / "objects").iterdir()}
        for key in held.keys() ^ objects.keys():
            say(f"object {key} is {'left over' if key in held else 'missing'}")
        for key in held.keys() & objects.keys():
            digest = f"sha256:{hashlib.sha256(held[key].read_bytes()).hexdigest()}"
            if digest != objects[key]:
                say(f"object {key} has the digest {digest}, not {objects[key]}")
        for path in (self.store / "attempts").iterdir():
            say(f"attempt {path.name} is left over")

    def download(self, say: Callable[[str], None]) -> None:
        """The gateway serves the right bytes."""
        self.glimpse.await_ready("gateway")
        token = self.cluster.token_for(self.namespace, "reader", audience="glimpse")
        for name in self.random.sample(sorted(self.digests), 5):
            url = f"{self.glimpse.installation.gateway_url}/v1/namespaces/{self.namespace}/images/{name}"
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - our own
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own
                    digest = f"sha256:{hashlib.sha256(answer.read()).hexdigest()}"
            except OSError as error:
                say(f"the gateway does not serve {name}: {error}")
                continue
            if digest != self.digests[name]:
                say(f"the gateway serves {digest} as {name}")

    def clean(self) -> None:
        """Delete all, and look that the store is empty."""
        self.glimpse.await_ready("operator")
        self.cluster.request("DELETE", f"/apis/glimpse.dev/v1alpha1/namespaces/{self.namespace}/images")
        with contextlib.suppress(Exception):
            wait_until("the images' end", lambda: not self.images(), timeout=60)
        if left := self.images():
            self.report.faults.append(f"{len(left)} images are not gone 60 s after their deletion")
        left_over = [p.name for part in ("objects", "attempts") for p in (self.store / part).iterdir()]
        self.report.faults += [f"{name} is left over after the deletion" for name in left_over]
        self.cluster.request("DELETE", f"/apis/glimpse.dev/v1alpha1/imagestores/kills-{self.report.seed}")


def main() -> int:
    """Some runs; the exit status is 0 if nothing was lost, doubled or left over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run; each next is one more")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="glimpse-kills-") as name:
        folder = Path(name)
        with Kube(folder / "kube") as cluster:
            cluster.install()
            glimpse = Glimpse(folder / "glimpse", cluster=cluster, settings=SETTINGS)
            with glimpse:
                for number in range(arguments.runs):
                    report = Run(arguments.seed + number, cluster, glimpse, folder)()
                    killed = ", ".join(f"{n} {victim}" for victim, n in sorted(report.killed.items()))
                    console.print(
                        f"run {number + 1:2}  seed {report.seed}  {report.seconds:5.1f} s  killed {killed or 'nobody'};"
                        f" {IMAGES} images, {report.requests} downloads begun:"
                        f" {'[red]' + '; '.join(report.faults) + '[/]' if report.faults else '[green]all well[/]'}"
                    )
                    bad += bool(report.faults)
                    if report.faults:
                        for program in ("operator", "gateway"):
                            console.print((folder / "glimpse" / f"{program}.log").read_text()[-4000:], markup=False)
    console.print(f"{arguments.runs - bad} of {arguments.runs} runs without a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
