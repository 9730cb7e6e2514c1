"""An operator's access to a table of records: list them, release a claim, resolve a parked key, delete a record.

Every write is conditional on the record that the operator was shown, so a concurrent delivery wins.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from idempotent_tasks.core.records import Claim, Outcome, Record, Status, release_time, step_item_keys
from idempotent_tasks.core.retry import persistently
from idempotent_tasks.errors import RecordCorruptError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.aws_errors import blames_credentials, error_code
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.client import Succeeded
from idempotent_tasks.stores.dynamodb.item import Item, Update, Value
from idempotent_tasks.stores.dynamodb.updates import message_removal, resolve_update, unchanged

__all__ = ["OPERATOR_ACTIONS", "Corrupt", "TableAdmin"]

T = TypeVar("T")

#: The permissions for these calls and for the creation of the table, beside a worker's.
OPERATOR_ACTIONS: Final = ("Scan", "Query", "DeleteItem", "CreateTable", "UpdateTable", "UpdateTimeToLive")
#: Items a page: few enough that a busy server answers within the client's time-out, too.
PAGE_ITEMS: Final = 500
#: Seconds for which a page is requested again that DynamoDB refuses for now: a listing of many pages should not start
#: over.
PAGE_RETRY_SECONDS: Final = 20.0
#: Seconds for which it is requested again where nothing answers: somebody waits, who can fix the network.
SILENCE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Corrupt:
    """An item of the table that is no record."""

    key: str
    why: str


class TableAdmin:
    """Lists, releases, resolves and deletes the records of one store; raises as `idempotent_tasks.stores.Store`."""

    def __init__(self, store: DynamoDBStore) -> None:
        self._store = store
        self._schema = store.schema

    def records(
        self, *, status: Status | None = None, task: str | None = None, data: bool = False, pages: int | None = None
    ) -> Iterator[Record | Corrupt]:
        """Iterate over the records, page by page.

        DynamoDB bills for every item that it reads, whole, whatever the filters.

        Args:
            status: only records with this stored status.
            task: only records that this task claimed.
            data: whether to fetch the records' data and steps; there are none otherwise.  ``parked`` is always empty.
            pages: how many pages of `PAGE_ITEMS` items, or of 1 MB, are read at most; None for all.
        """
        wanted: dict[str, Value] = {}
        if status is not None:
            wanted["status"] = status
        if task is not None:
            wanted["task"] = task
        start: Item | None = None
        for _ in count() if pages is None else range(pages):
            page = self._retried(partial(self._page, wanted, start, data=data))
            yield from map(self._record, page["Items"])
            start = page.get("LastEvaluatedKey")
            if not start:
                return

    def step_names(self, record: Record) -> list[str]:
        """Return the names of a record's steps; of one whose item is gone, what the record has instead of its name."""
        names = list(record.steps.here)
        for id_, key in step_item_keys(record).items():
            read = self._store.connection.request(
                "get_item",
                TableName=self._store.table,
                Key=self._schema.key(key),
                ProjectionExpression="#step",
                ExpressionAttributeNames=self._schema.names("#step"),
            )
            item: Item = read.answer.get("Item", {}) if isinstance(read, Succeeded) else {}
            names.append(str(item[self._schema.roles["step"]]["S"]) if item else f"{id_}, whose item is gone")
        return sorted(names)

    def expired_steps(self, before: float) -> Iterator[tuple[str, int]]:
        """Iterate over the items of steps that have expired before a time (epoch seconds), as key and expiration.

        DynamoDB bills for every item of the table, whatever its kind.
        """
        clauses, values = ("attribute_exists(#step)", "#expiration < :before"), {":before": {"N": str(int(before))}}
        start: Item | None = None
        while True:
            page = self._retried(partial(self._read_page, ("key", "expiration"), clauses, values, start))
            for item in page["Items"]:
                key = self._key_of(item)
                yield key, self._schema.count(key, item, "expiration")
            start = page.get("LastEvaluatedKey")
            if not start:
                return

    def release(self, record: Record, reason: str, *, force: bool = False) -> bool:
        """Free the key of a claim, and return whether the record was still as shown.

        Keeps the fencing token and resets the crash count to 0.  A body that runs under the claim goes on, but the
        renewal of its lease fails, and its outcome is not recorded.

        Args:
            record: the claim as it was shown.
            reason: goes into the record's ``error``.
            force: release it even if it was renewed since.
        """
        condition, operands = self._unchanged(record, force=force)
        at = release_time(Claim.shown_by(record), self._store.now(record.key))
        values: dict[str, Value] = {"in_progress_expiration": at, "attempt": 0, "error": reason}
        update = Update(
            values=values, remove=("owner", "deferred", "settled_at"), condition=condition, operands=operands
        )
        return self._updated(record.key, update)

    def resolve(self, record: Record, outcome: Outcome | None, kept_seconds: float) -> bool:
        """Give a parked key an outcome, or free it for a first run; return whether the record was still as shown.

        Its messages stay, to be published again, until `remove_message`.

        Args:
            record: the parked record as it was shown.
            outcome: what came of the earlier run; None if that has done nothing.
            kept_seconds: for how long the record is kept from now.
        """
        now = self._store.now(record.key)
        return self._updated(record.key, resolve_update(record, outcome, now, kept_seconds))

    def remove_message(self, record: Record, task_id: str) -> bool:
        """Remove a message that was published again; return whether it was there, and its key not parked again since.

        Args:
            record: as it was when the message was read from it, after the decision.
            task_id: of the message's task.
        """
        update = message_removal(task_id, record.parked[task_id], record.resolved_fence)
        return self._updated(record.key, update)

    def delete(self, record: Record, *, force: bool = False) -> bool:
        """Delete a record, and return whether it was still as shown; arguments as for `release`."""
        condition, operands = self._unchanged(record, force=force)
        given = self._schema.update(Update(condition=condition, operands=operands))
        del given["UpdateExpression"]
        return self._written("delete_item", Key=self._schema.key(record.key), **given)

    def delete_step(self, key: str, expiration: int) -> bool:
        """Delete a step's own item, and return whether it was there and had not been prolonged."""
        condition, operands = "attribute_exists(#step) AND #expiration = :seen", {"seen": expiration}
        given = self._schema.update(Update(condition=condition, operands=operands))
        del given["UpdateExpression"]
        return self._written("delete_item", Key=self._schema.key(key), **given)

    def _retried(self, read: Callable[[], T]) -> T:
        clock = self._store.clock
        begun, patience = clock.monotonic(), SILENCE_SECONDS

        def once() -> T:
            nonlocal patience
            try:
                return read()
            except StoreUnavailableError as error:
                if blames_credentials(error):
                    # Waiting brings an operator no others, as it may to a worker that runs for days.
                    raise StoreMisconfiguredError(error.message) from error.__cause__
                patience = PAGE_RETRY_SECONDS if error_code(error) else SILENCE_SECONDS
                raise

        return persistently(once, clock=clock, seconds=lambda: begun + patience - clock.monotonic())

    def _unchanged(self, record: Record, *, force: bool) -> tuple[str, dict[str, Value]]:
        roles = ("status", "owner", "fence")
        return unchanged(record, roles if force else (*roles, "in_progress_expiration"))

    def _updated(self, key: str, update: Update) -> bool:
        return self._written("update_item", Key=self._schema.key(key), **self._schema.update(update))

    def _written(self, operation: str, **parameters: Any) -> bool:
        answer = self._store.connection.request(operation, TableName=self._store.table, **parameters)
        return isinstance(answer, Succeeded)

    def _page(self, wanted: dict[str, Value], start: Item | None, *, data: bool) -> dict[str, Any]:
        # A page of parked messages would be long, and only their size is shown.
        unread = ("parked",) if data else ("parked", "data", "steps")
        roles = tuple(role for role in self._schema.roles if role not in unread)
        values: dict[str, Any] = {f":{role}": {"S": str(value)} for role, value in wanted.items()}
        # A step that does not lie in its record is an item beside it.
        clauses = (*(f"#{role} = :{role}" for role in wanted), "attribute_not_exists(#step)")
        return self._read_page(roles, clauses, values, start)

    def _read_page(
        self, roles: tuple[str, ...], clauses: tuple[str, ...], values: Item, start: Item | None
    ) -> dict[str, Any]:
        """Read some roles of the items that meet all clauses, from a place on."""
        schema, partition, values = self._schema, self._schema.sort_key_attr is not None, dict(values)
        projection = ", ".join(f"#{role}" for role in roles)
        given: dict[str, Any] = {"FilterExpression": " AND ".join(clauses)}
        names = schema.names(f"{projection} {given['FilterExpression']}")
        if partition:
            names |= {"#sort": schema.sort_key_attr or "", **schema.names("#key")}
            projection += ", #sort"
            given["KeyConditionExpression"] = "#key = :partition"
            values[":partition"] = {"S": schema.static_pk_value}
        if values:
            given["ExpressionAttributeValues"] = values
        if start:
            given["ExclusiveStartKey"] = start
        answer = self._store.connection.request(
            "query" if partition else "scan",
            TableName=self._store.table,
            Limit=PAGE_ITEMS,
            ProjectionExpression=projection,
            ExpressionAttributeNames=names,
            **given,
        )
        # A read has no condition that could be refused.
        return answer.answer if isinstance(answer, Succeeded) else {"Items": []}

    def _key_of(self, item: Item) -> str:
        attribute = self._schema.sort_key_attr or self._schema.key_attr
        return str(item.get(attribute, {}).get("S", ""))

    def _record(self, item: Item) -> Record | Corrupt:
        key = self._key_of(item)
        try:
            return self._schema.record(key, item)
        except RecordCorruptError as error:
            return Corrupt(key, error.message)
