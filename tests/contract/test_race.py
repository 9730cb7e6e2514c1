"""Many claims of one key at the same moment: a store that grants two of them is caught here.

32 threads race for 500 keys.  They form eight groups of four; each group walks keys of its own, and a barrier before
each key lets its four claims start together.  So every key is contended by four threads at once while 28 others are at
work, and a store is asked 2 000 times instead of 16 000.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from idempotent_tasks import Record, Status
from idempotent_tasks.core.records import Busy, Claim, ClaimAnswer, Granted, reservation_owner
from tests.contract.conftest import AnyStore
from tests.support.guarding import request_by

THREADS = 32
GROUP = 4
KEYS = [f"shop.charge#{number}" for number in range(500)]
#: No claim of a race may expire during it.
LEASE = 600
#: How long a thread waits for the others of its group, in seconds.
BARRIER_SECONDS = 60

Race = dict[str, list[tuple[str, ClaimAnswer]]]


@dataclass(frozen=True)
class Group:
    """The threads that contend for the same keys."""

    keys: list[str]
    barrier: threading.Barrier
    #: What their claims have in common.
    given: dict[str, str]

    def run(self, store: AnyStore, owner: str) -> list[tuple[str, str, ClaimAnswer]]:
        """Claim each key at the same moment as the others and return the answers."""
        answers = []
        for key in self.keys:
            self.barrier.wait(BARRIER_SECONDS)
            answers.append((key, owner, store.claim(request_by(owner, key=key, lease_seconds=LEASE, **self.given))))
        return answers


def race(store: AnyStore, **given: str) -> Race:
    """Return each key's claims: who asked and what the store said."""
    count = THREADS // GROUP
    groups = [Group(KEYS[number::count], threading.Barrier(GROUP), given) for number in range(count)]
    answers: Race = {key: [] for key in KEYS}
    with ThreadPoolExecutor(THREADS) as pool:
        runs = [pool.submit(groups[number % count].run, store, f"owner-{number}") for number in range(THREADS)]
        for key, owner, answer in (each for run in runs for each in run.result()):
            answers[key].append((owner, answer))
    return answers


def winners(race: Race) -> dict[str, Claim]:
    """Return each key's granted claim: exactly one, which every refusal names as the holder."""
    claims = {}
    for key, answers in race.items():
        assert len(answers) == GROUP
        granted = [answer.claim for _, answer in answers if isinstance(answer, Granted)]
        assert len(granted) == 1, f"{key} was granted to {[claim.owner for claim in granted]}"
        holders = {answer.holder.owner for _, answer in answers if isinstance(answer, Busy)}
        assert holders == {granted[0].owner}
        claims[key] = granted[0]
    return claims


def test_fresh_keys(racetrack: AnyStore) -> None:
    """32 threads, 500 keys that nobody has claimed yet: one winner each, and each a first attempt."""
    assert {claim.attempt for claim in winners(race(racetrack)).values()} == {1}


def test_reserved_keys(racetrack: AnyStore) -> None:
    """32 threads, 500 keys, each reserved for one task whose message was delivered four times: one of them claims."""
    task = {"task_id": "id-reserved"}
    for key in KEYS:
        racetrack.claim(request_by(reservation_owner("id-reserved"), key=key, lease_seconds=LEASE, **task))
    assert {claim.attempt for claim in winners(race(racetrack, **task)).values()} == {1}


def test_expired_keys(racetrack: AnyStore) -> None:
    """32 threads, 500 keys of dead holders, of every other even the retention has passed: one new winner each."""
    now = racetrack.clock.now()
    dead = int((now - LEASE) * 1000)

    def bury(key: str) -> None:
        retained_until = int(now) + (-60 if KEYS.index(key) % 2 else 3600)
        racetrack.restore(
            Record(
                key=key,
                status=Status.INPROGRESS,
                expiration=retained_until,
                in_progress_expiration=dead,
                owner="dead",
                fence=dead,
                attempt=1,
            )
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bury, KEYS))
    assert all(claim.fence > dead for claim in winners(race(racetrack)).values())
