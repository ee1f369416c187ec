"""Buckets for tests, whichever server has them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config

from glimpse.tasks import StoreRef


class Server(NamedTuple):
    """One that speaks S3, with a bucket in it."""

    url: str
    port: int
    access: str
    secret: str
    ca_file: Path | None
    bucket: str
    least: str = "1Mi"
    """The smallest part that it takes."""

    @property
    def public(self) -> str:
        """Another address of the same server."""
        return self.url.replace("127.0.0.1", "localhost")

    def client(self) -> Any:
        """A client, for a look around the store."""
        return client(self)

    def ref(self, prefix: str, *, secret: Mapping[str, str] | None = None, **config: Any) -> StoreRef:
        """A store below a prefix."""
        return StoreRef(
            name="fast",
            driver="quick-s3",
            config={
                "endpoint": self.url,
                "publicEndpoint": self.public,
                "bucket": self.bucket,
                "prefix": prefix,
                "partSize": self.least,
            }
            | config,
            secret=secret or {"accessKey": self.access, "secretKey": self.secret},
            ca_bundle=self.ca_file.read_text() if self.ca_file else None,
            installation="here",
        )


@cache
def client(server: Server) -> Any:
    """A client of Amazon's own making."""
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        verify=str(server.ca_file) if server.ca_file else None,
        aws_access_key_id=server.access,
        aws_secret_access_key=server.secret,
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )
