"""docs/discussion/scaling.md: its money is cost.md's units times its prices, and what one hot key meets.

Each test works rows or sentences out anew and looks for them in the page.
"""

import random
from collections import Counter
from decimal import Decimal
from functools import cache
from math import ceil

import pytest

from idempotent_tasks import Idempotency, deferral
from idempotent_tasks.lease import term_of
from idempotent_tasks.stores import MOST_NOTED
from tests.support.capacity import KILOBYTE
from tests.support.crowd import Crowd, Write
from tests.support.scaling import (
    LONG_BODY,
    MILLION,
    PARTITION,
    SAMPLE,
    SIZES,
    SLOTS,
    assert_said,
    cost_of,
    dollars,
    number,
    price,
    renewals,
    row,
    units_by_cost_page,
)

HOUR = 3600
#: Write units a second that a new table on demand takes, by AWS.
NEW_TABLE = 4_000


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chance take the same course each time."""
    monkeypatch.setattr(deferral, "random", random.Random(17))


def crowd(duplicates: int, body_seconds: float, lease: float | None = None) -> list[Write]:
    """Return the writes on a key with so many duplicates, whose body has a hard limit or a lease."""
    term = term_of(Idempotency(lease=lease), body_seconds if lease is None else None)
    return Crowd(duplicates, body_seconds, term).play()


def deferrals(body_seconds: float, lease: float | None = None) -> float:
    """Return how often a duplicate is deferred that comes as the body begins, on average."""
    return Counter(write.kind for write in crowd(SAMPLE, body_seconds, lease))["refused"] / SAMPLE


@cache
def hot_key() -> list[Write]:
    """Return the writes on the key that all slots meet at once."""
    return crowd(SLOTS - 1, LONG_BODY)


def test_the_money_is_units_times_price() -> None:
    """A million of each thing that happens, by the size of the result."""
    assert_said(
        row(name, *(cost_of(MILLION * cells[size]) for size in SIZES)) for name, cells in units_by_cost_page().items()
    )


def test_the_money_for_provisioned_units_and_storage() -> None:
    """A unit that is used all the time, the use from which it is cheaper, and records until TTL deletes them."""
    used = price("write unit", 1) * MILLION / HOUR
    kept, bytes_each = Decimal(48), 450 + 100 + KILOBYTE
    stored = Decimal(bytes_each * MILLION) / KILOBYTE**3 * price("storage", 0) * kept / 730
    assert_said(
        [
            f"{dollars(used)} ÷ *u*",
            f"used by more than {number(float(100 * used / price('write unit', 0)))} %",
            f"A million records of {bytes_each:,} bytes that lie there for 48 hours cost {dollars(stored)}",
        ]
    )


def test_the_formula_gives_the_units() -> None:
    """For every size of cost.md, whose table is measured."""
    assert_said(
        ["first runs · (1 + *k*) + replays · *k* + deferrals · 2 + renewals", "⌈(450 + bytes of the result) ÷ 1,024⌉"]
    )
    units = units_by_cost_page()
    for size, result_bytes in zip(SIZES, [100, KILOBYTE, 10 * KILOBYTE, 100 * KILOBYTE], strict=True):
        whole = ceil((450 + result_bytes) / KILOBYTE)
        assert [units[name][size] for name in ("first run", "replay", "deferral", "renewal")] == [
            1 + whole,
            whole,
            2,
            1,
        ]


def test_the_bill_of_long_bodies() -> None:
    """A million bodies of ten minutes, one in a hundred with a duplicate that comes as it begins."""
    units = {name: cells["1 KB"] for name, cells in units_by_cost_page().items()}
    expected = []
    for lease in (30, 60, 300, None):
        renewed = renewals(LONG_BODY, lease) if lease else 0
        deferred = deferrals(LONG_BODY, lease)
        parts = [
            MILLION * units["first run"],
            MILLION * renewed * units["renewal"],
            # The first deferral of a message is not noted.
            MILLION // 100 * (deferred * units["deferral"] - units["renewal"] + units["replay"]),
        ]
        name = f"`lease={lease}`" if lease else "a hard time limit, no `lease`"
        expected.append(row(name, *(cost_of(part) for part in (*parts, sum(parts)))))
        expected += [f"renewed {renewed} times", f"deferred {number(deferred)} times"] if lease == 30 else []
    assert_said(expected)


def test_the_load_on_a_hot_key() -> None:
    """Every slot meets one key; by the seconds since the first claim."""
    expected = []
    spans = [(0, 1), (1, 3), (3, 10), (10, 30), (30, LONG_BODY), (LONG_BODY, LONG_BODY + 38)]
    for since, until in spans:
        during = [write for write in hot_key() if since <= write.at < until]
        rates = [len(during), sum(write.units for write in during)]
        expected.append(row(f"{since} to {until}", *(number(rate / (until - since)) for rate in rates)))
    assert_said(expected)


def test_the_limits_of_a_hot_key() -> None:
    """How many may wait while the record is small, and while one partition bears it."""
    refused = [write.units for write in hot_key() if write.kind == "refused"]
    # Of the original messages nothing is noted, only of the copies that each becomes.
    growing = refused[SLOTS - 1 :][: MOST_NOTED + 1]
    dear = 2 * growing[-1]
    interval = deferral.LONGEST_COUNTDOWN * 1.125
    assert_said(
        [
            f"A record notes up to {MOST_NOTED} waiting messages",
            f"with more than about {growing.count(1) - 1} messages waiting",
            f"refused claim costs {growing[-1]} units there, a deferral {dear}",
            f"{PARTITION:,} ÷ {dear} · {interval:g} = {number(PARTITION / dear * interval)} waiting messages",
        ]
    )


def published(writes: list[Write]) -> int:
    """Return how many messages there are: one for each delivery, and one for each deferral."""
    return SLOTS + sum(write.kind == "refused" for write in writes)


def test_the_bill_of_a_hot_key() -> None:
    """What the options make of it."""
    long, short = hot_key(), crowd(SLOTS - 1, 10)
    once = long[1].units
    skipped = 2 + (SLOTS - 1) * once
    expected = [
        ('`on_busy="defer"`', published(long), sum(write.units for write in long)),
        ("the same, a body of 10 s", published(short), sum(write.units for write in short)),
        ('`on_busy="skip"`', SLOTS, skipped),
        ('`at_publish="join"`', 1, skipped + once),
    ]
    assert_said(row(name, number(messages), number(units), cost_of(units)) for name, messages, units in expected)


def test_the_smallest_limits() -> None:
    """First runs a second that one partition takes, and a new table, by the size of the result."""
    units = units_by_cost_page()["first run"]
    assert_said(
        row(f"first runs a second, {place}", *(number(limit // units[size]) for size in SIZES))
        for place, limit in (("one partition", PARTITION), ("a new on-demand table", NEW_TABLE))
    )
