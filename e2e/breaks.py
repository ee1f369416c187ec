"""Breaks a transfer once, at every 5 % of the file and in every way, and counts the bytes that the server has sent.

Real workers under the real runner fetch from a server that breaks to order (`glimpse.testing.faults`); a killed worker
is followed by another one, as the operator would start it. Each ends with the right digest, or this ends with 1.
"""

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

from rich.console import Console

from glimpse.problems import WorkerLost
from glimpse.runners import Inline
from glimpse.settings import Addresses, Transfers
from glimpse.tasks import Answer, Done, Event, Fetch, HttpOrigin, Record, Started, StoreRef
from glimpse.testing.faults import Kind, Reply, Server

console = Console(highlight=False, soft_wrap=True)
MOST: Final = {"cut": 1.05, "reset": 1.05, "stall": 1.05, "busy": 1.05, "length": 1.05, "kill": 1.15}
"""How many times the file's bytes the server may have sent, for each way to break."""


class Breaker:
    """One file, one server, one runner."""

    def __init__(self, folder: Path, web: Server, runner: Inline, data: bytes) -> None:
        self._folder, self._web, self._runner, self._data = folder, web, runner, data
        self._digest = "sha256:" + hashlib.sha256(data).hexdigest()

    async def run(self, kind: str, percent: int) -> float:
        """Fetch with one break; how many times the file's bytes were sent. Raises AssertionError."""
        at = len(self._data) * percent // 100
        path = f"/{kind}-{percent}"
        self._web.serve(path, Reply(self._data, ranges=True, headers={"ETag": '"1"'}))
        store = self._folder / path[1:]
        store.mkdir()
        uid = str(uuid.uuid4())
        if kind == "kill":
            await self._killed(self._task(path, store, uid), path, at)
        else:
            breaks: Kind = kind  # type: ignore[assignment]  # the other words of MOST are all kinds
            self._web.interrupt(path, at, breaks)
        answer = await self._runner.run(self._task(path, store, uid), lambda _: None)
        assert isinstance(answer, Done), answer
        assert answer.record
        assert answer.record.digest == self._digest, "the digest is wrong"
        (stored,) = (store / "objects").glob("*/data")
        assert stored.stat().st_size == len(self._data)
        assert not list((store / "attempts").iterdir()), "an attempt is left"
        shutil.rmtree(store)
        return sum(request.sent for request in self._web.asked(path)) / len(self._data)

    def _task(self, path: str, store: Path, uid: str) -> Fetch:
        return Fetch(
            attempt=uuid.uuid4().hex[:12],
            record=Record(installation="b", namespace="n", name="i", uid=uid, revision=1, spec_hash="1"),
            origin=HttpOrigin(urls=(self._web.url(path),)),
            limit=1 << 40,
            stores=(StoreRef(name="s", driver="filesystem", config={"path": str(store)}, installation="b"),),
            addresses=Addresses.model_validate({"allow": ["127.0.0.0/8"]}),
            transfers=Transfers(idle_timeout=1.0),
        )

    async def _killed(self, task: Fetch, path: str, at: int) -> None:
        """A worker that is killed once the server has sent so much."""
        pid = 0

        def say(event: Event) -> None:
            nonlocal pid
            if isinstance(event, Started):
                pid = event.pid

        work: asyncio.Task[Answer] = asyncio.create_task(self._runner.run(task, say))
        await asyncio.to_thread(self._web.wait_for, path, 1, max(at, 1))
        os.kill(pid, signal.SIGKILL)
        try:
            await work
        except WorkerLost:
            return
        raise AssertionError("the worker was quicker than the kill")


async def breaks(folder: Path, data: bytes, kinds: list[str], step: int) -> int:
    """All of them; the number of faults."""
    faults, runner = 0, Inline()
    await runner.start()
    try:
        with Server() as web:
            breaker = Breaker(folder, web, runner, data)
            for kind in kinds:
                began, ratios = time.monotonic(), list[float]()
                for percent in range(step, 100, step):
                    try:
                        ratios.append(await breaker.run(kind, percent))
                    except AssertionError as fault:
                        faults += 1
                        console.print(f"✗ {kind} at {percent} %: {fault}")
                worst = max(ratios, default=0.0)
                faults += worst > MOST[kind]
                mark = "✓" if worst <= MOST[kind] and ratios else "✗"
                console.print(
                    f"{mark} {kind:6} {len(ratios)} downloads, right digests; sent at most {worst:.3f} of the file, "
                    f"{MOST[kind]} allowed; {time.monotonic() - began:.0f} s"
                )
    finally:
        await runner.close()
    return faults


def main() -> int:
    """Break."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file in MiB")
    parser.add_argument("--step", type=int, default=5, help="percent between two breaks")
    parser.add_argument("--kinds", nargs="*", default=list(MOST), choices=list(MOST), help="ways to break")
    arguments = parser.parse_args()
    source = random.Random(1)  # noqa: S311 - test data
    data = b"".join(source.randbytes(1 << 20) for _ in range(arguments.mib))
    folder = Path(tempfile.mkdtemp(prefix="glimpse-breaks-"))
    try:
        faults = asyncio.run(breaks(folder, data, arguments.kinds, arguments.step))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print("no faults" if not faults else f"{faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
