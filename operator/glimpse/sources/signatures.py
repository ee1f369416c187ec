"""OpenPGP signatures of checksum files: whether one of the given keys has signed, and if not, why.

Sequoia judges (PyPI pysequoia): it is memory-safe, needs no program, folder or agent beside the worker, and refuses
what can be forged by now. It says yes or no, so the reason for a no is found here. And it asks what a key was when it
signed, where we ask as well what it is today: whoever has stolen an old key can sign with an old date.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from glimpse.problems import SignatureInvalid
from glimpse.sources import packets

if TYPE_CHECKING:
    from pysequoia import Cert, Sig
    from pysequoia.packet import Packet

_MOST_PACKETS: Final = 1 << 14
"""Of all keys: the library takes up to 0.1 ms for each. Those that fill a ConfigMap are fewer."""
_WEAK: Final = ("MD5", "SHA1", "RipeMD")
_VERSION: Final = 4
"""The oldest form of a signature that cannot be forged by moving its bits."""
_NAMED: Final = 3
"""Keys that a message names at most."""

P = ParamSpec("P")
T = TypeVar("T")


class Signed(NamedTuple):
    """What somebody has signed."""

    text: bytes
    """Exactly what the signature covers."""
    key: str
    """Fingerprint of the OpenPGP certificate, in capitals as people see it elsewhere."""


class _Part(NamedTuple):
    """One key of a certificate: the primary one or a subkey."""

    cert: "Cert"
    key: "Packet"
    signatures: list["Packet"]
    """Those that follow it, by which it is bound and revoked."""


class Keyring:
    """The keys that may have signed."""

    def __init__(self, entries: Mapping[str, bytes], origin: str) -> None:
        """`entries`: one or several keys each, armoured or binary; `origin`: what holds them, for messages.

        Raises SignatureInvalid if an entry has no key that can be read.
        """
        self._origin = origin
        self._parts = list[_Part]()
        self._certs = list["Cert"]()
        left = _MOST_PACKETS
        for name, data in entries.items():
            try:
                found = packets.certificates(data, left)
            except ValueError as error:
                raise SignatureInvalid(f"entry {name!r} of {origin} {error}") from None
            left -= sum(map(len, found))
            read = [parts for each in found if (parts := _answer(_parts, b"".join(each)))]
            if not read:
                raise SignatureInvalid(f"entry {name!r} of {origin} holds no OpenPGP key that can be read")
            self._certs += [parts[0].cert for parts in read]
            self._parts += [part for parts in read for part in parts]
        if not self._certs:
            raise SignatureInvalid(f"{origin} holds no OpenPGP key")

    def detached(self, data: bytes, signature: bytes) -> Signed:
        """Verify a detached signature. Raises SignatureInvalid, whose message begins with what the signature does."""
        from pysequoia import Sig, verify

        found = _of_files(_words(packets.signatures, signature))
        valid = list[Any]()
        for each in found:
            if (sig := _answer(Sig.from_bytes, each)) and (result := _answer(verify, data, self._ask, signature=sig)):
                valid += result.valid_sigs
        return Signed(data, self._signer(found, valid))

    def clear(self, data: bytes) -> Signed | None:
        """Verify the first clear-signed message in `data`; None if there is none. Raises SignatureInvalid as above."""
        from pysequoia import verify

        message = _words(packets.clear_signed, data)
        if message is None:
            return None
        text, found = message[0], _of_files(message[1])
        result = _answer(verify, text, self._ask)
        key = self._signer(found, result.valid_sigs if result else [])
        assert result  # noqa: S101 - without one there is no signer
        return Signed(result.bytes or b"", key)

    def _ask(self, _ids: Sequence[str]) -> Sequence["Cert"]:
        return self._certs

    def _signer(self, found: Sequence[bytes], valid: Sequence[Any]) -> str:
        """The fingerprint of the first that has signed and is still good."""
        flaws = list[str]()
        for each in valid:
            by = (each.certificate, each.signing_key)
            part = next(part for part in self._parts if (part.cert.fingerprint, part.key.fingerprint) == by)
            if (flaw := _answer(_flaw, part)) == "":
                return part.cert.fingerprint.upper()
            flaws.append(f"is by key {_shown(part)}, {flaw or 'which cannot be read'}")
        reasons = flaws or [_answer(self._why_not, each) or "cannot be read" for each in found]
        raise SignatureInvalid("; it ".join(dict.fromkeys(reasons)))

    def _why_not(self, signature: bytes) -> str:
        """Why Sequoia has refused it: the likeliest of its reasons. Raises what the library raises."""
        from pysequoia import Sig

        sig = Sig.from_bytes(signature)
        if sig.version < _VERSION:
            return f"has the old form {sig.version}, which is not accepted any more"
        weak = str(sig.hash_algorithm).rpartition(".")[2]
        if weak in _WEAK:
            return f"uses the hash {weak}, which can be forged"
        part = next((part for part in self._parts if _made(sig, part)), None)
        if part is None:
            there = [cert.fingerprint.upper() for cert in self._certs]
            names = ", ".join(there[:_NAMED]) + ("" if len(there) <= _NAMED else f" and {len(there) - _NAMED} more")
            by = (sig.issuer_fingerprint or sig.issuer_key_id or "").upper() or "that it does not name"
            return f"is by key {by}, which is none of those in {self._origin}: {names}"
        if flaw := _flaw(part):
            return f"is by key {_shown(part)}, {flaw}"
        now = datetime.now(UTC)
        if sig.expiration and sig.expiration <= now:
            return f"has expired on {sig.expiration:%Y-%m-%d}"
        if sig.created and sig.created > now:
            return f"is from the future, {sig.created:%Y-%m-%d}"
        return f"by key {_shown(part)} does not fit the file: one of them was changed, or is not of the same time"


def _of_files(found: list[bytes]) -> list[bytes]:
    """Signatures, if all of them are of files: those of keys, of nothing, or of a moment have no place here."""
    for each in found:
        if _answer(_kind, each) not in {None, "Binary", "Text"}:
            raise SignatureInvalid("is not one of a file")
    return found


def _kind(signature: bytes) -> str:
    """What it is a signature of. Raises what the library raises."""
    from pysequoia import Sig

    return str(Sig.from_bytes(signature).signature_type).rpartition(".")[2]


def _shown(part: _Part) -> str:
    return part.cert.fingerprint.upper()


def _made(sig: "Sig", part: _Part) -> bool:
    """Whether a signature says that it is by this key."""
    if sig.issuer_fingerprint:
        return sig.issuer_fingerprint == part.key.fingerprint
    return sig.issuer_key_id is not None and sig.issuer_key_id == part.key.key_id


def _parts(data: bytes) -> list[_Part]:
    """The keys of one certificate. Raises what the library raises."""
    from pysequoia import Cert
    from pysequoia.packet import PacketPile, Tag

    cert = Cert.from_bytes(data)
    found = list[_Part]()
    signed: list[Packet] = []
    for packet in PacketPile.from_bytes(bytes(cert)):
        if packet.tag in (Tag.PublicKey, Tag.PublicSubkey):
            found.append(_Part(cert, packet, signed := []))
        elif packet.tag == Tag.Signature:
            signed.append(packet)
        else:
            signed = []
    return found


def _flaw(part: _Part) -> str:
    """Why a key is not good today; empty if it is. Raises what the library raises."""
    cert, now = part.cert, datetime.now(UTC)
    if cert.is_revoked:
        return "which was revoked"
    end = _answer(lambda: (cert.expiration,))
    if end is None:
        return "which is not accepted any more: it is bound by a hash that can be forged; its owner may have mended it"
    if end[0] and end[0] <= now:
        return f"which expired on {end[0]:%Y-%m-%d}; its owner may have prolonged it"
    subkey = f"whose subkey {(part.key.fingerprint or '').upper()}"
    if any(_is(packet, "SubkeyRevocation") for packet in part.signatures):
        return f"{subkey} was revoked"
    over = _end(part)
    return f"{subkey} expired on {over:%Y-%m-%d}; its owner may have prolonged it" if over and over <= now else ""


def _end(part: _Part) -> datetime | None:
    """When a subkey expires, by the newest signature that binds it; None if it does not."""
    bound = {
        packet.signature_created: packet
        for packet in part.signatures
        if packet.signature_created and _is(packet, "SubkeyBinding")
    }
    period = bound[max(bound)].key_validity_period if bound else None
    return part.key.key_created + period if period and part.key.key_created else None


def _is(packet: "Packet", kind: str) -> bool:
    return str(packet.signature_type).rpartition(".")[2] == kind


def _answer(ask: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
    """What the library answers; None if it refuses. Its words are not passed on: they may quote what it has read."""
    try:
        return ask(*args, **options)
    except (RuntimeError, ValueError, OSError):
        return None
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # a panic: no class of it can be imported
            raise
        return None


def _words(read: Callable[[bytes], T], data: bytes) -> T:
    """What is read. Raises SignatureInvalid."""
    try:
        return read(data)
    except ValueError as error:
        raise SignatureInvalid(str(error)) from None
