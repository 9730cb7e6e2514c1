"""``idempotency check``: what a worker would find when it starts, before one does."""

import json

import click
from celery.concurrency import get_implementation

from idempotent_tasks.checks import CheckContext, run_checks
from idempotent_tasks.cli.command import REFUSED, USAGE, end
from idempotent_tasks.errors import ConfigurationError

__all__ = ["check"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def check(context: click.Context, *, as_json: bool) -> None:
    """Compare the app's configuration, its table and this machine with what the promise needs.

    Reads what a worker without options of its own would read.  Exits with 0 if nothing is found, else with 1.
    """
    app = context.obj.app
    try:
        app.loader.import_default_modules()
        found = run_checks(CheckContext.of_app(app, get_implementation(app.conf.worker_pool).__module__))
    except ConfigurationError as error:
        end(error, USAGE)
    if as_json:
        listed = [{"code": each.code, "what": each.what, "why": each.why, "remedy": each.remedy} for each in found]
        click.echo(json.dumps(listed, indent=2))
    else:
        for each in found:
            click.echo(f"{each.code}: {each.what}\n  why:    {each.why}\n  remedy: {each.remedy}\n")
        click.echo(f"{len(found)} finding{'' if len(found) == 1 else 's'}")
    raise SystemExit(REFUSED if found else 0)
