"""The body that every contender runs, and the guards around it."""

from collections.abc import Callable
from typing import Any, Final

from benchmarks.speed.place import REGION
from idempotent_tasks import DynamoDBStore

__all__ = ["IN_PROGRESS_SECONDS", "Order", "charge", "guarded_by_powertools", "store_at"]

Order = dict[str, Any]

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
