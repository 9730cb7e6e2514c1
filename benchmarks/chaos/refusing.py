"""At most once by a record alone: a key whose run began and left no outcome is never run again, nor answered."""

import time
from functools import cache
from typing import Any, Final
from uuid import uuid4

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from celery import Celery

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.charges import Charge

__all__ = ["InDoubtError", "Ledger", "declare_refusing"]

#: Seconds after which a run without an outcome is taken for dead: twice the longest body, as it cannot renew.
DEAD_SECONDS: Final = 14.0
#: Seconds until a duplicate of a running key, or a delivery without an answer of the table, looks again.
RETRY_SECONDS: Final = 1.0
_IN_FLIGHT, _DONE = "INPROGRESS", "COMPLETED"
_REFUSED: Final = "ConditionalCheckFailedException"


class InDoubtError(Exception):
    """A run of this key began, and nobody knows what came of it."""


class _RunningError(Exception):
    """Another run of this key may be alive."""


class Ledger:
    """Keys in DynamoDB, each with the result of its one run.

    Args:
        arena: has the table.
    """

    def __init__(self, arena: Arena) -> None:
        self._client = boto3.client("dynamodb", region_name=arena.region, endpoint_url=arena.endpoint)
        self._table = arena.table

    def begin(self, key: str, owner: str) -> str | None:
        """Return None where the run of this owner may begin, or the result of the one before.

        Raises:
            InDoubtError: a run began long ago and left no result.
            _RunningError: a run began not long ago.
        """
        item = {"id": {"S": key}, "owner": {"S": owner}, "status": {"S": _IN_FLIGHT}, "at": {"N": str(time.time())}}
        try:
            self._client.put_item(
                TableName=self._table,
                Item=item,
                ConditionExpression="attribute_not_exists(id)",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != _REFUSED:
                raise
            there = error.response["Item"]
        else:
            return None
        if there["status"]["S"] == _DONE:
            return str(there["data"]["S"])
        # The answer to an earlier try of the same request was lost.
        if there["owner"]["S"] == owner:
            return None
        if time.time() - float(there["at"]["N"]) < DEAD_SECONDS:
            raise _RunningError(key)
        raise InDoubtError(f"a run of {key} began and left no result")

    def end(self, key: str, owner: str, value: str) -> None:
        """Store the result of the run of this owner."""
        self._client.update_item(
            TableName=self._table,
            Key={"id": {"S": key}},
            UpdateExpression="SET #status = :done, #data = :value",
            ConditionExpression="#owner = :owner",
            ExpressionAttributeNames={"#status": "status", "#data": "data", "#owner": "owner"},
            ExpressionAttributeValues={":done": {"S": _DONE}, ":value": {"S": value}, ":owner": {"S": owner}},
        )


def declare_refusing(app: Celery, arena: Arena, charge: Charge, **options: Any) -> None:
    """Write down that a run begins, and refuse the key from then on unless the result was written down too."""

    @cache
    def ledger() -> Ledger:
        # Made on first use, in the pool's process: a boto3 client must not be shared through a fork.
        return Ledger(arena)

    @app.task(name=arena.task_name, bind=True, shared=False, max_retries=None, **options)
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        owner = uuid4().hex
        try:
            known = ledger().begin(key, owner)
        except (_RunningError, ClientError, BotoCoreError) as error:
            raise self.retry(exc=error, countdown=RETRY_SECONDS) from error
        if known is not None:
            return known
        value = charge(self, key, seconds, effect_seconds)
        try:
            ledger().end(key, owner, value)
        except (ClientError, BotoCoreError) as error:
            # The body is over, and the next delivery finds out that nobody knows.
            raise self.retry(exc=error, countdown=RETRY_SECONDS) from error
        return value
