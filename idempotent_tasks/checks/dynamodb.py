"""Checks of a DynamoDB table, the permissions on it, and this machine's clock.  Nothing is written."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from uuid import uuid4

from idempotent_tasks.checks.context import CheckContext
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.errors import RecordCorruptError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.aws_errors import blames_credentials, error_code
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.store import LOCAL_PORT, local_url
from idempotent_tasks.stores.dynamodb.table import describe, key_schema_problem, ttl_problem

__all__ = ["DESCRIPTIONS", "TABLE_FINDINGS", "WORKER_ACTIONS", "check_table", "development_remedy"]

#: The codes of this module's findings.
TABLE_FINDINGS: Final = (
    "clock-offset",
    "permission-missing",
    "store-refuses",
    "store-unreachable",
    "table-key-schema",
    "table-missing",
    "table-ttl-off",
)

#: The actions on the table itself, and not on its items.
DESCRIPTIONS: Final = ("DescribeTable", "DescribeTimeToLive")
#: The actions of a worker on the table; the descriptions only for these checks.
WORKER_ACTIONS: Final = ("UpdateItem", "PutItem", "GetItem", *DESCRIPTIONS)
#: The error codes of DynamoDB and IAM for a missing permission.
_DENIALS: Final = ("AccessDeniedException", "AccessDenied")
#: The tolerated difference from DynamoDB's clock in seconds.
CLOCK_TOLERANCE_SECONDS: Final = 5.0
#: A condition that is never true.
_NEVER: Final = "attribute_exists(#key) AND attribute_not_exists(#key)"


def check_table(context: CheckContext) -> Iterator[Finding]:
    """Find what is wrong with a store's table, its permissions and this machine's clock; never raises.

    Sends one request for each of `WORKER_ACTIONS`: the writes under a condition that is never true, on a key that no
    record has.  DynamoDB bills each write and the read as one unit.
    """
    store = context.settings.store
    # A ready-made client must not be used before a worker forks.
    if not isinstance(store, DynamoDBStore) or not store.verifiable:
        return
    try:
        yield from _check(store)
    except StoreError as error:
        if isinstance(error, StoreUnavailableError) and not blames_credentials(error):
            code = "store-unreachable"
            remedy = "let the worker reach the endpoint (network, security group, VPC endpoint), or fix the store's URL"
        else:
            code, remedy = "store-refuses", "see the message"
        yield Finding(
            code=code, what=str(error), remedy="; ".join(filter(None, (remedy, development_remedy(store, error))))
        )


def development_remedy(store: DynamoDBStore, error: StoreError) -> str:
    """Return the command of a stand-in for who has no AWS, if no service has answered the request; else an empty text.

    Nothing answers where nothing runs yet, and nothing is asked without credentials or a Region.
    """
    if error_code(error):
        return ""
    table, port = store.table.rpartition("/")[2], store.connection.local_port
    command = f"python -m idempotent_tasks dynamodb --table {table}"
    if port is not None:
        return f"for development start: {command}" + ("" if port == LOCAL_PORT else f" --port {port}")
    return f'for development start: {command}, and set app.conf.idempotency_store = "{local_url(table)}"'


def _check(store: DynamoDBStore) -> Iterator[Finding]:
    for action, ask in _permission_checks(store):
        found = _check_action(store, action, ask)
        yield from found
        if any(finding.code == "table-missing" for finding in found):
            return
    yield from _check_clock(store)


def _check_action(store: DynamoDBStore, action: str, ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Send the request of an action, and return the findings of its answer or its error."""
    try:
        return list(ask())
    except (StoreMisconfiguredError, RecordCorruptError) as error:
        if blames_credentials(error):
            raise
        if error_code(error) in _DENIALS:
            what = f"dynamodb:{action} on table {store.table!r} is not allowed"
            remedy = f'{{"Effect": "Allow", "Action": "dynamodb:{action}", "Resource": "<the table\'s ARN>"}}'
            return [Finding(code="permission-missing", what=what, remedy=remedy)]
        if action in DESCRIPTIONS:
            raise
        # Other errors of a read or write have a cause that the descriptions of the table show better.
        return []


def _permission_checks(store: DynamoDBStore) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """Yield each action that workers need, with a function that sends its request and returns findings."""
    schema = store.schema
    never: dict[str, Any] = {"ConditionExpression": _NEVER, "ExpressionAttributeNames": schema.names(_NEVER)}
    # No task has this name, so no record this key; workers that start together share neither key nor partition.
    key = schema.key(f"idempotent_tasks#probe-{uuid4().hex}")

    def check_permission(operation: str, **parameters: Any) -> Iterable[Finding]:
        store.connection.request(operation, TableName=store.table, **parameters)
        return ()

    yield "UpdateItem", lambda: check_permission("update_item", Key=key, **never)
    yield "PutItem", lambda: check_permission("put_item", Item=key, **never)
    yield "GetItem", lambda: check_permission("get_item", Key=key)
    yield "DescribeTable", lambda: _check_description(store)
    yield "DescribeTimeToLive", lambda: _check_ttl(store)


def _check_description(store: DynamoDBStore) -> Iterator[Finding]:
    description = describe(store.connection, store.table)
    if description is None:
        what = f"table {store.table!r} does not exist at {store.connection!r}"
        remedy = "celery -A <app> idempotency create-table"
        yield Finding(code="table-missing", what=what, remedy=remedy)
        return
    problem = key_schema_problem(description, store.table, store.schema)
    if problem is not None:
        remedy = "set key_attr and sort_key_attr of the store to the table's, or use another table"
        yield Finding(code="table-key-schema", what=problem, remedy=remedy)


def _check_ttl(store: DynamoDBStore) -> Iterator[Finding]:
    problem = ttl_problem(store.connection, store.table, store.schema)
    if problem is not None:
        yield Finding(
            code="table-ttl-off",
            what=problem,
            remedy=f"aws dynamodb update-time-to-live --table-name {store.table} --time-to-live-specification "
            f"Enabled=true,AttributeName={store.schema.expiry_attr}",
        )


def _check_clock(store: DynamoDBStore) -> Iterator[Finding]:
    offset = store.connection.clock.offset_seconds
    if abs(offset) > CLOCK_TOLERANCE_SECONDS:
        side = "behind" if offset > 0 else "ahead of"
        what = f"this machine's clock is {abs(offset):.0f} s {side} DynamoDB's"
        remedy = "have the machine keep its time: timedatectl set-ntp true"
        yield Finding(code="clock-offset", what=what, remedy=remedy)
