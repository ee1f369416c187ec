"""A vCenter, or an ESXi host: logged in when something is asked, and again where the session has ended.

pyvmomi speaks the API, but compares a pinned certificate on its first connection only, and has no measure of time for
a task. So trust and time are ours, and all that is foreign crosses one border here.
"""

import hashlib
import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode
from xml.parsers.expat import ExpatError

from glimpse.problems import InvalidConfiguration, StoreFull, StoreUnauthorized, StoreUnavailable

_VERSION: Final = "vim.version.version11"
"""Of the API that we speak: that of vSphere 6.5 has all that we call, and newer servers speak it too."""

_IDLE: Final = 60
"""Seconds after which an idle connection is not used again: the server may have closed it."""
_NO_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}
"""What OpenSSL, of some release, calls an answer that is none of TLS."""

T = TypeVar("T")


class Missing(Exception):  # noqa: N818 - an answer
    """There is no such file or folder."""


class Exists(Exception):  # noqa: N818 - an answer
    """There is such a file or folder."""


class Ended(Exception):  # noqa: N818 - an answer
    """The session is over, or what it knew of the inventory."""


class Broken(Exception):  # noqa: N818 - a Problem only when it comes twice
    """A connection broke. One that was idle may just have been closed."""


class Place(NamedTuple):
    """A folder in a datastore."""

    server: str
    """Host, and port if it is not 443."""
    datacenter: str
    """Its path in the inventory."""
    datastore: str
    folder: str

    def url(self, path: str = "") -> str:
        """Where a file is for HTTP: `/folder/PATH?dcPath=DATACENTER&dsName=DATASTORE`.

        So VMware has it in the Web Services SDK Programming Guide, HTTP Access to vSphere Server Files.
        """
        query = urlencode({"dcPath": self.datacenter, "dsName": self.datastore})
        return f"/folder/{quote(f'{self.folder}/{path}'.rstrip('/'))}?{query}"

    def path(self, path: str = "") -> str:
        """Where a file is for the API: `[datastore] path`."""
        return f"[{self.datastore}] {self.folder}/{path}".rstrip("/")


def trust(ca_bundle: str | None, thumbprint: str | None) -> ssl.SSLContext:
    """Whom to believe: one certificate, or these authorities, or the machine's. Raises InvalidConfiguration."""
    if thumbprint is not None:
        return _Pinned.to(thumbprint)
    try:
        return ssl.create_default_context(cadata=ca_bundle)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidConfiguration("caBundleRef holds no certificates: every key must be PEM") from error


class _Pinned(ssl.SSLContext):
    """Trusts one certificate, whoever signed it, and looks at it on every connection."""

    pin: str

    @classmethod
    def to(cls, thumbprint: str) -> "_Pinned":
        """Trust the certificate that has this SHA-256."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # no chain is asked for: the certificate itself is known
        context.pin = thumbprint.replace(":", "").lower()
        return context

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Shake hands and compare; to anybody else nothing is sent. Raises SSLCertVerificationError."""
        wrapped = super().wrap_socket(*arguments, **options)
        if hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").hexdigest() != self.pin:
            wrapped.close()
            raise ssl.SSLCertVerificationError("it is not the one that vmware.thumbprint names")
        return wrapped


class Session:
    """One login, and what was found with it."""

    def __init__(self, stub: Any, content: Any) -> None:
        self.stub, self.content = stub, content
        self.datacenter: Any = None
        self.datastore: Any = None
        self.browser: Any = None
        self.silent = False
        """Whether the server has left a question without an answer."""

    def read(self, thing: Any, *paths: str) -> dict[str, Any]:
        """Those properties of a managed object that are set."""
        from pyVmomi import vmodl

        collector = vmodl.query.PropertyCollector
        wanted = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=thing)],
            propSet=[collector.PropertySpec(type=type(thing), pathSet=list(paths))],
        )
        [found] = self.content.propertyCollector.RetrieveContents([wanted])
        for missing in found.missingSet:
            raise missing.fault  # a session that has ended may be told like this (oslo.vmware, vim_util.py)
        return {each.name: each.val for each in found.propSet}

    def find(self, place: Place) -> None:
        """Look up datacenter and datastore by their names. Raises StoreUnavailable."""
        from pyVmomi import vim

        hidden = "or the user may not see it"
        datacenter = self.content.searchIndex.FindByInventoryPath(place.datacenter)
        if not isinstance(datacenter, vim.Datacenter):
            raise StoreUnavailable(f"{place.server} has no datacenter {place.datacenter!r}, {hidden}")
        for each in self.read(datacenter, "datastore").get("datastore", ()):
            seen = self.read(each, "name", "browser")
            if seen["name"] == place.datastore:
                self.datacenter, self.datastore, self.browser = datacenter, each, seen["browser"]
                return
        raise StoreUnavailable(
            f"datacenter {place.datacenter!r} of {place.server} has no datastore {place.datastore!r}, {hidden}"
        )

    def end(self) -> None:
        """Log out and close all connections; a server that is silent is not asked."""
        if not self.silent:
            with suppress(Exception):  # it ends by itself after half an hour
                self.content.sessionManager.Logout()
        self.stub.DropConnections()


class Server:
    """One user's way to one place. Shared by threads, who share a session."""

    def __init__(self, place: Place, username: str, password: str, context: ssl.SSLContext, patience: float) -> None:
        """`patience`: seconds that a silent server is waited for, and a task."""
        self.place = place
        self.patience = patience
        self._username, self._password = username, password
        self._context = context
        self._lock = threading.RLock()
        self._session: Session | None = None

    def call(self, action: Callable[[Session], T]) -> T:
        """Do something with the session; once more where that has ended, and once more where a connection broke.

        A server that was started again does both to us. Raises Missing and Exists, else Problem. An action that was
        done, and whose answer was lost, is done twice.
        """
        ended = broken = False
        while True:
            try:
                session = self._login()
                with self.border(session):
                    return action(session)
            except Ended:
                if ended:
                    raise self.denied() from None
                ended = True
            except Broken as error:
                if broken:
                    raise StoreUnavailable(f"{self.place.server}: {error}") from error
                broken = True

    @contextmanager
    def once(self) -> Iterator[Session]:
        """The session, for what cannot be done twice."""
        try:
            yield self._login()
        except Ended as error:
            raise StoreUnavailable(f"{self.place.server} has ended the session in the middle") from error
        except Broken as error:
            raise StoreUnavailable(f"{self.place.server}: {error}") from error

    def task(self, start: Callable[[Session], Any]) -> Any:
        """Start a task and wait for its end; its result. Raises what it ended with.

        Of `info` only this much is read: all of it at once cannot be had from the simulator.
        """

        def run(session: Session) -> Any:
            task = start(session)
            end, pause = time.monotonic() + self.patience, 0.002
            while True:
                seen = session.read(task, "info.state", "info.error", "info.result")
                match seen["info.state"]:
                    case "success":
                        return seen.get("info.result")
                    case "error":
                        raise seen["info.error"]
                if time.monotonic() > end:
                    raise StoreUnavailable(f"{self.place.server} has not done a task within {self.patience:.0f} s")
                time.sleep(pause)
                pause = min(2 * pause, 0.5)

        return self.call(run)

    def end(self) -> None:
        """Log out, if we are logged in."""
        with self._lock:
            session, self._session = self._session, None
        if session:
            session.end()

    def full(self) -> StoreFull:
        """A datastore without room."""
        return StoreFull(f"datastore {self.place.datastore!r} is full; remove images or enlarge it")

    def denied(self, privilege: str = "Datastore.Browse or Datastore.FileManagement") -> StoreUnauthorized:
        """A user who may not do this."""
        return StoreUnauthorized(
            f"{self.place.server} lets the user in, but not at datastore {self.place.datastore!r}: "
            f"grant the privilege {privilege} there"
        )

    def _login(self) -> Session:
        with self._lock:
            if self._session is None:
                self._session = self._log_in()
            return self._session

    def _log_in(self) -> Session:
        from pyVmomi import vim
        from pyVmomi.SoapAdapter import SoapStubAdapter

        host, _, port = self.place.server.rpartition(":")
        if not host or not port.isdigit():
            host, port = self.place.server, "443"
        stub = SoapStubAdapter(
            host,
            int(port),
            path="/sdk",
            version=_VERSION,
            sslContext=self._context,
            httpConnectionTimeout=self.patience,
            connectionPoolTimeout=_IDLE,
        )
        with self.border(None):
            session = Session(stub, vim.ServiceInstance("ServiceInstance", stub).RetrieveContent())
        try:
            with self.border(session):
                session.content.sessionManager.Login(self._username, self._password)
                session.find(self.place)
        except BaseException:
            session.end()
            raise
        return session

    @contextmanager
    def border(self, session: Session | None) -> Iterator[None]:
        """Make all that is foreign a Problem, or an answer of ours, never with the words of a library or a server."""
        from pyVmomi import vim, vmodl

        server = self.place.server
        try:
            yield
        except (Ended, vim.fault.NotAuthenticated, vmodl.fault.ManagedObjectNotFound) as error:
            self._forget(session)
            raise Ended from error
        except vmodl.MethodFault as error:
            raise self._said(error) from error
        except ssl.SSLCertVerificationError as error:
            what = getattr(error, "verify_message", None) or error.args[-1]
            raise StoreUnavailable(
                f"the certificate of {server} is not trusted, {what}: give its authority as caBundleRef, or its "
                "SHA-256 as vmware.thumbprint"
            ) from error
        except TimeoutError as error:
            self._silent(session)
            raise StoreUnavailable(f"{server} does not answer within {self.patience:.0f} s") from error
        except (OSError, http.client.HTTPException, ExpatError) as error:
            self._silent(session)
            if getattr(error, "reason", None) in _NO_TLS:
                raise StoreUnavailable(f"{server} speaks no TLS there; see to vmware.server and its port") from error
            raise Broken(getattr(error, "strerror", None) or type(error).__name__) from error

    def _said(self, fault: Exception) -> Exception:
        """What a fault means."""
        from pyVmomi import vim

        server = self.place.server
        match fault:
            case vim.fault.InvalidLogin():
                return StoreUnauthorized(f"{server} refuses the username or the password of the store's Secret")
            case vim.fault.NoPermission(privilegeId=privilege):
                return self.denied(privilege)
            case vim.fault.FileNotFound():
                return Missing()
            case vim.fault.FileAlreadyExists():
                return Exists()
            case vim.fault.NoDiskSpace():
                return self.full()
            case vim.fault.FileLocked():
                return StoreUnavailable(f"a file in {self.place.path()} is in use; it will be tried again")
        return StoreUnavailable(f"{server} answers with the fault {type(fault).__name__}")

    def _forget(self, session: Session | None) -> None:
        """Have the next call log in, unless another thread has seen to it."""
        with self._lock:
            if session is not None and self._session is session:
                self._session = None
        if session is not None:
            session.stub.DropConnections()

    @staticmethod
    def _silent(session: Session | None) -> None:
        if session is not None:
            session.silent = True
