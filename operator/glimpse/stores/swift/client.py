"""Requests to one account of Swift: logged in, bounded in time, tried again where that helps, and Problems at the end.

python-swiftclient does the requests and keystoneauth the logins. Both run on sessions of our own: nothing implicit is
read (proxies, netrc, bundles of certificates), and authorities are given in memory, since a worker reads few files.
"""

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from glimpse.keystone import private
from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    StoreConflict,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import Unable
from glimpse.streams import CHUNK

SMALL: Final = 64 << 10
"""Bytes of an object that is read at once, at most."""
TRIES: Final = 3
"""Requests for one answer, if each fails soon."""
PAUSE: Final = 0.3
"""Seconds before the second; each next one waits twice as long."""

UNTRUSTED: Final = "has a certificate that is not trusted, or speaks no TLS"
POOL: Final = 16
"""Connections that are kept."""

_AGAIN: Final = frozenset({408, 422, 429, 498, 500, 502, 503, 504})
"""What time may mend at once. 422: the bytes that came were not those that were sent."""

Headers = Mapping[str, str]
T = TypeVar("T")


class Listed(NamedTuple):
    """One name in a container."""

    name: str
    """A folder ends with a slash."""
    size: int
    modified: float
    """Seconds since the epoch; 0 for a folder."""
    age: float
    """Seconds, by the server's clock, rounded down to whole ones."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Whoever wanted the transfer wants it no more."""


class Client:
    """One account; shared by threads."""

    def __init__(self, where: str, region: str | None, login: Callable[[], Any], ca_bundle: str | None) -> None:
        """`login` makes a plugin of keystoneauth; `where` is the store, for messages."""
        self._where, self._region, self._login, self._ca_bundle = where, region, login, ca_bundle
        self._lock = threading.Lock()
        self._local = threading.local()
        self._session: tuple[str, Any] | None = None
        self.patience = 30.0

    def head(self, container: str | None = None, name: str | None = None) -> Headers:
        """The headers of a container, or of an object in it, or of the account. Raises NotFound."""
        from swiftclient import client

        def work(url: str, token: str, http: Any) -> Headers:
            if container is None:
                found: Headers = client.head_account(url, token, http_conn=http)
            elif name:
                found = client.head_object(url, token, container, name, http_conn=http)
            else:
                found = client.head_container(url, token, container, http_conn=http)
            return found

        return self._call(work)

    def read(self, container: str, name: str, *, query: str | None = None, limit: int = SMALL) -> tuple[Headers, bytes]:
        """A small object; of a larger one the first bytes. Raises NotFound."""
        from swiftclient import client

        def work(url: str, token: str, http: Any) -> tuple[Headers, bytes]:
            headers, body = client.get_object(
                url, token, container, name, http_conn=http, resp_chunk_size=SMALL, query_string=query
            )
            try:
                return headers, body.read(limit)
            finally:
                body.close()

        return self._call(work)

    def fetch(
        self,
        container: str,
        name: str,
        start: int,
        stop: int,
        over: threading.Event,
        *,
        headers: Headers | None = None,
        check: Callable[[Headers], None] = lambda _: None,
    ) -> Sequence[bytes]:
        """Part of an object, in chunks. What breaks goes on from where it broke. Raises NotFound, Stopped.

        `headers` are sent; `check` raises unless the headers of an answer are right.
        """
        from swiftclient import client

        chunks: list[bytes] = []
        position = start

        def work(url: str, token: str, http: Any) -> Sequence[bytes]:
            nonlocal position
            wanted = {**(headers or {}), "Range": f"bytes={position}-{stop - 1}"}
            answer, body = client.get_object(
                url, token, container, name, http_conn=http, headers=wanted, resp_chunk_size=CHUNK
            )
            try:
                check(answer)
                if not answer.get("content-range", "").startswith(f"bytes {position}-{stop - 1}/"):
                    raise StoreUnavailable(f"{self._where}: {name} is not as long as it was")
                while position < stop:
                    if over.is_set():
                        raise Stopped
                    chunk = body.read(min(CHUNK, stop - position))
                    if not chunk:
                        raise ConnectionError("an early end")
                    chunks.append(chunk)
                    position += len(chunk)
            finally:
                body.close()
            return chunks

        return self._call(work)

    def put(
        self,
        container: str,
        name: str,
        pieces: Sequence[bytes | memoryview] = (),
        headers: Headers | None = None,
        *,
        query: str | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> str:
        """Write an object; its etag. `before` is called before each try, and before each piece is sent.

        Raises NotFound without the container, StoreConflict, StoreFull.
        """
        from swiftclient import client

        size = sum(map(len, pieces))

        def work(url: str, token: str, http: Any) -> str:
            before()
            file = _Pieces(pieces, before)
            try:
                etag: str = client.put_object(
                    url,
                    token,
                    container,
                    name,
                    file if size else b"",
                    content_length=size,
                    headers=dict(headers or {}),
                    query_string=query,
                    http_conn=http,
                )
            finally:
                file.close()
            return etag

        return self._call(work)

    def copy(self, source: tuple[str, str], container: str, name: str) -> None:
        """Have the server copy an object, given by its container and name. Raises NotFound, StoreFull, Unable."""
        from swiftclient import client
        from swiftclient.exceptions import ClientException

        def work(url: str, token: str, http: Any) -> None:
            try:
                client.copy_object(url, token, *source, f"/{container}/{name}", http_conn=http)
            except ClientException as error:
                if error.http_status in {405, 501}:
                    raise Unable from error
                raise

        self._call(work)

    def post(self, container: str, name: str, headers: Headers) -> None:
        """Replace the metadata of an object. Raises NotFound."""
        from swiftclient import client

        self._call(lambda url, token, http: client.post_object(url, token, container, name, headers, http_conn=http))

    def delete(self, container: str, name: str) -> None:
        """Remove an object; absent is fine."""
        from swiftclient import client

        try:
            self._call(lambda url, token, http: client.delete_object(url, token, container, name, http_conn=http))
        except NotFound:
            pass
        except StoreConflict as problem:  # something newer is there by the clock of another proxy
            raise StoreUnavailable(f"{self._where}: {name} is being written and removed at once") from problem

    def touch(self, container: str, name: str) -> None:
        """Write an empty object and remove it, as others may do at the same moment. Raises NotFound, StoreFull."""
        from swiftclient import client

        with suppress(StoreConflict):  # by the clock of another proxy theirs is newer, and they remove it
            self.put(container, name)
            with suppress(NotFound):
                self._call(lambda url, token, http: client.delete_object(url, token, container, name, http_conn=http))

    def create(self, container: str) -> None:
        """Make a container; one that is there is fine."""
        from swiftclient import client

        self._call(lambda url, token, http: client.put_container(url, token, container, http_conn=http))

    def list(self, container: str, prefix: str, page: int, *, folders: bool = False) -> Iterator[Listed]:
        """All names that begin so, a page at a time; with `folders`, none below the next slash. Raises NotFound."""
        from swiftclient import client

        last = ""
        while True:

            def work(url: str, token: str, http: Any, after: str = last) -> tuple[Headers, list[dict[str, Any]]]:
                found: tuple[Headers, list[dict[str, Any]]] = client.get_container(
                    url,
                    token,
                    container,
                    marker=after,
                    limit=page,
                    prefix=prefix,
                    delimiter="/" if folders else None,
                    http_conn=http,
                )
                return found

            headers, found = self._call(work)
            now = parsedate_to_datetime(headers["date"]).timestamp()
            for each in found:
                if "subdir" in each:
                    last = each["subdir"]
                    yield Listed(last, 0, 0.0, 0.0)
                else:
                    last = each["name"]
                    then = datetime.fromisoformat(each["last_modified"])
                    modified = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
                    yield Listed(last, each["bytes"], modified, now - modified)
            if len(found) < page:
                return

    def url(self) -> str:
        """The account's."""
        return self._enter()[0]

    def _call(self, work: Callable[[str, str, Any], T]) -> T:
        """Do it, with a new token if the old one has ended, and again if it failed soon and time may mend it."""
        from swiftclient.exceptions import ClientException

        began, pause, tries = time.monotonic(), PAUSE, TRIES
        while True:
            tries -= 1
            token = ""
            try:
                url, token = self._enter()
                with self._border():
                    return work(url, token, self._connection(url))
            except ClientException as error:
                status = error.http_status
                if status == 401 and tries:  # noqa: PLR2004 - HTTP
                    self._forget(token)
                    continue
                problem = self._refused(status)
                if status not in _AGAIN or not tries or time.monotonic() - began > self.patience / 2:
                    raise problem from error
            except StoreUnavailable:
                # A server that was silent is not asked again: patience is for the whole.
                if not tries or time.monotonic() - began > self.patience / 2:
                    raise
            time.sleep(pause)
            pause *= 2

    def _refused(self, status: int | None) -> Problem:
        where = self._where
        match status:
            case 401 | 403:
                return StoreUnauthorized(f"{where} refuses this user ({status}); see to its role, or to the Secret")
            case 404:
                return NotFound(f"{where} has no such object or container")
            case 409 | 412:
                return StoreConflict(f"{where}: the object exists")
            case 416:
                return DataLost(f"{where}: an object is shorter than it was")
            case 413 | 507:
                return StoreFull(f"{where} is full ({status}); remove images or raise its quota")
            case _:
                return StoreUnavailable(f"{where} answered {status or 'nothing that can be read'}")

    @contextmanager
    def _border(self) -> Iterator[None]:
        """What the network raises becomes StoreUnavailable, in our words: theirs quote URLs."""
        from requests.exceptions import RequestException, SSLError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (RequestException, HTTPError, OSError) as error:
            untrusted = isinstance(error, SSLError | ssl.SSLError)
            raise StoreUnavailable(f"{self._where} {UNTRUSTED if untrusted else self._silent(error)}") from error

    @staticmethod
    def _silent(error: Exception) -> str:
        return "does not answer" if "imeout" in type(error).__name__ else "cannot be reached"

    def _enter(self) -> tuple[str, str]:
        """The URL of the account and a token that is good for a while. Raises StoreUnauthorized, StoreUnavailable."""
        from keystoneauth1 import exceptions

        session, plugin = self._identity
        try:
            with self._border():
                token = session.get_token(auth=plugin)
                url = session.get_endpoint(
                    auth=plugin, service_type="object-store", interface="public", region_name=self._region
                )
        except (exceptions.Unauthorized, exceptions.Forbidden) as error:
            raise StoreUnauthorized(f"{self._where}: the login is refused; see to the Secret") from error
        except (exceptions.EndpointNotFound, exceptions.EmptyCatalog) as error:
            raise self._unlisted() from error
        except exceptions.SSLError as error:
            raise StoreUnavailable(f"{self._where} {UNTRUSTED}") from error
        except exceptions.ConnectionError as error:
            raise StoreUnavailable(f"{self._where} {self._silent(error)}") from error
        except exceptions.ClientException as error:
            status = getattr(error, "http_status", None)
            what = f"answered {status} to the login" if status else "gives no token"
            raise StoreUnavailable(f"{self._where} {what}; see to authUrl and authVersion") from error
        if not url or not token:
            raise self._unlisted()
        return url, token

    def _unlisted(self) -> Problem:
        region = f" in the region {self._region}" if self._region else ""
        return InvalidConfiguration(f"{self._where}: the catalog lists no public object-store{region}; mend `region`")

    def _forget(self, token: str) -> None:
        """Log in anew the next time, unless another thread did."""
        session, plugin = self._identity
        with self._lock:
            if session.get_token(auth=plugin) == token:
                session.invalidate(auth=plugin)

    def _connection(self, url: str) -> Any:
        """One a thread, as it holds the last answer; the sockets are shared."""
        from swiftclient.client import HTTPConnection
        from swiftclient.requests_compat import SwiftClientRequestsSession

        known = getattr(self._local, "connection", None)
        if known is None or known.url != url:
            with self._lock:
                if self._session is None or self._session[0] != url:
                    self._session = url, self._private(SwiftClientRequestsSession(), url)
            known = self._local.connection = HTTPConnection(url, timeout=self.patience)
            known.request_session = self._session[1]
            known.request_session.headers = None
        return known.parsed_url, known

    @cached_property
    def _identity(self) -> tuple[Any, Any]:
        """A session for logins, and the plugin that holds the token."""
        from keystoneauth1.session import Session
        from requests import Session as Requests

        plugin = self._login()
        return Session(session=self._private(Requests(), plugin.auth_url), timeout=self.patience), plugin

    def _private(self, session: Any, url: str) -> Any:
        """What is https never goes on over http."""
        schemes = (urlsplit(url).scheme,)
        return private(session, schemes, self._ca_bundle, connections=POOL, blocksize=CHUNK)


class _Pieces:
    """A file, as swiftclient wants one, over bytes in memory that are copied nowhere."""

    def __init__(self, pieces: Sequence[bytes | memoryview], before: Callable[[], None]) -> None:
        self._pieces, self._before = iter(pieces), before

    def read(self, _n: int = -1, /) -> bytes | memoryview:
        self._before()
        return next(self._pieces, b"")

    def close(self) -> None:
        """Let go of the bytes: an answer refers to its request, and lives as long as its connection."""
        self._pieces = iter(())


def host(url: str) -> str:
    """Of a URL, for people."""
    return urlsplit(url).netloc
