"""The frame of OpenPGP data: ASCII armour, clear-signed text, and where packets begin and end (RFC 9580, 4 and 6).

What comes from a stranger is looked at before the library gets it: only packets of the kinds that belong there go on.
A compressed packet would be unpacked without a limit, and a message of another form would be read in another way.
"""

import base64
import binascii
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

MOST_SIGNATURES: Final = 16
"""Each is computed over the whole file; publishers have up to three."""

_PUBLIC_KEY: Final = b"PGP PUBLIC KEY BLOCK"
_PRIVATE_KEY: Final = b"PGP PRIVATE KEY BLOCK"
_SIGNATURE: Final = b"PGP SIGNATURE"
_CLEAR: Final = b"-----BEGIN PGP SIGNED MESSAGE-----"
_NEW: Final = 0xC0
"""The bits that begin a packet in the new format."""
_BOM: Final = b"\xef\xbb\xbf"


class Tag(IntEnum):
    """The kinds of packets that keys and signatures are made of."""

    SIGNATURE = 2
    SECRET_KEY = 5
    PUBLIC_KEY = 6
    SECRET_SUBKEY = 7
    MARKER = 10
    TRUST = 12
    USER_ID = 13
    PUBLIC_SUBKEY = 14
    USER_ATTRIBUTE = 17
    PADDING = 21


_SECRET: Final = {Tag.SECRET_KEY, Tag.SECRET_SUBKEY}
_OF_KEYS: Final = {*Tag} - _SECRET
_KEYS: Final = {Tag.PUBLIC_KEY, Tag.PUBLIC_SUBKEY}
_KEY_LENGTH: Final = 8 << 10
"""Bytes of one key; RSA with 16,384 bits and the keys against quantum computers have less than half."""
_IDLE: Final = {Tag.MARKER, Tag.PADDING}


def certificates(data: bytes, most: int) -> list[list[bytes]]:
    """The packets of each OpenPGP certificate in an entry that is binary, or armoured once or several times.

    Raises ValueError, with words for a person, if there are more packets than `most`, or others than of public keys.
    """
    found: list[list[bytes]] = []
    for block in _blocks(data, _PUBLIC_KEY, _PRIVATE_KEY):
        for tag, packet in _packets(block):
            most -= 1
            if most < 0:
                raise ValueError("holds too much for a few keys: leave those that sign")
            if tag in _SECRET:
                raise ValueError("holds a secret key: put the public one there, and take this one away")
            if tag not in _OF_KEYS:
                raise ValueError("holds something that is no OpenPGP key")
            if tag in _KEYS and len(packet) > _KEY_LENGTH:
                raise ValueError("holds a key that is longer than any in use: it would take too long to try it")
            if tag == Tag.PUBLIC_KEY:
                found.append([])
            if found:
                found[-1].append(packet)
            elif tag not in _IDLE:
                raise ValueError("does not begin with an OpenPGP key")
    return found


def signatures(data: bytes) -> list[bytes]:
    """The signature packets of a detached signature, armoured or binary; there is at least one.

    Raises ValueError, with words for a person.
    """
    found = list[bytes]()
    for block in _blocks(data, _SIGNATURE):
        for tag, packet in _packets(block):
            if tag == Tag.SIGNATURE:
                found.append(packet)
                if len(found) > MOST_SIGNATURES:
                    raise ValueError(f"is made of more than {MOST_SIGNATURES} signatures")
            elif tag not in _IDLE:
                raise ValueError("holds something that is no detached OpenPGP signature")
    if not found:
        raise ValueError("is no OpenPGP signature")
    return found


def clear_signed(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """The first clear-signed message (RFC 9580, 7), and its signature packets; None if there is none.

    What is before and after it is left out, and its armour is made anew, so that whoever reads the message finds the
    packets that were looked at here. Raises ValueError, with words for a person.
    """
    lines = data.removeprefix(_BOM).split(b"\n")
    plain = [line.rstrip(b" \t\r") for line in lines]
    if _CLEAR not in plain:
        return None
    start = plain.index(_CLEAR)
    try:
        middle = plain.index(_begin(_SIGNATURE), start)
        stop = plain.index(_end(_SIGNATURE), middle)
    except ValueError:
        raise ValueError("ends before its signature does") from None
    found = signatures(b"\n".join(plain[middle : stop + 1]))
    armour = [_begin(_SIGNATURE), b"", base64.b64encode(b"".join(found)), _end(_SIGNATURE), b""]
    return b"\n".join([_CLEAR, *lines[start + 1 : middle], *armour]), found


def _begin(kind: bytes) -> bytes:
    return b"-----BEGIN " + kind + b"-----"


def _end(kind: bytes) -> bytes:
    return b"-----END " + kind + b"-----"


def _blocks(data: bytes, *kinds: bytes) -> Iterator[bytes]:
    """The data if it is binary, which its first bit tells, or what is in its armours of these kinds."""
    data = data.removeprefix(_BOM)
    if data[:1] >= b"\x80":
        yield data
        return
    lines = iter(data.split(b"\n"))
    for line in lines:
        for kind in kinds:
            if line.strip() == _begin(kind):
                yield _armoured(lines, kind)


def _armoured(lines: Iterator[bytes], kind: bytes) -> bytes:
    """What is in one armour; `lines` are read to its end. Its checksum is not looked at, as RFC 9580, 6.1 has it."""
    body = list[bytes]()
    for line in lines:
        text = line.strip()
        if text == _end(kind):
            try:
                return base64.b64decode(b"".join(body), validate=True)
            except binascii.Error:
                break
        if b":" not in text and text[:1] != b"=":  # neither a header nor the checksum
            body.append(text)
    raise ValueError("holds a broken ASCII armour")


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and whole of each packet (RFC 9580, 4.2). Lengths in parts or to the end are for data, and refused here."""
    at = 0
    while at < len(data):
        head = data[at]
        if head & _NEW == _NEW:
            tag, (width, size) = head & 0x3F, _length(data[at + 1 : at + 6])
        elif head & 0x80 and head & 3 != 3:  # noqa: PLR2004 - 3: to the end
            tag, width = head >> 2 & 0xF, 1 << (head & 3)
            size = int.from_bytes(data[at + 1 : at + 1 + width])
        else:
            raise ValueError("is neither armoured nor binary OpenPGP data")
        stop = at + 1 + width + size
        if stop > len(data):
            raise ValueError("ends in the middle of a packet")
        yield tag, data[at:stop]
        at = stop


def _length(field: bytes) -> tuple[int, int]:
    """Width and value of the length of a packet in the new format (RFC 9580, 4.2.1)."""
    first = field[0] if field else 0xFF
    if first < 192:  # noqa: PLR2004 - the three forms as they are defined there
        return 1, first
    if first < 224:  # noqa: PLR2004
        return 2, ((first - 192) << 8) + (field[1] if len(field) > 1 else 0) + 192
    if first == 0xFF:  # noqa: PLR2004
        return 5, int.from_bytes(field[1:5])
    raise ValueError("is neither armoured nor binary OpenPGP data")
