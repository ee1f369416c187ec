"""What an ImageStore says of a datastore of VMware: where it is, and by which certificate its server is known."""

from typing import Annotated, Final

from pydantic import Field

from glimpse.api.base import Model, Rule, immutable

_ELSEWHERE: Final = "Images would look for their bytes in another place; create another ImageStore"


class VMwareConfig(Model):
    """A folder in a datastore of VMware vSphere."""

    server: Annotated[
        str,
        Field(min_length=1, max_length=255),
        Rule(
            r"self.matches('^([0-9A-Za-z]([-0-9A-Za-z.]*[0-9A-Za-z])?|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?$')",
            "must be a host, such as vcenter.example.com, with :port if that is not 443",
        ),
    ]
    """The vCenter, or an ESXi host: host or host:port. May change; the marker tells whether it is the same place."""
    datacenter: Annotated[
        str,
        Field(min_length=1, max_length=255),
        Rule(
            "self.matches('^[^/[:cntrl:]]+(/[^/[:cntrl:]]+)*$')",
            "must be the path of a datacenter in the inventory, such as Berlin or Europe/Berlin, without / at its ends",
        ),
        immutable("datacenter", _ELSEWHERE),
    ]
    """The datacenter: its path in the inventory; `ha-datacenter` on an ESXi host."""
    datastore: Annotated[
        str,
        Field(min_length=1, max_length=80),
        Rule(
            r"self.matches('^[^\\[\\]/[:cntrl:]]+$')",
            "must be the name of a datastore, without [, ] and /",
        ),
        immutable("datastore", _ELSEWHERE),
    ]
    """The datastore's name."""
    folder: Annotated[
        str,
        Field(min_length=1, max_length=255),
        Rule(
            "self.matches('^[^/[:cntrl:]]+(/[^/[:cntrl:]]+)*$') && !self.matches('(^|/)[.][.]?(/|$)')",
            "must be the path of a folder in the datastore, such as glimpse or images/glimpse: without . and .., "
            "no / at its ends",
        ),
        immutable("folder", _ELSEWHERE),
    ]
    """The folder in the datastore; it must exist. All that is ours is below it."""
    thumbprint: Annotated[
        str | None,
        Field(min_length=64, max_length=95),
        Rule(
            "self.matches('^([0-9A-Fa-f]{64}|([0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})$')",
            "must be the SHA-256 of a certificate: 64 hex digits, with or without colons between two",
        ),
    ] = None
    """SHA-256 of the server's certificate, which is then the only one that is trusted, whoever has signed it."""
