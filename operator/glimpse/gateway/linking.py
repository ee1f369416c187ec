"""Links on demand: the handler that signs one for a caller who may download the image."""

import asyncio
import json
import math
import time
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from aiohttp import web
from pydantic import Field, ValidationError

from glimpse.api.base import Duration, Model
from glimpse.gateway.admission import Admission
from glimpse.gateway.links import OFF, Links, Terms
from glimpse.gateway.paths import LINKS, image
from glimpse.gateway.refusals import Refusal, sentence
from glimpse.given import wrong

LIFE: Final = 3600.0
"""Seconds that a link lives if nothing else is asked for."""
BODY: Final = 4096
"""Bytes of the largest request."""


class Wish(Model):
    """What a caller asks for; everything has a default."""

    model_config = Model.model_config | {"extra": "forbid"}

    expires_in: Duration | None = None
    revision: Annotated[int, Field(ge=0, lt=10**18)] | None = None
    """The served one, if it is not said."""
    uid: Annotated[str, Field(max_length=64)] | None = None
    """Of the Image, if the caller wants to be sure."""
    method: Literal["GET", "HEAD"] = "GET"


_KNOWN: Final = tuple(field.alias or name for name, field in Wish.model_fields.items())
_FIELD: Final = 64
"""Characters of a field's name that are shown."""


class Linking:
    """The handler of links on demand."""

    def __init__(self, admission: Admission, links: Links, *, patience: float) -> None:
        """`patience`: seconds that a body may take."""
        self._admission, self._links, self._patience = admission, links, patience

    def routes(self) -> list[web.RouteDef]:
        """POST of a wish for a link."""
        return [web.post(LINKS, self._make)]

    async def _make(self, request: web.Request) -> web.Response:
        where = image(request.match_info["namespace"], request.match_info["name"])
        await self._admission.right(request, *where)
        if self._links.maximum <= 0:
            raise Refusal(403, OFF)
        wish = await self._wish(request)
        life = self._life(wish)
        entry, revision = await self._admission.active(*where, wish.revision, wish.uid)
        expires = math.ceil(time.time() + life)
        url = await self._links.url(Terms(wish.method, *where, entry.uid, revision.number, expires))
        said = {"expiresAt": f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}", "url": url}
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return web.json_response(said, status=201, headers=headers)

    def _life(self, wish: Wish) -> float:
        most = self._links.maximum
        life = min(LIFE, most) if wish.expires_in is None else wish.expires_in
        if not 1 <= life <= most:
            raise Refusal(400, f"expiresIn must be from 1s to {most:.15g}s here.")
        return life

    async def _wish(self, request: web.Request) -> Wish:
        body = b""
        try:
            async with asyncio.timeout(self._patience):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > BODY:
                        raise Refusal(413, f"The body may have at most {BODY} bytes.")
        except TimeoutError:
            raise Refusal(408, "The body took too long.") from None
        try:
            return Wish.model_validate(json.loads(body) if body.strip() else {})
        except ValidationError as error:
            fault = error.errors()[0]
            field = str(fault["loc"][0])[:_FIELD] if fault["loc"] else "body"
            known = f" Known are {', '.join(_KNOWN)}." if fault["type"] == "extra_forbidden" else ""
            raise Refusal(400, sentence(f"{field}: {wrong(fault)}") + known) from None
        except (ValueError, RecursionError):
            raise Refusal(400, "The body must be a JSON object, or empty.") from None
