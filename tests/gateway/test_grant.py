"""What the operator says to an upload: a revision is for one spec, and for no other before or after it."""

import asyncio
from typing import Any

import pytest

from glimpse.gateway import grant
from glimpse.gateway.follow import Followed
from glimpse.gateway.grant import Grant, Unwanted
from glimpse.gateway.refusals import Refusal

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
    granted = Grant.now(followed, "u-1")
    assert granted
    assert (await granted.image()).metadata.generation == 4
    followed.learn(image(2, 5, NEW, observed=4))
    waiting = asyncio.create_task(granted.image())
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
    granted = Grant.now(followed, "u-1")
    assert granted
    followed.learn(image(2, 5, NEW, observed=4))
    waiting = asyncio.create_task(granted.image())
    await asyncio.sleep(0)
    followed.learn(image(3, 5, NEW, observed=5, uid="u-2"))
    with pytest.raises(Unwanted, match="Another upload for this image has taken the place of yours"):
        await waiting
    assert Grant.now(followed, "u-1") is None


@pytest.mark.parametrize(
    ("condition", "heard"),
    [
        (("Ready", "False", "StoreUnavailable", "/srv is away"), ": StoreUnavailable: a store cannot be reached"),
        (
            ("Reconciling", "True", "ProgressingWithRetry", "StoreFull: /srv is full"),
            ": StoreFull: a store has no room",
        ),
        (("Stalled", "True", "InvalidPin", "spec.revisions.pin is 7"), r": InvalidPin: spec.revisions.pin is 7\.$"),
        (("Ready", "True", "Stored", "revision 1 is in /srv"), r" at the moment\.$"),
        (("Ready", "False", "WaitingForUpload", "/srv waits"), r" at the moment\.$"),
    ],
)
async def test_an_image_that_takes_none(
    monkeypatch: pytest.MonkeyPatch, condition: tuple[str, str, str, str], heard: str
) -> None:
    """Why is said as the image says it, but of the installation's troubles only their kind; what is well is no why."""
    monkeypatch.setattr(grant, "TURN", 0.01)
    monkeypatch.setattr(grant, "BEGIN", 0.02)
    followed = Followed()
    followed.learn(hindered(*condition))
    with pytest.raises(Refusal, match=heard) as refused:
        await Grant.wait(followed, "u-1")
    assert refused.value.status == 503
    assert "/srv" not in refused.value.detail
    assert refused.value.detail.endswith(".")


def hindered(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    """An Image without a revision in the making, with this condition."""
    found = image(1, 4, OLD, observed=4)
    said = {"type": kind, "reason": reason, "message": message, "status": status}
    found["status"] = {"observedGeneration": 4, "conditions": [said | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    return found


@pytest.mark.parametrize(
    ("condition", "waits"),
    [
        (("Stalled", "True", "StoreNotFound", "there is no store nostore"), False),
        (("Reconciling", "True", "ProgressingWithRetry", "StoreUnavailable: away"), False),
        (("Reconciling", "True", "Progressing", "it is looked at"), True),
        (("Ready", "True", "Stored", "revision 1 is there"), True),
    ],
)
async def test_who_waits_in_vain(
    monkeypatch: pytest.MonkeyPatch, condition: tuple[str, str, str, str], waits: bool
) -> None:
    """What must be mended before an upload can begin is told after a turn; a busy operator is given its time."""
    monkeypatch.setattr(grant, "TURN", 0.01)
    followed = Followed()
    followed.learn(hindered(*condition))
    waiting = asyncio.create_task(Grant.wait(followed, "u-1"))
    done, _ = await asyncio.wait([waiting], timeout=0.5 if waits else 30)
    assert bool(done) is not waits
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
