"""Access: who the caller is, and whether he may have the image. Kubernetes decides both.

A token is shown to the API server (TokenReview), and the user that it names is asked about (SubjectAccessReview on
`images/data`), so there are no accounts or passwords of our own. Answers are kept for seconds: an import asks many
times in a row.
"""

import asyncio
import base64
import binascii
import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, Generic, NamedTuple, TypeVar

from glimpse.gateway.refusals import LATER, SOON, Refusal
from glimpse.gateway.turns import Turns
from glimpse.kube import ApiError, Kube, Review

log: Final = logging.getLogger(__name__)

YES: Final = 60.0
"""Seconds that a good answer is kept: as long may a withdrawn right be used."""
NO: Final = 5.0
"""Seconds that a bad answer is kept: as long may a new right have to wait."""
KEPT: Final = 10_000
"""Answers of each sort that are kept."""
ASKING: Final = 16
"""Questions to the API server at once: a flood of bad tokens must not become its flood."""
WAITING: Final = 200
"""Questions of one sort that wait or are being asked, half of them by ServiceAccounts of one namespace at most. Who
comes then is sent away at once."""
OWN: Final = 32
"""The same of one user, whatever tokens he has, or of one address of those who are not known yet: more than a proxy for
many needs in a moment, and soon answered."""
PATIENCE: Final = 5.0
"""Seconds to wait for the API server."""
_ACCOUNT: Final = "system:serviceaccount:"
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,16384}")  # a JWT, or what a webhook or a file of tokens knows

T = TypeVar("T")


class Caller(NamedTuple):
    """Who asks."""

    key: bytes
    """Stands for the token, which is not kept."""
    who: Review


class Access:
    """Answers for one installation. `audience` is what a token must be made for."""

    def __init__(self, kube: Kube, audience: str, *, anonymous: bool = False) -> None:
        """`anonymous`: who sends no token may have public images."""
        self._kube = kube
        self._audience = audience
        self._anonymous = anonymous
        self._callers: _Memo[Review | None] = _Memo()
        self._rights: _Memo[bool] = _Memo()
        self._belongings: _Memo[bool] = _Memo()
        self._turns = asyncio.Semaphore(ASKING)

    async def caller(self, authorization: str | None, remote: str | None) -> Caller:
        """Who sends this `Authorization` header, from this address.

        Raises Refusal: 401, 429 for a client who asks too much, or 503 while all do or the API server is away.
        """
        token = token_of(authorization)
        if token is None:
            raise self.unknown()
        key = hashlib.sha256(token.encode()).digest()

        async def review() -> Review | None:
            answer = await self._kube.token_review(token, [self._audience])
            return answer if answer.authenticated else None

        who = await self._callers.answer(key, review, client_of(remote))
        if who is None:
            raise Refusal(
                401,
                f"The token is expired, unknown, or not made for the audience {self._audience!r}; create a new one.",
            )
        return Caller(key, who)

    async def visitor(self, authorization: str | None, remote: str | None) -> Caller | None:
        """The same; None for one who sends no such header, where public images need none."""
        if authorization is None and self._anonymous:
            return None
        return await self.caller(authorization, remote)

    def unknown(self) -> Refusal:
        """What a caller without a token is told."""
        return Refusal(401, f"Send a token of the audience {self._audience!r}, as Bearer or as the password of Basic.")

    async def allowed(self, caller: Caller, verb: str, namespace: str, name: str) -> bool:
        """Whether the caller has the right to `verb` the bytes of this image. Raises Refusal: 429 and 503 as above.

        Nothing is looked up for it, so it takes the same time whether the image exists or not. Most may have a whole
        namespace or nothing, so that is asked first, and once for all images.
        """
        for asked in ("", name):
            review = partial(self._review, caller.who, verb, namespace, asked)
            if await self._rights.answer((caller.key, verb, namespace, asked), review, caller.who.user):
                return True
        return False

    async def belongs(
        self,
        caller: Caller,
        image: tuple[str, str],
        members: tuple[str, ...],
        others: tuple[str, ...],
        version: int,
    ) -> bool:
        """Whether the caller belongs to one of an image's member namespaces. Raises Refusal: 429 and 503 as above.

        `others` are asked about besides, to make the questions as many as those about another image. For the same
        reason answers are kept for the image and not for each namespace: else the time would tell who its members are.
        They are kept until members change anywhere, which is when `version` does: else it would tell that these did.
        """
        if not members and not others:
            return False

        async def review(namespace: str) -> bool:
            async with self._turns:
                return await self._review(caller.who, "get", namespace, "")

        async def ask() -> bool:
            answers = await asyncio.gather(*(review(namespace) for namespace in (*members, *others)))
            return any(answers[: len(members)])

        return await self._belongings.answer((caller.key, image, version), ask, caller.who.user)

    async def administers(self, caller: Caller, namespace: str, name: str) -> bool:
        """Whether the caller may have this image though it is deactivated. Raises Refusal: 429 and 503 as above."""
        review = partial(self._review, caller.who, "get", namespace, name, "deactivated")
        return await self._rights.answer((caller.key, "deactivated", namespace, name), review, caller.who.user)

    async def _review(self, who: Review, verb: str, namespace: str, name: str, what: str = "data") -> bool:
        return await self._kube.subject_access_review(
            who.user,
            who.groups,
            who.uid,
            who.extra,
            namespace=namespace,
            verb=verb,
            resource="images",
            subresource=what,
            name=name,
        )

    async def reads(self, caller: Caller, namespace: str) -> bool:
        """Whether the caller may get all images of a namespace; of all namespaces, if none is named.

        Raises Refusal: 429 and 503 as above.
        """
        review = partial(self._review, caller.who, "get", namespace, "")
        return await self._rights.answer((caller.key, "get", namespace, ""), review, caller.who.user)


def token_of(authorization: str | None) -> str | None:
    """The token in a Bearer header, or in the password of a Basic one (RFC 7617); None if there is none."""
    scheme, _, rest = (authorization or "").partition(" ")
    rest = rest.strip()
    if scheme.lower() == "basic":
        try:
            rest = base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    elif scheme.lower() != "bearer":
        return None
    return rest if _TOKEN.fullmatch(rest) else None


def home(user: str) -> str | None:
    """The namespace of a ServiceAccount; None for others."""
    return user.removeprefix(_ACCOUNT).partition(":")[0] if user.startswith(_ACCOUNT) else None


@lru_cache(KEPT)
def client_of(remote: str | None) -> str:
    """Whose address it is: one has a whole /64 of IPv6 (RFC 6177), and only one address of IPv4."""
    try:
        address = ip_address(remote or "")
    except ValueError:
        return remote or ""
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((int(address), 64), strict=False))
    return str(address)


class _Memo(Generic[T]):
    """Answers kept for seconds, good and bad ones apart, so that bad ones cannot push good ones out."""

    def __init__(self) -> None:
        self._places = Turns(WAITING)
        # all answers of one dict live equally long: the first is the next to expire
        self._good: dict[Hashable, tuple[float, T]] = {}
        self._bad: dict[Hashable, tuple[float, T]] = {}
        self._asked: dict[Hashable, asyncio.Task[T]] = {}
        self._askers: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(ASKING)

    async def answer(self, key: Hashable, ask: Callable[[], Awaitable[T]], asker: str) -> T:
        """The kept answer, or that of `ask`, which is called once however many wait; `asker` has asked for it.

        Raises Refusal: 429 for an asker of too many questions, 503 if there are too many, or no answer.
        """
        now = time.monotonic()
        for kept in (self._good, self._bad):
            if (found := kept.get(key)) and found[0] > now:
                return found[1]
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = self._begin(key, ask, asker)
        # a caller who goes away must not take the answer from the others
        return await asyncio.shield(task)

    def _begin(self, key: Hashable, ask: Callable[[], Awaitable[T]], asker: str) -> asyncio.Task[T]:
        if self._askers[asker] >= OWN:
            raise Refusal(429, "Too many new tokens or images at once from you; ask for fewer.", retry_after=SOON)
        tenant = home(asker) or asker
        if not self._places.take(tenant):
            raise Refusal(503, "Too many callers are not known yet.", retry_after=SOON)

        def done(_: asyncio.Task[T]) -> None:
            del self._asked[key]
            self._places.leave(tenant)
            self._askers[asker] -= 1
            if not self._askers[asker]:
                del self._askers[asker]

        self._askers[asker] += 1
        task = asyncio.create_task(self._ask(key, ask))
        task.add_done_callback(done)
        return task

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(PATIENCE), self._turns:
                answer = await ask()
        except (ApiError, TimeoutError) as error:
            log.warning("a caller's rights could not be asked for: %r", error)
            raise Refusal(
                503, "The Kubernetes API server cannot be asked for your rights at the moment.", retry_after=LATER
            ) from error
        kept, life = (self._good, YES) if answer else (self._bad, NO)
        now = time.monotonic()
        kept.pop(key, None)
        while kept and (len(kept) >= KEPT or next(iter(kept.values()))[0] <= now):
            del kept[next(iter(kept))]
        kept[key] = (now + life, answer)
        return answer
