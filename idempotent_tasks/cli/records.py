"""``idempotency list`` and ``show``: what the table says."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress

import click

from idempotent_tasks.cli.command import Desk, Moment, at_desk, refuse
from idempotent_tasks.cli.portrait import STATES, columns, facts, state, written_at
from idempotent_tasks.errors import RecordNotFoundError
from idempotent_tasks.records import Record, Status
from idempotent_tasks.stores.dynamodb.admin import Corrupt
from idempotent_tasks.task import IdempotentTask

__all__ = ["list_", "matching", "show"]

_LINE = "{:<10}{:>6}{:>7}{:>9}  {:<38}{}"
#: The status that is stored where the record says so, by what it says now.
_STORED = {
    "running": Status.INPROGRESS,
    "free": Status.INPROGRESS,
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
}


def matching(
    desk: Desk,
    *,
    states: tuple[str, ...],
    task: str | None,
    before: float | None,
    after: float | None = None,
    data: bool = False,
) -> Iterator[Record | Corrupt]:
    """Go through the records of certain states, of one task, written before or after moments in epoch seconds.

    ``data`` is as for `TableAdmin.records`.
    """
    stored = _STORED.get(states[0]) if len(states) == 1 else None
    for record in desk.operations.records(status=stored, task=task, data=data):
        if isinstance(record, Corrupt):
            yield record
            continue
        written = written_at(record)
        in_time = (before is None or (written is not None and written < before)) and (
            after is None or (written is not None and written >= after)
        )
        if in_time and (not states or state(record, desk.now()) in states):
            yield record


@click.command("list")
@click.option("--status", "states", multiple=True, type=click.Choice(STATES), help="Only records of this state.")
@click.option("--task", help="Only records that this task claimed.")
@click.option("--before", type=Moment(), help="Only records last written before: 90s, 15m, 12h, 7d, 2w ago, or a date.")
@click.option("--after", type=Moment(), help="Only records last written after.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one object a line.")
@at_desk
def list_(
    desk: Desk,
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
    # How large the data is, only the data says.
    for record in matching(desk, states=states, task=task, before=before, after=after, data=as_json):
        if isinstance(record, Corrupt):
            corrupt += 1
            click.echo(f"{record.key!r} is no record: {record.why}", err=True)
            continue
        listed += 1
        now = desk.now()
        click.echo(json.dumps(facts(record, now, data=False)) if as_json else _LINE.format(*columns(record, now)))
        if listed == limit:
            break
    click.echo(f"{listed} records" + (f", {corrupt} items that are none" if corrupt else ""), err=as_json)


@click.command()
@click.argument("key", metavar="KEY|TASK-ID")
@click.option("--data", is_flag=True, help="Show the stored result too.")
@click.option("--scan", is_flag=True, help="Look through the whole table for a task id whose key is something else.")
@click.option("--json", "as_json", is_flag=True, help="Print one object.")
@at_desk
def show(desk: Desk, key: str, *, data: bool, scan: bool, as_json: bool) -> None:
    """Show one record: who holds the key, since when, for how long, how often it crashed, what came of it.

    A task id finds the records of tasks whose key is the task id; with --scan also those that were last claimed by it.
    """
    told = [facts(record, desk.now(), data=data) for record in found(desk, key, scan=scan)]
    if as_json:
        click.echo(json.dumps(told[0] if len(told) == 1 else told, indent=2))
        return
    click.echo("\n\n".join(_text(each) for each in told))


def found(desk: Desk, key: str, *, scan: bool) -> list[Record]:
    """Return the record of a key, or those of a task id; ends the command where there is none."""
    names = [key] if "#" in key else sorted(f"{prefix}#{key}" for prefix in _prefixes(desk))
    records = _read(desk, names)
    if not records and scan and "#" not in key:
        scanned = desk.operations.records()
        # The scan finds keys and leaves the data behind.
        records = _read(desk, [each.key for each in scanned if isinstance(each, Record) and each.task_id == key])
    if not records:
        hint = "" if scan or "#" in key else "; --scan looks for a task id whose key is something else"
        refuse(f"no record: {key!r}{hint}")
    return records


def _read(desk: Desk, keys: Iterable[str]) -> list[Record]:
    """Return the records of these keys, those that there are, with their data."""
    records = []
    for key in keys:
        with suppress(RecordNotFoundError):
            records.append(desk.store.get(key))
    return records


def _prefixes(desk: Desk) -> set[str]:
    tasks = [task for task in desk.app.tasks.values() if isinstance(task, IdempotentTask)]
    return {task.idempotency_policy.prefix or task.name for task in tasks}


def _text(told: dict[str, object]) -> str:
    shown = {name: value for name, value in told.items() if value is not None}
    width = max(map(len, shown)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in shown.items())
