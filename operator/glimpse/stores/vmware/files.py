"""The files of one folder in a datastore: bytes over HTTP, all else by the API.

What is relied upon and cannot be seen with a simulator is in VMware's reference of FileManager and
HostDatastoreBrowser, or known from clients that work with real servers: govmomi (VMware's own) and glance_store
(OpenStack's). It is named where it is used.
"""

import http.client
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self, cast

from glimpse.problems import NotFound, StoreUnavailable
from glimpse.stores.vmware.session import Broken, Ended, Exists, Missing, Server, Session
from glimpse.streams import CHUNK, Reader

SMALL: Final = 8192
"""Bytes of the largest file that is read as a whole."""

_TRIES: Final = 3
"""How often a download is asked for again without a byte in between."""


class File(NamedTuple):
    """What a datastore tells of a file."""

    folder: str
    """The folder of ours in which it is; empty if it is in another."""
    name: str
    size: int
    modified: float


class Files:
    """Files below one folder; their paths are relative to it. Shared by threads.

    Raises Missing or Exists where a file is not there, or is; else Problem.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._place = server.place

    def read(self, path: str) -> bytes:
        """Read a small file."""

        def read(session: Session) -> bytes:
            with _Exchange(self._server, session) as exchange:
                exchange.ask("GET", path)
                return exchange.response.read(SMALL)

        return self._server.call(read)

    def peek(self, path: str) -> bytes | None:
        """Read a small file, if there is one."""
        with suppress(Missing):
            return self.read(path)
        return None

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, over one that is there. Who reads it meanwhile may see half of it."""

        def write(session: Session) -> None:
            with _Exchange(self._server, session) as exchange:
                exchange.ask("PUT", path, data)

        self._server.call(write)

    def send(self, path: str, body: Reader) -> int:
        """Write a file of any size, once; how many bytes. What `body` raises comes out as it is.

        The length is told where it is known, else the bytes go in chunks: glance_store and govmomi do both with real
        servers, and VMware forbids neither. A server that takes no chunks answers 411 (RFC 9112, 6.3).
        """
        size, sent = body.size, 0
        chunk = body.read(CHUNK)  # one that fails at once leaves no file
        self.now()  # it cannot be read twice: connection and session are alive
        with self._server.once() as session, _Exchange(self._server, session) as exchange:
            exchange.begin(path, size)
            while chunk and (size is None or sent + len(chunk) <= size):
                exchange.send(chunk)
                sent += len(chunk)
                chunk = body.read(CHUNK)
            if chunk or size not in {None, sent}:
                raise StoreUnavailable(f"a body of {size} bytes, as it said, has more or less than that")
            exchange.finish()
        return sent

    @contextmanager
    def open(self, path: str, offset: int, length: int | None) -> Iterator["Download"]:
        """Read a file, or the part of the range that exists."""
        download = Download(self._server, path, offset, length)
        try:
            yield download
        finally:
            download.close()

    def find(self, pattern: str, folder: str = "", *, below: bool = False) -> list[File]:
        """Files of a folder, or of the folders `below` it, whose names match a pattern with `*`.

        All in one answer: the API has no pages for them. It is also the only way to a file's time: over HTTP a real
        server tells none (govmomi, datastore_file.go: "no Last-Modified").
        """
        from pyVmomi import vim

        browser = vim.host.DatastoreBrowser
        details = browser.FileInfo.Details(fileSize=True, modification=True, fileType=False, fileOwner=False)
        wanted = browser.SearchSpec(matchPattern=[pattern], details=details)
        path = self._place.path(folder)

        def start(session: Session) -> Any:
            if below:
                return session.browser.SearchDatastoreSubFolders_Task(path, wanted)
            return session.browser.SearchDatastore_Task(path, wanted)

        found = self._server.task(start)
        depth = self._place.folder.count("/") + 1
        return [
            File(_last(each.folderPath, depth), file.path, file.fileSize or 0, file.modification.timestamp())
            for each in (found if below else [found])
            for file in each.file
            if not isinstance(file, browser.FolderInfo)
        ]

    def move(self, source: str, target: str, *, force: bool = False) -> None:
        """Give a file another name, atomically; with `force` one that another file has.

        Only ever a file: "this operation will provide transactional guarantees only for a file. No guarantees are
        provided for folder moves" (MoveDatastoreFile_Task). After a lost answer Missing may mean that it was done.
        """
        place = self._place
        self._server.task(
            lambda session: session.content.fileManager.MoveDatastoreFile_Task(
                place.path(source), session.datacenter, place.path(target), session.datacenter, force
            )
        )

    def remove(self, path: str) -> bool:
        """Delete a file; whether there was one."""
        try:
            self._server.task(
                lambda session: session.content.fileManager.DeleteDatastoreFile_Task(
                    self._place.path(path), session.datacenter
                )
            )
        except Missing:
            return False
        return True

    def make_folder(self, path: str) -> None:
        """Make a folder in one that is there, unless it is there as well: a real server makes none for a file."""
        with suppress(Exists):
            self._server.call(
                lambda session: session.content.fileManager.MakeDirectory(
                    self._place.path(path), session.datacenter, createParentDirectories=False
                )
            )

    def now(self) -> float:
        """The server's clock, which all who use a place share. Asking for it keeps the session alive."""
        from pyVmomi import vim

        def ask(session: Session) -> float:
            return float(vim.ServiceInstance("ServiceInstance", session.stub).CurrentTime().timestamp())

        return self._server.call(ask)


class _Exchange:
    """One request over HTTP with its answer, on a connection of the session's."""

    def __init__(self, server: Server, session: Session) -> None:
        self._server, self.session = server, session
        self._open = self._chunked = self._sending = self._answered = False
        self.response: http.client.HTTPResponse
        with server.border(session):
            self._connection = cast("http.client.HTTPConnection", session.stub.GetConnection())
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Send a request, and see that it is answered well. What a PUT is answered with is read."""
        with self._server.border(self.session):
            self._connection.request(method, self._server.place.url(path), body, self._headers() | dict(headers))
            self._answer(read=body is not None)

    def begin(self, path: str, size: int | None) -> None:
        """Begin to send a body."""
        self._chunked = size is None
        length = {"Transfer-Encoding": "chunked"} if size is None else {"Content-Length": str(size)}
        with self._server.border(self.session):
            self._connection.putrequest("PUT", self._server.place.url(path), skip_accept_encoding=True)
            for name, value in (self._headers() | length | {"Content-Type": "application/octet-stream"}).items():
                self._connection.putheader(name, value)
            self._connection.endheaders()
        self._sending = True

    def send(self, chunk: bytes) -> None:
        """Send some of it. A server that wants no more says why before it hangs up."""
        with self._sent():
            try:
                if self._chunked:
                    self._connection.send(b"%x\r\n" % len(chunk))
                self._connection.send(chunk)
                if self._chunked:
                    self._connection.send(b"\r\n")
            except ConnectionError:
                with suppress(OSError, http.client.HTTPException):
                    self._answer(read=True, sent=False)
                raise

    def finish(self) -> None:
        """All is sent: see that it is answered well."""
        with self._sent():
            if self._chunked:
                self._connection.send(b"0\r\n\r\n")
            self._answer(read=True)
        self._sending = False

    def close(self) -> None:
        """Give the connection back if it can be used again, else close it.

        If it was the body that failed, the server is told so and waited for: what it does after we have gone it would
        do behind our back, when we have removed the file.
        """
        was_open, self._open = self._open, False
        if not was_open:
            return
        if self._answered and self.response.isclosed() and not self.response.will_close:
            self.session.stub.ReturnConnection(self._connection)
            return
        if self._sending:
            with suppress(OSError, ValueError):
                self._connection.sock.shutdown(socket.SHUT_WR)
                while self._connection.sock.recv(CHUNK):
                    pass
        self._connection.close()

    @contextmanager
    def _sent(self) -> Iterator[None]:
        """After a failure of the connection, or a refusal, there is nobody to be told."""
        try:
            with self._server.border(self.session):
                yield
        except BaseException:
            self._sending = False
            raise

    def _headers(self) -> dict[str, str]:
        """The cookie of the session is what lets us in, as it does glance_store."""
        return {"Cookie": str(self.session.stub.cookie).partition(";")[0]}

    def _answer(self, *, read: bool, sent: bool = True) -> None:
        """See whether it is a good one: 201 or 200 after a PUT, which glance_store and govmomi both take.

        Unless all was `sent` the connection is spoiled.
        """
        self.response = self._connection.getresponse()
        server, status = self._server, self.response.status
        good = status in {200, 201, 204, 206}
        if read or not good:
            self.response.read(SMALL)
        self._answered = sent
        if good or status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        match status:
            case HTTPStatus.UNAUTHORIZED:
                raise Ended
            case HTTPStatus.FORBIDDEN:
                raise server.denied()
            case HTTPStatus.NOT_FOUND:
                raise Missing
            case HTTPStatus.INSUFFICIENT_STORAGE:
                raise server.full()
            case HTTPStatus.LENGTH_REQUIRED:
                raise StoreUnavailable(f"{server.place.server} takes only bodies whose length is known")
        raise StoreUnavailable(f"{server.place.server} answers {status} for a file in {server.place.path()}")


class Download:
    """A file, or a part of it, as it comes; asked for again from where it broke, while it goes on. A Reader."""

    def __init__(self, server: Server, path: str, offset: int, length: int | None) -> None:
        """Raises Missing."""
        self._server, self._path = server, path
        self._position = offset
        self._left = length
        self._failed = 0  # times without a byte
        self._exchange = self._ask()
        self.size: int | None = self._left

    def read(self, n: int = CHUNK, /) -> bytes:
        """The next bytes. Raises NotFound if it was deleted meanwhile, StoreUnavailable."""
        while self._left:
            try:
                with self._server.border(self._exchange.session):
                    chunk = self._exchange.response.read(min(n, self._left))
                    if not chunk:
                        raise ConnectionResetError
            except Broken as error:
                self._failed += 1
                if self._failed > _TRIES:
                    raise StoreUnavailable(f"{self._server.place.server}: {error}") from error
                self._exchange.close()
                try:
                    self._exchange = self._ask()
                except Missing as missing:
                    raise NotFound(f"{self._path} in {self._server.place.path()} was deleted") from missing
                continue
            self._failed = 0
            self._position += len(chunk)
            self._left -= len(chunk)
            return chunk
        return b""

    def close(self) -> None:
        """Give the connection back if all is read, else close it."""
        self._exchange.close()

    def _ask(self) -> _Exchange:
        """Ask for what is left, and see how much that is."""
        whole = self._position == 0 and self._left is None
        last = "" if self._left is None else self._position + self._left - 1
        headers = {} if whole else {"Range": f"bytes={self._position}-{last}"}

        def ask(session: Session) -> _Exchange:
            exchange = _Exchange(self._server, session)
            try:
                exchange.ask("GET", self._path, headers=headers)
                self._left = self._extent(exchange.response)
            except BaseException:
                exchange.close()
                raise
            return exchange

        return self._server.call(ask)

    def _extent(self, response: http.client.HTTPResponse) -> int:
        """How many bytes come of those that are wanted. What a server gives before them is passed over."""
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return 0
        began = 0
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            began = int(match[1]) if match else self._position
        if response.length is None or began > self._position:
            raise StoreUnavailable(f"{self._server.place.server} does not say how long {self._path} is, or from where")
        skip = self._position - began
        there = max(0, response.length - skip)
        while skip and (passed := len(response.read(min(skip, CHUNK)))):
            skip -= passed
        return there if self._left is None else min(there, self._left)


def _last(path: str, depth: int) -> str:
    """The name of a folder that is at this depth, none of another; `[datastore] a/b/` has a / at its end or not.

    The first part of the path is not compared: where we say the name of a folder, vSAN may say its UUID.
    """
    parts = path.partition("] ")[2].rstrip("/").split("/")
    return parts[depth] if len(parts) == depth + 1 else ""
