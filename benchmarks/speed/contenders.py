"""Who is measured: plain Celery, Powertools for AWS Lambda in a task, and this library on each of its roads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import boto3
from celery import Celery

from benchmarks.speed.place import REGION, Place
from benchmarks.storm.contenders.contender import REDELIVERED
from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask

__all__ = [
    "CACHED",
    "CHARGE",
    "NOTE",
    "Contender",
    "Order",
    "charge",
    "guarded_by_powertools",
    "load",
    "names",
    "store_at",
]

Order = dict[str, Any]

#: The tasks: the guarded one, the one that also remembers outcomes in its process, and a plain one to follow them.
CHARGE: Final = "speed.charge"
CACHED: Final = "speed.charge_cached"
NOTE: Final = "speed.note"
CACHE_SECONDS: Final = 600
#: Seconds for which Powertools holds a key, as long as the app's time limit lets a body run.
IN_PROGRESS_SECONDS: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to guard a task."""

    #: What the tables say of it.
    title: str
    #: Registers the tasks `CHARGE` and `CACHED`.
    declare: Callable[[Celery, Place], None]
    #: The package that must be there.
    package: str = "celery"


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
    from aws_lambda_powertools.utilities.idempotency import (  # noqa: PLC0415 - it may not be installed
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


def _declare_plain(app: Celery, _place: Place) -> None:
    for name in (CHARGE, CACHED):
        app.task(charge, name=name, shared=False, **REDELIVERED)


def _declare_client(app: Celery, place: Place) -> None:
    client = cache(lambda: _client(place))

    def charge_beside_client(order: Order) -> Order:
        client()
        return charge(order)

    app.task(charge_beside_client, name=CHARGE, shared=False, **REDELIVERED)


def _declare_powertools(app: Celery, place: Place) -> None:
    for name, config in ((CHARGE, {}), (CACHED, {"use_local_cache": True})):
        _declare_guarded(app, place, name, config)


def _declare_guarded(app: Celery, place: Place, name: str, config: dict[str, Any]) -> None:
    # Made on first use, in the pool's process: a boto3 client must not be shared through a fork.
    guarded = cache(lambda: guarded_by_powertools(_client(place), place.table, name, **config))

    def charge_guarded(order: Order) -> Order:
        return guarded()(order=order)

    app.task(charge_guarded, name=name, shared=False, **REDELIVERED)


def _declare_ours(app: Celery, place: Place) -> None:
    _declare_on(store_at(place.endpoint, place.table), app)


def _declare_ours_stock(app: Celery, place: Place) -> None:
    _declare_on(store_at(place.endpoint, place.table, stock=True), app)


def _declare_on(store: DynamoDBStore, app: Celery) -> None:
    app.conf.idempotency_store = store
    for name, memory in ((CHARGE, None), (CACHED, CACHE_SECONDS)):
        policy = Idempotency(key="order.id", cache=memory)
        app.task(charge, base=IdempotentTask, name=name, shared=False, idempotency=policy)


def _client(place: Place) -> Any:
    return boto3.client("dynamodb", region_name=REGION, endpoint_url=place.endpoint)


_CONTENDERS: Final = {
    "plain": Contender(title="plain Celery", declare=_declare_plain),
    "client": Contender(title="plain Celery and a boto3 client", declare=_declare_client),
    "powertools": Contender(title="Powertools in a task", declare=_declare_powertools, package="aws_lambda_powertools"),
    "ours": Contender(title="IdempotentTask", declare=_declare_ours),
    "ours-stock": Contender(title="IdempotentTask over boto3", declare=_declare_ours_stock),
}


def load(name: str) -> Contender:
    """Return a contender."""
    return _CONTENDERS[name]


def names(*wanted: str) -> Sequence[str]:
    """Return those of the named contenders whose package is there."""
    return [name for name in wanted if find_spec(_CONTENDERS[name].package) is not None]
