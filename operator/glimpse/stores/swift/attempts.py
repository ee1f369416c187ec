"""An attempt of ours: alive while somebody has it, and committed when all who commit have settled which one stands."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Final

from glimpse.lease import Lease
from glimpse.problems import (
    NotFound,
    Problem,
    StoreConflict,
    StoreFull,
    StoreUnauthorized,
    StoreUnavailable,
)
from glimpse.stores import Note, Stat, lasting
from glimpse.stores.swift.checkpoints import Notes
from glimpse.stores.swift.client import Listed
from glimpse.stores.swift.names import Commit, Found, Names
from glimpse.stores.swift.places import Layout, Place

COMMITTING: Final = b"about to commit"
TAKING: Final = b"about to take"
"""Words in a sign of life. A listing tells them by their length."""


class Attempt:
    """An attempt, shared by who has taken it over and who goes on with it."""

    def __init__(self, names: Names, key: str, attempt: str, lease: float) -> None:
        """`lease`: seconds for which others believe a sign of life."""
        self.key, self.name = key, f"{key}.{attempt}"
        self.doomed = True
        """Whether it is removed when nobody has it any more."""
        self._names, self._attempt, self._lease = names, attempt, lease
        self._sign = f"data/{self.name}.alive"
        self._word = b""
        self._lock = threading.Lock()  # one after the other, so that an older word never comes after a newer one
        self._life = Lease(self._renew, lease)
        self._living = ExitStack()
        self._users_lock = threading.Lock()
        self._users = 1
        self._announced = self._over = False

    @property
    def place(self) -> Place:
        """Where its bytes are."""
        return self._names.place(self.name)

    def begin(self) -> None:
        """Be alive."""
        self._living.enter_context(self._life)

    def share(self) -> None:
        """One user more. Raises StoreUnavailable if there is none any more."""
        with self._users_lock:
            if not self._users:
                raise StoreUnavailable(f"{self.name} was given up already")
            self._users += 1

    def release(self) -> None:
        """One user less; without one it is dead. What cannot be removed now is left to the sweep."""
        with self._users_lock:
            self._users -= 1
            if self._users:
                return
        self._living.close()
        if self._over:
            return
        with suppress(Problem):
            if self.doomed:
                self._names.remove(self.name)
            else:
                self._names.drop(self._sign)

    # Taking over

    def take_turn(self, worth: Callable[[Mapping[str, Found]], bool]) -> bool:
        """Come back once nobody else on the key takes over, with the word said that we do; or if it is not `worth` it.

        Who says so and then sees no other who does is alone, as the other would see him. Of several the first by name
        stays, and the others stand back.
        """
        pause = 0.02
        self._say(TAKING)
        while True:
            found = self._names.attempts(f"{self.key}.")
            if not worth(found):
                return False
            taking = [name for name, left in found.items() if left.alive and left.word == len(TAKING)]
            rivals = [name for name in taking if name != self.name]
            if not rivals and self._word:
                return True
            if not rivals:
                self._say(TAKING)
            elif self._word and min(rivals) < self.name:
                self._say(b"")
            time.sleep(pause)
            pause = min(1.0, pause * 2)

    def end_turn(self) -> None:
        """Let others look."""
        self._say(b"")

    # Committing

    def make(
        self,
        fill: Callable[[], Layout],
        record: Callable[[], bytes],
        notes: Notes | None = None,
        *,
        at: Note | None = None,
    ) -> Stat:
        """The object of the bytes that `fill` writes, or of those that are registered `at` a place.

        After a lasting Problem what `notes` speak of is kept.
        """
        try:
            line = self._fill(fill, record, notes, at)
            failure = self._commit(line)
            with suppress(StoreUnavailable):
                self._names.drop(self._sign)
            self._names.settle(f"data/{self.key}.", _commits)
            commit = self._outcome(failure)
            self._over = True
        except BaseException as error:
            # Where nobody can say whether the commit has arrived, it may stand: then its bytes must stay too.
            self._over = self._announced and not isinstance(error, StoreConflict | StoreFull | StoreUnauthorized)
            self.doomed = not (notes and notes.saved and lasting(error))
            raise
        if notes and notes.saved:
            with suppress(Problem):
                self._names.tidy(self.name, commit.layout)
        return self._names.stat(self.key, commit)

    def _fill(
        self, fill: Callable[[], Layout], record: Callable[[], bytes], notes: Notes | None, at: Note | None
    ) -> bytes:
        layout = fill()
        try:
            line = record()
        except BaseException as error:
            if notes:
                notes.ended(layout, error)
            raise
        size, segment, _ = layout
        say = {"attempt": self._attempt, "size": size, "segment": segment, "record": line.decode()}
        return json.dumps(say | ({"at": at.model_dump(exclude_none=True)} if at else {})).encode()

    def _commit(self, line: bytes) -> StoreUnavailable | None:
        """Write the small object. What left it open whether it has arrived."""
        name = f"objects/{self.key}"
        with self._lock:
            self._names.put(self._sign, COMMITTING)
            self._word, self._announced = COMMITTING, True
        self._names.refuse(self.key)  # Ceph's gateway leaves out the condition of the next request
        failure = self._names.once(name, line, self._life.check)
        if failure and not self._names.find(self.key):
            # One that is still on its way is older than this, and so will be refused.
            self._names.drop(name)
        self._living.close()
        return failure

    def _outcome(self, failure: StoreUnavailable | None) -> Commit:
        """Our commit, which stands. Raises StoreConflict if it does not, `failure` if there is none at all."""
        where = self._names.location(self.key)
        try:
            commit = self._names.load(self.key)
        except NotFound as problem:
            if failure is None:
                raise StoreConflict(f"{where} was removed by another meanwhile") from problem
            self._announced = False  # it is known not to stand
            raise failure from problem
        if commit.attempt != self._attempt:
            raise StoreConflict(f"{where} was written by another attempt meanwhile")
        return commit

    # The sign of life

    def _renew(self) -> None:
        with self._lock:
            self._names.put(self._sign, self._word)

    def _say(self, word: bytes) -> None:
        with self._lock:
            self._names.put(self._sign, word)
            self._word = word


def _commits(each: Listed) -> bool:
    return each.name.endswith(".alive") and each.size == len(COMMITTING)
