"""``idempotency resolve``: record what came of a parked key's run, then publish its messages again."""

from dataclasses import replace
from typing import Final

import click
from kombu.utils.json import loads

from idempotent_tasks.cli.context import AdminContext, confirm, pass_admin_context, refuse
from idempotent_tasks.cli.format import state
from idempotent_tasks.cli.modify import record_of, refuse_unless, yes_option
from idempotent_tasks.cli.selection import NOT_JSON, takes_key
from idempotent_tasks.core.encoding import JSON, NONE, POWERTOOLS, encode_result, size_of
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.receipts import Receipt, Receipts, TransactionLost
from idempotent_tasks.core.records import Outcome, Record, Status
from idempotent_tasks.errors import StoreError
from idempotent_tasks.messaging.parking import decoded_message, publish_parked
from idempotent_tasks.settings import settings_of
from idempotent_tasks.task import IdempotentTask

__all__ = ["leave_receipt", "resolve"]

#: For how many seconds another transaction may hold the key's receipt.
RECEIPT_WAIT_SECONDS: Final = 5.0


@click.command()
@click.option("--done", metavar="JSON", help="What the body would have returned: the earlier run has made its effect.")
@click.option(
    "--run", "again", is_flag=True, help="The earlier run has done nothing: the body runs, as if for the first time."
)
@yes_option
@pass_admin_context
@takes_key("KEY")
def resolve(admin: AdminContext, *, key: str, hint: str, done: str | None, again: bool, yes: bool) -> None:
    """Decide what came of a run that left no outcome, and publish the messages that wait for it again.

    Each goes to its own queue under its own task id, so that its result, its links and its chain go on.  If the broker
    or the store fails, run the command again: it publishes what is left.  Where there were messages, the outcome
    is kept for ``unresolved_for``, because they may wait in their queues.
    """
    if (done is None) is not again:
        raise click.UsageError("say one of --done JSON (--done null for a body that returns None) and --run")
    record = record_of(admin, key, hint)
    if record.parked_at is not None:
        _decide(admin, record, done, yes=yes)
    else:
        _accept_state(admin, record, done)
    count = _publish_messages(admin, key)
    click.echo(f"published {count} message" + ("" if count == 1 else "s") + " again")


def _accept_state(admin: AdminContext, record: Record, done: str | None) -> None:
    """Say that a key is not parked any more; exit with `REFUSED` if what it is contradicts the decision."""
    what = state(record, admin.now())
    if done is not None and (
        record.status is not Status.COMPLETED or record.data != _outcome(admin, record, done).data
    ):
        refuse(f"{record.key!r} is not parked but {what}, with no such result; `idempotency show --data` tells more")
    click.echo(f"{record.key!r} is not parked any more, it is {what}")


def _decide(admin: AdminContext, record: Record, done: str | None, *, yes: bool) -> None:
    policy = _policy(admin, record)
    outcome = None if done is None else _outcome(admin, record, done)
    if outcome is not None and size_of(outcome) > admin.store.max_data_bytes - record.parked_bytes:
        refuse("the result is too large for the record; give what fits, such as null")
    what = "has made its effect" if outcome is not None else "has done nothing, so that the body runs"
    confirm(f"Record for {record.key!r} that the run of {record.previous_task_id or record.task_id} {what}?", yes=yes)
    if outcome is not None and policy.imported_receipts is not None:
        problem = leave_receipt(policy.imported_receipts, policy, record, outcome, admin.now())
        if problem is not None:
            refuse(problem)
    kept = policy.unresolved_seconds
    if outcome is not None and not record.parked:
        kept = policy.retention_seconds
    refuse_unless(admin.operations.resolve(record, outcome, kept), record.key)
    click.echo(f"resolved {record.key!r}: " + ("its next run is a first one" if outcome is None else "it is completed"))


def leave_receipt(receipts: Receipts, policy: Idempotency, record: Record, outcome: Outcome, now: float) -> str | None:
    """Write a decision into the body's database first, or a run that stands still could still commit its rows.

    Args:
        receipts: the task's.
        policy: the task's too.
        record: of the key, which is parked.
        outcome: what was decided.
        now: epoch seconds.

    Returns:
        None; or why the decision may not be written into the record, and what to do.
    """
    receipt = Receipt(
        key=record.key,
        generation=record.generation or 0,
        fence=record.fence,
        task_id=record.previous_task_id or record.task_id or "",
        outcome=outcome,
        expires_at=int(now + max(policy.unresolved_seconds, policy.retention_seconds)) + 1,
    )
    try:
        transaction = receipts.begin(replace(receipt, outcome=None), RECEIPT_WAIT_SECONDS)
        try:
            found = transaction.found
            if found is None:
                transaction.commit(receipt)
        finally:
            transaction.rollback()
    except TransactionLost as lost:
        return f"its database did not take the receipt ({type(lost.error).__name__}); run the command again"
    except StoreError as error:
        return f"{error.message}; run the command again"
    if found is not None and (found.outcome is None or found.outcome.data != outcome.data):
        return (
            f"{record.key!r} has a receipt: its run has committed, with another result; resolve it with --run, and the "
            "next run takes that result"
        )
    return None


def _policy(admin: AdminContext, record: Record) -> Idempotency:
    task, settings = admin.app.tasks.get(record.task), settings_of(admin.app)
    return task.policy_under(settings) if isinstance(task, IdempotentTask) else Idempotency().over(settings.defaults)


def _outcome(admin: AdminContext, record: Record, done: str) -> Outcome:
    try:
        value = loads(done)
    except NOT_JSON:
        raise click.UsageError("--done is not JSON; quote a text twice in a shell: '\"text\"'") from None
    policy = _policy(admin, record)
    codec = POWERTOOLS if policy.powertools else NONE if policy.codec == NONE else JSON
    return encode_result(value, codec)


def _publish_messages(admin: AdminContext, key: str) -> int:
    """Publish each message that the record keeps, and remove it then; return how many."""
    # Deliveries may have added theirs until the decision.
    record = admin.store.get(key)
    for published, (task_id, message) in enumerate(record.parked.items()):
        try:
            publish_parked(admin.app, decoded_message(message))
        except Exception as error:  # noqa: BLE001 - a broker's client raises what it likes
            refuse(
                f"published {published} of {len(record.parked)} messages, then that of {task_id} failed "
                f"({type(error).__name__}: {error}); run the command again for the rest"
            )
        admin.operations.remove_message(record, task_id)
    return len(record.parked)
