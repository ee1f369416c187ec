"""What the bytes of an image must be: as it was given, or as a checksum file says that somebody may have signed.

Asked once for a fetch and before the first byte of the image, so that nobody downloads what cannot be proven.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple
from urllib.parse import quote

from glimpse.api.base import format_quantity
from glimpse.problems import ChecksumUnavailable, Problem, SignatureInvalid, SourceNotFound
from glimpse.sources import brief, shown
from glimpse.sources.checksums import LIMIT, find, looked_for
from glimpse.sources.client import Client
from glimpse.sources.signatures import Keyring, Signed
from glimpse.tasks import (
    FILE_LENGTH,
    ChecksumFile,
    Fetch,
    HttpOrigin,
    ImageOrigin,
    LocationOrigin,
    Signature,
    StoreOrigin,
    UploadOrigin,
    Verification,
)

_CUT: Final = "…"


class Expected(NamedTuple):
    """What the bytes must be."""

    algorithm: str
    hex: str
    by: str | None
    """Who says so, for messages; None: the spec."""
    proof: Verification
    """What is proven when they are."""


def expected(task: Fetch, cancelled: threading.Event) -> Expected | None:
    """What the bytes of this fetch must be, as downloaded; None if anything will do. A given digest goes first.

    Raises ChecksumUnavailable (no such file, too large, not understood, no line for the image), SignatureInvalid,
    and as `Client.get` what else keeps a file from coming.
    """
    if task.checksum:
        algorithm, _, value = task.checksum.partition(":")
        return Expected(algorithm, value, None, Verification(digest=task.checksum))
    file, origin = task.checksum_file, task.origin
    if file is None or isinstance(origin, StoreOrigin | ImageOrigin | UploadOrigin):
        return None
    if isinstance(origin, LocationOrigin):  # the file is on the web all the same, and nobody has credentials for it
        urls: Sequence[str] = (f"/{quote(origin.key)}",)
        origin = HttpOrigin(urls=())
    else:
        urls = origin.urls
    keyring = Keyring(file.signature.keys, file.signature.keys_from) if file.signature else None
    client = Client(origin, task.addresses, task.transfers, cancelled)
    try:
        data = _checksums(client, file, looked_for(urls))
        signed = _signed(client, file, file.signature, keyring, data) if file.signature and keyring else None
    finally:
        client.close()
    name, place = shown(file.url), brief(file.url)
    with _about(place):
        algorithm, value = find(signed.text if signed else data, urls)
    proof = Verification(
        digest=f"{algorithm}:{value}",
        file=name if len(name) <= FILE_LENGTH else name[: FILE_LENGTH - len(_CUT)] + _CUT,
        key=signed.key if signed else None,
    )
    return Expected(algorithm, value, place, proof)


def _checksums(client: Client, file: ChecksumFile, names: str) -> bytes:
    try:
        return _read(client, file.url, ChecksumUnavailable)
    except SourceNotFound as problem:
        wanted = f"; it should have a line for {names}" if names else ""
        raise ChecksumUnavailable(f"{problem.message}{wanted}") from problem


def _signed(client: Client, file: ChecksumFile, signature: Signature, keyring: Keyring, data: bytes) -> Signed:
    """What of the checksum file is signed. Raises SignatureInvalid."""
    name = brief(file.url)
    if signature.url is None:
        with _about(f"the signature in {name}"):
            signed = keyring.clear(data)
        if signed is None:
            raise SignatureInvalid(f"{name} is not clear-signed: name the file with its signature in signature.url")
        return signed
    try:
        detached = _read(client, signature.url, SignatureInvalid)
    except SourceNotFound as problem:
        raise SignatureInvalid(f"{problem.message}; it should be the signature of {name}") from problem
    with _about(f"the signature {brief(signature.url)}"):
        return keyring.detached(data, detached)


def _read(client: Client, url: str, too_large: type[Problem]) -> bytes:
    """The whole of a small file."""
    answer = client.get(url)
    data = bytearray()
    try:
        while max(answer.size or 0, len(data)) <= LIMIT:
            if not (chunk := answer.read(LIMIT + 1 - len(data))):
                return bytes(data)
            data += chunk
    finally:
        answer.close()
    raise too_large(f"{brief(url)} is larger than {format_quantity(LIMIT)}, which no such file is")


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Say what a Problem is about."""
    try:
        yield
    except (ChecksumUnavailable, SignatureInvalid) as problem:
        raise type(problem)(f"{what} {problem.message}") from problem
