"""The account of an upload: several write it, and what one has said last is not undone by another."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from glimpse.api.image import Image
from glimpse.api.upload import ImageUpload
from glimpse.gateway.account import Account, Taken
from glimpse.gateway.refusals import Refusal
from glimpse.kube import IMAGE, UPLOAD, Gone, Kube
from glimpse.problems import ChecksumMismatch, Problem, StoreUnavailable
from servers.kube import Cluster

LONG = timedelta(hours=1)


@pytest.fixture
async def kube(cluster: Cluster) -> AsyncIterator[Kube]:
    """A client with an administrator's rights."""
    found = await Kube.connect(cluster.kubeconfig)
    yield found
    await found.close()


@pytest.fixture
async def account(kube: Kube, namespace: str) -> Account:
    """Of an upload that has just begun, held by `first`."""
    image = {"metadata": {"name": "i"}, "spec": {"source": {"upload": {}}}}
    found = Image.model_validate(await kube.create(IMAGE, image, namespace))
    made = await Account.create(kube, found, {"size": 100, "resumable": True, "digests": [], "metadata": None})
    now = await kube.get(UPLOAD, made.name, namespace)
    return Account(kube, await kube.patch_status(UPLOAD, now, {"observedGeneration": 1, "holder": "first"}))


async def read(kube: Kube, account: Account) -> ImageUpload:
    """As everybody sees it."""
    return ImageUpload.model_validate(await kube.get(UPLOAD, account.name, account.namespace))


async def test_the_last_word_stays(kube: Kube, account: Account) -> None:
    """What has an outcome lives no longer because somebody says that it is alive; nor does it fail afterwards."""
    account.offset = 100
    account.store(7, timedelta(0))
    await account.write()
    said = await read(kube, account)
    assert (said.status.outcome, said.status.revision, said.status.progress) == ("Stored", 7, "100%")
    account.renew(lives=LONG, held=LONG)
    account.fail(Refusal(400, "it broke off"))
    await account.write()
    assert (await read(kube, account)).status == said.status


async def test_another_one_asks(kube: Kube, account: Account) -> None:
    """A word of another replica in between does not keep us from ours."""
    obj = await kube.get(UPLOAD, account.name, account.namespace)
    await kube.patch_status(UPLOAD, obj, account.status.but(asked_by="second").dump(), exact=True)
    account.offset = 50
    account.renew(lives=LONG, held=LONG)
    await account.write()
    status = (await read(kube, account)).status
    assert (status.holder, status.offset, status.progress) == ("first", 50, "50%")
    account.release()
    await account.write()
    assert (await read(kube, account)).status.holder is None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"holder": "second"}, Taken),
        ({"outcome": "Stored"}, Taken),
        ({"outcome": "Failed"}, Gone),
        ({"holder": "first", "outcome": "Failed"}, Gone),
    ],
)
async def test_in_other_hands(kube: Kube, account: Account, change: dict[str, str], kind: type[Gone]) -> None:
    """What another has taken over, or ended, is not written to, and which of both it was is told."""
    obj = await kube.get(UPLOAD, account.name, account.namespace)
    await kube.patch_status(UPLOAD, obj, {"observedGeneration": 1, **change})
    before = await read(kube, account)
    account.renew(held=LONG)
    with pytest.raises(Gone) as raised:
        await account.write()
    assert raised.type is kind
    assert (await read(kube, account)).status == before.status


@pytest.mark.parametrize("how", ["stored", "failed", "released"])
async def test_an_answer_that_is_lost(kube: Kube, account: Account, how: str) -> None:
    """What was written, though nobody heard of it, is ours when it is written again, and not another one's."""
    before = await kube.get(UPLOAD, account.name, account.namespace)
    if how == "stored":
        account.store(7, timedelta(0))
    elif how == "failed":
        account.fail(Refusal(400, "it broke off"))
    else:
        account.release()
    await account.write()
    said = await read(kube, account)
    account._obj = before
    await account.write()
    assert (await read(kube, account)).status == said.status


async def test_what_ends_badly(kube: Kube, account: Account) -> None:
    """It says why, in words that others go on after, and is held by nobody."""
    with pytest.raises(Refusal):
        async with account.ending():
            raise Refusal(409, "It was changed meanwhile.")
    status = (await read(kube, account)).status
    assert status.failure
    assert (status.outcome, status.failure.message, status.holder) == ("Failed", "It was changed meanwhile", None)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (ChecksumMismatch("the bytes have another digest"), "the bytes have another digest"),
        (StoreUnavailable("store s: /srv/images on 10.1.2.3 is away"), "a store cannot be reached; an administrator"),
    ],
)
async def test_troubles_of_ours(kube: Kube, account: Account, problem: Problem, message: str) -> None:
    """What is wrong with bytes is said in full; of the installation whoever reads it learns no address and no path."""
    with pytest.raises(type(problem)):
        async with account.ending():
            raise problem
    failure = (await read(kube, account)).status.failure
    assert failure
    assert failure.reason == problem.reason
    assert failure.message.startswith(message)
    assert "10.1.2.3" not in failure.message
