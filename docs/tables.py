"""The tables of the reference, written from the code that they describe.

Without Sphinx, so that the tests read what a reader reads; `conf.py` puts them into the pages.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, Final

from idempotent_tasks import Idempotency
from idempotent_tasks.settings import SETTINGS

__all__ = ["TABLES", "meanings", "signature", "without_arguments"]

#: One entry of a docstring's ``Args``, and the whole section.
_ARGUMENT: Final = re.compile(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
_ARGUMENTS: Final = re.compile(r"^Args:\n(?:(?: {4}.*)?\n)+", re.MULTILINE)
#: A name in a docstring, which links to what it names; code has two backquotes.
_NAME: Final = re.compile(r"(?<!`)`([\w.]+)`(?!`)")


def meanings() -> dict[str, str]:
    """Return what each setting and each option of a task means, by its name, as Markdown.

    An option's, which is its setting's too, stands in the ``Args`` of `Idempotency`.
    """
    own = {each.name: each.meaning for each in SETTINGS if each.meaning}
    own |= {
        each.name: f"{own[each.name]}; the environment's `{each.variable}` counts before it"
        for each in SETTINGS
        if each.variable
    }
    (section,) = _ARGUMENTS.findall(inspect.cleandoc(Idempotency.__doc__ or ""))
    options = {name: " ".join(text.split()).rstrip(".") for name, text in _ARGUMENT.findall(section)}
    return own | {name: _NAME.sub(r"{py:obj}`\1`", text) for name, text in options.items()}


def signature() -> str:
    """Return the signature of `Idempotency`, which the class itself leaves open."""
    return f"(*, {', '.join(f'{option.name}={option.default!r}' for option in fields(Idempotency))})"


def without_arguments(docstring: str) -> str:
    """Return a docstring without its ``Args``."""
    return _ARGUMENTS.sub("", docstring)


def _settings() -> str:
    meaning = meanings()
    return _table("setting", ((each.key, each.default, meaning[each.name]) for each in SETTINGS))


def _options() -> str:
    meaning = meanings()
    return _table("option", ((each.name, each.default, meaning[each.name]) for each in fields(Idempotency)))


def _table(subject: str, rows: Iterable[tuple[str, Any, str]]) -> str:
    lines = [f"| {subject} | default | meaning |", "|---|---|---|"]
    lines += (f"| `{name}` | {_written(default)} | {meaning} |" for name, default, meaning in rows)
    return "\n".join(lines)


def _written(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, int) and not isinstance(default, bool):
        return f"`{default:_}`"
    return f"`{default!r}`".replace("'", '"')


#: By the name that the directive ``{table-of} NAME`` gives.
TABLES: Final[dict[str, Callable[[], str]]] = {"settings": _settings, "options": _options}
