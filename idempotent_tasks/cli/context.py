"""What the admin commands share: the app's store, exit codes, confirmation, and an argument type for times."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import update_wrapper
from typing import Any, Final, NoReturn

import click

from idempotent_tasks.checks.dynamodb import development_remedy
from idempotent_tasks.checks.findings import place_of
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.errors import ConfigurationError, IdempotencyError, StoreError
from idempotent_tasks.settings import Settings, settings_of
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.admin import TableAdmin

__all__ = [
    "REFUSED",
    "USAGE",
    "AdminContext",
    "Moment",
    "confirm",
    "end",
    "impatient_settings",
    "pass_admin_context",
    "refuse",
    "reported_errors",
]

#: Exit codes: nothing done, or something found; wrong usage or configuration; the store away, or refusing.
REFUSED: Final = 1
USAGE: Final = 2
STORE: Final = 3

#: The longest that a command waits for an answer of the store, whatever the time-outs of a worker's client.
ANSWER_WITHIN_SECONDS: Final = 3.0

#: The key of the record that is read where DynamoDB is only asked for its time.
ANY_KEY: Final = "#"

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@dataclass(frozen=True, kw_only=True)
class AdminContext:
    """The app and the DynamoDB store that a command works on."""

    app: Any
    store: DynamoDBStore

    @property
    def operations(self) -> TableAdmin:
        """The `TableAdmin` of the store."""
        return TableAdmin(self.store)

    def now(self) -> float:
        """Return epoch seconds by DynamoDB's clock, whatever this machine's says; raises as `DynamoDBStore.now`."""
        return self.store.now(ANY_KEY)


def pass_admin_context(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command its `AdminContext`; exit with one line instead of a traceback where the library raises."""

    @click.pass_context
    def run(context: click.Context, *args: Any, **options: Any) -> None:
        with reported_errors():
            admin = _admin_context(context.obj.app)
            try:
                command(admin, *args, **options)
            except StoreError as error:
                remedy = development_remedy(admin.store, error)
                end(error, STORE, remedy[:1].upper() + remedy[1:])

    return update_wrapper(run, command)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print an error of the library that is raised in the block on one line, and exit with `USAGE`."""
    try:
        yield
    except IdempotencyError as error:
        end(error, USAGE)


def _load_tasks(app: Any) -> None:
    """Import all modules of an app, and bind its tasks.

    Raises:
        ConfigurationError: one of them raises an error, whatever it is.
    """
    try:
        app.loader.import_default_modules()
        app.finalize(auto=True)
    except IdempotencyError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"the app's tasks cannot be loaded: {what}, raised {place_of(error)}") from error


def impatient_settings(app: Any) -> Settings:
    """Return the settings of an app whose tasks are loaded, its store made to answer somebody who waits.

    Raises:
        ConfigurationError: a setting is wrong, or the tasks cannot be loaded.
    """
    _load_tasks(app)
    settings = settings_of(app)
    if isinstance(settings.store, DynamoDBStore):
        settings.store.connection.answer_within_seconds = ANSWER_WITHIN_SECONDS
    return settings


def _admin_context(app: Any) -> AdminContext:
    # Commands need all tasks: their prefixes are those of the keys.
    store = impatient_settings(app).store
    if not isinstance(store, DynamoDBStore):
        kind = type(store).__name__
        raise ConfigurationError(f"the app's store is a {kind}, which only the process that made it can look into")
    return AdminContext(app=app, store=store)


def end(error: IdempotencyError, code: int, remedy: str = "") -> NoReturn:
    """Print an error on one line, and a further remedy on the next, and exit with ``code``."""
    click.echo(f"Error: {error}" + (f"\n{remedy}" if remedy else ""), err=True)
    raise SystemExit(code)


def refuse(why: str) -> NoReturn:
    """Print why nothing was done, and exit with `REFUSED`."""
    click.echo(why, err=True)
    raise SystemExit(REFUSED)


def confirm(question: str, *, yes: bool) -> None:
    """Confirm unless ``yes``; exit with `REFUSED` if stdin is not a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        refuse(f"{question} Nobody can be asked here: say --yes.")
    click.confirm(question, abort=True)


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.3
    """A time as an age (``90s``, ``15m``, ``12h``, ``7d``, ``2w``) or as an ISO 8601 date or time (UTC)."""

    name = "AGE|DATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert to epoch seconds; a float is returned as it is."""
        if isinstance(value, float):
            return value
        ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value)
        if ago:
            return SystemClock().now() - float(ago[1]) * _UNITS[ago[2]]
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither an age such as 90s, 15m, 12h, 7d or 2w nor a date", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
