"""All settings of an installation, one model for all three programs.

One place with units and defaults, so that docs, chart and code cannot disagree. Each field is set by the
environment variable `GLIMPSE_<NAME>`; members of a group by `GLIMPSE_<GROUP>__<NAME>`; lists are JSON.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Network = IPv4Network | IPv6Network
_HOST: Final = re.compile(r"[.]?[a-z0-9_-]+([.][a-z0-9_-]+)*")
_SERVICE: Final = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_[0-9]+_|$)")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _host(text: str) -> str:
    name = text.lower().rstrip(".")
    if not _is_address(name) and not _HOST.fullmatch(name):
        raise ValueError("write a host as mirror.example, or as .example for all that end so; others in punycode")
    return name


def _name(text: str) -> str:
    name = _host(text)
    if _is_address(name):
        raise ValueError("an address has many spellings: name it as a network in deny")
    return name


def _ports(text: str) -> str:
    match = _PORTS.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= 65535:  # noqa: PLR2004 - the last port
        raise ValueError("write a port as 8080, or several as 8000-8999")
    return text


Host = Annotated[str, AfterValidator(_host)]
"""A host, or all that end so if it begins with a dot."""
Name = Annotated[str, AfterValidator(_name)]
"""The same, and no address."""
Ports = Annotated[str, BeforeValidator(str), AfterValidator(_ports)]
"""A port, or a range of them with both its ends."""


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be absolute")
    return path


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Addresses(_Group):
    """Where a tenant's URL may lead. Checked for every hop, after the name has been resolved."""

    allow: list[Network] = []
    """Networks that are allowed although the defaults deny them, as `["10.20.0.0/16"]`. `deny` wins."""
    deny: list[Network] = []
    """Networks that are denied besides the defaults. Name the cluster's service, pod and node ranges where `allow` has
    them, or where they are public; the operator adds the API server's addresses and its own. It does not add loopback:
    the defaults deny it, and `allow` opens it."""
    allow_names: list[str] = []
    """Names of inner services (`*.svc`, `*.cluster.local`, `*.internal`) that are allowed if their network is, as
    `["mirror.infra.svc"]`; one that begins with a dot allows all that end so."""
    allow_hosts: list[Host] = []
    """If any are given, only these hosts may be asked, as `["mirror.example", ".cdn.example"]`; one that begins with a
    dot allows all that end so. Name those that they redirect to as well, and proxies. It lifts no network."""
    deny_hosts: list[Name] = []
    """Hosts that may not be asked, in the same form; wins over `allow_hosts`. Aliases of them are refused too."""
    schemes: list[Literal["http", "https"]] = ["http", "https"]
    """Schemes of URLs that may be fetched."""
    ports: list[Ports] = ["80", "443", "1024-65535"]
    """Ports that may be connected to. Below 1024 are those of mail, names, files and logins, and no mirrors."""
    deny_ports: list[Ports] = [
        *("2375-2376", "2379-2380", "6379", "6443", "6665-6669", "9200", "10248-10259", "11211", "27017-27019"),
    ]
    """Ports that may not be connected to; wins over `ports`. The default has those of Docker, etcd, Redis, the API
    server, IRC, Elasticsearch, the kubelet and its siblings, memcached and MongoDB, which would answer, or obey."""


class Limits(_Group):
    """What one image, one namespace and the installation may use."""

    transfers: int = Field(default=8, ge=1)
    """Transfers at once, over all namespaces."""
    namespace_transfers: int = Field(default=4, ge=1)
    """Transfers at once in one namespace."""
    host_transfers: int = Field(default=8, ge=1)
    """Transfers at once from one host: that of the first URL of an image, whatever mirrors it has."""
    image_size: int = Field(default=1 << 40, ge=1)
    """The largest image, in bytes; of a compressed file also what comes out of it."""
    compression_ratio: int = Field(default=1000, ge=1)
    """Bytes that each byte of a compressed file may become, beyond the first 64 MiB. Blocks of zeros do not count: a
    disk that is mostly empty is no attack, and takes no more than `image_size`."""
    bandwidth: int = Field(default=0, ge=0)
    """Bytes per second that all transfers together may receive, whoever has more to fetch taking what others leave;
    0: any number."""


class Transfers(_Group):
    """How bytes are fetched."""

    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds to open a connection, TLS included."""
    idle_timeout: float = Field(default=60.0, gt=0)
    """Seconds that a connection may be silent before it counts as broken, and that the head of an answer may take."""
    minimum_rate: int = Field(default=1024, ge=0)
    """Bytes per second that a source must send, on average over `rate_window`, not to count as broken."""
    rate_window: float = Field(default=300.0, gt=0)
    """Seconds of waiting for a source over which `minimum_rate` is measured."""
    bandwidth: int = Field(default=0, ge=0)
    """Bytes per second that one transfer may receive, unless its Image asks for fewer; 0: any number."""
    redirects: int = Field(default=10, ge=0)
    """Redirects that are followed for one request."""
    connections: int = Field(default=4, ge=1, le=16)
    """Connections that fetch one large file at once, at most; the first is joined by others only while that helps."""
    retries: int = Field(default=6, ge=0, le=32)
    """Breaks in a row that one transfer bears, going on where it broke, before the operator tries again later."""
    stall_timeout: float = Field(default=120.0, gt=0)
    """Seconds that one of several stores may hold up the others before it is dropped from the pass."""
    stop_grace: float = Field(default=3.0, gt=0)
    """Seconds that a cancelled worker has to clean up before it is killed."""


class Spool(_Group):
    """Where images lie while they are converted."""

    path: Annotated[Path, AfterValidator(_absolute)] | None = None
    """A folder that workers may write to, absolute, on a disk with room; the files there have no names and go with
    their worker. Unset: no image is converted."""
    size: int = Field(default=64 << 30, ge=1)
    """Bytes that one conversion may take there, blocks of zeros not counted; as many run at once as transfers do."""


class Retries(_Group):
    """How transient failures are tried again."""

    base: float = Field(default=5.0, gt=0)
    """Seconds before the second attempt; doubled for each further one, with jitter."""
    cap: float = Field(default=600.0, gt=0)
    """The longest wait between two attempts, in seconds."""


class Scrub(_Group):
    """How stored bytes are read again, to find damage before somebody else does."""

    interval: float = Field(default=720 * 3600.0, ge=0)
    """Seconds after which a copy is verified again, the oldest first, one at a time. 0: never."""
    rate: int = Field(default=64 << 20, ge=0)
    """Bytes per second that are read for it, at most. 0: as fast as the store gives them."""


class Links(_Group):
    """Signed links, which give an image to whoever has them."""

    maximum: float = Field(default=86400.0, ge=0)
    """Seconds that a link may live, at most. 0: none is made, and none is taken."""
    rotation: float = Field(default=7 * 86400.0, ge=3600)
    """Seconds after which the operator makes a new key to sign with. The one before goes when all of its links have
    expired."""


class Uploads(_Group):
    """What may be sent to the gateway."""

    at_once: int = Field(default=16, ge=1)
    """Uploads at once, of one replica of the gateway, half of them into one namespace at most. Each has a worker."""
    minimum_rate: int = Field(default=1024, ge=0)
    """Bytes per second that a sender must bring, on average over `rate_window`, not to be cut off."""
    rate_window: float = Field(default=60.0, gt=0)
    """Seconds of waiting for a sender over which `minimum_rate` is measured."""
    expiry: float = Field(default=6 * 3600.0, ge=1)
    """Seconds after which an upload in parts (tus) ends if nothing more of it comes."""
    given_up: float = Field(default=900.0, ge=60)
    """Seconds after which an upload in parts that no request has come for gives way to a new upload for the same
    image. Until then no other can begin."""
    linger: float = Field(default=30.0, ge=0)
    """Seconds that the worker of an upload in parts waits for the next one. Then what it has is left in the stores, and
    read again when more comes."""


class Settings(BaseSettings):
    """The settings of one installation."""

    model_config = SettingsConfigDict(
        env_prefix="GLIMPSE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    namespace: str = "glimpse-system"
    """The operator's own namespace."""
    installation: str = ""
    """Names the owner of a store in its marker. Empty: the uid of the namespace `kube-system`."""
    kubeconfig: Path | None = None
    """A kubeconfig file. Unset: the service account of the pod. The plain variable KUBECONFIG is never used."""
    gateway_url: str = "http://glimpse-gateway.glimpse-system.svc"
    """The gateway's address as consumers see it, without a slash at the end: the start of `status.artifact.url`."""
    audience: str = "glimpse"
    """The audience that a caller's token must be made for."""
    runner: Literal["inline"] = "inline"
    """How workers are started. `inline`: children of a process beside the operator."""
    operator_listen: str = "127.0.0.1:8080"
    """Where the operator answers `/healthz`, `/readyz` and `/metrics`."""
    gateway_listen: str = "127.0.0.1:8090"
    """Where the gateway serves."""
    gateway_tls_certificate: Path | None = None
    """A file with the certificate (PEM) that the gateway shows, those that lead to its CA after it. With it the
    gateway speaks TLS only, and takes a changed file within seconds. Unset: plain HTTP."""
    gateway_tls_key: Path | None = Field(default=None, validate_default=True)
    """The file with its key (PEM, without a password); in a Secret of the type `kubernetes.io/tls` they are `tls.crt`
    and `tls.key`."""
    gateway_connections: int = Field(default=4096, ge=1)
    """Connections that the gateway has open at once, at most; two in five of the files that the process may open
    (RLIMIT_NOFILE) if that is less."""
    gateway_client_connections: int = Field(default=256, ge=0)
    """Connections of one client address (of IPv6: one /64) at once. 0: any number, for a gateway whose clients all
    come through a proxy."""
    gateway_token_file: Path | None = None
    """A file for the gateway's token, in a volume that a gateway in the same pod shares. The operator writes it, the
    gateway reads it in place of the pod's. Unset: the gateway has a token of its own."""
    gateway_service_account: str = "glimpse-gateway"
    """The gateway's ServiceAccount in the operator's namespace, for whom that token is made."""
    gateway_idle: float = Field(default=60.0, ge=1)
    """Seconds that a client of the gateway may take no byte, or be in the middle of a request, before it is cut off."""
    gateway_drain: float = Field(default=25.0, gt=0)
    """Seconds that running downloads get to come to their end when the gateway is stopped."""
    gateway_anonymous: bool = False
    """Let those who send no token download images with `visibility: public`, and see them in the list."""
    gateway_bandwidth: int = Field(default=0, ge=0)
    """Bytes per second that one replica of the gateway may send to all who download, in equal shares for those who do
    (a token's user; an address where there is no token), whoever has use for more taking what others leave. 0: any
    number."""
    gateway_client_bandwidth: int = Field(default=0, ge=0)
    """Bytes per second that one replica may send to each of them. 0: any number."""
    gateway_redirect: Literal["off", "asked", "always"] = "off"
    """Whether the gateway may send a download to the store's own server, where its ImageStore has a `publicEndpoint`:
    `asked`: if the client says `?redirect=true`; `always`: unless he says `?redirect=false`. Who sends a token is never
    sent on."""
    progress_interval: float = Field(default=5.0, gt=0)
    """Seconds between two writes of a transfer's progress to status, at least."""
    secret_interval: float = Field(default=60.0, gt=0)
    """Seconds between two looks at a Secret that an Image waits for."""
    reader_grace: float = Field(default=86400.0, ge=0)
    """Seconds beyond `revisions.grace` that a revision stays for those who are reading it, at most."""
    sweep_interval: float = Field(default=3600.0, gt=0)
    """Seconds between two sweeps of a store."""
    sweep_age: float = Field(default=3600.0, ge=0)
    """Seconds that an object must be old before the sweep looks at it."""
    silence: float = Field(default=120.0, gt=0)
    """Seconds without any sign of life from a watch before the operator counts as dead, and the gateway gives nothing
    any more for what it knew of images, or of links' keys."""
    digests: list[Literal["sha256", "sha512", "sha384", "sha1", "md5"]] = ["sha256"]
    """Digests that are computed of every image and kept in `status.artifact.digests`, as `["sha256", "sha512", "md5"]`.
    sha256 always is; each further one costs a thread of its own while bytes pass."""
    log_format: Literal["text", "json"] = "text"
    """The form of log lines."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log line that is written."""
    addresses: Addresses = Addresses()
    limits: Limits = Limits()
    transfers: Transfers = Transfers()
    spool: Spool = Spool()
    retries: Retries = Retries()
    scrub: Scrub = Scrub()
    links: Links = Links()
    uploads: Uploads = Uploads()

    @field_validator("gateway_tls_key")
    @classmethod
    def _with_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("gateway_tls_certificate") is None):
            raise ValueError("must be set if GLIMPSE_GATEWAY_TLS_CERTIFICATE is, and only then")
        return key


def unknown(environ: Iterable[str]) -> list[str]:
    """Variables that look like settings and are none: mistyped, perhaps.

    They are no error: Kubernetes sets some of this form for each Service of the namespace.
    """
    prefix = "GLIMPSE_"
    fields = {name.upper() for name in Settings.model_fields}
    found = (name for name in environ if name.upper().startswith(prefix) and not _SERVICE.search(name))
    return sorted(name for name in found if name.upper().removeprefix(prefix).partition("__")[0] not in fields)
