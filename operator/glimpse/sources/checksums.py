"""Checksum files: which digest one has for an image, in all the styles that publishers write.

Pure text work, since the file comes from a stranger: each line is read once, and what is not understood is passed over
only where it cannot be about the image.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from glimpse.problems import ChecksumUnavailable

LIMIT: Final = 1 << 20
"""Bytes of a checksum file at most; the largest that a distribution publishes has some 200 KiB."""

_STRONGEST: Final = ("sha512", "sha384", "sha256", "sha1", "md5")
_BY_LENGTH: Final = {128: "sha512", 96: "sha384", 64: "sha256", 40: "sha1", 32: "md5"}
_TAGS: Final = {name.upper(): name for name in _STRONGEST} | {
    f"SHA2-{name[3:]}": name for name in ("sha512", "sha384", "sha256")
}
"""What stands before the bracket: BSD and `sha256sum --tag`, and since its version 3 `openssl dgst`."""
_GNU: Final = re.compile(r"([0-9a-fA-F]{32,128})(?:[ \t]+\*?(.*))?")
"""`hex  name`, `hex *name`; some write one blank or a tab. Without a name it is the digest alone."""
_HEX: Final = re.compile("[0-9a-fA-F]+")
_ESCAPES: Final = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_STDIN: Final = "-"
"""The name that the digest of a pipe has."""


class _Line(NamedTuple):
    algorithm: str
    hex: str
    """Empty if it is not one of this algorithm."""
    path: tuple[str, ...]
    """Folders and name; empty for a digest alone."""


def find(data: bytes, urls: Sequence[str]) -> tuple[str, str]:
    """Algorithm and hex digest that a checksum file has for the image at these URLs.

    A line is found by the last segment of a URL's path; of several such lines count those that name the most of the
    folders before it as well, and of their digests the strongest. The order of the URLs does not matter, since it is
    that of the mirrors' speed. A file with nothing but a digest speaks of any image. Raises ChecksumUnavailable, whose
    message does not say which file it was.
    """
    if b"\0" in data:
        raise ChecksumUnavailable("is not text")
    lines = list(_lines(data.decode("utf-8-sig", "surrogateescape")))
    paths = {path for url in urls if (path := _path(url))}
    ends = {path[-1:] for path in paths}
    names = looked_for(urls)
    if named := [line for line in lines if line.path[-1:] in ends]:
        depths = [max(_depth(line.path, path) for path in paths) for line in named]
        deepest = max(depths)
        near = [line for line, depth in zip(named, depths, strict=True) if depth == deepest]
        return _choose(near, f" for {names}")
    if lines and not any(line.path for line in lines):
        return _choose(lines, "")
    raise ChecksumUnavailable(
        f"has no line for {names}" if names else "is no digest alone, and the image's URL has no file name to look for"
    )


def looked_for(urls: Sequence[str]) -> str:
    """The file names by which a line is found, for a message that is always the same; empty if the URLs have none."""
    return " or ".join(sorted({_quoted(path[-1]) for url in urls if (path := _path(url))}))


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:99] + "…")  # noqa: PLR2004 - what a person reads


def _path(url: str) -> tuple[str, ...]:
    """The segments of a URL's path, decoded; empty if it does not end in a name."""
    *folders, name = urlsplit(url).path.split("/")
    return tuple(unquote(part, errors="surrogateescape") for part in (*folders, name) if part) if name else ()


def _lines(text: str) -> Iterator[_Line]:
    # Not splitlines: it would end a line at characters that are part of a name.
    for raw in text.split("\n"):
        if raw and (line := _line(raw.strip(" \t\r"))):
            yield line


def _line(text: str) -> _Line | None:
    """What a line says; None if it is a comment, or nothing that we know."""
    escaped = text.startswith("\\")
    tag, bracket, rest = text[escaped:].partition("(")
    if bracket and (algorithm := _TAGS.get(tag.strip().upper())):
        name, _, end = rest.rpartition(")")
        value = end.strip().removeprefix("=").strip()
        whole = _HEX.fullmatch(value) and _BY_LENGTH.get(len(value)) == algorithm
        return _named(algorithm, value if whole else "", name, escaped=escaped)
    match = _GNU.fullmatch(text[escaped:])
    found = _BY_LENGTH.get(len(match[1])) if match else None
    if match is None or found is None:
        return None
    if match[2] in {None, "", _STDIN}:
        return _Line(found, match[1].lower(), ())
    return _named(found, match[1], match[2], escaped=escaped)


def _named(algorithm: str, value: str, name: str, *, escaped: bool) -> _Line | None:
    if escaped:  # as GNU does with names that hold a line break or a backslash
        name = re.sub(r"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
    path = tuple(part for part in name.split("/") if part not in {"", "."})
    return _Line(algorithm, value.lower(), path) if path else None


def _depth(line: Sequence[str], path: Sequence[str]) -> int:
    """How many segments a line has, if a URL's path ends in all of them."""
    return len(line) if tuple(path[-len(line) :]) == tuple(line) else 0


def _choose(lines: Sequence[_Line], what: str) -> tuple[str, str]:
    """The strongest of what these lines say, which must not contradict each other. `what` they are about."""
    said = defaultdict[str, set[str]](set)
    for line in lines:
        said[line.algorithm].add(line.hex)
    for algorithm, values in said.items():
        if "" in values:
            raise ChecksumUnavailable(f"has a line{what} that is no digest of {algorithm}")
        if len(values) > 1:
            raise ChecksumUnavailable(
                f"has lines{what} that contradict each other: {len(values)} digests of {algorithm}"
            )
    strongest = next(algorithm for algorithm in _STRONGEST if algorithm in said)
    return strongest, said[strongest].pop()
