"""How answers about callers are kept: for seconds, bounded, and asked for once."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from tests.relay import relay

from glimpse.gateway import access
from glimpse.gateway.access import Access, Caller, _Memo, client_of, token_of
from glimpse.gateway.refusals import Refusal
from glimpse.kube import Kube, Unavailable
from servers.kube import Cluster


async def test_asked_once() -> None:
    """However many wait for an answer, the question is asked once, and not taken away by one who leaves."""
    memo, asked, go = _Memo[str](), 0, asyncio.Event()

    async def ask() -> str:
        nonlocal asked
        asked += 1
        await go.wait()
        return "yes"

    waiting = [asyncio.create_task(memo.answer("key", ask, "me")) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*waiting[1:]) == ["yes"] * 49
    assert await memo.answer("key", ask, "me") == "yes"
    assert asked == 1


async def test_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good answer and a bad one have each their time; after it they are asked for again."""
    monkeypatch.setattr(access, "YES", 0.0)
    memo, asked = _Memo[bool](), list[bool]()

    async def ask(answer: bool) -> bool:
        asked.append(answer)
        return answer

    for answer in (True, True, False, False):
        assert await memo.answer(answer, lambda answer=answer: ask(answer), "me") is answer  # type: ignore[misc]  # a default binds it
    assert asked == [True, True, False]


async def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of bad answers stays within its bound, and does not push a good one out."""
    monkeypatch.setattr(access, "KEPT", 10)
    memo, asked = _Memo[bool](), list[object]()

    async def ask(key: object) -> bool:
        asked.append(key)
        return key == "good"

    for key in ("good", *range(1000), "good", *range(990, 1000)):
        await memo.answer(key, lambda key=key: ask(key), "me")  # type: ignore[misc]  # a default binds it
    assert asked == ["good", *range(1000)]
    assert len(memo._bad) == 10


async def test_failures_are_not_kept() -> None:
    """While the API server is away the answer is 503, and the next one asks again."""
    memo, asked = _Memo[bool](), 0

    async def ask() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Unavailable("away")
        return True

    with pytest.raises(Refusal) as refusal:
        await memo.answer("key", ask, "me")
    assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "5"})
    assert await memo.answer("key", ask, "me")


async def test_floods(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who asks too much is told so, and all are when too many wait; neither costs a question, and it passes."""
    monkeypatch.setattr(access, "OWN", 3)
    monkeypatch.setattr(access, "WAITING", 5)
    memo, asked, go = _Memo[str](), list[str](), asyncio.Event()

    async def answer(key: str, asker: str) -> str:
        async def ask() -> str:
            asked.append(key)
            await go.wait()
            return key

        return await memo.answer(key, ask, asker)

    async def refused(key: str, asker: str) -> int:
        with pytest.raises(Refusal) as refusal:
            await answer(key, asker)
        assert refusal.value.headers == {"Retry-After": "1"}
        return refusal.value.status

    waiting = [asyncio.create_task(answer(f"a{number}", "a")) for number in range(3)]
    await asyncio.sleep(0)
    assert await refused("a3", "a") == 429
    waiting.append(asyncio.create_task(answer("a2", "a")))  # who waits for the same asks nothing
    waiting += [asyncio.create_task(answer(f"b{number}", "b")) for number in range(2)]
    await asyncio.sleep(0)
    assert await refused("c0", "c") == 503
    go.set()
    assert await asyncio.gather(*waiting) == ["a0", "a1", "a2", "a2", "b0", "b1"]
    assert [await answer(key, key[0]) for key in ("a3", "a4", "a5", "a6", "c0")] == ["a3", "a4", "a5", "a6", "c0"]
    assert asked == ["a0", "a1", "a2", "b0", "b1", "a3", "a4", "a5", "a6", "c0"]
    assert not memo._askers


async def test_one_namespace_with_many_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ServiceAccounts of a namespace have half of the places, whatever each of them may have."""
    monkeypatch.setattr(access, "WAITING", 4)
    memo, go = _Memo[str](), asyncio.Event()

    async def answer(key: str, account: str) -> str:
        async def ask() -> str:
            await go.wait()
            return key

        return await memo.answer(key, ask, f"system:serviceaccount:{account}")

    waiting = [asyncio.create_task(answer(name, name)) for name in ("team-a:a", "team-a:b", "team-b:a")]
    await asyncio.sleep(0)
    with pytest.raises(Refusal) as refusal:
        await answer("more", "team-a:c")
    assert refusal.value.status == 503
    waiting.append(asyncio.create_task(answer("more", "team-b:b")))
    go.set()
    assert await asyncio.gather(*waiting) == ["team-a:a", "team-a:b", "team-b:a", "more"]
    assert await answer("new", "team-a:c") == "new"


async def test_one_user_with_many_tokens(
    cluster: Cluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens of a user ask for one: new ones give him no more questions, of whatever kind; others have theirs."""
    monkeypatch.setattr(access, "OWN", 3)
    monkeypatch.setattr(access, "PATIENCE", 60.0)

    async def caller(account: str) -> Caller:
        token = await asyncio.to_thread(cluster.token_for, namespace, account, audience="glimpse")
        return await known.caller(f"Bearer {token}", "192.0.2.1")

    async with relay(cluster, tmp_path) as between:
        kube = await Kube.connect(between.kubeconfig(cluster.token))
        known = Access(kube, "glimpse")
        tokens, another = [await caller("one") for _ in range(3)], await caller("another")
        assert len({each.key for each in tokens}) == 3
        kinds: list[Callable[[Caller, str], Coroutine[None, None, bool]]] = [
            lambda each, name: known.allowed(each, "get", name, ""),
            known.reads,
            lambda each, name: known.administers(each, name, name),
            lambda each, name: known.belongs(each, (name, name), (name,), (), 0),
        ]
        for number, kind in enumerate(kinds):
            asking = [asyncio.create_task(kind(each, f"{number}-{n}")) for n, each in enumerate(tokens)]
            await asyncio.sleep(0)
            with pytest.raises(Refusal) as refusal:
                await kind(tokens[0], f"{number}-more")
            assert refusal.value.status == 429
            assert await kind(another, f"{number}-0") is False
            assert await asyncio.gather(*asking) == [False] * 3
        await kube.close()


def test_clients() -> None:
    """A client is an address of IPv4, however it is written, or a /64 of IPv6."""
    assert client_of("192.0.2.1") == client_of("::ffff:192.0.2.1") != client_of("::ffff:192.0.2.2")
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:2") != client_of("2001:db8:0:1::1")
    assert client_of("fe80::1%eth0") == client_of("fe80::2%eth0")
    assert client_of(None) == client_of("") == ""


def test_token_of() -> None:
    """A token is printable ASCII without spaces, of a sane length; what cannot be one is asked nobody about."""
    assert token_of("Bearer abc.def") == "abc.def"
    assert token_of("Basic dXNlcjphYmM6ZGVm") == "abc:def"
    assert token_of("Bearer " + "x" * 16384) == "x" * 16384
    for header in ("Bearer a b", "Basic dTphIGI=", "Bearer a\x7f", "Bearer " + "x" * 16385):
        assert token_of(header) is None, header
    for missing in (None, "", "Bearer", "Bearer \x00", "Bearer ä", "Basic !", "Basic dXNlcg==", "Negotiate abc"):
        assert token_of(missing) is None, missing
