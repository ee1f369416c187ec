"""What the operator says to an upload: a revision is for one spec, and for no other before or after it."""

import asyncio
from typing import Any

import pytest

from glimpse.gateway.follow import Followed
from glimpse.gateway.grant import Grant, Unwanted

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64


def image(version: int, generation: int, digest: str, observed: int, uid: str = "u-1") -> dict[str, Any]:
    """An Image whose upload with this uid has a revision, at this version."""
    pending = {"revision": 3, "specHash": f"h{observed}", "stores": ["s"], "upload": {"uid": uid}}
    return {
        "metadata": {
            "name": "a",
            "namespace": "n",
            "uid": "i-1",
            "resourceVersion": str(version),
            "generation": generation,
        },
        "spec": {"source": {"upload": {}}, "checksum": {"digest": digest}},
        "status": {"observedGeneration": observed, "pending": pending},
    }


async def test_a_spec_that_nobody_has_looked_at() -> None:
    """It is waited for: the revision is still for the one before, and the bytes would be judged by the wrong one."""
    followed = Followed()
    followed.learn(image(1, 4, OLD, observed=4))
    grant = Grant.now(followed, "u-1")
    assert grant
    assert (await grant.image()).metadata.generation == 4
    followed.learn(image(2, 5, NEW, observed=4))
    waiting = asyncio.create_task(grant.image())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    followed.learn(image(3, 6, OLD, observed=4))  # edited back before anybody has looked
    followed.learn(image(4, 6, OLD, observed=6))
    found = await waiting
    assert found.spec.checksum
    assert (found.metadata.generation, found.spec.checksum.digest) == (6, OLD)


async def test_a_revision_that_is_taken_away() -> None:
    """Who waits for a look hears when it is for another upload, or for none."""
    followed = Followed()
    followed.learn(image(1, 4, OLD, observed=4))
    grant = Grant.now(followed, "u-1")
    assert grant
    followed.learn(image(2, 5, NEW, observed=4))
    waiting = asyncio.create_task(grant.image())
    await asyncio.sleep(0)
    followed.learn(image(3, 5, NEW, observed=5, uid="u-2"))
    with pytest.raises(Unwanted):
        await waiting
    assert Grant.now(followed, "u-1") is None
