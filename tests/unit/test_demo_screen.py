"""The demo's output: the lines about entries, plain and live display, the end."""

from io import StringIO

import pytest
from rich.console import Console

from idempotent_tasks.demo.journal import Entry, What
from idempotent_tasks.demo.ledger import Ledger
from idempotent_tasks.demo.plan import draw
from idempotent_tasks.demo.screen import Narrator, Screen

PAYMENTS = draw(8, 1)
NAME = PAYMENTS[0].name


def entry(at: float, what: What) -> Entry:
    """Return an entry on the first payment."""
    return Entry(at=at, what=what, payment=NAME, pid=5, cents=4200 if what is What.CHARGED else 0)


def lines_of(*entries: Entry) -> list[str]:
    """Return the lines about these entries."""
    return [str(line) for line in Narrator().news(entries)]


def test_ordinary_course_gives_no_line() -> None:
    """A payment that is published, delivered, run and charged once is not worth a line."""
    ordinary = (What.PUBLISHED, What.DELIVERED, What.STARTED, What.CHARGED, What.FINISHED)
    assert lines_of(*(entry(1.0, what) for what in ordinary)) == []


def test_second_charge_has_its_time_and_money() -> None:
    """The time counts from the first entry of the phase."""
    assert lines_of(entry(10.0, What.CHARGED), entry(12.5, What.CHARGED)) == [
        f"  2.5 s  {NAME}: CHARGED AGAIN, 42.00, charge 2"
    ]


@pytest.mark.parametrize("what", [What.CHILD_KILLED, What.WORKER_KILLED, What.REPLAYED])
def test_each_kill_and_replay_has_a_line(what: What) -> None:
    """A second kill or replay of a payment is shown like the first."""
    assert len(lines_of(entry(1.0, what), entry(2.0, what))) == 2


def test_first_deferral_of_a_payment_has_a_line() -> None:
    """Later deferrals of a payment are not shown."""
    assert len(lines_of(entry(1.0, What.DEFERRED), entry(2.0, What.DEFERRED))) == 1


def test_narrator_describes_only_new_entries() -> None:
    """A second call describes what was added since the first."""
    narrator = Narrator()
    entries = [entry(1.0, What.REPLAYED)]
    assert len(narrator.news(entries)) == 1
    assert narrator.news(entries) == []
    assert len(narrator.news([*entries, entry(2.0, What.CHILD_KILLED)])) == 1


def ledger_of(*entries: Entry) -> Ledger:
    """Return a ledger with these entries."""
    ledger = Ledger(PAYMENTS)
    for each in entries:
        ledger.add(each)
    return ledger


@pytest.mark.parametrize("live", [False, True])
def test_screen_shows_the_phase_and_then_both_side_by_side(*, live: bool) -> None:
    """Titles, lines, the figures of both phases, the verdict and the limit are on the screen."""
    output = StringIO()
    screen = Screen(Console(file=output, width=120, force_terminal=live), live=live)
    twice = (What.STARTED, What.CHARGED, What.FINISHED) * 2
    with screen.phase("plain", "what it is") as watch:
        watch(ledger_of(*(entry(1.0, what) for what in twice)))
    with screen.phase("ours", "what it is") as watch:
        watch(ledger_of(entry(1.0, What.REPLAYED)))
    screen.end(kept=False)
    shown = output.getvalue()
    assert f"{NAME}: CHARGED AGAIN" in shown
    assert f"{NAME}: done before" in shown
    end = shown.partition("Side by side")[2]
    for expected in ("plain", "ours", "charged twice", "The promise BROKE", "8 lost", "The limit: a body that dies"):
        assert expected in end
    assert ("payments charged" in shown) == live
