"""The Swift store, its logins by a real Keystone."""

from collections.abc import Iterator

import pytest
from tests.stores.swifts import hidden

from glimpse.problems import (
    InvalidConfiguration,
    StoreUnauthorized,
)
from glimpse.stores import open_store
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, OTHER, put, read
from servers import wait_until
from servers.keystone import Identity, Keystone, User
from servers.require import require
from servers.swift import Swift
from servers.tools import Missing


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    """A Keystone."""
    try:
        with Keystone(tmp_path_factory.mktemp("keystone")) as identity:
            yield identity
    except Missing as error:
        require("keystone", str(error))


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[Swift]:
    """A Swift that believes it."""
    auth, folder = "authtoken keystoneauth", tmp_path_factory.mktemp("swift")
    server = Swift(folder, memory=60, auth=auth, filters=identity.filters())
    try:
        with server as cloud:
            identity.register("object-store", f"{cloud.url}/v1/AUTH_%(project_id)s")
            yield server
    except Missing as error:
        require("swift", str(error))


@pytest.fixture(scope="module")
def openstack(identity: Identity, swift: Swift) -> tuple[Identity, User]:  # noqa: ARG001 - is in the catalog
    """The Keystone, and a user in it."""
    return identity, identity.user("glimpse", "sesame", "images")


class TestKeystone:
    """Version 3 of the logins."""

    def ref(self, identity: Identity, secret: dict[str, str], **config: object) -> StoreRef:
        """A store by these credentials."""
        whole = {"authUrl": identity.url, "container": "images", "createContainer": True, **config}
        return StoreRef(name="swift", driver="swift", config=whole, secret=hidden(secret), installation="here")

    def test_a_password(self, openstack: tuple[Identity, User]) -> None:
        """User, password and project; the domains are `Default` unless they are named. The URL may lack its /v3."""
        identity, user = openstack
        secret = {"username": user.name, "password": user.password, "projectName": user.project}
        named = {"userDomainName": "Default", "projectDomainName": "Default"}
        for number, ref in enumerate(
            (
                self.ref(identity, secret),
                self.ref(identity, secret | named, region=identity.region),
                self.ref(identity, secret, authUrl=identity.url.removesuffix("/v3")),
            )
        ):
            store, key = open_store(ref), f"{KEY}{number}"
            put(store, key, noise(3 << 20))
            assert read(store, key) == noise(3 << 20)

    def test_an_application_credential(self, openstack: tuple[Identity, User]) -> None:
        """Its ID and its secret are enough, and it may do what its user may."""
        identity, user = openstack
        name, word = identity.credential(user)
        store = open_store(self.ref(identity, {"applicationCredentialID": name, "applicationCredentialSecret": word}))
        put(store, OTHER, noise(1000))
        assert read(store, OTHER) == noise(1000)
        assert store.probe().total is None
        wrong = {"applicationCredentialID": name, "applicationCredentialSecret": "wrong-secret"}
        with pytest.raises(StoreUnauthorized) as raised:
            open_store(self.ref(identity, wrong)).probe()
        assert "wrong-secret" not in raised.value.message

    @pytest.mark.parametrize("login", ["password", "application credential"])
    def test_tokens_end_in_the_middle(self, openstack: tuple[Identity, User], swift: Swift, login: str) -> None:
        """A token that Keystone takes back while an object is written, or read, is renewed; no byte is lost."""
        identity, user = openstack
        secret = {"username": user.name, "password": user.password, "projectName": user.project}
        if login != "password":
            name, word = identity.credential(user, "in the middle")
            secret = {"applicationCredentialID": name, "applicationCredentialSecret": word}
        store = open_store(self.ref(identity, secret, segmentSize="1Mi"))
        data, ends, seen = noise(8 << 20), [6 << 20, 3 << 20, 1 << 20], set[str]()

        def token() -> str:
            found: str = store.driver._client._enter()[1]  # type: ignore[attr-defined]
            return found

        def end() -> None:
            wait_until("another token", lambda: token() not in seen, timeout=60)  # than that of the last time
            seen.add(token())
            identity.revoke(token())
            swift.forget_tokens()  # the proxy remembers which were good

        def look(given: int) -> None:
            if ends and given >= ends[-1]:
                ends.pop()
                end()

        key = f"{KEY}{len(login)}"
        store.put(key, "a1", Body(data, before=look), lambda: record_of(key))
        with store.get(key) as reader:
            got = reader.read()
            end()
            while chunk := reader.read():
                got += chunk
        assert got == data
        for _ in range(2):
            assert store.stat(key).size == len(data)
            if len(seen) < 5:
                end()
        assert len(seen) == 5, "each was another one"

    def test_what_is_refused(self, openstack: tuple[Identity, User]) -> None:
        """A wrong password, a user without a role for object storage, and a region that is not in the catalog."""
        identity, user = openstack
        secret = {"username": user.name, "password": user.password, "projectName": user.project}
        reader = identity.user("reader", "sesame", "others", role="reader")
        for changes in ({"password": "wrong-password"}, {"username": reader.name, "projectName": reader.project}):
            with pytest.raises(StoreUnauthorized):
                open_store(self.ref(identity, secret | changes)).claim()
        with pytest.raises(InvalidConfiguration, match="region Atlantis"):
            open_store(self.ref(identity, secret, region="Atlantis")).claim()
