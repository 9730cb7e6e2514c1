"""``idempotency create-table`` and ``template``: how the table comes to be."""

import click

from idempotent_tasks.cli.command import Desk, at_desk
from idempotent_tasks.cli.templates import TEMPLATES, Bucket, Table
from idempotent_tasks.policy import seconds
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.s3 import S3Results
from idempotent_tasks.task import IdempotentTask

__all__ = ["create_table", "template"]


@click.command("create-table")
@at_desk
def create_table(desk: Desk) -> None:
    """Create the app's table with on-demand billing and TTL, or complete it; repeating it is harmless."""
    desk.store.create_table()
    click.echo(f"table {desk.store.table!r} is ready, with TTL on {desk.store.schema.expiry_attr!r}")


@click.command()
@click.option("--format", "form", type=click.Choice(sorted(TEMPLATES)), required=True)
@click.option("--point-in-time-recovery", "recovery", is_flag=True, help="Turn backups on, which cost extra.")
@at_desk
def template(desk: Desk, *, form: str, recovery: bool) -> None:
    """Print the app's table, or the permissions on it, for a tool that manages infrastructure.

    ``iam`` has two statements: what workers need, and what operators need for this command line besides; and two more
    for the bucket of large results, where the app has one.
    """
    click.echo(TEMPLATES[form](Table.of(desk.store, point_in_time_recovery=recovery, bucket=_bucket(desk))))


def _bucket(desk: Desk) -> Bucket | None:
    settings = settings_of(desk.app)
    if not isinstance(settings.results, S3Results):
        return None
    tasks = [task for task in desk.app.tasks.values() if isinstance(task, IdempotentTask)]
    longest = max((seconds(task.policy_under(settings).expires) for task in tasks), default=0.0)
    return Bucket.of(settings.results, longest)
