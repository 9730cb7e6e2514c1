"""``Idempotency(cache=...)``: outcomes told from this process's memory, and what they never are."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, chain

from idempotent_tasks import ConfigurationError, PayloadMismatchError
from idempotent_tasks.core.records import Busy, Finished, Mismatch, Outcome, Record, Status
from idempotent_tasks.core.store import Store
from idempotent_tasks.events import Event, Replayed
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.cache import CachedStore, OutcomeCache
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, done, grant, request_by
from tests.support.inline import InlineWorker
from tests.support.shop import Counting, make
from tests.support.stores import FaultyStore, down
from tests.testbed.forking import Child
from tests.testbed.outcome_memory import remember_ten_thousand

CACHED = {"key": "order", "cache": 60}
RETENTION = 3600
MEGABYTES_FOR_10_000_OUTCOMES_OF_1_KB = 20


@pytest.fixture
def asked(store: MemoryStore) -> FaultyStore:
    """The store, which notes what it is asked."""
    return FaultyStore(store)


@pytest.fixture
def cache(clock: FakeClock) -> OutcomeCache:
    """An empty cache."""
    return OutcomeCache(clock, most=1000, most_bytes=1_000_000)


@pytest.fixture
def cached(asked: FaultyStore, cache: OutcomeCache) -> CachedStore:
    """The cache in front of the store, for a minute."""
    return CachedStore(inner=asked, cache=cache, max_age=60)


def outcome(key: str = KEY, data: str = '"done"', **given: Any) -> Record:
    """Return a completed record that is kept for an hour."""
    fields = {"status": Status.COMPLETED, "expiration": 1_700_003_600, "codec": "json", "task_id": "id-one", **given}
    return Record(key=key, data=data, **fields)


class TestStore:
    """`CachedStore` alone."""

    def test_it_is_a_store(self, cached: CachedStore) -> None:
        """It has the whole protocol."""
        assert isinstance(cached, Store)

    def test_an_outcome_of_this_process_is_told_without_asking(
        self, cached: CachedStore, asked: FaultyStore, store: MemoryStore
    ) -> None:
        """All that a replay needs is what the store would have said."""
        cached.commit(grant(cached, validation="a"), done(), RETENTION)
        asked.calls.clear()
        answer = cached.claim(request_by("two", validation="a"))
        assert asked.calls == []
        assert isinstance(answer, Finished)
        told, stored = answer.record, store.get(KEY)
        assert [
            (each.key, each.status, each.data, each.codec, each.error, each.task, each.task_id, each.completed_at)
            for each in (told, stored)
        ] == [(KEY, stored.status, stored.data, "json", None, "shop.charge", "id-one", stored.completed_at)] * 2

    def test_so_is_one_of_another_process_that_was_met_once(
        self, cached: CachedStore, asked: FaultyStore, store: MemoryStore
    ) -> None:
        """The first replay asks, the next ones do not."""
        store.commit(grant(store), done(), RETENTION)
        answers = [cached.claim(request_by(owner)) for owner in ("two", "three", "four")]
        assert [type(answer) for answer in answers] == [Finished] * 3
        assert asked.calls == ["claim"]

    def test_a_stored_failure_is_an_outcome(self, cached: CachedStore, asked: FaultyStore) -> None:
        """It is served like a result."""
        failed = Outcome(status=Status.FAILED, codec="json", data='"no"', error="ValueError")
        cached.commit(grant(cached), failed, RETENTION)
        answer = cached.claim(request_by("two"))
        assert isinstance(answer, Finished)
        assert (answer.record.status, answer.record.error) == (Status.FAILED, "ValueError")
        assert asked.calls == ["claim", "commit"]

    def test_a_running_key_is_asked_for_each_time(self, cached: CachedStore, asked: FaultyStore) -> None:
        """Only outcomes last."""
        grant(cached)
        assert [type(cached.claim(request_by(owner))) for owner in ("two", "three")] == [Busy, Busy]
        assert asked.calls == ["claim"] * 3

    def test_an_outcome_that_did_not_count_is_not_told(
        self, cached: CachedStore, store: MemoryStore, clock: FakeClock
    ) -> None:
        """A superseded run remembers nothing of its own."""
        late = grant(cached)
        clock.advance(31)
        store.commit(grant(store, "two"), done('"second"'), RETENTION)
        cached.commit(late, done('"late"'), RETENTION)
        answer = cached.claim(request_by("three"))
        assert isinstance(answer, Finished)
        assert answer.record.data == '"second"'

    def test_an_outcome_that_may_not_be_stored_is_not_told(self, store: MemoryStore, cache: OutcomeCache) -> None:
        """Nothing is remembered of a commit that failed."""
        cached = CachedStore(inner=FaultyStore(store, commit=[down(KeyError())]), cache=cache, max_age=60)
        claim = grant(cached)
        with pytest.raises(KeyError):
            cached.commit(claim, done(), RETENTION)
        assert len(cache) == 0

    def test_another_payload_is_a_mismatch(self, cached: CachedStore, asked: FaultyStore) -> None:
        """From memory, too."""
        cached.commit(grant(cached, validation="a"), done(), RETENTION)
        assert cached.claim(request_by("two", validation="b")) == Mismatch("a", "b")
        assert asked.calls == ["claim", "commit"]

    def test_everything_else_is_passed_on(self, cached: CachedStore, asked: FaultyStore, store: MemoryStore) -> None:
        """Each call once, with its answer."""
        claim = grant(cached)
        cached.renew(claim, 60, RETENTION)
        cached.note_deferral(KEY, claim.owner, "token", 2**42)
        cached.note_dispatch(KEY, "id")
        cached.release(claim, "Retry")
        cached.restore(outcome("shop.charge#18", owner="x"))
        assert cached.get(KEY) == store.get(KEY)
        assert asked.calls == ["claim", "renew", "note_deferral", "note_dispatch", "release", "restore", "get"]
        assert (cached.clock, cached.max_data_bytes) == (store.clock, store.max_data_bytes)


class TestHowLong:
    """Nothing is served for longer than it may be."""

    def test_for_its_max_age(self, cached: CachedStore, asked: FaultyStore, clock: FakeClock) -> None:
        """Then the store is asked, which may say something else by now."""
        cached.commit(grant(cached), done(), RETENTION)
        for seconds in (50, 15):
            clock.advance(seconds)
            cached.claim(request_by("two"))
        assert asked.calls == ["claim", "commit", "claim"]

    def test_not_after_the_record_has_expired(self, cached: CachedStore, asked: FaultyStore, clock: FakeClock) -> None:
        """The key is new then, whatever the cache's age."""
        cached.commit(grant(cached, lease_seconds=5, retention_seconds=10), done(), 10)
        clock.advance(12)
        grant(cached, "two")
        assert asked.calls == ["claim", "commit", "claim"]

    def test_a_deleted_record_is_told_until_its_max_age(
        self, cached: CachedStore, store: MemoryStore, clock: FakeClock
    ) -> None:
        """What an operator forgets reaches other processes when their memory has run out."""
        cached.commit(grant(cached), done(), RETENTION)
        store.forget(KEY)
        assert isinstance(cached.claim(request_by("two")), Finished)
        clock.advance(61)
        assert grant(cached, "two").attempt == 1


class TestBounds:
    """Count and bytes."""

    def test_the_number_of_outcomes(self, clock: FakeClock) -> None:
        """Those that were used last stay."""
        cache = OutcomeCache(clock, most=3, most_bytes=1_000_000)
        for number in range(3):
            cache.remember(outcome(f"k#{number}"), 60)
        assert cache.recall(request_by(key="k#0")) is not None
        cache.remember(outcome("k#3"), 60)
        kept = [number for number in range(4) if cache.recall(request_by(key=f"k#{number}")) is not None]
        assert (kept, len(cache)) == ([0, 2, 3], 3)

    def test_their_bytes(self, clock: FakeClock) -> None:
        """Large outcomes are fewer; one that is larger than all the room is not kept, and drives nobody out."""
        cache = OutcomeCache(clock, most=1000, most_bytes=100_000)
        for number in range(100):
            cache.remember(outcome(f"k#{number}", "x" * 9_000), 60)
        assert len(cache) == 10
        cache.remember(outcome("large", "x" * 100_000), 60)
        assert (len(cache), cache.recall(request_by(key="large"))) == (10, None)

    def test_an_outcome_that_is_remembered_again_is_kept_once(self, clock: FakeClock) -> None:
        """And with what was said last."""
        cache = OutcomeCache(clock, most=10, most_bytes=100_000)
        for data in ("1", "2"):
            cache.remember(outcome(data=data), 60)
        answer = cache.recall(request_by("two"))
        assert isinstance(answer, Finished)
        assert (len(cache), answer.record.data) == (1, "2")

    def test_ten_thousand_outcomes_of_one_kilobyte(self) -> None:
        """All that is kept of them takes 20 MB at most, also after half as many more have come and gone."""
        # In a process of its own, where no other thread takes memory meanwhile.
        kept, taken = Child(remember_ten_thousand).result()
        assert kept == 10_000
        assert taken <= MEGABYTES_FOR_10_000_OUTCOMES_OF_1_KB * 1_000_000


class TestProcesses:
    """Threads share the memory, processes do not."""

    def test_threads(self, clock: FakeClock) -> None:
        """Writers, readers and evictions at once lose no entry's integrity."""
        cache = OutcomeCache(clock, most=50, most_bytes=60_000)
        start = threading.Barrier(8)

        def use(thread: int) -> list[str]:
            start.wait(10)
            wrong = []
            for number in range(2000):
                key = f"k#{(number * (thread + 1)) % 97}"
                cache.remember(outcome(key, data=f'"{key}"'), 60)
                answer = cache.recall(request_by(key=f"k#{number % 97}"))
                if isinstance(answer, Finished) and answer.record.data != f'"k#{number % 97}"':
                    wrong.append(key)
            return wrong

        with ThreadPoolExecutor(8) as pool:
            assert [each for wrong in pool.map(use, range(8)) for each in wrong] == []
        assert len(cache) <= 50

    def test_a_child_that_is_forked_while_a_thread_is_at_it(self, cache: OutcomeCache) -> None:
        """It starts with an empty memory and a lock of its own: neither half an entry nor a lock that nobody opens."""
        cache.remember(outcome(), 60)

        def in_child() -> tuple[bool, int]:
            forgotten = cache.recall(request_by("two")) is None
            cache.remember(outcome("k#2"), 60)
            return forgotten, len(cache)

        with cache._locked():
            child = Child(in_child)
        assert child.result() == (True, 1)
        assert len(cache) == 1


class TestTasks:
    """The option, on a worker."""

    def test_off_by_default(self, app: Celery, worker: InlineWorker, counting: Counting, asked: FaultyStore) -> None:
        """Without it every delivery asks the store."""
        app.conf.idempotency_store = asked
        task = counting.make(app, idempotency={"key": "order"})
        for _ in range(3):
            task.delay("ord-1")
        worker.drain()
        assert asked.calls == ["claim", "commit", "claim", "claim"]

    def test_a_hit_asks_nothing(
        self, app: Celery, worker: InlineWorker, counting: Counting, asked: FaultyStore, seen: list[Event]
    ) -> None:
        """Duplicates replay with the holder's id, for no request."""
        app.conf.idempotency_store = asked
        task = counting.make(app, idempotency=CACHED)
        results = [task.delay("ord-1") for _ in range(3)]
        worker.drain()
        assert asked.calls == ["claim", "commit"]
        assert [worker.result(each.id) for each in results] == [[1, "ord-1", 5]] * 3
        assert [event.holder_task_id for event in seen if isinstance(event, Replayed)] == [results[0].id] * 2

    @pytest.mark.parametrize("value", [None, 0, "", [], {}, False], ids=repr)
    def test_falsy_results(self, app: Celery, worker: InlineWorker, value: Any) -> None:
        """They come out of the memory as they went in."""

        def body(order: str) -> Any:
            return value

        task = make(app, body, idempotency=CACHED)
        results = [task.delay("ord-1") for _ in range(2)]
        worker.drain()
        assert [worker.result(each.id) for each in results] == [value] * 2

    def test_a_result_is_nobodys_object(self, app: Celery, worker: InlineWorker) -> None:
        """A replay is decoded again: what somebody does to a result changes no other replay."""

        def body(order: str) -> list[int]:
            return [1]

        task = make(app, body, idempotency=CACHED)
        first = task.apply(("ord-1",)).get()
        task.apply(("ord-1",)).get().append(2)
        assert (first, task.apply(("ord-1",)).get()) == ([1], [1])

    def test_another_payload(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """Payload validation holds for a hit."""
        task = counting.make(app, idempotency={**CACHED, "validate": "amount"})
        task.delay("ord-1", 5)
        other = task.delay("ord-1", 6)
        worker.drain()
        assert isinstance(worker.result(other.id), PayloadMismatchError)

    def test_an_outcome_without_a_result(self, app: Celery, worker: InlineWorker) -> None:
        """A result that the store does not take is not in memory either: the result backend is asked for it."""
        app.conf.idempotency_store = MemoryStore(max_data_bytes=10)

        def body(order: str) -> str:
            return "x" * 100

        task = make(app, body, idempotency=CACHED)
        results = [task.delay("ord-1") for _ in range(2)]
        worker.drain()
        assert worker.result(results[0].id) == "x" * 100
        assert worker.result(results[1].id) == "x" * 100

    def test_a_failure_is_no_outcome(self, app: Celery, worker: InlineWorker) -> None:
        """The next delivery runs."""
        errors = [KeyError()]

        def body(order: str) -> str:
            if errors:
                raise errors.pop()
            return "done"

        task = make(app, body, idempotency=CACHED)
        results = [task.delay("ord-1") for _ in range(2)]
        worker.drain()
        assert worker.result(results[1].id) == "done"

    def test_a_delivery_that_something_follows_asks(
        self, app: Celery, worker: InlineWorker, counting: Counting, asked: FaultyStore
    ) -> None:
        """Whether its chain was sent already is known to the store alone: a redelivery sends it no second time."""
        app.conf.idempotency_store = asked
        task = counting.make(app, idempotency=CACHED)
        chain(task.si(1), task.si(2)).apply_async()
        message = worker.take()
        worker.run(message)
        assert asked.calls == ["claim", "commit", "note_dispatch"]
        app.send_task("shop.charge", (1,), task_id=message.headers["id"], chain=message.payload[2]["chain"])
        asked.calls.clear()
        worker.drain()
        assert counting.runs == 2
        assert asked.calls == ["claim", "commit", "claim"]

    def test_a_failure_that_calls_back_asks(self, app: Celery, worker: InlineWorker, asked: FaultyStore) -> None:
        """Whether error callbacks were sent the store alone knows, and they are sent once."""
        app.conf.idempotency_store = asked
        told: list[Any] = []

        def notify(task_id: str) -> None:
            told.append(task_id)

        def decline(order: str) -> None:
            raise ValueError

        alert = app.task(notify, name="shop.alert", shared=False)
        task = make(app, decline, idempotency={**CACHED, "store_failures": ValueError})
        for _ in range(3):
            task.apply_async(("ord-1",), task_id="one", link_error=alert.si("one"))
            worker.drain()
        assert told == ["one"]
        assert asked.calls == ["claim", "commit", "note_dispatch", "claim", "claim"]

    def test_a_producer_joins_from_memory(
        self, app: Celery, worker: InlineWorker, counting: Counting, asked: FaultyStore
    ) -> None:
        """``at_publish="join"`` on a done key asks once, then nothing."""
        task = counting.make(app, idempotency={**CACHED, "at_publish": "join"})
        first = task.delay("ord-1")
        worker.drain()
        app.conf.idempotency_store = asked
        assert {task.delay("ord-1").id for _ in range(3)} == {first.id}
        assert asked.calls == ["claim"]


class TestSettings:
    """The bounds, of which each app has its own."""

    def test_they_are_settings(self, app: Celery) -> None:
        """Numbers of outcomes and of bytes."""
        app.conf.update(idempotency_cache_outcomes=2, idempotency_cache_bytes=5_000, idempotency_cache=60)
        outcomes = settings_of(app).outcomes
        for number in range(5):
            outcomes.remember(outcome(f"k#{number}"), 60)
        outcomes.remember(outcome("large", "x" * 5_000), 60)
        assert len(outcomes) == 2

    @pytest.mark.parametrize("value", [0, -1, True, "many", 1.5], ids=repr)
    @pytest.mark.parametrize("name", ["outcomes", "bytes"])
    def test_a_wrong_bound_is_refused(self, app: Celery, name: str, value: Any) -> None:
        """The error names the setting."""
        app.conf[f"idempotency_cache_{name}"] = value
        with pytest.raises(ConfigurationError, match=f"idempotency_cache_{name}="):
            settings_of(app)
