"""Who is measured: plain Celery, Powertools for AWS Lambda in a task, and this library on each of its roads.

And two that guard nothing, for comparison: a task that makes a client, and one that sends what two writes come to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import boto3
from celery import Celery

from benchmarks.chaos.contenders.contender import REDELIVERED
from benchmarks.speed.bare import bare_writes
from benchmarks.speed.guards import Order, charge, guarded_by_powertools, store_at
from benchmarks.speed.place import REGION, Place
from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask

__all__ = ["CACHED", "CHARGE", "NOTE", "Contender", "load", "names"]

#: The tasks: the guarded one, the one that also remembers outcomes in its process, and a plain one to follow them.
CHARGE: Final = "speed.charge"
CACHED: Final = "speed.charge_cached"
NOTE: Final = "speed.note"
CACHE_SECONDS: Final = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to guard a task."""

    #: What the tables say of it.
    title: str
    #: Registers the tasks `CHARGE` and `CACHED`.
    declare: Callable[[Celery, Place], None]
    #: The package that must be there.
    package: str = "celery"


def _declare_plain(app: Celery, _place: Place) -> None:
    for name in (CHARGE, CACHED):
        app.task(charge, name=name, shared=False, **REDELIVERED)


def _declare_client(app: Celery, place: Place) -> None:
    client = cache(lambda: _client(place))

    def charge_beside_client(order: Order) -> Order:
        client()
        return charge(order)

    app.task(charge_beside_client, name=CHARGE, shared=False, **REDELIVERED)


def _declare_bare(app: Celery, place: Place) -> None:
    # Made on first use, in the pool's process: it has a connection.
    writes = cache(lambda: bare_writes(place.endpoint, place.table))

    def charge_between_writes(order: Order) -> Order:
        claim, commit = writes()
        claim(order["id"])
        charged = charge(order)
        commit(order["id"])
        return charged

    app.task(charge_between_writes, name=CHARGE, shared=False, **REDELIVERED)


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
    "bare": Contender(title="plain Celery and two bare requests", declare=_declare_bare),
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
