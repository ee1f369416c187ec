"""What can be said of an upload in parts before it begins, from its stores alone."""

import pytest

from glimpse.gateway.refusals import Refusal
from glimpse.gateway.tus import fits
from glimpse.tasks import Fetch, Record, Share, StoreRef, UploadOrigin

FOLDER = StoreRef(name="folder", driver="filesystem", config={"path": "/nowhere"}, installation="i")
BUCKET = StoreRef(name="bucket", driver="s3", config={"bucket": "images", "region": "eu-1"}, installation="i")
WRONG = StoreRef(name="wrong", driver="filesystem", config={}, installation="i")


def task(*stores: StoreRef, size: int = 100, convert: bool = False) -> Fetch:
    """An upload into these stores."""
    return Fetch(
        attempt="a",
        record=Record(installation="i", namespace="n", name="n", uid="1-1", revision=1, spec_hash="h"),
        origin=UploadOrigin(uid="1-2", size=size),
        limit=1 << 40,
        convert_to="qcow2" if convert else None,
        stores=stores,
    )


def test_a_store_must_keep_parts() -> None:
    """One is enough: it feeds the others. Where there is none, the way out is named."""
    fits(task(FOLDER))
    fits(task(BUCKET, FOLDER))
    with pytest.raises(Refusal, match="one request with PUT") as refused:
        fits(task(BUCKET, WRONG))
    assert refused.value.status == 409


@pytest.mark.parametrize(
    "limits",
    [{"max_image_size": 99}, {"share": Share(namespace="n", limit=150, used=51)}],
    ids=["the largest image", "the namespace's share"],
)
def test_it_must_fit(limits: dict[str, object]) -> None:
    """Into one of the stores at least; a conversion may make less of it."""
    small = FOLDER.model_copy(update=limits)
    fits(task(small, size=99))
    fits(task(small, FOLDER))
    fits(task(small, convert=True))
    with pytest.raises(Refusal, match="None of the stores") as refused:
        fits(task(small, small))
    assert refused.value.status == 413
