"""What Secrets and ConfigMaps hold: text, certificates, entries.

People write them by hand and by many tools, so each fault is named with its object and key, and no value is quoted.
"""

import base64
import binascii
import re
from typing import Final

from pydantic import SecretStr

from glimpse.kube import CONFIGMAP, Object
from glimpse.problems import SecretNotReadable

_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


def what(obj: Object) -> str:
    """Kind, namespace and name, as a person says it."""
    return f"{obj['kind']} {obj['metadata']['namespace']}/{obj['metadata']['name']}"


def text(obj: Object, key: str) -> str:
    """One value. Raises SecretNotReadable if it is missing or no text."""
    if obj["kind"] == CONFIGMAP.kind and key in (obj.get("data") or {}):
        return str(obj["data"][key])
    value = (obj.get("data") or {}).get(key, (obj.get("binaryData") or {}).get(key))
    if value is None:
        raise SecretNotReadable(f"key {key!r} of {what(obj)} is missing")
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        # The cause would quote the secret.
        raise SecretNotReadable(f"key {key!r} of {what(obj)} is not UTF-8 text") from None


def held(obj: Object, *keys: str) -> dict[str, SecretStr]:
    """These keys, each with its value, without the line break at the end that `echo` and editors leave.

    Raises SecretNotReadable if one is missing or empty.
    """
    values = {key: text(obj, key).rstrip("\r\n") for key in keys}
    for key, value in values.items():
        if not value:
            raise SecretNotReadable(f"key {key!r} of {what(obj)} is empty")
    return {key: SecretStr(value) for key, value in values.items()}


def entries(obj: Object) -> dict[str, str]:
    """All entries in base64. They are parsed by the worker, not here. Raises SecretNotReadable if there is none."""
    found: dict[str, str] = {**(obj.get("data") or {})}
    if obj["kind"] == CONFIGMAP.kind:
        found = {key: base64.b64encode(value.encode()).decode() for key, value in found.items()}
    found |= obj.get("binaryData") or {}
    if not found:
        raise SecretNotReadable(f"{what(obj)} holds no OpenPGP key")
    return dict(sorted(found.items()))


def bundle(obj: Object) -> str:
    """All certificates, re-written: nothing but certificates goes on. They are parsed by the worker, not here.

    Raises SecretNotReadable unless each key holds one.
    """
    keys = sorted({*(obj.get("data") or {}), *(obj.get("binaryData") or {})})
    if not keys:
        raise SecretNotReadable(f"{what(obj)} holds no certificate")
    made = []
    for key in keys:
        blocks = _CERTIFICATE.findall(text(obj, key))
        try:
            ders = [base64.b64decode("".join(block.split()), validate=True) for block in blocks]
        except binascii.Error:
            ders = []
        if not ders:
            raise SecretNotReadable(f"key {key!r} of {what(obj)} is not a certificate in PEM")
        made += [base64.encodebytes(der).decode() for der in ders]
    return "".join(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n" for body in made)
