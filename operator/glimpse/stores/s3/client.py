"""The way to an S3 server: botocore, with nothing implicit, and what its failures mean.

botocore takes settings from a dozen variables of the environment and two files in the home directory; a store takes
its own from the ImageStore alone. All imports of the library are here, and lazy: it takes half a second.
"""

import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from glimpse.given import for_header
from glimpse.problems import (
    DataLost,
    InvalidConfiguration,
    NotFound,
    Problem,
    SecretNotReadable,
    StoreConflict,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import Unable

if TYPE_CHECKING:
    from botocore.session import Session
    from types_boto3_s3 import S3Client

T = TypeVar("T")

TRIES: Final = 4
"""Of a request that ends in a reset or a 5xx."""
_FIRST_WAIT: Final = 0.2
_CONNECT: Final = 10.0
"""Seconds to connect, at most."""
_CONNECTIONS: Final = 64
"""That are kept; more are made when more are needed."""

_ACCESS: Final = ("accessKey", "AWS_ACCESS_KEY_ID")
_SECRET: Final = ("secretKey", "AWS_SECRET_ACCESS_KEY")
_TOKEN: Final = ("sessionToken", "AWS_SESSION_TOKEN")

TOKEN_FILES: Final = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
"""Variables that name the file with which a pod proves who it is."""
_IDENTITIES: Final = frozenset({"assume-role-with-web-identity", "container-role", "iam-role"})
"""Of botocore's ways to credentials those that are the machine's or the pod's; no files and variables with keys."""

_ASSUME: Final = "AssumeRoleWithWebIdentity"

_UNAUTHORIZED: Final = frozenset(
    {
        "AccessDenied",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_EXISTS: Final = frozenset(
    {"PreconditionFailed", "ConditionalRequestConflict", "BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
)
_SHORT: Final = frozenset({"InvalidRange"})
_FULL: Final = frozenset({"StorageFull", "InsufficientStorage"})
_WRONG: Final = {
    "PermanentRedirect": "the bucket is in another region, or has another endpoint: set region and endpoint",
    "AuthorizationHeaderMalformed": "the server expects another region: set region",
    "IllegalLocationConstraintException": "the server makes no bucket in this region: set region",
    "InvalidLocationConstraint": "the server makes no bucket in this region: set region",
    "InvalidBucketName": "the server does not take this name of a bucket",
}
_AGAIN: Final = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"})
_WORD: Final = re.compile(r"[A-Za-z0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials that never change: a new Secret is a new store."""

    access: str
    secret: str
    token: str | None

    @classmethod
    def of(cls, secret: Mapping[str, str]) -> "Keys | None":
        """What a Secret holds; None if there is none. Raises SecretNotReadable."""
        if not secret:
            return None
        for_header({name: value.strip() for name, value in secret.items()}, *_ACCESS, *_SECRET, *_TOKEN)
        access, key, token = (
            next((secret[name].strip() for name in names if secret.get(name, "").strip()), None)
            for names in (_ACCESS, _SECRET, _TOKEN)
        )
        for value, names in ((access, _ACCESS), (key, _SECRET)):
            if not value:
                raise SecretNotReadable(f"the Secret of the store has neither a key {' nor '.join(names)}")
        return cls(access or "", key or "", token)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket is, and how it is spoken to."""

    endpoint: str | None
    """None: Amazon's own."""
    region: str
    bucket: str
    addressing: Literal["auto", "path", "virtual"]
    patience: float
    """Seconds that a silent server is waited for."""
    expires: bool = False
    """Whether its Secret has a session token."""

    def __str__(self) -> str:
        return f"bucket {self.bucket} at {self.endpoint or 'Amazon S3'}"


@cache
def _session() -> "Session":
    """Holds botocore's caches: models of the service, and the credentials of this machine."""
    from botocore.session import Session

    nothing = (None, None, os.devnull, None)
    session = Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": nothing,
            "credentials_file": nothing,
        }
    )
    chain: Any = session.get_component("credential_provider")
    chain.providers = [provider for provider in chain.providers if provider.METHOD in _IDENTITIES]
    return session


_making = threading.Lock()  # a session makes one client at a time


def connect(place: Place, keys: Keys | None, verify: str) -> "S3Client":
    """A client; nothing is reached yet. Raises InvalidConfiguration."""
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={
            # With auto, links to Amazon would lead to another region first.
            "addressing_style": "virtual" if (place.addressing, place.endpoint) == ("auto", None) else place.addressing,
            # The signature covers the SHA-256 of what is sent, so the server checks each part; all do, while the
            # newer checksums (CRC in a trailer) are refused by half of them.
            "payload_signing_enabled": True,
        },
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=min(_CONNECT, place.patience),
        read_timeout=place.patience,
        retries={"total_max_attempts": 1},  # `ask` tries again: not what was silent, and never a commit
        max_pool_connections=_CONNECTIONS,
        proxies={},
        tcp_keepalive=True,
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # the stubs lack it
    )
    with _making:
        session = _session()
        if keys is None:  # an identity is turned into credentials somewhere in that region
            session.set_config_variable("region", place.region)
        client: Any = session.create_client(
            "s3",
            region_name=place.region,
            endpoint_url=place.endpoint,
            verify=verify,
            aws_access_key_id=keys.access if keys else None,
            aws_secret_access_key=keys.secret if keys else None,
            aws_session_token=keys.token if keys else None,
            config=config,
        )
    made: S3Client = client
    return made


def preload() -> None:
    """Import the library and read its models, once for all workers."""
    with suppress(ImportError):
        connect(Place("http://localhost", "us-east-1", "none", "path", 1.0), Keys("-", "-", None), os.devnull)


class Authorities:
    """Certificates of authorities by a path, which is all that botocore takes.

    Those of a store come as text, and a worker can write no file: so they lie in memory, under a name in /proc.
    """

    def __init__(self, pem: str | None) -> None:
        """None: those of the machine, and not those that botocore brings along."""
        self._file: int | None = None
        machine = ssl.get_default_verify_paths()
        if pem is None and machine.cafile:
            self.path = machine.cafile
            return
        if pem is None:
            folder = Path(machine.capath or os.devnull)
            pem = "\n".join(file.read_text() for file in sorted(folder.glob("*.0")))
        self._file = os.memfd_create("authorities", os.MFD_CLOEXEC)
        os.write(self._file, pem.encode())
        self.path = f"/proc/self/fd/{self._file}"

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def ask(call: Callable[[], T], tries: int = TRIES) -> T:
    """The answer to a request; sent again after a reset or a 5xx, not after silence."""
    from botocore import exceptions

    for tried in range(1, tries):
        try:
            return call()
        except exceptions.ClientError as error:
            if status(error) < 500 and code(error) not in _AGAIN:  # noqa: PLR2004 - the server's own failures
                raise
        except (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError):
            raise
        except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
            if _distrusted(error):
                raise
        time.sleep(random.uniform(0.5, 1.5) * _FIRST_WAIT * 2 ** (tried - 1))  # noqa: S311 - spreads load, guards nothing
    return call()


def status(error: Any) -> int:
    """The status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: Any) -> str:
    """The server's word for a ClientError, if it is one that may be shown."""
    word = str(error.response.get("Error", {}).get("Code", ""))
    return word if _WORD.fullmatch(word) else ""


@contextmanager
def able() -> Iterator[None]:
    """For what a server need not offer. Raises Unable."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if status(error) in {405, 501} or code(error) == "NotImplemented":
            raise Unable from error
        raise


@contextmanager
def border(place: Place) -> Iterator[None]:
    """Turn what botocore raises into Problems; its own words may have a URL or a header in them and stay inside."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        if error.operation_name == _ASSUME and status(error) < 500:  # noqa: PLR2004 - the server's own failures
            raise StoreUnauthorized(
                f"{place}: there are no credentials for the identity of the pod: the token service says "
                f"{status(error)} {code(error)}; see to AWS_ROLE_ARN and to who may assume that role"
            ) from error
        raise _refusal(place, status(error), code(error)) from error
    except (exceptions.NoCredentialsError, exceptions.CredentialRetrievalError) as error:
        raise StoreUnauthorized(
            f"{place}: there are no credentials: name a Secret in secretRef, or give the pod an identity"
        ) from error
    except (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError) as error:
        raise StoreUnavailable(f"{place}: no answer within {place.patience:.0f} s") from error
    except exceptions.EndpointConnectionError as error:
        raise StoreUnavailable(f"{place} cannot be reached: wrong endpoint, or the server is down") from error
    except exceptions.ParamValidationError as error:
        raise InvalidConfiguration(f"{place}: no name for a bucket") from error
    except (exceptions.BotoCoreError, OSError) as error:
        if _distrusted(error):
            raise StoreUnavailable(
                f"{place}: the server's certificate is not trusted; if its authority is your own, set caBundleRef"
            ) from error
        if isinstance(error, exceptions.SSLError):
            raise StoreUnavailable(f"{place}: no TLS connection could be made; see to endpoint and its port") from error
        raise StoreUnavailable(f"{place}: the connection failed ({type(error).__name__})") from error


def _distrusted(error: BaseException | None) -> bool:
    """Whether the server's certificate was the reason."""
    while error and not isinstance(error, ssl.SSLCertVerificationError):
        first = error.args[0] if error.args else None  # where urllib3 keeps what it met
        error = first if isinstance(first, ssl.SSLError) else error.__cause__ or error.__context__
    return error is not None


def _refusal(place: Place, status: int, code: str) -> Problem:
    said = str(status) if code == str(status) else f"{status} {code}".strip()
    if code == "NoSuchBucket":
        return StoreUnavailable(f"{place} does not exist: create it, or set createBucket: true; or see to endpoint")
    if code in _EXISTS:
        return StoreConflict(f"{place}: the object is there already")
    if code in _SHORT:
        return DataLost(f"{place}: an object is shorter than it was")
    if code == "EntityTooLarge":
        return StoreFull(
            f"{place} takes no more: the server says {said}; remove images or raise the quota, or set a smaller "
            "partSize if the server takes less in one request"
        )
    if code in _FULL or code.startswith("Quota") or status == 507:  # noqa: PLR2004 - Insufficient Storage
        return StoreFull(f"{place} is full: the server says {said}; remove images or raise the quota")
    if why := _WRONG.get(code):
        return InvalidConfiguration(f"{place}: {why} (the server says {said})")
    if code == "RequestTimeTooSkewed":
        return StoreUnauthorized(f"{place}: the clocks of this machine and of the server differ by minutes")
    if code in _UNAUTHORIZED or status in {401, 403}:
        renew = "; if the session token in the Secret has expired, put new credentials there" if place.expires else ""
        return StoreUnauthorized(f"{place} refuses our credentials, or what they may do: the server says {said}{renew}")
    if status == 404:  # noqa: PLR2004 - Not Found
        return NotFound(f"{place}: no such object")
    return StoreUnavailable(f"{place}: the server says {said}")
