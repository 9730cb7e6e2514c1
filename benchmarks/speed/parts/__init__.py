"""The parts by name; each is imported only where it is measured, because some need a package of their own."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Final, cast

from benchmarks.speed.bench import Bench
from benchmarks.speed.rows import Row

__all__ = ["NAMES", "load"]

Measure = Callable[[Bench], Iterator[Row]]

#: In the order of the report.
NAMES: Final = ("requests", "throughput", "micro", "imports", "memory", "keeper")


def load(name: str) -> Measure:
    """Return what measures a part.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    module = "benchmarks.speed.deliveries" if name == "throughput" else f"{__name__}.{name}"
    return cast(Measure, import_module(module).measure)
