"""``idempotency release``, ``forget`` and ``purge``: change records, each only if it is unchanged since it was read."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice

import click

from idempotent_tasks.cli.context import AdminContext, Moment, confirm, pass_admin_context, refuse
from idempotent_tasks.cli.format import STATES, columns, counted, is_live, needs_decision, state
from idempotent_tasks.cli.records import found, matching
from idempotent_tasks.cli.selection import takes_key
from idempotent_tasks.core.records import Record
from idempotent_tasks.errors import StoreError, StoreUnavailableError
from idempotent_tasks.settings import settings_of
from idempotent_tasks.task import guarded_tasks

__all__ = ["forget", "purge", "record_of", "refuse_unless", "release", "yes_option"]

#: The reason that an operator's release stores in the record.
REASON = "released by an operator"
#: Records that `purge` deletes in parallel, each with its own request.
PARALLEL = 16
#: Records that `purge` shows before it asks.
SAMPLE = 5

_force = click.option(
    "--force",
    is_flag=True,
    help="Also a claim whose body may still run, and then runs twice; also a parked key's messages.",
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command()
@_force
@yes_option
@pass_admin_context
@takes_key("KEY")
def release(admin: AdminContext, *, key: str, hint: str, force: bool, yes: bool) -> None:
    """Free the key of a claim, so that the next delivery has it now instead of when the claim expires.

    Outcomes are never released: see `forget`.  A body that runs is not ended: with --force a second may run beside it.
    """
    record = record_of(admin, key, hint)
    match state(record, admin.now()):
        case "completed" | "failed" as outcome:
            refuse(f"{key!r} is {outcome}, there is no claim to release; forget it to have the next delivery run")
        case "free" | "expired" as over:
            refuse(f"{key!r} is {over} already; the next delivery runs")
        case "parked":
            refuse(f"{key!r} is parked: `idempotency resolve` says what came of its run, and publishes its messages")
    _refuse_live(admin, record, force=force)
    confirm(f"Release {key!r}, held by {record.task_id} on {record.worker}?", yes=yes)
    refuse_unless(admin.operations.release(record, REASON, force=force), key)
    click.echo(f"released {key!r}; the next delivery has it")


@click.command()
@_force
@yes_option
@pass_admin_context
@takes_key("KEY")
def forget(admin: AdminContext, *, key: str, hint: str, force: bool, yes: bool) -> None:
    """Delete the record of a key: its next delivery runs the body as if it were the first, with a new fence.

    Items of its steps that lie beside the record are left to TTL: nothing reads them any more.
    """
    record = record_of(admin, key, hint)
    _refuse_live(admin, record, force=force)
    if needs_decision(record) and not force:
        refuse(f"{key!r} is parked, or has messages of it: resolve it, or delete all of it with --force")
    confirm(f"Delete the record of {key!r} ({state(record, admin.now())})?", yes=yes)
    refuse_unless(admin.operations.delete(record, force=force), key)
    click.echo(f"forgot {key!r}")


@click.command()
@click.option(
    "--state",
    "--status",
    "states",
    multiple=True,
    type=click.Choice(tuple(STATES)),
    help="Records of this state.",
)
@click.option("--before", type=Moment(), help="Last written before: 90s, 15m, 12h, 7d, 2w ago, or a date.")
@click.option(
    "--receipts", is_flag=True, help="Instead of records: the receipts, in the tasks' databases, that no run needs now."
)
@click.option("--task", help="Only records that this task claimed.")
@_force
@yes_option
@pass_admin_context
def purge(
    admin: AdminContext,
    *,
    states: tuple[str, ...],
    before: float | None,
    receipts: bool,
    task: str | None,
    force: bool,
    yes: bool,
) -> None:
    """Delete many records: counts and shows some of them first, then asks.

    Each is deleted only if it is still as it was found; after an abort, run the command again for the rest.  Parked
    records, and those with messages of theirs, are left, except with --force.  TTL deletes expired records by itself,
    free of charge.

    With --state expired, and no --task, it also deletes the items of steps that lie beside their records and have
    expired before that time.

    With --receipts it deletes the receipts that no run of their keys can look for any more; run it daily.
    """
    if receipts:
        if states or before is not None or task is not None or force:
            raise click.UsageError("--receipts takes no other option but --yes: each row says when nobody needs it")
        confirm("Delete the receipts that no run needs any more?", yes=yes)
        _purge_receipts(admin)
        return
    if not states or before is None:
        raise click.UsageError("say which records: --state and --before; or --receipts")
    _purge_records(admin, states, before, task, force=force, yes=yes)


def _purge_records(
    admin: AdminContext, states: tuple[str, ...], before: float, task: str | None, *, force: bool, yes: bool
) -> None:
    def selected() -> Iterator[Record]:
        for each in matching(admin, states=states, task=task, before=before):
            if isinstance(each, Record) and (force or not (is_live(each, admin.now()) or needs_decision(each))):
                yield each

    def steps() -> Iterator[tuple[str, int]]:
        # Nothing in such an item tells its task.
        if "expired" in states and task is None:
            yield from admin.operations.expired_steps(min(before, admin.now()))

    records = selected()
    sample = list(islice(records, SAMPLE))
    count, items = len(sample) + sum(1 for _ in records), sum(1 for _ in steps())
    if not count + items:
        click.echo("no such records")
        return
    for record in sample:
        click.echo("  ".join(columns(record, admin.now())))
    what = counted(count) + (f" and {items} item{'' if items == 1 else 's'} of steps" if items else "")
    click.echo(what + (f", {SAMPLE} of them above" if count > SAMPLE else ""))
    confirm(f"Delete {what}?", yes=yes)
    _delete_all(_deletions(admin, selected(), steps(), force=force), count + items)


def _purge_receipts(admin: AdminContext) -> None:
    settings = settings_of(admin.app)
    of_tasks = (each.policy_under(settings).imported_receipts for each in guarded_tasks(admin.app))
    found = {repr(table): table for table in (*settings.step_receipts, *of_tasks) if table is not None}
    if not found:
        refuse("no task of the app has receipts; list those that only steps have in app.conf.idempotency_step_receipts")
    for name, table in sorted(found.items()):
        try:
            count = table.purge(admin.now())
        except StoreError as error:
            refuse(f"{name}: {error.message}")
        click.echo(f"deleted {count} receipt" + ("" if count == 1 else "s") + f" of {name}")


def _deletions(
    admin: AdminContext, records: Iterable[Record], steps: Iterable[tuple[str, int]], *, force: bool
) -> Iterator[Callable[[], bool]]:
    """Yield what deletes each record, and each item of a step, if it has not changed."""
    operations = admin.operations
    of_records = (partial(operations.delete, record, force=force) for record in records)
    return chain(of_records, (partial(operations.delete_step, key, expiration) for key, expiration in steps))


def _delete_all(deletions: Iterator[Callable[[], bool]], count: int) -> None:
    """Delete in parallel, and say how many were deleted, had changed, or had no answer."""
    done: Counter[bool | None] = Counter()

    def delete(deletion: Callable[[], bool]) -> bool | None:
        try:
            return deletion()
        except StoreUnavailableError:
            return None

    with (
        ThreadPoolExecutor(PARALLEL) as threads,
        click.progressbar(length=count, label="deleting", file=sys.stderr) as bar,
    ):
        # In batches, because `map` would read the whole table into memory.
        while batch := list(islice(deletions, PARALLEL * 8)):
            done.update(threads.map(delete, batch))
            bar.update(len(batch))
    click.echo(f"deleted {done[True]}" + (f", left {done[False]} that changed meanwhile" if done[False] else ""))
    if done[None]:
        refuse(f"{done[None]} deletions had no answer; run the command again")


def record_of(admin: AdminContext, key: str, hint: str) -> Record:
    """Return the record of a whole key; exit with `REFUSED` if it is none, or has no record."""
    if "#" not in key:
        refuse(f"{key!r} is no key: it has no prefix with a '#'; `idempotency show {key}` finds the key of a task id")
    return found(admin, key, scan=False, hint=hint)[0]


def _refuse_live(admin: AdminContext, record: Record, *, force: bool) -> None:
    if not force and is_live(record, admin.now()):
        left = record.held_until - admin.now()
        refuse(
            f"{record.key!r} is held by {record.task_id} on {record.worker} for another {left:.0f} s, and its body may "
            "be running; --force does it all the same, and the body may then run twice"
        )


def refuse_unless(done: bool, key: str) -> None:  # noqa: FBT001 - what the operation returned
    """Exit with `REFUSED` if an operation has found another record than was shown."""
    if not done:
        refuse(f"{key!r} changed since it was read, nothing was done; look again")
