"""The contract of a store that is reached over a network, in addition to the contract of every store.

A network fails in more ways than a disk, and each of them must end as a Problem within a bounded time, with nothing
half-written visible and no wrong byte read.
"""

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from glimpse.problems import Problem, StoreUnauthorized, StoreUnavailable, Transient
from glimpse.stores import Store, open_store
from glimpse.streams import CHUNK
from glimpse.tasks import StoreRef
from glimpse.testing.bodies import Body, noise, record_of
from glimpse.testing.stores import KEY, OTHER, StoreFixtures, absent, put, read
from glimpse.testing.wire import Fault


class Far(NamedTuple):
    """The store of `ref`, reached by a way that can fail."""

    ref: StoreRef
    fault: Fault


Restart = Callable[[], None]


class RemoteFixtures(StoreFixtures):
    """The server, and the way to it; a subclass gives them.

    The driver's patience (how long it waits for a silent server) must be some seconds in these tests.
    """

    length = 12 * CHUNK
    """Of a body that takes several requests or answers."""

    @pytest.fixture
    def far(self, ref: StoreRef) -> Iterator[Far]:
        """The same place as `ref`, over a way that can fail; or a server that can, for `ref` too, if need be."""
        raise NotImplementedError

    @pytest.fixture
    def restart(self) -> Restart:
        """Ends the server of `ref`, starts it again with its data at the same address, and waits until it serves."""
        raise NotImplementedError

    @pytest.fixture
    def locked_out(self, ref: StoreRef) -> StoreRef:
        """The same place as `ref`, with credentials that its server refuses."""
        raise NotImplementedError


class RemoteContract(RemoteFixtures):
    """What a store on a server promises besides. A subclass gives `nowhere` as well."""

    @pytest.fixture
    def nowhere(self, ref: StoreRef) -> StoreRef:
        """The same server, and a bucket, pool or folder there that does not exist; `missing` is in its name."""
        raise NotImplementedError

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    def test_ends_a_put_when_the_way_fails(
        self, store: Store, far: Far, buried: Callable[[], None], fault: str
    ) -> None:
        """It ends by itself, as StoreUnavailable, and nothing is visible; the next one is stored."""
        data = noise(self.length)
        there = open_store(far.ref)
        there.claim()
        failed = threading.Event()

        def fail(given: int) -> None:
            if given >= self.length // 2 and not failed.is_set():
                failed.set()
                getattr(far.fault, fault)()

        with pytest.raises(StoreUnavailable):
            there.put(KEY, "a1", Body(data, before=fail), lambda: record_of(KEY))
        assert failed.is_set()
        far.fault.heal()
        assert absent(store, KEY)
        buried()
        put(there, KEY, data, attempt="a2")
        assert read(store, KEY) == data

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    def test_ends_a_get_when_the_way_fails(self, store: Store, far: Far, fault: str) -> None:
        """What was read until then is right, and then comes StoreUnavailable; never an early end, never a hang."""
        data = noise(self.length)
        put(store, KEY, data)
        there = open_store(far.ref)
        there.claim()
        got = b""
        try:
            with there.get(KEY) as reader:
                got += reader.read(1000)
                getattr(far.fault, fault)()
                while chunk := reader.read():
                    got += chunk
                assert got == data  # all of it was under way already
        except StoreUnavailable:
            assert data.startswith(got)
        finally:
            far.fault.heal()
        assert read(there, KEY) == data

    @pytest.mark.parametrize("known", [True, False], ids=["length", "no-length"])
    def test_survives_a_restart_of_its_server_in_a_put(
        self, store: Store, restart: Restart, buried: Callable[[], None], known: bool
    ) -> None:
        """The put goes on or ends as a Problem that time mends; the same store works on, and nothing is left."""
        put(store, OTHER, b"before")
        data = noise(self.length)
        restarted = threading.Event()

        def fail(given: int) -> None:
            if given >= self.length // 2 and not restarted.is_set():
                restarted.set()
                restart()

        try:
            store.put(KEY, "a1", Body(data, known=known, before=fail), lambda: record_of(KEY))
        except Transient:
            assert absent(store, KEY)
            buried()
            put(store, KEY, data, attempt="a2")
        assert restarted.is_set()
        assert read(store, KEY) == data
        assert read(store, OTHER) == b"before"
        assert {entry.key for entry in store.list()} == {KEY, OTHER}

    def test_survives_a_restart_of_its_server_in_a_get(self, store: Store, restart: Restart) -> None:
        """What is read is right, to the end or until StoreUnavailable; the next get reads all of it."""
        data = noise(self.length)
        put(store, KEY, data)
        got = b""
        try:
            with store.get(KEY) as reader:
                got += reader.read(1000)
                restart()
                while chunk := reader.read():
                    got += chunk
                assert got == data
        except StoreUnavailable:
            assert data.startswith(got)
        assert read(store, KEY) == data

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    def test_says_that_it_cannot_be_reached(self, store: Store, far: Far, fault: str) -> None:
        """While the server is away every call is StoreUnavailable, within its patience; then all is as before."""
        put(store, KEY, b"here")
        there = open_store(far.ref.model_copy(update={"claimed": True}))
        there.claim()
        getattr(far.fault, fault)()
        body = Body(b"x")
        for action in (
            there.claim,
            there.probe,
            lambda: there.put(OTHER, "a1", body, lambda: record_of(OTHER)),
            lambda: read(there, KEY),
            lambda: there.stat(KEY),
            lambda: there.update(KEY, record_of(KEY)),
            lambda: there.delete(KEY),
            lambda: list(there.list()),
        ):
            with pytest.raises(StoreUnavailable):
                action()
        far.fault.heal()
        assert read(store, KEY) == b"here"
        assert read(there, KEY) == b"here"

    def test_says_that_it_is_locked_out(self, store: Store, locked_out: StoreRef) -> None:
        """Refused credentials are StoreUnauthorized for every call, and no secret is in the message."""
        put(store, KEY, b"here")
        stranger = open_store(locked_out)
        secrets = [value.get_secret_value() for value in locked_out.secret.values()]
        for action in (
            stranger.claim,
            stranger.probe,
            lambda: put(stranger, OTHER, b"x"),
            lambda: stranger.driver.stat(KEY),
            lambda: read(stranger, KEY),
            lambda: stranger.driver.delete(KEY),
            lambda: list(stranger.driver.list()),
        ):
            with pytest.raises(StoreUnauthorized) as raised:
                action()
            assert not any(secret in raised.value.message for secret in secrets if len(secret) > 3)
        assert read(store, KEY) == b"here"

    def test_says_that_the_place_is_missing(self, nowhere: StoreRef) -> None:
        """A bucket, pool or folder that does not exist is named, and not created by itself."""
        store = open_store(nowhere)
        for action in (store.claim, store.probe, lambda: put(store, KEY, b"x")):
            with pytest.raises(Problem, match="missing") as raised:
                action()
            assert isinstance(raised.value, StoreUnavailable)
