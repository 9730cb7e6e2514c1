"""A renewal that comes to the millisecond at which its lease ends already."""

import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.records import Renewed, reservation_owner
from idempotent_tasks.core.store import Store
from idempotent_tasks.testing import FakeClock, MemoryStore
from simulation.network import DirectClient, Service
from tests.support.guarding import KEY, grant


@pytest.fixture(params=["memory", "simulated"])
def store(request: pytest.FixtureRequest, clock: FakeClock) -> Store:
    """A store whose time stands still."""
    if request.param == "memory":
        return MemoryStore(clock=clock)
    return DynamoDBStore("idempotency", client=DirectClient(Service(clock.now)), clock=clock)


def test_a_renewal_of_an_older_grant_changes_nothing(store: Store, clock: FakeClock) -> None:
    """The key is reserved twice, and the first answer's holder asks for the end that the second grant has set."""
    owner = reservation_owner("id-one")
    first = grant(store, owner, task_id="id-one")
    clock.advance(2)
    second = grant(store, owner, task_id="id-one")
    record = store.get(KEY)
    answer = store.renew(first, second.request.lease_seconds, 86_400)
    assert isinstance(answer, Renewed)
    assert answer.claim.in_progress_expiration == second.in_progress_expiration
    assert store.get(KEY) == record


def test_a_renewal_to_its_own_end_keeps_the_record_for_longer(store: Store) -> None:
    """Nobody else has renewed the claim: what is asked for holds."""
    claim = grant(store)
    record = store.get(KEY)
    answer = store.renew(claim, claim.request.lease_seconds, 86_400)
    assert answer == Renewed(claim)
    assert store.get(KEY).expiration > record.expiration
