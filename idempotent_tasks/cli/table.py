"""``idempotency create-table``, ``template`` and ``check``: create the table, and check the configuration."""

import json
import re
from dataclasses import asdict
from typing import Any

import click
from celery.concurrency import get_implementation

from idempotent_tasks.checks import CheckContext, run_checks
from idempotent_tasks.cli.context import REFUSED, AdminContext, impatient_settings, pass_admin_context, reported_errors
from idempotent_tasks.cli.templates import TEMPLATES, Bucket, Table
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.s3 import S3Results
from idempotent_tasks.task import guarded_tasks

__all__ = ["check", "create_table", "template"]


def _key_arn(_context: click.Context, _option: click.Parameter, arn: str | None) -> str | None:
    """Accept the ARN of a key only: a policy cannot allow an alias, and Terraform and CDK take no id."""
    if arn is not None and not re.fullmatch(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d+:key/[\w-]+", arn):
        raise click.BadParameter("write the ARN of a key, arn:aws:kms:REGION:ACCOUNT:key/ID")
    return arn


_protection = click.option("--deletion-protection", is_flag=True, help="Have DynamoDB refuse to delete the table.")
_kms_key = click.option(
    "--kms-key", metavar="ARN", callback=_key_arn, help="Encrypt it with a customer-managed key, which costs extra."
)


@click.command("create-table")
@_protection
@_kms_key
@pass_admin_context
def create_table(admin: AdminContext, *, deletion_protection: bool, kms_key: str | None) -> None:
    """Create the app's table with on-demand billing and TTL, or complete it; repeating it is harmless.

    A table that exists gets what an option asks for, and loses nothing without it.
    """
    has_ttl = admin.store.create_table(deletion_protection=deletion_protection, kms_key=kms_key)
    ttl = f"with TTL on {admin.store.schema.expiry_attr!r}" if has_ttl else "without TTL: purge it every day"
    more = ", protected against deletion" if deletion_protection else ""
    more += f", encrypted with {kms_key}" if kms_key else ""
    click.echo(f"table {admin.store.table!r} is ready, {ttl}{more}")


@click.command()
@click.option("--format", "form", type=click.Choice(sorted(TEMPLATES)), required=True)
@click.option("--point-in-time-recovery", "recovery", is_flag=True, help="Turn backups on, which cost extra.")
@_protection
@_kms_key
@click.option(
    "--tenant",
    metavar="PREFIX",
    help="Only with iam: limit it to keys that begin with this, such as 'acme.'; end it with what no other tenant has.",
)
@pass_admin_context
def template(
    admin: AdminContext,
    *,
    form: str,
    recovery: bool,
    deletion_protection: bool,
    kms_key: str | None,
    tenant: str | None,
) -> None:
    """Print the app's table, or the permissions on it, for a tool that manages infrastructure.

    ``iam`` has two statements: what workers need, and what operators need for this command line besides; one for the
    key of --kms-key; and two for the bucket of large results, where the app has one.  With --tenant, workers and
    operators reach only that tenant's records, one by one: what lists a table, or changes it, is left out.
    """
    if form == "iam" and (recovery or deletion_protection):
        raise click.UsageError("iam has no table: --point-in-time-recovery and --deletion-protection have no effect")
    if tenant is not None and form != "iam":
        raise click.UsageError("--tenant is about permissions: use it with --format iam")
    table = Table.of(
        admin.store,
        point_in_time_recovery=recovery,
        deletion_protection=deletion_protection,
        kms_key=kms_key,
        tenant=tenant,
        bucket=_bucket(admin),
    )
    if tenant is not None:
        _check_tenant(admin, tenant, table.partition)
    click.echo(TEMPLATES[form](table))


def _check_tenant(admin: AdminContext, tenant: str, partition: str | None) -> None:
    """Refuse or warn of a prefix that no record of this app has: its workers could not do anything."""
    if not tenant:
        raise click.UsageError("--tenant is empty, which would be every tenant")
    if partition is not None and not partition.startswith(tenant):
        msg = (
            f"in this table with a composite key the partition key of each record is {partition!r}, which does not "
            f"begin with {tenant!r}: give each tenant a static_pk_value of its own, and that as --tenant"
        )
        raise click.UsageError(msg)
    prefixes = {task.policy_under(settings_of(admin.app)).prefix or task.name for task in guarded_tasks(admin.app)}
    refused = sorted(each for each in prefixes if partition is None and not f"{each}#".startswith(tenant))
    if refused:
        click.echo(f"Not of this tenant, and refused by this policy: {', '.join(refused)}", err=True)


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
    with reported_errors():
        settings = impatient_settings(app)
        found = run_checks(CheckContext.of_app(app, _pool(app)))
    for place in (settings.store, settings.results):
        # What needs no check has no such attribute.
        if not getattr(place, "verifiable", True):
            click.echo(f"{place!r} is not checked: its client= was ready-made", err=True)
    if as_json:
        listed = [{**asdict(each), "why": each.why} for each in found]
        click.echo(json.dumps(listed, indent=2))
    else:
        for each in found:
            click.echo(f"{each.code}: {each.what}\n  why:    {each.why}\n  remedy: {each.remedy}\n")
        click.echo(f"{len(found)} finding{'' if len(found) == 1 else 's'}")
    raise SystemExit(REFUSED if found else 0)


def _pool(app: Any) -> str:
    """Return the module of the app's pool.

    Raises:
        ConfigurationError: there is no such pool, or it is not installed.
    """
    pool = app.conf.worker_pool
    try:
        return str(get_implementation(pool).__module__)
    except Exception as error:
        raise ConfigurationError(f"worker_pool={pool!r} cannot be used ({type(error).__name__}: {error})") from error
