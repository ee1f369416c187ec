"""Sight: which images a caller may know of.

He sees all images of the namespaces that he belongs to, those where Kubernetes lets him `get images/data`, and of other
namespaces what they have made visible. There may be thousands of namespaces, and Kubernetes cannot be asked in which of
them somebody has a right: so it is asked once whether he has it in all, and else about a few, his own and those that he
names.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from glimpse.gateway.access import Access, Caller, home


class Image(Protocol):
    """What of an image decides who may see it."""

    @property
    def namespace(self) -> str: ...  # noqa: D102
    @property
    def visibility(self) -> str: ...  # noqa: D102
    @property
    def members(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def deactivated(self) -> bool: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102


class Sight(NamedTuple):
    """The namespaces that a caller is known to belong to."""

    everywhere: bool
    """To all."""
    namespaces: frozenset[str]
    stranger: bool = False
    """He has sent no token, and sees what anybody may download."""

    def owns(self, namespace: str) -> bool:
        """Whether he belongs to this one."""
        return self.everywhere or namespace in self.namespaces


STRANGER: Final = Sight(everywhere=False, namespaces=frozenset(), stranger=True)


def visible(image: Image, sight: Sight) -> bool:
    """Whether a caller with this sight may know of this image."""
    if sight.stranger:
        return image.visibility == "public" and not image.deactivated and image.digest != ""
    if sight.owns(image.namespace) or image.visibility in ("public", "community"):
        return True
    return image.visibility == "shared" and not sight.namespaces.isdisjoint(image.members)


async def look(access: Access, caller: Caller, named: Iterable[str]) -> Sight:
    """The sight of a caller who names these namespaces. Raises Refusal: 429, 503."""
    if await access.reads(caller, ""):
        return Sight(everywhere=True, namespaces=frozenset())
    own = home(caller.who.user)
    asked = sorted({*named, *([own] if own else [])})
    answers = await asyncio.gather(*(access.reads(caller, namespace) for namespace in asked))
    return Sight(
        everywhere=False, namespaces=frozenset(name for name, belongs in zip(asked, answers, strict=True) if belongs)
    )
