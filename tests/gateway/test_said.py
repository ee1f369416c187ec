"""What senders say of their bytes: the headers of RFC 9530, read by the letter, and refused where they say nothing."""

import base64
import hashlib

import pytest

from glimpse.gateway.refusals import Refusal
from glimpse.gateway.said import digests

DATA = b"what is sent"
NAMES = {"sha-256": "sha256", "sha-512": "sha512", "sha": "sha1", "md5": "md5"}


def member(name: str, data: bytes = DATA) -> str:
    """One algorithm with its digest, as in the header."""
    value = hashlib.new(NAMES[name], data, usedforsecurity=False).digest()
    return f"{name}=:{base64.b64encode(value).decode()}:"


@pytest.mark.parametrize("name", NAMES)
def test_each_algorithm(name: str) -> None:
    """By its name in the registry there, and in hex by the name that we have for it."""
    algorithm = NAMES[name]
    assert digests(member(name)) == {algorithm: hashlib.new(algorithm, DATA, usedforsecurity=False).hexdigest()}


def test_several() -> None:
    """In one header, in two, or twice the same: all of them count, once."""
    both = digests(member("sha-256"), member("sha-512"))
    assert sorted(both) == ["sha256", "sha512"]
    assert digests(f" {member('sha-256')} ,\t{member('sha-512')}", member("sha-256")) == both
    assert digests(None, None) == digests("", None) == {}


def test_unknown_ones_are_left_out() -> None:
    """As the RFC says: what we cannot compute is no reason to refuse what we can."""
    assert digests("crc32c=:AAAAAA==:") == {}
    assert sorted(digests(f"unixsum=:AAA=:, {member('md5')}, x-mine=:AAAA:")) == ["md5"]


def test_two_that_disagree() -> None:
    """Of one algorithm there is one digest, whether they stand in one header or in two."""
    other = member("sha-256", b"other")
    for headers in ((f"{member('sha-256')}, {other}",), (member("sha-256"), other)):
        with pytest.raises(Refusal, match="two sha-256 digests") as refused:
            digests(*headers)
        assert refused.value.status == 400


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("sha-256", "sha-256=:BASE64:"),
        ("sha-256=AAAA", "sha-256=:BASE64:"),
        ('sha-256="AAAA"', "sha-256=:BASE64:"),
        ("SHA-256=:AAAA:", "sha-256=:BASE64:"),
        (f"{member('sha-256')},", "sha-256=:BASE64:"),
        (f"{member('sha-256')} {member('md5')}", "sha-256=:BASE64:"),
        ("sha-256=:AA-_:", "sha-256=:BASE64:"),
        (f"sha-256=:{'A' * 1000}:", "sha-256=:BASE64:"),
        ("sha-256=:AAA:", "32 bytes"),
        ("sha-256=:A===:", "32 bytes"),
        ("sha-256=::", "32 bytes"),
        (member("sha").replace("sha=", "sha-256="), "32 bytes"),
        (member("sha-256").replace("sha-256", "md5"), "16 bytes"),
        (member("sha-256").replace("sha-256", "sha-512"), "64 bytes"),
    ],
)
def test_what_is_no_digest(header: str, words: str) -> None:
    """It is refused with the form that it must have: who says something wants it to be looked at."""
    with pytest.raises(Refusal, match=words) as refused:
        digests(header)
    assert refused.value.status == 400
