"""What an ImageStore and its Secret say of a Cinder: where it is, and how one logs in."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from glimpse import keystone
from glimpse.api.base import Model, Rule, exactly_one
from glimpse.given import for_header
from glimpse.problems import InvalidConfiguration


def _kept(name: str) -> Rule:
    return Rule(
        f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
        f"{name} cannot be changed: Images would look for their bytes in another place; create another ImageStore",
    )


Address = Annotated[
    str,
    Field(min_length=1, max_length=1024),
    Rule(
        "self.matches('^https?://[^/?#@[:space:][:cntrl:]]+(/[^?#@[:space:][:cntrl:]]*)?$')",
        "must be a URL such as https://keystone.example:5000/v3, without user, password, ? and #",
    ),
]
Name = Annotated[
    str,
    Field(min_length=1, max_length=255),
    Rule("self.matches('^[^[:cntrl:]]+$') && self == self.trim()", "must be a name, without spaces around it"),
]


_ID: Final = "^[A-Za-z0-9_-]+$"
_NO_ID: Final = "with endpoint, project is the ID of the project, such as 1b6d4f0c2a3e4d5f8a9b0c1d2e3f4a5b"


class CinderConfig(Model):
    """Volumes of OpenStack Cinder."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("endpoint", "authUrl"),
        Rule("has(self.project) || !has(self.endpoint)", "endpoint needs project, the ID of the project"),
        Rule(f"!has(self.endpoint) || self.project.matches('{_ID}')", _NO_ID),
        Rule("!has(self.region) || has(self.authUrl)", "region is one of Keystone's catalog: it needs authUrl"),
        _kept("volumeType"),
        _kept("region"),
        _kept("project"),
    )

    endpoint: Address | None = None
    """Cinder without Keystone (`auth_strategy = noauth`), such as http://cinder.example:8776/v3."""
    auth_url: Address | None = None
    """Keystone, version 3; its catalog knows where Cinder is."""
    region: Name | None = None
    """Of Keystone's catalog; the first one that has Cinder, if there are several."""
    project: Name | None = None
    """With authUrl its name; omitted: `projectName` of the Secret. With endpoint its ID."""
    volume_type: Name | None = None
    """The type of volumes, which must be in Ceph. Omitted: Cinder's default."""
    availability_zone: Name | None = None
    """Where volumes are made from now on. Omitted: as Cinder likes."""


def login(config: CinderConfig, secret: Mapping[str, str]) -> keystone.Login:
    """Makes the plugin for keystoneauth. Raises SecretNotReadable now, if a key is missing."""
    if endpoint := config.endpoint:
        project = config.project
        if not project:
            raise InvalidConfiguration("cinder.endpoint needs cinder.project, the ID of the project")
        if not re.match(_ID, project):
            raise InvalidConfiguration(f"cinder.project: {_NO_ID}")
        for_header(secret, "username")
        who = secret.get("username") or "glimpse"

        def nobody() -> Any:
            from cinderclient.contrib.noauth import CinderNoAuthPlugin

            return CinderNoAuthPlugin(who, project, endpoint=endpoint.rstrip("/"))

        return nobody
    return keystone.login(str(config.auth_url), secret, "cinder", project=config.project)
