"""What the commands share: files that options ask for, an environment, a worker, and an end in good order."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.testbed.workers import CeleryWorker, WorkerConfig

__all__ = ["add_files", "own_environment", "ready_worker", "unwinding_on_signals", "write"]

#: Variables that would lead a command to the caller's brokers and accounts.
_FOREIGN_PREFIXES: Final = ("AWS_", "BOTO_", "CELERY_")
#: A proxy could not reach this machine.
_PROXY_SUFFIX: Final = "_PROXY"
_ACCOUNT: Final = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def add_files(parser: argparse.ArgumentParser, *, everything: str, tables: str, picture: str) -> None:
    """Add ``--json``, ``--markdown`` and ``--svg``, and what each writes or draws."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {everything}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"write {tables} for the documents")
    parser.add_argument("--svg", type=Path, metavar="FILE", help=f"draw {picture}; needs matplotlib")


def write(options: argparse.Namespace, report: Any, draw: Callable[[Any, Path], None]) -> None:
    """Write what the options of `add_files` ask for.

    Args:
        options: the command's.
        report: has ``as_json()`` and ``markdown()``.
        draw: writes the report's picture to a path.
    """
    if options.json:
        options.json.write_text(report.as_json(), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.markdown(), encoding="utf-8")
    if options.svg:
        draw(report, options.svg)


@contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """Keep this process and its children away from the caller's brokers and accounts meanwhile.

    Args:
        folder: where children put their temporary files, which they leave behind when they are killed.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN_PREFIXES) or name.upper().endswith(_PROXY_SUFFIX):
            del os.environ[name]
    os.environ.update(_ACCOUNT, TMPDIR=str(folder))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Turn the signals that ask a program to end into `SystemExit`, so that everything started is ended first."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ready_worker(
    command: str, place: WorkerConfig, queue: str, folder: Path, *, processes: int
) -> Iterator[CeleryWorker]:
    """Run the worker of a command, ``benchmarks.<command>.worker_app``, for the length of a block.

    Args:
        command: its name.
        place: what the worker process must know.
        queue: the worker consumes it.
        folder: for its log.
        processes: of its pool.

    Raises:
        TimeoutError: it is not ready in time.
    """
    worker = CeleryWorker(
        f"benchmarks.{command}.worker_app",
        f"{command}@localhost",
        queue,
        folder,
        os.environ | place.environment(),
        concurrency=processes,
    )
    try:
        worker.wait_until_ready(lambda: " ready." in worker.log())
        yield worker
    finally:
        worker.kill()
