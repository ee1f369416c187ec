"""Who has signed a checksum file: real keys, real signatures, and everything that can be wrong with either."""

import base64
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.signers import Gnupg, Signer

from glimpse.problems import SignatureInvalid
from glimpse.sources import packets
from glimpse.sources.signatures import Keyring, Signed

ANN, BEN = Signer(), Signer("Ben <ben@example.org>")
TEXT = b"one:  debian-12.qcow2\n- two:  dash\nFrom three:\n"
"""What stands in no armour."""
ORIGIN = "ConfigMap team-a/keys"
BORN, GROWN, LONGER, LATER = "20200101T000000", "20200102T000000", "20200501T000000", "20200601T000000"


def keyring(*keys: bytes) -> Keyring:
    """These, each in an entry of its own."""
    return Keyring({f"{number}.asc": key for number, key in enumerate(keys)}, ORIGIN)


def refused(judge: Callable[[], object]) -> str:
    """Why it is no proof."""
    with pytest.raises(SignatureInvalid) as caught:
        judge()
    return caught.value.message


@pytest.fixture(scope="module")
def gnupg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gnupg]:
    """One home for all: keys have different names."""
    with Gnupg(tmp_path_factory.mktemp("gnupg") / "home") as found:
        yield found


# What is accepted


@pytest.mark.parametrize("armour", [True, False])
@pytest.mark.parametrize("key", [ANN.armoured, ANN.binary])
def test_detached(key: bytes, *, armour: bool) -> None:
    """Signature and key, each armoured or binary."""
    signature = ANN.detached(TEXT, armour=armour)
    assert keyring(key).detached(TEXT, signature) == Signed(TEXT, ANN.fingerprint)


@pytest.mark.parametrize(
    "dressed",
    [
        lambda text: text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"evil  debian-12.qcow2\n\n" + text,
        lambda text: text + b"evil  debian-12.qcow2\n",
        lambda text: text + BEN.clear(b"evil  debian-12.qcow2\n"),
        lambda text: text.replace(b"Hash: SHA512", b"Hash: SHA512\r\nevil: debian-12.qcow2"),
    ],
)
def test_clear_signed(dressed: Callable[[bytes], bytes]) -> None:
    """What the signature covers comes out, without the dashes; what stands around it does not."""
    signed = keyring(ANN.armoured).clear(dressed(ANN.clear(TEXT)))
    assert signed
    assert signed.text.replace(b"\r\n", b"\n") == TEXT
    assert signed.key == ANN.fingerprint


@pytest.mark.parametrize("entry", [ANN.armoured + BEN.armoured, ANN.binary + BEN.binary, b"Ann:\n" + ANN.armoured])
def test_many_keys(entry: bytes) -> None:
    """In one entry or in several, and one of them is enough."""
    assert keyring(entry).detached(TEXT, ANN.detached(TEXT)).key == ANN.fingerprint
    assert keyring(BEN.binary, entry).detached(TEXT, ANN.detached(TEXT)).key == ANN.fingerprint
    assert keyring(entry, BEN.armoured).clear(ANN.clear(TEXT)) == Signed(TEXT, ANN.fingerprint)


def test_many_signatures() -> None:
    """One that is good is enough, whatever the others are; a publisher changes keys that way."""
    mine, theirs = (each.detached(TEXT, armour=False) for each in (ANN, BEN))
    bad = ANN.detached(b"else", armour=False)
    for file in (theirs + mine, mine + theirs, bad + theirs + mine, BEN.detached(TEXT) + ANN.detached(TEXT)):
        assert keyring(ANN.armoured).detached(TEXT, file).key == ANN.fingerprint


def test_what_gnupg_makes(gnupg: Gnupg) -> None:
    """Most publishers use it: binary, text and clear signatures, by a primary key or a subkey, by two keys at once."""
    one, two = gnupg.key("one"), gnupg.key("two", at=BORN)
    gnupg.subkey(two, at=GROWN)
    ring = keyring(gnupg.export(one, two, armour=True))
    for how in (["--detach-sign"], ["--armor", "--detach-sign"], ["--textmode", "--armor", "--detach-sign"]):
        assert ring.detached(TEXT, gnupg.sign(TEXT, one, more=how)).key == one
        assert ring.detached(TEXT, gnupg.sign(TEXT, two, more=how, at=LATER)).key == two
        both = gnupg.sign(TEXT, one, two, more=how)
        assert len(packets.signatures(both)) == 2
        for key in (one, two):
            assert keyring(gnupg.export(key)).detached(TEXT, both).key == key
    for key in (one, two):
        # RFC 9580, 7.1: the last line break is not signed, so Sequoia leaves it out where GnuPG has made one more.
        assert ring.clear(gnupg.sign(TEXT, key, more=["--clear-sign"])) == Signed(TEXT.rstrip(), key)


# What is not: the reason


@pytest.mark.parametrize("forged", [TEXT + b"evil", TEXT[:-1], TEXT.replace(b"one:", b"two:"), b""])
def test_a_tampered_file(forged: bytes) -> None:
    """The signature is of other bytes, and says so with its key."""
    assert refused(lambda: keyring(ANN.armoured).detached(forged, ANN.detached(TEXT))).startswith(
        f"by key {ANN.fingerprint} does not fit the file"
    )


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: text.replace(b"one:", b"two:"),
        lambda text: text.replace(b"\n\n", b"\n\nevil  debian-12.qcow2\n", 1),
        lambda text: text.replace(b"-----BEGIN PGP SIGNATURE", b"evil  debian-12.qcow2\n-----BEGIN PGP SIGNATURE"),
        lambda text: text.replace(b"three:", b"three:\0evil"),
        lambda text: text.replace(b"From", b"\x0cFrom"),
        lambda text: b"-----BEGIN PGP SIGNED MESSAGE-----\n\nevil  debian-12.qcow2\n" + text,
    ],
)
def test_a_tampered_clear_signed_file(forge: Callable[[bytes], bytes]) -> None:
    """A line changed, put in before the text or after it, hidden behind a NUL, or wrapped around a signed message."""
    good = ANN.clear(TEXT)
    signed = forge(good)
    assert signed != good
    assert "does not fit the file" in refused(lambda: keyring(ANN.armoured).clear(signed))


def test_an_unknown_key() -> None:
    """The message has the key that signed and those that were given."""
    for message in (
        refused(lambda: keyring(BEN.armoured).detached(TEXT, ANN.detached(TEXT))),
        refused(lambda: keyring(BEN.armoured).clear(ANN.clear(TEXT))),
    ):
        assert re.match("is by key [0-9A-F]{40}, which is none of those in ConfigMap team-a/keys: ", message)
        assert message.endswith(BEN.fingerprint)
    many = keyring(*(Signer(str(n)).binary for n in range(5)))
    assert refused(lambda: many.detached(TEXT, ANN.detached(TEXT))).endswith(" and 2 more")


def test_a_forged_name() -> None:
    """A key with the name of another is another key."""
    assert "is none of those" in refused(lambda: keyring(ANN.armoured).detached(TEXT, Signer().detached(TEXT)))


def test_a_revoked_key() -> None:
    """What was signed before counts no more: nobody knows since when somebody else has the key."""
    for judge in (
        lambda: keyring(ANN.revoked).detached(TEXT, ANN.detached(TEXT)),
        lambda: keyring(ANN.revoked).clear(ANN.clear(TEXT)),
    ):
        assert refused(judge) == f"is by key {ANN.fingerprint}, which was revoked"


def test_an_expired_key(gnupg: Gnupg) -> None:
    """Although it was good when it signed: who has stolen an old key can sign with an old date."""
    key = gnupg.key("expired", at=BORN, expires="1y")
    signed = gnupg.sign(TEXT, key, at=LATER)
    expected = f"is by key {key}, which expired on 2020-12-31; its owner may have prolonged it"
    assert refused(lambda: keyring(gnupg.export(key)).detached(TEXT, signed)) == expected
    clear = gnupg.sign(TEXT, key, at=LATER, more=["--clear-sign"])
    assert refused(lambda: keyring(gnupg.export(key)).clear(clear)) == expected
    gnupg.run("--quick-set-expire", key, "0", at=LONGER)
    assert keyring(gnupg.export(key)).detached(TEXT, signed).key == key


def test_an_expired_subkey(gnupg: Gnupg) -> None:
    """The same where the primary key goes on: what it signs itself is accepted."""
    key = gnupg.key("with a subkey", at=BORN)
    gnupg.subkey(key, at=GROWN, expires="1y")
    ring = keyring(gnupg.export(key))
    message = refused(lambda: ring.detached(TEXT, gnupg.sign(TEXT, key, at=LATER)))
    assert re.fullmatch(f"is by key {key}, whose subkey [0-9A-F]{{40}} expired on 2021-01-01; .*", message)
    assert ring.detached(TEXT, gnupg.sign(TEXT, f"{key}!", at=LATER)).key == key
    gnupg.run("--quick-set-expire", key, "0", "*", at=LONGER)
    assert keyring(gnupg.export(key)).detached(TEXT, gnupg.sign(TEXT, key, at=LATER)).key == key


def test_a_revoked_subkey(gnupg: Gnupg) -> None:
    """Also one that its owner has only stopped to use."""
    key = gnupg.key("revoked subkey", at=BORN)
    gnupg.subkey(key, at=GROWN)
    signed = gnupg.sign(TEXT, key, at=LATER)
    assert keyring(gnupg.export(key)).detached(TEXT, signed).key == key
    gnupg.revoke_subkey(key, at="20210101T000000")
    message = refused(lambda: keyring(gnupg.export(key)).detached(TEXT, signed))
    assert re.fullmatch(f"is by key {key}, whose subkey [0-9A-F]{{40}} was revoked", message)


def test_a_good_key_beside_a_bad_one(gnupg: Gnupg) -> None:
    """Two have signed, and one of them has expired since."""
    old, new = gnupg.key("gone", at=BORN, expires="1y"), gnupg.key("going on", at=BORN)
    both = gnupg.sign(TEXT, old, new, at=LATER)
    assert keyring(gnupg.export(old, new)).detached(TEXT, both).key == new


@pytest.mark.parametrize(
    ("more", "at", "reason"),
    [
        (["--digest-algo", "SHA1"], LATER, "uses the hash SHA1, which can be forged"),
        (["--digest-algo", "RIPEMD160"], LATER, "uses the hash RipeMD, which can be forged"),
        (["--default-sig-expire", "1d"], LATER, "has expired on 2020-06-02"),
        ([], "20900601T000000", "is from the future, 2090-06-01"),
    ],
)
def test_signatures_that_are_not_accepted(gnupg: Gnupg, more: list[str], at: str, reason: str) -> None:
    """By a hash that can be forged, or at another time."""
    key = gnupg.key(reason, at=BORN)
    signed = gnupg.sign(TEXT, key, at=at, more=[*more, "--detach-sign"])
    assert refused(lambda: keyring(gnupg.export(key)).detached(TEXT, signed)) == reason


def test_a_signature_of_the_old_form() -> None:
    """The third version, still made by some build services, is not accepted by Sequoia, and the message says so."""
    body = bytes([3, 5, 0]) + struct.pack(">I8s", 1_600_000_000, b"\1" * 8) + bytes([1, 8, 0, 0]) + b"\0\x08\xff"
    old = bytes([0xC2, len(body)]) + body
    assert refused(lambda: keyring(ANN.armoured).detached(TEXT, old)) == (
        "has the old form 3, which is not accepted any more"
    )


# What is no signature, and no key


@pytest.mark.parametrize("text", [b"", TEXT, b"\xff" * 100, b"-----BEGIN PGP SIGNED MESSAGE----- or so\n", b"\0" * 99])
def test_no_clear_signed_message(text: bytes) -> None:
    """Neither an error nor a proof."""
    assert keyring(ANN.armoured).clear(text) is None


def compressed(data: bytes) -> bytes:
    """A packet that unpacks to `data` (RFC 9580, 5.6: the algorithm ZIP)."""
    packer = zlib.compressobj(9, wbits=-15)
    body = b"\1" + packer.compress(data) + packer.flush()
    return b"\xc8\xff" + struct.pack(">I", len(body)) + body


def armoured(kind: str, data: bytes) -> bytes:
    """In ASCII armour."""
    return f"-----BEGIN PGP {kind}-----\n\n{base64.b64encode(data).decode()}\n-----END PGP {kind}-----\n".encode()


def of_hash(signature: bytes, algorithm: int) -> bytes:
    """A signature that says so of itself (RFC 9580, 5.2.3)."""
    at = 5 if signature[1] < 192 else 6
    return signature[:at] + bytes([algorithm]) + signature[at + 1 :]


BOMB = compressed(b"\xc2" + b"\0" * (64 << 20))

NO_SIGNATURES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no OpenPGP signature"),
    "a page": (b"<html>Not here</html>", "is no OpenPGP signature"),
    "a key": (ANN.armoured, "is no OpenPGP signature"),
    "a binary key": (ANN.binary, "something that is no detached OpenPGP signature"),
    "a message": (ANN.inline(TEXT), "is no OpenPGP signature"),
    "a message in the armour of a signature": (
        armoured("SIGNATURE", base64.b64decode(b"".join(ANN.inline(TEXT).split(b"\n")[2:-3]))),
        "something that is no detached OpenPGP signature",
    ),
    "a bomb": (BOMB, "something that is no detached OpenPGP signature"),
    "a bomb in armour": (armoured("SIGNATURE", BOMB), "something that is no detached OpenPGP signature"),
    "a signature of a key": (packets.certificates(ANN.binary, 99)[0][1], "is not one of a file"),
    "a signature of a name": (packets.certificates(ANN.binary, 99)[0][3], "is not one of a file"),
    "one of a key beside one of the file": (
        ANN.detached(TEXT, armour=False) + packets.certificates(ANN.binary, 99)[0][1],
        "is not one of a file",
    ),
    "cut": (ANN.detached(TEXT, armour=False)[:-1], "ends in the middle of a packet"),
    "cut armour": (ANN.detached(TEXT)[:-40], "broken ASCII armour"),
    "broken armour": (ANN.detached(TEXT).replace(b"\nw", b"\n!"), "broken ASCII armour"),
    "a stream": (b"\xc2\xe1\0\0", "neither armoured nor binary"),
    "no end": (b"\x8b\0\0", "neither armoured nor binary"),
    "noise": (b"\xff" * 1000, "ends in the middle of a packet"),
    "a hollow packet": (b"\xc2\0", "cannot be read"),
    "a hash that nobody knows": (of_hash(ANN.detached(TEXT, armour=False), 0), "cannot be read"),
    "another hash": (of_hash(ANN.detached(TEXT, armour=False), 8), "does not fit the file"),
    "thousands": (b"\xc2\0" * (1 << 19), "more than 16 signatures"),
    "thousands that are good": (ANN.detached(TEXT, armour=False) * 5000, "more than 16 signatures"),
}


@pytest.mark.parametrize("name", NO_SIGNATURES)
def test_no_signature(name: str) -> None:
    """Nothing but signature packets reaches the library, detached or below a clear-signed text."""
    data, reason = NO_SIGNATURES[name]
    began = time.process_time()
    assert reason in refused(lambda: keyring(ANN.armoured).detached(TEXT, data))
    if data[:1] >= b"\x80":
        clear = ANN.clear(TEXT).partition(b"-----BEGIN PGP SIGNATURE")[0] + armoured("SIGNATURE", data)
        assert reason in refused(lambda: keyring(ANN.armoured).clear(clear))
    assert time.process_time() - began < 5


def test_a_clear_signed_message_without_an_end() -> None:
    """It was cut on the way, or cut off by somebody."""
    signed = ANN.clear(TEXT)
    for cut in (signed[:-30], signed.partition(b"-----BEGIN PGP SIGNATURE")[0]):
        assert refused(partial(keyring(ANN.armoured).clear, cut)) == "ends before its signature does"
    empty = signed.partition(b"-----BEGIN PGP SIGNATURE")[0] + armoured("SIGNATURE", b"")
    assert refused(lambda: keyring(ANN.armoured).clear(empty)) == "is no OpenPGP signature"


NO_KEYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no OpenPGP key that can be read"),
    "words": (b"correct-horse", "holds no OpenPGP key that can be read"),
    "a certificate of TLS": (armoured("CERTIFICATE", b"x").replace(b"PGP ", b""), "holds no OpenPGP key"),
    "a secret key": (ANN.secret, "holds a secret key: put the public one there, and take this one away"),
    "an armoured secret key": (armoured("PRIVATE KEY BLOCK", ANN.secret), "holds a secret key"),
    "a public key before a secret one": (ANN.binary + BEN.secret, "holds a secret key"),
    "a signature": (ANN.detached(TEXT, armour=False), "does not begin with an OpenPGP key"),
    "a bomb": (BOMB, "something that is no OpenPGP key"),
    "a bomb behind a key": (ANN.binary + BOMB, "something that is no OpenPGP key"),
    "cut": (ANN.binary[:-1], "ends in the middle of a packet"),
    "cut armour": (ANN.armoured[:-40], "broken ASCII armour"),
    "hollow": (b"\xc6\0", "holds no OpenPGP key that can be read"),
    "a key to wait for": (b"\xc6\xff" + struct.pack(">I", 1 << 17) + b"\4" * (1 << 17), "longer than any in use"),
    "a subkey to wait for": (ANN.binary + b"\xce\xff" + struct.pack(">I", 1 << 17) + b"\4" * (1 << 17), "longer than"),
}


@pytest.mark.parametrize("name", NO_KEYS)
def test_no_key(name: str) -> None:
    """The message names the entry and the way out, and quotes nothing of what it holds."""
    data, reason = NO_KEYS[name]
    message = refused(partial(Keyring, {"good": ANN.binary, "bad": data}, ORIGIN))
    assert message.startswith(f"entry 'bad' of {ORIGIN} ")
    assert reason in message
    assert "correct-horse" not in message


def test_no_entries_and_too_many_keys() -> None:
    """A bag that holds nothing, or a keyring of the whole world."""
    assert refused(partial(Keyring, {}, ORIGIN)) == f"{ORIGIN} holds no OpenPGP key"
    for hollow in (b"\xc6\0", b"\xc2\0", b"\xcd\0", b"\xce\0"):
        message = refused(partial(keyring, ANN.binary, ANN.binary + hollow * (1 << 19)))
        assert message == f"entry '1.asc' of {ORIGIN} holds too much for a few keys: leave those that sign"


def test_a_key_that_cannot_be_read_beside_one_that_can() -> None:
    """Old keyrings have keys of forms that nobody reads any more: the others count."""
    assert keyring(b"\xc6\1\2" + ANN.binary).detached(TEXT, ANN.detached(TEXT)).key == ANN.fingerprint


SIGNED = {
    "clear": ANN.clear(TEXT),
    "binary": ANN.detached(TEXT, armour=False),
    "armoured": ANN.detached(TEXT),
}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_change(data: st.DataObject) -> None:
    """No change of any byte of text or signature makes other text come out as signed."""
    kind = data.draw(st.sampled_from(["clear", "binary", "armoured"]))
    signed = SIGNED[kind]
    at = data.draw(st.integers(0, 9999)) * len(signed) // 10000
    changed = signed[:at] + data.draw(st.binary(max_size=3)) + signed[at + data.draw(st.integers(0, 3)) :]
    try:
        found = keyring(ANN.binary).clear(changed) if kind == "clear" else keyring(ANN.binary).detached(TEXT, changed)
    except SignatureInvalid:
        return
    if found:
        assert found.key == ANN.fingerprint
        assert [line.rstrip() for line in found.text.splitlines()] == [line.rstrip() for line in TEXT.splitlines()]


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xc2", b"\xc6", b"-----BEGIN PGP SIGNATURE-----\n"]))
@settings(max_examples=150, deadline=None)
def test_any_bytes(data: bytes, head: bytes) -> None:
    """Whatever comes in place of a key, a signature or a text is SignatureInvalid, or nothing."""
    ring = keyring(ANN.binary)
    refused(lambda: ring.detached(TEXT, head + data))
    refused(lambda: keyring(head + data).detached(TEXT, b""))
    with suppress(SignatureInvalid):
        assert ring.clear(head + data) is None


def test_a_key_bound_by_a_weak_hash(gnupg: Gnupg) -> None:
    """Keys of the last century bind themselves with SHA-1: the message tells to look for a newer form."""
    gnupg.run("--cert-digest-algo", "SHA1", "--quick-gen-key", "weak", "ed25519", "sign", "never", at=BORN)
    key = gnupg.fingerprint("weak")
    message = refused(lambda: keyring(gnupg.export(key)).detached(TEXT, gnupg.sign(TEXT, key)))
    assert message.startswith(f"is by key {key}, which is not accepted any more: it is bound by a hash")
