"""What replays from this process's memory cost, counted on the wire."""

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.records import Committed, Finished
from idempotent_tasks.stores.cache import CachedStore, OutcomeCache
from tests.support.guarding import done, grant, request_by
from tests.testbed.wire import Wire

RETENTION = 3600


def cached(store: DynamoDBStore) -> CachedStore:
    """Return a process's memory, still empty, in front of the table."""
    cache = OutcomeCache(store.clock, most=100, most_bytes=100_000)
    return CachedStore(inner=store, cache=cache, max_age=60)


def test_a_hit_sends_nothing(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """Neither for what this process committed nor, from the second time on, for what another did."""
    own, other = cached(dynamodb), cached(dynamodb)
    assert own.commit(grant(own), done(), RETENTION) == Committed()
    other.claim(request_by("two"))
    wire.clear()
    answers = [store.claim(request_by("three")) for store in (own, other)]
    assert [answer.record.data for answer in answers if isinstance(answer, Finished)] == ['"done"'] * 2
    assert wire.operations() == []
