"""Planted bugs: changes of the shipped code that break the promise, and that the simulation must find.

``planted.toml`` has one for each condition of each write and for each rule; ``found.csv`` has the history that finds
each, as ``python -m simulation.search`` wrote it.
"""

import csv
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

import click

__all__ = ["FOUND", "PLANTED", "BugName", "Change", "Found", "PlantedBug", "found", "plant"]

_PACKAGE: Final = "idempotent_tasks"
_FOLDER: Final = Path(__file__).parent
#: Where `found` reads from.
FOUND: Final = _FOLDER / "found.csv"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one module's source text."""

    #: Within the package, such as ``core.guard``.
    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class PlantedBug:
    """A change, or several where each alone changes nothing that shows: another rule stands in for the changed one."""

    name: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The first history that finds a bug, of those with the seeds from 0 on."""

    bug: str
    world: str
    seed: int
    #: What it violates.
    invariant: str


def _read(name: str, also: Sequence[dict[str, str]] = (), **first: str) -> PlantedBug:
    return PlantedBug(name, tuple(Change(**each) for each in (first, *also)))


PLANTED: Final = tuple(_read(**each) for each in tomllib.loads((_FOLDER / "planted.toml").read_text())["bug"])


def found() -> list[Found]:
    """Return the histories that find the bugs, in the order of the bugs."""
    with FOUND.open(newline="") as lines:
        return [
            Found(each["bug"], each["world"], int(each["seed"]), each["invariant"]) for each in csv.DictReader(lines)
        ]


class BugName(click.ParamType[str]):
    """The name of a planted bug, as an option's value: there are too many to list in a command's help."""

    name = "bug"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name of a bug that there is.

        Raises:
            click.BadParameter: there is none of this name; it says which have a name like it.
        """
        names = [bug.name for bug in PLANTED]
        if value not in names:
            near = " or ".join(map(repr, get_close_matches(value, names)))
            meant = f"did you mean {near}? " if near else ""
            self.fail(f"{value!r} is no planted bug; {meant}simulation/planted.toml has all", param, ctx)
        return str(value)


class _Planter(MetaPathFinder):
    """Finds the modules that have the bug, and changes their text on the way."""

    def __init__(self, bug: PlantedBug) -> None:
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that has the bug; None for any other."""
        changes = [each for each in self._bug.changes if fullname == f"{_PACKAGE}.{each.module}"]
        if not changes:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        spec.loader = _Loader(changes, spec)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module with a bug."""

    def __init__(self, changes: Sequence[Change], spec: ModuleSpec) -> None:
        super().__init__(spec.name, spec.origin or "")
        self._changes = changes

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed text, never the cached one."""
        text = self.get_data(self.path).decode()
        for change in self._changes:
            if text.count(change.old) != 1:
                raise ValueError(f"{change.old!r} is {text.count(change.old)} times in {fullname}")
            text = text.replace(change.old, change.new)
        code: CodeType = compile(text, self.path, "exec")
        return code


def plant(name: str) -> PlantedBug:
    """Plant a bug, by its name, before its module is imported."""
    bug = next(each for each in PLANTED if each.name == name)
    for module in {each.module for each in bug.changes}:
        assert f"{_PACKAGE}.{module}" not in sys.modules, f"{module} is imported already"
    sys.meta_path.insert(0, _Planter(bug))
    return bug
