# ruff: noqa: A005 - the module is named after what it speaks; every import here is absolute
"""Bytes from web servers: decided here is how a whole file comes of one or more answers.

The first request asks for a part. What comes back tells all that must be known: the length, whether there are parts,
and by what two answers can be known to be of the same file.
"""

import threading
import time
from collections.abc import Sequence
from typing import Final

from glimpse.problems import Problem, SourceChanged, SourceUnavailable, combined
from glimpse.settings import Addresses, Transfers
from glimpse.sources import shown
from glimpse.sources.client import Answer, Client
from glimpse.sources.line import TUNING, Line, Mirrors, Tuning
from glimpse.sources.ranged import Ranged
from glimpse.sources.remote import REST, Remote, Version
from glimpse.streams import CHUNK
from glimpse.tasks import HttpOrigin

_HICCUP: Final = 0.25
"""Seconds in which a first request must have failed to be made again at once."""


def open_http(
    origin: HttpOrigin,
    urls: Sequence[str],
    addresses: Addresses,
    transfers: Transfers,
    cancelled: threading.Event,
    *,
    proven: bool = False,
    whole: bool = False,
    start: int = 0,
    expected: Version | None = None,
    tuning: Tuning = TUNING,
) -> "HttpSource":
    """Open a file at the first of these mirrors that has it; the body is about to come.

    A break is mended where it broke, by the same mirror or another one; so several mirrors may be given, and bytes
    without validators joined, only if the caller proves the whole (`proven`). With `whole` nothing is joined or mended:
    one answer is read to its end. With `start`, which must lie within the file, it is taken up there, if it is still
    the `expected` version: else SourceChanged. Raises as `Client.get`, what each mirror said in one.
    """
    client = Client(origin, addresses, transfers, cancelled)
    try:
        remotes = [Remote(client, url) for url in urls]
        for remote in remotes:
            remote.version = expected
        begun = _first(remotes, start, tuning, cancelled, proven=proven, whole=whole)
        retries = 0 if whole else transfers.retries
        return HttpSource(client, remotes, begun, transfers, cancelled, retries=retries, proven=proven, tuning=tuning)
    except BaseException:
        client.close()
        raise


def _first(
    remotes: Sequence[Remote], start: int, tuning: Tuning, cancelled: threading.Event, *, proven: bool, whole: bool
) -> tuple[int, Answer]:
    """The first mirror that answers as it should, and its answer. Raises what all of them said."""
    met = list[tuple[str, Problem]]()
    for number, remote in enumerate(remotes):
        try:
            return number, _begin(remote, start, tuning, cancelled, proven=proven, whole=whole)
        except Problem as problem:
            if cancelled.is_set():
                raise
            remote.failed = True
            met.append((remote.name, problem))
    said = combined(met)
    if start and any(isinstance(other, SourceChanged) for _, other in met):
        raise SourceChanged(said.message)  # there is one to begin anew with, whatever time may mend at the others
    raise said


def _begin(
    remote: Remote, start: int, tuning: Tuning, cancelled: threading.Event, *, proven: bool, whole: bool
) -> Answer:
    """The first answer; the whole in one if the server does not know parts, or they could not be told to be of one."""

    def ask() -> Answer:
        if whole:
            return remote.whole()
        return remote.ask(start, start + tuning.part) if start else remote.open(tuning.part)

    began = time.monotonic()
    try:
        answer = ask()
    except SourceUnavailable as problem:
        # A hiccup is over in a moment; what takes longer is the operator's to wait for, without a slot.
        hiccup = not problem.retry_after and time.monotonic() - began <= _HICCUP
        if not (hiccup or remote.fickle) or cancelled.wait(tuning.pause):
            raise
        try:
            answer = ask()
        except SourceUnavailable:
            if start or not remote.fickle:
                raise
            answer = remote.whole()
    if start:
        return answer
    guarded = proven or bool(remote.version and remote.version.guard)
    if guarded or answer.range is None or answer.range[1] == answer.range[2]:
        return answer
    answer.close()
    return remote.whole()


class HttpSource:
    """A file of a web server, as an OpenSource."""

    def __init__(
        self,
        client: Client,
        remotes: Sequence[Remote],
        begun: tuple[int, Answer],
        transfers: Transfers,
        cancelled: threading.Event,
        *,
        retries: int,
        proven: bool,
        tuning: Tuning,
    ) -> None:
        self._client = client
        self.remotes = remotes
        """All mirrors, those too that were passed over."""
        number, first = begun
        version = remotes[number].version
        assert version  # noqa: S101 - there is an answer
        self.name, self.version = shown(remotes[0].url), version
        self.size = version.size
        self.url, self.etag, self.last_modified = first.url, first.etag, first.last_modified
        for remote in remotes:
            remote.length = self.size
        self._mirrors = Mirrors(remotes[number:])
        retries = retries if proven or version.guard else 0
        self._body: Ranged | _Steady
        if not self.size or self.size - first.at <= tuning.part:
            line = Line(self._mirrors, cancelled.is_set, retries, tuning=tuning, answer=first)
            self._body = _Steady(line, first.at, self.size or REST)
        else:
            self._body = Ranged(
                self._mirrors,
                first,
                self.size,
                cancelled,
                connections=transfers.connections,
                retries=retries,
                tuning=tuning,
            )

    @property
    def used(self) -> Sequence[Remote]:
        """The mirrors that bytes came from."""
        return [remote for remote in self.remotes if remote in self._mirrors.used]

    @property
    def doubtful(self) -> bool:
        """Whether bytes were joined of which nothing but the proof of the whole tells that they belong together."""
        return self._mirrors.doubtful

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes."""
        return self._body.read(n)

    def close(self) -> None:
        """Drop all connections."""
        self._body.close()
        self._client.close()


class _Steady:
    """A small file, or one whose length nobody knows: one line, and no thread."""

    def __init__(self, line: Line, start: int, stop: int) -> None:
        """`stop`: the length of the file, or REST."""
        self._line, self._at, self._stop = line, start, stop

    def read(self, n: int = CHUNK, /) -> bytes:
        chunk = self._line.read(self._at, self._stop, n, last=True) if self._at < self._stop else b""
        self._at += len(chunk)
        return chunk

    def close(self) -> None:
        self._line.close()
