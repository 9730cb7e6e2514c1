"""Whole commands as a user starts them, in a folder of the test's own."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["run_command"]

RUN_SECONDS: Final = 100.0
END_SECONDS: Final = 30.0


def run_command(command: Sequence[str], folder: Path, directory: Path, **environment: str) -> tuple[int, str]:
    """Run a command and return its exit code and all that it wrote.

    Args:
        command: what to run.
        folder: where its temporary files and its output go.
        directory: where it runs.
        environment: further variables.

    Raises:
        subprocess.TimeoutExpired: it took longer than 100 s; it was asked to end, and ended.
    """
    path = folder / "output.txt"
    with path.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | {"TMPDIR": str(folder), "COLUMNS": "200"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            # Asked to end, it takes its processes along.
            process.terminate()
            process.wait(END_SECONDS)
            raise
    return process.returncode, path.read_text(encoding="utf-8")
