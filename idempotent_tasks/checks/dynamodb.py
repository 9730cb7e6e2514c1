"""What stands between a store and its table: asked for at the table itself, without writing anything."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from idempotent_tasks.errors import RecordCorruptError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.aws_errors import blames_credentials, error_code
from idempotent_tasks.stores.dynamodb.client import Connection
from idempotent_tasks.stores.dynamodb.item import Layout
from idempotent_tasks.stores.dynamodb.table import describe, key_schema_problem, ttl_problem

__all__ = ["PROBLEMS", "WORKER_ACTIONS", "TableProblem", "probe"]

#: Every ``TableProblem.code``.
PROBLEMS: Final = (
    "clock-offset",
    "permission-missing",
    "store-refuses",
    "store-unreachable",
    "table-key-schema",
    "table-missing",
    "table-ttl-off",
)

_DESCRIPTIONS: Final = ("DescribeTable", "DescribeTimeToLive")
#: What a worker does with the table; the descriptions only when it starts, to check it.
WORKER_ACTIONS: Final = ("UpdateItem", "PutItem", "GetItem", *_DESCRIPTIONS)
#: DynamoDB's and IAM's words for a missing permission.
_DENIALS: Final = ("AccessDeniedException", "AccessDenied")
#: A machine whose clock is further off, in seconds, is told.
CLOCK_TOLERANCE_SECONDS: Final = 5.0
#: No condition that contradicts itself is ever true.
_NEVER: Final = "attribute_exists(#key) AND attribute_not_exists(#key)"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableProblem:
    """Something that is not as the store needs it."""

    #: One of `PROBLEMS`.
    code: str
    what: str
    remedy: str


def probe(connection: Connection, table: str, layout: Layout) -> Iterator[TableProblem]:
    """Find what is wrong with a table, its permissions and this machine's clock; never raises.

    Sends `WORKER_ACTIONS`, one request each: the writes under a condition that cannot be true, on a key that no
    record has.  DynamoDB bills each of the writes and the read as one unit.
    """
    try:
        yield from _probe(connection, table, layout)
    except StoreError as error:
        if isinstance(error, StoreUnavailableError) and not blames_credentials(error):
            remedy = "let the worker reach the endpoint (network, security group, VPC endpoint), or fix the store's URL"
            yield TableProblem(code="store-unreachable", what=str(error), remedy=remedy)
        else:
            yield TableProblem(code="store-refuses", what=str(error), remedy="what the message says")


def _probe(connection: Connection, table: str, layout: Layout) -> Iterator[TableProblem]:
    for action, ask in _questions(connection, table, layout):
        found = _problems(action, ask, table)
        yield from found
        if any(problem.code == "table-missing" for problem in found):
            return
    yield from _clock_problem(connection)


def _problems(action: str, ask: Callable[[], Iterable[TableProblem]], table: str) -> list[TableProblem]:
    try:
        return list(ask())
    except (StoreMisconfiguredError, RecordCorruptError) as error:
        if blames_credentials(error):
            raise
        if error_code(error) in _DENIALS:
            what = f"dynamodb:{action} on table {table!r} is not allowed"
            remedy = f'{{"Effect": "Allow", "Action": "dynamodb:{action}", "Resource": "<the table\'s ARN>"}}'
            return [TableProblem(code="permission-missing", what=what, remedy=remedy)]
        if action in _DESCRIPTIONS:
            raise
        # What else is wrong with a read or a write of an item, the descriptions of the table say better.
        return []


def _questions(
    connection: Connection, table: str, layout: Layout
) -> Iterator[tuple[str, Callable[[], Iterable[TableProblem]]]]:
    """Yield each action with the question that needs it, which returns what its answer shows to be wrong."""
    never: dict[str, Any] = {"ConditionExpression": _NEVER, "ExpressionAttributeNames": layout.names(_NEVER)}
    # No task has this name, so no record this key; and workers that start together share no key, nor its partition.
    key = layout.key(f"idempotent_tasks#probe-{uuid4().hex}")

    def ask(operation: str, **parameters: Any) -> Callable[[], Iterable[TableProblem]]:
        """Return a question whose answer shows nothing but that it may be asked."""

        def question() -> Iterable[TableProblem]:
            connection.request(operation, TableName=table, **parameters)
            return ()

        return question

    yield "UpdateItem", ask("update_item", Key=key, **never)
    yield "PutItem", ask("put_item", Item=key, **never)
    yield "GetItem", ask("get_item", Key=key)
    yield "DescribeTable", lambda: _table_problems(connection, table, layout)
    yield "DescribeTimeToLive", lambda: _ttl_problems(connection, table, layout)


def _table_problems(connection: Connection, table: str, layout: Layout) -> Iterator[TableProblem]:
    description = describe(connection, table)
    if description is None:
        yield TableProblem(
            code="table-missing",
            what=f"table {table!r} does not exist at {connection!r}",
            remedy="celery -A <app> idempotency create-table",
        )
        return
    problem = key_schema_problem(description, table, layout)
    if problem is not None:
        remedy = "set key_attr and sort_key_attr of the store to the table's, or use another table"
        yield TableProblem(code="table-key-schema", what=problem, remedy=remedy)


def _ttl_problems(connection: Connection, table: str, layout: Layout) -> Iterator[TableProblem]:
    problem = ttl_problem(connection, table, layout)
    if problem is not None:
        yield TableProblem(
            code="table-ttl-off",
            what=problem,
            remedy=f"aws dynamodb update-time-to-live --table-name {table} --time-to-live-specification "
            f"Enabled=true,AttributeName={layout.expiry_attr}",
        )


def _clock_problem(connection: Connection) -> Iterator[TableProblem]:
    offset = connection.clock.offset_seconds
    if abs(offset) > CLOCK_TOLERANCE_SECONDS:
        side = "behind" if offset > 0 else "ahead of"
        yield TableProblem(
            code="clock-offset",
            what=f"this machine's clock is {abs(offset):.0f} s {side} DynamoDB's",
            remedy="have the machine keep its time: timedatectl set-ntp true",
        )
