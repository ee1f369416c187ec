"""Swift, as its users see it."""

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import wait_until
from servers.require import require
from servers.swift import Cloud, Swift
from servers.tools import Missing


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A Swift for this module."""
    try:
        with Swift(tmp_path_factory.mktemp("swift")) as cloud:
            yield cloud
    except Missing as error:
        require("swift", str(error))


def refused(cloud: Cloud, method: str, path: str, headers: dict[str, str], data: bytes | None = None) -> int:
    """The status of a request that fails."""
    with pytest.raises(urllib.error.HTTPError) as raised:
        cloud.call(method, path, headers, data)
    raised.value.close()
    return raised.value.code


def test_objects_and_large_objects(swift: Cloud) -> None:
    """Objects are written once if asked to; segments become one object, each with its digest checked."""
    swift.call("PUT", "/plain")
    swift.call("PUT", "/plain/a", {"If-None-Match": "*"}, b"0123456789")
    assert refused(swift, "PUT", "/plain/a", {"If-None-Match": "*"}, b"x") == 412
    swift.call("PUT", "/plain/s1", {}, b"abc")
    good = [{"path": "/plain/a", "size_bytes": 10}, {"path": "/plain/s1", "etag": hashlib.md5(b"abc").hexdigest()}]  # noqa: S324
    bad = [{"path": "/plain/s1", "etag": hashlib.md5(b"abd").hexdigest()}]  # noqa: S324
    swift.call("PUT", "/plain/whole?multipart-manifest=put", {}, json.dumps(good).encode())
    assert refused(swift, "PUT", "/plain/no?multipart-manifest=put", {}, json.dumps(bad).encode()) == 400
    assert swift.call("GET", "/plain/whole", {"Range": "bytes=8-11"})[1] == b"89ab"
    assert {entry["name"] for entry in swift.listed("plain", "s")} == {"s1"}


def test_a_container_has_a_quota(swift: Cloud) -> None:
    """What is more than the quota of a container is refused with 413."""
    swift.call("PUT", "/narrow", {"X-Container-Meta-Quota-Bytes": "10"})
    assert refused(swift, "PUT", "/narrow/a", {}, b"0123456789x") == 413
    swift.call("PUT", "/narrow/a", {}, b"0123456789")


def test_who_may_enter(swift: Cloud) -> None:
    """A wrong key is refused, and a guest may enter and do nothing."""
    with pytest.raises(urllib.error.HTTPError, match="401") as raised:
        swift.login(key="wrong")
    raised.value.close()
    url, token = swift.login(swift.guest, swift.guest_key)
    request = urllib.request.Request(f"{url}/plain", headers={"X-Auth-Token": token}, method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403") as raised:
        urllib.request.urlopen(request, timeout=10)
    raised.value.close()


def test_temporary_urls(swift: Cloud) -> None:
    """Who has a signed URL needs no token."""
    swift.call("POST", "", {"X-Account-Meta-Temp-URL-Key": "sign"})
    swift.call("PUT", "/shared")
    swift.call("PUT", "/shared/a", {}, b"bytes")
    path = swift.login()[0].removeprefix(swift.url) + "/shared/a"
    expires = int(time.time()) + 60
    signature = hmac.new(b"sign", f"GET\n{expires}\n{path}".encode(), "sha256").hexdigest()
    url = f"{swift.url}{path}?temp_url_sig={signature}&temp_url_expires={expires}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"bytes"


def test_s3(swift: Cloud) -> None:
    """Its S3 API answers, and wants a signature."""
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(
            urllib.request.Request(f"{swift.url}/plain", headers={"Authorization": "AWS img:swift:wrong"}), timeout=10
        )
    assert raised.value.code == 403
    assert b"AccessDenied" in raised.value.read()
    raised.value.close()


def good(url: str, token: str) -> bool:
    """Whether the token opens the account."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"X-Auth-Token": token}), timeout=10):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 401:
            raise
        return False


def test_it_starts_again_with_its_objects(tmp_path: Path) -> None:
    """A second start in the folder has the address and the objects of the first; tokens live as long as was said."""
    try:
        with Swift(tmp_path / "swift", token_life=1) as cloud:
            cloud.call("PUT", "/kept")
        with Swift(tmp_path / "swift", token_life=1) as again:
            assert again.url == cloud.url
            assert again.listed("kept") == []
            url, token = again.login()
            wait_until("the end of the token", lambda: not good(url, token), timeout=20)
    except Missing as error:
        require("swift", str(error))
