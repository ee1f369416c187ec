"""Checksum files in all the styles that publishers write, and in those that an attacker would."""

import hashlib
import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimpse.problems import ChecksumUnavailable
from glimpse.sources.checksums import find, looked_for

URL = "https://a.example/images/debian-12.qcow2?token=x#y"
NAME = "debian-12.qcow2"
HEX = {name: hashlib.new(name, b"image").hexdigest() for name in ("sha512", "sha384", "sha256", "sha1", "md5")}
OTHER = {name: hashlib.new(name, b"other").hexdigest() for name in HEX}
SHA256 = HEX["sha256"]

SIGNATURE = "-----BEGIN PGP SIGNATURE-----\n\niQIzBAEBCAAdFiEENvYS3PJ\n=Me1A\n-----END PGP SIGNATURE-----\n"

GOOD: dict[str, tuple[str, str]] = {
    "gnu text": (f"{SHA256}  {NAME}\n", "sha256"),
    "gnu binary": (f"{SHA256} *{NAME}\n", "sha256"),
    "no line break at the end": (f"{SHA256}  {NAME}", "sha256"),
    "one blank": (f"{SHA256} {NAME}\n", "sha256"),
    "a tab": (f"{SHA256}\t{NAME}\n", "sha256"),
    "capital digits": (f"{SHA256.upper()}  {NAME}\n", "sha256"),
    "crlf": (f"{OTHER['sha256']}  other\r\n{SHA256}  {NAME}\r\n", "sha256"),
    "byte order mark": (f"\ufeff{SHA256}  {NAME}\n", "sha256"),
    "this folder": (f"{SHA256}  ./{NAME}\n", "sha256"),
    "another folder": (f"{SHA256}  amd64/{NAME}\n", "sha256"),
    "an absolute path": (f"{SHA256}  /srv/cloud/{NAME}\n", "sha256"),
    "bsd": (f"SHA256 ({NAME}) = {SHA256}\n", "sha256"),
    "bsd sha512": (f"SHA512 ({NAME}) = {HEX['sha512']}\n", "sha512"),
    "bsd md5": (f"MD5 ({NAME}) = {HEX['md5']}\n", "md5"),
    "bsd with a path": (f"SHA256 (./images/{NAME}) = {SHA256}\n", "sha256"),
    "openssl 1": (f"SHA256({NAME})= {SHA256}\n", "sha256"),
    "openssl 3": (f"SHA2-256({NAME})= {SHA256}\nSHA2-512({NAME})= {HEX['sha512']}\n", "sha512"),
    "by length sha512": (f"{HEX['sha512']}  {NAME}\n", "sha512"),
    "by length sha384": (f"{HEX['sha384']}  {NAME}\n", "sha384"),
    "by length sha1": (f"{HEX['sha1']}  {NAME}\n", "sha1"),
    "by length md5": (f"{HEX['md5']}  {NAME}\n", "md5"),
    "fedora": (f"# {NAME}: 528154624 bytes\nSHA256 ({NAME}) = {SHA256}\n", "sha256"),
    "clear-signed, not verified": (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSHA256 ({NAME}) = {SHA256}\n{SIGNATURE}",
        "sha256",
    ),
    "the strongest wins": ("".join(f"{HEX[name]}  {NAME}\n" for name in reversed(HEX)), "sha512"),
    "the strongest wins, whatever the order": ("".join(f"{HEX[name]}  {NAME}\n" for name in HEX), "sha512"),
    "the same twice": (f"{SHA256}  {NAME}\nSHA256 ({NAME}) = {SHA256.upper()}\n", "sha256"),
    "among others": (f"{OTHER['sha256']}  {NAME}.sig\n{SHA256}  {NAME}\n{OTHER['sha256']}  x{NAME}\n", "sha256"),
    "kinds that nobody here computes": (f"BLAKE2b ({NAME}) = ab\nSHA512/256 ({NAME}) = {SHA256}\n" * 2, ""),
    "bare": (SHA256, "sha256"),
    "bare with a line break": (f"{SHA256}\r\n", "sha256"),
    "bare after a comment": (f"# the image of today\n\n{HEX['sha512'].upper()}\n", "sha512"),
    "of a pipe": (f"{SHA256}  -\n", "sha256"),
}


@pytest.mark.parametrize("name", [name for name in GOOD if GOOD[name][1]])
def test_good(name: str) -> None:
    """Each style gives the digest of the image, in small letters."""
    text, algorithm = GOOD[name]
    assert find(text.encode(), [URL]) == (algorithm, HEX[algorithm])


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has no line for 'debian-12.qcow2'"),
    "other names": (f"{SHA256}  other\n{SHA256}  {NAME}.asc\n{SHA256}  x{NAME}\n".encode(), "has no line for"),
    "another case": (f"{SHA256}  {NAME.upper()}\n".encode(), "has no line for"),
    "a folder of that name": (f"{SHA256}  {NAME}/x\n".encode(), "has no line for"),
    "a page": (b"<html><body>Not here</body></html>", "has no line for"),
    "a commented line": (f"# {SHA256}  {NAME}\n#SHA256 ({NAME}) = {SHA256}\n".encode(), "has no line for"),
    "kinds that nobody here computes": (GOOD["kinds that nobody here computes"][0].encode(), "has no line for"),
    "a digest of no known length": (f"{SHA256[:-2]}  {NAME}\n".encode(), "has no line for"),
    "no digest": (f"{'g' * 64}  {NAME}\n".encode(), "has no line for"),
    "a bare digest among lines": (f"{SHA256}\n{SHA256}  other\n".encode(), "has no line for"),
    "nuls": (f"{SHA256}  {NAME}\0\n".encode(), "is not text"),
    "utf-16": (f"{SHA256}  {NAME}\n".encode("utf-16"), "is not text"),
    "two digests": (f"{SHA256}  {NAME}\n{OTHER['sha256']}  {NAME}\n".encode(), "contradict each other: 2 digests"),
    "two styles": (f"{SHA256}  {NAME}\nSHA256 ({NAME}) = {OTHER['sha256']}\n".encode(), "contradict each other"),
    "two weak ones below a strong one": (
        f"{HEX['sha512']}  {NAME}\n{HEX['md5']}  {NAME}\n{OTHER['md5']}  {NAME}\n".encode(),
        "contradict each other: 2 digests of md5",
    ),
    "two bare ones": (f"{SHA256}\n{OTHER['sha256']}\n".encode(), "contradict each other"),
    "a tag that lies": (f"SHA512 ({NAME}) = {SHA256}\n".encode(), "no digest of sha512"),
    "a tag that lies beside a good line": (
        f"SHA512 ({NAME}) = {SHA256}\n{SHA256}  {NAME}\n".encode(),
        "has a line for 'debian-12.qcow2' that is no digest of sha512",
    ),
    "a tag with nothing": (f"SHA256 ({NAME}) = \n".encode(), "no digest of sha256"),
    "a tag with words": (f"SHA256 ({NAME}) = {SHA256} or so\n".encode(), "no digest of sha256"),
    "two folders, neither of them ours": (
        f"{SHA256}  arm64/{NAME}\n{OTHER['sha256']}  amd64/{NAME}\n".encode(),
        "contradict each other",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    """Each is refused with words that name what was looked for, and nothing is guessed."""
    data, message = BAD[name]
    with pytest.raises(ChecksumUnavailable) as caught:
        find(data, [URL])
    assert message in caught.value.message


def test_the_folders_tell_files_of_one_name_apart() -> None:
    """Debian's installer lists four files of one name: the line that names most of the URL's folders counts."""
    lines = "".join(
        f"{hashlib.sha256(path.encode()).hexdigest()}  ./{path}\n"
        for path in ("mini.iso", "netboot/mini.iso", "netboot/gtk/mini.iso", "gtk/netboot/mini.iso")
    ).encode()
    for path in ("netboot/mini.iso", "netboot/gtk/mini.iso", "gtk/netboot/mini.iso"):
        url = f"https://a.example/dists/images/{path}"
        assert find(lines, [url]) == ("sha256", hashlib.sha256(path.encode()).hexdigest())
    assert find(lines, ["https://a.example/mini.iso"])[1] == hashlib.sha256(b"mini.iso").hexdigest()


def test_each_mirrors_name_is_looked_for() -> None:
    """Mirrors may call the file by other names; all of them stand in the message."""
    urls = ["https://a.example/latest", "https://b.example/x/debian-12.qcow2", "https://c.example/debian-12.qcow2"]
    for line in (f"{SHA256}  {NAME}\n", f"{SHA256}  latest\n", f"{SHA256}  {NAME}\n{SHA256}  latest\n"):
        assert find(line.encode(), urls) == ("sha256", SHA256)
    assert looked_for(urls) == looked_for(urls[::-1]) == "'debian-12.qcow2' or 'latest'"
    with pytest.raises(ChecksumUnavailable, match=r"^has no line for 'debian-12\.qcow2' or 'latest'$"):
        find(f"{SHA256}  other\n".encode(), urls)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_mirrors_does_not_matter(order: Sequence[int]) -> None:
    """It is that of their speed today: the digest is the same, and so is what cannot be told."""
    urls = [
        f"https://{host}.example/{path}" for host, path in (("a", "x/latest"), ("b", "images/d.img"), ("c", "d.img"))
    ]
    urls = [urls[number] for number in order]
    deep = f"{SHA256}  images/d.img\n{OTHER['sha256']}  d.img\n{OTHER['sha256']}  latest\n"
    assert find(deep.encode(), urls) == ("sha256", SHA256)
    with pytest.raises(ChecksumUnavailable, match="contradict each other: 2 digests of sha256"):
        find(f"{SHA256}  d.img\n{OTHER['sha256']}  latest\n".encode(), urls)


@pytest.mark.parametrize("url", ["https://a.example", "https://a.example/", "https://a.example/d/?f=debian-12.qcow2"])
def test_a_url_without_a_name(url: str) -> None:
    """No line can be meant for it, but a file with nothing but the digest can."""
    assert find(SHA256.encode(), [url]) == ("sha256", SHA256)
    assert looked_for([url]) == ""
    with pytest.raises(ChecksumUnavailable, match="has no file name to look for"):
        find(f"{SHA256}  {NAME}\n".encode(), [url])


@pytest.mark.parametrize(
    ("segment", "line"),
    [
        ("a%20b.img", f"{SHA256}  a b.img"),
        ("a+b.img", f"{SHA256}  a+b.img"),
        ("%C3%BC.img", f"{SHA256}  ü.img"),
        ("a%0Ab.img", rf"\{SHA256}  a\nb.img"),
        ("a%5Cb.img", rf"\{SHA256}  a\\b.img"),
        ("a%5Cnb.img", rf"\{SHA256}  a\\nb.img"),
        ("a%0Db.img", rf"\SHA256 (a\rb.img) = {SHA256}"),
        ("a%5Cb.img", rf"{SHA256}  a\b.img"),
        ("a)%20=%20b", f"SHA256 (a) = b) = {SHA256}"),
        ("%E2%80%A8.img", f"{SHA256}  \u2028.img"),
        ("%0C.img", f"{SHA256}  \x0c.img"),
    ],
)
def test_odd_names(segment: str, line: str) -> None:
    """A URL is decoded, an escaped name is read as GNU writes it, and only a line feed ends a line."""
    assert find(f"{line}\n".encode(), [f"https://a.example/{segment}"]) == ("sha256", SHA256)


def test_a_name_that_is_no_utf8() -> None:
    """Names are bytes: an old encoding matches what the URL has, and the message can be sent on."""
    url = "https://a.example/%FCber.img"
    assert find(f"{SHA256}  ".encode() + b"\xfcber.img\n", [url]) == ("sha256", SHA256)
    with pytest.raises(ChecksumUnavailable) as caught:
        find(b"", [url])
    caught.value.message.encode()


def test_a_long_name_is_cut_in_messages() -> None:
    """A condition has other things to say."""
    assert len(looked_for([f"https://a.example/{'n' * 2000}"])) < 110


HOSTILE: dict[str, bytes] = {
    "one huge line": b"a" * (1 << 20),
    "one huge line of blanks": SHA256.encode() + b" " * (1 << 20),
    "one huge line of brackets": b"SHA256 " + b"(" * (1 << 19) + b")" * (1 << 19),
    "one huge name": f"SHA256 ({'n/' * (1 << 19)}) = {SHA256}".encode(),
    "one huge escape": f"\\{SHA256}  ".encode() + b"\\\\" * (1 << 19),
    "only line breaks": b"\n" * (1 << 20),
    "only carriage returns": b"\r" * (1 << 20),
    "thousands of lines": f"{SHA256}  other\n".encode() * 14_000,
    "thousands of lines for the name": f"{SHA256}  {NAME}\n".encode() * 12_000,
    "thousands that contradict": b"".join(b"%064x  %s\n" % (i, NAME.encode()) for i in range(12_000)),
    "thousands of folders": b"".join(b"%064x  %d/%s\n" % (i, i, NAME.encode()) for i in range(11_000)),
    "thousands of bare ones": b"%s\n" % SHA256.encode() * 16_000,
    "random": bytes(range(1, 256)) * 4000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    """A MiB of whatever kind takes no longer than reading it: below a second, where a quadratic step takes several."""
    began = time.process_time()
    with suppress(ChecksumUnavailable):
        find(HOSTILE[name], [URL])
    assert time.process_time() - began < 1.5


@given(st.binary(max_size=400), st.lists(st.text(max_size=30).map(quote), max_size=3))
@settings(max_examples=80, deadline=None)
def test_any_bytes(data: bytes, names: list[str]) -> None:
    """Whatever comes, the answer is a digest or ChecksumUnavailable."""
    try:
        algorithm, value = find(data, [f"https://a.example/{name}" for name in names])
    except ChecksumUnavailable:
        return
    assert len(bytes.fromhex(value)) == hashlib.new(algorithm).digest_size


_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name == name.strip() and name not in {".", "..", "-"} and name[:1] != "*" and "\ufeff" not in name
)


@given(st.dictionaries(_NAMES, st.binary(max_size=4), min_size=1, max_size=6), st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_written_is_found(files: dict[str, bytes], data: st.DataObject) -> None:
    """For any names, in a mixture of styles, each file's own digest is found and no other's."""
    lines = []
    for name, content in files.items():
        algorithm = data.draw(st.sampled_from(sorted(HEX)))
        value = hashlib.new(algorithm, content).hexdigest()
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        mark = "\\" if escaped != name else ""
        style = data.draw(st.sampled_from(["{0}{2}  {3}", "{0}{2} *{3}", "{0}{1} ({3}) = {2}", "{0}{1}({3})= {2}"]))
        lines.append(style.format(mark, algorithm.upper(), value, escaped))
    text = "\n".join(data.draw(st.permutations(lines))).encode()
    for name, content in files.items():
        algorithm, value = find(text, [f"https://a.example/x/{quote(name, safe='')}"])
        assert value == hashlib.new(algorithm, content).hexdigest()
