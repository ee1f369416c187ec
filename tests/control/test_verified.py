"""SourceVerified: exactly what was proven of the bytes that are served, for as long as they are."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.control.support import DIGEST, NOW, URL, World, image, make_record

from glimpse.api.image import ImageSpec
from glimpse.control.draft import spec_hash
from glimpse.control.seen import FetchWork, Result
from glimpse.problems import ChecksumMismatch, ChecksumUnavailable, SignatureInvalid, SourceUnavailable
from glimpse.tasks import Stored, Verification

SUMS, KEY = "https://a.example/SHA256SUMS", "DF9B9C49EAA9298432589D76DA87E80D6294BE9B"
FILE: dict[str, Any] = {"url": SUMS}
SIGNED = FILE | {"signature": {"url": f"{SUMS}.sign", "keysRef": {"configMap": "keys"}}}
BY_DIGEST = Verification(digest=DIGEST)
BY_FILE = Verification(digest=DIGEST, file=SUMS)
BY_KEY = Verification(digest=DIGEST, file=SUMS, key=KEY)


def world(checksum: Mapping[str, Any] | None) -> World:
    """An image whose first fetch runs."""
    made = World(image({"checksum": checksum} if checksum else {}))
    made.step()
    return made


def done(checksum: Mapping[str, Any] | None, proof: Verification | None) -> World:
    """The same after it has ended well, with this proof in its record."""
    made = world(checksum)
    made.succeed(verification=proof)
    return made


def shown(made: World) -> dict[str, str] | None:
    """The proof as status has it."""
    artifact = made.image.status.artifact
    return artifact.verification.dump() if artifact and artifact.verification else None


@pytest.mark.parametrize(
    ("checksum", "proof", "reason", "message"),
    [
        ({"digest": DIGEST}, BY_DIGEST, "DigestMatched", f"the downloaded bytes have the digest {DIGEST}"),
        (
            FILE,
            BY_FILE,
            "ChecksumFileMatched",
            f"the downloaded bytes have the digest {DIGEST}, as {SUMS} says; no signature was asked for",
        ),
        (
            SIGNED,
            BY_KEY,
            "SignatureMatched",
            f"the downloaded bytes have the digest {DIGEST}, as {SUMS} says, which is signed by the OpenPGP key {KEY}",
        ),
    ],
)
def test_what_was_proven(checksum: dict[str, Any], proof: Verification, reason: str, message: str) -> None:
    """The reason tells the kind, the message digest, file and key; status has the parts."""
    made = done(checksum, proof)
    assert made.condition("SourceVerified") == ("True", reason)
    assert made.message("SourceVerified") == message
    assert shown(made) == proof.model_dump(exclude_none=True)


def test_nothing_was_proven() -> None:
    """Without a checksum nothing is claimed."""
    made = done(None, None)
    assert made.condition("SourceVerified") is None
    assert shown(made) is None


@pytest.mark.parametrize(("checksum", "proof"), [(FILE, BY_FILE), (SIGNED, BY_KEY)])
def test_it_survives_a_restart(checksum: dict[str, Any], proof: Verification) -> None:
    """Status is the only memory: an operator that starts anew says the same."""
    made = done(checksum, proof)
    before = made.condition("SourceVerified")
    read = made.image.model_validate(
        {"metadata": made.image.metadata.model_dump(), "spec": made.image.spec.dump()}
        | {"status": made.image.status.dump() | {"conditions": []}}
    )
    again = World(read, now=NOW)
    again.step()
    assert again.condition("SourceVerified") == before


@pytest.mark.parametrize(("checksum", "proof"), [({"digest": DIGEST}, BY_DIGEST), (FILE, BY_FILE), (SIGNED, BY_KEY)])
def test_it_is_rebuilt_from_a_store(checksum: dict[str, Any], proof: Verification) -> None:
    """A lost status finds the object with its record: the worker adopts it, and its proof with it."""
    before = done(checksum, proof)
    made = world(checksum)
    work, made.running = made.running, None
    assert isinstance(work, FetchWork)
    found = make_record(work, verification=proof)
    made.step(Result(work, record=found, stored={"fast": Stored(store="fast", location="file:///fast", size=10)}))
    assert made.condition("SourceVerified") == before.condition("SourceVerified")


@pytest.mark.parametrize("problem", [ChecksumMismatch, ChecksumUnavailable, SignatureInvalid])
def test_what_could_not_be_proven(problem: type[ChecksumMismatch]) -> None:
    """While nothing is served it is False with the reason; another failure says nothing about the bytes."""
    made = world(SIGNED)
    made.fail(problem("not today"))
    assert made.condition("SourceVerified") == ("False", problem.reason)
    assert made.condition("Stalled") == ("True", problem.reason)
    assert made.message("SourceVerified") == "not today"
    made.edit(checksum=FILE)
    made.step()
    assert made.condition("SourceVerified") is None
    made.fail(SourceUnavailable("away"))
    assert made.condition("SourceVerified") is None


def test_it_speaks_of_what_is_served() -> None:
    """A newer revision that fails takes nothing from the older one, and says so itself."""
    made = done(SIGNED, BY_KEY)
    made.edit(checksum=SIGNED | {"url": "https://b.example/SUMS"})
    made.step()
    assert made.condition("SourceVerified") == ("True", "SignatureMatched")
    made.fail(SignatureInvalid("by nobody"))
    assert made.condition("SourceVerified") == ("True", "SignatureMatched")
    assert SUMS in made.message("SourceVerified")
    assert made.condition("Stalled") == ("True", "SignatureInvalid")
    assert made.condition("Outdated") == ("True", "NewRevisionWanted")


def test_it_goes_with_the_checksum() -> None:
    """New bytes without a checksum are not proven, whatever the old ones were."""
    made = done(SIGNED, BY_KEY)
    made.edit(checksum=None)
    made.step()
    made.succeed()
    assert made.image.status.artifact
    assert made.image.status.artifact.revision == 2
    assert made.condition("SourceVerified") is None


def test_a_digest_that_the_bytes_have_is_a_proof() -> None:
    """A digest that is added to bytes which have it moves nothing, and stays proven when the spec goes on."""
    made = done(None, None)
    made.edit(checksum={"digest": DIGEST})
    assert made.step().start is None
    assert made.condition("SourceVerified") == ("True", "DigestMatched")
    made.edit(checksum={"digest": "sha256:" + "b" * 64})
    assert made.step().start
    assert made.condition("SourceVerified") == ("True", "DigestMatched")
    assert DIGEST in made.message("SourceVerified")


def test_a_digest_in_place_of_a_file_moves_nothing() -> None:
    """What the spec names now is what is stated; the way back is a new revision, since the file may have changed."""
    made = done(SIGNED, BY_KEY)
    made.edit(checksum={"digest": DIGEST})
    assert made.step().start is None
    assert made.condition("SourceVerified") == ("True", "DigestMatched")
    made.edit(checksum=SIGNED)
    assert made.step().start


def test_what_is_another_revision() -> None:
    """Mirrors, checksum file and signature count together; what the keys are called too."""

    def of(checksum: dict[str, Any] | None, url: str = URL) -> str:
        spec = {"source": {"http": {"urls": [url]}}} | ({"checksum": checksum} if checksum else {})
        return spec_hash(ImageSpec.model_validate(spec))

    signature = SIGNED["signature"]
    all_of_them = [
        of(None),
        of({"digest": DIGEST}),
        of(FILE),
        of(FILE, f"{URL}2"),
        of({"url": f"{SUMS}2"}),
        of(SIGNED),
        of(FILE | {"signature": signature | {"url": f"{SUMS}.gpg"}}),
        of(FILE | {"signature": {"keysRef": {"configMap": "keys"}}}),
        of(FILE | {"signature": signature | {"keysRef": {"configMap": "others"}}}),
        of(FILE | {"signature": signature | {"keysRef": {"secret": "keys"}}}),
    ]
    assert len(set(all_of_them)) == len(all_of_them)
    assert of({"digest": DIGEST}, f"{URL}2") == of({"digest": DIGEST})


def test_changed_keys_are_looked_for() -> None:
    """A signature by a key that was missing is tried again when the ConfigMap has it, without a touch of the Image."""
    made = world(SIGNED)
    verdict = made.fail(SignatureInvalid("is by another"), references="one")
    assert verdict.look
    assert made.again
    made.now = made.again
    made.references = "one"
    assert made.step().start is None
    made.references = "two"
    assert isinstance(made.step().start, FetchWork)
    plain = world(FILE)
    assert not plain.fail(ChecksumUnavailable("no line"), references="").look
