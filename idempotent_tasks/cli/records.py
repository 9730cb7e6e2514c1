"""``idempotency list`` and ``show``: print records."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress

import click

from idempotent_tasks.cli.context import AdminContext, Moment, pass_admin_context, refuse
from idempotent_tasks.cli.format import STATES, as_dict, columns, counted, state, written_at
from idempotent_tasks.cli.selection import takes_key
from idempotent_tasks.core.records import Record, Status
from idempotent_tasks.errors import RecordNotFoundError
from idempotent_tasks.stores.dynamodb.admin import Corrupt
from idempotent_tasks.task import guarded_tasks

__all__ = ["list_", "matching", "show"]

_LINE = "{:<10}{:>6}{:>7}{:>9}  {:<38}{}"
#: The stored status of each state that the table can filter by; those that have expired are left out afterwards.
_STORED = {
    "reserved": Status.INPROGRESS,
    "running": Status.INPROGRESS,
    "parked": Status.INPROGRESS,
    "settling": Status.INPROGRESS,
    "free": Status.INPROGRESS,
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
}


def matching(
    admin: AdminContext,
    *,
    states: tuple[str, ...],
    task: str | None,
    before: float | None,
    after: float | None = None,
    data: bool = False,
) -> Iterator[Record | Corrupt]:
    """Scan for records by state (any if ``states`` is empty), task, and when they were last written, in epoch seconds.

    ``data`` is as for `TableAdmin.records`.
    """
    stored = _STORED.get(states[0]) if len(states) == 1 else None
    for record in admin.operations.records(status=stored, task=task, data=data):
        if isinstance(record, Corrupt):
            yield record
            continue
        written = written_at(record)
        in_time = (before is None or (written is not None and written < before)) and (
            after is None or (written is not None and written >= after)
        )
        if in_time and (not states or state(record, admin.now()) in states):
            yield record


@click.command("list")
@click.option(
    "--state", "--status", "states", multiple=True, type=click.Choice(tuple(STATES)), help="Only records of this state."
)
@click.option("--task", help="Only records that this task claimed.")
@click.option("--before", type=Moment(), help="Only records last written before: 90s, 15m, 12h, 7d, 2w ago, or a date.")
@click.option("--after", type=Moment(), help="Only records last written after.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one object a line.")
@pass_admin_context
def list_(
    admin: AdminContext,
    *,
    states: tuple[str, ...],
    task: str | None,
    before: float | None,
    after: float | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List records, in the table's order, as they come; results are never shown.

    Scans the table: DynamoDB bills for each item of it, whatever the filters.
    """
    listed, corrupt = 0, 0
    if not as_json:
        click.echo(_LINE.format("STATE", "AGE", "LEFT", "ATTEMPT", "TASK ID", "KEY"))
    # The size of the data is computed from the data.
    for record in matching(admin, states=states, task=task, before=before, after=after, data=as_json):
        if isinstance(record, Corrupt):
            corrupt += 1
            click.echo(f"{record.key!r} is no record: {record.why}", err=True)
            continue
        listed += 1
        now = admin.now()
        click.echo(json.dumps(as_dict(record, now, data=False)) if as_json else _LINE.format(*columns(record, now)))
        if listed == limit:
            break
    click.echo(
        counted(listed) + (f", {corrupt} items that are none" if corrupt else ""),
        err=as_json,
    )


@click.command()
@click.option("--data", is_flag=True, help="Show the stored result too.")
@click.option("--scan", is_flag=True, help="Look through the whole table for a task id whose key is something else.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@pass_admin_context
@takes_key("KEY|TASK-ID")
def show(admin: AdminContext, *, key: str, hint: str, data: bool, scan: bool, as_json: bool) -> None:
    """Show one record: who holds the key, since when, for how long, how often it crashed, its steps, what came of it.

    A task id finds the records of tasks whose key is the task id; with --scan also those that were last claimed by it.
    --task NAME --arg order.id=17 finds the record of a call by its arguments, with one read.
    """
    if scan and "#" in key:
        raise click.UsageError("--scan is for a task id: a key is read without it")
    shown = [_shown(admin, record, data=data) for record in found(admin, key, scan=scan, hint=hint)]
    if as_json:
        click.echo(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2))
        return
    click.echo("\n\n".join(_text(each) for each in shown))


def _shown(admin: AdminContext, record: Record, *, data: bool) -> dict[str, object]:
    names = admin.operations.step_names(record)
    return as_dict(record, admin.now(), data=data) | {"steps": names or None}


def found(admin: AdminContext, key: str, *, scan: bool, hint: str = "") -> list[Record]:
    """Return the record of a key, or those of a task id; exit with `REFUSED`, and the hint, if there is none."""
    names = [key] if "#" in key else sorted(f"{prefix}#{key}" for prefix in _prefixes(admin))
    records = _read(admin, names)
    if not records and scan and "#" not in key:
        scanned = admin.operations.records()
        # The scan returns records without their data.
        records = _read(admin, [each.key for each in scanned if isinstance(each, Record) and each.task_id == key])
    if not records:
        hint = hint if scan or "#" in key else "; --scan looks for a task id whose key is something else"
        refuse(f"no record: {key!r}{hint}")
    return records


def _read(admin: AdminContext, keys: Iterable[str]) -> list[Record]:
    """Return the records that exist under these keys, with their data."""
    records = []
    for key in keys:
        with suppress(RecordNotFoundError):
            records.append(admin.store.get(key))
    return records


def _prefixes(admin: AdminContext) -> set[str]:
    return {task.idempotency_policy.prefix or task.name for task in guarded_tasks(admin.app)}


def _text(fields: dict[str, object]) -> str:
    shown = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, shown)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in shown.items())
