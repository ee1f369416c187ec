"""The monitors of a cluster out of what a `configRef` names: a ceph.conf, or what Rook keeps of its cluster.

Whoever wrote it is not trusted: librados reads no file of it, as options there load plugins, read keys and write logs.
Two words are looked for, `mon_host` and `fsid`, and all others are passed over.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from glimpse.api.store import CONFIG_REF
from glimpse.problems import SecretNotReadable

HOST: Final = "([A-Za-z0-9.-]+|[[][0-9A-Fa-f:.]+[]])"
MONITOR: Final = rf"^(v[12]:{HOST}(:[0-9]{{1,5}})?|{HOST}(:(3300|6789))?)$"
"""How a monitor is named, for CEL."""
MONITORS: Final = 16
"""At most."""

_MONITOR: Final = re.compile(MONITOR.replace("[[]", r"\["))
_FSID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SECTION: Final = re.compile(r"\[([^\]]*)\]")


class Known(NamedTuple):
    """Where a cluster is."""

    monitors: tuple[str, ...]
    fsid: str | None
    """Which it must be."""


def read(held: Mapping[str, str]) -> Known:
    """What the Secret and the `configRef` of a store say. Raises SecretNotReadable."""
    entries = {key.removeprefix(CONFIG_REF): text for key, text in held.items() if key.startswith(CONFIG_REF)}
    if "ceph.conf" in entries:
        told = dict(_options(entries["ceph.conf"]))
    elif "mon_host" in entries:  # Rook's Secret rook-ceph-config
        told = {name: entries[name] for name in ("mon_host", "fsid") if name in entries}
    elif "data" in entries:  # Rook's ConfigMap rook-ceph-mon-endpoints: a=10.0.0.1:6789,b=10.0.0.2:6789
        told = {"mon_host": ",".join(each.partition("=")[2] for each in entries["data"].split(","))}
    else:
        raise SecretNotReadable(
            "what rbd.configRef names has no key ceph.conf, and is none of Rook's either (mon_host, or data)"
        )
    monitors = tuple(dict.fromkeys(_monitors(told.get("mon_host", ""))))
    if not monitors:
        raise SecretNotReadable("what rbd.configRef names has no mon_host, in [global] of a ceph.conf")
    fsid = told.get("fsid", "").lower()
    if fsid and not _FSID.fullmatch(fsid):
        raise SecretNotReadable("the fsid in what rbd.configRef names is none")
    return Known(monitors[:MONITORS], fsid or None)


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Those of [global], in one spelling; the last of a name counts."""
    section = "global"
    for line in text.splitlines():
        words = re.split(r"[#;]", line, maxsplit=1)[0].strip()
        if found := _SECTION.fullmatch(words):
            section = found[1].strip()
        elif section == "global" and "=" in words:
            name, _, value = words.partition("=")
            yield re.sub(r"[\s_-]+", "_", name.strip().lower()), value.strip().strip("\"'")


def _monitors(text: str) -> Iterator[str]:
    """Each address of a list as Ceph writes it: `10.0.0.1 [v2:10.0.0.2:3300/0,v1:10.0.0.2:6789/0]`."""
    for word in filter(None, re.split(r"[\s,;]+", text)):
        address = word[1:] if word.startswith("[v") else word
        address = address[:-1] if address.count("]") > address.count("[") else address
        address = address.partition("/")[0]
        if not _MONITOR.fullmatch(address):
            raise SecretNotReadable(
                f"the mon_host in what rbd.configRef names has {word[:100]!r}, which is no monitor such as 10.0.0.1, "
                "ceph-1.example.com:6789 or v2:10.0.0.1:13300"
            )
        yield address
