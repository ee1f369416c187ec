"""What is said of an image that no machine can start from, in a store whose images machines start from."""

import pytest
from tests.control.support import NOW, World, image
from tests.control.test_originals import entry
from tests.control.test_store import DONE, after, store

from glimpse.control.conditions import find
from glimpse.control.seen import Allowed, Original, StoreView
from glimpse.control.store import StoreSeen, decide, view

DISKS = StoreView("disks", "1", boot_format="raw")


def world(**spec: object) -> World:
    """A store that machines start from, beside one that they do not."""
    return World(image({"stores": ["disks", "fast"], **spec}), {"disks": DISKS, "fast": StoreView("fast", "1")})


def stored(it: World, **record: object) -> None:
    """The image is fetched, as such a file."""
    it.step()
    it.succeed(**record)


def said(it: World) -> dict[str, str]:
    """By store, why no machine can start from it there."""
    found = ((s.name, find(s.conditions, "Bootable")) for s in it.image.status.stores)
    return {name: condition.message for name, condition in found if condition and condition.status == "False"}


def warnings(it: World) -> list[str]:
    """The Events about it."""
    return [message for kind, reason, message in it.said if (kind, reason) == ("Warning", "NotBootable")]


def test_a_qcow2_is_no_disk() -> None:
    """The store that machines start from says so, with the way out; the image is Ready for all that."""
    it = world()
    stored(it, disk_format="qcow2")
    text = "machines start from disks as it lies there, and find qcow2 in place of raw; "
    text += "set spec.format.convertTo to raw"
    assert said(it) == {"disks": text}
    (condition,) = (find(s.conditions, "Bootable") for s in it.image.status.stores if s.name == "disks")
    assert condition
    assert condition.reason == "NotBootable"
    assert it.condition("Ready") == ("True", "Stored")
    assert it.condition("Stored") == ("True", "Stored")
    assert warnings(it) == [text]


def test_it_is_said_once_a_revision() -> None:
    """However often one looks; again of the next revision, and no more once the bytes are a disk."""
    it = world()
    stored(it, disk_format="qcow2")
    for _ in range(3):
        it.later(60)
        it.step()
    assert len(warnings(it)) == 1
    it.edit(source={"http": {"urls": ["https://a.example/newer.qcow2"]}})
    it.content = 1
    stored(it, disk_format="qcow2")
    assert len(warnings(it)) == 2
    it.edit(format={"convertTo": "raw"})
    it.content = 2
    stored(it, disk_format="raw", source_format="qcow2")
    assert said(it) == {}
    assert len(warnings(it)) == 2


@pytest.mark.parametrize("disk", ["raw", "iso", "ami"])
def test_what_is_read_as_a_disk(disk: str) -> None:
    """These are what a machine finds where it looks for raw."""
    it = world()
    stored(it, disk_format=disk)
    assert said(it) == {}
    assert warnings(it) == []


def test_a_packed_file_is_no_disk() -> None:
    """What was not unpacked is kept as raw bytes, but is no disk; it is not a conversion that helps."""
    it = world(format={"decompress": "never"})
    stored(it, disk_format="raw", source_format="xz")
    (text,) = said(it).values()
    assert text.endswith("find xz in place of raw; set spec.format.decompress to auto")


def test_a_registered_file_is_replaced() -> None:
    """The bytes of others are not converted: then another image must be registered."""
    disks = StoreView("disks", "1", locations=(Allowed("vm"),), boot_format="raw")
    it = World(image({"source": {"location": {"store": "disks", "key": "vm-1"}}}), {"disks": disks})
    stored(it, disk_format="qcow2")
    (text,) = said(it).values()
    assert text.endswith("find qcow2 in place of raw; register an image in that format")


def test_a_reference_is_as_its_original() -> None:
    """It converts nothing itself: what it names must have the format."""
    it = world(source={"image": {"name": "golden"}})
    it.original = Original("1-1", entry())
    stored(it, disk_format="qcow2")
    (text,) = said(it).values()
    assert text.endswith(
        "find qcow2 in place of raw; it is for the Image in spec.source.image to have that format: "
        "name another, or ask its owner"
    )


def test_the_store_says_what_it_wants() -> None:
    """A probe tells it, the ImageStore's status keeps it, and images see it there."""
    found = decide(StoreSeen(store(), NOW, result=DONE.model_copy(update={"boot_format": "raw"})))
    assert found.status["bootFormat"] == "raw"
    assert view(after(store(), found), "team", {}).boot_format == "raw"
    plain = after(store(), decide(StoreSeen(after(store(), found), NOW, result=DONE)))
    assert view(plain, "team", {}).boot_format is None
