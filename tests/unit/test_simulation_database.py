"""The simulated database: who has a row, for how long, and what becomes of a request whose sender is gone."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from idempotent_tasks.core.receipts import Receipt, TransactionLost
from idempotent_tasks.core.records import Outcome, Status
from idempotent_tasks.errors import StoreUnavailableError
from simulation.database import IDLE_SECONDS, Database, Transaction
from simulation.faults import Faults
from simulation.history import History, Recorder
from simulation.network import Service
from simulation.process import SimulatedClock, SimulatedProcess
from simulation.scheduler import START, Scheduler

RECEIPT = Receipt(key="rows#1", generation=7, fence=1, task_id="id-1", expires_at=int(START) + 100)
DONE = Receipt(
    key="rows#1",
    generation=7,
    fence=1,
    task_id="id-1",
    outcome=Outcome(status=Status.COMPLETED, codec="json", data="1"),
    expires_at=int(START) + 100,
)


class Place:
    """As much of a world as a database needs, with processes that use it."""

    def __init__(self) -> None:
        self.draw = random.Random(0)
        self.scheduler = Scheduler(self.draw)
        self.faults = Faults(self.draw, {}, 10)
        self.history = History(0, "rows")
        self.note = Recorder(self.history, self.scheduler, Service(lambda: 0.0)).note
        self.database = Database(self)  # type: ignore[arg-type]  # no history's world
        #: What the processes have seen: errors, and the fences of receipts that they have found.
        self.seen: list[Any] = []

    def spawn(self, work: Callable[[], None], at: float = 0.0) -> SimulatedProcess:
        """Start a process that works after so many seconds."""
        pid = self.draw.getrandbits(30)
        process = SimulatedProcess(self.scheduler, "machine-0", pid, SimulatedClock(self.scheduler), {})

        def noted() -> None:
            try:
                work()
            except (StoreUnavailableError, TransactionLost) as error:
                self.seen.append(error)

        self.scheduler.after(at, lambda: process.spawn(noted, "body"))
        return process

    def begin(self, wait_seconds: float = 2.0) -> Transaction:
        """Begin, and note what was found."""
        transaction = self.database.begin(RECEIPT, wait_seconds)
        if transaction.found is not None:
            self.seen.append(transaction.found.fence)
        return transaction

    def work(self, seconds: float = 0.0, wait_seconds: float = 2.0) -> Callable[[], None]:
        """Return what writes a row in a transaction of so many seconds, and commits it."""

        def commit() -> None:
            transaction = self.begin(wait_seconds)
            transaction.session.insert(1)
            self.scheduler.sleep(seconds)
            transaction.commit(DONE)

        return commit

    def run(self) -> list[str]:
        """Let everything happen; return what was made durable, in order."""
        self.scheduler.run(START + 200, lambda: False)
        assert self.scheduler.failures == []
        return [each.kind for each in self.history.of("receipt-committed", "row-committed")]


ONE_TRANSACTION = ["receipt-committed", "row-committed"]


@pytest.fixture
def place() -> Place:
    """A database and nobody who uses it."""
    return Place()


def test_a_second_transaction_waits_for_the_row(place: Place) -> None:
    """And finds what the first one has committed."""
    place.spawn(place.work(seconds=1))
    place.spawn(lambda: place.begin().rollback(), at=0.5)
    assert (place.run(), place.seen) == (ONE_TRANSACTION, [1])


def test_it_does_not_wait_for_longer_than_it_wants_to(place: Place) -> None:
    """The row is held still."""
    place.spawn(place.work(seconds=5))
    place.spawn(lambda: place.begin().rollback(), at=0.5)
    assert (place.run(), [type(each) for each in place.seen]) == (ONE_TRANSACTION, [StoreUnavailableError])


def test_the_transaction_of_a_dead_process_is_rolled_back(place: Place) -> None:
    """At once: the next one has the row."""
    dying = place.spawn(place.work(seconds=5))
    place.scheduler.after(1.0, dying.kill)
    place.spawn(lambda: place.begin().rollback(), at=0.5)
    assert (place.run(), place.seen) == ([], [])


def test_a_commit_that_was_sent_arrives(place: Place) -> None:
    """Although its sender dies on the way."""
    place.database.on_request = lambda request, process: process.kill() if request == "commit" else None
    place.spawn(place.work())
    assert place.run() == ONE_TRANSACTION


def test_a_silent_transaction_is_ended(place: Place) -> None:
    """Whoever waits for its row has it then; who was silent learns it from the next request."""
    still = place.spawn(place.work(seconds=1))
    place.scheduler.after(0.5, still.stop)
    place.scheduler.after(IDLE_SECONDS + 10, still.go_on)
    place.spawn(place.work(wait_seconds=IDLE_SECONDS), at=1.0)
    assert place.run() == ONE_TRANSACTION
    (lost,) = place.seen
    assert isinstance(lost, TransactionLost)
    assert (lost.is_certain, place.faults.counts["idle-ended"]) == (False, 1)
