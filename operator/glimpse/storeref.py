"""An ImageStore as a worker or the gateway opens it: with its Secret and its authorities.

Both are read when they are needed and never kept for long, so an edited Secret counts at once and nobody restarts.
"""

from typing import Any, Final

from pydantic import SecretStr, ValidationError

from glimpse import bags
from glimpse.api.base import SECRET_USE
from glimpse.api.image import Revision
from glimpse.api.store import CONFIG_REF, ConfigRef, ImageStore, StoreCaBundleRef
from glimpse.kube import CONFIGMAP, SECRET, ApiError, Forbidden, Gone, Kind, Kube, Object
from glimpse.problems import InvalidConfiguration, SecretNotReadable
from glimpse.tasks import Record, StoreRef, Verification

USE: Final = "store"
"""The value of the label that a store's Secret must carry: else whoever may create ImageStores could send any Secret of
the operator's namespace to his own server."""


def describe(store: ImageStore, installation: str) -> StoreRef:
    """The store without what it refers to. Raises InvalidConfiguration unless it has exactly one driver member."""
    try:
        driver, config = store.spec.driver()
    except ValueError as error:
        raise InvalidConfiguration(f"ImageStore {store.metadata.name}: {error}") from error
    return StoreRef(
        name=store.metadata.name,
        driver=driver,
        config=config,
        installation=installation,
        claimed=bool(installation) and store.status.installation == installation,
        reserve=store.spec.reserve,
        max_image_size=store.spec.max_image_size,
    )


def told(store: str, uid: str, revision: Revision) -> tuple[Record, ...]:
    """What a store must be told of a revision that is registered in it; nothing if it is not.

    Of the Image it says no more than the uid.
    """
    if not revision.location or revision.location.store != store:
        return ()
    record = Record(
        installation="",
        namespace="",
        name="",
        uid=uid,
        revision=revision.revision,
        spec_hash=revision.spec_hash,
        digest=revision.digest,
        digests=revision.digests,
        size=revision.size,
        virtual_size=revision.virtual_size,
        disk_format=revision.disk_format,
        source_digest=revision.source_digest or "",
        source_format=revision.source_format or "",
        source_url=revision.source_url,
        etag=revision.etag,
        last_modified=revision.last_modified,
        verification=Verification(**revision.verification.model_dump()) if revision.verification else None,
        location=revision.location.key,
        stored_at=f"{revision.stored_at:%Y-%m-%dT%H:%M:%SZ}",
    )
    return (record,)


async def resolve(kube: Kube, namespace: str, store: ImageStore, installation: str) -> StoreRef:
    """The store with its secrets, read now from `namespace`, the operator's own.

    Raises InvalidConfiguration, SecretNotReadable (also if the API server does not answer).
    """
    ref = describe(store, installation)
    spec, found = store.spec, dict[str, Any]()
    if spec.secret_ref:
        obj = await _read(kube, namespace, SECRET, spec.secret_ref.name)
        keys = sorted(obj.get("data") or {})
        found["secret"] = {key: SecretStr(bags.text(obj, key).rstrip("\r\n")) for key in keys}
    if spec.ca_bundle_ref:
        found["ca_bundle"] = bags.bundle(await _named(kube, namespace, spec.ca_bundle_ref))
    if "configRef" in ref.config:
        try:
            named = ConfigRef.model_validate(ref.config["configRef"])
        except ValidationError:
            raise InvalidConfiguration(f"ImageStore {store.metadata.name}: configRef names no object") from None
        obj = await _named(kube, namespace, named)
        keys = sorted(obj.get("data") or {})
        secret = {f"{CONFIG_REF}{key}": SecretStr(bags.text(obj, key)) for key in keys}
        found["secret"] = found.get("secret", {}) | secret
    return ref.model_copy(update=found) if found else ref


async def _named(kube: Kube, namespace: str, ref: StoreCaBundleRef | ConfigRef) -> Object:
    kind, name = (CONFIGMAP, ref.config_map) if ref.config_map else (SECRET, ref.secret)
    return await _read(kube, namespace, kind, name or "")


async def _read(kube: Kube, namespace: str, kind: Kind, name: str) -> Object:
    what = f"{kind.kind} {namespace}/{name}"
    try:
        obj = await kube.get(kind, name, namespace)
    except (Gone, ValueError):
        raise SecretNotReadable(f"{what} does not exist; create it in the operator's namespace") from None
    except Forbidden as error:
        raise SecretNotReadable(f"Glimpse may not read {what}: {error.message}") from error
    except ApiError as error:
        raise SecretNotReadable(f"{what} cannot be read, the API server does not answer: {error.message}") from error
    if kind is SECRET and (obj["metadata"].get("labels") or {}).get(SECRET_USE) != USE:
        raise SecretNotReadable(
            f"{what} is not meant for stores; say that it is with: kubectl label secret {name} {SECRET_USE}={USE} "
            f"-n {namespace}"
        )
    return obj
