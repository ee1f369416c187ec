"""What an Image's source refers to: Secrets and ConfigMaps of its own namespace, read by name and only when needed.

The operator has no right to read tenants' Secrets before a namespace's owner binds it, and a Secret that is not
labelled for this use is never used: else whoever may create Images could send any of them to his own server.
"""

from hashlib import sha256
from typing import Final, NamedTuple

from pydantic import SecretStr

from glimpse import bags
from glimpse.api.base import SECRET_HOSTS, SECRET_USE
from glimpse.api.image import Image, KeysRef
from glimpse.api.source import CaBundleRef, HttpSource, SecretRef
from glimpse.kube import CONFIGMAP, SECRET, Forbidden, Gone, Kind, Kube, Object
from glimpse.problems import InvalidConfiguration, SecretNotReadable
from glimpse.settings import Settings
from glimpse.tasks import ChecksumFile, HttpOrigin, Signature

_USE: Final = "source"
"""The value of the label that a Secret must carry."""
_ADDRESS: Final = "address"
"""The key that makes a Secret a proxy's."""
_PAIR: Final = ("tls.crt", "tls.key")
"""The keys of a Secret of type kubernetes.io/tls."""


class Resolved(NamedTuple):
    """What the references of an Image gave."""

    origin: HttpOrigin | SecretNotReadable | None
    """The source with its secrets, or what is in the way; None: it has none, since it is no web server."""
    checksum_file: ChecksumFile | None
    """With the keys that may have signed it; None also if something is in the way."""
    version: str
    """As `References.version` gives it, of exactly what was read here."""


class _Reference(NamedTuple):
    kind: Kind
    name: str


class References:
    """Reads what Images refer to. Keeps nothing."""

    def __init__(self, kube: Kube, settings: Settings) -> None:
        self._kube = kube
        self._operator = settings.namespace

    async def resolve(self, image: Image) -> Resolved:
        """The source of an Image as a worker needs it. Raises ApiError if the API server is away.

        Raises InvalidConfiguration without a source that is known.
        """
        http = image.spec.source.http
        if http is None and image.spec.source.location is None:
            raise InvalidConfiguration("spec.source has no member that Glimpse knows")
        found = await self._read(image)
        try:
            origin = self._origin(image, http, found) if http else None
            return Resolved(origin, self._checksum_file(image, found), _version(found))
        except SecretNotReadable as problem:
            return Resolved(problem, None, _version(found))

    async def version(self, image: Image) -> str:
        """Stands for the versions of all that the Image refers to; changes when any changes. Empty: it has none.

        One small read for each reference. Raises ApiError if the API server is away.
        """
        return _version(await self._read(image))

    async def _read(self, image: Image) -> dict[_Reference, Object | str]:
        """Each referenced object, or the word for why it is not there."""
        found: dict[_Reference, Object | str] = {}
        for reference in _references(image):
            try:
                found[reference] = await self._kube.get(reference.kind, reference.name, image.metadata.namespace)
            except Gone:
                found[reference] = "missing"
            except Forbidden:
                found[reference] = "forbidden"
            except ValueError:  # a name that no object can have
                found[reference] = "missing"
        return found

    def _origin(self, image: Image, http: HttpSource, found: dict[_Reference, Object | str]) -> HttpOrigin:
        def used(ref: SecretRef | None) -> Object | None:
            reference = _Reference(SECRET, ref.name) if ref else None
            return self._usable(image, reference, found[reference]) if reference else None

        login, headers = used(http.secret_ref), used(http.headers_secret_ref)
        certificate, proxy = used(http.client_certificate_ref), used(http.proxy_ref)
        ca = _bag(http.ca_bundle_ref)
        return HttpOrigin(
            urls=http.urls,
            secret=_credentials(login) if login else {},
            secret_hosts=_hosts(login),
            headers=_headers(headers) if headers else {},
            headers_hosts=_hosts(headers),
            certificate=bags.held(certificate, *_PAIR) if certificate else {},
            certificate_hosts=_hosts(certificate),
            proxy=_proxy(proxy) if proxy else {},
            proxy_hosts=_hosts(proxy),
            ca_bundle=bags.bundle(self._usable(image, ca, found[ca])) if ca else None,
            insecure_skip_tls_verify=http.insecure_skip_tls_verify,
        )

    def _checksum_file(self, image: Image, found: dict[_Reference, Object | str]) -> ChecksumFile | None:
        checksum = image.spec.checksum
        if not checksum or not checksum.url:
            return None
        signature = None
        if checksum.signature and (reference := _bag(checksum.signature.keys_ref)):
            obj = self._usable(image, reference, found[reference])
            signature = Signature(url=checksum.signature.url, keys=bags.entries(obj), keys_from=bags.what(obj))
        return ChecksumFile(url=checksum.url, signature=signature)

    def _usable(self, image: Image, reference: _Reference, obj: Object | str) -> Object:
        namespace, kind = image.metadata.namespace, reference.kind.kind
        what = f"{kind} {namespace}/{reference.name}"
        if obj == "missing":
            raise SecretNotReadable(f"{what} does not exist; create it in the Image's namespace")
        if isinstance(obj, str):
            raise SecretNotReadable(
                f"Glimpse may not read {what}; the owner of the namespace allows it with: kubectl create rolebinding "
                f"glimpse-secrets --clusterrole=glimpse-secrets --serviceaccount={self._operator}:glimpse-operator "
                f"-n {namespace}"
            )
        if reference.kind is SECRET and obj["metadata"].get("labels", {}).get(SECRET_USE) != _USE:
            raise SecretNotReadable(
                f"{what} is not meant for sources; its owner allows it with: kubectl label secret {reference.name} "
                f"{SECRET_USE}={_USE} -n {namespace}"
            )
        return obj


def _bag(ref: CaBundleRef | KeysRef | None) -> _Reference | None:
    """Of which every key counts."""
    if ref and ref.secret:
        return _Reference(SECRET, ref.secret)
    if ref and ref.config_map:
        return _Reference(CONFIGMAP, ref.config_map)
    return None


def _references(image: Image) -> list[_Reference]:
    named = set[_Reference]()
    if http := image.spec.source.http:
        named |= {_Reference(SECRET, name) for name in http.secrets}
        named |= {_Reference(CONFIGMAP, name) for name in http.config_maps}
    signature = image.spec.checksum.signature if image.spec.checksum else None
    if signature and (keys := _bag(signature.keys_ref)):
        named.add(keys)
    return sorted(named)


def _version(found: dict[_Reference, Object | str]) -> str:
    if not found:
        return ""
    lines = [
        f"{reference.kind.kind}/{reference.name}="
        + (obj if isinstance(obj, str) else f"{obj['metadata']['uid']}/{obj['metadata']['resourceVersion']}")
        for reference, obj in found.items()
    ]
    return sha256("\n".join(lines).encode()).hexdigest()[:32]


def _credentials(obj: Object) -> dict[str, SecretStr]:
    what, held = bags.what(obj), (obj.get("data") or {}).keys()
    if _ADDRESS in held:
        raise SecretNotReadable(f"{what} is a proxy's, with its `{_ADDRESS}`; name it in proxyRef, and another here")
    if "token" in held and held & {"username", "password"}:
        raise SecretNotReadable(f"{what} has both `token` and `username` or `password`; keep one")
    if not held & {"token", "username", "password"}:
        raise SecretNotReadable(f"{what} needs the keys `username` and `password`, or `token`")
    values = bags.held(obj, *(("token",) if "token" in held else ("username", "password")))
    for key, value in values.items():
        # RFC 9110, 5.5: a line break would start another header.
        if not value.get_secret_value().isprintable():
            raise SecretNotReadable(f"key {key!r} of {what} holds characters that a header cannot carry")
    if "username" in values and ":" in values["username"].get_secret_value():
        raise SecretNotReadable(f"key 'username' of {what} holds a colon, which Basic cannot carry (RFC 7617)")
    return values


def _headers(obj: Object) -> dict[str, SecretStr]:
    """Every key; which of them may be sent is known to those who send."""
    keys = sorted(obj.get("data") or {})
    if not keys:
        raise SecretNotReadable(f"{bags.what(obj)} holds no header")
    if other := {_ADDRESS, *_PAIR}.intersection(key.lower() for key in keys):
        raise SecretNotReadable(f"{bags.what(obj)} has the key `{min(other)}`, which is no header; name another Secret")
    return bags.held(obj, *keys)


def _proxy(obj: Object) -> dict[str, SecretStr]:
    """What address it may be is known to those who go there."""
    given = (obj.get("data") or {}).keys() & {"username", "password"}
    return bags.held(obj, _ADDRESS, *sorted(given))


def _hosts(obj: Object | None) -> tuple[str, ...]:
    said = obj["metadata"].get("annotations", {}).get(SECRET_HOSTS) if obj else None
    if obj is None or said is None:
        return ()
    hosts = tuple(host.strip().lower() for host in said.split(",") if host.strip())
    if not hosts:
        raise SecretNotReadable(f"the annotation {SECRET_HOSTS} of {bags.what(obj)} names no host")
    return hosts
