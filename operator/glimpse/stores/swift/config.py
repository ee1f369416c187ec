"""What an ImageStore and its Secret say of a Swift: where it is, and how one logs in."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from glimpse import keystone
from glimpse.api.base import Model, Quantity, Rule, immutable
from glimpse.given import for_header
from glimpse.stores.swift.places import LARGEST

SEGMENT: Final = 32 << 20
"""Bytes of a segment, unless the store says otherwise."""


_WORDS: Final = "must be a name such as images/a: no / at its ends, no . and .. between slashes"
"""Whatever stands between here and Swift may resolve such segments, and then the names lie elsewhere."""


def _plain(value: str) -> str:
    if {"", ".", ".."} & {*value.split("/")} or not value.isprintable():
        raise ValueError(_WORDS)
    return value


def _bounded(value: int) -> int:
    if not 1 << 20 <= value <= LARGEST:
        raise ValueError("must be from 1Mi to 64Mi")
    return value


def _kept(name: str) -> Rule:
    return Rule(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
        f"{name} cannot be changed: Images would look for their bytes in another place; create another ImageStore",
    )


Container = Annotated[
    str,
    Field(min_length=1, max_length=256),
    AfterValidator(_plain),
    Rule(
        "self.matches('^[^/[:cntrl:]]+$') && self != '.' && self != '..'", "must be the name of a container, without /"
    ),
]


class SwiftConfig(Model):
    """A container of OpenStack Swift."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("!has(self.region) || self.authVersion == '3'", "region is of Keystone's catalog: it needs authVersion 3"),
        _kept("prefix"),
        _kept("region"),
        _kept("segmentContainer"),
    )

    auth_url: Annotated[
        str,
        Field(min_length=1, max_length=1024),
        Rule(
            "self.matches('^https?://[^/?#@[:space:][:cntrl:]]+(/[^?#@[:space:][:cntrl:]]*)?$')",
            "must be a URL such as https://keystone.example:5000/v3, without user, password, ? and #",
        ),
    ]
    """Where one logs in: Keystone, or with version 1 the address that gives out tokens (…/auth/v1.0)."""
    auth_version: Literal["1", "3"] = "3"
    """3: Keystone. 1: Swift's own (tempauth, Ceph's gateway)."""
    public_endpoint: (
        Annotated[
            str,
            Field(min_length=1, max_length=1024),
            Rule(
                "self.matches('^https?://[^/?#@[:space:][:cntrl:]]+$')",
                "must be a scheme, a host and perhaps a port, such as https://swift.example.com:8080, and no path",
            ),
        ]
        | None
    ) = None
    """Swift as those who download reach it, as https://swift.example.com; the gateway may send them there, if the
    Secret has a `tempURLKey`. Paths are signed, so they must be those of the catalog. Omitted: all bytes pass through
    the gateway."""
    region: Annotated[str | None, Field(min_length=1, max_length=255)] = None
    """Of Keystone's catalog; the first one that has an object store, if there are several."""
    container: Annotated[
        Container,
        immutable("container", "Images would look for their bytes in another place; create another ImageStore"),
    ]
    """Where the images are."""
    prefix: Annotated[
        str | None,
        Field(min_length=1, max_length=255),
        AfterValidator(lambda value: None if value is None else _plain(value)),
        Rule("self.matches('^[^/[:cntrl:]]+(/[^/[:cntrl:]]+)*$') && !self.matches('(^|/)[.][.]?(/|$)')", _WORDS),
    ] = None
    """All names begin so, with a slash behind it. What begins otherwise is left alone."""
    segment_size: Annotated[
        Quantity,
        AfterValidator(_bounded),
        Rule(
            "quantity(string(self)).compareTo(quantity('1Mi')) >= 0"
            " && quantity(string(self)).compareTo(quantity('64Mi')) <= 0",
            "must be from 1Mi to 64Mi",
        ),
    ] = SEGMENT
    """Bytes of a segment. Up to four are on their way at once, fewer of larger ones: they must fit into memory."""
    segment_container: Container | None = None
    """Where segments are; omitted: beside the images."""
    create_container: bool = False
    """Make the containers at the first use, if they are missing."""


def login(config: SwiftConfig, secret: Mapping[str, str]) -> keystone.Login:
    """Makes the plugin for keystoneauth. Raises SecretNotReadable now, if a key is missing."""
    if config.auth_version == "3":
        return keystone.login(config.auth_url, secret, "swift")
    for_header(secret, "user", "key")
    user, key = keystone.needed(secret, "user", "swift"), keystone.needed(secret, "key", "swift")

    def version_1() -> Any:
        from swiftclient.authv1 import PasswordPlugin

        return PasswordPlugin(config.auth_url, user, key)

    return version_1
