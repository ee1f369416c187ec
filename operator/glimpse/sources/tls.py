"""TLS with patience: contexts, client certificates that lie in no file, and TLS through a connection that is TLS.

Apart from the sockets in clear, because OpenSSL hides from the kernel how much of a read has come.
"""

import errno
import os
import socket
import ssl
import time
from contextlib import suppress
from typing import Any, Final, cast

from glimpse.problems import InvalidConfiguration
from glimpse.sources.patience import Patience

SLICE: Final = 0.5
"""Seconds of one wait. Also what a slow server's bytes are gathered for, before they are handed on."""
FILL: Final = 1 << 16
"""Reads of so many bytes are waited for as a whole; smaller ones, as of headers, take what is there."""
_RECORD: Final = 1 << 14
"""Bytes of a TLS record at most."""
_PIECE: Final = 1 << 18
"""Bytes that a connection takes at once from the one that it goes through, where many are wanted."""


class Tls(ssl.SSLSocket):
    """A TLS socket with patience. A record has 16 KiB at most, so a large read is filled here."""

    patience: Patience | None = None

    def be_patient(self, patience: Patience) -> None:
        """From now on; before, the socket's own timeout holds."""
        self.patience = patience
        self.settimeout(SLICE)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """At least one byte, or 0 at the end."""
        patience = self.patience
        if patience is None:
            return super().recv_into(buffer, nbytes, flags)
        if patience.glance:
            return self._glance(buffer, nbytes)
        view = memoryview(buffer)[: nbytes or None]
        admitted, filled = patience.admit(len(view)), 0
        try:
            filled = self._fill(view[:admitted], patience)
        finally:
            patience.leave(admitted - filled)
        return filled

    def _fill(self, view: memoryview, patience: Patience) -> int:
        least = len(view) if len(view) >= FILL else 1
        began = patience.begin()
        filled, waited, until = 0, 0.0, began + SLICE
        while filled < least:
            try:
                count = super().recv_into(view[filled:])
            except TimeoutError:
                waited += SLICE
                if filled or not patience.wait(waited):
                    break
                continue
            filled += count
            if not count or time.monotonic() > until:
                break
        patience.came(filled, began)
        return filled

    def _glance(self, buffer: Any, nbytes: int | None) -> int:
        self.settimeout(0)
        try:
            return super().recv_into(buffer, nbytes)
        except ssl.SSLWantReadError:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        finally:
            self.settimeout(SLICE)


class Nested(socket.socket):
    """A TLS connection to a server through one to a proxy. The waiting is done by the outer one."""

    suppress_ragged_eofs = True

    def __init__(self, outer: Tls, context: ssl.SSLContext, name: str) -> None:
        """Shake hands with the server `name`. `outer` is patient already; from now on it is closed with this one.

        Raises ssl.SSLError, and what `outer` raises; `outer` is closed then too.
        """
        super().__init__(outer.family, outer.type, outer.proto, fileno=os.dup(outer.fileno()))
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._buffer = memoryview(bytearray(_PIECE))
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
            self._shake_hands()
        except BaseException:
            with suppress(OSError):
                self._flush()  # the alert that says why
            self.close()
            raise

    def be_patient(self, patience: Patience) -> None:
        """From now on."""
        self._outer.be_patient(patience)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:  # noqa: ARG002 - the signature is the socket's
        """At least one byte, or 0 at the end; of a large read as many as came at once."""
        view = memoryview(buffer)[: nbytes or None]
        filled = 0
        while filled < len(view):
            try:
                # typeshed asks for a bytearray, but any writable buffer does, and then a number is returned
                count = cast(int, self._tls.read(len(view) - filled, cast(bytearray, view[filled:])))
            except ssl.SSLWantReadError:
                self._flush()
                if filled:
                    break
                self._receive(_PIECE if len(view) >= FILL else _RECORD)
                continue
            except ssl.SSLZeroReturnError:
                break
            except ssl.SSLEOFError:
                if filled or self.suppress_ragged_eofs:
                    break
                raise
            if not count:
                break
            filled += count
        return filled

    def sendall(self, data: Any, flags: int = 0, /) -> None:  # noqa: ARG002 - the same
        """All of it."""
        view = memoryview(data)
        while view:
            view = view[self._tls.write(cast(bytes, view)) :]
            self._flush()

    def settimeout(self, value: float | None, /) -> None:
        """Both share one file of the kernel, so this is the outer one's matter."""
        self._outer.settimeout(value)

    def gettimeout(self) -> float | None:
        """The same."""
        return self._outer.gettimeout()

    def _real_close(self) -> None:
        super()._real_close()  # type: ignore[misc]  # typeshed does not know this method: it is called after the last reader
        self._outer.close()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive(_RECORD)
            else:
                return self._flush()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._outer.sendall(data)

    def _receive(self, most: int) -> None:
        if count := self._outer.recv_into(self._buffer[:most]):
            self._incoming.write(self._buffer[:count])
        else:
            self._incoming.write_eof()


def tls_context(authorities: str | None, *, insecure: bool) -> ssl.SSLContext:
    """Checks certificates against the system's authorities, and those in PEM. Raises InvalidConfiguration."""
    context = ssl.create_default_context()
    context.sslsocket_class = Tls
    context.set_alpn_protocols(["http/1.1"])
    if authorities:
        try:
            context.load_verify_locations(cadata=authorities)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidConfiguration("caBundleRef holds no certificates in PEM") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def present(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Let the context present a certificate, both in PEM, to servers that ask for one. Raises InvalidConfiguration.

    OpenSSL takes both from a file only, so they lie in one that is nothing but memory, and only while it reads.
    """

    def passphrase() -> str:
        raise InvalidConfiguration(
            "the key in the Secret of clientCertificateRef is encrypted; keep it there without a passphrase "
            "(openssl pkey -in tls.key)"
        )

    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(file), "wb") as out:
            out.write(f"{certificate}\n{key}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{file}", password=passphrase)
    except ssl.SSLError as error:
        why = {
            "KEY_VALUES_MISMATCH": "the key is not the certificate's",
            "NO_START_LINE": "one of them is not in PEM",
        }.get(error.reason or "", error.reason or "it cannot be read")
        raise InvalidConfiguration(
            f"the certificate and the key in the Secret of clientCertificateRef cannot be used: {why}"
        ) from None  # the cause could hold a part of them
    finally:
        os.close(file)
