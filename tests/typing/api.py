"""The public API as typed users write it: read by mypy in strict mode, never run."""

from datetime import timedelta
from typing import Any, assert_type

from celery import Celery

from idempotent_tasks import (
    Done,
    DynamoDBStore,
    Idempotency,
    IdempotencyError,
    IdempotentTask,
    InProgressError,
    MemoryStore,
    NotDone,
    Record,
    S3Results,
    Status,
    Store,
    Unknown,
    register_type,
)
from idempotent_tasks.core.clock import Clock
from idempotent_tasks.events import Deferred, Event, Replayed
from idempotent_tasks.testing import Crash, FakeClock, Redelivery, crash_plans, redeliver, temporary_settings

app = Celery("shop", task_cls="idempotent_tasks:IdempotentTask")
app.conf.idempotency_store = "dynamodb://eu-west-1/shop"

Idempotency()
Idempotency(key="order.id", validate="order.amount", expires=timedelta(days=1))
Idempotency(key=lambda order_id, **_: f"order-{order_id}", on_busy="wait", wait_timeout=2.5)
Idempotency(lease=10, grace=0, max_crashes=3, missing_key="run", on_store_error="raise", prefix="shop")
Idempotency(key="order.id", at_publish="join", reserve=timedelta(minutes=10), cache=60)
Idempotency(key="order.id", at_publish="raise", reserve=0.5, cache=timedelta(minutes=1))
Idempotency(key="order.id", downstream="['charge', order.id]")
Idempotency(downstream=lambda order_id, **_: ["charge", order_id])
Idempotency(key="order.id", prefix="shop", powertools=True)
Idempotency(key="order.id", prefix="shop", powertools="sha256")

Idempotency("order.id")  # type: ignore[call-arg]
Idempotency(on_busy="drop")  # type: ignore[arg-type]
Idempotency(at_publish="drop")  # type: ignore[arg-type]
Idempotency(expires=60, unresolved_for=timedelta(days=30))
Idempotency(unresolved_for="1h")  # type: ignore[arg-type]
Idempotency(key="order_id", on_rerun="park")
Idempotency(on_rerun="ask")  # type: ignore[arg-type]
Idempotency(key="order_id", recover="shop.bank:find", settle=timedelta(minutes=1))


def find(record: Record, order_id: str) -> Done | NotDone | Unknown:
    """Say what came of an earlier run."""
    assert_type(record.runs, int)
    return Done(order_id) if order_id else Unknown("no order") if record.runs > 2 else NotDone()


Idempotency(key="order_id", recover=find, settle=60)
Idempotency(expires="1h")  # type: ignore[arg-type]
Idempotency(exipres=60)  # type: ignore[call-arg]


@app.task(base=IdempotentTask, bind=True, idempotency=Idempotency(key="order_id"))
def charge(self: IdempotentTask, order_id: str) -> str:
    """Use what a bound body sees."""
    assert_type(self.idempotency.key, str | None)
    assert_type(self.idempotency.downstream_key, str | None)
    assert_type(self.idempotency.fence, int)
    assert_type(self.idempotency.attempt, int)
    assert_type(self.idempotency.run, int)
    assert_type(self.idempotency.rerun, bool)
    self.idempotency.nothing_done()
    return order_id


charge.apply_async(("ord-17",), idempotency_key="ord-17")

stores: list[Store] = [
    MemoryStore(),
    MemoryStore(clock=FakeClock()),
    DynamoDBStore("shop"),
    DynamoDBStore("shop", key_attr="pk", sort_key_attr="sk", static_pk_value="shop", region="eu-west-1"),
    DynamoDBStore.from_url("dynamodb://localhost:8000/shop"),
]
clock: Clock = FakeClock(now=1.0)


def outcome(store: Store, key: str) -> Any:
    """Read a record."""
    record = store.get(key)
    assert_type(record, Record)
    assert_type(record.status, Status)
    assert_type(record.runs, int)
    assert_type(record.generation, int | None)
    assert_type(record.previous_task_id, str | None)
    return record.data


def watch(event: Event) -> None:
    """Observe."""
    if isinstance(event, Deferred):
        assert_type(event.countdown_seconds, float)
    elif isinstance(event, Replayed):
        assert_type(event.key, str)


def replayed(result: dict[str, int], record: Record) -> dict[str, int]:
    """Say whose result it is."""
    assert_type(record.task_id, str | None)
    return result


class Money:
    """A type of the user's own."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


register_type(Money, "shop.money", encode=lambda money: money.cents, decode=Money)
register_type(Money, "shop.money")
Idempotency(store_failures=ValueError, on_replay=replayed)
Idempotency(store_failures=(ValueError, "shop.errors:CardDeclined"), on_replay="shop.hooks:replayed", codec="pickle")
app.conf.idempotency_results_bucket = S3Results("results", "shop", above_bytes=8192, region="eu-west-1")
app.conf.idempotency_observers = [watch, "shop.metrics:count"]


def explain(error: IdempotencyError) -> str | None:
    """Read an error's attributes."""
    if isinstance(error, InProgressError):
        assert_type(error.until, float | None)
    return error.key


def test_a_charge() -> None:
    """Cut deliveries short, in a store of the test's own."""
    happened = redeliver(charge, ("ord-17",), crashes=[Crash.IN_BODY, "before-commit"], store=MemoryStore())
    for plan in crash_plans(charge):
        assert_type(redeliver(charge, ("ord-17",), crashes=plan).recoveries, int)
    for plan in (*crash_plans(charge, steps=["charge"]), *crash_plans(charge, steps=2)):
        assert_type(plan, tuple[str, ...])
    mixed = [Crash.in_step("charge"), Crash.IN_BODY, Crash.before_step(2), "after-step:charge"]
    assert_type(redeliver(charge, ("ord-17",), crashes=mixed).steps, tuple[str, ...])
    assert_type(happened, Redelivery)
    assert_type(happened.runs, int)
    assert_type(happened.events, tuple[Event, ...])
    with temporary_settings(app, store=MemoryStore(), observers=[watch]):
        charge.apply(("ord-17",))
