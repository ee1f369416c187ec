"""Keystone, and a Swift that believes it."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from servers.keystone import Keystone
from servers.require import require
from servers.swift import Swift
from servers.tools import Missing


def test_users_and_a_swift_that_believes_it(tmp_path: Path) -> None:
    """A user logs in and has an account in Swift; a wrong password is refused; a second start knows the user."""
    try:
        with Keystone(tmp_path / "keystone") as identity:
            user = identity.user("glimpse", "secret", "images")
            wrong = type(user)(user.name, "wrong", user.project)
            with pytest.raises(urllib.error.HTTPError, match="401") as raised:
                identity.token(wrong)
            raised.value.close()
            name, secret = identity.credential(user)
            assert name
            assert secret
            swift = Swift(tmp_path / "swift", memory=60, auth="authtoken keystoneauth", filters=identity.filters())
            with swift as cloud:
                identity.register("object-store", f"{cloud.url}/v1/AUTH_%(project_id)s")
                token, said = identity.token(user)
                [url] = [
                    endpoint["url"]
                    for service in said["catalog"]
                    for endpoint in service["endpoints"]
                    if service["type"] == "object-store"
                ]
                request = urllib.request.Request(f"{url}/c", headers={"X-Auth-Token": token}, method="PUT")
                with urllib.request.urlopen(request, timeout=20) as answer:
                    assert answer.status == 201
        with Keystone(tmp_path / "keystone") as again:
            assert again.url == identity.url
            again.token(user)
    except Missing as error:
        require("keystone", str(error))
