"""Decisions about stores, and what images may expect of them."""

from datetime import timedelta
from typing import Any

import pytest
from tests.control.support import NOW

from glimpse.api.base import DEFAULT_STORE, FINALIZER, REQUESTED_AT
from glimpse.api.labels import LabelSelector
from glimpse.api.store import ImageStore
from glimpse.control.store import StoreSeen, StoreVerdict, Users, decide, is_default, matches, view
from glimpse.problems import Problem, StoreOwnedByAnother, StoreRefused, StoreUnavailable
from glimpse.tasks import Done

DONE = Done(total=100, used=40, free=60, endpoint="file:///srv")


def store(spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **meta: Any) -> ImageStore:
    """An ImageStore as the API server would give it."""
    metadata = {"name": "fast", "uid": "9", "generation": 1, "finalizers": [FINALIZER]} | meta
    spec = {"filesystem": {"path": "/srv"}, "probeInterval": "60s"} | (spec or {})
    return ImageStore.model_validate({"metadata": metadata, "spec": spec, "status": status or {}})


def after(was: ImageStore, verdict: StoreVerdict) -> ImageStore:
    """The store with the new status."""
    return was.but(status=was.status.model_validate(verdict.status))


def conditions(verdict: StoreVerdict) -> dict[str, tuple[str, str]]:
    """(status, reason) by type."""
    status = store(status=dict(verdict.status)).status
    return {c.type: (c.status, c.reason) for c in status.conditions}


def test_the_finalizer_comes_first() -> None:
    """A store could be gone before anybody knew that it was used."""
    assert decide(StoreSeen(store(finalizers=[]), NOW)).finalizer is True


def test_a_new_store_is_looked_at_at_once() -> None:
    """Then it is Ready with its capacity, and looked at again after its interval."""
    new = store()
    assert decide(StoreSeen(new, NOW)).probe
    assert not decide(StoreSeen(new, NOW, probing=True)).probe
    verdict = decide(StoreSeen(new, NOW, installation="i", users=Users(2, 30), result=DONE))
    assert conditions(verdict) == {"Ready": ("True", "Available")}
    assert verdict.status["capacity"] == {"total": 100, "used": 40, "free": 60}
    assert (verdict.status["images"], verdict.status["bytes"]) == (2, 30)
    assert (verdict.status["driver"], verdict.status["installation"]) == ("filesystem", "i")
    assert verdict.again == NOW + timedelta(seconds=60)
    known = after(new, verdict)
    assert not decide(StoreSeen(known, NOW)).probe
    assert decide(StoreSeen(known, NOW + timedelta(seconds=61))).probe


@pytest.mark.parametrize(
    ("problem", "kind"), [(StoreUnavailable("gone"), "Reconciling"), (StoreOwnedByAnother("theirs"), "Stalled")]
)
def test_a_failing_store(problem: Problem, kind: str) -> None:
    """What time can mend is looked at again soon; what a person must mend after the interval, a change or a wish.

    Few of the latter are mended by an edit of the spec: a marker, a key in the Secret, a library, a restart.
    """
    verdict = decide(StoreSeen(store(), NOW, result=problem))
    assert conditions(verdict)["Ready"] == ("False", problem.reason)
    assert conditions(verdict)[kind][0] == "True"
    failed = after(store(), verdict)
    soon, later = NOW + timedelta(seconds=11), NOW + timedelta(seconds=61)
    assert decide(StoreSeen(failed, soon)).probe is not problem.permanent
    assert decide(StoreSeen(failed, later)).probe
    assert decide(StoreSeen(failed, NOW)).again in {soon - timedelta(seconds=1), later - timedelta(seconds=1)}
    again = decide(StoreSeen(failed, later, result=problem))
    assert [c.last_transition_time for c in after(failed, again).status.conditions] == [NOW, NOW]
    assert conditions(decide(StoreSeen(failed, later, result=DONE))) == {"Ready": ("True", "Available")}
    forced = failed.but(metadata=failed.metadata.but(annotations={REQUESTED_AT: "now"}))
    assert decide(StoreSeen(forced, NOW)).probe
    edited = failed.but(metadata=failed.metadata.but(generation=2))
    assert decide(StoreSeen(edited, NOW)).probe


def test_a_store_that_answers_again_is_ready() -> None:
    """Nothing of the failure stays."""
    failed = after(store(), decide(StoreSeen(store(), NOW, result=StoreUnavailable("gone"))))
    assert conditions(decide(StoreSeen(failed, NOW, result=DONE))) == {"Ready": ("True", "Available")}


def test_a_store_in_use_is_held() -> None:
    """Deleted, it names what still uses it, and goes when nothing does."""
    used = store(deletionTimestamp="2030-01-01T00:00:00Z")
    verdict = decide(StoreSeen(used, NOW, users=Users(7, 9, ("a/x", "b/y"))))
    assert verdict.finalizer is None
    assert conditions(verdict)["InUse"] == ("True", "InUse")
    message = next(c.message for c in after(used, verdict).status.conditions if c.type == "InUse")
    assert "a/x, b/y and 5 more" in message
    assert decide(StoreSeen(used, NOW)).finalizer is False


def test_two_drivers_are_refused() -> None:
    """Where the API server's own rule is missing, the status says so, and says it once."""
    both = store({"s3": {}})
    verdict = decide(StoreSeen(both, NOW))
    assert conditions(verdict)["Stalled"] == ("True", "InvalidConfiguration")
    assert (verdict.probe, verdict.again) == (False, None)
    assert decide(StoreSeen(after(both, verdict), NOW + timedelta(hours=1))) == verdict


def test_default() -> None:
    """The annotation counts with exactly `true`, and not on a store that goes."""
    assert is_default(store(annotations={DEFAULT_STORE: "true"}))
    assert not is_default(store(annotations={DEFAULT_STORE: "false"}))
    assert not is_default(store(annotations={DEFAULT_STORE: "true"}, deletionTimestamp="2030-01-01T00:00:00Z"))


def test_what_images_may_expect() -> None:
    """Unknown, ready, not ready, refused, going."""
    assert isinstance(view(store(), "team", {}).unreachable, StoreUnavailable)
    ready = after(store(), decide(StoreSeen(store(), NOW, result=DONE)))
    assert view(ready, "team", {}).trouble is None
    broken = after(ready, decide(StoreSeen(ready, NOW, result=StoreOwnedByAnother("theirs"))))
    assert isinstance(view(broken, "team", {}).unreachable, StoreOwnedByAnother)
    assert view(ready, "team", {}).version != view(broken, "team", {}).version
    selective = store({"allowedNamespaces": {"matchLabels": {"tier": "gold"}}})
    assert isinstance(view(selective, "team", {"tier": "tin"}).refused, StoreRefused)
    assert view(selective, "team", {"tier": "gold"}).refused is None
    assert isinstance(view(store(deletionTimestamp="2030-01-01T00:00:00Z"), "team", {}).refused, StoreRefused)


@pytest.mark.parametrize(
    ("operator", "values", "labels", "holds"),
    [
        ("In", ["a", "b"], {"k": "a"}, True),
        ("In", ["a", "b"], {"k": "c"}, False),
        ("In", ["a"], {}, False),
        ("NotIn", ["a"], {"k": "b"}, True),
        ("NotIn", ["a"], {"k": "a"}, False),
        ("NotIn", ["a"], {}, True),
        ("Exists", [], {"k": ""}, True),
        ("Exists", [], {}, False),
        ("DoesNotExist", [], {}, True),
        ("DoesNotExist", [], {"k": ""}, False),
    ],
)
def test_label_selectors(operator: str, values: list[str], labels: dict[str, str], holds: bool) -> None:
    """The rules of metav1.LabelSelector."""
    need = {"key": "k", "operator": operator, "values": values}
    assert matches(LabelSelector.model_validate({"matchExpressions": [need]}), labels) is holds
