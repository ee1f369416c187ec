"""Asks web servers: one GET, its redirects followed by our own rules, its faults as Problems.

A tenant chooses the URL and a stranger the answer, so nothing here trusts either: every hop passes the address
policy, credentials stay with the servers that the spec names, and messages hold no words of the server.
"""

import http.client
import re
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Final

from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError
from urllib3.util import Url
from urllib3.util.response import assert_header_parsing

from glimpse.problems import (
    Problem,
    SourceNotFound,
    SourceRefused,
    SourceUnauthorized,
    SourceUnavailable,
)
from glimpse.settings import Addresses, Transfers
from glimpse.sources import brief, shown
from glimpse.sources.addresses import Policy
from glimpse.sources.credentials import Login
from glimpse.sources.pace import Pace
from glimpse.sources.patience import Patience
from glimpse.sources.places import Place, follow, parse, place
from glimpse.sources.tls import present, tls_context
from glimpse.sources.tunnel import Proxy
from glimpse.sources.wire import Careful, connect, say
from glimpse.streams import CHUNK
from glimpse.tasks import HttpOrigin

AGENT: Final = f"glimpse/{version('glimpse')}"
_USUAL: Final = {"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_LONGEST_WAIT: Final = 3600.0
_OK, _PARTIAL, _NOT_MODIFIED = 200, 206, 304
_OUR_CERTIFICATE: Final = re.compile(
    "ALERT_(CERTIFICATE_(REQUIRED|EXPIRED|REVOKED|UNKNOWN)|(BAD|UNSUPPORTED)_CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)$"
)
"""What a server says of a client's certificate, RFC 8446 6.2."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class Answer:
    """The head of an answer, and its body as it comes. Whoever got it closes it."""

    def __init__(self, client: "Client", url: Url, connection: Careful, response: HTTPResponse) -> None:
        """Raises SourceUnavailable if the head makes no sense."""
        self._client = client
        self._url = url
        self._connection: Careful | None = connection
        self._response = response
        self.place = url
        """Where it came from, after all redirects."""
        self.url = shown(url)
        """The same as people may see it ..."""
        self.name = brief(url)
        """... and as messages have it."""
        self.status = response.status
        """200, 206 if a part was asked for, or one that the caller has named."""
        self.date = response.headers.get("Date")
        """The server's clock, as it wrote it."""
        self.etag = _word(response, "ETag", 1024)
        """The server's word for this version of its bytes."""
        self.last_modified = _word(response, "Last-Modified", 64)
        """The server's time for this version of its bytes."""
        self.size: int | None = None
        """Bytes of this body, if they were announced."""
        self.range: tuple[int, int, int] | None = None
        """Of a part (206): where it starts, where it stops (exclusive), and the length of the whole."""
        self.sound = True
        """It is no part (206) of which it does not say rightly which one it is."""
        self.keep = False
        """More will be asked of this server: the connection is kept at the end, and the end is looked at less."""
        self.at = 0
        """Where in the file the next byte of the body belongs."""
        length = response.headers.get("Content-Length")
        last = connection.last
        assert last  # noqa: S101 - `response` was made of it
        codings = last.headers.get_all("Transfer-Encoding", [])
        if [coding.lower() for coding in codings] != ["chunked"] * last.chunked:
            raise SourceUnavailable("the answer has a Transfer-Encoding other than chunked")
        self._chunked = last.chunked
        if self.status == _NOT_MODIFIED:
            return  # without a body: a Content-Length here is that of the file, RFC 9110 8.6
        if length is not None and not self._chunked:
            if not (length.isascii() and length.isdecimal()) or len(length) > len(str(1 << 63)):
                raise SourceUnavailable("the Content-Length of the answer is no number")
            self.size = int(length)
        if response.status == _PARTIAL:
            self.range = _range(response.headers.get("Content-Range", ""))
            self.sound = self.range is not None and self.size in {None, self.range[1] - self.range[0]}
            self.at = self.range[0] if self.range else 0
        if self.size is None and not self._chunked:
            connection.demand_clean_end()

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes, exactly as sent. Raises SourceUnavailable if the connection breaks or the length lied."""
        connection = self._connection
        if connection is None:
            return b""
        with border(self._url):
            connection.patience.check()
            if self._chunked:  # the pieces may be tiny: gather them
                chunk = self._response.read(n, decode_content=False)
            else:
                last = connection.last
                assert last  # noqa: S101 - it has just come
                last.keep = self.keep or self.range is not None  # beyond a part there is nothing to wait for
                chunk = self._response.read1(n, decode_content=False)
                if last.excess:
                    raise SourceUnavailable(f"the server announced {self.size} bytes, and sent more")
        self.at += len(chunk)
        if not chunk or self.at == self.stop:
            self._connection = None
            self._client.give_back(self._url, connection, kept=self.keep)
        return chunk

    @property
    def stop(self) -> int | None:
        """Where in the file this body ends, if that was announced."""
        return self.range[1] if self.range else self.size

    @property
    def last(self) -> bool:
        """Whether the file ends where this body does, as far as was announced."""
        return self.range is None or self.range[1] == self.range[2]

    def close(self) -> None:
        """Drop the connection, unless it was given back; may be called twice."""
        connection, self._connection = self._connection, None
        if connection:
            connection.drop()

    def abort(self) -> None:
        """Make a read in another thread fail; whoever reads closes."""
        if connection := self._connection:
            connection.abort()


class Client:
    """Asks the servers of one origin; connections are kept where there is more to ask. Shared by threads."""

    def __init__(
        self, origin: HttpOrigin, addresses: Addresses, transfers: Transfers, cancelled: threading.Event
    ) -> None:
        """Raises InvalidConfiguration."""
        self._origin = origin
        self._login = Login(origin)
        self._policy = Policy(addresses)
        self._transfers = transfers
        self._cancelled = cancelled
        self._pace = Pace(transfers.bandwidth, cancelled)
        self._proxy: Proxy | None = None
        if origin.proxy:
            secret = {key: value.get_secret_value() for key, value in origin.proxy.items()}
            # It gets a password, so it has to prove who it is, whatever the servers need not.
            context = partial(_context, origin.ca_bundle, insecure=False)
            self._proxy = Proxy(secret, origin.proxy_hosts, self._policy, context)
        self._identity: ssl.SSLContext | None = None
        if certificate := origin.certificate:
            self._identity = tls_context(origin.ca_bundle, insecure=origin.insecure_skip_tls_verify)
            present(self._identity, *(certificate[key].get_secret_value() for key in ("tls.crt", "tls.key")))
        self._lock = threading.Lock()
        self._idle: defaultdict[Place, list[Careful]] = defaultdict(list)
        self._closed = False

    def get(self, url: str | Url, headers: Mapping[str, str] | None = None, *, also: Collection[int] = ()) -> Answer:
        """Ask for a URL, following redirects; the body is about to come. With Range in `headers` it may be a part.

        `also`: other statuses that are an answer to the caller.

        Raises SourceNotFound (404, 410), SourceUnauthorized (401, 403, 407), SourceRefused (another 4xx, a redirect
        that is not followed or leads nowhere, 204 and the like), SourceForbidden (the address policy),
        SourceUnavailable (time may mend it, wrong certificates too: they are mended at the server, which no change
        here would tell), and InvalidConfiguration.
        """
        first = here = parse(url) if isinstance(url, str) else url
        seen = {here.url}
        for _ in range(self._transfers.redirects + 1):
            with border(here):
                answer = self._ask(here, headers or {}, also)
            if isinstance(answer, Answer):
                return answer
            here = follow(here, answer)
            if here.url in seen:
                raise SourceRefused(f"{brief(first)} redirects in a circle")
            seen.add(here.url)
        raise SourceRefused(f"{brief(first)} redirects more than {self._transfers.redirects} times")

    def give_back(self, url: Url, connection: Careful, *, kept: bool) -> None:
        """A body has been read to its end."""
        with self._lock:
            if kept and not self._closed and connection.reusable():
                self._idle[place(url)].append(connection)
                return
        connection.drop()

    def close(self) -> None:
        """Drop the connections that nobody uses; answers that are being read are their readers' to close."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.drop()

    def _ask(self, url: Url, headers: Mapping[str, str], also: Collection[int]) -> Answer | str:
        """The body, or where the server redirects to."""
        connection, response = self._exchange(url, headers)
        try:
            assert connection.last  # noqa: S101 - it has just come
            assert_header_parsing(connection.last.headers)  # half a head is none: urllib3 would only warn
            connection.patience.relax()
            if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                connection.drop()
                return location
            if response.status not in also:
                _judge(response, self._login.wanted(url), partial="Range" in headers)
            return Answer(self, url, connection, response)
        except BaseException:
            connection.drop()
            raise

    def _exchange(self, url: Url, headers: Mapping[str, str]) -> tuple[Careful, HTTPResponse]:
        """Send the request and read the head, on a connection that was kept or, if it has died meanwhile, a new one."""
        with self._lock:
            idle = self._idle[place(url)]
            connection = idle.pop() if idle else None
        if connection:
            try:
                return connection, self._send(connection, url, headers)
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.drop()
            except BaseException:
                connection.drop()
                raise
        self._policy.scheme(url.scheme)
        connection = connect(
            place(url),
            self._policy,
            self._patience(),
            self._transfers.connect_timeout,
            context=self._tls(url) if url.scheme == "https" else None,
            tunnel=self._proxy,
        )
        try:
            return connection, self._send(connection, url, headers)
        except BaseException:
            connection.drop()
            raise

    def _send(self, connection: Careful, url: Url, headers: Mapping[str, str]) -> HTTPResponse:
        connection.be_patient(self._patience())
        connection.patience.hurry()
        secret = self._login.headers(url)
        given = {name.lower() for name in secret}
        usual = {name: value for name, value in _USUAL.items() if name.lower() not in given}
        sent = {**usual, **secret, **headers}
        with suppress(ConnectionError, ssl.SSLEOFError):  # the server may have said why it hung up
            connection.request("GET", url.request_uri, headers=sent, preload_content=False, decode_content=False)
        return connection.getresponse()

    def _tls(self, url: Url) -> ssl.SSLContext:
        if self._identity and self._login.identifies(url):
            return self._identity
        return _context(self._origin.ca_bundle, insecure=self._origin.insecure_skip_tls_verify)

    def _patience(self) -> Patience:
        t = self._transfers
        return Patience(t.idle_timeout, self._cancelled, rate=t.minimum_rate, window=t.rate_window, pace=self._pace)


def _range(value: str) -> tuple[int, int, int] | None:
    """What Content-Range says, RFC 9110 14.4: start, stop (exclusive) and the whole length; None if it is not sound."""
    if not (match := _CONTENT_RANGE.fullmatch(value)):
        return None
    start, last, whole = map(int, match.groups())
    return (start, last + 1, whole) if start <= last < whole else None


def _judge(response: HTTPResponse, wanted: str, *, partial: bool) -> None:
    """Raise unless this is the file as it is, or a part if one was asked for. `wanted`: what is told of a refusal."""
    status = response.status
    if status == _OK or (status == _PARTIAL and partial):
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in {"", "identity"}:
            raise SourceRefused("the server compresses the file on the way although it was asked not to")
        return
    answer = f"the server answered {status}"
    match status:
        case 404 | 410:
            raise SourceNotFound(f"{answer}: there is no such file")
        case 401 | 403 | 407:
            raise SourceUnauthorized(f"{answer}: {wanted}")
        case 408 | 425 | 429:
            raise SourceUnavailable(answer, retry_after=_retry_after(response))
        case _ if status in _REDIRECTS:
            raise SourceRefused(f"{answer}, a redirect, and did not say where to")
        case 201 | 203 | 204 | 205 | 300 | 305:
            raise SourceRefused(f"{answer}, with which comes no file")
        case _ if 400 <= status < 500:  # noqa: PLR2004 - the class of client errors, RFC 9110 15.5
            raise SourceRefused(answer)
        case _:
            raise SourceUnavailable(answer, retry_after=_retry_after(response))


@lru_cache(maxsize=4)
def _context(authorities: str | None, *, insecure: bool) -> ssl.SSLContext:
    """Reading the system's authorities takes longer than a small image: once per process is enough."""
    return tls_context(authorities, insecure=insecure)


def warm() -> None:
    """Do what takes long and is the same for every fetch, before workers are forked."""
    _context(None, insecure=False)


def _word(response: HTTPResponse, name: str, longest: int) -> str | None:
    """A header's value, where it is one that can be kept and sent again."""
    value = response.headers.get(name)
    return value if value and len(value) <= longest and value.isascii() and value.isprintable() else None


def _retry_after(response: HTTPResponse) -> float | None:
    """Seconds, an hour at most; RFC 9110 10.2.3: a number of them or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), _LONGEST_WAIT)
    try:
        wait = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait, 0.0), _LONGEST_WAIT)


@contextmanager
def border(url: Url) -> Iterator[None]:
    """Let Problems out and nothing else; say which server."""
    try:
        yield
    except Problem as problem:
        raise type(problem)(f"{brief(url)}: {problem.message}", retry_after=problem.retry_after) from problem
    except ssl.SSLCertVerificationError as error:
        raise SourceUnavailable(
            f"{brief(url)}: the server's certificate is not accepted ({error.verify_message}); "
            "if its authority is your own, name it in caBundleRef"
        ) from error
    except ssl.SSLError as error:
        if not _OUR_CERTIFICATE.search(error.reason or ""):
            raise SourceUnavailable(f"{brief(url)}: {say(error)}") from error
        raise SourceUnauthorized(
            f"{brief(url)}: the server wants another client certificate, in the Secret of clientCertificateRef"
            f" ({error.reason})"
        ) from error
    except (HTTPError, http.client.HTTPException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else None
        what = say(cause) if cause else "the answer ended early" if _short(error) else "the answer is not HTTP"
        raise SourceUnavailable(f"{brief(url)}: {what}") from error
    except OSError as error:
        raise SourceUnavailable(f"{brief(url)}: {say(error)}") from error


def _short(error: BaseException | None) -> bool:
    """Whether the connection ended where more was due."""
    while error:
        if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
            return True
        error = error.__cause__
    return False
