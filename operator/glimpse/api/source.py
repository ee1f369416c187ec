"""Web sources in a spec: where bytes come from, with which secrets, and in what manner.

Apart from the rest of an Image, since here stands what a tenant may make us send to whom.
"""

from typing import Annotated

from pydantic import Field

from glimpse.api.base import Duration, Model, ObjectName, Quantity, Rule, between, exactly_one

Url = Annotated[
    str,
    Field(min_length=1, max_length=2048),
    Rule(
        "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != ''",
        "must be a complete http:// or https:// URL",
    ),
    Rule(
        "self.matches('^[!-~]*$') && !self.contains('\\\\')",
        "must be printable ASCII without spaces and backslashes: percent-encode them, and write host names in punycode",
    ),
    Rule(
        "!self.matches('^[^/?#]*//[^/?#]*@')",
        "must not hold credentials: put them into a Secret and name it in secretRef",
    ),
    Rule("!self.contains('#')", "must not have a fragment: leave out the # and what follows, or write it as %23"),
    Rule(
        "!isURL(self) || url(self).getPort() == ''"
        " || (size(url(self).getPort()) <= 5 && int(url(self).getPort()) <= 65535)",
        "must have a port up to 65535",
    ),
]
"""Where a web server has a file; no credentials in it."""


class SecretRef(Model):
    """A Secret in the Image's own namespace, with the label `glimpse.dev/use: source`."""

    name: ObjectName
    """The name of the Secret."""


class CaBundleRef(Model):
    """Certificates of authorities: every key of a ConfigMap or Secret is PEM. Exactly one member."""

    rules = (exactly_one("configMap", "secret"),)

    config_map: ObjectName | None = None
    """The name of a ConfigMap in the Image's own namespace."""
    secret: ObjectName | None = None
    """The name of a Secret in the Image's own namespace, with the label `glimpse.dev/use: source`."""


class HttpSource(Model):
    """Bytes from a web server."""

    urls: Annotated[
        tuple[Url, ...],
        Field(min_length=1, max_length=8),
        Rule("self.all(one, self.exists_one(other, other == one))", "must name each URL once"),
    ]
    """Mirrors of the same bytes, http or https, no credentials in them; tried in this order, or in that of the speed
    and health which the operator has seen of their servers."""
    secret_ref: SecretRef | None = None
    """Keys `username` and `password` (Basic), or `token` (Bearer). Sent to the servers named in `urls` only."""
    headers_secret_ref: SecretRef | None = None
    """Each key is a header of every request. Sent to the servers named in `urls` only."""
    client_certificate_ref: SecretRef | None = None
    """Keys `tls.crt` and `tls.key`, for servers that want a certificate. Shown to the servers named in `urls` only."""
    proxy_ref: SecretRef | None = None
    """Key `address` (http://host:port, https://host:port or socks5://host:port), and `username` and `password` if the
    proxy wants them."""
    ca_bundle_ref: CaBundleRef | None = None
    """Authorities that may sign the certificates of the servers and of the proxy, besides the usual ones."""
    insecure_skip_tls_verify: Annotated[bool, Field(alias="insecureSkipTLSVerify")] = False
    """Accept any certificate of a server. Give a checksum if you use this."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of all Secrets that are referred to."""
        refs = (self.secret_ref, self.headers_secret_ref, self.client_certificate_ref, self.proxy_ref)
        names = [ref.name for ref in refs if ref]
        return (*names, self.ca_bundle_ref.secret) if self.ca_bundle_ref and self.ca_bundle_ref.secret else (*names,)

    @property
    def config_maps(self) -> tuple[str, ...]:
        """Names of all ConfigMaps that are referred to."""
        ref = self.ca_bundle_ref
        return (ref.config_map,) if ref and ref.config_map else ()


class Manner(Model):
    """How the bytes are fetched. What is left out is as the installation has it."""

    connections: Annotated[int | None, Field(ge=1, le=16)] = None
    """Connections that fetch one large file at once, at most; the first is joined by others only while that helps."""
    bandwidth: Annotated[
        Quantity | None,
        Rule(
            "type(self) == int ? self >= 16384 : !isQuantity(self) || !quantity(self).isLessThan(quantity('16Ki'))",
            "must be 16Ki or more bytes per second: with less, 1 GiB would take a day",
        ),
    ] = None
    """Bytes per second over all connections, such as `50M`. The installation may allow fewer."""
    idle_timeout: Annotated[Duration | None, between("1s", "1h")] = None
    """How long a server may be silent before the connection counts as broken, as a duration: `60s`."""
    retries: Annotated[int | None, Field(ge=0, le=32)] = None
    """Breaks in a row that one attempt bears, going on where it broke."""
