"""What can be asked of the list of images: each filter, each limit, and what is said of a question that is none."""

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.test_index import ALL, MINE, image, meant

from glimpse.gateway.index import SORTS
from glimpse.gateway.item import FIELDS, Item, item
from glimpse.gateway.query import (
    AT_ONCE,
    CONTROLS,
    FILTERS,
    LENGTH,
    LIMIT,
    MOST,
    NAMESPACES,
    PAGING,
    Query,
    _glob,
)
from glimpse.gateway.refusals import Refusal
from glimpse.gateway.sight import Sight, visible
from servers import ROOT


def read(*pairs: tuple[str, str]) -> Query:
    """The query of a page."""
    return Query.read(pairs, CONTROLS | PAGING)


def refused(*pairs: tuple[str, str]) -> str:
    """Why a query is refused."""
    with pytest.raises(Refusal) as refusal:
        read(*pairs)
    assert refusal.value.status == 400
    return refusal.value.detail


def shown(**spec: Any) -> Item:
    """An image of namespace `a` with a revision of 2 GiB."""
    obj = image("1", name="debian-12", title="Debian 12 Generic", size=2 << 30, **spec)
    obj["status"]["artifact"] |= {"diskFormat": "qcow2", "containerFormat": "bare", "virtualSize": 10 << 30}
    obj["status"]["conditions"] = [{"type": "Ready", "status": "True", "reason": "Stored", "message": ""}]
    found = item(obj)
    assert found
    return found


SHOWN = shown(
    tags=["linux", "lts"],
    properties={"os_distro": "debian", "trait:X=Y": "required", "empty": ""},
    minimum={"diskGiB": 10, "memoryMiB": 512},
)
BARE = item(image("2", name="bare"))


@pytest.mark.parametrize(
    ("name", "fits", "fails"),
    [
        ("namespace", ["a"], ["b"]),
        ("name", ["debian-12", "*", "debian-*", "*-12", "d*-*2", "**"], ["debian", "Debian-12", "*-13", "debian-12*2"]),
        ("title", ["debian 12 generic", "Debian*", "*12*"], ["debian", "*13*"]),
        ("tag", ["linux", "lts"], ["lin", "LTS"]),
        (
            "property",
            ["os_distro=debian", "os_distro", "trait:X=Y=required", "trait:X", "empty=", "empty"],
            ["os_distro=", "os_distro=deb", "os", "=debian", "debian"],
        ),
        ("diskFormat", ["qcow2"], ["raw"]),
        ("containerFormat", ["bare"], ["ova"]),
        ("visibility", ["private"], ["public"]),
        ("hidden", ["false"], ["true"]),
        ("protected", ["false"], ["true"]),
        ("deactivated", ["false"], ["true"]),
        ("ready", ["true"], ["false"]),
        ("status", ["Stored"], ["Progressing"]),
        ("digest", ["sha256:0"], ["sha256:1"]),
        ("size", ["2Gi", "2147483648", "eq:2Gi", "gte:2Gi", "lte:2Gi", "lt:2.5Gi", "gt:1G"], ["1", "gt:2Gi", "lt:2Gi"]),
        ("virtualSize", ["10Gi", "gt:2Gi"], ["2Gi"]),
        ("minimum.diskGiB", ["10", "lte:20"], ["lte:9"]),
        ("minimum.memoryMiB", ["512", "lte:512"], ["lt:512"]),
        (
            "creationTimestamp",
            ["2026-01-02T03:04:05Z", "2026-01-02T04:04:05+01:00", "gte:2026-01-02", "lt:2026-01-02T03:04:05.5Z"],
            ["gt:2026-01-02T03:04:05Z", "2026-01-02"],
        ),
        ("storedAt", ["2026-01-02T03:04:05Z", "lt:2027-01-01"], ["gt:2026-01-03"]),
    ],
)
def test_filters(name: str, fits: list[str], fails: list[str]) -> None:
    """Each filter lets the image pass that fits, and no other."""
    for value in fits:
        assert meant(read((name, value)), ALL, SHOWN), value
    for value in fails:
        assert not meant(read((name, value)), ALL, SHOWN), value


@pytest.mark.parametrize("name", ["size", "virtualSize", "storedAt"])
def test_what_an_image_does_not_have(name: str) -> None:
    """An image without bytes has no size and no date: no comparison fits it."""
    assert BARE
    value = "2026-01-01" if name == "storedAt" else "0"
    for how in ("eq", "gt", "gte", "lt", "lte"):
        assert not meant(read((name, f"{how}:{value}")), ALL, BARE)
    assert meant(read(("minimum.diskGiB", "0")), ALL, BARE)


def test_filters_together() -> None:
    """Different filters all count. Of one filter one value is enough; of tags, properties and comparisons all count."""
    assert meant(read(("name", "x"), ("name", "debian-12"), ("status", "A"), ("status", "Stored")), ALL, SHOWN)
    for pairs in (
        [("name", "debian-12"), ("status", "A")],
        [("tag", "linux"), ("tag", "bsd")],
        [("property", "os_distro=debian"), ("property", "other")],
        [("size", "gte:1Gi"), ("size", "lt:2Gi")],
    ):
        assert not meant(read(*pairs), ALL, SHOWN)
    for pairs in (
        [("tag", "linux"), ("tag", "lts"), ("property", "empty"), ("property", "os_distro")],
        [("size", "gte:1Gi"), ("size", "lt:3Gi")],
    ):
        assert meant(read(*pairs), ALL, SHOWN)


def test_hidden() -> None:
    """Hidden images are there for those who ask for them, alone or with the others."""
    hidden = shown(hidden=True)
    assert [meant(read(*pairs), ALL, hidden) for pairs in ([], [("hidden", "true")], [("hidden", "false")])] == [
        False,
        True,
        False,
    ]
    both = read(("hidden", "true"), ("hidden", "false"))
    assert meant(both, ALL, hidden)
    assert meant(both, ALL, SHOWN)


@pytest.mark.parametrize(
    ("visibility", "members", "seen", "asked"),
    [
        ("private", ["b"], "mine", False),
        ("shared", ["b"], "mine member", False),
        ("shared", [], "mine", False),
        ("community", ["b"], "mine", True),
        ("public", [], "mine member stranger nobody", True),
    ],
)
def test_visibility(visibility: str, members: list[str], seen: str, asked: bool) -> None:
    """Who sees an image: its namespace, members of a shared one, everybody; community images only who asks for such."""
    shared = shown(visibility=visibility, members=members)
    who = {"mine": {"a"}, "member": {"b", "c"}, "stranger": {"c"}, "nobody": set[str]()}
    sights = {name: Sight(everywhere=False, namespaces=frozenset(names)) for name, names in who.items()}
    assert [name for name, sight in sights.items() if meant(read(), sight, shared)] == seen.split()
    assert meant(read(), ALL, shared)
    assert meant(read(("visibility", visibility)), sights["stranger"], shared) is asked
    assert visible(shared, sights["stranger"]) is asked


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("nmae", "x")], "There is no 'nmae' to ask for; known are: as, containerFormat, creationTimestamp, cursor,"),
        ([("Name", "x")], "There is no 'Name'"),
        ([("name", "")], "name must have a value"),
        ([("name", "x" * 1301)], "name must have a value"),
        ([("limit", "0")], "limit must be a number from 1 to 1000"),
        ([("limit", "1001")], "limit must"),
        ([("limit", "9" * 1000)], "limit must"),
        ([("limit", "000000001001")], "limit must"),
        ([("limit", "-1")], "limit must"),
        ([("limit", "²")], "limit must"),
        ([("limit", "1"), ("limit", "2")], "limit may be given once"),
        ([("sort", "colour")], "sort must be one of name,"),
        ([("sort", "--name")], "sort must be one of name,"),
        ([("fields", "name,colour")], "fields must be of namespace,"),
        ([("fields", "members")], "fields must be of namespace,"),
        ([("hidden", "yes")], "hidden must be true or false"),
        ([("visibility", "secret")], "visibility must be one of private,"),
        ([("size", "big")], "size must be such as 10Gi"),
        ([("size", "neq:1")], "size must be such as 10Gi"),
        ([("size", "-1")], "size must be such as 10Gi"),
        ([("size", "9" * 1000)], "size must be such as 10Gi"),
        ([("storedAt", "yesterday")], "storedAt must be such as 2026-01-02T03:04:05Z"),
        ([("storedAt", "gt:")], "storedAt must be such as"),
        ([("namespace", "A")], "names of namespaces"),
        ([("as", "../x")], "names of namespaces"),
        ([("as", name) for name in "abcdefghi"], "8 times"),
        ([("tag", str(n)) for n in range(AT_ONCE + 1)], "There may be 32 filters"),
        ([("title", "*a" * 9)], "title may have 8 times '*'"),
        ([("name", "*a*b*"), ("name", "*a*b*"), ("name", "*a*b*")], "name may have 8 times '*'"),
        ([("property", "x" * 1280)] * 4, f"of {LENGTH} bytes together"),
        ([("cursor", "x" * 3073)], "cursor must have a value"),
    ],
)
def test_what_is_refused(pairs: list[tuple[str, str]], said: str) -> None:
    """What is not understood, or too much, is refused with the words that would be understood."""
    assert said in refused(*pairs)


def forged(*what: Any) -> str:
    """A cursor that holds this."""
    return base64.urlsafe_b64encode(json.dumps(what).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "ä",
        "e30=",
        "bm9uc2Vuc2U=",
        forged(),
        forged("size", 1),
        forged("size", 1, "uid", 2),
        forged("size", "1", "uid"),
        forged("size", True, "uid"),
        forged("size", 1.5, "uid"),
        forged("size", None, "uid"),
        forged("size", 1, 2),
        forged("size", [1], "uid"),
        base64.urlsafe_b64encode(b"[" * 1500).decode(),
        base64.urlsafe_b64encode(b'["size", NaN, "uid"]').decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_bad_cursors(cursor: str) -> None:
    """A cursor that we have not made is refused, and hurts nobody."""
    assert "The cursor is none of ours" in refused(("sort", "size"), ("cursor", cursor))


def test_a_cursor_belongs_to_a_sort() -> None:
    """A cursor of one order is no place in another."""
    cursor = read(("sort", "size")).cursor((5, "uid"))
    assert read(("sort", "size"), ("cursor", cursor)).after == (5, "uid")
    for sort in ("-size", "virtualSize", "name"):
        assert "another sort" in refused(("sort", sort), ("cursor", cursor))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*SORTS]), st.text(max_size=255), st.integers(-1, 1 << 62), st.uuids().map(str))
def test_cursors(sort: str, text: str, number: int, uid: str) -> None:
    """Every place comes back from its cursor, which is short and needs no quoting."""
    query = read(("sort", f"-{sort}"))
    place = (text if sort in ("name", "namespace", "title") else number, uid)
    cursor = query.cursor(place)
    assert cursor.replace("-", "").replace("_", "").rstrip("=").isalnum()
    assert read(("sort", f"-{sort}"), ("cursor", cursor)).after == place


def test_the_longest_cursor() -> None:
    """The longest title fits into one, in any script."""
    for place in (("\U0001f4be" * 255, "uid"), ("\\" * 255, "uid")):
        cursor = read(("sort", "title")).cursor(place)
        assert read(("sort", "title"), ("cursor", cursor)).after == place


@settings(max_examples=200, deadline=None)
@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_patterns(pattern: str, text: str) -> None:
    """`*` stands for any text, and all else for itself."""

    def fits(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(fits(pattern[1:], text[at:]) for at in range(len(text) + 1))
        return text[:1] == pattern[0] and fits(pattern[1:], text[1:])

    assert _glob(pattern)(text) == fits(pattern, text)


def test_the_docs_name_all() -> None:
    """Every filter, sort, parameter and member stands in the page of the list, as code or in its example."""
    page = (ROOT / "docs" / "catalogue.md").read_text()
    filters = page.partition("## Filters")[2].partition("## ")[0]
    rows = {
        word for row in re.findall(r"^\| (`.+?) \|", filters, re.MULTILINE) for word in re.findall("`([^`]+)`", row)
    }
    assert rows == {*FILTERS} - {"namespace"}
    words = {word for code in re.findall(r"`([^`\n]+)`", page) for word in re.split(r"[^A-Za-z.]+", code)}
    assert {*SORTS, *CONTROLS, *PAGING, "namespace"} - words == set()
    (example,) = json.loads(re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0])["images"]
    assert tuple(example) == FIELDS
    told = (f"`limit` is {LIMIT} without it and {MOST} at most", f"{AT_ONCE} filters of {LENGTH:,} bytes together")
    assert [each for each in (*told, "eight times") if each not in page] == []
    assert NAMESPACES == 8


def test_sight_of_nobody() -> None:
    """Who belongs nowhere sees what is public."""
    nobody = Sight(everywhere=False, namespaces=frozenset())
    assert not meant(read(), nobody, SHOWN)
    assert meant(read(), nobody, shown(visibility="public"))
    assert read().pool(nobody) == (frozenset(), True)
    assert read().pool(MINE) == (frozenset("a"), True)
    assert read(("namespace", "b")).pool(MINE) == (frozenset("b"), False)
    assert read().pool(ALL) is None
