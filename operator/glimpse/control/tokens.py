"""The gateway's token, where it runs beside the operator in one pod.

Such a gateway mounts no token of the pod, which would be the operator's; it reads the one that is minted here for
its own ServiceAccount, from a volume that both share.
"""

import asyncio
import contextlib
import logging
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from glimpse.kube import ApiError, Kube
from glimpse.settings import Settings

log = logging.getLogger(__name__)

_LIFE: Final = 3600
"""Seconds that a token lives."""
_RETRY: Final = 10.0
"""Seconds to the next try after a failure."""


class GatewayToken:
    """Keeps the token's file fresh. Without `gateway_token_file` it does nothing."""

    def __init__(self, kube: Kube, settings: Settings) -> None:
        self._kube = kube
        self._namespace = settings.namespace
        self._account = settings.gateway_service_account
        self._file = settings.gateway_token_file
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        if self._file:
            self._task = asyncio.create_task(self._run(self._file), name="gateway token")

    async def close(self) -> None:
        """Stop; the file stays, with a token that ends by itself."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, file: Path) -> None:
        while True:
            delay = await self._renew(file)
            await asyncio.sleep(delay)

    async def _renew(self, file: Path) -> float:
        """Mint and write once; seconds to the next time: two thirds of the token's life."""
        try:
            token, end = await self._kube.token_request(self._namespace, self._account, ttl=_LIFE)
            await asyncio.to_thread(write, file, token)
        except (ApiError, OSError) as error:
            log.warning("the gateway's token was not renewed: %s", error)
            return _RETRY
        log.debug("the gateway's token lives until %s", end.isoformat())
        return max(_RETRY, (end - datetime.now(UTC)).total_seconds() * 2 / 3)


def write(file: Path, token: str) -> None:
    """Replace the file at once, readable by its owner and group (0640). Raises OSError; then the old file stands."""
    fd, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(fd, "w") as out:
            out.write(token)
            os.fchmod(out.fileno(), 0o640)
        Path(fresh).replace(file)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
