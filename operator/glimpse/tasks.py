"""Task and Event: the only words between operator and worker, as JSON.

A task holds everything that a worker may know, so a worker needs no token and can reach no other store. The
worker answers with events, one JSON line each; the last one is an answer (`Done`, `Failed`). A stream that ends
without an answer means that the worker was lost.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    field_serializer,
)

from glimpse.api.locations import KEY_LENGTH
from glimpse.problems import REASONS, Problem, Transient
from glimpse.settings import Addresses, Spool, Transfers

URL_LENGTH: Final = 2048
"""The longest URL that status can hold."""
FILE_LENGTH: Final = 512
"""The longest name of a checksum file that status can hold."""
ALGORITHMS: Final = ("sha256", "sha384", "sha512", "sha1", "md5")
"""Of digests."""

_Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]
_Text = Annotated[str, Field(max_length=253)]
_Algorithm = Annotated[str, Field(pattern=f"^({'|'.join(ALGORITHMS)})$")]
_DIGEST: Final = f"^(({'|'.join(ALGORITHMS)}):[0-9a-f]{{1,128}})?$"
_Hex = Annotated[str, Field(pattern="^[0-9a-f]{1,128}$")]


def _short(longest: int) -> AfterValidator:
    """What a server made too long is left out."""
    return AfterValidator(lambda text: text if text is None or len(text) <= longest else None)


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        """This word as one line of JSON, secrets in clear: it only crosses a private socket."""
        return self.model_dump_json(context={"secrets": True}).encode() + b"\n"


class _Secrets(_Word):
    @field_serializer("secret", "headers", "certificate", "proxy", check_fields=False, when_used="json")
    def _reveal(self, value: Mapping[str, SecretStr], info: Any) -> dict[str, str]:
        shown = bool(info.context and info.context.get("secrets"))
        return {k: v.get_secret_value() if shown else str(v) for k, v in value.items()}


class Share(_Word):
    """What a namespace may keep in a store."""

    namespace: str
    limit: int
    """Bytes in all."""
    used: int
    """Of them, before this task."""


class StoreRef(_Secrets):
    """One store, with all that its driver needs."""

    name: str
    driver: str
    """The name of the entry point in `glimpse.stores`."""
    config: dict[str, Any]
    """The driver's member of the ImageStore, as written; the worker validates it."""
    secret: dict[str, SecretStr] = {}
    """The data of the store's Secret."""
    ca_bundle: str | None = None
    """PEM certificates of the authorities that are trusted; None: those of the machine."""
    installation: str
    """Whose marker the store must carry."""
    claimed: bool = False
    """The marker was seen before: a store without one is not taken anew, it is missing."""
    reserve: int = 0
    """Bytes that must stay free, also while writing."""
    max_image_size: int | None = None
    """Bytes of the largest image."""
    told: tuple["Record", ...] = ()
    """Objects that are registered in it, as far as they are needed: for a store that cannot note them itself."""
    share: Share | None = None
    """What the image's namespace may keep here; None: there is no limit."""


class Signature(_Word):
    """Who must have signed a checksum file."""

    url: str | None = None
    """The detached signature; None: the file is clear-signed."""
    keys: dict[str, Base64Bytes]
    """OpenPGP keys as they were given, armoured or binary, by the name of their entry. Made of base64."""
    keys_from: str
    """Where the entries are, as `ConfigMap team-a/debian-keys`."""


class ChecksumFile(_Word):
    """A file with the digest of the bytes as downloaded. Credentials go there only if it is an origin of `urls`."""

    url: str
    signature: Signature | None = None
    """None: the file is believed without one."""


class HttpOrigin(_Secrets):
    """A web source with its secrets resolved."""

    kind: Literal["http"] = "http"
    urls: tuple[str, ...]
    secret: dict[str, SecretStr] = {}
    """`username` and `password`, or `token`; empty without credentials."""
    secret_hosts: tuple[str, ...] = ()
    """Host names that the Secret's owner allows, with a port or without; empty: every host in `urls`."""
    headers: dict[str, SecretStr] = {}
    """Headers of requests."""
    headers_hosts: tuple[str, ...] = ()
    """The same as `secret_hosts`."""
    certificate: dict[str, SecretStr] = {}
    """`tls.crt` and `tls.key` in PEM, for servers that ask for a certificate; empty without."""
    certificate_hosts: tuple[str, ...] = ()
    """The same as `secret_hosts`."""
    proxy: dict[str, SecretStr] = {}
    """`address`, and `username` and `password` if it wants them; empty without a proxy."""
    proxy_hosts: tuple[str, ...] = ()
    """Hosts that may be this proxy; empty: the one of the address."""
    ca_bundle: str | None = None
    """PEM, besides the usual authorities."""
    insecure_skip_tls_verify: bool = False

    def secrets(self) -> Iterator[SecretStr]:
        """All that must not be shown."""
        for held in (self.secret, self.headers, self.certificate, self.proxy):
            yield from held.values()


class StoreOrigin(_Word):
    """A copy that another store holds."""

    kind: Literal["store"] = "store"
    store: StoreRef


class ImageOrigin(_Word):
    """The bytes of another Image's revision: a store that has them makes one object of the other, if it can."""

    kind: Literal["image"] = "image"
    stores: tuple[StoreRef, ...]
    """That hold it, the one first that is to be read from."""
    key: Annotated[str, Field(pattern=r"^[0-9a-z-]{1,80}$")]
    """Its name in each of them."""
    digest: Annotated[str, Field(pattern=_DIGEST)]
    """`algorithm:hex` of its bytes."""


class LocationOrigin(_Word):
    """Bytes that others have put into a store, to be registered there and copied elsewhere."""

    kind: Literal["location"] = "location"
    store: StoreRef
    key: Annotated[str, Field(min_length=1, max_length=KEY_LENGTH)]
    """Where in the store."""


class UploadOrigin(_Word):
    """Bytes that somebody sends, through a pipe in the form of `sources.pipe`."""

    kind: Literal["upload"] = "upload"
    uid: Annotated[str, Field(pattern=r"^[0-9a-z-]{1,60}$")]
    """Of the upload: more of it can be added only to what was kept of the same one."""
    size: _Bytes | None = None
    """Of all that is sent, if it is known."""
    digests: tuple[Annotated[str, Field(pattern=_DIGEST)], ...] = ()
    """`algorithm:hex` that the sender says of it, besides the checksum that the Image has."""
    pipe: int | None = None
    """The descriptor to read from, as the worker has it. None: nothing more comes; either a store has all, or none."""


class Verification(_Word):
    """What was proven of the bytes as downloaded."""

    digest: Annotated[str, Field(pattern=f"^({'|'.join(ALGORITHMS)}):[0-9a-f]{{1,128}}$")]
    """`algorithm:hex`: expected, and found."""
    file: Annotated[str | None, Field(max_length=FILE_LENGTH)] = None
    """The checksum file that said so, as people may see it; None: the spec itself."""
    key: Annotated[str | None, Field(pattern="^[0-9A-F]{32,64}$")] = None
    """Fingerprint of the OpenPGP certificate that signed the file; None: no signature was asked for."""


class Record(_Word):
    """What is written beside each object (at most 4 KiB as JSON); status can be rebuilt from it.

    Others may write to a store, so what status could not hold is no record.
    """

    installation: _Text
    namespace: _Text
    name: _Text
    uid: Annotated[str, Field(pattern="^[0-9a-z-]{1,60}$")]
    revision: Annotated[int, Field(ge=0, lt=1 << 63)]
    spec_hash: Annotated[str, Field(max_length=64)]
    retained: bool = False
    """The Image is gone, its bytes stay: the sweep leaves them."""
    digest: Annotated[str, Field(pattern=_DIGEST)] = ""
    """`algorithm:hex` of the stored bytes."""
    digests: Annotated[dict[_Algorithm, _Hex], Field(max_length=8)] = {}
    """Hex by algorithm."""
    source_digest: Annotated[str, Field(pattern=_DIGEST)] = ""
    """`algorithm:hex` of the bytes as downloaded, if those that are stored are others."""
    source_format: Annotated[str, Field(max_length=16)] = ""
    """What the bytes were as downloaded, if that is not `disk_format` alone: see `status.artifact.sourceFormat`."""
    size: _Bytes = 0
    virtual_size: _Bytes = 0
    disk_format: Annotated[str, Field(max_length=16)] = ""
    source_url: Annotated[str | None, _short(URL_LENGTH)] = None
    """Without credentials and query."""
    etag: Annotated[str | None, _short(1024)] = None
    last_modified: Annotated[str | None, _short(64)] = None
    verification: Verification | None = None
    location: Annotated[str, Field(max_length=KEY_LENGTH)] = ""
    """Of an object that is registered: where in the store its bytes lie. `size`, `etag` and `last_modified` say which
    they are."""
    stored_at: Annotated[str, Field(pattern=r"^([0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z)?$")] = ""
    """RFC 3339."""

    @property
    def key(self) -> str:
        """The object's name in every store."""
        return f"{self.uid}-{self.revision}"


class Fetch(_Word):
    """Bring one revision into stores: verified, all in one pass. Answered with `Done.record`.

    A store that already holds the key with a record of the same `spec_hash` is not written again: its object was
    verified before it was committed, and it feeds the other stores.
    """

    do: Literal["fetch"] = "fetch"
    attempt: str
    """Names this attempt in the stores; unique."""
    record: Record
    """The identity of the object; the worker fills in the rest."""
    origin: Annotated[
        HttpOrigin | StoreOrigin | LocationOrigin | ImageOrigin | UploadOrigin, Field(discriminator="kind")
    ]
    checksum: str | None = None
    """`algorithm:hex` of the bytes as downloaded."""
    checksum_file: ChecksumFile | None = None
    """Where that is to be found, if it is not given."""
    digests: tuple[_Algorithm, ...] = ()
    """Digests to compute besides what is needed anyway."""
    disk_format: str = "auto"
    decompress: Literal["auto", "never"] = "auto"
    convert_to: Literal["raw", "qcow2"] | None = None
    limit: int
    """Bytes of the largest image of the installation, as downloaded and as stored."""
    ratio: int = 1000
    """Bytes that each byte of a compressed file may become, zeros not counted."""
    unless: str | None = None
    """`algorithm:hex` of bytes that are known, as downloaded or as stored: if they come again, nothing is stored; see
    `Done.unchanged`."""
    expects: str | None = None
    """`sha256:hex` that the stored bytes must have: a revision that is known, to be copied or to be mended. The source
    has others: `DataLost`; a store has others under the key: `StoreConflict`."""
    stores: tuple[StoreRef, ...]
    addresses: Addresses = Addresses()
    transfers: Transfers = Transfers()
    spool: Spool = Spool()
    bandwidth: int = 0
    """Bytes per second that all workers of the machine may receive together; 0: any number."""


class Look(_Word):
    """Ask a source whether it still has the bytes that are known: one small request. Answered with `Done.unchanged`."""

    do: Literal["look"] = "look"
    origin: Annotated[HttpOrigin | LocationOrigin, Field(discriminator="kind")]
    url: str | None = None
    """Where they came from, without credentials and query: that mirror is asked first."""
    etag: str | None = None
    """What it said of them, if it said it."""
    last_modified: str | None = None
    size: int | None = None
    """Their length as downloaded, if it is known."""
    likely: bool = False
    """What is not known need not be proven: the length as downloaded, where no validator is known; and the length."""
    addresses: Addresses = Addresses()
    transfers: Transfers = Transfers()


class Remove(_Word):
    """Remove objects, and what dead attempts have left of them. Absent is fine.

    With `retain`, complete objects stay and their records say that they are retained.
    """

    do: Literal["remove"] = "remove"
    uid: str = ""
    """Every key of this Image ..."""
    revisions: tuple[int, ...] = ()
    """... or these revisions only."""
    keys: tuple[str, ...] = ()
    """Instead of a uid: exactly these keys, as the sweep found them."""
    retain: bool = False
    erase: dict[str, tuple[str, ...]] = {}
    """With a uid: prefixes of locations by store. The bytes of what is registered there go too, if they are still the
    same and no other Image has registered them."""
    stores: tuple[StoreRef, ...]


class Probe(_Word):
    """Look at a store: can it be reached, whose is it, how much room has it. Writes the marker of a new store."""

    do: Literal["probe"] = "probe"
    store: StoreRef


class List(_Word):
    """Say what a store holds: `Listed` events, then `Done`."""

    do: Literal["list"] = "list"
    store: StoreRef


class Verify(_Word):
    """Read an object and compare it with its record. `DataLost` if it is gone or differs."""

    do: Literal["verify"] = "verify"
    key: str
    digest: str
    store: StoreRef
    rate: int = 0
    """Bytes per second, at most; 0: as fast as it goes."""


Task = Annotated[Fetch | Look | Remove | Probe | List | Verify, Field(discriminator="do")]


class Trouble(_Word):
    """A Problem on its way from the worker to the operator."""

    reason: str
    message: str
    retry_after: float | None = None

    @classmethod
    def of(cls, problem: Problem) -> "Trouble":
        """Pack a problem."""
        return cls(reason=problem.reason, message=problem.message, retry_after=problem.retry_after)

    def problem(self) -> Problem:
        """Unpack it; a reason of a newer worker is taken as Transient."""
        return REASONS.get(self.reason, Transient)(self.message, retry_after=self.retry_after)


class Started(_Word):
    """The first event: the worker lives."""

    event: Literal["started"] = "started"
    pid: int


class Progress(_Word):
    """How far a fetch is; some times a second at most."""

    event: Literal["progress"] = "progress"
    done: _Bytes
    total: _Bytes | None = None
    converting: bool = False
    """Bytes of the converted disk are counted, and no more those of the source."""
    start: _Bytes = 0
    """Of `done`: what an earlier transfer had left, so that it was not fetched now."""


class Taking(_Word):
    """Of an upload: the next byte that is read from the pipe is this one; those before it are kept already."""

    event: Literal["taking"] = "taking"
    start: _Bytes


class Mirror(_Word):
    """How one of several mirrors did, when a transfer from it is over."""

    event: Literal["mirror"] = "mirror"
    number: Annotated[int, Field(ge=0)]
    """Its place in the origin's `urls`."""
    bytes: _Bytes = 0
    """Received from it ..."""
    seconds: float = 0.0
    """... in so much time of waiting for it, over all connections."""
    failed: bool = False
    """It broke, or did not answer as it should."""


class Stored(_Word):
    """One store holds the object, complete and verified."""

    event: Literal["stored"] = "stored"
    store: str
    location: str
    size: _Bytes


class StoreFailed(_Word):
    """One store could not; the others go on."""

    event: Literal["store-failed"] = "store-failed"
    store: str
    trouble: Trouble


class Removed(_Word):
    """One store holds nothing of it any more."""

    event: Literal["removed"] = "removed"
    store: str


class Listed(_Word):
    """Some of what a store holds."""

    event: Literal["listed"] = "listed"
    entries: tuple["ListedEntry", ...]


class ListedEntry(_Word):
    """One thing in a store."""

    key: str
    size: _Bytes
    age: float
    """Seconds since it was last written."""
    partial: bool
    """Left by an attempt; not an object."""
    record: Record | None = None


class Done(_Word):
    """The answer: it is done, as far as the `StoreFailed` events do not say otherwise."""

    event: Literal["done"] = "done"
    record: Record | None = None
    """Of a fetch: what was stored."""
    unchanged: bool = False
    """Of a look: the source has the known bytes. Of a fetch with `unless`: they came again, and nothing was stored."""
    total: _Bytes | None = None
    """Of a probe: bytes in all, where the store can tell."""
    used: _Bytes | None = None
    free: _Bytes | None = None
    endpoint: str | None = None
    boot_format: Annotated[str | None, Field(max_length=16)] = None
    """Of a probe: the disk format of what machines start from there, if they do."""


class Failed(_Word):
    """The answer: it could not be done, and no store holds the object."""

    event: Literal["failed"] = "failed"
    trouble: Trouble


Event = Annotated[
    Started | Progress | Taking | Mirror | Stored | StoreFailed | Removed | Listed | Done | Failed,
    Field(discriminator="event"),
]
Answer = Done | Failed

TASK: TypeAdapter[Task] = TypeAdapter(Task)
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
