"""The client of the Kubernetes API: requests, watches, patches and reviews, for operator and gateway.

One place for retries and limits. Nothing else speaks to the API server.
"""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

import aiohttp

from glimpse.api.base import GROUP
from glimpse.kube.answers import ApiError, Expired, Gone, Unavailable, answer
from glimpse.kube.events import Events
from glimpse.kube.kinds import ACCESS_REVIEW, SERVICE_ACCOUNT, TOKEN_REVIEW, Kind, Object
from glimpse.login import Login

log = logging.getLogger(__name__)


class Review(NamedTuple):
    """What the API server says of a caller's token."""

    authenticated: bool
    user: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, Sequence[str]] = {}
    audiences: tuple[str, ...] = ()
    error: str = ""


Observe = Callable[[str, int, float], None]
"""Told of each request: verb, HTTP status (0 without an answer), seconds."""

_TRIES: Final = 6
"""Attempts of one call while the API server is away: some 10 s."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, sock_connect=5)
_WATCH_SILENCE: Final = 80.0
"""Seconds without a byte after which a watch counts as broken; bookmarks come once a minute."""
_MAX_LINE: Final = 32 << 20
"""Bytes of the largest event of a watch; etcd takes 1.5 MiB."""


class Kube:
    """A client of the API server. Bounded to 32 connections, and 32 for reviews; for many tasks of one event loop."""

    def __init__(self, login: Login, *, observe: Observe | None = None) -> None:
        self.login = login
        self._observe = observe
        self.wrote: Callable[[Kind, Object], None] | None = None
        """Told of each object that a patch of ours gave."""
        self._session = login.session()
        self._reviews = login.session()  # strangers ask for these: they must not starve anything else
        self._watches = login.session(connections=0)  # never starved by requests
        self.events = Events(self.create)

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None, *, token_file: Path | None = None, observe: Observe | None = None
    ) -> Self:
        """Log in by a kubeconfig, or else as the pod; nothing is asked of the API server yet. Raises LoginError."""
        return cls(await Login.load(kubeconfig, token_file), observe=observe)

    async def close(self) -> None:
        """Close all connections; Events that wait are lost."""
        await self.events.close()
        for session in (self._session, self._reviews, self._watches):
            await session.close()

    # --- requests

    async def _call(
        self,
        verb: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        session: aiohttp.ClientSession | None = None,
    ) -> Object:
        """One call, tried again while the API server is away. Raises ApiError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": content_type}
        for attempt in range(1, _TRIES + 1):
            wait = min(4.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            try:
                return await self._once(session or self._session, verb, path, data, params=params, headers=headers)
            except Unavailable as error:
                if attempt == _TRIES:
                    raise
                wait = min(10.0, max(wait, error.retry_after))
            await asyncio.sleep(wait)
        raise AssertionError

    async def _once(
        self,
        session: aiohttp.ClientSession,
        verb: str,
        path: str,
        data: bytes | None = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        began, status = time.monotonic(), 0
        try:
            async with session.request(
                verb, self.login.server + path, data=data, params=params, headers=headers, timeout=_TIMEOUT
            ) as response:
                status = response.status
                raw = await response.read()
                retry_after = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{verb} {path}: {_say(error)}") from error
        finally:
            if self._observe:
                self._observe(verb, status, time.monotonic() - began)
        return answer(verb, path, status, raw, retry_after)

    async def ping(self) -> None:
        """Ask the API server for a sign of life, once and on a new connection: an old one may hang. Raises ApiError."""
        async with self.login.session(connections=1) as session:
            await self._once(session, "GET", "/version")

    async def served(self, kind: Kind) -> bool:
        """Whether the API server knows this kind. Raises Unavailable, Forbidden."""
        try:
            found = await self._call("GET", kind.path().rpartition("/")[0])
        except Gone:
            return False
        return any(resource["name"] == kind.plural for resource in found["resources"])

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """Read one object. Raises Gone, Forbidden, Unavailable."""
        return await self._call("GET", kind.path(namespace, name))

    async def create(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        """Create one object. Raises Conflict if there is one, Forbidden, Invalid, Unavailable (it may exist then)."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind} | body
        return await self._call("POST", kind.path(namespace), body)

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, *, uid: str) -> None:
        """Delete exactly this object; one that is gone already is fine. Raises Conflict, Forbidden, Unavailable."""
        body = {"preconditions": {"uid": uid}}
        with contextlib.suppress(Gone):
            await self._call("DELETE", kind.path(namespace, name), body)

    async def apply(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        """Create one object, or set what `body` has of it; server-side, so RBAC can name the object that is created.

        Raises Conflict if `body` has a uid or resourceVersion and the object another, Forbidden, Invalid, Unavailable.
        """
        path = kind.path(namespace, body["metadata"]["name"])
        body = {"apiVersion": kind.api_version, "kind": kind.kind} | body
        params = {"fieldManager": "glimpse", "force": "true"}
        return await self._call("PATCH", path, body, params=params, content_type="application/apply-patch+yaml")

    async def list(
        self, kind: Kind, namespace: str | None = None, *, limit: int = 500, label_selector: str = ""
    ) -> AsyncGenerator[Object]:
        """All objects, page by page. One that changes meanwhile may come twice. Raises Forbidden, Unavailable."""
        async for page, _ in self.pages(kind, namespace, limit=limit, label_selector=label_selector):
            for item in page:
                yield item

    async def pages(
        self, kind: Kind, namespace: str | None = None, *, name: str = "", limit: int = 500, label_selector: str = ""
    ) -> AsyncGenerator[tuple[Sequence[Object], str]]:
        """Pages of objects with the resourceVersion from which a watch goes on; the last page's counts.

        https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks.
        """
        params = {"limit": str(limit)} | ({"labelSelector": label_selector} if label_selector else {}) | _only(name)
        oldest = ""
        while True:
            try:
                page = await self._call("GET", kind.path(namespace), params=params)
            except Expired as error:
                # The snapshot is compacted. With the new token the list goes on, over the objects of now; a watch
                # from the first version would miss what happened, so it starts from the oldest that we saw.
                params.pop("continue", None)
                if error.goes_on:
                    params["continue"] = error.goes_on
                continue
            meta = page["metadata"]
            oldest = oldest or meta["resourceVersion"]
            for item in page["items"]:
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
            yield page["items"], oldest
            if not meta.get("continue"):
                return
            params["continue"] = meta["continue"]

    # --- watch

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        name: str = "",
        limit: int = 500,
        silence: float = _WATCH_SILENCE,
    ) -> AsyncGenerator[tuple[str, Object]]:
        """What is, then what changes, for ever: ADDED, MODIFIED, DELETED, SYNCED, BOOKMARK.

        ("SYNCED", {}) comes after each whole list: what was said until then is the state. An object may be ADDED
        again, also unchanged. What vanished while we were not looking is DELETED with its metadata only (name,
        namespace, uid). ("BOOKMARK", {}) is a sign of life, at least once a minute. Never raises while the API
        server is away or refuses: it says so in the log and goes on trying. `silence`: seconds without a byte after
        which a connection counts as broken. `name`: only this object, for which RBAC may have a right of its own.
        """
        known: dict[tuple[str, str], str] = {}
        since, failures = "", 0
        while True:
            try:
                if not since:
                    async for event in self._relist(kind, namespace, name, limit, known):
                        if event[0] == "SYNCED":
                            since = event[1]["resourceVersion"]
                            event = ("SYNCED", {})  # noqa: PLW2901 - the version is ours alone
                        yield event
                async for change, obj in self._stream(kind, namespace, name, since, silence):
                    failures = 0
                    meta = obj["metadata"]
                    since = meta["resourceVersion"]
                    where = (meta.get("namespace", ""), meta.get("name", ""))
                    if change == "BOOKMARK":
                        obj = {}  # noqa: PLW2901 - it holds nothing but the version
                    elif change == "DELETED":
                        known.pop(where, None)
                    else:
                        known[where] = meta["uid"]
                    yield change, obj
            except Expired:
                since = ""
            except ApiError as error:
                failures += 1
                level = logging.WARNING if failures % 10 == 3 else logging.DEBUG  # noqa: PLR2004 - not each time
                log.log(level, "watch of %s: %s", kind.plural, error.message)
            # A stream that ends in good order is opened again at once, but never in a tight loop.
            await asyncio.sleep(min(10.0, 0.1 * 2 ** min(failures, 8)) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _relist(
        self, kind: Kind, namespace: str | None, only: str, limit: int, known: dict[tuple[str, str], str]
    ) -> AsyncGenerator[tuple[str, Object]]:
        seen: dict[tuple[str, str], str] = {}
        since = ""
        async for page, since in self.pages(kind, namespace, name=only, limit=limit):  # noqa: B007 - used after the loop
            for obj in page:
                meta = obj["metadata"]
                seen[meta.get("namespace", ""), meta["name"]] = meta["uid"]
                yield "ADDED", obj
        for (ns, name), uid in known.items():
            if (ns, name) not in seen:
                meta = {"name": name, "uid": uid} | ({"namespace": ns} if ns else {})
                yield "DELETED", {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}
        known.clear()
        known.update(seen)
        yield "SYNCED", {"resourceVersion": since}

    async def _stream(
        self, kind: Kind, namespace: str | None, name: str, since: str, silence: float
    ) -> AsyncGenerator[tuple[str, Object]]:
        """One watch request to its end. Raises Expired, ApiError."""
        path = kind.path(namespace)
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(random.randint(300, 600)),  # noqa: S311 - spreads the load of new watches
            **_only(name),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=silence)
        began, status = time.monotonic(), 0
        try:
            async with self._watches.get(self.login.server + path, params=params, timeout=timeout) as response:
                status = response.status
                if status != 200:  # noqa: PLR2004 - HTTP
                    answer("WATCH", path, status, await response.read(), "")
                try:
                    async for line in _lines(response.content):
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            said = event["object"]
                            answer("WATCH", path, said.get("code", 500), json.dumps(said).encode(), "")
                        yield event["type"], event["object"]
                finally:
                    # Nothing more is read: who takes leave by TLS waits for an answer, and the loop may end meanwhile.
                    if response.connection and response.connection.transport:
                        response.connection.transport.abort()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
            raise Unavailable(f"WATCH {path}: {_say(error)}") from error
        finally:
            if self._observe:
                self._observe("WATCH", status, time.monotonic() - began)

    # --- changes

    async def _patch(self, kind: Kind, obj: Object, patch: Sequence[Object], sub: str | None = None) -> Object:
        meta = obj["metadata"]
        path = kind.path(meta.get("namespace"), meta["name"], sub)
        new = await self._call("PATCH", path, patch, content_type="application/json-patch+json")
        if self.wrote:
            self.wrote(kind, new)
        return new

    async def patch_status(self, kind: Kind, obj: Object, status: Object, *, exact: bool = False) -> Object:
        """Replace the whole status of exactly this object at exactly this generation; gives the new object.

        `exact`: of exactly this version, since others write it too. Raises Conflict if the object is another one or
        its spec (or version) has changed (nothing is written), Gone, Invalid.
        A `uid` in a merge patch would be ignored, so these are tests of a JSON patch (RFC 6902).
        """
        meta = obj["metadata"]
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
            {"op": "test", "path": "/metadata/generation", "value": meta["generation"]},
            {"op": "add", "path": "/status", "value": status},
        ]
        if exact:
            patch.insert(0, {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]})
        return await self._patch(kind, obj, patch, "status")

    async def set_finalizers(self, kind: Kind, obj: Object, finalizers: Sequence[str]) -> Object:
        """Replace the finalizers of exactly this version of the object. Raises Conflict, Gone."""
        meta = obj["metadata"]
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
            {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
            {"op": "add", "path": "/metadata/finalizers", "value": list(finalizers)},
        ]
        return await self._patch(kind, obj, patch)

    async def set_data(self, kind: Kind, obj: Object, data: Mapping[str, str | None]) -> Object:
        """Set entries of exactly this version of a Secret, in base64; None removes one. Raises Conflict, Gone."""
        meta = obj["metadata"]
        held = {**(obj.get("data") or {}), **data}
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
            {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
            {"op": "add", "path": "/data", "value": {key: value for key, value in held.items() if value is not None}},
        ]
        return await self._patch(kind, obj, patch)

    # --- Events

    async def event(self, obj: Object, *, type: str, reason: str, message: str) -> None:  # noqa: A002 - the API's own word
        """Post an Event about the object, soon and as far as possible; never raises, never waits.

        The same Event is written once in ten minutes, and no more than 25 about one object. `type` is `Normal` or
        `Warning`.
        """
        self.events.say(obj, type=type, reason=reason, message=message)

    # --- who is who

    async def token_review(self, token: str, audiences: Sequence[str] = ()) -> Review:
        """Ask whose token this is. Not authenticated is an answer. Raises Forbidden, Unavailable."""
        spec: Object = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
        status = await self._review(TOKEN_REVIEW, spec)
        user = status.get("user", {})
        agreed = tuple(status.get("audiences", ()))
        # A server that does not know audiences answers without any: such a token was not made for us.
        known = bool(status.get("authenticated")) and (not audiences or bool(set(agreed) & set(audiences)))
        return Review(
            authenticated=known,
            user=user.get("username", ""),
            uid=user.get("uid", ""),
            groups=tuple(user.get("groups", ())),
            extra=user.get("extra", {}),
            audiences=agreed,
            error=status.get("error", ""),
        )

    async def subject_access_review(
        self,
        user: str,
        groups: Sequence[str] = (),
        uid: str = "",
        extra: Mapping[str, Sequence[str]] | None = None,
        *,
        namespace: str,
        verb: str,
        resource: str,
        subresource: str = "",
        group: str = GROUP,
        name: str = "",
    ) -> bool:
        """Ask whether a caller may do this. Raises Forbidden (we may not ask), Unavailable."""
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        attributes |= {k: v for k, v in (("subresource", subresource), ("name", name)) if v}
        spec = {
            "user": user,
            "groups": list(groups),
            "uid": uid,
            "extra": {k: list(v) for k, v in (extra or {}).items()},
            "resourceAttributes": attributes,
        }
        status = await self._review(ACCESS_REVIEW, spec)
        return bool(status.get("allowed")) and not status.get("denied", False)

    async def _review(self, kind: Kind, spec: Object) -> Object:
        """The status of a review, which is asked for over connections of its own."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "spec": spec}
        status: Object = (await self._call("POST", kind.path(), body, session=self._reviews)).get("status", {})
        return status

    async def token_request(
        self, namespace: str, service_account: str, audiences: Sequence[str] = (), ttl: int = 3600
    ) -> tuple[str, datetime]:
        """Mint a token of a ServiceAccount for `ttl` seconds (600 at least); gives it with its end.

        https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/.
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": list(audiences), "expirationSeconds": ttl},
        }
        path = SERVICE_ACCOUNT.path(namespace, service_account, "token")
        status = (await self._call("POST", path, body))["status"]
        return status["token"], datetime.fromisoformat(status["expirationTimestamp"])


def _only(name: str) -> dict[str, str]:
    """The parameter for a list or watch of this one object; none for all."""
    return {"fieldSelector": f"metadata.name={name}"} if name else {}


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    """Lines of any length: aiohttp's own iteration refuses long ones."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line
        if len(rest) > _MAX_LINE:
            raise ValueError("an event of a watch is too large")


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__
