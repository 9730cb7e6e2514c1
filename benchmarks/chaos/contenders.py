"""The ways to guard the one task, by name, and the Celery app of each; the body is the same for all of them.

A contender's package is imported where it is declared, because it may not be installed.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final
from uuid import uuid4

import boto3
from celery import Celery
from celery.signals import before_task_publish
from kombu import Exchange, Queue

from benchmarks import provider
from benchmarks.chaos.arena import Arena, Journal
from benchmarks.chaos.charges import REQUEST_SECONDS, Charge, body_of, charge_at_provider, charge_by
from benchmarks.chaos.checker import Kind
from benchmarks.chaos.history import What
from benchmarks.chaos.refusing import declare_refusing
from benchmarks.chaos.stepping import STEPS, charge_in_steps
from idempotent_tasks import Atomic, Done, Idempotency, IdempotentTask, NotDone, Record, Store, events
from tests.testbed.elsewhere import store_elsewhere

__all__ = ["CONTENDERS", "REDELIVERED", "Contender", "add_tracing_headers", "build_app", "tracing"]

#: Without these two Celery acknowledges before the body runs, and a kill loses the message: no contender can do
#: anything about that, so all of them have both.
REDELIVERED: Final[dict[str, Any]] = {"acks_late": True, "reject_on_worker_lost": True}
#: Seconds until a lock in Redis ends whose holder died: long enough never to free the key of a message that waits for
#: its redelivery. It is celery-once's default; celery-singleton's is indefinitely, which its documentation warns of.
LOCK_SECONDS: Final = 3600
#: Seconds for which Powertools holds a key unless the body ends before. It cannot renew, so a shorter time than the
#: longest body on a busy machine would let a second run in; twice the longest body is the usual margin of a time limit.
IN_PROGRESS_SECONDS: Final = 14.0
#: Seconds until a duplicate of a key that Powertools holds looks again.
RETRY_SECONDS: Final = 1.0
#: Seconds of our lease. A whole worker that is killed cannot release what its children held, so a waiting delivery
#: takes over when the lease ends; a claim is renewed when a third of it is over, so a body may be starved for the rest.
LEASE_SECONDS: Final = 4.0
#: Seconds for which a request of a dead run may still be on its way to the provider: longer than its client waited.
SETTLE_SECONDS: Final = REQUEST_SECONDS + 1.0
#: No body is to blame for its crashes here, so none is given up: the default counts five in a row.
MAX_CRASHES: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to guard a task."""

    #: What the tables say of it.
    title: str
    #: Registers the task around a body under `Arena.task_name`; ``apply_async`` takes the body's arguments by name.
    declare: Callable[[Celery, Arena, Charge], None]
    #: Whether it keeps records in DynamoDB.
    has_table: bool = False
    #: The option without which there is no such contender: ``provider`` or ``rows``.
    needs: str = ""
    #: Whether an operator has to resolve its parked keys.
    parks: bool = False
    #: Whether it is ours, and must keep every promise.
    ours: bool = False
    #: What it must prevent beyond that, because its tool can.
    prevents: tuple[Kind, ...] = ()
    #: Of a body with several effects, by name: what it must prevent of each.
    steps: Mapping[str, tuple[Kind, ...]] = field(default_factory=dict)
    #: Whether it has effects at a provider wherever those of the others are.
    has_provider: bool = False


def build_app(arena: Arena) -> Celery:
    """Return the app with the contender's task registered; nothing global is touched.

    Raises:
        ModuleNotFoundError: the contender's package is not installed.
    """
    app = Celery(arena.prefix, set_as_current=False)
    app.conf.update(
        broker_url=arena.broker_url,
        broker_transport_options=arena.transport_options,
        broker_connection_retry_on_startup=True,
        result_backend=arena.result_backend,
        result_backend_transport_options={"global_keyprefix": f"{arena.prefix}."},
        result_expires=3600,
        task_queues=[Queue(arena.queue, Exchange(arena.queue, auto_delete=True), routing_key=arena.queue)],
        task_default_queue=arena.queue,
        task_default_exchange=arena.queue,
        task_default_routing_key=arena.queue,
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=1,
    )
    CONTENDERS[arena.contender].declare(app, arena, body_of(arena))
    return app


def _register(app: Celery, arena: Arena, charge: Callable[..., str | Atomic], **options: Any) -> None:
    @app.task(name=arena.task_name, bind=True, shared=False, **options)
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str | Atomic:
        return charge(self, key, seconds, effect_seconds)


def _declare_plain(app: Celery, arena: Arena, charge: Charge) -> None:
    _register(app, arena, charge, **REDELIVERED)


def _declare_deduplication(app: Celery, arena: Arena, charge: Charge) -> None:
    """Have Celery skip a redelivered message whose result is stored, as its documentation says."""
    app.conf.update(
        worker_deduplicate_successful_tasks=True,
        # It asks for late acknowledgement and for a backend that keeps results; Redis does.
        task_acks_late=True,
        # What it needs to tell whether the continuations of a finished task were dispatched.
        result_extended=True,
    )
    _register(app, arena, charge, **REDELIVERED)


def _declare_once(app: Celery, arena: Arena, charge: Charge) -> None:
    """Lock the key in Redis from publication to the end of the body; a duplicate in between is not published."""
    from celery_once import QueueOnce

    app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": arena.lock_url, "default_timeout": LOCK_SECONDS},
    }
    # The key alone, as for every contender; and a duplicate is no error of its publisher.
    _register(app, arena, charge, base=QueueOnce, once={"keys": ["key"], "graceful": True}, **REDELIVERED)


def _declare_singleton(app: Celery, arena: Arena, charge: Charge) -> None:
    """Lock the key in Redis from publication to the end; a duplicate gets the running task's result."""
    from celery_singleton import Singleton

    app.conf.update(
        singleton_backend_url=arena.lock_url,
        singleton_key_prefix=f"{arena.prefix}.lock.",
        singleton_lock_expiry=LOCK_SECONDS,
        # The publisher of a duplicate gets the result of the task that is there.
        singleton_raise_on_duplicate=False,
    )
    # The key alone, as for every contender.
    _register(app, arena, charge, base=Singleton, unique_on=["key"], **REDELIVERED)


def _declare_powertools(app: Celery, arena: Arena, charge: Charge) -> None:
    """Call Powertools' ``idempotent_function`` inside a task, with a retry written by hand."""
    from aws_lambda_powertools.utilities.idempotency import exceptions

    @cache
    def guarded() -> Callable[..., str]:
        # Made on first use, in the pool's process: a boto3 client must not be shared through a fork.
        return _guarded_by_powertools(arena, charge)

    # Without a bound on the retries: the default of three is over long before a killed run's claim is.
    @app.task(name=arena.task_name, bind=True, shared=False, max_retries=None, **REDELIVERED)
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        try:
            guard = guarded()
        except Exception as error:
            # Credentials that cannot be had when the client is made: whatever botocore makes of the answer.
            raise self.retry(exc=error, countdown=RETRY_SECONDS) from error
        try:
            return guard(task=self, order={"key": key}, seconds=seconds, effect_seconds=effect_seconds)
        except (
            exceptions.IdempotencyAlreadyInProgressError,
            exceptions.IdempotencyPersistenceLayerError,
        ) as error:
            # Without a retry a duplicate of a running key would fail and be acknowledged, and so would any delivery
            # while the table does not answer.
            raise self.retry(exc=error, countdown=RETRY_SECONDS) from error


def _guarded_by_powertools(arena: Arena, charge: Charge) -> Callable[..., str]:
    from aws_lambda_powertools.utilities.idempotency import (
        DynamoDBPersistenceLayer,
        IdempotencyConfig,
        idempotent_function,
    )

    # With boto3's own retries as they are: they are what most of its users have.
    client = boto3.client("dynamodb", region_name=arena.region, endpoint_url=arena.endpoint)
    config = IdempotencyConfig(event_key_jmespath="key", raise_on_no_idempotency_key=True, expires_after_seconds=3600)
    config.register_lambda_context(_FunctionContext())

    @idempotent_function(
        data_keyword_argument="order",
        persistence_store=DynamoDBPersistenceLayer(table_name=arena.table, boto3_client=client),
        config=config,
        # Its default prefix is the Lambda function's name, which there is none of.
        key_prefix=arena.task_name,
    )
    def charge_order(*, task: Any, order: dict[str, str], seconds: float, effect_seconds: float) -> str:
        return charge(task, order["key"], seconds, effect_seconds)

    guarded: Callable[..., str] = charge_order
    return guarded


class _FunctionContext:
    """What Powertools reads the in-progress expiry from: a Lambda function has it, a Celery task must make one up."""

    def get_remaining_time_in_millis(self) -> int:
        """Return for how many milliseconds a claim made now holds."""
        return int(IN_PROGRESS_SECONDS * 1000)


def _declare_refusing(app: Celery, arena: Arena, charge: Charge) -> None:
    declare_refusing(app, arena, charge, **REDELIVERED)


def _declare_by_hand(app: Celery, arena: Arena, _: Charge) -> None:
    """Lock the order's own row, and store its result in the transaction of its effect."""
    from benchmarks.chaos import rows

    @app.task(name=arena.task_name, bind=True, shared=False, **REDELIVERED)
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        with rows.engine_of(arena.database_url).begin() as connection:
            known = rows.locked_order(connection, key)
            if known is not None:
                return known
            charge = charge_by(arena.journal, lambda _, effect: rows.write(connection, effect))
            value = charge(self, key, seconds, effect_seconds)
            rows.store_result(connection, key, value)
        return value


def _declare_ours(app: Celery, arena: Arena, charge: Charge) -> None:
    _declare_on(_store_url(arena), app, arena, charge)


def _declare_ours_apart(app: Celery, arena: Arena, charge: Charge) -> None:
    """Guard as if each worker ran on a machine of its own: none can see that another's processes have ended."""
    _declare_on(store_elsewhere(_store_url(arena), 0), app, arena, charge)


def _declare_key(app: Celery, arena: Arena, _: Charge) -> None:
    """Pass the provider a key, by which it recognises the second request for one effect."""
    charge = charge_at_provider(arena, key_of=lambda task: task.idempotency.downstream_key)
    _declare_on(_store_url(arena), app, arena, charge, downstream="['charge', key]")


def _declare_recover(app: Celery, arena: Arena, charge: Charge) -> None:
    """Ask the provider what it did, before a body runs again."""

    def find(record: Record, key: str, seconds: float, effect_seconds: float) -> Done | NotDone:  # noqa: ARG001
        charges = provider.ask(arena.provider_url, key)
        return Done(charges[0]["value"]) if charges else NotDone()

    _declare_on(_store_url(arena), app, arena, charge, recover=find, settle=SETTLE_SECONDS)


def _declare_park(app: Celery, arena: Arena, charge: Charge) -> None:
    """Run no body again: an operator decides."""
    _declare_on(_store_url(arena), app, arena, charge, on_rerun="park")


def _declare_receipts(app: Celery, arena: Arena, _: Charge) -> None:
    """Write the row in the transaction of the receipt."""
    from benchmarks.chaos import rows
    from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

    charge = charge_by(arena.journal, lambda task, effect: rows.write(task.idempotency.session, effect))
    receipts = SQLAlchemyReceipts(rows.engine_of(arena.database_url))
    _declare_on(_store_url(arena), app, arena, charge, receipts=receipts)


def _declare_atomic(app: Celery, arena: Arena, _: Charge) -> None:
    """Return the effect as an item, which is put in the transaction of the record."""
    from benchmarks.chaos import rows

    def charge(task: Any, key: str, seconds: float, effect_seconds: float) -> Atomic:
        writes: list[dict[str, Any]] = []
        body = charge_by(arena.journal, lambda _, effect: writes.append(rows.item_of(arena.items, effect)))
        return Atomic(body(task, key, seconds, effect_seconds), writes)

    _declare_on(_store_url(arena), app, arena, charge)


def _declare_steps(app: Celery, arena: Arena, _: Charge) -> None:
    """Have five effects, each by a tool of its own."""
    _declare_on(_store_url(arena), app, arena, charge_in_steps(arena), settle=SETTLE_SECONDS)


def _store_url(arena: Arena) -> str:
    return f"dynamodb://{arena.region}/{arena.table}?endpoint_url={arena.endpoint}"


def _declare_on(
    store: str | Store, app: Celery, arena: Arena, charge: Callable[..., str | Atomic], **options: Any
) -> None:
    app.conf.update(idempotency_store=store, idempotency_observers=[events.log_event, _observe])
    policy = Idempotency(key="key", lease=LEASE_SECONDS, max_crashes=MAX_CRASHES, **options)
    # It brings the late acknowledgement itself.
    _register(app, arena, charge, base=IdempotentTask, idempotency=policy)


_LINES: Final = {
    events.Claimed: What.CLAIMED,
    events.Committed: What.COMMITTED,
    events.Deferred: What.DEFERRED,
    events.Replayed: What.REPLAYED,
    events.Lost: What.LOST_CLAIM,
    events.Parked: What.PARKED,
    events.Recovered: What.RECOVERED,
}


def _observe(event: events.Event) -> None:
    """Write down what the checker, or a reader of the journal, wants to know of the library's events."""
    what = _LINES.get(type(event))
    if what is not None:
        _journal_of_this_process().append(what, task_id=event.task_id, pid=os.getpid(), state=_state_of(event))


def _state_of(event: events.Event) -> str:
    match event:
        case events.Parked():
            return event.reason
        case events.Recovered():
            return "done" if event.done else "not done"
    return ""


@cache
def _journal_of_this_process() -> Journal:
    return Arena.of_this_process().journal


#: In the order of the tables.
CONTENDERS: Final = {
    "plain": Contender(title="plain Celery", declare=_declare_plain),
    "celery-dedup": Contender(title="Celery's deduplication", declare=_declare_deduplication),
    "celery-once": Contender(title="celery-once", declare=_declare_once),
    "celery-singleton": Contender(title="celery-singleton", declare=_declare_singleton),
    "powertools": Contender(title="Powertools in a task", declare=_declare_powertools, has_table=True),
    "refuse": Contender(title="refused after a crash", declare=_declare_refusing, has_table=True, needs="provider"),
    "by-hand": Contender(title="SELECT FOR UPDATE by hand", declare=_declare_by_hand, needs="rows"),
    "ours": Contender(title="IdempotentTask", declare=_declare_ours, has_table=True, ours=True),
    "ours-apart": Contender(
        title="IdempotentTask, machines apart", declare=_declare_ours_apart, has_table=True, ours=True
    ),
    "ours-key": Contender(
        title="IdempotentTask, key downstream",
        declare=_declare_key,
        has_table=True,
        needs="provider",
        ours=True,
        # The provider recognises the request of a zombie too.
        prevents=(Kind.LIMIT, Kind.ZOMBIE_EFFECT),
    ),
    "ours-recover": Contender(
        title="IdempotentTask, recover",
        declare=_declare_recover,
        has_table=True,
        needs="provider",
        ours=True,
        prevents=(Kind.LIMIT,),
    ),
    "ours-park": Contender(
        title="IdempotentTask, park",
        declare=_declare_park,
        has_table=True,
        needs="provider",
        parks=True,
        ours=True,
        prevents=(Kind.LIMIT,),
    ),
    "ours-receipts": Contender(
        title="IdempotentTask, receipts",
        declare=_declare_receipts,
        has_table=True,
        needs="rows",
        ours=True,
        prevents=(Kind.LIMIT, Kind.ZOMBIE_EFFECT),
    ),
    "ours-atomic": Contender(
        title="IdempotentTask, Atomic",
        declare=_declare_atomic,
        has_table=True,
        needs="rows",
        ours=True,
        prevents=(Kind.LIMIT, Kind.ZOMBIE_EFFECT),
    ),
    "ours-steps": Contender(
        title="IdempotentTask, steps",
        declare=_declare_steps,
        has_table=True,
        needs="rows",
        ours=True,
        has_provider=True,
        steps=STEPS,
    ),
}


def add_tracing_headers(headers: dict[str, Any], **_: Any) -> None:
    """Add a trace to a message's headers, and to a dict ``headers`` within them, as Sentry's and Datadog's SDKs do.

    Celery hands a body only the inner dict as ``self.request.headers``, so both SDKs write there; a message that the
    body's process publishes again has what it had.
    """
    trace, span = uuid4().hex, uuid4().hex[:16]
    traced = {
        "sentry-trace": f"{trace}-{span}-1",
        "baggage": f"sentry-trace_id={trace},sentry-environment=chaos,sentry-sampled=true",
        "x-datadog-trace-id": str(int(trace[:15], 16)),
        "x-datadog-parent-id": str(int(span[:15], 16)),
    }
    headers.update(traced)
    headers.setdefault("headers", {}).update(traced)


@contextmanager
def tracing(*, on: bool) -> Iterator[None]:
    """Trace what this process publishes in the block."""
    if on:
        before_task_publish.connect(add_tracing_headers)
    try:
        yield
    finally:
        before_task_publish.disconnect(add_tracing_headers)
