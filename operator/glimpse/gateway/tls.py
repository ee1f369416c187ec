"""TLS: the certificate that the gateway shows, taken anew when its files change.

A mounted Secret is replaced under a running gateway, some weeks apart, so the files are looked at every few seconds.
Whoever is connected stays so; what cannot be used is logged, and the pair before goes on.
"""

import asyncio
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log: Final = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at the files."""
BUFFER: Final = 16 << 10
"""Bytes of the buffer that the event loop keeps for what comes in, for each connection. It would be 256 KiB, so a
thousand who say nothing 256 MiB; requests are small."""

_State = list[tuple[int, int, int, int]]


class Certificate:
    """A certificate and its key, in PEM files. Raises OSError, which says what is wrong, if they cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        SSLProtocol.max_size = BUFFER  # there is no parameter for it
        self._files = {"GLIMPSE_GATEWAY_TLS_CERTIFICATE": certificate, "GLIMPSE_GATEWAY_TLS_KEY": key}
        self._taken = self._state()
        self._trouble = ""
        self.context = self._load()
        """For the next connection."""

    async def follow(self) -> None:
        """Take changed files, for ever."""
        while True:
            await asyncio.sleep(LOOK)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Take the files if they have changed; blocking. A pair that is half written is looked at again."""
        try:
            state = self._state()
            if state != self._taken:
                self.context = self._load()
        except OSError as error:
            if str(error) != self._trouble:
                log.error("the certificate before goes on: %s", error)  # noqa: TRY400 - the message says it all
            self._trouble = str(error)
            return
        if state != self._taken:
            log.info("a new certificate was taken from %s", self._files["GLIMPSE_GATEWAY_TLS_CERTIFICATE"])
        # what has changed since `state` was seen is seen the next time
        self._taken, self._trouble = state, ""

    def _state(self) -> _State:
        """What differs when a file was written to, or another has its name, also by a link on the way."""
        found = []
        for setting, path in self._files.items():
            with _named(setting, path):
                state = path.stat()
            found.append((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        return found

    def _load(self) -> ssl.SSLContext:
        for setting, path in self._files.items():
            with _named(setting, path):
                path.read_bytes()  # the ssl module does not say which file it cannot read
        certificate, key = self._files.values()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=certificate)
        except ssl.SSLError as error:
            raise OSError(f"GLIMPSE_GATEWAY_TLS_CERTIFICATE: {certificate} has no certificate in PEM") from error
        try:
            context.load_cert_chain(certificate, key, password=_none)
        except ssl.SSLError as error:
            wrong = "is not the key of the certificate" if "MISMATCH" in str(error) else "has no usable key in PEM"
            raise OSError(f"GLIMPSE_GATEWAY_TLS_KEY: {key} {wrong}") from error
        except _EncryptedError as error:
            raise OSError(f"GLIMPSE_GATEWAY_TLS_KEY: {key} is encrypted; write it without a password") from error
        return context


@contextmanager
def _named(setting: str, path: Path) -> Iterator[None]:
    """Say of what is wrong with a file whose it is."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{setting}: {path}: {error.strerror}") from error


class _EncryptedError(Exception):
    """A key wants a password."""


def _none() -> bytes:
    """No password; without this a terminal would be asked."""
    raise _EncryptedError
