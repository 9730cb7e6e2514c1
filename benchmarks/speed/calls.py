"""What is measured call by call, within one process and without a network.

``python -m benchmarks.speed.calls`` says where the time of one guarded run goes.
"""

import argparse
import cProfile
import inspect
import io
import json
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.utils import formatdate
from functools import partial
from itertools import count
from typing import Any, Final
from uuid import uuid4

import boto3
from botocore.awsrequest import AWSResponse
from celery import Celery

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask
from idempotent_tasks.core.delivery import HARD_LIMIT_ENTRY, OWNER_ENTRY, WATCHER_ENTRY, Delivery, OwnerToken
from idempotent_tasks.core.keys import Selector, payload_digest, record_key
from idempotent_tasks.stores.dynamodb.fast.http import ConnectionPool, Reply

__all__ = [
    "CALLS",
    "IN_PROGRESS_SECONDS",
    "REGION",
    "Call",
    "Order",
    "charge",
    "guarded_by_powertools",
    "recorded_writes",
    "store_at",
]

Order = dict[str, Any]

REGION: Final = "eu-west-1"

#: Seconds for which Powertools holds a key, as long as the app's time limit lets a body run.
IN_PROGRESS_SECONDS: Final = 60


def charge(order: Order) -> Order:
    """Do nothing, as a body: what is left is the cost of everything around it."""
    return {"id": order["id"], "charged": True}


def store_at(endpoint: str, table: str, *, stock: bool = False) -> DynamoDBStore:
    """Return our store over an endpoint.

    Args:
        endpoint: the URL.
        table: its name.
        stock: with boto3 sending every request.
    """
    return DynamoDBStore(table, region=REGION, endpoint_url=endpoint, fast=not stock)


def guarded_by_powertools(client: Any, table: str, prefix: str, **config: Any) -> Callable[..., Order]:
    """Return the body under ``idempotent_function``; it takes ``order=``.

    Args:
        client: the boto3 client.
        table, prefix: where the records lie, and what their keys begin with.
        config: more of ``IdempotencyConfig``.
    """
    from aws_lambda_powertools.utilities.idempotency import (
        DynamoDBPersistenceLayer,
        IdempotencyConfig,
        idempotent_function,
    )

    settings = IdempotencyConfig(
        event_key_jmespath="id", raise_on_no_idempotency_key=True, expires_after_seconds=3600, **config
    )
    settings.register_lambda_context(_FunctionContext())

    @idempotent_function(
        data_keyword_argument="order",
        persistence_store=DynamoDBPersistenceLayer(table_name=table, boto3_client=client),
        config=settings,
        key_prefix=prefix,
    )
    def guarded(*, order: Order) -> Order:
        return charge(order)

    function: Callable[..., Order] = guarded
    return function


class _FunctionContext:
    def get_remaining_time_in_millis(self) -> int:
        return IN_PROGRESS_SECONDS * 1000


#: Nothing listens there.
ENDPOINT: Final = "http://127.0.0.1:1"
#: What an `UpdateItem` that claims is answered; whoever asked for something else finds no fault with it.
_BODY: Final = json.dumps({"Attributes": {"fence": {"N": "1764000000000"}, "attempt": {"N": "1"}}}).encode()


class _Body(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def stub(client: Any) -> Any:
    """Have a boto3 client get its answers in the place of the connection, and return it."""
    client.meta.events.register("before-send.dynamodb.*", _answered)
    return client


def stubbed(store: DynamoDBStore) -> DynamoDBStore:
    """Have a store that was not used yet get its answers in the place of the connection, and return it."""
    stub(store.connection.client_of_this_process())
    fast = store.connection._fast_client  # noqa: SLF001 - nobody else puts a stub there
    if fast is not None:
        # The stub is a handler, which would close the fast path path: it is looked for, and overlooked.
        hooks = fast._hooks  # noqa: SLF001
        found = hooks.found
        hooks.found = lambda operation: found(operation) and None  # type: ignore[method-assign]
        ConnectionPool.exchange = _exchanged  # type: ignore[method-assign, assignment]
    return store


def _answered(request: Any, **_: Any) -> AWSResponse:
    return AWSResponse(request.url, 200, _headers(), _Body(_BODY))


def _exchanged(connections: ConnectionPool, headers: Mapping[str, str], body: bytes) -> Reply:
    connections._message(headers, body)  # noqa: SLF001 - what it costs to write a request is part of the call
    return Reply(200, _headers(), _BODY, keeps=True)


def _headers() -> dict[str, str]:
    date = formatdate(time.time(), usegmt=True)
    return {"content-type": "application/x-amz-json-1.0", "x-amzn-requestid": "made-up", "date": date}


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


def main(arguments: Sequence[str]) -> int:
    """Say where the time of one guarded run goes: print the functions that took most, and return 0."""
    options = _parser().parse_args(arguments)
    call = guarded(stock=options.stock)
    call()
    profile = cProfile.Profile()
    with profile:
        for _ in range(options.calls):
            call()
    pstats.Stats(profile).strip_dirs().sort_stats(options.sort).print_stats(options.lines)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.calls", description=main.__doc__)
    parser.add_argument("--stock", action="store_true", help="with boto3 sending every request")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--sort", choices=("tottime", "cumtime", "ncalls"), default="tottime")
    parser.add_argument("--lines", type=int, default=30, help="how many functions are printed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
