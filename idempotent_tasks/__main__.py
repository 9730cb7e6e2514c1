"""The entry point of ``python -m idempotent_tasks``."""

import sys
from pathlib import Path

import click

from idempotent_tasks.demo.errors import MissingExtraError
from idempotent_tasks.demo.plan import FEWEST_PAYMENTS, MOST_PAYMENTS
from idempotent_tasks.emulator import serve
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.stores.dynamodb.store import LOCAL_PORT

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def _in_a_folder(_context: click.Context, _option: click.Parameter, file: Path | None) -> Path | None:
    """Reject a file whose folder does not exist, before the demo runs."""
    if file and not file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(file.parent)!r}; create it first")
    return file


@click.group()
@click.version_option(package_name="idempotent-tasks")
def main() -> None:
    """Celery tasks with one result for each key."""


@main.command()
@click.option(
    "--payments",
    type=click.IntRange(FEWEST_PAYMENTS, MOST_PAYMENTS),
    default=40,
    show_default=True,
    help="How many payments are wanted.",
)
@click.option("--seed", type=int, default=285, show_default=True, help="Draws the payments, duplicates and kills.")
@click.option(
    "--svg", type=_FILE, callback=_in_a_folder, help="Write the timeline of deliveries and runs as a picture."
)
@click.option("--json", type=_FILE, callback=_in_a_folder, help="Write the figures.")
@click.option(
    "--live/--no-live", default=None, help="Draw a live display, or print lines.  [default: live on a terminal]"
)
def demo(*, payments: int, seed: int, svg: Path | None, json: Path | None, live: bool | None) -> None:
    """Kill workers while they charge payments: first with a plain task, then with IdempotentTask.

    Brings its own broker and store, and ends everything that it started.  Exits with 1 if IdempotentTask charged
    a payment twice or lost one, and with 2 if the demo could not be played.
    """
    try:
        from idempotent_tasks.demo.command import run  # noqa: PLC0415 - needs the optional extra
    except ModuleNotFoundError as error:
        remedy = "install the demo's parts with: pip install 'idempotent-tasks[demo]'"
        raise MissingExtraError(f"{error.name} is not installed; {remedy}") from error
    if live is None:
        live = sys.stdout.isatty()
    sys.exit(0 if run(payments=payments, seed=seed, svg=svg, json=json, live=live) else 1)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=LOCAL_PORT, show_default=True)
@click.option("--table", default="celery-idempotency", show_default=True, help="The table to create.")
def dynamodb(*, host: str, port: int, table: str) -> None:
    """Run a stand-in for DynamoDB on this machine, for development: no AWS account is needed.

    Creates the table, prints the setting to put into the app, and runs until Ctrl-C.  Records are kept in memory.
    Needs the extra "dev" (roto-aws: Linux with glibc, macOS, Windows).  Exits with 2 if it cannot run.
    """
    try:
        serve(host=host, port=port, table=table)
    except ConfigurationError as error:
        raise click.BadParameter(error.message, param_hint="--table") from error


if __name__ == "__main__":
    main(prog_name="python -m idempotent_tasks")
