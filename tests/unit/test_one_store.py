"""One store, one table, one app: who shares them, and what is never silently another's."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from celery import Celery

from idempotent_tasks import ConfigurationError, DynamoDBStore, PayloadMismatchError, Record
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.shop import make

TABLE = "dynamodb://eu-west-1/keys"
THREADS = 8
ROUNDS = 40


def app_on(store: Any, name: str = "shop") -> Celery:
    """Return an app with this store."""
    app = Celery(name, set_as_current=False)
    app.conf.idempotency_store = store
    return app


def records_of(store: MemoryStore, prefix: str) -> list[Record]:
    """Return the records of one task."""
    return [record for record in store.records() if record.key.startswith(f"{prefix}#")]


class TestTasks:
    """Tasks with different options on one store."""

    def test_each_has_its_own_options(self, app: Celery, store: MemoryStore, clock: FakeClock) -> None:
        """Key, payload, retention and lease: whichever task was used first."""
        runs: list[tuple[str, Any]] = []

        def quick(order: int, amount: int = 0) -> None:
            runs.append(("quick", order))

        def slow(order: int, amount: int = 0) -> None:
            runs.append(("slow", amount))

        tasks = [
            make(app, quick, name="shop.quick", idempotency={"key": "order", "expires": 5, "lease": 2}),
            make(app, slow, name="shop.slow", idempotency={"key": "amount", "validate": "order", "expires": 7200}),
        ]
        for task in (*tasks, *reversed(tasks)):
            task.apply((1, 17)).get()
        with pytest.raises(PayloadMismatchError):
            tasks[1].apply((2, 17)).get()
        assert tasks[0].apply((1, 18)).get() is None
        assert runs == [("quick", 1), ("slow", 17)]
        kept = [records_of(store, f"shop.{name}")[0].expiration - clock.now() for name in ("quick", "slow")]
        assert kept == [5, 7200]

    def test_threads_never_mix_their_keys(self, app: Celery, store: MemoryStore) -> None:
        """Two tasks with different options in eight threads: each outcome lies under the key of its own body."""

        def body(self: Any, order: str) -> list[str]:
            return [self.name, order, self.idempotency.key]

        tasks = [
            make(app, body, name="shop.quick", bind=True, idempotency={"key": "order", "expires": 60}),
            make(app, body, name="shop.slow", bind=True, idempotency={"key": "[order, order]", "cache": 60}),
        ]
        # Celery itself binds tasks on first use, which is no business of many threads at once.
        app.finalize()
        start = threading.Barrier(THREADS)

        def use(thread: int) -> list[tuple[str, str, list[str]]]:
            start.wait(30)
            calls = [(tasks[(thread + number) % 2], f"ord-{number}") for number in range(ROUNDS)]
            return [(task.name, order, run_until_done(task, order)) for task, order in calls]

        with ThreadPoolExecutor(THREADS) as pool:
            answers = [answer for each in pool.map(use, range(THREADS)) for answer in each]
        keys = {(task, order): result[2] for task, order, result in answers}
        assert all(result == [task, order, keys[task, order]] for task, order, result in answers)
        assert len(set(keys.values())) == len(keys) == 2 * ROUNDS
        assert {record.key for record in store.records()} == set(keys.values())

    def test_nested_runs_never_mix_their_keys(self, app: Celery, store: MemoryStore) -> None:
        """A task that runs another, which runs the first again with another key: each commits under its own."""

        def outer(self: Any, order: int) -> list[Any]:
            inner_result = tasks["inner"].apply((order,)).get() if order else None
            return [self.idempotency.key, inner_result, self.idempotency.key]

        def inner(self: Any, order: int) -> list[Any]:
            return [self.idempotency.key, tasks["outer"].apply((order - 1,)).get(), self.idempotency.key]

        options = {"bind": True, "idempotency": {"key": "order", "at_publish": "join", "cache": 60}}
        tasks: dict[str, Any] = {
            body.__name__: make(app, body, name=f"shop.{body.__name__}", **options) for body in (outer, inner)
        }
        level = tasks["outer"].apply((2,)).get()
        keys = []
        while level is not None:
            before, level, after = level
            assert before == after
            keys.append(before)
        assert len(set(keys)) == len(store.records()) == 5
        assert [key.partition("#")[0] for key in keys] == ["shop.outer", "shop.inner"] * 2 + ["shop.outer"]


def run_until_done(task: Any, order: str) -> list[str]:
    """Run a task here, however often its key is busy in another thread."""
    for _ in range(10_000):
        result = task.apply((order,))
        if result.successful():
            value: list[str] = result.get()
            return value
    raise AssertionError(f"{task.name} of {order} is always busy")


class TestLayouts:
    """Two apps of one process on one table."""

    @pytest.mark.parametrize(
        ("parameters", "difference"),
        [
            ("data_attr=result", "data: 'result' and 'data'"),
            ("key_attr=pk", "key: 'pk' and 'id'"),
            ("sort_key_attr=sk", "sort key: 'sk' and None"),
            ("owner_attr=holder", "owner: 'holder' and 'owner'"),
        ],
    )
    def test_different_names_are_refused(self, parameters: str, difference: str) -> None:
        """The second app hears both names, the table and what differs, before it claims anything."""
        first, second = app_on(TABLE), app_on(f"{TABLE}?{parameters}", "bakery")
        settings_of(first)
        with pytest.raises(ConfigurationError, match="apps 'bakery' and 'shop' use one table") as caught:
            settings_of(second)
        assert difference in str(caught.value)

    @pytest.mark.parametrize(
        "other",
        [
            TABLE,
            f"{TABLE}?static_pk_value=bakery",
            "dynamodb://eu-west-1/others?data_attr=result",
            "dynamodb://eu-west-2/keys?data_attr=result",
            "dynamodb://localhost:8000/keys?data_attr=result",
            MemoryStore(),
        ],
        ids=["same", "partition", "table", "region", "endpoint", "memory"],
    )
    def test_what_may_stand_side_by_side(self, other: Any) -> None:
        """The same names, another partition, another table, another place."""
        first, second = app_on(TABLE), app_on(other, "bakery")
        assert settings_of(first).store is not settings_of(second).store

    def test_a_ready_made_client_is_not_guessed_at(self) -> None:
        """Where it leads to is known to nobody here."""
        client = boto3.client("dynamodb", region_name="eu-west-1")
        first = app_on(DynamoDBStore("keys", client=client))
        second = app_on(DynamoDBStore("keys", client=client, data_attr="result"), "bakery")
        assert settings_of(first).store is not settings_of(second).store

    def test_an_app_may_be_given_another_layout(self) -> None:
        """Its own former store contradicts nobody."""
        app = app_on(TABLE)
        settings_of(app)
        app.conf.idempotency_store = f"{TABLE}?data_attr=result"
        assert settings_of(app).former_store is not None
