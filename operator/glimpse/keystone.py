"""Logins at OpenStack's Keystone, and sessions that trust only what they are told.

Swift and Cinder are reached alike. Nothing implicit is read (proxies, netrc, bundles of certificates), and
authorities are given in memory, since a worker reads few files.
"""

import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glimpse.problems import SecretNotReadable

Login = Callable[[], Any]
"""Makes a plugin for keystoneauth."""


def needed(secret: Mapping[str, str], key: str, store: str) -> str:
    """A key of the Secret of a store of that kind. Raises SecretNotReadable."""
    if not secret.get(key):
        raise SecretNotReadable(f"key {key!r} of the store's Secret is missing; {store} needs it here")
    return secret[key]


def login(auth_url: str, secret: Mapping[str, str], store: str, *, project: str | None = None) -> Login:
    """By application credential if the Secret has one, else by password (Identity API v3).

    `project` is the name of the project; without it the Secret has that. Raises SecretNotReadable now, if a key is
    missing.
    """
    url = auth_url.rstrip("/")
    url += "" if url.endswith("/v3") else "/v3"
    if name := secret.get("applicationCredentialID"):
        word = needed(secret, "applicationCredentialSecret", store)

        def credential() -> Any:
            from keystoneauth1.identity import v3

            return v3.ApplicationCredential(url, application_credential_id=name, application_credential_secret=word)

        return credential
    user, word = needed(secret, "username", store), needed(secret, "password", store)
    project = project or needed(secret, "projectName", store)

    def password() -> Any:
        from keystoneauth1.identity import v3

        return v3.Password(
            url,
            username=user,
            password=word,
            project_name=project,
            user_domain_name=secret.get("userDomainName") or "Default",
            project_domain_name=secret.get("projectDomainName") or "Default",
        )

    return password


def private(session: Any, schemes: Sequence[str], ca_bundle: str | None, *, connections: int, **pool: Any) -> Any:
    """Make that a session of requests reads no environment, follows no redirect, and speaks these schemes only.

    With a bundle it trusts those authorities, in PEM, and else the machine's. `connections` are kept at most; `pool`
    are further options of urllib3's. Raises ssl.SSLError if the bundle cannot be read.
    """
    from requests.adapters import HTTPAdapter

    # urllib3 would trust the authorities of certifi besides, were they not left out here.
    class Adapter(HTTPAdapter):
        def cert_verify(self, *_: Any, **__: Any) -> None:
            pass

        def build_connection_pool_key_attributes(self, *arguments: Any, **named: Any) -> Any:
            host, pool = super().build_connection_pool_key_attributes(*arguments, **named)
            for name in ("cert_reqs", "ca_certs", "ca_cert_dir"):
                pool.pop(name, None)
            return host, pool

    session.adapters.clear()
    for scheme in schemes:
        # 30 ms for the authorities of a machine
        context = ssl.create_default_context(cadata=ca_bundle) if scheme == "https" else None
        adapter = Adapter(max_retries=0)
        adapter.init_poolmanager(connections, connections, ssl_context=context, **pool)
        session.mount(f"{scheme}://", adapter)
    session.trust_env = False
    session.max_redirects = 0
    return session
