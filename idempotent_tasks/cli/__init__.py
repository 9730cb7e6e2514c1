"""The command line for operators: ``celery -A proj idempotency ...``."""

import click

from idempotent_tasks.cli.modify import forget, purge, release
from idempotent_tasks.cli.records import list_, show
from idempotent_tasks.cli.resolve import resolve
from idempotent_tasks.cli.table import check, create_table, template
from idempotent_tasks.cli.watch import watch

__all__ = ["idempotency"]


@click.group()
def idempotency() -> None:
    """Look at idempotency records, free keys, check the configuration.

    Keys hold a "#": quote them in a shell.  Exit codes: 0 done; 1 refused, not found, or something was found; 2 wrong
    usage or configuration; 3 the store cannot be reached or refuses.
    """


for _command in (check, create_table, template, list_, show, release, resolve, forget, purge, watch):
    idempotency.add_command(_command)
