"""``idempotency create-table``, ``template`` and ``check``: create the table, and check the configuration."""

import json
from dataclasses import asdict

import click
from celery.concurrency import get_implementation

from idempotent_tasks.checks import CheckContext, run_checks
from idempotent_tasks.cli.context import REFUSED, USAGE, AdminContext, end, pass_admin_context
from idempotent_tasks.cli.templates import TEMPLATES, Bucket, Table
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.s3 import S3Results
from idempotent_tasks.task import guarded_tasks

__all__ = ["check", "create_table", "template"]


@click.command("create-table")
@pass_admin_context
def create_table(admin: AdminContext) -> None:
    """Create the app's table with on-demand billing and TTL, or complete it; repeating it is harmless."""
    admin.store.create_table()
    click.echo(f"table {admin.store.table!r} is ready, with TTL on {admin.store.schema.expiry_attr!r}")


@click.command()
@click.option("--format", "form", type=click.Choice(sorted(TEMPLATES)), required=True)
@click.option("--point-in-time-recovery", "recovery", is_flag=True, help="Turn backups on, which cost extra.")
@pass_admin_context
def template(admin: AdminContext, *, form: str, recovery: bool) -> None:
    """Print the app's table, or the permissions on it, for a tool that manages infrastructure.

    ``iam`` has two statements: what workers need, and what operators need for this command line besides; and two more
    for the bucket of large results, where the app has one.
    """
    click.echo(TEMPLATES[form](Table.of(admin.store, point_in_time_recovery=recovery, bucket=_bucket(admin))))


def _bucket(admin: AdminContext) -> Bucket | None:
    settings = settings_of(admin.app)
    if not isinstance(settings.results, S3Results):
        return None
    longest = max((task.policy_under(settings).retention_seconds for task in guarded_tasks(admin.app)), default=0.0)
    return Bucket.of(settings.results, longest)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def check(context: click.Context, *, as_json: bool) -> None:
    """Find faults of configuration, broker, store and clock that weaken the guarantee of one result for each key.

    Assumes a worker that is started without options.  Exits with 0 if nothing is found, else with 1.
    """
    app = context.obj.app
    try:
        app.loader.import_default_modules()
        found = run_checks(CheckContext.of_app(app, get_implementation(app.conf.worker_pool).__module__))
    except ConfigurationError as error:
        end(error, USAGE)
    if as_json:
        listed = [{**asdict(each), "why": each.why} for each in found]
        click.echo(json.dumps(listed, indent=2))
    else:
        for each in found:
            click.echo(f"{each.code}: {each.what}\n  why:    {each.why}\n  remedy: {each.remedy}\n")
        click.echo(f"{len(found)} finding{'' if len(found) == 1 else 's'}")
    raise SystemExit(REFUSED if found else 0)
