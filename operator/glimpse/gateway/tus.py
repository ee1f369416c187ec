"""Uploads in parts by tus 1.0 (https://tus.io/protocols/resumable-upload): how its requests and headers are read.

Core, creation, creation-with-upload, checksum, termination and expiration. What a request means is done by the session;
the rules of an upload in one request hold here too.
"""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Final

from aiohttp import web

from glimpse.api.upload import METADATA_LENGTH
from glimpse.gateway.account import Account
from glimpse.gateway.grant import understood
from glimpse.gateway.intake import Intake, Wanted, go_on, wait
from glimpse.gateway.paths import ALL_UPLOADS, UPLOAD, UPLOADS, image
from glimpse.gateway.refusals import MISMATCH, SOON, Refusal, away
from glimpse.gateway.said import digests
from glimpse.gateway.session import Session
from glimpse.gateway.sessions import Sessions
from glimpse.gateway.turns import Turns
from glimpse.kube import ApiError
from glimpse.problems import Problem
from glimpse.stores import Resumable, open_store
from glimpse.tasks import Fetch, StoreRef

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,creation-with-upload,checksum,termination,expiration"
ALGORITHMS: Final = ("sha1", "sha256", "sha512", "md5")
"""Of a part's checksum; tus wants the first."""
CHECKED: Final = 16 << 20
"""Bytes of a part with a checksum, at most: they are kept back until it is known to be right ..."""
CHECKING: Final = 4
"""... for so many senders at once, half of them of one namespace ..."""
TURN: Final = 10.0
"""... who wait for so many seconds."""
PART: Final = "application/offset+octet-stream"
WHERE: Final = ("namespace", "image")
"""Keys of `Upload-Metadata` that say for which image an upload is, where the address does not."""

_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_PAIR: Final = re.compile(r"([!-+\--~]{1,128})(?: ([A-Za-z0-9+/]*={0,2}))?")
_PAIRS: Final = 32
_OVERRIDE: Final = "X-HTTP-Method-Override"

_Handler = Callable[[web.Request], Awaitable[web.Response]]


class Tus:
    """The handlers of uploads in parts."""

    def __init__(self, intake: Intake, sessions: Sessions) -> None:
        self._intake, self._sessions = intake, sessions
        self._checking = Turns(CHECKING)

    def routes(self) -> list[web.RouteDef]:
        """Where uploads begin, and each of them."""
        return [
            web.options(ALL_UPLOADS, self._options),
            web.options(UPLOADS, self._options),
            web.options(UPLOAD, self._options),
            web.post(ALL_UPLOADS, _spoken(self._create_said), expect_handler=wait),
            web.post(UPLOADS, _spoken(self._create), expect_handler=wait),
            web.head(UPLOAD, _spoken(self._look)),
            web.patch(UPLOAD, _spoken(self._patch), expect_handler=wait),
            web.delete(UPLOAD, _spoken(self._end)),
            web.post(UPLOAD, _spoken(self._override), expect_handler=wait),
        ]

    async def _options(self, _request: web.Request) -> web.Response:
        headers = {
            "Tus-Resumable": VERSION,
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(self._intake.settings.limits.image_size),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        }
        return web.Response(status=204, headers=headers)

    async def _override(self, request: web.Request) -> web.Response:
        """For clients that can only POST."""
        handlers: dict[str, _Handler] = {"PATCH": self._patch, "DELETE": self._end, "HEAD": self._look}
        handler = handlers.get(request.headers.get(_OVERRIDE, ""))
        if not handler:
            raise Refusal(405, f"POST to an upload takes a header {_OVERRIDE}: {', '.join(handlers)}.")
        return await handler(request)

    async def _create(self, request: web.Request) -> web.Response:
        return await self._begin(request, *image(request.match_info["namespace"], request.match_info["name"]))

    async def _create_said(self, request: web.Request) -> web.Response:
        """For clients that know one address: they say in `Upload-Metadata` for which image it is."""
        said = _pairs(_metadata(request))
        namespace, name = (said.get(key, b"").decode(errors="replace") for key in WHERE)
        if not namespace or not name:
            raise Refusal(400, f"Upload-Metadata says here for which image it is, in base64: {' and '.join(WHERE)}.")
        return await self._begin(request, *image(namespace, name))

    async def _begin(self, request: web.Request, namespace: str, name: str) -> web.Response:
        caller = await self._intake.may(request, namespace, name)
        part = _part(request) if request.can_read_body and request.content_length != 0 else None
        wanted, metadata = _wanted(request, namespace, name), _metadata(request)
        refuse = partial(self._intake.refuse, request, caller, wanted)
        with self._intake.catalog.followers.follow(namespace, name) as followed:
            followed.learn(await self._intake.read(namespace, name))
            image_now = understood(followed.obj)
            await refuse(image_now)
            if names := image_now.spec.stores or tuple(store.name for store in image_now.status.stores):
                keep_parts(await self._intake.stores(wanted, names))
            spec = {
                "size": wanted.size,
                "resumable": True,
                "digests": [f"{algorithm}:{value}" for algorithm, value in wanted.said],
                "metadata": metadata,
            }
            async with self._intake.beginnings.begin(followed, spec, refuse, self._alive) as (account, grant, found):
                fits(await self._intake.task(wanted, found, grant.pending, account.uid))
        where = f"/v1/namespaces/{namespace}/images/{name}/uploads/{account.name}"
        headers = {"Location": where}
        if not part:
            return _answer(201, headers | _expires(account.status.expires_at))
        try:
            async with self._sessions.turn(namespace, name, account.name) as session:
                await self._take(request, session, namespace, part)
                return _answer(201, headers | _state(session))
        except Refusal as refusal:
            refusal.headers |= headers  # it is there, and can be gone on with
            raise

    @asynccontextmanager
    async def _alive(self, account: Account) -> AsyncIterator[None]:
        account.renew(lives=timedelta(seconds=self._intake.settings.uploads.expiry), held=timedelta(0))
        try:
            await account.write()
        except ApiError as error:
            raise away() from error
        yield

    async def _look(self, request: web.Request) -> web.Response:
        """How much has come: what is in the hands of a worker, or else what a store has kept."""
        namespace, name, upload = await self._asked(request)
        if session := self._sessions.sending(namespace, name, upload):
            return _described(session)
        async with self._sessions.turn(namespace, name, upload) as session:
            return _described(session)

    async def _patch(self, request: web.Request) -> web.Response:
        namespace, name, upload = await self._asked(request)
        part, given = _part(request), _number(request, "Upload-Offset")
        async with self._sessions.turn(namespace, name, upload) as session:
            if given != session.offset:
                text = f"The upload goes on at byte {session.offset}, not at {given}."
                raise Refusal(409, text, {"Upload-Offset": str(session.offset)})
            if not session.entry:
                await self._take(request, session, namespace, part)
            elif request.content_length:
                raise _too_many(0)
            return _answer(204, _state(session))

    async def _end(self, request: web.Request) -> web.Response:
        namespace, name, upload = await self._asked(request)
        async with self._sessions.turn(namespace, name, upload, opened=False) as session:
            if session.entry:
                text = f"The upload is complete, as revision {session.entry.revision}: there is nothing to end."
                raise Refusal(409, text)
            await session.end()
        return _answer(204, {})

    async def _asked(self, request: web.Request) -> tuple[str, str, str]:
        """Which upload of which image the caller means, who may upload. Raises Refusal."""
        match = request.match_info
        namespace, name = image(match["namespace"], match["name"])
        await self._intake.may(request, namespace, name)
        return namespace, name, match["upload"]

    async def _take(self, request: web.Request, session: Session, tenant: str, checksum: tuple[str, bytes]) -> None:
        """Hand a body on. What has come of one that breaks off is kept, unless it has a checksum."""
        assert session.account  # noqa: S101 - it was taken
        left = (session.account.spec.size or 0) - session.offset
        if request.content_length is not None and request.content_length > left:
            raise _too_many(left)
        if checksum[0]:
            if not await self._checking.wait(tenant, TURN):
                raise Refusal(503, "Too many parts with a checksum are under way here.", retry_after=SOON)
            try:
                await self._checked(request, session, left, checksum)
            finally:
                self._checking.leave(tenant)
        else:
            async with self._intake.patience() as patience:
                session.patience = patience
                await go_on(request)
                while chunk := await patience.chunk(request):
                    if len(chunk) > left:
                        raise _too_many(left)
                    left -= len(chunk)
                    await session.write(chunk)
        session.patience = None
        if session.complete:
            await session.finish()

    async def _checked(self, request: web.Request, session: Session, left: int, checksum: tuple[str, bytes]) -> None:
        """The same of a part that is handed on only if it is what it must be."""
        algorithm, expected = checksum
        text = f"A part with a checksum has at most {CHECKED} bytes: send smaller ones, or leave Upload-Checksum out."
        if (request.content_length or 0) > CHECKED:
            raise Refusal(413, text)
        digest, data = hashlib.new(algorithm, usedforsecurity=False), bytearray()
        async with self._intake.patience() as patience:
            session.patience = patience
            await go_on(request)
            while chunk := await patience.chunk(request):
                data += chunk
                if len(data) > left:
                    raise _too_many(left)
                if len(data) > CHECKED:
                    raise Refusal(413, text)
                digest.update(chunk)
        if digest.digest() != expected:
            raise Refusal(
                MISMATCH[0], f"These bytes have not the {algorithm} digest of Upload-Checksum; send them again."
            )
        if data:
            await session.write(bytes(data))


def _spoken(handler: _Handler) -> _Handler:
    """Each answer says the version of the protocol, and each request must."""

    async def handle(request: web.Request) -> web.Response:
        if request.headers.get("Tus-Resumable") != VERSION:
            text = f"Uploads in parts speak tus {VERSION}: send the header Tus-Resumable: {VERSION}."
            raise Refusal(412, text, {"Tus-Resumable": VERSION, "Tus-Version": VERSION})
        try:
            return await handler(request)
        except Refusal as refusal:
            refusal.headers["Tus-Resumable"] = VERSION
            raise

    return handle


def _answer(status: int, headers: dict[str, str]) -> web.Response:
    return web.Response(status=status, headers={"Tus-Resumable": VERSION, "Cache-Control": "no-store"} | headers)


def _described(session: Session) -> web.Response:
    """All that is known of it."""
    assert session.account  # noqa: S101 - it was taken
    spec = session.account.spec
    headers = {"Upload-Length": str(spec.size)} | _state(session)
    return _answer(200, headers | ({"Upload-Metadata": spec.metadata} if spec.metadata else {}))


def _state(session: Session) -> dict[str, str]:
    """How far it is; at its end what it has become."""
    assert session.account  # noqa: S101 - it was taken
    headers = {"Upload-Offset": str(session.offset)}
    if entry := session.entry:
        return headers | {"ETag": f'"{entry.digest}"'}
    return headers | _expires(session.account.status.expires_at)


def _expires(at: datetime | None) -> dict[str, str]:
    return {"Upload-Expires": format_datetime(at, usegmt=True)} if at else {}


def _too_many(left: int) -> Refusal:
    return Refusal(413, f"Of this upload {left} bytes are missing, and there are more of them in this request.")


def _number(request: web.Request, header: str) -> int:
    value = request.headers.get(header, "")
    if not _NUMBER.fullmatch(value):
        raise Refusal(400, f"{header} must be a number of bytes.")
    return int(value)


def _part(request: web.Request) -> tuple[str, bytes]:
    """The checksum that a body must have: algorithm and digest; empty ones if there is none. Raises Refusal."""
    if request.headers.get("Content-Type", "").strip().lower() != PART:
        raise Refusal(415, f"A part of an upload has the Content-Type {PART}.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(415, "Send the bytes as they are, without Content-Encoding; a compressed file is unpacked.")
    if (header := request.headers.get("Upload-Checksum")) is None:
        return "", b""
    algorithm, _, value = header.partition(" ")
    if algorithm not in ALGORITHMS:
        raise Refusal(400, f"Upload-Checksum is an algorithm of {', '.join(ALGORITHMS)}, a space, and base64.")
    digest = _base64(value) or b""
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise Refusal(400, f"The {algorithm} digest in Upload-Checksum has another length.")
    return algorithm, digest


def _wanted(request: web.Request, namespace: str, name: str) -> Wanted:
    if "Upload-Defer-Length" in request.headers or "Upload-Length" not in request.headers:
        raise Refusal(400, "Say the length of the whole in Upload-Length: it cannot be said later.")
    if not (size := _number(request, "Upload-Length")):
        raise Refusal(400, "There are no bytes in this upload.")
    return Wanted(namespace, name, size, tuple(digests(request.headers.get("Repr-Digest")).items()))


def _metadata(request: web.Request) -> str | None:
    """What the sender says of its file, as it says it. Raises Refusal for what is no metadata, or too much."""
    header = request.headers.get("Upload-Metadata", "").strip()
    count = header.count(",") + 1 if header else 0
    if len(header) > METADATA_LENGTH or count > _PAIRS or count > len(_pairs(header)):
        text = f"Upload-Metadata has at most {METADATA_LENGTH} characters and {_PAIRS} keys, each of them once."
        raise Refusal(400, text)
    return header or None


def _pairs(header: str | None) -> dict[str, bytes]:
    """What stands in it. Raises Refusal."""
    found = dict[str, bytes]()
    for pair in header.split(",") if header else ():
        match = _PAIR.fullmatch(pair.strip())
        if not match or (value := _base64(match[2] or "")) is None:
            raise Refusal(400, "Upload-Metadata has pairs of a key and base64, with commas between them.")
        found[match[1]] = value
    return found


def _base64(text: str) -> bytes | None:
    """What is in it; None if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def keep_parts(refs: Sequence[StoreRef]) -> None:
    """Raises Refusal if none of these stores can keep a part of an image."""
    for ref in refs:
        try:
            if isinstance(open_store(ref).driver, Resumable):
                return
        except Problem:
            continue  # its put will say why
    names = ", ".join(ref.name for ref in refs)
    text = f"None of the stores {names} can keep a part of an image: send it in one request with PUT, or name in "
    raise Refusal(409, f"{text}spec.stores one that can (filesystem, rbd, swift).")


def fits(task: Fetch) -> None:
    """Raises Refusal if none of the stores can take an upload in parts, of this size."""
    keep_parts(task.stores)
    size = task.origin.size if task.origin.kind == "upload" else None
    if size and not task.convert_to and not any(_room(ref, size) for ref in task.stores):
        raise Refusal(413, "None of the stores takes so many bytes of this namespace: by maxImageSize or its quota.")


def _room(ref: StoreRef, size: int) -> bool:
    """Whether a store's limits let an image of this size in."""
    most = [ref.max_image_size] if ref.max_image_size is not None else []
    most += [ref.share.limit - ref.share.used] if ref.share else []
    return all(size <= each for each in most)
