"""How to reach the API server, and as whom.

Tokens, certificates and exec plugins rotate under a process that runs for months, so every connection asks here and
nothing else keeps a credential. One session serves our own client and kopf alike.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml
from yarl import URL

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/."""
_LOOK_AGAIN: Final = 60.0
"""Seconds between two looks at the files; the kubelet renews a token at 80 % of at least ten minutes."""
_LOOK_AGAIN_REFUSED: Final = 1.0
"""The same after a 401."""


class LoginError(Exception):
    """There is no usable way to the API server. The message names the file or variable, never a credential."""


@dataclass(frozen=True, slots=True)
class _Found:
    server: str
    ca: str | None = None
    authorization: str | None = None
    certificate: tuple[str, str] | None = None
    proxy: str | None = None

    def __repr__(self) -> str:
        return f"_Found({self.server})"


class Login:
    """Where the API server is, and the credentials of the moment."""

    def __init__(self, look: Callable[[bool], Awaitable[_Found]], found: _Found, context: ssl.SSLContext) -> None:
        self._look = look
        self._found = found
        self._context = context
        self._trusted: dict[str, bytes] = {}
        self._looked = time.monotonic()
        self._lock = asyncio.Lock()

    @property
    def server(self) -> str:
        """The API server's address, without a slash at the end."""
        return self._found.server

    @classmethod
    async def load(cls, kubeconfig: Path | None = None, token_file: Path | None = None) -> "Login":
        """Log in by a kubeconfig, or else by the pod's service account; `token_file` replaces the pod's token.

        Raises LoginError. The variable KUBECONFIG is never looked at.
        """

        async def look(again: bool) -> _Found:
            try:
                return await kubeconfigs.look(again) if kubeconfigs else await asyncio.to_thread(_pod, token_file)
            except OSError as error:
                raise LoginError(f"{error.filename}: {error.strerror}") from error

        kubeconfigs = _Kubeconfig(kubeconfig) if kubeconfig else None
        found = await look(False)
        url = URL(found.server)
        if url.scheme != "https" and (found.authorization or url.scheme != "http"):
            raise LoginError(f"{found.server}: credentials go to https only")
        login = cls(look, found, ssl.create_default_context())
        if found.ca:
            login._context = ssl.create_default_context(cafile=found.ca)
        login._trust(found)
        return login

    def session(
        self, *, connections: int = 32, response_class: type[aiohttp.ClientResponse] = aiohttp.ClientResponse
    ) -> aiohttp.ClientSession:
        """A session whose requests to the API server carry the credentials of the moment. The caller closes it.

        `connections`: how many at once, 0 for no limit.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=self._context),
            middlewares=(self._authorize,),
            proxy=self._found.proxy,
            headers={"User-Agent": f"glimpse/{version('glimpse')}", "Accept": "application/json"},
            response_class=response_class,
            trust_env=False,
        )

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if request.url.origin() != URL(self.server).origin():
            return await handler(request)
        sent = await self._authorization(_LOOK_AGAIN)
        if sent:
            request.headers["Authorization"] = sent
        response = await handler(request)
        if response.status == 401 and (now := await self._authorization(_LOOK_AGAIN_REFUSED)) != sent and now:  # noqa: PLR2004 - HTTP
            response.release()
            request.headers["Authorization"] = now
            response = await handler(request)
        return response

    async def _authorization(self, age: float) -> str | None:
        if time.monotonic() - self._looked >= age:
            async with self._lock:
                if time.monotonic() - self._looked >= age:
                    # What cannot be read just now, as a file in the middle of its rotation, leaves what we have.
                    try:
                        self._found = await self._look(age == _LOOK_AGAIN_REFUSED)
                        self._trust(self._found)
                    except (LoginError, OSError, ssl.SSLError):
                        pass
                    self._looked = time.monotonic()
        return self._found.authorization

    def _trust(self, found: _Found) -> None:
        """Take changed files into the context that open sessions use; new connections see them."""
        for path in filter(None, (found.ca, *(found.certificate or ()))):
            held = Path(path).read_bytes()
            if self._trusted.get(path) == held:
                continue
            if path == found.ca:
                self._context.load_verify_locations(cafile=path)
            elif found.certificate:
                self._context.load_cert_chain(*found.certificate)
            self._trusted[path] = held


def _pod(token_file: Path | None) -> _Found:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise LoginError("neither a kubeconfig (GLIMPSE_KUBECONFIG) nor a pod's KUBERNETES_SERVICE_HOST is set")
    host = f"[{host}]" if ":" in host else host
    token = (token_file or _ACCOUNT / "token").read_text().strip()
    if not token:
        raise LoginError(f"{token_file or _ACCOUNT / 'token'} is empty")
    return _Found(f"https://{host}:{port}", ca=str(_ACCOUNT / "ca.crt"), authorization=f"Bearer {token}")


class _Kubeconfig:
    """A kubeconfig, read by the `kubernetes` package: token, tokenFile, certificates, exec and OIDC."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._plugin: Any = None

    async def look(self, again: bool) -> _Found:
        """Read it. A plugin is asked only when its credentials end, or `again`."""
        await asyncio.to_thread(self._path.read_bytes)  # says which file is missing, and why
        # Some 20 MB and a second: only for those who have a kubeconfig.
        config = await asyncio.to_thread(__import__, "kubernetes.aio.config", fromlist=["kube_config"])
        client = await asyncio.to_thread(__import__, "kubernetes.aio.client", fromlist=["Configuration"])
        target = client.Configuration()
        try:
            if self._plugin is not None and not again:
                await self._plugin.load_and_set(target)
            else:
                loader = await config.load_kube_config(
                    config_file=str(self._path), client_configuration=target, persist_config=False
                )
                plugged = loader._user is not None and "exec" in loader._user  # noqa: SLF001 - it offers no other way
                self._plugin = loader if plugged else None
        except yaml.YAMLError as error:
            raise LoginError(f"{self._path} is not YAML") from error
        except (config.ConfigException, AttributeError, KeyError, TypeError, ValueError) as error:
            raise LoginError(f"{self._path} is not a usable kubeconfig: {error}") from error
        authorization = target.api_key.get("BearerToken")
        certificate = (target.cert_file, target.key_file) if target.cert_file and target.key_file else None
        if self._plugin is not None and not (authorization or certificate):
            raise LoginError(f"{self._path}: the exec plugin gave no credentials")
        if not target.verify_ssl:
            raise LoginError(f"{self._path}: insecure-skip-tls-verify is refused; name the certificate-authority")
        if getattr(target, "tls_server_name", None):
            raise LoginError(f"{self._path}: tls-server-name is not supported")
        return _Found(
            server=target.host.rstrip("/"),
            ca=target.ssl_ca_cert,
            authorization=authorization.strip() if authorization else None,
            certificate=certificate,
            proxy=target.proxy,
        )
