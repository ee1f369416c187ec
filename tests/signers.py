"""People who sign: keys made on the spot, by Sequoia for what is usual and by GnuPG for what only it still makes."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pysequoia import Cert, SignatureMode, Tsk, sign

from servers.require import require_tool


class Signer:
    """Somebody with a key that does not expire."""

    def __init__(self, name: str = "Ann <ann@example.org>") -> None:
        self._secret = Tsk.generate(name)
        self.cert = self._secret.extract_certificate()

    @property
    def fingerprint(self) -> str:
        """As people see it."""
        return self.cert.fingerprint.upper()

    @property
    def armoured(self) -> bytes:
        """The public key as text."""
        return str(self.cert).encode()

    @property
    def binary(self) -> bytes:
        """The public key as bytes."""
        return bytes(self.cert)

    @property
    def secret(self) -> bytes:
        """The secret key, which nobody should give away."""
        return bytes(self._secret)

    @property
    def revoked(self) -> bytes:
        """The public key after its owner has revoked it."""
        revocation = self.cert.revoke(self._secret.certifier())
        return bytes(Cert.from_bytes(bytes(self.cert) + bytes(revocation)))

    def detached(self, data: bytes, *, armour: bool = True) -> bytes:
        """A signature in a file of its own."""
        return sign(self._secret.signer(), data, mode=SignatureMode.DETACHED, armor=armour)

    def clear(self, data: bytes) -> bytes:
        """The text with its signature below."""
        return sign(self._secret.signer(), data, mode=SignatureMode.CLEAR)

    def inline(self, data: bytes) -> bytes:
        """Text and signature in one message that people cannot read."""
        return sign(self._secret.signer(), data)


class Gnupg:
    """GnuPG with a home of its own, and a clock that can be set; a context manager that ends its agent."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir(mode=0o700)
        self._gpg = require_tool("gpg", "gpg")
        require_tool("gpg-agent", "gpg-agent")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            [require_tool("gpgconf", "gpgconf"), "--homedir", self._home, "--kill", "all"], check=True, timeout=60
        )

    def run(self, *words: str, at: str | None = None, data: bytes = b"") -> bytes:
        """One command, at this time (as `20200601T000000`) if one is given: the clock stands still then."""
        clock = ["--faked-system-time", f"{at}!"] if at else []
        base = [self._gpg, "--homedir", str(self._home), "--batch", "--quiet", "--no-tty"]
        secret = ["--pinentry-mode", "loopback", "--passphrase", ""]
        done = subprocess.run(
            [*base, *secret, *clock, *words], input=data, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def key(self, name: str, *, at: str | None = None, expires: str = "never") -> str:
        """A new key; its fingerprint."""
        self.run("--quick-gen-key", name, "ed25519", "sign", expires, at=at)
        return self.fingerprint(name)

    def fingerprint(self, name: str) -> str:
        """Of the key with just this name."""
        listed = self.run("--with-colons", "--list-keys", f"={name}").decode().splitlines()
        return next(line.split(":")[9] for line in listed if line.startswith("fpr:"))

    def subkey(self, key: str, *, at: str, expires: str = "never") -> None:
        """A new subkey that signs from now on."""
        self.run("--quick-add-key", key, "ed25519", "sign", expires, at=at)

    def revoke_subkey(self, key: str, *, at: str) -> None:
        """Revoke the first subkey, as one that is no longer used."""
        dialogue = ["key 1", "revkey", "y", "3", "", "y", "save", ""]
        self.run("--no-batch", "--command-fd", "0", "--edit-key", key, at=at, data="\n".join(dialogue).encode())

    def export(self, *names: str, armour: bool = False) -> bytes:
        """Public keys."""
        return self.run(*(["--armor"] if armour else []), "--export", *names)

    def sign(self, data: bytes, *keys: str, at: str | None = None, more: Sequence[str] = ("--detach-sign",)) -> bytes:
        """Sign with these keys."""
        return self.run(*(word for key in keys for word in ("-u", key)), *more, at=at, data=data)
