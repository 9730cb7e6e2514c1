"""Many calls for one key at the same moment: a store that grants two of them is caught here.

32 threads race for each test's keys.  They form eight groups of four; each group walks keys of its own, and a barrier
before each key lets its four calls start together.  So every key is contended by four threads at once while 28 others
are at work.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from idempotent_tasks.core.records import (
    Busy,
    Claim,
    ClaimAnswer,
    Committed,
    Finished,
    Granted,
    Record,
    Status,
    Superseded,
    reservation_owner,
)
from idempotent_tasks.core.store import Store
from idempotent_tasks.errors import RecordExistsError
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.requests import RETENTION_SECONDS, done, grant, request_by

__all__ = ["RaceConformance"]

_THREADS: Final = 32
_GROUP: Final = 4
#: No claim of a race may expire during it.
_LEASE_SECONDS: Final = 600.0
#: How long a thread waits for the others of its group, in seconds.
_BARRIER_SECONDS: Final = 60.0

#: Makes the call of one of the four threads, by its number in the group, for a key.
_Call = Callable[[str, int], Any]


class RaceConformance(Conformance):
    """Atomicity: of calls that come at the same moment, each finds the key as another one has left it."""

    #: How many keys are raced for in each test; more make a race more likely to be lost, and the test slower.
    racing_keys: int = 100

    def test_race_for_fresh_keys(self, store: Store) -> None:
        """One of four claims is granted, as the first attempt."""
        assert {claim.attempt for claim in _winners(self._claims(store)).values()} == {1}

    def test_race_for_reserved_keys(self, store: Store) -> None:
        """One of four deliveries of the task that a key is reserved for is granted."""
        task = {"task_id": "id-reserved"}
        for key in self._keys():
            store.claim(request_by(reservation_owner("id-reserved"), key=key, lease_seconds=_LEASE_SECONDS, **task))
        assert {claim.attempt for claim in _winners(self._claims(store, **task)).values()} == {1}

    def test_race_for_expired_keys(self, store: Store) -> None:
        """One of four claims takes over from a dead holder, whether or not the record's retention has passed too."""
        fences = self._bury(store)
        claims = _winners(self._claims(store))
        assert all(claim.fence > fences[key] for key, claim in claims.items())

    def test_race_of_a_late_commit_with_a_takeover(self, store: Store) -> None:
        """Either the outcome is stored and no claim is granted, or one claim is and the outcome is superseded."""
        fences = self._bury(store, retained=True)

        def call(key: str, number: int) -> Any:
            if number:
                return store.claim(request_by(f"owner-{number}", key=key, lease_seconds=_LEASE_SECONDS))
            late = request_by("dead", key=key)
            claim = Claim(request=late, fence=fences[key], attempt=1, in_progress_expiration=fences[key])
            return store.commit(claim, done(), RETENTION_SECONDS)

        for key, answers in self._race(call).items():
            commits = [answer for answer in answers if isinstance(answer, Committed | Superseded)]
            granted = [answer for answer in answers if isinstance(answer, Granted)]
            assert len(commits) == 1
            if isinstance(commits[0], Committed):
                assert granted == [], f"{key} was granted beside its outcome"
                assert all(isinstance(answer, Committed | Finished) for answer in answers)
            else:
                assert len(granted) == 1

    def test_race_of_restores(self, store: Store) -> None:
        """One of four records is restored; the others find it."""
        expiration = int(store.clock.now() + RETENTION_SECONDS)

        def call(key: str, number: int) -> bool:
            owner, at = f"owner-{number}", expiration * 1000
            record = Record(
                key=key, status=Status.COMPLETED, expiration=expiration, owner=owner, fence=at, completed_at=at
            )
            try:
                store.restore(record)
            except RecordExistsError:
                return False
            return True

        assert {key: sum(answers) for key, answers in self._race(call).items()} == dict.fromkeys(self._keys(), 1)

    def test_race_of_notes(self, store: Store) -> None:
        """No note of a deferral is lost to another, and no note of a dispatch."""
        keys = self._keys()[::5]
        claims = {key: grant(store, key=key, lease_seconds=_LEASE_SECONDS) for key in keys}
        due = int(store.clock.now() * 1000) + 60_000
        self._race(lambda key, number: store.note_deferral(key, "one", f"token-{number}", due), keys)
        assert all(len(store.get(key).deferred) == _GROUP for key in claims)
        for claim in claims.values():
            store.commit(claim, done(), RETENTION_SECONDS)
        self._race(lambda key, number: store.note_dispatch(key, f"id-{number}"), keys)
        assert all(len(store.get(key).dispatched) == _GROUP for key in claims)

    def _keys(self) -> list[str]:
        return [f"shop.charge#{number}" for number in range(self.racing_keys)]

    def _race(self, call: _Call, raced_for: list[str] | None = None) -> dict[str, list[Any]]:
        """Make each key's four calls at the same moment and return their answers."""
        keys, groups = raced_for or self._keys(), _THREADS // _GROUP
        barriers = [threading.Barrier(_GROUP) for _ in range(groups)]

        def run(thread: int) -> Iterable[tuple[str, Any]]:
            group, number = thread % groups, thread // groups
            answers = []
            for key in keys[group::groups]:
                barriers[group].wait(_BARRIER_SECONDS)
                answers.append((key, call(key, number)))
            return answers

        found: dict[str, list[Any]] = {key: [] for key in keys}
        with ThreadPoolExecutor(_THREADS) as pool:
            for answers in pool.map(run, range(_THREADS)):
                for key, answer in answers:
                    found[key].append(answer)
        return found

    def _claims(self, store: Store, **given: str) -> dict[str, list[ClaimAnswer]]:
        return self._race(
            lambda key, number: store.claim(
                request_by(f"owner-{number}", key=key, lease_seconds=_LEASE_SECONDS, **given)
            )
        )

    def _bury(self, store: Store, *, retained: bool = False) -> dict[str, int]:
        """Store records of dead holders and return their fences; of every other even the retention has passed."""
        now = store.clock.now()
        dead = int((now - _LEASE_SECONDS) * 1000)
        for number, key in enumerate(self._keys()):
            kept = retained or number % 2 == 0
            record = Record(
                key=key,
                status=Status.INPROGRESS,
                expiration=int(now) + (3600 if kept else -60),
                in_progress_expiration=dead,
                owner="dead",
                fence=dead,
                attempt=1,
            )
            store.restore(record)
        return dict.fromkeys(self._keys(), dead)


def _winners(answers: dict[str, list[ClaimAnswer]]) -> dict[str, Claim]:
    """Return each key's granted claim: exactly one, which every refusal names as the holder."""
    claims = {}
    for key, each in answers.items():
        granted = [answer.claim for answer in each if isinstance(answer, Granted)]
        assert len(granted) == 1, f"{key} was granted to {[claim.owner for claim in granted]}"
        holders = {answer.holder.owner for answer in each if isinstance(answer, Busy)}
        assert holders == {granted[0].owner}
        assert len(each) == _GROUP
        claims[key] = granted[0]
    return claims
