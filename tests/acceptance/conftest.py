"""Counts, at the end of a run, the code blocks of the documents that were executed."""

from typing import Any

PROPERTY = "code blocks"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many code blocks were executed, also where the tests ran in several processes."""
    tallies = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if tallies:
        executed, checked, skipped = map(sum, zip(*tallies, strict=True))
        terminalreporter.write_line(
            f"{executed} code blocks executed, {checked} blocks of commands checked to exist, "
            f"{skipped} not run for the reason that they give, in {len(tallies)} documents"
        )
