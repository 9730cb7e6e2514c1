"""Powertools for AWS Lambda: its ``idempotent_function`` inside a task, with a retry written by hand."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import boto3
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyPersistenceLayerError,
)
from celery import Celery

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import REDELIVERED, Charge, Contender

__all__ = ["CONTENDER"]

#: Seconds for which it holds a key unless the body ends before. It cannot renew, so a shorter time than the longest
#: body on a busy machine would let a second run in; twice the longest body is the usual margin of a time limit.
IN_PROGRESS_SECONDS: Final = 14.0
#: Seconds until a duplicate of a running key looks again.
RETRY_SECONDS: Final = 1.0

Guarded = Callable[..., str]


class FunctionContext:
    """What Powertools reads the in-progress expiry from: a Lambda function has it, a Celery task must make one up."""

    def get_remaining_time_in_millis(self) -> int:
        """Return for how many milliseconds a claim made now holds."""
        return int(IN_PROGRESS_SECONDS * 1000)


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task around the guarded function."""

    @cache
    def guarded() -> Guarded:
        # Made on first use, in the pool's process: a boto3 client must not be shared through a fork.
        return _guard(arena, charge)

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
        except (IdempotencyAlreadyInProgressError, IdempotencyPersistenceLayerError) as error:
            # Without a retry a duplicate of a running key would fail and be acknowledged, and so would any delivery
            # while the table does not answer.
            raise self.retry(exc=error, countdown=RETRY_SECONDS) from error


def _guard(arena: Arena, charge: Charge) -> Guarded:
    # With boto3's own retries as they are: they are what most of its users have.
    client = boto3.client("dynamodb", region_name=arena.region, endpoint_url=arena.endpoint)
    config = IdempotencyConfig(event_key_jmespath="key", raise_on_no_idempotency_key=True, expires_after_seconds=3600)
    config.register_lambda_context(FunctionContext())

    @idempotent_function(
        data_keyword_argument="order",
        persistence_store=DynamoDBPersistenceLayer(table_name=arena.table, boto3_client=client),
        config=config,
        # Its default prefix is the Lambda function's name, which there is none of.
        key_prefix=arena.task_name,
    )
    def charge_order(*, task: Any, order: dict[str, str], seconds: float, effect_seconds: float) -> str:
        return charge(task, order["key"], seconds, effect_seconds)

    guarded: Guarded = charge_order
    return guarded


CONTENDER = Contender(name="powertools", title="Powertools in a task", declare=declare, has_table=True)
