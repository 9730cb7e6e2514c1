"""What the admin commands share: the app's store, exit codes, confirmation, and an argument type for times."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import update_wrapper
from typing import Any, Final, NoReturn

import click

from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.errors import ConfigurationError, IdempotencyError, StoreError
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.admin import TableAdmin

__all__ = ["REFUSED", "USAGE", "AdminContext", "Moment", "confirm", "end", "pass_admin_context", "refuse"]

#: Exit codes: nothing done, or something found; wrong usage or configuration; the store away, or refusing.
REFUSED: Final = 1
USAGE: Final = 2
STORE: Final = 3

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
        """Return epoch seconds by DynamoDB's clock."""
        return self.store.clock.now()


def pass_admin_context(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command its `AdminContext`; exit with one line instead of a traceback where the library raises."""

    @click.pass_context
    def run(context: click.Context, *args: Any, **options: Any) -> None:
        try:
            command(_admin_context(context.obj.app), *args, **options)
        except StoreError as error:
            end(error, STORE)
        except ConfigurationError as error:
            end(error, USAGE)
        except IdempotencyError as error:
            end(error, REFUSED)

    return update_wrapper(run, command)


def _admin_context(app: Any) -> AdminContext:
    # Commands need all tasks: their prefixes are those of the keys.
    app.loader.import_default_modules()
    store = settings_of(app).store
    if not isinstance(store, DynamoDBStore):
        kind = type(store).__name__
        raise ConfigurationError(f"the app's store is a {kind}, which only the process that made it can look into")
    return AdminContext(app=app, store=store)


def end(error: IdempotencyError, code: int) -> NoReturn:
    """Print an error on one line and exit with ``code``."""
    click.echo(f"Error: {error}", err=True)
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
