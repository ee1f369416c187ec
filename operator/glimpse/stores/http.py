# ruff: noqa: A005 - the module is named after what it speaks; every import here is absolute
"""What a web server has: read and registered, never written.

A web server takes no note of what is registered, so the Image's status is all that tells of it, and whoever reads says
to the store what he knows. Nor is there a marker: nothing is written, so two installations are in nobody's way.

A key is chosen by a tenant, so it must lead to nothing but what lies below the address: it is sent encoded, and no
redirect is followed.
"""

import base64
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, NoReturn
from urllib.parse import quote, unquote

from pydantic import BaseModel

from glimpse.api.base import Model, Rule, immutable
from glimpse.api.source import Url
from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreReadOnly,
    StoreRefused,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import Capacity, Stat, Version
from glimpse.streams import CHUNK, Reader

if TYPE_CHECKING:
    import urllib3

_OK, _PARTIAL, _UNSATISFIABLE = 200, 206, 416
_UNAUTHORIZED, _BROKEN = 401, 500
_NO_HEAD: Final = frozenset({405, 501})
_ETAG: Final = 256
_DATE: Final = 64
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class HttpConfig(Model):
    """Files of a web server, which are only read: images are registered, never written."""

    base_url: Annotated[
        Url,
        Rule("!self.contains('?')", "must have no query: put credentials into the Secret of secretRef"),
        immutable("baseUrl", "let the same files be served there, or create another ImageStore"),
    ]
    """The address that all keys are below, http or https, no credentials in it."""


class Http:
    """A store that is a web server."""

    Config: ClassVar[type[BaseModel]] = HttpConfig

    patience: ClassVar[float] = 30.0
    """Seconds of silence that a server is waited for."""
    retries: ClassVar[int] = 5
    """Breaks in a row that a read bears, going on where it broke."""
    pause: ClassVar[float] = 0.5
    """Seconds after the first break; each further one takes twice as long."""

    def __init__(self, config: HttpConfig, secret: Mapping[str, str], ca_bundle: str | None, /) -> None:
        """Connections are opened when they are needed."""
        self._base = config.base_url.rstrip("/")
        self._headers = {
            "User-Agent": f"glimpse/{version_of('glimpse')}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            **_login(secret),
        }
        self._context: ssl.SSLContext | None = None
        if self._base.startswith("https:"):
            try:
                self._context = ssl.create_default_context(cadata=ca_bundle)
            except (ssl.SSLError, ValueError) as error:
                raise InvalidConfiguration("caBundleRef holds no certificates in PEM") from error

    @property
    def endpoint(self) -> str:
        """The address."""
        return f"{self._base}/"

    def put(self, _key: str, _attempt: str, _body: Reader, _record: Callable[[], bytes], /) -> Stat:
        """Never."""
        self._refuse()

    @contextmanager
    def get(self, key: str, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:  # noqa: ARG002 - Driver
        """A web server has no keys of ours."""
        raise self._unknown(key)
        yield  # what makes it a generator

    def stat(self, key: str, /) -> Stat:
        """The same."""
        raise self._unknown(key)

    def update(self, _key: str, _record: bytes, /) -> None:
        """Never."""
        self._refuse()

    def delete(self, _key: str, /) -> None:
        """There is nothing of ours."""

    def list(self, _prefix: str = "", /) -> Iterator[Stat]:
        """The same."""
        return iter(())

    def probe(self) -> Capacity:
        """See that the server answers; whether it has a page at the address itself says nothing."""
        with self._border(self.endpoint):
            answer = self._ask("HEAD", self.endpoint)
            part(answer)
            if answer.status == _UNAUTHORIZED or answer.status >= _BROKEN:
                raise self._problem(answer)
        return Capacity(None, None, None)

    def claim(self, owner: str, /, *, fresh: bool) -> str:  # noqa: ARG002 - there is nothing to claim
        """Anybody may read."""
        return owner

    def where(self, location: str, /) -> str:
        """The file's own address."""
        return f"{self._base}/{quote(location)}"

    def locate(self, location: str, /) -> Version:
        """Ask for the head of the file."""
        url = self._url(location)
        with self._border(url):
            answer = self._ask("HEAD", url)
            if answer.status in _NO_HEAD:
                answer.close()
                answer = self._ask("GET", url)
            try:
                return self._version(answer)
            finally:
                part(answer)

    @contextmanager
    def read(self, location: str, version: Version, /, offset: int = 0, length: int | None = None) -> Iterator[Reader]:
        """Ask for the part; where it breaks, for the rest of it, of the same version."""
        left = max(version.size - offset, 0)
        body = _Part(self, self._url(location), version, offset, left if length is None else min(left, length))
        try:
            body.begin()
            yield body
        finally:
            body.close()

    def ask(self, url: str, version: Version, start: int, stop: int) -> "tuple[urllib3.BaseHTTPResponse, int]":
        """An answer with this part of just this version, and how many bytes come before; who gets it lets go of it."""
        whole = (start, stop) == (0, version.size)
        with self._border(url):
            answer = self._ask("GET", url, {} if whole else {"Range": f"bytes={start}-{stop - 1}"})
            try:
                return answer, self._skip(answer, version, start)
            except BaseException:
                answer.close()
                raise

    def _skip(self, answer: "urllib3.BaseHTTPResponse", version: Version, start: int) -> int:
        """How many bytes come before the part: a server may give the whole. Raises DataLost, StoreUnavailable."""
        if answer.status == _UNSATISFIABLE or not self._version(answer).same(version):
            raise DataLost("the file has been changed")
        if answer.status == _OK:
            return start
        if not answer.headers["Content-Range"].startswith(f"bytes {start}-"):
            raise StoreUnavailable("the server sent another part than the one that was asked for")
        return 0

    def read_on(self, answer: "urllib3.BaseHTTPResponse", url: str, n: int) -> bytes:
        """Some more of the body. Raises StoreUnavailable if there is none."""
        with self._border(url):
            chunk: bytes = answer.read(n, decode_content=False)
            if not chunk:
                raise StoreUnavailable("the answer ended early")
            return chunk

    def _ask(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> "urllib3.BaseHTTPResponse":
        from urllib3.exceptions import ProtocolError

        ask = partial(
            self._pool.request,
            method,
            url,
            headers={**self._headers, **(headers or {})},
            preload_content=False,
            decode_content=False,
            redirect=False,
            retries=False,
        )
        try:
            return ask()
        except ProtocolError:  # a connection that was kept may have died meanwhile
            return ask()

    def _version(self, answer: "urllib3.BaseHTTPResponse") -> Version:
        """Which file this is an answer of. Raises what else it may be."""
        if answer.status not in {_OK, _PARTIAL}:
            raise self._problem(answer)
        if answer.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise StoreRefused("the server compresses the file on the way although it was asked not to")
        size = answer.headers.get("Content-Length", "")
        if answer.status == _PARTIAL:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if not match:
                raise StoreUnavailable("the server answered 206 without saying which part it sends")
            size = match[3]
        etag = _word(answer, "ETag", _ETAG)
        etag = None if etag and etag.startswith("W/") else etag
        modified = _word(answer, "Last-Modified", _DATE)
        if not (size.isascii() and size.isdecimal()) or len(size) > len(str(1 << 62)):
            raise StoreRefused("the server does not say how long the file is, so it cannot be registered")
        if etag is None and modified is None:
            raise StoreRefused(
                "the server gives neither a strong ETag nor a Last-Modified, so a change of the file could not be seen"
            )
        return Version(int(size), etag, modified)

    def _problem(self, answer: "urllib3.BaseHTTPResponse") -> Problem:
        said = f"the server answered {answer.status}"
        match answer.status:
            case 404 | 410:
                return NotFound(f"{said}: there is no such file")
            case 401 | 403 | 407:
                keys = "username and password, or token" if "Authorization" not in self._headers else "other ones"
                return StoreUnauthorized(f"{said}: it wants credentials; the Secret of secretRef should have {keys}")
            case 408 | 425 | 429:
                return StoreUnavailable(said)
            case status if status >= _BROKEN:
                return StoreUnavailable(said)
            case status if 300 <= status < 400:  # noqa: PLR2004 - the class of redirects, RFC 9110 15.4
                return StoreRefused(f"{said}: redirects are not followed, they could lead anywhere")
            case _:
                return StoreRefused(said)

    @cached_property
    def _pool(self) -> "urllib3.PoolManager":
        import urllib3

        timeout = urllib3.Timeout(connect=min(10.0, self.patience), read=self.patience)
        return urllib3.PoolManager(num_pools=1, maxsize=64, timeout=timeout, ssl_context=self._context)

    def _url(self, location: str) -> str:
        """Raises StoreRefused for what a server that decodes twice could take for something else."""
        if any(unquote(part) in {"", ".", ".."} or "/" in unquote(part) for part in location.split("/")):
            raise StoreRefused(f"{location} holds an encoded step out of its folder")
        return self.where(location)

    def _refuse(self) -> NoReturn:
        raise StoreReadOnly(
            f"{self.endpoint} is a web server, which takes no bytes: register what it has with source.location, and "
            "name other stores for the rest"
        )

    def _unknown(self, key: str) -> NotFound:
        return NotFound(f"{self.endpoint} has no object {key}")

    @contextmanager
    def _border(self, url: str) -> Iterator[None]:
        """What the library raises becomes a Problem; nothing of what the server wrote is told."""
        from urllib3 import exceptions

        try:
            yield
        except Problem as problem:
            raise type(problem)(f"{url}: {problem.message}") from problem
        except exceptions.SSLError as error:
            cause = error.args[0] if error.args else None
            why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else "TLS failed"
            raise StoreUnavailable(
                f"{url}: {why}; if the authority of the server is your own, name it in caBundleRef"
            ) from error
        except exceptions.NewConnectionError as error:
            raise StoreUnavailable(f"{url}: no connection to the server") from error
        except exceptions.TimeoutError as error:
            raise StoreUnavailable(f"{url}: the server sent nothing for {self.patience:g} s") from error
        except (exceptions.HTTPError, OSError) as error:
            raise StoreUnavailable(f"{url}: the connection broke") from error


class _Part:
    """A Reader over part of a file, which goes on where a connection broke."""

    def __init__(self, store: Http, url: str, version: Version, start: int, length: int) -> None:
        self._store, self._url, self._version = store, url, version
        self._at, self._stop = start, start + length
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._skip = self._breaks = 0
        self.size: int | None = length

    def begin(self) -> None:
        """Send the request, if there is something to ask for."""
        if self._answer is None and self._at < self._stop:
            self._answer, self._skip = self._store.ask(self._url, self._version, self._at, self._stop)

    def read(self, n: int = CHUNK, /) -> bytes:
        while self._at < self._stop:
            try:
                self.begin()
                assert self._answer  # noqa: S101 - begun
                while self._skip:
                    self._skip -= len(self._store.read_on(self._answer, self._url, min(CHUNK, self._skip)))
                chunk = self._store.read_on(self._answer, self._url, min(n, self._stop - self._at))
            except StoreUnavailable:
                self.close()
                self._breaks += 1
                if self._breaks > self._store.retries:
                    raise
                time.sleep(self._store.pause * 2 ** (self._breaks - 1))
                continue
            self._breaks = 0
            self._at += len(chunk)
            return chunk
        return b""

    def close(self) -> None:
        """Let go of the connection."""
        answer, self._answer = self._answer, None
        if answer:
            part(answer)


def part(answer: "urllib3.BaseHTTPResponse") -> None:
    """Keep the connection if the answer has been read to its end, and drop it else."""
    if answer.length_remaining == 0:
        answer.release_conn()
    else:
        answer.close()


def _word(answer: "urllib3.BaseHTTPResponse", name: str, longest: int) -> str | None:
    """The value of a header, where it is one that can be kept."""
    value = answer.headers.get(name)
    return value if value and len(value) <= longest and value.isascii() and value.isprintable() else None


def _login(secret: Mapping[str, str]) -> dict[str, str]:
    """The header of a Secret. Raises SecretNotReadable."""
    if not secret:
        return {}
    if bad := next((key for key, value in secret.items() if not value.isprintable()), None):
        raise SecretNotReadable(f"key {bad!r} of the store's Secret holds a line break or a control character")
    if "token" in secret:
        if not secret["token"].isascii():
            raise SecretNotReadable("key 'token' of the store's Secret holds what no token may have")
        return {"Authorization": f"Bearer {secret['token']}"}
    if missing := {"username", "password"} - secret.keys():
        raise SecretNotReadable(
            f"the store's Secret lacks the key {min(missing)!r}; it needs username and password, or token"
        )
    pair = f"{secret['username']}:{secret['password']}".encode()  # RFC 7617, in UTF-8
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}
