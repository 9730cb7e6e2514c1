"""What importing this library takes beyond what a worker has imported anyway, and that it does nothing else."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.speed.bench import Bench
from benchmarks.speed.rows import Reach, Row, interleaved, rows_of

__all__ = ["measure"]

PROJECT_ROOT: Final = Path(__file__).parents[2]
BEFORE: Final = "import benchmarks.speed.watched_import"
LIBRARY: Final = "idempotent_tasks"
BOTH: Final = f"{BEFORE}, {LIBRARY}"
CPU: Final = "processor time of a fresh interpreter"
#: Where it is set, every import of a module that pip did not install compiles it.
NO_BYTECODE: Final = "PYTHONDONTWRITEBYTECODE"
MILLISECONDS: Final = 1000
#: Milliseconds.
MOST: Final = 30.0


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the times, their difference in pairs, and what else the import does."""
    bench.say("imports")
    # The first may have modules to compile, as pip does when it installs them.
    _child_milliseconds(BOTH)
    samplers = {"Celery, boto3": BEFORE, "Celery, boto3, this library": BOTH}
    pairs = bench.size(5, 1)
    taken = interleaved(
        bench.rounds * pairs,
        {name: partial(_sample, code) for name, code in samplers.items()},
    )
    yield from rows_of("imports", taken, {CPU: "ms"})
    yield Row(
        part="imports",
        measure="import idempotent_tasks, beyond them",
        subject="difference of a round's pairs",
        unit="ms",
        values=tuple(_differences(*taken.values(), pairs=pairs)),
        reach=Reach(most=MOST, binding=False),
    )
    for what, count in _seen().items():
        yield Row(
            part="imports",
            measure=f"{what} opened or made",
            subject="import idempotent_tasks",
            unit="",
            values=(float(count),),
            reach=Reach(least=0, most=0),
        )


def _differences(before: list[dict[str, float]], both: list[dict[str, float]], *, pairs: int) -> Iterator[float]:
    each = [more[CPU] - less[CPU] for less, more in zip(before, both, strict=True)]
    for start in range(0, len(each), pairs):
        yield median(each[start : start + pairs])


def _sample(code: str, _number: int) -> dict[str, float]:
    return {CPU: _child_milliseconds(code)}


def _child_milliseconds(code: str) -> float:
    environment = {name: value for name, value in os.environ.items() if name != NO_BYTECODE}
    before = _spent()
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, env=environment, check=True)  # noqa: S603
    return (_spent() - before) * MILLISECONDS


def _spent() -> float:
    """Return what the children that have ended took, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _seen() -> Mapping[str, int]:
    command = [sys.executable, "-m", "benchmarks.speed.watched_import", LIBRARY]
    output = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, check=True).stdout  # noqa: S603
    seen: Mapping[str, int] = json.loads(output)
    return seen
