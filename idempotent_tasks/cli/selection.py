"""Which record a command is about: its key, or a task and the arguments of a call, from which the key is computed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import update_wrapper
from typing import Any, Final

import click
from kombu.utils.json import loads

from idempotent_tasks.cli.context import USAGE, AdminContext, end
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.keys import KnownPart
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.errors import KeyEncodingError, MissingKeyError
from idempotent_tasks.messaging.claim_request import claim_request
from idempotent_tasks.settings import settings_of
from idempotent_tasks.task import IdempotentTask, guarded_tasks

__all__ = ["NOT_JSON", "key_of_call", "takes_key"]

#: What kombu raises for a text that is no JSON, or in which a value with a type of kombu's own is none of that type.
NOT_JSON: Final = (ValueError, ArithmeticError, LookupError, TypeError)
_OPTIONS: Final = (
    click.option("--task", metavar="NAME", help="Instead of a key: the task, with the arguments of a call."),
    click.option("--args", "args_json", metavar="JSON", help="The call's positional arguments, as a JSON list."),
    click.option("--kwargs", "kwargs_json", metavar="JSON", help="Its keyword arguments, as a JSON object."),
    click.option(
        "--arg",
        "named",
        metavar="NAME=VALUE",
        multiple=True,
        help="One argument, or a part of one: order.id=17. JSON if it is JSON, else text. Only what the key needs.",
    ),
    click.option("--key", "explicit_key", metavar="TEXT", help="The idempotency_key= that the call was given."),
)


def takes_key(metavar: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a key to a command of an `AdminContext`, as an argument or as a task with a call's arguments.

    The command gets it as ``key``, and as ``hint`` what to say where there is no record of it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(
            admin: AdminContext,
            *,
            key: str | None,
            task: str | None,
            args_json: str | None,
            kwargs_json: str | None,
            named: tuple[str, ...],
            explicit_key: str | None,
            **options: Any,
        ) -> None:
            of_call = [each for each in (args_json, kwargs_json, explicit_key, *named) if each is not None]
            if task is None:
                if of_call:
                    raise click.UsageError("--args, --kwargs, --arg and --key are about a call of a --task; name it")
                if key is None:
                    raise click.UsageError(f"say which record: {metavar}, or --task with the arguments of a call")
                command(admin, key=key, hint="", **options)
                return
            if key is not None:
                raise click.UsageError(f"{metavar} is the whole key; give it without --task, or --task without it")
            args = _json("--args", args_json, list, [])
            kwargs = _json("--kwargs", kwargs_json, dict, {})
            parts = _named(named)
            twice = sorted(kwargs.keys() & parts.keys())
            if twice:
                raise click.UsageError(f"given by --kwargs and by --arg: {', '.join(twice)}")
            found = key_of_call(admin, task, args, {**kwargs, **parts}, explicit_key)
            command(admin, key=found, hint=_hint(named), **options)

        run = update_wrapper(run, command)
        for option in reversed(_OPTIONS):
            run = option(run)
        return click.argument("key", metavar=f"[{metavar}]", required=False)(run)

    return decorate


def key_of_call(
    admin: AdminContext, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], explicit_key: str | None
) -> str:
    """Return the key that a delivery of this call has; exit with `USAGE` where it cannot be computed.

    Args:
        admin: the app.
        name: of the task.
        args, kwargs: what is known of the arguments, as a worker gets them; no error quotes their values.
        explicit_key: the key that was given to the call, or None.
    """
    task = _task(admin.app, name)
    policy = task.policy_under(settings_of(admin.app))
    if explicit_key is None and policy.key is None:
        key = f"{policy.prefix or name}#TASK-ID"
        raise click.UsageError(f"the key of {name!r} is the task id: give {key!r} instead of --task and arguments")
    delivery = Delivery(task=name, task_id="", args=tuple(args), kwargs=kwargs, explicit_key=explicit_key, partial=True)
    try:
        task.run_signature.bind_partial(*delivery.args, **delivery.kwargs)
    except TypeError as error:
        takes = ", ".join(task.run_signature.parameters) or "none"
        raise click.UsageError(f"these are no arguments of {name!r}: {error}; it takes {takes}") from None
    # The record's validation and the downstream key are not asked for, and may need more arguments than the key.
    keyed = Idempotency(**{**policy.given, "validate": None, "downstream": None})
    try:
        request = claim_request(delivery, keyed, task.run_signature)
    except (MissingKeyError, KeyEncodingError) as error:
        end(error, USAGE)
    except Exception as error:  # noqa: BLE001 - a user's callable can raise anything
        msg = (
            f"the key of {name!r} is a callable, and raised {type(error).__name__}; give it the arguments as they were "
            "published, with --args and --kwargs"
        )
        raise click.UsageError(msg) from None
    # Of a task that runs one at a time, the lock is what its arguments lead to; the other record is the task id's.
    return request.key if request.lock is None else request.lock.key


def _task(app: Any, name: str) -> IdempotentTask:
    guarded = {task.name: task for task in guarded_tasks(app)}
    if name in guarded:
        return guarded[name]
    if name in app.tasks:
        raise click.UsageError(f"task {name!r} is no IdempotentTask, and has no records")
    close = get_close_matches(name, guarded, n=1) or [each for each in guarded if each.rpartition(".")[2] == name]
    raise click.UsageError(f"the app has no task {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


def _json(option: str, text: str | None, kind: type, default: Any) -> Any:
    """Return the value of an option as a worker would read it in a message."""
    if text is None:
        return default
    try:
        value = loads(text)
    except NOT_JSON as error:
        at = f", at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise click.UsageError(f"{option} is not JSON{at}") from None
    if not isinstance(value, kind):
        raise click.UsageError(f"{option} is JSON, but no {'list' if kind is list else 'object'}")
    return value


def _named(given: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that are given as NAME=VALUE; those given in parts as `KnownPart`."""
    tree: dict[str, Any] = {}
    for each in given:
        path, found, text = each.partition("=")
        names = path.split(".")
        if not found or not all(name.isidentifier() for name in names):
            raise click.UsageError("each --arg is NAME=VALUE, or NAME.PART=VALUE; one of them is not")
        place = tree
        for depth, name in enumerate(names[:-1], 1):
            inside = place.setdefault(name, _Parts())
            if not isinstance(inside, _Parts):
                raise click.UsageError(f"--arg has both {'.'.join(names[:depth])} and a part of it")
            place = inside
        if names[-1] in place:
            raise click.UsageError(f"--arg has {path} twice, or a part of it too")
        place[names[-1]] = _value(text)
    return {name: _known(each, name) for name, each in tree.items()}


class _Parts(dict[str, Any]):
    """An argument that is given in parts."""


def _known(value: Any, name: str) -> Any:
    if not isinstance(value, _Parts):
        return value
    return KnownPart({part: _known(each, f"{name}.{part}") for part, each in value.items()}, name)


def _value(text: str) -> Any:
    try:
        value = loads(text)
    except NOT_JSON:
        return text
    # NaN and Infinity are not JSON, although Python reads them as that.
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _hint(named: Sequence[str]) -> str:
    """Return what may be wrong with arguments whose record is not there."""
    texts = [each.partition("=")[2] for each in named]
    if any(not isinstance(_value(text), str) for text in texts):
        return "; of --arg, what is JSON was read as JSON: a text of digits is written NAME='\"17\"'"
    return ""
