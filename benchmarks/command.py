"""A command's report as the files that its options ask for."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["add_files", "write"]


def add_files(parser: argparse.ArgumentParser, *, everything: str, tables: str, picture: str) -> None:
    """Add ``--json``, ``--markdown`` and ``--svg``, and what each writes or draws."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {everything}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"write {tables} for the documents")
    parser.add_argument("--svg", type=Path, metavar="FILE", help=f"draw {picture}; needs matplotlib")


def write(options: argparse.Namespace, report: Any, artist: str) -> None:
    """Write what the options of `add_files` ask for.

    Args:
        options: the command's.
        report: has ``as_json()`` and ``markdown()``.
        artist: the module whose ``draw`` takes the report and a path.
    """
    if options.json:
        options.json.write_text(report.as_json(), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.markdown(), encoding="utf-8")
    if options.svg:
        # Here, because nothing else needs matplotlib.
        import_module(artist).draw(report, options.svg)
