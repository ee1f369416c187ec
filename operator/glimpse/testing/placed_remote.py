"""The contract of a store that reads over a network what others have put into it, and may write nothing itself.

What such a store promises when its way fails is half of RemoteContract, which takes a store that is written to.
"""

from collections.abc import Callable
from typing import ClassVar

import pytest

from glimpse.problems import StoreUnauthorized, StoreUnavailable
from glimpse.stores import Registering, Store, Version, open_store
from glimpse.tasks import Record, StoreRef
from glimpse.testing.bodies import noise
from glimpse.testing.place_model import check_places_against_model
from glimpse.testing.registering import PLACE, Lay, register
from glimpse.testing.remote import Far, RemoteFixtures, Restart
from glimpse.testing.stores import KEY


class RemotePlacedContract(RemoteFixtures):
    """What it promises. A subclass gives `lay`, as for PlacedContract, and `far`, `restart` and `locked_out`."""

    sequences: ClassVar[int] = 25
    """Made-up sequences of calls."""
    steps: ClassVar[int] = 20
    """Calls in one of them."""

    @pytest.fixture
    def lay(self, ref: StoreRef) -> Lay:
        """The hands of others; what they put there is below `import/`."""
        raise NotImplementedError

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    def test_ends_a_read_when_the_way_fails(self, lay: Lay, far: Far, fault: str) -> None:
        """What was read until then is right, and then comes StoreUnavailable; never an early end, never a hang."""
        data = noise(self.length)
        lay(PLACE, data)
        there = open_store(far.ref)
        version = there.locate(PLACE)
        got = b""
        try:
            with there.read(PLACE, version) as reader:
                got += reader.read(1000)
                getattr(far.fault, fault)()
                while chunk := reader.read():
                    got += chunk
                raise AssertionError("the last look at the place is in want of the way")
        except StoreUnavailable:
            assert data.startswith(got)
        finally:
            far.fault.heal()
        assert all_of(there, version) == data

    def test_survives_a_restart_of_its_server_in_a_read(self, store: Store, lay: Lay, restart: Restart) -> None:
        """What is read is right, to the end or until StoreUnavailable; the next one reads all of it."""
        data = noise(self.length)
        lay(PLACE, data)
        version = store.locate(PLACE)
        got = b""
        try:
            with store.read(PLACE, version) as reader:
                got += reader.read(1000)
                restart()
                while chunk := reader.read():
                    got += chunk
                assert got == data
        except StoreUnavailable:
            assert data.startswith(got)
        assert all_of(store, version) == data

    @pytest.mark.parametrize("fault", ["cut", "stall"])
    def test_says_that_what_lies_there_cannot_be_reached(self, lay: Lay, far: Far, fault: str) -> None:
        """While the server is away every call is StoreUnavailable, within its patience; then all is as before."""
        lay(PLACE, b"here")
        there = open_store(far.ref)
        there.claim()
        version = there.locate(PLACE)
        record = register(there, KEY, PLACE).record
        assert record
        getattr(far.fault, fault)()
        for action in looks(there, version, record):
            with pytest.raises(StoreUnavailable):
                action()
        far.fault.heal()
        assert all_of(there, version) == b"here"

    def test_is_locked_out_of_what_lies_there(self, store: Store, lay: Lay, locked_out: StoreRef) -> None:
        """Refused credentials are StoreUnauthorized for every call, and no secret is in the message."""
        lay(PLACE, b"here")
        version = store.locate(PLACE)
        record = register(store, KEY, PLACE).record
        assert record
        secrets = [value.get_secret_value() for value in locked_out.secret.values()]
        for action in looks(open_store(locked_out), version, record):
            with pytest.raises(StoreUnauthorized) as raised:
                action()
            assert not any(secret in raised.value.message for secret in secrets)
        assert all_of(store, version) == b"here"

    def test_behaves_like_a_dictionary_that_others_write_to(self, store: Store, lay: Lay) -> None:
        """Whatever is written, removed, registered and read: the bytes are those that were registered, or lost."""

        def knowing(record: Record) -> Store:
            return store if isinstance(store.driver, Registering) else store.knowing(record)

        def registered(store: Store, key: str, location: str) -> Record | None:
            return register(store, key, location).record

        check_places_against_model(store, lay, registered, knowing, sequences=self.sequences, steps=self.steps)


def looks(store: Store, version: Version, record: Record) -> list[Callable[[], object]]:
    """All ways to look at what lies there."""
    told = store if isinstance(store.driver, Registering) else store.knowing(record)
    return [
        store.probe,
        lambda: store.locate(PLACE),
        lambda: all_of(store, version),
        lambda: told.stat(KEY),
        lambda: told.get(KEY).__enter__().read(),
    ]


def all_of(store: Store, version: Version) -> bytes:
    """What lies there."""
    with store.read(PLACE, version) as reader:
        return b"".join(iter(reader.read, b""))
