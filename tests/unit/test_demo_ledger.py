"""The demo's ledger: charges, losses, kills and recoveries from the journal alone."""

from collections.abc import Iterable

import pytest

from idempotent_tasks.demo.journal import Entry, What
from idempotent_tasks.demo.ledger import Ledger
from idempotent_tasks.demo.plan import Fault, Payment

CHILD, OTHER_CHILD, WORKER, OTHER_WORKER = 11, 22, 10, 20


def payment(name: str) -> Payment:
    """Return a payment of 100 cents."""
    return Payment(name=name, cents=100, fault=Fault.NONE, seconds=1.0, publish_at=(0.0,))


def entry(what: What, name: str = "a", *, pid: int = CHILD, worker: int = WORKER) -> Entry:
    """Return an entry whose time does not matter."""
    return Entry(at=1.0, what=what, payment=name, pid=pid, worker=worker, cents=100 if what is What.CHARGED else 0)


def run_of(name: str, pid: int = CHILD) -> list[Entry]:
    """Return the entries of a delivery whose body runs to its end."""
    return [entry(what, name, pid=pid) for what in (What.DELIVERED, What.STARTED, What.CHARGED, What.FINISHED)]


@pytest.fixture
def ledger() -> Ledger:
    """A ledger of the payments ``a`` and ``b``."""
    return Ledger([payment("a"), payment("b")])


def add(ledger: Ledger, entries: Iterable[Entry]) -> None:
    """Add several entries."""
    for each in entries:
        ledger.add(each)


def test_promise_is_kept_when_each_payment_is_charged_once(ledger: Ledger) -> None:
    """Replays and deferrals are no charges."""
    add(ledger, [entry(What.PUBLISHED), entry(What.PUBLISHED, "b"), *run_of("a"), *run_of("b")])
    add(ledger, [entry(What.DELIVERED), entry(What.DEFERRED), entry(What.FINISHED)])
    add(ledger, [entry(What.DELIVERED), entry(What.REPLAYED), entry(What.FINISHED)])
    figures = ledger.figures()
    assert figures.promise_kept
    assert (figures.wanted, figures.charges, figures.charged_twice, figures.lost) == (2, 2, 0, 0)
    assert (figures.wanted_cents, figures.charged_cents) == (200, 200)
    assert (figures.published, figures.deliveries, figures.runs) == (2, 4, 2)
    assert (figures.replays, figures.deferrals) == (1, 1)


def test_second_charge_breaks_the_promise(ledger: Ledger) -> None:
    """A payment that was charged twice counts once as charged twice, and with all its money."""
    add(ledger, [*run_of("a"), *run_of("a", OTHER_CHILD), *run_of("b")])
    figures = ledger.figures()
    assert not figures.promise_kept
    assert (figures.charges, figures.charged_twice, figures.lost, figures.charged_cents) == (3, 1, 0, 300)


def test_missing_charge_breaks_the_promise(ledger: Ledger) -> None:
    """A second charge of one payment does not make up for a lost one."""
    add(ledger, [*run_of("a"), *run_of("a")])
    figures = ledger.figures()
    assert not figures.promise_kept
    assert (figures.charges, figures.charged_twice, figures.lost) == (2, 1, 1)


def test_killed_child_ends_its_run_only(ledger: Ledger) -> None:
    """The run of another child goes on."""
    add(ledger, [entry(What.STARTED), entry(What.STARTED, "b", pid=OTHER_CHILD), entry(What.CHILD_KILLED)])
    assert [name for name, _ in ledger.open_runs()] == ["b"]
    assert ledger.histories["a"].runs[0].killed


def test_killed_worker_ends_the_runs_of_its_pool(ledger: Ledger) -> None:
    """The runs of another worker go on."""
    add(ledger, [entry(What.STARTED), entry(What.STARTED, "b", pid=OTHER_CHILD, worker=OTHER_WORKER)])
    ledger.add(entry(What.WORKER_KILLED, pid=WORKER, worker=0))
    assert [name for name, _ in ledger.open_runs()] == ["b"]


def test_run_is_open_until_its_delivery_is_finished(ledger: Ledger) -> None:
    """Between charge and commit the run is still open: there a kill would repeat the charge."""
    add(ledger, [entry(What.STARTED), entry(What.CHARGED)])
    assert [run.charged for _, run in ledger.open_runs()] == [1.0]
    ledger.add(entry(What.FINISHED))
    assert list(ledger.open_runs()) == []


def test_recovery_is_a_run_that_survives_after_one_that_was_killed(ledger: Ledger) -> None:
    """Two kills of one payment and a run that lasts are two recoveries; a kill without a later run is none."""
    killed = [entry(What.STARTED), entry(What.CHILD_KILLED)]
    add(ledger, [*killed, *killed])
    assert ledger.figures().recoveries == 0
    add(ledger, run_of("a"))
    assert ledger.figures().recoveries == 2
