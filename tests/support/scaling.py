"""docs/discussion/scaling.md, the units of cost.md beside it, and figures as both write them."""

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from math import ceil
from pathlib import Path

from idempotent_tasks.core import lease as keeper

__all__ = [
    "LONG_BODY",
    "MILLION",
    "PARTITION",
    "SAMPLE",
    "SIZES",
    "SLOTS",
    "assert_said",
    "cost_of",
    "dollars",
    "number",
    "price",
    "renewals",
    "row",
    "units_by_cost_page",
]

DISCUSSION = Path(__file__).parents[2] / "docs" / "discussion"
PAGE = (DISCUSSION / "scaling.md").read_text(encoding="utf-8")
#: The page without its line breaks.
TEXT = " ".join(PAGE.split())
MILLION = 1_000_000
#: Write units a second that one partition takes, by AWS.
PARTITION = 1_000
#: The page's example: so many bodies at once, and the seconds of a long one.
SLOTS = 10_000
LONG_BODY = 600
#: How many are averaged where chance has a part.
SAMPLE = 500
SIZES = ["100 B", "1 KB", "10 KB", "100 KB"]


def assert_said(expected: Iterable[str]) -> None:
    """Assert that the page says all of this; the message lists what it should say instead."""
    missing = [each for each in expected if each not in TEXT]
    assert not missing, "\n".join(missing)


def units_by_cost_page() -> dict[str, dict[str, int]]:
    """Return the write units of each thing that happens, by the size of the result: the table of cost.md."""
    page = (DISCUSSION / "cost.md").read_text(encoding="utf-8")
    assert f"| | requests | {' | '.join(SIZES)} |" in page
    rows = re.findall(r"^\| ([a-z ]+) \| \d+ \|([\d| ]+)\|$", page, re.MULTILINE)
    return {name: dict(zip(SIZES, map(int, cells.split("|")), strict=True)) for name, cells in rows}


def price(of: str, column: int) -> Decimal:
    """Return a price of the page in dollars; the columns are on demand (0) and provisioned (1)."""
    (cells,) = re.findall(rf"^\| {of} \|(.*)\|$", PAGE, re.MULTILINE)
    return Decimal(re.findall(r"\$([\d.]+)", cells)[column])


def cost_of(units: float) -> str:
    """Return what so many write units cost on demand."""
    return dollars(Decimal(units) * price("write unit", 0) / MILLION)


def renewals(body_seconds: float, lease_seconds: float) -> int:
    """Return how often a claim is renewed while its body runs."""
    return ceil(body_seconds / (lease_seconds * keeper.RENEW_AFTER)) - 1


def row(*cells: object) -> str:
    """Return a row of a table as it stands in the page."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def number(value: float) -> str:
    """Return a number as the page writes it: whole, with commas."""
    return f"{int(value + 0.5):,}"


def dollars(value: Decimal) -> str:
    """Return an amount of money to a tenth of a cent, to a cent where that says the same."""
    exact = value.quantize(Decimal("0.001"), ROUND_HALF_UP)
    return f"${exact:,f}".removesuffix("0")
