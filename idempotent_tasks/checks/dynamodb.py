"""Checks of a DynamoDB table, the permissions on it, and this machine's clock.  Nothing is written."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

from idempotent_tasks.checks.context import CheckContext, names_in_body
from idempotent_tasks.checks.findings import Finding, names_of
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Record
from idempotent_tasks.errors import RecordCorruptError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.aws_errors import blames_credentials, error_code
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from idempotent_tasks.stores.dynamodb.store import LOCAL_PORT, local_url
from idempotent_tasks.stores.dynamodb.table import (
    describe,
    is_strongly_consistent,
    key_schema_problem,
    replica_regions,
    ttl_problem,
)

__all__ = ["DESCRIPTIONS", "TABLE_FINDINGS", "WORKER_ACTIONS", "check_table", "check_versions", "development_remedy"]

#: The codes of this module's findings.
TABLE_FINDINGS: Final = (
    "clock-offset",
    "older-workers",
    "permission-missing",
    "prefix-not-allowed",
    "store-refuses",
    "store-unreachable",
    "table-key-schema",
    "table-missing",
    "table-replicated",
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
#: What a body asks of its run that only a count of all runs can answer.
_COUNTED: Final = frozenset({"rerun", "nothing_done"})
#: The prefix that is tried for an app without tasks.
_NO_PREFIX: Final = "idempotent_tasks"


def check_table(context: CheckContext) -> Iterator[Finding]:
    """Find what is wrong with a store's table, its permissions and this machine's clock; never raises.

    Sends one request for each of `WORKER_ACTIONS`, but an ``UpdateItem`` for each key prefix of the tasks: IAM may
    allow a worker's role some keys only (``dynamodb:LeadingKeys``).  The writes have a condition that is never true,
    on keys that no record has.  DynamoDB bills each write and the read as one unit.
    """
    store = context.settings.store
    # A ready-made client must not be used before a worker forks.
    if not isinstance(store, DynamoDBStore) or not store.verifiable:
        return
    try:
        yield from _check(store, context)
    except StoreError as error:
        if isinstance(error, StoreUnavailableError) and not blames_credentials(error):
            code = "store-unreachable"
            remedy = "let the worker reach the endpoint (network, security group, VPC endpoint), or fix the store's URL"
        else:
            code, remedy = "store-refuses", "see the message"
        yield Finding(
            code=code, what=str(error), remedy="; ".join(filter(None, (remedy, development_remedy(store, error))))
        )


def check_versions(context: CheckContext) -> Iterator[Finding]:
    """Find a worker of an older version, which counts no runs, where a task relies on the count; never raises.

    Reads one page of the table, where such a task is and the role may ``Scan``, or ``Query`` a composite key.  A worker
    whose records are on no such page, or have expired, is not found.
    """
    store, code = context.settings.store, "older-workers"
    tasks = tuple(task.name for task in context.heeding(code) if _relies_on_runs(context.policy(task), task))
    if not tasks or not isinstance(store, DynamoDBStore) or not store.verifiable:
        return
    uncounted: list[Record] = []
    with suppress(StoreError):
        page = TableAdmin(store).records(pages=1)
        # A record of Powertools has no fence.
        uncounted = [each for each in page if isinstance(each, Record) and each.fence and not each.is_counted]
    last = max(uncounted, key=lambda each: each.claimed_at or 0, default=None)
    if last is not None:
        when = datetime.fromtimestamp((last.claimed_at or 0) / 1000, UTC).isoformat(timespec="seconds")
        what = f"{last.worker or 'a producer'} claimed {last.key!r} at {when} in a version of this library that counts "
        what += f"no runs, which {names_of(tasks)} relies on"
        remedy = "update every worker and producer of the table; it is reported until the record has expired"
        yield Finding(code=code, what=what, remedy=remedy, tasks=tasks)


def _relies_on_runs(policy: Idempotency, task: Any) -> bool:
    """Return whether a task's options, or its body by itself, ask for the runs that left no outcome."""
    if policy.parks or policy.receipts is not None or "unresolved_for" in policy.given:
        return True
    return not _COUNTED.isdisjoint(names_in_body(task))


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


def _check(store: DynamoDBStore, context: CheckContext) -> Iterator[Finding]:
    description: dict[str, Any] | None = {}
    try:
        description = describe(store.connection, store.table)
    except StoreMisconfiguredError as error:
        yield _denied(store, "DescribeTable", error)
    if description is None:
        what = f"table {store.table!r} does not exist at {store.connection!r}"
        remedy = "celery -A <app> idempotency create-table"
        yield Finding(code="table-missing", what=what, remedy=remedy)
        return
    if description:
        yield from _check_schema(store, description)
        yield from _check_replicas(store, description)
    yield from _check_ttl(store, description)
    yield from _check_item_permissions(store, context)
    yield from _check_clock(store)


def _check_schema(store: DynamoDBStore, description: dict[str, Any]) -> Iterator[Finding]:
    problem = key_schema_problem(description, store.table, store.schema)
    if problem is not None:
        remedy = "set key_attr and sort_key_attr of the store to the table's, or use another table"
        yield Finding(code="table-key-schema", what=problem, remedy=remedy)


def _check_replicas(store: DynamoDBStore, description: dict[str, Any]) -> Iterator[Finding]:
    regions = replica_regions(description)
    if regions and not is_strongly_consistent(description):
        what = f"table {store.table!r} is a global table with eventual consistency, replicated to {', '.join(regions)}"
        remedy = (
            'run workers in one Region only, and app.conf.idempotency_silenced_checks = ["table-replicated"]; or use a '
            "table of its own in each Region, or a global table with strong consistency"
        )
        yield Finding(code="table-replicated", what=what, remedy=remedy)


def _check_ttl(store: DynamoDBStore, description: dict[str, Any]) -> Iterator[Finding]:
    if is_strongly_consistent(description):
        regions = ", ".join(replica_regions(description))
        what = (
            f"table {store.table!r} is a global table with strong consistency, replicated to {regions}: such a table "
            "has no TTL and no transactions"
        )
        remedy = (
            'celery -A <app> idempotency purge, every day, and app.conf.idempotency_silenced_checks = ["table-ttl-off"]'
        )
        yield Finding(code="table-ttl-off", what=what, remedy=remedy)
        return
    try:
        problem = ttl_problem(store.connection, store.table, store.schema)
    except StoreMisconfiguredError as error:
        yield _denied(store, "DescribeTimeToLive", error)
        return
    if problem is not None:
        yield Finding(
            code="table-ttl-off",
            what=problem,
            remedy=f"aws dynamodb update-time-to-live --table-name {store.table} --time-to-live-specification "
            f"Enabled=true,AttributeName={store.schema.expiry_attr}",
        )


def _check_item_permissions(store: DynamoDBStore, context: CheckContext) -> Iterator[Finding]:
    """Find which requests on items IAM denies: on all keys, or on those of some tasks."""
    schema = store.schema
    never: dict[str, Any] = {"ConditionExpression": _NEVER, "ExpressionAttributeNames": schema.names(_NEVER)}
    tasks = _tasks_by_prefix(store, context)
    # No task has such an id, so no record such a key; workers that start together share neither key nor partition.
    keys = {prefix: schema.key(f"{prefix}#probe-{uuid4().hex}") for prefix in tasks}
    allowed = [prefix for prefix, key in keys.items() if _is_allowed(store, "update_item", Key=key, **never)]
    prefix = next(iter(allowed or keys))
    if not allowed:
        yield _permission_missing(store, "UpdateItem", prefix)
    elif len(allowed) < len(keys):
        yield _prefixes_missing(store, {each: tasks[each] for each in keys if each not in allowed})
    if not _is_allowed(store, "put_item", Item=keys[prefix], **never):
        yield _permission_missing(store, "PutItem", prefix)
    if not _is_allowed(store, "get_item", Key=keys[prefix]):
        yield _permission_missing(store, "GetItem", prefix)


def _tasks_by_prefix(store: DynamoDBStore, context: CheckContext) -> dict[str, list[str]]:
    """Return the key prefixes to try, each with the names of its tasks: one, or as many as the context allows."""
    tasks: dict[str, list[str]] = {}
    for task in context.heeding("prefix-not-allowed") or context.tasks[:1]:
        tasks.setdefault(context.policy(task).prefix or task.name, []).append(task.name)
    # Of a composite key, IAM sees the partition key, which all records share.
    most = context.most_prefixes if store.schema.sort_key_attr is None else 1
    if most is not None and len(tasks) > most:
        chosen = this_process().random.sample(sorted(tasks), most)
        return {prefix: tasks[prefix] for prefix in sorted(chosen)}
    return tasks or {_NO_PREFIX: []}


def _is_allowed(store: DynamoDBStore, operation: str, **parameters: Any) -> bool:
    """Send a request on an item, and return whether IAM allows it; the descriptions show what else is wrong."""
    try:
        store.connection.request(operation, TableName=store.table, **parameters)
    except (StoreMisconfiguredError, RecordCorruptError) as error:
        return blames_credentials(error) or error_code(error) not in _DENIALS
    return True


def _denied(store: DynamoDBStore, action: str, error: StoreMisconfiguredError) -> Finding:
    """Return the finding of a request that IAM denied; raise any other error of it."""
    if blames_credentials(error) or error_code(error) not in _DENIALS:
        raise error
    return _permission_missing(store, action)


def _permission_missing(store: DynamoDBStore, action: str, prefix: str = "") -> Finding:
    tried = f" (tried with a key that begins with {prefix + '#'!r})" if prefix else ""
    what = f"dynamodb:{action} on table {store.table!r} is not allowed{tried}"
    remedy = f'{{"Effect": "Allow", "Action": "dynamodb:{action}", "Resource": "<the table\'s ARN>"}}'
    return Finding(code="permission-missing", what=what, remedy=remedy)


def _prefixes_missing(store: DynamoDBStore, tasks: dict[str, list[str]]) -> Finding:
    names = tuple(name for each in tasks.values() for name in each)
    what = f"dynamodb:UpdateItem on table {store.table!r} is allowed for other keys, but not for those of "
    remedy = f'"dynamodb:LeadingKeys": {json.dumps([f"{prefix}#*" for prefix in tasks])}, beside those in the policy'
    return Finding(code="prefix-not-allowed", what=what + names_of(names), remedy=remedy, tasks=names)


def _check_clock(store: DynamoDBStore) -> Iterator[Finding]:
    offset = store.connection.clock.offset_seconds
    if abs(offset) > CLOCK_TOLERANCE_SECONDS:
        side = "behind" if offset > 0 else "ahead of"
        what = f"this machine's clock is {abs(offset):.0f} s {side} DynamoDB's"
        remedy = "have the machine keep its time: timedatectl set-ntp true"
        yield Finding(code="clock-offset", what=what, remedy=remedy)
