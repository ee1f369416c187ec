"""nginx, serving a folder on loopback.

The yardstick of the bench and the mirror of the demo: what a real, fast web server does with the same file.
"""

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import trustme

from servers import Server, ServerError, tool, wait_until

_CONFIG: Final = """
{user}
daemon off;
worker_processes 1;
error_log stderr;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  default_type application/octet-stream;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  server {{
    listen 127.0.0.1:{port}{tls};
    location = /.ready {{ return 204; }}
    location / {{ root {root}; autoindex on; {rate} {login} }}
    {dav}
  }}
}}
"""
_DAV: Final = "dav_methods PUT; create_full_put_path on; client_max_body_size 0;"


@dataclass(frozen=True)
class Site:
    """A folder on the web."""

    url: str
    """Without a slash at the end."""
    root: Path
    """What lies here is served."""
    ca_file: Path | None
    """Who signed the certificate; None for plain HTTP."""


class Web(Server[Site]):
    """nginx. Over TLS if `ca` is given, with a certificate of it for 127.0.0.1 and localhost."""

    name: ClassVar[str] = "web"
    site: Site

    def __init__(
        self,
        folder: Path,
        *,
        root: Path | None = None,
        ca: trustme.CA | None = None,
        rate: int | None = None,
        dav: bool = False,
        login: tuple[str, str] | None = None,
        detached: bool = False,
    ) -> None:
        """`root`: the folder to serve, made if missing; by default `files` in the server's own.

        `rate`: bytes per second of one connection, at most; None: as fast as it goes.
        `dav`: whether files can be put into the folder `put`. `login`: user and password, without which it gives none.
        """
        super().__init__(folder, detached=detached)
        self._root = root or folder / "files"
        self._ca = ca
        self._rate = rate
        self._dav = dav
        self._login = login

    def start(self) -> Site:
        """Start nginx. Raises Missing, ServerError."""
        nginx = tool("nginx", "nginx-light")
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._root.mkdir(parents=True, exist_ok=True)
        # Started by root, nginx would serve as nobody, who may not enter a folder of root's.
        user = "user root root;" if os.geteuid() == 0 else ""
        ca_file, tls = None, ""
        if self._ca is not None:
            ca_file = self.folder / "ca.pem"
            self._ca.cert_pem.write_to_path(str(ca_file))
            pair = self.folder / "server.pem"
            self._ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(pair))
            tls = f" ssl; ssl_certificate {pair}; ssl_certificate_key {pair}"
        for attempt in (1, 2, 3):
            [port] = self.ports(1, fresh=attempt > 1)
            self.site = Site(f"http{'s' if tls else ''}://127.0.0.1:{port}", self._root, ca_file)
            config = self.folder / "nginx.conf"
            rate = f"limit_rate {self._rate};" if self._rate else ""
            dav = f"location /put/ {{ root {self._root}; {_DAV} }}" if self._dav else ""
            login = ""
            if self._login:
                (self.folder / "users").write_text("{}:{{PLAIN}}{}\n".format(*self._login))
                login = f"auth_basic site; auth_basic_user_file {self.folder}/users;"
            config.write_text(
                _CONFIG.format(
                    folder=self.folder,
                    root=self._root,
                    port=port,
                    tls=tls,
                    user=user,
                    rate=rate,
                    dav=dav,
                    login=login,
                )
            )
            process = self.spawn("nginx", [nginx, "-e", "stderr", "-p", self.folder, "-c", config])
            try:
                wait_until("nginx", self.ready, timeout=10, alive=[process])
            except BaseException as error:
                self.stop()
                if isinstance(error, ServerError) and attempt < 3 and "in use" in str(error):
                    continue
                raise
            return self.site
        raise AssertionError

    def ready(self) -> bool:
        """Whether it answers."""
        context = ssl.create_default_context(cafile=self.site.ca_file) if self.site.ca_file else None
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if context:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        try:
            with urllib.request.build_opener(*handlers).open(f"{self.site.url}/.ready", timeout=5) as answer:
                return bool(answer.status == 204)
        except OSError:
            return False

    def describe(self) -> dict[str, str]:
        """Address and folder."""
        return {"url": self.site.url, "folder": str(self.site.root)}

    def state(self) -> dict[str, Any]:
        """The address and the folder."""
        return {"url": self.site.url, "root": str(self.site.root), "ca": str(self.site.ca_file or "")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the address and the folder."""
        self._root = Path(state["root"])
        self.site = Site(state["url"], self._root, Path(state["ca"]) if state["ca"] else None)
