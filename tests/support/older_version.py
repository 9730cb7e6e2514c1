"""A worker of a version before runs were counted: its requests, word for word, for keys without payload or process."""

import re
import time
from typing import Any

from botocore.exceptions import ClientError

__all__ = ["OlderWorker"]

_CLAIM = (
    "SET #status = :status, #expiration = :expiration, #in_progress_expiration = :in_progress_expiration, "
    "#owner = :owner, #task = :task, #task_id = :task_id, #worker = :worker, #claimed_at = :claimed_at, "
    "#deferred = :deferred, #fence = if_not_exists(#fence, :first_fence) + :one, "
    "#attempt = if_not_exists(#attempt, :zero) + :tries "
    "REMOVE #data, #codec, #completed_at, #error, #continuation, #dispatched, #validation, #validated_by, #process, "
    "#stands_in_until"
)
_CLAIMABLE = (
    "attribute_not_exists(#id) OR #expiration < :now OR "
    "(#status = :inprogress AND (#in_progress_expiration < :now_ms OR #owner = :reserved))"
)
_COMMIT = (
    "SET #status = :status, #expiration = :expiration, #completed_at = :completed_at, #attempt = :zero, "
    "#codec = :codec, #data = :data REMOVE #deferred, #error"
)
_RELEASE = "SET #in_progress_expiration = :at, #error = :error, #attempt = :zero REMOVE #owner, #deferred"
_UNSEEN = "SET #in_progress_expiration = :at, #error = :error, #attempt = #attempt - :one REMOVE #owner, #deferred"
_RENEW = "SET #in_progress_expiration = :until, #expiration = :expiration"
_HELD = "#owner = :holder AND #status = :inprogress"
_RENEWABLE = (
    f"{_HELD} AND #in_progress_expiration > :released AND "
    "(#in_progress_expiration < :until OR #in_progress_expiration = :known)"
)
RETENTION = 3600


class OlderWorker:
    """A delivery of an older version's worker.

    Args:
        raw: a client of DynamoDB.
        table: the table's name.
        key: the record's key.
        owner: the owner token; the task id is ``id-{owner}``.
    """

    def __init__(self, raw: Any, table: str, key: str, owner: str = "old") -> None:
        self._raw = raw
        self._table = table
        self._key = key
        self._owner = owner

    def claim(self, lease_seconds: float = 30, *, reserves: bool = False) -> bool:
        """Claim the key, or reserve it; return whether that was granted."""
        now = time.time()
        reserved = f"reserved for id-{self._owner}"
        return self._update(
            _CLAIM,
            _CLAIMABLE,
            status="INPROGRESS",
            expiration=int(now + max(RETENTION, lease_seconds + 2)),
            in_progress_expiration=int((now + lease_seconds) * 1000),
            owner=reserved if reserves else self._owner,
            task="shop.charge",
            task_id=f"id-{self._owner}",
            worker="older@host",
            claimed_at=int(now * 1000),
            deferred={},
            first_fence=int(now * 1000) - 1,
            one=1,
            zero=0,
            tries=0 if reserves else 1,
            now=int(now),
            now_ms=int(now * 1000),
            inprogress="INPROGRESS",
            reserved=reserved,
        )

    def commit(self) -> bool:
        """Store an outcome, and return whether the key was held."""
        now = time.time()
        return self._write(
            _COMMIT,
            status="COMPLETED",
            expiration=int(now + RETENTION),
            completed_at=int(now * 1000),
            zero=0,
            codec="json",
            data='"older"',
        )

    def release(self) -> bool:
        """Release the key after an exception, and return whether it was held."""
        return self._write(_RELEASE, at=int(time.time() * 1000), error="ValueError", zero=0)

    def release_unseen(self) -> bool:
        """Release a claim whose answer was not seen, and return whether the key was held."""
        return self._write(_UNSEEN, at=int(time.time() * 1000), error="Unseen", one=1)

    def renew(self, known: int, lease_seconds: float = 30) -> bool:
        """Renew the claim that ends at ``known`` (epoch milliseconds), and return whether it was held."""
        until = int((time.time() + lease_seconds) * 1000)
        expiration = int(time.time() + RETENTION)
        values = {"until": until, "expiration": expiration, "released": 0, "known": known}
        return self._update(_RENEW, _RENEWABLE, holder=self._owner, inprogress="INPROGRESS", **values)

    def _write(self, expression: str, **values: Any) -> bool:
        return self._update(expression, _HELD, holder=self._owner, inprogress="INPROGRESS", **values)

    def _update(self, expression: str, condition: str, **values: Any) -> bool:
        names = {f"#{name}": name for name in re.findall(r"#(\w+)", f"{expression} {condition}")}
        try:
            self._raw.update_item(
                TableName=self._table,
                Key={"id": {"S": self._key}},
                UpdateExpression=expression,
                ConditionExpression=condition,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues={f":{name}": _typed(value) for name, value in values.items()},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            return False
        return True


def _typed(value: str | int | dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"M": value}
    return {"S": value} if isinstance(value, str) else {"N": str(value)}
