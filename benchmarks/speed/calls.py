"""What is measured call by call, within one process and without a network."""

import inspect
import json
import os
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final
from uuid import uuid4

import boto3
from celery import Celery

from benchmarks.speed.guards import IN_PROGRESS_SECONDS, Order, charge, guarded_by_powertools, store_at
from benchmarks.speed.place import REGION
from benchmarks.speed.stubbing import ENDPOINT, stub, stubbed
from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.core.delivery import HARD_LIMIT_ENTRY, OWNER_ENTRY, WATCHER_ENTRY, Delivery, OwnerToken
from idempotent_tasks.core.keys import Selector, payload_digest, record_key

__all__ = ["CALLS", "Call", "guarded", "recorded_writes"]

Call = Callable[[], object]

TABLE: Final = "speed"
#: Characters of an argument's JSON text.
SIZES: Final = {"1 KB": 1_000, "100 KB": 100_000, "1 MB": 1_000_000}


def _plain() -> Call:
    app = Celery("speed", broker="memory://", set_as_current=False)
    return _delivering(app.task(charge, name="speed.plain", shared=False))


def guarded(*, stock: bool = False) -> Call:
    """Return one guarded run as a process of a pool runs it: claim, body, commit.

    Args:
        stock: with boto3 sending every request.
    """
    app = Celery("speed", broker="memory://", set_as_current=False)
    app.conf.idempotency_store = stubbed(store_at(ENDPOINT, TABLE, stock=stock))
    policy = Idempotency(key="order.id")
    return _delivering(app.task(charge, base=IdempotentTask, name="speed.ours", shared=False, idempotency=policy))


def _delivering(task: Any) -> Call:
    numbers = count()

    def deliver() -> object:
        args = ({"id": f"ord-{next(numbers)}"},)
        entries = {
            HARD_LIMIT_ENTRY: float(IN_PROGRESS_SECONDS),
            OWNER_ENTRY: OwnerToken(uuid4().hex),
            WATCHER_ENTRY: os.getpid(),
        }
        # As the worker's parent process describes a delivery to its pool.
        task.push_request(
            id=uuid4().hex,
            args=args,
            kwargs={},
            headers={},
            retries=0,
            hostname="celery@speed",
            delivery_info={},
            called_directly=False,
            is_eager=False,
            callbacks=None,
            errbacks=None,
            chain=None,
            chord=None,
            **entries,
        )
        try:
            return task(*args)
        finally:
            task.pop_request()

    return deliver


def recorded_writes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the claim and the commit of one guarded run over boto3 ask for, as `update_item` takes it."""
    seen: list[dict[str, Any]] = []
    app = Celery("speed", broker="memory://", set_as_current=False)
    store = stubbed(store_at(ENDPOINT, TABLE, stock=True))
    app.conf.idempotency_store = store
    task = app.task(charge, base=IdempotentTask, name="speed.ours", shared=False, idempotency={"key": "order.id"})
    deliver = _delivering(task)
    # The first asks for the time, too.
    deliver()
    events = store.connection.client_of_this_process().meta.events
    events.register("provide-client-params.dynamodb.UpdateItem", lambda params, **_: seen.append(dict(params)))
    deliver()
    claim, commit = seen
    return claim, commit


def _stock_updates() -> Call:
    claim, commit = recorded_writes()
    update = stub(_client()).update_item

    def call_twice() -> object:
        update(**claim)
        return update(**commit)

    return call_twice


def _powertools() -> Call:
    numbers, call = count(), guarded_by_powertools(stub(_client()), TABLE, "speed")
    return lambda: call(order={"id": f"ord-{next(numbers)}"})


def _client() -> Any:
    account = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    return boto3.client("dynamodb", region_name=REGION, endpoint_url=ENDPOINT, **account)


def _order(size: str) -> Order:
    lines: list[dict[str, Any]] = []
    order = {"id": "ord-17", "customer": "Zoë", "lines": lines}
    line = json.dumps(_line(0))
    lines += map(_line, range(SIZES[size] // len(line)))
    return order


def _line(number: int) -> dict[str, Any]:
    return {
        "sku": f"sku-{number:06}",
        "title": "A thing that somebody bought",
        "quantity": number % 7 + 1,
        "price": number % 100 + 0.25,
        "gift": number % 2 == 0,
        "options": ["blue", "large"],
        "note": None,
    }


def _dumps(size: str) -> Call:
    return partial(json.dumps, _order(size))


def _key(source: str, size: str) -> Call:
    return partial(record_key, _delivery(size), "speed", Selector.of("key", source), inspect.signature(charge))


def _digest(size: str) -> Call:
    return partial(payload_digest, _delivery(size), Selector.of("validate", "order"), inspect.signature(charge))


def _delivery(size: str) -> Delivery:
    return Delivery(task="speed.ours", task_id="one", args=(_order(size),), kwargs={})


#: What makes each call, by the call's name.
CALLS: Final[dict[str, Callable[[], Call]]] = {
    "unguarded run": _plain,
    "two stock update_item": _stock_updates,
    "Powertools": _powertools,
    "guarded run": guarded,
    "guarded run over boto3": partial(guarded, stock=True),
    **{f"json.dumps of {size}": partial(_dumps, size) for size in SIZES},
    "key of 1 MB, one field": partial(_key, "order.id", "1 MB"),
    **{f"key of {size}, all of it": partial(_key, "order", size) for size in SIZES},
    "digest of 1 MB, all of it": partial(_digest, "1 MB"),
}
