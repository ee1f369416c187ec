"""Sharing: how many namespaces are asked about before an image of another namespace is refused.

A shared image is refused only after each of its members was asked about. Were nobody asked where there is no image, the
time would tell that there is one. So a refusal takes as many questions as the widest shared image has members, whatever
is behind the name; where nothing is shared it takes none.
"""


class Sharing:
    """The shared images of the whole cluster, by their members."""

    def __init__(self) -> None:
        self._shared: dict[tuple[str, str], tuple[str, ...]] = {}
        self._widest: tuple[str, ...] | None = ()
        self.version = 0
        """Another one with each change of any image's members."""

    def learn(self, where: tuple[str, str], members: tuple[str, ...]) -> None:
        """What the members of an image are now; none if it is not shared, or gone."""
        if members == self._shared.get(where, ()):
            return
        if members:
            self._shared[where] = members
        else:
            del self._shared[where]
        self.version += 1
        self._widest = None  # found when it is needed: a first list brings thousands

    def others(self, members: tuple[str, ...]) -> tuple[str, ...]:
        """Namespaces to be asked about besides these members, so that the questions are always as many."""
        if self._widest is None:
            self._widest = max(self._shared.values(), key=lambda each: (len(each), each), default=())
        rest = [name for name in self._widest if name not in members]
        return tuple(rest[: max(0, len(self._widest) - len(members))])
