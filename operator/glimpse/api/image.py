"""The kind `Image`: intent in `spec`, observation in `status`.

A namespace is a tenant. What a field means to a user stands in its docstring, which becomes the text of
`kubectl explain`.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from glimpse.api.base import (
    Condition,
    Digest,
    Duration,
    GivenDigest,
    Int64,
    ListMap,
    ListSet,
    Metadata,
    Model,
    Name,
    NamespaceName,
    ObjectName,
    Rule,
    Time,
    Words,
    between,
    exactly_one,
)
from glimpse.api.locations import Location
from glimpse.api.source import HttpSource, Manner, Url

DiskFormat = Literal["auto", "raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso", "ploop", "ami", "ari", "aki"]
ContainerFormat = Literal["bare", "ovf", "ova", "docker", "ami", "ari", "aki", "compressed"]
COMPRESSIONS: Final = ("gz", "xz", "bz2", "zst")
"""Of files that are unpacked as they pass, by the ends of their names."""
ETAG: Final = 256
"""The longest ETag that a status holds: forty revisions must fit into one object."""


def stored_format(disk_format: str, convert_to: str | None) -> str:
    """What is stored of an image in `disk_format` with this `spec.format.convertTo`: a disc is raw bytes already."""
    return disk_format if convert_to is None or (disk_format, convert_to) == ("iso", "raw") else convert_to


class KeysRef(Model):
    """OpenPGP keys: every key of a ConfigMap or Secret holds one or several, armoured or binary. Exactly one member."""

    rules = (exactly_one("configMap", "secret"),)

    config_map: ObjectName | None = None
    """The name of a ConfigMap in the Image's own namespace."""
    secret: ObjectName | None = None
    """The name of a Secret in the Image's own namespace, with the label `glimpse.dev/use: source`."""


class ImageRef(Model):
    """Another Image, whose bytes this one has too."""

    name: Name
    """The name of the Image."""
    namespace: NamespaceName | None = None
    """Its namespace, which must share it: `visibility` and `members` there. Omitted: the Image's own."""


class UploadSource(Model):
    """Bytes that are sent to the gateway. Each upload is a revision; until the first one the image waits."""


class Source(Model):
    """Where the bytes come from. Exactly one member."""

    rules = (exactly_one("http", "location", "image", "upload"),)

    http: HttpSource | None = None
    """Fetched from a web server."""
    location: Location | None = None
    """Registered where a store has them already: nothing is copied there."""
    image: ImageRef | None = None
    """The bytes that another Image serves: where the store can, they are not copied. A change there follows here."""
    upload: UploadSource | None = None
    """Sent to the gateway by those who may `update images/data`; each upload becomes a revision. Written as `{}`."""


class Signature(Model):
    """Who must have signed the checksum file, with OpenPGP."""

    url: Url | None = None
    """Where the detached signature is, armoured or binary. Omitted: the checksum file itself is clear-signed."""
    keys_ref: KeysRef
    """The keys; a signature by one of them is enough."""


class Checksum(Model):
    """What the bytes must be, as downloaded. Exactly one of `digest` and `url`."""

    rules = (
        exactly_one("digest", "url"),
        Rule(
            "!has(self.signature) || has(self.url)",
            "signature belongs to url: a digest is not signed; name the checksum file in url, or leave signature out",
        ),
    )

    digest: GivenDigest | None = None
    """`algorithm:hex` with sha256, sha384, sha512, sha1 or md5; small or capital hex digits. Prefer sha256 or longer:
    sha1 and md5 tell damage, but not an attacker."""
    url: Url | None = None
    """A file with the digest, as publishers put beside their images: lines in the style of GNU or BSD, of which the one
    with the image's file name counts, or nothing but the digest."""
    signature: Signature | None = None
    """Who must have signed that file. Only with `url`."""


class Format(Model):
    """What the bytes are, and what is made of them."""

    rules = (
        Rule(
            "!has(self.convertTo) || !has(self.disk) || !(self.disk in ['ploop', 'ami', 'ari', 'aki'])",
            "ploop, ami, ari and aki cannot be converted: leave convertTo out",
        ),
    )

    disk: DiskFormat = "auto"
    """The disk format. `auto`: told from the bytes. If named, the bytes must be it."""
    container: ContainerFormat = "bare"
    """What surrounds the disk, for those who list images; the bytes are not changed."""
    decompress: Literal["auto", "never"] = "auto"
    """What becomes of a compressed file. `auto`: gz, xz, bz2 and zst are told from the bytes, unpacked as they pass and
    stored plain. `never`: the bytes are stored as they come."""

    convert_to: Literal["raw", "qcow2"] | None = None
    """Store the disk in this format, whatever it comes in. Omitted: as it comes."""


class Minimum(Model):
    """What a machine needs to run this image."""

    disk_gib: Annotated[int | None, Field(alias="diskGiB", ge=0, le=1 << 20)] = None
    """Disk, in GiB."""
    memory_mib: Annotated[int | None, Field(alias="memoryMiB", ge=0, le=1 << 24)] = None
    """Memory, in MiB."""


class Revisions(Model):
    """What happens to earlier bytes when the source changes."""

    keep: Annotated[int, Field(ge=1, le=32)] = 1
    """How many revisions are kept: the newest so many, and besides them always the served one."""
    pin: Annotated[int | None, Field(ge=1, le=(1 << 53) - 1)] = None
    """Serve this revision, which must be kept, and not the newest. Newer ones are fetched and kept meanwhile."""
    grace: Annotated[Duration, between("0s", "720h")] = 3600.0
    """How long a revision that is no longer kept stays downloadable by its own link, as a duration: `1h`."""


class Refresh(Model):
    """When the source is looked at again."""

    interval: Annotated[Duration, between("1m", "8760h")]
    """How often, as a duration: `6h`. Unchanged bytes cost one small request."""


class ImageSpec(Model):
    """What you want."""

    rules = (
        Rule(
            "!has(self.refresh) || !has(self.checksum) || !has(self.checksum.digest)",
            "refresh and checksum.digest exclude each other: bytes with a fixed digest never change; leave one out",
        ),
        Rule(
            "!has(self.source.location) || !has(self.stores) || self.source.location.store in self.stores",
            "stores must name the store of source.location too: the bytes are there; name it, or leave stores out",
        ),
        Rule(
            "!has(self.source.location) || !has(self.format) || !has(self.format.convertTo)",
            "what is registered stays as it is: leave format.convertTo out, or fetch the bytes with source.http",
        ),
        Rule(
            "!has(self.source.image) || (!has(self.checksum) && !has(self.format) && !has(self.refresh))",
            "source.image takes what the other Image has verified, and follows it: leave checksum, format, refresh out",
        ),
        Rule(
            "!has(self.source.upload) || !has(self.refresh)",
            "an upload cannot be looked at again: leave refresh out, or fetch the bytes with source.http",
        ),
        Rule(
            "!has(self.source.upload) || !has(self.checksum) || !has(self.checksum.url)",
            "an upload has no file name to find in a checksum file: give checksum.digest, or send Repr-Digest with it",
        ),
    )

    title: Annotated[str | None, Field(max_length=255), Words] = None
    """The name shown to people."""
    source: Source
    """Where the bytes come from. A change is a new revision; the old one is served until that is verified."""
    checksum: Checksum | None = None
    """What the bytes must be."""
    format: Format = Format()
    """What the bytes are."""
    stores: Annotated[tuple[Name, ...] | None, Field(min_length=1, max_length=8), ListSet()] = None
    """Names of ImageStores. Omitted: the default store of that moment, kept in status; with `source.location` the store
    that has the bytes."""
    refresh: Refresh | None = None
    """Look at the source again from time to time: changed bytes become a new revision, verified before it is served."""
    revisions: Revisions = Revisions()
    """What happens to earlier bytes when the source changes."""
    transfer: Manner = Manner()
    """How the bytes are fetched; a change holds from the next attempt on."""
    visibility: Literal["private", "shared", "community", "public"] = "private"
    """Who may see the image besides its own namespace: nobody, `members`, or every authenticated caller."""
    members: Annotated[tuple[NamespaceName, ...], Field(max_length=64), ListSet()] = ()
    """Namespaces that may use a shared image."""
    protected: bool = False
    """Refuse to delete the image."""
    hidden: bool = False
    """Leave the image out of lists."""
    deactivated: bool = False
    """Refuse downloads and uploads to all but administrators, those who may `get images/deactivated`."""
    tags: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=255), Words], ...], Field(max_length=64), ListSet()
    ] = ()
    """Words to find the image by."""
    properties: Annotated[
        dict[str, Annotated[str, Field(max_length=1024)]],
        Field(max_length=128),
        Rule(
            "self.all(key, size(key) >= 1 && size(key) <= 255)",
            "a property has a name of 1 to 255 characters; put long text into its value",
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    """Free strings for those who use the image, as `os_distro: debian`."""
    minimum: Minimum | None = None
    """What a machine needs to run this image."""
    deletion_policy: Literal["Delete", "Retain"] = "Delete"
    """What becomes of the bytes when the Image is deleted."""
    suspend: bool = False
    """Do nothing until this is unset; what is served stays served."""


class Verification(Model):
    """What was proven of the bytes as downloaded, before they could be seen."""

    digest: Digest
    """What they were expected to have, and had."""
    file: Annotated[str | None, Field(max_length=512)] = None
    """The checksum file that said so, without credentials and query; absent if it was the spec."""
    key: Annotated[str | None, Field(max_length=64)] = None
    """The fingerprint of the OpenPGP key that signed the file; absent if no signature was asked for."""


class Revision(Model):
    """The bytes of one revision, and where they came from."""

    revision: Int64
    """Its number; never used again for other bytes."""
    digest: Digest
    """Of the stored bytes, computed by us."""
    digests: Annotated[dict[str, Annotated[str, Field(max_length=128)]], Field(max_length=8)] = {}  # noqa: RUF012 - pydantic copies it
    """Further digests of the stored bytes, hex by algorithm."""
    source_digest: Digest | None = None
    """Of the bytes as downloaded, where decompression or conversion changed them."""
    source_format: Annotated[str | None, Field(max_length=16)] = None
    """What the bytes were as downloaded, where that says more than `diskFormat`: `raw.xz` was decompressed, `vmdk`
    converted, `vmdk.xz` both, and `xz` is stored compressed."""
    size: Int64
    """Of the stored bytes."""
    virtual_size: Int64 = 0
    """Of the disk that a machine sees, in bytes."""
    disk_format: Annotated[str, Field(max_length=16)] = "raw"
    """What the bytes are."""
    location: Location | None = None
    """Where others have put the bytes, if they are registered and not copied; `etag` and `lastModified` say which they
    are."""
    source_url: Annotated[str | None, Field(max_length=2048)] = None
    """Where the bytes came from, without credentials and query."""
    etag: Annotated[str | None, Field(max_length=ETAG)] = None
    """The server's word for this version of its file."""
    last_modified: Annotated[str | None, Field(max_length=64)] = None
    """The server's time for this version of its file."""
    verification: Verification | None = None
    """What was proven of the bytes as downloaded; absent without a checksum."""
    stored_at: Time
    """When the bytes were complete and verified."""
    spec_hash: Annotated[str, Field(max_length=64)] = ""
    """Of the part of the spec that decides about the bytes."""


class Artifact(Revision):
    """The revision that is served."""

    container_format: Annotated[str, Field(max_length=16)] = "bare"
    """What surrounds the disk."""
    url: Annotated[str | None, Field(max_length=2048)] = None
    """Where the gateway serves exactly this revision."""


class Failure(Model):
    """What went wrong last, and when it is tried again."""

    reason: Annotated[str, Field(max_length=63)]
    """What to do about it, as one word."""
    message: Annotated[str, Field(max_length=2048)]
    """The same for a person."""
    attempt: Int64 = 1
    """How often in a row it failed."""
    crashes: Int64 = 0
    """How often in a row the worker crashed."""
    generation: Int64 = 0
    """The generation of the Image that failed."""
    references: Annotated[str | None, Field(max_length=64)] = None
    """Of the versions of the objects that the attempt used; when they change, it is tried again."""
    next_attempt_at: Time | None = None
    """When it is tried again; absent if a person must act first."""


class StoreStatus(Model):
    """One store of this image."""

    name: Name
    """The ImageStore."""
    location: Annotated[str | None, Field(max_length=4096)] = None
    """Where in the store."""
    revision: Int64 | None = None
    """The revision it holds."""
    size: Int64 | None = None
    """Bytes it holds."""
    pending_revision: Int64 | None = None
    """A revision that it may hold too: written before a copy to it begins."""
    failure: Failure | None = None
    """Why it does not hold the image."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8), ListMap("type")] = ()
    """`Ready`: the store holds the served revision. `Bootable`: only while no machine can start from it there."""


class Summary(Model):
    """For the columns of `kubectl get`, whose paths can neither count nor shorten."""

    stores: Annotated[str | None, Field(max_length=16)] = None
    """Stores that hold the image, of those that shall."""
    digest: Annotated[str | None, Field(max_length=32)] = None
    """The beginning of the digest."""
    size: Annotated[str | None, Field(max_length=16)] = None
    """Of the stored bytes."""
    virtual_size: Annotated[str | None, Field(max_length=16)] = None
    """Of the disk that a machine sees."""
    progress: Annotated[str | None, Field(max_length=16)] = None
    """How far the transfer is."""


class PendingUpload(Model):
    """An upload that may write to stores."""

    uid: Annotated[str, Field(max_length=64)]
    """Of the ImageUpload."""
    size: Int64 | None = None
    """Bytes that it has announced; they count as used where the namespace has a quota."""
    used: Annotated[dict[str, Int64], Field(max_length=16)] = {}  # noqa: RUF012 - pydantic copies it
    """Bytes that the namespace had before it, by store with a quota."""


class Pending(Model):
    """The revision in the making, written before the first byte goes to a store."""

    revision: Int64
    """Its number."""
    spec_hash: Annotated[str, Field(max_length=64)]
    """Of the part of the spec that decides about the bytes."""
    stores: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    """Stores that may hold bytes of it."""
    renews: Int64 | None = None
    """The revision that it follows because the source was seen to have other bytes."""
    expects: Digest | None = None
    """What the bytes must be: they were lost, and come from the source once more."""
    upload: PendingUpload | None = None
    """The upload that brings the bytes."""
    failure: Failure | None = None
    """Why it is not there yet."""


class Transfer(Model):
    """Only while a transfer runs."""

    stage: Literal["Transferring", "Converting"] = "Transferring"
    """What is counted: the bytes from the source, or those of the converted disk."""
    bytes_done: Int64 = 0
    """Bytes that have passed."""
    bytes_total: Int64 | None = None
    """Bytes that the server has announced, or that the disk has."""
    percent: Annotated[int | None, Field(ge=0, le=100)] = None
    """How far the transfer is."""
    bytes_per_second: Int64 = 0
    """Over the last seconds."""
    eta_seconds: Int64 | None = None
    """How long it will take at this speed."""
    attempt: Int64 = 1
    """The number of this attempt."""
    started_at: Time
    """When this attempt began."""


class HistoryEntry(Revision):
    """A revision whose bytes are kept."""

    stores: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    """Stores that hold it."""
    damaged: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    """Stores that hold it damaged: kept until there is a good copy, and never served."""
    verified: Annotated[dict[str, Time], Field(max_length=16)] = {}  # noqa: RUF012 - pydantic copies it
    """When a store's bytes were read again and found good, by store; before that, `storedAt` counts."""


class Looks(Model):
    """The looks at the source."""

    last_check_time: Time | None = None
    """When the source was looked at last, and answered."""
    next_check_time: Time | None = None
    """When it is looked at again."""
    failure: Failure | None = None
    """Why the last look found nothing out."""


class Removal(Model):
    """Bytes that are to go."""

    revision: Int64
    """The revision."""
    stores: Annotated[tuple[Name, ...], Field(max_length=16)]
    """Stores to remove it from."""
    after: Time
    """Not before this."""
    attempt: Int64 = 0
    """How often in a row it failed."""


class ImageStatus(Model):
    """What is. Written by the operator alone."""

    observed_generation: int = -1
    """The generation of the spec that this status speaks of."""
    last_handled_reconcile_at: Annotated[str | None, Field(max_length=128)] = None
    """The value of the annotation `glimpse.dev/reconcile-requested-at` that was acted upon last."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), ListMap("type")] = ()
    """`Ready`, `Reconciling`, `Stalled` (kstatus), `Stored`, `SourceVerified`, `Outdated`."""
    artifact: Artifact | None = None
    """The revision that is served."""
    stores: Annotated[tuple[StoreStatus, ...], Field(max_length=16), ListMap("name")] = ()
    """Each store of this image."""
    summary: Summary | None = None
    """For the columns of `kubectl get`."""
    last_revision: Int64 | None = None
    """The highest revision number that was ever used: none is used again for other bytes."""
    pending: Pending | None = None
    """The revision in the making."""
    transfer: Transfer | None = None
    """Only while a transfer runs."""
    refresh: Looks | None = None
    """The looks at the source: with `spec.refresh`, or when bytes were lost."""
    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=40)] = ()
    """Revisions whose bytes are kept, newest first."""
    removals: Annotated[tuple[Removal, ...], Field(max_length=128)] = ()
    """Bytes that are to go."""


class Image(Model):
    """A virtual-machine image: where its bytes come from, what they must be, and which stores keep them."""

    rules = (
        Rule(
            "size(self.metadata.name) <= 63", "the name of an Image has at most 63 characters: put more into spec.title"
        ),
        Rule(
            "!self.metadata.name.matches('[.](sha256|sha512|md5)$')",
            "the name of an Image must not end in .sha256, .sha512 or .md5: so end the addresses of checksum files",
        ),
    )

    metadata: Metadata
    spec: ImageSpec
    """What you want."""
    status: ImageStatus = ImageStatus()
    """What is."""
