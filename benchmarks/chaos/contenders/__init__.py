"""The contenders by name; each is imported only where it is used, because most need a package of their own."""

from importlib import import_module
from typing import Final, cast

from benchmarks.chaos.contenders.contender import Contender

__all__ = ["NAMES", "load"]

_MODULES: Final = {
    "plain": "plain",
    "celery-dedup": "deduplication",
    "celery-once": "once",
    "celery-singleton": "singleton",
    "powertools": "powertools",
    "ours": "ours",
    "ours-apart": "ours_apart",
}
#: All contenders, in the order of the table.
NAMES: Final = tuple(_MODULES)


def load(name: str) -> Contender:
    """Return a contender.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    module = import_module(f"{__name__}.{_MODULES[name]}")
    return cast(Contender, module.CONTENDER)
