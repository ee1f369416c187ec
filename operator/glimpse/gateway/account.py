"""The account of one upload: an ImageUpload, which says how far it is, who has it in hand, and what becomes of it.

In the API server, since every replica of the gateway and the operator must know, and only the operator writes the
status of an Image.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from glimpse.api.base import GROUP, VERSION
from glimpse.api.image import Image
from glimpse.api.upload import ImageUpload, UploadFailure
from glimpse.gateway.refusals import Refusal, away, said
from glimpse.kube import IMAGE, UPLOAD, ApiError, Conflict, Forbidden, Gone, Kube, Object
from glimpse.problems import Problem

log: Final = logging.getLogger(__name__)


class Taken(Gone):
    """It is in other hands."""


class Account:
    """What is said of one upload, by the one replica that has it in hand."""

    def __init__(self, kube: Kube, obj: Object) -> None:
        """As the object is now, which we hold."""
        self._kube = kube
        self._obj = obj
        upload = ImageUpload.model_validate(obj)
        self.uid, self.name, self.spec = upload.metadata.uid, upload.metadata.name, upload.spec
        self.namespace = upload.metadata.namespace
        self.offset = upload.status.offset or 0
        self.status = upload.status.but(observed_generation=upload.metadata.generation)
        self._holder = upload.status.holder
        self._turn = asyncio.Lock()

    @classmethod
    async def create(cls, kube: Kube, found: Image, spec: Mapping[str, Any]) -> Self:
        """Of a new upload for this Image, with these further members of its spec. Raises Refusal."""
        meta = found.metadata
        body: Object = {
            "metadata": {
                "name": f"{meta.name[:50].rstrip('-.')}-{secrets.token_hex(5)}",
                "namespace": meta.namespace,
                "ownerReferences": [
                    {"apiVersion": f"{GROUP}/{VERSION}", "kind": IMAGE.kind, "name": meta.name, "uid": meta.uid}
                ],
                "labels": {
                    "app.kubernetes.io/name": "glimpse",
                    "app.kubernetes.io/component": "upload",
                    "app.kubernetes.io/part-of": "glimpse",
                    "app.kubernetes.io/managed-by": "glimpse",
                },
            },
            "spec": {"image": meta.name, "imageUID": meta.uid}
            | {name: value for name, value in spec.items() if value not in (None, [])},
        }
        try:
            return cls(kube, await kube.create(UPLOAD, body, meta.namespace))
        except Forbidden as error:
            log.warning("no upload can be begun in %s: %s", meta.namespace, error.message)
            text = f"Kubernetes lets no upload begin in the namespace {meta.namespace}, by a quota or a policy that an "
            raise Refusal(403, f"{text}administrator finds in the gateway's log.") from error
        except ApiError as error:
            raise away() from error

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """It ends with the block if that fails: as what has happened there."""
        try:
            yield
        except BaseException as error:
            if self.status.outcome != "Stored":
                self.fail(error)
                with suppress(ApiError):
                    await asyncio.shield(self.write())
            raise

    async def write(self) -> None:
        """Write down what is said. Raises Taken, Gone if the upload is over, ApiError."""
        async with self._turn:
            while True:
                holder, words = self.status.holder, self.status.dump()
                try:
                    self._obj = await self._kube.patch_status(UPLOAD, self._obj, words, exact=True)
                except Conflict:
                    self._obj = await self._kube.get(UPLOAD, self.name, self.namespace)
                    now = ImageUpload.model_validate(self._obj)
                    if now.metadata.uid == self.uid and now.status.dump() == words:
                        self._holder = holder  # the answer to it was lost, and it was said again
                        return
                    if now.metadata.uid != self.uid or now.status.outcome == "Failed":
                        raise Gone(f"the upload {self.name} is over") from None
                    if now.status.outcome or now.status.holder != self._holder:
                        raise Taken(f"the upload {self.name} is in other hands") from None
                else:
                    self._holder = holder
                    return

    def renew(self, *, lives: timedelta | None = None, held: timedelta | None = None) -> None:
        """How far it is; and until when it lives without another word, or is held. Nothing once it has an outcome."""
        if self.status.outcome:
            return
        now, size = datetime.now(UTC), self.spec.size
        self.status = self.status.but(offset=self.offset, progress=f"{100 * self.offset // size}%" if size else None)
        if lives is not None:
            self.status = self.status.but(expires_at=now + lives)
        if held is not None:
            self.status = self.status.but(held_until=now + held)

    def release(self) -> None:
        """Nobody has it in hand from now on."""
        self.status = self.status.but(holder=None, held_until=datetime.now(UTC), asked_by=None)

    def store(self, revision: int, kept: timedelta) -> None:
        """All has come, and is to be this revision. `kept`: how long that is still to be said."""
        self.release()
        self.renew(lives=kept)
        self.status = self.status.but(outcome="Stored", revision=revision)

    def fail(self, error: BaseException) -> None:
        """Nothing comes of it."""
        if self.status.outcome:
            return
        reason, message = "UploadFailed", f"it broke off after {self.offset} bytes"
        if isinstance(error, Problem):
            reason, message = error.reason, said(error.reason, error.message)
        elif isinstance(error, Refusal):
            message = error.detail.removesuffix(".")  # the Image's message goes on after it
        failure = UploadFailure(reason=reason, message=message[:2048])
        self.release()
        self.status = self.status.but(outcome="Failed", failure=failure, expires_at=datetime.now(UTC))
