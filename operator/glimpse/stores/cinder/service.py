"""Requests to Cinder: logged in, bounded in time, and Problems at the end.

python-cinderclient does the requests and keystoneauth the logins, on a session of our own: nothing implicit is read
(proxies, netrc, bundles of certificates), and authorities are given in memory, since a worker reads few files.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from glimpse.keystone import private
from glimpse.problems import (
    InvalidConfiguration,
    NotFound,
    Problem,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores.cinder.volumes import Snapshot, Volume

MICROVERSION: Final = "3.54"
"""Attachments since 3.27, read-only ones since 3.54: OpenStack Stein, of 2019."""

CONNECTOR: Final[Mapping[str, Any]] = {
    "host": "glimpse",
    "ip": "127.0.0.1",
    "os_type": "linux",
    "platform": "x86_64",
    "multipath": False,
    "do_local_attach": False,
}
"""Who attaches. Of a volume in Ceph nothing of it matters; what does for others needs root to find out."""

POLLS: Final = (0.1, 0.1, 0.2, 0.3, 0.5, 0.5, 1.0)
"""Seconds between two looks at a volume; the last goes on."""
_TRIES: Final = 3
_SOON: Final = frozenset({429, 502, 503, 504})
"""What time may mend at once."""


class Refused(StoreUnavailable):
    """Cinder will not do it in the state that the volume is in (HTTP 400, 409)."""


Refused.reason = StoreUnavailable.reason  # what it is for everybody else


class Service:
    """One project in one Cinder; shared by threads."""

    def __init__(
        self,
        where: str,
        login: Callable[[], Any],
        ca_bundle: str | None,
        *,
        url: str,
        region: str | None,
        patience: float,
        settling: float,
    ) -> None:
        """`login` makes a plugin of keystoneauth, which goes to `url`; `where` is the store, for messages.

        `patience`: seconds for one answer; `settling`: for what a volume takes to reach another state.
        """
        self.where = where
        self._login, self._ca_bundle, self._url, self._region = login, ca_bundle, url, region
        self._patience, self._settling = patience, settling
        self._lock = threading.Lock()
        self._client: Any = None
        self._clock: tuple[float, float] | None = None

    @property
    def now(self) -> float:
        """Cinder's clock, never ahead of it; ours before the first answer."""
        if self._clock is None:
            return time.time()
        then, since = self._clock
        return then + time.clock_gettime(time.CLOCK_BOOTTIME) - since

    def find(self, metadata: Mapping[str, str], page: int) -> Iterator[Volume]:
        """All volumes with this metadata, a page at a time, oldest first."""
        return map(self._volume, self._pages("volumes", metadata, page))

    def show(self, volume: str) -> Volume:
        """One volume. Raises NotFound."""
        return self._volume(self._call("GET", f"/volumes/{volume}")["volume"])

    def create(self, **wanted: Any) -> str:
        """Begin to make a volume; its id. Raises StoreFull; NotFound without that type."""
        body = {"volume": {name: value for name, value in wanted.items() if value is not None}}
        made: str = self._call("POST", "/volumes", body)["volume"]["id"]
        return made

    def describe(self, volume: str, description: str, *, within: float) -> None:
        """Replace the description, and nothing else, in so many seconds. Raises NotFound."""
        self._call("PUT", f"/volumes/{volume}", {"volume": {"description": description}}, within=within)

    def note(self, volume: str, metadata: Mapping[str, str], *, within: float | None = None) -> None:
        """Set metadata, all in one transaction, in so many seconds. Raises NotFound."""
        self._call("POST", f"/volumes/{volume}/metadata", {"metadata": dict(metadata)}, within=within)

    def extend(self, volume: str, gigabytes: int) -> None:
        """Enlarge a volume that is not attached. Raises StoreFull."""
        self._call("POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": gigabytes}})
        self.settle(volume, "available")

    def attach(self, volume: str, mode: str) -> tuple[str, Mapping[str, Any]]:
        """Attach a volume: the id of that, and how its bytes are reached. Raises Refused if it is attached already."""
        body = {"attachment": {"volume_uuid": volume, "connector": dict(CONNECTOR), "mode": mode}}
        made = self._call("POST", "/attachments", body)["attachment"]
        return made["id"], made["connection_info"]

    def connection(self, volume: str) -> Mapping[str, Any]:
        """How the bytes of a volume are reached; whoever else has it attached keeps it. Raises NotFound."""
        body = {"os-initialize_connection": {"connector": dict(CONNECTOR)}}
        found = self._call("POST", f"/volumes/{volume}/action", body)["connection_info"]
        return {**found["data"], "driver_volume_type": found["driver_volume_type"]}

    def detach(self, attachment: str) -> None:
        """Absent is fine."""
        with suppress(NotFound):
            self._call("DELETE", f"/attachments/{attachment}")

    def release(self, volume: str) -> None:
        """Detach a volume from all who have it and are no machine. Raises StoreUnavailable if one is."""
        found = self._call("GET", f"/attachments/detail?{urlencode({'volume_id': volume})}")["attachments"]
        machines = [each["instance"] for each in found if each.get("instance")]
        if machines:
            raise StoreUnavailable(f"{self.where}: the volume {volume} is attached to the machine {machines[0]}")
        for each in found:
            self.detach(each["id"])

    def remove(self, volume: str) -> bool:
        """Have a volume removed: whether it was there. It is on its way then; see `gone`. Raises Refused."""
        try:
            self._call("DELETE", f"/volumes/{volume}")
        except NotFound:
            return False
        return True

    def gone(self, volume: str, seconds: float) -> bool:
        """Wait until a volume that is being removed has gone: whether it has, in that time."""
        for _ in self._looks(seconds):
            try:
                status = self.show(volume).status
            except NotFound:
                return True
            if status != "deleting":
                return False
        return False

    def settle(self, volume: str, status: str, going: Callable[[], None] = lambda: None) -> Volume:
        """Wait until a volume has this status. Raises StoreUnavailable if it comes to another end; as `frozen`."""
        found = None
        for _ in self._looks(self._settling):
            going()
            found = self.show(volume)
            if found.status == status:
                return found
            if found.status.startswith("error"):
                raise StoreUnavailable(f"{self.where}: a volume came to the status {found.status}{self._why(volume)}")
        state = found.status if found else "unknown"
        raise StoreUnavailable(f"{self.where}: a volume is still {state} after {self._settling:.0f} s")

    def freeze(self, volume: str, name: str, metadata: Mapping[str, str]) -> str:
        """Begin to make a snapshot of a volume, whoever has it attached; its id. Raises NotFound, StoreFull."""
        body = {"snapshot": {"volume_id": volume, "name": name, "metadata": dict(metadata), "force": True}}
        made: str = self._call("POST", "/snapshots", body)["snapshot"]["id"]
        return made

    def snapshots(self, metadata: Mapping[str, str], page: int) -> Iterator[Snapshot]:
        """All snapshots with this metadata, a page at a time, oldest first."""
        return map(_snapshot, self._pages("snapshots", metadata, page))

    def snapshots_of(self, volume: str) -> Sequence[Snapshot]:
        """All snapshots of a volume."""
        found = self._call("GET", f"/snapshots/detail?{urlencode({'volume_id': volume})}")["snapshots"]
        return list(map(_snapshot, found))

    def snapshot(self, snapshot: str) -> Snapshot:
        """One snapshot. Raises NotFound."""
        return _snapshot(self._call("GET", f"/snapshots/{snapshot}")["snapshot"])

    def frozen(self, snapshot: str, going: Callable[[], None] = lambda: None) -> None:
        """Wait until a snapshot is made. Raises StoreUnavailable if it comes to another end, and what `going` does."""
        for _ in self._looks(self._settling):
            going()
            status = self.snapshot(snapshot).status
            if status == "available":
                return
            if status.startswith("error"):
                raise StoreUnavailable(f"{self.where}: a snapshot came to the status {status}{self._why(snapshot)}")
        raise StoreUnavailable(f"{self.where}: a snapshot is not made after {self._settling:.0f} s")

    def melt(self, snapshot: str) -> None:
        """Have a snapshot removed; what was made of it stays. Absent is fine. Raises Refused."""
        with suppress(NotFound):
            self._call("DELETE", f"/snapshots/{snapshot}")

    def melted(self, snapshot: str, seconds: float, going: Callable[[], None]) -> None:
        """Wait until a snapshot has gone. Raises StoreUnavailable if it comes to another end; as `frozen`."""
        status = "deleting"
        with suppress(NotFound):
            for _ in self._looks(seconds):
                going()
                status = self.snapshot(snapshot).status
                if status != "deleting":
                    break
            raise StoreUnavailable(f"{self.where}: a snapshot that should be removed is {status}{self._why(snapshot)}")

    def limits(self) -> Mapping[str, int]:
        """What the project may have, and has."""
        found: Mapping[str, int] = self._call("GET", "/limits")["limits"]["absolute"]
        return found

    def _why(self, volume: str) -> str:
        """What Cinder has to say for its users of a volume that failed."""
        with suppress(Problem):
            said = self._call("GET", f"/messages?{urlencode({'resource_uuid': volume})}")["messages"]
            if said:
                return f": {_plain(said[0]['user_message'])}"
        return ""

    def _looks(self, seconds: float) -> Iterator[None]:
        deadline = time.monotonic() + seconds
        pauses = iter(POLLS)
        while time.monotonic() < deadline:
            time.sleep(next(pauses, POLLS[-1]))
            yield

    def _pages(self, what: str, metadata: Mapping[str, str], page: int) -> Iterator[Mapping[str, Any]]:
        known: set[str] = set()
        last = None
        for _ in range(_TRIES):
            try:
                while True:
                    query = {"metadata": str(dict(metadata)), "limit": page, "sort": "created_at:asc,id:asc"}
                    query |= {"marker": last} if last else {}
                    found = self._call("GET", f"/{what}/detail?{urlencode(query)}")[what]
                    for each in found:
                        if each["id"] not in known:
                            known.add(each["id"])
                            yield each
                    if len(found) < page:
                        return
                    last = found[-1]["id"]
            except (NotFound, Refused):  # the last one of the page before was removed meanwhile: begin again
                if last is None:
                    raise
                last = None
        raise StoreUnavailable(f"{self.where}: {what} are removed faster than they can be listed")

    def _volume(self, found: Mapping[str, Any]) -> Volume:
        return Volume(
            id=found["id"],
            status=found["status"],
            gigabytes=int(found["size"]),
            description=found.get("description") or "",
            created=_seconds(found["created_at"]),
            metadata=found.get("metadata") or {},
            now=self._clock[0] if self._clock else time.time(),
        )

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, within: float | None = None
    ) -> Any:
        """One request; one that changes nothing is made again if it failed soon and time may mend it."""
        tries = _TRIES if method == "GET" else 1
        options: dict[str, Any] = {} if body is None else {"json": body}
        options |= {} if within is None else {"timeout": min(within, self._patience)}
        began, pause = time.monotonic(), 0.2
        while True:
            tries -= 1
            try:
                with self._border():
                    answer, content = self._connected().request(path, method, authenticated=True, **options)
                break
            except NotFound as problem:
                if not path.startswith(("/volumes/detail?", "/limits")) or "&marker=" in path:
                    raise
                raise StoreUnavailable(
                    f"{problem.message}; is endpoint, or the one in Keystone's catalog, that of Cinder's API "
                    "version 3, and is the project right?"
                ) from problem
            except _Passing as problem:
                if not tries or time.monotonic() - began > self._patience / 2:
                    raise StoreUnavailable(problem.message) from problem
                time.sleep(pause)
                pause *= 2
        with suppress(KeyError, ValueError):
            self._clock = (
                parsedate_to_datetime(answer.headers["date"]).timestamp(),
                time.clock_gettime(time.CLOCK_BOOTTIME),
            )
        return content

    @contextmanager
    def _border(self) -> Iterator[None]:
        """What the libraries raise becomes a Problem. Cinder's own words are shown, theirs are not: they quote URLs."""
        from cinderclient import exceptions as cinder
        from keystoneauth1 import exceptions as keystone

        try:
            yield
        except cinder.ClientException as error:
            raise self._refused(error.code, _plain(error.message)) from error
        except (keystone.Unauthorized, keystone.Forbidden) as error:
            raise StoreUnauthorized(f"{self.where}: the login is refused; see to the Secret") from error
        except (keystone.EndpointNotFound, keystone.EmptyCatalog) as error:
            region = f" in the region {self._region}" if self._region else ""
            raise InvalidConfiguration(
                f"{self.where}: the catalog lists no public block-storage{region}; mend `region`"
            ) from error
        except keystone.SSLError as error:
            raise StoreUnavailable(
                f"{self.where} has a certificate that is not trusted, or speaks no TLS; see to caBundleRef"
            ) from error
        except keystone.ConnectTimeout as error:
            raise StoreUnavailable(f"{self.where} has not answered in {self._patience:.0f} s") from error
        except (keystone.ConnectionError, OSError) as error:
            raise _Passing(f"{self.where} cannot be reached") from error
        except keystone.ClientException as error:
            status = getattr(error, "http_status", None)
            what = f"answered {status} to the login" if status else "is no such identity service"
            raise StoreUnavailable(f"{self.where} {what}; see to authUrl") from error

    def _refused(self, status: int, words: str) -> Problem:
        said = f"{self.where}: {words} ({status})"
        match status:
            case 401 | 403:
                return StoreUnauthorized(f"{said}; see to the user's role in the project, or to the Secret")
            case 404:
                return NotFound(said)
            case 413:
                return StoreFull(f"{said}; remove images or raise the quota of the project")
            case 400 if "vailability zone" in words:
                return Refused(f"{said}; mend availabilityZone")
            case 400 | 409:
                return Refused(said)
            case 406:
                return InvalidConfiguration(f"{said}; its API must have the microversion {MICROVERSION}")
        return _Passing(said) if status in _SOON else StoreUnavailable(said)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        from cinderclient.client import SessionClient
        from keystoneauth1.session import Session
        from requests import Session as Requests

        # A login by http may lead to https; what begins with https never goes on over http.
        schemes = ("https",) if urlsplit(self._url).scheme == "https" else ("http", "https")
        requests = private(Requests(), schemes, self._ca_bundle, connections=16)
        session = Session(auth=self._login(), session=requests, timeout=self._patience)
        return SessionClient(
            session=session,
            service_type="block-storage",
            interface="public",
            region_name=self._region,
            api_version=MICROVERSION,
            connect_retries=0,
        )


class _Passing(StoreUnavailable):
    """What time may mend at once."""


def _snapshot(found: Mapping[str, Any]) -> Snapshot:
    return Snapshot(found["id"], found["status"], _seconds(found["created_at"]), found.get("metadata") or {})


def _seconds(date: str) -> float:
    """Since the epoch; Cinder writes UTC without saying so."""
    then = datetime.fromisoformat(date)
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def _plain(words: object) -> str:
    """What a server says, on one line and without its markup."""
    return " ".join(re.sub(r"<[^<>]*>", " ", str(words or "")).split())[:300].rstrip(".") or "refused"
