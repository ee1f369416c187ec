"""What an ImageStore says of a bucket: where it is, and how it is spoken to."""

from typing import Annotated, Literal

from pydantic import Field

from glimpse.api.base import Model, Quantity, Rule, immutable
from glimpse.api.source import Url


class S3Config(Model):
    """A bucket of Amazon S3, or of a server that speaks as it does."""

    rules = (
        Rule("has(self.endpoint) || has(self.region)", "set endpoint; or region alone, for Amazon's own"),
        Rule(
            "has(self.prefix) == has(oldSelf.prefix) && (!has(self.prefix) || self.prefix == oldSelf.prefix)",
            "prefix cannot be changed: create another ImageStore",
        ),
    )

    endpoint: Annotated[Url, Rule("!self.contains('?')", "must have no query")] | None = None
    """The server, as https://s3.example.com; omitted: Amazon's own in that region."""
    public_endpoint: Annotated[Url, Rule("!self.contains('?')", "must have no query")] | None = None
    """The same server as those who download reach it, as https://s3.example.com; the gateway may send them there.
    Omitted: all bytes pass through the gateway."""
    region: Annotated[
        str | None,
        Field(min_length=1, max_length=63),
        Rule("self.matches('^[A-Za-z0-9-]+$')", "must be the name of a region, such as eu-central-1"),
    ] = None
    """The region that requests are signed for; us-east-1 by default, which most servers but Amazon's take."""
    bucket: Annotated[
        str,
        Field(min_length=3, max_length=63),
        Rule(
            "self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]$')",
            "must be the name of a bucket: letters, digits, '.', '_' and '-', with a letter or digit at both ends",
        ),
        immutable("bucket", "create another ImageStore"),
    ]
    """The bucket."""
    prefix: Annotated[
        str | None,
        Field(min_length=1, max_length=512),
        Rule(
            "self.matches('^[A-Za-z0-9_.=-]+(/[A-Za-z0-9_.=-]+)*$') && !self.matches('(^|/)[.][.]?(/|$)')",
            "must be plain words with / between them, such as glimpse or vm/images: no / at either end, no . and ..",
        ),
    ] = None
    """What all names begin with, without the / behind it; what others have in the bucket is left alone."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket stands in a URL: in its path, or in the host name; auto is path where there is an endpoint."""
    part_size: Annotated[
        Quantity,
        Rule(
            "type(self) == int ? self >= 5242880 && self <= 134217728"
            " : !quantity(self).isLessThan(quantity('5Mi')) && !quantity(self).isGreaterThan(quantity('128Mi'))",
            "must be from 5Mi to 128Mi",
        ),
    ] = 16 << 20
    """Bytes of a part of an upload, 16Mi by default; larger images have larger ones. Four are in memory at once."""
    create_bucket: bool = False
    """Make the bucket if it does not exist."""
